//! Resizing a crop with a filter that widens when it shrinks, pixel for pixel as Pillow does.
//!
//! Source: Pillow's `src/libImaging/Resample.c`: one direction after the other, 8-bit results between the two, 22-bit
//! fixed point weights. Difference: both passes run over the bytes in an order that vectorises (within rows: on strips
//! turned on their side); the sums are the same integers.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

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
/// Rows of a strip in the pass within rows.
const STRIP: usize = 16;
/// Values that are summed side by side: a vector of 32-bit sums on the widest machines.
const LANES: usize = 16;
/// Values that the pass down the rows handles at once.
const CHUNK: usize = 32;

/// A column of a strip: the pixels of its rows one after the other, and room for the fourth byte of the last one.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Column([u8; 64]);

impl Default for Column {
    fn default() -> Self {
        Self([0; 64])
    }
}

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
    fn compute(&mut self, filter: Filter, input_len: usize, output_len: usize, outputs: Range<usize>) {
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
    fn input_range(&self) -> Range<usize> {
        let start = self.spans.first().map_or(0, |span| span.0);
        let end = self.spans.iter().map(|(first, len)| first + len).max().unwrap_or(0);
        start..end
    }
}

/// Rows of pixels turned on their side, before and after resampling.
#[derive(Debug, Default)]
struct Strip {
    input: Vec<Column>,
    output: Vec<Column>,
}

/// Buffers of the two passes.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    columns: Weights,
    rows: Weights,
    strip: Strip,
    /// Pixels between the passes: `[rows, columns, 3]`.
    middle: Vec<u8>,
}

/// Crops, resizes and cuts the window; writes pixels `[side, side, 3]`, mirrored if `flip`.
pub(super) fn resized_window(
    arch: Arch,
    image: &RgbImage,
    geometry: &Geometry,
    flip: bool,
    side: usize,
    buffers: &mut Buffers,
    view: &mut [u8],
) {
    let Geometry { crop, resized, window, filter } = geometry;
    assert!(crop.left + crop.width <= image.width && crop.top + crop.height <= image.height, "{crop:?} is outside");
    let view_columns = inside(window.0, resized.0, side);
    let view_rows = inside(window.1, resized.1, side);
    if view_columns.len() < side || view_rows.len() < side {
        view.fill(0);
    }
    if view_columns.is_empty() || view_rows.is_empty() {
        return;
    }
    let outputs = |view: &Range<usize>, window: i32| {
        let place = |position: usize| (position as i64 + i64::from(window)) as usize;
        place(view.start)..place(view.end)
    };
    buffers.columns.compute(*filter, crop.width as usize, resized.0 as usize, outputs(&view_columns, window.0));
    buffers.rows.compute(*filter, crop.height as usize, resized.1 as usize, outputs(&view_rows, window.1));

    let row_len = image.width as usize * 3;
    let first_pixel = crop.top as usize * row_len + crop.left as usize * 3;
    let input = Pixels { bytes: &image.pixels[first_pixel..], row_len, width: crop.width as usize };
    let first_column = if flip { side - view_columns.end } else { view_columns.start };
    let first = (view_rows.start * side + first_column) * 3;
    let output = Lines { values: &mut view[first..], row_len: side * 3, len: view_columns.len() * 3 };
    let rows_first = rows_come_first(crop.width, crop.height, *resized);
    two_passes(arch, input, view_rows.len(), rows_first, flip, buffers, output);
}

/// Resizes a whole image; writes pixels `[height, width, 3]` of `resized`, which is (width, height).
pub(super) fn resized_whole(
    arch: Arch,
    image: &RgbImage,
    resized: (u32, u32),
    filter: Filter,
    buffers: &mut Buffers,
    pixels: &mut [u8],
) {
    let (width, height) = (resized.0 as usize, resized.1 as usize);
    buffers.columns.compute(filter, image.width as usize, width, 0..width);
    buffers.rows.compute(filter, image.height as usize, height, 0..height);
    let input = Pixels { bytes: &image.pixels, row_len: image.width as usize * 3, width: image.width as usize };
    let output = Lines { values: pixels, row_len: width * 3, len: width * 3 };
    let rows_first = rows_come_first(image.width, image.height, resized);
    two_passes(arch, input, height, rows_first, false, buffers, output);
}

