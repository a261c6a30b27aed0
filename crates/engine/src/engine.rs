//! The engine trait: the dozen training operations behind opaque buffers.
//!
//! A network (crate `nn`) allocates handles once, for a maximum batch, and then calls operations with the batch at hand
//! (`n`). An engine chooses element type, layout, packing and schedule; nothing outside can tell. Operations do not
//! return errors: an engine that can fail while running (a GPU) remembers the first failure and returns it from the
//! next call that has a `Result` ([`Memory::sync`] and the reads).
//!
//! Conventions. Activations are NHWC, feature maps in the engine's own precision and vectors in f32 ([`Role`]); a vector per image is `[n, 1, 1, c]`. Convolution weights are
//! `[cout, kh, kw, cin]`, linear weights `[cout, cin]`. Weight and parameter gradients are always *added*, so that two
//! branches sum up; the caller clears them once per step. Within one call, a span that is written must not lie in the
//! buffer of a span that is read, and an activation that is written must differ from those that are read, but where an operation says
//! that it may be the same.

use crate::types::{
    Act, AdamStep, ByteBuf, ByteSpan, Conv, ConvShape, ConvUse, Dims, Direction, EngineError, F32Buf, LarsStep,
    Normalization, Role, Rows, SgdStep, Span, Write,
};

/// Buffers: allocated once, read and written from the host.
pub trait Memory {
    /// Allocates a zeroed activation `[max_batch, h, w, c]`.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`].
    fn alloc_act(&mut self, max_batch: usize, dims: Dims, role: Role) -> Result<Act, EngineError>;

    /// Allocates `len` floats, zeroed.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`].
    fn alloc_f32(&mut self, len: usize) -> Result<F32Buf, EngineError>;

    /// Allocates `len` bytes, zeroed.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`].
    fn alloc_bytes(&mut self, len: usize) -> Result<ByteBuf, EngineError>;

    /// The whole of a float buffer as a span.
    fn whole(&self, buf: F32Buf) -> Span;

    /// Bytes held by all buffers, packed weights and scratch space.
    fn bytes_held(&self) -> usize;

    /// Copies `values` to the device.
    ///
    /// # Panics
    /// If the lengths differ.
    fn write_f32(&mut self, to: Span, values: &[f32]);

    /// Copies floats from the device, after all work before it is done.
    ///
    /// # Errors
    /// A failure of an earlier operation.
    fn read_f32(&mut self, from: Span, values: &mut [f32]) -> Result<(), EngineError>;

    /// Copies `values` to the start of a byte buffer.
    ///
    /// # Panics
    /// If the buffer is shorter.
    fn write_bytes(&mut self, to: ByteBuf, values: &[u8]);

    /// Copies the first `n` images of an activation to the host as f32 NHWC.
    ///
    /// # Errors
    /// A failure of an earlier operation.
    fn read_act(&mut self, n: usize, from: Act, values: &mut [f32]) -> Result<(), EngineError>;

    /// Copies `n` images, f32 NHWC, to an activation.
    fn write_act(&mut self, n: usize, to: Act, values: &[f32]);

    /// Waits for all work.
    ///
    /// # Errors
    /// A failure of an earlier operation.
    fn sync(&mut self) -> Result<(), EngineError>;
}

/// One convolution's backward-weight call.
#[derive(Clone, Copy, Debug)]
pub struct WeightGrad {
    /// Input of the forward pass.
    pub x: Act,
    /// Gradient of its output.
    pub dy: Act,
    /// Where the gradient `[cout, kh, kw, cin]` is added.
    pub dw: Span,
    /// Keeps the gradient only where the byte is 1: the mask that the weights were packed with, or none, for the gradient of all.
    pub mask: Option<ByteSpan>,
}

/// How batch norm's coefficients come from batch statistics.
#[derive(Clone, Copy, Debug)]
pub struct NormTrain {
    /// Σx and Σx² per channel, `[2, c]`, over all ranks.
    pub sums: Span,
    /// Elements per channel behind the sums.
    pub count: usize,
    /// Affine weight γ `[c]`.
    pub gamma: Span,
    /// Affine bias β `[c]`.
    pub beta: Span,
    /// Running mean and variance `[2, c]`, updated with `momentum` (unbiased variance, as PyTorch).
    pub running: Span,
    /// Added to the variance.
    pub eps: f32,
    /// Share of the new statistics in the running ones.
    pub momentum: f32,
    /// Result: mean, 1/σ, scale and shift, `[4, c]`.
    pub coef: Span,
}

