//! Positions along lines of pixels.
//!
//! In a plane of woven inputs, of all the image rows that any tap meets, the next filter row's positions are just one image row further
//! on. Images whose pixels do not fill tiles well, or weave across their rows, have a plane for each filter row instead, of just the pixels
//! it meets.
//!
//! Positions are taken in pieces that leave both sides' 32 rows in the nearest cache; the sums of a piece go to memory and
//! come back for the next. While some inputs are multiplied, the next ones are woven, and of the next task's maps so much is asked for as steps allow.

use super::super::super::ahead::{Ahead, Lines};
use super::super::super::cell::Cell;
use super::super::super::gradient::{Job, SLICE_LIMIT, Target};
use super::super::super::layout::Blocks;
use super::super::super::sweep::{Sweep, Task, TaskShape};
use super::super::tiles::{A, ASKED, B, C, DEPTH, PANEL, ROWS, Tiles};
use super::squares::{Pixels, store_pair, turn_pixels};
use crate::types::{Dims, Write};
use std::arch::x86_64::{__m512i, _MM_HINT_T1, _mm_prefetch, _mm512_maskz_loadu_epi16, _mm512_setzero_si512};
use std::ops::Range;

/// Most positions of a task: this one's maps and the next one's are in the second cache.
const POSITIONS: usize = 1024;
/// Most bytes of a task's gradients and of the planes of 32 inputs, both as tiles read them; the next inputs' planes come on top.
const TASK_BYTES: usize = 704 << 10;
/// Most bytes of a task's inputs as they lie: 32 of each pixel are read at a time, so the task's pixels are gone through once for every 32. Not where
/// members share a large gradient, which every task goes through as well.
const SOURCE_BYTES: usize = 512 << 10;
/// Most steps of 32 positions in a piece.
const PIECE: usize = 10;
/// Pixels of an image from which on its last tiles may be half empty.
const LARGE: usize = 512;
/// Values from one pixel to the next from which on the weaver asks for those further on.
const WIDE: isize = 256;

/// How a task lays out its pixels.
#[derive(Clone, Copy)]
struct Plan {
    /// Whether each filter row has a plane of its own.
    by_row: bool,
    images: usize,
    /// Planes of 32 inputs, image rows in each of an image, and positions of all.
    n_planes: usize,
    plane_rows: usize,
    plane_len: usize,
    /// Runs of positions without gaps, and positions of one, in whole steps.
    runs: usize,
    run_len: usize,
    /// Values from one channel's turned gradients to the next: an odd number of cache lines, which spreads rows over sets.
    turned_row: usize,
}

impl Plan {
    fn of(sweep: &Sweep, images: usize, rows: usize) -> Self {
        let ((h, w), kh, s) = (sweep.grid, sweep.kernel.0, sweep.stride);
        let by_row = kh == 1 || w % 2 == 1 || (h * w < LARGE && !(h * w).is_multiple_of(DEPTH));
        let reach = if by_row { 0 } else { (kh - 1) / s };
        let (runs, run) = if by_row { (1, images * rows * w) } else { (images, rows * w) };
        let (plane_rows, run_len) = (rows + reach, run.next_multiple_of(DEPTH));
        // The last run's surplus positions are read, too.
        let plane_len = (images * plane_rows * w + run_len - run).next_multiple_of(DEPTH);
        let turned_row = ((runs * run_len / DEPTH) | 1) * DEPTH;
        let n_planes = if by_row { kh } else { s.min(kh) };
        Self { by_row, images, n_planes, plane_rows, plane_len, runs, run_len, turned_row }
    }

    /// Lines of the planes.
    fn n_lines(&self) -> usize {
        self.n_planes * self.images * self.plane_rows
    }

    /// Values of the planes of 32 inputs.
    fn planes_len(&self) -> usize {
        self.n_planes * self.plane_len * PANEL
    }

    /// Values of the turned gradients of `c` channels.
    fn turned_len(&self, c: usize) -> usize {
        self.turned_row * c.next_multiple_of(PANEL)
    }

    /// The plane of a filter row, and the position in it where the filter row begins.
    fn filter_row(&self, sweep: &Sweep, a: usize) -> (usize, usize) {
        if self.by_row { (a, 0) } else { (a % sweep.stride, a / sweep.stride * sweep.grid.1) }
    }

