//! What a profile counts: operations by kind and shape, with their calls, time, arithmetic and memory traffic.

use sdclr_engine::{ConvShape, Dims};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// What part of a step an operation belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Images to activations.
    Input,
    /// Weights to compute layout.
    Packing,
    /// Forward through the network.
    Forward,
    /// The loss and its gradient.
    Loss,
    /// Backward through the network.
    Backward,
    /// Gradients to weights.
    Update,
}

impl Phase {
    /// Name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Packing => "packing",
            Self::Forward => "forward",
            Self::Loss => "loss",
            Self::Backward => "backward",
            Self::Update => "update",
        }
    }
}

/// What sort of work an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Images to activations, and copies between host and engine.
    Input,
    /// Weights to compute layout.
    Packing,
    /// Convolutions.
    Convolution,
    /// Batch norm with ReLU and residual addition.
    BatchNorm,
    /// Pooling, the parameter-free shortcut and concatenation.
    Pooling,
    /// Linear layers.
    Linear,
    /// L2 normalisation and losses.
    Loss,
    /// Clearing gradients and moving weights.
    Optimizer,
}

impl Kind {
    /// Name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Packing => "packing",
            Self::Convolution => "convolution",
            Self::BatchNorm => "batch norm",
            Self::Pooling => "pooling",
            Self::Linear => "linear",
            Self::Loss => "loss",
            Self::Optimizer => "optimizer",
        }
    }
}

/// One operation of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // each is the method of `Engine` or `Memory` of that name
pub enum Op {
    Copy,
    InputNormalize,
    PackConv,
    ConvForward,
    ConvBackwardData,
    ConvBackwardWeight,
    NormCoefficients,
    NormApply,
    /// `norm_apply` of a map that the forward pass did not keep.
    NormApplyAgain,
    NormBackwardSums,
    NormBackwardApply,
    NormParamGrad,
    MaxPoolForward,
    MaxPoolBackward,
    AvgPoolForward,
    AvgPoolBackward,
    ShortcutForward,
    ShortcutBackward,
    ConcatForward,
    ConcatBackward,
    LinearForward,
    LinearBackwardData,
    LinearBackwardWeight,
    L2Normalize,
    L2NormalizeBackward,
    NtXent,
    CrossEntropy,
    ReadLoss,
    Fill,
    OptimizerStep,
}

impl Op {
    /// Name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.facts().0
    }

    /// What part of a step it belongs to.
    #[must_use]
    pub fn phase(self) -> Phase {
        self.facts().1
    }

    /// What sort of work it is.
    #[must_use]
    pub fn kind(self) -> Kind {
        self.facts().2
    }

    fn facts(self) -> (&'static str, Phase, Kind) {
        match self {
            Self::Copy => ("copy", Phase::Input, Kind::Input),
            Self::InputNormalize => ("input normalize", Phase::Input, Kind::Input),
            Self::PackConv => ("pack weights", Phase::Packing, Kind::Packing),
            Self::ConvForward => ("conv forward", Phase::Forward, Kind::Convolution),
            Self::ConvBackwardData => ("conv backward data", Phase::Backward, Kind::Convolution),
            Self::ConvBackwardWeight => ("conv backward weight", Phase::Backward, Kind::Convolution),
            Self::NormCoefficients => ("norm coefficients", Phase::Forward, Kind::BatchNorm),
            Self::NormApply => ("norm apply", Phase::Forward, Kind::BatchNorm),
            Self::NormApplyAgain => ("norm apply again", Phase::Backward, Kind::BatchNorm),
            Self::NormBackwardSums => ("norm backward sums", Phase::Backward, Kind::BatchNorm),
            Self::NormBackwardApply => ("norm backward apply", Phase::Backward, Kind::BatchNorm),
            Self::NormParamGrad => ("norm parameters", Phase::Backward, Kind::BatchNorm),
            Self::MaxPoolForward => ("max pool forward", Phase::Forward, Kind::Pooling),
            Self::MaxPoolBackward => ("max pool backward", Phase::Backward, Kind::Pooling),
            Self::AvgPoolForward => ("average pool forward", Phase::Forward, Kind::Pooling),
            Self::AvgPoolBackward => ("average pool backward", Phase::Backward, Kind::Pooling),
            Self::ShortcutForward => ("shortcut forward", Phase::Forward, Kind::Pooling),
            Self::ShortcutBackward => ("shortcut backward", Phase::Backward, Kind::Pooling),
            Self::ConcatForward => ("concatenate forward", Phase::Forward, Kind::Pooling),
            Self::ConcatBackward => ("concatenate backward", Phase::Backward, Kind::Pooling),
            Self::LinearForward => ("linear forward", Phase::Forward, Kind::Linear),
            Self::LinearBackwardData => ("linear backward data", Phase::Backward, Kind::Linear),
            Self::LinearBackwardWeight => ("linear backward weight", Phase::Backward, Kind::Linear),
            Self::L2Normalize => ("L2 normalize", Phase::Loss, Kind::Loss),
            Self::L2NormalizeBackward => ("L2 normalize backward", Phase::Loss, Kind::Loss),
            Self::NtXent => ("NT-Xent", Phase::Loss, Kind::Loss),
            Self::CrossEntropy => ("cross-entropy", Phase::Loss, Kind::Loss),
            Self::ReadLoss => ("read the losses", Phase::Loss, Kind::Loss),
            Self::Fill => ("clear gradients", Phase::Update, Kind::Optimizer),
            Self::OptimizerStep => ("optimizer step", Phase::Update, Kind::Optimizer),
        }
    }
}

