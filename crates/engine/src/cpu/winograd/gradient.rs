//! The weight gradient by products at points, summed over tiles.
//!
//! The windows of the inputs and the tiles of the gradients are brought to the points; at each point the sum over tiles is a
//! matrix product. The map back to taps is linear, so it comes last, once.
//!
//! Output × input channels fall into blocks, whose sums at all points fit the second-level cache. In narrow layers a task's points
//! stay in cache, too, and its products are added to sums that each thread keeps. In wide layers all sums together are large: there
//! threads bring many tiles to the points first, and then share the blocks, whose sums go to taps before they leave the cache.

use super::Pass;
use super::grid::Grid;
use super::points::{self, Maps, Place};
use super::product::{Adjacent, Left, Out, multiply};
use super::square::Source;
use super::strided;
use super::transform::{self, POINTS, SIDE, TAPS, Taps, products_with};
use crate::cpu::ahead::{Ahead, LINE, Lines, n_asked};
use crate::cpu::cell::{Cell, per_cell_of};
use crate::cpu::simd::{Level, MAX_LANES, Simd, kernel};
use std::ops::Range;

/// Floats between points: a cache line keeps them from falling into the same cache sets.
const GAP: usize = LINE;
/// Output and input channels of a block: whole register blocks and panels of every level.
const ROWS: usize = 48;
const COLUMNS: usize = 64;
/// Floats of a panel of input channels that are summed at a time: with as many cells of the output channels they fit the first-level cache.
const PANEL: usize = 2048;

/// Maps whose weight gradient is summed.
pub(super) struct Job<'a, E> {
    pub grid: Grid,
    /// Rows and columns of the inputs' maps and of the gradients'.
    pub sizes: [(usize, usize); 2],
    pub layout: Layout,
    pub x: &'a [E],
    pub dy: &'a [E],
}

/// Where numbers at points lie. Those of tiles as `[point, panel, tile, input channel]` and `[point, block, tile, output channel]`; sums, at
/// points of weights, as `[block, point, panel, output channel, input channel]`, where a block's output channels are the outer ones.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// Forward: `Same` or `Down`.
    pub pass: Pass,
    /// Input and output channels, and floats of a vector and of a panel.
    pub cin: usize,
    pub cout: usize,
    pub lanes: usize,
    pub panel: usize,
    /// Tiles in a cell: see [`points::has_pairs`].
    pub per_cell: usize,
}

/// A block: its output and its input channels, the latter in whole vectors.
#[derive(Clone)]
pub(super) struct Block {
    index: usize,
    pub rows: Range<usize>,
    pub columns: Range<usize>,
    /// Output channels in whole vectors.
    height: usize,
}

impl Layout {
    fn x_width(&self) -> usize {
        self.cin.next_multiple_of(self.lanes)
    }

    fn dy_width(&self) -> usize {
        self.cout.next_multiple_of(self.lanes)
    }

    /// Blocks.
    pub fn n_blocks(&self) -> usize {
        self.cout.div_ceil(ROWS) * self.cin.div_ceil(COLUMNS)
    }

    /// Block `index`.
    pub fn block(&self, index: usize) -> Block {
        let across = self.cin.div_ceil(COLUMNS);
        let (row, column) = (index / across * ROWS, index % across * COLUMNS);
        let height = ROWS.min(self.dy_width() - row);
        Block {
            index,
            rows: row..self.cout.min(row + ROWS),
            columns: column..self.x_width().min(column + COLUMNS),
            height,
        }
    }

    /// Floats of the sums of all blocks.
    pub fn sums(&self) -> usize {
        POINTS * (self.dy_width() * self.x_width() + self.n_blocks() * GAP)
    }

    /// Where the sums of a block begin.
    pub fn start(&self, block: &Block) -> usize {
        POINTS * (block.rows.start * self.x_width() + block.height * block.columns.start + block.index * GAP)
    }

