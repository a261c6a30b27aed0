//! Forward and backward-data on tiles: rows of 16 windows times packed weights.
//!
//! A tile row is a run of a window: neighbouring pixels' windows begin a pixel apart, so where a line of pixels fills its
//! tiles well, tiles are loaded straight from the source, one filter row after the other. Small images leave tiles half
//! empty; there each task first gathers its windows, one behind the other. 1×1 windows are the pixels themselves.
//!
//! A block is two tiles of pixels × two of channels. Narrow layers take all panels of weights for a block, whose windows then
//! stay in the nearest cache; wide ones take all blocks for a panel, which then stays.

use super::super::cell::Cell;
use super::super::correlate::Job;
use super::super::simd::{Avx512Bf16, Simd};
use super::super::sweep::{Sweep, Task, TaskShape, View};
use super::tiles::{A, B, BLOCK, C, DEPTH, PANEL, ROWS, Tiles};
use crate::types::Write;

/// Most bytes of a task's gathered windows, most of its pixels, and most cells of its source.
const TASK_BYTES: usize = 768 << 10;
const TASK_PIXELS: usize = 384;
const TASK_SOURCE: usize = 1 << 17;
/// Most bytes of weights that are taken whole for every block.
const NARROW: usize = 384 << 10;

/// How a sweep's tiles find their windows.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Reading {
    /// Pixels of a line, filter row by filter row.
    Lines,
    /// Pixels, as they lie.
    Pixels,
    /// Gathered windows.
    Gathered,
}

fn reading(sweep: &Sweep) -> Reading {
    let (cols, run) = (sweep.grid.1, sweep.kernel.1 * sweep.channels());
    if !run.is_multiple_of(DEPTH) {
        return Reading::Gathered;
    }
    if sweep.kernel == (1, 1) && sweep.stride == 1 && !sweep.needs_copy() {
        return Reading::Pixels;
    }
    // A line that ends within a tile takes its last tile from further left, if it is long enough; else the tile reads what is
    // behind the line, which is in scratch.
    let fills = 20 * cols >= 17 * cols.next_multiple_of(ROWS);
    if fills && (cols >= ROWS || sweep.needs_copy()) { Reading::Lines } else { Reading::Gathered }
}

/// Values of a gathered window, and from one to the next: a tile row more, so that windows spread over cache sets.
fn window(sweep: &Sweep) -> (usize, usize) {
    let values = 2 * sweep.cells();
    (values, values.next_multiple_of(DEPTH) + DEPTH)
}

/// The tasks of a sweep.
pub(crate) fn tasks(sweep: &Sweep) -> TaskShape {
    let gathered = (TASK_BYTES / 2 / window(sweep).1).clamp(2 * ROWS, TASK_PIXELS);
    let pixels = if reading(sweep) == Reading::Gathered { gathered } else { TASK_PIXELS };
    sweep.task_shape(pixels, TASK_SOURCE)
}

/// Floats of scratch that a task needs.
pub(crate) fn scratch_len(sweep: &Sweep) -> usize {
    let (images, rows) = tasks(sweep);
    // A task of pixels as they lie is gathered if it does not fill a tile.
    let windows = if reading(sweep) == Reading::Gathered { images * rows * sweep.grid.1 } else { ROWS };
    BLOCK + view_len(sweep) + windows.next_multiple_of(2 * ROWS) * window(sweep).1 / 2
}

/// Floats of a task's copied source, in whole cache lines.
fn view_len(sweep: &Sweep) -> usize {
    sweep.scratch_len(tasks(sweep)).next_multiple_of(16)
}

/// Sixteen windows: where the first one begins, its pixel in the task, and which of them count.
#[derive(Clone, Copy)]
struct Tile {
    a: *const u16,
    pixel: usize,
    skip: usize,
    n: usize,
}

/// A task's source as tiles see it.
struct Windows<'a, E> {
    sweep: &'a Sweep,
    task: &'a Task,
    view: &'a View<'a, E>,
    reading: Reading,
    gathered: *const u16,
    n_pixels: usize,
}

