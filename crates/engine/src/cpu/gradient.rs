//! The weight gradient of the vector levels: a matrix product over pixels.
//!
//! A task gathers the inputs of all its pixels, some blocks of them at a time, and then the gradients, some panels at a time, so that the
//! hot loop reads two contiguous streams: in place they lie `cin` and `cout` numbers apart, which for wide layers is the same few
//! cache sets. Where a cell holds two numbers, it holds those of two pixels. What is gathered stays in cache until it has met its
//! counterparts.
//!
//! Threads share the work by images where a gradient is small: each sums a slice of its own. A large one would cost more to fill and add up than
//! its pixels are worth; there each thread takes some blocks of inputs, over all images, on tiles perhaps of some panels of channels only.

use super::ahead::{self, Ahead, LINE, Lines, Run};
use super::cell::{Cell, per_cell_of};
use super::correlate::{MAX_PIXELS, add_products};
use super::layout::{Blocks, Layout};
use super::simd::{MAX_LANES, Simd, kernel};
use super::sweep::{Sweep, Task, TaskShape, View};
use crate::types::{Dims, Write};
use std::marker::PhantomData;
use std::ops::Range;

/// Most pixels of a task, and most cells of its source: whole rows of 56 and 28 pixels, whole images of 14 and 7.
const TASK_PIXELS: usize = 392;
const TASK_SOURCE: usize = 1 << 18;

/// Floats of the inputs that are gathered before gradients pass them, about, by vectors of so many lanes: a quarter of a megabyte, or half of one
/// where vectors are short.
const fn gathered(lanes: usize) -> usize {
    (1 << 20) / lanes
}

/// Floats above which threads share a weight gradient by its blocks instead of summing slices.
pub(crate) const SLICE_LIMIT: usize = 1 << 18;

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

/// Where a task's part of some blocks of inputs goes, or is added; on tiles of some panels of channels of each, on vectors of all.
pub(crate) struct Target {
    pub blocks: Range<usize>,
    pub panels: Range<usize>,
    /// The first of the blocks.
    pub dw: *mut f32,
    pub write: Write,
}

/// How the blocks of a gradient are shared: `shares` of whole units of blocks, each of them in `splits` by panels of channels.
pub(crate) struct Cut {
    pub unit: usize,
    pub shares: usize,
    pub splits: usize,
}

/// A gradient of `n_blocks` blocks, to have about `wanted` shares.
pub(crate) fn cut(n_blocks: usize, wanted: usize) -> Cut {
    Cut { unit: 1, shares: n_blocks.min(wanted), splits: 1 }
}

/// Cells that hold the numbers of `pixels` pixels.
fn depth_cells(sweep: &Sweep, pixels: usize) -> usize {
    pixels.div_ceil(sweep.per_cell)
}

/// Cells of pixels of a whole task.
fn most_cells(sweep: &Sweep, (images, rows): TaskShape) -> usize {
    depth_cells(sweep, images * rows * sweep.grid.1)
}

/// How many blocks of inputs are gathered before gradients pass them, at most (but for whole `TOGETHER`s).
fn most_gathered(sweep: &Sweep, tasks: TaskShape, lanes: usize) -> usize {
    (gathered(lanes) / (most_cells(sweep, tasks) * lanes)).max(TOGETHER)
}

/// The same for `n` blocks: about as many in every round.
fn n_gathered(sweep: &Sweep, tasks: TaskShape, lanes: usize, n: usize) -> usize {
    n.div_ceil(n.div_ceil(most_gathered(sweep, tasks, lanes))).next_multiple_of(TOGETHER)
}

/// Floats of scratch that a task needs, whatever blocks it is asked for.
pub(crate) fn scratch_len(layout: Layout, sweep: &Sweep) -> usize {
    let tasks = tasks(sweep);
    let lanes = layout.narrow;
    let gathered = most_gathered(sweep, tasks, lanes).min(Blocks::of(layout, sweep).n).next_multiple_of(TOGETHER);
    sweep.scratch_len_as_is(tasks) + most_cells(sweep, tasks) * (gathered + VECTORS) * lanes + 2 * LINE
}

kernel! {
    /// Computes a task's part of some blocks of the weight gradient.
    ///
    /// # Safety
    /// `level` must be supported by the CPU; the target's blocks must be writable, and nobody else's.
    pub(crate) unsafe fn weight_gradient(job: &Job<E>, blocks: &Blocks, task: usize, scratch: &mut [f32],
                                         to: Target) = weight_task
}

