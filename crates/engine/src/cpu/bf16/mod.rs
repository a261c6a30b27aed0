//! Convolutions over bf16 feature maps on AMX.
//!
//! Forward and backward-data are the sweeps of `correlate`, run as matrix products: a task gathers the windows of its pixels as
//! rows (one copy of at most a few hundred KB, which stays in L2), then multiplies blocks of 32 pixels × 32 channels.
//! Where a window is just one pixel's channels (1×1, stride 1) nothing is gathered.
//!
//! The weight gradient sums over pixels, so pixels must lie along the tiles' depth: a task transposes its padded images to
//! `[channel, position]` once, and every filter tap is then only an offset along the positions. The gradients lie at the
//! same positions, interleaved in pairs, zero where the padding is. With stride 2 each parity of rows and columns is a plane
//! of its own.

mod amx;
mod gradient;
mod sweep;

use super::conv::{Context, Convolution, backward_sweeps, forward_sweep};
use super::elementwise;
use super::simd::Level;
use super::team::{Shards, Team};
use crate::element::Bf16;
use crate::types::{ConvShape, ConvUse, EngineError, Write};
use amx::PANEL;
pub(crate) use amx::available;
use gradient::GradientPlan;
use sweep::PackedSweep;

/// A convolution over bf16 maps, planned for AMX.
pub struct AmxConv {
    shape: ConvShape,
    forward: PackedSweep,
    backward: Vec<PackedSweep>,
    gradient: GradientPlan,
    trains: bool,
}

impl Convolution<Bf16> for AmxConv {
    fn new(shape: ConvShape, used: ConvUse, _level: Level, held: &mut usize) -> Result<Self, EngineError> {
        let all: Vec<usize> = (0..shape.kernel).collect();
        let sweep = forward_sweep(&shape);
        let gradient = GradientPlan::new(&shape, &sweep);
        let forward = PackedSweep::new(sweep, (all.clone(), all), held)?;
        let trains = used == ConvUse::Train;
        let mut backward = Vec::new();
        if trains {
            for (sweep, taps) in backward_sweeps(&shape) {
                backward.push(PackedSweep::new(sweep, taps, held)?);
            }
        }
        Ok(Self { shape, forward, backward, gradient, trains })
    }

    fn scratch_len(&self, _level: Level, used: ConvUse) -> usize {
        let sweeps = std::iter::once(&self.forward).chain(&self.backward);
        let gathered = sweeps.map(PackedSweep::scratch_values).max().unwrap_or(0);
        let gradient = if used == ConvUse::Forward { 0 } else { self.gradient.scratch_values(&self.shape) };
        gathered.max(gradient).div_ceil(2)
    }

    fn partial_len(&self, max_batch: usize, n_slices: usize, used: ConvUse) -> usize {
        let sums = self.forward.sweep.n_tasks_of(self.forward.tasks(), max_batch) * 2 * self.shape.cout;
        let weights = if used == ConvUse::Forward { 0 } else { n_slices * self.gradient.len(&self.shape) };
        sums.max(weights)
    }

    fn pack(&mut self, team: &Team, _level: Level, weights: &[f32], mask: Option<&[u8]>) {
        self.forward.pack(team, &self.shape, true, weights, mask);
        for sweep in &mut self.backward {
            sweep.pack(team, &self.shape, false, weights, mask);
        }
    }

    fn forward(&self, ctx: &mut Context, n: usize, x: &[Bf16], y: &mut [Bf16], sums: Option<&mut [f32]>) {
        let n_tasks = self.forward.sweep.n_tasks_of(self.forward.tasks(), n);
        let width = 2 * self.shape.cout;
        let partial = Shards::new(&mut ctx.partial[..if sums.is_some() { n_tasks * width } else { 0 }]);
        run(&self.forward, ctx.team, ctx.scratch, n, x, y, Write::Set, |task| {
            // SAFETY: one part per task, and each task runs once.
            sums.is_some().then(|| unsafe { partial.part(task * width, width) })
        });
        if let Some(sums) = sums {
            elementwise::add_partials(&ctx.partial[..n_tasks * width], sums);
        }
    }

