//! Forward and backward-data on tiles: rows of 16 windows times packed weights.
//!
//! A tile row is a run of a window: neighbouring pixels' windows begin a pixel apart, so where a line of pixels fills its
//! tiles well, tiles are loaded straight from the source, one filter row after the other. Small images leave tiles half
//! empty; there each task first gathers its windows, one behind the other. 1×1 windows are the pixels themselves.
//!
//! A block is two tiles of pixels × two of channels. Narrow layers take all panels of weights for a block, whose windows then
//! stay in the nearest cache; wide ones take all blocks for a panel, which then stays. A block's sums become pixels (`finish.rs`)
//! only while the next block's tiles are multiplied: if they followed their own, they would wait for the last product, fill the
//! processor's scheduler and keep it from the next.

use super::super::cell::Cell;
use super::super::correlate::Job;
use super::super::sweep::{Sweep, Task, TaskShape, View};
use super::finish::Destination;
use super::tiles::{A, B, BLOCK, C, DEPTH, PANEL, ROWS, Tiles};
use crate::types::Write;
use std::arch::x86_64::{_mm512_maskz_loadu_epi16, _mm512_setzero_si512, _mm512_storeu_si512};

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

/// How a task's pixels lie, in numbers: lines of `cols` pixels, images of `rows` lines, and the steps from one to the next.
pub(super) struct Lattice {
    pub cols: usize,
    pub rows: usize,
    pub pixel: usize,
    pub row: usize,
    pub image: usize,
}

impl Lattice {
    pub fn offset(&self, image: usize, row: usize, col: usize) -> usize {
        image * self.image + row * self.row + col * self.pixel
    }
}

/// Quotient and remainder. Most quotients here are zero, which takes no division.
pub(super) fn divide(number: usize, by: usize) -> (usize, usize) {
    if number < by { (0, number) } else { (number / by, number % by) }
}

/// Sixteen windows: where the first one begins, its pixel in the task, and which of them count.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    a: *const u16,
    pub pixel: usize,
    pub skip: usize,
    pub n: usize,
}

/// A block of sums: two tiles of pixels, the second of which may not exist, for a panel of channels.
#[derive(Clone, Copy)]
struct Block {
    tiles: [Tile; 2],
    has_second: bool,
    panel: usize,
}

/// A task's source as tiles see it.
struct Windows<'a, E> {
    data: &'a [E],
    pixels: Lattice,
    tiles_per_line: usize,
    n_tiles: usize,
    /// How tiles lie in memory, without where they begin.
    strides: A,
}

impl<'a, E: Cell> Windows<'a, E> {
    fn of(sweep: &Sweep, task: &Task, view: &View<'a, E>, gathered: &'a [E], reading: Reading) -> Self {
        let (pixel, run) = (sweep.stride * sweep.channels(), sweep.kernel.1 * sweep.channels());
        let n_pixels = task.n_images * task.n_rows * sweep.grid.1;
        let one_line = |pixel| Lattice { cols: n_pixels, rows: 1, pixel, row: 0, image: 0 };
        let in_place = A {
            starts: [std::ptr::null(); 2],
            row: 2 * pixel,
            runs: sweep.kernel.0,
            steps: run / DEPTH,
            skip: 2 * (view.row as isize - run as isize),
        };
        let (data, pixels, strides) = match reading {
            Reading::Lines => {
                let (cols, rows, row) = (sweep.grid.1, task.n_rows, sweep.stride * view.row);
                (view.data, Lattice { cols, rows, pixel, row, image: view.image }, in_place)
            }
            Reading::Pixels => (view.data, one_line(pixel), in_place),
            Reading::Gathered => {
                let (values, row) = window(sweep);
                let strides = A { row: 2 * row, runs: 1, steps: values.div_ceil(DEPTH), skip: 0, ..in_place };
                (gathered, one_line(row), strides)
            }
        };
        let tiles_per_line = pixels.cols.div_ceil(ROWS);
        Self { data, tiles_per_line, n_tiles: n_pixels / pixels.cols * tiles_per_line, pixels, strides }
    }

    fn n_blocks(&self) -> usize {
        self.n_tiles.div_ceil(2)
    }

    fn block(&self, index: usize, panel: usize) -> Block {
        let (first, has_second) = (self.tile(2 * index), 2 * index + 1 < self.n_tiles);
        // What does not exist reads where the first does.
        Block { tiles: [first, if has_second { self.tile(2 * index + 1) } else { first }], has_second, panel }
    }

