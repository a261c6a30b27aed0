//! The weight gradient on tiles: pixels along the tiles' depth.
//!
//! A tile of inputs wants pixels beside one another, so for each 32 channels a task turns its images to `[channel, position]`.
//! Wide images are turned once, padding included (with stride 2, each parity of rows and columns apart), and every filter tap
//! is then only an offset along the positions; the gradients lie at the same positions, zero where the padding is. Of small
//! images padding would be the better half: there each tap has a turning of its own, of just the pixels that it meets.

use super::super::cell::Cell;
use super::super::gradient::Job;
use super::super::layout::Blocks;
use super::super::sweep::{Sweep, Task, TaskShape};
use super::tiles::{A, C, DEPTH, PANEL, ROWS, Tiles};
use crate::types::Dims;
use std::arch::x86_64::{
    __m512i, _mm512_loadu_si512, _mm512_maskz_loadu_epi16, _mm512_permutex2var_epi16, _mm512_setzero_si512,
    _mm512_storeu_si512,
};

/// Most positions of a task: with 64 channels, some hundred KB turned.
const POSITIONS: usize = 1536;
/// Most bytes of a task's gradients and of 32 channels turned.
const TASK_BYTES: usize = 1 << 20;
/// Columns of a small image.
const SMALL: usize = 8;

/// How a task lays out its images.
#[derive(Clone, Copy)]
struct Plan {
    /// Whether each tap has a plane of its own.
    by_tap: bool,
    /// Rows and columns of a plane of one image.
    plane: (usize, usize),
    /// Planes, and values from one channel's row to the next: all images' positions in whole steps, what the taps reach
    /// behind them, and room against cache conflicts.
    n_planes: usize,
    row: usize,
    /// Positions of all images, in whole steps.
    positions: usize,
}

impl Plan {
    fn of(sweep: &Sweep, images: usize, rows: usize) -> Self {
        let ((kh, kw), s) = (sweep.kernel, sweep.stride);
        let by_tap = kw == 1 || sweep.grid.1 <= SMALL;
        let reach = if by_tap { 0 } else { (kw - 1) / s };
        let plane = (rows + reach, sweep.grid.1 + reach);
        let positions = (images * plane.0 * plane.1).next_multiple_of(DEPTH);
        let row = positions + (reach * plane.1 + reach + 1).next_multiple_of(DEPTH) + DEPTH;
        Self { by_tap, plane, n_planes: if by_tap { kh * kw } else { s * s }, row, positions }
    }

    /// Values of the planes of 32 channels.
    fn planes_len(&self) -> usize {
        self.n_planes * PANEL * self.row
    }

    /// The source pixel, relative to the first window's, of a plane's first position.
    fn origin(&self, sweep: &Sweep, plane: usize) -> (usize, usize) {
        let width = if self.by_tap { sweep.kernel.1 } else { sweep.stride };
        (plane / width, plane % width)
    }

    /// The plane of a tap and where in its rows the tap's first position is.
    fn tap(&self, sweep: &Sweep, (a, b): (usize, usize)) -> (usize, usize) {
        let s = sweep.stride;
        if self.by_tap { (a * sweep.kernel.1 + b, 0) } else { (a % s * s + b % s, a / s * self.plane.1 + b / s) }
    }
}

/// The tasks of the weight gradient of a forward sweep.
pub(crate) fn tasks(sweep: &Sweep) -> TaskShape {
    let fits = |images: usize, rows: usize| {
        let plan = Plan::of(sweep, images, rows);
        let bytes = 2 * (plan.planes_len() + plan.positions * sweep.dst.c.next_multiple_of(PANEL));
        plan.positions <= POSITIONS && bytes <= TASK_BYTES
    };
    let rows = sweep.grid.0;
    match (1..=POSITIONS / rows.max(1)).rev().find(|&images| fits(images, rows)) {
        Some(images) => (images, rows),
        None => (1, (1..rows).rev().find(|&rows| fits(1, rows)).unwrap_or(1)),
    }
}

/// Floats of scratch that a task needs.
pub(crate) fn scratch_len(sweep: &Sweep) -> usize {
    let (images, rows) = tasks(sweep);
    let plan = Plan::of(sweep, images, rows);
    (plan.planes_len() + plan.positions * sweep.dst.c.next_multiple_of(PANEL)) / 2
}

/// Adds a task's weight gradient to the blocks of inputs from `first` on that `dw` has room for.
///
/// # Safety
/// The CPU must have AMX, and `E` be bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(crate) unsafe fn weight_gradient<E: Cell>(
    job: &Job<E>,
    blocks: &Blocks,
    index: usize,
    first: usize,
    scratch: &mut [f32],
    dw: &mut [f32],
) {
    assert_eq!(size_of::<E>(), 2);
    let sweep = job.sweep;
    let task = sweep.task(job.tasks, job.n, index);
    // Laid out for a whole task, so that the last one's rows lie as far apart.
    let plan = Plan::of(sweep, job.tasks.0, job.tasks.1);
    let used = (task.n_images * plan.plane.0 * plan.plane.1).next_multiple_of(DEPTH);
    let (planes, dys) = E::of_scratch(scratch).split_at_mut(plan.planes_len());
    let n_panels = sweep.dst.c.div_ceil(PANEL);
    let dys = &mut dys[..n_panels * used * PANEL];
    // SAFETY: the caller's promise.
    unsafe { interleave(job, &plan, &task, used, dys) };
    let (taps, tiles) = (sweep.kernel.0 * sweep.kernel.1, Tiles::configure());
    let mut turned = None;
    for (block, dw) in (first..).zip(dw.chunks_exact_mut(blocks.len)) {
        let (channel, tap) = (block / taps * PANEL, block % taps);
        if turned != Some(channel) {
            // SAFETY: the caller's promise.
            unsafe { turn(job, &plan, &task, channel, planes) };
            turned = Some(channel);
        }
        let (plane, offset) = plan.tap(sweep, (tap / sweep.kernel.1, tap % sweep.kernel.1));
        let rows = &planes[plane * PANEL * plan.row + offset..];
        assert!(rows.len() >= (PANEL - 1) * plan.row + used);
        for (panel, dw) in dw.chunks_exact_mut(PANEL * PANEL).enumerate() {
            let starts = [rows.as_ptr().cast(), rows[ROWS * plan.row..].as_ptr().cast()];
            let a = A { starts, row: 2 * plan.row, runs: 1, steps: used / DEPTH, skip: 0 };
            let c = C { start: dw.as_mut_ptr(), row: 4 * PANEL, right: ROWS, down: ROWS * PANEL };
            let b = dys[panel * used * PANEL..][..used * PANEL].as_ptr().cast();
            // SAFETY: 32 rows hold `used` positions by the assertion, and so do the gradients; `dw` is 32 × 32 floats.
            unsafe { tiles.multiply(&a, b, &c, true) };
        }
    }
}