    fn backward_data(&self, ctx: &mut Context, n: usize, dy: &[Bf16], dx: &mut [Bf16], write: Write) {
        assert!(self.trains, "a convolution planned without backward-data was asked for it");
        let covered: usize = self.backward.iter().map(|s| s.sweep.grid.0 * s.sweep.grid.1).sum();
        if write == Write::Set && covered < self.shape.input.pixels() {
            ctx.team.for_parts(&mut dx[..n * self.shape.input.len()], 1 << 16, |_, part| part.fill(Bf16(0)));
        }
        for sweep in &self.backward {
            run(sweep, ctx.team, ctx.scratch, n, dy, dx, write, |_| None);
        }
    }

    fn backward_weight(
        &self,
        ctx: &mut Context,
        n: usize,
        x: &[Bf16],
        dy: &[Bf16],
        dw: &mut [f32],
        mask: Option<&[u8]>,
    ) {
        let (plan, sweep) = (&self.gradient, &self.forward.sweep);
        assert!(x.len() >= n * sweep.src.len() && dy.len() >= n * sweep.dst.len());
        let n_tasks = sweep.n_tasks_of((plan.images, plan.rows), n);
        let (len, n_slices) = (plan.len(&self.shape), ctx.team.n_members().min(n_tasks));
        let (x, dy, scratch) = (bits(x), bits(dy), Shards::new(ctx.scratch));
        ctx.team.for_parts(&mut ctx.partial[..n_slices * len], len, |slice, out| {
            out.fill(0.0);
            // SAFETY: one scratch per slice, and each slice runs once.
            let scratch = halves(unsafe { &mut scratch.part(slice, 1)[0] });
            for task in n_tasks * slice / n_slices..n_tasks * (slice + 1) / n_slices {
                self.gradient_task(n, task, x, dy, scratch, out);
            }
        });
        let (partial, taps, cin) = (&ctx.partial[..n_slices * len], self.shape.kernel.pow(2), self.shape.input.c);
        let depth = taps * cin;
        ctx.team.for_parts(dw, depth * PANEL, |panel, dw| {
            let mask = mask.map(|mask| &mask[panel * PANEL * depth..]);
            for (tap, ci) in (0..taps).flat_map(|tap| (0..cin).map(move |ci| (tap, ci))) {
                let from = ((panel * taps + tap) * plan.channels + ci) * PANEL;
                for (j, dw) in dw.chunks_exact_mut(depth).enumerate() {
                    let at = tap * cin + ci;
                    let mut sum = 0.0;
                    for slice in partial.chunks_exact(len) {
                        sum += slice[from + j];
                    }
                    dw[at] += if mask.is_none_or(|mask| mask[j * depth + at] != 0) { sum } else { 0.0 };
                }
            }
        });
    }
}

#[allow(clippy::too_many_arguments)]
fn run<'s>(
    packed: &PackedSweep,
    team: &Team,
    scratch: &mut [Vec<f32>],
    n: usize,
    x: &[Bf16],
    y: &mut [Bf16],
    write: Write,
    sums: impl Fn(usize) -> Option<&'s mut [f32]> + Sync,
) {
    let sweep = &packed.sweep;
    assert!(x.len() >= n * sweep.src.len() && y.len() >= n * sweep.dst.len(), "buffers for {n} images");
    let (scratch, y, x) = (Shards::new(scratch), Shards::new(y), bits(x));
    team.for_chunks(sweep.n_tasks_of(packed.tasks(), n), |task, member| {
        // SAFETY: one scratch per member; `y` holds `n` images by the assertion; tasks cover disjoint pixels, each once.
        unsafe {
            let scratch = halves(&mut scratch.part(member, 1)[0]);
            packed.run(n, task, x, y.as_ptr(), write, scratch, sums(task));
        }
    });
}

/// The bits of bf16 values.
fn bits(values: &[Bf16]) -> &[u16] {
    // SAFETY: `Bf16` is a transparent u16.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

/// Scratch floats as 16-bit values.
fn halves(values: &mut [f32]) -> &mut [u16] {
    // SAFETY: twice as many values of half the size and alignment; any bits are valid.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), 2 * values.len()) }
}
