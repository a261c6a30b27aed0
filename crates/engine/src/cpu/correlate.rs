//! The convolution kernel of the vector levels: forward and backward-data as one routine.
//!
//! A register-blocked matrix product that reads the image directly (no im2col). A block of pixels × output channels stays
//! in registers while the loop runs along one filter row: for NHWC the `kw · cin` inputs of a filter row are contiguous, so
//! the inner loop loads one row of packed weights and broadcasts one cell of input per pixel. Backward-data is the same
//! sweep over the output's gradient with transposed, flipped weights; with stride s it falls into s² sweeps, one per phase
//! of the input grid, each over its own subset of taps (so no multiplication by zero).
//!
//! A task is a band of rows, or several small images, large enough that a weight panel is reused from cache. Its input
//! is first copied into the member's scratch with the zero padding around it, unless no padding is needed.

use super::ahead::{Ahead, Lines, Run};
use super::cell::Cell;
use super::simd::{Simd, kernel};
use super::sweep::{Sweep, Task, TaskShape, View};
use crate::types::Write;

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

// SAFETY: tasks of one job write disjoint pixels of `y`; everything else is read only.
unsafe impl<E: Sync> Sync for Job<'_, E> {}

kernel! {
    /// Runs one task. `sums` `[2, dst.c]`, if given, receives Σ and Σ² of the task's pixels.
    ///
    /// # Safety
    /// `job.y` must point to `job.n` writable destination images; no other thread may run the same task; `level` must be
    /// supported by the CPU.
    pub(crate) unsafe fn correlate(job: &Job<E>, task: usize, scratch: &mut [f32], sums: Option<&mut [f32]>) = correlate_task
}

#[inline(always)]
unsafe fn correlate_task<E: Cell, S: Simd>(
    job: &Job<E>,
    task: usize,
    scratch: &mut [f32],
    mut sums: Option<&mut [f32]>,
) {
    let sweep = job.sweep;
    let next = (task + 1 < sweep.n_tasks(job.tasks, job.n)).then(|| sweep.task(job.tasks, job.n, task + 1));
    let mut ahead = Ahead([Lines::of(job.x, sweep.src, sweep.stride, next.as_ref())]);
    let task = sweep.task(job.tasks, job.n, task);
    let view = sweep.source(&task, job.x, E::of_scratch(scratch));
    if let Some(sums) = sums.as_deref_mut() {
        sums.fill(0.0);
    }
    let c = sweep.dst.c;
    for panel in 0..c.div_ceil(S::PANEL) {
        let at = panel * S::PANEL;
        let weights = &job.packed[at * sweep.cells()..];
        let width = (c - at).min(S::PANEL);
        // SAFETY: the caller's promises; `width` channels of panel `panel` exist.
        unsafe {
            if width <= S::LANES {
                correlate_panel::<E, S, 1>(job, &task, &view, weights, at, width, sums.as_deref_mut(), &mut ahead);
            } else {
                correlate_panel::<E, S, 2>(job, &task, &view, weights, at, width, sums.as_deref_mut(), &mut ahead);
            }
        }
    }
}

