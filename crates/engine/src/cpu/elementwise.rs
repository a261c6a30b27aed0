//! Everything between convolutions: batch norm, pooling, shortcuts, reductions and optimizer loops.
//!
//! These loops move memory and do little arithmetic. Each is written plainly over one chunk, compiled per instruction
//! set, and called in parallel by the engine. Where a sum runs over pixels, every chunk sums in f32 and chunks are added
//! in order in f64: the result does not depend on the number of threads.

use super::layout::Blocks;
use super::simd::{Level, dispatch};
use super::team::Team;
use crate::element::Element;
use crate::types::{Dims, Write};

/// `sums[i] = Σ partials[·][i]` in f64, in order.
pub(crate) fn add_partials(team: &Team, level: Level, partials: &[f32], sums: &mut [f32]) {
    let width = sums.len();
    let run = if partials.len() < FEW_PARTIALS { width } else { COLUMNS };
    team.for_parts(sums, run, |index, sums| add_columns(level, partials, width, index * run, sums));
}

/// Fewer partial sums are not worth waking other threads for.
const FEW_PARTIALS: usize = 1 << 14;
/// Sums that are added up side by side: a cache line.
const COLUMNS: usize = 16;

dispatch! {
    /// The sums of columns `at..` of partial sums that are `width` wide.
    fn add_columns(partials: &[f32], width: usize, at: usize, sums: &mut [f32]) {
        for (run, sums) in sums.chunks_mut(COLUMNS).enumerate() {
            let mut total = [0.0f64; COLUMNS];
            for part in partials.chunks_exact(width) {
                for (total, &v) in total.iter_mut().zip(&part[at + run * COLUMNS..][..sums.len()]) {
                    *total += f64::from(v);
                }
            }
            for (sum, total) in sums.iter_mut().zip(total) {
                *sum = total as f32;
            }
        }
    }
}

/// Slices of a weight gradient, and how they are laid out.
pub(crate) struct Reduce<'a> {
    pub slices: &'a [f32],
    pub blocks: Blocks,
    /// Filter rows and columns, and input channels.
    pub taps: (usize, usize),
    pub cin: usize,
}

/// Weights `first..first + n` of the output channels from `at` on, whose panel is `width` wide.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    pub at: usize,
    pub width: usize,
    pub first: usize,
    pub n: usize,
}

/// Most weights of a piece, of one output channel.
pub(crate) const LONGEST: usize = 64;
/// No level has wider panels.
pub(crate) const WIDEST: usize = 32;

impl Reduce<'_> {
    /// An output channel's weights are rows, which are cut to pieces: how many rows, and weights of a row and of a piece. On tiles a row
    /// is a filter row, on vectors a tap.
    fn rows(&self) -> (usize, usize, usize) {
        match self.blocks.layout.on_tiles {
            true => (self.blocks.rows, self.blocks.row, self.blocks.layout.inputs),
            false => (self.taps.0 * self.taps.1, self.cin, LONGEST),
        }
    }

    /// Pieces of an output channel's weights.
    pub fn n_pieces(&self) -> usize {
        let (rows, row, piece) = self.rows();
        rows * row.div_ceil(piece)
    }

    /// Piece `index` of the channels from `at` on.
    pub fn piece(&self, index: usize, at: usize, width: usize) -> Piece {
        let (_, row, piece) = self.rows();
        let (r, along) = (index / row.div_ceil(piece), index % row.div_ceil(piece) * piece);
        Piece { at, width, first: r * row + along, n: piece.min(row - along) }
    }
}

dispatch! {
    /// The sums of all slices of a weight gradient on vectors, of a piece: `[channels, n]`.
    pub(crate) fn reduce_weights(from: &Reduce, piece: Piece, sums: &mut [f32]) {
        let Piece { at, width, first, n } = piece;
        let (blocks, (_, kw), inputs) = (&from.blocks, from.taps, from.blocks.layout.inputs);
        let (tap, first) = (first / from.cin, first % from.cin);
        for run in (0..n).step_by(RUN) {
            // Turned in a small square: the slices have channels beside one another, the sums inputs.
            let n_run = RUN.min(n - run);
            let mut square = [[0.0f32; RUN]; WIDEST];
            for i in 0..n_run {
                let input = tap % kw * blocks.row / kw + first + run + i;
                let row = blocks.block(tap / kw, input) * blocks.len + at * inputs + input % inputs * width;
                for slice in from.slices.chunks(blocks.n * blocks.len) {
                    for (line, v) in square.iter_mut().zip(&slice[row..row + width]) {
                        line[i] += v;
                    }
                }
            }
            for (sums, line) in sums.chunks_exact_mut(n).zip(&square) {
                sums[run..run + n_run].copy_from_slice(&line[..n_run]);
            }
        }
    }
}

