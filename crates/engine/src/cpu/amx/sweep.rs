//! Forward and backward-data on tiles: rows of 16 windows times packed weights.
//!
//! A tile row is a run of a window: neighbouring pixels' windows begin a pixel apart, so where a line of pixels fills its
//! tiles well, tiles are loaded straight from the source, one filter row after the other. Small images leave tiles half
//! empty; there a tile is the same pixel of sixteen images (`images.rs`), or, where images are few or large, each task first gathers its
//! windows, one behind the other. 1×1 windows are the pixels themselves.
//!
//! A block is two tiles of pixels × two of channels. A task takes all blocks for a panel of weights, which of narrow layers then stays in the
//! nearest cache: what comes from further away are windows alone, and neighbouring blocks share most of theirs. 1×1 windows share nothing, and
//! have few products for what they write, which memory takes faster as it lies: where the second cache holds all panels, two blocks meet every
//! one before the next two do. A block's sums become pixels (`finish.rs`) only while the next block's tiles are multiplied: if they followed
//! their own, they would wait for the last product, fill the processor's scheduler and keep it from the next. Of the next task's source so much
//! is asked for as steps allow.

use super::super::ahead::{Ahead, Lines};
use super::super::cell::Cell;
use super::super::correlate::{Job, Share, Sums};
use super::super::sweep::{Sweep, Task, TaskShape, View};
use super::TASK_BYTES;
use super::finish::Destination;
use super::images::{self, Images};
use super::tiles::{A, ASKED, B, BLOCK, C, DEPTH, PANEL, ROWS, Tiles};
use crate::types::Write;
use std::arch::x86_64::{_mm512_maskz_loadu_epi16, _mm512_setzero_si512, _mm512_storeu_si512};

/// Most bytes of a task's gathered windows where the weights stay in the second cache as well.
const BESIDE_WEIGHTS: usize = 768 << 10;
/// Most pixels of a task (an image of 32 × 32), and most cells of its source, which is more if it is not copied.
const TASK_PIXELS: usize = 1024;
const TASK_SOURCE: (usize, usize) = (1 << 17, 1 << 18);
/// Most bytes of weights that stay in the second cache.
const STAYING: usize = 1 << 20;
/// What a task costs beside its blocks, in blocks.
const TASK_COST: f64 = 0.5;

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

/// Images of a task, where a tile is the same pixel of several, as is best for `n` images.
pub(super) fn task_images(sweep: &Sweep, n: usize) -> Option<usize> {
    let gathers = reading(sweep) == Reading::Gathered;
    images::fitting(sweep).filter(|_| gathers && images::saves(sweep, n, ROWS))
}

