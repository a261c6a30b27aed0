//! What becomes of a block's sums: rounded to bf16, they are pixels of the destination.
//!
//! A block of two steps is multiplied in 128 cycles, so finishing it should take few instructions: they share the processor's
//! window with those that multiply the next one. A pixel's 32 channels are one store; where they are a cache line of a map that is too large
//! to be found in a near cache later, it goes past the caches, which would first read what it overwrites. What is added to has been asked for
//! some blocks before. Pixels are taken in runs that lie equally far apart in the destination; mostly a tile is one, for where nothing lies
//! between a task's lines, they are one line.

use super::super::correlate::{Job, Sums};
use super::super::sweep::{Sweep, Task};
use super::sweep::{Lattice, Tile, divide};
use super::tiles::{PANEL, ROWS};
use crate::types::Write;
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, __mmask32, _MM_HINT_T1, _mm_prefetch, _mm_sfence, _mm512_add_ps, _mm512_castsi512_ps,
    _mm512_cvtne2ps_pbh, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_storeu_epi16,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_epi16, _mm512_maskz_loadu_ps, _mm512_maskz_permutexvar_epi16,
    _mm512_setzero_ps, _mm512_stream_si512,
};

/// Floats from a pixel's first 16 channels to its other 16, in a block.
const RIGHT: usize = ROWS * ROWS;

/// Bytes of a map from which on it is written past the caches; tests have small maps.
const STREAMED: usize = if cfg!(test) { 1 << 14 } else { 1 << 20 };

/// How pixels are written: set, added to, or set past the caches.
const SET: u8 = 0;
const ADD: u8 = 1;
const STREAM: u8 = 2;

/// A task's pixels where they are written.
pub(super) struct Destination {
    first: *mut u16,
    pixels: Lattice,
    /// Channels of a pixel.
    c: usize,
    store: u8,
    /// From a pixel to the one that is asked for meanwhile, if it is added to.
    ahead: usize,
}

/// Pixels from one that is added to, to the one that is asked for meanwhile, about.
const AHEAD: usize = 64;

impl Destination {
    pub fn of<E>(job: &Job<E>, task: &Task) -> Self {
        let Sweep { dst, first, step, grid, .. } = job.sweep;
        let at = ((task.image * dst.h + first.0 + task.row * step) * dst.w + first.1) * dst.c;
        let without_gaps = *step == 1 && grid.1 == dst.w && (task.n_images == 1 || grid.0 == dst.h);
        let pixels = Lattice {
            cols: if without_gaps { task.n_images * task.n_rows * grid.1 } else { grid.1 },
            rows: task.n_rows,
            pixel: step * dst.c,
            row: step * dst.w * dst.c,
            image: dst.len(),
        };
        // Pixels are whole cache lines if the first one is.
        let whole_lines = job.y.addr().is_multiple_of(2 * PANEL) && dst.c.is_multiple_of(PANEL);
        let store = match job.write {
            Write::Add => ADD,
            Write::Set if whole_lines && 2 * job.n * dst.len() >= STREAMED => STREAM,
            Write::Set => SET,
        };
        let ahead = if without_gaps { AHEAD * pixels.pixel } else { pixels.ahead(AHEAD) };
        Self { first: job.y.wrapping_add(at).cast(), ahead, pixels, c: dst.c, store }
    }

    /// Those of a task whose images lie side by side: a line is the same pixel of all images.
    pub fn of_images<E>(job: &Job<E>, task: &Task) -> Self {
        let (Sweep { dst, step, grid, .. }, by_pixels) = (job.sweep, Self::of(job, task));
        let (row, image) = (step * dst.c, step * dst.w * dst.c);
        let pixels = Lattice { cols: task.n_images, rows: grid.1, pixel: dst.len(), row, image };
        Self { ahead: pixels.ahead(AHEAD), pixels, ..by_pixels }
    }

