//! The linear maps of 3 × 3 convolutions of stride 2, on vectors of channels.
//!
//! With stride 2, every other input along a line meets the middle tap alone, and those between meet the two outer taps: two correlations of
//! stride 1, with one tap and with two. There is nothing to save in the first. The second is F(4, 2): five inputs give four outputs by products at
//! ±1/2, ±3/2 and infinity, 5 in place of 8. Together a window of nine inputs gives four outputs by nine products in place of
//! twelve; in two dimensions a 9 × 9 window gives 4 × 4 outputs by 81 products in place of 144.
//!
//! Backward-data mirrors it: five of the outputs' gradients give those of eight inputs, four of them by two taps and four by the middle one.
//!
//! The four products by the middle tap share one weight, so weights have six points along a side here, too: [`weight_point`](super::transform::weight_point).
//!
//! The points decide how rounding grows: at these, gradients by products of bf16 are off by half as much as with stride 1.
//!
//! Source: the maps follow from the points as in [`transform`](super::transform); the phases are those of a polyphase filter.

use super::transform::{Line, Powers, SIDE, TAPS, TILE, all, gradients, mix, outputs};
use crate::cpu::simd::Simd;

/// Inputs along a side of a tile's window, outputs' gradients along a side of backward-data's, inputs along a side of its results.
pub(super) const WINDOW: usize = 9;
pub(super) const NARROW: usize = 5;
pub(super) const WIDE: usize = 2 * TILE;
/// Products along a side: five at points, four by the middle tap.
pub(super) const PRODUCTS: usize = 9;

/// The points' distances from zero.
const NEAR: Powers = [0.5, 0.25, 0.125];
const FAR: Powers = [1.5, 2.25, 3.375];

/// Five neighbours of one phase at the points: `Bᵀ` of F(4, 2).
#[inline(always)]
unsafe fn at_points<S: Simd>(d: [S; 5]) -> [S; 5] {
    // SAFETY: the caller has the instructions, here and in all functions below.
    unsafe {
        let (even, odd) = (d[2].fma(all(-FAR[1]), d[0]), d[3].fma(all(-FAR[1]), d[1]));
        let (even_far, odd_far) = (d[2].fma(all(-NEAR[1]), d[0]), d[3].fma(all(-NEAR[1]), d[1]));
        [
            odd.fma(all(NEAR[0]), even),
            odd.fma(all(-NEAR[0]), even),
            odd_far.fma(all(FAR[0]), even_far),
            odd_far.fma(all(-FAR[0]), even_far),
            d[4].fma(all(-NEAR[1] - FAR[1]), d[2]).fma(all(NEAR[1] * FAR[1]), d[0]),
        ]
    }
}

/// Of a window of inputs: the forward pass's, and the weight gradient's.
pub(super) struct Window;

impl Line<WINDOW, PRODUCTS> for Window {
    #[inline(always)]
    unsafe fn line<S: Simd>(d: [S; WINDOW]) -> [S; PRODUCTS] {
        // SAFETY: see above.
        let p = unsafe { at_points([d[0], d[2], d[4], d[6], d[8]]) };
        [p[0], p[1], p[2], p[3], p[4], d[1], d[3], d[5], d[7]]
    }
}

/// Of a window of the outputs' gradients: backward-data's.
pub(super) struct NarrowWindow;

impl Line<NARROW, PRODUCTS> for NarrowWindow {
    #[inline(always)]
    unsafe fn line<S: Simd>(d: [S; NARROW]) -> [S; PRODUCTS] {
        // SAFETY: see above.
        let p = unsafe { at_points(d) };
        [p[0], p[1], p[2], p[3], p[4], d[0], d[1], d[2], d[3]]
    }
}

/// Of a filter's weights, as they are for the forward pass, turned round for backward-data: the outer taps' values at a point, divided by its
/// distances from the other points, ∓2 at ±1/2 and ±6 at ±3/2; and the middle tap.
pub(super) struct Weights;

impl Line<TAPS, SIDE> for Weights {
    #[inline(always)]
    unsafe fn line<S: Simd>(g: [S; TAPS]) -> [S; SIDE] {
        // SAFETY: see above.
        unsafe {
            [
                mix(-0.5, g[0], -0.25, g[2]),
                mix(0.5, g[0], -0.25, g[2]),
                mix(1.0 / 6.0, g[0], 0.25, g[2]),
                mix(-1.0 / 6.0, g[0], 0.25, g[2]),
                g[2],
                g[1],
            ]
        }
    }
}

/// Of a tile's products, to outputs.
pub(super) struct Outputs;

impl Line<PRODUCTS, TILE> for Outputs {
    #[inline(always)]
    unsafe fn line<S: Simd>(m: [S; PRODUCTS]) -> [S; TILE] {
        // SAFETY: see above.
        unsafe {
            let y = outputs(NEAR, FAR, S::zero(), [m[0], m[1], m[2], m[3]], m[4]);
            [y[0].add(m[5]), y[1].add(m[6]), y[2].add(m[7]), y[3].add(m[8])]
        }
    }
}

/// Of a tile's products, to the gradients of inputs.
pub(super) struct WideOutputs;

impl Line<PRODUCTS, WIDE> for WideOutputs {
    #[inline(always)]
    unsafe fn line<S: Simd>(m: [S; PRODUCTS]) -> [S; WIDE] {
        // SAFETY: see above.
        let y = unsafe { outputs(NEAR, FAR, S::zero(), [m[0], m[1], m[2], m[3]], m[4]) };
        [m[5], y[0], m[6], y[1], m[7], y[2], m[8], y[3]]
    }
}

