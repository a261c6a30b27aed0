//! What can go wrong with a run directory, and what to do about it.

use super::describe_io;
use std::io;
use std::path::{Path, PathBuf};

/// Errors of run directories.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunDirError {
    /// A file or folder could not be written.
    #[error("{path}: cannot write: {}", describe_io(.source))]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file or folder could not be read.
    #[error("{path}: cannot read: {source}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The output folder has something in it.
    #[error(
        "{path}: the folder is not empty; give --resume to go on with the run there, --overwrite to replace it, or another --out"
    )]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// Asked to read something else.
    #[error("{path}: not a run directory (it has no config.toml)")]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// Asked to overwrite or resume something else.
    #[error(
        "{path}: not a run directory (it is not empty and has no config.toml), so it is left alone; choose another --out"
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
    },
    /// Asked to overwrite something else that has a `config.toml`.
    #[error("{path}: not a run: {why}; it is left alone; choose another --out")]
    ForeignConfig {
        /// The folder.
        path: PathBuf,
        /// What is wrong with its config.
        why: String,
    },
    /// A name that is no file name.
    #[error("the name {name:?}: must be a file name: no slashes, no dot at its beginning")]
    BadName {
        /// The name.
        name: String,
    },
    /// The path is a file.
    #[error("{path}: not a folder; name a folder that is empty or does not exist")]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// Another process trains into the same folder.
    #[error("{path}: another process is writing to this run; wait for it or choose another --out")]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// A resumed run with other settings.
    #[error(
        "{path}: the run was started with {change}; resume with the same settings or start a new run in another --out"
    )]
    ConfigChanged {
        /// The folder.
        path: PathBuf,
        /// What differs.
        change: String,
    },
    /// A config that cannot be read or run.
    #[error(transparent)]
    Config(#[from] sdclr_records::Error),
    /// A record that cannot be parsed.
    #[error("{path}: cannot parse: {message}")]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

impl RunDirError {
    pub(super) fn write(path: &Path, source: io::Error) -> Self {
        Self::Write { path: path.to_owned(), source }
    }

    pub(super) fn read(path: &Path, source: io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }
}