#[inline(always)]
unsafe fn weight_task<E: Cell, S: Simd>(job: &Job<E>, blocks: &Blocks, task: usize, scratch: &mut [f32], to: Target) {
    // SAFETY: handed through.
    unsafe {
        if per_cell_of::<E, S>() == E::PER_CELL {
            weight_cells::<E, E, S>(job, blocks, task, scratch, to);
        } else {
            weight_cells::<E, f32, S>(job, blocks, task, scratch, to);
        }
    }
}

/// A task by cells of `C`.
#[inline(always)]
unsafe fn weight_cells<E: Cell, C: Cell, S: Simd>(
    job: &Job<E>,
    blocks: &Blocks,
    task: usize,
    scratch: &mut [f32],
    to: Target,
) {
    let (sweep, layout, write) = (job.sweep, blocks.layout, to.write);
    let (first, n_blocks) = (to.blocks.start, to.blocks.len());
    assert_eq!(sweep.per_cell, C::PER_CELL, "slices are laid out for these cells");
    assert_eq!(to.panels, 0..sweep.dst.c.div_ceil(S::PANEL), "all panels of a block are one share");
    // SAFETY: the caller's promise.
    let dw = unsafe { std::slice::from_raw_parts_mut(to.dw, n_blocks * blocks.len) };
    let next = sweep.task_after(job.tasks, job.n, task);
    let mut lines = Ahead([
        Lines::of(job.dy, sweep.dst, 1, next.as_ref()),
        Lines::of(job.x, sweep.src, sweep.stride, next.as_ref()),
    ]);
    let task = sweep.task(job.tasks, job.n, task);
    let (copied, scratch) = scratch.split_at_mut(sweep.scratch_len_as_is(job.tasks));
    let view = sweep.source(&task, job.x, E::of_scratch(copied));
    let c = sweep.dst.c;
    let run = sweep.kernel.1 * sweep.channels();
    let depth = depth_cells(sweep, task.n_images * task.n_rows * sweep.grid.1);
    let (per_row, len) = (blocks.per_row(), blocks.len);
    let (n_gathered, n_asked) = (n_gathered(sweep, job.tasks, S::LANES, n_blocks), ahead::n_asked::<S>(depth));
    let (xs, dy) = aligned(scratch).split_at_mut(n_gathered * depth * S::LANES);
    for (group, dw) in dw.chunks_mut(n_gathered * len).enumerate() {
        let first = first + group * n_gathered;
        let last = first + dw.len() / len - 1;
        for (block, xs) in (first..=last).step_by(TOGETHER).zip(xs.chunks_exact_mut(TOGETHER * depth * S::LANES)) {
            // Surplus blocks repeat the last one.
            let block = |i: usize| (block + i).min(last);
            let offsets = std::array::from_fn(|i| block(i) / per_row * view.row + block(i) % per_row * S::PIXELS);
            // SAFETY: the level is the caller's promise; inputs past a row's end lie in the slack behind the view.
            unsafe { gather_inputs::<E, C, S>(sweep, &task, &view, offsets, depth, xs) };
        }
        for start in (0..c).step_by(VECTORS * S::LANES) {
            // SAFETY: the level is the caller's promise.
            unsafe { gather_gradients::<E, C, S>(job, &task, layout, start, depth, dy) };
            for (i, at) in (start..c).step_by(S::PANEL).take(VECTORS / S::VECTORS).enumerate() {
                let width = layout.width(c - at);
                let dy = &dy[i * S::PANEL * depth..][..width * depth];
                for (b, (dw, x)) in dw.chunks_exact_mut(len).zip(xs.chunks_exact(depth * S::LANES)).enumerate() {
                    let rows = S::PIXELS.min(run - (first + b) % per_row * S::PIXELS);
                    let out = &mut dw[at * S::PIXELS..][..rows * width];
                    // SAFETY: the level is the caller's promise; all slices hold `depth` entries of their width.
                    unsafe {
                        if width == S::LANES {
                            weight_block::<C, S, 1>(x, dy, out, write, lines.take(n_asked));
                        } else {
                            weight_block::<C, S, 2>(x, dy, out, write, lines.take(n_asked));
                        }
                    }
                }
            }
        }
    }
}

