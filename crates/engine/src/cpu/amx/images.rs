//! Small maps on tiles: a tile's rows are the same pixel of sixteen images.
//!
//! Lines of small maps do not fill tiles, and many of their taps lie outside the map: at 4 × 4 pixels and 3 × 3 taps 44 of 144. Sixteen images'
//! windows at one place meet the same taps, so those outside are left out. Images are copied side by side, and weights, which are the greater
//! part of what such layers read, are read once for 16 or 32 of them; gathered windows would be up to nine times as large as the copies.

use super::super::correlate::Job;
use super::super::sweep::{Sweep, Task};
use super::TASK_BYTES;
use super::sweep::{Block, Source, Tile, divide};
use super::tiles::{A, B, DEPTH, PANEL, ROWS};
use std::arch::x86_64::{_mm512_loadu_si512, _mm512_storeu_si512};
use std::ops::Range;

/// Most images of a task.
const TASK_IMAGES: usize = 2 * ROWS;

/// One axis of a sweep: which taps meet the source at which positions of the grid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    pub grid: usize,
    pub src: usize,
    kernel: usize,
    pub stride: usize,
    pad: isize,
}

impl Axis {
    /// Rows and columns.
    pub fn of(sweep: &Sweep) -> [Self; 2] {
        let Sweep { src, grid, kernel, stride, pad, .. } = *sweep;
        [
            Self { grid: grid.0, src: src.h, kernel: kernel.0, stride, pad: pad.0 },
            Self { grid: grid.1, src: src.w, kernel: kernel.1, stride, pad: pad.1 },
        ]
    }

    /// Where a tap of a grid position would be in the source.
    pub fn source(&self, at: usize, tap: usize) -> isize {
        (at * self.stride + tap) as isize - self.pad
    }

    /// Taps that meet the source at a position.
    pub fn taps(&self, at: usize) -> Range<usize> {
        let (first, last) = (self.source(at, 0), self.kernel as isize);
        let start = (-first).clamp(0, last);
        start as usize..(self.src as isize - first).clamp(start, last) as usize
    }

    /// Positions at which a tap meets the source.
    pub fn positions(&self, tap: usize) -> Range<usize> {
        let from = |source: isize| {
            let at = source + self.pad - tap as isize;
            (at.max(0) as usize).div_ceil(self.stride).min(self.grid)
        };
        from(0)..from(self.src as isize)
    }

    /// Runs of positions that meet the same taps.
    fn runs(self) -> impl Iterator<Item = Range<usize>> {
        let end = move |start: usize| {
            let taps = self.taps(start);
            (start..self.grid).find(|&at| self.taps(at) != taps).unwrap_or(self.grid)
        };
        let run = move |start: usize| start..end(start);
        std::iter::successors(Some(run(0)), move |last| (last.end < self.grid).then(|| run(last.end)))
    }

    /// Taps of all positions that meet the source.
    fn n_met(&self) -> usize {
        (0..self.grid).map(|at| self.taps(at).len()).sum()
    }
}

/// Whether `n` images in groups of `group` take no more products than pixel by pixel: those of a last group that is not whole count, taps
/// outside the maps do not. (Where groups are odd in number, some blocks are half empty as well.)
pub(super) fn saves(sweep: &Sweep, n: usize, group: usize) -> bool {
    let [rows, cols] = Axis::of(sweep);
    let all = rows.grid * cols.grid * sweep.kernel.0 * sweep.kernel.1;
    n.next_multiple_of(group) * rows.n_met() * cols.n_met() <= n * all
}

/// Images of a task side by side, if channels are whole steps and a task's images fit.
pub(super) fn fitting(sweep: &Sweep) -> Option<usize> {
    let c = sweep.src.c;
    let weights = 4 * sweep.cells() * PANEL;
    let fits = |&images: &usize| 2 * copied_len(sweep, images) + weights <= TASK_BYTES;
    let images = [TASK_IMAGES, ROWS].into_iter().find(fits)?;
    (c.is_multiple_of(DEPTH) && sweep.kernel != (1, 1)).then_some(images)
}

