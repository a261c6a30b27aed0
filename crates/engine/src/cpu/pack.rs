//! Brings master weights into the kernels' layout: rows of cells, each row the weights of one cell of source channels towards
//! a panel of destination channels.
//!
//! Both directions read runs of weights as they lie and round a run at a time; what is left is to turn squares of cells, or to pair rows.

use super::ahead::LINE;
use super::cell::Cell;
use super::simd::{Simd, kernel};

/// Numbers that are rounded at a time.
const RUN: usize = 128;

/// Master weights `[cout, taps, cin]`, and what keeps them.
#[derive(Clone, Copy)]
pub(crate) struct Masters<'a> {
    pub weights: &'a [f32],
    pub mask: Option<&'a [u8]>,
    pub n_taps: usize,
    pub cin: usize,
}

/// One panel of a packing.
pub(crate) struct Panel<'a> {
    pub masters: Masters<'a>,
    /// Master taps in the order of the sweep.
    pub taps: &'a [usize],
    /// Source channels that the sweep has, and as many as its views have.
    pub source: (usize, usize),
    /// First destination channel, how many there are, and the panel's width.
    pub first: usize,
    pub n: usize,
    pub width: usize,
}

impl Masters<'_> {
    /// Asks for `n` weights from `at` on and what keeps them.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub unsafe fn prefetch<S: Simd>(&self, at: usize, n: usize) {
        // SAFETY: handed through; what lies behind the last weight is asked for in vain.
        unsafe {
            for line in (0..n).step_by(LINE) {
                S::prefetch(self.weights.as_ptr().wrapping_add(at + line));
            }
            if let Some(mask) = self.mask {
                for line in (0..n).step_by(LINE * size_of::<f32>()) {
                    S::prefetch(mask.as_ptr().wrapping_add(at + line).cast());
                }
            }
        }
    }

    /// Rounds weights `at..at + to.len()`, zero where the mask is.
    #[inline(always)]
    pub fn round<E: Cell>(&self, at: usize, to: &mut [E]) {
        let weights = &self.weights[at..at + to.len()];
        match self.mask {
            None => to.iter_mut().zip(weights).for_each(|(to, &w)| *to = E::of(w)),
            Some(mask) => {
                for ((to, &w), &keep) in to.iter_mut().zip(weights).zip(&mask[at..]) {
                    *to = E::of(if keep != 0 { w } else { 0.0 });
                }
            }
        }
    }
}

kernel! {
    /// Packs for the forward pass: a destination channel's weights are contiguous along the source channels.
    ///
    /// # Safety
    /// `level` must be supported by the CPU, and have pairs where a cell is one.
    pub(crate) unsafe fn forward(panel: &Panel, out: &mut [E]) = pack_forward
}

kernel! {
    /// Packs for backward-data: a source channel's weights are contiguous along the destination channels.
    ///
    /// # Safety
    /// As [`forward`].
    pub(crate) unsafe fn backward(panel: &Panel, out: &mut [E]) = pack_backward
}

/// Source channels of all the panel's destination channels; a line's cells are turned with its neighbours'.
#[repr(align(64))]
struct Lines<E>([[E; RUN]; MAX_WIDTH]);

#[inline(always)]
unsafe fn pack_forward<E: Cell, S: Simd>(panel: &Panel, out: &mut [E]) {
    let (masters, (cin, padded), width) = (&panel.masters, panel.source, panel.width);
    assert!(width.is_multiple_of(S::LANES) && padded.is_multiple_of(E::PER_CELL));
    // Lines of channels behind the panel's last one stay zero.
    let mut lines = Lines([[E::default(); RUN]; MAX_WIDTH]);
    for ((t, &tap), from) in
        panel.taps.iter().enumerate().flat_map(|tap| (0..padded).step_by(RUN).map(move |from| (tap, from)))
    {
        let n = RUN.min(padded - from);
        for (j, line) in lines.0.iter_mut().enumerate().take(panel.n) {
            let at = ((panel.first + j) * masters.n_taps + tap) * masters.cin + from;
            // SAFETY: the caller's promise.
            unsafe { masters.prefetch::<S>(at + AHEAD * masters.n_taps * masters.cin, n) };
            let (weights, padding) = line[..n].split_at_mut(n.min(cin - from));
            masters.round(at, weights);
            padding.fill(E::default());
        }
        let out = &mut out[(t * padded + from) * width..][..n * width];
        let cells = n / E::PER_CELL;
        for (first, v) in
            (0..cells).step_by(S::LANES).flat_map(|first| (0..width).step_by(S::LANES).map(move |v| (first, v)))
        {
            let square = lines.0.as_flattened()[v * RUN + first * E::PER_CELL..].as_ptr();
            let to = out[(first * width + v) * E::PER_CELL..].as_mut_ptr();
            // SAFETY: the caller's promise; a square's lines are whole, and so many cells there are.
            unsafe { S::turn(square.cast(), RUN / E::PER_CELL, to.cast(), width, S::LANES.min(cells - first)) };
        }
    }
}

#[inline(always)]
unsafe fn pack_backward<E: Cell, S: Simd>(panel: &Panel, out: &mut [E]) {
    let (masters, (cout, padded), width) = (&panel.masters, panel.source, panel.width);
    assert!(width.is_multiple_of(S::LANES) && padded.is_multiple_of(E::PER_CELL));
    for from in (0..padded).step_by(E::PER_CELL) {
        for (t, &tap) in panel.taps.iter().enumerate() {
            let at = |co: usize| (co * masters.n_taps + tap) * masters.cin + panel.first;
            let mut rows = [[0.0f32; MAX_WIDTH]; 2];
            for (co, row) in (from..cout).zip(rows.iter_mut().take(E::PER_CELL)) {
                // SAFETY: the caller's promise.
                unsafe { masters.prefetch::<S>(at(co + AHEAD), panel.n) };
                masters.round(at(co), &mut row[..panel.n]);
            }
            let out = &mut out[(t * padded + from) * width..][..width * E::PER_CELL];
            for v in (0..width).step_by(S::LANES) {
                // SAFETY: the caller's promise; rows and `out` hold `width` cells.
                unsafe {
                    let [low, high] = rows.each_ref().map(|row| S::load(row[v..].as_ptr()));
                    let cells = if E::PER_CELL == 2 { S::round_pairs(low, high) } else { low };
                    cells.store_first(out[v * E::PER_CELL..].as_mut_ptr().cast(), S::LANES);
                }
            }
        }
    }
}

/// Channels (forward: destination, backward-data: source) between those that are packed and those whose weights are asked for.
const AHEAD: usize = 8;

/// The widest panel of any level.
pub(crate) const MAX_WIDTH: usize = 32;