/// All pixels of a task for `width` channels from `at` on, `V` vectors wide.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn correlate_panel<E: Cell, S: Simd, const V: usize>(
    job: &Job<E>,
    task: &Task,
    view: &View<E>,
    weights: &[f32],
    at: usize,
    width: usize,
    mut sums: Option<&mut [f32]>,
    ahead: &mut Ahead<1>,
) {
    let sweep = job.sweep;
    let pixel = sweep.stride * sweep.channels();
    let groups_per_row = sweep.grid.1.div_ceil(S::GROUP);
    let n_groups = task.n_images * task.n_rows * groups_per_row;
    let mut first = 0;
    while first < n_groups {
        let mut base = [view.data.as_ptr(); MAX_GROUPS];
        let mut out = [std::ptr::null_mut::<E>(); MAX_PIXELS];
        for g in 0..S::GROUPS.min(n_groups - first) {
            let (line, col) = ((first + g) / groups_per_row, (first + g) % groups_per_row * S::GROUP);
            let (image, row) = (line / task.n_rows, line % task.n_rows);
            // SAFETY: the group's first window lies in the view (and its surplus pixels in the slack behind it); the
            // destination pixels exist because row and column lie in the grid.
            unsafe {
                base[g] = base[g].add(image * view.image + row * sweep.stride * view.row + col * pixel);
                let y = sweep.first.0 + (task.row + row) * sweep.step;
                let line = ((task.image + image) * sweep.dst.h + y) * sweep.dst.w;
                for q in 0..S::GROUP.min(sweep.grid.1 - col) {
                    let x = sweep.first.1 + (col + q) * sweep.step;
                    out[g * S::GROUP + q] = job.y.add((line + x) * sweep.dst.c + at);
                }
            }
        }
        // SAFETY: pointers as above; the panel holds a row of `V` vectors for every cell of a window.
        unsafe {
            let base = base.map(<*const E>::cast::<f32>);
            let [pixel, row, run] = [pixel, view.row, sweep.kernel.1 * sweep.channels()].map(|n| n / E::PER_CELL);
            let acc =
                multiply::<E, S, V>(base, pixel, row, sweep.kernel.0, run, weights.as_ptr(), ahead.take(sweep.cells()));
            finish::<E, S, V>(acc, &out, width, job.write, sums.as_deref_mut(), at, sweep.dst.c);
        }
        first += S::GROUPS;
    }
}

/// The hot loop: one register block over all taps and source channels, steps in cells.
#[inline(always)]
unsafe fn multiply<E: Cell, S: Simd, const V: usize>(
    base: [*const f32; MAX_GROUPS],
    pixel: usize,
    row: usize,
    kh: usize,
    run: usize,
    mut weights: *const f32,
    (mut ahead, line): Run,
) -> [[S; V]; MAX_PIXELS] {
    // SAFETY: the caller vouches for all pointers within the window and the panel.
    unsafe {
        let mut acc = [[S::zero(); V]; MAX_PIXELS];
        for a in 0..kh {
            for i in a * row..a * row + run {
                S::prefetch_far(ahead);
                ahead = ahead.wrapping_add(line);
                let mut w = [S::zero(); V];
                for (v, w) in w.iter_mut().enumerate() {
                    *w = S::load(weights.add(v * S::LANES));
                }
                weights = weights.add(V * S::LANES);
                for g in 0..S::GROUPS {
                    let from = base[g].add(i);
                    for q in 0..S::GROUP {
                        let x = S::splat(from.add(q * pixel));
                        for v in 0..V {
                            acc[g * S::GROUP + q][v] = E::dot(acc[g * S::GROUP + q][v], x, w[v]);
                        }
                    }
                }
            }
        }
        acc
    }
}

/// Writes a register block and adds its pixels to the channel sums.
#[inline(always)]
unsafe fn finish<E: Cell, S: Simd, const V: usize>(
    mut acc: [[S; V]; MAX_PIXELS],
    out: &[*mut E; MAX_PIXELS],
    width: usize,
    write: Write,
    sums: Option<&mut [f32]>,
    at: usize,
    c: usize,
) {
    // SAFETY: the caller vouches for `out`; `one` is read by `splat` alone; sums are `[2, c]` and `at + width <= c`.
    unsafe {
        let one = S::splat(&1.0);
        let (mut sum, mut square) = ([S::zero(); V], [S::zero(); V]);
        for p in 0..S::PIXELS {
            let to = out[p];
            if to.is_null() {
                continue;
            }
            for v in 0..V {
                let n = (width - v * S::LANES).min(S::LANES);
                let to = to.add(v * S::LANES);
                sum[v] = sum[v].fma(acc[p][v], one);
                square[v] = square[v].fma(acc[p][v], acc[p][v]);
                if write == Write::Add {
                    acc[p][v] = acc[p][v].fma(E::load_first::<S>(to, n), one);
                }
                E::store_first(acc[p][v], to, n);
            }
        }
        if let Some(sums) = sums {
            for v in 0..V {
                let n = (width - v * S::LANES).min(S::LANES);
                let to = sums.as_mut_ptr().add(at + v * S::LANES);
                sum[v].fma(S::load_first(to, n), one).store_first(to, n);
                let to = to.add(c);
                square[v].fma(S::load_first(to, n), one).store_first(to, n);
            }
        }
    }
}
