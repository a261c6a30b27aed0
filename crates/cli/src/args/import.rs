//! What can be typed after `sdclr import`.

use clap::Args;
use clap::builder::PossibleValuesParser;
use sdclr_records::names::Method;
use std::path::PathBuf;

/// `sdclr import`.
#[derive(Debug, Args)]
#[command(
    after_help = "--help shows examples.",
    after_long_help = "Reads .pt and .pth files of torch.save (both containers; nothing inside is run) and .safetensors files: \
                       models of the published SDCLR code, torchvision and timm ResNets. The network is inferred.\n\n\
                       Examples:\n  \
        sdclr import model.pt --out run\n  \
        sdclr import model.pt --mask mask_2000.pt --probe best_model.pt --out run\n  \
        sdclr import resnet50.pth --out run\n  \
        sdclr pretrain --init-from run --data photos/ --out further"
)]
pub struct ImportArgs {
    /// Checkpoint of a model
    #[arg(value_name = "CKPT")]
    pub checkpoint: PathBuf,
    /// Run directory to write; must be empty or new
    #[arg(long, value_name = "RUN")]
    pub out: PathBuf,
    /// Side of the images that the model was trained on, which no file tells [default: 32, with the ImageNet stem 224]
    #[arg(long, value_name = "PIXELS")]
    pub image_size: Option<usize>,
    /// What it was trained with [default: inferred from its batch norms and names]
    #[arg(long, value_name = "METHOD", value_parser = PossibleValuesParser::new(Method::NAMES))]
    pub method: Option<String>,
    /// Masks of the pruned branch, as mask_N.pt of the published code
    #[arg(long, value_name = "FILE")]
    pub mask: Option<PathBuf>,
    /// Linear classifier on this model's features, as best_model.pt of the published code
    #[arg(long, value_name = "FILE")]
    pub probe: Option<PathBuf>,
    /// Name of the classifier, written to RUN/probes/NAME.safetensors
    #[arg(long, value_name = "NAME", default_value = "linear-paper")]
    pub probe_name: String,
    /// Replace the run in --out
    #[arg(long)]
    pub overwrite: bool,
}
