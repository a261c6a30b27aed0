//! Planned convolutions: the sweeps behind each pass, their packed weights, and how their tasks run on the team.

use super::correlate::{self, Job, Sweep, WeightJob};
use super::elementwise;
use super::simd::Level;
use super::team::{Shards, Team};
use crate::host::{slack, try_zeroed};
use crate::types::{ConvShape, ConvUse, Dims, EngineError, Write};

/// A sweep with its weights in compute layout.
struct PackedSweep {
    sweep: Sweep,
    /// Filter rows and columns of the master weights that this sweep's taps are.
    taps: (Vec<usize>, Vec<usize>),
    packed: Vec<f32>,
}

/// A convolution planned for a level and a maximum batch.
pub struct PlannedConv {
    pub shape: ConvShape,
    forward: PackedSweep,
    backward: Vec<PackedSweep>,
    trains: bool,
}

/// A planned convolution over feature maps of `E`: what an engine asks of it.
pub trait Convolution<E>: Send + Sized {
    /// Plans the passes and allocates packed weights.
    fn new(shape: ConvShape, used: ConvUse, level: Level, held: &mut usize) -> Result<Self, EngineError>;

    /// Floats of member scratch that any pass needs.
    fn scratch_len(&self, level: Level, used: ConvUse) -> usize;

    /// Floats of partial results: channel sums of every task, or every slice's weight gradient.
    fn partial_len(&self, max_batch: usize, n_slices: usize, used: ConvUse) -> usize;

    /// Packs master weights `[cout, kh, kw, cin]`, zeroed where the mask is 0.
    fn pack(&mut self, team: &Team, level: Level, weights: &[f32], mask: Option<&[u8]>);

    /// Forward pass over `n` images; `x` with slack.
    fn forward(&self, ctx: &mut Context, n: usize, x: &[E], y: &mut [E], sums: Option<&mut [f32]>);

    /// Gradient of the data over `n` images; `dy` with slack.
    fn backward_data(&self, ctx: &mut Context, n: usize, dy: &[E], dx: &mut [E], write: Write);

    /// Adds the gradient of the weights to `dw` `[cout, kh, kw, cin]`, where the mask keeps it.
    fn backward_weight(&self, ctx: &mut Context, n: usize, x: &[E], dy: &[E], dw: &mut [f32], mask: Option<&[u8]>);
}

/// Which channel of the master weights is a sweep's source and which its destination.
#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Forward,
    BackwardData,
}

impl Convolution<f32> for PlannedConv {
    fn new(shape: ConvShape, used: ConvUse, level: Level, held: &mut usize) -> Result<Self, EngineError> {
        let mut packed = |sweep: Sweep, taps| -> Result<PackedSweep, EngineError> {
            let len = correlate::packed_len(level, sweep.depth(), sweep.dst.c);
            Ok(PackedSweep { packed: try_zeroed(len, "packed weights", held)?, sweep, taps })
        };
        assert!((1..=2).contains(&shape.stride), "strides 1 and 2 are planned for, not {}", shape.stride);
        let all: Vec<usize> = (0..shape.kernel).collect();
        let forward = packed(forward_sweep(&shape), (all.clone(), all))?;
        let mut backward = Vec::new();
        if used == ConvUse::Train {
            for (sweep, taps) in backward_sweeps(&shape) {
                backward.push(packed(sweep, taps)?);
            }
        }
        Ok(Self { shape, forward, backward, trains: used == ConvUse::Train })
    }

    fn scratch_len(&self, level: Level, used: ConvUse) -> usize {
        let sweeps = std::iter::once(&self.forward).chain(&self.backward);
        let source = sweeps.map(|s| s.sweep.scratch_len()).max().unwrap_or(0);
        let gather =
            if used == ConvUse::Forward { 0 } else { correlate::weight_scratch_len(level, &self.forward.sweep) };
        source + gather
    }

    fn partial_len(&self, max_batch: usize, n_slices: usize, used: ConvUse) -> usize {
        let sums = self.forward.sweep.n_tasks(max_batch) * 2 * self.shape.cout;
        let weights = if used == ConvUse::Forward { 0 } else { n_slices * self.forward.packed.len() };
        sums.max(weights)
    }

    fn pack(&mut self, team: &Team, level: Level, weights: &[f32], mask: Option<&[u8]>) {
        self.forward.pack(team, level, &self.shape, Direction::Forward, weights, mask);
        for sweep in &mut self.backward {
            sweep.pack(team, level, &self.shape, Direction::BackwardData, weights, mask);
        }
    }

