//! Forward and backward-data: every destination row of every channel is a sum over the channel's kept weights.

use super::lanes::{self, GROUP, Pixels, Rows, Square, abreast};
use super::list::{List, Stretch};
use super::pass::Pass;
use crate::cpu::cell::Cell;
use crate::cpu::simd::{MAX_LANES, Simd, kernel};
use crate::types::Write;
use std::ops::Range;

/// Vectors of sums that are kept in registers at a time.
pub(super) const WIDEST: usize = 8;

/// What the tasks of a pass read and write.
pub(super) struct Job<'a, E> {
    pub pass: &'a Pass,
    pub list: &'a List,
    /// Images.
    pub n: usize,
    pub x: &'a [E],
    /// First element of the destination.
    pub y: *mut E,
    pub write: Write,
}

// SAFETY: tasks of one job write disjoint pixels or channels of `y`; everything else is read only.
unsafe impl<E: Sync> Sync for Job<'_, E> {}

/// A task: as many images as lie side by side from `image` on, some rows of the destination's grid, some groups of its channels.
pub(super) struct Task {
    pub image: usize,
    pub rows: Range<usize>,
    pub groups: Range<usize>,
    /// Σ and Σ² of the task's pixels, `[2, channels]`; null if not asked for.
    pub sums: *mut f32,
}

/// Floats of scratch that a task needs: its source rows and, of a group of channels, vectors of both sums and a row of results.
pub(super) fn scratch_len<E: Cell>(pass: &Pass, rows: usize, lanes: usize) -> usize {
    let results = GROUP * pass.dest.w.div_ceil(pass.spread) * abreast::<E>(lanes);
    pass.most_source_rows(rows) * pass.row_lens(lanes).1 + 2 * GROUP * lanes + results
}

kernel! {
    /// Runs a task.
    ///
    /// # Safety
    /// `job.x` and `job.y` must hold `job.n` images, of which `task.image` is one; `task.sums` must be null or point to `[2, channels]`
    /// floats; the list's offsets must be for as many lanes as the level has; no other thread may run a task with the same images, rows and
    /// channels; `level` must be supported by the CPU.
    pub(super) unsafe fn correlate(job: &Job<E>, task: &Task, scratch: &mut [f32]) = correlate_task
}

#[inline(always)]
unsafe fn correlate_task<E: Cell, S: Simd>(job: &Job<E>, task: &Task, scratch: &mut [f32]) {
    let (pass, mut square) = (job.pass, Square::new());
    let source_rows = pass.source_rows(&task.rows);
    let (source, rest) = scratch.split_at_mut(source_rows.len() * pass.row_lens(S::LANES).1);
    let (sums, results) = rest.split_at_mut(2 * GROUP * S::LANES);
    let images = abreast::<E>(S::LANES);
    let n = (job.n - task.image).min(images);
    // SAFETY: the caller's promises; slices are as long as `scratch_len` says, or indexing panics.
    unsafe {
        lanes::gather::<E, S>(
            &source_of(job.x, pass, task.image, n, source_rows.clone()),
            source.as_mut_ptr(),
            &mut square,
        );
    }
    let c = pass.dest.c;
    for first in task.groups.clone().map(|group| group * GROUP) {
        let n_channels = GROUP.min(c - first);
        sums.fill(0.0);
        for (row, phase) in task.rows.clone().flat_map(|row| pass.phases.iter().map(move |phase| (row, phase))) {
            let (n_rows, n_columns) = phase.size(pass);
            let (top, runs) = phase.runs(pass, row);
            if row >= n_rows || n_columns == 0 || (runs.is_empty() && job.write == Write::Add) {
                continue;
            }
            let results = &mut results[..GROUP * n_columns * images];
            let window = pass.window(source, source_rows.start, top, S::LANES);
            for (i, results) in results.chunks_exact_mut(n_columns * images).enumerate().take(n_channels) {
                let kept = job.list.stretch(job.list.places(first + i, runs.clone()));
                // SAFETY: weights of these runs meet numbers of the source; the results are whole rows.
                unsafe { row_of_sums::<E, S>(kept, window, results, &mut sums[2 * i * S::LANES..][..2 * S::LANES]) };
            }
            let pixel = (row * pass.spread + phase.row) * pass.dest.w + phase.col;
            let to = Pixels {
                y: job.y.wrapping_add(task.image * pass.dest.len() + pixel * c + first),
                image: pass.dest.len(),
                pixel: pass.spread * c,
                n_images: n,
                n: n_columns,
            };
            // SAFETY: the caller's promises; these pixels lie in the destination.
            unsafe { lanes::scatter::<E, S>(results.as_ptr(), n_channels, &to, job.write, &mut square) };
        }
        if !task.sums.is_null() {
            for k in (0..n_channels).step_by(S::LANES / 2) {
                // SAFETY: the caller's promises; whole vectors of channels have sums.
                let both = unsafe { lanes::lane_sums::<S>(sums[2 * k * S::LANES..].as_ptr(), &mut square) };
                let mut totals = [0.0; MAX_LANES];
                // SAFETY: as above.
                unsafe { both.store_first(totals.as_mut_ptr(), S::LANES) };
                for (i, &total) in totals[..2 * (S::LANES / 2).min(n_channels - k)].iter().enumerate() {
                    // SAFETY: as above.
                    unsafe { *task.sums.add(i % 2 * c + first + k + i / 2) = total };
                }
            }
        }
    }
}

