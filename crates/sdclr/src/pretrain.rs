//! The pre-training loop: epochs, masks, metrics, checkpoints, stopping and resuming.
//!
//! Everything random is a function of (seed, epoch, image, view), so where a run stands is a few numbers: epoch, batch and
//! step. A checkpoint holds them beside the tensors, and a resumed run repeats an uninterrupted one bit for bit.

mod epoch;
mod prepare;
mod speed;

use crate::boost::Boost;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::error::Error;
use crate::learner::Learner;
use crate::progress::{Observer, StepReport};
use crate::run_dir::{CheckpointName, Claim, RunWriter};
use crate::signals::{StopFlag, StopSignal};
use crate::snapshot;
use prepare::{Prepared, no_step, settled, thread_counts};
use sdclr_data::{Batch, Dataset, Loader};
use sdclr_engine::Kernels;
use sdclr_nn::Schedule;
use sdclr_nn::mask::MaskStats;
use sdclr_records::RunConfig;
use sdclr_records::checkpoint::{CheckpointState, DataMark};
use sdclr_records::metrics::{MetricLine, StepMetrics};
use speed::Speed;
use std::path::PathBuf;
use std::time::Instant;

/// How a long job ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// All of it is done.
    Finished {
        /// Mean loss of the last epoch.
        loss: f64,
        /// Steps done.
        step: u64,
    },
    /// Asked to stop; a checkpoint is written.
    Stopped(StopSignal),
}

/// A pre-training run, ready to go.
pub struct PretrainJob<'a> {
    /// Every setting.
    pub config: &'a RunConfig,
    /// The images.
    pub dataset: Dataset,
    /// Where to write; nothing there changes before everything that can fail is prepared. A claim that resumes goes on
    /// from `checkpoints/last.safetensors` if it is there, or else from the newest that was kept.
    pub claim: Claim,
    /// Which of the CPU's kernels run.
    pub kernels: Kernels,
    /// Bytes of memory that the run may take; `None` does not look.
    pub memory_limit: Option<u64>,
    /// Looked at between steps.
    pub stop: &'a StopFlag,
    /// Told of every step.
    pub observer: &'a mut dyn Observer,
}

/// Pre-trains.
///
/// # Errors
/// A config that does not fit the images, memory, a checkpoint that does not fit, a disk that is full, too many broken
/// images, a loss that is not finite.
pub fn pretrain(job: PretrainJob<'_>) -> Result<Outcome, Error> {
    let config = settled(&job)?;
    let PretrainJob { dataset, claim, kernels, memory_limit, stop, observer, .. } = job;
    let job = PretrainJob { config: &config, dataset, claim, kernels, memory_limit, stop, observer };
    let prepared = Prepared::new(&job)?;
    Run::begin(job, prepared)?.go()
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, Default)]
struct Position {
    /// Epochs finished.
    epoch: usize,
    /// Batches done in the next one.
    batch: usize,
    /// Optimizer steps done.
    step: u64,
    epoch_loss: f64,
    epoch_steps: u64,
    interval_loss: f64,
    interval_steps: u64,
    /// Seconds of training before this sitting.
    elapsed_s: f64,
}

struct Run<'a> {
    config: &'a RunConfig,
    stop: &'a StopFlag,
    observer: &'a mut dyn Observer,
    writer: RunWriter,
    learner: Learner,
    loader: Loader,
    schedule: Schedule,
    n_steps: u64,
    data: DataMark,
    at: Position,
    mask: Option<MaskStats>,
    boost: Option<Boost>,
    began: Instant,
    /// Speed of the current epoch and of the current metric interval.
    epoch_speed: Speed,
    interval_speed: Speed,
    /// Broken images of this sitting that are noted.
    n_noted: usize,
    /// The newest checkpoint and its step.
    last_good: Option<(PathBuf, u64)>,
}

