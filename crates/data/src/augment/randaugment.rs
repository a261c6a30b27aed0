//! RandAugment's operations, as boosted contrastive learning puts them on top of a recipe.
//!
//! Source: Zhou et al., "Contrastive Learning with Boosted Memorization", ICML 2022, with the operations and ranges of its
//! published code; the pixels are Pillow's (`Geometry.c`, `ImageOps.py`, `ImageEnhance.py`, `Filter.c`, `Draw.c`). As there,
//! a strength of 0 is not the identity for all of them: it is the low end of a range, which for brightness is nearly black.

use super::jitter::{blend, grey};
use crate::rng::{Purpose, Rng};
use std::sync::Arc;

/// One operation with its parameters, on a square view.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RandOp {
    /// Columns move by this share of their row's number.
    ShearX(f64),
    /// Rows move by this share of their column's number.
    ShearY(f64),
    /// Moved to the left by this share of the side.
    TranslateX(f64),
    /// Moved up by this share of the side.
    TranslateY(f64),
    /// Turned counter-clockwise by these degrees.
    Rotate(f64),
    /// Each channel stretched to the whole range.
    AutoContrast,
    /// Every value v becomes 255 − v.
    Invert,
    /// Each channel's histogram made even.
    Equalize,
    /// Values from this one on inverted.
    Solarize(f64),
    /// Only this many high bits kept, 1 to 8.
    Posterize(u32),
    /// Blend with the mean grey; 1 changes nothing.
    Contrast(f64),
    /// Blend with the grey image; 1 changes nothing.
    Colour(f64),
    /// Blend with black; 1 changes nothing.
    Brightness(f64),
    /// Blend with the smoothed image; 1 changes nothing.
    Sharpness(f64),
    /// A grey-brown square.
    Cutout {
        /// Its centre, as shares of the side.
        centre: [f64; 2],
        /// Its side, as a share of the view's.
        size: f64,
    },
}

/// Number of kinds of [`RandOp`].
pub const N_RAND_OPS: usize = 15;

/// What a cut-out square is filled with.
const CUTOUT_COLOUR: [u8; 3] = [125, 123, 114];

impl RandOp {
    /// Operation number `kind` (below [`N_RAND_OPS`], in the order of the enum) at a strength in [0, 1] of its range, which
    /// geometric ones take in the `negative` direction or the other. `centre` is that of a cut-out square.
    ///
    /// # Panics
    /// If there is no such operation.
    #[must_use]
    pub fn at(kind: usize, strength: f64, negative: bool, centre: [f64; 2]) -> Self {
        let up_to = |end: f64| if negative { -strength * end } else { strength * end };
        let factor = strength * (1.9 - 0.1) + 0.1;
        match kind {
            0 => Self::ShearX(up_to(0.6)),
            1 => Self::ShearY(up_to(0.6)),
            2 => Self::TranslateX(up_to(0.66)),
            3 => Self::TranslateY(up_to(0.66)),
            4 => Self::Rotate(up_to(60.0)),
            5 => Self::AutoContrast,
            6 => Self::Invert,
            7 => Self::Equalize,
            8 => Self::Solarize(strength * 110.0),
            9 => Self::Posterize((strength * 4.0 + 4.0) as u32),
            10 => Self::Contrast(factor),
            11 => Self::Colour(factor),
            12 => Self::Brightness(factor),
            13 => Self::Sharpness(factor),
            14 => Self::Cutout { centre, size: strength * 0.4 },
            _ => panic!("operation {kind} of {N_RAND_OPS}"),
        }
    }

