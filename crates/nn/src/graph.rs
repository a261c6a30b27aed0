//! A network as a list of nodes over values, with its parameter table. Pure description: no engine, no buffers.
//!
//! Nodes are in execution order; forward walks the list, backward walks it in reverse (see [`crate::pass`]). Batch norm,
//! the residual addition and ReLU are one node because engines do them in one pass over memory.

use crate::init::Fan;
use sdclr_engine::{ConvShape, Dims, Role};
use std::ops::Range;

/// Index of a value (an activation per image) in [`Network::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ValueId(pub usize);

/// Index of a parameter tensor in [`Network::params`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamId(pub usize);

/// Index of a batch norm in [`Network::norms`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormId(pub usize);

/// A value: what one image's activation looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    /// Height, width, channels.
    pub dims: Dims,
    /// Feature map or vector.
    pub role: Role,
}

/// Most vectors that one node concatenates: RIDE's experts.
pub const MAX_PARTS: usize = 4;

/// What a node computes.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// Convolution without bias.
    Conv {
        /// Input.
        x: ValueId,
        /// Weights `[cout, kh, kw, cin]`.
        weight: ParamId,
        /// Geometry.
        shape: ConvShape,
    },
    /// `relu?(batch_norm(x) + residual?)`; `x` has no other consumer.
    Norm {
        /// Input.
        x: ValueId,
        /// Parameters and statistics.
        norm: NormId,
        /// Added before the ReLU.
        residual: Option<ValueId>,
        /// Whether a ReLU follows.
        relu: bool,
    },
    /// 3×3 maximum, stride 2, padding 1.
    MaxPool {
        /// Input.
        x: ValueId,
    },
    /// Mean over pixels.
    AvgPool {
        /// Input.
        x: ValueId,
    },
    /// Shortcut A: every second pixel, zero-padded channels.
    Shortcut {
        /// Input.
        x: ValueId,
    },
    /// Vectors side by side, those before the first `None`.
    Concat {
        /// Inputs, in the order of their channels.
        parts: [Option<ValueId>; MAX_PARTS],
    },
    /// `x·wᵀ (+ bias)`.
    Linear {
        /// Input.
        x: ValueId,
        /// Weights `[cout, cin]`.
        weight: ParamId,
        /// Bias `[cout]`.
        bias: Option<ParamId>,
    },
}

impl Op {
    /// The values that a node reads.
    pub fn inputs(&self) -> impl Iterator<Item = ValueId> + use<> {
        let inputs = match *self {
            Op::Conv { x, .. } | Op::MaxPool { x } | Op::AvgPool { x } | Op::Shortcut { x } | Op::Linear { x, .. } => {
                [Some(x), None, None, None]
            }
            Op::Norm { x, residual, .. } => [Some(x), residual, None, None],
            Op::Concat { parts } => parts,
        };
        inputs.into_iter().flatten()
    }
}

/// A node: an operation and the value it produces.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// What it produces.
    pub y: ValueId,
}

/// What a parameter tensor is, which decides its initialisation and whether it can be pruned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamKind {
    /// Convolution weights `[cout, kh, kw, cin]`; prunable.
    Conv,
    /// Linear weights `[cout, cin]`.
    Linear,
    /// Linear bias; `fan_in` of its layer.
    LinearBias {
        /// Inputs of the layer.
        fan_in: usize,
    },
    /// Batch norm's γ.
    NormWeight,
    /// Batch norm's β.
    NormBias,
}

/// A parameter tensor and its place in the flat parameter vector.
#[derive(Clone, Debug)]
pub struct Param {
    /// Name, torchvision's with our branch names: `layer1.0.bn1.dense.weight`.
    pub name: String,
    /// What it is.
    pub kind: ParamKind,
    /// Shape in the engine's layout (convolutions `[cout, kh, kw, cin]`).
    pub shape: Vec<usize>,
    /// First float in the parameter vector.
    pub offset: usize,
    /// Number of floats.
    pub len: usize,
    /// The layer that it belongs to: 0 for the stem, N for `layerN`, `None` for the head.
    pub layer: Option<usize>,
}

impl Param {
    /// Its floats in the parameter vector.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len
    }
}

/// One set of batch norm's state; with dual batch norm a norm has two, one per branch.
#[derive(Clone, Debug)]
pub struct NormStats {
    /// Name: `layer1.0.bn1.dense`, or without branch when both share it.
    pub name: String,
    /// Affine weight.
    pub gamma: ParamId,
    /// Affine bias.
    pub beta: ParamId,
    /// First float of running mean and variance `[2, c]` in the statistics vector.
    pub running: usize,
}

/// A batch norm.
#[derive(Clone, Debug)]
pub struct Norm {
    /// Name: `layer1.0.bn1`.
    pub name: String,
    /// Channels.
    pub channels: usize,
    /// One set shared by both branches, or dense and pruned.
    pub sets: Vec<NormStats>,
}

