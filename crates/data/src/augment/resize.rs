//! Resizing a crop with a filter that widens when it shrinks, pixel for pixel as Pillow does.
//!
//! Source: Pillow's `src/libImaging/Resample.c`: rows first, then columns, 8-bit results between the two, 22-bit fixed
//! point weights. Difference: both passes run over 8-bit planes in an order that vectorises (the first on strips of
//! rows turned on their side); the sums are the same integers.

use pulp::Arch;

use super::crop::{Geometry, inside};
use crate::source::RgbImage;

/// Interpolation filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Triangle of radius 1.
    Bilinear,
    /// Keys' cubic of radius 2 with a = −0.5.
    Bicubic,
}

impl Filter {
    fn radius(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn value(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// Pillow's fixed point: 32 bits less 8 for the pixel and 2 for overshoot.
const PRECISION_BITS: u32 = 32 - 8 - 2;
/// Half, to round.
const HALF: i32 = 1 << (PRECISION_BITS - 1);
/// Rows of a strip in the first pass.
const STRIP: usize = 16;
/// Values of a strip in one column.
const STRIP_LEN: usize = 3 * STRIP;
/// Columns that the second pass handles at once.
const CHUNK: usize = 32;

/// For each output pixel, the first input pixel and the weights of it and the following ones.
#[derive(Clone, Debug, Default)]
struct Weights {
    /// (first input pixel, number of weights) of each output pixel.
    spans: Vec<(usize, usize)>,
    /// `stride` places for each output pixel.
    weights: Vec<i32>,
    stride: usize,
    exact: Vec<f64>,
}

impl Weights {
    /// Weights for the output pixels `outputs` of a resize from `input_len` to `output_len`.
    fn compute(&mut self, filter: Filter, input_len: usize, output_len: usize, outputs: std::ops::Range<usize>) {
        let scale = input_len as f64 / output_len as f64;
        let filter_scale = scale.max(1.0);
        let support = filter.radius() * filter_scale;
        self.stride = support.ceil() as usize * 2 + 1;
        self.spans.clear();
        self.weights.clear();
        for output in outputs {
            let center = (output as f64 + 0.5) * scale;
            // Truncation after adding a half, as the original does; a negative start becomes 0 either way.
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(input_len);
            self.exact.clear();
            let per_filter_scale = 1.0 / filter_scale;
            self.exact.extend((first..end).map(|i| filter.value((i as f64 - center + 0.5) * per_filter_scale)));
            let sum: f64 = self.exact.iter().sum();
            let fixed = |weight: &f64| {
                let weight = if sum == 0.0 { *weight } else { weight / sum };
                let rounding = if weight < 0.0 { -0.5 } else { 0.5 };
                (rounding + weight * f64::from(1 << PRECISION_BITS)) as i32
            };
            self.weights.extend(self.exact.iter().map(fixed));
            self.weights.resize((self.spans.len() + 1) * self.stride, 0);
            self.spans.push((first, end - first));
        }
    }

    /// (first input pixel, weights) of the n-th computed output pixel.
    #[inline(always)]
    fn at(&self, n: usize) -> (usize, &[i32]) {
        let (first, len) = self.spans[n];
        (first, &self.weights[n * self.stride..][..len])
    }

    /// The input pixels that any output pixel needs.
    fn input_range(&self) -> std::ops::Range<usize> {
        let start = self.spans.first().map_or(0, |span| span.0);
        let end = self.spans.iter().map(|(first, len)| first + len).max().unwrap_or(0);
        start..end
    }
}

/// Buffers of the two passes.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    columns: Weights,
    rows: Weights,
    /// A strip of input rows: for each column, `[3, STRIP]`.
    strip: Vec<[u8; STRIP_LEN]>,
    /// After the first pass: `[3, input rows, stride]`.
    middle: Vec<u8>,
}

/// Crops, resizes and cuts the window; writes three planes of `side * side`, mirrored if `flip`.
pub(super) fn resized_window(
    arch: Arch,
    image: &RgbImage,
    geometry: &Geometry,
    flip: bool,
    side: usize,
    buffers: &mut Buffers,
    planes: &mut [u8],
) {
    let Geometry { crop, resized, window, filter } = geometry;
    assert!(crop.left + crop.width <= image.width && crop.top + crop.height <= image.height, "{crop:?} is outside");
    let view_columns = inside(window.0, resized.0, side);
    let view_rows = inside(window.1, resized.1, side);
    if view_columns.len() < side || view_rows.len() < side {
        planes.fill(0);
    }
    if view_columns.is_empty() || view_rows.is_empty() {
        return;
    }
    let outputs = |view: &std::ops::Range<usize>, window: i32| {
        let place = |position: usize| (position as i64 + i64::from(window)) as usize;
        place(view.start)..place(view.end)
    };
    let Buffers { columns, rows, strip, middle } = buffers;
    columns.compute(*filter, crop.width as usize, resized.0 as usize, outputs(&view_columns, window.0));
    rows.compute(*filter, crop.height as usize, resized.1 as usize, outputs(&view_rows, window.1));

    let input_rows = rows.input_range();
    let n_rows = input_rows.len();
    let stride = view_columns.len().next_multiple_of(CHUNK);
    middle.resize(3 * n_rows * stride, 0);
    for first in (0..n_rows).step_by(STRIP) {
        let n_strip = STRIP.min(n_rows - first);
        let top = crop.top as usize + input_rows.start + first;
        turn_strip(image, crop.left as usize, crop.width as usize, top, n_strip, strip);
        let target = MiddleRows { middle, n_rows, stride, first, n_strip, n_columns: view_columns.len(), flip };
        arch.dispatch(
            #[inline(always)]
            || resample_columns(strip, columns, target),
        );
    }
    let first_column = if flip { side - view_columns.end } else { view_columns.start };
    let target = ViewRows { planes, side, first_row: view_rows.start, first_column, n_columns: view_columns.len() };
    arch.dispatch(
        #[inline(always)]
        || resample_rows(middle, n_rows, stride, rows, input_rows.start, target),
    );
}

/// Turns rows of interleaved pixels into columns of `[3, STRIP]` values.
fn turn_strip(
    image: &RgbImage,
    left: usize,
    width: usize,
    top: usize,
    n_rows: usize,
    strip: &mut Vec<[u8; STRIP_LEN]>,
) {
    strip.resize(width, [0; STRIP_LEN]);
    for row in 0..n_rows {
        let start = ((top + row) * image.width as usize + left) * 3;
        let pixels = image.pixels[start..][..width * 3].chunks_exact(3);
        for (column, pixel) in strip.iter_mut().zip(pixels) {
            column[row] = pixel[0];
            column[STRIP + row] = pixel[1];
            column[2 * STRIP + row] = pixel[2];
        }
    }
}

/// Where the first pass writes a strip.
struct MiddleRows<'a> {
    middle: &'a mut [u8],
    n_rows: usize,
    stride: usize,
    first: usize,
    n_strip: usize,
    n_columns: usize,
    flip: bool,
}

#[inline(always)]
fn resample_columns(strip: &[[u8; STRIP_LEN]], weights: &Weights, target: MiddleRows) {
    for n in 0..target.n_columns {
        let (first, weights) = weights.at(n);
        let mut sums = [HALF; STRIP_LEN];
        for (column, weight) in strip[first..].iter().zip(weights) {
            for (sum, value) in sums.iter_mut().zip(column) {
                *sum += i32::from(*value) * weight;
            }
        }
        let values = sums.map(to_byte);
        let column = if target.flip { target.n_columns - 1 - n } else { n };
        for (channel, values) in values.chunks_exact(STRIP).enumerate() {
            let start = (channel * target.n_rows + target.first) * target.stride + column;
            let rows = target.middle[start..].iter_mut().step_by(target.stride);
            rows.zip(&values[..target.n_strip]).for_each(|(place, value)| *place = *value);
        }
    }
}

/// Where the second pass writes.
struct ViewRows<'a> {
    planes: &'a mut [u8],
    side: usize,
    first_row: usize,
    first_column: usize,
    n_columns: usize,
}

#[inline(always)]
fn resample_rows(middle: &[u8], n_rows: usize, stride: usize, weights: &Weights, first_input: usize, target: ViewRows) {
    let ViewRows { planes, side, first_row, first_column, n_columns } = target;
    for (plane, middle) in planes.chunks_exact_mut(side * side).zip(middle.chunks_exact(n_rows * stride)) {
        for n in 0..weights.spans.len() {
            let (first, weights) = weights.at(n);
            let rows = &middle[(first - first_input) * stride..];
            let row = &mut plane[(first_row + n) * side + first_column..][..n_columns];
            for (chunk_idx, place) in row.chunks_mut(CHUNK).enumerate() {
                let mut sums = [HALF; CHUNK];
                for (input, weight) in rows.chunks_exact(stride).zip(weights) {
                    let (input, _) = input[chunk_idx * CHUNK..].as_chunks::<CHUNK>();
                    for (sum, value) in sums.iter_mut().zip(&input[0]) {
                        *sum += i32::from(*value) * weight;
                    }
                }
                place.copy_from_slice(&sums.map(to_byte)[..place.len()]);
            }
        }
    }
}

#[inline(always)]
fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}