/// A gathered stream: vectors of the next cell of pixels, each from its place in the pixel to its place in the stream.
struct Stream<C, S, const N: usize> {
    /// Where in a pixel each vector begins, how many numbers it takes (zeros behind), and where it goes in the first cell.
    from: [usize; N],
    n: usize,
    to: [*mut f32; N],
    /// Floats from one cell to the next.
    step: usize,
    vectors: PhantomData<(C, S)>,
}

impl<C: Cell, S: Simd, const N: usize> Stream<C, S, N> {
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
                    self.cell([first, from], EARLY * step);
                    (from, left) = (from.wrapping_add(step), left - 1);
                }
                for _ in 0..left / C::PER_CELL {
                    self.cell([from, from.wrapping_add(step)], EARLY * step);
                    from = from.wrapping_add(C::PER_CELL * step);
                }
            }
            if !left.is_multiple_of(C::PER_CELL) {
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
    unsafe fn cell<E: Cell>(&mut self, pixels: [*const E; 2], early: usize) {
        for i in 0..N {
            // SAFETY: handed through; any address may be asked for.
            unsafe {
                if (i * S::LANES * size_of::<E>()).is_multiple_of(LINE * size_of::<f32>()) {
                    for pixel in pixels.iter().take(C::PER_CELL) {
                        S::prefetch(pixel.wrapping_add(early + self.from[i]).cast());
                    }
                }
                self.vector(i, pixels);
            }
        }
    }

    #[inline(always)]
    unsafe fn vector<E: Cell>(&mut self, i: usize, pixels: [*const E; 2]) {
        let from = [pixels[0].wrapping_add(self.from[i]), pixels[1].wrapping_add(self.from[i])];
        // SAFETY: handed through.
        unsafe {
            let cells = match C::PER_CELL {
                1 => E::load_first::<S>(from[0], self.n),
                // Of two pixels: numbers that fill a cell in pairs are bf16.
                _ => S::pairs(from[0].cast(), from[1].cast(), self.n),
            };
            cells.store_first(self.to[i], S::LANES);
        }
        self.to[i] = self.to[i].wrapping_add(self.step);
    }
}

/// A task's gradients of up to `VECTORS` vectors of channels from `start` on, panel by panel, cell by cell, zeros past the last
/// channel.
#[inline(always)]
unsafe fn gather_gradients<E: Cell, C: Cell, S: Simd>(
    job: &Job<E>,
    task: &Task,
    layout: Layout,
    start: usize,
    depth: usize,
    out: &mut [f32],
) {
    let Dims { h, w, c } = job.sweep.dst;
    let line = |line: usize| {
        let (image, row) = (task.image + line / task.n_rows, task.row + line % task.n_rows);
        job.dy[(image * h + row) * w * c + start..].as_ptr()
    };
    let n_lines = task.n_images * task.n_rows;
    let place = |v: usize| v / S::PANEL * S::PANEL * depth + v % S::PANEL;
    let (step, vectors) = (S::PANEL, PhantomData::<(C, S)>);
    // SAFETY: the level is the caller's promise; each pixel has `c` channels; `out` has room for all pixels.
    unsafe {
        const { assert!(VECTORS.is_multiple_of(S::VECTORS), "whole panels") };
        if c - start >= VECTORS * S::LANES {
            let from: [usize; VECTORS] = std::array::from_fn(|i| i * S::LANES);
            assert!(out.len() >= VECTORS * S::LANES * depth, "room for all gradients");
            let start = out.as_mut_ptr();
            let to = from.map(|v| start.wrapping_add(place(v)));
            return Stream { from, n: S::LANES, to, step, vectors }.lines(n_lines, w, c, line);
        }
        for v in (0..c - start).step_by(S::LANES) {
            let step = layout.width(c - start - v / S::PANEL * S::PANEL);
            let (from, to) = ([v], [out[place(v)..].as_mut_ptr()]);
            // A whole vector is known to be one, and needs no mask.
            if c - start >= v + S::LANES {
                Stream { from, n: S::LANES, to, step, vectors }.lines(n_lines, w, c, line);
            } else {
                let n = c - start - v;
                Stream { from, n, to, step, vectors }.lines(n_lines, w, c, line);
            }
        }
    }
}

