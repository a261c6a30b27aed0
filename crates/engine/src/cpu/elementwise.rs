//! Everything between convolutions: batch norm, pooling, shortcuts, reductions and optimizer loops.
//!
//! These loops move memory and do little arithmetic. Each is written plainly over one chunk, compiled per instruction
//! set, and called in parallel by the engine. Where a sum runs over pixels, every chunk sums in f32 and chunks are added
//! in order in f64: the result does not depend on the number of threads.

use super::layout::Blocks;
use super::simd::dispatch;
use crate::element::Element;
use crate::types::{Dims, Write};

/// `sums[i] = Σ partials[·][i]` in f64, in order.
pub(crate) fn add_partials(partials: &[f32], sums: &mut [f32]) {
    const RUN: usize = 64;
    let width = sums.len();
    for (run, sums) in sums.chunks_mut(RUN).enumerate() {
        let mut total = [0.0f64; RUN];
        for part in partials.chunks_exact(width) {
            for (total, &v) in total.iter_mut().zip(&part[run * RUN..run * RUN + sums.len()]) {
                *total += f64::from(v);
            }
        }
        for (sum, total) in sums.iter_mut().zip(total) {
            *sum = total as f32;
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

dispatch! {
    /// Adds all slices of a weight gradient on vectors to the output channels `dw` `[channels, kh, kw, cin]` of the panel at `at`.
    pub(crate) fn reduce_weights(from: &Reduce, at: usize, width: usize, dw: &mut [f32], mask: Option<&[u8]>) {
        let (blocks, (kh, kw), cin) = (&from.blocks, from.taps, from.cin);
        let depth = kh * kw * cin;
        for (a, b) in (0..kh).flat_map(|a| (0..kw).map(move |b| (a, b))) {
            for first in (0..cin).step_by(RUN) {
                // Turned in a small square: the slices have channels beside one another, `dw` inputs.
                let n = RUN.min(cin - first);
                let mut square = [[0.0f32; RUN]; WIDEST];
                for i in 0..n {
                    let input = b * blocks.row / kw + first + i;
                    let inputs = blocks.layout.inputs;
                    let row = blocks.block(a, input) * blocks.len + at * inputs + input % inputs * width;
                    for slice in from.slices.chunks(blocks.n * blocks.len) {
                        for (line, v) in square.iter_mut().zip(&slice[row..row + width]) {
                            line[i] += v;
                        }
                    }
                }
                let k = (a * kw + b) * cin + first;
                for (j, (dw, line)) in dw.chunks_exact_mut(depth).zip(&square).enumerate() {
                    let dw = &mut dw[k..k + n];
                    match mask {
                        None => dw.iter_mut().zip(line).for_each(|(dw, v)| *dw += v),
                        Some(mask) => {
                            let mask = &mask[j * depth + k..][..n];
                            for ((dw, v), &keep) in dw.iter_mut().zip(line).zip(mask) {
                                *dw += if keep != 0 { *v } else { 0.0 };
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Inputs and channels of a square in [`reduce_weights`]; no level has wider panels.
const RUN: usize = 16;
const WIDEST: usize = 32;

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
    /// One tensor of a LARS update.
    pub(crate) fn lars(w: &mut [f32], g: &[f32], buf: &mut [f32], step: crate::types::LarsStep) {
        let trust = crate::scalar::lars_trust(crate::scalar::norm(w), crate::scalar::norm(g), step);
        crate::scalar::lars(w, g, buf, trust, step);
    }
}

dispatch! {
    /// One chunk of an Adam update.
    pub(crate) fn adam(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], step: crate::types::AdamStep) {
        crate::scalar::adam(w, g, m, v, step);
    }
}
