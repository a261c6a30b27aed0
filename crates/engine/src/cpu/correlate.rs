//! The convolution kernel of the vector levels: forward and backward-data as one routine.
//!
//! A register-blocked matrix product that reads the image directly (no im2col). A block of pixels × output channels stays
//! in registers while the loop runs along one filter row: for NHWC the `kw · cin` inputs of a filter row are contiguous, so
//! the inner loop loads one row of packed weights and broadcasts one cell of input per pixel. Backward-data is the same
//! sweep over the output's gradient with transposed, flipped weights; with stride s it falls into s² sweeps, one per phase
//! of the input grid, each over its own subset of taps (so no multiplication by zero).
//!
//! A task is a band of rows, or several small images, large enough that a weight panel is reused from cache. Its input
//! is first copied into the member's scratch with the zero padding around it, unless no padding is needed, nor other cells.

use super::ahead::{self, Ahead, Lines, Run};
use super::cell::{Cell, per_cell_of};
use super::simd::{Simd, kernel};
use super::sweep::{Sweep, Task, TaskShape, View};
use crate::types::Write;
use std::ops::Range;

pub(super) const MAX_GROUPS: usize = 3;
pub(super) const MAX_PIXELS: usize = 12;

/// Most pixels of a task, and most cells of its source: with a weight panel beside it, half of a 2 MB L2 cache. A panel is
/// streamed once per task, so tasks should not be much smaller either.
const TASK_PIXELS: usize = 384;
const TASK_SOURCE: usize = 1 << 17;

/// The tasks of a sweep.
pub(crate) fn tasks(sweep: &Sweep) -> TaskShape {
    sweep.task_shape(TASK_PIXELS, TASK_SOURCE)
}

/// Pixels of `c` channels that a task has room for.
pub(crate) fn longest_row(c: usize, per_cell: usize) -> usize {
    TASK_PIXELS.min(TASK_SOURCE * per_cell / c)
}

/// Everything a sweep's tasks read and write.
pub(crate) struct Job<'a, E> {
    pub sweep: &'a Sweep,
    pub tasks: TaskShape,
    /// Packed weights in cells: per panel `[kh, kw·cin, panel]`.
    pub packed: &'a [f32],
    /// Source images with slack.
    pub x: &'a [E],
    /// First element of the destination.
    pub y: *mut E,
    pub n: usize,
    pub write: Write,
}

// SAFETY: shares of one job write disjoint pixels or channels of `y`; everything else is read only.
unsafe impl<E: Sync> Sync for Job<'_, E> {}

/// What a thread computes at a time: a task's pixels, some panels of channels.
pub(crate) struct Share {
    pub task: usize,
    pub panels: Range<usize>,
}

/// Where Σ and Σ² of a task's pixels go, `[2, c]`: to the channels of a share.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    pub start: *mut f32,
    pub c: usize,
}

impl Sums {
    /// Clears some channels, of those that there are.
    ///
    /// # Safety
    /// They must be writable, and nobody else's.
    pub unsafe fn clear(self, channels: Range<usize>) {
        let n = channels.end.min(self.c) - channels.start;
        for row in [0, self.c] {
            // SAFETY: the caller's promise.
            unsafe { self.start.add(row + channels.start).write_bytes(0, n) };
        }
    }
}

kernel! {
    /// Runs a share. `sums`, if given, receive those of the task's pixels, which are then set, not added to.
    ///
    /// # Safety
    /// `job.y` must point to `job.n` writable destination images; no other thread may run the same panels of a task, whose sums
    /// must be writable; `level` must be supported by the CPU.
    pub(crate) unsafe fn correlate(job: &Job<E>, share: &Share, scratch: &mut [f32], sums: Option<Sums>) = correlate_share
}

