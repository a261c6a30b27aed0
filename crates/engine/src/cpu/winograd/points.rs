//! Brings tiles of feature maps to the points: their [`square`](super::square)s, line by line.

use super::Pass;
use super::square::{Frame, Source, Square, Walked, prefetch_tile};
use super::strided::{self, NarrowWindow};
use super::transform::{self, Gradients, Line, SIDE, TILE, WINDOW, Window, rolled};
use crate::cpu::cell::{Cell, per_cell_of};
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
/// Rounding at the points is off by 1.2 % of a standard deviation of the result (256 channels of normal numbers; with stride 2 by 0.6 %), at random: the
/// direction of a gradient hardly changes. The forward pass is another matter, for all gradients follow from what it gives: its
/// points stay f32.
pub(super) const fn has_pairs<E: Cell, S: Simd>() -> bool {
    per_cell_of::<E, S>() == 2
}

/// Which maps are brought to the points of a weight gradient.
#[derive(Clone, Copy)]
pub(super) enum Maps {
    Inputs,
    Gradients,
}

kernel! {
    /// Brings the windows of tiles to the points of a pass; a cell holds `per_cell` channels, two of them rounded to bf16.
    ///
    /// # Safety
    /// `to` must have room for all channels, in whole vectors, of the tiles at every point; `level` must be supported by the CPU.
    pub(super) unsafe fn windows(pass: Pass, per_cell: usize, source: &Source<E>, tiles: Range<usize>, to: Place,
                                 scratch: &mut [f32]) = bring_windows
}

kernel! {
    /// Brings windows of inputs, or gradients, of tiles to the points, as cells of the weight gradient of a forward pass; the first one's place
    /// is `at`.
    ///
    /// # Safety
    /// As [`windows`], and no other thread may use those cells.
    pub(super) unsafe fn gradient_cells(pass: Pass, maps: Maps, source: &Source<E>, tiles: Range<usize>, to: Place,
                                        at: usize, scratch: &mut [f32]) = bring_gradient_cells
}

/// A map of squares of `N` × `N` pixels to `P` × `P` points.
trait Map<const N: usize, const P: usize>: Line<N, P> {
    const FRAME: Frame;
}

impl Map<WINDOW, SIDE> for Window {
    const FRAME: Frame = Frame { before: 1, scale: 1 };
}

impl Map<TILE, SIDE> for Gradients {
    const FRAME: Frame = Frame { before: 0, scale: 1 };
}

impl Map<{ strided::WINDOW }, { strided::PRODUCTS }> for strided::Window {
    const FRAME: Frame = Frame { before: 1, scale: 2 };
}

impl Map<{ strided::NARROW }, { strided::PRODUCTS }> for NarrowWindow {
    const FRAME: Frame = Frame { before: 0, scale: 1 };
}

impl Map<TILE, { strided::PRODUCTS }> for strided::Gradients {
    const FRAME: Frame = Frame { before: 0, scale: 1 };
}

#[inline(always)]
unsafe fn bring_windows<E: Cell, S: Simd>(
    pass: Pass,
    per_cell: usize,
    source: &Source<E>,
    tiles: Range<usize>,
    to: Place,
    scratch: &mut [f32],
) {
    // SAFETY: see above.
    unsafe {
        match (pass, per_cell) {
            (Pass::Same, 1) => bring::<E, S, Window, false, _, _>(source, tiles, to, 0, scratch),
            (Pass::Same, _) => bring::<E, S, Window, true, _, _>(source, tiles, to, 0, scratch),
            (Pass::Down, 1) => bring::<E, S, strided::Window, false, _, _>(source, tiles, to, 0, scratch),
            (Pass::Down, _) => unreachable!("a forward pass is in f32 at the points"),
            (Pass::Up, 1) => bring::<E, S, NarrowWindow, false, _, _>(source, tiles, to, 0, scratch),
            (Pass::Up, _) => bring::<E, S, NarrowWindow, true, _, _>(source, tiles, to, 0, scratch),
        }
    }
}