    /// Pieces of the positions.
    fn pieces(&self, sweep: &Sweep) -> impl Iterator<Item = Piece> {
        let steps = self.run_len / DEPTH;
        let together = (PIECE / steps).max(1);
        let parts = steps.div_ceil(PIECE);
        let (run_len, plane_run, runs) = (self.run_len, self.plane_rows * sweep.grid.1, self.runs);
        (0..runs).step_by(together).flat_map(move |run| {
            (0..parts).map(move |part| {
                let (from, to) = (steps * part / parts, steps * (part + 1) / parts);
                let n = together.min(runs - run);
                Piece {
                    turned: run * run_len + from * DEPTH,
                    woven: run * plane_run + from * DEPTH,
                    runs: n,
                    steps: to - from,
                }
            })
        })
    }

    /// Both sides of a filter row's products at a piece: a panel's turned gradients and woven inputs.
    fn sides<E>(&self, sweep: &Sweep, piece: Piece, a: usize, turned: &[E], planes: &[E]) -> (A, B) {
        let Piece { runs, steps, .. } = piece;
        let ((plane, offset), gap) = (self.filter_row(sweep, a), self.plane_rows * sweep.grid.1);
        let plane = &planes[plane * self.plane_len * PANEL..][..self.plane_len * PANEL];
        let (rows, inputs) = (&turned[piece.turned..], &plane[(offset + piece.woven) * PANEL..]);
        assert!(inputs.len() >= ((runs - 1) * gap + steps * DEPTH) * PANEL);
        assert!(rows.len() >= (PANEL - 1) * self.turned_row + runs * steps * DEPTH);
        let starts = [rows.as_ptr().cast(), rows[ROWS * self.turned_row..].as_ptr().cast()];
        let skip = if runs > 1 { 2 * PANEL as isize * (gap as isize - self.run_len as isize) } else { 0 };
        let left = A { starts, row: 2 * self.turned_row, runs, steps, skip: 0 };
        (left, B { start: inputs.as_ptr().cast(), skip })
    }
}

/// Some steps of the positions: where they begin in the turned gradients and in a plane, how many runs they have, and steps of each.
#[derive(Clone, Copy)]
struct Piece {
    turned: usize,
    woven: usize,
    runs: usize,
    steps: usize,
}

/// The tasks of the weight gradient of a forward sweep.
pub(super) fn tasks(sweep: &Sweep) -> TaskShape {
    let is_large = sweep.depth() * sweep.dst.c > SLICE_LIMIT;
    let fits = |images: usize, rows: usize| {
        let plan = Plan::of(sweep, images, rows);
        let bytes = 2 * (plan.planes_len() + plan.turned_len(sweep.dst.c));
        let source = 2 * images * rows * sweep.grid.1 * sweep.stride.pow(2) * sweep.src.c;
        plan.runs * plan.run_len <= POSITIONS && bytes <= TASK_BYTES && (is_large || source <= SOURCE_BYTES)
    };
    let rows = sweep.grid.0;
    match (1..=POSITIONS / rows.max(1)).rev().find(|&images| fits(images, rows)) {
        Some(images) => (images, rows),
        None => (1, (1..rows).rev().find(|&rows| fits(1, rows)).unwrap_or(1)),
    }
}

/// Floats of scratch that a task needs.
pub(super) fn scratch_len(sweep: &Sweep) -> usize {
    let (images, rows) = tasks(sweep);
    let plan = Plan::of(sweep, images, rows);
    (2 * plan.planes_len() + plan.turned_len(sweep.dst.c)) / 2
}

