//! What turning and weaving are made of: squares of numbers whose rows become columns, and pairs.

use super::super::super::cell::Cell;
use super::super::tiles::{DEPTH, PANEL};
use std::arch::x86_64::{
    __m512i, _MM_HINT_T1, _mm_prefetch, _mm512_mask_blend_epi16, _mm512_maskz_loadu_epi16, _mm512_setzero_si512,
    _mm512_shuffle_i32x4, _mm512_slli_epi32, _mm512_srli_epi32, _mm512_storeu_si512, _mm512_unpackhi_epi16,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi16, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::ops::Range;

/// Pixels to be turned: where the first of them begins, values from one to the next, how many of 32 there are, and values from a pixel to the one
/// that is asked for meanwhile, if there are 32.
pub(super) struct Pixels<'a, E> {
    pub values: &'a [E],
    pub step: usize,
    pub n: usize,
    pub ahead: usize,
}

/// Turns pixels to rows of 32 values `row` apart, one for each of `c` channels of some panels; zeros where no channel or pixel is.
///
/// # Safety
/// The CPU must have the features; `E` is bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn turn_pixels<E: Cell>(
    pixels: &Pixels<E>,
    c: usize,
    panels: Range<usize>,
    turned: &mut [E],
    row: usize,
) {
    let &Pixels { values, step, n, ahead } = pixels;
    for channel in panels.map(|panel| panel * PANEL) {
        let to = &mut turned[channel * row..][..(PANEL - 1) * row + DEPTH];
        let to = to.as_mut_ptr().cast();
        let channels = PANEL.min(c - channel);
        let kept = u32::MAX >> (PANEL - channels);
        if n == DEPTH {
            let from = &values[channel..][..(DEPTH - 1) * step + channels];
            // SAFETY: `from` holds the kept values at each of 32 steps, `to` 32 values at each of 32 rows.
            unsafe { turn_square(from.as_ptr().cast(), [step, ahead], kept, to, row) };
            continue;
        }
        let mut edge = [E::default(); DEPTH * PANEL];
        for (pixel, to) in edge.chunks_exact_mut(PANEL).enumerate().take(n) {
            to[..channels].copy_from_slice(&values[pixel * step + channel..][..channels]);
        }
        // SAFETY: as above.
        unsafe { turn_square(edge.as_ptr().cast(), [PANEL, 0], u32::MAX, to, row) };
    }
}

/// Values of a 128-bit lane, in which squares are turned.
const LANE: usize = 8;

/// Transposes 32 pixels, `step` values apart, × 32 channels, those that are kept, to 32 rows of 32 values; asks for pixels `ahead` of them.
///
/// Lane `l` of a vector takes pixels `8 l..8 l + 8`, and all four lanes are transposed as 8 × 8 squares.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn turn_square(from: *const u16, [step, ahead]: [usize; 2], kept: u32, to: *mut u16, row: usize) {
    // By groups of 8 channels.
    let mut lanes = [[_mm512_setzero_si512(); LANE]; 4];
    for r in 0..LANE {
        let mut v = [_mm512_setzero_si512(); 4];
        for (l, v) in v.iter_mut().enumerate() {
            let pixel = from.wrapping_add((l * LANE + r) * step);
            // SAFETY: the caller vouches for the kept values at 32 steps; any address may be asked for.
            unsafe {
                _mm_prefetch::<_MM_HINT_T1>(pixel.wrapping_add(ahead).cast());
                *v = _mm512_maskz_loadu_epi16(kept, pixel.cast());
            }
        }
        // Four vectors of four lanes, transposed.
        let low = [_mm512_shuffle_i32x4::<0x44>(v[0], v[1]), _mm512_shuffle_i32x4::<0x44>(v[2], v[3])];
        let high = [_mm512_shuffle_i32x4::<0xEE>(v[0], v[1]), _mm512_shuffle_i32x4::<0xEE>(v[2], v[3])];
        lanes[0][r] = _mm512_shuffle_i32x4::<0x88>(low[0], low[1]);
        lanes[1][r] = _mm512_shuffle_i32x4::<0xDD>(low[0], low[1]);
        lanes[2][r] = _mm512_shuffle_i32x4::<0x88>(high[0], high[1]);
        lanes[3][r] = _mm512_shuffle_i32x4::<0xDD>(high[0], high[1]);
    }
    for (group, v) in lanes.into_iter().enumerate() {
        // SAFETY: the caller vouches for 32 rows of 32 values.
        unsafe { turn_lanes(v, to.add(group * LANE * row), row) };
    }
}

/// Transposes the 8 × 8 squares of all four lanes to 8 rows of 32 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn turn_lanes(mut v: [__m512i; LANE], to: *mut u16, row: usize) {
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
