//! Everything a training step works on: an engine, a model with its branches, the loss and the optimizer.

use crate::error::Error;
use sdclr_engine::{ByteBuf, Engine};
use sdclr_nn::mask::MaskStats;
use sdclr_nn::{
    Branch, Collective, ContrastiveLoss, GradPool, Mode, Model, Network, Optimizer, OptimizerKind, Pass, PassSpec,
};
use sdclr_records::names::Method;
use std::ops::Range;

/// What a learner is made for.
#[derive(Clone, Copy, Debug)]
pub struct LearnerSpec {
    /// SimCLR or SDCLR.
    pub method: Method,
    /// Most images of a batch over all ranks.
    pub max_batch: usize,
    /// τ of NT-Xent.
    pub temperature: f32,
    /// The optimizer.
    pub optimizer: OptimizerKind,
}

/// The state of training on one rank.
pub struct Learner {
    /// The compute back end.
    pub engine: Box<dyn Engine>,
    /// The other ranks.
    pub ranks: Box<dyn Collective>,
    /// Network and weights.
    pub model: Model,
    /// The optimizer and its moments.
    pub optimizer: Optimizer,
    method: Method,
    pub(crate) dense: Pass,
    pub(crate) pruned: Option<Pass>,
    pub(crate) loss: ContrastiveLoss,
    pub(crate) images: ByteBuf,
    pub(crate) temperature: f32,
    /// Each rank's images of the batch at hand.
    pub(crate) shares: Vec<Range<usize>>,
}

/// Which images of a global batch of `n` each of `n_ranks` ranks has: contiguous, as even as can be.
pub fn shares(n: usize, n_ranks: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n_ranks).map(move |rank| n * rank / n_ranks..n * (rank + 1) / n_ranks)
}

impl Learner {
    /// Plans all buffers; the weights are zero until the model is initialised or loaded.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        mut engine: Box<dyn Engine>,
        ranks: Box<dyn Collective>,
        network: Network,
        spec: &LearnerSpec,
    ) -> Result<Self, Error> {
        let e = &mut *engine;
        let model = Model::new(e, network)?;
        let (dims, until) = (model.network.dims(model.network.input), model.network.output);
        let embedding = model.network.dims(until).len();
        let own = spec.max_batch.div_ceil(ranks.n_ranks());
        let views = if spec.method == Method::SimClr { 2 * own } else { own };
        let mut pool = GradPool::default();
        let mut pass = |e: &mut dyn Engine, branch| {
            Pass::new(e, &model, PassSpec { max_batch: views, branch, mode: Mode::Train, until }, &mut pool)
        };
        let dense = pass(e, Branch::Dense)?;
        let pruned = if spec.method == Method::SdClr { Some(pass(e, Branch::Pruned)?) } else { None };
        let loss = ContrastiveLoss::new(e, spec.max_batch, own, embedding)?;
        let images = e.alloc_bytes(2 * own * dims.len())?;
        let optimizer = Optimizer::new(e, &model, spec.optimizer)?;
        let (method, temperature) = (spec.method, spec.temperature);
        let shares = Vec::with_capacity(ranks.n_ranks());
        Ok(Self { engine, ranks, model, optimizer, method, dense, pruned, loss, images, temperature, shares })
    }

    /// The same with γ of the focal weighting of NT-Xent; a learner is made with 0, which weights nothing.
    #[must_use]
    pub fn with_focal_gamma(mut self, gamma: f32) -> Self {
        self.loss.focal_gamma = gamma;
        self
    }

    /// τ of the steps to come.
    pub fn set_temperature(&mut self, temperature: f32) {
        self.temperature = temperature;
    }

    /// One step of the learner's method; see [`crate::step`].
    ///
    /// # Errors
    /// As the step's.
    pub fn step(&mut self, views: &[u8], n_global: usize, lr: f64) -> Result<f32, Error> {
        match self.method {
            Method::SimClr => crate::step::simclr_step(self, views, n_global, lr),
            Method::SdClr => crate::step::sdclr_step(self, views, n_global, lr),
        }
    }

    /// Recomputes the pruned branch's mask: at the start of every epoch.
    ///
    /// # Errors
    /// A failed device.
    pub fn update_mask(&mut self, rate: f64, random_rate: f64, seed: u64, epoch: u64) -> Result<MaskStats, Error> {
        Ok(self.model.update_mask(&mut *self.engine, rate, random_rate, seed, epoch)?)
    }

    /// The loss of each image of the last step's global batch, the mean of its two views', on every rank.
    ///
    /// # Errors
    /// A lost rank or a failed device.
    pub fn image_losses(&mut self, losses: &mut Vec<f32>) -> Result<(), Error> {
        Ok(self.loss.image_losses(&mut *self.engine, &self.shares, &*self.ranks, losses)?)
    }

    /// Cuts a batch of `n_global` images among the ranks; returns this rank's number.
    pub(crate) fn share(&mut self, n_global: usize) -> usize {
        self.shares.clear();
        self.shares.extend(shares(n_global, self.ranks.n_ranks()));
        self.shares[self.ranks.rank()].len()
    }

    /// Adds the ranks' gradients and moves the weights.
    pub(crate) fn update(&mut self, lr: f64) -> Result<(), Error> {
        let engine = &mut *self.engine;
        self.ranks.all_reduce_sum(engine, self.model.grads())?;
        self.optimizer.step(engine, &self.model, lr);
        Ok(())
    }

    pub(crate) fn check_finite(&self, loss: f32, lr: f64) -> Result<(), Error> {
        let step = self.optimizer.n_updates + 1;
        if loss.is_finite() { Ok(()) } else { Err(Error::NonFiniteLoss { loss, step, lr }) }
    }
}
