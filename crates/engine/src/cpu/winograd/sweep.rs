//! Forward and backward-data by products at points.
//!
//! A task is a run of tiles. Its windows are brought to the points first; then, for each panel of destination channels, a matrix
//! product at every point, and the tiles of the results. A tile's points lie together, channels side by side, so that each map
//! reads and writes whole cache lines of one stretch of memory.

use super::grid::{Grid, Tile};
use super::product::{Left, Out, Right, multiply};
use super::transform::{self, POINTS, TILE, WINDOW};
use crate::cpu::cell::Cell;
use crate::cpu::simd::{Simd, kernel};
use crate::types::Write;
use std::ops::Range;

/// Floats between tiles' points: a cache line keeps them from falling into the same cache sets.
const GAP: usize = 16;

/// What the tasks of a pass read and write.
pub(super) struct Job<'a, E> {
    pub grid: Grid,
    /// Source and destination channels.
    pub channels: (usize, usize),
    /// Packed weights: per panel `[point, source channel, panel]`.
    pub packed: &'a [f32],
    /// Source images.
    pub x: &'a [E],
    /// First element of the destination.
    pub y: *mut E,
    pub write: Write,
}

// SAFETY: tasks of one job write disjoint tiles or channels of `y`; everything else is read only.
unsafe impl<E: Sync> Sync for Job<'_, E> {}

/// A task: all pixels of some tiles, channels of some panels.
pub(super) struct Task {
    pub tiles: Range<usize>,
    pub panels: Range<usize>,
    /// Σ and Σ² of the tiles' pixels, `[2, channels]`, of which the task writes its panels'; null if not asked for.
    pub sums: *mut f32,
}

/// Floats of a tile's points of `channels`.
fn tile_len(channels: usize) -> usize {
    POINTS * channels + GAP
}

/// Floats of scratch that a task of `n_tiles` needs at most, panels and vectors being at most as wide as said.
pub(super) fn scratch_len(n_tiles: usize, source: usize, panel: usize, lanes: usize) -> usize {
    // Whole groups of rows are multiplied.
    n_tiles.next_multiple_of(lanes) * (tile_len(source.next_multiple_of(lanes)) + tile_len(panel))
}

kernel! {
    /// Runs a task.
    ///
    /// # Safety
    /// `job.x` and `job.y` must hold the images of all the tiles, `task.sums` be null or point to `[2, channels]` floats; no other thread
    /// may run a task with the same tiles and panels; `level` must be supported by the CPU.
    pub(super) unsafe fn correlate(job: &Job<E>, task: &Task, scratch: &mut [f32]) = correlate_task
}

#[inline(always)]
unsafe fn correlate_task<E: Cell, S: Simd>(job: &Job<E>, task: &Task, scratch: &mut [f32]) {
    let (source, channels) = job.channels;
    let (n_tiles, padded) = (task.tiles.len(), source.next_multiple_of(S::LANES));
    let windows_len = n_tiles.next_multiple_of(S::GROUP) * tile_len(padded);
    assert!(scratch.len() >= windows_len + n_tiles.next_multiple_of(S::GROUP) * tile_len(S::PANEL));
    let (windows, products) = scratch.split_at_mut(windows_len);
    for (i, tile) in task.tiles.clone().enumerate() {
        let to = &mut windows[i * tile_len(padded)..][..POINTS * padded];
        // SAFETY: the caller's promise.
        unsafe { windows_to_points::<E, S>(&job.grid, &job.grid.tile(tile), source, job.x, to, padded) };
    }
    for panel in task.panels.clone() {
        let at = panel * S::PANEL;
        let weights = &job.packed[at * POINTS * source..];
        // SAFETY: the caller's promises.
        unsafe {
            if (channels - at).min(S::PANEL) <= S::LANES {
                correlate_panel::<E, S, 1>(job, task, windows, weights, products, at);
            } else {
                correlate_panel::<E, S, 2>(job, task, windows, weights, products, at);
            }
        }
    }
}

