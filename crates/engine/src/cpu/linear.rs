//! A linear layer's products with its weights.
//!
//! The weights of a wide layer (2048 × 2048: 16 MB) take as long to bring from memory as to be multiplied with a small batch. A general product
//! packs them first, so here they are multiplied as they lie: forward each output's weights are a run along the inputs, as a row of the batch
//! is; backward the weights that an output has for some inputs meet its gradient.

use super::ahead::LINE;
use super::cell::Cell;
use super::simd::{Level, MAX_LANES, Simd, kernel};
use super::team::{Shards, Team};
use crate::types::Write;
use std::ops::Range;

/// A linear layer's weights `[cout, cin]`, and rows of a batch.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub w: &'a [f32],
    pub cin: usize,
    pub cout: usize,
    pub n: usize,
}

impl Layer<'_> {
    fn assert_maps(&self, x: usize, y: usize) {
        let Self { w, cin, cout, n } = self;
        assert!(w.len() >= cin * cout && x >= n * cin && y >= n * cout, "a layer's weights and maps");
    }
}

/// Rows of a chunk; its outputs forward; its inputs backward, or half as many where there are fewer than two chunks a member.
const CHUNK_ROWS: usize = 128;
const OUTPUTS: usize = 16;
const INPUTS: usize = 256;

/// Inputs that are multiplied before the next ones: of them a few outputs' weights stay in the nearest cache for all rows.
const RUN: usize = 512;
/// Outputs that are multiplied before the next ones: their weights for two vectors of inputs stay in the nearest cache for all rows.
const BAND: usize = 32;
/// Rows of a register block.
const ROWS: usize = 4;

/// `x · wᵀ`, set in `y` or added to it.
pub(crate) fn forward_all(team: &Team, level: Level, layer: Layer, x: &[f32], y: &mut [f32], write: Write) {
    layer.assert_maps(x.len(), y.len());
    let y = Shards::new(y);
    for_chunks(team, layer, layer.cout, OUTPUTS, |layer, row, outputs| {
        let (x, y) = (&x[row * layer.cin..], y.as_ptr().wrapping_add(row * layer.cout));
        // SAFETY: `level` is at most what the engine detected; chunks have different outputs or rows, and each runs once; see the assertion.
        unsafe { forward::<f32>(level, layer, x, y, outputs, write) };
    });
}

/// `dy · w`, set in `dx` or added to it.
pub(crate) fn backward_all(team: &Team, level: Level, layer: Layer, dy: &[f32], dx: &mut [f32], write: Write) {
    layer.assert_maps(dx.len(), dy.len());
    let dx = Shards::new(dx);
    let is_short = layer.cin.div_ceil(INPUTS) * layer.n.div_ceil(CHUNK_ROWS) < 2 * team.n_members();
    for_chunks(team, layer, layer.cin, if is_short { INPUTS / 2 } else { INPUTS }, |layer, row, inputs| {
        let (dy, dx) = (&dy[row * layer.cout..], dx.as_ptr().wrapping_add(row * layer.cin));
        // SAFETY: as above, of inputs.
        unsafe { backward_data::<f32>(level, layer, dy, dx, inputs, write) };
    });
}

/// Runs `work(layer, first row, columns)` for some rows, which are the layer's, and up to `width` of `n_columns` columns at a time.
fn for_chunks(
    team: &Team,
    layer: Layer,
    n_columns: usize,
    width: usize,
    work: impl Fn(Layer, usize, Range<usize>) + Sync,
) {
    let by_rows = layer.n.div_ceil(CHUNK_ROWS);
    team.for_chunks(n_columns.div_ceil(width) * by_rows, |chunk, _| {
        let (first, row) = (chunk / by_rows * width, chunk % by_rows * CHUNK_ROWS);
        let layer = Layer { n: CHUNK_ROWS.min(layer.n - row), ..layer };
        work(layer, row, first..n_columns.min(first + width));
    });
}

