//! How threads divide a weight gradient.
//!
//! Narrow layers have many tiles and few weights: each thread sums its own tiles, and the sums are added up. In wide layers such
//! sums would be large: threads bring many tiles to the points together, then each takes some blocks of channels over all of them. With
//! too few blocks for all threads, they take a block's points apart.

use super::gradient::{self, Block, Job, Layout, Points, Slices};
use super::transform::{POINTS, TILE};
use super::{Tasks, most_tiles};
use crate::cpu::cell::Cell;
use crate::cpu::conv::Context;
use crate::cpu::team::Shards;

/// Most floats of all sums of a narrow layer: of one thread, and of all.
const NARROW: (usize, usize) = (1 << 20, 8 << 20);
/// Floats of a task's points, about, in a narrow layer; and its tiles, at the least and at the most.
const TASK_POINTS: usize = 720 << 10;
const TASK_TILES: (usize, usize) = (32, 192);
/// Floats of the points of a round, about, in a wide layer; and tiles that one thread brings there at a time.
const ROUND_POINTS: usize = 8 << 20;
const ROUND_TASK: usize = 16;
/// Output channels whose sums are brought to taps at a time.
const REDUCED: usize = 4;

/// Adds the gradient of the weights over `n_tiles` tiles to `dw`, where the mask keeps it.
pub(super) fn backward_weight<E: Cell>(
    ctx: &mut Context,
    job: &Job<E>,
    n_tiles: usize,
    dw: &mut [f32],
    mask: Option<&[u8]>,
) {
    if n_tiles == 0 {
        // No sum would be set.
    } else if is_narrow(&job.layout, ctx.team.n_members()) {
        by_tiles(ctx, job, n_tiles, dw, mask);
    } else {
        by_blocks(ctx, job, n_tiles, dw, mask);
    }
}

fn is_narrow(layout: &Layout, n_members: usize) -> bool {
    layout.sums() <= NARROW.0 && n_members * layout.sums() <= NARROW.1
}

/// Most tiles of a task in a narrow layer.
fn task_tiles(layout: &Layout) -> usize {
    most_tiles(layout.per_cell * TASK_POINTS, layout.pass, layout.cin + layout.cout, TASK_TILES)
}

/// Most tiles of a round in a wide layer.
fn round_tiles(layout: &Layout) -> usize {
    most_tiles(layout.per_cell * ROUND_POINTS, layout.pass, layout.cin + layout.cout, (ROUND_TASK, usize::MAX))
}

/// Whether there are blocks enough for all threads.
fn has_blocks(layout: &Layout, n_members: usize) -> bool {
    layout.n_blocks() >= 2 * n_members
}

/// Floats of a thread's scratch.
pub(super) fn scratch_len(layout: &Layout) -> usize {
    layout.points(task_tiles(layout).next_multiple_of(TILE)).max(layout.block(0).len())
}

/// Floats of partial results for at most `n_tiles` tiles.
pub(super) fn partial_len(layout: &Layout, n_tiles: usize, n_members: usize) -> usize {
    if is_narrow(layout, n_members) {
        return n_members * layout.sums();
    }
    let sums = if has_blocks(layout, n_members) { 0 } else { layout.sums() };
    layout.points(round_tiles(layout).min(n_tiles).next_multiple_of(TILE)) + sums
}

/// Every thread sums its share of the tiles. Their sums are added in order, so the result depends on the number of threads but not on
/// who ran what.
fn by_tiles<E: Cell>(ctx: &mut Context, job: &Job<E>, n_tiles: usize, dw: &mut [f32], mask: Option<&[u8]>) {
    let (level, layout, tasks) = (ctx.level, &job.layout, Tasks::of(n_tiles, task_tiles(&job.layout)));
    let (n_slices, len) = (ctx.team.n_members().min(tasks.n), layout.sums());
    let (scratch, slices) = (Shards::new(ctx.scratch), Shards::new(&mut ctx.partial[..n_slices * len]));
    ctx.team.for_chunks(n_slices, |slice, member| {
        // SAFETY: one scratch per member, one part per slice, and each slice runs once.
        let (scratch, out) = unsafe { (&mut scratch.part(member, 1)[0], slices.part(slice * len, len)) };
        let mine = tasks.n * slice / n_slices..tasks.n * (slice + 1) / n_slices;
        for task in mine.clone() {
            let tiles = tasks.tiles(task);
            let (points, rest) = scratch.split_at_mut(layout.points(tiles.len()));
            let points = Points { start: points.as_mut_ptr(), n_cells: layout.cells(tiles.len()) };
            // SAFETY: scratch holds the points; `level` is at most what the engine detected.
            unsafe { gradient::to_points(level, job, tiles, points, 0, rest) };
            let n_blocks = layout.n_blocks();
            for turn in 0..POINTS * n_blocks {
                let at = |turn: usize| (layout.block(turn % n_blocks), turn / n_blocks);
                let ((block, point), (next, next_point)) = (at(turn), at(turn + 1));
                let next = (next_point < POINTS).then_some((&next, next_point));
                let out = &mut out[layout.start(&block) + point * block.point()..][..block.point()];
                // SAFETY: as above.
                unsafe { gradient::sum_block::<E>(level, layout, points, &block, point, out, task > mine.start, next) };
            }
        }
    });
    reduce(ctx, layout, 0, n_slices, dw, mask);
}

