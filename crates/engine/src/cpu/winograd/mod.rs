//! 3 × 3 convolutions with fewer multiplications, by Winograd's minimal filtering: a quarter with stride 1, as F(4 × 4, 3 × 3), and nine
//! sixteenths with stride 2, where F(4, 2) takes every other input.
//!
//! Feature maps are brought to 36 or 81 points, tile by tile ([`transform`], [`strided`]); at each point a convolution is a matrix product
//! ([`product`]). [`sweep`] is forward and backward-data, [`gradient`] the weight gradient, which threads divide as in [`shares`].
//!
//! The forward pass is in f32 at the points whatever the maps are kept in, which is nearer to exact than direct products of bf16 pairs. With
//! stride 1 it is also faster than those; where it is not, the forward pass is left to them (`conv::Mixed`). Gradients of bf16 maps are
//! pairs of bf16 there, too ([`points::has_pairs`] says why).

mod gradient;
mod grid;
mod pack;
mod points;
mod product;
mod shares;
mod square;
mod strided;
mod sweep;
mod transform;

use super::cell::{Cell, per_cell};
use super::conv::{Context, Convolution, Packing};
use super::elementwise;
use super::layout::Layout;
use super::pack::Masters;
use super::simd::Level;
use super::team::Shards;
use crate::element::Bf16;
use crate::types::{ConvShape, ConvUse, Dims, Direction, Write};
use grid::Grid;
use transform::{POINTS, TAPS, TILE};

/// Floats of a task's windows at their points, about: with the products, what a second-level cache holds.
const TASK_WINDOWS: usize = 120 << 10;
/// Tiles of a task, in whole register blocks: fewer, and the weights are read too often; more, and small batches fall into too few tasks.
const TASK_TILES: (usize, usize) = (36, 96);
/// Tiles of whole register blocks of every level.
const WHOLE: usize = 12;
/// So many tasks of a pass are of whole register blocks: a block with few rows takes as long as one with twice as many. Fewer tasks are
/// divided more evenly.
const MANY: usize = 16;

/// What a pass of stride 1 or 2 does to maps, which decides its [maps to points](transform).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pass {
    /// Leaves their size as it is: all passes of stride 1.
    Same,
    /// Halves it: the forward pass of stride 2, and its weight gradient.
    Down,
    /// Doubles it: backward-data of stride 2.
    Up,
}

impl Pass {
    /// Products of a tile along a side, for each pair of channels.
    fn side(self) -> usize {
        if self == Self::Same { transform::WINDOW } else { strided::PRODUCTS }
    }

    /// Products of a tile for each pair of channels.
    fn products(self) -> usize {
        self.side() * self.side()
    }

    /// The forward pass of a convolution.
    fn forward(shape: &ConvShape) -> Self {
        if shape.stride == 1 { Self::Same } else { Self::Down }
    }

    /// Its backward-data.
    fn backward_data(shape: &ConvShape) -> Self {
        if shape.stride == 1 { Self::Same } else { Self::Up }
    }
}

/// A planned convolution.
pub(crate) struct WinogradConv {
    shape: ConvShape,
    layout: Layout,
    /// Numbers in a cell of gradients' products: see [`points::has_pairs`].
    per_cell: usize,
    grid: Grid,
    /// The passes it was planned for.
    has_forward: bool,
    has_backward_data: bool,
}

/// Whether a convolution can be computed so.
pub(crate) fn can(shape: &ConvShape) -> bool {
    shape.kernel == TAPS && shape.stride <= 2 && shape.pad == 1
}

/// Multiplications for each of the direct way's, edges included.
pub(crate) fn cost(shape: &ConvShape) -> f64 {
    let grid = grid(shape);
    (grid.per_image() * Pass::forward(shape).products()) as f64 / (grid.h * grid.w * TAPS * TAPS) as f64
}

/// The tiles of a convolution's outputs.
fn grid(shape: &ConvShape) -> Grid {
    let Dims { h, w, .. } = shape.output();
    Grid { h, w }
}

/// Consecutive tiles of tasks.
#[derive(Clone, Copy)]
struct Tasks {
    total: usize,
    n: usize,
    /// All tasks but the last are of so many tiles, or a multiple.
    unit: usize,
}

impl Tasks {
    /// As few tasks of about the same size as `most` tiles allow, of a number that divides well among threads: fixed by the shape,
    /// whatever their number. They are of whole groups of rows.
    fn of(total: usize, most: usize) -> Self {
        let n = total.div_ceil(most).max(1);
        Self { total, n: n.next_multiple_of((n.next_power_of_two() / 4).max(1)), unit: TILE }
    }

    /// The same tasks of whole register blocks, where `most` was of these and tasks are many.
    fn of_blocks(self) -> Self {
        Self { unit: if self.n < MANY { TILE } else { WHOLE }, ..self }
    }

    /// The tiles of a task.
    fn tiles(self, task: usize) -> std::ops::Range<usize> {
        let at = |task: usize| (self.total.div_ceil(self.unit) * task / self.n * self.unit).min(self.total);
        at(task)..at(task + 1)
    }
}

