//! From configs to what runs them: engines, networks, optimizers, schedules.

use crate::error::Error;
use sdclr_engine::{CpuOptions, Engine, Kernels, Level, bf16_engine, f32_engine};
use sdclr_nn::{Decay, Head, Network, NetworkSpec, OptimizerKind, PruneSchedule, Ramp, Schedule, TemperatureSchedule};
use sdclr_records::config::{ModelConfig, OptimizerConfig, RunConfig};
use sdclr_records::names::{
    Device, OptimizerKind as OptimizerName, Precision, PruneScheduleKind, ScheduleKind, Stem, TemperatureScheduleKind,
};

/// What computes.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// On what.
    pub device: Device,
    /// In what numbers.
    pub precision: Precision,
    /// Threads that compute; 0 takes every core.
    pub threads: usize,
    /// Threads that decode and augment; 0 chooses.
    pub workers: usize,
    /// Which of the CPU's kernels run.
    pub kernels: Kernels,
}

impl Machine {
    /// What a run's config asks for.
    #[must_use]
    pub fn of(config: &RunConfig, kernels: Kernels) -> Self {
        let train = &config.train;
        let (device, precision, threads) = (train.device, train.precision, train.threads);
        Self { device, precision, threads, workers: config.data.workers, kernels }
    }

    /// Threads that compute.
    #[must_use]
    pub fn n_threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        if self.threads == 0 { cores() } else { self.threads }
    }

    /// The instruction set that the CPU's kernels use.
    #[must_use]
    pub fn level(&self) -> Level {
        Level::within(self.kernels.level)
    }

    /// The numbers that feature maps are kept in: f32 or bf16. `auto` stands for bf16 where there are instructions for it.
    #[must_use]
    pub fn numbers(&self) -> Precision {
        match self.precision {
            Precision::Auto if self.level().has_bf16() => Precision::Bf16,
            Precision::Auto => Precision::F32,
            chosen => chosen,
        }
    }

    /// Makes the engine.
    ///
    /// # Errors
    /// [`Error::Unfit`] for a device or precision that this build does not have.
    pub fn engine(&self) -> Result<Box<dyn Engine>, Error> {
        if let Device::Cuda(_) = self.device {
            return Err(Error::Unfit(format!(
                "--device {}: this build has no CUDA back end; use --device cpu",
                self.device
            )));
        }
        let options = CpuOptions { n_threads: self.n_threads(), kernels: self.kernels };
        match self.numbers() {
            Precision::Bf16 => Ok(bf16_engine(options)?),
            Precision::Auto | Precision::F32 => Ok(f32_engine(options)?),
        }
    }
}

/// The network of a model config with another head.
///
/// # Errors
/// A model that cannot be built.
pub fn network(model: &ModelConfig, image_size: usize, head: Head) -> Result<Network, Error> {
    let spec = NetworkSpec {
        model: model.name.as_str().into(),
        image_size,
        small_stem: model.stem == Stem::Small,
        base_width: model.base_width,
        dual_bn: model.dual_bn,
        head,
    };
    Ok(spec.build()?)
}

/// The network that a run trains, projection head included.
///
/// # Errors
/// A model that cannot be built.
pub fn run_network(config: &RunConfig) -> Result<Network, Error> {
    let model = &config.model;
    network(model, config.data.image_size, Head::Projection { layers: model.head_layers, dim: model.head_dim })
}

/// Bytes of one checkpoint of a run.
///
/// # Errors
/// A model that cannot be built.
pub fn checkpoint_bytes(config: &RunConfig) -> Result<u64, Error> {
    let network = run_network(config)?;
    let n_moments = if config.optimizer.kind == OptimizerName::Adam { 2 } else { 1 };
    let floats = network.n_params() * (1 + n_moments) + network.n_running;
    let masks = if config.has_pruned_branch() { network.n_params() } else { 0 };
    Ok((4 * floats + masks) as u64)
}

/// Planned buffers are known before their pages are taken; a training that cannot fit ends here and not in its first step.
///
/// # Errors
/// [`Error::Unfit`] with a batch size that would fit.
pub(crate) fn check_memory(batch_size: usize, needed: u64, limit: u64) -> Result<(), Error> {
    if needed <= limit {
        return Ok(());
    }
    // Buffers grow with the batch but for the weights, so this is on the safe side.
    let fitting = (batch_size as f64 * limit as f64 / needed as f64 * 0.9) as usize;
    Err(Error::Unfit(format!(
        "--batch-size {batch_size} needs {:.1} GB of memory and {:.1} GB are free; try --batch-size {}",
        needed as f64 / 1e9,
        limit as f64 / 1e9,
        fitting.max(2)
    )))
}

/// The optimizer that a config names.
#[must_use]
pub fn optimizer(config: &OptimizerConfig) -> OptimizerKind {
    let (momentum, weight_decay) = (config.momentum as f32, config.weight_decay as f32);
    match config.kind {
        OptimizerName::Sgd => OptimizerKind::Sgd { momentum, weight_decay },
        OptimizerName::Lars => OptimizerKind::Lars { momentum, weight_decay, eta: config.lars_eta as f32 },
        // PyTorch's defaults.
        OptimizerName::Adam => OptimizerKind::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 },
    }
}

/// The learning rate of a run with `steps_per_epoch` updates an epoch.
#[must_use]
pub fn schedule(config: &RunConfig, steps_per_epoch: u64) -> Schedule {
    let schedule = &config.schedule;
    let updates = |epochs: f64| (epochs * steps_per_epoch as f64).round() as u64;
    let decay = match schedule.kind {
        ScheduleKind::Cosine => {
            Decay::Cosine { min_lr: schedule.min_lr, total: config.train.epochs as u64 * steps_per_epoch }
        }
        ScheduleKind::Constant => Decay::Constant,
        ScheduleKind::Step => {
            let milestones = schedule.milestones.iter().map(|&epoch| updates(epoch as f64)).collect();
            Decay::Step { gamma: schedule.gamma, milestones }
        }
    };
    Schedule { base_lr: config.optimizer.lr, warmup: updates(schedule.warmup_epochs), decay }
}

/// The temperature of a run.
#[must_use]
pub fn temperature_schedule(config: &RunConfig) -> TemperatureSchedule {
    let train = &config.train;
    match train.temperature_schedule {
        TemperatureScheduleKind::Constant => TemperatureSchedule::Constant(train.temperature),
        TemperatureScheduleKind::Cosine => TemperatureSchedule::Cosine {
            min: train.temperature_min,
            max: train.temperature_max,
            period_epochs: train.temperature_period_epochs,
        },
    }
}

/// The prune rate of a run.
#[must_use]
pub fn prune_schedule(config: &RunConfig) -> PruneSchedule {
    let prune = &config.prune;
    let ramp = match prune.schedule {
        PruneScheduleKind::Constant => Ramp::None,
        PruneScheduleKind::Linear => Ramp::Linear,
        PruneScheduleKind::Cosine => Ramp::Cosine,
        PruneScheduleKind::Cubic => Ramp::Cubic,
    };
    let (rate, random_rate) = (prune.rate, prune.random_rate);
    PruneSchedule { rate, random_rate, start: prune.rate_start, ramp_epochs: prune.ramp_epochs as u64, ramp }
}
