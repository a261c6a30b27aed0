//! Convolutions over bf16 feature maps on AMX.
//!
//! Forward and backward-data are the sweeps of `correlate`, run as matrix products: a task gathers the windows of its pixels as
//! rows (one copy of at most a few hundred KB, which stays in L2), then multiplies blocks of 32 pixels × 32 channels.
//! Where a window is just one pixel's channels (1×1, stride 1) nothing is gathered.
//!
//! The weight gradient sums over pixels, so pixels must lie along the tiles' depth: a task transposes its padded images to
//! `[channel, position]` once, and every filter tap is then only an offset along the positions. The gradients lie at the
//! same positions, interleaved in pairs, zero where the padding is. With stride 2 each parity of rows and columns is a plane
//! of its own.

use super::amx::{BLOCK, DEPTH, PANEL, ROWS, Tiles};
use super::conv::{Context, Convolution, Taps, backward_sweeps, forward_sweep};
use super::correlate::{Sweep, Task};
use super::elementwise;
use super::simd::Level;
use super::team::{Shards, Team};
use crate::element::{Bf16, Element};
use crate::host::try_zeroed;
use crate::types::{ConvShape, ConvUse, Dims, EngineError, Write};
use std::arch::x86_64::{
    __m512i, _mm512_loadu_si512, _mm512_permutex2var_epi16, _mm512_setzero_si512, _mm512_storeu_si512,
};

/// Most bytes of a task's gathered windows, and most of its pixels.
const TASK_BYTES: usize = 768 << 10;
const TASK_PIXELS: usize = 384;

/// A convolution over bf16 maps, planned for AMX.
pub struct AmxConv {
    shape: ConvShape,
    forward: PackedSweep,
    backward: Vec<PackedSweep>,
    gradient: GradientPlan,
    trains: bool,
}

/// A sweep as a matrix product: windows of `depth` values, padded to whole tiles, times packed weights.
struct PackedSweep {
    sweep: Sweep,
    taps: Taps,
    /// Per panel of 32 channels and step of 32 depths: two tiles `[16, 16, 2]`.
    packed: Vec<u16>,
}

impl PackedSweep {
    fn new(sweep: Sweep, taps: Taps, held: &mut usize) -> Result<Self, EngineError> {
        let len = sweep.dst.c.next_multiple_of(PANEL) * sweep.depth().next_multiple_of(DEPTH);
        Ok(Self { sweep, taps, packed: try_zeroed::<u16>(len, "packed weights", held)? })
    }

    /// Steps of 32 along a window.
    fn steps(&self) -> usize {
        self.sweep.depth().div_ceil(DEPTH)
    }

    /// Values from one gathered window to the next: a tile row more than the window, so that rows spread over cache sets.
    fn row(&self) -> usize {
        (self.steps() + 1) * DEPTH
    }

    /// Whether windows are contiguous pixels already.
    fn is_pointwise(&self) -> bool {
        let s = &self.sweep;
        s.kernel == (1, 1) && s.stride == 1 && s.pad == (0, 0) && s.src.c % DEPTH == 0 && s.grid == (s.src.h, s.src.w)
    }

    fn tasks(&self) -> (usize, usize) {
        let limit = (TASK_BYTES / 2 / self.row()).clamp(PANEL, TASK_PIXELS);
        self.sweep.task_shape_within(limit)
    }

    fn scratch_values(&self) -> usize {
        let (images, rows) = self.tasks();
        (images * rows * self.sweep.grid.1).next_multiple_of(PANEL) * self.row() + 2 * BLOCK
    }

    fn pack(&mut self, team: &Team, shape: &ConvShape, is_forward: bool, weights: &[f32], mask: Option<&[u8]>) {
        let (k, cin) = (shape.kernel, shape.input.c);
        let (src_step, dst_step) = if is_forward { (1, k * k * cin) } else { (k * k * cin, 1) };
        let (depth, c, src_c, steps) = (self.sweep.depth(), self.sweep.dst.c, self.sweep.src.c, self.steps());
        let taps = &self.taps;
        // Where value `d` of a window comes from in the weights of output channel 0.
        let source = |d: usize| {
            let (tap, ci) = (d / src_c, d % src_c);
            let (kh, kw) = (taps.0[tap / taps.1.len()], taps.1[tap % taps.1.len()]);
            (kh * k + kw) * cin + ci * src_step
        };
        team.for_parts(&mut self.packed, steps * DEPTH * PANEL, |panel, part| {
            for d in (0..steps * DEPTH).step_by(2) {
                let (step, row) = (d / DEPTH, d % DEPTH / 2);
                for j in 0..PANEL {
                    let to = step * DEPTH * PANEL + j / ROWS * ROWS * DEPTH + row * DEPTH + j % ROWS * 2;
                    for half in 0..2 {
                        let co = panel * PANEL + j;
                        part[to + half] = if d + half < depth && co < c {
                            let from = source(d + half) + co * dst_step;
                            let keep = mask.is_none_or(|mask| mask[from] != 0);
                            Bf16::of(if keep { weights[from] } else { 0.0 }).0
                        } else {
                            0
                        };
                    }
                }
            }
        });
    }

