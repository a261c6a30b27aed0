//! Brightness, contrast, saturation, hue and grayscale on three planes of bytes, as Pillow computes them.
//!
//! Source: Pillow's `ImageEnhance.py`, `src/libImaging/Blend.c` and `Convert.c`; the hue shift is torchvision's on
//! Pillow's 8-bit HSV. Types and the order of operations follow the C code, so the results are equal, not just close.

use pulp::{Arch, Simd, WithSimd};

use super::params::{JitterOp, JitterParams};

/// Applies the four operations in their order.
pub(super) fn apply(arch: Arch, params: &JitterParams, planes: &mut [u8]) {
    for operation in params.order {
        let planes = &mut *planes;
        match operation {
            JitterOp::Brightness => {
                arch.dispatch(BlendConstant { planes, constant: 0, factor: params.brightness as f32 });
            }
            JitterOp::Contrast => {
                let constant = arch.dispatch(MeanGrey { planes });
                arch.dispatch(BlendConstant { planes, constant, factor: params.contrast as f32 });
            }
            JitterOp::Saturation => arch.dispatch(Saturate { planes, factor: params.saturation as f32 }),
            JitterOp::Hue => {
                // torchvision: numpy.int32(turns * 255).astype(uint8), truncation and then the low byte.
                let shift = (params.hue * 255.0) as i32 as u8;
                arch.dispatch(ShiftHue { planes, shift });
            }
        }
    }
}

/// Replaces the three planes by the grey image.
pub(super) fn grayscale(arch: Arch, planes: &mut [u8]) {
    arch.dispatch(Saturate { planes, factor: 0.0 });
}

/// The three planes.
#[inline(always)]
fn split(planes: &mut [u8]) -> (&mut [u8], &mut [u8], &mut [u8]) {
    let n = planes.len() / 3;
    let (red, rest) = planes.split_at_mut(n);
    let (green, blue) = rest.split_at_mut(n);
    (red, green, blue)
}

/// Pillow's luma: ITU-R 601-2 in 16-bit fixed point.
#[inline(always)]
pub(super) fn grey(r: u8, g: u8, b: u8) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

/// `from + factor * (to - from)`, truncated and clipped.
#[inline(always)]
pub(super) fn blend(from: u8, to: u8, factor: f32) -> u8 {
    let value = f32::from(from) + factor * (f32::from(to) - f32::from(from));
    byte(value.clamp(0.0, 255.0).floor())
}

/// A whole number in 0..=255 as a byte: 2^23 moves it to the low bits. A cast checks for more, one value at a time.
#[inline(always)]
fn byte(whole: f32) -> u8 {
    (whole + 8_388_608.0).to_bits() as u8
}

// The operations are structures because that is how `pulp` compiles a function once per instruction set: what is
// called in `with_simd`, inlined, becomes vector code of the width that the machine has.

/// Blends with one grey level.
struct BlendConstant<'a> {
    planes: &'a mut [u8],
    constant: u8,
    factor: f32,
}

impl WithSimd for BlendConstant<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for value in self.planes {
            *value = blend(self.constant, *value, self.factor);
        }
    }
}

/// The mean of the grey image, rounded.
struct MeanGrey<'a> {
    planes: &'a mut [u8],
}

impl WithSimd for MeanGrey<'_> {
    type Output = u8;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> u8 {
        let (red, green, blue) = split(self.planes);
        let pixels = red.iter().zip(&*green).zip(&*blue);
        // The largest view has 2^24 pixels, whose greys fit.
        let sum: u32 = pixels.map(|((r, g), b)| u32::from(grey(*r, *g, *b))).sum();
        (f64::from(sum) / red.len() as f64 + 0.5) as u8
    }
}

/// Blends with the grey image.
struct Saturate<'a> {
    planes: &'a mut [u8],
    factor: f32,
}

impl WithSimd for Saturate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (red, green, blue) = split(self.planes);
        for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
            let grey = grey(*r, *g, *b);
            (*r, *g, *b) = (blend(grey, *r, self.factor), blend(grey, *g, self.factor), blend(grey, *b, self.factor));
        }
    }
}

/// Adds to the 8-bit hue, which wraps around.
struct ShiftHue<'a> {
    planes: &'a mut [u8],
    shift: u8,
}

