//! The linear maps of F(4 × 4, 3 × 3), on vectors of channels.
//!
//! A correlation with three taps is a product of polynomials, known once it is known at enough points: a window of six inputs
//! gives four outputs from products at 0, ±1/√2, ±√2 and infinity, 6 in place of 12. In two dimensions a 6 × 6 window gives
//! 4 × 4 outputs by 36 products in place of 144. With one dimension's maps `Bᵀ` (of a window), `G` (of weights) and `Aᵀ` (of
//! products), each used along rows and columns:
//!
//! - outputs = `Aᵀ [(G w Gᵀ) ⊙ (Bᵀ x B)] A`,
//! - its derivative by the weights = `Gᵀ [(A dy Aᵀ) ⊙ (Bᵀ x B)] G`.
//!
//! The points decide how rounding grows: with the usual 0, ±1, ±2 results are five times as far from exact as a direct f32
//! sum's, with these 2.4 times (256 channels of normal numbers).
//!
//! Source: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", 2015 (arXiv 1509.09308), section 4; the points
//! are ours.

use crate::cpu::simd::Simd;
use std::f32::consts::{FRAC_1_SQRT_2, SQRT_2};

/// Outputs along a side of a tile, inputs along a side of its window, taps.
pub(super) const TILE: usize = 4;
pub(super) const WINDOW: usize = 6;
pub(super) const TAPS: usize = 3;
/// Points of weights along a side, and all of them: the same number with stride 2 ([`strided`](super::strided)).
pub(super) const SIDE: usize = 6;
pub(super) const POINTS: usize = SIDE * SIDE;

/// The point of the weights that product `p` of a tile is made with, of `side` products along a side: each another one, but that those behind
/// the last point share it.
pub(super) fn weight_point(side: usize, p: usize) -> usize {
    (p / side).min(SIDE - 1) * SIDE + (p % side).min(SIDE - 1)
}

/// The products of a tile that are made with a point of the weights.
pub(super) fn products_with(side: usize, point: usize) -> impl Iterator<Item = usize> {
    let along = move |at: usize| at..if at == SIDE - 1 { side } else { at + 1 };
    along(point / SIDE).flat_map(move |row| along(point % SIDE).map(move |col| row * side + col))
}

/// A constant in all lanes.
#[inline(always)]
pub(super) unsafe fn all<S: Simd>(value: f32) -> S {
    // SAFETY: the caller has the instructions, here and in all functions below.
    unsafe { S::splat(&raw const value) }
}

/// `a·x + b·y`.
#[inline(always)]
pub(super) unsafe fn mix<S: Simd>(a: f32, x: S, b: f32, y: S) -> S {
    // SAFETY: see above.
    unsafe { S::zero().fma(all(a), x).fma(all(b), y) }
}

/// One dimension's map, of `FROM` numbers to `TO`.
pub(super) trait Line<const FROM: usize, const TO: usize> {
    /// # Safety
    /// As [`Simd`].
    unsafe fn line<S: Simd>(from: [S; FROM]) -> [S; TO];
}

/// `Bᵀ`, of a window.
pub(super) struct Window;

impl Line<WINDOW, WINDOW> for Window {
    #[inline(always)]
    unsafe fn line<S: Simd>(d: [S; WINDOW]) -> [S; WINDOW] {
        // SAFETY: see above.
        unsafe {
            let (even, odd) = (d[4].fma(all(-2.0), d[2]), d[3].fma(all(-2.0), d[1]));
            let (even_far, odd_far) = (d[4].fma(all(-0.5), d[2]), d[3].fma(all(-0.5), d[1]));
            [
                d[0].add(d[4]).fma(all(-2.5), d[2]),
                even.fma(all(FRAC_1_SQRT_2), odd),
                even.fma(all(-FRAC_1_SQRT_2), odd),
                even_far.fma(all(SQRT_2), odd_far),
                even_far.fma(all(-SQRT_2), odd_far),
                d[1].add(d[5]).fma(all(-2.5), d[3]),
            ]
        }
    }
}

/// `G`, of a filter's weights.
pub(super) struct Weights;

