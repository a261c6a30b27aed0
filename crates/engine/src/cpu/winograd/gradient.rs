//! The weight gradient by products at points, summed over tiles.
//!
//! A task brings the windows of its inputs and the tiles of its gradients to the points; at each point the sum over its tiles is
//! a matrix product whose results are added in place. The map back to taps is linear, so it comes last, once.

use super::grid::{Grid, Tile};
use super::product::{Left, Out, Right, multiply};
use super::sweep::windows_to_points;
use super::transform::{self, POINTS, TAPS, TILE, WINDOW};
use crate::cpu::cell::Cell;
use crate::cpu::simd::{Simd, kernel};
use std::ops::Range;

/// Floats between points: a cache line keeps them from falling into the same cache sets.
const GAP: usize = 16;

/// A weight gradient to be summed over tiles.
pub(super) struct Job<'a, E> {
    pub grid: Grid,
    /// Input and output channels.
    pub channels: (usize, usize),
    pub x: &'a [E],
    pub dy: &'a [E],
}

/// Sums at all points of some output channels, those of the levels' vectors of input channels: `[point, panel, row, panel width]`.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    /// Output channels, and input channels of all panels.
    pub rows: usize,
    pub columns: usize,
}

impl Sums {
    pub fn len(self) -> usize {
        POINTS * self.point()
    }

    /// Floats from one point to the next.
    fn point(self) -> usize {
        self.rows * self.columns
    }
}

/// Floats of scratch for a task of `n_tiles`.
pub(super) fn scratch_len(n_tiles: usize, cin: usize, rows: usize, lanes: usize) -> usize {
    POINTS * (n_tiles * (cin.next_multiple_of(lanes) + rows.next_multiple_of(lanes)) + 2 * GAP)
}

kernel! {
    /// The sums over some tiles of output channels `channels`, added to `out` or put there.
    ///
    /// # Safety
    /// `level` must be supported by the CPU.
    pub(super) unsafe fn add_tiles(job: &Job<E>, tiles: Range<usize>, channels: Range<usize>, sums: Sums, scratch: &mut [f32],
                                   out: &mut [f32], adds: bool) = add_task
}

#[inline(always)]
unsafe fn add_task<E: Cell, S: Simd>(
    job: &Job<E>,
    tiles: Range<usize>,
    channels: Range<usize>,
    sums: Sums,
    scratch: &mut [f32],
    out: &mut [f32],
    adds: bool,
) {
    let (cin, cout) = job.channels;
    let (x_width, dy_width) = (cin.next_multiple_of(S::LANES), channels.len().next_multiple_of(S::LANES));
    let (x_point, dy_point) = (tiles.len() * x_width + GAP, tiles.len() * dy_width + GAP);
    let (windows, gradients) = scratch[..POINTS * (x_point + dy_point)].split_at_mut(POINTS * x_point);
    for (i, tile) in tiles.clone().enumerate() {
        let tile = job.grid.tile(tile);
        // SAFETY: the caller's promise.
        unsafe {
            windows_to_points::<E, S>(&job.grid, &tile, cin, job.x, &mut windows[i * x_width..], x_point);
            let to = &mut gradients[i * dy_width..];
            gradients_to_points::<E, S>(&job.grid, &tile, cout, channels.clone(), job.dy, to, dy_point);
        }
    }
    assert!(out.len() >= sums.len() && sums.rows.is_multiple_of(S::GROUP) && sums.rows >= channels.len());
    for point in 0..POINTS {
        let (x, dy) = (&windows[point * x_point..], &gradients[point * dy_point..]);
        let out = &mut out[point * sums.point()..][..sums.point()];
        for at in (0..cin).step_by(S::PANEL) {
            let out = &mut out[at * sums.rows..];
            // SAFETY: the points of all tiles are there; sums hold whole groups of rows, by the assertion.
            unsafe {
                if (cin - at).min(S::PANEL) <= S::LANES {
                    multiply_panel::<S, 1>(tiles.len(), channels.len(), (dy, dy_width), (&x[at..], x_width), out, adds);
                } else {
                    multiply_panel::<S, 2>(tiles.len(), channels.len(), (dy, dy_width), (&x[at..], x_width), out, adds);
                }
            }
        }
    }
}

/// Products of all rows with a panel of columns: rows and columns of a depth lie side by side, that many floats from the next's.
#[inline(always)]
unsafe fn multiply_panel<S: Simd, const V: usize>(
    depth: usize,
    rows: usize,
    left: (&[f32], usize),
    right: (&[f32], usize),
    out: &mut [f32],
    adds: bool,
) {
    let width = V * S::LANES;
    for first in (0..rows).step_by(S::PIXELS) {
        // SAFETY: the caller vouches for both sides and the sums.
        unsafe {
            let from = Left { start: left.0.as_ptr().add(first), row: 1, step: left.1 };
            let right = Right { start: right.0.as_ptr(), step: right.1 };
            let out = Out { start: out.as_mut_ptr().add(first * width), row: width, adds };
            multiply::<S, V>(S::PIXELS.min(rows - first), depth, from, right, out);
        }
    }
}

