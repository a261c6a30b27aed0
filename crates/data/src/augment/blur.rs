//! Gaussian blur as Pillow does it: three box blurs of a fractional radius in each direction.
//!
//! Source: Pillow's `src/libImaging/BoxBlur.c` (after Gwosdek et al., "Theoretical foundations of Gaussian convolution by
//! extended box filtering", 2011). Edge pixels repeat outwards. The original keeps a running sum per line; the sums here
//! are taken afresh for each pixel, which vectorises, and are the same integers.

use pulp::{Arch, Simd, WithSimd};

/// The largest standard deviation in pixels; its box has a radius of 99.
pub const SIGMA_MAX_PX: f64 = 100.0;

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
        let sigma_px = sigma_px.min(SIGMA_MAX_PX) as f32;
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
    let (chunks, rest) = line.as_chunks_mut::<CHUNK>();
    let n_whole = chunks.len() * CHUNK;
    for (chunk_idx, chunk) in chunks.iter_mut().enumerate() {
        *chunk = blend_chunk(filter, |shift, sums| add(sums, &neighbour(shift)[chunk_idx * CHUNK..][..CHUNK]));
    }
    let n_rest = rest.len();
    let last = blend_chunk(filter, |shift, sums| add(&mut sums[..n_rest], &neighbour(shift)[n_whole..][..n_rest]));
    rest.copy_from_slice(&last[..n_rest]);
}

/// Pixels that are handled side by side.
const CHUNK: usize = 32;

/// Sums fit 16 bits because the radius is below 128.
#[inline(always)]
fn blend_chunk(filter: BoxFilter, add_neighbour: impl Fn(usize, &mut [u16; CHUNK])) -> [u8; CHUNK] {
    let last = 2 * (filter.radius + 1);
    let (mut inner, mut outer, mut blended) = ([0; CHUNK], [0; CHUNK], [0; CHUNK]);
    (1..last).for_each(|shift| add_neighbour(shift, &mut inner));
    add_neighbour(0, &mut outer);
    add_neighbour(last, &mut outer);
    for ((value, inner), outer) in blended.iter_mut().zip(inner).zip(outer) {
        *value = ((u32::from(inner) * filter.whole + u32::from(outer) * filter.fraction + (1 << 23)) >> 24) as u8;
    }
    blended
}

#[inline(always)]
fn add(sums: &mut [u16], values: &[u8]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += u16::from(*value);
    }
}