/// Values from an image's pixel to the next image's: rows of a tile spread over cache sets.
fn image_step(c: usize) -> usize {
    c.next_multiple_of(2 * DEPTH) + DEPTH
}

/// Values of a task's copied images.
pub(super) fn copied_len(sweep: &Sweep, images: usize) -> usize {
    sweep.src.pixels() * images * image_step(sweep.src.c)
}

/// A task's source, `[pixel, image, channel]`.
pub(super) struct Images<'a, E> {
    data: &'a [E],
    sweep: &'a Sweep,
    axes: [Axis; 2],
    n_images: usize,
    /// Values from a pixel to the next.
    pixel: usize,
}

impl<'a, E: Copy> Images<'a, E> {
    /// Brings a task's images side by side.
    ///
    /// # Safety
    /// The CPU must have the features; `E` is bf16.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn copied(job: &'a Job<E>, task: &Task, scratch: &'a mut [E]) -> Self {
        let (sweep, c) = (job.sweep, job.sweep.src.c);
        let slots = task.n_images.next_multiple_of(ROWS);
        let scratch = &mut scratch[..copied_len(sweep, slots)];
        assert!(c.is_multiple_of(DEPTH), "channels are whole vectors");
        let pixel = slots * image_step(c);
        for image in 0..task.n_images {
            let from = &job.x[(task.image + image) * sweep.src.len()..][..sweep.src.len()];
            let pixels = scratch.chunks_exact_mut(pixel).map(|pixel| &mut pixel[image * image_step(c)..][..c]);
            for (from, to) in from.chunks_exact(c).zip(pixels) {
                for at in (0..c).step_by(DEPTH) {
                    // SAFETY: both hold `c` values, whole vectors.
                    unsafe {
                        let values = _mm512_loadu_si512(from.as_ptr().add(at).cast());
                        _mm512_storeu_si512(to.as_mut_ptr().add(at).cast(), values);
                    }
                }
            }
        }
        Self { data: scratch, sweep, axes: Axis::of(sweep), n_images: task.n_images, pixel }
    }

    /// A group of images at a place of the grid; the tile begins where the place's first tap is that meets the source.
    fn tile(&self, row: usize, col: usize, group: usize) -> Tile {
        let [rows, cols] = self.axes;
        // Its other taps are in the source as well, and so in the copy, which has whole groups. Where there is no tap, somewhere.
        let first =
            |axis: Axis, at: usize| axis.source(at, axis.taps(at).start).clamp(0, axis.src as isize - 1) as usize;
        let (source, image) = (first(rows, row) * cols.src + first(cols, col), group * ROWS);
        let a = self.data[source * self.pixel + image * image_step(self.sweep.src.c)..].as_ptr().cast();
        let pixel = (row * cols.grid + col) * self.n_images + image;
        Tile { a, pixel, skip: 0, n: ROWS.min(self.n_images - image) }
    }
}

