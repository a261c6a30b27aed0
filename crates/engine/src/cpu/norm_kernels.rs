//! Batch norm's loops over pixels: they move memory, and little else.
//!
//! All walk over rows of `c` channels in blocks of channels; the last block may be a part of a vector. Where a row is no longer than a
//! block, coefficients, or sums, stay in registers over all rows. Longer rows are taken one by one: to read memory as it lies is worth more.
//! Numbers are widened to f32 on the way in and rounded on the way out.
//!
//! Maps are pointers, as a result may take the place of what it is computed from: each number is read before it is written.

use super::blocks::{BLOCK, Block, for_blocks, load, store};
use super::cell::Cell;
use super::simd::{Simd, kernel};
use crate::types::Write;
use std::ops::Range;

/// `y = relu?(x · scale + shift + residual?)` over `len` numbers in rows of `c` channels; `y` may be `x`.
pub(crate) struct Apply<'a, E> {
    pub x: *const E,
    /// mean, 1/σ, scale, shift, `[4, c]`.
    pub coef: &'a [f32],
    pub residual: Option<*const E>,
    pub relu: bool,
    pub y: *mut E,
    pub len: usize,
}

/// A ReLU's [gate](crate::Gate): where a number is above zero.
#[derive(Clone, Copy)]
pub(crate) enum GateData<'a, E> {
    Output(*const E),
    /// x · scale + shift, of the coefficients of [`Apply`]: a map less to read. Where the output was rounded to zero, it may be open.
    Input(&'a [f32]),
}

/// g is `dy` where the gate is open, each of `len` numbers.
#[derive(Clone, Copy)]
pub(crate) struct Gated<'a, E> {
    pub dy: *const E,
    pub gate: Option<GateData<'a, E>>,
    pub x: *const E,
    pub len: usize,
}

impl<E> Gated<'_, E> {
    /// Which gate it has, as loops know it.
    fn kind(&self) -> u8 {
        match self.gate {
            None => NO_GATE,
            Some(GateData::Output(_)) => OUTPUT,
            Some(GateData::Input(_)) => INPUT,
        }
    }
}

const NO_GATE: u8 = 0;
const OUTPUT: u8 = 1;
const INPUT: u8 = 2;

/// `dx = a·g + b·x + d` and `dr (+)= g`; `dx` may be `x`, and `dr` `dy`.
pub(crate) struct Backward<'a, E> {
    pub from: Gated<'a, E>,
    /// a, b, d, `[3, c]`.
    pub constants: &'a [f32],
    pub dx: Option<*mut E>,
    pub dr: Option<*mut E>,
    pub write: Write,
}

kernel! {
    /// # Safety
    /// The job's maps must hold `len` numbers, and `level` be supported by the CPU.
    pub(crate) unsafe fn apply(job: &Apply<E>) = apply_rows
}

kernel! {
    /// Σg and Σg·x̂ per channel, `[2, c]`.
    ///
    /// # Safety
    /// As [`apply`].
    pub(crate) unsafe fn backward_sums(job: &Gated<E>, coef: &[f32], sums: &mut [f32]) = sum_rows
}

kernel! {
    /// # Safety
    /// As [`apply`].
    pub(crate) unsafe fn backward_apply(job: &Backward<E>) = backward_rows
}

/// Runs of rows of `c` channels that are taken together.
fn runs<S: Simd>(n_rows: usize, c: usize) -> impl Iterator<Item = Range<usize>> {
    let run = if c <= BLOCK * S::LANES { n_rows.max(1) } else { 1 };
    (0..n_rows).step_by(run).map(move |first| first..first + run)
}

#[inline(always)]
unsafe fn apply_rows<E: Cell, S: Simd>(job: &Apply<E>) {
    // SAFETY: the caller's promise.
    unsafe {
        match (job.residual.is_some(), job.relu) {
            (false, false) => apply_blocks::<E, S, false, false>(job),
            (false, true) => apply_blocks::<E, S, false, true>(job),
            (true, false) => apply_blocks::<E, S, true, false>(job),
            (true, true) => apply_blocks::<E, S, true, true>(job),
        }
    }
}

