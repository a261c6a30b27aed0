//! AVX2 vectors.

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
    unsafe fn turn(from: *const f32, stride: usize, to: *mut f32, to_stride: usize, n: usize) {
        // SAFETY: see above.
        unsafe {
            let rows: [__m256; 8] = std::array::from_fn(|i| _mm256_loadu_ps(from.add(i * stride)));
            // Squares of 2 × 2, of 4 × 4 within halves, then the halves.
            let twos: [__m256; 8] = std::array::from_fn(|i| {
                let [a, b] = [rows[i / 2 * 2], rows[i / 2 * 2 + 1]];
                if i % 2 == 0 { _mm256_unpacklo_ps(a, b) } else { _mm256_unpackhi_ps(a, b) }
            });
            let fours: [__m256d; 8] = std::array::from_fn(|i| {
                let [a, b] = [0, 2].map(|row| _mm256_castps_pd(twos[i / 4 * 4 + i % 4 / 2 + row]));
                if i % 2 == 0 { _mm256_unpacklo_pd(a, b) } else { _mm256_unpackhi_pd(a, b) }
            });
            let columns: [__m256d; 8] = std::array::from_fn(|i| {
                let [a, b] = [fours[i % 4], fours[4 + i % 4]];
                if i < 4 { _mm256_permute2f128_pd::<0x20>(a, b) } else { _mm256_permute2f128_pd::<0x31>(a, b) }
            });
            for (j, &column) in columns.iter().enumerate().take(n) {
                _mm256_storeu_ps(to.add(j * to_stride), _mm256_castpd_ps(column));
            }
        }
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
