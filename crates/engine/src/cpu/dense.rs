//! Matrix products for linear layers' weight gradients and NT-Xent, on the `gemm` crate, one block of the result per chunk.

use super::team::{Shards, Team};

/// A matrix view: element (r, c) is `data[r · row + c · col]`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row: usize,
    col: usize,
}

impl<'a> Mat<'a> {
    /// A row-major matrix.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert!(data.len() >= rows * cols, "{} floats for {rows}×{cols}", data.len());
        Self { data, rows, cols, row: cols, col: 1 }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        Self { data: self.data, rows: self.cols, cols: self.rows, row: self.col, col: self.row }
    }
}

/// Rows of the result per chunk; where there are only a few such, as with small batches, chunks have so many columns too.
const ROWS: usize = 32;
const COLS: usize = 256;
const FEW: usize = 8;

/// `c (+)= factor · a · b`, `c` row-major.
pub(crate) fn multiply(team: &Team, c: &mut [f32], a: Mat, b: Mat, factor: f32, add: bool) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert_eq!(k, b.rows, "inner dimensions");
    assert!(c.len() >= m * n, "result");
    let out = Shards::new(&mut c[..m * n]);
    let width = if m.div_ceil(ROWS) < FEW { COLS } else { n };
    let across = n.div_ceil(width);
    team.for_chunks(m.div_ceil(ROWS) * across, |chunk, _| {
        let (row, col) = (chunk / across * ROWS, chunk % across * width);
        let (rows, cols) = (ROWS.min(m - row), width.min(n - col));
        // SAFETY: blocks are disjoint and each chunk runs once; views are in bounds by `Mat::new` and the asserts.
        unsafe {
            gemm::gemm(
                rows,
                cols,
                k,
                out.as_ptr().add(row * n + col),
                1,
                n as isize,
                add,
                a.data.as_ptr().add(row * a.row),
                a.col as isize,
                a.row as isize,
                b.data.as_ptr().add(col * b.col),
                b.col as isize,
                b.row as isize,
                1.0,
                factor,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    });
}

/// One NT-Xent row in place: `logits` of anchor `own` against all rows become the loss's gradient with respect to the
/// logits, times `factor`; returns the loss. Source: Chen et al. 2020, eq. 1, by log-sum-exp; with `focal_gamma` above 0,
/// [`focal`].
pub(crate) fn nt_xent_row(logits: &mut [f32], own: usize, factor: f32, focal_gamma: f32) -> f32 {
    let positive = own ^ 1;
    logits[own] = f32::NEG_INFINITY;
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let of_positive = logits[positive];
    let mut total = 0.0f64;
    for v in logits.iter_mut() {
        *v = (*v - top).exp();
        total += f64::from(*v);
    }
    let loss = f64::from(top) + total.ln() - f64::from(of_positive);
    let others = (total - f64::from(logits[positive])) / total;
    let (loss, weight) = focal(loss, others, f64::from(focal_gamma));
    let factor = factor * weight as f32;
    let share = factor / total as f32;
    for v in logits.iter_mut() {
        *v *= share;
    }
    logits[positive] -= factor;
    loss as f32
}

/// Lin et al. 2017 on a softmax: from `loss` L = −ln p and `others` = 1 − p of an anchor its focal loss (1 − p)^γ · L, and
/// the derivative of that with respect to L, (1 − p)^γ · (1 + γ · p · L / (1 − p)).
fn focal(loss: f64, others: f64, gamma: f64) -> (f64, f64) {
    if gamma == 0.0 {
        return (loss, 1.0);
    }
    if others == 0.0 {
        // The limit, where the quotient below has none: nothing contradicts the positive.
        return (0.0, 0.0);
    }
    let scale = others.powf(gamma);
    (scale * loss, scale * (1.0 + gamma * (1.0 - others) * loss / others))
}

/// One cross-entropy row: loss, and the gradient times `factor` into `grad`.
pub(crate) fn cross_entropy_row(logits: &[f32], label: usize, factor: f32, grad: &mut [f32]) -> f32 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0.0f64;
    for (g, &v) in grad.iter_mut().zip(logits) {
        *g = (v - top).exp();
        total += f64::from(*g);
    }
    let share = factor / total as f32;
    for g in grad.iter_mut() {
        *g *= share;
    }
    grad[label] -= factor;
    (f64::from(top) + total.ln() - f64::from(logits[label])) as f32
}
