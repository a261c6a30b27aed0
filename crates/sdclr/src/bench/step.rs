//! Timing a training step: the very function that pre-training runs, on random images.

use crate::backend::{self, Machine};
use crate::error::Error;
use crate::learner::{Learner, LearnerSpec};
use sdclr_engine::Engine;
use sdclr_nn::{Single, rng};
use sdclr_records::RunConfig;
use std::time::Instant;

/// A learner and a batch to time.
pub struct StepBench {
    learner: Learner,
    views: Vec<u8>,
    config: RunConfig,
    /// Multiply-adds ×2 of one step, forward and backward of both views, in units of 10⁹.
    pub gflop: f64,
}

impl StepBench {
    /// Plans a step of the config's method, model, image and batch size.
    ///
    /// # Errors
    /// A model that cannot be built, out of memory.
    pub fn new(config: &RunConfig, machine: &Machine) -> Result<Self, Error> {
        Self::on(config, machine.engine()?)
    }

    /// [`StepBench::new`] on a given engine.
    ///
    /// # Errors
    /// A model that cannot be built, out of memory.
    pub fn on(config: &RunConfig, engine: Box<dyn Engine>) -> Result<Self, Error> {
        let batch_size = config.train.batch_size;
        let network = backend::run_network(config)?;
        // Forward, gradient of the data, gradient of the weights; two views an image.
        let gflop = 2.0 * 3.0 * 2.0 * (network.multiply_adds() * batch_size) as f64 / 1e9;
        let spec = LearnerSpec {
            method: config.method,
            max_batch: batch_size,
            temperature: config.train.temperature as f32,
            optimizer: backend::optimizer(&config.optimizer),
        };
        let gamma = config.train.focal_gamma as f32;
        let mut learner = Learner::new(engine, Box::new(Single), network, &spec)?.with_focal_gamma(gamma);
        learner.model.init(&mut *learner.engine, config.seed);
        if config.has_pruned_branch() {
            learner.update_mask(config.prune.rate, config.prune.random_rate, config.seed, 0)?;
        }
        let size = config.data.image_size;
        let mut rng = rng::stream(config.seed, "bench", 0);
        let views = (0..2 * batch_size * size * size * 3).map(|_| (rng::uniform(&mut rng) * 256.0) as u8).collect();
        Ok(Self { learner, views, config: config.clone(), gflop })
    }

    /// Name of the engine.
    #[must_use]
    pub fn engine_name(&self) -> String {
        self.learner.engine.name()
    }

    /// Bytes that the engine holds.
    #[must_use]
    pub fn bytes_held(&self) -> usize {
        self.learner.engine.bytes_held()
    }

    /// Seconds of one step, and its loss.
    ///
    /// # Errors
    /// As the step's.
    pub fn step_with_loss(&mut self) -> Result<(f64, f32), Error> {
        let began = Instant::now();
        // A rate this small keeps the loss finite on noise, whatever the number of steps.
        let loss = self.learner.step(&self.views, self.config.train.batch_size, 1e-6)?;
        self.learner.engine.sync()?;
        Ok((began.elapsed().as_secs_f64(), loss))
    }

    /// Seconds of one step.
    ///
    /// # Errors
    /// As the step's.
    pub fn step(&mut self) -> Result<f64, Error> {
        Ok(self.step_with_loss()?.0)
    }
}
