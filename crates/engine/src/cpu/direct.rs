//! Direct convolutions of any shape: the sweeps behind each pass, their packed weights, and how their tasks run on the team.

use super::cell::{Cell, per_cell};
use super::conv::{Context, Convolution, Packing};
use super::correlate;
use super::elementwise;
use super::gradient;
use super::kernels;
use super::layout::{Blocks, Layout};
use super::pack;
use super::simd::Level;
use super::sweep::Sweep;
use super::team::{Shards, Team};
use crate::host::slack;
use crate::types::{ConvShape, ConvUse, Dims, Direction, Write};
use std::ops::Range;

/// A sweep and where its weights lie.
struct PackedSweep {
    sweep: Sweep,
    /// The master weights' taps, row by row, that this sweep's are.
    taps: Vec<usize>,
    /// Its weights among those of its direction.
    packed: Range<usize>,
}

/// A convolution planned for a level.
pub(crate) struct DirectConv {
    shape: ConvShape,
    layout: Layout,
    forward: PackedSweep,
    backward: Vec<PackedSweep>,
    trains: bool,
}

impl DirectConv {
    /// Plans the passes.
    pub fn new<E: Cell>(shape: ConvShape, used: ConvUse, level: Level) -> Self {
        let layout = Layout::of::<E>(level);
        let per_cell = per_cell::<E>(level);
        // Tiles take such pixels as they lie already.
        let shape = if layout.on_tiles { shape } else { in_long_rows(shape, per_cell) };
        let packed = |first: usize, sweep: Sweep, (rows, cols): Taps| {
            let taps = rows.iter().flat_map(|row| cols.iter().map(move |col| row * shape.kernel + col)).collect();
            let sweep = Sweep { per_cell, widens: per_cell < E::PER_CELL, ..sweep };
            let len = layout.packed_rows(&sweep) * layout.channels(sweep.dst.c);
            PackedSweep { packed: first..first + len, sweep, taps }
        };
        let all: Vec<usize> = (0..shape.kernel).collect();
        let forward = packed(0, forward_sweep(&shape), (all.clone(), all));
        let mut backward: Vec<PackedSweep> = Vec::new();
        if used == ConvUse::Train {
            for (sweep, taps) in backward_sweeps(&shape) {
                let end = backward.last().map_or(0, |last| last.packed.end);
                backward.push(packed(end.next_multiple_of(LINE), sweep, taps));
            }
        }
        Self { shape, layout, forward, backward, trains: used == ConvUse::Train }
    }

    #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
    pub fn forward_sweep(&self) -> &Sweep {
        &self.forward.sweep
    }

    fn sweeps(&self, direction: Direction) -> &[PackedSweep] {
        match direction {
            Direction::Forward => std::slice::from_ref(&self.forward),
            Direction::BackwardData => &self.backward,
        }
    }
}

/// Floats of a cache line.
const LINE: usize = 16;

impl<E: Cell> Convolution<E> for DirectConv {
    fn scratch_len(&self, used: ConvUse) -> usize {
        let sweeps = std::iter::once(&self.forward).chain(&self.backward);
        let source = sweeps.map(|s| kernels::scratch_len(self.layout, &s.sweep)).max().unwrap_or(0);
        let sweep = &self.forward.sweep;
        source.max(if used == ConvUse::Forward { 0 } else { kernels::gradient_scratch_len(self.layout, sweep) })
    }

    fn partial_len(&self, max_batch: usize, n_members: usize, used: ConvUse) -> usize {
        let sweep = &self.forward.sweep;
        let sums = kernels::most_tasks(self.layout, sweep, max_batch) * 2 * self.shape.cout;
        let blocks = Blocks::of(self.layout, sweep);
        let len = blocks.n * blocks.len;
        sums.max(if used == ConvUse::Forward { 0 } else { n_slices(len, n_members) * len })
    }

    fn packed_len(&self, direction: Direction) -> usize {
        self.sweeps(direction).last().map_or(0, |last| last.packed.end)
    }