    /// Changes a view `[side, side, 3]` in place. `buffer` is reused.
    ///
    /// # Panics
    /// If `view` has not `side * side * 3` bytes.
    pub fn apply(&self, side: usize, view: &mut [u8], buffer: &mut Vec<u8>) {
        assert_eq!(view.len(), side * side * 3, "a view of side {side}");
        match *self {
            Self::ShearX(share) => affine(side, view, buffer, [1.0, share, 0.0, 0.0, 1.0, 0.0]),
            Self::ShearY(share) => affine(side, view, buffer, [1.0, 0.0, 0.0, share, 1.0, 0.0]),
            Self::TranslateX(share) => affine(side, view, buffer, [1.0, 0.0, share * side as f64, 0.0, 1.0, 0.0]),
            Self::TranslateY(share) => affine(side, view, buffer, [1.0, 0.0, 0.0, 0.0, 1.0, share * side as f64]),
            Self::Rotate(degrees) => rotate(side, view, buffer, degrees),
            Self::AutoContrast => look_up(view, stretched),
            Self::Invert => view.iter_mut().for_each(|value| *value = 255 - *value),
            Self::Equalize => look_up(view, equalized),
            Self::Solarize(threshold) => {
                let inverted = view.iter_mut().filter(|value| f64::from(**value) >= threshold);
                inverted.for_each(|value| *value = 255 - *value);
            }
            Self::Posterize(bits) => {
                view.iter_mut().for_each(|value| *value &= !(0xff_u8.checked_shr(bits).unwrap_or(0)))
            }
            Self::Contrast(factor) => {
                let pixels = view.as_chunks::<3>().0;
                let sum: u64 = pixels.iter().map(|[r, g, b]| u64::from(grey(*r, *g, *b))).sum();
                let mean = (sum as f64 / pixels.len() as f64 + 0.5) as u8;
                view.iter_mut().for_each(|value| *value = blend(mean, *value, factor as f32));
            }
            Self::Colour(factor) => {
                for pixel in view.as_chunks_mut::<3>().0 {
                    let grey = grey(pixel[0], pixel[1], pixel[2]);
                    *pixel = pixel.map(|value| blend(grey, value, factor as f32));
                }
            }
            Self::Brightness(factor) => view.iter_mut().for_each(|value| *value = blend(0, *value, factor as f32)),
            Self::Sharpness(factor) => {
                smooth(side, view, buffer);
                let smoothed = view.iter_mut().zip(&*buffer);
                smoothed.for_each(|(value, smooth)| *value = blend(*smooth, *value, factor as f32));
            }
            Self::Cutout { centre, size } => cut_out(side, view, centre, size),
        }
    }
}

/// Pillow's nearest-neighbour transform: output (x, y) is input (a·x + b·y + c, d·x + e·y + f), or black outside.
fn affine(side: usize, view: &mut [u8], buffer: &mut Vec<u8>, [a, b, c, d, e, f]: [f64; 6]) {
    buffer.clear();
    buffer.extend_from_slice(view);
    let pixel = |column: i64, row: i64| {
        let inside = 0..side as i64;
        let is_inside = inside.contains(&column) && inside.contains(&row);
        let at = is_inside.then(|| (row as usize * side + column as usize) * 3);
        at.map_or([0; 3], |at| [buffer[at], buffer[at + 1], buffer[at + 2]])
    };
    if b == 0.0 && d == 0.0 {
        // Without shear the positions are summed in floating point.
        let positions = |step: f64, first: f64| {
            let floor = |position: f64| if position < 0.0 { -1 } else { position as i64 };
            std::iter::successors(Some(first + step * 0.5), move |position| Some(position + step)).map(floor)
        };
        for (row, line) in positions(e, f).zip(view.chunks_exact_mut(side * 3)) {
            for (column, out) in positions(a, c).zip(line.as_chunks_mut::<3>().0) {
                *out = pixel(column, row);
            }
        }
        return;
    }
    // Else in fixed point with 16 bits behind it, from the pixels' centres.
    let fixed = |value: f64| (value * 65536.0 + 0.5).floor() as i64;
    let (mut left, mut top) = (fixed(c + a * 0.5 + b * 0.5), fixed(f + d * 0.5 + e * 0.5));
    for line in view.chunks_exact_mut(side * 3) {
        let (mut x, mut y) = (left, top);
        for out in line.as_chunks_mut::<3>().0 {
            *out = pixel(x >> 16, y >> 16);
            x += fixed(a);
            y += fixed(d);
        }
        left += fixed(b);
        top += fixed(e);
    }
}

/// Pillow's `Image.rotate` about the centre.
fn rotate(side: usize, view: &mut [u8], buffer: &mut Vec<u8>, degrees: f64) {
    let degrees = degrees.rem_euclid(360.0);
    if degrees == 0.0 {
        return;
    }
    let rounded = |value: f64| (value * 1e15).round() / 1e15;
    let (sin, cos) = (-degrees.to_radians()).sin_cos();
    let (cos, sin, minus_sin) = (rounded(cos), rounded(sin), rounded(-sin));
    let centre = side as f64 / 2.0;
    let c = cos * -centre + sin * -centre + centre;
    let f = minus_sin * -centre + cos * -centre + centre;
    affine(side, view, buffer, [cos, sin, c, minus_sin, cos, f]);
}