impl Line<TAPS, SIDE> for Weights {
    #[inline(always)]
    unsafe fn line<S: Simd>(g: [S; TAPS]) -> [S; SIDE] {
        // SAFETY: see above.
        unsafe {
            let even = mix(-2.0 / 3.0, g[0], -1.0 / 3.0, g[2]);
            let even_far = mix(1.0 / 6.0, g[0], 1.0 / 3.0, g[2]);
            let (odd, odd_far) = (2.0 / 3.0 * FRAC_1_SQRT_2, SQRT_2 / 6.0);
            [
                g[0],
                even.fma(all(-odd), g[1]),
                even.fma(all(odd), g[1]),
                even_far.fma(all(odd_far), g[1]),
                even_far.fma(all(-odd_far), g[1]),
                g[2],
            ]
        }
    }
}

/// A number and its square and cube: what polynomials take of a point.
pub(super) type Powers = [f32; 3];
const NEAR: Powers = [FRAC_1_SQRT_2, 0.5, 0.5 * FRAC_1_SQRT_2];
const FAR: Powers = [SQRT_2, 2.0, 2.0 * SQRT_2];

/// Four outputs of the products `m` at ±near and ±far, on top of what the first and the last have besides.
#[inline(always)]
pub(super) unsafe fn outputs<S: Simd>(near: Powers, far: Powers, first: S, m: [S; 4], last: S) -> [S; TILE] {
    // SAFETY: see above.
    unsafe {
        let (even, odd) = (m[0].add(m[1]), m[0].sub(m[1]));
        let (even_far, odd_far) = (m[2].add(m[3]), m[2].sub(m[3]));
        [
            first.add(even).add(even_far),
            mix(near[0], odd, far[0], odd_far),
            mix(near[1], even, far[1], even_far),
            last.fma(all(near[2]), odd).fma(all(far[2]), odd_far),
        ]
    }
}

/// The gradients of four outputs at ±near and ±far: what [`outputs`] is transposed.
#[inline(always)]
pub(super) unsafe fn gradients<S: Simd>(near: Powers, far: Powers, d: [S; TILE]) -> [S; 4] {
    // SAFETY: see above.
    unsafe {
        let (even, odd) = (d[0].fma(all(near[1]), d[2]), mix(near[0], d[1], near[2], d[3]));
        let (even_far, odd_far) = (d[0].fma(all(far[1]), d[2]), mix(far[0], d[1], far[2], d[3]));
        [even.add(odd), even.sub(odd), even_far.add(odd_far), even_far.sub(odd_far)]
    }
}

/// `Aᵀ`, of a tile's products.
pub(super) struct Outputs;

impl Line<WINDOW, TILE> for Outputs {
    #[inline(always)]
    unsafe fn line<S: Simd>(m: [S; WINDOW]) -> [S; TILE] {
        // SAFETY: see above.
        unsafe { outputs(NEAR, FAR, m[0], [m[1], m[2], m[3], m[4]], m[5]) }
    }
}

/// `A`, of the gradients of a tile's outputs.
pub(super) struct Gradients;

impl Line<TILE, WINDOW> for Gradients {
    #[inline(always)]
    unsafe fn line<S: Simd>(d: [S; TILE]) -> [S; WINDOW] {
        // SAFETY: see above.
        let p = unsafe { gradients(NEAR, FAR, d) };
        [d[0], p[0], p[1], p[2], p[3], d[3]]
    }
}

/// `Gᵀ`, of a filter's sums of products.
pub(super) struct Taps;

impl Line<SIDE, TAPS> for Taps {
    #[inline(always)]
    unsafe fn line<S: Simd>(u: [S; SIDE]) -> [S; TAPS] {
        // SAFETY: see above.
        unsafe {
            let (even, odd) = (u[1].add(u[2]), u[1].sub(u[2]));
            let (even_far, odd_far) = (u[3].add(u[4]), u[3].sub(u[4]));
            [
                u[0].fma(all(-2.0 / 3.0), even).fma(all(1.0 / 6.0), even_far),
                mix(-2.0 / 3.0 * FRAC_1_SQRT_2, odd, SQRT_2 / 6.0, odd_far),
                u[5].fma(all(-1.0 / 3.0), even).fma(all(1.0 / 3.0), even_far),
            ]
        }
    }
}

/// The columns of a square.
pub(super) trait Columns<S, const N: usize> {
    /// # Safety
    /// As [`Simd`]; `c < N`.
    unsafe fn column(&self, c: usize) -> [S; N];
}

impl<S: Simd, const N: usize> Columns<S, N> for [[S; N]; N] {
    #[inline(always)]
    unsafe fn column(&self, c: usize) -> [S; N] {
        self.map(|row| row[c])
    }
}