dispatch! {
    /// Adds what the mask keeps.
    pub(crate) fn add_kept(to: &mut [f32], from: &[f32], mask: Option<&[u8]>) {
        match mask {
            None => to.iter_mut().zip(from).for_each(|(to, v)| *to += v),
            Some(mask) => {
                for ((to, v), &keep) in to.iter_mut().zip(from).zip(mask) {
                    *to += if keep != 0 { *v } else { 0.0 };
                }
            }
        }
    }
}

/// Inputs of a square in [`reduce_weights`].
const RUN: usize = 16;

/// Per-channel constants of batch norm's input gradient: `dx = a·g + b·x + d`.
///
/// From `dx = scale · (g − Σg/m − x̂ · Σg·x̂/m)` with `x̂ = (x − mean) / σ`.
pub(crate) fn norm_backward_constants(coef: &[f32], sums: &[f32], count: Option<usize>, out: &mut [f32]) {
    let c = coef.len() / 4;
    for k in 0..c {
        let scale = f64::from(coef[2 * c + k]);
        let (mut b, mut d) = (0.0, 0.0);
        if let Some(count) = count {
            let (mean_g, mean_dot) = (f64::from(sums[k]) / count as f64, f64::from(sums[c + k]) / count as f64);
            b = -scale * mean_dot * f64::from(coef[c + k]);
            d = -scale * mean_g - b * f64::from(coef[k]);
        }
        out[k] = scale as f32;
        out[c + k] = b as f32;
        out[2 * c + k] = d as f32;
    }
}

dispatch! {
    /// Σ and Σ² per channel of one chunk, `[2, c]`.
    pub(crate) fn channel_sums(x: &[f32], sums: &mut [f32]) {
        let c = sums.len() / 2;
        sums.fill(0.0);
        let (sum, square) = sums.split_at_mut(c);
        for x in x.chunks_exact(c) {
            for k in 0..c {
                sum[k] += x[k];
                square[k] += x[k] * x[k];
            }
        }
    }
}

dispatch! {
    /// Mean over the pixels of one image.
    pub(crate) fn avg_pool[T: Element](x: &[T], y: &mut [f32]) {
        let (c, pixels) = (y.len(), x.len() / y.len());
        y.fill(0.0);
        for x in x.chunks_exact(c) {
            for k in 0..c {
                y[k] += x[k].get();
            }
        }
        for y in y.iter_mut() {
            *y /= pixels as f32;
        }
    }
}

dispatch! {
    /// Gradient of the mean of one image.
    pub(crate) fn avg_pool_backward[T: Element](dy: &[f32], dx: &mut [T], write: Write) {
        let (c, pixels) = (dy.len(), dx.len() / dy.len());
        let share = 1.0 / pixels as f32;
        for dx in dx.chunks_exact_mut(c) {
            for k in 0..c {
                dx[k] = T::of(dy[k] * share + if write == Write::Add { dx[k].get() } else { 0.0 });
            }
        }
    }
}

/// Shortcut A of one image: every second pixel, zero channels on both sides.
pub(crate) fn shortcut<T: Element>(x: &[T], i: Dims, y: &mut [T], o: Dims) {
    let pad = (o.c - i.c) / 2;
    for (at, y) in y.chunks_exact_mut(o.c).enumerate() {
        let from = ((at / o.w * 2) * i.w + at % o.w * 2) * i.c;
        y.fill(T::default());
        y[pad..pad + i.c].copy_from_slice(&x[from..from + i.c]);
    }
}

/// Gradient of shortcut A of one image, added; the caller cleared `dx` if it should be set.
pub(crate) fn shortcut_backward<T: Element>(dy: &[T], o: Dims, dx: &mut [T], i: Dims) {
    let pad = (o.c - i.c) / 2;
    for (at, dy) in dy.chunks_exact(o.c).enumerate() {
        let to = ((at / o.w * 2) * i.w + at % o.w * 2) * i.c;
        for (dx, &g) in dx[to..to + i.c].iter_mut().zip(&dy[pad..]) {
            *dx = T::of(dx.get() + g.get());
        }
    }
}

dispatch! {
    /// One chunk of an SGD update.
    pub(crate) fn sgd(w: &mut [f32], g: &[f32], buf: &mut [f32], step: crate::types::SgdStep, first: bool) {
        crate::scalar::sgd(w, g, buf, step, first);
    }
}

dispatch! {
    /// The sum of squares of one chunk.
    pub(crate) fn squares(v: &[f32]) -> f64 {
        crate::scalar::squares(v)
    }
}

dispatch! {
    /// One chunk of a LARS update.
    pub(crate) fn lars(w: &mut [f32], g: &[f32], buf: &mut [f32], trust: f32, step: crate::types::LarsStep) {
        crate::scalar::lars(w, g, buf, trust, step);
    }
}

dispatch! {
    /// One chunk of an Adam update.
    pub(crate) fn adam(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], step: crate::types::AdamStep) {
        crate::scalar::adam(w, g, m, v, step);
    }
}
