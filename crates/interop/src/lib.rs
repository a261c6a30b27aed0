//! Other people's files: trained backbones as safetensors and PyTorch files with torchvision's and timm's names, and as ONNX;
//! and PyTorch's checkpoints.

mod error;
mod export;
mod import;
mod names;
mod npy;
mod onnx;
mod torch;
mod torch_write;

pub use error::ImportError;
pub use export::{ExportError, ExportHead, ExportOptions, ExportSummary, export_safetensors, export_summary};
pub use import::{ImportedMasks, ImportedModel, LinearClassifier, import_masks, import_model};
pub use names::{Branch, torchvision_name};
pub use npy::{npy_f32, npy_header};
pub use onnx::{export_onnx, onnx_summary};
pub use torch_write::export_pt;
