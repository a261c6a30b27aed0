//! Packs: a data set in one file that is mapped into memory, so that training decodes no originals.
//!
//! [`format`](self::format) is the file's layout (docs/pack-format.md has it in words), [`pack`] writes one;
//! [`crate::source::pack`] reads it.

pub(crate) mod format;
mod write;

pub use format::Storage;
pub use write::{PackJob, PackSpec, Packed, estimated_bytes, pack};
