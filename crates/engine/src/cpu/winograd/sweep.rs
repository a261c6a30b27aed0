//! Forward and backward-data by products at points.
//!
//! A task is a run of tiles. Its windows are brought to the points first; then, for each panel of destination channels, a matrix
//! product at every point, and the tiles of the results. A tile's points lie together, channels side by side, so that each map
//! reads and writes whole cache lines of one stretch of memory.

use super::grid::{Grid, Tile};
use super::points::{self, Place};
use super::product::{Left, Out, Right, multiply};
use super::square::{self, Source};
use super::transform::{self, Columns, Line, Outputs, POINTS, TILE, WINDOW, rolled};
use crate::cpu::ahead::LINE;
use crate::cpu::cell::Cell;
use crate::cpu::simd::{Level, Simd, kernel};
use crate::types::Write;
use std::ops::Range;

/// Floats between a tile's points, if many channels lie at each, and between tiles: a cache line keeps them from falling into the same cache
/// sets.
const GAP: usize = LINE;
/// Channels that make points fall into so few sets that these cannot hold them: 1 KB is a quarter of a way of first-level caches.
const ALIKE: usize = 256;

/// What the tasks of a pass read and write.
pub(super) struct Job<'a, E> {
    pub level: Level,
    pub grid: Grid,
    /// Source and destination channels.
    pub channels: (usize, usize),
    /// Source channels in a cell of the products: see [`points::has_pairs`].
    pub per_cell: usize,
    /// Packed weights: per panel `[point, cell of source channels, panel]`.
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

/// Floats from one of a tile's points of `channels` to the next.
fn point_len(channels: usize) -> usize {
    channels + if channels.is_multiple_of(ALIKE) { GAP } else { 0 }
}

/// Floats of a tile's points of `channels`.
fn tile_len(channels: usize) -> usize {
    POINTS * point_len(channels) + GAP
}