    /// Gathers the windows of a task's pixels as rows of `self.row()` values, zero past the window.
    fn gather(&self, task: &Task, x: &[u16], out: &mut [u16]) {
        let s = &self.sweep;
        let Dims { h, w, c } = s.src;
        let (run, depth) = (s.kernel.1 * c, s.depth());
        let mut rows = out.chunks_exact_mut(self.row());
        for image in task.image..task.image + task.n_images {
            let x = &x[image * s.src.len()..][..s.src.len()];
            for r in task.row..task.row + task.n_rows {
                for col in 0..s.grid.1 {
                    let out = rows.next().expect("room for every window");
                    let left = (col * s.stride) as isize - s.pad.1;
                    let skip = (-left).clamp(0, s.kernel.1 as isize) as usize;
                    let take = (w as isize - left).clamp(skip as isize, s.kernel.1 as isize) as usize;
                    for a in 0..s.kernel.0 {
                        let y = (r * s.stride + a) as isize - s.pad.0;
                        let out = &mut out[a * run..(a + 1) * run];
                        if y < 0 || y >= h as isize || take == skip {
                            out.fill(0);
                            continue;
                        }
                        let from = ((y as usize * w) as isize + left + skip as isize) as usize * c;
                        out[..skip * c].fill(0);
                        out[skip * c..take * c].copy_from_slice(&x[from..from + (take - skip) * c]);
                        out[take * c..].fill(0);
                    }
                    out[depth..].fill(0);
                }
            }
        }
    }

    /// Runs one task into `y`; `sums` `[2, dst.c]` receives Σ and Σ² of its pixels.
    ///
    /// # Safety
    /// `y` must hold `n` destination images and no other thread may run this task.
    unsafe fn run(
        &self,
        n: usize,
        index: usize,
        x: &[u16],
        y: *mut Bf16,
        write: Write,
        scratch: &mut [u16],
        mut sums: Option<&mut [f32]>,
    ) {
        let task = self.sweep.task_of(self.tasks(), n, index);
        let n_pixels = task.n_images * task.n_rows * self.sweep.grid.1;
        let (block, gathered) = scratch.split_at_mut(2 * BLOCK);
        let whole_images = task.n_rows == self.sweep.grid.0;
        let (a, row) = if self.is_pointwise() && whole_images && n_pixels % PANEL == 0 {
            (&x[task.image * self.sweep.src.len()..], self.sweep.src.c)
        } else {
            self.gather(&task, x, &mut gathered[..n_pixels * self.row()]);
            (&*gathered, self.row())
        };
        if let Some(sums) = sums.as_deref_mut() {
            sums.fill(0.0);
        }
        let tiles = Tiles::configure();
        let (c, steps) = (self.sweep.dst.c, self.steps());
        for panel in 0..c.div_ceil(PANEL) {
            let b = &self.packed[panel * steps * DEPTH * PANEL..][..steps * DEPTH * PANEL];
            for first in (0..n_pixels).step_by(2 * ROWS) {
                let second = if first + ROWS < n_pixels { first + ROWS } else { first };
                // SAFETY: `a` holds whole rows for every pixel of both tiles (gathered rows are padded to a multiple of
                // 32 by `scratch_values`); `b` holds `steps` pairs of tiles; `block` holds four.
                unsafe {
                    let a = (a.as_ptr().add(first * row), a.as_ptr().add(second * row));
                    let to = block.as_mut_ptr().cast::<f32>();
                    tiles.multiply(a, 2 * row, b.as_ptr(), steps, to, 64, ROWS * ROWS, 2 * ROWS * ROWS, false);
                    let block = std::slice::from_raw_parts(to, BLOCK);
                    let width = PANEL.min(c - panel * PANEL);
                    let pixels = first..n_pixels.min(first + 2 * ROWS);
                    self.finish(&task, pixels, block, panel * PANEL, width, y, write, sums.as_deref_mut());
                }
            }
        }
    }

