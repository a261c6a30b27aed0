//! Forward and backward-data by products at points.
//!
//! A task is a run of tiles. Its windows are brought to the points first; then, for each panel of destination channels, a matrix
//! product at every point, and the tiles of the results. A tile's points lie together, channels side by side, so that each map
//! reads and writes whole cache lines of one stretch of memory.

use super::Pass;
use super::grid::{Grid, Tile};
use super::points::{self, Place};
use super::product::{Adjacent, Left, Out, multiply};
use super::square::{self, Source};
use super::strided::{self, WideOutputs};
use super::transform::{self, Columns, Line, Outputs, POINTS, TILE, rolled, weight_point};
use crate::cpu::ahead::{Ahead, LINE, Lines, n_asked};
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
    pub pass: Pass,
    pub grid: Grid,
    /// Rows and columns of the source's maps and of the destination's.
    pub sizes: [(usize, usize); 2],
    /// Source and destination channels.
    pub channels: (usize, usize),
    /// Source channels in a cell of the products: see [`points::has_pairs`].
    pub per_cell: usize,
    /// Packed weights: per panel `[point of weights, cell of source channels, panel]`.
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
fn tile_len(n_points: usize, channels: usize) -> usize {
    n_points * point_len(channels) + GAP
}

/// Floats of scratch that a task of `n_tiles` needs at most, panels and vectors being at most as wide as said.
pub(super) fn scratch_len(pass: Pass, n_tiles: usize, source: usize, panel: usize, lanes: usize) -> usize {
    let tile = |channels| tile_len(pass.products(), channels);
    // Whole groups of rows are multiplied.
    n_tiles.next_multiple_of(lanes) * (tile(source.next_multiple_of(lanes)) + tile(panel)) + square::SCRATCH
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
    // SAFETY: the caller's promises.
    unsafe {
        match job.pass {
            Pass::Same => correlate_tiles::<E, S, Outputs, _, _>(job, task, scratch),
            Pass::Down => correlate_tiles::<E, S, strided::Outputs, _, _>(job, task, scratch),
            Pass::Up => correlate_tiles::<E, S, WideOutputs, _, _>(job, task, scratch),
        }
    }
}

/// A task whose tiles have `P` × `P` products, and `T` × `T` results by the map `L`.
#[inline(always)]
unsafe fn correlate_tiles<E: Cell, S: Simd, L: Line<P, T>, const P: usize, const T: usize>(
    job: &Job<E>,
    task: &Task,
    scratch: &mut [f32],
) {
    let (source, channels) = job.channels;
    let (n_tiles, padded) = (task.tiles.len(), source.next_multiple_of(S::LANES) / job.per_cell);
    assert!(job.per_cell == 1 || points::has_pairs::<E, S>());
    let (n_rows, width) = (n_tiles.next_multiple_of(S::GROUP), tile_len(P * P, padded));
    let (windows, rest) = scratch.split_at_mut(n_rows * width);
    let (products, rest) = rest.split_at_mut(n_rows * tile_len(P * P, S::PANEL));
    let place = Place { start: windows.as_mut_ptr(), n_cells: n_tiles, width, block: width, point: point_len(padded) };
    let maps = Source { grid: job.grid, size: job.sizes[0], channels: source, x: job.x };
    // SAFETY: the caller's promise; windows have room for all channels of all tiles.
    unsafe { points::windows(job.level, job.pass, job.per_cell, &maps, task.tiles.clone(), place, rest) };
    for panel in task.panels.clone() {
        let at = panel * S::PANEL;
        let weights = &job.packed[at * POINTS * source.div_ceil(job.per_cell)..];
        // SAFETY: the caller's promises.
        unsafe {
            if (channels - at).min(S::PANEL) <= S::LANES {
                multiply_panel::<E, S, 1, P>(job, n_tiles, windows, weights, products);
                write_panel::<E, S, L, 1, P, T>(job, task, products, at);
            } else {
                multiply_panel::<E, S, 2, P>(job, n_tiles, windows, weights, products);
                write_panel::<E, S, L, 2, P, T>(job, task, products, at);
            }
        }
    }
}

/// The products of all tiles of a task for the channels of a panel, `V` vectors wide.
#[inline(always)]
unsafe fn multiply_panel<E: Cell, S: Simd, const V: usize, const P: usize>(
    job: &Job<E>,
    n_tiles: usize,
    windows: &[f32],
    weights: &[f32],
    products: &mut [f32],
) {
    let source = job.channels.0;
    let (width, cells) = (V * S::LANES, source.div_ceil(job.per_cell));
    let padded = source.next_multiple_of(S::LANES) / job.per_cell;
    let (from_tile, to_tile) = (tile_len(P * P, padded), tile_len(P * P, width));
    assert!(weights.len() >= POINTS * cells * width);
    for product in 0..P * P {
        let point = weight_point(P, product);
        let right = |point: usize| weights.as_ptr().wrapping_add(point * cells * width);
        // Behind this point's products, the next one's weights are asked for: the panel's, or the next panel's behind it.
        let next = if product + 1 < P * P { weight_point(P, product + 1) } else { POINTS };
        let is_there = next != point && next * cells * width < weights.len();
        let asked = if is_there { Lines::run(right(next), cells * width) } else { Lines::run(right(point), 0) };
        let mut lines = Ahead([asked]);
        for first in (0..n_tiles).step_by(S::PIXELS) {
            let rows = S::PIXELS.min(n_tiles - first);
            // SAFETY: windows and products hold whole groups of tiles, which the caller asserted; weights by the assertion.
            unsafe {
                let start = windows.as_ptr().add(first * from_tile + product * point_len(padded));
                let left = Left { start, adjacent: Adjacent::Steps, stride: from_tile };
                let (right, asked) = (right(point), lines.take(n_asked::<S>(cells)));
                let start = products.as_mut_ptr().add(first * to_tile + product * width);
                let out = Out { start, row: to_tile, adds: false };
                if job.per_cell == 1 {
                    multiply::<f32, S, V>(rows, cells, left, right, out, asked);
                } else {
                    multiply::<E, S, V>(rows, cells, left, right, out, asked);
                }
            }
        }
    }
}

