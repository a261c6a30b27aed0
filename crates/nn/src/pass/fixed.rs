//! Layers that training leaves as they are: fine-tuning with the first layers fixed.

use super::Mode;
use crate::graph::{Network, Op, Param};

/// The stem and the layers up to one, fixed. See [`Param::layer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// The last fixed layer, 0 for the stem alone; `None` fixes nothing.
    pub up_to: Option<usize>,
    /// Where the batch norms of fixed layers get their statistics from in training. With [`Mode::Eval`] their running
    /// statistics stay as they are too.
    pub norms: Mode,
}

impl Fixed {
    /// Everything trains.
    pub const NOTHING: Self = Self { up_to: None, norms: Mode::Train };

    /// Whether a parameter stays as it is.
    #[must_use]
    pub fn holds(self, param: &Param) -> bool {
        self.up_to.zip(param.layer).is_some_and(|(last, layer)| layer <= last)
    }

    /// Whether a node has parameters that train.
    pub(super) fn trains(self, net: &Network, op: &Op) -> bool {
        let param = match *op {
            Op::Conv { weight, .. } | Op::Linear { weight, .. } => weight,
            Op::Norm { norm, .. } => net.norms[norm.0].sets[0].gamma,
            Op::MaxPool { .. } | Op::AvgPool { .. } | Op::Shortcut { .. } | Op::Concat { .. } => return false,
        };
        !self.holds(&net.params[param.0])
    }
}

/// The mode of every norm in a pass of `mode`.
pub(super) fn norm_modes(net: &Network, mode: Mode, fixed: Fixed) -> Vec<Mode> {
    let one = |norm: &crate::graph::Norm| {
        let is_fixed = fixed.holds(&net.params[norm.sets[0].gamma.0]);
        if mode == Mode::Train && is_fixed { fixed.norms } else { mode }
    };
    net.norms.iter().map(one).collect()
}
