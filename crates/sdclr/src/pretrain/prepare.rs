//! Everything of a pre-training run that can fail before it begins: the run directory is not touched by any of it.

use super::{Position, PretrainJob};
use crate::backend::{self, Machine};
use crate::boost::Boost;
use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::init_from::init_from;
use crate::learner::{Learner, LearnerSpec};
use crate::run_dir::CheckpointName;
use crate::snapshot;
use sdclr_data::{Dataset, Loader, LoaderSpec, Order, Shard};
use sdclr_engine::Kernels;
use sdclr_nn::mask::MaskStats;
use sdclr_nn::{Model, Schedule, Single};
use sdclr_records::RunConfig;
use sdclr_records::augment::Augmentation;
use sdclr_records::checkpoint::{CheckpointState, DataMark};
use sdclr_records::names::Precision;
use std::path::{Path, PathBuf};

/// The job's config with what `auto` stands for. A run may go on at another machine, and does so in the numbers it began in.
pub(super) fn settled(job: &PretrainJob<'_>) -> Result<RunConfig, Error> {
    let mut config = job.config.clone();
    if config.train.precision == Precision::Auto {
        config.train.precision = match job.claim.stored_config()? {
            // When runs still stored it, `auto` was f32.
            Some(stored) if stored.train.precision == Precision::Auto => Precision::F32,
            Some(stored) => stored.train.precision,
            None => Machine::of(&config, job.kernels).numbers(),
        };
    }
    Ok(config)
}

/// A run that can begin.
pub(super) struct Prepared {
    pub learner: Learner,
    pub loader: Loader,
    pub schedule: Schedule,
    pub n_steps: u64,
    pub data: DataMark,
    /// The checkpoint that it goes on from; `None` from the beginning.
    pub from: Option<PathBuf>,
    /// Where that one stood.
    pub at: Option<Position>,
    pub mask: Option<MaskStats>,
    pub boost: Option<Boost>,
    /// What whoever waits should know of the weights that it begins with.
    pub notes: Vec<String>,
}

impl Prepared {
    /// Plans the buffers, starts the loader, and draws the weights or restores them from the newest checkpoint.
    pub fn new(job: &PretrainJob<'_>) -> Result<Self, Error> {
        let config = job.config;
        config.validate()?;
        if config.import.is_some() {
            let text = "an imported model has no training to go on with; start a new run from it by --init-from";
            return Err(Error::Unfit(text.to_owned()));
        }
        check_batch_size(config, &job.dataset)?;
        let mut learner = Learner::new(
            Machine::of(config, job.kernels).engine()?,
            Box::new(Single),
            backend::run_network(config)?,
            &LearnerSpec {
                method: config.method,
                max_batch: config.train.batch_size,
                temperature: config.train.temperature as f32,
                optimizer: backend::optimizer(&config.optimizer),
            },
        )?
        .with_focal_gamma(config.train.focal_gamma as f32);
        let boost = config.boost.enabled;
        let boost = boost.then(|| Boost::new(&config.boost, job.dataset.len(), config.train.batch_size, &mut learner));
        let boost = boost.transpose()?;
        let mut loader = Loader::new(job.dataset.clone(), loader_spec(config))?;
        if let Some(limit) = job.memory_limit {
            backend::check_memory(config.train.batch_size, needed_memory(config, &learner, &loader)?, limit)?;
        }
        if job.claim.replaces() {
            // What is there is worth more than a run that comes to no step. The first epoch begins anew.
            loader.start_epoch(0, 0);
            while loader.next_batch().ok_or_else(|| no_step(&job.dataset))??.n_images() < 2 {}
        }
        let steps_per_epoch = steps_per_epoch(job.dataset.len(), config.train.batch_size);
        let data = mark(&job.dataset);
        let schedule = backend::schedule(config, steps_per_epoch);
        let n_steps = config.train.epochs as u64 * steps_per_epoch;
        let mut prepared = Self {
            learner,
            loader,
            schedule,
            n_steps,
            data,
            at: None,
            mask: None,
            boost,
            from: None,
            notes: Vec::new(),
        };
        let (dir, resumes) = (job.claim.dir(), job.claim.resumes());
        let last = dir.checkpoint_path(CheckpointName::Last);
        if let Some(newest) = resumes.then(|| dir.newest()).flatten() {
            prepared.restore(&newest)?;
            if newest != last {
                let text = format!("note: {} is not there: going on from {}", last.display(), newest.display());
                prepared.notes.push(text);
            }
            prepared.from = Some(newest);
        } else {
            // After that many epochs there was one: going on without it would end what the metrics tell of.
            let n_epochs = if resumes { dir.n_epochs() } else { 0 };
            let every = config.train.checkpoint_every_epochs;
            if every > 0 && n_epochs > every {
                let path = last.display();
                return Err(Error::Unfit(format!(
                    "{path}: gone, though the run had {n_epochs} epochs; bring it back, or begin anew with --overwrite"
                )));
            }
            let Learner { engine, model, .. } = &mut prepared.learner;
            model.init(&mut **engine, config.seed);
            if let Some(path) = &config.model.init_from {
                prepared.notes = init_from(&mut prepared.learner, path)?;
            }
        }
        Ok(prepared)
    }