/// Brings some channels of a tile's gradients to the points, `point` floats apart.
#[inline(always)]
unsafe fn gradients_to_points<E: Cell, S: Simd>(
    grid: &Grid,
    tile: &Tile,
    c: usize,
    channels: Range<usize>,
    dy: &[E],
    to: &mut [f32],
    point: usize,
) {
    let image = &dy[tile.image * grid.h * grid.w * c..][..grid.h * grid.w * c];
    let start = &image[(tile.row * grid.w + tile.col) * c..];
    let (rows, cols) = tile.size(grid);
    assert!(to.len() >= (POINTS - 1) * point + channels.len().next_multiple_of(S::LANES) && channels.end <= c);
    for k in (0..channels.len()).step_by(S::LANES) {
        let n = (channels.len() - k).min(S::LANES);
        let load = |r: usize, col: usize, n: usize| unsafe {
            // SAFETY: the caller has the instructions; asked for pixels inside only.
            E::load_first::<S>(start.as_ptr().add((r * grid.w + col) * c + channels.start + k), n)
        };
        // SAFETY: as above; `to` holds a vector at every point, by the assertion.
        unsafe {
            let mut tile = [[S::zero(); TILE]; TILE];
            if (rows, cols) == (TILE, TILE) && n == S::LANES {
                for (r, row) in tile.iter_mut().enumerate() {
                    for (col, value) in row.iter_mut().enumerate() {
                        *value = load(r, col, S::LANES);
                    }
                }
            } else {
                for r in 0..rows {
                    for col in 0..cols {
                        tile[r][col] = load(r, col, n);
                    }
                }
            }
            for (p, value) in transform::gradients(tile).as_flattened().iter().enumerate() {
                value.store_first(to.as_mut_ptr().add(p * point + k), S::LANES);
            }
        }
    }
}

/// All slices of the sums, `[slice, share, Sums]`, of shares of `share` output channels each.
pub(super) struct Slices<'a> {
    pub slices: &'a [f32],
    pub sums: Sums,
    pub share: usize,
    pub n_shares: usize,
}

kernel! {
    /// Adds all slices, brings them to taps and adds those to output channels `dw` `[channels, 3, 3, cin]` from `first` on.
    ///
    /// # Safety
    /// `level` must be supported by the CPU.
    pub(super) unsafe fn reduce(from: &Slices, cin: usize, first: usize, dw: &mut [f32], mask: Option<&[u8]>) = reduce_rows
}

#[inline(always)]
unsafe fn reduce_rows<E: Cell, S: Simd>(from: &Slices, cin: usize, first: usize, dw: &mut [f32], mask: Option<&[u8]>) {
    let sums = from.sums;
    for (i, dw) in dw.chunks_exact_mut(TAPS * TAPS * cin).enumerate() {
        let (share, row) = ((first + i) / from.share, (first + i) % from.share);
        for k in (0..cin).step_by(S::LANES) {
            let at = k / S::PANEL * S::PANEL;
            let width = if (cin - at).min(S::PANEL) <= S::LANES { S::LANES } else { S::PANEL };
            let start = share * sums.len() + at * sums.rows + row * width + (k - at);
            let n = (cin - k).min(S::LANES);
            // SAFETY: the caller has the instructions; every slice has a vector at every point of each row.
            unsafe {
                let mut points = [[S::zero(); WINDOW]; WINDOW];
                for slice in from.slices.chunks_exact(from.n_shares * sums.len()) {
                    let slice = &slice[start..];
                    assert!(slice.len() >= (POINTS - 1) * sums.point() + S::LANES);
                    for (p, total) in points.as_flattened_mut().iter_mut().enumerate() {
                        *total = total.add(S::load(slice.as_ptr().add(p * sums.point())));
                    }
                }
                let taps = transform::taps(points);
                for (tap, &value) in taps.as_flattened().iter().enumerate() {
                    let mut kept = value;
                    if let Some(mask) = mask {
                        kept = value.where_positive(gate::<S>(&mask[(i * TAPS * TAPS + tap) * cin + k..][..n]));
                    }
                    let dw = &mut dw[tap * cin + k..][..n];
                    kept.add(S::load_first(dw.as_ptr(), n)).store_first(dw.as_mut_ptr(), n);
                }
            }
        }
    }
}

/// A mask as floats, 1 where it keeps.
#[inline(always)]
unsafe fn gate<S: Simd>(mask: &[u8]) -> S {
    let mut gate = [0.0f32; 16];
    for (gate, &keep) in gate.iter_mut().zip(mask) {
        *gate = f32::from(u8::from(keep != 0));
    }
    // SAFETY: the caller has the instructions; no vector is longer than the gate.
    unsafe { S::load(gate.as_ptr()) }
}