#[inline(always)]
unsafe fn correlate_share<E: Cell, S: Simd>(job: &Job<E>, share: &Share, scratch: &mut [f32], sums: Option<Sums>) {
    // SAFETY: the caller's promises.
    unsafe {
        match (sums, job.write) {
            (Some(sums), write) => {
                assert!(write == Write::Set, "sums are those of what is written");
                sums.clear(share.panels.start * S::PANEL..share.panels.end * S::PANEL);
                correlate_panels::<E, S, true, false>(job, share, scratch, sums);
            }
            (None, Write::Set) => correlate_panels::<E, S, false, false>(job, share, scratch, NO_SUMS),
            (None, Write::Add) => correlate_panels::<E, S, false, true>(job, share, scratch, NO_SUMS),
        }
    }
}

/// Those of nothing.
const NO_SUMS: Sums = Sums { start: std::ptr::null_mut(), c: 0 };

/// A task by panels of channels. `SUMS`: whether the channels' sums are wanted; `ADDS`: whether the destination is added to.
#[inline(always)]
unsafe fn correlate_panels<E: Cell, S: Simd, const SUMS: bool, const ADDS: bool>(
    job: &Job<E>,
    &Share { task, ref panels }: &Share,
    scratch: &mut [f32],
    sums: Sums,
) {
    let sweep = job.sweep;
    let next = sweep.task_after(job.tasks, job.n, task);
    let mut lines = Ahead([Lines::of(job.x, sweep.src, sweep.stride, next.as_ref())]);
    let task = sweep.task(job.tasks, job.n, task);
    assert_eq!(sweep.per_cell, per_cell_of::<E, S>(), "weights are packed for these cells");
    // SAFETY: the caller's promises.
    unsafe {
        if per_cell_of::<E, S>() == E::PER_CELL {
            let view = sweep.source(&task, job.x, E::of_scratch(scratch));
            correlate_view::<E, E, S, SUMS, ADDS>(job, &task, &view, panels.clone(), sums, &mut lines);
        } else {
            let view = sweep.widened::<E, S>(&task, job.x, scratch);
            correlate_view::<E, f32, S, SUMS, ADDS>(job, &task, &view, panels.clone(), sums, &mut lines);
        }
    }
}

/// Channels `at..at + width` of the destination, and their weights.
struct Panel<'a> {
    weights: &'a [f32],
    at: usize,
    width: usize,
}

/// A task whose source is there in cells of `C`, by panels.
#[inline(always)]
unsafe fn correlate_view<E: Cell, C: Cell, S: Simd, const SUMS: bool, const ADDS: bool>(
    job: &Job<E>,
    task: &Task,
    view: &View<C>,
    panels: Range<usize>,
    sums: Sums,
    lines: &mut Ahead<1>,
) {
    let (sweep, c) = (job.sweep, job.sweep.dst.c);
    for at in panels.map(|panel| panel * S::PANEL) {
        let panel = Panel { weights: &job.packed[at * sweep.cells()..], at, width: (c - at).min(S::PANEL) };
        // SAFETY: handed through; the panel's channels exist.
        unsafe {
            if panel.width <= S::LANES {
                correlate_panel::<E, C, S, 1, SUMS, ADDS>(job, task, view, &panel, sums, lines);
            } else {
                correlate_panel::<E, C, S, 2, SUMS, ADDS>(job, task, view, &panel, sums, lines);
            }
        }
    }
}

/// All pixels of a task for a panel of `V` vectors.
#[inline(always)]
unsafe fn correlate_panel<E: Cell, C: Cell, S: Simd, const V: usize, const SUMS: bool, const ADDS: bool>(
    job: &Job<E>,
    task: &Task,
    view: &View<C>,
    panel: &Panel,
    sums: Sums,
    lines: &mut Ahead<1>,
) {
    let sweep = job.sweep;
    let [pixel, row, run] =
        [view.stride * sweep.channels(), view.row, sweep.kernel.1 * sweep.channels()].map(|n| n / C::PER_CELL);
    let n_asked = sweep.kernel.0 * ahead::n_asked::<S>(run);
    let mut groups = Groups::of::<S>(job, task, view, panel.at);
    while groups.left > 0 {
        let block = groups.next_block::<S>();
        let from = block.from.map(<*const C>::cast::<f32>);
        let (weights, asked) = (panel.weights.as_ptr(), lines.take(n_asked));
        // SAFETY: the groups' windows lie in the view (and surplus pixels in the slack behind it), their pixels in the destination; the
        // panel holds a row of `V` vectors for every cell of a window.
        unsafe {
            // The hot loop twice: its sums stay in registers where a block is whole, as most are.
            if block.n_pixels == S::PIXELS && panel.width == V * S::LANES {
                let acc = multiply::<C, S, V>(from, pixel, row, sweep.kernel.0, run, weights, asked);
                finish::<E, C, S, V, true, SUMS, ADDS>(acc, &block, groups.pixel.1, panel, sums);
            } else {
                let acc = multiply::<C, S, V>(from, pixel, row, sweep.kernel.0, run, weights, asked);
                finish::<E, C, S, V, false, SUMS, ADDS>(acc, &block, groups.pixel.1, panel, sums);
            }
        }
    }
}

