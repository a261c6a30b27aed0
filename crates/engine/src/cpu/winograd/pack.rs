//! Brings master weights to the points: per panel of destination channels `[point, source channel, panel]`.

use super::transform::{self, POINTS, TAPS};
use crate::cpu::cell::Cell;
use crate::cpu::pack::{MAX_WIDTH, Masters};
use crate::cpu::simd::{Simd, kernel};

/// Source channels that are turned together.
const RUN: usize = 16;

/// One panel: destination channels `first..first + n`, `width` with the zeros behind.
pub(super) struct Panel<'a> {
    pub masters: Masters<'a>,
    pub cout: usize,
    pub first: usize,
    pub n: usize,
    pub width: usize,
    /// Source channels in a cell.
    pub per_cell: usize,
}

kernel! {
    /// For the forward pass: from input to output channels.
    ///
    /// # Safety
    /// `level` must be supported by the CPU.
    pub(super) unsafe fn forward(panel: &Panel, out: &mut [f32]) = pack_forward
}

kernel! {
    /// For backward-data: from output to input channels, the filters turned round.
    ///
    /// # Safety
    /// `level` must be supported by the CPU.
    pub(super) unsafe fn backward(panel: &Panel, out: &mut [f32]) = pack_backward
}

#[inline(always)]
unsafe fn pack_forward<E: Cell, S: Simd>(panel: &Panel, out: &mut [f32]) {
    let (masters, cin, width) = (&panel.masters, panel.masters.cin, panel.width);
    for from in (0..cin).step_by(RUN) {
        let n = RUN.min(cin - from);
        // Master weights have input channels side by side, the panel output channels.
        let mut turned = [[[0.0f32; MAX_WIDTH]; RUN]; TAPS * TAPS];
        for j in 0..panel.n {
            for (tap, turned) in turned.iter_mut().enumerate() {
                let mut run = [0.0f32; RUN];
                masters.round(((panel.first + j) * TAPS * TAPS + tap) * cin + from, &mut run[..n]);
                for (line, v) in turned.iter_mut().zip(run) {
                    line[j] = v;
                }
            }
        }
        for i in 0..n {
            let filter = |tap: usize| turned[tap][i].as_ptr();
            // SAFETY: the caller's promise; a line is as long as the widest panel.
            unsafe { to_points::<S>(filter, width, &mut out[(from + i) * width..], cin * width) };
        }
    }
    // SAFETY: the caller's promise.
    unsafe { S::fence() };
}

#[inline(always)]
unsafe fn pack_backward<E: Cell, S: Simd>(panel: &Panel, out: &mut [f32]) {
    let (masters, cout, width) = (&panel.masters, panel.cout, panel.width);
    let turn = |co: usize| {
        let mut turned = [[0.0f32; MAX_WIDTH]; TAPS * TAPS];
        if co < cout {
            for (tap, line) in turned.iter_mut().rev().enumerate() {
                masters.round((co * TAPS * TAPS + tap) * masters.cin + panel.first, &mut line[..panel.n]);
            }
        }
        turned
    };
    let cells = cout.div_ceil(panel.per_cell);
    for cell in 0..cells {
        let out = &mut out[cell * width..];
        // SAFETY: the caller's promise; a line is as long as the widest panel.
        unsafe {
            if panel.per_cell == 1 {
                let turned = turn(cell);
                to_points::<S>(|tap| turned[tap].as_ptr(), width, out, cells * width);
            } else {
                let (low, high) = (turn(2 * cell), turn(2 * cell + 1));
                pairs_to_points::<S>(|tap| [low[tap].as_ptr(), high[tap].as_ptr()], width, out, cells * width);
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { S::fence() };
}

/// Brings `width` filters, side by side at each tap, to points that lie `point` floats apart. All points of a network are more than
/// caches hold until they are read.
#[inline(always)]
unsafe fn to_points<S: Simd>(filter: impl Fn(usize) -> *const f32, width: usize, out: &mut [f32], point: usize) {
    assert!(out.len() >= (POINTS - 1) * point + width);
    assert!((out.as_ptr().addr() | (4 * point)).is_multiple_of(4 * S::LANES), "vectors are stored where one begins");
    for v in (0..width).step_by(S::LANES) {
        // SAFETY: the caller has the instructions; filters and points hold `width` floats, by the assertion.
        unsafe {
            let mut w = [[S::zero(); TAPS]; TAPS];
            for (tap, w) in w.as_flattened_mut().iter_mut().enumerate() {
                *w = S::load(filter(tap).add(v));
            }
            for (k, value) in transform::weights(w).as_flattened().iter().enumerate() {
                value.stream(out.as_mut_ptr().add(k * point + v));
            }
        }
    }
}

/// Brings pairs of filters to points.
#[inline(always)]
unsafe fn pairs_to_points<S: Simd>(
    filters: impl Fn(usize) -> [*const f32; 2],
    width: usize,
    out: &mut [f32],
    point: usize,
) {
    assert!(out.len() >= (POINTS - 1) * point + width);
    assert!((out.as_ptr().addr() | (4 * point)).is_multiple_of(4 * S::LANES), "vectors are stored where one begins");
    for v in (0..width).step_by(S::LANES) {
        // SAFETY: as in `to_points`.
        unsafe {
            let [mut low, mut high] = [[[S::zero(); TAPS]; TAPS]; 2];
            for tap in 0..TAPS * TAPS {
                let [a, b] = filters(tap);
                low[tap / TAPS][tap % TAPS] = S::load(a.add(v));
                high[tap / TAPS][tap % TAPS] = S::load(b.add(v));
            }
            let (low, high) = (transform::weights(low), transform::weights(high));
            for (k, (&a, &b)) in low.as_flattened().iter().zip(high.as_flattened()).enumerate() {
                S::round_pairs(a, b).stream(out.as_mut_ptr().add(k * point + v));
            }
        }
    }
}