    /// Cells of `n_tiles` tiles.
    pub fn cells(&self, n_tiles: usize) -> usize {
        n_tiles.div_ceil(self.per_cell)
    }

    /// Floats from one point of `n_cells` cells to the next, for inputs and gradients.
    fn point(&self, n_cells: usize) -> (usize, usize) {
        (n_cells * self.x_width() + GAP, n_cells * self.dy_width() + GAP)
    }

    /// Floats of the points of `n_tiles` tiles.
    pub fn points(&self, n_tiles: usize) -> usize {
        let (x, dy) = self.point(self.cells(n_tiles));
        self.pass.products() * (x + dy)
    }
}

impl Block {
    /// Floats of its sums.
    pub fn len(&self) -> usize {
        POINTS * self.point()
    }

    /// Floats of its sums at a point, and from one to the next.
    pub fn point(&self) -> usize {
        self.height * self.columns.len() + GAP
    }
}

/// Points of `n_cells` cells of tiles, inputs' first: some of them are written, or all read.
#[derive(Clone, Copy)]
pub(super) struct Points {
    pub start: *mut f32,
    pub n_cells: usize,
}

// SAFETY: who writes tiles of it writes different ones from everybody else, by the contract of `to_points`.
unsafe impl Sync for Points {}

/// Brings tiles to the points, the first of them to cell `at`.
///
/// # Safety
/// `points` must hold its cells, of which no other thread may use those; `level` must be supported by the CPU.
pub(super) unsafe fn to_points<E: Cell>(
    level: Level,
    job: &Job<E>,
    tiles: Range<usize>,
    points: Points,
    at: usize,
    scratch: &mut [f32],
) {
    let (Layout { pass, cin, cout, .. }, Points { start, n_cells }) = (job.layout, points);
    let (x_point, dy_point) = job.layout.point(n_cells);
    assert!(at + job.layout.cells(tiles.len()) <= n_cells);
    let place = |start, width, block, point| Place { start, n_cells, width, block, point };
    let source = |size, channels, x| Source { grid: job.grid, size, channels, x };
    // SAFETY: the caller's promises; the tiles' places are among the points' by the assertion.
    unsafe {
        let to = place(start, job.layout.x_width(), job.layout.panel, x_point);
        let inputs = source(job.sizes[0], cin, job.x);
        points::gradient_cells(level, pass, Maps::Inputs, &inputs, tiles.clone(), to, at, scratch);
        let to = place(start.add(pass.products() * x_point), job.layout.dy_width(), ROWS, dy_point);
        let gradients = source(job.sizes[1], cout, job.dy);
        points::gradient_cells(level, pass, Maps::Gradients, &gradients, tiles, to, at, scratch);
    }
}

/// Some cells of a block at a product of the pass.
#[derive(Clone, Copy)]
struct Part<'a> {
    block: &'a Block,
    product: usize,
    first: usize,
    depth: usize,
}

impl Part<'_> {
    /// The cells' output channels: a row for each cell.
    fn left(&self, layout: &Layout, points: Points) -> *mut f32 {
        let (x_point, dy_point) = layout.point(points.n_cells);
        let at = layout.pass.products() * x_point + self.product * dy_point;
        points.start.wrapping_add(at + self.block.rows.start * points.n_cells + self.first * self.block.height)
    }

    /// The cells' input channels of the panel that begins with the block's channel `at`: its place, and floats of a cell's.
    fn right(&self, layout: &Layout, points: Points, at: usize) -> (*mut f32, usize) {
        let (columns, width) = (&self.block.columns, self.block.columns.len().saturating_sub(at).min(layout.panel));
        let channel = self.product * layout.point(points.n_cells).0 + (columns.start + at) * points.n_cells;
        (points.start.wrapping_add(channel + self.first * width), width)
    }
}