/// How batch norm's coefficients come from running statistics.
#[derive(Clone, Copy, Debug)]
pub struct NormEval {
    /// Affine weight γ `[c]`.
    pub gamma: Span,
    /// Affine bias β `[c]`.
    pub beta: Span,
    /// Running mean and variance `[2, c]`.
    pub running: Span,
    /// Added to the variance.
    pub eps: f32,
    /// Result: mean, 1/σ, scale and shift, `[4, c]`.
    pub coef: Span,
}

/// `y = relu?(x * scale + shift + residual?)`.
#[derive(Clone, Copy, Debug)]
pub struct NormApply {
    /// Input.
    pub x: Act,
    /// mean, 1/σ, scale, shift, `[4, c]`.
    pub coef: Span,
    /// Added before the ReLU.
    pub residual: Option<Act>,
    /// Whether a ReLU follows.
    pub relu: bool,
    /// Output; may be the input.
    pub y: Act,
}

/// Where the ReLU of a [`NormApply`] let its argument through.
#[derive(Clone, Copy, Debug)]
pub enum Gate {
    /// There is no ReLU.
    Open,
    /// Where the output is above zero.
    Output(Act),
    /// Where `x * scale + shift` is above zero, no residual having been added: a map less to read.
    Input,
}

/// Gradient through [`NormApply`].
#[derive(Clone, Copy, Debug)]
pub struct NormBackward {
    /// Gradient of the output.
    pub dy: Act,
    /// Where `dy` counts.
    pub gate: Gate,
    /// The input of the forward pass.
    pub x: Act,
    /// The forward pass's coefficients.
    pub coef: Span,
    /// Σg and Σg·x̂ per channel, `[2, c]`, with g the gradient behind the ReLU.
    pub sums: Span,
}

/// One NT-Xent evaluation. Rows `2i` and `2i + 1` of `z` are the two views of an image.
#[derive(Clone, Copy, Debug)]
pub struct NtXent {
    /// L2-normalised embeddings of all ranks `[m, d]`.
    pub z: Span,
    /// Embedding size d.
    pub dim: usize,
    /// First row that is an anchor here.
    pub first_anchor: usize,
    /// Number of anchors here.
    pub n_anchors: usize,
    /// Temperature τ.
    pub temperature: f32,
    /// γ of the focal weighting: with p the softmax probability of an anchor's positive, its loss is (1 − p)^γ · (−ln p).
    /// The weight is differentiated too, as by Lin et al. 2017. 0 is NT-Xent.
    pub focal_gamma: f32,
    /// Result: loss of each anchor `[n_anchors]`, not yet divided by m.
    pub loss: Span,
    /// Result: gradient of `Σ loss / m` with respect to all of `z`, `[m, d]`.
    pub dz: Span,
}

/// A compute back end.
pub trait Engine: Memory + Send {
    /// Name for people: device and numeric path.
    fn name(&self) -> String;

    /// Sets every float of a span.
    fn fill(&mut self, to: Span, value: f32);

    /// `y = (images / 255 - mean) / std`; image `i` of `y` is image `rows.at(i)` of the byte buffer `[·, h, w, 3]`.
    fn input_normalize(&mut self, n: usize, images: ByteBuf, rows: Rows, norm: &Normalization, y: Act);

    /// Plans a convolution for at most `max_batch` images. `masked`: whether its weights will be packed with masks, which an engine may
    /// make use of.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`].
    fn alloc_conv(
        &mut self,
        shape: ConvShape,
        max_batch: usize,
        used: ConvUse,
        masked: bool,
    ) -> Result<Conv, EngineError>;

    /// Brings master weights `[cout, kh, kw, cin]`, zeroed where `mask` is 0, into the layout that the passes of one direction read.
    ///
    /// A convolution of [`ConvUse::Forward`] keeps them. All others share one place, which holds those that were packed last: their
    /// passes follow before another's weights are packed. A convolution's mask is the same both ways, and changes with the forward direction.
    fn pack_conv(&mut self, conv: Conv, direction: Direction, weights: Span, mask: Option<ByteSpan>);

    /// `y = conv(x)`; with `sums`, also Σy and Σy² per channel `[2, cout]`.
    fn conv_forward(&mut self, n: usize, conv: Conv, x: Act, y: Act, sums: Option<Span>);

    /// Gradient of the input: `dx (+)= convᵀ(dy)`.
    fn conv_backward_data(&mut self, n: usize, conv: Conv, dy: Act, dx: Act, write: Write);

    /// Gradient of the weights, added.
    fn conv_backward_weight(&mut self, n: usize, conv: Conv, grad: WeightGrad);

    /// Batch statistics to coefficients; updates the running statistics.
    fn norm_train(&mut self, norm: NormTrain);

    /// Running statistics to coefficients.
    fn norm_eval(&mut self, norm: NormEval);

    /// Normalise, add the residual, ReLU.
    fn norm_apply(&mut self, n: usize, norm: NormApply);