/// How tiles find their windows otherwise.
fn reading(sweep: &Sweep) -> Reading {
    let (cols, run) = (sweep.grid.1, sweep.kernel.1 * sweep.channels());
    // A filter row is whole steps, or less than one.
    if !run.is_multiple_of(run.min(DEPTH)) {
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

/// Whether all weights stay in the second cache.
fn stays(sweep: &Sweep) -> bool {
    4 * sweep.cells() * sweep.dst.c <= STAYING
}

/// The tasks of a sweep of `n` images.
pub(crate) fn tasks(sweep: &Sweep, n: usize) -> TaskShape {
    match task_images(sweep, n) {
        Some(images) => (images, sweep.grid.0),
        None => tasks_of_pixels(sweep),
    }
}

/// Most tasks of up to `n` images.
pub(crate) fn most_tasks(sweep: &Sweep, n: usize) -> usize {
    let by_images = images::fitting(sweep).map_or(0, |images| n.div_ceil(images));
    sweep.n_tasks(tasks_of_pixels(sweep), n).max(by_images)
}

/// Tasks whose tiles are pixels of an image: large, but of whole blocks if that takes fewer of them.
fn tasks_of_pixels(sweep: &Sweep) -> TaskShape {
    let (reading, (_, window), (rows, cols)) = (reading(sweep), window(sweep), sweep.grid);
    let bytes = if stays(sweep) { BESIDE_WEIGHTS } else { TASK_BYTES };
    let gathered = (bytes / 2 / window).clamp(2 * ROWS, TASK_PIXELS);
    let most = match reading {
        Reading::Gathered => sweep.task_shape(gathered, TASK_SOURCE.0),
        Reading::Lines => sweep.task_shape(TASK_PIXELS, TASK_SOURCE.0),
        Reading::Pixels => sweep.task_shape(TASK_PIXELS, TASK_SOURCE.1),
    };
    let blocks = |lines: usize| match reading {
        Reading::Lines => (lines * cols.div_ceil(ROWS)).div_ceil(2),
        Reading::Pixels | Reading::Gathered => (lines * cols).div_ceil(2 * ROWS),
    };
    // Of an image, in blocks; what is left of it is a task as well.
    let cost = |&(images, band): &TaskShape| {
        let rest = if rows % band > 0 { blocks(rows % band) as f64 + TASK_COST } else { 0.0 };
        ((rows / band) as f64 * (blocks(images * band) as f64 + TASK_COST) + rest) / images as f64
    };
    let larger_first = (1..=most.0).rev().flat_map(|images| {
        let least = if most.1 == rows { rows } else { 1 };
        (least..=most.1).rev().map(move |band| (images, band))
    });
    larger_first.min_by(|a, b| cost(a).total_cmp(&cost(b))).unwrap_or(most)
}

/// Floats of scratch that a task needs, however many images there are.
pub(crate) fn scratch_len(sweep: &Sweep) -> usize {
    let tasks = tasks_of_pixels(sweep);
    // A task of pixels as they lie is gathered if it does not fill a tile.
    let windows = if reading(sweep) == Reading::Gathered { tasks.0 * tasks.1 * sweep.grid.1 } else { ROWS };
    let by_pixels = view_len(sweep, tasks) + windows.next_multiple_of(2 * ROWS) * window(sweep).1 / 2;
    let by_images = images::fitting(sweep).map_or(0, |images| images::copied_len(sweep, images) / 2);
    BLOCK + by_pixels.max(by_images)
}

/// Floats of a task's copied source, in whole cache lines.
fn view_len(sweep: &Sweep, tasks: TaskShape) -> usize {
    sweep.scratch_len(tasks).next_multiple_of(16)
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

    /// From a pixel to one about `n` pixels further on: of the same line, or at the same place in another.
    pub fn ahead(&self, n: usize) -> usize {
        if n < self.cols { n * self.pixel } else { n.div_ceil(self.cols) * self.row }
    }
}

/// Quotient and remainder. Most quotients here are zero, which takes no division.
pub(super) fn divide(number: usize, by: usize) -> (usize, usize) {
    if number < by { (0, number) } else { (number / by, number % by) }
}

/// Sixteen windows: where the first one begins, its pixel in the task, and which of them count.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub a: *const u16,
    pub pixel: usize,
    pub skip: usize,
    pub n: usize,
}

/// A block of sums: two tiles of pixels, the second of which may not exist.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub tiles: [Tile; 2],
    has_second: bool,
}

impl Block {
    pub fn of(first: Tile, second: Option<Tile>) -> Self {
        // What does not exist reads where the first does.
        Self { tiles: [first, second.unwrap_or(first)], has_second: second.is_some() }
    }
}

/// A task's source as tiles see it.
pub(super) trait Source {
    /// Values of a step of the products.
    fn depth(&self) -> usize;

    /// Whether two blocks meet all panels of weights before the next two do; else all blocks meet a panel.
    fn by_pairs(&self) -> bool;

    /// The blocks of all its pixels.
    fn blocks(&self) -> impl Iterator<Item = Block>;

    /// Both sides of a block's product with a panel of weights.
    fn parts(&self, block: &Block, weights: &[f32]) -> impl Iterator<Item = (A, B)>;
}

/// A source whose tiles are pixels of an image.
struct Windows<'a, E> {
    data: &'a [E],
    pixels: Lattice,
    tiles_per_line: usize,
    n_tiles: usize,
    by_pairs: bool,
    /// Values of a step.
    depth: usize,
    /// How tiles lie in memory, without where they begin, and the weights' `skip`.
    strides: A,
    skip: isize,
}