/// Floats of scratch that a task of `n_tiles` needs at most, panels and vectors being at most as wide as said.
pub(super) fn scratch_len(n_tiles: usize, source: usize, panel: usize, lanes: usize) -> usize {
    // Whole groups of rows are multiplied.
    n_tiles.next_multiple_of(lanes) * (tile_len(source.next_multiple_of(lanes)) + tile_len(panel)) + square::SCRATCH
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
    let (n_tiles, padded) = (task.tiles.len(), source.next_multiple_of(S::LANES) / job.per_cell);
    assert!(job.per_cell == 1 || points::has_pairs::<E, S>());
    let windows_len = n_tiles.next_multiple_of(S::GROUP) * tile_len(padded);
    let (windows, rest) = scratch.split_at_mut(windows_len);
    let (products, rest) = rest.split_at_mut(n_tiles.next_multiple_of(S::GROUP) * tile_len(S::PANEL));
    let (start, width) = (windows.as_mut_ptr(), tile_len(padded));
    let place = Place { start, n_cells: n_tiles, width, block: width, point: point_len(padded) };
    let maps = Source { grid: job.grid, channels: source, x: job.x };
    // SAFETY: the caller's promise; windows have room for all channels of all tiles.
    unsafe {
        if job.per_cell == 1 {
            points::windows(job.level, &maps, task.tiles.clone(), place, rest);
        } else {
            points::windows_of_pairs(job.level, &maps, task.tiles.clone(), place, rest);
        }
    }
    for panel in task.panels.clone() {
        let at = panel * S::PANEL;
        let weights = &job.packed[at * POINTS * source.div_ceil(job.per_cell)..];
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
    let source = job.channels.0;
    let (n_tiles, width, cells) = (task.tiles.len(), V * S::LANES, source.div_ceil(job.per_cell));
    let padded = source.next_multiple_of(S::LANES) / job.per_cell;
    let (from_tile, to_tile) = (tile_len(padded), tile_len(width));
    assert!(weights.len() >= POINTS * cells * width);
    for point in 0..POINTS {
        for first in (0..n_tiles).step_by(S::PIXELS) {
            let rows = S::PIXELS.min(n_tiles - first);
            // SAFETY: windows and products hold whole groups of tiles, which the caller asserted; weights by the assertion.
            unsafe {
                let start = windows.as_ptr().add(first * from_tile + point * point_len(padded));
                let left = Left { start, row: from_tile, step: 1 };
                let right = Right { start: weights.as_ptr().add(point * cells * width), step: width };
                let start = products.as_mut_ptr().add(first * to_tile + point * width);
                let out = Out { start, row: to_tile, adds: false };
                if job.per_cell == 1 {
                    multiply::<f32, S, V>(rows, cells, left, right, out);
                } else {
                    multiply::<E, S, V>(rows, cells, left, right, out);
                }
            }
        }
    }
    // SAFETY: the caller's promises.
    unsafe { write_panel::<E, S, V>(job, task, products, at) };
}

/// The tiles of a task's products for the channels of a panel from `at` on.
#[inline(always)]
unsafe fn write_panel<E: Cell, S: Simd, const V: usize>(job: &Job<E>, task: &Task, products: &[f32], at: usize) {
    let (n_tiles, channels, width) = (task.tiles.len(), job.channels.1, V * S::LANES);
    let to_tile = tile_len(width);
    // SAFETY: the caller has the instructions.
    let (mut sums, mut halfway) = unsafe { ([[S::zero(); 2]; V], [[S::zero(); WINDOW]; TILE]) };
    let sides = (rolled(WINDOW), rolled(TILE));
    for (i, tile) in job.grid.tiles(task.tiles.start).take(n_tiles).enumerate() {
        let is_whole = tile.is_whole(&job.grid);
        for (v, sums) in sums.iter_mut().enumerate() {
            let k = v * S::LANES;
            let n = (channels - at - k).min(S::LANES);
            let start = products[i * to_tile + k..].as_ptr();
            // SAFETY: the caller's promises; a tile's products hold a vector at every point.
            unsafe {
                transform::columns::<Outputs, S, _, _>(&Products { start, point: width }, sides.0, &mut halfway);
                if is_whole && n == S::LANES {
                    write_whole::<E, S>(job, &tile, &halfway, sides.1, at + k, sums);
                } else {
                    write_part::<E, S>(job, &tile, &halfway, (at + k, n), sums);
                }
            }
        }
    }
    if !task.sums.is_null() {
        for (v, sums) in sums.into_iter().enumerate() {
            let k = at + v * S::LANES;
            let n = (channels - k).min(S::LANES);
            // SAFETY: the caller's promises.
            unsafe {
                sums[0].store_first(task.sums.add(k), n);
                sums[1].store_first(task.sums.add(channels + k), n);
            }
        }
    }
}

/// A tile's products, `point` floats apart.
struct Products {
    start: *const f32,
    point: usize,
}

impl<S: Simd> Columns<S, WINDOW> for Products {
    #[inline(always)]
    unsafe fn column(&self, c: usize) -> [S; WINDOW] {
        // SAFETY: the caller has the instructions, and the products.
        unsafe {
            let mut column = [S::zero(); WINDOW];
            for (r, value) in column.iter_mut().enumerate() {
                *value = S::load(self.start.add((r * WINDOW + c) * self.point));
            }
            column
        }
    }
}

/// Writes a vector of channels of a tile's outputs, of which the columns are done, and adds them to the sums. `n_rows` is `TILE`, [`rolled`].
#[inline(always)]
unsafe fn write_whole<E: Cell, S: Simd>(
    job: &Job<E>,
    tile: &Tile,
    halfway: &[[S; WINDOW]; TILE],
    n_rows: usize,
    channel: usize,
    sums: &mut [S; 2],
) {
    let (w, c) = (job.grid.w, job.channels.1);
    // SAFETY: the caller vouches for the tile's pixels.
    unsafe {
        let to = job.y.add(((tile.image * job.grid.h + tile.row) * w + tile.col) * c + channel);
        for r in 0..n_rows {
            for (col, value) in Outputs::line(*halfway.get_unchecked(r)).into_iter().enumerate() {
                write_pixel(value, to.add((r * w + col) * c), S::LANES, job.write, sums);
            }
        }
    }
}

/// The same for `n` channels of the pixels that lie in the image.
#[inline(always)]
unsafe fn write_part<E: Cell, S: Simd>(
    job: &Job<E>,
    tile: &Tile,
    halfway: &[[S; WINDOW]; TILE],
    (channel, n): (usize, usize),
    sums: &mut [S; 2],
) {
    let (w, c) = (job.grid.w, job.channels.1);
    let (rows, cols) = tile.size(&job.grid);
    // SAFETY: the caller vouches for the tile's pixels.
    unsafe {
        let to = job.y.add(((tile.image * job.grid.h + tile.row) * w + tile.col) * c + channel);
        for (r, &row) in halfway.iter().enumerate().take(rows) {
            for (col, value) in Outputs::line(row).into_iter().enumerate().take(cols) {
                write_pixel(value, to.add((r * w + col) * c), n, job.write, sums);
            }
        }
    }
}

#[inline(always)]
unsafe fn write_pixel<E: Cell, S: Simd>(mut value: S, to: *mut E, n: usize, write: Write, sums: &mut [S; 2]) {
    // SAFETY: the caller vouches for the pixel.
    unsafe {
        sums[0] = sums[0].add(value);
        sums[1] = sums[1].fma(value, value);
        if write == Write::Add {
            value = value.add(E::load_first::<S>(to, n));
        }
        E::store_first(value, to, n);
    }
}
