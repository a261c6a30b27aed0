//! The roofline of a training step: each operation's time beside the least that the machine's peaks allow.

use super::profile::{Profile, Row, median_rows, sort_by_network};
use super::profiler::Profiler;
use super::{StepBench, conv_unit, median, profile::Kind};
use crate::backend::Machine;
use crate::error::Error;
use sdclr_engine::Rates;
use sdclr_records::RunConfig;
use sdclr_records::names::Precision;
use std::sync::{Arc, Mutex, PoisonError};

/// A step whose operations are timed one by one.
pub struct LayersBench {
    step: StepBench,
    profile: Arc<Mutex<Profile>>,
    steps: Vec<Vec<Row>>,
    seconds: Vec<f64>,
}

impl LayersBench {
    /// Plans a step, as [`StepBench::new`].
    ///
    /// # Errors
    /// A model that cannot be built, out of memory.
    pub fn new(config: &RunConfig, machine: &Machine) -> Result<Self, Error> {
        let map_bytes = if machine.numbers() == Precision::Bf16 { 2 } else { 4 };
        let (profiler, profile) = Profiler::new(machine.engine()?, map_bytes);
        let step = StepBench::on(config, Box::new(profiler))?;
        Ok(Self { step, profile, steps: Vec::new(), seconds: Vec::new() })
    }

    /// One step that does not count: it touches fresh memory.
    ///
    /// # Errors
    /// As the step's.
    pub fn warm_up(&mut self) -> Result<(), Error> {
        self.step.step().map(|_| ())
    }

    /// One step that counts; returns its seconds.
    ///
    /// # Errors
    /// As the step's.
    pub fn step(&mut self) -> Result<f64, Error> {
        // What planning and earlier steps did is not this step's.
        self.take();
        let seconds = self.step.step()?;
        let rows = self.take();
        self.steps.push(rows);
        self.seconds.push(seconds);
        Ok(seconds)
    }

    /// The median step, in the order of the network.
    ///
    /// # Panics
    /// Before the first step that counts.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = median_rows(&self.steps);
        sort_by_network(&mut rows);
        rows
    }

    /// Median seconds of a whole step, timing included.
    #[must_use]
    pub fn step_s(&self) -> f64 {
        median(&self.seconds)
    }

    /// Median seconds of a step that no operation took.
    #[must_use]
    pub fn outside_s(&self) -> f64 {
        let inside = |rows: &Vec<Row>| rows.iter().map(|row| row.seconds).sum::<f64>();
        let outside: Vec<f64> = self.seconds.iter().zip(&self.steps).map(|(s, rows)| s - inside(rows)).collect();
        median(&outside)
    }

    /// Steps that counted.
    #[must_use]
    pub fn n_steps(&self) -> usize {
        self.steps.len()
    }

    /// Name of the engine.
    #[must_use]
    pub fn engine_name(&self) -> String {
        self.step.engine_name()
    }

    /// Bytes that the engine holds.
    #[must_use]
    pub fn bytes_held(&self) -> usize {
        self.step.bytes_held()
    }

    fn take(&self) -> Vec<Row> {
        self.profile.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What the machine allows and what was reached, for one row or several together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Roofline {
    /// Seconds taken.
    pub seconds: f64,
    /// Floating-point operations.
    pub flop: f64,
    /// Ideal bytes.
    pub bytes: f64,
    /// Seconds that the arithmetic alone would take at the peak of the unit that does it.
    pub compute_s: f64,
    /// Seconds that the memory traffic alone would take.
    pub memory_s: f64,
    /// The longer of the two, of each row by itself: no faster without caches that outlive an operation.
    pub floor_s: f64,
}

impl Roofline {
    /// One row under these peaks.
    #[must_use]
    pub fn of(row: &Row, machine: &Machine, rates: &Rates) -> Self {
        // Only convolutions run on the matrix unit; all else is f32 arithmetic.
        let peak = if row.op.kind() == Kind::Convolution { conv_unit(machine, rates).1 } else { rates.f32_gflops };
        let (compute_s, memory_s) = (row.flop / (peak * 1e9), row.bytes / (rates.memory_gb_per_s * 1e9));
        let floor_s = compute_s.max(memory_s);
        Self { seconds: row.seconds, flop: row.flop, bytes: row.bytes, compute_s, memory_s, floor_s }
    }

    /// Several rows together.
    #[must_use]
    pub fn sum(rows: &[Row], machine: &Machine, rates: &Rates) -> Self {
        rows.iter().map(|row| Self::of(row, machine, rates)).fold(Self::default(), |a, b| Self {
            seconds: a.seconds + b.seconds,
            flop: a.flop + b.flop,
            bytes: a.bytes + b.bytes,
            compute_s: a.compute_s + b.compute_s,
            memory_s: a.memory_s + b.memory_s,
            floor_s: a.floor_s + b.floor_s,
        })
    }

    /// 10⁹ operations a second.
    #[must_use]
    pub fn gflops(&self) -> f64 {
        self.flop / self.seconds / 1e9
    }

    /// 10⁹ ideal bytes a second.
    #[must_use]
    pub fn gb_per_s(&self) -> f64 {
        self.bytes / self.seconds / 1e9
    }

    /// Share of the arithmetic peak.
    #[must_use]
    pub fn share_of_peak(&self) -> f64 {
        self.compute_s / self.seconds
    }

    /// Share of the memory bandwidth; above 1 where data were still in a cache.
    #[must_use]
    pub fn share_of_bandwidth(&self) -> f64 {
        self.memory_s / self.seconds
    }

    /// How many times the floor it took.
    #[must_use]
    pub fn times_floor(&self) -> f64 {
        self.seconds / self.floor_s
    }
}

#[cfg(test)]
mod tests {
    use super::super::profile::{Op, Shape};
    use super::*;
    use sdclr_engine::Kernels;
    use sdclr_records::names::Device;

    #[test]
    fn the_floor_is_the_longer_of_arithmetic_and_memory() {
        let rates = Rates { f32_gflops: 100.0, memory_gb_per_s: 10.0, ..Rates::default() };
        let machine = Machine {
            device: Device::Cpu,
            precision: Precision::F32,
            threads: 1,
            workers: 1,
            kernels: Kernels::default(),
        };
        let row = |op, flop, bytes| Row { op, shape: Shape::Any, calls: 1, seconds: 4.0, flop, bytes };
        let rows = [row(Op::ConvForward, 100e9, 5e9), row(Op::NormApply, 1e9, 20e9)];
        let conv = Roofline::of(&rows[0], &machine, &rates);
        assert_eq!((conv.floor_s, conv.times_floor()), (1.0, 4.0));
        assert_eq!((conv.gflops(), conv.share_of_peak()), (25.0, 0.25));
        let norm = Roofline::of(&rows[1], &machine, &rates);
        assert_eq!((norm.floor_s, norm.share_of_bandwidth(), norm.gb_per_s()), (2.0, 0.5, 5.0));
        let both = Roofline::sum(&rows, &machine, &rates);
        assert_eq!((both.seconds, both.floor_s), (8.0, 3.0));
    }
}
