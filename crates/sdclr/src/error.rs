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
    #[error(
        "the loss is {loss} at step {step} (learning rate {lr:.3e}); lower --lr or raise --temperature, \
         and resume from the last checkpoint"
    )]
    NonFiniteLoss {
        /// The loss.
        loss: f32,
        /// Optimizer step, from 1.
        step: u64,
        /// Learning rate of the step.
        lr: f64,
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
    #[error("{path}: {}", crate::run_dir::describe_io(.source))]
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
