//! Learning rates as a pure function of the update's number; temperatures and prune rates as pure functions of the epoch.
//!
//! Source: the published SDCLR code: the rate is set before the update, update number s uses `factor(s)`, s = 1 … total;
//! linear warm-up, then half a cosine down to `min_lr`. The others name theirs.

/// What the learning rate does after the warm-up.
#[derive(Clone, Debug, PartialEq)]
pub enum Decay {
    /// Half a cosine down to `min_lr` at update `total`.
    Cosine {
        /// Rate at the end.
        min_lr: f64,
        /// Updates in all.
        total: u64,
    },
    /// None.
    Constant,
    /// Multiplied by `gamma` after every milestone.
    Step {
        /// The factor.
        gamma: f64,
        /// Numbers of the last updates before a decay, ascending.
        milestones: Vec<u64>,
    },
}

/// A learning rate over the updates of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Rate after the warm-up.
    pub base_lr: f64,
    /// Updates of linear warm-up; update `warmup` is the first at the full rate.
    pub warmup: u64,
    /// What follows.
    pub decay: Decay,
}

impl Schedule {
    /// The rate of update number `s`, from 1.
    #[must_use]
    pub fn lr_at(&self, s: u64) -> f64 {
        let Self { base_lr, warmup, decay } = self;
        if s < *warmup {
            return base_lr * s as f64 / *warmup as f64;
        }
        match decay {
            Decay::Constant => *base_lr,
            Decay::Step { gamma, milestones } => {
                base_lr * gamma.powi(milestones.iter().filter(|&&last| s > last).count() as i32)
            }
            Decay::Cosine { min_lr, total } => {
                // A warm-up that fills the run leaves no cosine; its last update then has the full rate.
                let share = (s - warmup) as f64 / total.saturating_sub(*warmup).max(1) as f64;
                min_lr + (base_lr - min_lr) * 0.5 * (1.0 + (std::f64::consts::PI * share).cos())
            }
        }
    }
}

/// The temperature τ over the epochs of a run.
///
/// Source: Kukleva et al., "Temperature Schedules for Self-Supervised Contrastive Methods on Long-Tail Data", ICLR 2023:
/// τ(t) = τ₋ + (τ₊ − τ₋) · (1 + cos(2πt/T)) / 2, with t the epoch. Their code counts epochs from 1, as is done here, and has
/// half the period as its setting.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TemperatureSchedule {
    /// The same throughout.
    Constant(f64),
    /// Between two temperatures and back, over and over.
    Cosine {
        /// τ₋, half a period from the start.
        min: f64,
        /// τ₊, from which it starts.
        max: f64,
        /// T, in epochs.
        period_epochs: f64,
    },
}

impl TemperatureSchedule {
    /// The temperature of an epoch, from 1.
    #[must_use]
    pub fn temperature_at(&self, epoch: u64) -> f64 {
        match *self {
            Self::Constant(temperature) => temperature,
            Self::Cosine { min, max, period_epochs } => {
                min + (max - min) * 0.5 * (1.0 + (std::f64::consts::TAU * epoch as f64 / period_epochs).cos())
            }
        }
    }
}

/// How a prune rate moves from its start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ramp {
    /// It does not: the end's rate throughout, as in SDCLR.
    None,
    /// In a straight line.
    Linear,
    /// Half a cosine, slow at both ends.
    Cosine,
    /// Fast at first: Zhu and Gupta 2017, eq. 1.
    Cubic,
}

/// The share of weights that the pruned branch lacks, over the epochs of a run.
///
/// Source: Zhu and Gupta, "To prune, or not to prune", 2017, eq. 1: s(t) = s_f + (s_i − s_f) · (1 − t/n)³ for t = 0 … n, and
/// s_f after that; here in steps of an epoch, for that is when the mask is recomputed. The other ramps replace
/// (1 − t/n)³ by 1 − t/n and by (1 + cos(πt/n)) / 2.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PruneSchedule {
    /// s_f, in [0, 1).
    pub rate: f64,
    /// The part of `rate` that is drawn at random; it keeps its share of whatever the rate is.
    pub random_rate: f64,
    /// s_i, the rate of the first epoch.
    pub start: f64,
    /// n: this many epochs after the first has the full rate.
    pub ramp_epochs: u64,
    /// The way there.
    pub ramp: Ramp,
}

