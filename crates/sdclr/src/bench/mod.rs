//! Where the time goes: a training step whole and operation by operation, single convolutions, images, probes.
//!
//! - [`step`]: the very function that pre-training runs, timed from outside.
//! - [`layers`]: the same step through a [`profiler`] that times every operation, beside what the machine could do.
//! - [`convs`]: every distinct convolution of a network by itself.
//! - [`data`]: augmentation and the loader. [`probe`]: features and the linear head.
//!
//! Times are medians. The machine's peaks ([`sdclr_engine::Peaks`]) are sampled between what is timed, because a shared
//! machine's speed swings.

pub mod convs;
pub mod data;
pub mod layers;
pub mod probe;
pub mod profile;
pub mod profiler;
pub mod step;

pub use step::StepBench;

use crate::backend::Machine;
use sdclr_engine::{Peaks, Rates};
use sdclr_records::names::Precision;
use std::time::Instant;

/// The median; the mean of the middle two of an even number of values, and not-a-number of none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (n, half) = (sorted.len(), sorted.len() / 2);
    match n {
        0 => f64::NAN,
        _ if n % 2 == 1 => sorted[half],
        _ => (sorted[half - 1] + sorted[half]) / 2.0,
    }
}

/// How often to repeat something: until the time is used up, within limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Repeats {
    /// Repeats at least.
    pub at_least: usize,
    /// Repeats at most.
    pub at_most: usize,
    /// Seconds after which no further repeat begins.
    pub seconds: f64,
}

impl Repeats {
    /// Exactly `n`, however long they take.
    #[must_use]
    pub fn exactly(n: usize) -> Self {
        Self { at_least: n, at_most: n, seconds: f64::INFINITY }
    }

    /// At least three, for about `seconds`.
    #[must_use]
    pub fn lasting(seconds: f64) -> Self {
        Self { at_least: 3, at_most: usize::MAX, seconds }
    }

    /// Calls `once`, which returns what it measured, as often as this says; the first failure ends it.
    ///
    /// # Errors
    /// Those of `once`.
    pub fn collect<E>(self, mut once: impl FnMut() -> Result<f64, E>) -> Result<Vec<f64>, E> {
        let (began, mut values) = (Instant::now(), Vec::new());
        while values.len() < self.at_least
            || (values.len() < self.at_most && began.elapsed().as_secs_f64() < self.seconds)
        {
            values.push(once()?);
        }
        Ok(values)
    }
}

/// Samples of the peaks before whatever is timed: enough that one of them is undisturbed.
const SAMPLES: usize = 3;

/// Takes a few samples of the machine's peaks.
pub fn sample(peaks: &mut Peaks) {
    (0..SAMPLES).for_each(|_| peaks.sample());
}

/// The unit of the processor that convolutions run on, and its peak in 10⁹ operations a second.
#[must_use]
pub fn conv_unit(machine: &Machine, rates: &Rates) -> (&'static str, f64) {
    match machine.numbers() {
        Precision::Bf16 => rates.bf16_unit(machine.level()),
        Precision::Auto | Precision::F32 => ("f32", rates.f32_gflops),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdclr_engine::{Kernels, Level};

    #[test]
    fn the_median_is_the_middle() {
        for (values, expected) in [(&[3.0, 1.0, 2.0][..], 2.0), (&[4.0, 1.0], 2.5), (&[7.0], 7.0)] {
            assert_eq!(median(values), expected, "{values:?}");
        }
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn repeats_keep_their_limits() {
        let count = |repeats: Repeats| repeats.collect(|| Ok::<_, ()>(0.0)).map(|values| values.len());
        assert_eq!(count(Repeats::exactly(4)), Ok(4));
        assert_eq!(count(Repeats { at_least: 2, at_most: 9, seconds: 0.0 }), Ok(2));
        assert_eq!(count(Repeats { at_least: 2, at_most: 9, seconds: f64::INFINITY }), Ok(9));
        assert_eq!(Repeats::exactly(2).collect(|| Err::<f64, _>("no")), Err("no"));
    }

    #[test]
    fn convolutions_are_judged_by_the_unit_that_they_run_on() {
        let rates = Rates { f32_gflops: 1.0, bf16_gflops: Some(2.0), amx_gflops: Some(3.0), memory_gb_per_s: 1.0 };
        let machine = Machine {
            device: sdclr_records::names::Device::Cpu,
            precision: Precision::F32,
            threads: 1,
            workers: 1,
            kernels: Kernels::default(),
        };
        assert_eq!(conv_unit(&machine, &rates), ("f32", 1.0));
        let cases = [(Level::Amx, "amx", 3.0), (Level::Avx512Bf16, "bf16", 2.0), (Level::Avx512, "f32", 1.0)];
        for (level, unit, rate) in cases {
            assert_eq!(rates.bf16_unit(level), (unit, rate));
        }
    }
}