    /// Rounds a block of accumulators into the destination and adds it to the channel sums.
    ///
    /// # Safety
    /// As [`PackedSweep::run`]; AVX-512 is there wherever AMX is.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    #[allow(clippy::too_many_arguments)]
    unsafe fn finish(
        &self,
        task: &Task,
        pixels: std::ops::Range<usize>,
        block: &[f32],
        at: usize,
        width: usize,
        y: *mut Bf16,
        write: Write,
        sums: Option<&mut [f32]>,
    ) {
        let s = &self.sweep;
        let (mut sum, mut square) = ([0.0f32; PANEL], [0.0f32; PANEL]);
        for (i, p) in pixels.enumerate() {
            let (line, col) = (p / s.grid.1, p % s.grid.1);
            let (image, r) = (task.image + line / task.n_rows, task.row + line % task.n_rows);
            let pixel = (image * s.dst.h + s.first.0 + r * s.step) * s.dst.w + s.first.1 + col * s.step;
            // SAFETY: the pixel lies in the destination by the caller's promise, and so do its `width` channels from `at` on.
            let out = unsafe { std::slice::from_raw_parts_mut(y.add(pixel * s.dst.c + at), width) };
            let mut values = [0.0f32; PANEL];
            for half in 0..2 {
                let row = &block[(i / ROWS * 2 + half) * ROWS * ROWS + i % ROWS * ROWS..][..ROWS];
                values[half * ROWS..(half + 1) * ROWS].copy_from_slice(row);
            }
            for j in 0..PANEL {
                sum[j] += values[j];
                square[j] += values[j] * values[j];
            }
            if write == Write::Add {
                for (v, old) in values.iter_mut().zip(&*out) {
                    *v += old.get();
                }
            }
            if let Ok(out) = <&mut [Bf16; PANEL]>::try_from(&mut *out) {
                for j in 0..PANEL {
                    out[j] = Bf16::of(values[j]);
                }
            } else {
                for (out, v) in out.iter_mut().zip(values) {
                    *out = Bf16::of(v);
                }
            }
        }
        if let Some(sums) = sums {
            for j in 0..width {
                sums[at + j] += sum[j];
                sums[s.dst.c + at + j] += square[j];
            }
        }
    }
}

/// How a task of the weight gradient lays out its images.
#[derive(Clone, Copy)]
struct GradientPlan {
    /// Images and grid rows of a task.
    images: usize,
    rows: usize,
    /// Rows and columns of one parity plane, and its positions per image.
    plane: (usize, usize),
    /// Positions that the filter reaches past a window's first.
    reach: usize,
    /// Values of one channel's row: all images' positions in whole steps, the reach, and room against cache conflicts.
    row: usize,
    /// Source channels in whole tile pairs.
    channels: usize,
}

/// Most positions of a task of the weight gradient: with 64 channels, some hundred KB transposed.
const GRADIENT_POSITIONS: usize = 1536;

