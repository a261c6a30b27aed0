//! Brings tiles of feature maps to the points: their [`square`](super::square)s, line by line.

use super::square::{Source, Square, Walked, prefetch_tile};
use super::transform::{self, Gradients, Line, TILE, WINDOW, Window, rolled};
use crate::cpu::cell::Cell;
use crate::cpu::simd::{Simd, kernel};
use std::ops::Range;

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