impl<E: Copy> Source for Images<'_, E> {
    fn depth(&self) -> usize {
        DEPTH
    }

    fn by_pairs(&self) -> bool {
        false
    }

    fn blocks(&self) -> impl Iterator<Item = Block> {
        let [rows, cols] = self.axes;
        let groups = self.n_images.div_ceil(ROWS);
        rows.runs().flat_map(move |rows| {
            cols.runs().flat_map(move |cols| {
                let n = rows.len() * cols.len() * groups;
                let (first, width) = ((rows.start, cols.start), cols.len());
                let tile = move |index: usize| {
                    let (place, group) = divide(index, groups);
                    let (row, col) = divide(place, width);
                    self.tile(first.0 + row, first.1 + col, group)
                };
                (0..n).step_by(2).map(move |i| Block::of(tile(i), (i + 1 < n).then(|| tile(i + 1))))
            })
        })
    }

    fn parts(&self, block: &Block, weights: &[f32]) -> impl Iterator<Item = (A, B)> {
        let ([rows, cols], c) = (self.axes, self.sweep.src.c);
        let (row, col) = divide(block.tiles[0].pixel / self.n_images, cols.grid);
        let (rows, taps) = (rows.taps(row), cols.taps(col));
        let (first, row_step) = (rows.start, cols.src * self.pixel);
        let starts = block.tiles.map(|tile| tile.a);
        let weights_of_tap = PANEL * c / 2;
        let rows = if taps.is_empty() { 0..0 } else { rows };
        rows.map(move |row| {
            let starts = starts.map(|start| start.wrapping_add((row - first) * row_step));
            let skip = 2 * (self.pixel - c) as isize;
            let a = A { starts, row: 2 * image_step(c), runs: taps.len(), steps: c / DEPTH, skip };
            let weights = &weights[(row * self.sweep.kernel.1 + taps.start) * weights_of_tap..];
            assert!(weights.len() >= taps.len() * weights_of_tap, "a panel has all taps");
            (a, B { start: weights.as_ptr().cast(), skip: 0 })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Dims;

    fn sweep(size: usize, c: usize, kernel: usize, stride: usize, pad: isize) -> Sweep {
        let src = Dims { h: size, w: size, c };
        let grid = (size + 2 * pad as usize - kernel) / stride + 1;
        let dst = Dims { h: grid, w: grid, c };
        Sweep {
            src,
            dst,
            grid: (grid, grid),
            first: (0, 0),
            step: 1,
            kernel: (kernel, kernel),
            stride,
            pad: (pad, pad),
            per_cell: 2,
            widens: false,
        }
    }

    #[test]
    fn taps_and_positions_are_those_in_the_source() {
        for (size, kernel, stride, pad) in [
            (4, 3, 1, 1),
            (7, 3, 2, 1),
            (8, 3, 2, 1),
            (2, 7, 2, 3),
            (1, 3, 1, 1),
            (1, 3, 1, 3),
            (5, 2, 1, 0),
            (1, 7, 1, 5),
        ] {
            let [axis, _] = Axis::of(&sweep(size, 32, kernel, stride, pad));
            let meets = |at, tap| (0..size as isize).contains(&axis.source(at, tap));
            for at in 0..axis.grid {
                assert!((0..kernel).filter(|&tap| meets(at, tap)).eq(axis.taps(at)), "{axis:?} at {at}");
            }
            for tap in 0..kernel {
                assert!((0..axis.grid).filter(|&at| meets(at, tap)).eq(axis.positions(tap)), "{axis:?}, tap {tap}");
            }
            assert!(axis.runs().flatten().eq(0..axis.grid), "{axis:?}");
            assert!(axis.runs().all(|run| run.clone().all(|at| axis.taps(at) == axis.taps(run.start))), "{axis:?}");
        }
    }

    #[test]
    fn images_lie_side_by_side_where_that_saves_products() {
        let (of_four, of_eight) = (sweep(4, 512, 3, 1, 1), sweep(8, 256, 3, 1, 1));
        assert_eq!([fitting(&of_four), fitting(&of_eight)], [Some(32), Some(32)]);
        assert_eq!(fitting(&sweep(7, 512, 3, 1, 1)), Some(16));
        assert_eq!(fitting(&sweep(16, 128, 3, 2, 1)), Some(16));
        assert_eq!(fitting(&sweep(14, 256, 3, 2, 1)), None, "too large");
        assert_eq!(fitting(&sweep(4, 48, 3, 1, 1)), None, "half a step");
        assert!(saves(&of_four, 12, 16) && !saves(&of_four, 11, 16), "100 of 144 taps");
        assert!(saves(&of_eight, 128, 16) && saves(&of_eight, 14, 16) && !saves(&of_eight, 13, 16));
    }
}
