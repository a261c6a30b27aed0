//! What can go wrong while training, probing or reading a run.

use crate::checkpoint::CheckpointError;
use crate::run_dir::RunDirError;
use sdclr_data::DataError;
use sdclr_engine::EngineError;
use sdclr_nn::{CollectiveError, NnError};

/// Anything that stops a library call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The loss became infinite or not a number; nothing was updated with it.
    #[error("the loss is {loss} at step {step} (learning rate {lr:.3e}); lower --lr")]
    NonFiniteLoss {
        /// The loss.
        loss: f32,
        /// Optimizer step, from 1.
        step: u64,
        /// Learning rate of the step.
        lr: f64,
    },
    /// Pre-training diverged. Resuming would do the same again: the learning rate belongs to the run.
    #[error(
        "training diverged: {what} at step {step} (learning rate {lr:.3e}); {}; start a new run in another --out with a \
         lower --lr, a longer --warmup-epochs or a higher --temperature", 
        describe_good(.last_good)
    )]
    Diverged {
        /// What is not finite.
        what: String,
        /// Optimizer step, from 1.
        step: u64,
        /// Learning rate of the step.
        lr: f64,
        /// The newest checkpoint, whose weights are finite, and its step.
        last_good: Option<(std::path::PathBuf, u64)>,
    },
    /// Not one image of a set can be decoded.
    #[error("none of the {n} images {what} can be decoded")]
    NoImages {
        /// How many there are.
        n: usize,
        /// What they are for.
        what: String,
    },
    /// A stored classifier that cannot be used.
    #[error("{path}: {reason}")]
    StoredProbe {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// What was asked for does not fit the data.
    #[error("{0}")]
    Unfit(String),
    /// Engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Network, loss or ranks.
    #[error(transparent)]
    Nn(#[from] NnError),
    /// Images.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Run directory.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// Checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Configuration.
    #[error(transparent)]
    Config(#[from] sdclr_records::Error),
    /// A file could not be written.
    #[error("{path}: cannot write: {}", crate::run_dir::describe_io(.source))]
    Write {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl From<CollectiveError> for Error {
    fn from(error: CollectiveError) -> Self {
        Self::Nn(error.into())
    }
}

fn describe_good(last_good: &Option<(std::path::PathBuf, u64)>) -> String {
    match last_good {
        Some((path, step)) => format!("the last good checkpoint is {} (step {step})", path.display()),
        None => "no checkpoint was written yet".to_owned(),
    }
}
