//! The part of a checkpoint that is not tensors: where training stood, as JSON in the file's metadata.

use crate::names::{Method, OptimizerKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of the checkpoint layout that this program writes and reads.
pub const CHECKPOINT_VERSION: u32 = 1;

/// Where training stood.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointState {
    /// [`CHECKPOINT_VERSION`] of the program that wrote it.
    pub version: u32,
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
    /// Anything else worth keeping that no reader depends on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub notes: BTreeMap<String, String>,
}
