//! How a trained model is examined: the settings of the linear, few-shot and nearest-neighbour probes.
//!
//! Source: the SDCLR paper's evaluation as its published code runs it. That code steps CIFAR's schedule before the
//! epoch, so its "decay at 10 and 20" lowers the rate after epochs 9 and 19; milestones here say after which epoch.

use crate::augment::Augmentation;
use crate::error::{Error, Problem, Result};
use crate::fine_tuning::{self, FineTuning};
use crate::names::Protocol;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Images up to this side, in pixels, are probed by CIFAR's recipe, larger ones by ImageNet's.
const LARGEST_SMALL_IMAGE_PX: usize = 64;

/// A probe's settings. Those of the classifier mean nothing to kNN, and `neighbours` nothing to the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeConfig {
    /// Which probe.
    pub protocol: Protocol,
    /// Everything random derives from it.
    pub seed: u64,
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
    /// Epochs after which the rate is multiplied by `gamma`.
    pub milestones: Vec<usize>,
    /// The factor.
    pub gamma: f64,
    /// Standard deviation of the classifier's first weights; its biases begin at 0.
    pub init_std: f64,
    /// Epochs between looks at the validation images.
    pub select_every_epochs: usize,
    /// Whether the best epoch is chosen by top-5 instead of top-1 accuracy.
    pub select_by_top5: bool,
    /// Neighbours that vote in kNN.
    pub neighbours: usize,
    /// How labelled images become views.
    pub augment_train: Augmentation,
    /// How validation and test images become views.
    pub augment_test: Augmentation,
    /// Which layers stay as they are where the backbone is trained too; absent where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fine_tuning: Option<FineTuning>,
}