impl Norm {
    /// The set of branch 0 (dense) or 1 (pruned).
    #[must_use]
    pub fn set(&self, branch: usize) -> &NormStats {
        &self.sets[branch.min(self.sets.len() - 1)]
    }
}

/// A network: nodes, values, parameters.
#[derive(Clone, Debug)]
pub struct Network {
    /// Name for people and checkpoints, with everything that decides its tensors.
    pub name: String,
    /// Nodes in execution order.
    pub nodes: Vec<Node>,
    /// Every value.
    pub values: Vec<Value>,
    /// Parameter tensors in the order of the flat vector.
    pub params: Vec<Param>,
    /// Batch norms.
    pub norms: Vec<Norm>,
    /// Length of the statistics vector.
    pub n_running: usize,
    /// The normalised image, or whatever the first node reads.
    pub input: ValueId,
    /// The backbone's pooled features.
    pub feature: ValueId,
    /// Which fan scales the convolutions' initial weights.
    pub fan: Fan,
    /// The last value: embedding, logits, or the features where there is no head.
    pub output: ValueId,
}

impl Network {
    /// Length of the flat parameter vector.
    #[must_use]
    pub fn n_params(&self) -> usize {
        self.params.last().map_or(0, |p| p.offset + p.len)
    }

    /// Dimensions of a value.
    #[must_use]
    pub fn dims(&self, value: ValueId) -> Dims {
        self.values[value.0].dims
    }

    /// Parameters that pruning may mask: convolution weights.
    pub fn prunable(&self) -> impl Iterator<Item = &Param> {
        self.params.iter().filter(|p| p.kind == ParamKind::Conv)
    }

    /// Layers of the backbone that can be fixed one by one: `layer1` up to `layerN`.
    #[must_use]
    pub fn n_layers(&self) -> usize {
        self.params.iter().filter_map(|p| p.layer).max().unwrap_or(0)
    }

    /// Names and shapes of the tensors that checkpoints hold of it: parameters in PyTorch's layout, then running statistics.
    #[must_use]
    pub fn tensor_layout(&self) -> Vec<(String, Vec<usize>)> {
        let mut layout: Vec<_> = self.params.iter().map(|p| (p.name.clone(), crate::model::torch_shape(p))).collect();
        for norm in &self.norms {
            for set in &norm.sets {
                for kind in ["running_mean", "running_var"] {
                    layout.push((format!("{}.{kind}", set.name), vec![norm.channels]));
                }
            }
        }
        layout
    }

    /// The parameter called `name`.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<&Param> {
        self.params.iter().find(|p| p.name == name)
    }

    /// Number of nodes up to and including the one that produces `value` (0 for the input).
    #[must_use]
    pub fn nodes_until(&self, value: ValueId) -> usize {
        self.nodes.iter().position(|node| node.y == value).map_or(0, |i| i + 1)
    }

    /// Multiply-adds of one image's forward pass.
    #[must_use]
    pub fn multiply_adds(&self) -> usize {
        let cost = |node: &Node| match node.op {
            Op::Conv { shape, .. } => shape.multiply_adds(),
            Op::Linear { weight, .. } => self.params[weight.0].len,
            _ => 0,
        };
        self.nodes.iter().map(cost).sum()
    }
}

/// Builds a [`Network`] node by node.
pub struct Builder {
    net: Network,
    sets: Vec<&'static str>,
    layer: Option<usize>,
}

impl Builder {
    /// Starts a network on an input of `dims`: a map, or a vector. With `dual_bn` every norm has a dense and a pruned set.
    #[must_use]
    pub fn new(name: String, dims: Dims, role: Role, dual_bn: bool) -> Self {
        let input = ValueId(0);
        let net = Network {
            name,
            nodes: Vec::new(),
            values: vec![Value { dims, role }],
            params: Vec::new(),
            norms: Vec::new(),
            n_running: 0,
            fan: Fan::Out,
            input,
            feature: input,
            output: input,
        };
        Self { net, sets: if dual_bn { vec![".dense", ".pruned"] } else { vec![""] }, layer: None }
    }

    /// Chooses the fan of the convolutions' initial weights; fan-out unless told otherwise.
    pub fn set_fan(&mut self, fan: Fan) {
        self.net.fan = fan;
    }

    /// Says which layer the parameters to come belong to; none unless told otherwise. See [`Param::layer`].
    pub fn set_layer(&mut self, layer: Option<usize>) {
        self.layer = layer;
    }

    /// The value that the network reads.
    #[must_use]
    pub fn input(&self) -> ValueId {
        self.net.input
    }

    /// Dimensions of a value.
    #[must_use]
    pub fn dims(&self, value: ValueId) -> Dims {
        self.net.dims(value)
    }

