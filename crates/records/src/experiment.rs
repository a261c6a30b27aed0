//! The paper's experiments as data: each preset file holds a recipe, and in `[experiment]` what is trained on which images,
//! how it is judged, and what was published.
//!
//! Source: Jiang et al., ICML 2021, sections 4.1 and 4.2, and the scripts of its published implementation.

use crate::error::{Error, Result, hint};
use crate::names::{ImageSet, Method, Protocol};
use crate::presets::PRESETS;
use crate::probe::ProbeConfig;
use serde::{Deserialize, Serialize};

/// One experiment of the paper, or ours by the same protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// The preset's name: `cifar10-lt`.
    #[serde(default)]
    pub name: String,
    /// Its name in papers: `CIFAR-10-LT`.
    pub title: String,
    /// Paper, section and script.
    pub source: String,
    /// Which images it needs.
    pub images: ImageSet,
    /// Their number of classes.
    pub n_classes: usize,
    /// Long tails that it is repeated on.
    pub n_splits: usize,
    /// How classes are grouped.
    pub groups: Grouping,
    /// Images of each class that are kept to choose the best epoch on.
    pub validation_per_class: usize,
    /// Images of each class that the linear probe learns from; absent: all but the validation images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_per_class: Option<usize>,
    /// Images of each class in the balanced counterpart of a long tail.
    pub balanced_per_class: usize,
    /// Labelled images of each class in the few-shot set.
    pub few_shot_per_class: usize,
    /// The long tail.
    pub tail: Tail,
    /// What is trained.
    pub arms: Vec<Arm>,
    /// The linear probe on all labels.
    pub linear: ProbeRecipe,
    /// The probe on few labels.
    pub few_shot: ProbeRecipe,
    /// Where the published splits have which set; `{split}` stands for the split's number.
    pub files: SplitFiles,
    /// Hours of one SDCLR pre-training.
    pub hours: f64,
    /// On what machine.
    pub hours_on: String,
    /// What was published.
    #[serde(default)]
    pub published: Vec<PublishedRow>,
}

/// How classes fall into Many, Medium and Few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grouping {
    /// Thirds of the classes by their counts.
    Thirds,
    /// Above 100 images, 20 to 100, below 20.
    Thresholds,
}

/// Class counts of the long tails.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Tail {
    /// Of each split, by label.
    Named {
        /// `[n_splits][n_classes]`
        class_counts: Vec<Vec<usize>>,
    },
    /// `n_i = int(n_max · imbalance_factor^(−i/(C−1)))`, dealt to the classes in an order drawn for each split.
    Exponential {
        /// The largest count.
        n_max: usize,
        /// The largest count over the smallest.
        imbalance_factor: f64,
    },
}

/// One thing that is trained: a method on the long tail or on its balanced counterpart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// `simclr-balanced`, `simclr`, `sdclr`: also the name of its run directory.
    pub name: String,
    /// Its title in tables.
    pub title: String,
    /// SimCLR or SDCLR.
    pub method: Method,
    /// Whether it trains on the balanced counterpart.
    #[serde(default)]
    pub balanced: bool,
    /// Whether the paper has no recipe for it, so that the values are ours.
    #[serde(default)]
    pub unpublished: bool,
}

/// A linear classifier's training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeRecipe {
    /// Passes over the labelled images.
    pub epochs: usize,
    /// Images a step.
    pub batch_size: usize,
    /// Learning rate of SGD.
    pub lr: f64,
    /// Its momentum.
    pub momentum: f64,
    /// Its weight decay.
    pub weight_decay: f64,
    /// Last epochs before the rate is multiplied by `gamma`.
    pub milestones: Vec<usize>,
    /// The factor.
    pub gamma: f64,
    /// Epochs between looks at the validation images.
    pub select_every_epochs: usize,
    /// Whether the best epoch is chosen by top-5 instead of top-1 accuracy.
    pub select_by_top5: bool,
}

/// Paths below the folder of splits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitFiles {
    /// What the linear probe learns from.
    pub train: String,
    /// What the best epoch is chosen on.
    pub validation: String,
    /// What is tested on; absent where the data set has a test part of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<String>,
    /// D_i.
    pub long_tail: String,
    /// D_b.
    pub balanced: String,
    /// S_b.
    pub few_shot: String,
}

