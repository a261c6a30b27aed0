//! Brightness, contrast, saturation, hue and grayscale on three planes of bytes, as Pillow computes them.
//!
//! Source: Pillow's `ImageEnhance.py`, `src/libImaging/Blend.c` and `Convert.c`; the hue shift is torchvision's on
//! Pillow's 8-bit HSV. Types and the order of operations follow the C code, so the results are equal, not just close.

use pulp::Arch;

use super::params::{JitterOp, JitterParams};

/// Applies the four operations in their order.
pub(super) fn apply(arch: Arch, params: &JitterParams, planes: &mut [u8]) {
    for operation in params.order {
        match operation {
            JitterOp::Brightness => blend_with_constant(arch, planes, 0, params.brightness),
            JitterOp::Contrast => {
                let mean = mean_grey(arch, planes);
                blend_with_constant(arch, planes, mean, params.contrast);
            }
            JitterOp::Saturation => saturate(arch, planes, params.saturation),
            JitterOp::Hue => shift_hue(arch, planes, params.hue),
        }
    }
}

/// Replaces the three planes by the grey image.
pub(super) fn grayscale(arch: Arch, planes: &mut [u8]) {
    let (red, green, blue) = split(planes);
    arch.dispatch(
        #[inline(always)]
        || {
            for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
                let grey = grey(*r, *g, *b);
                (*r, *g, *b) = (grey, grey, grey);
            }
        },
    );
}

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
    value.clamp(0.0, 255.0) as i32 as u8
}

fn blend_with_constant(arch: Arch, planes: &mut [u8], constant: u8, factor: f64) {
    let factor = factor as f32;
    arch.dispatch(
        #[inline(always)]
        || planes.iter_mut().for_each(|value| *value = blend(constant, *value, factor)),
    );
}

fn mean_grey(arch: Arch, planes: &mut [u8]) -> u8 {
    let (red, green, blue) = split(planes);
    let sum = arch.dispatch(
        #[inline(always)]
        || {
            let pixels = red.iter().zip(&*green).zip(&*blue);
            pixels.map(|((r, g), b)| u64::from(grey(*r, *g, *b))).sum::<u64>()
        },
    );
    (sum as f64 / red.len() as f64 + 0.5) as u8
}

fn saturate(arch: Arch, planes: &mut [u8], factor: f64) {
    let factor = factor as f32;
    let (red, green, blue) = split(planes);
    arch.dispatch(
        #[inline(always)]
        || {
            for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
                let grey = grey(*r, *g, *b);
                (*r, *g, *b) = (blend(grey, *r, factor), blend(grey, *g, factor), blend(grey, *b, factor));
            }
        },
    );
}

/// Adds to the 8-bit hue, which wraps around.
fn shift_hue(arch: Arch, planes: &mut [u8], turns: f64) {
    // torchvision: numpy.int32(turns * 255).astype(uint8), truncation and then the low byte.
    let shift = (turns * 255.0) as i32 as u8;
    let (red, green, blue) = split(planes);
    arch.dispatch(
        #[inline(always)]
        || {
            for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
                let (hue, saturation, value) = to_hsv(*r, *g, *b);
                (*r, *g, *b) = to_rgb(hue.wrapping_add(shift), saturation, value);
            }
        },
    );
}

/// `rgb2hsv_row`. Single precision, except where C promotes to double.
#[inline(always)]
fn to_hsv(r: u8, g: u8, b: u8) -> (u8, u8, u8) {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    // Grey pixels divide by one instead of zero; their hue and saturation come out as zero.
    let range = f32::from((max - min).max(1));
    let part = |value: u8| f32::from(max - value) / range;
    let (rc, gc, bc) = (part(r), part(g), part(b));
    let sector_0 = bc - gc;
    let sector_1 = (2.0 + f64::from(rc) - f64::from(bc)) as f32;
    let sector_2 = (4.0 + f64::from(gc) - f64::from(rc)) as f32;
    let turns_6 = if r == max {
        sector_0
    } else if g == max {
        sector_1
    } else {
        sector_2
    };
    let above_zero = f64::from(turns_6) / 6.0 + 1.0;
    let turns = (if above_zero >= 1.0 { above_zero - 1.0 } else { above_zero }) as f32;
    let saturation = f32::from(max - min) / f32::from(max.max(1));
    ((f64::from(turns) * 255.0) as i32 as u8, (f64::from(saturation) * 255.0) as i32 as u8, max)
}

/// `hsv2rgb`.
#[inline(always)]
fn to_rgb(h: u8, s: u8, v: u8) -> (u8, u8, u8) {
    let turns_6 = f64::from(h) * 6.0 / 255.0;
    let sector = turns_6 as i32;
    let f = (turns_6 - f64::from(sector)) as f32;
    let saturation = (f64::from(s) / 255.0) as f32;
    let scaled = |share: f64| (f64::from(v) * share + 0.5) as i32 as u8;
    let p = scaled(1.0 - f64::from(saturation));
    let q = scaled(1.0 - f64::from(saturation * f));
    let t = scaled(1.0 - f64::from(saturation) * (1.0 - f64::from(f)));
    let pick = |by_sector: [u8; 6]| {
        // A chain of selects vectorises where an indexed load does not.
        let mut value = by_sector[0]; // sector 6 is sector 0
        for (idx, candidate) in by_sector.into_iter().enumerate().skip(1) {
            value = if sector == idx as i32 { candidate } else { value };
        }
        value
    };
    (pick([v, q, p, p, t, v]), pick([t, v, v, q, p, p]), pick([p, p, t, v, v, q]))
}
