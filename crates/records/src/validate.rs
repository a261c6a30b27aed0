//! The checks after which a [`RunConfig`] can run. They need no file: paths are checked when they are opened.

use crate::augment::Augmentation;
use crate::config::RunConfig;
use crate::error::{Error, Problem, Result};
use crate::names::{Method, PruneScheduleKind, ScheduleKind};
use std::fmt::Display;

impl RunConfig {
    /// Checks every value and reports all that cannot be run, each with what to do.
    ///
    /// # Errors
    /// [`Error::Invalid`] with one [`Problem`] per bad value.
    pub fn validate(&self) -> Result<()> {
        let mut check = Checker(Vec::new());
        self.check_data(&mut check);
        self.check_augment(&mut check);
        self.check_model(&mut check);
        self.check_prune(&mut check);
        self.check_train(&mut check);
        self.check_rates(&mut check);
        self.check_options(&mut check);
        if check.0.is_empty() { Ok(()) } else { Err(Error::Invalid(check.0)) }
    }

    fn check_data(&self, check: &mut Checker) {
        let data = &self.data;
        check.that(i64::try_from(self.seed).is_ok(), "seed", self.seed, "must be below 2^63");
        // An imported model has no images of its own.
        let named = !data.source.as_os_str().is_empty() || self.import.is_some();
        check.that(named, "data.source", "\"\"", "name a folder, list or data set of images");
        // 8 pixels is what four halvings of the small stem still leave a pixel of; 4096 guards against typing errors.
        let sized = (8..=4096).contains(&data.image_size);
        check.that(sized, "data.image_size", data.image_size, "must be 8 to 4096 pixels");
        let share = (0.0..=1.0).contains(&data.max_broken);
        check.that(share, "data.max_broken", data.max_broken, "must be a share from 0 to 1");
    }

    fn check_augment(&self, check: &mut Checker) {
        if let Err(advice) = Augmentation::Contrastive(self.augment.clone()).validate() {
            check.that(false, "augment", "", &advice);
        }
    }

    fn check_model(&self, check: &mut Checker) {
        let model = &self.model;
        check.that(
            (1..=1024).contains(&model.base_width),
            "model.base_width",
            model.base_width,
            "must be 1 to 1024 channels",
        );
        check.that(
            matches!(model.head_layers, 2 | 3),
            "model.head_layers",
            model.head_layers,
            "the projection head has 2 or 3 layers",
        );
        check.that((1..=65536).contains(&model.head_dim), "model.head_dim", model.head_dim, "must be 1 to 65536");
        check.that(
            !(model.dual_bn && self.method == Method::SimClr),
            "model.dual_bn",
            model.dual_bn,
            "SimCLR has one branch: set it to false, or train with --method sdclr",
        );
        check.that(
            !model.name.is_cifar_family() || model.stem == crate::names::Stem::Small,
            "model.stem",
            model.stem,
            "the resnet32s family has only the small stem",
        );
    }

    fn check_prune(&self, check: &mut Checker) {
        let prune = &self.prune;
        let rate = (0.0..1.0).contains(&prune.rate);
        check.that(
            rate,
            "prune.rate",
            prune.rate,
            "must be at least 0 and below 1, the share of weights that the damaged branch lacks, for example 0.9",
        );
        check.that(
            !rate || (0.0..=prune.rate).contains(&prune.random_rate),
            "prune.random_rate",
            prune.random_rate,
            "must be from 0 to the prune rate, of which it is a part",
        );
    }

