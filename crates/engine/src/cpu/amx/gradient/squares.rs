//! What turning and weaving are made of: squares of numbers whose rows become columns, and pairs.

use std::arch::x86_64::{
    __m128i, __m512i, _mm_loadu_si128, _mm512_castsi128_si512, _mm512_inserti32x4, _mm512_mask_blend_epi16,
    _mm512_slli_epi32, _mm512_srli_epi32, _mm512_storeu_si512, _mm512_unpackhi_epi16, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi16, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

/// Channels that are turned together: values of a 128-bit lane.
pub(super) const LANE: usize = 8;

/// Transposes 32 pixels, `step` values apart, × 8 channels to 8 rows of 32 values: lane `l` of a vector takes pixels `8 l..8 l + 8`,
/// and all four lanes are transposed as 8 × 8 squares.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn turn_lanes(from: *const u16, step: usize, to: *mut u16, row: usize) {
    // SAFETY: the caller vouches for the values at 32 steps.
    let lane = |pixel: usize| unsafe { _mm_loadu_si128(from.add(pixel * step).cast::<__m128i>()) };
    let mut v: [__m512i; LANE] = std::array::from_fn(|r| {
        let v = _mm512_castsi128_si512(lane(r));
        let v = _mm512_inserti32x4::<1>(v, lane(LANE + r));
        let v = _mm512_inserti32x4::<2>(v, lane(2 * LANE + r));
        _mm512_inserti32x4::<3>(v, lane(3 * LANE + r))
    });
    v = [
        _mm512_unpacklo_epi16(v[0], v[1]),
        _mm512_unpackhi_epi16(v[0], v[1]),
        _mm512_unpacklo_epi16(v[2], v[3]),
        _mm512_unpackhi_epi16(v[2], v[3]),
        _mm512_unpacklo_epi16(v[4], v[5]),
        _mm512_unpackhi_epi16(v[4], v[5]),
        _mm512_unpacklo_epi16(v[6], v[7]),
        _mm512_unpackhi_epi16(v[6], v[7]),
    ];
    v = [
        _mm512_unpacklo_epi32(v[0], v[2]),
        _mm512_unpackhi_epi32(v[0], v[2]),
        _mm512_unpacklo_epi32(v[1], v[3]),
        _mm512_unpackhi_epi32(v[1], v[3]),
        _mm512_unpacklo_epi32(v[4], v[6]),
        _mm512_unpackhi_epi32(v[4], v[6]),
        _mm512_unpacklo_epi32(v[5], v[7]),
        _mm512_unpackhi_epi32(v[5], v[7]),
    ];
    for pair in 0..LANE / 2 {
        // SAFETY: the caller vouches for 8 rows of 32 values.
        unsafe {
            let to = to.add(2 * pair * row);
            _mm512_storeu_si512(to.cast(), _mm512_unpacklo_epi64(v[pair], v[pair + LANE / 2]));
            _mm512_storeu_si512(to.add(row).cast(), _mm512_unpackhi_epi64(v[pair], v[pair + LANE / 2]));
        }
    }
}

/// Stores two positions' inputs as pairs, those of even inputs first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn store_pair(to: *mut __m512i, one: __m512i, other: __m512i) {
    const ODD: u32 = 0xAAAA_AAAA;
    // SAFETY: the caller vouches for two vectors.
    unsafe {
        _mm512_storeu_si512(to, _mm512_mask_blend_epi16(ODD, one, _mm512_slli_epi32::<16>(other)));
        _mm512_storeu_si512(to.add(1), _mm512_mask_blend_epi16(ODD, _mm512_srli_epi32::<16>(one), other));
    }
}
