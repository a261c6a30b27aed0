//! The calls into the library, each in one place.

use crate::progress::Observer;
use sdclr::metrics::GroupRule;
use sdclr::run_dir::RunWriter;
use sdclr::signals::{StopFlag, StopSignal};
use sdclr_data::Dataset;
use sdclr_records::names::Device;
use sdclr_records::{ProbeConfig, ProbeResult, RunConfig};
use std::path::PathBuf;

/// How a long job ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// All of it is done.
    Finished {
        /// Mean loss of the last epoch.
        loss: f64,
        /// Steps done.
        step: u64,
    },
    /// Asked to stop; a checkpoint is written.
    Stopped(StopSignal),
}

/// A pre-training run, ready to go.
pub struct PretrainJob<'a> {
    /// Every setting.
    pub config: &'a RunConfig,
    /// The images.
    pub dataset: Dataset,
    /// Where to write; a resumed run has its checkpoints there.
    pub writer: RunWriter,
    /// Whether to go on from `checkpoints/last.safetensors` if it is there.
    pub resume: bool,
    /// Looked at between steps.
    pub stop: &'a StopFlag,
    /// Told of every step.
    pub observer: &'a mut dyn Observer,
}

/// What computes outside a training run.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// On what.
    pub device: Device,
    /// Threads that compute; 0 takes every core.
    pub threads: usize,
    /// Threads that decode; 0 chooses.
    pub workers: usize,
}

/// What is examined.
pub struct Subject {
    /// The config that says what network it is, and what its images look like.
    pub config: RunConfig,
    /// Its weights.
    pub weights: Weights,
}

/// Where a subject's weights come from.
pub enum Weights {
    /// A checkpoint of the config's network.
    Trained(PathBuf),
    /// The config's network as it is before the first step.
    Untrained,
    /// No network: the pixels themselves are the features.
    RawPixels,
}

/// A probe, ready to go.
pub struct ProbeJob<'a> {
    /// What is examined.
    pub subject: &'a Subject,
    /// How.
    pub probe: ProbeConfig,
    /// Labelled images to learn from.
    pub train: Dataset,
    /// Labelled images to choose the best epoch on.
    pub validation: Option<Dataset>,
    /// Labelled images to test on.
    pub test: Dataset,
    /// Class counts of the long tail, `[C]`, and the rule that groups by them.
    pub tail: Option<(Vec<usize>, GroupRule)>,
    /// On what.
    pub machine: Machine,
    /// Looked at between batches.
    pub stop: &'a StopFlag,
    /// Told of progress.
    pub observer: &'a mut dyn Observer,
}

/// Pre-trains.
///
/// # Errors
/// Whatever goes wrong on the way.
pub fn pretrain(_job: PretrainJob<'_>) -> anyhow::Result<Outcome> {
    anyhow::bail!("pre-training is not wired yet")
}

/// Examines a trained backbone.
///
/// # Errors
/// Whatever goes wrong on the way.
pub fn probe(_job: ProbeJob<'_>) -> anyhow::Result<Result<ProbeResult, StopSignal>> {
    anyhow::bail!("probing is not wired yet")
}

/// The backbone's features of every image, row-major `[n_images, width]`, and their width.
///
/// # Errors
/// Whatever goes wrong on the way.
pub fn embed(_subject: &Subject, _images: &Dataset, _machine: Machine) -> anyhow::Result<(Vec<f32>, usize)> {
    anyhow::bail!("embedding is not wired yet")
}