/// Replaces the values of each channel by a table made from its histogram.
fn look_up(view: &mut [u8], table: impl Fn(&[u64; 256]) -> Option<[u8; 256]>) {
    for channel in 0..3 {
        let mut histogram = [0u64; 256];
        view.as_chunks::<3>().0.iter().for_each(|pixel| histogram[usize::from(pixel[channel])] += 1);
        if let Some(table) = table(&histogram) {
            view.as_chunks_mut::<3>().0.iter_mut().for_each(|p| p[channel] = table[usize::from(p[channel])]);
        }
    }
}

/// `ImageOps.autocontrast`; `None` for a channel of one value.
fn stretched(histogram: &[u64; 256]) -> Option<[u8; 256]> {
    let low = histogram.iter().position(|&n| n > 0)?;
    let high = histogram.iter().rposition(|&n| n > 0)?;
    if high <= low {
        return None;
    }
    let scale = 255.0 / (high - low) as f64;
    let offset = -(low as f64) * scale;
    Some(std::array::from_fn(|value| (value as f64 * scale + offset) as u8))
}

/// `ImageOps.equalize`; `None` for a channel that has too few pixels or values.
fn equalized(histogram: &[u64; 256]) -> Option<[u8; 256]> {
    let last = histogram.iter().rposition(|&n| n > 0)?;
    // One value alone leaves nothing before the last, and a step of zero.
    let step = histogram[..last].iter().sum::<u64>() / 255;
    if step == 0 {
        return None;
    }
    let mut n = step / 2;
    Some(std::array::from_fn(|value| {
        let level = (n / step).min(255) as u8;
        n += histogram[value];
        level
    }))
}

/// `ImageFilter.SMOOTH` into `buffer`: a pixel counts five times, its neighbours once; the border stays.
fn smooth(side: usize, view: &[u8], buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.extend_from_slice(view);
    let row_len = side * 3;
    for row in 1..side.saturating_sub(1) {
        for at in row * row_len + 3..(row + 1) * row_len - 3 {
            let of_row = |at: usize| u32::from(view[at - 3]) + u32::from(view[at]) + u32::from(view[at + 3]);
            let sum = of_row(at - row_len) + of_row(at) + of_row(at + row_len) + 4 * u32::from(view[at]);
            // Pillow rounds sum / 13 in single precision, which is never within its error of a half.
            buffer[at] = ((2 * sum + 13) / 26) as u8;
        }
    }
}

/// A filled rectangle, both ends included.
fn cut_out(side: usize, view: &mut [u8], centre: [f64; 2], size: f64) {
    if size <= 0.0 {
        return;
    }
    let length = size * side as f64;
    let [columns, rows] = centre.map(|share| {
        let first = (share * side as f64 - length / 2.0).max(0.0) as usize;
        let last = (first as f64 + length).min(side as f64) as usize;
        first..(last + 1).min(side)
    });
    for line in view.chunks_exact_mut(side * 3).take(rows.end).skip(rows.start) {
        line.as_chunks_mut::<3>().0[columns.clone()].fill(CUTOUT_COLOUR);
    }
}

/// How much more than the recipe says the images of one epoch are augmented.
#[derive(Clone, Debug)]
pub struct Boost {
    /// Memorisation score M of each image, by its position in the data set, in [0, 1]: the probability of each operation, and
    /// the largest strength.
    pub memorization: Arc<[f32]>,
    /// Operations that are drawn for each view, with replacement.
    pub n_ops: usize,
    /// Further factor of the strength, in [0, 1].
    pub magnitude: f64,
}

impl Boost {
    /// The operations of one view, in their order; `position` is the image's in the data set, `index` that in its source.
    ///
    /// All of an image's operations in an epoch share one strength ζ · M · magnitude, with ζ uniform in [0, 1).
    pub fn sample(
        &self,
        seed: u64,
        epoch: u64,
        position: usize,
        index: u64,
        view: u64,
    ) -> impl Iterator<Item = RandOp> {
        let memorization = f64::from(self.memorization[position]);
        let stream = |number| Rng::new(seed, Purpose::Boost, epoch, index, number);
        let strength = stream(0).unit() * memorization * self.magnitude;
        let mut rng = stream(1 + view);
        (0..self.n_ops).filter_map(move |_| {
            // Every operation draws as many numbers as any other, so that none depends on those before it.
            let (kind, happens) = (rng.below(N_RAND_OPS as u64) as usize, rng.chance(memorization));
            let (negative, centre) = (rng.chance(0.5), [rng.unit(), rng.unit()]);
            happens.then(|| RandOp::at(kind, strength, negative, centre))
        })
    }
}
