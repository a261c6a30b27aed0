//! What the vector kernels see of a feature map: 32-bit cells, each one f32 or, where one instruction multiplies such pairs, two neighbouring
//! bf16.
//!
//! A convolution's inner loop multiplies a broadcast cell of the source with a vector of cells of packed weights. Where no instruction
//! multiplies pairs, a bf16 source is widened as it is brought near.

use super::simd::{Level, Simd};
use crate::element::{Bf16, Element};

/// Numbers of `E` in a cell at a level.
pub(crate) fn per_cell<E: Cell>(level: Level) -> usize {
    if level.has_bf16() { E::PER_CELL } else { 1 }
}

/// The same of the vectors that run at a level.
pub(crate) const fn per_cell_of<E: Cell, S: Simd>() -> usize {
    if S::HAS_PAIRS { E::PER_CELL } else { 1 }
}

/// A number that the vector kernels read in cells.
///
/// # Safety
/// The methods marked so need what [`Simd`]'s need.
pub trait Cell: Element {
    /// Numbers that fill a cell.
    const PER_CELL: usize;

    /// Scratch floats as numbers.
    fn of_scratch(scratch: &mut [f32]) -> &mut [Self];

    /// `acc` plus the products of two vectors of cells.
    unsafe fn dot<S: Simd>(acc: S, a: S, b: S) -> S;

    /// The first `n` numbers as f32, zeros behind.
    unsafe fn load_first<S: Simd>(from: *const Self, n: usize) -> S;

    /// Stores the first `n` lanes.
    unsafe fn store_first<S: Simd>(values: S, to: *mut Self, n: usize);
}

impl Cell for f32 {
    const PER_CELL: usize = 1;

    fn of_scratch(scratch: &mut [f32]) -> &mut [f32] {
        scratch
    }
    #[inline(always)]
    unsafe fn dot<S: Simd>(acc: S, a: S, b: S) -> S {
        // SAFETY: the trait's contract, as in every method below.
        unsafe { acc.fma(a, b) }
    }
    #[inline(always)]
    unsafe fn load_first<S: Simd>(from: *const f32, n: usize) -> S {
        // SAFETY: see above.
        unsafe { S::load_first(from, n) }
    }
    #[inline(always)]
    unsafe fn store_first<S: Simd>(values: S, to: *mut f32, n: usize) {
        // SAFETY: see above.
        unsafe { values.store_first(to, n) }
    }
}

impl Cell for Bf16 {
    const PER_CELL: usize = 2;

    fn of_scratch(scratch: &mut [f32]) -> &mut [Bf16] {
        // SAFETY: twice as many numbers of half the size and alignment; any bits are valid.
        unsafe { std::slice::from_raw_parts_mut(scratch.as_mut_ptr().cast(), 2 * scratch.len()) }
    }
    #[inline(always)]
    unsafe fn dot<S: Simd>(acc: S, a: S, b: S) -> S {
        // SAFETY: the trait's contract, as in every method below.
        unsafe { acc.dot_pairs(a, b) }
    }
    #[inline(always)]
    unsafe fn load_first<S: Simd>(from: *const Bf16, n: usize) -> S {
        // SAFETY: see above.
        unsafe { S::widen_first(from, n) }
    }
    #[inline(always)]
    unsafe fn store_first<S: Simd>(values: S, to: *mut Bf16, n: usize) {
        // SAFETY: see above.
        unsafe { values.narrow_first(to, n) }
    }
}