impl<E: Cell> Windows<'_, E> {
    fn tiles_per_line(&self) -> usize {
        self.sweep.grid.1.div_ceil(ROWS)
    }

    fn n_tiles(&self) -> usize {
        match self.reading {
            Reading::Lines => self.task.n_images * self.task.n_rows * self.tiles_per_line(),
            Reading::Pixels | Reading::Gathered => self.n_pixels.div_ceil(ROWS),
        }
    }

    fn tile(&self, index: usize) -> Tile {
        let (sweep, view) = (self.sweep, self.view);
        let pixel = sweep.stride * sweep.channels();
        // The 16 windows from `first` on of `len`, or from further left where that is too far.
        let from = |first: usize, len: usize| {
            let start = if len >= ROWS { first.min(len - ROWS) } else { 0 };
            (start, first - start, ROWS.min(len - start))
        };
        match self.reading {
            Reading::Lines => {
                let (line, tile) = (index / self.tiles_per_line(), index % self.tiles_per_line());
                let (start, skip, n) = from(tile * ROWS, sweep.grid.1);
                let (image, row) = (line / self.task.n_rows, line % self.task.n_rows);
                let at = image * view.image + row * sweep.stride * view.row + start * pixel;
                Tile { a: view.data[at..].as_ptr().cast(), pixel: line * sweep.grid.1 + start, skip, n }
            }
            Reading::Pixels => {
                let (start, skip, n) = from(index * ROWS, self.n_pixels);
                Tile { a: view.data[start * pixel..].as_ptr().cast(), pixel: start, skip, n }
            }
            Reading::Gathered => {
                let start = index * ROWS;
                let a = self.gathered.wrapping_add(start * window(sweep).1);
                Tile { a, pixel: start, skip: 0, n: ROWS.min(self.n_pixels - start) }
            }
        }
    }

    /// How tiles lie in memory, without where they begin.
    fn strides(&self) -> A {
        let (sweep, run) = (self.sweep, self.sweep.kernel.1 * self.sweep.channels());
        let starts = [std::ptr::null(); 2];
        if self.reading == Reading::Gathered {
            let (values, row) = window(sweep);
            return A { starts, row: 2 * row, runs: 1, steps: values.div_ceil(DEPTH), skip: 0 };
        }
        let skip = 2 * (self.view.row as isize - run as isize);
        A { starts, row: 2 * sweep.stride * sweep.channels(), runs: sweep.kernel.0, steps: run / DEPTH, skip }
    }
}

/// Runs one task; `sums` `[2, dst.c]`, if given, receives Σ and Σ² of its pixels.
///
/// # Safety
/// As `correlate::correlate`, on a CPU with AMX; `E` is bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(crate) unsafe fn correlate<E: Cell>(job: &Job<E>, index: usize, scratch: &mut [f32], mut sums: Option<&mut [f32]>) {
    assert_eq!(size_of::<E>(), 2);
    let sweep = job.sweep;
    let task = sweep.task(job.tasks, job.n, index);
    let n_pixels = task.n_images * task.n_rows * sweep.grid.1;
    let (block, scratch) = scratch.split_at_mut(BLOCK);
    let (copied, gathered) = scratch.split_at_mut(view_len(sweep));
    let view = sweep.source(&task, job.x, E::of_scratch(copied));
    let reading = match reading(sweep) {
        Reading::Pixels if n_pixels < ROWS => Reading::Gathered,
        reading => reading,
    };
    if reading == Reading::Gathered {
        gather(sweep, &task, &view, E::of_scratch(gathered));
    }
    if let Some(sums) = sums.as_deref_mut() {
        sums.fill(0.0);
    }
    let windows = Windows { sweep, task: &task, view: &view, reading, gathered: gathered.as_ptr().cast(), n_pixels };
    let (n_blocks, strides, tiles) = (windows.n_tiles().div_ceil(2), windows.strides(), Tiles::configure());
    let n_panels = sweep.dst.c.div_ceil(PANEL);
    let panel_len = job.packed.len() / n_panels;
    let mut run = |panel: usize, pair: usize| {
        let first = windows.tile(2 * pair);
        let second = (2 * pair + 1 < windows.n_tiles()).then(|| windows.tile(2 * pair + 1));
        let a = A { starts: [first.a, second.map_or(first.a, |tile| tile.a)], ..strides };
        let b = B { start: job.packed[panel * panel_len..][..panel_len].as_ptr().cast(), skip: 0 };
        let c = C { start: block.as_mut_ptr(), row: 64, right: ROWS * ROWS, down: 2 * ROWS * ROWS };
        // SAFETY: tiles lie in the view, in its slack or in the gathered windows; a panel has a row of cells for each
        // step; `block` holds four tiles; the pixels are this task's.
        unsafe {
            tiles.multiply(&a, &b, &c, false);
            finish(job, &task, first, &block[..BLOCK / 2], panel * PANEL, sums.as_deref_mut());
            if let Some(second) = second {
                finish(job, &task, second, &block[BLOCK / 2..], panel * PANEL, sums.as_deref_mut());
            }
        }
    };
    if size_of_val(job.packed) <= NARROW {
        (0..n_blocks).for_each(|block| (0..n_panels).for_each(|panel| run(panel, block)));
    } else {
        (0..n_panels).for_each(|panel| (0..n_blocks).for_each(|block| run(panel, block)));
    }
}