    fn forward(&self, ctx: &mut Context, n: usize, x: &[f32], y: &mut [f32], sums: Option<&mut [f32]>) {
        let sweep = &self.forward.sweep;
        let (n_tasks, width) = (sweep.n_tasks(n), 2 * self.shape.cout);
        let partial = Shards::new(&mut ctx.partial[..if sums.is_some() { n_tasks * width } else { 0 }]);
        run(&self.forward, ctx.team, ctx.level, ctx.scratch, n, x, y, Write::Set, |task| {
            // SAFETY: one part per task, and each task runs once.
            sums.is_some().then(|| unsafe { partial.part(task * width, width) })
        });
        if let Some(sums) = sums {
            elementwise::add_partials(&ctx.partial[..n_tasks * width], sums);
        }
    }

    fn backward_data(&self, ctx: &mut Context, n: usize, dy: &[f32], dx: &mut [f32], write: Write) {
        assert!(self.trains, "a convolution planned without backward-data was asked for it");
        let covered: usize = self.backward.iter().map(|s| s.sweep.grid.0 * s.sweep.grid.1).sum();
        if write == Write::Set && covered < self.shape.input.pixels() {
            ctx.team.for_parts(&mut dx[..n * self.shape.input.len()], 1 << 16, |_, part| part.fill(0.0));
        }
        for sweep in &self.backward {
            run(sweep, ctx.team, ctx.level, ctx.scratch, n, dy, dx, write, |_| None);
        }
    }

    /// Each of as many slices as there are members sums its own tasks; slices are added in order, so the result depends
    /// on the number of threads but not on who ran what.
    fn backward_weight(&self, ctx: &mut Context, n: usize, x: &[f32], dy: &[f32], dw: &mut [f32], mask: Option<&[u8]>) {
        let sweep = &self.forward.sweep;
        assert_source(sweep, n, x);
        assert!(dy.len() >= n * sweep.dst.len(), "gradient of {} floats for {n} images", dy.len());
        let (n_tasks, len, level) = (sweep.n_tasks(n), self.forward.packed.len(), ctx.level);
        let n_slices = ctx.team.n_members().min(n_tasks);
        let job = WeightJob { sweep, x, dy, n };
        let scratch = Shards::new(ctx.scratch);
        ctx.team.for_parts(&mut ctx.partial[..n_slices * len], len, |slice, out| {
            out.fill(0.0);
            // SAFETY: one scratch per slice, and each slice runs once.
            let scratch = unsafe { &mut scratch.part(slice, 1)[0] };
            for task in n_tasks * slice / n_slices..n_tasks * (slice + 1) / n_slices {
                // SAFETY: `level` is at most what `Cpu::new` detected.
                unsafe { correlate::weight_gradient(level, &job, task, scratch, out) };
            }
        });
        let (partial, depth) = (&ctx.partial[..n_slices * len], sweep.depth());
        let (panel, lanes) = correlate::panel_sizes(level);
        ctx.team.for_parts(dw, depth * panel, |index, dw| {
            let first = index * panel;
            let width = if dw.len() / depth <= lanes { lanes } else { panel };
            let mask = mask.map(|mask| &mask[first * depth..]);
            elementwise::reduce_weights(level, &partial[first * depth..], len, width, depth, dw, mask);
        });
    }
}

/// What a pass borrows from the engine.
pub struct Context<'a> {
    pub team: &'a Team,
    pub level: Level,
    pub scratch: &'a mut [Vec<f32>],
    pub partial: &'a mut [f32],
}

#[allow(clippy::too_many_arguments)]
fn run<'s>(
    packed: &PackedSweep,
    team: &Team,
    level: Level,
    scratch: &mut [Vec<f32>],
    n: usize,
    x: &[f32],
    y: &mut [f32],
    write: Write,
    sums: impl Fn(usize) -> Option<&'s mut [f32]> + Sync,
) {
    let sweep = &packed.sweep;
    assert_source(sweep, n, x);
    assert!(y.len() >= n * sweep.dst.len(), "destination of {} floats for {n} images", y.len());
    let job = Job { sweep, packed: &packed.packed, x, y: Shards::new(y).as_ptr(), n, write };
    let scratch = Shards::new(scratch);
    team.for_chunks(sweep.n_tasks(n), |task, member| {
        // SAFETY: one scratch per member; `y` holds `n` images by the assertion; tasks cover disjoint pixels and each
        // runs once; `level` is at most what `Cpu::new` detected.
        unsafe {
            let scratch = &mut scratch.part(member, 1)[0];
            correlate::correlate(level, &job, task, scratch, sums(task));
        }
    });
}

/// The kernels read pixels in groups, and past the last one: `x` must hold `n` images and their slack.
fn assert_source(sweep: &Sweep, n: usize, x: &[f32]) {
    let needed = n * sweep.src.len() + slack(sweep.src);
    assert!(x.len() >= needed, "source of {} floats where {n} images and slack are {needed}", x.len());
}

