//! The weight gradient: pixels along the tiles' depth.

use super::super::correlate::{Sweep, Task};
use super::AmxConv;
use super::amx::{DEPTH, PANEL, ROWS, Tiles};
use crate::types::{ConvShape, Dims};
use std::arch::x86_64::{
    __m512i, _mm512_loadu_si512, _mm512_permutex2var_epi16, _mm512_setzero_si512, _mm512_storeu_si512,
};

/// How a task of the weight gradient lays out its images.
#[derive(Clone, Copy)]
pub struct GradientPlan {
    /// Images and grid rows of a task.
    pub images: usize,
    pub rows: usize,
    /// Rows and columns of one parity plane, and its positions per image.
    plane: (usize, usize),
    /// Positions that the filter reaches past a window's first.
    reach: usize,
    /// Values of one channel's row: all images' positions in whole steps, the reach, and room against cache conflicts.
    row: usize,
    /// Source channels in whole tile pairs.
    pub channels: usize,
}

/// Most positions of a task of the weight gradient: with 64 channels, some hundred KB transposed.
const GRADIENT_POSITIONS: usize = 1536;

impl GradientPlan {
    pub fn new(shape: &ConvShape, sweep: &Sweep) -> Self {
        let reach = (shape.kernel - 1) / shape.stride;
        let width = sweep.grid.1 + reach;
        let channels = shape.input.c.next_multiple_of(PANEL);
        // Transposed planes and interleaved gradients within about 1 MB.
        let per_position = 2 * (channels * shape.stride * shape.stride + shape.cout.next_multiple_of(PANEL));
        let limit = (1 << 20) / per_position;
        let limit = limit.clamp(128, GRADIENT_POSITIONS);
        let of = |rows: usize| (rows + reach) * width;
        let (images, rows) = if of(sweep.grid.0) <= limit {
            (limit / of(sweep.grid.0), sweep.grid.0)
        } else {
            (1, (1..=sweep.grid.0).rev().find(|&rows| of(rows) <= limit).unwrap_or(1))
        };
        let plane = (rows + reach, width);
        let reach = reach * width + reach;
        let row = (images * plane.0 * plane.1).next_multiple_of(DEPTH) + (reach + 1).next_multiple_of(DEPTH) + DEPTH;
        Self { images, rows, plane, reach, row, channels }
    }

    /// Positions of a task of `n_images`, in whole steps.
    fn positions(&self, n_images: usize) -> usize {
        (n_images * self.plane.0 * self.plane.1).next_multiple_of(DEPTH)
    }

    pub fn scratch_values(&self, shape: &ConvShape) -> usize {
        let planes = shape.stride * shape.stride * self.channels * self.row;
        planes + self.positions(self.images) * shape.cout.next_multiple_of(PANEL)
    }

    /// Floats of one slice's gradient: per panel `[taps, channels, 32]`.
    pub fn len(&self, shape: &ConvShape) -> usize {
        shape.kernel * shape.kernel * self.channels * shape.cout.next_multiple_of(PANEL)
    }
}

