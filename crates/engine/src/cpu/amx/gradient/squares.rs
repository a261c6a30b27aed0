//! What turning and weaving are made of: squares of numbers whose rows become columns, and pairs.

use super::super::super::cell::Cell;
use super::super::tiles::{DEPTH, PANEL};
use std::arch::x86_64::{
    __m128i, __m512i, _mm_loadu_si128, _mm512_castsi128_si512, _mm512_inserti32x4, _mm512_mask_blend_epi16,
    _mm512_slli_epi32, _mm512_srli_epi32, _mm512_storeu_si512, _mm512_unpackhi_epi16, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi16, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::ops::Range;

/// Turns `n` of 32 pixels, `step` values apart, to rows of 32 values `row` apart, one for each channel of some panels; zeros where no channel or
/// pixel is.
///
/// # Safety
/// The CPU must have the features; `E` is bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn turn_pixels<E: Cell>(
    (pixels, step, n): (&[E], usize, usize),
    c: usize,
    panels: Range<usize>,
    turned: &mut [E],
    row: usize,
) {
    for channel in (panels.start * PANEL..panels.end * PANEL).step_by(LANE) {
        let to = &mut turned[channel * row..][..(LANE - 1) * row + DEPTH];
        let to = to.as_mut_ptr().cast();
        if n == DEPTH && channel + LANE <= c {
            let from = &pixels[channel..][..(DEPTH - 1) * step + LANE];
            // SAFETY: `from` holds 8 values at each of 32 steps, `to` 32 values at each of 8 rows.
            unsafe { turn_lanes(from.as_ptr().cast(), step, to, row) };
            continue;
        }
        let (mut edge, channels) = ([E::default(); DEPTH * LANE], channel.min(c)..c.min(channel + LANE));
        for (pixel, to) in edge.chunks_exact_mut(LANE).enumerate().take(n) {
            to[..channels.len()].copy_from_slice(&pixels[pixel * step..][channels.clone()]);
        }
        // SAFETY: as above.
        unsafe { turn_lanes(edge.as_ptr().cast(), LANE, to, row) };
    }
}

/// Channels that are turned together: values of a 128-bit lane.
const LANE: usize = 8;

/// Transposes 32 pixels, `step` values apart, × 8 channels to 8 rows of 32 values: lane `l` of a vector takes pixels `8 l..8 l + 8`,
/// and all four lanes are transposed as 8 × 8 squares.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn turn_lanes(from: *const u16, step: usize, to: *mut u16, row: usize) {
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
