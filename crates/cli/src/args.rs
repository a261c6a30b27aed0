//! What can be typed.

mod bench;
mod export;
mod finetune;
mod import;
mod pack;
mod reproduce;
mod split;

pub use bench::*;
pub use export::*;
pub use finetune::*;
pub use import::*;
pub use pack::*;
pub use reproduce::*;
pub use split::*;

use crate::flags::ConfigFlags;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Pre-train image models by contrast on unlabelled, long-tailed images.
#[derive(Debug, Parser)]
#[command(
    name = "sdclr",
    version,
    about = "Pre-train image models by contrast on unlabelled, long-tailed images",
    long_about = "Pre-trains image backbones without labels, with SimCLR or with SDCLR (Self-Damaging Contrastive \
                  Learning), which leans towards the rare images of a long tail; measures how balanced the result is; \
                  and hands it on.",
    after_help = "Start with: sdclr demo",
    after_long_help = "Examples:\n  \
        sdclr demo\n  \
        sdclr pretrain --data photos/ --out run\n  \
        sdclr pretrain --preset cifar10-lt --data cifar-10-batches-py --split tail.npy --out run\n  \
        sdclr eval linear run --data cifar-10-batches-py\n  \
        sdclr export run --format safetensors --out backbone.safetensors\n\n\
        The settings of pretrain (not --out, --resume and the like) can also be set by an environment variable \
        (SDCLR_EPOCHS=50), a config file (--config) or a preset (--preset); flags win over \
        variables, variables over files, files over presets.\n\n\
        Exit codes: 0 done, 1 failed, 2 wrong usage, 129, 130 and 143 stopped by a closed terminal, Ctrl-C or a kill: \
        after writing a checkpoint, or at once at the second."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub common: Common,
}

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub struct Common {
    /// Print results as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Print nothing but results and errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Print plain lines instead of a bar that redraws itself
    #[arg(long, global = true)]
    pub no_progress: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tell the whole story on bundled real images, in minutes
    Demo(DemoArgs),
    /// Train a backbone on images without using labels
    Pretrain(Box<PretrainArgs>),
    /// Measure a trained backbone on labelled images
    #[command(subcommand)]
    Eval(Box<EvalCommand>),
    /// Run one of the paper's experiments end to end, with the published numbers beside the measured ones
    Reproduce(Box<ReproduceArgs>),
    /// Put many results into one table: means over splits, spreads, the published row
    Summary(SummaryArgs),
    /// Make long-tailed, balanced, few-shot and validation splits, or check one
    #[command(subcommand)]
    Split(SplitCommand),
    /// Write the features of images to a file
    Embed(EmbedArgs),
    /// Write a trained backbone for other tools
    Export(ExportArgs),
    /// Make a run directory of a checkpoint that PyTorch wrote
    Import(ImportArgs),
    /// Say what a data set, a run or a checkpoint is
    Inspect(InspectArgs),
    /// Write a data set once into one file that trains without decoding the originals
    Pack(PackArgs),
    /// Measure how fast this machine trains, beside what it could do at most
    Bench(Box<BenchArgs>),
    /// Say what this machine offers and what will be used
    Doctor,
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page, or write those of all commands
    Man(ManArgs),
}

/// `sdclr demo`.
#[derive(Debug, Args)]
#[command(
    after_help = "Trains SimCLR and SDCLR on a bundled long-tailed subset of Fashion-MNIST, probes both beside an \
                        untrained network and raw pixels, and prints one table."
)]
pub struct DemoArgs {
    /// Folder for the runs; must be empty or new [default: sdclr-demo, or the first free sdclr-demo-N]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Passes over the images, for each method [default: the demo preset's]
    #[arg(long, value_name = "N")]
    pub epochs: Option<usize>,
    /// Everything random derives from it; the same result with the same number of threads [default: the demo preset's]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Threads that compute; 0 takes every core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
}