kernel! {
    /// `x · wᵀ`, set in some outputs of `y` or added to them.
    ///
    /// # Safety
    /// `level` must be supported by the CPU; `y` holds the layer's rows, and nobody else writes to these outputs.
    unsafe fn forward(layer: Layer, x: &[f32], y: *mut f32, outputs: Range<usize>, write: Write) = forward_chunk
}

#[inline(always)]
unsafe fn forward_chunk<E: Cell, S: Simd>(layer: Layer, x: &[f32], y: *mut f32, outputs: Range<usize>, write: Write) {
    const { assert!(ROWS * 4 == MAX_LANES && (S::LANES == MAX_LANES || 2 * S::LANES == MAX_LANES)) };
    // SAFETY: handed through.
    unsafe {
        match S::LANES {
            MAX_LANES => forward_outputs::<S, 4>(layer, x, y, outputs, write),
            _ => forward_outputs::<S, 2>(layer, x, y, outputs, write),
        }
    }
}

/// By blocks of so many rows and outputs that their sums fill a vector.
#[inline(always)]
unsafe fn forward_outputs<S: Simd, const N: usize>(
    layer: Layer,
    x: &[f32],
    y: *mut f32,
    outputs: Range<usize>,
    write: Write,
) {
    let Layer { w, cin, cout, n } = layer;
    layer.assert_maps(x.len(), n * cout);
    assert!(outputs.end <= cout);
    for from in (0..cin).step_by(RUN) {
        let (len, sets) = (RUN.min(cin - from), from == 0 && write == Write::Set);
        for output in outputs.clone().step_by(N) {
            for row in (0..n).step_by(ROWS) {
                // Surplus outputs and rows repeat the last one.
                let (mut rows, mut weights) = ([std::ptr::null(); ROWS], [std::ptr::null(); N]);
                for (i, to) in rows.iter_mut().enumerate() {
                    *to = x[(row + i).min(n - 1) * cin + from..].as_ptr();
                }
                for (i, to) in weights.iter_mut().enumerate() {
                    *to = w[(output + i).min(outputs.end - 1) * cin + from..].as_ptr();
                }
                // SAFETY: the level is the caller's promise, and so are these outputs of `y`; all runs hold `len` numbers.
                unsafe {
                    let sums = dots::<S, N>(rows, weights, len);
                    for (i, sums) in sums.chunks_exact(N).enumerate().take(ROWS.min(n - row)) {
                        for (j, sum) in sums.iter().enumerate().take(N.min(outputs.end - output)) {
                            let to = y.add((row + i) * cout + output + j);
                            *to = if sets { *sum } else { *to + sum };
                        }
                    }
                }
            }
        }
    }
}

/// Sums of products along `len` numbers of each row with each run of weights: `[row, run]`, and what fills the array.
#[inline(always)]
unsafe fn dots<S: Simd, const N: usize>(
    rows: [*const f32; ROWS],
    weights: [*const f32; N],
    len: usize,
) -> [f32; MAX_LANES] {
    // SAFETY: the level is the caller's promise; all runs hold `len` numbers, and `lines` squares of vectors.
    unsafe {
        let mut sums = [[S::zero(); N]; ROWS];
        for at in (0..len).step_by(S::LANES) {
            let left = len - at;
            let mut w = [S::zero(); N];
            for (w, from) in w.iter_mut().zip(weights) {
                *w = up_to::<S>(from.add(at), left);
            }
            for (sums, row) in sums.iter_mut().zip(rows) {
                let x = up_to::<S>(row.add(at), left);
                for (sum, &w) in sums.iter_mut().zip(&w) {
                    *sum = sum.fma(x, w);
                }
            }
        }
        let (mut lines, mut turned) = ([[0.0f32; MAX_LANES]; MAX_LANES], [[0.0f32; MAX_LANES]; MAX_LANES]);
        for (sum, line) in sums.as_flattened().iter().zip(&mut lines) {
            sum.store_first(line.as_mut_ptr(), S::LANES);
        }
        S::turn(lines.as_ptr().cast(), MAX_LANES, turned.as_mut_ptr().cast(), MAX_LANES, S::LANES);
        let mut total = S::zero();
        for line in &turned[..S::LANES] {
            total = total.add(S::load(line.as_ptr()));
        }
        let mut out = [0.0; MAX_LANES];
        total.store_first(out.as_mut_ptr(), S::LANES);
        out
    }
}