    fn restore(&mut self, path: &Path) -> Result<(), Error> {
        let mut checkpoint = Checkpoint::load(path)?;
        self.check_data(path, &checkpoint.state)?;
        if let Some(boost) = &mut self.boost {
            boost.restore(&mut checkpoint)?;
        }
        let state = &checkpoint.state;
        snapshot::restore(&mut self.learner, &checkpoint)?;
        self.at = Some(position(state));
        self.mask = state.mask_threshold.map(|threshold| mask_stats(&self.learner.model, threshold as f32));
        Ok(())
    }

    /// A run goes on with the images that it began with: the schedule and the order of the images depend on them.
    fn check_data(&self, path: &Path, state: &CheckpointState) -> Result<(), Error> {
        let problem = match &state.data {
            Some(data) if data.n_images != self.data.n_images => {
                format!("it was trained on {} images, the data set now has {}", data.n_images, self.data.n_images)
            }
            Some(data) if data.crc32 != self.data.crc32 => {
                format!(
                    "it was trained on {} other images (names, order or, without names, some pixels)",
                    data.n_images
                )
            }
            // The images are the same, or nobody noted them.
            _ if state.total_steps != self.n_steps => {
                let (planned, now) = (state.total_steps, self.n_steps);
                let text = format!(
                    "{}: it was planned for {planned} steps, its config and images now make it {now}; resume with the epochs, batch size \
                     and images that the run began with, or start a new run in another --out",
                    path.display()
                );
                return Err(Error::Unfit(text));
            }
            _ => return Ok(()),
        };
        let text = format!(
            "{}: {problem}; resume with the images that the run began with, or start a new run in another --out",
            path.display()
        );
        Err(Error::Unfit(text))
    }
}

/// The error of a run that has no batch of two whole images, which batch norm needs.
pub(super) fn no_step(dataset: &Dataset) -> Error {
    Error::NoImages { n: dataset.len(), what: "to train on".to_owned() }
}

fn check_batch_size(config: &RunConfig, dataset: &Dataset) -> Result<(), Error> {
    let (batch_size, n_images) = (config.train.batch_size, dataset.len());
    if batch_size <= n_images {
        return Ok(());
    }
    let text = format!("--batch-size {batch_size}: the data set has only {n_images} images; give at most that many");
    Err(Error::Unfit(text))
}

/// Bytes that the run takes at its peak, roughly: planned buffers, decoded images and views, and what writing or reading a
/// checkpoint copies (its tensors, the file's bytes, and one more on the way into the engine).
fn needed_memory(config: &RunConfig, learner: &Learner, loader: &Loader) -> Result<u64, Error> {
    let copies = backend::checkpoint_bytes(config)?.saturating_mul(3);
    Ok((learner.engine.bytes_held() as u64).saturating_add(loader.memory_bytes() as u64).saturating_add(copies))
}

/// Optimizer steps of an epoch: a last batch of one image is no step.
fn steps_per_epoch(n_images: usize, batch_size: usize) -> u64 {
    (n_images / batch_size + usize::from(n_images % batch_size > 1)) as u64
}

fn mark(dataset: &Dataset) -> DataMark {
    DataMark { n_images: dataset.len(), crc32: format!("{:08x}", dataset.fingerprint()) }
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

/// What the mask that a checkpoint holds kept.
fn mask_stats(model: &Model, threshold: f32) -> MaskStats {
    let masks = model.masks();
    let n_weights = masks.values().map(|(_, mask)| mask.len()).sum();
    let n_kept = masks.values().flat_map(|(_, mask)| mask).map(|&kept| usize::from(kept)).sum();
    MaskStats { threshold, n_weights, n_kept }
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
        jpeg_scaling: config.data.jpeg_scaling,
        cache_bytes: config.data.cache_bytes(),
        shard: Shard::default(),
        max_broken_share: config.data.max_broken as f32,
        strict: config.data.strict,
    }
}

/// Threads that computed with the stored config and that compute now, where they differ.
pub(super) fn thread_counts(stored: &RunConfig, config: &RunConfig, kernels: Kernels) -> Option<(usize, usize)> {
    let [before, now] = [stored, config].map(|config| Machine::of(config, kernels).n_threads());
    (before != now).then_some((before, now))
}
