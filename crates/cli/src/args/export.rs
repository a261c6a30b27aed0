//! What can be typed after `sdclr export`.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// `sdclr export`.
#[derive(Debug, Args)]
#[command(
    after_help = "safetensors and pt: names and shapes are torchvision's and timm's; pixels in [0, 1] are to be normalised by the \
                        mean and std in the metadata of a safetensors file. onnx: takes pixels in [0, 1] and normalises them \
                        itself. A classifier is that of a probe that eval linear, few-shot or finetune has left in the run.\n\n\
                        Examples:\n  \
        sdclr export run --out backbone.onnx\n  \
        sdclr export run --probe finetune --out classifier.onnx"
)]
pub struct ExportArgs {
    /// Run directory or checkpoint file
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// File format [default: what the ending of --out says]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub format: Option<ExportFormat>,
    /// File to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Whose batch norms; the pruned branch's weights are masked
    #[arg(long, value_enum, default_value_t = BranchArg::Dense, value_name = "BRANCH")]
    pub branch: BranchArg,
    /// Keep the projection head, as projection_head.* (onnx: also the output embedding)
    #[arg(long)]
    pub with_head: bool,
    /// With the classifier of RUN/probes/NAME, as fc.* (onnx: also the output logits); a fine-tuned one with its own backbone
    #[arg(long, value_name = "NAME", conflicts_with_all = ["branch", "with_head"])]
    pub probe: Option<String>,
    /// Replace an existing file
    #[arg(long)]
    pub overwrite: bool,
}

/// What to export to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// Tensors under torchvision's names
    Safetensors,
    /// The same tensors as a state dict for torch.load
    Pt,
    /// A model for ONNX runtimes, from pixels to features and what else is asked for
    Onnx,
}

/// One of the two branches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BranchArg {
    /// The model
    Dense,
    /// Its damaged copy
    Pruned,
}