/// The parts of a block at a point of weights.
fn parts<'a>(layout: &Layout, n_cells: usize, block: &'a Block, point: usize) -> impl Iterator<Item = Part<'a>> {
    let most = PANEL / layout.panel;
    let part = move |product, first: usize| Part { block, product, first, depth: most.min(n_cells - first) };
    products_with(layout.pass.side(), point)
        .flat_map(move |product| (0..n_cells).step_by(most).map(move |first| part(product, first)))
}

kernel! {
    /// A block's sums over all tiles at a point of weights, added to `out`, that point's, or put there. `next`: the block and the point whose
    /// turn comes then, if that is known.
    ///
    /// # Safety
    /// `points` must hold its cells; `level` must be supported by the CPU.
    pub(super) unsafe fn sum_block(layout: &Layout, points: Points, block: &Block, point: usize, out: &mut [f32],
                                   adds: bool, next: Option<(&Block, usize)>) = sum_point
}

#[inline(always)]
unsafe fn sum_point<E: Cell, S: Simd>(
    layout: &Layout,
    points: Points,
    block: &Block,
    point: usize,
    out: &mut [f32],
    mut adds: bool,
    next: Option<(&Block, usize)>,
) {
    assert!(out.len() == block.point() && block.height.is_multiple_of(S::GROUP) && layout.panel == S::PANEL);
    assert_eq!(layout.per_cell, per_cell_of::<E, S>());
    let columns = block.columns.len();
    let mut after = next.and_then(|(block, point)| parts(layout, points.n_cells, block, point).next());
    let mut parts = parts(layout, points.n_cells, block, point).peekable();
    while let Some(part) = parts.next() {
        let next = parts.peek().copied().or_else(|| after.take());
        for at in (0..columns).step_by(S::PANEL) {
            let left = Left { start: part.left(layout, points), adjacent: Adjacent::Rows, stride: block.height };
            let (right, width) = part.right(layout, points, at);
            // The next cells are asked for behind these cells' products.
            let asked = next.map_or(Ahead([Lines::run(right, 0), Lines::run(right, 0)]), |next| {
                let (right, width) = next.right(layout, points, at);
                let (left, len) = (next.left(layout, points), next.depth * next.block.height);
                let share = |index: usize| len * index / columns.div_ceil(S::PANEL) / LINE * LINE;
                let [from, to] = [at / S::PANEL, at / S::PANEL + 1].map(share);
                Ahead([Lines::run(left.wrapping_add(from), to - from), Lines::run(right, next.depth * width)])
            });
            let panel = Panel { depth: part.depth, rows: block.rows.len(), left, right, adds };
            let out = &mut out[at * block.height..];
            // SAFETY: the points of all tiles are there by the caller's promise; sums hold whole groups of rows, by the assertion.
            unsafe {
                if width == S::LANES {
                    multiply_panel::<E, S, 1>(&panel, asked, out);
                } else {
                    multiply_panel::<E, S, 2>(&panel, asked, out);
                }
            }
        }
        adds = true;
    }
}

/// A product of all rows with a panel of columns.
struct Panel {
    depth: usize,
    rows: usize,
    left: Left,
    right: *const f32,
    adds: bool,
}

/// Multiplies a panel of `V` vectors, and asks for what comes next, as far as the loops have steps for it.
#[inline(always)]
unsafe fn multiply_panel<E: Cell, S: Simd, const V: usize>(panel: &Panel, mut lines: Ahead<2>, out: &mut [f32]) {
    let &Panel { depth, rows, left, right, adds } = panel;
    let width = V * S::LANES;
    for first in (0..rows).step_by(S::PIXELS) {
        let asked = lines.take(n_asked::<S>(depth));
        // SAFETY: the caller vouches for both sides and the sums.
        unsafe {
            let left = Left { start: left.start.add(first), ..left };
            let out = Out { start: out.as_mut_ptr().add(first * width), row: width, adds };
            let rows = S::PIXELS.min(rows - first);
            if points::has_pairs::<E, S>() {
                multiply::<E, S, V>(rows, depth, left, right, out, asked);
            } else {
                multiply::<f32, S, V>(rows, depth, left, right, out, asked);
            }
        }
    }
}

