//! 3 × 3 convolutions of stride 1 with a quarter of the multiplications: F(4 × 4, 3 × 3) of Winograd's minimal filtering.
//!
//! Feature maps are brought to 36 points, tile by tile ([`transform`]); at each point a convolution is a matrix product
//! ([`product`]). All of that is in f32 whatever the maps are kept in: it is faster than direct products of bf16 pairs, and
//! nearer to exact. [`sweep`] is forward and backward-data, [`gradient`] the weight gradient.

mod gradient;
mod grid;
mod pack;
mod product;
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
use crate::types::{ConvShape, ConvUse, EngineError, Write};
use gradient::{Slices, Sums};
use grid::Grid;
use transform::{POINTS, TAPS, TILE};

/// Floats of a task's windows at their points, about: with the products, what a second-level cache holds.
const TASK_WINDOWS: usize = 120 << 10;
/// Tiles of a task: fewer, and the weights are read too often; more, and small batches fall into too few tasks.
const TASK_TILES: (usize, usize) = (24, 96);
/// The same of the weight gradient, for windows and gradients together.
const GRADIENT_WINDOWS: usize = 240 << 10;
const GRADIENT_TILES: (usize, usize) = (32, 96);

/// Floats above which threads share a weight gradient by its output channels instead of summing slices.
const SLICE_LIMIT: usize = 1 << 20;
/// Shares for each member of a gradient that is shared by channels: more even out cores of unequal speed.
const SHARES: usize = 2;

/// Output channels whose sums are brought to taps at a time.
const REDUCED: usize = 4;

/// A planned convolution.
pub(crate) struct WinogradConv {
    shape: ConvShape,
    layout: Layout,
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
    each: usize,
    n: usize,
}

impl Tasks {
    /// As few tasks of about the same size as `most` tiles allow: fixed by the shape, whatever the number of threads.
    fn of(total: usize, most: usize) -> Self {
        let n = total.div_ceil(most).max(1);
        let each = total.div_ceil(n).next_multiple_of(TILE).min(most).max(1);
        Self { total, each, n: total.div_ceil(each) }
    }

    fn tiles(self, task: usize) -> std::ops::Range<usize> {
        task * self.each..self.total.min((task + 1) * self.each)
    }
}

fn most_tiles(windows: usize, channels: usize, (least, most): (usize, usize)) -> usize {
    (windows / (POINTS * channels) / 12 * 12).clamp(least, most)
}

impl WinogradConv {
    /// Plans the passes and allocates packed weights.
    pub fn new(shape: ConvShape, used: ConvUse, level: Level, held: &mut usize) -> Result<Self, EngineError> {
        assert!(can(&shape), "{shape:?} has no tiles");
        // Points are floats, whatever the maps hold.
        let layout = Layout::of::<f32>(level);
        let mut packed = |source: usize, channels: usize| {
            Buffer::zeroed(POINTS * source * layout.channels(channels), "packed weights", held)
        };
        let forward = packed(shape.input.c, shape.cout)?;
        let backward = if used == ConvUse::Train { packed(shape.cout, shape.input.c)? } else { Buffer::default() };
        let grid = Grid { h: shape.input.h, w: shape.input.w };
        Ok(Self { shape, layout, grid, forward, backward })
    }

    fn channels(&self) -> (usize, usize) {
        (self.shape.input.c, self.shape.cout)
    }

    /// The tasks of a pass from `source` channels.
    fn tasks(&self, n_images: usize, source: usize) -> Tasks {
        Tasks::of(n_images * self.grid.per_image(), most_tiles(TASK_WINDOWS, source, TASK_TILES))
    }

    fn gradient_tasks(&self, n_images: usize, rows: usize) -> Tasks {
        let most = most_tiles(GRADIENT_WINDOWS, self.shape.input.c + rows, GRADIENT_TILES);
        Tasks::of(n_images * self.grid.per_image(), most)
    }

    /// Output channels of a share of the weight gradient, and slices that are summed.
    fn gradient_shares(&self, n_members: usize) -> (usize, usize) {
        let (cin, cout) = self.channels();
        if POINTS * cin * cout <= SLICE_LIMIT {
            return (cout, n_members);
        }
        let lanes = self.layout.narrow;
        (cout.div_ceil(SHARES * n_members).next_multiple_of(lanes).min(cout), 1)
    }

    fn sums(&self, share: usize) -> Sums {
        Sums { rows: share.next_multiple_of(TILE), columns: self.layout.channels(self.shape.input.c) }
    }

