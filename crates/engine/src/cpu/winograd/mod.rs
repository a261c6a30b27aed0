//! 3 × 3 convolutions of stride 1 with a quarter of the multiplications: F(4 × 4, 3 × 3) of Winograd's minimal filtering.
//!
//! Feature maps are brought to 36 points, tile by tile ([`transform`]); at each point a convolution is a matrix product
//! ([`product`]). [`sweep`] is forward and backward-data, [`gradient`] the weight gradient, which threads divide as in [`shares`].
//!
//! The forward pass is in f32 at the points whatever the maps are kept in: that is faster than direct products of bf16 pairs, and
//! nearer to exact. Gradients of bf16 maps are pairs of bf16 there, too ([`points::has_pairs`] says why).

mod gradient;
mod grid;
mod pack;
mod points;
mod product;
mod shares;
mod square;
mod sweep;
mod transform;

use super::cell::Cell;
use super::conv::{Context, Convolution};
use super::elementwise;
use super::layout::Layout;
use super::pack::Masters;
use super::simd::Level;
use super::team::{Shards, Team};
use crate::buffer::Buffer;
use crate::element::Bf16;
use crate::types::{ConvShape, ConvUse, EngineError, Write};
use grid::Grid;
use transform::{POINTS, TAPS, TILE};

/// Floats of a task's windows at their points, about: with the products, what a second-level cache holds.
const TASK_WINDOWS: usize = 120 << 10;
/// Tiles of a task: fewer, and the weights are read too often; more, and small batches fall into too few tasks.
const TASK_TILES: (usize, usize) = (32, 96);

/// A planned convolution.
pub(crate) struct WinogradConv {
    shape: ConvShape,
    layout: Layout,
    /// Numbers in a cell of gradients' products: see [`points::has_pairs`].
    per_cell: usize,
    grid: Grid,
    forward: Buffer<f32>,
    backward: Buffer<f32>,
}

/// Whether a convolution can be computed so.
pub(crate) fn can(shape: &ConvShape) -> bool {
    shape.kernel == TAPS && shape.stride == 1 && shape.pad == 1
}

/// Multiplications for each of the direct way's, edges included.
pub(crate) fn cost(shape: &ConvShape) -> f64 {
    let grid = Grid { h: shape.input.h, w: shape.input.w };
    (grid.per_image() * POINTS) as f64 / (grid.h * grid.w * TAPS * TAPS) as f64
}

/// Consecutive tiles of tasks.
#[derive(Clone, Copy)]
struct Tasks {
    total: usize,
    n: usize,
}

impl Tasks {
    /// As few tasks of about the same size as `most` tiles allow, of a number that divides well among threads: fixed by the shape,
    /// whatever their number.
    fn of(total: usize, most: usize) -> Self {
        let n = total.div_ceil(most).max(1);
        Self { total, n: n.next_multiple_of((n.next_power_of_two() / 4).max(1)) }
    }

    /// The tiles of a task: whole groups of rows, but for the last.
    fn tiles(self, task: usize) -> std::ops::Range<usize> {
        let at = |task: usize| (self.total.div_ceil(TILE) * task / self.n * TILE).min(self.total);
        at(task)..at(task + 1)
    }
}

/// Tiles of a task whose points take about so many floats: whole register blocks of every level.
fn most_tiles(windows: usize, channels: usize, (least, most): (usize, usize)) -> usize {
    (windows / (POINTS * channels) / 12 * 12).clamp(least, most)
}

impl WinogradConv {
    /// Plans the passes and allocates packed weights.
    pub fn new<E: Cell>(shape: ConvShape, used: ConvUse, level: Level, held: &mut usize) -> Result<Self, EngineError> {
        assert!(can(&shape), "{shape:?} has no tiles");
        // Cells at points are as wide as floats, whatever the maps hold.
        let layout = Layout::of::<f32>(level);
        let per_cell = if level.has_bf16() { E::PER_CELL } else { 1 };
        let mut packed = |cells: usize, channels: usize| {
            Buffer::zeroed(POINTS * cells * layout.channels(channels), "packed weights", held)
        };
        let forward = packed(shape.input.c, shape.cout)?;
        let backward = if used == ConvUse::Train {
            packed(shape.cout.div_ceil(per_cell), shape.input.c)?
        } else {
            Buffer::default()
        };
        let grid = Grid { h: shape.input.h, w: shape.input.w };
        Ok(Self { shape, layout, per_cell, grid, forward, backward })
    }

    fn channels(&self) -> (usize, usize) {
        (self.shape.input.c, self.shape.cout)
    }

    /// The tasks of a pass from `source` channels.
    fn tasks(&self, n_images: usize, source: usize) -> Tasks {
        Tasks::of(n_images * self.grid.per_image(), most_tiles(TASK_WINDOWS, source, TASK_TILES))
    }

    /// How the weight gradient's numbers lie.
    fn gradient_layout(&self) -> gradient::Layout {
        let (cin, cout) = self.channels();
        gradient::Layout { cin, cout, lanes: self.layout.narrow, per_cell: self.per_cell }
    }

