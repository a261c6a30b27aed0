//! Forward and backward-data: sweeps as matrix products over gathered windows.

use super::super::conv::Taps;
use super::super::correlate::{Sweep, Task};
use super::super::team::Team;
use super::amx::{BLOCK, DEPTH, PANEL, ROWS, Tiles};
use crate::element::{Bf16, Element};
use crate::host::try_zeroed;
use crate::types::{ConvShape, Dims, EngineError, Write};

/// Most bytes of a task's gathered windows, and most of its pixels.
const TASK_BYTES: usize = 768 << 10;
const TASK_PIXELS: usize = 384;

/// A sweep as a matrix product: windows of `depth` values, padded to whole tiles, times packed weights.
pub struct PackedSweep {
    pub sweep: Sweep,
    taps: Taps,
    /// Per panel of 32 channels and step of 32 depths: two tiles `[16, 16, 2]`.
    packed: Vec<u16>,
}

impl PackedSweep {
    pub fn new(sweep: Sweep, taps: Taps, held: &mut usize) -> Result<Self, EngineError> {
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
        s.kernel == (1, 1)
            && s.stride == 1
            && s.pad == (0, 0)
            && s.src.c.is_multiple_of(DEPTH)
            && s.grid == (s.src.h, s.src.w)
    }

    pub fn tasks(&self) -> (usize, usize) {
        let limit = (TASK_BYTES / 2 / self.row()).clamp(PANEL, TASK_PIXELS);
        self.sweep.task_shape_within(limit)
    }

    pub fn scratch_values(&self) -> usize {
        let (images, rows) = self.tasks();
        (images * rows * self.sweep.grid.1).next_multiple_of(PANEL) * self.row() + 2 * BLOCK
    }

    /// Packs master weights `[cout, kh, kw, cin]`, zeroed where the mask is 0, for this sweep.
    pub fn pack(&mut self, team: &Team, shape: &ConvShape, is_forward: bool, weights: &[f32], mask: Option<&[u8]>) {
        let (depth, c, src_c, steps) = (self.sweep.depth(), self.sweep.dst.c, self.sweep.src.c, self.steps());
        let (k, cin) = (shape.kernel, shape.input.c);
        let taps = &self.taps;
        let value = |at: usize| {
            let keep = mask.is_none_or(|mask| mask[at] != 0);
            Bf16::of(if keep { weights[at] } else { 0.0 }).0
        };
        // Where depth `d` of channel `j` of a panel lies.
        let place = |d: usize, j: usize| {
            d / DEPTH * DEPTH * PANEL + j / ROWS * ROWS * DEPTH + d % DEPTH / 2 * DEPTH + j % ROWS * 2 + d % 2
        };
        team.for_parts(&mut self.packed, steps * DEPTH * PANEL, |panel, part| {
            let (first, n) = (panel * PANEL, PANEL.min(c - panel * PANEL));
            if is_forward {
                // A channel's weights are contiguous along the depth.
                for j in 0..n {
                    for d in 0..depth {
                        part[place(d, j)] = value((first + j) * depth + d);
                    }
                }
            } else {
                // A depth's weights are contiguous along the channels.
                for d in 0..depth {
                    let (tap, co) = (d / src_c, d % src_c);
                    let (kh, kw) = (taps.0[tap / taps.1.len()], taps.1[tap % taps.1.len()]);
                    let from = ((co * k + kh) * k + kw) * cin + first;
                    for j in 0..n {
                        part[place(d, j)] = value(from + j);
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
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn run(
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
        let (a, row) = if self.is_pointwise() && whole_images && n_pixels.is_multiple_of(PANEL) {
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