/// What an operation works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// Any: rows of all shapes are one.
    Any,
    /// A convolution.
    Conv(ConvShape),
    /// One image's activation.
    Act(Dims),
    /// A linear layer's inputs and outputs.
    Linear(usize, usize),
}

/// `CIN,COUT,KERNEL,STRIDE,SIZE` of a convolution, as the command line takes it, `HxWxC` of a map, `IN>OUT` of a linear layer.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Any => Ok(()),
            Self::Conv(ConvShape { input: Dims { h, w, c }, cout, kernel, stride, .. }) => {
                write!(f, "{c},{cout},{kernel},{stride},{h}")?;
                if h == w { Ok(()) } else { write!(f, "x{w}") }
            }
            Self::Act(Dims { h: 1, w: 1, c }) => write!(f, "{c}"),
            Self::Act(Dims { h, w, c }) => write!(f, "{h}x{w}x{c}"),
            Self::Linear(cin, cout) => write!(f, "{cin}>{cout}"),
        }
    }
}

impl Serialize for Shape {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Arithmetic and ideal memory traffic: every operand read once, every result written once, added-to results both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations, a multiply-add counted as two. Estimates but for convolutions and linear layers.
    pub flop: usize,
    /// Bytes.
    pub bytes: usize,
}

/// All calls of an operation on a shape in one step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The operation.
    pub op: Op,
    /// What on.
    pub shape: Shape,
    /// Calls.
    pub calls: usize,
    /// Seconds of all calls.
    pub seconds: f64,
    /// Floating-point operations of all calls.
    pub flop: f64,
    /// Ideal bytes of all calls.
    pub bytes: f64,
}

/// What was counted since the last [`Profile::take`], in order of first use.
#[derive(Debug, Default)]
pub struct Profile(Vec<Row>);

impl Profile {
    /// Counts a call.
    pub fn add(&mut self, op: Op, shape: Shape, cost: Cost, seconds: f64) {
        let at = self.0.iter().position(|row| row.op == op && row.shape == shape).unwrap_or_else(|| {
            self.0.push(Row { op, shape, calls: 0, seconds: 0.0, flop: 0.0, bytes: 0.0 });
            self.0.len() - 1
        });
        let row = &mut self.0[at];
        row.calls += 1;
        row.seconds += seconds;
        row.flop += cost.flop as f64;
        row.bytes += cost.bytes as f64;
    }