/// Computes a task's part of some blocks of the weight gradient.
///
/// # Safety
/// As [`super::weight_gradient`], whose assertions hold.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(super) unsafe fn weight_gradient<E: Cell>(
    job: &Job<E>,
    blocks: &Blocks,
    index: usize,
    scratch: &mut [E],
    to: Target,
) {
    let (task, next_task) = (&job.sweep.task(job.tasks, job.n, index), job.sweep.task_after(job.tasks, job.n, index));
    let (sweep, kh, Range { start, end }) = (job.sweep, job.sweep.kernel.0, to.blocks);
    assert!(start.is_multiple_of(kh) && end.is_multiple_of(kh), "a share has all filter rows of its inputs");
    let plan = Plan::of(sweep, task.n_images, task.n_rows);
    let (planes, turned) = scratch.split_at_mut(2 * plan.planes_len());
    let (mut planes, mut next) = planes.split_at_mut(plan.planes_len());
    let turned = &mut turned[..plan.turned_len(sweep.dst.c)];
    // Who has but some of the inputs reads few of their lines.
    let next_inputs = next_task.as_ref().filter(|_| end - start == blocks.n);
    let mut ahead = Ahead([
        Lines::of(job.dy, sweep.dst, 1, next_task.as_ref()),
        Lines::of(job.x, sweep.src, sweep.stride, next_inputs),
    ]);
    // What is woven while the inputs before are multiplied, so many lines at a time.
    let products = plan.pieces(sweep).count() * kh * to.panels.len();
    let lines = plan.n_lines().div_ceil(products);
    // SAFETY: the caller's promise.
    unsafe {
        turn(job, &plan, task, to.panels.clone(), turned);
        Weaving::of(job, &plan, task, blocks.input(start), planes).lines(plan.n_lines());
    }
    let tiles = Tiles::configure(DEPTH);
    for group in (start..end).step_by(kh) {
        let is_last = group + kh == end;
        let mut weaving = (!is_last).then(|| Weaving::of(job, &plan, task, blocks.input(group + kh), next));
        for (i, piece) in plan.pieces(sweep).enumerate() {
            let adds = i > 0 || to.write == Write::Add;
            for (a, panel) in (0..kh).flat_map(|a| to.panels.clone().map(move |panel| (a, panel))) {
                let turned = &turned[panel * PANEL * plan.turned_row..][..PANEL * plan.turned_row];
                let (left, right) = plan.sides(sweep, piece, a, turned, planes);
                let dw = to.dw.wrapping_add((group - start + a) * blocks.len + panel * PANEL * PANEL);
                let c = C { start: dw, row: 4 * PANEL, right: ROWS, down: ROWS * PANEL };
                let weave = || {
                    if let Some(weaving) = &mut weaving {
                        // SAFETY: the caller's promise.
                        unsafe { weaving.lines(lines) };
                    }
                };
                let asked = ahead.take(ASKED * left.n_steps());
                // SAFETY: both sides hold all positions of the piece; a panel of a block is 32 × 32 floats.
                unsafe { tiles.multiply([(left, right)], &c, adds, asked, weave) };
            }
        }
        (planes, next) = (next, planes);
    }
}

/// Turns a task's gradients to `[channel, position]`, of some panels of channels, zeros where no channel or pixel is.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn turn<E: Cell>(job: &Job<E>, plan: &Plan, task: &Task, panels: Range<usize>, turned: &mut [E]) {
    let Dims { h, w, c } = job.sweep.dst;
    let n = task.n_images * task.n_rows * w / plan.runs;
    for run in 0..plan.runs {
        let pixels = &job.dy[((task.image + run) * h + task.row) * w * c..][..n * c];
        for first in (0..plan.run_len).step_by(DEPTH) {
            let turned = &mut turned[run * plan.run_len + first..];
            let (values, n) = (&pixels[first * c..], DEPTH.min(n - first));
            let from = Pixels { values, step: c, n, ahead: DEPTH * c };
            // SAFETY: the caller's promise.
            unsafe { turn_pixels(&from, c, panels.clone(), turned, plan.turned_row) };
        }
    }
}

/// Weaves the pixels of inputs `input..input + 32` of the filter rows into planes, zeros where no pixel or input is.
struct Weaving<'a, 'b, E> {
    job: &'a Job<'a, E>,
    plan: &'a Plan,
    task: &'a Task,
    /// Where a line's first position begins, from the line's start on, and its inputs.
    first: isize,
    n: usize,
    weaver: Weaver<'b, E>,
    /// The plane, image and row of the next line.
    next: [usize; 3],
}

impl<'a, 'b, E: Cell> Weaving<'a, 'b, E> {
    fn of(job: &'a Job<'a, E>, plan: &'a Plan, task: &'a Task, input: usize, planes: &'b mut [E]) -> Self {
        let (sweep, c) = (job.sweep, job.sweep.src.c);
        let n = PANEL.min(sweep.kernel.1 * c - input);
        let first = input as isize - sweep.pad.1 * c as isize;
        Self { job, plan, task, first, n, weaver: Weaver { out: planes, waiting: None }, next: [0; 3] }
    }

