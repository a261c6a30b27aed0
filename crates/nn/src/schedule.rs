//! Learning rates as a pure function of the update's number.
//!
//! Source: the published SDCLR code: the rate is set before the update, update number s uses `factor(s)`, s = 1 … total;
//! linear warm-up, then half a cosine down to `min_lr`.

/// How the learning rate runs over an epoch's updates.
#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    /// Warm-up and half a cosine, per update.
    Cosine {
        /// Rate after the warm-up.
        base_lr: f64,
        /// Rate at the end.
        min_lr: f64,
        /// Updates of linear warm-up.
        warmup: u64,
        /// Updates in all.
        total: u64,
    },
    /// Always the same.
    Constant {
        /// The rate.
        base_lr: f64,
    },
    /// Multiplied by `gamma` at every milestone.
    Step {
        /// First rate.
        base_lr: f64,
        /// Factor at a milestone.
        gamma: f64,
        /// Updates (numbers s) from which a decay holds.
        milestones: Vec<u64>,
    },
}

impl Schedule {
    /// The rate of update number `s`, from 1.
    #[must_use]
    pub fn lr_at(&self, s: u64) -> f64 {
        match self {
            Self::Constant { base_lr } => *base_lr,
            Self::Step { base_lr, gamma, milestones } => {
                base_lr * gamma.powi(milestones.iter().filter(|&&m| s >= m).count() as i32)
            }
            Self::Cosine { base_lr, warmup, .. } if s < *warmup => base_lr * s as f64 / *warmup as f64,
            Self::Cosine { base_lr, min_lr, warmup, total } => {
                let share = (s - warmup) as f64 / (total.saturating_sub(*warmup)).max(1) as f64;
                min_lr + (base_lr - min_lr) * 0.5 * (1.0 + (std::f64::consts::PI * share).cos())
            }
        }
    }
}
