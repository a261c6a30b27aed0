//! Handles, shapes and errors that pass between a network and an engine.

use std::ops::Range;

/// Handle of an activation buffer: `[max_batch, h, w, c]` (NHWC), in the engine's own element type and layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Act(pub(crate) usize);

/// Handle of a buffer of 32-bit floats (parameters, gradients, statistics, embeddings).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct F32Buf(pub(crate) usize);

/// Handle of a buffer of bytes (images, masks).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ByteBuf(pub(crate) usize);

/// Handle of a planned convolution: its geometry and its packed weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv(pub(crate) usize);

/// A contiguous part of an [`F32Buf`]; offsets and lengths count floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The buffer.
    pub buf: F32Buf,
    /// First float.
    pub offset: usize,
    /// Number of floats.
    pub len: usize,
}

impl Span {
    /// The part `range` of this span.
    ///
    /// # Panics
    /// If `range` does not lie inside the span.
    #[must_use]
    pub fn slice(self, range: Range<usize>) -> Span {
        assert!(range.start <= range.end && range.end <= self.len, "span {range:?} of {}", self.len);
        Span { buf: self.buf, offset: self.offset + range.start, len: range.len() }
    }

    pub(crate) fn range(self) -> Range<usize> {
        self.offset..self.offset + self.len
    }
}

/// A contiguous part of a [`ByteBuf`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSpan {
    /// The buffer.
    pub buf: ByteBuf,
    /// First byte.
    pub offset: usize,
    /// Number of bytes.
    pub len: usize,
}

impl ByteSpan {
    pub(crate) fn range(self) -> Range<usize> {
        self.offset..self.offset + self.len
    }
}

/// Height, width and channels of one image's activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dims {
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

impl Dims {
    /// Elements of one image.
    #[must_use]
    pub fn len(self) -> usize {
        self.h * self.w * self.c
    }

    /// Whether there is no element at all.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Pixels of one image.
    #[must_use]
    pub fn pixels(self) -> usize {
        self.h * self.w
    }
}

/// What an activation holds, which decides the numbers that it is kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Feature maps between convolutions, in the engine's compute precision.
    Map,
    /// One vector per image: pooled features, the head, logits. Always 32-bit floats: they are small, and the losses look
    /// at their differences.
    Vector,
}

/// Geometry of a square convolution without bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// The input of one image.
    pub input: Dims,
    /// Output channels.
    pub cout: usize,
    /// Kernel height and width (1, 3 or 7 in the supported networks; any size works).
    pub kernel: usize,
    /// Stride in both directions.
    pub stride: usize,
    /// Zero padding on every side.
    pub pad: usize,
}

impl ConvShape {
    /// The output of one image.
    ///
    /// # Panics
    /// If the padded input is smaller than the kernel.
    #[must_use]
    pub fn output(self) -> Dims {
        let fits = |size: usize| size + 2 * self.pad >= self.kernel;
        assert!(fits(self.input.h) && fits(self.input.w), "kernel {} on {:?}", self.kernel, self.input);
        let out = |size: usize| (size + 2 * self.pad - self.kernel) / self.stride + 1;
        Dims { h: out(self.input.h), w: out(self.input.w), c: self.cout }
    }

    /// Number of weights, stored `[cout, kernel, kernel, cin]`.
    #[must_use]
    pub fn n_weights(self) -> usize {
        self.cout * self.kernel * self.kernel * self.input.c
    }

    /// Multiply-adds of one image's forward pass.
    #[must_use]
    pub fn multiply_adds(self) -> usize {
        self.output().pixels() * self.n_weights()
    }
}

/// Which passes a planned convolution will be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvUse {
    /// Forward only (evaluation): what was packed is kept.
    Forward,
    /// Forward and the weight gradient (the first trainable layer; fixed ones, of which training wants the forward pass alone).
    ForwardWeight,
    /// Forward, the gradient of the data and of the weights.
    Train,
}

/// The pass that weights are packed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From input to output channels.
    Forward,
    /// From output to input channels.
    BackwardData,
}

/// Whether a pass overwrites its output or adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Overwrite.
    Set,
    /// Add to what is there.
    Add,
}

/// Per-channel input normalisation: `(byte / 255 - mean) / std`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalization {
    /// Channel means of images in [0, 1].
    pub mean: [f32; 3],
    /// Channel standard deviations of images in [0, 1].
    pub std: [f32; 3],
}

/// ImageNet's statistics, which the published models use for every data set.
pub const IMAGENET: Normalization = Normalization { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };

/// Which images of an interleaved batch a branch reads: `first`, `first + step`, …
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// First image (or row).
    pub first: usize,
    /// Distance between two of them.
    pub step: usize,
}

impl Rows {
    /// Every row from the first on.
    pub const ALL: Rows = Rows { first: 0, step: 1 };

    /// Index of the `i`-th row.
    #[must_use]
    pub fn at(self, i: usize) -> usize {
        self.first + i * self.step
    }
}

/// Numbers of one SGD update. Source: PyTorch's `torch.optim.SGD` (dampening 0, no Nesterov).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    /// Learning rate.
    pub lr: f32,
    /// Momentum.
    pub momentum: f32,
    /// Weight decay, added to the gradient.
    pub weight_decay: f32,
}

/// Numbers of one LARS update (You et al. 2017, as the published SDCLR code has it).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LarsStep {
    /// Learning rate.
    pub lr: f32,
    /// Momentum.
    pub momentum: f32,
    /// Weight decay.
    pub weight_decay: f32,
    /// Trust coefficient η.
    pub eta: f32,
}

/// Numbers of one Adam update (Kingma & Ba 2015, PyTorch's form, no weight decay).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the denominator.
    pub eps: f32,
    /// Number of this update, from 1.
    pub step: u64,
}

/// What an engine can fail at.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Memory for a buffer could not be had.
    #[error("out of memory: {what} needs {bytes} bytes more on top of {held} held; use a smaller --batch-size")]
    OutOfMemory {
        /// What it was for.
        what: String,
        /// Bytes asked for.
        bytes: usize,
        /// Bytes held already.
        held: usize,
    },
    /// The device or its library reported a failure.
    #[error("{device}: {message}")]
    Device {
        /// Which device.
        device: String,
        /// What it said.
        message: String,
    },
}
