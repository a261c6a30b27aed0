//! Brings images side by side, one to a lane, and back.
//!
//! Of bf16 maps two images share a lane as a pair: what kept weights are multiplied with comes from the second-level cache, and so is half as much.

use crate::cpu::cell::Cell;
use crate::cpu::simd::{MAX_LANES, Simd};
use crate::types::{Dims, Write};
use std::ops::Range;

/// Channels whose results are brought back together: two cache lines of f32.
pub(super) const GROUP: usize = 2 * MAX_LANES;

/// A square of numbers that is turned.
#[repr(align(64))]
pub(super) struct Square([f32; MAX_LANES * MAX_LANES]);

impl Square {
    pub fn new() -> Self {
        Self([0.0; MAX_LANES * MAX_LANES])
    }
}

/// Images side by side in a vector of cells.
pub(super) const fn abreast<E: Cell>(lanes: usize) -> usize {
    lanes * E::PER_CELL
}

/// A vector of cells as vectors of numbers: those of the first images, and of the second ones where a lane holds two.
#[inline(always)]
pub(super) unsafe fn numbers<E: Cell, S: Simd>(cells: S) -> [S; 2] {
    // SAFETY: the caller has the instructions.
    unsafe { if E::PER_CELL == 2 { cells.split() } else { [cells, S::zero()] } }
}

/// Rows of a map's images, and where their numbers go.
pub(super) struct Rows<E> {
    /// The first image.
    pub x: *const E,
    pub dims: Dims,
    /// Images that there are.
    pub n: usize,
    pub rows: Range<usize>,
    pub channels: Range<usize>,
    /// As in [`super::pass::Pass`].
    pub step: usize,
    pub before: usize,
    pub width: usize,
    pub residues: usize,
}

/// Writes rows of some images to `to` `[row, channel, residue, column, lane]`, in cells, zeros where there is no pixel or no image.
///
/// # Safety
/// The images must be readable, `to` writable, and the CPU have the instructions.
#[inline(always)]
pub(super) unsafe fn gather<E: Cell, S: Simd>(from: &Rows<E>, to: *mut f32, square: &mut Square) {
    let Dims { w, c, .. } = from.dims;
    let (n_channels, n_columns) = (from.channels.len(), from.residues * from.width);
    let (channel, image) = (n_columns * S::LANES, from.dims.len());
    for (i, row) in from.rows.clone().enumerate() {
        for (at, column) in (0..from.residues).flat_map(|r| (0..from.width).map(move |i| i * from.step + r)).enumerate()
        {
            // SAFETY: the caller's promises; the square holds a vector for every lane.
            unsafe {
                let to = to.add(i * n_channels * channel + at * S::LANES);
                let Some(col) = column.checked_sub(from.before).filter(|&col| col < w) else {
                    for k in 0..n_channels {
                        S::zero().store_first(to.add(k * channel), S::LANES);
                    }
                    continue;
                };
                let pixel = from.x.add((row * w + col) * c + from.channels.start);
                for k in (0..n_channels).step_by(S::LANES) {
                    let n = (n_channels - k).min(S::LANES);
                    let numbers = |i: usize| {
                        if i < from.n { E::load_first::<S>(pixel.add(i * image + k), n) } else { S::zero() }
                    };
                    for lane in 0..S::LANES {
                        let first = numbers(lane);
                        let cells = if E::PER_CELL == 2 { first.paired(numbers(S::LANES + lane)) } else { first };
                        cells.store_first(square.0.as_mut_ptr().add(lane * S::LANES), S::LANES);
                    }
                    S::turn(square.0.as_ptr(), S::LANES, to.add(k * channel), channel, n);
                }
            }
        }
    }
}

/// Where the pixels of a row go: the address of the first image's first, numbers from an image to the next and from a pixel to the next.
pub(super) struct Pixels<E> {
    pub y: *mut E,
    pub image: usize,
    pub pixel: usize,
    /// How many of both there are.
    pub n_images: usize,
    pub n: usize,
}

/// Writes `n` channels of a row, `[channel, pixel, image]` at `from`, to its pixels.
///
/// # Safety
/// As [`gather`]; whole vectors of channels must be readable.
#[inline(always)]
pub(super) unsafe fn scatter<E: Cell, S: Simd>(
    from: *const f32,
    n: usize,
    to: &Pixels<E>,
    write: Write,
    square: &mut Square,
) {
    let images = abreast::<E>(S::LANES);
    for (pixel, k) in (0..to.n).flat_map(|pixel| (0..n).step_by(S::LANES).map(move |k| (pixel, k))) {
        let here = (n - k).min(S::LANES);
        for first in (0..to.n_images).step_by(S::LANES) {
            // SAFETY: the caller's promises.
            unsafe {
                let channel = to.n * images;
                let from = from.add(k * channel + pixel * images + first);
                let n_lanes = S::LANES.min(to.n_images - first);
                S::turn(from, channel, square.0.as_mut_ptr(), S::LANES, n_lanes);
                for lane in 0..n_lanes {
                    let y = to.y.add((first + lane) * to.image + pixel * to.pixel + k);
                    let mut numbers = S::load(square.0.as_ptr().add(lane * S::LANES));
                    if write == Write::Add {
                        numbers = numbers.add(E::load_first::<S>(y, here));
                    }
                    E::store_first(numbers, y, here);
                }
            }
        }
    }
}

/// The sums of a vector's lanes, of as many vectors as there are lanes.
///
/// # Safety
/// They must be readable, and the CPU have the instructions.
#[inline(always)]
pub(super) unsafe fn lane_sums<S: Simd>(vectors: *const f32, square: &mut Square) -> S {
    // SAFETY: the caller's promises.
    unsafe {
        S::turn(vectors, S::LANES, square.0.as_mut_ptr(), S::LANES, S::LANES);
        let mut sums = S::zero();
        for lane in 0..S::LANES {
            sums = sums.add(S::load(square.0.as_ptr().add(lane * S::LANES)));
        }
        sums
    }
}