#[inline(always)]
unsafe fn bring_gradient_cells<E: Cell, S: Simd>(
    pass: Pass,
    maps: Maps,
    source: &Source<E>,
    tiles: Range<usize>,
    to: Place,
    at: usize,
    scratch: &mut [f32],
) {
    // SAFETY: see above.
    unsafe {
        match (pass, maps) {
            (Pass::Same, Maps::Inputs) => bring_cells::<E, S, Window, _, _>(source, tiles, to, at, scratch),
            (Pass::Same, Maps::Gradients) => bring_cells::<E, S, Gradients, _, _>(source, tiles, to, at, scratch),
            (Pass::Down, Maps::Inputs) => bring_cells::<E, S, strided::Window, _, _>(source, tiles, to, at, scratch),
            (Pass::Down, Maps::Gradients) => {
                bring_cells::<E, S, strided::Gradients, _, _>(source, tiles, to, at, scratch);
            }
            (Pass::Up, _) => unreachable!("a weight gradient is that of a forward pass"),
        }
    }
}

/// Brings tiles to the points, in the cells of the weight gradient.
#[inline(always)]
unsafe fn bring_cells<E: Cell, S: Simd, M: Map<N, P>, const N: usize, const P: usize>(
    source: &Source<E>,
    tiles: Range<usize>,
    to: Place,
    at: usize,
    scratch: &mut [f32],
) {
    // SAFETY: see above.
    unsafe {
        if has_pairs::<E, S>() {
            bring_pairs::<E, S, M, N, P>(source, tiles, to, at, scratch);
        } else {
            bring::<E, S, M, false, N, P>(source, tiles, to, at, scratch);
        }
    }
}

/// Brings tiles to the points, one by one; `PAIRS`: whether a cell holds two channels, rounded.
#[inline(always)]
unsafe fn bring<E: Cell, S: Simd, M: Map<N, P>, const PAIRS: bool, const N: usize, const P: usize>(
    source: &Source<E>,
    tiles: Range<usize>,
    to: Place,
    at: usize,
    scratch: &mut [f32],
) {
    let (copied, n, side, point) = (E::of_scratch(scratch), rolled(N), rolled(P), to.point);
    // SAFETY: the caller has the instructions.
    let mut halfway = [[unsafe { S::zero() }; N]; P];
    for (i, Walked { tile, ahead }) in source.tiles(tiles) {
        // SAFETY: the caller has the instructions.
        unsafe { prefetch_tile::<E, S, N>(source, &ahead, M::FRAME) };
        for block in source.blocks(S::LANES) {
            // SAFETY: squares have all channels of the block in whole vectors; the caller vouches for the place; there are `side` rows.
            unsafe {
                let square = Square::of::<N>(source, tile, M::FRAME, &block, copied);
                for k in block.clone().step_by(S::LANES) {
                    let mut place = to.of(at + i, if PAIRS { k / 2 } else { k });
                    transform::columns::<M, S, N, P>(&square.from(k), n, &mut halfway);
                    for r in 0..side {
                        for value in M::line(*halfway.get_unchecked(r)) {
                            if PAIRS {
                                value.narrow_first(place.cast(), S::LANES);
                            } else {
                                value.store_first(place, S::LANES);
                            }
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
unsafe fn bring_pairs<E: Cell, S: Simd, M: Map<N, P>, const N: usize, const P: usize>(
    source: &Source<E>,
    tiles: Range<usize>,
    to: Place,
    at: usize,
    scratch: &mut [f32],
) {
    let half = scratch.len() / 2;
    let (low, high) = scratch.split_at_mut(half);
    let (low, high) = (E::of_scratch(low), E::of_scratch(high));
    let (n, side, point) = (rolled(N), rolled(P), to.point);
    // SAFETY: the caller has the instructions.
    let mut halfway = [[[unsafe { S::zero() }; N]; P]; 2];
    let mut tiles = source.tiles(tiles);
    while let Some((i, first)) = tiles.next() {
        let second = tiles.next().map(|(_, second)| second);
        for Walked { ahead, .. } in std::iter::once(first).chain(second) {
            // SAFETY: the caller has the instructions.
            unsafe { prefetch_tile::<E, S, N>(source, &ahead, M::FRAME) };
        }
        for block in source.blocks(S::LANES) {
            // SAFETY: as above.
            unsafe {
                let square = Square::of::<N>(source, first.tile, M::FRAME, &block, low);
                let other = match second {
                    Some(second) => Square::of::<N>(source, second.tile, M::FRAME, &block, high),
                    None => Square::zeros::<N>(&block, high),
                };
                for k in block.clone().step_by(S::LANES) {
                    let mut place = to.of(at + i / 2, k);
                    transform::columns::<M, S, N, P>(&square.from(k), n, &mut halfway[0]);
                    transform::columns::<M, S, N, P>(&other.from(k), n, &mut halfway[1]);
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