/// Both passes, with the weights that are in the buffers, to `n_rows` rows of output.
fn two_passes(
    arch: Arch,
    input: Pixels,
    n_rows: usize,
    rows_first: bool,
    flip: bool,
    buffers: &mut Buffers,
    output: Lines,
) {
    let Buffers { columns, rows, strip, middle } = buffers;
    let row_len = input.row_len;
    if rows_first {
        let len = input.width * 3;
        middle.resize(n_rows * len, 0);
        let between = Lines { values: middle, row_len: len, len };
        arch.dispatch(ResampleRows { input: input.bytes, row_len, weights: rows, first_input: 0, output: between });
        let input = Pixels { bytes: middle, row_len: len, width: input.width };
        resample_columns(arch, input, n_rows, columns, flip, strip, output);
    } else {
        let (used, len) = (rows.input_range(), output.len);
        middle.resize(used.len() * len, 0);
        let between = Lines { values: middle, row_len: len, len };
        let input = Pixels { bytes: &input.bytes[used.start * row_len..], ..input };
        resample_columns(arch, input, used.len(), columns, flip, strip, between);
        arch.dispatch(ResampleRows { input: middle, row_len: len, weights: rows, first_input: used.start, output });
    }
}

/// Which pass Pillow runs first. Up to version 12 it was always the columns within each row; version 13 starts with the
/// rows where that removes more than twice as much. Found by comparing 3000 resizes with both orders.
fn rows_come_first(width: u32, height: u32, resized: (u32, u32)) -> bool {
    let removed = |from: u32, to: u32| i64::from(from) - i64::from(to);
    let (columns, rows) = (removed(width, resized.0), removed(height, resized.1));
    rows > 0 && rows > 2 * columns
}

/// Rows of interleaved pixels somewhere in a larger image.
#[derive(Clone, Copy)]
struct Pixels<'a> {
    bytes: &'a [u8],
    row_len: usize,
    /// In pixels.
    width: usize,
}

/// Rows of `len` values each in a buffer.
struct Lines<'a> {
    values: &'a mut [u8],
    row_len: usize,
    len: usize,
}

/// Resamples within each of `n_rows` rows of pixels.
fn resample_columns(
    arch: Arch,
    input: Pixels,
    n_rows: usize,
    weights: &Weights,
    flip: bool,
    strip: &mut Strip,
    output: Lines,
) {
    strip.input.resize(input.width, Column::default());
    strip.output.resize(weights.spans.len(), Column::default());
    for first_row in (0..n_rows).step_by(STRIP) {
        let rows = first_row..n_rows.min(first_row + STRIP);
        for (place, row) in rows.clone().enumerate() {
            turn_row(&input.bytes[row * input.row_len..][..input.width * 3], place, &mut strip.input);
        }
        arch.dispatch(ResampleStrip { input: &strip.input, weights, flip, output: &mut strip.output });
        for (place, row) in rows.enumerate() {
            turn_back(&strip.output, place, &mut output.values[row * output.row_len..][..output.len]);
        }
    }
}

// Four bytes are one move and three are two, so a pixel is moved with one byte too many, which the next one overwrites.
// These two are no vector code on purpose: compilers would make them gather and scatter, which is slower.

/// Puts a row of pixels into its place in each column.
fn turn_row(pixels: &[u8], row: usize, columns: &mut [Column]) {
    let place = row * 3;
    for (column, pixel) in columns.iter_mut().zip(pixels.windows(4).step_by(3)) {
        column.0[place..place + 4].copy_from_slice(pixel);
    }
    if let (Some(column), Some(pixel)) = (columns.last_mut(), pixels.last_chunk::<3>()) {
        column.0[place..place + 3].copy_from_slice(pixel);
    }
}