    #[allow(clippy::too_many_arguments)]
    fn sweep<E: Cell>(
        &self,
        ctx: &mut Context,
        n: usize,
        packed: &[f32],
        channels: (usize, usize),
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
        let job = sweep::Job { grid, channels, packed, x, y: y.as_mut_ptr(), write };
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
        // A share of one channel has the most tiles; the least share of all is as wide as a vector.
        let gradient = |rows: usize| {
            let most = most_tiles(GRADIENT_WINDOWS, cin + rows, GRADIENT_TILES);
            gradient::scratch_len(most, cin, rows, lanes)
        };
        let gradients = (1..=cout.div_ceil(lanes)).map(|rows| gradient((rows * lanes).min(cout)));
        gradients.fold(forward.max(pass(cout)), usize::max)
    }

    fn partial_len(&self, max_batch: usize, n_members: usize, used: ConvUse) -> usize {
        let (cin, cout) = self.channels();
        let sums = self.tasks(max_batch, cin).n * 2 * cout;
        if used == ConvUse::Forward {
            return sums;
        }
        let (share, n_slices) = self.gradient_shares(n_members);
        sums.max(n_slices * cout.div_ceil(share) * self.sums(share).len())
    }

    fn pack(&mut self, team: &Team, level: Level, weights: &[f32], mask: Option<&[u8]>) {
        let (cin, cout) = self.channels();
        let masters = Masters { weights, mask, n_taps: TAPS * TAPS, cin };
        let layout = self.layout;
        let panels = |packed: &mut [f32], source: usize, channels: usize, is_forward: bool| {
            team.for_parts(packed, POINTS * source * layout.panel, |index, out| {
                let first = index * layout.panel;
                let width = layout.width(channels - first);
                let panel = pack::Panel { masters, cout, first, n: width.min(channels - first), width };
                // SAFETY: `level` is at most what the engine detected.
                unsafe {
                    if is_forward {
                        pack::forward::<f32>(level, &panel, out);
                    } else {
                        pack::backward::<f32>(level, &panel, out);
                    }
                }
            });
        };
        panels(&mut self.forward, cin, cout, true);
        if !self.backward.is_empty() {
            panels(&mut self.backward, cout, cin, false);
        }
    }

    fn forward(&self, ctx: &mut Context, n: usize, x: &[E], y: &mut [E], sums: Option<&mut [f32]>) {
        self.sweep(ctx, n, &self.forward, self.channels(), x, y, Write::Set, sums);
    }

    fn backward_data(&self, ctx: &mut Context, n: usize, dy: &[E], dx: &mut [E], write: Write) {
        assert!(!self.backward.is_empty(), "a convolution planned without backward-data was asked for it");
        let (cin, cout) = self.channels();
        self.sweep(ctx, n, &self.backward, (cout, cin), dy, dx, write, None);
    }

    /// Slices of a gradient are added in order, so the result depends on the number of threads but not on who ran what.
    fn backward_weight(&self, ctx: &mut Context, n: usize, x: &[E], dy: &[E], dw: &mut [f32], mask: Option<&[u8]>) {
        let ((cin, cout), level) = (self.channels(), ctx.level);
        let pixels = n * self.grid.h * self.grid.w;
        assert!(x.len() >= pixels * cin && dy.len() >= pixels * cout, "maps of {n} images");
        let (share, n_slices) = self.gradient_shares(ctx.team.n_members());
        let (sums, n_shares) = (self.sums(share), cout.div_ceil(share));
        let tasks = self.gradient_tasks(n, share);
        let n_slices = n_slices.min(tasks.n);
        let job = gradient::Job { grid: self.grid, channels: (cin, cout), x, dy };
        let slices = &mut ctx.partial[..n_slices * n_shares * sums.len()];
        let scratch = Shards::new(ctx.scratch);
        let parts = Shards::new(slices);
        ctx.team.for_chunks(n_slices * n_shares, |chunk, member| {
            let (slice, first) = (chunk / n_shares, chunk % n_shares * share);
            let channels = first..cout.min(first + share);
            // SAFETY: one scratch per member, one part per chunk, and each chunk runs once.
            let (scratch, out) =
                unsafe { (&mut scratch.part(member, 1)[0], parts.part(chunk * sums.len(), sums.len())) };
            let mine = tasks.n * slice / n_slices..tasks.n * (slice + 1) / n_slices;
            for task in mine.clone() {
                let (tiles, adds) = (tasks.tiles(task), task > mine.start);
                // SAFETY: `level` is at most what the engine detected.
                unsafe { gradient::add_tiles(level, &job, tiles, channels.clone(), sums, scratch, out, adds) };
            }
        });
        let slices = Slices { slices: &ctx.partial[..n_slices * n_shares * sums.len()], sums, share, n_shares };
        let row = TAPS * TAPS * cin;
        ctx.team.for_parts(dw, REDUCED * row, |index, dw| {
            let first = index * REDUCED;
            let mask = mask.map(|mask| &mask[first * row..]);
            // SAFETY: `level` is at most what the engine detected.
            unsafe { gradient::reduce::<f32>(level, &slices, cin, first, dw, mask) };
        });
    }
}
