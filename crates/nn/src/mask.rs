//! Pruning masks: the global magnitude rule, and random pruning.
//!
//! Source: the published SDCLR code. With N prunable weights and rate f: k = ⌈f·N⌉, the threshold is entry min(k, N−1) of
//! the ascending magnitudes, and |w| ≥ threshold is kept. Random pruning takes f = rate − random first and then zeroes
//! every entry, kept or not, with probability ⌈random·N⌉/(N−k).

use crate::rng;

/// What a mask kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaskStats {
    /// Smallest magnitude that the magnitude rule keeps.
    pub threshold: f32,
    /// Prunable weights.
    pub n_weights: usize,
    /// Weights kept.
    pub n_kept: usize,
}

/// ⌈f·n⌉ as Python's `math.ceil(f * n)` in double precision.
fn ceil_share(f: f64, n: usize) -> usize {
    (f * n as f64).ceil() as usize
}

/// Leading bits of a magnitude: its exponent's eight, and seven of its mantissa's.
const LEADING: u32 = 15;

/// Entry `k` of the ascending magnitudes.
///
/// Magnitudes are ordered as their bits are. So their leading bits are counted first, and then only those are sorted that share the
/// entry's: two passes over the weights, and no copy of all of them unless they are all alike.
fn nth_magnitude(weights: &[f32], k: usize) -> f32 {
    let leading = |w: &f32| (w.abs().to_bits() >> (31 - LEADING)) as usize;
    let mut counts = vec![0usize; 1 << LEADING];
    weights.iter().for_each(|w| counts[leading(w)] += 1);
    let (mut below, mut bin) = (0, 0);
    while below + counts[bin] <= k {
        below += counts[bin];
        bin += 1;
    }
    let mut ties: Vec<f32> = weights.iter().filter(|w| leading(w) == bin).map(|w| w.abs()).collect();
    *ties.select_nth_unstable_by(k - below, f32::total_cmp).1
}

/// Writes 1 (kept) or 0 for every weight, by magnitude over all of `weights`; `rate` in [0, 1].
///
/// # Panics
/// If `mask` and `weights` differ in length, or `weights` is empty.
pub fn magnitude(weights: &[f32], rate: f64, mask: &mut [u8]) -> MaskStats {
    assert_eq!(weights.len(), mask.len());
    let n = weights.len();
    let threshold = nth_magnitude(weights, ceil_share(rate, n).min(n - 1));
    let mut n_kept = 0;
    for (m, w) in mask.iter_mut().zip(weights) {
        *m = u8::from(w.abs() >= threshold);
        n_kept += usize::from(*m);
    }
    MaskStats { threshold, n_weights: n, n_kept }
}

/// The mask of one epoch: magnitude pruning at `rate − random_rate`, then random zeroing at `random_rate`.
///
/// # Panics
/// As [`magnitude`].
pub fn epoch_mask(weights: &[f32], rate: f64, random_rate: f64, seed: u64, epoch: u64, mask: &mut [u8]) -> MaskStats {
    let mut stats = magnitude(weights, rate - random_rate, mask);
    if random_rate > 0.0 {
        let k = ceil_share(rate - random_rate, stats.n_weights);
        let p = ceil_share(random_rate, stats.n_weights) as f64 / (stats.n_weights - k).max(1) as f64;
        let mut rng = rng::stream(seed, "random-prune", epoch);
        for m in mask.iter_mut() {
            *m &= u8::from(rng::uniform(&mut rng) >= p);
        }
        stats.n_kept = mask.iter().map(|&m| usize::from(m)).sum();
    }
    stats
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(weights: &[f32], rate: f64) -> Vec<u8> {
        let mut mask = vec![9; weights.len()];
        magnitude(weights, rate, &mut mask);
        mask
    }

    #[test]
    fn magnitude_rule_by_hand() {
        let w = [0.5, -0.1, 0.3, -0.4, 0.2];
        assert_eq!(kept(&w, 0.0), [1, 1, 1, 1, 1], "k = 0: the smallest is the threshold");
        assert_eq!(kept(&w, 0.4), [1, 0, 1, 1, 0], "k = 2: 0.3 is the threshold");
        assert_eq!(kept(&w, 0.41), [1, 0, 0, 1, 0], "k = ⌈2.05⌉ = 3");
        assert_eq!(kept(&w, 1.0), [1, 0, 0, 0, 0], "k = 5 is cut to 4: the largest always stays");
        assert_eq!(kept(&[1.0, 1.0, -1.0, 0.5], 0.5), [1, 1, 1, 0], "ties at the threshold stay");
    }

    #[test]
    fn the_threshold_is_the_entry_of_the_sorted_magnitudes() {
        let special =
            [0.0, -0.0, 1e-42, -1e-42, f32::MIN_POSITIVE, 1.0, -1.0, 1.0 + f32::EPSILON, f32::MAX, f32::INFINITY];
        let weights: Vec<f32> =
            (0..500).map(|i| (i as f32 * 0.7).sin() * 0.01).chain(special).chain([f32::NAN]).collect();
        let mut sorted: Vec<f32> = weights.iter().map(|w| w.abs()).collect();
        sorted.sort_by(f32::total_cmp);
        for (k, expected) in sorted.iter().enumerate() {
            assert_eq!(nth_magnitude(&weights, k).to_bits(), expected.to_bits(), "entry {k}");
        }
    }

    #[test]
    fn random_pruning_removes_its_share() {
        let weights: Vec<f32> = (0..20_000).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut mask = vec![0; weights.len()];
        let stats = epoch_mask(&weights, 0.5, 0.2, 1, 3, &mut mask);
        // 70 % pass the magnitude rule, then 0.2·N/(0.7·N) of them go.
        let expected = 0.7 * (1.0 - 0.2 / 0.7);
        assert!((stats.n_kept as f64 / weights.len() as f64 - expected).abs() < 0.01, "{stats:?}");
        let mut again = vec![0; weights.len()];
        epoch_mask(&weights, 0.5, 0.2, 1, 3, &mut again);
        assert_eq!(mask, again, "the same epoch draws the same mask");
        epoch_mask(&weights, 0.5, 0.2, 1, 4, &mut again);
        assert_ne!(mask, again, "another epoch draws another");
    }
}