impl<'a> Run<'a> {
    /// Opens the run directory for writing, which is the first that changes in it.
    fn begin(job: PretrainJob<'a>, prepared: Prepared) -> Result<Self, Error> {
        let (resumes, replaces) = (job.claim.resumes(), job.claim.replaces());
        let Prepared { learner, loader, schedule, n_steps, data, at, mask, boost, from, notes } = prepared;
        let mut kept = job.config.clone();
        let mut other_threads = None;
        if let (Some(at), Some(stored)) = (at, job.claim.stored_config()?) {
            if at.epoch >= job.config.train.epochs {
                // Nothing is left to compute: what was computed stays described as it was. Only the images may have moved.
                kept = stored;
                kept.data.source.clone_from(&job.config.data.source);
            } else {
                other_threads = thread_counts(&stored, job.config, job.kernels);
            }
        }
        let writer = job.claim.begin(&kept)?;
        let mut run = Self {
            config: job.config,
            stop: job.stop,
            observer: job.observer,
            writer,
            learner,
            loader,
            schedule,
            n_steps,
            data,
            at: at.unwrap_or_default(),
            mask,
            boost,
            began: Instant::now(),
            epoch_speed: Speed::new(0.0),
            interval_speed: Speed::new(0.0),
            n_noted: 0,
            last_good: from.zip(at.map(|at| at.step)),
        };
        if replaces {
            run.observer.message("replaced the run that was there, with its probes and results");
        }
        run.observer.message(&format!("training on {}", run.loader.dataset().description()));
        match at {
            Some(Position { epoch, batch, step, .. }) => {
                run.observer.message(&format!("resuming after epoch {epoch}, batch {batch} (step {step})"));
            }
            None if resumes => run.observer.message("no checkpoint was written yet: starting from the beginning"),
            None => {}
        }
        for note in &notes {
            run.observer.message(note);
            run.writer.log(note)?;
        }
        if let Some((before, now)) = other_threads {
            run.observer.message(&format!(
                "note: {now} threads compute, not {before}: sums are added in another order, so the result will not be \
                 an uninterrupted run's to the bit"
            ));
        }
        run.writer.truncate_metrics(run.at.step)?;
        run.writer.log(&format!(
            "{} of {} images on {}; {}; from step {}",
            run.config.method,
            run.data.n_images,
            run.learner.engine.name(),
            run.learner.model.network.name,
            run.at.step
        ))?;
        Ok(run)
    }

    fn go(mut self) -> Result<Outcome, Error> {
        while self.at.epoch < self.config.train.epochs {
            if let Some(signal) = self.epoch()? {
                return Ok(Outcome::Stopped(signal));
            }
        }
        // Where a kept checkpoint of the last epoch stood in for the last one, nothing was left to do but this.
        if !self.writer.dir().checkpoint_path(CheckpointName::Last).is_file() {
            self.save(CheckpointName::Last)?;
        }
        if self.writer.n_skipped() > 0 {
            let n = self.writer.n_skipped();
            let what = if n == 1 { "1 broken image was".to_owned() } else { format!("{n} broken images were") };
            self.observer.message(&format!("{what} skipped: skipped.csv lists them"));
        }
        // Of the epoch that just ended, or of the checkpoint where nothing was left to do.
        let loss = self.at.epoch_loss / self.at.epoch_steps.max(1) as f64;
        Ok(Outcome::Finished { loss, step: self.at.step })
    }

    /// The rest of the current epoch; a signal if it was stopped.
    fn epoch(&mut self) -> Result<Option<StopSignal>, Error> {
        self.begin_epoch()?;
        self.epoch_speed = Speed::new(self.loader.waited_s());
        self.interval_speed = self.epoch_speed;
        while let Some(batch) = self.loader.next_batch() {
            match batch {
                Ok(batch) => self.batch(batch)?,
                Err(error) => {
                    // Which images are broken is what one wants to know now.
                    self.write_skipped()?;
                    return Err(error.into());
                }
            }
            if let Some(signal) = self.stop.raised() {
                self.save(CheckpointName::Last)?;
                return Ok(Some(signal));
            }
        }
        (self.at.epoch, self.at.batch) = (self.at.epoch + 1, 0);
        self.end_of_epoch()?;
        Ok(None)
    }

    /// One batch.
    fn batch(&mut self, batch: Batch) -> Result<(), Error> {
        let n = batch.n_images();
        self.at.batch += 1;
        if n < 2 {
            self.loader.recycle(batch);
            if self.at.epoch == 0 && n == 1 {
                self.observer.message("a batch of 1 image was skipped: batch norm needs two");
            }
            return Ok(());
        }
        let lr = self.schedule.lr_at(self.at.step + 1);
        let loss = match self.learner.step(&batch.views, n, lr) {
            Err(Error::NonFiniteLoss { loss, step, lr }) => {
                return Err(self.diverged(format!("the loss is {loss}"), step, lr));
            }
            loss => f64::from(loss?),
        };
        if let Some(boost) = &mut self.boost {
            boost.record(&mut self.learner, &batch.indices)?;
        }
        self.loader.recycle(batch);
        let at = &mut self.at;
        at.step += 1;
        at.epoch_steps += 1;
        at.interval_steps += 1;
        at.epoch_loss += loss;
        at.interval_loss += loss;
        self.epoch_speed.n_images += n;
        self.interval_speed.n_images += n;
        if self.at.step.is_multiple_of(self.config.train.log_every_steps.max(1) as u64) {
            self.write_interval(lr)?;
        }
        let report = self.report(self.at.epoch + 1);
        self.observer.on_step(&report);
        Ok(())
    }

