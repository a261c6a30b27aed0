//! Brings tiles of feature maps to the points.
//!
//! Tiles inside an image are read in place. Those that reach over its edge, and pixels whose channels do not fill vectors, are
//! copied first, zeros around: so there is one loop, and it knows no edges.

use super::grid::Grid;
use super::transform::{self, TILE, WINDOW};
use crate::cpu::cell::Cell;
use crate::cpu::simd::{Simd, kernel};
use std::ops::Range;

/// A batch of feature maps.
pub(super) struct Source<'a, E> {
    pub grid: Grid,
    pub channels: usize,
    pub x: &'a [E],
}

/// Where cells of tiles at a point lie: channels in blocks of `block`, `[block, cell, channel]`, `width` channels in all. A cell holds a
/// number of one tile, or of two.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Channel 0 of the first cell at the first point.
    pub start: *mut f32,
    pub n_cells: usize,
    pub width: usize,
    pub block: usize,
    /// Floats from one point to the next.
    pub point: usize,
}

// SAFETY: who writes tiles of it writes different ones from everybody else, by the contract of the functions below.
unsafe impl Sync for Place {}

impl Place {
    /// Channel `k` of a cell at the first point.
    fn of(&self, cell: usize, k: usize) -> *mut f32 {
        let first = k / self.block * self.block;
        let offset = first * self.n_cells + cell * self.block.min(self.width - first) + (k - first);
        self.start.wrapping_add(offset)
    }
}

/// Whether gradients are products of pairs of bf16 at the points: of neighbouring channels in backward-data, of two tiles in the weight
/// gradient.
///
/// Rounding at the points is off by 1.2 % of a standard deviation of the result (256 channels of normal numbers), at random: the
/// direction of a gradient hardly changes. The forward pass is another matter, for all gradients follow from what it gives: its
/// points stay f32.
pub(super) const fn has_pairs<E: Cell, S: Simd>() -> bool {
    E::PER_CELL == 2 && S::HAS_PAIRS
}

/// Floats of scratch for copied tiles of `channels` in whole vectors.
pub(super) fn scratch_len(channels: usize, lanes: usize) -> usize {
    2 * WINDOW * WINDOW * channels.next_multiple_of(lanes)
}

kernel! {
    /// Brings the windows of tiles to the points.
    ///
    /// # Safety
    /// `to` must have room for all channels, in whole vectors, of the tiles at every point; `level` must be supported by the CPU.
    pub(super) unsafe fn windows(source: &Source<E>, tiles: Range<usize>, to: Place, scratch: &mut [f32]) = bring_windows
}

kernel! {
    /// Brings the windows of tiles to the points, rounded to bf16: a cell holds two channels.
    ///
    /// # Safety
    /// As [`windows`].
    pub(super) unsafe fn windows_of_pairs(source: &Source<E>, tiles: Range<usize>, to: Place,
                                          scratch: &mut [f32]) = bring_windows_of_pairs
}

kernel! {
    /// Brings the windows of tiles to the points, as the weight gradient's cells; the first one's place is `at`.
    ///
    /// # Safety
    /// As [`windows`], and no other thread may use those cells.
    pub(super) unsafe fn gradient_windows(source: &Source<E>, tiles: Range<usize>, to: Place, at: usize,
                                          scratch: &mut [f32]) = bring_gradient_windows
}

kernel! {
    /// Brings the gradients of tiles to the points, as the weight gradient's cells; the first one's place is `at`.
    ///
    /// # Safety
    /// As [`gradient_windows`].
    pub(super) unsafe fn gradients(source: &Source<E>, tiles: Range<usize>, to: Place, at: usize,
                                   scratch: &mut [f32]) = bring_gradients
}

/// A map of squares of `N` × `N` pixels, which begin `BEFORE` rows and columns before their tiles.
trait Map<const N: usize> {
    const BEFORE: usize;

    /// # Safety
    /// As [`Simd`].
    unsafe fn map<S: Simd>(square: [[S; N]; N]) -> [[S; WINDOW]; WINDOW];
}

struct Windows;

impl Map<WINDOW> for Windows {
    const BEFORE: usize = 1;

    #[inline(always)]
    unsafe fn map<S: Simd>(square: [[S; WINDOW]; WINDOW]) -> [[S; WINDOW]; WINDOW] {
        // SAFETY: handed through, as in all below.
        unsafe { transform::window(square) }
    }
}

struct Gradients;

impl Map<TILE> for Gradients {
    const BEFORE: usize = 0;