/// Brings the window of a tile to the points, `point` floats apart.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn windows_to_points<E: Cell, S: Simd>(
    grid: &Grid,
    tile: &Tile,
    c: usize,
    x: &[E],
    to: &mut [f32],
    point: usize,
) {
    let image = &x[tile.image * grid.h * grid.w * c..][..grid.h * grid.w * c];
    assert!(to.len() >= (POINTS - 1) * point + c.next_multiple_of(S::LANES));
    // Rows and columns of the window that lie in the image.
    let inside = |at: usize, size: usize| usize::from(at == 0)..(size + 1 - at).min(WINDOW);
    let (rows, cols) = (inside(tile.row, grid.h), inside(tile.col, grid.w));
    // The window begins a pixel above and to the left of the tile.
    let start = image.as_ptr().wrapping_add((tile.row * grid.w + tile.col) * c).wrapping_sub((grid.w + 1) * c);
    for k in (0..c).step_by(S::LANES) {
        let n = (c - k).min(S::LANES);
        let load = |r: usize, col: usize, n: usize| unsafe {
            // SAFETY: the caller has the instructions; asked for pixels inside only.
            E::load_first::<S>(start.wrapping_add((r * grid.w + col) * c + k), n)
        };
        // SAFETY: as above; `to` holds a vector at every point, by the assertion.
        unsafe {
            let mut window = [[S::zero(); WINDOW]; WINDOW];
            if rows.len() == WINDOW && cols.len() == WINDOW && n == S::LANES {
                for (r, row) in window.iter_mut().enumerate() {
                    for (col, value) in row.iter_mut().enumerate() {
                        *value = load(r, col, S::LANES);
                    }
                }
            } else {
                for r in rows.clone() {
                    for col in cols.clone() {
                        window[r][col] = load(r, col, n);
                    }
                }
            }
            for (p, value) in transform::window(window).as_flattened().iter().enumerate() {
                value.store_first(to.as_mut_ptr().add(p * point + k), S::LANES);
            }
        }
    }
}

/// All tiles of a task for the channels of a panel, `V` vectors wide.
#[inline(always)]
unsafe fn correlate_panel<E: Cell, S: Simd, const V: usize>(
    job: &Job<E>,
    task: &Task,
    windows: &[f32],
    weights: &[f32],
    products: &mut [f32],
    at: usize,
) {
    let (source, channels) = job.channels;
    let (n_tiles, padded, width) = (task.tiles.len(), source.next_multiple_of(S::LANES), V * S::LANES);
    let (from_tile, to_tile) = (tile_len(padded), tile_len(width));
    assert!(weights.len() >= POINTS * source * width);
    for point in 0..POINTS {
        for first in (0..n_tiles).step_by(S::PIXELS) {
            let rows = S::PIXELS.min(n_tiles - first);
            // SAFETY: windows and products hold whole groups of tiles, which the caller asserted; weights by the assertion.
            unsafe {
                let start = windows.as_ptr().add(first * from_tile + point * padded);
                let left = Left { start, row: from_tile, step: 1 };
                let right = Right { start: weights.as_ptr().add(point * source * width), step: width };
                let start = products.as_mut_ptr().add(first * to_tile + point * width);
                multiply::<S, V>(rows, source, left, right, Out { start, row: to_tile, adds: false });
            }
        }
    }
    for v in 0..V {
        let k = v * S::LANES;
        let n = (channels - at - k).min(S::LANES);
        // SAFETY: the caller's promises; a tile's products hold a vector at every point.
        unsafe {
            let mut sums = [S::zero(); 2];
            for (i, tile) in task.tiles.clone().enumerate() {
                let from = products.as_ptr().add(i * to_tile + k);
                let tile = job.grid.tile(tile);
                if tile.is_whole(&job.grid) && n == S::LANES {
                    write_tile::<E, S>(job, &tile, from, width, at + k, S::LANES, (TILE, TILE), &mut sums);
                } else {
                    write_tile::<E, S>(job, &tile, from, width, at + k, n, tile.size(&job.grid), &mut sums);
                }
            }
            if !task.sums.is_null() {
                sums[0].store_first(task.sums.add(at + k), n);
                sums[1].store_first(task.sums.add(channels + at + k), n);
            }
        }
    }
}

/// Turns a tile's products into outputs, writes `n` channels of `size` of them and adds them to the sums.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn write_tile<E: Cell, S: Simd>(
    job: &Job<E>,
    tile: &Tile,
    from: *const f32,
    point: usize,
    channel: usize,
    n: usize,
    size: (usize, usize),
    sums: &mut [S; 2],
) {
    let (grid, c) = (&job.grid, job.channels.1);
    // SAFETY: the caller vouches for the products and for the tile's pixels.
    unsafe {
        let mut products = [[S::zero(); WINDOW]; WINDOW];
        for (p, product) in products.as_flattened_mut().iter_mut().enumerate() {
            *product = S::load(from.add(p * point));
        }
        let one = S::splat(&1.0);
        let outputs = transform::outputs(products);
        for (r, row) in outputs.into_iter().enumerate() {
            for (col, mut value) in row.into_iter().enumerate() {
                if r >= size.0 || col >= size.1 {
                    continue;
                }
                let pixel = (tile.image * grid.h + tile.row + r) * grid.w + tile.col + col;
                let to = job.y.add(pixel * c + channel);
                sums[0] = sums[0].add(value);
                sums[1] = sums[1].fma(value, value);
                if job.write == Write::Add {
                    value = value.fma(E::load_first::<S>(to, n), one);
                }
                E::store_first(value, to, n);
            }
        }
    }
}