#[inline(always)]
unsafe fn apply_blocks<E: Cell, S: Simd, const ADDS: bool, const GATES: bool>(job: &Apply<E>) {
    let c = job.coef.len() / 4;
    for rows in runs::<S>(job.len / c, c) {
        // SAFETY: handed through.
        for_blocks!(S, c, |block, V| unsafe { apply_block::<E, S, V, ADDS, GATES>(job, rows.clone(), block) });
    }
}

#[inline(always)]
unsafe fn apply_block<E: Cell, S: Simd, const V: usize, const ADDS: bool, const GATES: bool>(
    job: &Apply<E>,
    rows: Range<usize>,
    block: Block,
) {
    let c = job.coef.len() / 4;
    // SAFETY: the block lies in a row, all rows in their maps; the caller vouches for the level.
    unsafe {
        let scale = load::<f32, S, V>(job.coef[2 * c..].as_ptr(), block);
        let shift = load::<f32, S, V>(job.coef[3 * c..].as_ptr(), block);
        let residual = job.residual.unwrap_or(std::ptr::null());
        for row in rows {
            let x = load::<E, S, V>(job.x.add(row * c), block);
            let mut y = [S::zero(); V];
            let added = if ADDS { load::<E, S, V>(residual.add(row * c), block) } else { [S::zero(); V] };
            for v in 0..V {
                y[v] = shift[v].fma(x[v], scale[v]);
                if ADDS {
                    y[v] = y[v].add(added[v]);
                }
                if GATES {
                    y[v] = y[v].relu();
                }
            }
            store::<E, S, V>(y, job.y.add(row * c), block);
        }
    }
}

#[inline(always)]
unsafe fn sum_rows<E: Cell, S: Simd>(job: &Gated<E>, coef: &[f32], sums: &mut [f32]) {
    assert!(2 * sums.len() == coef.len());
    let c = coef.len() / 4;
    sums.fill(0.0);
    // SAFETY: the caller's promise.
    unsafe {
        match job.kind() {
            OUTPUT => sum_blocks::<E, S, OUTPUT>(job, coef, sums),
            INPUT => sum_blocks::<E, S, INPUT>(job, coef, sums),
            _ => sum_blocks::<E, S, NO_GATE>(job, coef, sums),
        }
    }
    for (dot, inverse) in sums[c..].iter_mut().zip(&coef[c..2 * c]) {
        *dot *= inverse;
    }
}

#[inline(always)]
unsafe fn sum_blocks<E: Cell, S: Simd, const GATE: u8>(job: &Gated<E>, coef: &[f32], sums: &mut [f32]) {
    let c = coef.len() / 4;
    for rows in runs::<S>(job.len / c, c) {
        // SAFETY: handed through.
        for_blocks!(S, c, |block, V| unsafe { sum_block::<E, S, V, GATE>(job, coef, sums, rows.clone(), block) });
    }
}

#[inline(always)]
unsafe fn sum_block<E: Cell, S: Simd, const V: usize, const GATE: u8>(
    job: &Gated<E>,
    coef: &[f32],
    sums: &mut [f32],
    rows: Range<usize>,
    block: Block,
) {
    let c = coef.len() / 4;
    // SAFETY: the block lies in a row, all rows in their maps; the caller vouches for the level.
    unsafe {
        let (mut sum, mut dot) =
            (load::<f32, S, V>(sums.as_ptr(), block), load::<f32, S, V>(sums[c..].as_ptr(), block));
        let (mean, open) = (load::<f32, S, V>(coef.as_ptr(), block), of_input(job, block));
        for row in rows {
            let x = load::<E, S, V>(job.x.add(row * c), block);
            let g = gated::<E, S, V, GATE>(job, row * c, block, x, open);
            for v in 0..V {
                sum[v] = sum[v].add(g[v]);
                dot[v] = dot[v].fma(g[v], x[v].sub(mean[v]));
            }
        }
        store::<f32, S, V>(sum, sums.as_mut_ptr(), block);
        store::<f32, S, V>(dot, sums.as_mut_ptr().add(c), block);
    }
}