/// `sdclr pretrain`.
#[derive(Debug, Args)]
#[command(
    after_help = "--help shows every flag.",
    after_long_help = "Examples:\n  \
        sdclr pretrain --data photos/ --out run --epochs 200\n  \
        sdclr pretrain --preset cifar100-lt --data cifar-100-python --split tail.npy --out run\n  \
        sdclr pretrain --data photos/ --out run --method simclr --set augment.jitter.hue=0.05\n  \
        sdclr pretrain --out run --resume\n\n\
        The run directory holds config.toml (every setting), metrics.jsonl, log.txt and checkpoints/."
)]
pub struct PretrainArgs {
    /// Run directory to write; must be empty or new
    #[arg(long, value_name = "RUN")]
    pub out: PathBuf,
    /// Start from a named recipe: demo, cifar10-lt, cifar100-lt, imagenet100-lt, imagenet-lt, fashion-mnist-lt
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(sdclr_records::presets::names()), hide_possible_values = true)]
    pub preset: Option<String>,
    /// Read settings from a TOML file, such as another run's config.toml
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set any config key, such as augment.flip_p=0; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub assignments: Vec<String>,
    /// Go on with the run in --out from its newest checkpoint
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Replace the run in --out, its probes and results included
    #[arg(long)]
    pub overwrite: bool,
    #[command(flatten)]
    pub flags: ConfigFlags,
}

/// `sdclr eval …`.
#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// Train a linear classifier on the frozen backbone
    Linear(LinearArgs),
    /// Train a linear classifier on a few labelled images a class
    FewShot(FewShotArgs),
    /// Let the nearest labelled images vote; nothing is trained
    Knn(KnnArgs),
    /// Train the backbone on, with a classifier, on labelled images; or both from scratch
    Finetune(FinetuneArgs),
}

/// What every probe needs.
#[derive(Debug, Clone, Args)]
pub struct ProbeArgs {
    /// Run directory or checkpoint file
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    #[command(flatten)]
    pub data: ProbeDataArgs,
    /// Name of the result, written to RUN/results/NAME.json [default: the probe's, and the checkpoint's if not the last]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Everything random derives from it
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub machine: MachineArgs,
}

/// Which labelled images a probe learns from and is tested on.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Data")]
pub struct ProbeDataArgs {
    /// Labelled images to learn from: class folders, a .txt list, a pack, CIFAR-10/100 or IDX files
    #[arg(long, value_name = "SRC")]
    pub data: PathBuf,
    /// Folder that the paths of .txt lists given as --data or --test are relative to [default: each list's]
    #[arg(long, value_name = "DIR")]
    pub data_root: Option<PathBuf>,
    /// Learn from only these: .npy indices or a .txt list
    #[arg(long, value_name = "FILE")]
    pub split: Option<PathBuf>,
    /// Choose the best epoch on these images of --data [default: none, the last epoch counts]
    #[arg(long, value_name = "FILE")]
    pub val_split: Option<PathBuf>,
    /// Labelled images to test on [default: the test part of --data, if it has one]
    #[arg(long, value_name = "SRC")]
    pub test: Option<PathBuf>,
    /// Folder for the list given as --test, if it is another one than --data-root
    #[arg(long, value_name = "DIR", requires = "test")]
    pub test_root: Option<PathBuf>,
    /// Test on only these
    #[arg(long, value_name = "FILE")]
    pub test_split: Option<PathBuf>,
    /// Long-tail split of --data whose class counts make Many, Medium and Few [default: the run's training images]
    #[arg(long, value_name = "FILE")]
    pub tail: Option<PathBuf>,
    /// How class counts make groups [default: thirds up to 100 classes and 64 pixels, else thresholds]
    #[arg(long, value_name = "RULE", value_enum)]
    pub groups: Option<GroupsArg>,
}

/// How classes fall into Many, Medium and Few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GroupsArg {
    /// Thirds of the classes by count, as for CIFAR
    Thirds,
    /// Above 100 images, 20 to 100, below 20, as for ImageNet
    Thresholds,
}

/// What computes, for commands that do not train a backbone.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,
    /// Threads that compute; 0 takes every core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Threads that decode and augment; 0 chooses
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub workers: usize,
}

/// The classifier's training.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Classifier")]
pub struct ClassifierArgs {
    /// Passes over the labelled images [default: 100, the paper's linear probe 30]
    #[arg(long, value_name = "N", conflicts_with = "test_only")]
    pub epochs: Option<usize>,
    /// Images a step [default: 128, above 64 pixels 512]
    #[arg(long, value_name = "N", conflicts_with = "test_only")]
    pub batch_size: Option<usize>,
    /// Learning rate [default: 30, cached features 0.1]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, conflicts_with = "test_only")]
    pub lr: Option<f64>,
    #[command(flatten)]
    pub again: AgainArgs,
}

