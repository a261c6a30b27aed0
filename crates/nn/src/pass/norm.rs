//! A pass's batch norms: their coefficients, outputs and gates.

use super::{BN_EPS, BN_MOMENTUM, Batch, Mode, Pass};
use crate::NnError;
use crate::collective::Collective;
use crate::graph::{Node, NormId, Op, ValueId};
use crate::model::Model;
use sdclr_engine::{Engine, Gate, NormApply, NormEval, NormTrain, Span};

impl Pass {
    /// Where a node leaves Σ and Σ² of its output for the batch norm that reads it.
    pub(super) fn sums_of(&self, i: usize) -> Option<Span> {
        let norm = self.normed_by[i].filter(|norm| self.norm_modes[norm.0] == Mode::Train)?;
        Some(self.norm_sums(norm))
    }

    fn norm_channels(&self, norm: NormId) -> usize {
        let end = self.coef_at.get(norm.0 + 1).copied().unwrap_or(self.coefs.len);
        (end - self.coef_at[norm.0]) / 4
    }

    pub(super) fn norm_sums(&self, norm: NormId) -> Span {
        let at = self.coef_at[norm.0] / 2;
        self.sums.slice(at..at + 2 * self.norm_channels(norm))
    }

    pub(super) fn coef(&self, norm: NormId) -> Span {
        self.coefs.slice(self.coef_at[norm.0]..self.coef_at[norm.0] + 4 * self.norm_channels(norm))
    }

    /// Fills a norm's coefficients from batch or running statistics.
    pub(super) fn coefficients(
        &self,
        engine: &mut dyn Engine,
        model: &Model,
        norm: NormId,
        batch: Batch,
        x: ValueId,
        ranks: &dyn Collective,
    ) -> Result<(), NnError> {
        let coef = self.coef(norm);
        let sums = self.norm_sums(norm);
        let spec = &model.network.norms[norm.0];
        let set = spec.set(self.spec.branch as usize);
        let (gamma, beta) = (model.part(model.params(), set.gamma), model.part(model.params(), set.beta));
        let running = model.running().slice(set.running..set.running + 2 * spec.channels);
        match self.norm_modes[norm.0] {
            Mode::Eval => engine.norm_eval(NormEval { gamma, beta, running, eps: BN_EPS, coef }),
            Mode::Train => {
                ranks.all_reduce_sum(engine, sums)?;
                let count = batch.n_global * model.network.dims(x).pixels();
                let (eps, momentum) = (BN_EPS, BN_MOMENTUM);
                engine.norm_train(NormTrain { sums, count, gamma, beta, running, eps, momentum, coef });
            }
        }
        Ok(())
    }

    /// Computes the output of `node`, a norm, with the coefficients that it has.
    pub(super) fn normalize(&self, engine: &mut dyn Engine, n: usize, node: &Node) {
        let Op::Norm { x, norm, residual, relu } = node.op else { unreachable!("only batch norms normalise") };
        let residual = residual.map(|r| self.act(r));
        engine.norm_apply(n, NormApply { x: self.act(x), coef: self.coef(norm), residual, relu, y: self.act(node.y) });
    }

    /// Where backward finds the gate of the ReLU of `node`.
    pub(super) fn gate(&self, node: &Node) -> Gate {
        match node.op {
            Op::Norm { relu: true, residual: None, .. } => Gate::Input,
            Op::Norm { relu: true, .. } => Gate::Output(self.act(node.y)),
            _ => Gate::Open,
        }
    }
}
