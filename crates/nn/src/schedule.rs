//! Learning rates as a pure function of the update's number.
//!
//! Source: the published SDCLR code: the rate is set before the update, update number s uses `factor(s)`, s = 1 … total;
//! linear warm-up, then half a cosine down to `min_lr`.

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

#[cfg(test)]
mod tests {
    use super::*;

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
