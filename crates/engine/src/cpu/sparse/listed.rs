//! A pass over kept weights, and how its tasks run on the team.

use super::lanes::{GROUP, abreast};
use super::list::List;
use super::pass::Pass;
use super::{gradient, sweep};
use crate::cpu::cell::Cell;
use crate::cpu::conv::Context;
use crate::cpu::elementwise;
use crate::cpu::team::Shards;
use crate::types::{EngineError, Write};
use std::ops::Range;

/// Floats of a task's source rows for each lane, about: 640 KB on vectors of eight. A second-level cache holds most of it, and larger tasks add up
/// gradients less often.
const TASK_SOURCE: usize = 20 << 10;
/// Shares of the work for each thread: two even out cores of unequal speed.
const SHARES: usize = 2;
/// Slices of a weight gradient at the most.
const SLICES: usize = 32;
/// Kept weights whose gradients a thread adds up at a time.
const REDUCED: usize = 1 << 12;

/// A pass, its weights, and the rows of its tasks.
pub(super) struct Listed {
    pub pass: Pass,
    pub list: List,
    /// Rows of a task, and tasks of the images that lie side by side.
    pub rows: usize,
    bands: usize,
    /// Images of a task.
    images: usize,
}

impl Listed {
    /// Plans a pass whose lists hold at most `most` weights.
    pub fn new<E: Cell>(
        pass: Pass,
        is_forward: bool,
        lanes: usize,
        most: usize,
        held: &mut usize,
    ) -> Result<Self, EngineError> {
        let bands = pass.rows().div_ceil(pass.band(TASK_SOURCE * lanes, lanes));
        let rows = pass.rows().div_ceil(bands);
        let list = List::new(&pass, is_forward, most, held)?;
        Ok(Self { list, rows, bands: pass.rows().div_ceil(rows), images: abreast::<E>(lanes), pass })
    }

    /// Tasks of a pass over `n` images.
    pub fn n_tasks(&self, n: usize) -> usize {
        n.div_ceil(self.images) * self.bands
    }

    /// The first image of a task, and its rows.
    fn task(&self, task: usize) -> (usize, Range<usize>) {
        let first = task % self.bands * self.rows;
        (task / self.bands * self.images, first..(first + self.rows).min(self.pass.rows()))
    }

    /// Slices of the images whose gradients are summed by themselves.
    pub fn n_slices(&self, n: usize, n_members: usize) -> usize {
        self.n_tasks(n).min(SHARES * n_members).min(SLICES)
    }

    /// Shares of the channels where there are `n` tasks or slices: with fewer than threads want, these share their channels, too.
    fn n_splits(&self, n: usize, n_members: usize) -> usize {
        (SHARES * n_members).div_ceil(n.max(1)).min(self.pass.dest.c.div_ceil(GROUP))
    }

    /// The groups of channels of a share.
    fn groups(&self, split: usize, splits: usize) -> Range<usize> {
        let at = |split: usize| self.pass.dest.c.div_ceil(GROUP) * split / splits;
        at(split)..at(split + 1)
    }

    /// Runs the pass over `n` images; `sums`, if given, receive Σ and Σ² of the results per channel.
    pub fn sweep<E: Cell>(
        &self,
        ctx: &mut Context,
        n: usize,
        x: &[E],
        y: &mut [E],
        write: Write,
        sums: Option<&mut [f32]>,
    ) {
        let (n_tasks, width) = (self.n_tasks(n), 2 * self.pass.dest.c);
        assert!(y.len() >= n * self.pass.dest.len(), "destination of {} numbers for {n} images", y.len());
        let splits = self.n_splits(n_tasks, ctx.team.n_members());
        let (level, has_sums) = (ctx.level, sums.is_some());
        let partial = Shards::new(&mut ctx.partial[..if has_sums { n_tasks * width } else { 0 }]);
        let scratch = Shards::new(ctx.scratch);
        let job = sweep::Job { pass: &self.pass, list: &self.list, n, x, y: y.as_mut_ptr(), write };
        ctx.team.for_chunks(n_tasks * splits, |chunk, member| {
            let (task, split) = (chunk / splits, chunk % splits);
            let (image, rows) = self.task(task);
            let groups = self.groups(split, splits);
            let sums = if has_sums { partial.as_ptr().wrapping_add(task * width) } else { std::ptr::null_mut() };
            // SAFETY: one scratch per member; maps hold `n` images, partial sums all tasks; tasks' pixels and channels are disjoint and each
            // runs once; `level` is at most what the engine detected.
            unsafe {
                let task = sweep::Task { image, rows, groups, sums };
                sweep::correlate(level, &job, &task, &mut scratch.part(member, 1)[0]);
            }
        });
        if let Some(sums) = sums {
            elementwise::add_partials(ctx.team, ctx.level, &ctx.partial[..n_tasks * width], sums);
        }
    }

    /// Adds the gradient of the kept weights to `dw`. Each slice of the images is summed by itself, so the result depends on the number of threads
    /// but not on who ran what.
    pub fn weight_gradient<E: Cell>(&self, ctx: &mut Context, n: usize, x: &[E], dy: &[E], dw: &mut [f32]) {
        let (level, n_tasks, len) = (ctx.level, self.n_tasks(n), self.list.len());
        let n_slices = self.n_slices(n, ctx.team.n_members());
        let splits = self.n_splits(n_slices, ctx.team.n_members());
        let job = gradient::Job { pass: &self.pass, list: &self.list, n, x, dy };
        let (scratch, slices) = (Shards::new(ctx.scratch), Shards::new(&mut ctx.partial[..n_slices * len]));
        ctx.team.for_chunks(n_slices * splits, |chunk, member| {
            let (slice, split) = (chunk / splits, chunk % splits);
            let groups = self.groups(split, splits);
            let tasks = n_tasks * slice / n_slices..n_tasks * (slice + 1) / n_slices;
            for (i, (image, rows)) in tasks.map(|task| self.task(task)).enumerate() {
                let (to, write) =
                    (slices.as_ptr().wrapping_add(slice * len), if i == 0 { Write::Set } else { Write::Add });
                let task = gradient::Task { image, rows, groups: groups.clone(), to, write };
                // SAFETY: one scratch per member; slices have a float for each weight; a slice's channels are disjoint and each runs once;
                // `level` is at most what the engine detected.
                unsafe { gradient::weight_gradient(level, &job, &task, &mut scratch.part(member, 1)[0]) };
            }
        });
        let (slices, dw) = (&ctx.partial[..n_slices * len], Shards::new(dw));
        ctx.team.for_chunks(len.div_ceil(REDUCED), |chunk, _| {
            for place in chunk * REDUCED..((chunk + 1) * REDUCED).min(len) {
                let sum: f32 = (0..n_slices).map(|slice| slices[slice * len + place]).sum();
                // SAFETY: no two places are the same weight's.
                unsafe { dw.part(self.list.masters[place] as usize, 1)[0] += sum };
            }
        });
    }
}
