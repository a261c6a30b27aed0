//! Positions across images: 32 of them at the same pixel are a step of the tiles' depth.
//!
//! Where maps are small, lines are too short to be woven one by one, and pixels too few for steps of their own. Taps meet pixel by pixel, so
//! those that lie outside the map are left out: at 4 × 4 pixels and 3 × 3 taps 44 of 144.

use super::super::super::cell::Cell;
use super::super::super::gradient::{Job, Target};
use super::super::super::layout::Blocks;
use super::super::super::sweep::{Sweep, Task};
use super::super::TASK_BYTES;
use super::super::images::{Axis, saves};
use super::super::tiles::{A, B, C, DEPTH, PANEL, ROWS, Tiles};
use super::squares::{Pixels, store_pair, turn_pixels};
use crate::types::{Dims, Write};
use std::arch::x86_64::{_mm512_loadu_si512, _mm512_setzero_si512};
use std::ops::Range;

/// Most positions of a task.
const POSITIONS: usize = 2048;
/// Most groups of 32 images in a task.
const GROUPS: usize = 2;
/// Most steps of a piece of whole lines: a panel's turned gradients stay in the nearest cache for all taps.
const PIECE: usize = 16;
/// Values of a woven step.
const STEP: usize = DEPTH * PANEL;

/// How a task of so many groups of images lies.
struct Plan {
    groups: usize,
    /// Values from a channel's turned gradients to the next: an odd number of cache lines, which spreads rows over sets.
    turned_row: usize,
    turned_len: usize,
    /// Woven columns between which a tap strides, of a source line, and values of one.
    columns: usize,
    column: usize,
    woven_len: usize,
}

impl Plan {
    fn of(sweep: &Sweep, groups: usize) -> Self {
        let turned_row = ((sweep.grid.0 * sweep.grid.1 * groups) | 1) * DEPTH;
        let turned_len = turned_row * sweep.dst.c.next_multiple_of(PANEL);
        let (columns, column) = (sweep.src.w.div_ceil(sweep.stride), groups * STEP);
        let woven_len = sweep.src.h * sweep.stride * columns * column;
        Self { groups, turned_row, turned_len, columns, column, woven_len }
    }

    fn len(&self) -> usize {
        self.turned_len + self.woven_len
    }
}

/// The plan of whole tasks, where they fit.
fn plan(sweep: &Sweep) -> Option<Plan> {
    let pixels = sweep.grid.0 * sweep.grid.1;
    let fits = |plan: &Plan| pixels * plan.groups * DEPTH <= POSITIONS && 2 * plan.len() <= TASK_BYTES;
    let plan = (1..=GROUPS).rev().map(|groups| Plan::of(sweep, groups)).find(fits)?;
    (sweep.src.c.is_multiple_of(DEPTH) && sweep.kernel != (1, 1)).then_some(plan)
}

/// Images of a task, where `n` images are best taken so.
pub(super) fn task_images(sweep: &Sweep, n: usize) -> Option<usize> {
    plan(sweep).filter(|_| saves(sweep, n, DEPTH)).map(|plan| plan.groups * DEPTH)
}

/// Blocks of the same inputs, which are woven once for all of them.
pub(super) fn n_taps(sweep: &Sweep) -> usize {
    sweep.kernel.0 * sweep.kernel.1
}

/// Floats of scratch that a task needs.
pub(super) fn scratch_len(sweep: &Sweep) -> usize {
    plan(sweep).map_or(0, |plan| plan.len() / 2)
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
    let task = &job.sweep.task(job.tasks, job.n, index);
    let (sweep, axes, together) = (job.sweep, Axis::of(job.sweep), n_taps(job.sweep));
    let plan = Plan::of(sweep, task.n_images.div_ceil(DEPTH));
    let (turned, woven) = scratch.split_at_mut(plan.turned_len);
    let woven = &mut woven[..plan.woven_len];
    // SAFETY: the caller's promise.
    unsafe { turn(job, &plan, task, to.panels.clone(), turned) };
    let tiles = Tiles::configure(DEPTH);
    assert!(to.blocks.start.is_multiple_of(together) && to.blocks.end.is_multiple_of(together), "a share has all taps");
    let (lines, band) = (sweep.grid.0, (PIECE / (sweep.grid.1 * plan.groups)).max(1));
    for group in to.blocks.clone().step_by(together) {
        // SAFETY: the caller's promise.
        unsafe { weave(job, &plan, task, blocks.input(group), woven) };
        for first in (0..lines).step_by(band) {
            let adds = first > 0 || to.write == Write::Add;
            for (panel, block) in to.panels.clone().flat_map(|panel| (0..together).map(move |i| (panel, i))) {
                let turned = &turned[panel * PANEL * plan.turned_row..][..PANEL * plan.turned_row];
                let tap = (block % sweep.kernel.0, block / sweep.kernel.0);
                let both = plan.sides(axes, first..first + band, tap, turned, woven);
                if adds && both.is_none() {
                    continue;
                }
                let dw = to.dw.wrapping_add((group - to.blocks.start + block) * blocks.len + panel * PANEL * PANEL);
                let c = C { start: dw, row: 4 * PANEL, right: ROWS, down: ROWS * PANEL };
                // SAFETY: both sides hold all positions of the lines; a panel of a block is 32 × 32 floats.
                unsafe { tiles.multiply(both, &c, adds, (dw, 0), || ()) };
            }
        }
    }
}

