//! The pre-training loop: epochs, masks, metrics, checkpoints, stopping and resuming.
//!
//! Everything random is a function of (seed, epoch, image, view), so where a run stands is a few numbers: epoch, batch and
//! step. A checkpoint holds them beside the tensors, and a resumed run repeats an uninterrupted one bit for bit.

use crate::backend::{self, Machine};
use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::learner::{Learner, LearnerSpec};
use crate::progress::{Observer, StepReport};
use crate::run_dir::{CheckpointName, RunWriter};
use crate::signals::{StopFlag, StopSignal};
use crate::snapshot;
use sdclr_data::{Batch, Dataset, Loader, LoaderSpec, Order, Shard};
use sdclr_engine::Level;
use sdclr_nn::mask::MaskStats;
use sdclr_nn::{Schedule, Single};
use sdclr_records::augment::Augmentation;
use sdclr_records::checkpoint::{CHECKPOINT_VERSION, CheckpointState};
use sdclr_records::metrics::{EpochMetrics, MetricLine, StepMetrics};
use sdclr_records::{Error as ConfigError, RunConfig};
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
    /// Where to write; a resumed run has its checkpoints there.
    pub writer: RunWriter,
    /// Whether to go on from `checkpoints/last.safetensors` if it is there.
    pub resume: bool,
    /// Instruction set of the CPU to use at most.
    pub level: Option<Level>,
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
    job.config.validate().map_err(|e: ConfigError| e)?;
    Run::new(job)?.go()
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
    job: PretrainJob<'a>,
    learner: Learner,
    loader: Loader,
    schedule: Schedule,
    n_steps: u64,
    at: Position,
    mask: Option<MaskStats>,
    began: Instant,
    /// Speed of the current epoch and of the current metric interval.
    epoch_speed: Speed,
    interval_speed: Speed,
    n_skipped_written: usize,
}

/// Images and waiting since a moment.
#[derive(Clone, Copy)]
struct Speed {
    since: Instant,
    waited_before_s: f64,
    n_images: usize,
}

impl Speed {
    fn new(waited_s: f64) -> Self {
        Self { since: Instant::now(), waited_before_s: waited_s, n_images: 0 }
    }

    /// (images a second, share of the time spent waiting).
    fn read(&self, waited_s: f64) -> (f64, f64) {
        let seconds = self.since.elapsed().as_secs_f64().max(1e-9);
        (self.n_images as f64 / seconds, ((waited_s - self.waited_before_s) / seconds).clamp(0.0, 1.0))
    }
}

impl<'a> Run<'a> {
    fn new(job: PretrainJob<'a>) -> Result<Self, Error> {
        let config = job.config;
        if config.train.batch_size > job.dataset.len() {
            return Err(Error::Unfit(format!(
                "--batch-size {} is larger than the data set ({} images); give a smaller one",
                config.train.batch_size,
                job.dataset.len()
            )));
        }
        let machine = Machine::of(config, job.level);
        let learner = Learner::new(
            machine.engine()?,
            Box::new(Single),
            backend::run_network(config)?,
            &LearnerSpec {
                method: config.method,
                max_batch: config.train.batch_size,
                temperature: config.train.temperature as f32,
                optimizer: backend::optimizer(&config.optimizer),
            },
        )?;
        check_memory(config, learner.engine.bytes_held(), job.memory_limit)?;
        let loader = Loader::new(job.dataset.clone(), loader_spec(config))?;
        let steps_per_epoch = steps_per_epoch(job.dataset.len(), config.train.batch_size);
        let mut run = Self {
            schedule: backend::schedule(config, steps_per_epoch),
            n_steps: config.train.epochs as u64 * steps_per_epoch,
            at: Position::default(),
            mask: None,
            began: Instant::now(),
            epoch_speed: Speed::new(0.0),
            interval_speed: Speed::new(0.0),
            n_skipped_written: 0,
            job,
            learner,
            loader,
        };
        run.begin()?;
        Ok(run)
    }

    /// Draws the weights, or goes on from the last checkpoint.
    fn begin(&mut self) -> Result<(), Error> {
        let config = self.job.config;
        let last = self.job.writer.dir().checkpoint_path(CheckpointName::Last);
        if self.job.resume && last.is_file() {
            let checkpoint = Checkpoint::load(&last)?;
            self.check_length(&checkpoint.state)?;
            snapshot::restore(&mut self.learner, &checkpoint)?;
            self.at = position(&checkpoint.state);
            self.mask = checkpoint.state.mask_threshold.map(|threshold| self.restored_mask(threshold as f32));
            let done = self.at;
            self.job
                .observer
                .message(&format!("resuming after epoch {}, batch {} (step {})", done.epoch, done.batch, done.step));
        } else {
            if self.job.resume {
                self.job.observer.message("no checkpoint was written yet: starting from the beginning");
            }
            self.learner.model.init(&mut *self.learner.engine, config.seed);
        }
        self.job.writer.truncate_metrics(self.at.step)?;
        self.job.writer.log(&format!(
            "{} of {} images on {}; {}; from step {}",
            config.method,
            self.job.dataset.len(),
            self.learner.engine.name(),
            self.learner.model.network.name,
            self.at.step
        ))?;
        Ok(())
    }