/// `n`, of which the compiler knows nothing. The 36 or 81 vectors of a square are more than there are registers: a loop over lines that stays a
/// loop keeps those of one line there, and its constants; laid out in full, the lines would be mixed, and registers spilled and refilled all the time.
#[inline(always)]
pub(super) fn rolled(n: usize) -> usize {
    std::hint::black_box(n)
}

/// A map of squares by one dimension's, half done: along the columns. [`Line::line`] of each row does the rest. `n` is `FROM`, [`rolled`]. The
/// result is the caller's, who keeps it for all squares: a new one would be cleared, and copied.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn columns<L: Line<FROM, TO>, S: Simd, const FROM: usize, const TO: usize>(
    square: &impl Columns<S, FROM>,
    n: usize,
    result: &mut [[S; FROM]; TO],
) {
    debug_assert_eq!(n, FROM);
    for c in 0..n {
        // SAFETY: handed through; `n` is the number of columns.
        unsafe {
            for (row, value) in result.iter_mut().zip(L::line(square.column(c))) {
                *row.get_unchecked_mut(c) = value;
            }
        }
    }
}

/// A map of squares by one dimension's.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn square<L: Line<FROM, TO>, S: Simd, const FROM: usize, const TO: usize>(
    square: [[S; FROM]; FROM],
) -> [[S; TO]; TO] {
    // SAFETY: handed through.
    unsafe {
        let (mut halfway, mut result) = ([[S::zero(); FROM]; TO], [[S::zero(); TO]; TO]);
        columns::<L, S, FROM, TO>(&square, FROM, &mut halfway);
        for (to, row) in result.iter_mut().zip(halfway) {
            *to = L::line(row);
        }
        result
    }
}

#[cfg(test)]
pub(super) mod testing {
    use crate::cpu::simd::{Portable, Simd};

    pub fn numbers<const N: usize>(seed: usize) -> [[f32; N]; N] {
        std::array::from_fn(|r| {
            std::array::from_fn(|c| ((seed + 31 * r + 17 * c) * 2_654_435_761 % 1009) as f32 / 504.5 - 1.0)
        })
    }

    pub fn vectors<const N: usize>(square: [[f32; N]; N]) -> [[Portable; N]; N] {
        // SAFETY: every machine has `Portable`.
        square.map(|row| row.map(|v| unsafe { Portable::splat(&raw const v) }))
    }

    pub fn first(vector: Portable) -> f32 {
        let mut value = 0.0;
        // SAFETY: one float is stored.
        unsafe { vector.store_first(&raw mut value, 1) };
        value
    }

    pub fn products<const N: usize>(a: [[Portable; N]; N], b: [[Portable; N]; N]) -> [[Portable; N]; N] {
        // SAFETY: every machine has `Portable`.
        std::array::from_fn(|r| std::array::from_fn(|c| unsafe { Portable::zero().fma(a[r][c], b[r][c]) }))
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{first, numbers, products, vectors};
    use super::*;

    #[test]
    fn products_at_points_give_the_correlation() {
        let (x, w) = (numbers::<WINDOW>(1), numbers::<TAPS>(2));
        // SAFETY: every machine has `Portable`.
        let y = unsafe {
            square::<Outputs, _, _, _>(products(
                square::<Weights, _, _, _>(vectors(w)),
                square::<Window, _, _, _>(vectors(x)),
            ))
        };
        for (r, c) in (0..TILE).flat_map(|r| (0..TILE).map(move |c| (r, c))) {
            let expected: f32 = (0..9).map(|t| x[r + t / 3][c + t % 3] * w[t / 3][t % 3]).sum();
            assert!((first(y[r][c]) - expected).abs() < 1e-5, "({r}, {c}): {} for {expected}", first(y[r][c]));
        }
    }

    #[test]
    fn products_at_points_give_the_weights_gradient() {
        let (x, dy) = (numbers::<WINDOW>(3), numbers::<TILE>(4));
        // SAFETY: every machine has `Portable`.
        let dw = unsafe {
            square::<Taps, _, _, _>(products(
                square::<Gradients, _, _, _>(vectors(dy)),
                square::<Window, _, _, _>(vectors(x)),
            ))
        };
        for (a, b) in (0..TAPS).flat_map(|a| (0..TAPS).map(move |b| (a, b))) {
            let expected: f32 = (0..16).map(|i| x[a + i / 4][b + i % 4] * dy[i / 4][i % 4]).sum();
            assert!((first(dw[a][b]) - expected).abs() < 1e-5, "({a}, {b}): {} for {expected}", first(dw[a][b]));
        }
    }
}
