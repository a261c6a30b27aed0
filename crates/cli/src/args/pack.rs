//! `sdclr pack`: what can be typed.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// `sdclr pack`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: sdclr pack imagenet/train --split tail.txt --out tail.sdpack",
    after_long_help = "Example: sdclr pack imagenet/train --split tail.txt --out tail.sdpack\n\n\
        The file takes the place of the images in every command: --data tail.sdpack. It holds names, labels, class \
        names and pixels with a checksum each. Images whose shorter side is larger than --shorter-side are resized to \
        it once (bilinear, antialiased), which is what the paper's test images go through anyway. Training crops are \
        then cut from the smaller image and are not those of the paper's recipe, which cuts them from the original. \
        --shorter-side 0 --store raw keeps every pixel."
)]
pub struct PackArgs {
    /// Images: a folder (recursive), a .txt list, CIFAR-10/100, IDX files or another pack
    #[arg(value_name = "SRC")]
    pub source: PathBuf,
    /// The .sdpack file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Resize images with a larger shorter side to it; 0 keeps all sizes
    #[arg(long, value_name = "PIXELS", default_value_t = 256)]
    pub shorter_side: u32,
    /// How pixels are stored
    #[arg(long, value_enum, value_name = "HOW", default_value_t = StoreArg::Raw)]
    pub store: StoreArg,
    /// Quality of --store jpeg, 1 to 100 [default: 95]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub quality: Option<u8>,
    /// Pack only these images: .npy indices or a .txt list
    #[arg(long, value_name = "FILE")]
    pub split: Option<PathBuf>,
    /// Which part of a data set that comes in parts
    #[arg(long, value_name = "PART", default_value = "train", value_parser = clap::builder::PossibleValuesParser::new(sdclr_records::names::Part::NAMES))]
    pub part: String,
    /// Folder that the paths of a .txt list are relative to [default: the list's]
    #[arg(long, value_name = "DIR")]
    pub data_root: Option<PathBuf>,
    /// Threads that decode and resize; 0 takes every core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub workers: usize,
    /// Stop at the first broken image instead of leaving it out
    #[arg(long)]
    pub strict: bool,
    /// Stop when more than this share of the images is broken, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    pub max_broken: f32,
    /// Replace an existing file
    #[arg(long)]
    pub overwrite: bool,
}

/// How a pack stores pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StoreArg {
    /// As they are: exact, nothing to decode, about 0.27 MB an image of 256 pixels
    Raw,
    /// As JPEG: about a fifth of that, decoded in training, not pixel-exact
    Jpeg,
}
