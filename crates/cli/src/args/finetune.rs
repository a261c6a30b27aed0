//! What can be typed after `sdclr eval finetune`.

use super::{AgainArgs, ProbeArgs};
use clap::Args;
use clap::builder::PossibleValuesParser;
use sdclr_records::names::{Freeze, FrozenBn};

/// `sdclr eval finetune`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        sdclr eval finetune run --data cifar-10-batches-py --split few.npy --freeze layer2\n  \
        sdclr eval finetune run --data cifar-10-batches-py --from-scratch\n\n\
        SGD with momentum 0.9. The rate falls to a tenth after 60 and 80 % of the epochs, from scratch above 64 pixels after \
        a third and two thirds. The paper fixes layers and says no more; the rest of the recipe is usual in the field.")]
pub struct FinetuneArgs {
    #[command(flatten)]
    pub probe: ProbeArgs,
    #[command(flatten)]
    pub training: FinetuneTrainingArgs,
}

/// The training of backbone and classifier.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Training")]
pub struct FinetuneTrainingArgs {
    /// Keep the stem and the layers up to this one as they are [default: none]
    #[arg(long, value_name = "LAYER", value_parser = PossibleValuesParser::new(Freeze::NAMES))]
    pub freeze: Option<String>,
    /// Batch norms of fixed layers: eval uses the run's statistics, train the batch's [default: eval]
    #[arg(long, value_name = "MODE", requires = "freeze", conflicts_with = "test_only", value_parser = PossibleValuesParser::new(FrozenBn::NAMES))]
    pub frozen_bn: Option<String>,
    /// Draw all weights anew from --seed instead of taking the run's: the supervised reference
    #[arg(long, conflicts_with = "freeze")]
    pub from_scratch: bool,
    /// Passes over the labelled images [default: 100, above 64 pixels 30; from scratch 200, 90]
    #[arg(long, value_name = "N", conflicts_with = "test_only")]
    pub epochs: Option<usize>,
    /// Images a step [default: 128, above 64 pixels 256]
    #[arg(long, value_name = "N", conflicts_with = "test_only")]
    pub batch_size: Option<usize>,
    /// Learning rate [default: 0.02, from scratch 0.05, above 64 pixels 0.1]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, conflicts_with = "test_only")]
    pub lr: Option<f64>,
    /// Weight decay of all that trains [default: 5e-4, above 64 pixels 1e-4]
    #[arg(long, value_name = "W", allow_negative_numbers = true, conflicts_with = "test_only")]
    pub weight_decay: Option<f64>,
    #[command(flatten)]
    pub again: AgainArgs,
}
