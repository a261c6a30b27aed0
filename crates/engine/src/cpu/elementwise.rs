//! Everything between convolutions: batch norm, pooling, shortcuts, reductions and optimizer loops.
//!
//! These loops move memory and do little arithmetic. Each is written plainly over one chunk, compiled per instruction
//! set, and called in parallel by the engine. Where a sum runs over pixels, every chunk sums in f32 and chunks are added
//! in order in f64: the result does not depend on the number of threads.

use super::simd::dispatch;
use crate::element::Element;
use crate::scalar::relu;
use crate::types::{Dims, Write};

/// `sums[i] = Σ partials[·][i]` in f64, in order.
pub(crate) fn add_partials(partials: &[f32], sums: &mut [f32]) {
    let width = sums.len();
    for (i, sum) in sums.iter_mut().enumerate() {
        *sum = partials.iter().skip(i).step_by(width).map(|&v| f64::from(v)).sum::<f64>() as f32;
    }
}

dispatch! {
    /// Adds a panel of every slice of a weight gradient, `[depth, width]` at every `stride` floats of `partials`, to its
    /// output channels of `dw` `[channels, depth]`.
    pub(crate) fn reduce_weights(partials: &[f32], stride: usize, width: usize, depth: usize, dw: &mut [f32],
                                 mask: Option<&[u8]>) {
        let channels = dw.len() / depth;
        for k in 0..depth {
            for j in 0..channels {
                let mut sum = 0.0;
                for slice in partials.chunks(stride) {
                    sum += slice[k * width + j];
                }
                let to = j * depth + k;
                dw[to] += match mask {
                    Some(mask) => sum * f32::from(mask[to]),
                    None => sum,
                };
            }
        }
    }
}

dispatch! {
    /// `y = relu?(x · scale + shift + residual?)` over rows of `c` channels.
    pub(crate) fn norm_apply[T: Element](x: &[T], coef: &[f32], residual: Option<&[T]>, gated: bool, y: &mut [T]) {
        let c = coef.len() / 4;
        let (scale, shift) = (&coef[2 * c..3 * c], &coef[3 * c..]);
        let gate = |v: f32| T::of(if gated { relu(v) } else { v });
        match residual {
            None => {
                for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                    for k in 0..c {
                        y[k] = gate(x[k].get() * scale[k] + shift[k]);
                    }
                }
            }
            Some(r) => {
                for ((y, x), r) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(r.chunks_exact(c)) {
                    for k in 0..c {
                        y[k] = gate(x[k].get() * scale[k] + shift[k] + r[k].get());
                    }
                }
            }
        }
    }
}

dispatch! {
    /// Σg and Σg·x̂ per channel of one chunk, `[2, c]`; g is `dy` where `gate` is positive.
    ///
    /// Channels are taken in blocks whose sums stay in registers over all rows; kept in memory, each row would wait for
    /// the stores of the one before.
    pub(crate) fn norm_backward_sums[T: Element](dy: &[T], gate: Option<&[T]>, x: &[T], coef: &[f32], sums: &mut [f32]) {
        let c = coef.len() / 4;
        let mut k = 0;
        while k < c {
            match c - k {
                32.. => k += channel_block::<T, 32>(dy, gate, x, coef, sums, k),
                16.. => k += channel_block::<T, 16>(dy, gate, x, coef, sums, k),
                4.. => k += channel_block::<T, 4>(dy, gate, x, coef, sums, k),
                _ => k += channel_block::<T, 1>(dy, gate, x, coef, sums, k),
            }
        }
    }
}

