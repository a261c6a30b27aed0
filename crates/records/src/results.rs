//! What a probe measured: one `RUN/results/NAME.json` each.
//!
//! Definitions follow the SDCLR paper's evaluation: All is the mean of class accuracies, Std ("balancedness") the
//! population standard deviation of the three group means. All accuracies are percentages.

use crate::names::{Method, Part, Protocol};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The version written into every result.
pub const RESULT_VERSION: u32 = 1;

/// The result of examining one model once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeResult {
    /// [`RESULT_VERSION`] of the program that wrote it.
    pub version: u32,
    /// How the model was examined.
    pub protocol: Protocol,
    /// What was examined, as a row of a table calls it: `SDCLR`, `untrained`, …
    pub subject: String,
    /// The weights that were examined; absent for raw pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<WeightsRecord>,
    /// Share of test images classified rightly, in percent.
    pub top1: f64,
    /// Share of test images whose class is among the five that the classifier holds most likely, in percent; absent up to five
    /// classes, of nearest neighbours, and in results of older programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top5: Option<f64>,
    /// Accuracy on each class's test images, in percent; null for a class without any. `[C]`
    pub class_accuracy: Vec<Option<f64>>,
    /// The groups' accuracies; absent without a long-tail split to group by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<GroupAccuracy>,
    /// Mean of the class accuracies, in percent.
    pub all: f64,
    /// Population standard deviation of the class accuracies, in percentage points.
    pub class_std: f64,
    /// Class names where the data has them, else empty. `[C]`
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub class_names: Vec<String>,
    /// Images that the probe learned from, broken ones not counted.
    pub n_train: usize,
    /// Images that it was tested on, broken ones not counted.
    pub n_test: usize,
    /// Broken images that were left out, in training, validation and test images together.
    #[serde(default)]
    pub n_skipped: usize,
    /// The epoch of the probe that was reported, from 1; absent where nothing was selected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_epoch: Option<usize>,
    /// The probe's settings (learning rate, epochs, neighbours, …).
    pub settings: BTreeMap<String, serde_json::Value>,
    /// The images that it used.
    #[serde(default)]
    pub data: ProbeData,
}

/// Which weights a probe examined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightsRecord {
    /// How they were trained, or would have been.
    pub method: Method,
    /// The model in words.
    pub model: String,
    /// The file they are from; absent for an untrained network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<PathBuf>,
    /// Epochs of training behind them.
    pub epoch: usize,
    /// Optimizer steps behind them.
    pub step: u64,
    /// The run's seed, from which an untrained network is drawn.
    pub seed: u64,
}

/// Where a probe's images came from; a part is absent where it was not used, or handed over by a program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeData {
    /// Images to learn from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train: Option<ImagesRecord>,
    /// Images to choose the best epoch on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ImagesRecord>,
    /// Images to test on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<ImagesRecord>,
    /// The long tail whose class counts make the groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<ImagesRecord>,
}

/// A set of images by its paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagesRecord {
    /// The folder, list or data set.
    pub source: PathBuf,
    /// Which part of one that comes in parts.
    pub part: Part,
    /// The split that narrows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<PathBuf>,
    /// The folder that the paths of a list are relative to, if not the list's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
    /// Images drawn from each class by the probe's seed; absent where all were used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_class: Option<usize>,
}

/// Accuracies of the three groups of classes, in percent; null where a group has no class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupAccuracy {
    /// Mean accuracy of the classes with many training images.
    pub many: Option<f64>,
    /// Of those between.
    pub medium: Option<f64>,
    /// Of those with few.
    pub few: Option<f64>,
    /// Population standard deviation of the three, in percentage points, if all are there; lower is better balanced.
    pub std: Option<f64>,
    /// Images of each class in the long-tail split that the groups come from. `[C]`
    pub class_counts: Vec<usize>,
    /// Each class's group. `[C]`
    pub class_groups: Vec<Group>,
}

/// A class's place in the long tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// The head.
    Many,
    /// The middle.
    Medium,
    /// The tail.
    Few,
}