    fn tile(&self, index: usize) -> Tile {
        let (cols, (line, tile)) = (self.pixels.cols, divide(index, self.tiles_per_line));
        // The 16 windows from `first` on of the line, or from further left where that is too far.
        let first = tile * ROWS;
        let start = if cols >= ROWS { first.min(cols - ROWS) } else { 0 };
        let (image, row) = divide(line, self.pixels.rows);
        let at = self.pixels.offset(image, row, start);
        let pixel = line * cols + start;
        Tile { a: self.data[at..].as_ptr().cast(), pixel, skip: first - start, n: ROWS.min(cols - start) }
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
    let (block, scratch) = scratch.split_at_mut(BLOCK);
    let (copied, gathered) = scratch.split_at_mut(view_len(sweep));
    let (view, gathered) = (sweep.source(&task, job.x, E::of_scratch(copied)), E::of_scratch(gathered));
    let reading = match reading(sweep) {
        Reading::Pixels if task.n_images * task.n_rows * sweep.grid.1 < ROWS => Reading::Gathered,
        reading => reading,
    };
    if reading == Reading::Gathered {
        // SAFETY: the caller's promise.
        unsafe { gather(sweep, &task, &view, gathered) };
    }
    if let Some(sums) = sums.as_deref_mut() {
        assert!(job.write == Write::Set, "sums are those of what is written");
        assert_eq!(sums.len(), 2 * sweep.dst.c);
        sums.fill(0.0);
    }
    let (windows, destination) = (Windows::of(sweep, &task, &view, gathered, reading), Destination::of(job, &task));
    let (tiles, sums_of_block) = (Tiles::configure(), block.as_mut_ptr());
    let (n_blocks, n_panels) = (windows.n_blocks(), sweep.dst.c.div_ceil(PANEL));
    let panel_len = job.packed.len() / n_panels;
    let mut finish = |block: Block| {
        for (i, tile) in block.tiles.iter().enumerate().take(1 + usize::from(block.has_second)) {
            let (from, at) = (sums_of_block.wrapping_add(i * BLOCK / 2), block.panel * PANEL);
            // SAFETY: these are the sums of two of four tiles; the pixels are this task's; see the assertions.
            unsafe { destination.finish(tile, from, at, sums.as_deref_mut()) };
        }
    };
    let panels_first = size_of_val(job.packed) <= NARROW;
    let (outer, inner) = if panels_first { (n_blocks, n_panels) } else { (n_panels, n_blocks) };
    // The block that is still to be finished.
    let mut before: Option<Block> = None;
    for i in 0..outer {
        for j in 0..inner {
            let block = if panels_first { windows.block(i, j) } else { windows.block(j, i) };
            let a = A { starts: block.tiles.map(|tile| tile.a), ..windows.strides };
            let b = B { start: job.packed[block.panel * panel_len..][..panel_len].as_ptr().cast(), skip: 0 };
            let c = C { start: sums_of_block, row: 64, right: ROWS * ROWS, down: 2 * ROWS * ROWS };
            // SAFETY: tiles lie in the view, in its slack or in the gathered windows; a panel has a row of cells for
            // each step; the sums are those of four tiles.
            unsafe { tiles.multiply(&a, &b, &c, false, || before.into_iter().for_each(&mut finish)) };
            before = Some(block);
        }
    }
    before.into_iter().for_each(finish);
}

/// Lays the windows of a task's pixels one behind the other, zeros up to the end of their last step.
///
/// # Safety
/// The CPU must have the features; `E` is bf16.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn gather<E: Cell>(sweep: &Sweep, task: &Task, view: &View<E>, out: &mut [E]) {
    let (kh, pixel, run) = (sweep.kernel.0, sweep.stride * sweep.channels(), sweep.kernel.1 * sweep.channels());
    let (values, row) = window(sweep);
    // A run's whole vectors, and the lanes of one more for what is left: for so few numbers a call takes longer than a copy.
    let whole = run / DEPTH * DEPTH;
    let rest = (1 << (run - whole)) - 1;
    let mut windows = out.chunks_exact_mut(row);
    for line in 0..task.n_images * task.n_rows {
        let (image, r) = (line / task.n_rows, line % task.n_rows);
        let first = image * view.image + r * sweep.stride * view.row;
        for col in 0..sweep.grid.1 {
            let from = &view.data[first + col * pixel..][..(kh - 1) * view.row + run];
            let window = windows.next().expect("room for every window").as_mut_ptr();
            // SAFETY: `from` holds all runs of the window; from its values on the window has room for a vector, and what a run writes too
            // far is written again.
            unsafe {
                for a in 0..kh {
                    let (from, to) = (from.as_ptr().add(a * view.row), window.add(a * run));
                    if whole > 0 {
                        to.copy_from_nonoverlapping(from, whole);
                    }
                    if rest != 0 {
                        let last = _mm512_maskz_loadu_epi16(rest, from.add(whole).cast());
                        _mm512_storeu_si512(to.add(whole).cast(), last);
                    }
                }
                _mm512_storeu_si512(window.add(values).cast(), _mm512_setzero_si512());
            }
        }
    }
}
