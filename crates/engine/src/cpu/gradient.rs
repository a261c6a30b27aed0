//! The weight gradient of the vector levels: a matrix product over pixels.
//!
//! A task gathers its gradients by panel and, for each block of inputs, the inputs of all its pixels, so that the hot loop
//! reads two contiguous streams: in place they lie `cin` and `cout` numbers apart, which for wide layers is the same few
//! cache sets. Where a cell holds two numbers, it holds those of two pixels.
//!
//! Threads share the work by images where a gradient is small: each sums a slice of its own. A large one would cost more to
//! clear, fill and add up than its pixels are worth; there each thread takes some blocks of inputs, over all images.

use super::cell::Cell;
use super::correlate::MAX_PIXELS;
use super::layout::{Blocks, Layout};
use super::simd::{MAX_LANES, Simd, kernel};
use super::sweep::{Sweep, Task, TaskShape, View};
use crate::types::Dims;
use std::marker::PhantomData;

/// Most pixels of a task, and most cells of its source.
const TASK_PIXELS: usize = 384;
const TASK_SOURCE: usize = 1 << 17;

/// The tasks of the weight gradient of a forward sweep.
pub(crate) fn tasks(sweep: &Sweep) -> TaskShape {
    sweep.task_shape(TASK_PIXELS, TASK_SOURCE)
}

/// A weight gradient to be summed over tasks.
pub(crate) struct Job<'a, E> {
    /// The forward sweep.
    pub sweep: &'a Sweep,
    pub tasks: TaskShape,
    /// Input images with slack.
    pub x: &'a [E],
    /// Gradients of the output images.
    pub dy: &'a [E],
    pub n: usize,
}

/// Cells that hold the numbers of `pixels` pixels.
fn depth_cells(sweep: &Sweep, pixels: usize) -> usize {
    pixels.div_ceil(sweep.per_cell)
}

/// Floats of scratch that a task needs.
pub(crate) fn scratch_len(layout: Layout, sweep: &Sweep) -> usize {
    let (images, rows) = tasks(sweep);
    let depth = depth_cells(sweep, images * rows * sweep.grid.1);
    sweep.scratch_len((images, rows)) + depth * (layout.channels(sweep.dst.c) + TOGETHER * MAX_LANES) + 2 * LINE
}

kernel! {
    /// Adds a task's weight gradient to the blocks of inputs from `first` on that `dw` has room for.
    ///
    /// # Safety
    /// `level` must be supported by the CPU.
    pub(crate) unsafe fn weight_gradient(job: &Job<E>, blocks: &Blocks, task: usize, first: usize, scratch: &mut [f32],
                                         dw: &mut [f32]) = weight_task
}

#[inline(always)]
unsafe fn weight_task<E: Cell, S: Simd>(
    job: &Job<E>,
    blocks: &Blocks,
    task: usize,
    first: usize,
    scratch: &mut [f32],
    dw: &mut [f32],
) {
    let (sweep, layout) = (job.sweep, blocks.layout);
    let task = sweep.task(job.tasks, job.n, task);
    let (copied, scratch) = scratch.split_at_mut(sweep.scratch_len(job.tasks));
    let view = sweep.source(&task, job.x, E::of_scratch(copied));
    let c = sweep.dst.c;
    let run = sweep.kernel.1 * sweep.channels();
    let depth = depth_cells(sweep, task.n_images * task.n_rows * sweep.grid.1);
    let (xs, dys) = aligned(scratch).split_at_mut(depth * TOGETHER * MAX_LANES);
    let n_panels = c.div_ceil(S::PANEL);
    for panel in 0..n_panels {
        let (at, width) = (panel * S::PANEL, layout.width(c - panel * S::PANEL));
        // SAFETY: the level is the caller's promise.
        unsafe { gather_gradients::<E, S>(job, &task, at, width, &mut dys[at * depth..][..width * depth]) };
    }
    let (per_row, len) = (blocks.per_row(), blocks.len);
    for (group, dw) in dw.chunks_mut(TOGETHER * len).enumerate() {
        let first = first + group * TOGETHER;
        let offset = |block: usize| block / per_row * view.row + block % per_row * S::PIXELS;
        // Surplus blocks of the last group repeat its last one.
        let offsets = std::array::from_fn(|b| offset(first + b.min(dw.len() / len - 1)));
        // SAFETY: the level is the caller's promise; inputs past a row's end lie in the slack behind the view.
        unsafe { gather_inputs::<E, S>(sweep, &task, &view, offsets, depth, xs) };
        for (b, dw) in dw.chunks_exact_mut(len).enumerate() {
            let rows = S::PIXELS.min(run - (first + b) % per_row * S::PIXELS);
            let x = &xs[b * depth * S::LANES..][..depth * S::LANES];
            for panel in 0..n_panels {
                let (at, width) = (panel * S::PANEL, layout.width(c - panel * S::PANEL));
                let out = &mut dw[at * S::PIXELS..][..rows * width];
                let dy = &dys[at * depth..][..width * depth];
                // SAFETY: the level is the caller's promise; all slices hold `depth` entries of their width.
                unsafe {
                    if width == S::LANES {
                        weight_block::<E, S, 1>(x, dy, out);
                    } else {
                        weight_block::<E, S, 2>(x, dy, out);
                    }
                }
            }
        }
    }
}