    fn pack(&mut self, from: &Packing, packed: &mut [f32]) {
        let &Packing { weights, mask, .. } = from;
        let masters = pack::Masters { weights, mask, n_taps: self.shape.kernel.pow(2), cin: self.shape.input.c };
        for sweep in self.sweeps(from.direction) {
            sweep.pack::<E>(from, self.layout, masters, &mut packed[sweep.packed.clone()]);
        }
    }

    fn forward(&self, ctx: &mut Context, n: usize, x: &[E], y: &mut [E], sums: Option<&mut [f32]>) {
        run(&self.forward, self.layout, ctx, n, x, y, Write::Set, sums);
    }

    fn backward_data(&self, ctx: &mut Context, n: usize, dy: &[E], dx: &mut [E], write: Write) {
        assert!(self.trains, "a convolution planned without backward-data was asked for it");
        let covered = self.backward.iter().map(|s| s.sweep.grid.0 * s.sweep.grid.1).sum();
        clear_uncovered(ctx.team, &self.shape, covered, n, dx, write);
        for sweep in &self.backward {
            run(sweep, self.layout, ctx, n, dy, dx, write, None);
        }
    }

    /// Slices of a gradient are added in order, so the result depends on the number of threads but not on who ran what.
    fn backward_weight(&self, ctx: &mut Context, n: usize, x: &[E], dy: &[E], dw: &mut [f32], mask: Option<&[u8]>) {
        let (sweep, level) = (&self.forward.sweep, ctx.level);
        assert_source(sweep, n, x);
        assert!(dy.len() >= n * sweep.dst.len(), "gradient of {} numbers for {n} images", dy.len());
        let tasks = kernels::gradient_tasks(self.layout, sweep, n);
        let (n_tasks, n_members) = (sweep.n_tasks(tasks, n), ctx.team.n_members());
        let blocks = Blocks::of(self.layout, sweep);
        let (n_blocks, block, len) = (blocks.n, blocks.len, blocks.n * blocks.len);
        let n_slices = n_slices(len, n_members).min(n_tasks);
        // Where there are several slices, or one member, a slice's blocks are one share.
        let n_panels = self.shape.cout.div_ceil(self.layout.panel);
        let wanted = if n_slices > 1 || n_members == 1 { 1 } else { SHARES * n_members };
        let cut = kernels::gradient_cut(self.layout, sweep, n, wanted, (n_blocks, n_panels));
        let gradient::Cut { unit, shares, splits } = cut;
        let start = |share: usize| n_blocks / unit * share / shares * unit;
        let job = gradient::Job { sweep, tasks, x, dy, n };
        let (scratch, partial) = (Shards::new(ctx.scratch), Shards::new(&mut ctx.partial[..n_slices * len]));
        ctx.team.for_chunks(n_slices * shares * splits, |index, member| {
            let (slice, share, split) = (index / splits / shares, index / splits % shares, index % splits);
            let here = start(share)..start(share + 1);
            let dw = partial.as_ptr().wrapping_add(slice * len + here.start * block);
            // SAFETY: one scratch per member.
            let scratch = unsafe { &mut scratch.part(member, 1)[0] };
            let tasks = n_tasks * slice / n_slices..n_tasks * (slice + 1) / n_slices;
            for (i, task) in tasks.enumerate() {
                let write = if i == 0 { Write::Set } else { Write::Add };
                let panels = n_panels * split / splits..n_panels * (split + 1) / splits;
                let to = gradient::Target { blocks: here.clone(), panels, dw, write };
                // SAFETY: shares have different blocks or panels of a slice, and each runs once; `level` is at most what the engine
                // detected.
                unsafe { kernels::weight_gradient(level, &job, &blocks, task, scratch, to) };
            }
        });
        self.add_slices(ctx.team, level, &ctx.partial[..n_slices * len], blocks, dw, mask);
    }
}

