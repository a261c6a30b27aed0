//! ResNet's maximum over 3×3 pixels with stride 2 and padding 1.

use super::blocks::{Block, for_blocks, load, store};
use super::cell::Cell;
use super::simd::{Simd, kernel};
use crate::types::Dims;

kernel! {
    /// The maximum of one image.
    ///
    /// # Safety
    /// `level` must be supported by the CPU.
    pub(crate) unsafe fn max_pool(x: &[E], from: Dims, y: &mut [E], to: Dims) = maxima
}

kernel! {
    /// Its gradient, added to `dx`: goes to the first maximal element in row order.
    ///
    /// # Safety
    /// `level` must be supported by the CPU.
    pub(crate) unsafe fn max_pool_backward(x: &[E], from: Dims, y: &[E], dy: &[E], to: Dims, dx: &mut [E]) = sources
}

/// The window around output position `o` on an axis of `size`.
fn window(o: usize, size: usize) -> std::ops::Range<usize> {
    (2 * o).saturating_sub(1)..(2 * o + 2).min(size)
}

#[inline(always)]
unsafe fn maxima<E: Cell, S: Simd>(x: &[E], from: Dims, y: &mut [E], to: Dims) {
    assert!(x.len() == from.len() && y.len() == to.len() && from.c == to.c);
    for pixel in 0..to.pixels() {
        // SAFETY: the caller's promise; windows lie in the image.
        for_blocks!(S, to.c, |block, V| unsafe { maximum::<E, S, V>(x, from, y, to, pixel, block) });
    }
}

#[inline(always)]
unsafe fn maximum<E: Cell, S: Simd, const V: usize>(
    x: &[E],
    from: Dims,
    y: &mut [E],
    to: Dims,
    pixel: usize,
    block: Block,
) {
    // SAFETY: handed through.
    unsafe {
        let mut best = [S::splat(&f32::NEG_INFINITY); V];
        for row in window(pixel / to.w, from.h) {
            for col in window(pixel % to.w, from.w) {
                let x = load::<E, S, V>(x.as_ptr().add((row * from.w + col) * from.c), block);
                for v in 0..V {
                    best[v] = best[v].max_or_nan(x[v]);
                }
            }
        }
        store::<E, S, V>(best, y.as_mut_ptr().add(pixel * to.c), block);
    }
}

#[inline(always)]
unsafe fn sources<E: Cell, S: Simd>(x: &[E], from: Dims, y: &[E], dy: &[E], to: Dims, dx: &mut [E]) {
    assert!(x.len() == from.len() && dx.len() == x.len() && from.c == to.c);
    assert!(y.len() == to.len() && dy.len() == y.len());
    for pixel in 0..to.pixels() {
        // SAFETY: the caller's promise; windows lie in the image.
        for_blocks!(S, to.c, |block, V| unsafe { source::<E, S, V>(x, from, y, dy, to, dx, pixel, block) });
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn source<E: Cell, S: Simd, const V: usize>(
    x: &[E],
    from: Dims,
    y: &[E],
    dy: &[E],
    to: Dims,
    dx: &mut [E],
    pixel: usize,
    block: Block,
) {
    // SAFETY: handed through.
    unsafe {
        let y = load::<E, S, V>(y.as_ptr().add(pixel * to.c), block);
        // What has not found its source yet.
        let mut left = load::<E, S, V>(dy.as_ptr().add(pixel * to.c), block);
        for row in window(pixel / to.w, from.h) {
            for col in window(pixel % to.w, from.w) {
                let at = (row * from.w + col) * from.c;
                let x = load::<E, S, V>(x.as_ptr().add(at), block);
                let mut sum = load::<E, S, V>(dx.as_ptr().add(at), block);
                for v in 0..V {
                    let (hit, miss) = left[v].split_by_equal(x[v], y[v]);
                    (sum[v], left[v]) = (sum[v].add(hit), miss);
                }
                store::<E, S, V>(sum, dx.as_mut_ptr().add(at), block);
            }
        }
    }
}
