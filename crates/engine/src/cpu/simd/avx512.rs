//! AVX-512 vectors, twice: with the instruction that multiplies pairs of bf16, and without.

use super::Simd;
use crate::element::Bf16;
use std::arch::x86_64::*;

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
    unsafe fn turn(from: *const f32, stride: usize, to: *mut f32, to_stride: usize, n: usize) {
        // SAFETY: see above.
        unsafe {
            let rows: [__m512; 16] = std::array::from_fn(|i| _mm512_loadu_ps(from.add(i * stride)));
            // Squares of 2 × 2, of 4 × 4 within quarters, then quarters of two and of four of those.
            let twos: [__m512; 16] = std::array::from_fn(|i| {
                let [a, b] = [rows[i / 2 * 2], rows[i / 2 * 2 + 1]];
                if i % 2 == 0 { _mm512_unpacklo_ps(a, b) } else { _mm512_unpackhi_ps(a, b) }
            });
            let fours: [__m512; 16] = std::array::from_fn(|i| {
                let [a, b] = [0, 2].map(|row| _mm512_castps_pd(twos[i / 4 * 4 + i % 4 / 2 + row]));
                _mm512_castpd_ps(if i % 2 == 0 { _mm512_unpacklo_pd(a, b) } else { _mm512_unpackhi_pd(a, b) })
            });
            let even = |a, b| _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
            let odd = |a, b| _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
            let halves: [[__m512; 2]; 8] = std::array::from_fn(|i| {
                let [a, b] = [fours[i / 4 * 8 + i % 4], fours[i / 4 * 8 + 4 + i % 4]];
                [even(a, b), odd(a, b)]
            });
            for j in 0..n {
                let [a, b] = [halves[j % 4], halves[4 + j % 4]].map(|half| half[j / 4 % 2]);
                _mm512_storeu_ps(to.add(j * to_stride), if j < 8 { even(a, b) } else { odd(a, b) });
            }
        }
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
    unsafe fn turn(from: *const f32, stride: usize, to: *mut f32, to_stride: usize, n: usize) {
        // SAFETY: see above.
        unsafe { Avx512::turn(from, stride, to, to_stride, n) };
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