/// A register block's groups of pixels: where their windows begin, where they are written, and how many pixels of each exist.
struct Block<E, C> {
    from: [*const C; MAX_GROUPS],
    to: [*mut E; MAX_GROUPS],
    n: [usize; MAX_GROUPS],
    n_pixels: usize,
}

/// The groups of pixels of a task, one after the other. Steps are in numbers, of source and destination.
struct Groups<E, C> {
    left: usize,
    from: *const C,
    to: *mut E,
    pixel: (usize, usize),
    row: (usize, usize),
    image: (usize, usize),
    cols: usize,
    rows: usize,
    at: (usize, usize),
}

impl<E, C> Groups<E, C> {
    fn of<S: Simd>(job: &Job<E>, task: &Task, view: &View<C>, channel: usize) -> Self {
        let Sweep { dst, first, step, grid, .. } = job.sweep;
        let line = (task.image * dst.h + first.0 + task.row * step) * dst.w + first.1;
        Self {
            left: task.n_images * task.n_rows * grid.1.div_ceil(S::GROUP),
            from: view.data.as_ptr(),
            to: job.y.wrapping_add(line * dst.c + channel),
            pixel: (view.stride * job.sweep.channels(), step * dst.c),
            row: (view.stride * view.row, step * dst.w * dst.c),
            image: (view.image, dst.len()),
            cols: grid.1,
            rows: task.n_rows,
            at: (0, 0),
        }
    }

    /// The next groups; what does not exist reads where the first does.
    #[inline(always)]
    fn next_block<S: Simd>(&mut self) -> Block<E, C> {
        let mut block =
            Block { from: [self.from; MAX_GROUPS], to: [self.to; MAX_GROUPS], n: [0; MAX_GROUPS], n_pixels: 0 };
        for g in 0..S::GROUPS.min(self.left) {
            let n = S::GROUP.min(self.cols - self.at.1);
            (block.from[g], block.to[g], block.n[g]) = (self.from, self.to, n);
            block.n_pixels += n;
            self.left -= 1;
            self.at.1 += S::GROUP;
            // From the group's first pixel to the next group's, back over the row or the image where it ends.
            let (mut from, mut to) = (S::GROUP * self.pixel.0, S::GROUP * self.pixel.1);
            if self.at.1 >= self.cols {
                let back = self.at.1 - S::GROUP;
                (from, to) =
                    (self.row.0.wrapping_sub(back * self.pixel.0), self.row.1.wrapping_sub(back * self.pixel.1));
                self.at = (self.at.0 + 1, 0);
                if self.at.0 == self.rows {
                    from = from.wrapping_add(self.image.0).wrapping_sub(self.rows * self.row.0);
                    to = to.wrapping_add(self.image.1).wrapping_sub(self.rows * self.row.1);
                    self.at.0 = 0;
                }
            }
            (self.from, self.to) = (self.from.wrapping_add(from), self.to.wrapping_add(to));
        }
        block
    }
}

