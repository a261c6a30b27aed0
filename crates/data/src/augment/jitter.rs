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
fn grey(r: u8, g: u8, b: u8) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

/// `from + factor * (to - from)`, truncated and clipped.
#[inline(always)]
fn blend(from: u8, to: u8, factor: f32) -> u8 {
    let value = f32::from(from) + factor * (f32::from(to) - f32::from(from));
    byte(value.clamp(0.0, 255.0).floor())
}

/// A whole number in 0..=255 as a byte: 2^23 moves it to the low bits. A cast checks for more, one value at a time.
#[inline(always)]
fn byte(whole: f32) -> u8 {
    (whole + 8_388_608.0).to_bits() as u8
}

/// The same after rounding down.
#[inline(always)]
fn floor_to_byte(value: f64) -> u8 {
    byte(value.floor() as f32)
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

/// `rgb2hsv_row`. Single precision, except where C promotes to double.
#[inline(always)]
fn to_hsv(
    r: &[u8; LANES],
    g: &[u8; LANES],
    b: &[u8; LANES],
    hue: &mut [u8; LANES],
    saturation: &mut [u8; LANES],
    value: &mut [u8; LANES],
) {
    let mut turns_6 = [0f32; LANES];
    for i in 0..LANES {
        let (r, g, b) = (f32::from(r[i]), f32::from(g[i]), f32::from(b[i]));
        let larger = |a: f32, b: f32| if a > b { a } else { b };
        let smaller = |a: f32, b: f32| if a < b { a } else { b };
        let (max, min) = (larger(larger(r, g), b), smaller(smaller(r, g), b));
        // Grey pixels divide by one instead of zero; their hue and saturation come out as zero.
        let range = larger(max - min, 1.0);
        // The hue is `base` plus the distance of one channel from the maximum less that of another.
        let (is_red, is_green) = (r == max, g == max);
        let base = if is_red {
            0.0
        } else if is_green {
            2.0
        } else {
            4.0
        };
        let plus = if is_red {
            b
        } else if is_green {
            r
        } else {
            g
        };
        let minus = if is_red {
            g
        } else if is_green {
            b
        } else {
            r
        };
        let (plus, minus) = ((max - plus) / range, (max - minus) / range);
        turns_6[i] = (base + f64::from(plus) - f64::from(minus)) as f32;
        let share = (max - min) / larger(max, 1.0);
        saturation[i] = floor_to_byte(f64::from(share) * 255.0);
        value[i] = byte(max);
    }
    for i in 0..LANES {
        let above_zero = f64::from(turns_6[i]) / 6.0 + 1.0;
        let turns = (if above_zero >= 1.0 { above_zero - 1.0 } else { above_zero }) as f32;
        hue[i] = floor_to_byte(f64::from(turns) * 255.0);
    }
}

/// `hsv2rgb`.
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
        let turns_6 = f64::from(hue[i]) * 6.0 / 255.0;
        let whole = turns_6.floor();
        let f = (turns_6 - whole) as f32;
        let sector = whole as f32;
        let saturation = (f64::from(saturation[i]) / 255.0) as f32;
        let v = f64::from(value[i]);
        let scaled = |share: f64| (v * share + 0.5).floor() as f32;
        let v = v as f32;
        let p = scaled(1.0 - f64::from(saturation));
        let q = scaled(1.0 - f64::from(saturation * f));
        let t = scaled(1.0 - f64::from(saturation) * (1.0 - f64::from(f)));
        // Selects vectorise where an indexed load does not. Sector 6 is sector 0.
        let pick = |s0: f32, s1: f32, s2: f32, s3: f32, s4: f32, s5: f32| {
            let low = if sector == 1.0 { s1 } else { s0 };
            let middle = if sector == 2.0 { s2 } else { s3 };
            let high = if sector == 4.0 { s4 } else { s5 };
            let lower = if sector >= 2.0 { middle } else { low };
            let upper = if sector == 6.0 { s0 } else { high };
            byte(if sector >= 4.0 { upper } else { lower })
        };
        r[i] = pick(v, q, p, p, t, v);
        g[i] = pick(t, v, v, q, p, p);
        b[i] = pick(p, p, t, v, v, q);
    }
}