/// Takes a row of pixels out of its place in each column.
fn turn_back(columns: &[Column], row: usize, pixels: &mut [u8]) {
    let place = row * 3;
    for (n, column) in columns.iter().enumerate() {
        match pixels[n * 3..].first_chunk_mut::<4>() {
            Some(pixel) => pixel.copy_from_slice(&column.0[place..place + 4]),
            None => pixels[n * 3..].copy_from_slice(&column.0[place..place + 3]),
        }
    }
}

/// Resamples a strip; its columns come out from right to left if `flip`.
struct ResampleStrip<'a> {
    input: &'a [Column],
    weights: &'a Weights,
    flip: bool,
    output: &'a mut [Column],
}

impl WithSimd for ResampleStrip<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let n_columns = self.output.len();
        for (column, output) in self.output.iter_mut().enumerate() {
            let (first_input, weights) = self.weights.at(if self.flip { n_columns - 1 - column } else { column });
            let (mut a, mut b, mut c) = ([HALF; LANES], [HALF; LANES], [HALF; LANES]);
            for (column, weight) in self.input[first_input..].iter().zip(weights) {
                add_weighted(&mut a, &column.0[..LANES], *weight);
                add_weighted(&mut b, &column.0[LANES..2 * LANES], *weight);
                add_weighted(&mut c, &column.0[2 * LANES..3 * LANES], *weight);
            }
            output.0[..LANES].copy_from_slice(&to_bytes(&a));
            output.0[LANES..2 * LANES].copy_from_slice(&to_bytes(&b));
            output.0[2 * LANES..3 * LANES].copy_from_slice(&to_bytes(&c));
        }
    }
}

/// Resamples down the rows of `input`, whose first row has the number `first_input`.
struct ResampleRows<'a> {
    input: &'a [u8],
    row_len: usize,
    weights: &'a Weights,
    first_input: usize,
    output: Lines<'a>,
}

impl WithSimd for ResampleRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Lines { values, row_len, len } = self.output;
        for (n, output) in values.chunks_mut(row_len).take(self.weights.spans.len()).enumerate() {
            let (first, weights) = self.weights.at(n);
            let input = &self.input[(first - self.first_input) * self.row_len..];
            let (chunks, rest) = output[..len].as_chunks_mut::<CHUNK>();
            let n_whole = chunks.len() * CHUNK;
            for (chunk_idx, chunk) in chunks.iter_mut().enumerate() {
                let mut sums = [HALF; CHUNK];
                for (row, weight) in weights.iter().enumerate() {
                    add_weighted(&mut sums, &input[row * self.row_len + chunk_idx * CHUNK..][..CHUNK], *weight);
                }
                *chunk = to_bytes(&sums);
            }
            let mut sums = [HALF; CHUNK];
            for (row, weight) in weights.iter().enumerate() {
                let values = &input[row * self.row_len + n_whole..][..rest.len()];
                add_weighted(&mut sums[..rest.len()], values, *weight);
            }
            rest.copy_from_slice(&to_bytes(&sums)[..rest.len()]);
        }
    }
}

#[inline(always)]
fn add_weighted(sums: &mut [i32], values: &[u8], weight: i32) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += i32::from(*value) * weight;
    }
}

/// The sums as pixels. (The arrays' own `map` is not inlined, and so would not be vector code.)
#[inline(always)]
fn to_bytes<const N: usize>(sums: &[i32; N]) -> [u8; N] {
    let mut bytes = [0; N];
    for (byte, sum) in bytes.iter_mut().zip(sums) {
        *byte = (sum >> PRECISION_BITS).clamp(0, 255) as u8;
    }
    bytes
}
