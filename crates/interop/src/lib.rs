//! Other people's files: trained backbones as safetensors with torchvision's and timm's names, and PyTorch's checkpoints.

mod error;
mod export;
mod import;
mod names;
mod npy;
mod torch;

pub use error::ImportError;
pub use export::{ExportError, ExportOptions, ExportSummary, export_safetensors, export_summary};
pub use import::{ImportedMasks, ImportedModel, LinearClassifier, import_masks, import_model};
pub use names::{Branch, torchvision_name};
pub use npy::{npy_f32, npy_header};
