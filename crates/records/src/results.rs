//! What a probe measured: one `RUN/results/NAME.json` each.
//!
//! Definitions follow the SDCLR paper's evaluation: All is the mean of class accuracies, Std ("balancedness") the
//! population standard deviation of the three group means. All accuracies are percentages.

use crate::names::Protocol;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
    /// Share of test images classified rightly, in percent.
    pub top1: f64,
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
    /// Images that the probe learned from.
    pub n_train: usize,
    /// Images that it was tested on.
    pub n_test: usize,
    /// The epoch of the probe that was reported, from 1; absent where nothing was selected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_epoch: Option<usize>,
    /// The probe's settings (learning rate, epochs, neighbours, …) and the data it used.
    pub settings: BTreeMap<String, serde_json::Value>,
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