/// The rows of `n` images from `image` on that a pass reads.
pub(super) fn source_of<E>(x: &[E], pass: &Pass, image: usize, n: usize, rows: Range<usize>) -> Rows<E> {
    let &Pass { source: dims, step, before, width, residues, .. } = pass;
    assert!((image + n) * dims.len() <= x.len(), "source of {} numbers", x.len());
    let x = x[image * dims.len()..].as_ptr();
    Rows { x, dims, n, rows, channels: 0..dims.c, step, before, width, residues }
}

/// Calls `$strip::<E, S, N>(first)` for strips of `$n` columns, each of about the same width, at most [`WIDEST`] vectors.
macro_rules! in_strips {
    ($n:expr, $strip:ident($first:ident $(, $arg:expr)*)) => {{
        let n = $n;
        let mut $first = 0;
        while $first < n {
            let left: usize = n - $first;
            let width = left.div_ceil(left.div_ceil($crate::cpu::sparse::sweep::WIDEST / E::PER_CELL));
            match width {
                1 => $strip::<E, S, 1>($first $(, $arg)*),
                2 => $strip::<E, S, 2>($first $(, $arg)*),
                3 => $strip::<E, S, 3>($first $(, $arg)*),
                4 => $strip::<E, S, 4>($first $(, $arg)*),
                5 if E::PER_CELL == 1 => $strip::<E, S, 5>($first $(, $arg)*),
                6 if E::PER_CELL == 1 => $strip::<E, S, 6>($first $(, $arg)*),
                7 if E::PER_CELL == 1 => $strip::<E, S, 7>($first $(, $arg)*),
                8 if E::PER_CELL == 1 => $strip::<E, S, 8>($first $(, $arg)*),
                _ => unreachable!("strips of at most {} vectors", $crate::cpu::sparse::sweep::WIDEST),
            }
            $first += width;
        }
    }};
}
pub(super) use in_strips;

/// A row of a channel, `[column, image]`: the sums over its kept weights, whose Σ and Σ² are added to `sums`, a vector of each.
#[inline(always)]
unsafe fn row_of_sums<E: Cell, S: Simd>(kept: Stretch, window: *const f32, to: &mut [f32], sums: &mut [f32]) {
    // SAFETY: the caller's promises; a strip lies within the row.
    unsafe { in_strips!(to.len() / abreast::<E>(S::LANES), strip(first, kept, window, to, sums)) }
}

/// `N` columns of a row, from column `first` on: the hot loop. A weight is loaded once, and multiplied with neighbouring vectors.
#[inline(always)]
unsafe fn strip<E: Cell, S: Simd, const N: usize>(
    first: usize,
    kept: Stretch,
    window: *const f32,
    to: &mut [f32],
    sums: &mut [f32],
) {
    let images = abreast::<E>(S::LANES);
    let to = &mut to[first * images..][..N * images];
    let window = window.wrapping_add(first * S::LANES);
    // SAFETY: the caller's promises.
    unsafe {
        let mut results = [[S::zero(); 2]; N];
        for i in 0..kept.n {
            let (kept, ahead) = kept.at(i);
            ask::<S, N>(window.wrapping_add(ahead));
            let (weight, from) = (S::splat(&raw const kept.weight), window.wrapping_add(kept.at as usize));
            for (i, results) in results.iter_mut().enumerate() {
                let numbers = lanes::numbers::<E, S>(S::load(from.add(i * S::LANES)));
                for (result, numbers) in results.iter_mut().zip(numbers).take(E::PER_CELL) {
                    *result = result.fma(weight, numbers);
                }
            }
        }
        let (sum, squares) = sums.split_at_mut(S::LANES);
        let mut both = [S::load(sum.as_ptr()), S::load(squares.as_ptr())];
        for (i, result) in results.into_iter().flat_map(|results| results.into_iter().take(E::PER_CELL)).enumerate() {
            both = [both[0].add(result), both[1].fma(result, result)];
            result.store_first(to[i * S::LANES..].as_mut_ptr(), S::LANES);
        }
        both[0].store_first(sum.as_mut_ptr(), S::LANES);
        both[1].store_first(squares.as_mut_ptr(), S::LANES);
    }
}

/// Asks for the first and the last line of `N` vectors, whose others the processor foresees: what kept weights meet lies too far apart for it.
#[inline(always)]
pub(super) unsafe fn ask<S: Simd, const N: usize>(vectors: *const f32) {
    // SAFETY: any address may be asked for.
    unsafe {
        S::prefetch(vectors);
        S::prefetch(vectors.wrapping_add(N * S::LANES - 1));
    }
}
