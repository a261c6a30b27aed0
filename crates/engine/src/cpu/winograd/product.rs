//! The matrix product at one point: the hot loop of all three passes. Its numbers are 32-bit cells: floats, or pairs of bf16 whose
//! products are added up.
//!
//! A register block of rows × vectors of columns stays in registers while the loop runs along the depth: per step it loads one
//! row of the right side and broadcasts one number of the left side per row.

use crate::cpu::ahead::{self, LINE, Run};
use crate::cpu::cell::Cell;
use crate::cpu::correlate::{MAX_PIXELS, add_products};
use crate::cpu::simd::Simd;

/// Which numbers of the left side lie next to each other; `stride` floats lie between those of the other kind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Adjacent {
    /// Those of a row, a channel of a tile: forward and backward-data.
    Steps,
    /// Those of a step, a tile's channels: the weight gradient.
    Rows,
}

/// The left side.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub start: *const f32,
    pub adjacent: Adjacent,
    pub stride: usize,
}

impl Left {
    /// The number of a row and a step.
    #[inline(always)]
    fn at(&self, row: usize, step: usize) -> *const f32 {
        let (row, step) = match self.adjacent {
            Adjacent::Steps => (row * self.stride, step),
            Adjacent::Rows => (row, step * self.stride),
        };
        self.start.wrapping_add(row + step)
    }
}

/// Where the product goes, or is added: floats from one row to the next.
#[derive(Clone, Copy)]
pub(super) struct Out {
    pub start: *mut f32,
    pub row: usize,
    pub adds: bool,
}

/// A product of at most `S::PIXELS` rows and `V` vectors of columns; `right` has those vectors for each step of the depth, one step behind the
/// other. Rows come in groups of `S::GROUP`: surplus ones are read and written. `asked`: [`n_asked`](ahead::n_asked) lines that will be read soon.
///
/// # Safety
/// As [`Simd`]; both sides must be readable and `out` writable for all rows of whole groups.
#[inline(always)]
pub(super) unsafe fn multiply<C: Cell, S: Simd, const V: usize>(
    rows: usize,
    depth: usize,
    left: Left,
    right: *const f32,
    out: Out,
    asked: Run,
) {
    // SAFETY: handed through.
    unsafe {
        match rows.div_ceil(S::GROUP) {
            1 => block::<C, S, V, 1>(depth, left, right, out, asked),
            2 => block::<C, S, V, 2>(depth, left, right, out, asked),
            _ => block::<C, S, V, 3>(depth, left, right, out, asked),
        }
    }
}

/// Steps that lines of the right side are asked for ahead of their use.
const AHEAD: usize = 8;

#[inline(always)]
unsafe fn block<C: Cell, S: Simd, const V: usize, const GROUPS: usize>(
    depth: usize,
    mut left: Left,
    mut right: *const f32,
    out: Out,
    (mut asked, line): Run,
) {
    // SAFETY: the caller's promise, for `GROUPS` whole groups of rows.
    unsafe {
        let mut acc = [[S::zero(); V]; MAX_PIXELS];
        if out.adds {
            // What is added to comes from far away, and is not needed before the end.
            for r in 0..GROUPS * S::GROUP {
                for v in 0..V {
                    S::prefetch(out.start.add(r * out.row + v * S::LANES));
                }
            }
        }
        for _ in 0..depth / S::STEPS {
            for step in 0..S::STEPS {
                one_step::<C, S, V, GROUPS>(&left, right, step, &mut acc);
            }
            for _ in 0..ahead::n_asked::<S>(S::STEPS) {
                S::prefetch_far(asked);
                asked = asked.wrapping_add(line);
            }
            left.start = left.at(0, S::STEPS);
            right = right.add(S::STEPS * V * S::LANES);
        }
        for step in 0..depth % S::STEPS {
            one_step::<C, S, V, GROUPS>(&left, right, step, &mut acc);
        }
        for r in 0..GROUPS * S::GROUP {
            for v in 0..V {
                let to = out.start.add(r * out.row + v * S::LANES);
                let value = if out.adds { acc[r][v].add(S::load(to)) } else { acc[r][v] };
                value.store_first(to, S::LANES);
            }
        }
    }
}

/// A step of the hot loop, `step` steps behind where both sides begin.
#[inline(always)]
unsafe fn one_step<C: Cell, S: Simd, const V: usize, const GROUPS: usize>(
    left: &Left,
    right: *const f32,
    step: usize,
    acc: &mut [[S; V]; MAX_PIXELS],
) {
    // SAFETY: handed through.
    unsafe {
        let right = right.add(step * V * S::LANES);
        if left.adjacent == Adjacent::Steps {
            for v in (0..V * S::LANES).step_by(LINE) {
                S::prefetch(right.wrapping_add(AHEAD * V * S::LANES + v));
            }
        }
        add_products::<C, S, V>(GROUPS * S::GROUP, |r| left.at(r, step), right, acc);
    }
}