pub(crate) fn forward_sweep(shape: &ConvShape) -> Sweep {
    let dst = shape.output();
    Sweep {
        src: shape.input,
        dst,
        grid: (dst.h, dst.w),
        first: (0, 0),
        step: 1,
        kernel: (shape.kernel, shape.kernel),
        stride: shape.stride,
        pad: (shape.pad as isize, shape.pad as isize),
    }
}

/// Taps along one axis of backward-data's phase `phase`: (filter positions, padding of the sweep).
///
/// Input position `s·r + phase` meets filter position `k` at output position `(s·r + phase + pad − k) / s` where that
/// divides: `k = k0 + s·t`. Reversing `t` makes the output position ascend with the tap, as a sweep wants.
fn phase_taps(shape: &ConvShape, phase: usize) -> (Vec<usize>, isize) {
    let k0 = (phase + shape.pad) % shape.stride;
    let taps: Vec<usize> = (k0..shape.kernel).step_by(shape.stride).rev().collect();
    let shift = ((phase + shape.pad - k0) / shape.stride) as isize;
    let pad = taps.len() as isize - 1 - shift;
    (taps, pad)
}

/// Filter rows and columns of the master weights that a sweep's taps are.
pub(crate) type Taps = (Vec<usize>, Vec<usize>);

pub(crate) fn backward_sweeps(shape: &ConvShape) -> Vec<(Sweep, Taps)> {
    let s = shape.stride;
    let mut sweeps = Vec::new();
    for (pr, pc) in (0..s).flat_map(|r| (0..s).map(move |c| (r, c))) {
        let ((rows, top), (cols, left)) = (phase_taps(shape, pr), phase_taps(shape, pc));
        let count = |size: usize, phase: usize| size.saturating_sub(phase).div_ceil(s);
        let grid = (count(shape.input.h, pr), count(shape.input.w, pc));
        if rows.is_empty() || cols.is_empty() || grid.0 == 0 || grid.1 == 0 {
            continue;
        }
        let sweep = Sweep {
            src: shape.output(),
            dst: shape.input,
            grid,
            first: (pr, pc),
            step: s,
            kernel: (rows.len(), cols.len()),
            stride: 1,
            pad: (top, left),
        };
        sweeps.push((sweep, (rows, cols)));
    }
    sweeps
}

impl PackedSweep {
    fn pack(
        &mut self,
        team: &Team,
        level: Level,
        shape: &ConvShape,
        direction: Direction,
        weights: &[f32],
        mask: Option<&[u8]>,
    ) {
        let (k, cin) = (shape.kernel, shape.input.c);
        let (src_step, dst_step) = match direction {
            Direction::Forward => (1, k * k * cin),
            Direction::BackwardData => (k * k * cin, 1),
        };
        let Dims { c, .. } = self.sweep.dst;
        let (src_c, depth) = (self.sweep.src.c, self.sweep.depth());
        let (panel, lanes) = correlate::panel_sizes(level);
        let taps = &self.taps;
        team.for_parts(&mut self.packed, depth * panel, |index, part| {
            let at = index * panel;
            let width = if c - at <= lanes { lanes } else { panel };
            for (tap, rows) in part.chunks_exact_mut(src_c * width).enumerate() {
                let (kh, kw) = (taps.0[tap / taps.1.len()], taps.1[tap % taps.1.len()]);
                for (ci, row) in rows.chunks_exact_mut(width).enumerate() {
                    let from = (kh * k + kw) * cin + ci * src_step + at * dst_step;
                    for (j, out) in row.iter_mut().enumerate() {
                        *out = match mask {
                            _ if at + j >= c => 0.0,
                            Some(mask) => weights[from + j * dst_step] * f32::from(mask[from + j * dst_step]),
                            None => weights[from + j * dst_step],
                        };
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(size: usize, kernel: usize, stride: usize) -> ConvShape {
        ConvShape { input: Dims { h: size, w: size, c: 4 }, cout: 4, kernel, stride, pad: kernel / 2 }
    }

    #[test]
    fn backward_sweeps_use_every_tap_once_per_output() {
        for (size, kernel, stride) in [(8, 3, 1), (8, 3, 2), (9, 3, 2), (8, 1, 2), (14, 7, 2), (5, 1, 1)] {
            let taps: usize =
                backward_sweeps(&shape(size, kernel, stride)).iter().map(|(_, t)| t.0.len() * t.1.len()).sum();
            assert_eq!(taps, kernel * kernel, "kernel {kernel}, stride {stride}");
        }
    }
}
