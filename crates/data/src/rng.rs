//! Random numbers without a state to carry around: a ChaCha8 stream keyed by what the numbers are for.
//!
//! The 32-byte key holds (seed, purpose, epoch, index) and the stream number the view, so a value depends on nothing
//! else: not on threads, ranks, batch size or on what was drawn before. Only integer arithmetic and the four exact
//! floating-point operations are used, so the streams are the same on every machine.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng};

/// What random numbers are drawn for; different purposes never share a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The order of the images in an epoch.
    EpochOrder = 1,
    /// The augmentation of one view.
    Augmentation = 2,
    /// Which images of each class come first in a split.
    SplitImages = 3,
    /// Which class gets which place in the long tail.
    SplitClassOrder = 4,
    /// The further augmentation of boosted contrastive learning.
    Boost = 5,
}

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// The stream for one (seed, purpose, epoch, index, view).
    pub fn new(seed: u64, purpose: Purpose, epoch: u64, index: u64, view: u64) -> Self {
        let mut key = [0; 32];
        for (bytes, value) in key.chunks_exact_mut(8).zip([seed, purpose as u64, epoch, index]) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        let mut stream = ChaCha8Rng::from_seed(key);
        stream.set_stream(view);
        Self(stream)
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [low, high).
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// Uniform in 0..n (n > 0), by multiplication: the bias is below n / 2^64.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.0.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// Fisher–Yates shuffle.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_key_changes_the_stream() {
        let first = |seed, purpose, epoch, index, view| Rng::new(seed, purpose, epoch, index, view).below(u64::MAX);
        let values = [
            first(1, Purpose::Augmentation, 1, 1, 0),
            first(2, Purpose::Augmentation, 1, 1, 0),
            first(1, Purpose::EpochOrder, 1, 1, 0),
            first(1, Purpose::Augmentation, 2, 1, 0),
            first(1, Purpose::Augmentation, 1, 2, 0),
            first(1, Purpose::Augmentation, 1, 1, 1),
        ];
        for (i, a) in values.iter().enumerate() {
            assert!(values[..i].iter().all(|b| a != b), "{values:?}");
        }
        assert_eq!(values[0], first(1, Purpose::Augmentation, 1, 1, 0));
    }

    #[test]
    fn numbers_stay_in_their_range_and_cover_it() {
        let mut rng = Rng::new(3, Purpose::EpochOrder, 0, 0, 0);
        let mut seen = [0; 5];
        for _ in 0..5000 {
            seen[rng.below(5) as usize] += 1;
            assert!((0.0..1.0).contains(&rng.unit()));
        }
        assert!(seen.iter().all(|n| (900..1100).contains(n)), "{seen:?}");
    }

    #[test]
    fn streams_are_the_same_on_every_machine() {
        let mut rng = Rng::new(10, Purpose::SplitImages, 0, 7, 0);
        let mut items: Vec<u32> = (0..8).collect();
        rng.shuffle(&mut items);
        // By an independent ChaCha8 written from its specification.
        assert_eq!(items, [2, 3, 0, 6, 1, 4, 5, 7]);
    }
}
