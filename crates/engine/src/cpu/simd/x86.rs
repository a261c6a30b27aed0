//! AVX2 and AVX-512 vectors. AVX-512 comes twice: with the instruction that multiplies pairs of bf16, and without.

use super::{Simd, some};
use crate::element::Bf16;
use std::arch::x86_64::*;

/// AVX2: 16 registers hold 6 pixels × 2 vectors, two weights and one broadcast.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256);

/// Sliding window of lane masks: `n` ones, then zeros, start at `8 - n`.
static AVX2_MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

impl Avx2 {
    #[inline(always)]
    unsafe fn mask(n: usize) -> __m256i {
        // SAFETY: `8 - n .. 16 - n` lies in the table for `n <= 8`; the caller has AVX2.
        unsafe { _mm256_loadu_si256(AVX2_MASKS.as_ptr().add(8 - n).cast()) }
    }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    const GROUPS: usize = 3;
    const GROUP: usize = 2;
    const VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the trait's contract, as in every method below.
        Self(unsafe { _mm256_setzero_ps() })
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_set1_ps(from.read_unaligned()) })
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self {
        // SAFETY: see above; masked lanes are not read. Whole vectors need no mask, which is slow on some processors.
        Self(unsafe { if n == 8 { _mm256_loadu_ps(from) } else { _mm256_maskload_ps(from, Self::mask(n)) } })
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, n: usize) {
        // SAFETY: see above; masked lanes are not written.
        unsafe { if n == 8 { _mm256_storeu_ps(to, self.0) } else { _mm256_maskstore_ps(to, Self::mask(n), self.0) } }
    }
    #[inline(always)]
    unsafe fn stream(self, to: *mut f32) {
        // SAFETY: see above. (Miri lacks the instruction; both want the same alignment.)
        unsafe { if cfg!(miri) { _mm256_store_ps(to, self.0) } else { _mm256_stream_ps(to, self.0) } }
    }
    #[inline(always)]
    unsafe fn fence() {
        // SAFETY: orders stores, and touches nothing. (Miri lacks it.)
        unsafe {
            if !cfg!(miri) {
                _mm_sfence();
            }
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        // SAFETY: see above. Of a number and not-a-number, the second operand is the maximum.
        Self(unsafe { _mm256_max_ps(_mm256_setzero_ps(), self.0) })
    }
    #[inline(always)]
    unsafe fn where_positive(self, gate: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_and_ps(self.0, _mm256_cmp_ps(gate.0, _mm256_setzero_ps(), _CMP_GT_OQ)) })
    }
    #[inline(always)]
    unsafe fn max_or_nan(self, other: Self) -> Self {
        // SAFETY: see above. The instruction takes its second operand if either is not-a-number.
        unsafe {
            let larger = _mm256_max_ps(self.0, other.0);
            Self(_mm256_blendv_ps(larger, self.0, _mm256_cmp_ps(self.0, self.0, _CMP_UNORD_Q)))
        }
    }
    #[inline(always)]
    unsafe fn split_by_equal(self, a: Self, b: Self) -> (Self, Self) {
        // SAFETY: see above.
        unsafe {
            let equal = _mm256_cmp_ps(a.0, b.0, _CMP_EQ_OQ);
            (Self(_mm256_and_ps(equal, self.0)), Self(_mm256_andnot_ps(equal, self.0)))
        }
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_fmadd_ps(a.0, b.0, self.0) })
    }
    #[inline(always)]
    unsafe fn paired(self, second: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            let first = _mm256_srli_epi32::<16>(_mm256_castps_si256(self.0));
            Self(_mm256_castsi256_ps(_mm256_or_si256(first, _mm256_castps_si256(second.0))))
        }
    }
    #[inline(always)]
    unsafe fn split(self) -> [Self; 2] {
        // SAFETY: see above.
        unsafe {
            let bits = _mm256_castps_si256(self.0);
            let second = _mm256_and_si256(bits, _mm256_set1_epi32(0xFFFF_0000_u32 as i32));
            [_mm256_slli_epi32::<16>(bits), second].map(|bits| Self(_mm256_castsi256_ps(bits)))
        }
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
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16)))
        }
    }
    #[inline(always)]
    unsafe fn narrow_first(self, to: *mut Bf16, n: usize) {
        // SAFETY: see above.
        unsafe {
            // To nearest, ties to even, as `Bf16::of`; not-a-number keeps its upper half and is made quiet.
            let bits = _mm256_castps_si256(self.0);
            let upper = _mm256_srli_epi32(bits, 16);
            let round = _mm256_add_epi32(_mm256_set1_epi32(0x7FFF), _mm256_and_si256(upper, _mm256_set1_epi32(1)));
            let rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, round), 16);
            let quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
            let is_nan = _mm256_castps_si256(_mm256_cmp_ps(self.0, self.0, _CMP_UNORD_Q));
            let value = _mm256_blendv_epi8(rounded, quiet, is_nan);
            let narrow = _mm_packus_epi32(_mm256_castsi256_si128(value), _mm256_extracti128_si256::<1>(value));
            if n == 8 {
                _mm_storeu_si128(to.cast(), narrow);
            } else {
                let mut numbers = [Bf16(0); 8];
                _mm_storeu_si128(numbers.as_mut_ptr().cast(), narrow);
                std::ptr::copy_nonoverlapping(numbers.as_ptr(), to, n);
            }
        }
    }
}

