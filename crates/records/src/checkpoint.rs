//! What a checkpoint holds: named tensors, and where training stood (JSON in the file's metadata).

use crate::names::{Method, OptimizerKind};
use serde::{Deserialize, Serialize};

/// The version of the checkpoint layout that this program writes and reads.
pub const CHECKPOINT_VERSION: u32 = 1;

/// Values of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorData {
    /// Weights, statistics, optimizer buffers.
    F32(Vec<f32>),
    /// Masks: 0 or 1.
    U8(Vec<u8>),
}

impl TensorData {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::U8(values) => values.len(),
        }
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A tensor outside the engine: row-major values and their shape. Convolution weights are `[out, in, h, w]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Length of each axis; their product is the number of values.
    pub shape: Vec<usize>,
    /// The values, last axis fastest.
    pub data: TensorData,
}

impl Tensor {
    /// A tensor of 32-bit floats.
    ///
    /// # Panics
    /// If the number of values is not the product of `shape`.
    pub fn f32(shape: &[usize], values: Vec<f32>) -> Self {
        Self::new(shape, TensorData::F32(values))
    }

    /// A tensor of bytes.
    ///
    /// # Panics
    /// If the number of values is not the product of `shape`.
    pub fn u8(shape: &[usize], values: Vec<u8>) -> Self {
        Self::new(shape, TensorData::U8(values))
    }

    fn new(shape: &[usize], data: TensorData) -> Self {
        let n: usize = shape.iter().product();
        assert_eq!(data.len(), n, "values for shape {shape:?}");
        Self { shape: shape.to_vec(), data }
    }

    /// The values, if they are 32-bit floats.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            TensorData::F32(values) => Some(values),
            _ => None,
        }
    }

    /// The values, if they are bytes.
    pub fn as_u8(&self) -> Option<&[u8]> {
        match &self.data {
            TensorData::U8(values) => Some(values),
            _ => None,
        }
    }
}

/// Where training stood.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointState {
    /// The model in words, for example `resnet18 small stem, width 64, dual BN, 3-layer head to 128`.
    pub model: String,
    /// SimCLR or SDCLR.
    pub method: Method,
    /// Epochs finished.
    pub epoch: usize,
    /// Batches done in the epoch after those; 0 at an epoch's end.
    pub batch_in_epoch: usize,
    /// Optimizer steps done.
    pub step: u64,
    /// Steps that the whole schedule has; the learning rate depends on it.
    pub total_steps: u64,
    /// The run's seed; with the position it determines everything random that follows.
    pub seed: u64,
    /// Which optimizer's buffers are inside.
    pub optimizer: OptimizerKind,
    /// Its update count (Adam's bias correction).
    pub optimizer_steps: u64,
    /// Sum of the losses of this epoch's steps so far.
    pub epoch_loss_sum: f64,
    /// Steps of this epoch so far.
    pub epoch_steps: u64,
    /// Sum of the losses since the last metric line.
    pub interval_loss_sum: f64,
    /// Steps since the last metric line.
    pub interval_steps: u64,
    /// Seconds of training behind it.
    pub elapsed_s: f64,
    /// Broken images skipped so far.
    pub n_skipped: usize,
    /// The threshold of the epoch's mask, if one is inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_threshold: Option<f64>,
    /// Which images it is trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataMark>,
}

/// What tells one set of images from another without reading all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataMark {
    /// Number of images.
    pub n_images: usize,
    /// CRC-32 over their indices and names, and over some pixels where reading them costs nothing; in hexadecimal.
    pub crc32: String,
}