impl Plan {
    /// Both sides of a tap's products at some lines of the grid, where it meets the source: a panel's turned gradients and woven inputs.
    fn sides<E>(
        &self,
        [rows, cols]: [Axis; 2],
        lines: Range<usize>,
        tap: (usize, usize),
        turned: &[E],
        woven: &[E],
    ) -> Option<(A, B)> {
        let (met, cols_met) = (rows.positions(tap.0), cols.positions(tap.1));
        let (first, end) = (lines.start.max(met.start), lines.end.min(met.end));
        if first >= end || cols_met.is_empty() {
            return None;
        }
        let (runs, steps, stride) = (end - first, cols_met.len() * self.groups, rows.stride);
        let (at, line) = ((first * cols.grid + cols_met.start) * self.groups * DEPTH, cols.grid * self.groups * DEPTH);
        assert!(turned.len() >= (PANEL - 1) * self.turned_row + at + (runs - 1) * line + steps * DEPTH);
        let starts = [0, ROWS].map(|row| turned[row * self.turned_row + at..].as_ptr().cast());
        let skip = 2 * (line - steps * DEPTH) as isize;
        let left = A { starts, row: 2 * self.turned_row, runs, steps, skip };
        // A tap's columns lie together; its lines are `stride` apart.
        let (row, col) = (rows.source(first, tap.0) as usize, cols.source(cols_met.start, tap.1) as usize);
        let (line, skipped) = (stride * self.columns * self.column, steps * STEP);
        let inputs = &woven[row * line + self.woven_column(col, stride) * self.column..];
        assert!(inputs.len() >= (runs - 1) * stride * line + skipped);
        let right = B { start: inputs.as_ptr().cast(), skip: 2 * (stride * line - skipped) as isize };
        Some((left, right))
    }

    /// Where a column of the source lies in its woven line: those that are `stride` apart are neighbours.
    fn woven_column(&self, col: usize, stride: usize) -> usize {
        col % stride * self.columns + col / stride
    }
}

/// Turns a task's gradients to `[channel, pixel, image]`, of some panels of channels, zeros where no channel or image is.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn turn<E: Cell>(job: &Job<E>, plan: &Plan, task: &Task, panels: Range<usize>, turned: &mut [E]) {
    let (c, image) = (job.sweep.dst.c, job.sweep.dst.len());
    let images = &job.dy[task.image * image..][..task.n_images * image];
    for (pixel, group) in (0..image / c).flat_map(|pixel| (0..plan.groups).map(move |group| (pixel, group))) {
        let first = group * DEPTH;
        let (values, n) = (&images[first * image + pixel * c..], DEPTH.min(task.n_images - first));
        let from = Pixels { values, step: image, n, ahead: c };
        let turned = &mut turned[(pixel * plan.groups + group) * DEPTH..];
        // SAFETY: the caller's promise.
        unsafe { turn_pixels(&from, c, panels.clone(), turned, plan.turned_row) };
    }
}

/// Weaves inputs `input..input + 32` of all source pixels: `[row, column, pair of images]`, zeros where no image is.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn weave<E: Cell>(job: &Job<E>, plan: &Plan, task: &Task, input: usize, woven: &mut [E]) {
    let (Dims { w, c, .. }, image, stride) = (job.sweep.src, job.sweep.src.len(), job.sweep.stride);
    let images = &job.x[task.image * image..][..task.n_images * image];
    for (row, woven) in woven.chunks_exact_mut(stride * plan.columns * plan.column).enumerate() {
        for col in 0..w {
            let at = (row * w + col) * c + input;
            let pairs = &mut woven[plan.woven_column(col, stride) * plan.column..][..plan.column];
            for (i, to) in pairs.chunks_exact_mut(2 * PANEL).enumerate() {
                let of = |image_at: usize| {
                    if image_at < images.len() {
                        // SAFETY: the slice holds a vector.
                        unsafe { _mm512_loadu_si512(images[image_at + at..][..PANEL].as_ptr().cast()) }
                    } else {
                        _mm512_setzero_si512()
                    }
                };
                // SAFETY: `to` holds a pair.
                unsafe { store_pair(to.as_mut_ptr().cast(), of(2 * i * image), of((2 * i + 1) * image)) };
            }
        }
    }
}