    /// What SDCLR's successors add.
    fn check_options(&self, check: &mut Checker) {
        let (prune, train) = (&self.prune, &self.train);
        let start = (0.0..1.0).contains(&prune.rate_start);
        check.that(start, "prune.rate_start", prune.rate_start, "must be at least 0 and below 1");
        check.that(
            prune.schedule == PruneScheduleKind::Constant || prune.ramp_epochs >= 1,
            "prune.ramp_epochs",
            prune.ramp_epochs,
            "give the epochs over which the prune rate moves, for example a tenth of all",
        );
        check.positive("train.temperature_min", train.temperature_min);
        check.that(
            train.temperature_max.is_finite()
                && (train.temperature_max >= train.temperature_min || train.temperature_min.is_nan()),
            "train.temperature_max",
            train.temperature_max,
            "must be a number that is not below the smallest temperature",
        );
        check.positive("train.temperature_period_epochs", train.temperature_period_epochs);
        check.not_negative("train.focal_gamma", train.focal_gamma);
        let boost = &self.boost;
        let momentum = (0.0..1.0).contains(&boost.momentum);
        check.that(momentum, "boost.momentum", boost.momentum, "must be at least 0 and below 1");
        check.that((1..=16).contains(&boost.n_ops), "boost.n_ops", boost.n_ops, "must be 1 to 16 operations a view");
        let magnitude = (0.0..=1.0).contains(&boost.magnitude);
        check.that(magnitude, "boost.magnitude", boost.magnitude, "must be a share from 0 to 1");
    }

    fn check_train(&self, check: &mut Checker) {
        let train = &self.train;
        check.that(train.epochs >= 1, "train.epochs", train.epochs, "must be at least 1");
        check.that(
            train.batch_size >= 2,
            "train.batch_size",
            train.batch_size,
            "must be at least 2: the loss contrasts each image with others",
        );
        check.that(
            train.temperature > 0.0 && train.temperature.is_finite(),
            "train.temperature",
            train.temperature,
            "must be above 0, for example 0.2",
        );
        check.that(train.threads <= 4096, "train.threads", train.threads, "must be at most 4096; 0 takes every core");
        check.that(
            self.data.workers <= 4096,
            "data.workers",
            self.data.workers,
            "must be at most 4096; 0 lets the program choose",
        );
        for (key, value) in [
            ("train.log_every_steps", train.log_every_steps),
            ("train.checkpoint_every_epochs", train.checkpoint_every_epochs),
        ] {
            check.that(value >= 1, key, value, "must be at least 1");
        }
    }

    fn check_rates(&self, check: &mut Checker) {
        let (optimizer, schedule) = (&self.optimizer, &self.schedule);
        check.positive("optimizer.lr", optimizer.lr);
        let momentum = (0.0..1.0).contains(&optimizer.momentum);
        check.that(momentum, "optimizer.momentum", optimizer.momentum, "must be at least 0 and below 1");
        check.not_negative("optimizer.weight_decay", optimizer.weight_decay);
        check.positive("optimizer.lars_eta", optimizer.lars_eta);
        check.not_negative("schedule.min_lr", schedule.min_lr);
        check.that(
            schedule.kind != ScheduleKind::Cosine
                || schedule.min_lr <= optimizer.lr
                || optimizer.lr.is_nan()
                || optimizer.lr <= 0.0,
            "schedule.min_lr",
            schedule.min_lr,
            "must not be above the learning rate, which falls to it",
        );
        check.not_negative("schedule.warmup_epochs", schedule.warmup_epochs);
        check.that(
            schedule.warmup_epochs.is_nan() || schedule.warmup_epochs <= self.train.epochs as f64,
            "schedule.warmup_epochs",
            schedule.warmup_epochs,
            "must not be above the epochs, or the full rate is never reached",
        );
        check.positive("schedule.gamma", schedule.gamma);
        let ascending = schedule.milestones.windows(2).all(|pair| pair[0] < pair[1]);
        let listed = format!("{:?}", schedule.milestones);
        check.that(ascending, "schedule.milestones", &listed, "must be ascending epochs");
        check.that(
            schedule.kind != ScheduleKind::Step || !schedule.milestones.is_empty(),
            "schedule.milestones",
            &listed,
            "the step schedule needs the epochs at which the rate falls",
        );
    }
}

struct Checker(Vec<Problem>);

impl Checker {
    fn that(&mut self, holds: bool, key: &'static str, value: impl Display, advice: &str) {
        if !holds {
            self.0.push(Problem { key, value: value.to_string(), advice: advice.to_owned() });
        }
    }