    /// First half of batch norm's gradient: fills `sums`.
    fn norm_backward_sums(&mut self, n: usize, norm: NormBackward);

    /// Second half: `dx` from the sums of all ranks over `count` elements, and the residual's gradient.
    /// `count` is `None` where the forward pass used running statistics, which are constants.
    ///
    /// `dx` may take the place of `norm.x`, and the residual's gradient, if it is set, that of `norm.dy`.
    fn norm_backward_apply(
        &mut self,
        n: usize,
        norm: NormBackward,
        count: Option<usize>,
        dx: Option<Act>,
        dresidual: Option<(Act, Write)>,
    );

    /// `dgamma += Σg·x̂`, `dbeta += Σg`, from this rank's sums `[2, c]`.
    fn norm_param_grad(&mut self, sums: Span, dgamma: Span, dbeta: Span);

    /// 3×3 maximum, stride 2, padding 1 (ResNet's stem).
    fn max_pool_forward(&mut self, n: usize, x: Act, y: Act);

    /// Gradient of the maximum: goes to the first maximal element in row order, as PyTorch.
    fn max_pool_backward(&mut self, n: usize, x: Act, y: Act, dy: Act, dx: Act, write: Write);

    /// Mean over all pixels: `[n, h, w, c]` to `[n, 1, 1, c]`.
    fn avg_pool_forward(&mut self, n: usize, x: Act, y: Act);

    /// Gradient of the mean.
    fn avg_pool_backward(&mut self, n: usize, dy: Act, dx: Act, write: Write);

    /// ResNet's parameter-free shortcut A: every second pixel, channels zero-padded equally on both sides.
    fn shortcut_forward(&mut self, n: usize, x: Act, y: Act);

    /// Gradient of shortcut A.
    fn shortcut_backward(&mut self, n: usize, dy: Act, dx: Act, write: Write);

    /// Puts vectors beside others: `x` `[n, c]` becomes columns `at..at + c` of `y`; its other columns stay.
    fn concat_forward(&mut self, n: usize, x: Act, y: Act, at: usize);

    /// Gradient of one of the vectors: columns `at..at + c` of `dy` to `dx` `[n, c]`.
    fn concat_backward(&mut self, n: usize, dy: Act, at: usize, dx: Act, write: Write);

    /// `y = x·wᵀ (+ bias)`; with `sums`, also Σy and Σy² per output `[2, cout]`.
    fn linear_forward(&mut self, n: usize, x: Act, w: Span, bias: Option<Span>, y: Act, sums: Option<Span>);

    /// `dx (+)= dy·w`.
    fn linear_backward_data(&mut self, n: usize, dy: Act, w: Span, dx: Act, write: Write);

    /// `dw += dyᵀ·x`, `dbias += Σ dy`.
    fn linear_backward_weight(&mut self, n: usize, x: Act, dy: Act, dw: Span, dbias: Option<Span>);

    /// L2-normalises the rows of `x` `[n, d]` into rows `rows` of `z` `[·, d]` and keeps their norms `[·]`
    /// (norm at least 1e-12, as `F.normalize`).
    fn l2_normalize(&mut self, n: usize, x: Act, rows: Rows, z: Span, norms: Span);

    /// Gradient of the L2 normalisation: rows `rows` of `z`, `norms`, `dz` to `dx` `[n, d]`.
    fn l2_normalize_backward(&mut self, n: usize, rows: Rows, z: Span, norms: Span, dz: Span, dx: Act);

    /// Makes room for [`Self::nt_xent`] of at most `n_anchors` anchors among `n_views` views.
    ///
    /// # Errors
    /// Out of memory.
    fn plan_nt_xent(&mut self, n_anchors: usize, n_views: usize) -> Result<(), EngineError>;

    /// NT-Xent loss and its gradient, by log-sum-exp in f32 (Chen et al. 2020, eq. 1).
    fn nt_xent(&mut self, loss: NtXent);

    /// Mean cross-entropy of `logits` `[n, classes]` against `labels`: loss of each image `[n]` and the mean's gradient.
    fn cross_entropy(&mut self, n: usize, logits: Act, labels: &[u32], loss: Span, dlogits: Act);

    /// One SGD update; `first` makes the momentum buffer the gradient itself.
    fn sgd_step(&mut self, params: Span, grads: Span, momentum: Span, step: SgdStep, first: bool);

    /// One LARS update; each range of `tensors` (offsets in `params`) has its own trust ratio.
    fn lars_step(&mut self, params: Span, grads: Span, momentum: Span, tensors: &[(usize, usize)], step: LarsStep);

    /// One Adam update with its two moments.
    fn adam_step(&mut self, params: Span, grads: Span, m: Span, v: Span, step: AdamStep);
}
