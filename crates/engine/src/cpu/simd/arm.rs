//! NEON vectors, which every 64-bit ARM processor has: eight floats in a pair of registers.

use super::{Simd, some};
use crate::element::Bf16;
use std::arch::aarch64::*;

/// Two registers of four floats. Of 32 registers 24 hold 6 pixels × 2 vectors, four the weights and one the broadcast.
#[derive(Clone, Copy)]
pub(crate) struct Neon(float32x4_t, float32x4_t);

impl Neon {
    /// The result of `f` for both registers.
    #[inline(always)]
    fn map(self, f: impl Fn(float32x4_t) -> float32x4_t) -> Self {
        Self(f(self.0), f(self.1))
    }
    /// The result of `f` for both registers of two vectors.
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Self {
        Self(f(self.0, other.0), f(self.1, other.1))
    }
}

/// Where `mask` is set, the value, and zero elsewhere.
#[inline(always)]
unsafe fn keep(value: float32x4_t, mask: uint32x4_t) -> float32x4_t {
    // SAFETY: every processor of this kind has the instructions, here and below.
    unsafe { vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(value), mask)) }
}

/// Rounds to nearest, ties to even, as `Bf16::of`; not-a-number keeps its upper half and is made quiet.
#[inline(always)]
unsafe fn narrow(value: float32x4_t) -> uint16x4_t {
    // SAFETY: see above.
    unsafe {
        let bits = vreinterpretq_u32_f32(value);
        let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let rounded = vaddq_u32(bits, vaddq_u32(vdupq_n_u32(0x7FFF), odd));
        let quiet = vorrq_u32(bits, vdupq_n_u32(0x40_0000));
        vshrn_n_u32::<16>(vbslq_u32(vceqq_f32(value, value), rounded, quiet))
    }
}

impl Simd for Neon {
    const LANES: usize = 8;
    const GROUPS: usize = 3;
    const GROUP: usize = 2;
    const VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the trait's contract, as in every method below.
        let zero = unsafe { vdupq_n_f32(0.0) };
        Self(zero, zero)
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: see above.
        let value = unsafe { vdupq_n_f32(from.read_unaligned()) };
        Self(value, value)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above.
        unsafe { Self(vld1q_f32(from), vld1q_f32(from.add(4))) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self {
        // SAFETY: see above; eight numbers fit a vector.
        unsafe { if n == 8 { Self::load(from) } else { Self::load(some(from, n).as_ptr()) } }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, n: usize) {
        let store = |to: *mut f32| {
            // SAFETY: eight numbers, below.
            unsafe {
                vst1q_f32(to, self.0);
                vst1q_f32(to.add(4), self.1);
            }
        };
        if n == 8 {
            return store(to);
        }
        let mut numbers = [0.0; 8];
        store(numbers.as_mut_ptr());
        // SAFETY: see above.
        unsafe { std::ptr::copy_nonoverlapping(numbers.as_ptr(), to, n) };
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        self.zip(other, |a, b| unsafe { vaddq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see above.
        self.zip(other, |a, b| unsafe { vsubq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        // SAFETY: see above. The maximum with not-a-number is not a number.
        self.map(|a| unsafe { vmaxq_f32(a, vdupq_n_f32(0.0)) })
    }
    #[inline(always)]
    unsafe fn where_positive(self, gate: Self) -> Self {
        // SAFETY: see above.
        self.zip(gate, |a, gate| unsafe { keep(a, vcgtzq_f32(gate)) })
    }
    #[inline(always)]
    unsafe fn max_or_nan(self, other: Self) -> Self {
        // SAFETY: see above.
        self.zip(other, |a, b| unsafe { vmaxq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn split_by_equal(self, a: Self, b: Self) -> (Self, Self) {
        // SAFETY: see above. All bits set or none, as a number that is moved about only.
        let equal = a.zip(b, |a, b| unsafe { vreinterpretq_f32_u32(vceqq_f32(a, b)) });
        // SAFETY: see above.
        let same = self.zip(equal, |v, equal| unsafe { keep(v, vreinterpretq_u32_f32(equal)) });
        // SAFETY: see above.
        let other = self.zip(equal, |v, equal| unsafe { keep(v, vmvnq_u32(vreinterpretq_u32_f32(equal))) });
        (same, other)
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(vfmaq_f32(self.0, a.0, b.0), vfmaq_f32(self.1, a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn paired(self, second: Self) -> Self {
        // SAFETY: see above.
        self.zip(second, |a, b| unsafe {
            let first = vshrq_n_u32::<16>(vreinterpretq_u32_f32(a));
            vreinterpretq_f32_u32(vorrq_u32(first, vreinterpretq_u32_f32(b)))
        })
    }
    #[inline(always)]
    unsafe fn split(self) -> [Self; 2] {
        // SAFETY: see above.
        let first = self.map(|a| unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_f32(a))) });
        // SAFETY: see above.
        let second = self.map(|a| unsafe { keep(a, vdupq_n_u32(0xFFFF_0000)) });
        [first, second]
    }
    #[inline(always)]
    unsafe fn widen_first(from: *const Bf16, n: usize) -> Self {
        let numbers;
        // SAFETY: see above.
        unsafe {
            let from = if n == 8 {
                from
            } else {
                numbers = some(from, n);
                numbers.as_ptr()
            };
            let wide = |at| vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.add(at).cast())));
            Self(wide(0), wide(4))
        }
    }
    #[inline(always)]
    unsafe fn narrow_first(self, to: *mut Bf16, n: usize) {
        // SAFETY: see above.
        unsafe {
            let narrow = vcombine_u16(narrow(self.0), narrow(self.1));
            if n == 8 {
                vst1q_u16(to.cast(), narrow);
            } else {
                let mut numbers = [Bf16(0); 8];
                vst1q_u16(numbers.as_mut_ptr().cast(), narrow);
                std::ptr::copy_nonoverlapping(numbers.as_ptr(), to, n);
            }
        }
    }
}