    /// Weaves the next `n` lines, of those that are left.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn lines(&mut self, n: usize) {
        let (sweep, Dims { h, w, c }) = (self.job.sweep, self.job.sweep.src);
        for _ in 0..n {
            let [plane, image, row] = self.next;
            if plane == self.plan.n_planes {
                return;
            }
            let pixels = &self.job.x[(self.task.image + image) * sweep.src.len()..][..sweep.src.len()];
            let y = ((self.task.row + row) * sweep.stride + plane) as isize - sweep.pad.0;
            let line = if y >= 0 && y < h as isize { &pixels[y as usize * w * c..][..w * c] } else { &[] };
            // SAFETY: the caller's promise.
            unsafe { self.weaver.line(line, self.first, self.n, sweep.stride * c, sweep.grid.1) };
            self.next = [plane, image, row + 1];
            if row + 1 == self.plan.plane_rows {
                self.next = [plane, image + 1, 0];
            }
            if self.next[1] == self.plan.images {
                self.next = [plane + 1, 0, 0];
                // SAFETY: the caller's promise.
                unsafe { self.weaver.end(self.plan.plane_len * PANEL) };
            }
        }
    }
}

/// Writes pairs of positions: the first 16 columns are those of even inputs, so that weaving takes a shift and a blend.
struct Weaver<'a, E> {
    /// What is not written yet.
    out: &'a mut [E],
    /// The first position of a pair that spans two lines.
    waiting: Option<__m512i>,
}

impl<E: Cell> Weaver<'_, E> {
    /// Takes `n_positions` runs of `n` inputs, the first at `first` of the line, then `step` apart; inputs outside the line are zero.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn line(&mut self, line: &[E], first: isize, n: usize, step: usize, n_positions: usize) {
        let (mut at, mut left, step) = (first, n_positions, step as isize);
        // SAFETY: the caller has the features, here and below.
        let of_edge = |at: isize| unsafe { inputs(line, at, n) };
        if let Some(waiting) = self.waiting.take() {
            let to = self.pairs(1);
            // SAFETY: `to` holds a pair.
            unsafe { store_pair(to, waiting, of_edge(at)) };
            (at, left) = (at + step, left - 1);
        }
        let mut to = self.pairs(left / 2);
        // Pairs whose inputs all lie in the line have a loop that looks at nothing else.
        let kept = u32::MAX >> (PANEL - n);
        // The lines of pixels far apart are ones that a processor foresees badly.
        let is_wide = step >= WIDE;
        let end = at + left as isize / 2 * 2 * step;
        let whole_end = end.min(line.len() as isize - n as isize - step + 1);
        while at < end {
            // SAFETY: so many pairs are `to`'s; those before `whole_end` and not before the line lie in it.
            unsafe {
                if at >= 0 {
                    while at < whole_end {
                        let here = line.as_ptr().offset(at);
                        if is_wide {
                            for i in [DEPTH, DEPTH + 1] {
                                _mm_prefetch::<_MM_HINT_T1>(here.wrapping_offset(i as isize * step).cast());
                            }
                        }
                        let load = |from: *const E| _mm512_maskz_loadu_epi16(kept, from.cast());
                        store_pair(to, load(here), load(here.offset(step)));
                        (at, to) = (at + 2 * step, to.add(2));
                    }
                }
                if at < end {
                    store_pair(to, of_edge(at), of_edge(at + step));
                    (at, to) = (at + 2 * step, to.add(2));
                }
            }
        }
        if left % 2 == 1 {
            self.waiting = Some(of_edge(at));
        }
    }

    /// Room for the next pairs, two vectors each.
    fn pairs(&mut self, n: usize) -> *mut __m512i {
        let (here, rest) = std::mem::take(&mut self.out).split_at_mut(2 * PANEL * n);
        self.out = rest;
        here.as_mut_ptr().cast()
    }

    /// Zeros behind the last position of a plane, planes being of `len` values.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn end(&mut self, len: usize) {
        if let Some(waiting) = self.waiting.take() {
            let to = self.pairs(1);
            // SAFETY: `to` holds a pair.
            unsafe { store_pair(to, waiting, _mm512_setzero_si512()) };
        }
        let left = self.out.len() % len;
        let (rest, out) = std::mem::take(&mut self.out).split_at_mut(left);
        rest.fill(E::default());
        self.out = out;
    }
}

/// `n` values of a line from `at` on, zeros outside the line and behind them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn inputs<E: Cell>(line: &[E], at: isize, n: usize) -> __m512i {
    let (len, n) = (line.len() as isize, n as isize);
    let mut mask = u32::MAX >> (PANEL as isize - n);
    if at < 0 || at + n > len {
        // Bits of the values from the line's start on, and before its end.
        let (skipped, within) = ((-at).clamp(0, n), (len - at).clamp(0, n));
        mask = ((1u64 << within) - (1u64 << skipped.min(within))) as u32;
    }
    // SAFETY: the mask lets through no value outside the line.
    unsafe { _mm512_maskz_loadu_epi16(mask, line.as_ptr().wrapping_offset(at).cast()) }
}
