//! Why a file of another program cannot be imported.

use std::io;

/// Errors of reading other programs' checkpoints. The file's path is the caller's to add.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The file could not be read.
    #[error("cannot read: {0}")]
    Read(#[from] io::Error),
    /// A file of another kind.
    #[error("neither a file of torch.save nor a safetensors file: {0}")]
    NotACheckpoint(String),
    /// The file is cut short, or its parts contradict each other.
    #[error("the file is damaged: {0}")]
    Damaged(String),
    /// The pickle asks for something that is not allowed, or is no pickle.
    #[error("not imported: {what} (byte {position} of {part})")]
    Pickle {
        /// What it asks for.
        what: String,
        /// Which pickle.
        part: String,
        /// Byte in that pickle.
        position: usize,
    },
    /// A tensor that cannot be read.
    #[error("tensor `{name}`: {problem}")]
    Tensor {
        /// Its name in the file.
        name: String,
        /// Why.
        problem: String,
    },
    /// A file without what was looked for, or with a network that is not known here.
    #[error("{0}")]
    Unfit(String),
}
