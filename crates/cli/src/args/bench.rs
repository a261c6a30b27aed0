//! What can be typed after `sdclr bench`.

use crate::flags::{BenchFlags, DATA, METHOD, OPTIMIZER, VIEWS};
use clap::{Arg, Args, Subcommand};
use std::num::NonZeroUsize;

/// `sdclr bench …`.
#[derive(Debug, Args)]
#[command(
    after_help = "Alone it runs every part for a few seconds. Images are made up, but for those of data and probe with --data.\n\n\
                        Examples:\n  \
        sdclr bench\n  \
        sdclr bench layers --model resnet50 --image-size 224 --batch-size 16\n  \
        sdclr bench step --against 'python peer.py --batch-size 128'"
)]
pub struct BenchArgs {
    /// One part only
    #[command(subcommand)]
    pub command: Option<BenchCommand>,
    #[command(flatten)]
    pub flags: BenchFlags,
}

/// The parts of `sdclr bench`.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Time training steps, as pre-training runs them
    Step(BenchStepArgs),
    /// Time every operation of a step, beside the least time that the machine allows
    Layers(BenchLayersArgs),
    /// Time each convolution of the model by itself
    Convs(BenchConvsArgs),
    /// Time augmentation on one core, and the loader
    Data(BenchDataArgs),
    /// Time features and the linear head of eval linear
    Probe(BenchProbeArgs),
}

/// Another program to compare with.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Comparison")]
pub struct AgainstArgs {
    /// Run this by the shell in turn with our own and compare what its last JSON line says
    #[arg(long, value_name = "COMMAND")]
    pub against: Option<String>,
    /// Turns of each
    #[arg(long, value_name = "N", default_value_t = 3, requires = "against")]
    pub rounds: usize,
}

/// Hides flags that only images have a use for.
fn without_images(arg: Arg) -> Arg {
    let is_of_images = matches!(arg.get_help_heading(), Some(DATA | VIEWS)) && arg.get_id() != "image-size";
    if is_of_images { arg.hide(true) } else { arg }
}

/// Hides flags that only training has a use for.
fn without_training(arg: Arg) -> Arg {
    let is_of_training = matches!(arg.get_help_heading(), Some(VIEWS | METHOD | OPTIMIZER));
    let is_of_a_step = ["head-layers", "head-dim", "batch-size"].contains(&arg.get_id().as_str());
    if is_of_training || is_of_a_step { arg.hide(true) } else { arg }
}

/// `sdclr bench step`.
#[derive(Debug, Args)]
#[command(
    after_help = "The other program of --against prints a JSON line with samples_per_s; sdclr bench step --json does too.\n\n\
                  Example: sdclr bench step --model resnet18 --image-size 32 --batch-size 128 --json",
    mut_args(without_images)
)]
pub struct BenchStepArgs {
    /// Steps that are timed, after one that is not; in each round
    #[arg(long, value_name = "N", default_value = "5")]
    pub steps: NonZeroUsize,
    #[command(flatten)]
    pub against: AgainstArgs,
    #[command(flatten)]
    pub flags: BenchFlags,
}

/// `sdclr bench layers`.
#[derive(Debug, Args)]
#[command(
    after_help = "The floor of an operation is the longer of its arithmetic at the peak and of its memory traffic at the \
                        bandwidth, with every operand read once and every result written once. What is still in a cache \
                        can be faster, and so can convolutions by products at points: their GFLOP/s count the direct way's \
                        multiplications, of which those of 3 × 3 need a quarter on vectors, or nine sixteenths with \
                        stride 2, in bf16 for the gradients only.",
    mut_args(without_images)
)]
pub struct BenchLayersArgs {
    /// Steps that are timed, after one that is not
    #[arg(long, value_name = "N", default_value = "3")]
    pub steps: NonZeroUsize,
    #[command(flatten)]
    pub flags: BenchFlags,
}

/// `sdclr bench convs`.
#[derive(Debug, Args)]
#[command(
    after_help = "GFLOP/s count the multiplications of the direct way, whatever way is taken: they can exceed the peak. --json \
                        prints a line a shape. The other program of --against prints JSON lines with shape, forward, \
                        backward_data and backward_weight, in GFLOP/s; sdclr bench convs --json does too.",
    mut_args(without_images)
)]
pub struct BenchConvsArgs {
    /// Time this convolution instead of the model's, as 64,128,3,2,32; may be repeated
    #[arg(long, value_name = "CIN,COUT,KERNEL,STRIDE,SIZE")]
    pub shape: Vec<String>,
    /// Share of the weights that is pruned, drawn at random: times the damaged branch's convolutions
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub pruned: f64,
    /// Seconds for each pass of each shape
    #[arg(long, value_name = "S", default_value_t = 0.5)]
    pub seconds: f64,
    #[command(flatten)]
    pub against: AgainstArgs,
    #[command(flatten)]
    pub flags: BenchFlags,
}

/// `sdclr bench data`.
#[derive(Debug, Args)]
#[command(after_help = "Without --data the images are made up and lie decoded in memory.")]
pub struct BenchDataArgs {
    /// Seconds for each measurement
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    pub seconds: f64,
    #[command(flatten)]
    pub flags: BenchFlags,
}

/// `sdclr bench probe`.
#[derive(Debug, Args)]
#[command(
    after_help = "The other program of --against prints a JSON line with features_images_per_s; sdclr bench probe --json does \
                        too. The head is not compared.",
    mut_args(without_training)
)]
pub struct BenchProbeArgs {
    /// Images whose features are computed, over and over
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub images: usize,
    /// Seconds for the features; in each round
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    pub seconds: f64,
    #[command(flatten)]
    pub against: AgainstArgs,
    #[command(flatten)]
    pub flags: BenchFlags,
}
