//! A node list planned for one branch: its activations, forward, and backward over the same list in reverse.
//!
//! Planning allocates everything for a maximum batch; any smaller one runs in the same buffers. A training pass keeps
//! what backward reads, but for normalised maps that only one convolution reads: backward computes those again. All others are reused once
//! nothing reads them any more. Gradients live only between their last consumer and their producer. Where they can, they take the place of
//! activations; all others come from a [`GradPool`] that several passes share.

mod fixed;
mod norm;
mod plan;

pub use fixed::Fixed;

use crate::NnError;
use crate::collective::Collective;
use crate::graph::{Node, NormId, Op, ParamId, Value, ValueId};
use crate::model::Model;
use sdclr_engine::{
    Act, ByteBuf, ByteSpan, Conv, ConvUse, Direction, Engine, EngineError, IMAGENET, NormBackward, Rows, Span,
    WeightGrad, Write,
};

/// Batch norm's ε.
pub const BN_EPS: f32 = 1e-5;
/// Batch norm's momentum.
pub const BN_MOMENTUM: f32 = 0.1;

/// Which of the two branches a pass is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branch {
    /// The model itself.
    Dense,
    /// The model with masked convolutions, and its own batch norm where that is dual.
    Pruned,
}

/// Where a pass gets its batch statistics and what it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics; activations kept for backward.
    Train,
    /// Running statistics; forward only.
    Eval,
}

/// What a pass is planned for.
#[derive(Clone, Copy, Debug)]
pub struct PassSpec {
    /// Most images that one call may bring.
    pub max_batch: usize,
    /// Which branch.
    pub branch: Branch,
    /// Training or evaluation.
    pub mode: Mode,
    /// Value at which forward stops.
    pub until: ValueId,
}

/// The images of one call: those here, and those of all ranks together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Images on this rank.
    pub n: usize,
    /// Images on all ranks, which batch statistics are taken over.
    pub n_global: usize,
}

impl Batch {
    /// A batch of a single process.
    #[must_use]
    pub fn local(n: usize) -> Self {
        Self { n, n_global: n }
    }
}

/// Buffers, by dimensions, of what does not outlive one forward or one backward call: most are gradients. Passes share them.
#[derive(Debug, Default)]
pub struct GradPool {
    slots: Vec<(Value, usize, Act)>,
}

impl GradPool {
    /// The `index`-th buffer like `value` for `max_batch` images.
    pub(crate) fn slot(
        &mut self,
        engine: &mut dyn Engine,
        value: Value,
        max_batch: usize,
        index: usize,
    ) -> Result<Act, EngineError> {
        let mut fitting = self.slots.iter().filter(|(v, batch, _)| *v == value && *batch == max_batch);
        if let Some(&(.., act)) = fitting.nth(index) {
            return Ok(act);
        }
        let act = engine.alloc_act(max_batch, value.dims, value.role)?;
        self.slots.push((value, max_batch, act));
        Ok(act)
    }
}

/// A planned branch.
pub struct Pass {
    spec: PassSpec,
    nodes: Vec<Node>,
    acts: Vec<Option<Act>>,
    grads: Vec<Option<Act>>,
    convs: Vec<Option<Conv>>,
    /// Where every norm gets its statistics from.
    norm_modes: Vec<Mode>,
    /// mean, 1/σ, scale, shift of every norm, and where each begins.
    coefs: Span,
    coef_at: Vec<usize>,
    /// Σ, Σ² (forward) or Σg, Σg·x̂ (backward) of every norm.
    sums: Span,
    /// The batch norm that reads a node's output.
    normed_by: Vec<Option<NormId>>,
    /// Whether the gradient of a value is wanted.
    wanted: Vec<bool>,
    /// Whether a value, computed by the node before its only reader, is computed again right before the reader's backward. It lies where its
    /// gradient will; in between others use that place.
    twice: Vec<bool>,
    /// For every gradient that backward writes, in its order: whether it is the first of its value.
    writes: Vec<Write>,
}