    #[allow(clippy::too_many_arguments)]
    fn sweep<E: Cell>(
        &self,
        ctx: &mut Context,
        n: usize,
        packed: &[f32],
        channels: (usize, usize),
        per_cell: usize,
        x: &[E],
        y: &mut [E],
        write: Write,
        sums: Option<&mut [f32]>,
    ) {
        let grid = self.grid;
        let pixels = n * grid.h * grid.w;
        assert!(x.len() >= pixels * channels.0 && y.len() >= pixels * channels.1, "maps of {n} images");
        let tasks = self.tasks(n, channels.0);
        let n_panels = channels.1.div_ceil(self.layout.panel);
        // Many threads share a task's panels, too: each of them brings its windows to the points.
        let splits = (2 * ctx.team.n_members()).div_ceil(tasks.n).min(n_panels);
        let width = 2 * channels.1;
        let partial = Shards::new(&mut ctx.partial[..if sums.is_some() { tasks.n * width } else { 0 }]);
        let scratch = Shards::new(ctx.scratch);
        let job = sweep::Job { level: ctx.level, grid, channels, per_cell, packed, x, y: y.as_mut_ptr(), write };
        let (level, has_sums) = (ctx.level, sums.is_some());
        ctx.team.for_chunks(tasks.n * splits, |chunk, member| {
            let (task, split) = (chunk / splits, chunk % splits);
            let panels = n_panels * split / splits..n_panels * (split + 1) / splits;
            let sums = if has_sums { partial.as_ptr().wrapping_add(task * width) } else { std::ptr::null_mut() };
            let task = sweep::Task { tiles: tasks.tiles(task), panels, sums };
            // SAFETY: one scratch per member; maps hold `n` images by the assertion, partial sums all tasks; tasks' tiles and
            // panels are disjoint and each runs once; `level` is at most what the engine detected.
            unsafe { sweep::correlate(level, &job, &task, &mut scratch.part(member, 1)[0]) };
        });
        if let Some(sums) = sums {
            elementwise::add_partials(&ctx.partial[..tasks.n * width], sums);
        }
    }
}

impl<E: Cell> Convolution<E> for WinogradConv {
    fn scratch_len(&self, used: ConvUse) -> usize {
        let (cin, cout) = self.channels();
        let Layout { panel, narrow: lanes, .. } = self.layout;
        let pass =
            |source: usize| sweep::scratch_len(most_tiles(TASK_WINDOWS, source, TASK_TILES), source, panel, lanes);
        let forward = pass(cin);
        if used == ConvUse::Forward {
            return forward;
        }
        forward.max(pass(cout)).max(shares::scratch_len(&self.gradient_layout()) + square::SCRATCH)
    }

    fn partial_len(&self, max_batch: usize, n_members: usize, used: ConvUse) -> usize {
        let (cin, cout) = self.channels();
        let sums = self.tasks(max_batch, cin).n * 2 * cout;
        if used == ConvUse::Forward {
            return sums;
        }
        sums.max(shares::partial_len(&self.gradient_layout(), max_batch * self.grid.per_image(), n_members))
    }

    fn pack(&mut self, team: &Team, level: Level, weights: &[f32], mask: Option<&[u8]>) {
        let (cin, cout) = self.channels();
        let masters = Masters { weights, mask, n_taps: TAPS * TAPS, cin };
        let layout = self.layout;
        let panels = |packed: &mut [f32], source: usize, channels: usize, per_cell: usize, is_forward: bool| {
            team.for_parts(packed, POINTS * source.div_ceil(per_cell) * layout.panel, |index, out| {
                let first = index * layout.panel;
                let width = layout.width(channels - first);
                let panel = pack::Panel { masters, cout, first, n: width.min(channels - first), width, per_cell };
                // SAFETY: `level` is at most what the engine detected.
                unsafe {
                    if is_forward {
                        pack::forward::<f32>(level, &panel, out);
                    } else if per_cell == 1 {
                        pack::backward::<f32>(level, &panel, out);
                    } else {
                        pack::backward::<Bf16>(level, &panel, out);
                    }
                }
            });
        };
        panels(&mut self.forward, cin, cout, 1, true);
        if !self.backward.is_empty() {
            panels(&mut self.backward, cout, cin, self.per_cell, false);
        }
    }

    fn forward(&self, ctx: &mut Context, n: usize, x: &[E], y: &mut [E], sums: Option<&mut [f32]>) {
        self.sweep(ctx, n, &self.forward, self.channels(), 1, x, y, Write::Set, sums);
    }

    fn backward_data(&self, ctx: &mut Context, n: usize, dy: &[E], dx: &mut [E], write: Write) {
        assert!(!self.backward.is_empty(), "a convolution planned without backward-data was asked for it");
        let (cin, cout) = self.channels();
        self.sweep(ctx, n, &self.backward, (cout, cin), self.per_cell, dy, dx, write, None);
    }

    fn backward_weight(&self, ctx: &mut Context, n: usize, x: &[E], dy: &[E], dw: &mut [f32], mask: Option<&[u8]>) {
        let (cin, cout) = self.channels();
        let pixels = n * self.grid.h * self.grid.w;
        assert!(x.len() >= pixels * cin && dy.len() >= pixels * cout, "maps of {n} images");
        assert!(dw.len() == self.shape.n_weights(), "gradient of {} weights", dw.len());
        let job = gradient::Job { grid: self.grid, layout: self.gradient_layout(), x, dy };
        shares::backward_weight(ctx, &job, n * self.grid.per_image(), dw, mask);
    }
}