impl<'a, E: Cell> Windows<'a, E> {
    fn of(sweep: &Sweep, task: &Task, view: &View<'a, E>, gathered: &'a [E], reading: Reading) -> Self {
        let (pixel, run) = (sweep.stride * sweep.channels(), sweep.kernel.1 * sweep.channels());
        let n_pixels = task.n_images * task.n_rows * sweep.grid.1;
        let one_line = |pixel| Lattice { cols: n_pixels, rows: 1, pixel, row: 0, image: 0 };
        let (depth, steps) = match reading {
            Reading::Gathered => (DEPTH, window(sweep).0.div_ceil(DEPTH)),
            Reading::Lines | Reading::Pixels => (run.min(DEPTH), run.div_ceil(DEPTH)),
        };
        let behind = |values: usize| 2 * (values as isize - (steps * DEPTH) as isize);
        let (starts, runs) = ([std::ptr::null(); 2], sweep.kernel.0);
        let in_place = A { starts, row: 2 * pixel, runs, steps, skip: behind(view.row) };
        let (data, pixels, strides) = match reading {
            Reading::Lines => {
                let (cols, rows, row) = (sweep.grid.1, task.n_rows, sweep.stride * view.row);
                (view.data, Lattice { cols, rows, pixel, row, image: view.image }, in_place)
            }
            Reading::Pixels => (view.data, one_line(pixel), in_place),
            Reading::Gathered => {
                let (_, row) = window(sweep);
                (gathered, one_line(row), A { row: 2 * row, runs: 1, skip: 0, ..in_place })
            }
        };
        let tiles_per_line = pixels.cols.div_ceil(ROWS);
        let (n_tiles, skip) = (n_pixels / pixels.cols * tiles_per_line, PANEL as isize * behind(depth * steps));
        let by_pairs = sweep.kernel == (1, 1) && stays(sweep);
        Self { data, pixels, tiles_per_line, n_tiles, by_pairs, depth, strides, skip }
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

impl<E: Cell> Source for Windows<'_, E> {
    fn depth(&self) -> usize {
        self.depth
    }

    fn by_pairs(&self) -> bool {
        self.by_pairs
    }

    fn blocks(&self) -> impl Iterator<Item = Block> {
        let tile = |index: usize| (index < self.n_tiles).then(|| self.tile(index));
        (0..self.n_tiles).step_by(2).map(move |index| Block::of(self.tile(index), tile(index + 1)))
    }

    fn parts(&self, block: &Block, weights: &[f32]) -> impl Iterator<Item = (A, B)> {
        let a = A { starts: block.tiles.map(|tile| tile.a), ..self.strides };
        std::iter::once((a, B { start: weights.as_ptr().cast(), skip: self.skip }))
    }
}

/// Runs a share; `sums`, if given, receive Σ and Σ² of its pixels.
///
/// # Safety
/// As `correlate::correlate`, on a CPU with AMX; `E` is bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(crate) unsafe fn correlate<E: Cell>(job: &Job<E>, share: &Share, scratch: &mut [f32], sums: Option<Sums>) {
    assert_eq!(size_of::<E>(), 2);
    let sweep = job.sweep;
    let task = sweep.task(job.tasks, job.n, share.task);
    let (block, scratch) = scratch.split_at_mut(BLOCK);
    let block: &mut [f32; BLOCK] = block.try_into().expect("a block's sums");
    if task_images(sweep, job.n).is_some() {
        // SAFETY: the caller's promises.
        return unsafe {
            let images = Images::copied(job, &task, E::of_scratch(scratch));
            multiply(job, share, &images, &Destination::of_images(job, &task), block, sums)
        };
    }
    let reading = match reading(sweep) {
        Reading::Pixels if task.n_images * task.n_rows * sweep.grid.1 < ROWS => Reading::Gathered,
        reading => reading,
    };
    let (copied, gathered) = scratch.split_at_mut(view_len(sweep, job.tasks));
    let (view, gathered) = (sweep.source(&task, job.x, E::of_scratch(copied)), E::of_scratch(gathered));
    // SAFETY: the caller's promises.
    unsafe {
        if reading == Reading::Gathered {
            gather(sweep, &task, &view, gathered);
        }
        let windows = Windows::of(sweep, &task, &view, gathered, reading);
        multiply(job, share, &windows, &Destination::of(job, &task), block, sums);
    }
}