/// Tiles of a task whose points take about so many floats: whole register blocks, if the least and the most are.
fn most_tiles(windows: usize, pass: Pass, channels: usize, (least, most): (usize, usize)) -> usize {
    (windows / (pass.products() * channels) / WHOLE * WHOLE).clamp(least, most)
}

impl WinogradConv {
    /// Plans the passes; `has_forward` is false where another algorithm computes the forward pass.
    pub fn new<E: Cell>(shape: ConvShape, used: ConvUse, has_forward: bool, level: Level) -> Self {
        assert!(can(&shape), "{shape:?} has no tiles");
        // Cells at points are as wide as floats, whatever the maps hold.
        let layout = Layout::of::<f32>(level);
        let has_backward_data = used == ConvUse::Train;
        Self { shape, layout, per_cell: per_cell::<E>(level), grid: grid(&shape), has_forward, has_backward_data }
    }

    fn channels(&self) -> (usize, usize) {
        (self.shape.input.c, self.shape.cout)
    }

    /// The tasks of a pass from `source` channels.
    fn tasks(&self, n_images: usize, pass: Pass, source: usize) -> Tasks {
        Tasks::of(n_images * self.grid.per_image(), most_tiles(TASK_WINDOWS, pass, source, TASK_TILES)).of_blocks()
    }

    /// Rows and columns of the inputs' maps and of the outputs'.
    fn sizes(&self) -> [(usize, usize); 2] {
        [self.shape.input, self.shape.output()].map(|dims| (dims.h, dims.w))
    }

    fn assert_maps<E>(&self, n: usize, inputs: &[E], outputs: &[E]) {
        let lens = [self.shape.input, self.shape.output()].map(|dims| n * dims.len());
        assert!(inputs.len() >= lens[0] && outputs.len() >= lens[1], "maps of {n} images");
    }

    /// How the weight gradient's numbers lie.
    fn gradient_layout(&self) -> gradient::Layout {
        let (cin, cout) = self.channels();
        gradient::Layout {
            pass: Pass::forward(&self.shape),
            cin,
            cout,
            lanes: self.layout.narrow,
            panel: self.layout.panel,
            per_cell: self.per_cell,
        }
    }