    fn positive(&mut self, key: &'static str, value: f64) {
        self.that(value > 0.0 && value.is_finite(), key, value, "must be a number above 0");
    }

    fn not_negative(&mut self, key: &'static str, value: f64) {
        self.that(value >= 0.0 && value.is_finite(), key, value, "must be a number, 0 or above");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(change: impl FnOnce(&mut RunConfig)) -> String {
        let mut config = RunConfig::default();
        config.data.source = "images".into();
        change(&mut config);
        config.validate().err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn the_default_config_with_a_source_can_run() {
        assert_eq!(problems(|_| ()), "");
    }

    #[test]
    fn an_imported_model_needs_no_images() {
        let import = || Some(crate::config::ImportConfig { file: "model.pt".into(), ..Default::default() });
        assert_eq!(problems(|c| (c.import, c.data.source) = (import(), "".into())), "");
    }

    #[test]
    fn every_bad_value_is_named_with_its_flag() {
        type Change = fn(&mut RunConfig);
        let cases: &[(Change, &str)] = &[
            (|c| c.prune.rate = 1.3, "--prune-rate (prune.rate) = 1.3"),
            (|c| c.prune.rate = 1.0, "--prune-rate (prune.rate) = 1"),
            (|c| c.prune.rate = -0.1, "--prune-rate (prune.rate) = -0.1"),
            (|c| c.prune.rate = f64::NAN, "--prune-rate (prune.rate) = NaN"),
            (|c| c.prune.random_rate = 0.95, "prune.random_rate"),
            (|c| c.train.temperature = 0.0, "--temperature (train.temperature) = 0"),
            (|c| c.train.temperature = f64::INFINITY, "train.temperature"),
            (|c| c.train.batch_size = 1, "--batch-size (train.batch_size) = 1"),
            (|c| c.train.epochs = 0, "--epochs (train.epochs) = 0"),
            (|c| c.optimizer.lr = f64::NAN, "--lr (optimizer.lr) = NaN"),
            (|c| c.optimizer.momentum = 1.0, "optimizer.momentum"),
            (|c| c.model.head_layers = 4, "model.head_layers"),
            (|c| c.data.source = "".into(), "--data (data.source)"),
            (|c| c.method = Method::SimClr, "model.dual_bn"),
            (|c| c.augment.flip_p = 1.5, "augment: flip_p is 1.5"),
            (|c| c.seed = u64::MAX, "seed"),
            (|c| c.schedule.warmup_epochs = 201.0, "--warmup-epochs (schedule.warmup_epochs) = 201"),
            (|c| c.schedule.milestones = vec![5, 5], "schedule.milestones"),
            (|c| c.train.temperature_min = 0.0, "--temperature-min (train.temperature_min) = 0"),
            (|c| c.train.temperature_max = 0.05, "--temperature-max (train.temperature_max) = 0.05"),
            (|c| c.train.temperature_max = f64::INFINITY, "train.temperature_max"),
            (|c| c.train.temperature_period_epochs = 0.0, "train.temperature_period_epochs"),
            (|c| c.train.focal_gamma = -1.0, "--focal-gamma (train.focal_gamma) = -1"),
            (|c| c.boost.momentum = 1.0, "--boost-momentum (boost.momentum) = 1"),
            (|c| c.boost.n_ops = 0, "--boost-ops (boost.n_ops) = 0"),
            (|c| c.boost.magnitude = 30.0, "--boost-magnitude (boost.magnitude) = 30"),
            (|c| c.prune.rate_start = 1.0, "--prune-rate-start (prune.rate_start) = 1"),
            (|c| c.prune.schedule = PruneScheduleKind::Linear, "--prune-ramp-epochs (prune.ramp_epochs) = 0"),
        ];
        for (change, expected) in cases {
            let text = problems(change);
            assert!(text.contains(expected), "{text:?} lacks {expected:?}");
        }
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let text = problems(|c| {
            c.train.epochs = 0;
            c.train.batch_size = 0;
        });
        assert!(text.contains("train.epochs") && text.contains("; --batch-size"), "{text}");
    }
}
