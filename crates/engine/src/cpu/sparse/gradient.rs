//! The gradient of the kept weights: for each, the products of a source row with a row of its output channel's gradient.

use super::lanes::{self, GROUP, Rows, Square, abreast};
use super::list::{List, Stretch};
use super::pass::Pass;
use super::sweep::{ask, in_strips, source_of};
use crate::cpu::cell::Cell;
use crate::cpu::simd::{Simd, kernel};
use crate::types::Write;
use std::ops::Range;

/// What the tasks of a weight gradient read.
pub(super) struct Job<'a, E> {
    /// The forward pass, and its weights.
    pub pass: &'a Pass,
    pub list: &'a List,
    /// Images.
    pub n: usize,
    pub x: &'a [E],
    pub dy: &'a [E],
}

/// A task: as many images as lie side by side from `image` on, some rows of the output, some groups of its channels.
pub(super) struct Task {
    pub image: usize,
    pub rows: Range<usize>,
    pub groups: Range<usize>,
    /// The gradient of every kept weight, of which the task sets or adds to its channels'.
    pub to: *mut f32,
    pub write: Write,
}

/// Floats of scratch that a task needs: its source rows, a group's rows of the output's gradient, and a vector of sums for each of a channel's
/// weights.
pub(super) fn scratch_len(pass: &Pass, rows: usize, lanes: usize) -> usize {
    let source = pass.most_source_rows(rows) * pass.row_lens(lanes).1;
    source + (rows * GROUP * pass.dest.w + (pass.taps.len() * pass.source.c).next_multiple_of(lanes)) * lanes
}

kernel! {
    /// Runs a task.
    ///
    /// # Safety
    /// `job.x` and `job.dy` must hold `job.n` images, of which `task.image` is one; `task.to` must point to a float for each kept weight, and
    /// the list's offsets be for as many lanes as the level has; no other thread may run a task with the same target and channels; `level`
    /// must be supported by the CPU.
    pub(super) unsafe fn weight_gradient(job: &Job<E>, task: &Task, scratch: &mut [f32]) = weight_gradient_task
}

#[inline(always)]
unsafe fn weight_gradient_task<E: Cell, S: Simd>(job: &Job<E>, task: &Task, scratch: &mut [f32]) {
    let (pass, mut square) = (job.pass, Square::new());
    let (source_rows, dest) = (pass.source_rows(&task.rows), pass.dest);
    let row = dest.w * S::LANES;
    let (source, rest) = scratch.split_at_mut(source_rows.len() * pass.row_lens(S::LANES).1);
    let (gradients, sums) = rest.split_at_mut(task.rows.len() * GROUP * row);
    let n = (job.n - task.image).min(abreast::<E>(S::LANES));
    assert!(job.dy.len() >= (task.image + n) * dest.len(), "gradient of {} numbers", job.dy.len());
    // SAFETY: the caller's promises; slices are as long as `scratch_len` says, or indexing panics.
    unsafe {
        lanes::gather::<E, S>(
            &source_of(job.x, pass, task.image, n, source_rows.clone()),
            source.as_mut_ptr(),
            &mut square,
        );
    }
    for first in task.groups.clone().map(|group| group * GROUP) {
        let channels = first..(first + GROUP).min(dest.c);
        let from = Rows {
            x: job.dy[task.image * dest.len()..].as_ptr(),
            dims: dest,
            n,
            rows: task.rows.clone(),
            channels: channels.clone(),
            step: 1,
            before: 0,
            width: dest.w,
            residues: 1,
        };
        // SAFETY: as above.
        unsafe { lanes::gather::<E, S>(&from, gradients.as_mut_ptr(), &mut square) };
        for (i, channel) in channels.clone().enumerate() {
            let all = job.list.places(channel, 0..pass.n_runs);
            let sums = &mut sums[..all.len().next_multiple_of(S::LANES) * S::LANES];
            sums.fill(0.0);
            for (k, y) in task.rows.clone().enumerate() {
                let (top, runs) = pass.phases[0].runs(pass, y);
                let here = job.list.places(channel, runs);
                let window = pass.window(source, source_rows.start, top, S::LANES);
                let gradient = &gradients[(k * channels.len() + i) * row..][..row];
                let sums = &mut sums[(here.start - all.start) * S::LANES..][..here.len() * S::LANES];
                // SAFETY: weights of these runs meet numbers of the source.
                unsafe { row_of_products::<E, S>(job.list.stretch(here), window, gradient, sums) };
            }
            for (vectors, place) in sums.chunks_exact(S::LANES * S::LANES).zip(all.clone().step_by(S::LANES)) {
                let n = S::LANES.min(all.end - place);
                // SAFETY: the caller's promises.
                unsafe {
                    let (mut totals, to) = (lanes::lane_sums::<S>(vectors.as_ptr(), &mut square), task.to.add(place));
                    if task.write == Write::Add {
                        totals = totals.add(S::load_first(to, n));
                    }
                    totals.store_first(to, n);
                }
            }
        }
    }
}

/// Adds the products of a row to a channel's sums, a vector for each weight.
#[inline(always)]
unsafe fn row_of_products<E: Cell, S: Simd>(kept: Stretch, window: *const f32, gradient: &[f32], sums: &mut [f32]) {
    // SAFETY: the caller's promises; a strip lies within the row.
    unsafe { in_strips!(gradient.len() / S::LANES, strip(first, kept, window, gradient, sums)) }
}

/// `N` columns of a row, from column `first` on: the hot loop. The gradient stays in registers.
#[inline(always)]
unsafe fn strip<E: Cell, S: Simd, const N: usize>(
    first: usize,
    kept: Stretch,
    window: *const f32,
    gradient: &[f32],
    sums: &mut [f32],
) {
    let gradient = &gradient[first * S::LANES..][..N * S::LANES];
    let window = window.wrapping_add(first * S::LANES);
    // SAFETY: the caller's promises.
    unsafe {
        let mut row = [[S::zero(); 2]; N];
        for (numbers, from) in row.iter_mut().zip(gradient.chunks_exact(S::LANES)) {
            *numbers = lanes::numbers::<E, S>(S::load(from.as_ptr()));
        }
        for (i, to) in sums.chunks_exact_mut(S::LANES).enumerate().take(kept.n) {
            let (kept, ahead) = kept.at(i);
            ask::<S, N>(window.wrapping_add(ahead));
            let from = window.wrapping_add(kept.at as usize);
            let mut sums = [S::load(to.as_ptr()), S::zero()];
            for (i, &gradient) in row.iter().enumerate() {
                let numbers = lanes::numbers::<E, S>(S::load(from.add(i * S::LANES)));
                for k in 0..E::PER_CELL {
                    sums[k] = sums[k].fma(gradient[k], numbers[k]);
                }
            }
            sums[0].add(sums[1]).store_first(to.as_mut_ptr(), S::LANES);
        }
    }
}