/// AVX-512: 32 registers hold 12 pixels × 2 vectors, two weights and one broadcast.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

/// The first `n` of 16 lanes.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as u16
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    const GROUPS: usize = 3;
    const GROUP: usize = 4;
    const VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the trait's contract, as in every method below.
        Self(unsafe { _mm512_setzero_ps() })
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_set1_ps(from.read_unaligned()) })
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self {
        // SAFETY: see above; masked lanes are not read.
        Self(unsafe { _mm512_maskz_loadu_ps(first(n), from) })
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, n: usize) {
        // SAFETY: see above; masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(to, first(n), self.0) }
    }
    #[inline(always)]
    unsafe fn stream(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe { _mm512_stream_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn fence() {
        // SAFETY: orders stores, and touches nothing.
        unsafe { _mm_sfence() }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        // SAFETY: see above. Of a number and not-a-number, the second operand is the maximum.
        Self(unsafe { _mm512_max_ps(_mm512_setzero_ps(), self.0) })
    }
    #[inline(always)]
    unsafe fn where_positive(self, gate: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(gate.0, _mm512_setzero_ps(), _CMP_GT_OQ), self.0) })
    }
    #[inline(always)]
    unsafe fn max_or_nan(self, other: Self) -> Self {
        // SAFETY: see above. The instruction takes its second operand if either is not-a-number.
        unsafe {
            let larger = _mm512_max_ps(self.0, other.0);
            Self(_mm512_mask_mov_ps(larger, _mm512_cmp_ps_mask(self.0, self.0, _CMP_UNORD_Q), self.0))
        }
    }
    #[inline(always)]
    unsafe fn split_by_equal(self, a: Self, b: Self) -> (Self, Self) {
        // SAFETY: see above.
        unsafe {
            let equal = _mm512_cmp_ps_mask(a.0, b.0, _CMP_EQ_OQ);
            (Self(_mm512_maskz_mov_ps(equal, self.0)), Self(_mm512_maskz_mov_ps(!equal, self.0)))
        }
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
    }
    #[inline(always)]
    unsafe fn paired(self, second: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            let first = _mm512_srli_epi32::<16>(_mm512_castps_si512(self.0));
            Self(_mm512_castsi512_ps(_mm512_or_si512(first, _mm512_castps_si512(second.0))))
        }
    }
    #[inline(always)]
    unsafe fn split(self) -> [Self; 2] {
        // SAFETY: see above.
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let second = _mm512_and_si512(bits, _mm512_set1_epi32(0xFFFF_0000_u32 as i32));
            [_mm512_slli_epi32::<16>(bits), second].map(|bits| Self(_mm512_castsi512_ps(bits)))
        }
    }
    #[inline(always)]
    unsafe fn widen_first(from: *const Bf16, n: usize) -> Self {
        // Each number goes to the upper half of its lane, and one of the zeros behind them to the lower: one instruction.
        const ZERO: u16 = 31;
        const TURNS: [u16; 32] = {
            let mut turns = [0; 32];
            let mut i = 0;
            while i < 32 {
                turns[i] = if i % 2 == 1 { i as u16 / 2 } else { ZERO };
                i += 1;
            }
            turns
        };
        // SAFETY: see above; masked lanes are not read.
        unsafe {
            let narrow = match n {
                16 => _mm256_loadu_si256(from.cast()),
                _ => _mm256_maskz_loadu_epi16(first(n), from.cast()),
            };
            let turns = _mm512_loadu_si512(TURNS.as_ptr().cast());
            Self(_mm512_castsi512_ps(_mm512_permutexvar_epi16(turns, _mm512_zextsi256_si512(narrow))))
        }
    }
    #[inline(always)]
    unsafe fn narrow_first(self, to: *mut Bf16, n: usize) {
        // SAFETY: see above; masked lanes are not written.
        unsafe {
            // To nearest, ties to even, as `Bf16::of`; not-a-number keeps its upper half and is made quiet.
            let bits = _mm512_castps_si512(self.0);
            let upper = _mm512_srli_epi32(bits, 16);
            let odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
            let round = _mm512_add_epi32(_mm512_set1_epi32(0x7FFF), odd);
            let rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, round), 16);
            let is_nan = _mm512_cmp_ps_mask(self.0, self.0, _CMP_UNORD_Q);
            let value = _mm512_mask_or_epi32(rounded, is_nan, upper, _mm512_set1_epi32(0x40));
            _mm256_mask_storeu_epi16(to.cast(), first(n), _mm512_cvtepi32_epi16(value));
        }
    }
}