impl Pass {
    /// Plans `spec` for `model` and allocates its buffers.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(engine: &mut dyn Engine, model: &Model, spec: PassSpec, pool: &mut GradPool) -> Result<Self, NnError> {
        Self::with_fixed(engine, model, spec, Fixed::NOTHING, pool)
    }

    /// [`Pass::new`] of a pass whose backward leaves some layers as they are. See [`crate::Optimizer::with_fixed`].
    ///
    /// # Errors
    /// Out of memory.
    pub fn with_fixed(
        engine: &mut dyn Engine,
        model: &Model,
        spec: PassSpec,
        fixed: Fixed,
        pool: &mut GradPool,
    ) -> Result<Self, NnError> {
        let net = &model.network;
        let nodes = net.nodes[..net.nodes_until(spec.until)].to_vec();
        let wanted = plan::wanted_gradients(net, &nodes, fixed);
        let mut pass = Self {
            spec,
            acts: vec![None; net.values.len()],
            grads: vec![None; net.values.len()],
            convs: vec![None; nodes.len()],
            norm_modes: fixed::norm_modes(net, spec.mode, fixed),
            coefs: alloc_span(engine, net.norms.iter().map(|n| 4 * n.channels).sum())?,
            coef_at: net
                .norms
                .iter()
                .scan(0, |at, n| {
                    *at += 4 * n.channels;
                    Some(*at - 4 * n.channels)
                })
                .collect(),
            sums: alloc_span(engine, net.norms.iter().map(|n| 2 * n.channels).sum())?,
            normed_by: nodes.iter().map(|node| plan::reader_norm(&nodes, node.y)).collect(),
            writes: plan::gradient_writes(&nodes, &wanted),
            twice: plan::computed_twice(net, &nodes, &wanted, spec),
            wanted,
            nodes,
        };
        pass.plan_activations(engine, net)?;
        if spec.mode == Mode::Train {
            pass.plan_gradients(engine, net, pool)?;
        }
        for (i, node) in pass.nodes.iter().enumerate() {
            if let Op::Conv { x, shape, .. } = node.op {
                let used = match spec.mode {
                    Mode::Eval => ConvUse::Forward,
                    Mode::Train if pass.wanted[x.0] => ConvUse::Train,
                    // Fixed layers, too: they pack to the place that all in training share.
                    Mode::Train => ConvUse::ForwardWeight,
                };
                let masked = spec.branch == Branch::Pruned;
                pass.convs[i] = Some(engine.alloc_conv(shape, spec.max_batch, used, masked)?);
            }
        }
        Ok(pass)
    }

    /// Most images that one call may bring.
    #[must_use]
    pub fn max_batch(&self) -> usize {
        self.spec.max_batch
    }

    /// The activation of a value. That of the input, the feature and the last value holds it until the next forward; any other may be lent to
    /// another value, or in backward to a gradient.
    ///
    /// # Panics
    /// If the pass does not reach that value.
    #[must_use]
    pub fn act(&self, value: ValueId) -> Act {
        self.acts[value.0].expect("the pass holds this value")
    }

    /// Where the gradient of the last value is to be written before [`Pass::backward`].
    ///
    /// # Panics
    /// In an evaluation pass.
    #[must_use]
    pub fn output_grad(&self) -> Act {
        self.grads[self.spec.until.0].expect("a training pass has a gradient at its end")
    }

    /// Normalises images `rows` of a byte buffer into the input.
    pub fn load(&self, engine: &mut dyn Engine, model: &Model, n: usize, images: ByteBuf, rows: Rows) {
        engine.input_normalize(n, images, rows, &IMAGENET, self.act(model.network.input));
    }

    /// Brings the current weights (masked in the pruned branch) into compute layout: before an evaluation pass, once after they changed. A
    /// training pass needs no call; it brings each layer's when it comes to it.
    pub fn pack(&self, engine: &mut dyn Engine, model: &Model) {
        for (i, node) in self.nodes.iter().enumerate() {
            match node.op {
                Op::Conv { weight, .. } if self.spec.mode == Mode::Eval => {
                    self.pack_conv(engine, model, i, weight, Direction::Forward);
                }
                _ => {}
            }
        }
    }

    /// Brings the weights of node `i`, a convolution, into the layout of a direction.
    fn pack_conv(&self, engine: &mut dyn Engine, model: &Model, i: usize, weight: ParamId, direction: Direction) {
        let weights = model.part(model.params(), weight);
        engine.pack_conv(self.conv(i), direction, weights, self.mask(model, weight));
    }

    /// The planned convolution of node `i`, which is one.
    fn conv(&self, i: usize) -> Conv {
        self.convs[i].expect("planned")
    }

    /// What keeps weights in this branch.
    fn mask(&self, model: &Model, weight: ParamId) -> Option<ByteSpan> {
        (self.spec.branch == Branch::Pruned).then(|| model.mask(weight))
    }

    /// Runs the node list on the loaded input; an evaluation pass with the weights of the last [`Pass::pack`].
    ///
    /// # Errors
    /// A lost rank.
    pub fn forward(
        &self,
        engine: &mut dyn Engine,
        model: &Model,
        batch: Batch,
        ranks: &dyn Collective,
    ) -> Result<(), NnError> {
        assert!(batch.n <= self.spec.max_batch, "{} images in a pass planned for {}", batch.n, self.spec.max_batch);
        let n = batch.n;
        for (i, node) in self.nodes.iter().enumerate() {
            let y = self.act(node.y);
            match node.op {
                Op::Conv { x, weight, .. } => {
                    if self.spec.mode == Mode::Train {
                        self.pack_conv(engine, model, i, weight, Direction::Forward);
                    }
                    engine.conv_forward(n, self.conv(i), self.act(x), y, self.sums_of(i));
                }
                Op::Norm { x, norm, .. } => {
                    self.coefficients(engine, model, norm, batch, x, ranks)?;
                    self.normalize(engine, n, node);
                }
                Op::MaxPool { x } => engine.max_pool_forward(n, self.act(x), y),
                Op::AvgPool { x } => engine.avg_pool_forward(n, self.act(x), y),
                Op::Shortcut { x } => engine.shortcut_forward(n, self.act(x), y),
                Op::Concat { parts } => {
                    for (x, at) in plan::columns(&model.network, parts) {
                        engine.concat_forward(n, self.act(x), y, at);
                    }
                }
                Op::Linear { x, weight, bias } => {
                    let part = |id| model.part(model.params(), id);
                    engine.linear_forward(n, self.act(x), part(weight), bias.map(part), y, self.sums_of(i));
                }
            }
        }
        Ok(())
    }

    /// Runs the list in reverse from [`Pass::output_grad`], adding to the model's gradients. In the pruned branch the
    /// masked weights get nothing. Gradients take the place of activations: each call needs a forward of its own.
    ///
    /// # Errors
    /// A lost rank.
    pub fn backward(
        &self,
        engine: &mut dyn Engine,
        model: &Model,
        batch: Batch,
        ranks: &dyn Collective,
    ) -> Result<(), NnError> {
        let n = batch.n;
        let mut writes = self.writes.iter().copied();
        for (i, node) in self.nodes.iter().enumerate().rev().filter(|(_, node)| self.wanted[node.y.0]) {
            let dy = self.grads[node.y.0].expect("a wanted gradient has a buffer");
            let mut target = |value: ValueId| {
                self.wanted[value.0].then(|| {
                    let write = writes.next().expect("as many writes as targets");
                    (self.grads[value.0].expect("a wanted gradient has a buffer"), write)
                })
            };
            match node.op {
                Op::Conv { x, weight, .. } => {
                    if self.twice[x.0] {
                        self.normalize(engine, n, &self.nodes[i - 1]);
                    }
                    let (dw, mask) = (model.part(model.grads(), weight), self.mask(model, weight));
                    engine.conv_backward_weight(n, self.conv(i), WeightGrad { x: self.act(x), dy, dw, mask });
                    if let Some((dx, write)) = target(x) {
                        self.pack_conv(engine, model, i, weight, Direction::BackwardData);
                        engine.conv_backward_data(n, self.conv(i), dy, dx, write);
                    }
                }
                Op::Norm { x, norm, residual, .. } => {
                    let (x_act, coef, sums) = (self.act(x), self.coef(norm), self.norm_sums(norm));
                    let back = NormBackward { dy, gate: self.gate(node), x: x_act, coef, sums };
                    engine.norm_backward_sums(n, back);
                    let set = model.network.norms[norm.0].set(self.spec.branch as usize);
                    let part = |id| model.part(model.grads(), id);
                    engine.norm_param_grad(back.sums, part(set.gamma), part(set.beta));
                    ranks.all_reduce_sum(engine, back.sums)?;
                    let count = batch.n_global * model.network.dims(x).pixels();
                    let dx = target(x).map(|(dx, _)| dx);
                    engine.norm_backward_apply(n, back, Some(count), dx, residual.and_then(&mut target));
                }
                Op::MaxPool { x } => {
                    if let Some((dx, write)) = target(x) {
                        engine.max_pool_backward(n, self.act(x), self.act(node.y), dy, dx, write);
                    }
                }
                Op::AvgPool { x } => {
                    if let Some((dx, write)) = target(x) {
                        engine.avg_pool_backward(n, dy, dx, write);
                    }
                }
                Op::Shortcut { x } => {
                    if let Some((dx, write)) = target(x) {
                        engine.shortcut_backward(n, dy, dx, write);
                    }
                }
                Op::Concat { parts } => {
                    for (x, at) in plan::columns(&model.network, parts) {
                        if let Some((dx, write)) = target(x) {
                            engine.concat_backward(n, dy, at, dx, write);
                        }
                    }
                }
                Op::Linear { x, weight, bias } => {
                    let part = |id| model.part(model.grads(), id);
                    engine.linear_backward_weight(n, self.act(x), dy, part(weight), bias.map(part));
                    if let Some((dx, write)) = target(x) {
                        engine.linear_backward_data(n, dy, model.part(model.params(), weight), dx, write);
                    }
                }
            }
        }
        Ok(())
    }
}

fn alloc_span(engine: &mut dyn Engine, len: usize) -> Result<Span, EngineError> {
    let buf = engine.alloc_f32(len)?;
    Ok(engine.whole(buf))
}