/// A vector, or what is left.
#[inline(always)]
unsafe fn up_to<S: Simd>(from: *const f32, left: usize) -> S {
    // SAFETY: handed through.
    unsafe { if left < S::LANES { S::load_first(from, left) } else { S::load(from) } }
}

kernel! {
    /// `dy · w`, set in some inputs of `dx` or added to them.
    ///
    /// # Safety
    /// `level` must be supported by the CPU; `dx` holds the layer's rows, and nobody else writes to these inputs.
    unsafe fn backward_data(layer: Layer, dy: &[f32], dx: *mut f32, inputs: Range<usize>, write: Write) = backward_chunk
}

#[inline(always)]
unsafe fn backward_chunk<E: Cell, S: Simd>(layer: Layer, dy: &[f32], dx: *mut f32, inputs: Range<usize>, write: Write) {
    // SAFETY: handed through.
    unsafe {
        match S::LANES {
            MAX_LANES => backward_inputs::<S, 8>(layer, dy, dx, inputs, write),
            _ => backward_inputs::<S, 4>(layer, dy, dx, inputs, write),
        }
    }
}

/// By blocks of so many rows and two vectors of inputs.
#[inline(always)]
unsafe fn backward_inputs<S: Simd, const N: usize>(
    layer: Layer,
    dy: &[f32],
    dx: *mut f32,
    inputs: Range<usize>,
    write: Write,
) {
    let Layer { w, cin, cout, n } = layer;
    layer.assert_maps(n * cin, dy.len());
    assert!(inputs.end <= cin);
    for first in (0..cout).step_by(BAND) {
        let (band, write) = (first..cout.min(first + BAND), if first == 0 { write } else { Write::Add });
        for at in inputs.clone().step_by(2 * S::LANES) {
            let len = (2 * S::LANES).min(inputs.end - at);
            for row in (0..n).step_by(N) {
                // SAFETY: the level is the caller's promise, and so are these inputs of `dx`; weights and gradients are in their slices.
                unsafe {
                    let (w, dy) = (w.as_ptr().add(at), dy.as_ptr().add(row * cout));
                    let dx = dx.add(row * cin + at);
                    add_outputs::<S, N>((w, cin), (dy, cout), (dx, cin), band.clone(), (N.min(n - row), len), write);
                }
            }
        }
    }
}

/// Sets or adds what some outputs' gradients make of `len` inputs, two vectors of them, to up to `N` rows; each matrix with the step of its rows.
#[inline(always)]
unsafe fn add_outputs<S: Simd, const N: usize>(
    (w, w_step): (*const f32, usize),
    (dy, dy_step): (*const f32, usize),
    (dx, dx_step): (*mut f32, usize),
    outputs: Range<usize>,
    (n, len): (usize, usize),
    write: Write,
) {
    let lens = [len.min(S::LANES), len.saturating_sub(S::LANES)];
    let is_whole = lens[1] == S::LANES;
    // SAFETY: the level and all addresses are the caller's promise.
    unsafe {
        let mut sums = [[S::zero(); 2]; N];
        let mut gradients = [dy; N];
        for (i, (sums, gradient)) in sums.iter_mut().zip(&mut gradients).enumerate() {
            // Surplus rows repeat the last one.
            let row = i.min(n - 1);
            if write == Write::Add {
                *sums = two::<S>(dx.add(row * dx_step), lens, is_whole);
            }
            *gradient = dy.add(row * dy_step);
        }
        for output in outputs {
            let from = w.add(output * w_step);
            // Rows of weights lie far apart, which a processor foresees badly.
            for line in (0..2 * S::LANES).step_by(LINE) {
                S::prefetch_far(from.wrapping_add(BAND * w_step + line));
            }
            let w = two::<S>(from, lens, is_whole);
            for (sums, gradient) in sums.iter_mut().zip(gradients) {
                let gradient = S::splat(gradient.add(output));
                *sums = [sums[0].fma(gradient, w[0]), sums[1].fma(gradient, w[1])];
            }
        }
        for (i, sums) in sums.iter().enumerate().take(n) {
            for (half, sum) in sums.iter().enumerate() {
                sum.store_first(dx.add(i * dx_step).wrapping_add(half * S::LANES), lens[half]);
            }
        }
    }
}

