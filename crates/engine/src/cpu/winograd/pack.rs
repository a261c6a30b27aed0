//! Brings master weights to the points: per panel of destination channels `[point, source channel, panel]`.

use super::Pass;
use super::strided;
use super::transform::{self, POINTS, SIDE, TAPS, Weights};
use crate::cpu::ahead::LINE;
use crate::cpu::cell::Cell;
use crate::cpu::pack::{MAX_WIDTH, Masters};
use crate::cpu::simd::{Simd, kernel};

/// Source channels that are turned together.
const RUN: usize = 16;

/// One panel: destination channels `first..first + n`, `width` with the zeros behind.
pub(super) struct Panel<'a> {
    pub masters: Masters<'a>,
    /// The convolution's forward pass, whose points its backward-data has, too.
    pub pass: Pass,
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
    // Master weights have input channels side by side, the panel output channels.
    let (mut turned, mut stage) = ([[[0.0f32; MAX_WIDTH]; RUN]; TAPS * TAPS], Stage::new(panel));
    for from in (0..cin).step_by(RUN) {
        let n = RUN.min(cin - from);
        for j in 0..panel.n {
            for (tap, turned) in turned.iter_mut().enumerate() {
                let mut run = [0.0f32; RUN];
                let at = ((panel.first + j) * TAPS * TAPS + tap) * cin + from;
                // SAFETY: the caller's promise.
                unsafe { masters.prefetch::<S>(at + RUN, LINE) };
                masters.round(at, &mut run[..n]);
                for (line, v) in turned.iter_mut().zip(run) {
                    line[j] = v;
                }
            }
        }
        for first in (0..n).step_by(STAGED) {
            for i in first..n.min(first + STAGED) {
                let lines = turned.as_flattened().as_flattened();
                let filters = Filters { start: lines[i * MAX_WIDTH..].as_ptr(), tap: RUN * MAX_WIDTH };
                // SAFETY: the caller's promise; a line is as long as the widest panel.
                unsafe { stage.add::<S, 1>([filters]) };
            }
            // SAFETY: the caller's promise.
            unsafe { stage.flush::<S>(&mut out[(from + first) * width..], cin * width) };
        }
    }
    // SAFETY: the caller's promise.
    unsafe { S::fence() };
}

#[inline(always)]
unsafe fn pack_backward<E: Cell, S: Simd>(panel: &Panel, out: &mut [f32]) {
    let (cout, width, per_cell) = (panel.cout, panel.width, panel.per_cell);
    let cells = cout.div_ceil(per_cell);
    let (mut turned, mut stage) = ([[[0.0f32; MAX_WIDTH]; TAPS * TAPS]; 2], Stage::new(panel));
    for first in (0..cells).step_by(STAGED) {
        for cell in first..cells.min(first + STAGED) {
            // SAFETY: the caller's promise; a line is as long as the widest panel.
            unsafe {
                for (i, turned) in turned.iter_mut().enumerate().take(per_cell) {
                    match cell * per_cell + i {
                        co if co < cout => turn::<S>(panel, co, turned),
                        _ => turned.as_flattened_mut().fill(0.0),
                    }
                }
                let filters =
                    turned.each_ref().map(|turned| Filters { start: turned.as_flattened().as_ptr(), tap: MAX_WIDTH });
                match per_cell {
                    1 => stage.add::<S, 1>([filters[0]]),
                    _ => stage.add::<S, 2>(filters),
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { stage.flush::<S>(&mut out[first * width..], cells * width) };
    }
    // SAFETY: the caller's promise.
    unsafe { S::fence() };
}

/// The panel's filters of an output channel, turned round.
#[inline(always)]
unsafe fn turn<S: Simd>(panel: &Panel, co: usize, to: &mut [[f32; MAX_WIDTH]; TAPS * TAPS]) {
    let masters = &panel.masters;
    for (tap, line) in to.iter_mut().rev().enumerate() {
        let at = |co: usize| (co * TAPS * TAPS + tap) * masters.cin + panel.first;
        // SAFETY: the caller has the instructions.
        unsafe { masters.prefetch::<S>(at(co + 1), panel.n) };
        masters.round(at(co), &mut line[..panel.n]);
    }
}

/// Filters side by side: where they begin, and floats from one tap to the next.
#[derive(Clone, Copy)]
struct Filters {
    start: *const f32,
    tap: usize,
}

/// Rows of points that wait to be stored together.
const STAGED: usize = 4;

/// Rows of points, which go past the caches: a wide layer's are more than those hold, and a narrow one's are read once, in order. Some rows at a
/// time, because memory takes long stretches faster.
#[repr(align(64))]
struct Stage {
    points: [[f32; STAGED * MAX_WIDTH]; POINTS],
    width: usize,
    pass: Pass,
    n: usize,
}

impl Stage {
    #[inline(always)]
    fn new(panel: &Panel) -> Self {
        let Panel { width, pass, .. } = *panel;
        Self { points: [[0.0; STAGED * MAX_WIDTH]; POINTS], width, pass, n: 0 }
    }

    /// Adds a row: filters, or pairs of them, side by side.
    ///
    /// # Safety
    /// As [`Simd`]; filters must have as many floats as a row.
    #[inline(always)]
    unsafe fn add<S: Simd, const N: usize>(&mut self, filters: [Filters; N]) {
        assert!(self.n < STAGED && self.width <= MAX_WIDTH);
        for v in (0..self.width).step_by(S::LANES) {
            // SAFETY: the caller's promise; there is room for another row by the assertion.
            unsafe {
                let mut points = [[[S::zero(); SIDE]; SIDE]; N];
                for (points, filters) in points.iter_mut().zip(&filters) {
                    let mut w = [[S::zero(); TAPS]; TAPS];
                    for (tap, w) in w.as_flattened_mut().iter_mut().enumerate() {
                        *w = S::load(filters.start.add(tap * filters.tap + v));
                    }
                    *points = match self.pass {
                        Pass::Same => transform::square::<Weights, _, _, _>(w),
                        Pass::Down | Pass::Up => transform::square::<strided::Weights, _, _, _>(w),
                    };
                }
                let at = self.n * self.width + v;
                for (k, to) in self.points.iter_mut().enumerate() {
                    let mut value = points[0].as_flattened()[k];
                    if N == 2 {
                        value = S::round_pairs(value, points[1].as_flattened()[k]);
                    }
                    value.store_first(to.as_mut_ptr().add(at), S::LANES);
                }
            }
        }
        self.n += 1;
    }

    /// Stores all rows to points that lie `point` floats apart, and forgets them.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    unsafe fn flush<S: Simd>(&mut self, out: &mut [f32], point: usize) {
        let len = self.n * self.width;
        assert!(out.len() >= (POINTS - 1) * point + len);
        assert!(
            (out.as_ptr().addr() | (4 * point)).is_multiple_of(4 * S::LANES),
            "vectors are stored where one begins"
        );
        for (k, from) in self.points.iter().enumerate() {
            for v in (0..len).step_by(S::LANES) {
                // SAFETY: the caller has the instructions; both sides hold the rows, by the assertion.
                unsafe { S::load(from.as_ptr().add(v)).stream(out.as_mut_ptr().add(k * point + v)) };
            }
        }
        self.n = 0;
    }
}