/// Multiplies a share's blocks and panels.
///
/// # Safety
/// As [`correlate`]; the source and the destination are those of the share's task.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn multiply<E: Cell>(
    job: &Job<E>,
    share: &Share,
    source: &impl Source,
    destination: &Destination,
    block: &mut [f32; BLOCK],
    sums: Option<Sums>,
) {
    if let Some(sums) = sums {
        assert!(job.write == Write::Set, "sums are those of what is written");
        // SAFETY: the caller's promise.
        unsafe { sums.clear(share.panels.start * PANEL..share.panels.end * PANEL) };
    }
    let (sweep, tiles, sums_of_block) = (job.sweep, Tiles::configure(source.depth()), block.as_mut_ptr());
    let panel_len = job.packed.len() / sweep.dst.c.div_ceil(PANEL);
    let next = sweep.task_after(job.tasks, job.n, share.task);
    let mut ahead = Ahead([Lines::of(job.x, sweep.src, sweep.stride, next.as_ref())]);
    let finish = |(block, panel): (Block, usize)| {
        for (i, tile) in block.tiles.iter().enumerate().take(1 + usize::from(block.has_second)) {
            let (from, at) = (sums_of_block.wrapping_add(i * BLOCK / 2), panel * PANEL);
            // SAFETY: these are the sums of two of four tiles; the pixels are this task's; see the assertions.
            unsafe { destination.finish(tile, from, at, sums) };
        }
    };
    // The block that is still to be finished, and its panel.
    let mut before: Option<(Block, usize)> = None;
    let mut step = |block: Block, panel: usize| {
        let weights = &job.packed[panel * panel_len..][..panel_len];
        let c = C { start: sums_of_block, row: 64, right: ROWS * ROWS, down: 2 * ROWS * ROWS };
        let steps = source.parts(&block, weights).map(|(a, _)| a.n_steps()).sum::<usize>();
        let asked = ahead.take(ASKED * steps);
        let meanwhile = || before.into_iter().for_each(finish);
        // SAFETY: tiles lie in the view, in its slack or in scratch; a panel has a row of cells for each step; the sums are those of four
        // tiles.
        unsafe { tiles.multiply(source.parts(&block, weights), &c, false, asked, meanwhile) };
        before = Some((block, panel));
    };
    if source.by_pairs() {
        let mut blocks = source.blocks();
        while let Some(block) = blocks.next() {
            let pair = [Some(block), blocks.next()];
            share.panels.clone().for_each(|panel| pair.into_iter().flatten().for_each(|block| step(block, panel)));
        }
    } else {
        share.panels.clone().for_each(|panel| source.blocks().for_each(|block| step(block, panel)));
    }
    before.into_iter().for_each(finish);
    destination.end();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Dims;

    #[test]
    fn tasks_are_of_whole_blocks_where_that_saves_any() {
        let tasks = |cin, cout, kernel, size| {
            let (pad, kernel) = ([(kernel / 2) as isize; 2].into(), (kernel, kernel));
            let [src, dst] = [cin, cout].map(|c| Dims { h: size, w: size, c });
            let (grid, first, per_cell, widens) = ((size, size), (0, 0), 2, false);
            let sweep = Sweep { src, dst, grid, first, step: 1, kernel, stride: 1, pad, per_cell, widens };
            tasks_of_pixels(&sweep)
        };
        assert_eq!(tasks(64, 64, 3, 32), (1, 32));
        assert_eq!(tasks(64, 64, 3, 56), (1, 18), "18, 18, 18 and 2 lines");
        assert_eq!(tasks(512, 512, 3, 4), (8, 4), "128 pixels, not 144");
        assert_eq!(tasks(512, 512, 3, 7), (3, 7), "147 pixels in 5 blocks");
        assert_eq!(tasks(2048, 512, 1, 7), (5, 7), "245 pixels in 8 blocks");
        assert_eq!(tasks(256, 64, 1, 56), (1, 16), "28, 28, 28 and 14 blocks");
    }
}
