//! What can be typed after `sdclr reproduce` and `sdclr summary`.

use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use sdclr_records::Experiment;
use std::path::PathBuf;

/// `sdclr reproduce`.
#[derive(Debug, Args)]
#[command(
    after_help = "--help shows examples.",
    after_long_help = "Examples:\n  \
        sdclr reproduce cifar10-lt --data cifar-10-batches-py --dry-run\n  \
        sdclr reproduce cifar100-lt --data cifar-100-python --split-dir SDCLR/split --splits 1-3\n  \
        sdclr reproduce fashion-mnist-lt --data fashion-mnist --epochs 20 --probe-epochs 6 --splits 1,2\n\n\
        Per split and method: pre-training, then linear separability, then few-shot. Whatever is done is skipped, and the same \
        command goes on where it was stopped. Without --split-dir the splits are made: same sizes and class counts as the \
        published ones, the same bytes everywhere."
)]
pub struct ReproduceArgs {
    /// Which: cifar10-lt, cifar100-lt, imagenet100-lt, imagenet-lt, or ours by the same protocol, fashion-mnist-lt
    #[arg(value_name = "EXPERIMENT", value_parser = experiment_names(), hide_possible_values = true)]
    pub experiment: String,
    /// The data set: CIFAR's folder, IDX files, or ImageNet's folder with train/ and val/
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// The published split files, in their folders or all in one
    #[arg(long, value_name = "DIR")]
    pub split_dir: Option<PathBuf>,
    /// Folder for splits, runs and the summary [default: sdclr-EXPERIMENT]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// What to train, separated by commas: simclr-balanced, simclr, sdclr [default: all three]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub methods: Vec<String>,
    /// Which splits: 1-3, or 1,4 [default: all]
    #[arg(long, value_name = "LIST")]
    pub splits: Option<String>,
    /// Do one part: pre-training, the probes, or the test of probes that were stored
    #[arg(long, value_enum, value_name = "PART")]
    pub only: Option<OnlyArg>,
    /// Print what would be done and how long it would take, and stop
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub changes: ChangeArgs,
    #[command(flatten)]
    pub machine: MachineChoice,
}

/// What makes it another experiment than the paper's.
#[derive(Debug, Args)]
#[command(next_help_heading = "Departures from the paper (each is said in the results)")]
pub struct ChangeArgs {
    /// Epochs of pre-training; warm-up and cosine scale with them [default: the paper's]
    #[arg(long, value_name = "N")]
    pub epochs: Option<usize>,
    /// Epochs of the linear probe; few-shot has 10/3 of them [default: the paper's 30 and 100]
    #[arg(long, value_name = "N")]
    pub probe_epochs: Option<usize>,
    /// Seed of pre-training and probes [default: the paper's]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Use this share of every class count, to try everything out on few images
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, allow_negative_numbers = true)]
    pub scale: f64,
    /// Set any key of the pre-training config; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub assignments: Vec<String>,
}

/// What computes; none of it is a departure.
#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub struct MachineChoice {
    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,
    /// auto, f32 or bf16
    #[arg(long, value_name = "NUMBERS", default_value = "auto", value_parser = PossibleValuesParser::new(sdclr_records::names::Precision::NAMES))]
    pub precision: String,
    /// Threads that compute; 0 takes every core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Threads that decode and augment; 0 chooses
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub workers: usize,
}

/// One part of an experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnlyArg {
    /// Pre-training
    Pretrain,
    /// Both probes of backbones that are trained
    Eval,
    /// The test of probes that are stored
    Test,
}

/// `sdclr summary`.
#[derive(Debug, Args)]
#[command(
    after_help = "Runs of the same method are averaged as splits of one experiment. Definitions: sdclr summary --definitions"
)]
pub struct SummaryArgs {
    /// Folders of `sdclr reproduce`, run directories with results, or folders of runs
    #[arg(value_name = "DIR", required_unless_present = "definitions")]
    pub paths: Vec<PathBuf>,
    /// Compare runs with this experiment's published rows [default: that of a reproduce folder]
    #[arg(long, value_name = "EXPERIMENT", value_parser = experiment_names(), hide_possible_values = true)]
    pub experiment: Option<String>,
    /// Print Markdown tables
    #[arg(long, conflicts_with = "csv")]
    pub markdown: bool,
    /// Print comma-separated values with full precision
    #[arg(long)]
    pub csv: bool,
    /// Print what each column means
    #[arg(long)]
    pub definitions: bool,
}

/// The names of all experiments.
pub(super) fn experiment_names() -> PossibleValuesParser {
    PossibleValuesParser::new(Experiment::names())
}