    fn push(&mut self, op: Op, dims: Dims) -> ValueId {
        let role = match op {
            Op::AvgPool { .. } | Op::Concat { .. } | Op::Linear { .. } => Role::Vector,
            Op::Norm { x, .. } => self.net.values[x.0].role,
            Op::Conv { .. } | Op::MaxPool { .. } | Op::Shortcut { .. } => Role::Map,
        };
        self.net.values.push(Value { dims, role });
        let y = ValueId(self.net.values.len() - 1);
        self.net.nodes.push(Node { op, y });
        y
    }

    fn param(&mut self, name: String, kind: ParamKind, shape: Vec<usize>) -> ParamId {
        let (offset, len) = (self.net.n_params(), shape.iter().product());
        self.net.params.push(Param { name, kind, shape, offset, len, layer: self.layer });
        ParamId(self.net.params.len() - 1)
    }

    /// Appends a `kernel`×`kernel` convolution with padding `kernel / 2`.
    pub fn conv(&mut self, name: &str, x: ValueId, cout: usize, kernel: usize, stride: usize) -> ValueId {
        let input = self.dims(x);
        let weight = self.param(format!("{name}.weight"), ParamKind::Conv, vec![cout, kernel, kernel, input.c]);
        let shape = ConvShape { input, cout, kernel, stride, pad: kernel / 2 };
        self.push(Op::Conv { x, weight, shape }, shape.output())
    }

    /// Appends batch norm, an optional residual addition and an optional ReLU.
    pub fn norm(&mut self, name: &str, x: ValueId, residual: Option<ValueId>, relu: bool) -> ValueId {
        let dims = self.dims(x);
        let mut sets = Vec::new();
        for branch in self.sets.clone() {
            let name = format!("{name}{branch}");
            let gamma = self.param(format!("{name}.weight"), ParamKind::NormWeight, vec![dims.c]);
            let beta = self.param(format!("{name}.bias"), ParamKind::NormBias, vec![dims.c]);
            sets.push(NormStats { name, gamma, beta, running: self.net.n_running });
            self.net.n_running += 2 * dims.c;
        }
        self.net.norms.push(Norm { name: name.into(), channels: dims.c, sets });
        let norm = NormId(self.net.norms.len() - 1);
        self.push(Op::Norm { x, norm, residual, relu }, dims)
    }

    /// Appends the stem's max-pool.
    pub fn max_pool(&mut self, x: ValueId) -> ValueId {
        let Dims { h, w, c } = self.dims(x);
        self.push(Op::MaxPool { x }, Dims { h: h.div_ceil(2), w: w.div_ceil(2), c })
    }

    /// Appends the mean over pixels.
    pub fn avg_pool(&mut self, x: ValueId) -> ValueId {
        let c = self.dims(x).c;
        self.push(Op::AvgPool { x }, Dims { h: 1, w: 1, c })
    }

    /// Appends shortcut A to `cout` channels at half the size.
    pub fn shortcut(&mut self, x: ValueId, cout: usize) -> ValueId {
        let Dims { h, w, .. } = self.dims(x);
        self.push(Op::Shortcut { x }, Dims { h: h.div_ceil(2), w: w.div_ceil(2), c: cout })
    }

    /// Appends the concatenation of vectors; one alone is its own.
    ///
    /// # Panics
    /// If there are none, or more than [`MAX_PARTS`].
    pub fn concat(&mut self, vectors: &[ValueId]) -> ValueId {
        assert!((1..=MAX_PARTS).contains(&vectors.len()), "{} vectors to concatenate", vectors.len());
        if let [alone] = vectors {
            return *alone;
        }
        let c = vectors.iter().map(|&x| self.dims(x).len()).sum();
        let parts = std::array::from_fn(|i| vectors.get(i).copied());
        self.push(Op::Concat { parts }, Dims { h: 1, w: 1, c })
    }

    /// Appends a linear layer.
    pub fn linear(&mut self, name: &str, x: ValueId, cout: usize, bias: bool) -> ValueId {
        let cin = self.dims(x).len();
        let weight = self.param(format!("{name}.weight"), ParamKind::Linear, vec![cout, cin]);
        let bias = bias.then(|| self.param(format!("{name}.bias"), ParamKind::LinearBias { fan_in: cin }, vec![cout]));
        self.push(Op::Linear { x, weight, bias }, Dims { h: 1, w: 1, c: cout })
    }

    /// Ends the network: `feature` is the backbone's last value, `output` the head's.
    ///
    /// # Panics
    /// If a batch norm's input has a second consumer, which backward does not support.
    #[must_use]
    pub fn finish(mut self, feature: ValueId, output: ValueId) -> Network {
        for node in &self.net.nodes {
            if let Op::Norm { x, .. } = node.op {
                let consumers = self.net.nodes.iter().flat_map(|n| n.op.inputs()).filter(|&v| v == x).count();
                assert_eq!(consumers, 1, "the input of a batch norm has one consumer");
            }
        }
        self.net.feature = feature;
        self.net.output = output;
        self.net
    }
}