#[inline(always)]
unsafe fn backward_rows<E: Cell, S: Simd>(job: &Backward<E>) {
    // SAFETY: the caller's promise.
    unsafe {
        match (job.from.kind(), job.dx.is_some(), job.dr.is_some()) {
            (_, false, false) => {}
            (INPUT, true, false) => backward_blocks::<E, S, INPUT, true, false>(job),
            (INPUT, _, true) => panic!("a gate that is of the input has no residual"),
            (OUTPUT, true, false) => backward_blocks::<E, S, OUTPUT, true, false>(job),
            (OUTPUT, true, true) => backward_blocks::<E, S, OUTPUT, true, true>(job),
            (OUTPUT, false, true) => backward_blocks::<E, S, OUTPUT, false, true>(job),
            (_, true, false) => backward_blocks::<E, S, NO_GATE, true, false>(job),
            (_, true, true) => backward_blocks::<E, S, NO_GATE, true, true>(job),
            (_, false, true) => backward_blocks::<E, S, NO_GATE, false, true>(job),
        }
    }
}

#[inline(always)]
unsafe fn backward_blocks<E: Cell, S: Simd, const GATE: u8, const DX: bool, const DR: bool>(job: &Backward<E>) {
    let c = job.constants.len() / 3;
    for rows in runs::<S>(job.from.len / c, c) {
        // SAFETY: handed through.
        for_blocks!(S, c, |block, V| unsafe { backward_block::<E, S, V, GATE, DX, DR>(job, rows.clone(), block) });
    }
}

#[inline(always)]
unsafe fn backward_block<E: Cell, S: Simd, const V: usize, const GATE: u8, const DX: bool, const DR: bool>(
    job: &Backward<E>,
    rows: Range<usize>,
    block: Block,
) {
    let c = job.constants.len() / 3;
    // SAFETY: the block lies in a row, all rows in their maps; the caller vouches for the level.
    unsafe {
        let a = load::<f32, S, V>(job.constants.as_ptr(), block);
        let b = load::<f32, S, V>(job.constants[c..].as_ptr(), block);
        let d = load::<f32, S, V>(job.constants[2 * c..].as_ptr(), block);
        let open = of_input(&job.from, block);
        for row in rows {
            let x = if DX { load::<E, S, V>(job.from.x.add(row * c), block) } else { [S::zero(); V] };
            let g = gated::<E, S, V, GATE>(&job.from, row * c, block, x, open);
            if let (true, Some(to)) = (DX, job.dx) {
                let mut dx = [S::zero(); V];
                for v in 0..V {
                    dx[v] = S::zero().fma(a[v], g[v]).fma(b[v], x[v]).add(d[v]);
                }
                store::<E, S, V>(dx, to.add(row * c), block);
            }
            if let (true, Some(to)) = (DR, job.dr) {
                let to = to.add(row * c);
                let mut dr = g;
                if job.write == Write::Add {
                    let old = load::<E, S, V>(to, block);
                    for v in 0..V {
                        dr[v] = dr[v].add(old[v]);
                    }
                }
                store::<E, S, V>(dr, to, block);
            }
        }
    }
}

/// Scale and shift of a gate that is of the input.
#[inline(always)]
unsafe fn of_input<E, S: Simd, const V: usize>(job: &Gated<E>, block: Block) -> [[S; V]; 2] {
    let Some(GateData::Input(coef)) = job.gate else {
        // SAFETY: handed through.
        return unsafe { [[S::zero(); V]; 2] };
    };
    let c = coef.len() / 4;
    // SAFETY: handed through. In a closure loads would be calls.
    unsafe { [load::<f32, S, V>(coef[2 * c..].as_ptr(), block), load::<f32, S, V>(coef[3 * c..].as_ptr(), block)] }
}

/// A row's gradient behind the gate.
#[inline(always)]
unsafe fn gated<E: Cell, S: Simd, const V: usize, const GATE: u8>(
    job: &Gated<E>,
    at: usize,
    block: Block,
    x: [S; V],
    [scale, shift]: [[S; V]; 2],
) -> [S; V] {
    // SAFETY: handed through.
    unsafe {
        let mut g = load::<E, S, V>(job.dy.add(at), block);
        if let (OUTPUT, Some(GateData::Output(gate))) = (GATE, job.gate) {
            let gate = load::<E, S, V>(gate.add(at), block);
            for v in 0..V {
                g[v] = g[v].where_positive(gate[v]);
            }
        }
        if GATE == INPUT {
            for v in 0..V {
                g[v] = g[v].where_positive(shift[v].fma(x[v], scale[v]));
            }
        }
        g
    }
}