/// `S::LANES` inputs from each of `offsets` on of every window of a task, cell by cell: one stream of `depth` vectors each.
/// Several at once, because the cache lines of the windows are the cost.
#[inline(always)]
unsafe fn gather_inputs<E: Cell, C: Cell, S: Simd>(
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
    assert!(out.len() >= TOGETHER * depth * S::LANES, "room for all windows");
    let start = out.as_mut_ptr();
    let to = std::array::from_fn(|i| start.wrapping_add(i * depth * S::LANES));
    let (from, n, step) = (offsets, S::LANES, S::LANES);
    let mut stream = Stream::<C, S, TOGETHER> { from, n, to, step, vectors: PhantomData };
    // SAFETY: the level is the caller's promise; windows lie in the view and its slack; `out` has room for every window.
    unsafe { stream.lines(task.n_images * task.n_rows, sweep.grid.1, sweep.stride * sweep.channels(), line) };
}

/// Blocks of inputs, and vectors of gradients, that are gathered in one go.
const TOGETHER: usize = 4;
const VECTORS: usize = 8;

/// How many pixels early a gathered stream's lines are asked for: those of every vector that fills a line, of every other bf16 vector,
/// whose neighbour's is nearly always the same.
const EARLY: usize = 16;

/// The part of `scratch` that begins with a cache line.
#[inline(always)]
fn aligned(scratch: &mut [f32]) -> &mut [f32] {
    let skip = scratch.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
    &mut scratch[skip..]
}

/// The hot loop of the weight gradient: `S::PIXELS` inputs × `V` vectors of output channels in registers over all pixels, cell by cell.
#[inline(always)]
unsafe fn weight_block<C: Cell, S: Simd, const V: usize>(
    x: &[f32],
    dy: &[f32],
    out: &mut [f32],
    write: Write,
    (mut asked, line): Run,
) {
    // SAFETY: the caller vouches for the level; `x` and `dy` hold as many cells a row; `out` holds whole rows of `V` vectors.
    unsafe {
        let mut acc = [[S::zero(); V]; MAX_PIXELS];
        let (mut from, mut dy) = (x.as_ptr(), dy.as_ptr());
        // What the sums will be added to is seldom in the nearest cache.
        for sums in out.chunks(LINE) {
            S::prefetch(sums.as_ptr());
        }
        let depth = x.len() / S::LANES;
        for _ in 0..depth / S::STEPS {
            for step in 0..S::STEPS {
                if step % ahead::pace::<S>() == 0 {
                    S::prefetch_far(asked);
                    asked = asked.wrapping_add(line);
                }
                let (x, dy) = (from.add(step * S::LANES), dy.add(step * V * S::LANES));
                add_products::<C, S, V>(S::PIXELS, |r| x.wrapping_add(r), dy, &mut acc);
            }
            from = from.add(S::STEPS * S::LANES);
            dy = dy.add(S::STEPS * V * S::LANES);
        }
        for step in 0..depth % S::STEPS {
            let (x, dy) = (from.add(step * S::LANES), dy.add(step * V * S::LANES));
            add_products::<C, S, V>(S::PIXELS, |r| x.wrapping_add(r), dy, &mut acc);
        }
        // Whole blocks are written straight from registers.
        let rows = out.len() / (V * S::LANES);
        match (write, rows == S::PIXELS) {
            (Write::Add, true) => write_rows::<S, V, true>(&acc, S::PIXELS, out),
            (Write::Set, true) => write_rows::<S, V, false>(&acc, S::PIXELS, out),
            (Write::Add, false) => write_rows::<S, V, true>(&acc, rows, out),
            (Write::Set, false) => write_rows::<S, V, false>(&acc, rows, out),
        }
    }
}

/// # Safety
/// As [`Simd`]; `out` has room for `n` rows of `V` vectors.
#[inline(always)]
unsafe fn write_rows<S: Simd, const V: usize, const ADDS: bool>(
    rows: &[[S; V]; MAX_PIXELS],
    n: usize,
    out: &mut [f32],
) {
    for (row, to) in rows.iter().take(n).zip(out.chunks_exact_mut(V * S::LANES)) {
        for (v, &sum) in row.iter().enumerate() {
            // SAFETY: handed through; the chunk is `V` vectors long.
            unsafe {
                let to = to.as_mut_ptr().add(v * S::LANES);
                let sum = if ADDS { sum.add(S::load(to)) } else { sum };
                sum.store_first(to, S::LANES);
            }
        }
    }
}
