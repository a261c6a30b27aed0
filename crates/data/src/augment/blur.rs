//! Gaussian blur as Pillow does it: three box blurs of a fractional radius in each direction.
//!
//! Source: Pillow's `src/libImaging/BoxBlur.c` (after Gwosdek et al., "Theoretical foundations of Gaussian convolution by
//! extended box filtering", 2011). Edge pixels repeat outwards. The original keeps a running sum per line; the sums here
//! are taken afresh for each pixel, which vectorises, and are the same integers.

use pulp::{Arch, Simd, WithSimd};

/// Box blurs per direction.
const PASSES: usize = 3;

/// A box: whole weights over `radius` pixels to each side, a fractional one on the next.
#[derive(Clone, Copy, Debug)]
struct BoxFilter {
    radius: usize,
    whole: u32,
    fraction: u32,
}

impl BoxFilter {
    /// The box whose repeated use has the variance of a Gaussian; `None` for a radius of zero.
    fn for_gaussian(sigma_px: f64) -> Option<Self> {
        // Single precision and the order of operations are the original's.
        let sigma_px = sigma_px as f32;
        let variance = sigma_px * sigma_px / PASSES as f32;
        let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
        let whole_radius = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
        let l = whole_radius;
        let mut fraction = (2.0 * l + 1.0) * (l * (l + 1.0) - 3.0 * variance);
        fraction /= 6.0 * (variance - (l + 1.0) * (l + 1.0));
        let radius = l + fraction;
        if radius <= 0.0 {
            return None;
        }
        let whole_pixels = radius as u32;
        let whole = ((1u32 << 24) as f32 / (radius * 2.0 + 1.0)) as u32;
        let fraction = ((1 << 24) - (whole_pixels * 2 + 1) * whole) / 2;
        Some(Self { radius: whole_pixels as usize, whole, fraction })
    }
}

/// Blurs a square plane in place. `buffer` is reused.
pub(super) fn gaussian(arch: Arch, plane: &mut [u8], side: usize, sigma_px: f64, buffer: &mut Vec<u8>) {
    let Some(filter) = BoxFilter::for_gaussian(sigma_px) else { return };
    let margin = filter.radius + 1;
    buffer.resize((side + 2 * margin) * side, 0);
    arch.dispatch(Blur { filter, plane, side, buffer });
}

struct Blur<'a> {
    filter: BoxFilter,
    plane: &'a mut [u8],
    side: usize,
    buffer: &'a mut [u8],
}

impl WithSimd for Blur<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { filter, plane, side, buffer } = self;
        let padded_len = side + 2 * (filter.radius + 1);
        for line in plane.chunks_exact_mut(side) {
            for _ in 0..PASSES {
                blur_line(filter, line, &mut buffer[..padded_len]);
            }
        }
        for _ in 0..PASSES {
            blur_columns(filter, plane, side, &mut buffer[..padded_len * side]);
        }
    }
}

#[inline(always)]
fn blur_line(filter: BoxFilter, line: &mut [u8], padded: &mut [u8]) {
    let margin = filter.radius + 1;
    let side = line.len();
    padded[..margin].fill(line[0]);
    padded[margin..][..side].copy_from_slice(line);
    padded[margin + side..].fill(line[side - 1]);
    // Shifted copies of the line are what a row above or below is to columns.
    blend_shifted(filter, line, |shift| &padded[shift..][..side]);
}

#[inline(always)]
fn blur_columns(filter: BoxFilter, plane: &mut [u8], side: usize, padded: &mut [u8]) {
    let margin = filter.radius + 1;
    let (top, rest) = padded.split_at_mut(margin * side);
    let (middle, bottom) = rest.split_at_mut(side * side);
    middle.copy_from_slice(plane);
    top.chunks_exact_mut(side).for_each(|row| row.copy_from_slice(&plane[..side]));
    bottom.chunks_exact_mut(side).for_each(|row| row.copy_from_slice(&plane[plane.len() - side..]));
    for (row_idx, row) in plane.chunks_exact_mut(side).enumerate() {
        blend_shifted(filter, row, |shift| &padded[(row_idx + shift) * side..][..side]);
    }
}

/// One box blur of a line from its neighbours at shifts `0..=2 * (radius + 1)`, the middle one being itself.
#[inline(always)]
fn blend_shifted<'a>(filter: BoxFilter, line: &mut [u8], neighbour: impl Fn(usize) -> &'a [u8]) {
    const CHUNK: usize = 32;
    let last = 2 * (filter.radius + 1);
    for (chunk_idx, chunk) in line.chunks_mut(CHUNK).enumerate() {
        let (start, len) = (chunk_idx * CHUNK, chunk.len());
        let mut inner = [0u32; CHUNK];
        for shift in 1..last {
            add(&mut inner, &neighbour(shift)[start..][..len]);
        }
        let mut outer = [0u32; CHUNK];
        add(&mut outer, &neighbour(0)[start..][..len]);
        add(&mut outer, &neighbour(last)[start..][..len]);
        for ((value, inner), outer) in chunk.iter_mut().zip(&inner).zip(&outer) {
            *value = ((inner * filter.whole + outer * filter.fraction + (1 << 23)) >> 24) as u8;
        }
    }
}

#[inline(always)]
fn add(sums: &mut [u32], values: &[u8]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += u32::from(*value);
    }
}