    /// The way of a direction, if it was planned.
    fn way(&self, direction: Direction) -> Option<Way> {
        let ([input, output], (cin, cout)) = (self.sizes(), self.channels());
        match direction {
            Direction::Forward => self.has_forward.then(|| Way {
                pass: Pass::forward(&self.shape),
                sizes: [input, output],
                channels: (cin, cout),
                per_cell: 1,
            }),
            Direction::BackwardData => self.has_backward_data.then(|| Way {
                pass: Pass::backward_data(&self.shape),
                sizes: [output, input],
                channels: (cout, cin),
                per_cell: self.per_cell,
            }),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn sweep<E: Cell>(
        &self,
        ctx: &mut Context,
        n: usize,
        direction: Direction,
        x: &[E],
        y: &mut [E],
        write: Write,
        sums: Option<&mut [f32]>,
    ) {
        let Some(Way { pass, sizes, channels, per_cell }) = self.way(direction) else {
            panic!("a convolution was asked for a pass that it was not planned for");
        };
        let packed = ctx.packed;
        assert!(packed.len() == Convolution::<E>::packed_len(self, direction), "{} packed weights", packed.len());
        let tasks = self.tasks(n, pass, channels.0);
        let n_panels = channels.1.div_ceil(self.layout.panel);
        // Many threads share a task's panels, too: each of them brings its windows to the points.
        let splits = (2 * ctx.team.n_members()).div_ceil(tasks.n).min(n_panels);
        let width = 2 * channels.1;
        let partial = Shards::new(&mut ctx.partial[..if sums.is_some() { tasks.n * width } else { 0 }]);
        let scratch = Shards::new(ctx.scratch);
        let (level, has_sums) = (ctx.level, sums.is_some());
        let job =
            sweep::Job { level, pass, grid: self.grid, sizes, channels, per_cell, packed, x, y: y.as_mut_ptr(), write };
        ctx.team.for_chunks(tasks.n * splits, |chunk, member| {
            let (task, split) = (chunk / splits, chunk % splits);
            let panels = n_panels * split / splits..n_panels * (split + 1) / splits;
            let sums = if has_sums { partial.as_ptr().wrapping_add(task * width) } else { std::ptr::null_mut() };
            let task = sweep::Task { tiles: tasks.tiles(task), panels, sums };
            // SAFETY: one scratch per member; maps hold `n` images by the callers' assertions, partial sums all tasks; tasks' tiles and
            // panels are disjoint and each runs once; `level` is at most what the engine detected.
            unsafe { sweep::correlate(level, &job, &task, &mut scratch.part(member, 1)[0]) };
        });
        if let Some(sums) = sums {
            elementwise::add_partials(ctx.team, ctx.level, &ctx.partial[..tasks.n * width], sums);
        }
    }
}

/// What a direction does: rows and columns of source and destination, their channels, and source channels in a cell of weights.
struct Way {
    pass: Pass,
    sizes: [(usize, usize); 2],
    channels: (usize, usize),
    per_cell: usize,
}

impl<E: Cell> Convolution<E> for WinogradConv {
    fn scratch_len(&self, used: ConvUse) -> usize {
        let Layout { panel, narrow: lanes, .. } = self.layout;
        let ways = [Direction::Forward, Direction::BackwardData].map(|direction| self.way(direction));
        let sweep = |Way { pass, channels: (source, _), .. }: Way| {
            let n_tiles = most_tiles(TASK_WINDOWS, pass, source, TASK_TILES);
            sweep::scratch_len(pass, n_tiles, source, panel, lanes)
        };
        let sweeps = ways.into_iter().flatten().map(sweep).max().unwrap_or(0);
        if used == ConvUse::Forward {
            return sweeps;
        }
        sweeps.max(shares::scratch_len(&self.gradient_layout()) + square::SCRATCH)
    }

    fn partial_len(&self, max_batch: usize, n_members: usize, used: ConvUse) -> usize {
        let (cin, cout) = self.channels();
        let sums = self.tasks(max_batch, Pass::forward(&self.shape), cin).n * 2 * cout;
        if used == ConvUse::Forward {
            return sums;
        }
        sums.max(shares::partial_len(&self.gradient_layout(), max_batch * self.grid.per_image(), n_members))
    }

    fn packed_len(&self, direction: Direction) -> usize {
        self.way(direction).map_or(0, |Way { channels: (source, dest), per_cell, .. }| {
            POINTS * source.div_ceil(per_cell) * self.layout.channels(dest)
        })
    }

    fn pack(&mut self, from: &Packing, packed: &mut [f32]) {
        let &Packing { team, level, direction, weights, mask } = from;
        let Some(Way { channels: (source, dest), per_cell, .. }) = self.way(direction) else { return };
        let (cin, cout) = self.channels();
        let masters = Masters { weights, mask, n_taps: TAPS * TAPS, cin };
        let (layout, pass) = (self.layout, Pass::forward(&self.shape));
        team.for_parts(packed, POINTS * source.div_ceil(per_cell) * layout.panel, |index, out| {
            let first = index * layout.panel;
            let width = layout.width(dest - first);
            let n = width.min(dest - first);
            let panel = pack::Panel { masters, pass, cout, first, n, width, per_cell };
            // SAFETY: `level` is at most what the engine detected.
            unsafe {
                match direction {
                    Direction::Forward => pack::forward::<f32>(level, &panel, out),
                    Direction::BackwardData if per_cell == 1 => pack::backward::<f32>(level, &panel, out),
                    Direction::BackwardData => pack::backward::<Bf16>(level, &panel, out),
                }
            }
        });
    }

    fn forward(&self, ctx: &mut Context, n: usize, x: &[E], y: &mut [E], sums: Option<&mut [f32]>) {
        self.assert_maps(n, x, y);
        self.sweep(ctx, n, Direction::Forward, x, y, Write::Set, sums);
    }

    fn backward_data(&self, ctx: &mut Context, n: usize, dy: &[E], dx: &mut [E], write: Write) {
        self.assert_maps(n, dx, dy);
        self.sweep(ctx, n, Direction::BackwardData, dy, dx, write, None);
    }

    fn backward_weight(&self, ctx: &mut Context, n: usize, x: &[E], dy: &[E], dw: &mut [f32], mask: Option<&[u8]>) {
        self.assert_maps(n, x, dy);
        assert!(dw.len() == self.shape.n_weights(), "gradient of {} weights", dw.len());
        let job = gradient::Job { grid: self.grid, sizes: self.sizes(), layout: self.gradient_layout(), x, dy };
        shares::backward_weight(ctx, &job, n * self.grid.per_image(), dw, mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_all_tiles_and_none_is_larger_than_most() {
        let least = TASK_TILES.0;
        assert!(least.is_multiple_of(WHOLE) && TASK_TILES.1.is_multiple_of(WHOLE) && WHOLE.is_multiple_of(TILE));
        for (total, most) in (0..2000).step_by(7).flat_map(|total| [(total, least), (total, 2 * least)]) {
            for tasks in [Tasks::of(total, most), Tasks::of(total, most).of_blocks()] {
                let mut end = 0;
                for tiles in (0..tasks.n).map(|task| tasks.tiles(task)) {
                    assert!(tiles.start == end && tiles.len() <= most, "{total} tiles by {most}: {tiles:?}");
                    assert!(
                        tiles.end == total || tiles.end.is_multiple_of(tasks.unit),
                        "{total} tiles by {most}: {tiles:?}"
                    );
                    end = tiles.end;
                }
                assert_eq!(end, total, "by {most}");
            }
        }
        assert_eq!(Tasks::of(MANY * least, least).of_blocks().unit, WHOLE);
        assert_eq!(Tasks::of((MANY - 1) * least - WHOLE, 2 * least).of_blocks().unit, TILE);
    }
}
