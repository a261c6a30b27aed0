//! Brings tiles of feature maps to the points.
//!
//! Tiles inside an image are read in place. Those that reach over its edge, and pixels whose channels do not fill vectors, are
//! copied first, zeros around: so there is one loop, and it knows no edges. Some channels are copied at a time, and fit the first-level
//! cache.

use super::grid::{Grid, Tile};
use super::transform::{self, Columns, Gradients, Line, TILE, WINDOW, Window, rolled};
use crate::cpu::ahead::LINE;
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
    #[inline(always)]
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

/// Channels of a tile that are brought to the points before the next: whole vectors of every level.
const BLOCK: usize = 64;

/// Floats of scratch for copied tiles.
pub(super) const SCRATCH: usize = 2 * WINDOW * WINDOW * COPIED;

/// From one pixel of a copied square to the next: a cache line more keeps their channels from falling into the same cache sets.
const COPIED: usize = BLOCK + LINE;

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
trait Map<const N: usize>: Line<N, WINDOW> {
    const BEFORE: usize;
}

impl Map<WINDOW> for Window {
    const BEFORE: usize = 1;
}

impl Map<TILE> for Gradients {
    const BEFORE: usize = 0;
}

#[inline(always)]
unsafe fn bring_windows<E: Cell, S: Simd>(source: &Source<E>, tiles: Range<usize>, to: Place, scratch: &mut [f32]) {
    // SAFETY: see above.
    unsafe { bring::<E, S, Window, WINDOW>(source, tiles, to, 0, scratch) };
}

