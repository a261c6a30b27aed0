//! The squares of pixels that tiles need: windows of inputs, or the tiles themselves.
//!
//! Those inside an image are read in place. Those that reach over its edge, and pixels whose channels do not fill vectors, are
//! copied first, zeros around: so there is one loop over squares, and it knows no edges. Some channels are copied at a time, and fit the
//! first-level cache.

use super::grid::{Grid, Tile};
use super::strided;
use super::transform::{Columns, TILE};
use crate::cpu::ahead::LINE;
use crate::cpu::cell::Cell;
use crate::cpu::simd::Simd;
use std::ops::Range;

/// A batch of feature maps, and the tiles over it, or over what it is strided to.
pub(super) struct Source<'a, E> {
    pub grid: Grid,
    /// Rows and columns of a map.
    pub size: (usize, usize),
    pub channels: usize,
    pub x: &'a [E],
}

/// Channels of a tile that are brought to the points before the next: whole vectors of every level.
const BLOCK: usize = 64;

/// Floats of scratch for copied tiles.
pub(super) const SCRATCH: usize = 2 * strided::WINDOW * strided::WINDOW * COPIED;

/// From one pixel of a copied square to the next: a cache line more keeps their channels from falling into the same cache sets.
const COPIED: usize = BLOCK + LINE;

/// Where a tile's square begins: `before` rows and columns before the tile, which is `scale` pixels a side for each of the grid's.
#[derive(Clone, Copy)]
pub(super) struct Frame {
    pub before: usize,
    pub scale: usize,
}

/// A tile, and the one whose pixels are to be asked for.
#[derive(Clone, Copy)]
pub(super) struct Walked {
    pub tile: Tile,
    pub ahead: Tile,
}

/// Tiles that pixels are asked for ahead of their use: rows of a tile lie too far apart for the processor to foresee.
const AHEAD: usize = 2;

impl<E> Source<'_, E> {
    /// The channels in whole vectors, by blocks.
    pub fn blocks(&self, lanes: usize) -> impl Iterator<Item = Range<usize>> {
        let padded = self.channels.next_multiple_of(lanes);
        (0..padded).step_by(BLOCK).map(move |first| first..padded.min(first + BLOCK))
    }

    /// Tiles with their numbers in the range.
    pub fn tiles(&self, range: Range<usize>) -> impl Iterator<Item = (usize, Walked)> {
        let tiles = self.grid.tiles(range.start).zip(self.grid.tiles(range.start + AHEAD));
        tiles.take(range.len()).map(|(tile, ahead)| Walked { tile, ahead }).enumerate()
    }
}

/// A square of pixels with the channels of a block in whole vectors: where channel 0 would begin, and from one row and one pixel to the
/// next.
pub(super) struct Square<E> {
    start: *const E,
    row: usize,
    pixel: usize,
}

impl<E: Cell> Square<E> {
    /// The square of a tile: where it lies if it has no edge, else a copy.
    #[inline(always)]
    pub fn of<const N: usize>(
        source: &Source<E>,
        tile: Tile,
        Frame { before, scale }: Frame,
        block: &Range<usize>,
        copied: &mut [E],
    ) -> Self {
        let &Source { size: (h, w), channels: c, x, .. } = source;
        let image = &x[tile.image * h * w * c..][..h * w * c];
        let (row, col) = (scale * tile.row, scale * tile.col);
        let is_inside = |at: usize, size: usize| at >= before && at + N - before <= size;
        if is_inside(row, h) && is_inside(col, w) && block.end <= c {
            let start = image[((row - before) * w + col - before) * c..].as_ptr();
            return Self { start, row: w * c, pixel: c };
        }
        copy_square::<E, N>(source, image, (row, col), before, block, copied);
        Self::copied::<N>(block, copied)
    }

    fn copied<const N: usize>(block: &Range<usize>, copied: &[E]) -> Self {
        assert!(block.len() <= BLOCK && copied.len() >= N * N * COPIED);
        Self { start: copied.as_ptr().wrapping_sub(block.start), row: N * COPIED, pixel: COPIED }
    }

    pub fn zeros<const N: usize>(block: &Range<usize>, copied: &mut [E]) -> Self {
        copied[..N * N * COPIED].fill(E::default());
        Self::copied::<N>(block, copied)
    }

    /// The vectors of channels from `k` on.
    #[inline(always)]
    pub fn from(&self, k: usize) -> Vectors<E> {
        Vectors { start: self.start.wrapping_add(k), row: self.row, pixel: self.pixel }
    }
}

/// A square's vectors of some channels: its first pixel's, and from one row and one pixel to the next.
pub(super) struct Vectors<E> {
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
    let ((h, w), c) = (source.size, source.channels);
    let (n, first) = (block.end.min(c) - block.start, before.saturating_sub(left));
    // Pixels of a row that lie in the image.
    let inside = (w + before - left).min(N) - first;
    for (r, line) in to[..N * N * COPIED].chunks_exact_mut(N * COPIED).enumerate() {
        if top + r < before || top + r >= h + before {
            line.fill(E::default());
            continue;
        }
        let from = &image[((top + r - before) * w + left + first - before) * c..][..inside * c];
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

/// Asks for the pixels of a tile's square of `N` × `N`, those that it has not in common with the row of tiles above it.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn prefetch_tile<E: Cell, S: Simd, const N: usize>(source: &Source<E>, tile: &Tile, frame: Frame) {
    let Frame { before, scale } = frame;
    let (&Source { size: (h, w), channels: c, x, .. }, per_line) = (source, LINE * size_of::<f32>() / size_of::<E>());
    for row in scale * tile.row..scale * tile.row + N - before {
        let start = ((tile.image * h + row) * w + scale * tile.col) * c;
        for at in (0..scale * TILE * c).step_by(per_line) {
            // SAFETY: handed through; what lies outside the map is asked for in vain.
            unsafe { S::prefetch(x.as_ptr().wrapping_add(start + at).cast()) };
        }
    }
}
