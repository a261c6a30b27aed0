//! An engine that hands every call to another one and counts it in a [`Profile`].
//!
//! Each operation is waited for, so that its time is its own: a step through this is a little slower than one without.

use super::profile::{Cost, Op, Phase, Profile, Shape};
use sdclr_engine::{
    Act, AdamStep, ByteBuf, ByteSpan, Conv, ConvShape, ConvUse, Dims, Direction, Engine, EngineError, F32Buf, Gate,
    LarsStep, Memory, NormApply, NormBackward, NormEval, NormTrain, Normalization, NtXent, Role, Rows, SgdStep, Span,
    WeightGrad, Write,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// The wrapped engine.
pub struct Profiler {
    inner: Box<dyn Engine>,
    profile: Arc<Mutex<Profile>>,
    /// Bytes of an element of a feature map.
    map_bytes: usize,
    acts: HashMap<Act, (Dims, Role)>,
    convs: HashMap<Conv, ConvShape>,
    /// Whether the last operation of the network itself was one of its backward pass. A norm's first application follows its coefficients, which
    /// are forward's.
    in_backward: bool,
    /// A failure met while waiting for an operation, for the next call that can return it.
    failed: Option<EngineError>,
}

/// Bytes of a float.
const FLOAT: usize = 4;

impl Profiler {
    /// Wraps an engine whose feature maps have elements of `map_bytes` bytes; also returns what it will count.
    #[must_use]
    pub fn new(inner: Box<dyn Engine>, map_bytes: usize) -> (Self, Arc<Mutex<Profile>>) {
        let profile = Arc::new(Mutex::new(Profile::default()));
        let (acts, convs) = Default::default();
        (
            Self { inner, profile: Arc::clone(&profile), map_bytes, acts, convs, in_backward: false, failed: None },
            profile,
        )
    }

    /// Runs `call` and counts it.
    fn count<R>(&mut self, op: Op, shape: Shape, cost: (usize, usize), call: impl FnOnce(&mut dyn Engine) -> R) -> R {
        match op.phase() {
            Phase::Forward => self.in_backward = false,
            Phase::Backward => self.in_backward = true,
            _ => {}
        }
        let began = Instant::now();
        let result = call(&mut *self.inner);
        if let Err(error) = self.inner.sync() {
            self.failed.get_or_insert(error);
        }
        let (seconds, cost) = (began.elapsed().as_secs_f64(), Cost { flop: cost.0, bytes: cost.1 });
        self.profile.lock().unwrap_or_else(PoisonError::into_inner).add(op, shape, cost, seconds);
        result
    }

    fn failure(&mut self) -> Result<(), EngineError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    fn shape(&self, act: Act) -> Shape {
        Shape::Act(self.acts[&act].0)
    }

    /// Elements of `n` images of an activation.
    fn len(&self, n: usize, act: Act) -> usize {
        n * self.acts[&act].0.len()
    }

    /// Bytes of `n` images of an activation.
    fn bytes(&self, n: usize, act: Act) -> usize {
        let element = if self.acts[&act].1 == Role::Map { self.map_bytes } else { FLOAT };
        self.len(n, act) * element
    }

    /// Bytes that writing an activation moves.
    fn written(&self, n: usize, act: Act, write: Write) -> usize {
        let times = if write == Write::Add { 2 } else { 1 };
        times * self.bytes(n, act)
    }

    /// Bytes that a ReLU's gate moves: none where the batch norm's input, which is read anyway, tells.
    fn gate_bytes(&self, n: usize, gate: Gate) -> usize {
        if let Gate::Output(y) = gate { self.bytes(n, y) } else { 0 }
    }

    /// Flop of a convolution's pass and bytes of its packed weights.
    fn conv_cost(&self, n: usize, conv: Conv) -> (Shape, usize, usize) {
        let shape = self.convs[&conv];
        (Shape::Conv(shape), 2 * n * shape.multiply_adds(), self.map_bytes * shape.n_weights())
    }

    /// Shape and flop of a linear layer's pass.
    fn linear_cost(&self, n: usize, w: Span, x: Act) -> (Shape, usize) {
        let cin = self.acts[&x].0.len();
        (Shape::Linear(cin, w.len / cin), 2 * n * w.len)
    }
}

impl Memory for Profiler {
    fn alloc_act(&mut self, max_batch: usize, dims: Dims, role: Role) -> Result<Act, EngineError> {
        let act = self.inner.alloc_act(max_batch, dims, role)?;
        self.acts.insert(act, (dims, role));
        Ok(act)
    }

    fn alloc_f32(&mut self, len: usize) -> Result<F32Buf, EngineError> {
        self.inner.alloc_f32(len)
    }

    fn alloc_bytes(&mut self, len: usize) -> Result<ByteBuf, EngineError> {
        self.inner.alloc_bytes(len)
    }

    fn whole(&self, buf: F32Buf) -> Span {
        self.inner.whole(buf)
    }

    fn bytes_held(&self) -> usize {
        self.inner.bytes_held()
    }

    fn write_f32(&mut self, to: Span, values: &[f32]) {
        self.count(Op::Copy, Shape::Any, (0, 2 * FLOAT * values.len()), |e| e.write_f32(to, values));
    }

    fn read_f32(&mut self, from: Span, values: &mut [f32]) -> Result<(), EngineError> {
        // In a training step nothing else is read.
        self.count(Op::ReadLoss, Shape::Any, (0, 2 * FLOAT * values.len()), |e| e.read_f32(from, values))?;
        self.failure()
    }

    fn write_bytes(&mut self, to: ByteBuf, values: &[u8]) {
        self.count(Op::Copy, Shape::Any, (0, 2 * values.len()), |e| e.write_bytes(to, values));
    }

    fn read_act(&mut self, n: usize, from: Act, values: &mut [f32]) -> Result<(), EngineError> {
        let bytes = self.bytes(n, from) + FLOAT * values.len();
        self.count(Op::Copy, Shape::Any, (0, bytes), |e| e.read_act(n, from, values))?;
        self.failure()
    }

    fn write_act(&mut self, n: usize, to: Act, values: &[f32]) {
        let bytes = self.bytes(n, to) + FLOAT * values.len();
        self.count(Op::Copy, Shape::Any, (0, bytes), |e| e.write_act(n, to, values));
    }

    fn sync(&mut self) -> Result<(), EngineError> {
        self.inner.sync()?;
        self.failure()
    }
}

impl Engine for Profiler {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn fill(&mut self, to: Span, value: f32) {
        self.count(Op::Fill, Shape::Any, (0, FLOAT * to.len), |e| e.fill(to, value));
    }

    fn input_normalize(&mut self, n: usize, images: ByteBuf, rows: Rows, norm: &Normalization, y: Act) {
        let cost = (2 * self.len(n, y), self.len(n, y) + self.bytes(n, y));
        self.count(Op::InputNormalize, Shape::Any, cost, |e| e.input_normalize(n, images, rows, norm, y));
    }

    fn alloc_conv(
        &mut self,
        shape: ConvShape,
        max_batch: usize,
        used: ConvUse,
        masked: bool,
    ) -> Result<Conv, EngineError> {
        let conv = self.inner.alloc_conv(shape, max_batch, used, masked)?;
        self.convs.insert(conv, shape);
        Ok(conv)
    }

    fn pack_conv(&mut self, conv: Conv, direction: Direction, weights: Span, mask: Option<ByteSpan>) {
        let bytes = (FLOAT + self.map_bytes) * weights.len + mask.map_or(0, |mask| mask.len);
        self.count(Op::PackConv, Shape::Any, (0, bytes), |e| e.pack_conv(conv, direction, weights, mask));
    }

    fn conv_forward(&mut self, n: usize, conv: Conv, x: Act, y: Act, sums: Option<Span>) {
        let (shape, flop, weights) = self.conv_cost(n, conv);
        let bytes = self.bytes(n, x) + weights + self.bytes(n, y) + sums.map_or(0, |sums| FLOAT * sums.len);
        self.count(Op::ConvForward, shape, (flop, bytes), |e| e.conv_forward(n, conv, x, y, sums));
    }

    fn conv_backward_data(&mut self, n: usize, conv: Conv, dy: Act, dx: Act, write: Write) {
        let (shape, flop, weights) = self.conv_cost(n, conv);
        let bytes = self.bytes(n, dy) + weights + self.written(n, dx, write);
        self.count(Op::ConvBackwardData, shape, (flop, bytes), |e| e.conv_backward_data(n, conv, dy, dx, write));
    }

    fn conv_backward_weight(&mut self, n: usize, conv: Conv, grad: WeightGrad) {
        let (shape, flop, _) = self.conv_cost(n, conv);
        let mask = grad.mask.map_or(0, |mask| mask.len);
        let bytes = self.bytes(n, grad.x) + self.bytes(n, grad.dy) + 2 * FLOAT * grad.dw.len + mask;
        self.count(Op::ConvBackwardWeight, shape, (flop, bytes), |e| e.conv_backward_weight(n, conv, grad));
    }

    fn norm_train(&mut self, norm: NormTrain) {
        // Sums, γ, β and the running statistics are read, the running statistics and four coefficients written.
        let c = norm.gamma.len;
        self.count(Op::NormCoefficients, Shape::Any, (15 * c, 12 * FLOAT * c), |e| e.norm_train(norm));
    }

    fn norm_eval(&mut self, norm: NormEval) {
        let c = norm.gamma.len;
        self.count(Op::NormCoefficients, Shape::Any, (5 * c, 8 * FLOAT * c), |e| e.norm_eval(norm));
    }

    fn norm_apply(&mut self, n: usize, norm: NormApply) {
        let per_element = 2 + usize::from(norm.residual.is_some()) + usize::from(norm.relu);
        let residual = norm.residual.map_or(0, |residual| self.bytes(n, residual));
        let cost = (per_element * self.len(n, norm.x), self.bytes(n, norm.x) + residual + self.bytes(n, norm.y));
        let op = if self.in_backward { Op::NormApplyAgain } else { Op::NormApply };
        self.count(op, self.shape(norm.x), cost, |e| e.norm_apply(n, norm));
    }

    fn norm_backward_sums(&mut self, n: usize, norm: NormBackward) {
        let read = self.bytes(n, norm.dy) + self.gate_bytes(n, norm.gate) + self.bytes(n, norm.x);
        let cost = (5 * self.len(n, norm.x), read);
        self.count(Op::NormBackwardSums, self.shape(norm.x), cost, |e| e.norm_backward_sums(n, norm));
    }

    fn norm_backward_apply(
        &mut self,
        n: usize,
        norm: NormBackward,
        count: Option<usize>,
        dx: Option<Act>,
        dresidual: Option<(Act, Write)>,
    ) {
        let x = dx.map_or(0, |_| self.bytes(n, norm.x));
        let read = self.bytes(n, norm.dy) + self.gate_bytes(n, norm.gate) + x;
        let written = dx.map_or(0, |dx| self.bytes(n, dx)) + dresidual.map_or(0, |(act, w)| self.written(n, act, w));
        let cost = (6 * self.len(n, norm.x), read + written);
        self.count(Op::NormBackwardApply, self.shape(norm.x), cost, |e| {
            e.norm_backward_apply(n, norm, count, dx, dresidual);
        });
    }

    fn norm_param_grad(&mut self, sums: Span, dgamma: Span, dbeta: Span) {
        let cost = (sums.len, 3 * FLOAT * sums.len);
        self.count(Op::NormParamGrad, Shape::Any, cost, |e| e.norm_param_grad(sums, dgamma, dbeta));
    }

    fn max_pool_forward(&mut self, n: usize, x: Act, y: Act) {
        let cost = (9 * self.len(n, y), self.bytes(n, x) + self.bytes(n, y));
        self.count(Op::MaxPoolForward, self.shape(x), cost, |e| e.max_pool_forward(n, x, y));
    }

    fn max_pool_backward(&mut self, n: usize, x: Act, y: Act, dy: Act, dx: Act, write: Write) {
        let bytes = self.bytes(n, x) + self.bytes(n, y) + self.bytes(n, dy) + self.written(n, dx, write);
        let cost = (9 * self.len(n, y), bytes);
        self.count(Op::MaxPoolBackward, self.shape(x), cost, |e| e.max_pool_backward(n, x, y, dy, dx, write));
    }

    fn avg_pool_forward(&mut self, n: usize, x: Act, y: Act) {
        let cost = (self.len(n, x), self.bytes(n, x) + self.bytes(n, y));
        self.count(Op::AvgPoolForward, self.shape(x), cost, |e| e.avg_pool_forward(n, x, y));
    }

    fn avg_pool_backward(&mut self, n: usize, dy: Act, dx: Act, write: Write) {
        let cost = (self.len(n, dx), self.bytes(n, dy) + self.written(n, dx, write));
        self.count(Op::AvgPoolBackward, self.shape(dx), cost, |e| e.avg_pool_backward(n, dy, dx, write));
    }

    fn shortcut_forward(&mut self, n: usize, x: Act, y: Act) {
        // A quarter of the input is read.
        let cost = (0, self.bytes(n, x) / 4 + self.bytes(n, y));
        self.count(Op::ShortcutForward, self.shape(x), cost, |e| e.shortcut_forward(n, x, y));
    }

    fn shortcut_backward(&mut self, n: usize, dy: Act, dx: Act, write: Write) {
        let cost = (0, self.bytes(n, dy) + self.written(n, dx, write));
        self.count(Op::ShortcutBackward, self.shape(dx), cost, |e| e.shortcut_backward(n, dy, dx, write));
    }

    fn concat_forward(&mut self, n: usize, x: Act, y: Act, at: usize) {
        let cost = (0, 2 * self.bytes(n, x));
        self.count(Op::ConcatForward, self.shape(x), cost, |e| e.concat_forward(n, x, y, at));
    }

    fn concat_backward(&mut self, n: usize, dy: Act, at: usize, dx: Act, write: Write) {
        let cost = (0, self.bytes(n, dx) + self.written(n, dx, write));
        self.count(Op::ConcatBackward, self.shape(dx), cost, |e| e.concat_backward(n, dy, at, dx, write));
    }

    fn linear_forward(&mut self, n: usize, x: Act, w: Span, bias: Option<Span>, y: Act, sums: Option<Span>) {
        let (shape, flop) = self.linear_cost(n, w, x);
        let vectors = bias.map_or(0, |bias| bias.len) + sums.map_or(0, |sums| sums.len);
        let bytes = self.bytes(n, x) + FLOAT * (w.len + vectors) + self.bytes(n, y);
        self.count(Op::LinearForward, shape, (flop, bytes), |e| e.linear_forward(n, x, w, bias, y, sums));
    }

    fn linear_backward_data(&mut self, n: usize, dy: Act, w: Span, dx: Act, write: Write) {
        let (shape, flop) = self.linear_cost(n, w, dx);
        let bytes = self.bytes(n, dy) + FLOAT * w.len + self.written(n, dx, write);
        self.count(Op::LinearBackwardData, shape, (flop, bytes), |e| e.linear_backward_data(n, dy, w, dx, write));
    }

    fn linear_backward_weight(&mut self, n: usize, x: Act, dy: Act, dw: Span, dbias: Option<Span>) {
        let (shape, flop) = self.linear_cost(n, dw, x);
        let gradients = dw.len + dbias.map_or(0, |dbias| dbias.len);
        let bytes = self.bytes(n, x) + self.bytes(n, dy) + 2 * FLOAT * gradients;
        self.count(Op::LinearBackwardWeight, shape, (flop, bytes), |e| e.linear_backward_weight(n, x, dy, dw, dbias));
    }

    fn l2_normalize(&mut self, n: usize, x: Act, rows: Rows, z: Span, norms: Span) {
        let cost = (3 * self.len(n, x), 2 * self.bytes(n, x) + FLOAT * n);
        self.count(Op::L2Normalize, self.shape(x), cost, |e| e.l2_normalize(n, x, rows, z, norms));
    }

    fn l2_normalize_backward(&mut self, n: usize, rows: Rows, z: Span, norms: Span, dz: Span, dx: Act) {
        let cost = (5 * self.len(n, dx), 3 * self.bytes(n, dx) + FLOAT * n);
        let shape = self.shape(dx);
        self.count(Op::L2NormalizeBackward, shape, cost, |e| e.l2_normalize_backward(n, rows, z, norms, dz, dx));
    }

    fn plan_nt_xent(&mut self, n_anchors: usize, n_views: usize) -> Result<(), EngineError> {
        self.inner.plan_nt_xent(n_anchors, n_views)
    }

    fn nt_xent(&mut self, loss: NtXent) {
        // The logits, and both sides of their gradient; the logits themselves need not leave the caches.
        let flop = 3 * 2 * loss.n_anchors * loss.z.len;
        let bytes = FLOAT * (loss.z.len + loss.dz.len + loss.loss.len);
        self.count(Op::NtXent, Shape::Any, (flop, bytes), |e| e.nt_xent(loss));
    }

    fn cross_entropy(&mut self, n: usize, logits: Act, labels: &[u32], loss: Span, dlogits: Act) {
        let cost = (6 * self.len(n, logits), 2 * self.bytes(n, logits) + 2 * FLOAT * n);
        self.count(Op::CrossEntropy, Shape::Any, cost, |e| e.cross_entropy(n, logits, labels, loss, dlogits));
    }

    fn sgd_step(&mut self, params: Span, grads: Span, momentum: Span, step: SgdStep, first: bool) {
        let cost = (6 * params.len, 5 * FLOAT * params.len);
        self.count(Op::OptimizerStep, Shape::Any, cost, |e| e.sgd_step(params, grads, momentum, step, first));
    }

    fn lars_step(&mut self, params: Span, grads: Span, momentum: Span, tensors: &[(usize, usize)], step: LarsStep) {
        let cost = (10 * params.len, 5 * FLOAT * params.len);
        self.count(Op::OptimizerStep, Shape::Any, cost, |e| e.lars_step(params, grads, momentum, tensors, step));
    }

    fn adam_step(&mut self, params: Span, grads: Span, m: Span, v: Span, step: AdamStep) {
        let cost = (12 * params.len, 7 * FLOAT * params.len);
        self.count(Op::OptimizerStep, Shape::Any, cost, |e| e.adam_step(params, grads, m, v, step));
    }
}