    /// Hands out the rows and begins anew.
    pub fn take(&mut self) -> Vec<Row> {
        std::mem::take(&mut self.0)
    }
}

/// The median step of several: rows of the first, with each row's median time.
///
/// # Panics
/// If there is no step, or one did something else than the first.
#[must_use]
pub fn median_rows(steps: &[Vec<Row>]) -> Vec<Row> {
    let mut rows = steps[0].clone();
    for (i, row) in rows.iter_mut().enumerate() {
        let seconds: Vec<f64> = steps
            .iter()
            .map(|step| {
                assert!((step[i].op, step[i].shape) == (row.op, row.shape), "all steps are alike");
                step[i].seconds
            })
            .collect();
        row.seconds = super::median(&seconds);
    }
    rows
}

/// Rows in the order of the network: each shape where it first comes, its passes behind one another.
pub fn sort_by_network(rows: &mut Vec<Row>) {
    let place_of = |row: &Row| rows.iter().position(|r| r.op.kind() == row.op.kind() && r.shape == row.shape);
    let mut placed: Vec<(Option<usize>, Row)> = rows.iter().map(|row| (place_of(row), *row)).collect();
    placed.sort_by_key(|(place, row)| (*place, row.op));
    *rows = placed.into_iter().map(|(_, row)| row).collect();
}

/// Rows by whatever `key` says of their operation.
#[must_use]
pub fn grouped<K: Ord>(rows: &[Row], key: impl Fn(Op) -> K) -> BTreeMap<K, Vec<Row>> {
    let mut groups: BTreeMap<K, Vec<Row>> = BTreeMap::new();
    for row in rows {
        groups.entry(key(row.op)).or_default().push(*row);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: ConvShape = ConvShape { input: Dims { h: 32, w: 32, c: 3 }, cout: 64, kernel: 3, stride: 1, pad: 1 };

    #[test]
    fn shapes_read_as_the_command_line_takes_them() {
        for (shape, expected) in [
            (Shape::Any, ""),
            (Shape::Conv(SHAPE), "3,64,3,1,32"),
            (Shape::Conv(ConvShape { input: Dims { h: 4, w: 6, c: 8 }, ..SHAPE }), "8,64,3,1,4x6"),
            (Shape::Act(Dims { h: 8, w: 8, c: 16 }), "8x8x16"),
            (Shape::Act(Dims { h: 1, w: 1, c: 16 }), "16"),
            (Shape::Linear(512, 128), "512>128"),
        ] {
            assert_eq!(shape.to_string(), expected);
        }
    }

    #[test]
    fn calls_add_up_and_the_median_step_is_in_network_order() {
        let cost = Cost { flop: 10, bytes: 4 };
        let (conv, act) = (Shape::Conv(SHAPE), Shape::Act(SHAPE.input));
        let step = |seconds: f64| {
            let mut profile = Profile::default();
            profile.add(Op::ConvForward, conv, cost, seconds);
            profile.add(Op::NormApply, act, cost, 1.0);
            profile.add(Op::ConvBackwardWeight, conv, cost, seconds);
            profile.add(Op::ConvForward, conv, cost, seconds);
            let rows = profile.take();
            assert!(profile.take().is_empty());
            rows
        };
        let mut rows = median_rows(&[step(1.0), step(9.0), step(2.0)]);
        sort_by_network(&mut rows);
        let found: Vec<(Op, usize, f64)> = rows.iter().map(|row| (row.op, row.calls, row.seconds)).collect();
        let expected = [(Op::ConvForward, 2, 4.0), (Op::ConvBackwardWeight, 1, 2.0), (Op::NormApply, 1, 1.0)];
        assert_eq!(found, expected);
        assert_eq!((rows[0].flop, rows[0].bytes), (20.0, 8.0));
        let by_phase = grouped(&rows, Op::phase);
        assert_eq!(by_phase.keys().copied().collect::<Vec<_>>(), [Phase::Forward, Phase::Backward]);
        assert_eq!(by_phase[&Phase::Forward].len(), 2);
    }
}
