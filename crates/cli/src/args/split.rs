//! What can be typed after `sdclr split`.

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// `sdclr split …`.
#[derive(Debug, Subcommand)]
pub enum SplitCommand {
    /// A long tail: a few classes with many images, many with few
    LongTail(LongTailArgs),
    /// The same number of images of every class: a long tail's balanced counterpart, or a few-shot set
    Balanced(BalancedArgs),
    /// Cut a data set into validation images and the rest
    Holdout(HoldoutArgs),
    /// Every set of one of the paper's experiments
    Paper(PaperArgs),
    /// Check any split against its data set and show what is in it
    Check(CheckArgs),
}

/// From which images, and where to.
#[derive(Debug, Args)]
pub struct SplitFrom {
    /// Labelled images: class folders, a .txt list, CIFAR-10/100 or IDX files
    #[arg(long, value_name = "SRC")]
    pub data: PathBuf,
    /// Draw from only these: .npy indices or a .txt list
    #[arg(long, value_name = "FILE")]
    pub split: Option<PathBuf>,
    /// Leave these out, such as validation images; may be repeated
    #[arg(long, value_name = "FILE")]
    pub exclude: Vec<PathBuf>,
    /// Decides which images, and which class is how frequent; the same file on every machine. Sets drawn with one seed
    /// from the same images nest
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Replace existing files
    #[arg(long)]
    pub overwrite: bool,
}

/// `sdclr split long-tail`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sdclr split long-tail --data photos/ --imbalance-factor 100 --out tail.txt\n  \
    sdclr split long-tail --data cifar-10-batches-py --class-counts cifar10-lt:1 --exclude val.npy --out tail.npy")]
pub struct LongTailArgs {
    #[command(flatten)]
    pub from: SplitFrom,
    /// Shape of the tail
    #[arg(long, value_enum, default_value_t = ShapeArg::Exponential, value_name = "SHAPE")]
    pub shape: ShapeArg,
    /// Images of the largest class [default: as many as the smallest class has]
    #[arg(long, value_name = "N")]
    pub n_max: Option<usize>,
    /// The largest class over the smallest: exponential and step [default: 100]
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    pub imbalance_factor: Option<f64>,
    /// No class has fewer images: pareto [default: 5]
    #[arg(long, value_name = "N")]
    pub n_min: Option<usize>,
    /// Exponent of the pareto shape [default: 6]
    #[arg(long, value_name = "ALPHA", allow_negative_numbers = true)]
    pub alpha: Option<f64>,
    /// Share of the classes that have few images: step [default: 0.5]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub share_of_few: Option<f64>,
    /// Counts by label instead of a shape: 500,40,3 or an experiment's, such as cifar10-lt:2
    #[arg(long, value_name = "COUNTS")]
    pub class_counts: Option<String>,
    /// File to write: .npy for indices, .txt for paths and labels
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// How counts fall from class to class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ShapeArg {
    /// By the same factor from each class to the next, as the paper's CIFAR splits
    Exponential,
    /// As ImageNet-LT
    Pareto,
    /// Many for some classes, few for the others
    Step,
}

/// `sdclr split balanced`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  \
        sdclr split balanced --data photos/ --as-many-as tail.txt --out balanced.txt\n  \
        sdclr split balanced --data cifar-10-batches-py --per-class 45 --exclude val.npy --out few.npy",
    group = ArgGroup::new("size").args(["per_class", "as_many_as"]).required(true)
)]
pub struct BalancedArgs {
    #[command(flatten)]
    pub from: SplitFrom,
    /// Images of every class
    #[arg(long, value_name = "N")]
    pub per_class: Option<usize>,
    /// As many images in all as this split has, rounded down to the same number a class
    #[arg(long, value_name = "FILE")]
    pub as_many_as: Option<PathBuf>,
    /// File to write: .npy for indices, .txt for paths and labels
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `sdclr split holdout`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: sdclr split holdout --data cifar-10-batches-py --per-class 500 --out val.npy --rest train.npy",
    group = ArgGroup::new("size").args(["per_class", "share"]).required(true)
)]
pub struct HoldoutArgs {
    #[command(flatten)]
    pub from: SplitFrom,
    /// Validation images of every class
    #[arg(long, value_name = "N")]
    pub per_class: Option<usize>,
    /// Share of every class's images, rounded, at least one
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub share: Option<f64>,
    /// File for the validation images: .npy for indices, .txt for paths and labels
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// File for all others
    #[arg(long, value_name = "FILE")]
    pub rest: PathBuf,
}

/// `sdclr split paper`.
#[derive(Debug, Args)]
#[command(after_help = "Writes the sets that `sdclr reproduce` uses, under the published files' names. Example:\n  \
        sdclr split paper cifar10-lt --data cifar-10-batches-py --out splits")]
pub struct PaperArgs {
    /// cifar10-lt, cifar100-lt, imagenet100-lt, imagenet-lt or fashion-mnist-lt
    #[arg(value_name = "EXPERIMENT", value_parser = super::reproduce::experiment_names(), hide_possible_values = true)]
    pub experiment: String,
    /// The experiment's data set
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Folder to write to
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Use this share of every class count
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, allow_negative_numbers = true)]
    pub scale: f64,
}

/// `sdclr split check`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: sdclr split check split1_D_i.npy --data cifar-10-batches-py --validation valIdxList.npy"
)]
pub struct CheckArgs {
    /// .npy indices or a .txt list
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The images that it selects from
    #[arg(long, value_name = "SRC")]
    pub data: PathBuf,
    /// Count the images that it shares with this split
    #[arg(long, value_name = "FILE")]
    pub validation: Option<PathBuf>,
}