/// In rounds, threads bring tiles to the points and share the blocks.
fn by_blocks<E: Cell>(ctx: &mut Context, job: &Job<E>, n_tiles: usize, dw: &mut [f32], mask: Option<&[u8]>) {
    let (level, layout, rounds) = (ctx.level, &job.layout, Tasks::of(n_tiles, round_tiles(&job.layout)));
    for tiles in (0..rounds.n).map(|round| rounds.tiles(round)) {
        let len = layout.points(tiles.len());
        let (points, sums) = ctx.partial.split_at_mut(len);
        let points = Points { start: points.as_mut_ptr(), n_cells: layout.cells(tiles.len()) };
        let scratch = Shards::new(ctx.scratch);
        ctx.team.for_chunks(tiles.len().div_ceil(ROUND_TASK), |chunk, member| {
            let at = chunk * ROUND_TASK;
            let some = tiles.start + at..tiles.end.min(tiles.start + at + ROUND_TASK);
            // SAFETY: points hold the round's tiles; chunks bring different ones; one scratch per member; `level` is at most what the
            // engine detected.
            unsafe {
                gradient::to_points(level, job, some, points, layout.cells(at), &mut scratch.part(member, 1)[0]);
            }
        });
        if has_blocks(layout, ctx.team.n_members()) {
            let dw = Shards::new(dw);
            ctx.team.for_chunks(layout.n_blocks(), |index, member| {
                // SAFETY: one scratch per member; blocks do not overlap, and each runs once.
                let (scratch, dw) = unsafe { (&mut scratch.part(member, 1)[0], dw.as_ptr()) };
                let block = layout.block(index);
                let out = &mut scratch[..block.len()];
                for (point, out) in out.chunks_exact_mut(block.point()).enumerate() {
                    let next = (point + 1 < POINTS).then_some((&block, point + 1));
                    // SAFETY: all tiles were brought to the points; `level` as above.
                    unsafe { gradient::sum_block::<E>(level, layout, points, &block, point, out, false, next) };
                }
                let sums = Slices { start: out.as_ptr(), step: 0, n: 1 };
                // SAFETY: as above.
                unsafe { gradient::reduce::<f32>(level, layout, &block, block.rows.clone(), sums, dw, mask) };
            });
        } else {
            let sums = Shards::new(sums);
            ctx.team.for_chunks(layout.n_blocks() * POINTS, |chunk, _| {
                // The last points may have most products.
                let (block, point) = (layout.block(chunk / POINTS), POINTS - 1 - chunk % POINTS);
                // SAFETY: blocks' sums at points do not overlap, and each runs once; all tiles were brought to the points; `level` as
                // above.
                unsafe {
                    let out = sums.part(layout.start(&block) + point * block.point(), block.point());
                    gradient::sum_block::<E>(level, layout, points, &block, point, out, false, None);
                }
            });
            reduce(ctx, layout, len, 1, dw, mask);
        }
    }
}

/// Adds the slices of sums that lie in the partial results from `at` on, brings them to taps and adds those to `dw`.
fn reduce(ctx: &mut Context, layout: &Layout, at: usize, n_slices: usize, dw: &mut [f32], mask: Option<&[u8]>) {
    let (level, len) = (ctx.level, layout.sums());
    let (slices, dw) = (&ctx.partial[at..at + n_slices * len], Shards::new(dw));
    let rows = |block: &Block, part: usize| {
        let first = block.rows.start + part * REDUCED;
        first.min(block.rows.end)..block.rows.end.min(first + REDUCED)
    };
    let parts = layout.block(0).rows.len().div_ceil(REDUCED);
    ctx.team.for_chunks(layout.n_blocks() * parts, |chunk, _| {
        let block = layout.block(chunk / parts);
        let sums = Slices { start: slices[layout.start(&block)..].as_ptr(), step: len, n: n_slices };
        // SAFETY: slices hold all blocks' sums; chunks have different rows or blocks; `level` is at most what the engine detected.
        unsafe {
            gradient::reduce::<f32>(level, layout, &block, rows(&block, chunk % parts), sums, dw.as_ptr(), mask);
        }
    });
}