impl PruneSchedule {
    /// The prune rate of an epoch, from 1, and the part of it that is drawn at random.
    #[must_use]
    pub fn rates_at(&self, epoch: u64) -> (f64, f64) {
        let Self { rate, random_rate, start, ramp_epochs, ramp } = *self;
        let done = epoch.saturating_sub(1);
        if ramp == Ramp::None || done >= ramp_epochs {
            return (rate, random_rate);
        }
        let way = done as f64 / ramp_epochs as f64;
        let left = match ramp {
            Ramp::None => 0.0,
            Ramp::Linear => 1.0 - way,
            Ramp::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * way).cos()),
            Ramp::Cubic => (1.0 - way).powi(3),
        };
        let now = rate + (start - rate) * left;
        // Where the end's rate is 0, nothing of it is random.
        (now, if rate > 0.0 { random_rate * (now / rate) } else { 0.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cosine_temperature_swings_between_its_ends() {
        let cosine = TemperatureSchedule::Cosine { min: 0.1, max: 1.0, period_epochs: 400.0 };
        for (epoch, expected) in [(0, 1.0), (100, 0.55), (200, 0.1), (300, 0.55), (400, 1.0), (600, 0.1)] {
            let temperature = cosine.temperature_at(epoch);
            assert!((temperature - expected).abs() < 1e-12, "epoch {epoch}: {temperature}");
        }
        for epoch in 0..1000 {
            assert!((0.1..=1.0).contains(&cosine.temperature_at(epoch)), "epoch {epoch}");
        }
    }

    #[test]
    fn a_constant_temperature_and_a_cosine_without_width_are_that_temperature() {
        let flat = TemperatureSchedule::Cosine { min: 0.2, max: 0.2, period_epochs: 7.0 };
        for epoch in 0..20 {
            assert_eq!(TemperatureSchedule::Constant(0.2).temperature_at(epoch).to_bits(), 0.2f64.to_bits());
            assert_eq!(flat.temperature_at(epoch).to_bits(), 0.2f64.to_bits());
        }
    }

    #[test]
    fn prune_rates_follow_their_ramp_and_then_hold() {
        let rates = |ramp| {
            let schedule = PruneSchedule { rate: 0.9, random_rate: 0.3, start: 0.1, ramp_epochs: 4, ramp };
            [1, 2, 3, 4, 5, 6].map(|epoch| schedule.rates_at(epoch))
        };
        for (ramp, expected) in [
            (Ramp::None, [0.9; 6]),
            (Ramp::Linear, [0.1, 0.3, 0.5, 0.7, 0.9, 0.9]),
            (Ramp::Cosine, [0.1, 0.217_157_287_525_381, 0.5, 0.782_842_712_474_619, 0.9, 0.9]),
            (Ramp::Cubic, [0.1, 0.5625, 0.8, 0.8875, 0.9, 0.9]),
        ] {
            for ((rate, random), expected) in rates(ramp).into_iter().zip(expected) {
                assert!((rate - expected).abs() < 1e-12, "{ramp:?}: {:?}", rates(ramp));
                assert!((random - expected / 3.0).abs() < 1e-12, "{ramp:?}: {:?}", rates(ramp));
            }
            assert_eq!(rates(ramp)[5], (0.9, 0.3), "the end is exact");
        }
        let falling = PruneSchedule { rate: 0.0, random_rate: 0.0, start: 0.5, ramp_epochs: 2, ramp: Ramp::Linear };
        assert_eq!([1, 2, 3].map(|epoch| falling.rates_at(epoch).0), [0.5, 0.25, 0.0], "a rate may fall, to 0 too");
    }

    #[test]
    fn step_decay_holds_after_each_milestone() {
        let decay = Decay::Step { gamma: 0.1, milestones: vec![2, 4] };
        let schedule = Schedule { base_lr: 1.0, warmup: 0, decay };
        let rates: Vec<f64> = (1..=5).map(|s| schedule.lr_at(s)).collect();
        for (rate, expected) in rates.iter().zip([1.0, 1.0, 0.1, 0.1, 0.01]) {
            assert!((rate - expected).abs() < 1e-12, "{rates:?}");
        }
    }

    #[test]
    fn warm_up_rises_linearly_to_the_full_rate() {
        let schedule = Schedule { base_lr: 0.8, warmup: 4, decay: Decay::Constant };
        assert_eq!((1..=5).map(|s| schedule.lr_at(s)).collect::<Vec<_>>(), [0.2, 0.4, 0.6000000000000001, 0.8, 0.8]);
    }
}