/// Lays the windows of a task's pixels one behind the other, zeros up to the next.
fn gather<E: Cell>(sweep: &Sweep, task: &Task, view: &View<E>, out: &mut [E]) {
    let (run, (values, row)) = (sweep.kernel.1 * sweep.channels(), window(sweep));
    let mut windows = out.chunks_exact_mut(row);
    for line in 0..task.n_images * task.n_rows {
        let (image, r) = (line / task.n_rows, line % task.n_rows);
        let first = image * view.image + r * sweep.stride * view.row;
        for col in 0..sweep.grid.1 {
            let window = windows.next().expect("room for every window");
            let at = first + col * sweep.stride * sweep.channels();
            for (a, to) in window[..values].chunks_exact_mut(run).enumerate() {
                to.copy_from_slice(&view.data[at + a * view.row..][..run]);
            }
            window[values..].fill(E::default());
        }
    }
}

/// Rounds a tile's sums into the destination, channels from `at` on, and adds them to the channel sums.
///
/// # Safety
/// As [`correlate`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn finish<E: Cell>(job: &Job<E>, task: &Task, tile: Tile, block: &[f32], at: usize, sums: Option<&mut [f32]>) {
    type S = Avx512Bf16;
    let sweep = job.sweep;
    let c = sweep.dst.c;
    let widths = [ROWS.min(c - at), ROWS.min((c - at).saturating_sub(ROWS))];
    let (mut line, mut col) = ((tile.pixel + tile.skip) / sweep.grid.1, (tile.pixel + tile.skip) % sweep.grid.1);
    // SAFETY: the pixels lie in the destination by the caller's promise, and their channels `at..c`; sums are `[2, c]`.
    unsafe {
        let one = S::splat(&1.0);
        let (mut sum, mut square) = ([S::zero(); 2], [S::zero(); 2]);
        for r in tile.skip..tile.n {
            let (image, row) = (task.image + line / task.n_rows, task.row + line % task.n_rows);
            let y = sweep.first.0 + row * sweep.step;
            let x = sweep.first.1 + col * sweep.step;
            let to = job.y.add(((image * sweep.dst.h + y) * sweep.dst.w + x) * c + at);
            for half in 0..2 {
                let mut value = S::load(block.as_ptr().add((half * ROWS + r) * ROWS));
                sum[half] = sum[half].add(value);
                square[half] = square[half].fma(value, value);
                let to = to.wrapping_add(half * ROWS);
                if job.write == Write::Add {
                    value = value.fma(E::load_first::<S>(to, widths[half]), one);
                }
                E::store_first(value, to, widths[half]);
            }
            col += 1;
            if col == sweep.grid.1 {
                (line, col) = (line + 1, 0);
            }
        }
        if let Some(sums) = sums {
            for half in 0..2 {
                for (values, from) in [(sum[half], at), (square[half], c + at)] {
                    let to = sums.as_mut_ptr().wrapping_add(from + half * ROWS);
                    values.add(S::load_first(to, widths[half])).store_first(to, widths[half]);
                }
            }
        }
    }
}