/// The tiles of a task's products for the channels of a panel from `at` on.
#[inline(always)]
unsafe fn write_panel<E: Cell, S: Simd, L: Line<P, T>, const V: usize, const P: usize, const T: usize>(
    job: &Job<E>,
    task: &Task,
    products: &[f32],
    at: usize,
) {
    let (n_tiles, channels, width) = (task.tiles.len(), job.channels.1, V * S::LANES);
    let to_tile = tile_len(P * P, width);
    // SAFETY: the caller has the instructions.
    let (mut sums, mut halfway) = unsafe { ([[S::zero(); 2]; V], [[S::zero(); P]; T]) };
    let sides = (rolled(P), rolled(T));
    for (i, tile) in job.grid.tiles(task.tiles.start).take(n_tiles).enumerate() {
        let pixels = Pixels::<T>::of(&tile, job.sizes[1]);
        for (v, sums) in sums.iter_mut().enumerate() {
            let k = v * S::LANES;
            let n = (channels - at - k).min(S::LANES);
            let start = products[i * to_tile + k..].as_ptr();
            // SAFETY: the caller's promises; a tile's products hold a vector at every point.
            unsafe {
                transform::columns::<L, S, _, _>(&Products { start, point: width }, sides.0, &mut halfway);
                if pixels.is_whole() && n == S::LANES {
                    write_whole::<E, S, L, P, T>(job, &pixels, &halfway, sides.1, at + k, sums);
                } else {
                    write_part::<E, S, L, P, T>(job, &pixels, &halfway, (at + k, n), sums);
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

impl<S: Simd, const P: usize> Columns<S, P> for Products {
    #[inline(always)]
    unsafe fn column(&self, c: usize) -> [S; P] {
        // SAFETY: the caller has the instructions, and the products.
        unsafe {
            let mut column = [S::zero(); P];
            for (r, value) in column.iter_mut().enumerate() {
                *value = S::load(self.start.add((r * P + c) * self.point));
            }
            column
        }
    }
}

/// The pixels of a tile's results, `T` × `T` at most: the number of the first one in the batch, rows and columns that lie in the image, and pixels
/// from one row to the next.
struct Pixels<const T: usize> {
    first: usize,
    rows: usize,
    cols: usize,
    row: usize,
}

impl<const T: usize> Pixels<T> {
    #[inline(always)]
    fn of(tile: &Tile, (h, w): (usize, usize)) -> Self {
        let (row, col) = (tile.row * (T / TILE), tile.col * (T / TILE));
        Self { first: (tile.image * h + row) * w + col, rows: T.min(h - row), cols: T.min(w - col), row: w }
    }

    fn is_whole(&self) -> bool {
        (self.rows, self.cols) == (T, T)
    }
}

/// Writes a vector of channels of a tile's results, of which the columns are done, and adds them to the sums. `n_rows` is `T`, [`rolled`].
#[inline(always)]
unsafe fn write_whole<E: Cell, S: Simd, L: Line<P, T>, const P: usize, const T: usize>(
    job: &Job<E>,
    pixels: &Pixels<T>,
    halfway: &[[S; P]; T],
    n_rows: usize,
    channel: usize,
    sums: &mut [S; 2],
) {
    let c = job.channels.1;
    // SAFETY: the caller vouches for the tile's pixels.
    unsafe {
        let to = job.y.add(pixels.first * c + channel);
        for r in 0..n_rows {
            for (col, value) in L::line(*halfway.get_unchecked(r)).into_iter().enumerate() {
                write_pixel(value, to.add((r * pixels.row + col) * c), S::LANES, job.write, sums);
            }
        }
    }
}

/// The same for `n` channels of the pixels that lie in the image.
#[inline(always)]
unsafe fn write_part<E: Cell, S: Simd, L: Line<P, T>, const P: usize, const T: usize>(
    job: &Job<E>,
    pixels: &Pixels<T>,
    halfway: &[[S; P]; T],
    (channel, n): (usize, usize),
    sums: &mut [S; 2],
) {
    let c = job.channels.1;
    // SAFETY: the caller vouches for the tile's pixels.
    unsafe {
        let to = job.y.add(pixels.first * c + channel);
        for (r, &row) in halfway.iter().enumerate().take(pixels.rows) {
            for (col, value) in L::line(row).into_iter().enumerate().take(pixels.cols) {
                write_pixel(value, to.add((r * pixels.row + col) * c), n, job.write, sums);
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