/// Of the gradients of a tile's outputs: the weight gradient's.
pub(super) struct Gradients;

impl Line<TILE, PRODUCTS> for Gradients {
    #[inline(always)]
    unsafe fn line<S: Simd>(d: [S; TILE]) -> [S; PRODUCTS] {
        // SAFETY: see above.
        let p = unsafe { gradients(NEAR, FAR, d) };
        [p[0], p[1], p[2], p[3], d[3], d[0], d[1], d[2], d[3]]
    }
}

/// Of a filter's sums of products.
pub(super) struct Taps;

impl Line<SIDE, TAPS> for Taps {
    #[inline(always)]
    unsafe fn line<S: Simd>(u: [S; SIDE]) -> [S; TAPS] {
        // SAFETY: see above.
        unsafe {
            let (even, odd) = (u[0].add(u[1]), u[0].sub(u[1]));
            let (even_far, odd_far) = (u[2].add(u[3]), u[2].sub(u[3]));
            [mix(-0.5, odd, 1.0 / 6.0, odd_far), u[5], u[4].fma(all(-0.25), even).fma(all(0.25), even_far)]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::transform::testing::{first, numbers, products, vectors};
    use super::super::transform::{POINTS, products_with, square, weight_point};
    use super::*;
    use crate::cpu::simd::Portable;

    /// A weight for each product.
    fn spread(w: [[Portable; SIDE]; SIDE]) -> [[Portable; PRODUCTS]; PRODUCTS] {
        std::array::from_fn(|r| std::array::from_fn(|c| w.as_flattened()[weight_point(PRODUCTS, r * PRODUCTS + c)]))
    }

    #[test]
    fn products_and_points_of_weights_belong_to_one_another() {
        for side in [SIDE, PRODUCTS] {
            let mut all: Vec<usize> = (0..POINTS).flat_map(|point| products_with(side, point)).collect();
            assert!((0..POINTS).all(|point| products_with(side, point).all(|p| weight_point(side, p) == point)));
            all.sort_unstable();
            assert_eq!(all, (0..side * side).collect::<Vec<_>>());
        }
    }

    #[test]
    fn products_give_the_correlation() {
        let (x, w) = (numbers::<WINDOW>(1), numbers::<TAPS>(2));
        // SAFETY: every machine has `Portable`.
        let y = unsafe {
            let weights = spread(square::<Weights, _, _, _>(vectors(w)));
            square::<Outputs, _, _, _>(products(weights, square::<Window, _, _, _>(vectors(x))))
        };
        for (r, c) in (0..TILE).flat_map(|r| (0..TILE).map(move |c| (r, c))) {
            let expected: f32 = (0..9).map(|t| x[2 * r + t / 3][2 * c + t % 3] * w[t / 3][t % 3]).sum();
            assert!((first(y[r][c]) - expected).abs() < 1e-5, "({r}, {c}): {} for {expected}", first(y[r][c]));
        }
    }

    #[test]
    fn products_give_the_inputs_gradient() {
        let (dy, w) = (numbers::<NARROW>(5), numbers::<TAPS>(6));
        let turned: [[f32; TAPS]; TAPS] = std::array::from_fn(|a| std::array::from_fn(|b| w[2 - a][2 - b]));
        // SAFETY: every machine has `Portable`.
        let dx = unsafe {
            let weights = spread(square::<Weights, _, _, _>(vectors(turned)));
            square::<WideOutputs, _, _, _>(products(weights, square::<NarrowWindow, _, _, _>(vectors(dy))))
        };
        for (r, c) in (0..WIDE).flat_map(|r| (0..WIDE).map(move |c| (r, c))) {
            // Input `r` was tap `a` of output `o` where r = 2·o + a - 1.
            let meets = |at: usize, tap: usize| (at + 1).checked_sub(tap).filter(|o| o % 2 == 0).map(|o| o / 2);
            let expected: f32 =
                (0..9).filter_map(|t| Some(dy[meets(r, t / 3)?][meets(c, t % 3)?] * w[t / 3][t % 3])).sum();
            assert!((first(dx[r][c]) - expected).abs() < 1e-5, "({r}, {c}): {} for {expected}", first(dx[r][c]));
        }
    }

    #[test]
    fn products_give_the_weights_gradient() {
        let (x, dy) = (numbers::<WINDOW>(3), numbers::<TILE>(4));
        // SAFETY: every machine has `Portable`.
        let dw = unsafe {
            let all = products(square::<Gradients, _, _, _>(vectors(dy)), square::<Window, _, _, _>(vectors(x)));
            let mut sums = [[Portable::zero(); SIDE]; SIDE];
            for (p, &product) in all.as_flattened().iter().enumerate() {
                let sum = &mut sums.as_flattened_mut()[weight_point(PRODUCTS, p)];
                *sum = sum.add(product);
            }
            square::<Taps, _, _, _>(sums)
        };
        for (a, b) in (0..TAPS).flat_map(|a| (0..TAPS).map(move |b| (a, b))) {
            let expected: f32 = (0..16).map(|i| x[a + 2 * (i / 4)][b + 2 * (i % 4)] * dy[i / 4][i % 4]).sum();
            assert!((first(dw[a][b]) - expected).abs() < 1e-5, "({a}, {b}): {} for {expected}", first(dw[a][b]));
        }
    }
}
