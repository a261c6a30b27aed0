//! Brings master weights into the kernels' layout: rows of cells, each row the weights of one cell of source channels towards
//! a panel of destination channels.
//!
//! Both directions read runs of weights as they lie and round a run at a time; what is left is to interleave.

use super::cell::Cell;
use super::simd::{Simd, dispatch};

/// Numbers that are rounded at a time.
const RUN: usize = 256;

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
    /// Asks for the weights from `at` on and what keeps them.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub unsafe fn prefetch<S: Simd>(&self, at: usize) {
        // SAFETY: handed through; what lies behind the last weight is asked for in vain.
        unsafe {
            S::prefetch(self.weights.as_ptr().wrapping_add(at));
            if let Some(mask) = self.mask {
                S::prefetch(mask.as_ptr().wrapping_add(at).cast());
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

dispatch! {
    /// Packs for the forward pass: a destination channel's weights are contiguous along the source channels.
    pub(crate) fn forward[E: Cell](panel: &Panel, out: &mut [E]) {
        let (masters, (cin, padded)) = (&panel.masters, panel.source);
        let row = panel.width * E::PER_CELL;
        out.fill(E::default());
        for (t, &tap) in panel.taps.iter().enumerate() {
            for from in (0..cin).step_by(RUN) {
                let n = RUN.min(cin - from);
                let out = &mut out[(t * padded + from) * panel.width..];
                for j in 0..panel.n {
                    let mut run = [E::default(); RUN];
                    let at = ((panel.first + j) * masters.n_taps + tap) * masters.cin + from;
                    masters.round(at, &mut run[..n]);
                    let cells = run.chunks_exact(E::PER_CELL).take(n.div_ceil(E::PER_CELL));
                    for (out, cell) in out.chunks_exact_mut(row).zip(cells) {
                        for k in 0..E::PER_CELL {
                            out[j * E::PER_CELL + k] = cell[k];
                        }
                    }
                }
            }
        }
    }
}

dispatch! {
    /// Packs for backward-data: a source channel's weights are contiguous along the destination channels.
    pub(crate) fn backward[E: Cell](panel: &Panel, out: &mut [E]) {
        let (masters, (cout, padded)) = (&panel.masters, panel.source);
        let (row, per_tap) = (panel.width * E::PER_CELL, padded * panel.width);
        for from in (0..padded).step_by(E::PER_CELL) {
            for (&tap, out) in panel.taps.iter().zip(out.chunks_exact_mut(per_tap)) {
                let mut cells = [[E::default(); MAX_WIDTH]; 2];
                for (co, cell) in (from..cout).zip(cells.iter_mut().take(E::PER_CELL)) {
                    let at = (co * masters.n_taps + tap) * masters.cin + panel.first;
                    masters.round(at, &mut cell[..panel.n]);
                }
                let out = &mut out[from * panel.width..][..row];
                for (j, out) in out.chunks_exact_mut(E::PER_CELL).enumerate() {
                    for (k, out) in out.iter_mut().enumerate() {
                        *out = cells[k][j];
                    }
                }
            }
        }
    }
}

/// The widest panel of any level.
pub(crate) const MAX_WIDTH: usize = 32;
