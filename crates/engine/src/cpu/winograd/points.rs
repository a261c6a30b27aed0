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

/// Where the numbers of tiles at a point lie: channels in blocks of `block`, `[block, tile, channel]`, `width` channels in all.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Channel 0 of the first tile at the first point.
    pub start: *mut f32,
    pub n_tiles: usize,
    pub width: usize,
    pub block: usize,
    /// Floats from one point to the next.
    pub point: usize,
}

// SAFETY: who writes tiles of it writes different ones from everybody else, by the contract of the functions below.
unsafe impl Sync for Place {}

impl Place {
    /// Channel `k` of a tile at the first point.
    fn of(&self, tile: usize, k: usize) -> *mut f32 {
        let first = k / self.block * self.block;
        let offset = first * self.n_tiles + tile * self.block.min(self.width - first) + (k - first);
        self.start.wrapping_add(offset)
    }
}

/// Floats of scratch for a copied tile of `channels` in whole vectors.
pub(super) fn scratch_len(channels: usize, lanes: usize) -> usize {
    WINDOW * WINDOW * channels.next_multiple_of(lanes)
}

kernel! {
    /// Brings the windows of tiles to the points; the first tile has place `at`.
    ///
    /// # Safety
    /// `to` must have room for all channels, in whole vectors, of the tiles at every point, and no other thread may use those; `level` must be
    /// supported by the CPU.
    pub(super) unsafe fn windows(source: &Source<E>, tiles: Range<usize>, to: Place, at: usize, scratch: &mut [f32]) = bring_windows
}

kernel! {
    /// Brings the gradients of tiles to the points; the first tile has place `at`.
    ///
    /// # Safety
    /// As [`windows`].
    pub(super) unsafe fn gradients(source: &Source<E>, tiles: Range<usize>, to: Place, at: usize,
                                   scratch: &mut [f32]) = bring_gradients
}

#[inline(always)]
unsafe fn bring_windows<E: Cell, S: Simd>(
    source: &Source<E>,
    tiles: Range<usize>,
    to: Place,
    at: usize,
    scratch: &mut [f32],
) {
    // SAFETY: handed through; the window begins a pixel above and to the left of its tile.
    unsafe { bring::<E, S, WINDOW>(source, tiles, 1, to, at, scratch, |square| transform::window(square)) };
}

#[inline(always)]
unsafe fn bring_gradients<E: Cell, S: Simd>(
    source: &Source<E>,
    tiles: Range<usize>,
    to: Place,
    at: usize,
    scratch: &mut [f32],
) {
    // SAFETY: handed through.
    unsafe { bring::<E, S, TILE>(source, tiles, 0, to, at, scratch, |square| transform::gradients(square)) };
}

/// Tiles that pixels are asked for ahead of their use: rows of a tile lie too far apart for the processor to foresee.
const AHEAD: usize = 2;

/// Brings squares of `N` × `N` pixels, which begin `before` rows and columns before their tiles.
#[inline(always)]
unsafe fn bring<E: Cell, S: Simd, const N: usize>(
    source: &Source<E>,
    tiles: Range<usize>,
    before: usize,
    to: Place,
    at: usize,
    scratch: &mut [f32],
    map: impl Fn([[S; N]; N]) -> [[S; WINDOW]; WINDOW],
) {
    let (Source { grid, channels: c, x }, padded) = (source, source.channels.next_multiple_of(S::LANES));
    let edge = E::of_scratch(&mut scratch[..WINDOW * WINDOW * padded]);
    for (i, index) in tiles.enumerate() {
        let tile = grid.tile(index);
        let image = &x[tile.image * grid.h * grid.w * c..][..grid.h * grid.w * c];
        let is_inside = |at: usize, size: usize| at >= before && at + N - before <= size;
        let is_plain = is_inside(tile.row, grid.h) && is_inside(tile.col, grid.w) && padded == *c;
        let (start, row, pixel) = if is_plain {
            // SAFETY: handed through; a hint.
            unsafe { prefetch_tile::<E, S>(source, index + AHEAD) };
            (image[((tile.row - before) * grid.w + tile.col - before) * c..].as_ptr(), grid.w * c, *c)
        } else {
            copy_square::<E, N>(source, image, (tile.row, tile.col), before, padded, edge);
            (edge.as_ptr(), N * padded, padded)
        };
        for k in (0..padded).step_by(S::LANES) {
            // SAFETY: the square lies in the image or in scratch; the caller vouches for the place.
            unsafe {
                let mut square = [[S::zero(); N]; N];
                for (r, line) in square.iter_mut().enumerate() {
                    for (col, value) in line.iter_mut().enumerate() {
                        *value = E::load_first::<S>(start.add(r * row + col * pixel + k), S::LANES);
                    }
                }
                let place = to.of(at + i, k);
                for (p, value) in map(square).as_flattened().iter().enumerate() {
                    value.store_first(place.add(p * to.point), S::LANES);
                }
            }
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
