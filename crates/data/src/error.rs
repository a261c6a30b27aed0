//! What can go wrong with people's files, said so that they can act on it.

use std::path::{Path, PathBuf};

/// Every failure of this crate. A message names the file, the place in it, the value found and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: "read", "list", "write".
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A data set, list or archive is not what its name or position says.
    #[error("{}: {problem}", path.display())]
    Format {
        /// The file or folder.
        path: PathBuf,
        /// What was found and what to do.
        problem: String,
    },
    /// A split does not fit the data set it is to select from.
    #[error("{}: {problem}", path.display())]
    Split {
        /// The `.npy` or `.txt` file.
        path: PathBuf,
        /// What was found, where, and what to do.
        problem: String,
    },
    /// One image cannot be decoded.
    #[error("{name}: broken image: {reason}")]
    Image {
        /// The image's name in its source.
        name: String,
        /// The decoder's words.
        reason: String,
    },
    /// So many images are broken that training on the rest would be another experiment.
    #[error(
        "{}; the first is {first}. Repair or remove them, or raise the limit (--max-broken of pretrain and pack; a run's \
         config.toml says what is allowed of the images that it is used on)",
        share(*broken, *total, *limit)
    )]
    TooManyBroken {
        /// Images found broken so far.
        broken: usize,
        /// Images in the data set.
        total: usize,
        /// `LoaderSpec::max_broken_share`.
        limit: f32,
        /// Name and reason of the first.
        first: String,
    },
    /// A setting makes no sense.
    #[error("{0}")]
    Setting(String),
    /// A worker thread failed in a way that is a defect of this crate.
    #[error("a loader thread panicked on {name}: {message}; please report this as a defect")]
    Panicked {
        /// The image it was working on.
        name: String,
        /// The panic's message.
        message: String,
    },
}

fn share(broken: usize, total: usize, limit: f32) -> String {
    match broken == total {
        true => format!("{broken} of {total} images are broken, which leaves none"),
        false => format!("{broken} of {total} images are broken so far, more than the allowed share of {limit}"),
    }
}

impl DataError {
    pub(crate) fn read(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), action: "read", source }
    }

    pub(crate) fn write(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), action: "write", source }
    }

    pub(crate) fn format(path: &Path, problem: impl Into<String>) -> Self {
        Self::Format { path: path.to_owned(), problem: problem.into() }
    }

    pub(crate) fn split(path: &Path, problem: impl Into<String>) -> Self {
        Self::Split { path: path.to_owned(), problem: problem.into() }
    }
}
