//! Eight floats without intrinsics: what every machine can run, and what Miri can check.

use super::Simd;
use crate::element::{Bf16, Element};
use crate::scalar::relu;

/// Eight floats that the compiler vectorises for the target's baseline.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 8]);

impl Simd for Portable {
    const LANES: usize = 8;
    const GROUPS: usize = 2;
    const GROUP: usize = 2;
    const VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 8])
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: the trait's contract, as in every method below.
        Self([unsafe { from.read_unaligned() }; 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self {
        // SAFETY: see above; floats behind the first `n` are not read.
        Self(std::array::from_fn(|i| if i < n { unsafe { *from.add(i) } } else { 0.0 }))
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, n: usize) {
        for i in 0..n {
            // SAFETY: see above.
            unsafe { *to.add(i) = self.0[i] }
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] - other.0[i]))
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        Self(self.0.map(relu))
    }
    #[inline(always)]
    unsafe fn where_positive(self, gate: Self) -> Self {
        Self(std::array::from_fn(|i| if gate.0[i] > 0.0 { self.0[i] } else { 0.0 }))
    }
    #[inline(always)]
    unsafe fn max_or_nan(self, other: Self) -> Self {
        let max = |a: f32, b: f32| if b > a || b.is_nan() { b } else { a };
        Self(std::array::from_fn(|i| max(self.0[i], other.0[i])))
    }
    #[inline(always)]
    unsafe fn split_by_equal(self, a: Self, b: Self) -> (Self, Self) {
        let pick =
            |equal: bool| Self(std::array::from_fn(|i| if (a.0[i] == b.0[i]) == equal { self.0[i] } else { 0.0 }));
        (pick(true), pick(false))
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
    }
    #[inline(always)]
    unsafe fn paired(self, second: Self) -> Self {
        Self(std::array::from_fn(|i| f32::from_bits(self.0[i].to_bits() >> 16 | second.0[i].to_bits())))
    }
    #[inline(always)]
    unsafe fn split(self) -> [Self; 2] {
        let bits = self.0.map(f32::to_bits);
        [Self(bits.map(|bits| f32::from_bits(bits << 16))), Self(bits.map(|bits| f32::from_bits(bits & 0xFFFF_0000)))]
    }
    #[inline(always)]
    unsafe fn widen_first(from: *const Bf16, n: usize) -> Self {
        // SAFETY: see above; numbers behind the first `n` are not read.
        Self(std::array::from_fn(|i| if i < n { unsafe { (*from.add(i)).get() } } else { 0.0 }))
    }
    #[inline(always)]
    unsafe fn narrow_first(self, to: *mut Bf16, n: usize) {
        for i in 0..n {
            // SAFETY: see above.
            unsafe { *to.add(i) = Bf16::of(self.0[i]) }
        }
    }
}