    /// A run goes on with as many images as it began with: the schedule and the order of the images depend on it.
    fn check_length(&self, state: &CheckpointState) -> Result<(), Error> {
        if state.total_steps == self.n_steps {
            return Ok(());
        }
        Err(Error::Unfit(format!(
            "{}: the run was planned for {} steps, these {} images make it {}; resume with the images it began with",
            self.job.writer.dir().root().display(),
            state.total_steps,
            self.job.dataset.len(),
            self.n_steps
        )))
    }

    /// What the mask that a checkpoint holds kept.
    fn restored_mask(&self, threshold: f32) -> MaskStats {
        let masks = self.learner.model.masks();
        let n_weights = masks.values().map(|(_, mask)| mask.len()).sum();
        let n_kept = masks.values().flat_map(|(_, mask)| mask).map(|&kept| usize::from(kept)).sum();
        MaskStats { threshold, n_weights, n_kept }
    }

    fn go(mut self) -> Result<Outcome, Error> {
        while self.at.epoch < self.job.config.train.epochs {
            if let Some(signal) = self.epoch()? {
                return Ok(Outcome::Stopped(signal));
            }
        }
        // Of the epoch that just ended, or of the checkpoint where nothing was left to do.
        let loss = self.at.epoch_loss / self.at.epoch_steps.max(1) as f64;
        Ok(Outcome::Finished { loss, step: self.at.step })
    }