/// A row of the paper's tables, in percent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedRow {
    /// Which arm it is of.
    pub arm: String,
    /// `linear-paper` or `few-shot`.
    pub protocol: Protocol,
    /// Mean accuracy of the Many classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub many: Option<f64>,
    /// Of the Medium classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub medium: Option<f64>,
    /// Of the Few classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub few: Option<f64>,
    /// Standard deviation of the three.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<f64>,
    /// Mean of the class accuracies.
    pub all: f64,
    /// Which of `many`, `medium`, `few`, `std` and `all` are from memory, not from a page at hand.
    pub recalled: Vec<String>,
    /// Where the others are from.
    pub source: String,
}

impl Experiment {
    /// The experiment of a preset.
    ///
    /// # Errors
    /// [`Error::UnknownName`] with a did-you-mean; [`Error::Toml`] for a defect of the file.
    pub fn named(name: &str) -> Result<Self> {
        Self::all()?.into_iter().find(|experiment| experiment.name == name).ok_or_else(|| Error::UnknownName {
            what: "experiment",
            name: name.to_owned(),
            hint: hint(name, Self::names()),
        })
    }

    /// The names of all experiments, in the order of the presets.
    pub fn names() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().filter(|(_, text)| text.contains("\n[experiment]\n")).map(|(name, _)| *name)
    }

    /// Every experiment, in the order of the presets.
    ///
    /// # Errors
    /// [`Error::Toml`] for a defect of a file.
    pub fn all() -> Result<Vec<Self>> {
        let parse = |(name, text): &(&str, &str)| -> Result<Option<Self>> {
            let wrong = |e: toml::de::Error| Error::Toml {
                origin: format!("preset {name}"),
                message: e.message().replace('\n', " "),
            };
            let table: toml::Table = text.parse().map_err(wrong)?;
            let Some(value) = table.get("experiment") else { return Ok(None) };
            let experiment: Self = value.clone().try_into().map_err(wrong)?;
            Ok(Some(Self { name: (*name).to_owned(), ..experiment }))
        };
        PRESETS.iter().filter_map(|preset| parse(preset).transpose()).collect()
    }

    /// The arm of this name.
    ///
    /// # Errors
    /// [`Error::UnknownName`] with a did-you-mean.
    pub fn arm(&self, name: &str) -> Result<&Arm> {
        self.arms.iter().find(|arm| arm.name == name).ok_or_else(|| Error::UnknownName {
            what: "method of this experiment",
            name: name.to_owned(),
            hint: hint(name, self.arms.iter().map(|arm| arm.name.as_str())),
        })
    }

    /// What was published of an arm and protocol.
    pub fn published(&self, arm: &str, protocol: Protocol) -> Option<&PublishedRow> {
        self.published.iter().find(|row| row.arm == arm && row.protocol == protocol)
    }

    /// The settings of one of its two probes, for a model of this image size.
    ///
    /// # Panics
    /// For a protocol other than the paper's two.
    pub fn probe(&self, protocol: Protocol, image_size: usize, seed: u64) -> ProbeConfig {
        let recipe = match protocol {
            Protocol::LinearPaper => &self.linear,
            Protocol::FewShot => &self.few_shot,
            other => panic!("{other} is no protocol of the paper"),
        };
        ProbeConfig {
            epochs: recipe.epochs,
            batch_size: recipe.batch_size,
            lr: recipe.lr,
            momentum: recipe.momentum,
            weight_decay: recipe.weight_decay,
            milestones: recipe.milestones.clone(),
            gamma: recipe.gamma,
            select_every_epochs: recipe.select_every_epochs,
            select_by_top5: recipe.select_by_top5,
            ..ProbeConfig::new(protocol, image_size, seed)
        }
    }
}

impl PublishedRow {
    /// Whether a value of this row is from memory.
    pub fn is_recalled(&self, field: &str) -> bool {
        self.recalled.iter().any(|recalled| recalled == field)
    }
}

#[cfg(test)]
#[path = "experiment_tests.rs"]
mod tests;