    /// The state after the last step of epoch `epoch`, from 1.
    fn report(&self, epoch: usize) -> StepReport {
        let (images_per_s, wait_share) = self.epoch_speed.read(self.loader.waited_s());
        StepReport {
            epoch,
            n_epochs: self.config.train.epochs,
            step: self.at.step,
            n_steps: self.n_steps,
            loss: self.at.epoch_loss / self.at.epoch_steps.max(1) as f64,
            lr: self.schedule.lr_at(self.at.step),
            images_per_s,
            wait_share,
        }
    }

    fn elapsed_s(&self) -> f64 {
        self.at.elapsed_s + self.began.elapsed().as_secs_f64()
    }

    fn write_interval(&mut self, lr: f64) -> Result<(), Error> {
        self.note_skipped();
        let (images_per_s, wait_share) = self.interval_speed.read(self.loader.waited_s());
        let line = StepMetrics {
            epoch: self.at.epoch + 1,
            step: self.at.step,
            loss: self.at.interval_loss / self.at.interval_steps as f64,
            lr,
            images_per_s,
            wait_share,
            elapsed_s: self.elapsed_s(),
            n_skipped: self.writer.n_skipped(),
        };
        (self.at.interval_loss, self.at.interval_steps) = (0.0, 0);
        self.interval_speed = Speed::new(self.loader.waited_s());
        Ok(self.writer.append_metric(&MetricLine::Step(line))?)
    }

    /// Metrics, checkpoints and masks at the end of an epoch.
    fn end_of_epoch(&mut self) -> Result<(), Error> {
        let (config, epoch) = (self.config, self.at.epoch);
        self.write_skipped()?;
        if self.at.step == 0 {
            return Err(no_step(self.loader.dataset()));
        }
        if self.at.epoch_steps > 0 {
            let report = self.report(epoch);
            let line = self.epoch_metrics(&report);
            self.writer.append_metric(&MetricLine::Epoch(line))?;
            self.observer.on_epoch(&report);
        }
        let is_last = epoch == config.train.epochs;
        let due = |every: usize| every > 0 && epoch % every == 0;
        if due(config.prune.mask_save_every_epochs) && config.has_pruned_branch() {
            let mut masks = Checkpoint::new(self.state());
            masks.tensors = snapshot::masks(&self.learner.model, true).into_iter().collect();
            masks.save(&self.writer.dir().checkpoint_path(CheckpointName::Mask(epoch)))?;
        }
        if due(config.train.keep_every_epochs) {
            self.save(CheckpointName::Epoch(epoch))?;
        }
        if due(config.train.checkpoint_every_epochs) || is_last {
            self.save(CheckpointName::Last)?;
        }
        Ok(())
    }

    fn state(&self) -> CheckpointState {
        CheckpointState {
            model: self.learner.model.network.name.clone(),
            method: self.config.method,
            epoch: self.at.epoch,
            batch_in_epoch: self.at.batch,
            step: self.at.step,
            total_steps: self.n_steps,
            seed: self.config.seed,
            optimizer: self.config.optimizer.kind,
            optimizer_steps: self.learner.optimizer.n_updates,
            epoch_loss_sum: self.at.epoch_loss,
            epoch_steps: self.at.epoch_steps,
            interval_loss_sum: self.at.interval_loss,
            interval_steps: self.at.interval_steps,
            elapsed_s: self.elapsed_s(),
            n_skipped: self.writer.n_skipped(),
            mask_threshold: self.mask.map(|mask| f64::from(mask.threshold)),
            data: Some(self.data.clone()),
        }
    }

    /// Writes a checkpoint; the metrics that lead up to it are on the disk first.
    fn save(&mut self, name: CheckpointName) -> Result<(), Error> {
        self.write_skipped()?;
        self.writer.sync_metrics()?;
        let state = self.state();
        let path = self.writer.dir().checkpoint_path(name);
        let mut checkpoint = snapshot::checkpoint(&mut self.learner, state)?;
        if let Some(boost) = &self.boost {
            boost.store(&mut checkpoint);
        }
        match checkpoint.save(&path) {
            Err(CheckpointError::NonFinite { tensor, .. }) => {
                let (step, lr) = (self.at.step, self.schedule.lr_at(self.at.step));
                Err(self.diverged(format!("`{tensor}` holds values that are not finite"), step, lr))
            }
            saved => {
                saved?;
                self.last_good = Some((path, self.at.step));
                Ok(())
            }
        }
    }

    fn diverged(&self, what: String, step: u64, lr: f64) -> Error {
        Error::Diverged { what, step, lr, last_good: self.last_good.clone() }
    }

    /// Notes the broken images that were met since the last look.
    fn note_skipped(&mut self) {
        if self.loader.n_skipped() > self.n_noted {
            let skipped = self.loader.skipped();
            self.n_noted = skipped.len();
            self.writer.note_skipped(skipped.into_iter().map(|s| (s.name, s.reason)));
        }
    }

    fn write_skipped(&mut self) -> Result<(), Error> {
        self.note_skipped();
        Ok(self.writer.write_skipped()?)
    }
}