    #[inline(always)]
    unsafe fn map<S: Simd>(square: [[S; TILE]; TILE]) -> [[S; WINDOW]; WINDOW] {
        // SAFETY: see above.
        unsafe { transform::gradients(square) }
    }
}

#[inline(always)]
unsafe fn bring_windows<E: Cell, S: Simd>(source: &Source<E>, tiles: Range<usize>, to: Place, scratch: &mut [f32]) {
    // SAFETY: see above.
    unsafe { bring::<E, S, Windows, WINDOW>(source, tiles, to, 0, scratch) };
}

#[inline(always)]
unsafe fn bring_windows_of_pairs<E: Cell, S: Simd>(
    source: &Source<E>,
    tiles: Range<usize>,
    to: Place,
    scratch: &mut [f32],
) {
    let copied = E::of_scratch(scratch);
    for (i, index) in tiles.enumerate() {
        // SAFETY: as in `bring`.
        unsafe {
            let square = Square::of::<S, WINDOW>(source, index, Windows::BEFORE, copied);
            for k in (0..square.channels).step_by(S::LANES) {
                let (points, place) = (Windows::map(square.load::<S, WINDOW>(k)), to.of(i, k / 2));
                for (p, value) in points.as_flattened().iter().enumerate() {
                    value.narrow_first(place.add(p * to.point).cast(), S::LANES);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn bring_gradient_windows<E: Cell, S: Simd>(
    source: &Source<E>,
    tiles: Range<usize>,
    to: Place,
    at: usize,
    scratch: &mut [f32],
) {
    // SAFETY: see above.
    unsafe { bring_cells::<E, S, Windows, WINDOW>(source, tiles, to, at, scratch) };
}

#[inline(always)]
unsafe fn bring_gradients<E: Cell, S: Simd>(
    source: &Source<E>,
    tiles: Range<usize>,
    to: Place,
    at: usize,
    scratch: &mut [f32],
) {
    // SAFETY: see above.
    unsafe { bring_cells::<E, S, Gradients, TILE>(source, tiles, to, at, scratch) };
}

/// Brings tiles to the points, in the cells of the weight gradient.
#[inline(always)]
unsafe fn bring_cells<E: Cell, S: Simd, M: Map<N>, const N: usize>(
    source: &Source<E>,
    tiles: Range<usize>,
    to: Place,
    at: usize,
    scratch: &mut [f32],
) {
    // SAFETY: see above.
    unsafe {
        if has_pairs::<E, S>() {
            bring_pairs::<E, S, M, N>(source, tiles, to, at, scratch);
        } else {
            bring::<E, S, M, N>(source, tiles, to, at, scratch);
        }
    }
}

/// Brings tiles to the points, one by one.
#[inline(always)]
unsafe fn bring<E: Cell, S: Simd, M: Map<N>, const N: usize>(
    source: &Source<E>,
    tiles: Range<usize>,
    to: Place,
    at: usize,
    scratch: &mut [f32],
) {
    let copied = E::of_scratch(scratch);
    for (i, index) in tiles.enumerate() {
        // SAFETY: squares have all their channels in whole vectors; the caller vouches for the place.
        unsafe {
            let square = Square::of::<S, N>(source, index, M::BEFORE, copied);
            for k in (0..square.channels).step_by(S::LANES) {
                let (points, place) = (M::map(square.load::<S, N>(k)), to.of(at + i, k));
                for (p, value) in points.as_flattened().iter().enumerate() {
                    value.store_first(place.add(p * to.point), S::LANES);
                }
            }
        }
    }
}

/// Brings tiles to the points, two by two; the last one may be paired with zeros.
#[inline(always)]
unsafe fn bring_pairs<E: Cell, S: Simd, M: Map<N>, const N: usize>(
    source: &Source<E>,
    tiles: Range<usize>,
    to: Place,
    at: usize,
    scratch: &mut [f32],
) {
    let half = scratch.len() / 2;
    let (low, high) = scratch.split_at_mut(half);
    let (low, high) = (E::of_scratch(low), E::of_scratch(high));
    for (i, index) in tiles.clone().step_by(2).enumerate() {
        // SAFETY: as above.
        unsafe {
            let square = Square::of::<S, N>(source, index, M::BEFORE, low);
            let other = if index + 1 < tiles.end {
                Square::of::<S, N>(source, index + 1, M::BEFORE, high)
            } else {
                Square::zeros::<N>(square.channels, high)
            };
            for k in (0..square.channels).step_by(S::LANES) {
                let place = to.of(at + i, k);
                let (points, others) = (M::map(square.load::<S, N>(k)), M::map(other.load::<S, N>(k)));
                for (p, (&a, &b)) in points.as_flattened().iter().zip(others.as_flattened()).enumerate() {
                    S::round_pairs(a, b).store_first(place.add(p * to.point), S::LANES);
                }
            }
        }
    }
}

/// A square of pixels with their channels in whole vectors.
struct Square<E> {
    start: *const E,
    /// From one row and one pixel to the next.
    row: usize,
    pixel: usize,
    channels: usize,
}

/// Tiles that pixels are asked for ahead of their use: rows of a tile lie too far apart for the processor to foresee.
const AHEAD: usize = 2;

impl<E: Cell> Square<E> {
    /// The square of tile `index`: where it lies if it has no edge, else a copy.
    #[inline(always)]
    unsafe fn of<S: Simd, const N: usize>(source: &Source<E>, index: usize, before: usize, copied: &mut [E]) -> Self {
        let (Source { grid, channels: c, x }, padded) = (source, source.channels.next_multiple_of(S::LANES));
        let tile = grid.tile(index);
        let image = &x[tile.image * grid.h * grid.w * c..][..grid.h * grid.w * c];
        let is_inside = |at: usize, size: usize| at >= before && at + N - before <= size;
        // SAFETY: handed through; a hint.
        unsafe { prefetch_tile::<E, S>(source, index + AHEAD) };
        if is_inside(tile.row, grid.h) && is_inside(tile.col, grid.w) && padded == *c {
            let start = image[((tile.row - before) * grid.w + tile.col - before) * c..].as_ptr();
            return Self { start, row: grid.w * c, pixel: *c, channels: *c };
        }
        copy_square::<E, N>(source, image, (tile.row, tile.col), before, padded, copied);
        Self { start: copied.as_ptr(), row: N * padded, pixel: padded, channels: padded }
    }

    fn zeros<const N: usize>(channels: usize, copied: &mut [E]) -> Self {
        copied[..N * N * channels].fill(E::default());
        Self { start: copied.as_ptr(), row: N * channels, pixel: channels, channels }
    }

    /// The vectors from channel `k` on.
    #[inline(always)]
    unsafe fn load<S: Simd, const N: usize>(&self, k: usize) -> [[S; N]; N] {
        // SAFETY: the caller has the instructions and asks for channels that there are.
        unsafe {
            let mut square = [[S::zero(); N]; N];
            for (r, line) in square.iter_mut().enumerate() {
                for (col, value) in line.iter_mut().enumerate() {
                    *value = E::load_first::<S>(self.start.add(r * self.row + col * self.pixel + k), S::LANES);
                }
            }
            square
        }
    }
}

/// Copies a square, zeros where there is no pixel or channel.
fn copy_square<E: Cell, const N: usize>(
    source: &Source<E>,
    image: &[E],
    (top, left): (usize, usize),
    before: usize,
    padded: usize,
    to: &mut [E],
) {
    let (grid, c) = (source.grid, source.channels);
    let to = &mut to[..N * N * padded];
    to.fill(E::default());
    // Columns of the square that lie in the image.
    let (first, last) = (before.saturating_sub(left), (grid.w + before - left).min(N));
    for (r, line) in to.chunks_exact_mut(N * padded).enumerate() {
        if top + r < before || top + r >= grid.h + before {
            continue;
        }
        let from = &image[((top + r - before) * grid.w + left + first - before) * c..][..(last - first) * c];
        let line = &mut line[first * padded..last * padded];
        if padded == c {
            line.copy_from_slice(from);
        } else {
            for (to, from) in line.chunks_exact_mut(padded).zip(from.chunks_exact(c)) {
                to[..c].copy_from_slice(from);
            }
        }
    }
}

/// Asks for the pixels of tile `index`, those that its window has not in common with the row of tiles above it.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn prefetch_tile<E: Cell, S: Simd>(source: &Source<E>, index: usize) {
    const LINE: usize = 64;
    let (Source { grid, channels: c, x }, per_line) = (source, LINE / size_of::<E>());
    let tile = grid.tile(index);
    for row in tile.row..=tile.row + TILE {
        let start = ((tile.image * grid.h + row) * grid.w + tile.col) * c;
        for at in (0..TILE * c).step_by(per_line) {
            // SAFETY: handed through; what lies outside the map is asked for in vain.
            unsafe { S::prefetch(x.as_ptr().wrapping_add(start + at).cast()) };
        }
    }
}