impl WithSimd for ShiftHue<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (red, green, blue) = split(self.planes);
        let (red, red_rest) = red.as_chunks_mut::<LANES>();
        let (green, green_rest) = green.as_chunks_mut::<LANES>();
        let (blue, blue_rest) = blue.as_chunks_mut::<LANES>();
        for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
            shift_hue_lanes(r, g, b, self.shift);
        }
        let n = red_rest.len();
        let (mut r, mut g, mut b) = ([0; LANES], [0; LANES], [0; LANES]);
        r[..n].copy_from_slice(red_rest);
        g[..n].copy_from_slice(green_rest);
        b[..n].copy_from_slice(blue_rest);
        shift_hue_lanes(&mut r, &mut g, &mut b, self.shift);
        red_rest.copy_from_slice(&r[..n]);
        green_rest.copy_from_slice(&g[..n]);
        blue_rest.copy_from_slice(&b[..n]);
    }
}

/// Pixels that are handled side by side: small steps over short arrays are what compilers turn into vector code.
const LANES: usize = 32;

#[inline(always)]
fn shift_hue_lanes(r: &mut [u8; LANES], g: &mut [u8; LANES], b: &mut [u8; LANES], shift: u8) {
    let (mut hue, mut saturation, mut value) = ([0; LANES], [0; LANES], [0; LANES]);
    to_hsv(r, g, b, &mut hue, &mut saturation, &mut value);
    for h in &mut hue {
        *h = h.wrapping_add(shift);
    }
    to_rgb(&hue, &saturation, &value, r, g, b);
}

/// `rgb2hsv_row`, in single precision throughout: where C promotes to double the results are the same bytes, which a test
/// below holds for all that can come in.
#[inline(always)]
fn to_hsv(
    r: &[u8; LANES],
    g: &[u8; LANES],
    b: &[u8; LANES],
    hue: &mut [u8; LANES],
    saturation: &mut [u8; LANES],
    value: &mut [u8; LANES],
) {
    for i in 0..LANES {
        let (r, g, b) = (f32::from(r[i]), f32::from(g[i]), f32::from(b[i]));
        let larger = |a: f32, b: f32| if a > b { a } else { b };
        let smaller = |a: f32, b: f32| if a < b { a } else { b };
        let (max, min) = (larger(larger(r, g), b), smaller(smaller(r, g), b));
        let range = max - min;
        // The hue is `base` plus the distance of one channel from the maximum less that of another, one of them 0 or 1.
        let (is_red, is_green) = (r == max, g == max);
        let base = select(is_red, 0.0, select(is_green, 2.0, 4.0));
        let plus = select(is_red, b, select(is_green, r, g));
        let minus = select(is_red, g, select(is_green, b, r));
        let middle = larger(plus, minus);
        // Grey pixels divide by one instead of zero. Their saturation is 0, so that their hue does not matter.
        let distance = (max - middle) / larger(range, 1.0);
        let turns_6 = select(plus == middle, (base - 1.0) + distance, (base + 1.0) - distance);
        let turns = turns_6 / 6.0;
        hue[i] = byte((select(turns_6 < 0.0, turns + 1.0, turns) * 255.0).floor());
        saturation[i] = byte((range / larger(max, 1.0) * 255.0).floor());
        value[i] = byte(max);
    }
}

/// Both sides are computed, so that this is no branch in vector code.
#[inline(always)]
fn select(condition: bool, yes: f32, no: f32) -> f32 {
    if condition { yes } else { no }
}