/// The hot loop: one register block over all taps and source channels, steps in cells.
#[inline(always)]
unsafe fn multiply<C: Cell, S: Simd, const V: usize>(
    from: [*const f32; MAX_GROUPS],
    pixel: usize,
    row: usize,
    kh: usize,
    run: usize,
    mut weights: *const f32,
    (mut asked, line): Run,
) -> [[S; V]; MAX_PIXELS] {
    // SAFETY: the caller vouches for all pointers within the window and the panel.
    unsafe {
        let mut acc = [[S::zero(); V]; MAX_PIXELS];
        // A cell of a pixel's window.
        let at = |from: [*const f32; MAX_GROUPS], r: usize, step: usize| {
            from[r / S::GROUP].wrapping_add(step + r % S::GROUP * pixel)
        };
        for a in 0..kh {
            let mut from = from.map(|from| from.wrapping_add(a * row));
            for _ in 0..run / S::STEPS {
                for step in 0..S::STEPS {
                    if step % ahead::pace::<S>() == 0 {
                        S::prefetch_far(asked);
                        asked = asked.wrapping_add(line);
                    }
                    let weights = weights.add(step * V * S::LANES);
                    add_products::<C, S, V>(S::PIXELS, |r| at(from, r, step), weights, &mut acc);
                }
                from = from.map(|from| from.wrapping_add(S::STEPS));
                weights = weights.add(S::STEPS * V * S::LANES);
            }
            for step in 0..run % S::STEPS {
                let weights = weights.add(step * V * S::LANES);
                add_products::<C, S, V>(S::PIXELS, |r| at(from, r, step), weights, &mut acc);
            }
            weights = weights.add(run % S::STEPS * V * S::LANES);
        }
        acc
    }
}

/// A step of a hot loop: adds the products of a number of each row, where `left` says, with the `V` vectors at `right`. All hot loops on vectors are
/// made of it.
///
/// # Safety
/// As [`Simd`]; the vectors must be readable, and a cell of each of `rows` rows.
#[inline(always)]
pub(super) unsafe fn add_products<C: Cell, S: Simd, const V: usize>(
    rows: usize,
    left: impl Fn(usize) -> *const f32,
    right: *const f32,
    acc: &mut [[S; V]; MAX_PIXELS],
) {
    // SAFETY: the caller's promises.
    unsafe {
        let mut b = [S::zero(); V];
        for (v, b) in b.iter_mut().enumerate() {
            *b = S::load(right.add(v * S::LANES));
        }
        for (r, acc) in acc.iter_mut().enumerate().take(rows) {
            let a = S::splat(left(r));
            for (acc, b) in acc.iter_mut().zip(b) {
                *acc = C::dot(*acc, a, b);
            }
        }
    }
    S::end_of_step();
}

/// Writes a register block's pixels, which are `step` numbers apart in a group, and adds them to the sums `[2, c]`. `WHOLE`: whether all
/// pixels exist, and all lanes.
#[inline(always)]
unsafe fn finish<E: Cell, C, S: Simd, const V: usize, const WHOLE: bool, const SUMS: bool, const ADDS: bool>(
    acc: [[S; V]; MAX_PIXELS],
    block: &Block<E, C>,
    step: usize,
    panel: &Panel,
    sums: Sums,
) {
    // SAFETY: the caller vouches for the pixels, and for the sums of the panel's channels.
    unsafe {
        let (mut sum, mut square) = ([S::zero(); V], [S::zero(); V]);
        let lanes = |v: usize| if WHOLE { S::LANES } else { (panel.width - v * S::LANES).min(S::LANES) };
        for g in 0..S::GROUPS {
            for q in 0..S::GROUP {
                if !WHOLE && q >= block.n[g] {
                    break;
                }
                for v in 0..V {
                    let (to, mut value) = (block.to[g].add(q * step + v * S::LANES), acc[g * S::GROUP + q][v]);
                    if SUMS {
                        sum[v] = sum[v].add(value);
                        square[v] = square[v].fma(value, value);
                    }
                    if ADDS {
                        value = value.add(E::load_first::<S>(to, lanes(v)));
                    }
                    E::store_first(value, to, lanes(v));
                }
            }
        }
        if SUMS {
            for v in 0..V {
                let to = sums.start.add(panel.at + v * S::LANES);
                sum[v].add(S::load_first(to, lanes(v))).store_first(to, lanes(v));
                let to = to.add(sums.c);
                square[v].add(S::load_first(to, lanes(v))).store_first(to, lanes(v));
            }
        }
    }
}