impl ProbeConfig {
    /// The defaults of a protocol for a model of this image size.
    pub fn new(protocol: Protocol, image_size: usize, seed: u64) -> Self {
        let small = image_size <= LARGEST_SMALL_IMAGE_PX;
        let few_shot = protocol == Protocol::FewShot;
        // Training on cached, standardised features is ours: a rate that suits them, for long enough to settle.
        let cached = matches!(protocol, Protocol::LinearCached | Protocol::RawPixels);
        let mut milestones = match () {
            () if cached => vec![60, 80],
            () if few_shot => vec![40, 60],
            () => vec![10, 20],
        };
        if small && !cached {
            milestones.iter_mut().for_each(|epoch| *epoch -= 1);
        }
        let select_every_epochs = match (small, few_shot) {
            (true, false) => 1,
            (true, true) => 5,
            (false, false) => 2,
            (false, true) => 10,
        };
        let (mut augment_train, augment_test) = if small {
            (Augmentation::cifar_probe_train(), Augmentation::cifar_test())
        } else {
            (Augmentation::imagenet_probe_train(), Augmentation::imagenet_test())
        };
        if matches!(protocol, Protocol::LinearCached | Protocol::Knn | Protocol::RawPixels) {
            augment_train = augment_test.clone();
        }
        let mut probe = Self {
            protocol,
            seed,
            epochs: if few_shot || cached { 100 } else { 30 },
            batch_size: if small { 128 } else { 512 },
            lr: if cached { 0.1 } else { 30.0 },
            momentum: 0.9,
            weight_decay: 0.0,
            milestones,
            gamma: 0.1,
            init_std: 0.01,
            select_every_epochs,
            select_by_top5: !small,
            neighbours: 20,
            augment_train,
            augment_test,
            fine_tuning: None,
        };
        if matches!(protocol, Protocol::Finetune | Protocol::Supervised) {
            fine_tuning::set_recipe(&mut probe, small);
        }
        probe
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Invalid`] with one [`Problem`] per bad value.
    pub fn validate(&self) -> Result<()> {
        let mut problems = Vec::new();
        let mut check = |holds: bool, key: &'static str, value: String, advice: &str| {
            if !holds {
                problems.push(Problem { key, value, advice: advice.to_owned() });
            }
        };
        check(self.epochs >= 1, "--epochs", self.epochs.to_string(), "must be at least 1");
        // Where the backbone trains, its batch norms need two images.
        let (least, advice) =
            if self.fine_tuning.is_some() { (2, "must be at least 2") } else { (1, "must be at least 1") };
        check(self.batch_size >= least, "--batch-size", self.batch_size.to_string(), advice);
        check(self.lr > 0.0 && self.lr.is_finite(), "--lr", self.lr.to_string(), "must be a number above 0");
        let momentum = (0.0..1.0).contains(&self.momentum);
        check(momentum, "momentum", self.momentum.to_string(), "must be at least 0 and below 1");
        let decay = self.weight_decay >= 0.0 && self.weight_decay.is_finite();
        check(decay, "--weight-decay", self.weight_decay.to_string(), "must be a number, 0 or above");
        let gamma = self.gamma > 0.0 && self.gamma.is_finite();
        check(gamma, "gamma", self.gamma.to_string(), "must be a number above 0");
        let init = self.init_std >= 0.0 && self.init_std.is_finite();
        check(init, "init_std", self.init_std.to_string(), "must be a number, 0 or above");
        let milestones = format!("{:?}", self.milestones);
        check(self.milestones.is_sorted(), "milestones", milestones, "must be ascending epochs");
        let every = self.select_every_epochs;
        check(every >= 1, "select_every_epochs", every.to_string(), "must be at least 1");
        for (key, recipe) in [("augment_train", &self.augment_train), ("augment_test", &self.augment_test)] {
            let found = recipe.validate();
            check(found.is_ok(), key, String::new(), found.as_ref().err().map_or("", String::as_str));
        }
        check(self.neighbours >= 1, "--neighbours", self.neighbours.to_string(), "must be at least 1");
        check(i64::try_from(self.seed).is_ok(), "--seed", self.seed.to_string(), "must be below 2^63");
        if problems.is_empty() { Ok(()) } else { Err(Error::Invalid(problems)) }
    }

    /// Another number of epochs: the rate falls at the same parts of a shorter or longer training.
    pub fn set_epochs(&mut self, epochs: usize) {
        // Rounded up, so that a rate never falls before the first epoch.
        let (old, new) = (self.epochs.max(1), epochs);
        self.milestones.iter_mut().for_each(|epoch| *epoch = (*epoch * new).div_ceil(old).max(1));
        self.epochs = epochs;
    }

    /// The settings as [`crate::ProbeResult::settings`] holds them.
    pub fn settings(&self) -> BTreeMap<String, serde_json::Value> {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(map)) => map.into_iter().collect(),
            // A struct of numbers and names is always an object.
            _ => BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_the_published_protocols() {
        let cifar = ProbeConfig::new(Protocol::LinearPaper, 32, 1);
        assert_eq!((cifar.epochs, cifar.batch_size, cifar.milestones), (30, 128, vec![9, 19]));
        let few = ProbeConfig::new(Protocol::FewShot, 32, 1);
        assert_eq!((few.epochs, few.select_every_epochs, few.milestones), (100, 5, vec![39, 59]));
        let large = ProbeConfig::new(Protocol::LinearPaper, 224, 1);
        assert_eq!((large.batch_size, large.select_every_epochs, large.milestones), (512, 2, vec![10, 20]));
        assert!(large.select_by_top5);
        let few = ProbeConfig::new(Protocol::FewShot, 224, 1);
        assert_eq!((few.select_every_epochs, few.milestones), (10, vec![40, 60]));
    }

    #[test]
    fn cached_features_are_of_images_that_nothing_random_changed() {
        for protocol in [Protocol::LinearCached, Protocol::Knn, Protocol::RawPixels] {
            assert!(ProbeConfig::new(protocol, 32, 1).augment_train.is_deterministic());
        }
    }

    #[test]
    fn bad_values_are_named_and_good_ones_become_settings() {
        let mut config = ProbeConfig::new(Protocol::Knn, 32, 1);
        assert_eq!(config.settings()["neighbours"], 20);
        config.validate().expect("defaults are good");
        config.neighbours = 0;
        let message = config.validate().expect_err("bad").to_string();
        assert_eq!(message, "--neighbours = 0: must be at least 1");
    }

    #[test]
    fn every_bad_value_is_named() {
        type Change = fn(&mut ProbeConfig);
        let cases: &[(Change, &str)] = &[
            (|c| c.epochs = 0, "--epochs"),
            (|c| c.batch_size = 0, "--batch-size"),
            (|c| c.lr = f64::NAN, "--lr"),
            (|c| c.momentum = 1.0, "momentum"),
            (|c| c.weight_decay = -1.0, "--weight-decay"),
            (|c| c.gamma = 0.0, "gamma"),
            (|c| c.init_std = f64::INFINITY, "init_std"),
            (|c| c.milestones = vec![9, 3], "milestones"),
            (|c| c.select_every_epochs = 0, "select_every_epochs"),
            (|c| c.seed = u64::MAX, "--seed"),
        ];
        for (change, key) in cases {
            let mut config = ProbeConfig::new(Protocol::LinearPaper, 32, 1);
            change(&mut config);
            let message = config.validate().expect_err(key).to_string();
            assert!(message.starts_with(key), "{message}");
        }
    }

    #[test]
    fn shorter_probes_lower_the_rate_at_the_same_parts_and_never_before_the_first_epoch() {
        for (epochs, expected) in [(60, vec![18, 38]), (3, vec![1, 2]), (1, vec![1, 1])] {
            let mut config = ProbeConfig::new(Protocol::LinearPaper, 32, 1);
            config.set_epochs(epochs);
            assert_eq!((config.epochs, config.milestones.clone()), (epochs, expected));
            config.validate().expect("runs");
        }
    }
}