/// A block's sums at all points: those of `n` slices, `step` floats apart, are to be added.
#[derive(Clone, Copy)]
pub(super) struct Slices {
    pub start: *const f32,
    pub step: usize,
    pub n: usize,
}

// SAFETY: read only.
unsafe impl Sync for Slices {}

kernel! {
    /// Brings output channels `rows` of a block's sums to taps and adds them to `dw` `[cout, 3, 3, cin]`, where the mask keeps them.
    ///
    /// # Safety
    /// All slices must hold the block's sums; `dw` must point to all weights, of which no other thread may use the block's rows; `level` must
    /// be supported by the CPU.
    pub(super) unsafe fn reduce(layout: &Layout, block: &Block, rows: Range<usize>, sums: Slices, dw: *mut f32,
                                mask: Option<&[u8]>) = reduce_rows
}

#[inline(always)]
unsafe fn reduce_rows<E: Cell, S: Simd>(
    layout: &Layout,
    block: &Block,
    rows: Range<usize>,
    sums: Slices,
    dw: *mut f32,
    mask: Option<&[u8]>,
) {
    let (cin, columns) = (layout.cin, block.columns.len());
    assert!(rows.start >= block.rows.start && rows.end <= block.rows.end);
    assert!(mask.is_none_or(|mask| mask.len() == layout.cout * TAPS * TAPS * cin));
    for row in rows {
        // The next row's weights lie in as many places as there are taps.
        for tap in 0..TAPS * TAPS {
            for k in (0..columns).step_by(MAX_LANES) {
                let next = ((row + 1) * TAPS * TAPS + tap) * cin + block.columns.start + k;
                // SAFETY: the caller has the instructions; what lies behind the last row is asked for in vain.
                unsafe { S::prefetch(dw.wrapping_add(next)) };
            }
        }
        for k in (0..columns).step_by(S::LANES) {
            let at = k / S::PANEL * S::PANEL;
            let width = (columns - at).min(S::PANEL);
            let from = at * block.height + (row - block.rows.start) * width + (k - at);
            let column = block.columns.start + k;
            let n = (cin - column).min(S::LANES);
            // SAFETY: the caller's promises; the block's sums have a vector at every point of each of its rows.
            unsafe {
                let mut points = [[S::zero(); SIDE]; SIDE];
                for slice in 0..sums.n {
                    let from = sums.start.add(slice * sums.step + from);
                    for (p, total) in points.as_flattened_mut().iter_mut().enumerate() {
                        *total = total.add(S::load(from.add(p * block.point())));
                    }
                }
                let taps = match layout.pass {
                    Pass::Same => transform::square::<Taps, _, _, _>(points),
                    Pass::Down | Pass::Up => transform::square::<strided::Taps, _, _, _>(points),
                };
                for (tap, &value) in taps.as_flattened().iter().enumerate() {
                    let at = (row * TAPS * TAPS + tap) * cin + column;
                    let mut kept = value;
                    if let Some(mask) = mask {
                        kept = value.where_positive(gate::<S>(&mask[at..at + n]));
                    }
                    let dw = dw.add(at);
                    kept.add(S::load_first(dw, n)).store_first(dw, n);
                }
            }
        }
    }
}

/// A mask as floats, 1 where it keeps.
#[inline(always)]
unsafe fn gate<S: Simd>(mask: &[u8]) -> S {
    let mut gate = [0.0f32; MAX_LANES];
    for (gate, &keep) in gate.iter_mut().zip(mask) {
        *gate = f32::from(u8::from(keep != 0));
    }
    // SAFETY: the caller has the instructions; no vector is longer than the gate.
    unsafe { S::load(gate.as_ptr()) }
}
