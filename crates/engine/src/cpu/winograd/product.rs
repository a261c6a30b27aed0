//! The matrix product at one point: the hot loop of all three passes. Its numbers are 32-bit cells: floats, or pairs of bf16 whose
//! products are added up.
//!
//! A register block of rows × vectors of columns stays in registers while the loop runs along the depth: per step it loads one
//! row of the right side and broadcasts one number of the left side per row.

use crate::cpu::ahead::LINE;
use crate::cpu::cell::Cell;
use crate::cpu::correlate::{MAX_GROUPS, MAX_PIXELS};
use crate::cpu::simd::{MAX_LANES, Simd};

/// The left side: floats from one row to the next, and from one step of the depth to the next.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub start: *const f32,
    pub row: usize,
    pub step: usize,
}

/// The right side: a row of vectors for each step of the depth, `step` floats apart.
#[derive(Clone, Copy)]
pub(super) struct Right {
    pub start: *const f32,
    pub step: usize,
}

/// Where the product goes, or is added: floats from one row to the next.
#[derive(Clone, Copy)]
pub(super) struct Out {
    pub start: *mut f32,
    pub row: usize,
    pub adds: bool,
}

/// A product of at most `S::PIXELS` rows and `V` vectors of columns. Rows come in groups of `S::GROUP`: surplus ones are read and
/// written.
///
/// # Safety
/// As [`Simd`]; both sides must be readable and `out` writable for all rows of whole groups.
#[inline(always)]
pub(super) unsafe fn multiply<C: Cell, S: Simd, const V: usize>(
    rows: usize,
    depth: usize,
    left: Left,
    right: Right,
    out: Out,
) {
    // SAFETY: handed through.
    unsafe {
        match rows.div_ceil(S::GROUP) {
            1 => block::<C, S, V, 1>(depth, left, right, out),
            2 => block::<C, S, V, 2>(depth, left, right, out),
            _ => block::<C, S, V, 3>(depth, left, right, out),
        }
    }
}

/// Steps of the depth that lines are asked for ahead of their use.
const AHEAD: usize = 8;

/// The same where they may come from memory: as many of the longest vectors' steps, of which shorter vectors take four in the same time.
const fn far_ahead<S: Simd>() -> usize {
    AHEAD * (MAX_LANES / S::LANES) * (MAX_LANES / S::LANES)
}

#[inline(always)]
unsafe fn block<C: Cell, S: Simd, const V: usize, const GROUPS: usize>(
    depth: usize,
    left: Left,
    right: Right,
    out: Out,
) {
    // SAFETY: the caller's promise, for `GROUPS` whole groups of rows.
    unsafe {
        let mut acc = [[S::zero(); V]; MAX_PIXELS];
        let mut base = [left.start; MAX_GROUPS];
        for (g, base) in base.iter_mut().enumerate().take(GROUPS) {
            *base = left.start.add(g * S::GROUP * left.row);
        }
        if out.adds {
            // What is added to comes from far away, and is not needed before the end.
            for r in 0..GROUPS * S::GROUP {
                for v in 0..V {
                    S::prefetch(out.start.add(r * out.row + v * S::LANES));
                }
            }
        }
        // A product over tiles: what they were brought to is more than caches hold in wide layers.
        let is_far = left.row == 1;
        let ahead = if is_far { far_ahead::<S>() } else { AHEAD };
        let mut from = right.start;
        for _ in 0..depth {
            let mut b = [S::zero(); V];
            for (v, b) in b.iter_mut().enumerate() {
                *b = S::load(from.add(v * S::LANES));
            }
            if is_far {
                S::prefetch(base[0].wrapping_add(ahead * left.step));
            }
            for v in (0..V * S::LANES).step_by(LINE) {
                S::prefetch(from.wrapping_add(ahead * right.step + v));
            }
            from = from.add(right.step);
            for g in 0..GROUPS {
                for q in 0..S::GROUP {
                    let a = S::splat(base[g].add(q * left.row));
                    for v in 0..V {
                        acc[g * S::GROUP + q][v] = C::dot(acc[g * S::GROUP + q][v], a, b[v]);
                    }
                }
                base[g] = base[g].add(left.step);
            }
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