/// Two vectors, of so many numbers each.
#[inline(always)]
unsafe fn two<S: Simd>(from: *const f32, lens: [usize; 2], is_whole: bool) -> [S; 2] {
    let second = from.wrapping_add(S::LANES);
    // SAFETY: handed through.
    unsafe {
        if is_whole {
            [S::load(from), S::load(second)]
        } else {
            [S::load_first(from, lens[0]), S::load_first(second, lens[1])]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_any_shape_are_those_of_their_definition() {
        let teams = [1, 3].map(|n| Team::new(n).unwrap());
        let shapes =
            [(1, 1, 1), (5, 3, 0), (5, 3, 2), (37, 19, 5), (600, 33, 4), (70, 70, 9), (300, 20, 260), (12, 4, 3)];
        for (cin, cout, n) in shapes.into_iter().filter(|(cin, cout, n)| !cfg!(miri) || cin * cout * n < 4000) {
            // Small whole numbers, whose sums are exact.
            let of = |len: usize, seed: usize| (0..len).map(|i| ((i * 7 + seed) % 5) as f32 - 2.0).collect::<Vec<_>>();
            let (w, x, dy) = (of(cin * cout, 1), of(n * cin, 2), of(n * cout, 3));
            let layer = Layer { w: &w, cin, cout, n };
            for (level, team) in Level::available().flat_map(|level| teams.iter().map(move |team| (level, team))) {
                let (mut y, mut dx) = (vec![f32::NAN; n * cout], vec![f32::NAN; n * cin]);
                for write in [Write::Set, Write::Add] {
                    forward_all(team, level, layer, &x, &mut y, write);
                    backward_all(team, level, layer, &dy, &mut dx, write);
                }
                for (row, output) in (0..n).flat_map(|row| (0..cout).map(move |output| (row, output))) {
                    let sum: f32 = (0..cin).map(|i| x[row * cin + i] * w[output * cin + i]).sum();
                    assert_eq!(y[row * cout + output], 2.0 * sum, "{level:?}, {cin} > {cout}, {n} rows");
                }
                for (row, input) in (0..n).flat_map(|row| (0..cin).map(move |input| (row, input))) {
                    let sum: f32 = (0..cout).map(|j| dy[row * cout + j] * w[j * cin + input]).sum();
                    assert_eq!(dx[row * cin + input], 2.0 * sum, "{level:?}, {cin} > {cout}, {n} rows");
                }
            }
        }
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let (cin, cout, n) = if cfg!(miri) { (270, 5, 2) } else { (530, 40, 7) };
        let of =
            |len: usize, seed: usize| (0..len).map(|i| ((i * 37 + seed) % 101) as f32 / 7.0 - 6.9).collect::<Vec<_>>();
        let (w, x, dy) = (of(cin * cout, 1), of(n * cin, 2), of(n * cout, 3));
        let layer = Layer { w: &w, cin, cout, n };
        let results = [1, 3].map(|threads| {
            let (team, mut y, mut dx) = (Team::new(threads).unwrap(), vec![0.0; n * cout], vec![0.0; n * cin]);
            forward_all(&team, Level::detect(), layer, &x, &mut y, Write::Set);
            backward_all(&team, Level::detect(), layer, &dy, &mut dx, Write::Set);
            [y, dx].map(|v| v.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        });
        assert_eq!(results[0], results[1]);
    }
}