impl GradientPlan {
    fn new(shape: &ConvShape, sweep: &Sweep) -> Self {
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

    fn scratch_values(&self, shape: &ConvShape) -> usize {
        let planes = shape.stride * shape.stride * self.channels * self.row;
        planes + self.positions(self.images) * shape.cout.next_multiple_of(PANEL)
    }

    /// Floats of one slice's gradient: per panel `[taps, channels, 32]`.
    fn len(&self, shape: &ConvShape) -> usize {
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
    fn gradient_task(&self, n: usize, index: usize, x: &[u16], dy: &[u16], scratch: &mut [u16], dw: &mut [f32]) {
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

/// The bits of bf16 values.
fn bits(values: &[Bf16]) -> &[u16] {
    // SAFETY: `Bf16` is a transparent u16.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

/// Scratch floats as 16-bit values.
fn halves(values: &mut [f32]) -> &mut [u16] {
    // SAFETY: twice as many values of half the size and alignment; any bits are valid.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), 2 * values.len()) }
}

impl Convolution<Bf16> for AmxConv {
    fn new(shape: ConvShape, used: ConvUse, _level: Level, held: &mut usize) -> Result<Self, EngineError> {
        let all: Vec<usize> = (0..shape.kernel).collect();
        let sweep = forward_sweep(&shape);
        let gradient = GradientPlan::new(&shape, &sweep);
        let forward = PackedSweep::new(sweep, (all.clone(), all), held)?;
        let trains = used == ConvUse::Train;
        let mut backward = Vec::new();
        if trains {
            for (sweep, taps) in backward_sweeps(&shape) {
                backward.push(PackedSweep::new(sweep, taps, held)?);
            }
        }
        Ok(Self { shape, forward, backward, gradient, trains })
    }

    fn scratch_len(&self, _level: Level, used: ConvUse) -> usize {
        let sweeps = std::iter::once(&self.forward).chain(&self.backward);
        let gathered = sweeps.map(PackedSweep::scratch_values).max().unwrap_or(0);
        let gradient = if used == ConvUse::Forward { 0 } else { self.gradient.scratch_values(&self.shape) };
        gathered.max(gradient).div_ceil(2)
    }

    fn partial_len(&self, max_batch: usize, n_slices: usize, used: ConvUse) -> usize {
        let sums = self.forward.sweep.n_tasks_of(self.forward.tasks(), max_batch) * 2 * self.shape.cout;
        let weights = if used == ConvUse::Forward { 0 } else { n_slices * self.gradient.len(&self.shape) };
        sums.max(weights)
    }

    fn pack(&mut self, team: &Team, _level: Level, weights: &[f32], mask: Option<&[u8]>) {
        self.forward.pack(team, &self.shape, true, weights, mask);
        for sweep in &mut self.backward {
            sweep.pack(team, &self.shape, false, weights, mask);
        }
    }

    fn forward(&self, ctx: &mut Context, n: usize, x: &[Bf16], y: &mut [Bf16], sums: Option<&mut [f32]>) {
        let n_tasks = self.forward.sweep.n_tasks_of(self.forward.tasks(), n);
        let width = 2 * self.shape.cout;
        let partial = Shards::new(&mut ctx.partial[..if sums.is_some() { n_tasks * width } else { 0 }]);
        run(&self.forward, ctx.team, ctx.scratch, n, x, y, Write::Set, |task| {
            // SAFETY: one part per task, and each task runs once.
            sums.is_some().then(|| unsafe { partial.part(task * width, width) })
        });
        if let Some(sums) = sums {
            elementwise::add_partials(&ctx.partial[..n_tasks * width], sums);
        }
    }

    fn backward_data(&self, ctx: &mut Context, n: usize, dy: &[Bf16], dx: &mut [Bf16], write: Write) {
        assert!(self.trains, "a convolution planned without backward-data was asked for it");
        let covered: usize = self.backward.iter().map(|s| s.sweep.grid.0 * s.sweep.grid.1).sum();
        if write == Write::Set && covered < self.shape.input.pixels() {
            ctx.team.for_parts(&mut dx[..n * self.shape.input.len()], 1 << 16, |_, part| part.fill(Bf16(0)));
        }
        for sweep in &self.backward {
            run(sweep, ctx.team, ctx.scratch, n, dy, dx, write, |_| None);
        }
    }

    fn backward_weight(
        &self,
        ctx: &mut Context,
        n: usize,
        x: &[Bf16],
        dy: &[Bf16],
        dw: &mut [f32],
        mask: Option<&[u8]>,
    ) {
        let (plan, sweep) = (&self.gradient, &self.forward.sweep);
        assert!(x.len() >= n * sweep.src.len() && dy.len() >= n * sweep.dst.len());
        let n_tasks = sweep.n_tasks_of((plan.images, plan.rows), n);
        let (len, n_slices) = (plan.len(&self.shape), ctx.team.n_members().min(n_tasks));
        let (x, dy, scratch) = (bits(x), bits(dy), Shards::new(ctx.scratch));
        ctx.team.for_parts(&mut ctx.partial[..n_slices * len], len, |slice, out| {
            out.fill(0.0);
            // SAFETY: one scratch per slice, and each slice runs once.
            let scratch = halves(unsafe { &mut scratch.part(slice, 1)[0] });
            for task in n_tasks * slice / n_slices..n_tasks * (slice + 1) / n_slices {
                self.gradient_task(n, task, x, dy, scratch, out);
            }
        });
        let (partial, taps, cin) = (&ctx.partial[..n_slices * len], self.shape.kernel.pow(2), self.shape.input.c);
        let depth = taps * cin;
        ctx.team.for_parts(dw, depth * PANEL, |panel, dw| {
            let channels = dw.len() / depth;
            for (row, j) in (0..depth).flat_map(|row| (0..channels).map(move |j| (row, j))) {
                let from = ((panel * taps + row / cin) * plan.channels + row % cin) * PANEL + j;
                let sum: f32 = partial.iter().skip(from).step_by(len).sum();
                let to = j * depth + row;
                let keep = mask.is_none_or(|mask| mask[panel * PANEL * depth + to] != 0);
                dw[to] += if keep { sum } else { 0.0 };
            }
        });
    }
}

#[allow(clippy::too_many_arguments)]
fn run<'s>(
    packed: &PackedSweep,
    team: &Team,
    scratch: &mut [Vec<f32>],
    n: usize,
    x: &[Bf16],
    y: &mut [Bf16],
    write: Write,
    sums: impl Fn(usize) -> Option<&'s mut [f32]> + Sync,
) {
    let sweep = &packed.sweep;
    assert!(x.len() >= n * sweep.src.len() && y.len() >= n * sweep.dst.len(), "buffers for {n} images");
    let (scratch, y, x) = (Shards::new(scratch), Shards::new(y), bits(x));
    team.for_chunks(sweep.n_tasks_of(packed.tasks(), n), |task, member| {
        // SAFETY: one scratch per member; `y` holds `n` images by the assertion; tasks cover disjoint pixels, each once.
        unsafe {
            let scratch = halves(&mut scratch.part(member, 1)[0]);
            packed.run(n, task, x, y.as_ptr(), write, scratch, sums(task));
        }
    });
}