impl DirectConv {
    /// Adds the sums of all slices of a weight gradient to `dw`, where the mask keeps it.
    fn add_slices(
        &self,
        team: &Team,
        level: Level,
        slices: &[f32],
        blocks: Blocks,
        dw: &mut [f32],
        mask: Option<&[u8]>,
    ) {
        let (sweep, depth) = (&self.forward.sweep, self.forward.sweep.depth());
        let reduce = elementwise::Reduce { slices, blocks, taps: sweep.kernel, cin: sweep.src.c };
        let (n_pieces, panel, dw) = (reduce.n_pieces(), self.layout.panel, Shards::new(dw));
        team.for_chunks(self.shape.cout.div_ceil(panel) * n_pieces, |chunk, _| {
            let at = chunk / n_pieces * panel;
            let left = self.shape.cout - at;
            let piece = reduce.piece(chunk % n_pieces, at, self.layout.width(left));
            let (n, mut sums) = (piece.n, [0.0; elementwise::WIDEST * elementwise::LONGEST]);
            let sums = &mut sums[..left.min(panel) * n];
            kernels::reduce_weights(level, &reduce, piece, sums);
            for (sums, from) in sums.chunks_exact(n).zip((at * depth + piece.first..).step_by(depth)) {
                // SAFETY: chunks have different channels or weights, and each runs once.
                elementwise::add_kept(level, unsafe { dw.part(from, n) }, sums, mask.map(|mask| &mask[from..from + n]));
            }
        });
    }
}

/// Shares for each member of a gradient that is shared by blocks: more even out cores of unequal speed.
const SHARES: usize = 2;

/// Slices of a weight gradient of `len` floats.
fn n_slices(len: usize, n_members: usize) -> usize {
    if len > gradient::SLICE_LIMIT { 1 } else { n_members }
}

/// Zeroes what no sweep of a backward-data pass writes: pixels that no window reads.
fn clear_uncovered<E: Cell>(team: &Team, shape: &ConvShape, covered: usize, n: usize, dx: &mut [E], write: Write) {
    if write == Write::Set && covered < shape.input.pixels() {
        team.for_parts(&mut dx[..n * shape.input.len()], 1 << 16, |_, part| part.fill(E::default()));
    }
}

#[allow(clippy::too_many_arguments)]
fn run<E: Cell>(
    packed: &PackedSweep,
    layout: Layout,
    ctx: &mut Context,
    n: usize,
    x: &[E],
    y: &mut [E],
    write: Write,
    sums: Option<&mut [f32]>,
) {
    let PackedSweep { sweep, packed, .. } = packed;
    let (team, level) = (ctx.team, ctx.level);
    assert_source(sweep, n, x);
    assert!(y.len() >= n * sweep.dst.len(), "destination of {} numbers for {n} images", y.len());
    let tasks = kernels::tasks(layout, sweep, n);
    let job =
        correlate::Job { sweep, tasks, packed: &ctx.packed[packed.clone()], x, y: Shards::new(y).as_ptr(), n, write };
    let (n_tasks, n_panels) = (sweep.n_tasks(tasks, n), sweep.dst.c.div_ceil(layout.panel));
    let (has_sums, width) = (sums.is_some(), 2 * sweep.dst.c);
    let partial = Shards::new(&mut ctx.partial[..if has_sums { n_tasks * width } else { 0 }]);
    let scratch = Shards::new(ctx.scratch);
    // Where tasks are few, threads share their panels, too.
    let splits = (2 * team.n_members()).div_ceil(n_tasks.max(1)).min(n_panels);
    team.for_chunks(n_tasks * splits, |chunk, member| {
        let (task, split) = (chunk / splits, chunk % splits);
        let sums = correlate::Sums { start: partial.as_ptr().wrapping_add(task * width), c: sweep.dst.c };
        let share = correlate::Share { task, panels: n_panels * split / splits..n_panels * (split + 1) / splits };
        // SAFETY: one scratch per member; `y` holds `n` images by the assertion, and the partial results all tasks' sums; shares have
        // different pixels or channels, and each runs once; `level` is at most what the engine detected.
        unsafe {
            let scratch = &mut scratch.part(member, 1)[0];
            kernels::correlate(level, layout, &job, &share, scratch, has_sums.then_some(sums));
        }
    });
    if let Some(sums) = sums {
        elementwise::add_partials(team, level, &ctx.partial[..n_tasks * width], sums);
    }
}

