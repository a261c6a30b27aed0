//! Small formulas that both host engines apply per channel or per element.

use crate::engine::{NormEval, NormTrain};
use crate::types::{AdamStep, LarsStep, SgdStep};

/// Batch statistics to mean, 1/σ, scale, shift; updates running mean and (unbiased) variance.
/// Source: Ioffe & Szegedy 2015 and PyTorch's `BatchNorm2d`.
pub(crate) fn norm_train(
    norm: &NormTrain,
    sums: &[f32],
    gamma: &[f32],
    beta: &[f32],
    running: &mut [f32],
    coef: &mut [f32],
) {
    let (c, count) = (gamma.len(), norm.count as f64);
    let keep = 1.0 - f64::from(norm.momentum);
    for k in 0..c {
        let mean = f64::from(sums[k]) / count;
        let var = f64::from(sums[c + k]) / count - mean * mean;
        // Rounding can leave a little below zero; not a number stays what it is, so that the loss shows it.
        let var = if var < 0.0 { 0.0 } else { var };
        let unbiased = var * count / (count - 1.0).max(1.0);
        let mut mix = |at: usize, new: f64| {
            running[at] = (keep * f64::from(running[at]) + f64::from(norm.momentum) * new) as f32;
        };
        mix(k, mean);
        mix(c + k, unbiased);
        write_coef(coef, c, k, mean, 1.0 / (var + f64::from(norm.eps)).sqrt(), gamma[k], beta[k]);
    }
}

/// Running statistics to mean, 1/σ, scale, shift.
pub(crate) fn norm_eval(norm: &NormEval, gamma: &[f32], beta: &[f32], running: &[f32], coef: &mut [f32]) {
    let c = gamma.len();
    for k in 0..c {
        let inv_std = 1.0 / (f64::from(running[c + k]) + f64::from(norm.eps)).sqrt();
        write_coef(coef, c, k, f64::from(running[k]), inv_std, gamma[k], beta[k]);
    }
}

fn write_coef(coef: &mut [f32], c: usize, k: usize, mean: f64, inv_std: f64, gamma: f32, beta: f32) {
    let scale = f64::from(gamma) * inv_std;
    coef[k] = mean as f32;
    coef[c + k] = inv_std as f32;
    coef[2 * c + k] = scale as f32;
    coef[3 * c + k] = (f64::from(beta) - mean * scale) as f32;
}

/// ReLU that lets not-a-number through, as PyTorch's does: `f32::max` would turn it into 0 and hide a diverged run.
#[inline(always)]
pub(crate) fn relu(v: f32) -> f32 {
    if v < 0.0 { 0.0 } else { v }
}

/// SGD with PyTorch's semantics: decay joins the gradient, the first momentum buffer is the gradient.
#[inline(always)]
pub(crate) fn sgd(w: &mut [f32], g: &[f32], buf: &mut [f32], step: SgdStep, first: bool) {
    for ((w, &g), buf) in w.iter_mut().zip(g).zip(buf) {
        let g = g + step.weight_decay * *w;
        *buf = if first { g } else { step.momentum * *buf + g };
        *w -= step.lr * *buf;
    }
}

/// LARS's trust ratio q from ‖w‖² and ‖g‖².
pub(crate) fn lars_trust([w, g]: [f64; 2], step: LarsStep) -> f32 {
    let (w_norm, g_norm) = (w.sqrt(), g.sqrt());
    if w_norm < 1e-15 || g_norm < 1e-15 {
        return 1.0;
    }
    (f64::from(step.eta) * w_norm / (g_norm + f64::from(step.weight_decay) * w_norm)) as f32
}

/// LARS for numbers of a tensor with trust ratio `q`.
#[inline(always)]
pub(crate) fn lars(w: &mut [f32], g: &[f32], buf: &mut [f32], q: f32, step: LarsStep) {
    for ((w, &g), buf) in w.iter_mut().zip(g).zip(buf) {
        *buf = step.momentum * *buf + step.lr * q * (g + step.weight_decay * *w);
        *w -= *buf;
    }
}

/// Sum of squares in double precision, by sums side by side: one alone would wait for each addition.
#[inline(always)]
pub(crate) fn squares(v: &[f32]) -> f64 {
    let mut sums = [0.0f64; 16];
    for run in v.chunks(sums.len()) {
        for (sum, &x) in sums.iter_mut().zip(run) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    sums.iter().sum()
}

/// Adam with bias correction.
#[inline(always)]
pub(crate) fn adam(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], step: AdamStep) {
    let t = i32::try_from(step.step).unwrap_or(i32::MAX);
    let c1 = 1.0 - f64::from(step.beta1).powi(t);
    let c2 = (1.0 - f64::from(step.beta2).powi(t)).sqrt();
    let (rate, c2) = ((f64::from(step.lr) / c1) as f32, c2 as f32);
    for (((w, &g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
        *m += (1.0 - step.beta1) * (g - *m);
        *v = step.beta2 * *v + (1.0 - step.beta2) * g * g;
        *w -= rate * *m / (v.sqrt() / c2 + step.eps);
    }
}