/// Testing what was trained before.
#[derive(Debug, Clone, Args)]
pub struct AgainArgs {
    /// Train nothing: test what an earlier probe of this name left in RUN/probes
    #[arg(long)]
    pub test_only: bool,
    /// With --test-only: the stored probe, where --name is another result's [default: --name]
    #[arg(long, value_name = "NAME", requires = "test_only")]
    pub stored: Option<String>,
}

/// `sdclr eval linear`.
#[derive(Debug, Args)]
#[command(after_help = "Example: sdclr eval linear run --data cifar-10-batches-py --tail tail.npy")]
pub struct LinearArgs {
    #[command(flatten)]
    pub probe: ProbeArgs,
    #[command(flatten)]
    pub classifier: ClassifierArgs,
    /// paper: augmented images through the frozen network. cached: each image's features once; much faster
    #[arg(long, value_enum, default_value_t = LinearProtocol::Cached, value_name = "PROTOCOL")]
    pub protocol: LinearProtocol,
}

/// The two linear probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LinearProtocol {
    /// Augmented images through the frozen network, as in the paper
    Paper,
    /// Features computed once
    Cached,
}

/// `sdclr eval few-shot`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("shots").args(["per_class", "split"]).required(true))]
pub struct FewShotArgs {
    #[command(flatten)]
    pub probe: ProbeArgs,
    #[command(flatten)]
    pub classifier: ClassifierArgs,
    /// Draw this many labelled images a class, instead of naming them by --split
    #[arg(long, value_name = "N")]
    pub per_class: Option<usize>,
}

/// `sdclr eval knn`.
#[derive(Debug, Args)]
#[command(mut_arg("val_split", |arg| arg.hide(true)))]
pub struct KnnArgs {
    #[command(flatten)]
    pub probe: ProbeArgs,
    /// Neighbours that vote
    #[arg(long, value_name = "K", default_value_t = 20)]
    pub neighbours: usize,
}

/// `sdclr embed`.
#[derive(Debug, Args)]
#[command(after_help = "Writes float32 features [images, channels] to E.npy and their paths and labels to E.csv.")]
pub struct EmbedArgs {
    /// Run directory or checkpoint file
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Images: a folder, a .txt list, a pack, CIFAR-10/100 or IDX files
    #[arg(long, value_name = "SRC")]
    pub data: PathBuf,
    /// Folder that the paths of a .txt list are relative to [default: the list's]
    #[arg(long, value_name = "DIR")]
    pub data_root: Option<PathBuf>,
    /// Use only these images: .npy indices or a .txt list
    #[arg(long, value_name = "FILE")]
    pub split: Option<PathBuf>,
    /// Which part of a data set that comes in parts
    #[arg(long, value_name = "PART", default_value = "train", value_parser = clap::builder::PossibleValuesParser::new(sdclr_records::names::Part::NAMES))]
    pub part: String,
    /// The .npy file to write; the paths and labels go beside it, as .csv
    #[arg(long, value_name = "E.npy")]
    pub out: PathBuf,
    /// Replace existing files
    #[arg(long)]
    pub overwrite: bool,
    #[command(flatten)]
    pub machine: MachineArgs,
}

/// `sdclr inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A data set, a run, a folder of runs or of reproduce, or a file: a checkpoint, an export, results, metrics, features, a split
    #[arg(value_name = "SRC|RUN|FILE")]
    pub path: PathBuf,
    /// Folder that the paths of a .txt list are relative to [default: the list's]
    #[arg(long, value_name = "DIR")]
    pub data_root: Option<PathBuf>,
    /// Look at only these images of a data set: .npy indices or a .txt list
    #[arg(long, value_name = "FILE")]
    pub split: Option<PathBuf>,
    /// Which part of a data set that comes in parts
    #[arg(long, value_name = "PART", default_value = "train", value_parser = clap::builder::PossibleValuesParser::new(sdclr_records::names::Part::NAMES))]
    pub part: String,
    /// Decode every image instead of a thousand spread evenly
    #[arg(long)]
    pub all: bool,
}

/// `sdclr completions`.
#[derive(Debug, Args)]
#[command(after_help = "Example: sdclr completions bash > ~/.local/share/bash-completion/completions/sdclr")]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// `sdclr man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write one page a command into this folder instead of printing the first
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}