/// `hsv2rgb`, in single precision like [`to_hsv`].
#[inline(always)]
fn to_rgb(
    hue: &[u8; LANES],
    saturation: &[u8; LANES],
    value: &[u8; LANES],
    r: &mut [u8; LANES],
    g: &mut [u8; LANES],
    b: &mut [u8; LANES],
) {
    for i in 0..LANES {
        let turns_1530 = f32::from(hue[i]) * 6.0;
        // The products are whole numbers, and 1/255 is rounded up.
        let sector = (turns_1530 * (1.0 / 255.0)).floor();
        let f = (turns_1530 - sector * 255.0) / 255.0;
        let saturation = f32::from(saturation[i]) / 255.0;
        let v = f32::from(value[i]);
        let scaled = |share: f32| (v * share + 0.5).floor();
        let p = scaled(1.0 - saturation);
        let q = scaled(1.0 - saturation * f);
        let t = scaled(1.0 - saturation * (1.0 - f));
        // Selects vectorise where an indexed load does not. Sector 6 is sector 0.
        let pick = |s0: f32, s1: f32, s2: f32, s3: f32, s4: f32, s5: f32| {
            let low = select(sector == 1.0, s1, s0);
            let middle = select(sector == 2.0, s2, s3);
            let high = select(sector == 4.0, s4, s5);
            let lower = select(sector >= 2.0, middle, low);
            let upper = select(sector == 6.0, s0, high);
            byte(select(sector >= 4.0, upper, lower))
        };
        r[i] = pick(v, q, p, p, t, v);
        g[i] = pick(t, v, v, q, p, p);
        b[i] = pick(p, p, t, v, v, q);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first lane of [`to_hsv`].
    fn hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
        let (mut hue, mut saturation, mut value) = ([0; LANES], [0; LANES], [0; LANES]);
        to_hsv(&[r; LANES], &[g; LANES], &[b; LANES], &mut hue, &mut saturation, &mut value);
        [hue[0], saturation[0], value[0]]
    }

    /// Pillow's `rgb2hsv_row` with its mixture of single and double precision.
    fn pillows_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
        let (max, min) = (r.max(g).max(b), r.min(g).min(b));
        if max == min {
            return [0, 0, max];
        }
        let range = f32::from(max - min);
        let [rc, gc, bc] = [r, g, b].map(|channel| f64::from(f32::from(max - channel) / range));
        let turns_6 = match max {
            _ if r == max => bc - gc,
            _ if g == max => 2.0 + rc - bc,
            _ => 4.0 + gc - rc,
        };
        let turns = (f64::from(turns_6 as f32) / 6.0 + 1.0).rem_euclid(1.0) as f32;
        let saturation = range / f32::from(max);
        [(f64::from(turns) * 255.0) as u8, (f64::from(saturation) * 255.0) as u8, max]
    }

    /// Pillow's `hsv2rgb`.
    fn pillows_rgb([hue, saturation, value]: [u8; 3]) -> [u8; 3] {
        let turns_6 = f64::from(hue) * 6.0 / 255.0;
        let sector = turns_6.floor();
        let (f, saturation) = ((turns_6 - sector) as f32, (f64::from(saturation) / 255.0) as f32);
        let scaled = |share: f64| (f64::from(value) * share + 0.5).floor() as u8;
        let p = scaled(1.0 - f64::from(saturation));
        let q = scaled(1.0 - f64::from(saturation * f));
        let t = scaled(1.0 - f64::from(saturation) * (1.0 - f64::from(f)));
        match sector as u8 % 6 {
            0 => [value, t, p],
            1 => [q, value, p],
            2 => [p, value, t],
            3 => [p, q, value],
            4 => [t, p, value],
            _ => [value, p, q],
        }
    }

    #[test]
    fn single_precision_gives_the_hue_and_saturation_of_pillows_doubles() {
        // Hue and saturation follow from the differences to the maximum, and the maximum from the saturation's quotient:
        // every difference of every maximum, with each channel as the maximum, the middle and the minimum.
        for max in 0..=255u8 {
            for min in 0..=max {
                let step = if max == 255 { 1 } else { 7 };
                for middle in (min..=max).step_by(step) {
                    for [a, b, c] in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
                        let mut pixel = [0; 3];
                        (pixel[a], pixel[b], pixel[c]) = (max, middle, min);
                        let (ours, expected) = (hsv(pixel), pillows_hsv(pixel));
                        let same = ours == expected || (expected[1] == 0 && ours[1..] == expected[1..]);
                        assert!(same, "{pixel:?}: {ours:?}, Pillow {expected:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn single_precision_gives_the_colours_of_pillows_doubles() {
        for hue in 0..=255 {
            for saturation in 0..=255 {
                for first in (0..=255u8).step_by(LANES) {
                    let value: [u8; LANES] = std::array::from_fn(|lane| first + lane as u8);
                    let (mut r, mut g, mut b) = ([0; LANES], [0; LANES], [0; LANES]);
                    to_rgb(&[hue; LANES], &[saturation; LANES], &value, &mut r, &mut g, &mut b);
                    for lane in 0..LANES {
                        let hsv = [hue, saturation, value[lane]];
                        assert_eq!([r[lane], g[lane], b[lane]], pillows_rgb(hsv), "{hsv:?}");
                    }
                }
            }
        }
    }
}