    /// Rounds a tile's sums into the destination, channels from `at` on, and adds them to the channel sums, if given.
    ///
    /// # Safety
    /// The CPU must have the features. The pixels must lie in a writable destination of bf16; `block` holds 16 rows of 16
    /// columns, then as many of the other 16 columns; sums are those of what is written.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn finish(&self, tile: &Tile, block: *const f32, at: usize, sums: Option<Sums>) {
        let lanes = u32::MAX >> PANEL.saturating_sub(self.c - at);
        // SAFETY: the caller's promises.
        unsafe {
            match (sums, self.store) {
                (Some(sums), STREAM) => {
                    add_totals(self.finish_tile::<true, STREAM>(tile, block, at, lanes), sums, at, lanes);
                }
                (Some(sums), _) => add_totals(self.finish_tile::<true, SET>(tile, block, at, lanes), sums, at, lanes),
                (None, STREAM) => _ = self.finish_tile::<false, STREAM>(tile, block, at, lanes),
                (None, SET) => _ = self.finish_tile::<false, SET>(tile, block, at, lanes),
                (None, _) => _ = self.finish_tile::<false, ADD>(tile, block, at, lanes),
            }
        }
    }

    /// Ends a run of pixels: others may read them once this has returned.
    pub fn end(&self) {
        if self.store == STREAM {
            // SAFETY: orders stores, and touches nothing.
            unsafe { _mm_sfence() };
        }
    }

    /// A tile. `SUMS`: whether its sums are wanted; `STORE`: how it is written.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn finish_tile<const SUMS: bool, const STORE: u8>(
        &self,
        tile: &Tile,
        block: *const f32,
        at: usize,
        lanes: __mmask32,
    ) -> Totals {
        let place = self.place(tile.pixel);
        // SAFETY: the caller's promises.
        unsafe {
            // Most tiles are one whole run, whose loop is unrolled.
            if tile.skip == 0 && tile.n == ROWS && place[2] + ROWS <= self.pixels.cols {
                let to = self.address(place, at);
                finish_run::<SUMS, STORE>(block, ROWS, to, self.steps(), lanes, [_mm512_setzero_ps(); 4])
            } else {
                self.finish_runs::<SUMS, STORE>(tile, block, at, lanes)
            }
        }
    }

    /// A tile by runs of pixels of a line.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn finish_runs<const SUMS: bool, const STORE: u8>(
        &self,
        tile: &Tile,
        block: *const f32,
        at: usize,
        lanes: __mmask32,
    ) -> Totals {
        let [mut image, mut row, mut col] = self.place(tile.pixel + tile.skip);
        let (mut totals, mut r) = ([_mm512_setzero_ps(); 4], tile.skip);
        while r < tile.n {
            let n = (self.pixels.cols - col).min(tile.n - r);
            let to = self.address([image, row, col], at);
            // SAFETY: the caller vouches for the block and the pixels.
            unsafe {
                totals = finish_run::<SUMS, STORE>(block.add(r * ROWS), n, to, self.steps(), lanes, totals);
            }
            (r, row, col) = (r + n, row + 1, 0);
            if row == self.pixels.rows {
                (image, row) = (image + 1, 0);
            }
        }
        totals
    }

    /// From a pixel to the next one, and to the one that is asked for meanwhile.
    fn steps(&self) -> [usize; 2] {
        [self.pixels.pixel, self.ahead]
    }

    /// The image, row and column of a pixel.
    fn place(&self, pixel: usize) -> [usize; 3] {
        let (line, col) = divide(pixel, self.pixels.cols);
        let (image, row) = divide(line, self.pixels.rows);
        [image, row, col]
    }

    /// Where a pixel's channels from `at` on are.
    fn address(&self, [image, row, col]: [usize; 3], at: usize) -> *mut u16 {
        self.first.wrapping_add(self.pixels.offset(image, row, col) + at)
    }
}

/// Σ of a tile's channels and Σ², 16 at a time.
type Totals = [__m512; 4];

/// Numbers 0..16 and 16..32 of a vector to the upper halves of 32-bit lanes.
const WIDEN: [[u16; 32]; 2] = {
    let mut turns = [[0; 32]; 2];
    let mut i = 0;
    while i < 64 {
        turns[i / 32][i % 32] = i as u16 / 2;
        i += 1;
    }
    turns
};

/// A run of `n` pixels, `step` numbers apart, those that are asked for being `ahead` of them: its sums on top of `totals`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn finish_run<const SUMS: bool, const STORE: u8>(
    mut from: *const f32,
    n: usize,
    mut to: *mut u16,
    [step, ahead]: [usize; 2],
    lanes: __mmask32,
    mut totals: Totals,
) -> Totals {
    for _ in 0..n {
        // SAFETY: the caller vouches for `n` rows of the block and as many pixels, `step` apart; masked lanes are not touched. What is
        // streamed has whole lines.
        unsafe {
            let mut values = [_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(RIGHT))];
            for half in 0..2 {
                if SUMS {
                    totals[half] = _mm512_add_ps(totals[half], values[half]);
                    totals[2 + half] = _mm512_fmadd_ps(values[half], values[half], totals[2 + half]);
                }
            }
            if STORE == ADD {
                _mm_prefetch::<_MM_HINT_T1>(to.wrapping_add(ahead).cast());
                let old = _mm512_maskz_loadu_epi16(lanes, to.cast());
                for half in 0..2 {
                    let turns = _mm512_loadu_si512(WIDEN[half].as_ptr().cast());
                    let old = _mm512_maskz_permutexvar_epi16(0xAAAA_AAAA, turns, old);
                    values[half] = _mm512_add_ps(values[half], _mm512_castsi512_ps(old));
                }
            }
            let rounded = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(values[1], values[0]));
            if STORE == STREAM {
                _mm512_stream_si512(to.cast(), rounded);
            } else {
                _mm512_mask_storeu_epi16(to.cast(), lanes, rounded);
            }
        }
        (from, to) = (from.wrapping_add(ROWS), to.wrapping_add(step));
    }
    totals
}

/// Adds a tile's Σ and Σ² to the channel sums `[2, c]`, channels from `at` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn add_totals(totals: Totals, sums: Sums, at: usize, lanes: __mmask32) {
    for (i, total) in totals.into_iter().enumerate() {
        let to = sums.start.wrapping_add(i / 2 * sums.c + at + i % 2 * ROWS);
        let lanes = (lanes >> (i % 2 * ROWS)) as u16;
        // SAFETY: the caller vouches for the channels of these lanes; others are not touched.
        unsafe { _mm512_mask_storeu_ps(to, lanes, _mm512_add_ps(total, _mm512_maskz_loadu_ps(lanes, to))) };
    }
}