/// A gathered stream: vectors of the next cell of pixels, each from its place in the pixel to its place in the stream.
struct Stream<S, const N: usize> {
    /// Where in a pixel each vector begins, how many numbers it takes (zeros behind), and where it goes in the first cell.
    from: [usize; N],
    n: usize,
    to: [*mut f32; N],
    /// Floats from one cell to the next.
    step: usize,
    vectors: PhantomData<S>,
}

impl<S: Simd, const N: usize> Stream<S, N> {
    /// Takes the pixels of `n_lines` lines; a cell may hold pixels of two lines, and zeros at the very end.
    ///
    /// # Safety
    /// As [`Simd`]; the numbers are readable at each pixel, and there is room for all cells.
    #[inline(always)]
    unsafe fn lines<E: Cell>(
        &mut self,
        n_lines: usize,
        per_line: usize,
        step: usize,
        line_start: impl Fn(usize) -> *const E,
    ) {
        let mut waiting = None;
        for line in 0..n_lines {
            let mut from = line_start(line);
            let mut left = per_line;
            // SAFETY: handed through, as below.
            unsafe {
                if let Some(first) = waiting.take() {
                    self.cell([first, from]);
                    (from, left) = (from.wrapping_add(step), left - 1);
                }
                for _ in 0..left / E::PER_CELL {
                    self.cell([from, from.wrapping_add(step)]);
                    from = from.wrapping_add(E::PER_CELL * step);
                }
            }
            if !left.is_multiple_of(E::PER_CELL) {
                waiting = Some(from);
            }
        }
        if let Some(first) = waiting {
            // As far as any vector reaches, from its own place.
            let zeros = [E::default(); MAX_LANES];
            for i in 0..N {
                // SAFETY: see above; no vector is wider than the zeros.
                unsafe {
                    let second = zeros.as_ptr().wrapping_sub(self.from[i]);
                    self.vector(i, [first, second]);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn cell<E: Cell>(&mut self, pixels: [*const E; 2]) {
        for i in 0..N {
            // SAFETY: handed through.
            unsafe { self.vector(i, pixels) };
        }
    }

    #[inline(always)]
    unsafe fn vector<E: Cell>(&mut self, i: usize, pixels: [*const E; 2]) {
        let from = [pixels[0].wrapping_add(self.from[i]), pixels[1].wrapping_add(self.from[i])];
        // SAFETY: handed through.
        unsafe { E::across::<S>(from, self.n).store_first(self.to[i], S::LANES) };
        self.to[i] = self.to[i].wrapping_add(self.step);
    }
}

/// Channels `at..at + width` of a task's gradients, cell by cell, zeros past the last channel.
#[inline(always)]
unsafe fn gather_gradients<E: Cell, S: Simd>(job: &Job<E>, task: &Task, at: usize, width: usize, out: &mut [f32]) {
    let Dims { h, w, c } = job.sweep.dst;
    let line = |line: usize| {
        let (image, row) = (task.image + line / task.n_rows, task.row + line % task.n_rows);
        job.dy[(image * h + row) * w * c + at..].as_ptr()
    };
    let n_lines = task.n_images * task.n_rows;
    for v in (0..width).step_by(S::LANES) {
        let (from, to, step, vectors) = ([v], [out[v..].as_mut_ptr()], width, PhantomData);
        // SAFETY: the level is the caller's promise; each pixel has `c` channels; `out` has room for all pixels.
        unsafe {
            // A whole vector is known to be one, and needs no mask.
            if c - at >= v + S::LANES {
                Stream::<S, 1> { from, n: S::LANES, to, step, vectors }.lines(n_lines, w, c, line);
            } else {
                let n = (c - at).saturating_sub(v);
                Stream::<S, 1> { from, n, to, step, vectors }.lines(n_lines, w, c, line);
            }
        }
    }
}

/// `S::LANES` inputs from each of `offsets` on of every window of a task, cell by cell: one stream of `depth` vectors each.
/// Several at once, because the cache lines of the windows are the cost.
#[inline(always)]
unsafe fn gather_inputs<E: Cell, S: Simd>(
    sweep: &Sweep,
    task: &Task,
    view: &View<E>,
    offsets: [usize; TOGETHER],
    depth: usize,
    out: &mut [f32],
) {
    let line = |line: usize| {
        let (image, row) = (line / task.n_rows, line % task.n_rows);
        view.data[image * view.image + row * sweep.stride * view.row..].as_ptr()
    };
    let to = std::array::from_fn(|i| out[i * depth * S::LANES..].as_mut_ptr());
    let (from, n, step) = (offsets, S::LANES, S::LANES);
    let mut stream = Stream::<S, TOGETHER> { from, n, to, step, vectors: PhantomData };
    // SAFETY: the level is the caller's promise; windows lie in the view and its slack; `out` has room for every window.
    unsafe { stream.lines(task.n_images * task.n_rows, sweep.grid.1, sweep.stride * sweep.channels(), line) };
}

/// Floats of a cache line.
const LINE: usize = 16;

/// Blocks of inputs that are gathered in one go.
const TOGETHER: usize = 4;

/// The part of `scratch` that begins with a cache line.
#[inline(always)]
fn aligned(scratch: &mut [f32]) -> &mut [f32] {
    let skip = scratch.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
    &mut scratch[skip..]
}

/// The hot loop of the weight gradient: `S::PIXELS` inputs × `V` vectors of output channels in registers over all pixels, cell by cell.
#[inline(always)]
unsafe fn weight_block<E: Cell, S: Simd, const V: usize>(x: &[f32], dy: &[f32], out: &mut [f32]) {
    // SAFETY: the caller vouches for the level; `x` and `dy` hold as many cells a row; `out` holds whole rows of `V` vectors.
    unsafe {
        let mut acc = [[S::zero(); V]; MAX_PIXELS];
        let (mut from, mut dy) = (x.as_ptr(), dy.as_ptr());
        // What the sums will be added to is seldom in the nearest cache.
        for line in out.chunks(LINE) {
            S::prefetch(line.as_ptr());
        }
        for _ in 0..x.len() / S::LANES {
            let mut g = [S::zero(); V];
            for (v, g) in g.iter_mut().enumerate() {
                *g = S::load(dy.add(v * S::LANES));
            }
            for (r, acc) in acc.iter_mut().enumerate().take(S::PIXELS) {
                let a = S::splat(from.add(r));
                for (acc, g) in acc.iter_mut().zip(g) {
                    *acc = E::dot(*acc, a, g);
                }
            }
            from = from.add(S::LANES);
            dy = dy.add(V * S::LANES);
        }
        // Whole blocks are added straight from registers.
        let rows = out.len() / (V * S::LANES);
        if rows == S::PIXELS {
            for r in 0..S::PIXELS {
                add_row::<S, V>(acc[r], out.as_mut_ptr().add(r * V * S::LANES));
            }
        } else {
            for (r, acc) in acc.into_iter().enumerate().take(rows) {
                add_row::<S, V>(acc, out.as_mut_ptr().add(r * V * S::LANES));
            }
        }
    }
}

/// # Safety
/// As [`Simd`]; `to` has room for `V` vectors.
#[inline(always)]
unsafe fn add_row<S: Simd, const V: usize>(row: [S; V], to: *mut f32) {
    // SAFETY: handed through.
    unsafe {
        let one = S::splat(&1.0);
        for (v, row) in row.into_iter().enumerate() {
            let to = to.add(v * S::LANES);
            row.fma(S::load(to), one).store_first(to, S::LANES);
        }
    }
}