impl AmxConv {
    /// Transposes a task's images into parity planes `[channel, position]`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    fn transpose(&self, task: &Task, x: &[u16], planes: &mut [u16]) {
        let (plan, s, Dims { h, w, c }) = (&self.gradient, self.shape.stride, self.shape.input);
        let pad = self.shape.pad as isize;
        let n_positions = task.n_images * plan.plane.0 * plan.plane.1;
        for (parity, plane) in planes.chunks_exact_mut(plan.channels * plan.row).enumerate() {
            let pixel = |position: usize| {
                let (image, rest) =
                    (position / (plan.plane.0 * plan.plane.1), position % (plan.plane.0 * plan.plane.1));
                let (r, col) = (task.row + rest / plan.plane.1, rest % plan.plane.1);
                let y = (r * s + parity / s) as isize - pad;
                let x = (col * s + parity % s) as isize - pad;
                let inside = position < n_positions && y >= 0 && x >= 0 && y < h as isize && x < w as isize;
                inside.then(|| (((task.image + image) * h + y as usize) * w + x as usize) * c)
            };
            for first in (0..plan.row).step_by(DEPTH) {
                let pixels: [Option<usize>; DEPTH] = std::array::from_fn(|i| pixel(first + i));
                for channel in (0..plan.channels).step_by(DEPTH) {
                    let n = DEPTH.min(c.saturating_sub(channel));
                    let mut rows = [_mm512_setzero_si512(); DEPTH];
                    if n == DEPTH {
                        for (row, pixel) in rows.iter_mut().zip(pixels) {
                            if let Some(at) = pixel {
                                let values = &x[at + channel..at + channel + DEPTH];
                                // SAFETY: the slice holds 32 values.
                                *row = unsafe { _mm512_loadu_si512(values.as_ptr().cast()) };
                            }
                        }
                    } else {
                        for (row, pixel) in rows.iter_mut().zip(pixels) {
                            if let Some(at) = pixel {
                                let mut values = [0u16; DEPTH];
                                values[..n].copy_from_slice(&x[at + channel..at + channel + n]);
                                // SAFETY: the array holds 32 values.
                                *row = unsafe { _mm512_loadu_si512(values.as_ptr().cast()) };
                            }
                        }
                    }
                    transpose_32(&mut rows);
                    for (k, row) in rows.iter().enumerate() {
                        let to = &mut plane[(channel + k) * plan.row + first..][..DEPTH];
                        // SAFETY: the slice holds 32 values.
                        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), *row) };
                    }
                }
            }
        }
    }

    /// Lays a task's gradients out per panel as `[step, 2 tiles, 16, 16, 2]`: pairs of positions, zero in the padding.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    fn interleave(&self, task: &Task, dy: &[u16], out: &mut [u16]) {
        let (plan, Dims { h, w, c }) = (&self.gradient, self.forward.sweep.dst);
        let n_positions = plan.positions(task.n_images);
        let low: [u16; DEPTH] = std::array::from_fn(|i| (i / 2 + i % 2 * DEPTH) as u16);
        let high: [u16; DEPTH] = std::array::from_fn(|i| (ROWS + i / 2 + i % 2 * DEPTH) as u16);
        // SAFETY: both arrays hold 32 values.
        let (low, high) =
            unsafe { (_mm512_loadu_si512(low.as_ptr().cast()), _mm512_loadu_si512(high.as_ptr().cast())) };
        let pixel = |position: usize| {
            let (image, rest) = (position / (plan.plane.0 * plan.plane.1), position % (plan.plane.0 * plan.plane.1));
            let (r, col) = (rest / plan.plane.1, rest % plan.plane.1);
            let inside = image < task.n_images && r < task.n_rows && col < w;
            inside.then(|| (((task.image + image) * h + task.row + r) * w + col) * c)
        };
        for (panel, out) in out.chunks_exact_mut(n_positions * PANEL).enumerate() {
            let n = PANEL.min(c - panel * PANEL);
            let load = |position: usize| {
                let mut values = [0u16; PANEL];
                match pixel(position) {
                    // SAFETY: the slice holds 32 values.
                    Some(at) if n == PANEL => unsafe {
                        let values = &dy[at + panel * PANEL..][..PANEL];
                        return _mm512_loadu_si512(values.as_ptr().cast());
                    },
                    Some(at) => values[..n].copy_from_slice(&dy[at + panel * PANEL..][..n]),
                    None => {}
                }
                // SAFETY: the array holds 32 values.
                unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
            };
            for position in (0..n_positions).step_by(2) {
                let (a, b) = (load(position), load(position + 1));
                let at = position / DEPTH * DEPTH * PANEL + position % DEPTH / 2 * DEPTH;
                let (first, second) = out[at..].split_at_mut(ROWS * DEPTH);
                assert!(first.len() >= DEPTH && second.len() >= DEPTH);
                // SAFETY: both slices hold 32 values.
                unsafe {
                    _mm512_storeu_si512(first.as_mut_ptr().cast(), _mm512_permutex2var_epi16(a, low, b));
                    _mm512_storeu_si512(second.as_mut_ptr().cast(), _mm512_permutex2var_epi16(a, high, b));
                }
            }
        }
    }

    /// Adds one task's weight gradient to a slice.
    pub(super) fn gradient_task(
        &self,
        n: usize,
        index: usize,
        x: &[u16],
        dy: &[u16],
        scratch: &mut [u16],
        dw: &mut [f32],
    ) {
        let (plan, k, s) = (&self.gradient, self.shape.kernel, self.shape.stride);
        let task = self.forward.sweep.task_of((plan.images, plan.rows), n, index);
        let n_positions = plan.positions(task.n_images);
        let (planes, dys) = scratch.split_at_mut(s * s * plan.channels * plan.row);
        let n_panels = self.shape.cout.div_ceil(PANEL);
        let dys = &mut dys[..n_panels * n_positions * PANEL];
        // SAFETY: AVX-512 is there wherever AMX is, and without AMX this engine is not made.
        unsafe {
            self.transpose(&task, x, planes);
            self.interleave(&task, dy, dys);
        }
        let tiles = Tiles::configure();
        let panel_len = k * k * plan.channels * PANEL;
        assert_eq!(dw.len(), n_panels * panel_len);
        for (tap, channel) in (0..k * k).flat_map(|tap| (0..plan.channels).step_by(PANEL).map(move |c| (tap, c))) {
            let (a, b) = (tap / k, tap % k);
            let plane = (a % s * s + b % s) * plan.channels;
            let offset = a / s * plan.plane.1 + b / s;
            assert!(offset <= plan.reach);
            for panel in 0..n_panels {
                // SAFETY: the plane's rows hold `n_positions` and the reach; the gradients as many steps; the slice's panel
                // holds 32 × 32 floats at this tap and channel.
                unsafe {
                    let first = planes.as_ptr().add((plane + channel) * plan.row + offset);
                    let to = dw.as_mut_ptr().add(panel * panel_len + (tap * plan.channels + channel) * PANEL);
                    tiles.multiply(
                        (first, first.add(ROWS * plan.row)),
                        2 * plan.row,
                        dys.as_ptr().add(panel * n_positions * PANEL),
                        n_positions / DEPTH,
                        to,
                        4 * PANEL,
                        ROWS,
                        ROWS * PANEL,
                        true,
                    );
                }
            }
        }
    }
}

/// Transposes 32 × 32 16-bit values by swapping off-diagonal blocks of 16, 8, 4, 2 and 1.
#[inline(always)]
fn transpose_32(rows: &mut [__m512i; DEPTH]) {
    let mut size = DEPTH / 2;
    while size > 0 {
        let mut low = [0u16; DEPTH];
        let mut high = [0u16; DEPTH];
        for lane in 0..DEPTH {
            let moves = lane & size != 0;
            low[lane] = (if moves { DEPTH + lane - size } else { lane }) as u16;
            high[lane] = (if moves { DEPTH + lane } else { lane + size }) as u16;
        }
        // SAFETY: the arrays hold 32 values; callers have AVX-512 BW.
        let (low, high) =
            unsafe { (_mm512_loadu_si512(low.as_ptr().cast()), _mm512_loadu_si512(high.as_ptr().cast())) };
        for i in (0..DEPTH).filter(|i| i & size == 0) {
            let (a, b) = (rows[i], rows[i + size]);
            // SAFETY: callers have AVX-512 BW.
            unsafe {
                rows[i] = _mm512_permutex2var_epi16(a, low, b);
                rows[i + size] = _mm512_permutex2var_epi16(a, high, b);
            }
        }
        size /= 2;
    }
}