    /// The rest of the current epoch; a signal if it was stopped.
    fn epoch(&mut self) -> Result<Option<StopSignal>, Error> {
        let config = self.job.config;
        let epoch = self.at.epoch as u64;
        if self.at.batch == 0 {
            (self.at.epoch_loss, self.at.epoch_steps) = (0.0, 0);
            if config.has_pruned_branch() {
                let prune = &config.prune;
                self.mask = Some(self.learner.update_mask(prune.rate, prune.random_rate, config.seed, epoch)?);
            }
        }
        self.loader.start_epoch(epoch, self.at.batch);
        self.epoch_speed = Speed::new(self.loader.waited_s());
        self.interval_speed = self.epoch_speed;
        while let Some(batch) = self.loader.next_batch() {
            self.batch(batch?)?;
            if let Some(signal) = self.job.stop.raised() {
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
        self.write_skipped()?;
        if n < 2 {
            self.loader.recycle(batch);
            if self.at.epoch == 0 {
                let text = format!("a batch of {n} image was skipped: batch norm needs two (the last of the epoch)");
                self.job.observer.message(&text);
            }
            return Ok(());
        }
        let lr = self.schedule.lr_at(self.at.step + 1);
        let loss = f64::from(self.learner.step(&batch.views, n, lr)?);
        self.loader.recycle(batch);
        let at = &mut self.at;
        at.step += 1;
        at.epoch_steps += 1;
        at.interval_steps += 1;
        at.epoch_loss += loss;
        at.interval_loss += loss;
        self.epoch_speed.n_images += n;
        self.interval_speed.n_images += n;
        if self.at.step % self.job.config.train.log_every_steps.max(1) as u64 == 0 {
            self.write_interval(lr)?;
        }
        let report = self.report(self.at.epoch + 1);
        self.job.observer.on_step(&report);
        Ok(())
    }

    /// The state after the last step of epoch `epoch`, from 1.
    fn report(&self, epoch: usize) -> StepReport {
        let (images_per_s, wait_share) = self.epoch_speed.read(self.loader.waited_s());
        StepReport {
            epoch,
            n_epochs: self.job.config.train.epochs,
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
        let (images_per_s, wait_share) = self.interval_speed.read(self.loader.waited_s());
        let line = StepMetrics {
            epoch: self.at.epoch + 1,
            step: self.at.step,
            loss: self.at.interval_loss / self.at.interval_steps as f64,
            lr,
            images_per_s,
            wait_share,
            elapsed_s: self.elapsed_s(),
            n_skipped: self.loader.skipped().len(),
        };
        (self.at.interval_loss, self.at.interval_steps) = (0.0, 0);
        self.interval_speed = Speed::new(self.loader.waited_s());
        Ok(self.job.writer.append_metric(&MetricLine::Step(line))?)
    }

    /// Metrics, checkpoints and masks at the end of an epoch.
    fn end_of_epoch(&mut self) -> Result<(), Error> {
        let (config, epoch) = (self.job.config, self.at.epoch);
        if self.at.epoch_steps > 0 {
            let report = self.report(epoch);
            let line = EpochMetrics {
                epoch,
                step: report.step,
                loss: report.loss,
                lr: report.lr,
                images_per_s: report.images_per_s,
                wait_share: report.wait_share,
                elapsed_s: self.elapsed_s(),
                n_skipped: self.loader.skipped().len(),
                mask_threshold: self.mask.map(|mask| f64::from(mask.threshold)),
                mask_kept_share: self.mask.map(|mask| mask.n_kept as f64 / mask.n_weights as f64),
            };
            self.job.writer.append_metric(&MetricLine::Epoch(line))?;
            self.job.observer.on_epoch(&report);
        }
        let is_last = epoch == config.train.epochs;
        let due = |every: usize| every > 0 && epoch % every == 0;
        if due(config.prune.mask_save_every_epochs) && config.has_pruned_branch() {
            let mut masks = Checkpoint::new(self.state());
            masks.tensors = snapshot::masks(&self.learner.model, true).into_iter().collect();
            masks.save(&self.job.writer.dir().checkpoint_path(CheckpointName::Mask(epoch)))?;
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
            version: CHECKPOINT_VERSION,
            model: self.learner.model.network.name.clone(),
            method: self.job.config.method,
            epoch: self.at.epoch,
            batch_in_epoch: self.at.batch,
            step: self.at.step,
            total_steps: self.n_steps,
            seed: self.job.config.seed,
            optimizer: self.job.config.optimizer.kind,
            optimizer_steps: self.learner.optimizer.n_updates,
            epoch_loss_sum: self.at.epoch_loss,
            epoch_steps: self.at.epoch_steps,
            interval_loss_sum: self.at.interval_loss,
            interval_steps: self.at.interval_steps,
            elapsed_s: self.elapsed_s(),
            n_skipped: self.loader.skipped().len(),
            mask_threshold: self.mask.map(|mask| f64::from(mask.threshold)),
            notes: std::collections::BTreeMap::new(),
        }
    }

    /// Writes a checkpoint; the metrics that lead up to it are on the disk first.
    fn save(&mut self, name: CheckpointName) -> Result<(), Error> {
        self.job.writer.sync_metrics()?;
        let state = self.state();
        let path = self.job.writer.dir().checkpoint_path(name);
        Ok(snapshot::checkpoint(&mut self.learner, state)?.save(&path)?)
    }

    /// Rewrites `skipped.csv` when another broken image was found.
    fn write_skipped(&mut self) -> Result<(), Error> {
        let skipped = self.loader.skipped();
        if skipped.len() > self.n_skipped_written {
            self.n_skipped_written = skipped.len();
            let rows: Vec<(String, String)> = skipped.into_iter().map(|s| (s.name, s.reason)).collect();
            self.job.writer.write_skipped(&rows)?;
        }
        Ok(())
    }
}

/// Planned buffers are known before their pages are taken; a run that cannot fit ends here and not in its first step.
fn check_memory(config: &RunConfig, needed: usize, limit: Option<u64>) -> Result<(), Error> {
    let Some(limit) = limit.filter(|limit| needed as u64 > *limit) else { return Ok(()) };
    let batch_size = config.train.batch_size;
    // Buffers grow with the batch but for the weights, so this is on the safe side.
    let fitting = (batch_size as f64 * limit as f64 / needed as f64 * 0.9) as usize;
    Err(Error::Unfit(format!(
        "--batch-size {batch_size} needs {:.1} GB of memory and {:.1} GB are free; try --batch-size {}",
        needed as f64 / 1e9,
        limit as f64 / 1e9,
        fitting.max(2)
    )))
}

/// Optimizer steps of an epoch: a last batch of one image is no step.
fn steps_per_epoch(n_images: usize, batch_size: usize) -> u64 {
    (n_images / batch_size + usize::from(n_images % batch_size > 1)) as u64
}

fn position(state: &CheckpointState) -> Position {
    Position {
        epoch: state.epoch,
        batch: state.batch_in_epoch,
        step: state.step,
        epoch_loss: state.epoch_loss_sum,
        epoch_steps: state.epoch_steps,
        interval_loss: state.interval_loss_sum,
        interval_steps: state.interval_steps,
        elapsed_s: state.elapsed_s,
    }
}

fn loader_spec(config: &RunConfig) -> LoaderSpec {
    LoaderSpec {
        recipe: Augmentation::Contrastive(config.augment.clone()),
        image_size: config.data.image_size as u32,
        n_views: 2,
        batch_size: config.train.batch_size,
        order: Order::Shuffled,
        seed: config.seed,
        workers: config.data.workers,
        shard: Shard::default(),
        max_broken_share: config.data.max_broken as f32,
        strict: config.data.strict,
    }
}