/// Places of numbers that alternate: the first ones, and those from `second` on.
const fn alternating(second: usize) -> [u16; 32] {
    let mut places = [0; 32];
    let mut i = 0;
    while i < 32 {
        places[i] = (i / 2 + i % 2 * second) as u16;
        i += 1;
    }
    places
}

/// AVX-512 with bf16: as [`Avx512`], with products of pairs and rounding as one instruction. Subnormal numbers count as zero, as these have it.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16(Avx512);

impl Simd for Avx512Bf16 {
    const LANES: usize = Avx512::LANES;
    const GROUPS: usize = Avx512::GROUPS;
    const GROUP: usize = Avx512::GROUP;
    const VECTORS: usize = Avx512::VECTORS;
    const HAS_PAIRS: bool = true;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the trait's contract, as in every method below.
        Self(unsafe { Avx512::zero() })
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { Avx512::splat(from) })
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { Avx512::load(from) })
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self {
        // SAFETY: see above.
        Self(unsafe { Avx512::load_first(from, n) })
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, n: usize) {
        // SAFETY: see above.
        unsafe { self.0.store_first(to, n) }
    }
    #[inline(always)]
    unsafe fn stream(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe { self.0.stream(to) }
    }
    #[inline(always)]
    unsafe fn fence() {
        // SAFETY: orders stores, and touches nothing.
        unsafe { _mm_sfence() }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { self.0.add(other.0) })
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { self.0.sub(other.0) })
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { self.0.relu() })
    }
    #[inline(always)]
    unsafe fn where_positive(self, gate: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { self.0.where_positive(gate.0) })
    }
    #[inline(always)]
    unsafe fn max_or_nan(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { self.0.max_or_nan(other.0) })
    }
    #[inline(always)]
    unsafe fn split_by_equal(self, a: Self, b: Self) -> (Self, Self) {
        // SAFETY: see above.
        let (equal, other) = unsafe { self.0.split_by_equal(a.0, b.0) };
        (Self(equal), Self(other))
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { self.0.fma(a.0, b.0) })
    }
    #[inline(always)]
    unsafe fn dot_pairs(self, a: Self, b: Self) -> Self {
        // SAFETY: see above; both types are the same 64 bytes.
        unsafe {
            let (a, b) =
                (std::mem::transmute::<__m512, __m512bh>(a.0.0), std::mem::transmute::<__m512, __m512bh>(b.0.0));
            Self(Avx512(_mm512_dpbf16_ps(self.0.0, a, b)))
        }
    }
    #[inline(always)]
    unsafe fn pairs(low: *const Bf16, high: *const Bf16, n: usize) -> Self {
        const TURNS: [u16; 32] = alternating(32);
        // SAFETY: see above; masked lanes are not read.
        unsafe {
            let (low, high) = match n {
                16 => (_mm256_loadu_si256(low.cast()), _mm256_loadu_si256(high.cast())),
                _ => (_mm256_maskz_loadu_epi16(first(n), low.cast()), _mm256_maskz_loadu_epi16(first(n), high.cast())),
            };
            let turns = _mm512_loadu_si512(TURNS.as_ptr().cast());
            let (low, high) = (_mm512_castsi256_si512(low), _mm512_castsi256_si512(high));
            Self(Avx512(_mm512_castsi512_ps(_mm512_permutex2var_epi16(low, turns, high))))
        }
    }
    #[inline(always)]
    unsafe fn round_pairs(low: Self, high: Self) -> Self {
        const TURNS: [u16; 32] = alternating(16);
        // SAFETY: see above; both types are the same 64 bytes.
        unsafe {
            let rounded = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high.0.0, low.0.0));
            let turns = _mm512_loadu_si512(TURNS.as_ptr().cast());
            Self(Avx512(_mm512_castsi512_ps(_mm512_permutexvar_epi16(turns, rounded))))
        }
    }
    #[inline(always)]
    unsafe fn paired(self, second: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { self.0.paired(second.0) })
    }
    #[inline(always)]
    unsafe fn split(self) -> [Self; 2] {
        // SAFETY: see above.
        unsafe { self.0.split() }.map(Self)
    }
    #[inline(always)]
    unsafe fn widen_first(from: *const Bf16, n: usize) -> Self {
        // SAFETY: see above.
        Self(unsafe { Avx512::widen_first(from, n) })
    }
    #[inline(always)]
    unsafe fn narrow_first(self, to: *mut Bf16, n: usize) {
        // SAFETY: see above; masked lanes are not written.
        unsafe {
            let rounded = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(self.0.0));
            _mm256_mask_storeu_epi16(to.cast(), first(n), rounded);
        }
    }
}