#[inline(always)]
unsafe fn bring_windows_of_pairs<E: Cell, S: Simd>(
    source: &Source<E>,
    tiles: Range<usize>,
    to: Place,
    scratch: &mut [f32],
) {
    let (copied, side, point) = (E::of_scratch(scratch), rolled(WINDOW), to.point);
    // SAFETY: the caller has the instructions.
    let mut halfway = [[unsafe { S::zero() }; WINDOW]; WINDOW];
    for (i, Walked { tile, ahead }) in source.tiles(tiles) {
        // SAFETY: the caller has the instructions.
        unsafe { prefetch_tile::<E, S>(source, &ahead) };
        for block in source.blocks(S::LANES) {
            // SAFETY: as in `bring`.
            unsafe {
                let square = Square::of::<WINDOW>(source, tile, Window::BEFORE, &block, copied);
                for k in block.clone().step_by(S::LANES) {
                    let mut place = to.of(i, k / 2);
                    transform::columns::<Window, S, _, _>(&square.from(k), side, &mut halfway);
                    for r in 0..side {
                        for value in Window::line(*halfway.get_unchecked(r)) {
                            value.narrow_first(place.cast(), S::LANES);
                            place = place.wrapping_add(point);
                        }
                    }
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
    unsafe { bring_cells::<E, S, Window, WINDOW>(source, tiles, to, at, scratch) };
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
    let (copied, n, side, point) = (E::of_scratch(scratch), rolled(N), rolled(WINDOW), to.point);
    // SAFETY: the caller has the instructions.
    let mut halfway = [[unsafe { S::zero() }; N]; WINDOW];
    for (i, Walked { tile, ahead }) in source.tiles(tiles) {
        // SAFETY: the caller has the instructions.
        unsafe { prefetch_tile::<E, S>(source, &ahead) };
        for block in source.blocks(S::LANES) {
            // SAFETY: squares have all channels of the block in whole vectors; the caller vouches for the place; there are `side` rows.
            unsafe {
                let square = Square::of::<N>(source, tile, M::BEFORE, &block, copied);
                for k in block.clone().step_by(S::LANES) {
                    let mut place = to.of(at + i, k);
                    transform::columns::<M, S, N, WINDOW>(&square.from(k), n, &mut halfway);
                    for r in 0..side {
                        for value in M::line(*halfway.get_unchecked(r)) {
                            value.store_first(place, S::LANES);
                            place = place.wrapping_add(point);
                        }
                    }
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
    let (n, side, point) = (rolled(N), rolled(WINDOW), to.point);
    // SAFETY: the caller has the instructions.
    let mut halfway = [[[unsafe { S::zero() }; N]; WINDOW]; 2];
    let mut tiles = source.tiles(tiles);
    while let Some((i, first)) = tiles.next() {
        let second = tiles.next().map(|(_, second)| second);
        for Walked { ahead, .. } in std::iter::once(first).chain(second) {
            // SAFETY: the caller has the instructions.
            unsafe { prefetch_tile::<E, S>(source, &ahead) };
        }
        for block in source.blocks(S::LANES) {
            // SAFETY: as above.
            unsafe {
                let square = Square::of::<N>(source, first.tile, M::BEFORE, &block, low);
                let other = match second {
                    Some(second) => Square::of::<N>(source, second.tile, M::BEFORE, &block, high),
                    None => Square::zeros::<N>(&block, high),
                };
                for k in block.clone().step_by(S::LANES) {
                    let mut place = to.of(at + i / 2, k);
                    transform::columns::<M, S, N, WINDOW>(&square.from(k), n, &mut halfway[0]);
                    transform::columns::<M, S, N, WINDOW>(&other.from(k), n, &mut halfway[1]);
                    for r in 0..side {
                        let low = M::line(*halfway[0].get_unchecked(r));
                        let high = M::line(*halfway[1].get_unchecked(r));
                        for (low, high) in low.into_iter().zip(high) {
                            S::round_pairs(low, high).store_first(place, S::LANES);
                            place = place.wrapping_add(point);
                        }
                    }
                }
            }
        }
    }
}

/// A tile, and the one whose pixels are to be asked for.
#[derive(Clone, Copy)]
struct Walked {
    tile: Tile,
    ahead: Tile,
}

/// Tiles that pixels are asked for ahead of their use: rows of a tile lie too far apart for the processor to foresee.
const AHEAD: usize = 2;

impl<E> Source<'_, E> {
    /// The channels in whole vectors, by blocks.
    fn blocks(&self, lanes: usize) -> impl Iterator<Item = Range<usize>> {
        let padded = self.channels.next_multiple_of(lanes);
        (0..padded).step_by(BLOCK).map(move |first| first..padded.min(first + BLOCK))
    }

    /// Tiles with their numbers in the range.
    fn tiles(&self, range: Range<usize>) -> impl Iterator<Item = (usize, Walked)> {
        let tiles = self.grid.tiles(range.start).zip(self.grid.tiles(range.start + AHEAD));
        tiles.take(range.len()).map(|(tile, ahead)| Walked { tile, ahead }).enumerate()
    }
}

/// A square of pixels with the channels of a block in whole vectors: where channel 0 would begin, and from one row and one pixel to the
/// next.
struct Square<E> {
    start: *const E,
    row: usize,
    pixel: usize,
}

impl<E: Cell> Square<E> {
    /// The square of a tile: where it lies if it has no edge, else a copy.
    #[inline(always)]
    fn of<const N: usize>(
        source: &Source<E>,
        tile: Tile,
        before: usize,
        block: &Range<usize>,
        copied: &mut [E],
    ) -> Self {
        let Source { grid, channels: c, x } = source;
        let image = &x[tile.image * grid.h * grid.w * c..][..grid.h * grid.w * c];
        let is_inside = |at: usize, size: usize| at >= before && at + N - before <= size;
        if is_inside(tile.row, grid.h) && is_inside(tile.col, grid.w) && block.end <= *c {
            let start = image[((tile.row - before) * grid.w + tile.col - before) * c..].as_ptr();
            return Self { start, row: grid.w * c, pixel: *c };
        }
        copy_square::<E, N>(source, image, (tile.row, tile.col), before, block, copied);
        Self::copied::<N>(block, copied)
    }

    fn copied<const N: usize>(block: &Range<usize>, copied: &[E]) -> Self {
        assert!(block.len() <= BLOCK && copied.len() >= N * N * COPIED);
        Self { start: copied.as_ptr().wrapping_sub(block.start), row: N * COPIED, pixel: COPIED }
    }

    fn zeros<const N: usize>(block: &Range<usize>, copied: &mut [E]) -> Self {
        copied[..N * N * COPIED].fill(E::default());
        Self::copied::<N>(block, copied)
    }

    /// The vectors of channels from `k` on.
    #[inline(always)]
    fn from(&self, k: usize) -> Vectors<E> {
        Vectors { start: self.start.wrapping_add(k), row: self.row, pixel: self.pixel }
    }
}

/// A square's vectors of some channels: its first pixel's, and from one row and one pixel to the next.
struct Vectors<E> {
    start: *const E,
    row: usize,
    pixel: usize,
}

impl<E: Cell, S: Simd, const N: usize> Columns<S, N> for Vectors<E> {
    #[inline(always)]
    unsafe fn column(&self, c: usize) -> [S; N] {
        // SAFETY: the caller has the instructions, and the square its pixels.
        unsafe {
            let mut column = [S::zero(); N];
            for (r, value) in column.iter_mut().enumerate() {
                *value = E::load_first::<S>(self.start.add(c * self.pixel + r * self.row), S::LANES);
            }
            column
        }
    }
}

/// Copies a block's channels of a square, zeros where there is no pixel or channel.
fn copy_square<E: Cell, const N: usize>(
    source: &Source<E>,
    image: &[E],
    (top, left): (usize, usize),
    before: usize,
    block: &Range<usize>,
    to: &mut [E],
) {
    let (grid, c) = (source.grid, source.channels);
    let (n, first) = (block.end.min(c) - block.start, before.saturating_sub(left));
    // Pixels of a row that lie in the image.
    let inside = (grid.w + before - left).min(N) - first;
    for (r, line) in to[..N * N * COPIED].chunks_exact_mut(N * COPIED).enumerate() {
        if top + r < before || top + r >= grid.h + before {
            line.fill(E::default());
            continue;
        }
        let from = &image[((top + r - before) * grid.w + left + first - before) * c..][..inside * c];
        let (ahead, line) = line.split_at_mut(first * COPIED);
        let (line, behind) = line.split_at_mut(inside * COPIED);
        ahead.fill(E::default());
        behind.fill(E::default());
        for (to, from) in line.chunks_exact_mut(COPIED).zip(from.chunks_exact(c)) {
            to[..n].copy_from_slice(&from[block.start..][..n]);
            to[n..block.len()].fill(E::default());
        }
    }
}

/// Asks for the pixels of a tile, those that its window has not in common with the row of tiles above it.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn prefetch_tile<E: Cell, S: Simd>(source: &Source<E>, tile: &Tile) {
    let (Source { grid, channels: c, x }, per_line) = (source, LINE * size_of::<f32>() / size_of::<E>());
    for row in tile.row..=tile.row + TILE {
        let start = ((tile.image * grid.h + row) * grid.w + tile.col) * c;
        for at in (0..TILE * c).step_by(per_line) {
            // SAFETY: handed through; what lies outside the map is asked for in vain.
            unsafe { S::prefetch(x.as_ptr().wrapping_add(start + at).cast()) };
        }
    }
}