/// Channels `k..k + W` of [`norm_backward_sums`]; returns `W`.
#[inline(always)]
fn channel_block<T: Element, const W: usize>(
    dy: &[T],
    gate: Option<&[T]>,
    x: &[T],
    coef: &[f32],
    sums: &mut [f32],
    k: usize,
) -> usize {
    let c = coef.len() / 4;
    let block = |row: &[T]| -> [T; W] { row[k..k + W].try_into().expect("W channels") };
    let (mut sum, mut dot) = ([0.0f32; W], [0.0f32; W]);
    let mean: [f32; W] = coef[k..k + W].try_into().expect("W channels");
    let mut add = |g: [f32; W], x: [T; W]| {
        for j in 0..W {
            sum[j] += g[j];
            dot[j] += g[j] * (x[j].get() - mean[j]);
        }
    };
    match gate {
        None => {
            for (dy, x) in dy.chunks_exact(c).zip(x.chunks_exact(c)) {
                add(block(dy).map(T::get), block(x));
            }
        }
        Some(gate) => {
            for ((dy, x), y) in dy.chunks_exact(c).zip(x.chunks_exact(c)).zip(gate.chunks_exact(c)) {
                let (dy, y) = (block(dy), block(y));
                add(std::array::from_fn(|j| if y[j].get() > 0.0 { dy[j].get() } else { 0.0 }), block(x));
            }
        }
    }
    for j in 0..W {
        sums[k + j] = sum[j];
        sums[c + k + j] = dot[j] * coef[c + k + j];
    }
    W
}

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
    /// `dx = a·g + b·x + d` and `dr (+)= g` over one chunk; empty outputs are skipped.
    pub(crate) fn norm_backward_apply[T: Element](dy: &[T], gate: Option<&[T]>, x: &[T], constants: &[f32], dx: &mut [T],
                                                  dr: &mut [T], write: Write) {
        let c = constants.len() / 3;
        let (a, b, d) = (&constants[..c], &constants[c..2 * c], &constants[2 * c..]);
        let gated = |g: T, y: T| if y.get() > 0.0 { g.get() } else { 0.0 };
        let gate = gate.unwrap_or(&[]);
        if !dx.is_empty() {
            for (i, (dx, (dy, x))) in dx.chunks_exact_mut(c).zip(dy.chunks_exact(c).zip(x.chunks_exact(c))).enumerate() {
                if gate.is_empty() {
                    for k in 0..c {
                        dx[k] = T::of(a[k] * dy[k].get() + b[k] * x[k].get() + d[k]);
                    }
                } else {
                    let y = &gate[i * c..(i + 1) * c];
                    for k in 0..c {
                        dx[k] = T::of(a[k] * gated(dy[k], y[k]) + b[k] * x[k].get() + d[k]);
                    }
                }
            }
        }
        if dr.is_empty() {
            return;
        }
        let pairs = dr.iter_mut().zip(dy);
        match (write, gate.is_empty()) {
            (Write::Set, true) => dr.copy_from_slice(dy),
            (Write::Add, true) => pairs.for_each(|(r, &g)| *r = T::of(r.get() + g.get())),
            (Write::Set, false) => pairs.zip(gate).for_each(|((r, &g), &y)| *r = T::of(gated(g, y))),
            (Write::Add, false) => pairs.zip(gate).for_each(|((r, &g), &y)| *r = T::of(r.get() + gated(g, y))),
        }
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

/// The window of a 3×3, stride 2, padding 1 pool around output position `o` on an axis of `size`.
fn window(o: usize, size: usize) -> std::ops::Range<usize> {
    (2 * o).saturating_sub(1)..(2 * o + 2).min(size)
}

dispatch! {
    /// 3×3 maximum with stride 2 and padding 1 of one image.
    pub(crate) fn max_pool[T: Element](x: &[T], i: Dims, y: &mut [T], o: Dims) {
        for (at, y) in y.chunks_exact_mut(o.c).enumerate() {
            y.fill(T::of(f32::NEG_INFINITY));
            for row in window(at / o.w, i.h) {
                for col in window(at % o.w, i.w) {
                    let x = &x[(row * i.w + col) * i.c..][..i.c];
                    for k in 0..o.c {
                        // Written so that not-a-number wins, as in PyTorch.
                        y[k] = if y[k].get() >= x[k].get() { y[k] } else { x[k] };
                    }
                }
            }
        }
    }
}

dispatch! {
    /// Gradient of the maximum of one image; `left` `[o.c]` is scratch that says which outputs still look for their source.
    pub(crate) fn max_pool_backward[T: Element](x: &[T], i: Dims, y: &[T], dy: &[T], o: Dims, dx: &mut [T], left: &mut [f32]) {
        for (at, (y, dy)) in y.chunks_exact(o.c).zip(dy.chunks_exact(o.c)).enumerate() {
            left.iter_mut().zip(dy).for_each(|(left, dy)| *left = dy.get());
            for row in window(at / o.w, i.h) {
                for col in window(at % o.w, i.w) {
                    let from = (row * i.w + col) * i.c;
                    let (x, dx) = (&x[from..][..i.c], &mut dx[from..][..i.c]);
                    for k in 0..o.c {
                        let hit = x[k].get() == y[k].get();
                        dx[k] = T::of(dx[k].get() + if hit { left[k] } else { 0.0 });
                        left[k] = if hit { 0.0 } else { left[k] };
                    }
                }
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