/// The kernels read pixels in groups, and past the last one: `x` must hold `n` images and their slack.
fn assert_source<E>(sweep: &Sweep, n: usize, x: &[E]) {
    let needed = n * sweep.src.len() + slack(sweep.src);
    assert!(x.len() >= needed, "source of {} numbers where {n} images and slack are {needed}", x.len());
}

/// Pixels of a group, at the levels with the widest.
const GROUP: usize = 4;

/// A 1×1 convolution of stride 1 knows no rows: where rows are not whole groups of pixels, the same pixels in rows as long as a task
/// can be.
fn in_long_rows(shape: ConvShape, per_cell: usize) -> ConvShape {
    let ConvShape { input, kernel, stride, pad, .. } = shape;
    if (kernel, stride, pad) != (1, 1, 0) || input.w.is_multiple_of(GROUP) {
        return shape;
    }
    let (n, longest) = (input.pixels(), correlate::longest_row(input.c, per_cell));
    match (input.w..=longest.min(n)).rev().find(|&w| n.is_multiple_of(w)) {
        Some(w) => ConvShape { input: Dims { h: n / w, w, ..input }, ..shape },
        None => shape,
    }
}

fn forward_sweep(shape: &ConvShape) -> Sweep {
    assert!((1..=2).contains(&shape.stride), "strides 1 and 2 are planned for, not {}", shape.stride);
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
        per_cell: 1,
        widens: false,
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
type Taps = (Vec<usize>, Vec<usize>);

fn backward_sweeps(shape: &ConvShape) -> Vec<(Sweep, Taps)> {
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
            per_cell: 1,
            widens: false,
        };
        sweeps.push((sweep, (rows, cols)));
    }
    sweeps
}

impl PackedSweep {
    fn pack<E: Cell>(&self, from: &Packing, layout: Layout, masters: pack::Masters, packed: &mut [f32]) {
        let &Packing { team, level, direction, .. } = from;
        let Dims { c, .. } = self.sweep.dst;
        let panel = layout.panel;
        let (sweep, taps) = (&self.sweep, &self.taps);
        team.for_parts(packed, layout.packed_rows(sweep) * panel, |index, part| {
            let first = index * panel;
            let width = layout.width(c - first);
            let panel = pack::Panel {
                masters,
                taps,
                source: (sweep.src.c, sweep.channels()),
                first,
                n: width.min(c - first),
                width,
            };
            // SAFETY: `level` is at most what the engine detected; where it has no pairs, the sweep widens.
            unsafe {
                match (direction, sweep.widens) {
                    (Direction::Forward, false) => pack::forward::<E>(level, &panel, E::of_scratch(part)),
                    (Direction::Forward, true) => pack::forward::<f32>(level, &panel, part),
                    (Direction::BackwardData, false) => pack::backward::<E>(level, &panel, E::of_scratch(part)),
                    (Direction::BackwardData, true) => pack::backward::<f32>(level, &panel, part),
                }
            }
            // Rows behind the last meet zeros, but zeros times what another layer left there may be not a number.
            part[sweep.cells() * width..].fill(0.0);
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

    #[test]
    fn rows_of_pixels_are_joined_where_they_are_not_whole_groups() {
        let row = |size, c, kernel, stride| {
            let shape = shape(size, kernel, stride);
            let joined = in_long_rows(ConvShape { input: Dims { c, ..shape.input }, ..shape }, 2).input;
            assert_eq!(joined.pixels(), size * size);
            joined.w
        };
        assert_eq!([row(14, 256, 1, 1), row(7, 2048, 1, 1), row(30, 64, 1, 1)], [196, 49, 300]);
        assert_eq!(row(14, 2048, 1, 1), 98, "no longer than a task");
        assert_eq!([row(28, 64, 1, 1), row(14, 64, 3, 1), row(14, 64, 1, 2), row(23, 4, 1, 1)], [28, 14, 14, 23]);
    }
}
