//! Optimizers over the flat parameter vector: SGD, LARS, Adam.

use crate::NnError;
use crate::model::Model;
use crate::pass::Fixed;
use sdclr_engine::{AdamStep, Engine, LarsStep, SgdStep, Span};

/// Which optimizer, with its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OptimizerKind {
    /// SGD with momentum, PyTorch's semantics.
    Sgd {
        /// Momentum.
        momentum: f32,
        /// Weight decay on every parameter.
        weight_decay: f32,
    },
    /// LARS as published (momentum .9, weight decay 1e-6, η 1e-3, on every parameter).
    Lars {
        /// Momentum.
        momentum: f32,
        /// Weight decay.
        weight_decay: f32,
        /// Trust coefficient.
        eta: f32,
    },
    /// Adam, PyTorch's defaults, no weight decay.
    Adam {
        /// Decay of the first moment.
        beta1: f32,
        /// Decay of the second moment.
        beta2: f32,
        /// Added to the denominator.
        eps: f32,
    },
}

/// An optimizer with its state on the engine.
#[derive(Debug)]
pub struct Optimizer {
    kind: OptimizerKind,
    /// Moment vectors, each as long as the parameter vector: momentum, or Adam's two.
    moments: Vec<Span>,
    /// Offset and length of every tensor that trains, and the same with neighbours joined.
    tensors: Vec<(usize, usize)>,
    ranges: Vec<(usize, usize)>,
    /// Updates done so far.
    pub n_updates: u64,
}

impl Optimizer {
    /// Allocates the state for `model`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(engine: &mut dyn Engine, model: &Model, kind: OptimizerKind) -> Result<Self, NnError> {
        Self::with_fixed(engine, model, kind, Fixed::NOTHING)
    }

    /// [`Optimizer::new`] of one that neither updates nor decays fixed parameters.
    ///
    /// # Errors
    /// Out of memory.
    pub fn with_fixed(
        engine: &mut dyn Engine,
        model: &Model,
        kind: OptimizerKind,
        fixed: Fixed,
    ) -> Result<Self, NnError> {
        let n_moments = if matches!(kind, OptimizerKind::Adam { .. }) { 2 } else { 1 };
        let mut moments = Vec::new();
        for _ in 0..n_moments {
            let buf = engine.alloc_f32(model.network.n_params())?;
            moments.push(engine.whole(buf));
        }
        let trained = model.network.params.iter().filter(|param| !fixed.holds(param));
        let tensors: Vec<(usize, usize)> = trained.map(|p| (p.offset, p.len)).collect();
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for &(offset, len) in &tensors {
            match ranges.last_mut() {
                Some(last) if last.0 + last.1 == offset => last.1 += len,
                _ => ranges.push((offset, len)),
            }
        }
        Ok(Self { kind, moments, tensors, ranges, n_updates: 0 })
    }

    /// Moment vectors, for checkpoints: `momentum`, or Adam's `exp_avg` and `exp_avg_sq`.
    #[must_use]
    pub fn moments(&self) -> Vec<(&'static str, Span)> {
        let names: &[&str] =
            if matches!(self.kind, OptimizerKind::Adam { .. }) { &["exp_avg", "exp_avg_sq"] } else { &["momentum"] };
        names.iter().copied().zip(self.moments.iter().copied()).collect()
    }

    /// Updates all parameters but fixed ones from their gradients.
    pub fn step(&mut self, engine: &mut dyn Engine, model: &Model, lr: f64) {
        let (params, grads, lr) = (model.params(), model.grads(), lr as f32);
        let first = self.n_updates == 0;
        self.n_updates += 1;
        match self.kind {
            OptimizerKind::Sgd { momentum, weight_decay } => {
                for &(at, len) in &self.ranges {
                    let [w, g, momenta] = [params, grads, self.moments[0]].map(|whole| whole.slice(at..at + len));
                    engine.sgd_step(w, g, momenta, SgdStep { lr, momentum, weight_decay }, first);
                }
            }
            OptimizerKind::Lars { momentum, weight_decay, eta } => {
                let step = LarsStep { lr, momentum, weight_decay, eta };
                engine.lars_step(params, grads, self.moments[0], &self.tensors, step);
            }
            OptimizerKind::Adam { beta1, beta2, eps } => {
                let step = AdamStep { lr, beta1, beta2, eps, step: self.n_updates };
                for &(at, len) in &self.ranges {
                    let [w, g] = [params, grads].map(|whole| whole.slice(at..at + len));
                    let [m, v] = [0, 1].map(|i: usize| self.moments[i].slice(at..at + len));
                    engine.adam_step(w, g, m, v, step);
                }
            }
        }
    }
}