/// Turns 32 channels of a task's images into planes `[channel, position]`, zeros where no pixel or channel is.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn turn<E: Cell>(job: &Job<E>, plan: &Plan, task: &Task, channel: usize, planes: &mut [E]) {
    let (sweep, Dims { h, w, c }) = (job.sweep, job.sweep.src);
    let n_positions = task.n_images * plan.plane.0 * plan.plane.1;
    let n = PANEL.min(c - channel);
    let mask = ((1u64 << n) - 1) as u32;
    let images = &job.x[task.image * sweep.src.len()..(task.image + task.n_images) * sweep.src.len()];
    for (plane, out) in planes.chunks_exact_mut(PANEL * plan.row).enumerate() {
        let origin = plan.origin(sweep, plane);
        let mut at = Position::default();
        for first in (0..plan.row).step_by(DEPTH) {
            let mut rows = [_mm512_setzero_si512(); DEPTH];
            for (i, row) in rows.iter_mut().enumerate() {
                let y = ((task.row + at.row) * sweep.stride + origin.0) as isize - sweep.pad.0;
                let x = (at.col * sweep.stride + origin.1) as isize - sweep.pad.1;
                if first + i < n_positions && y >= 0 && x >= 0 && y < h as isize && x < w as isize {
                    let pixel = ((at.image * h + y as usize) * w + x as usize) * c + channel;
                    let values = &images[pixel..pixel + n];
                    // SAFETY: the slice holds the `n` values that the mask lets through.
                    *row = unsafe { _mm512_maskz_loadu_epi16(mask, values.as_ptr().cast()) };
                }
                at.advance(plan.plane);
            }
            transpose_32(&mut rows);
            for (k, row) in rows.iter().enumerate() {
                let to = &mut out[k * plan.row + first..][..DEPTH];
                // SAFETY: the slice holds 32 values.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), *row) };
            }
        }
    }
}

/// Lays a task's gradients out per panel as `[pair of positions, 32 channels, 2]`, zero where no pixel or channel is.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn interleave<E: Cell>(job: &Job<E>, plan: &Plan, task: &Task, used: usize, out: &mut [E]) {
    let Dims { h, w, c } = job.sweep.dst;
    let low: [u16; DEPTH] = std::array::from_fn(|i| (i / 2 + i % 2 * DEPTH) as u16);
    let high: [u16; DEPTH] = std::array::from_fn(|i| (ROWS + i / 2 + i % 2 * DEPTH) as u16);
    // SAFETY: both arrays hold 32 values.
    let (low, high) = unsafe { (_mm512_loadu_si512(low.as_ptr().cast()), _mm512_loadu_si512(high.as_ptr().cast())) };
    for (panel, out) in out.chunks_exact_mut(used * PANEL).enumerate() {
        let n = PANEL.min(c - panel * PANEL);
        let mask = ((1u64 << n) - 1) as u32;
        let mut at = Position::default();
        for out in out.chunks_exact_mut(2 * PANEL) {
            let mut pair = [_mm512_setzero_si512(); 2];
            for values in &mut pair {
                if at.image < task.n_images && at.row < task.n_rows && at.col < w {
                    let pixel = (((task.image + at.image) * h + task.row + at.row) * w + at.col) * c + panel * PANEL;
                    let dy = &job.dy[pixel..pixel + n];
                    // SAFETY: the slice holds the `n` values that the mask lets through.
                    *values = unsafe { _mm512_maskz_loadu_epi16(mask, dy.as_ptr().cast()) };
                }
                at.advance(plan.plane);
            }
            // SAFETY: `out` holds 64 values.
            unsafe {
                let to: *mut __m512i = out.as_mut_ptr().cast();
                _mm512_storeu_si512(to, _mm512_permutex2var_epi16(pair[0], low, pair[1]));
                _mm512_storeu_si512(to.add(1), _mm512_permutex2var_epi16(pair[0], high, pair[1]));
            }
        }
    }
}

/// A position of a plane.
#[derive(Default)]
struct Position {
    image: usize,
    row: usize,
    col: usize,
}

impl Position {
    #[inline(always)]
    fn advance(&mut self, plane: (usize, usize)) {
        self.col += 1;
        if self.col == plane.1 {
            (self.row, self.col) = (self.row + 1, 0);
            if self.row == plane.0 {
                (self.image, self.row) = (self.image + 1, 0);
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
