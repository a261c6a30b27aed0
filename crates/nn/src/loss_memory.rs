//! What boosted contrastive learning remembers of each image's losses, and how much of it is to be learnt yet.
//!
//! Source: Zhou et al., "Contrastive Learning with Boosted Memorization", ICML 2022, and its published code. An image's
//! momentum loss is its first loss, and then L ← β L + (1 − β) ℓ once an epoch. Its memorisation score is
//! M = ½ · ((L − mean L) / max |L − mean L| + 1): 1 for the image that is learnt worst if it lies farther from the mean than
//! the best one does, 0 for the best one in the other case. Images that were never seen (the published code takes their
//! losses for zero) count in no mean here, and have a score of 0, as all images have in the first epoch.

/// The momentum losses of a data set's images.
#[derive(Clone, Debug, PartialEq)]
pub struct LossMemory {
    momentum: f64,
    losses: Vec<f32>,
}

/// Stands for the loss of an image that was never seen; losses are not negative.
const UNSEEN: f32 = -1.0;

impl LossMemory {
    /// Remembers nothing of `n_images` images yet; `momentum` is β, in [0, 1).
    #[must_use]
    pub fn new(n_images: usize, momentum: f64) -> Self {
        Self::from_losses(vec![UNSEEN; n_images], momentum)
    }

    /// A memory that holds what [`Self::losses`] returned.
    #[must_use]
    pub fn from_losses(losses: Vec<f32>, momentum: f64) -> Self {
        Self { momentum, losses }
    }

    /// The momentum loss of each image; −1 where it was never seen.
    #[must_use]
    pub fn losses(&self) -> &[f32] {
        &self.losses
    }

    /// Takes note of one image's loss in this epoch.
    ///
    /// # Panics
    /// If there is no such image.
    pub fn record(&mut self, image_idx: usize, loss: f32) {
        let kept = &mut self.losses[image_idx];
        *kept = if *kept == UNSEEN {
            loss
        } else {
            (self.momentum * f64::from(*kept) + (1.0 - self.momentum) * f64::from(loss)) as f32
        };
    }

    /// The memorisation score of each image, in [0, 1].
    #[must_use]
    pub fn memorization(&self) -> Vec<f32> {
        let seen = || self.losses.iter().filter(|&&loss| loss != UNSEEN).map(|&loss| f64::from(loss));
        let mean = seen().sum::<f64>() / seen().count().max(1) as f64;
        let farthest = seen().map(|loss| (loss - mean).abs()).fold(0.0, f64::max);
        let score = |&loss: &f32| match loss {
            UNSEEN => 0.0,
            // All alike: the middle, which the formula gives to what lies at the mean.
            _ if farthest == 0.0 => 0.5,
            loss => (0.5 * ((f64::from(loss) - mean) / farthest + 1.0)) as f32,
        };
        self.losses.iter().map(score).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_averaged_from_the_first_on() {
        let mut memory = LossMemory::new(2, 0.75);
        memory.record(1, 4.0);
        assert_eq!(memory.losses(), [-1.0, 4.0], "the first loss is the average");
        memory.record(1, 8.0);
        assert_eq!(memory.losses(), [-1.0, 5.0], "0.75 · 4 + 0.25 · 8");
        memory.record(0, 0.0);
        memory.record(0, 1.0);
        assert_eq!(memory.losses(), [0.25, 5.0], "a loss of zero was seen");
    }

    #[test]
    fn scores_by_hand() {
        let scores = |losses: &[f32]| LossMemory::from_losses(losses.to_vec(), 0.9).memorization();
        // Mean 2, farthest 2: ½ (d / 2 + 1).
        assert_eq!(scores(&[1.0, 1.0, 2.0, 4.0]), [0.25, 0.25, 0.5, 1.0]);
        assert_eq!(scores(&[3.0, 3.0, 2.0, 0.0]), [0.75, 0.75, 0.5, 0.0]);
        assert_eq!(scores(&[1.0, -1.0, 3.0]), [0.0, 0.0, 1.0], "what was never seen moves nothing");
        assert_eq!(scores(&[2.0, 2.0]), [0.5, 0.5]);
        assert_eq!(scores(&[-1.0, -1.0]), [0.0, 0.0], "the first epoch");
        assert_eq!(scores(&[]), [0.0f32; 0]);
    }
}
