//! What an epoch consists of: the order of the images, cut into global batches, a rank's slices, and chunks of work.

use std::ops::Range;

use super::{LoaderSpec, Order, Shard};
use crate::augment::Boost;
use crate::rng::{Purpose, Rng};

/// Images that a thread handles at a time.
const CHUNK: usize = 16;

/// One epoch of one rank.
#[derive(Debug)]
pub(super) struct EpochPlan {
    pub epoch: u64,
    /// What is done to the images on top of the recipe.
    pub boost: Option<Boost>,
    /// Positions in the data set, all ranks' alike.
    order: Vec<u32>,
    batch_size: usize,
    shard: Shard,
    first_batch: usize,
}

impl EpochPlan {
    pub fn new(n_images: usize, spec: &LoaderSpec, epoch: u64, first_batch: usize) -> Self {
        let mut order: Vec<u32> = (0..n_images as u32).collect();
        if spec.order == Order::Shuffled {
            Rng::new(spec.seed, Purpose::EpochOrder, epoch, 0, 0).shuffle(&mut order);
        }
        Self { epoch, boost: None, order, batch_size: spec.batch_size, shard: spec.shard, first_batch }
    }

    pub fn boosted(self, boost: Boost) -> Self {
        Self { boost: Some(boost), ..self }
    }

    /// The state before any epoch: nothing is left to do.
    pub fn finished(n_images: usize, spec: &LoaderSpec) -> Self {
        Self { first_batch: usize::MAX, ..Self::new(n_images, spec, 0, 0) }
    }

    pub fn first_batch(&self) -> usize {
        self.first_batch
    }

    pub fn n_batches(&self) -> usize {
        self.order.len().div_ceil(self.batch_size)
    }

    /// Where this rank's slice of a batch lies in the order.
    fn slice(&self, batch: usize) -> Range<usize> {
        let start = batch * self.batch_size;
        let len = self.batch_size.min(self.order.len() - start);
        let Shard { rank, ranks } = self.shard;
        start + len * rank / ranks..start + len * (rank + 1) / ranks
    }

    pub fn chunks_of(&self, batch: usize) -> usize {
        self.slice(batch).len().div_ceil(CHUNK)
    }

    /// Chunks in the rest of the epoch.
    pub fn n_chunks(&self) -> usize {
        match self.n_batches().checked_sub(self.first_batch) {
            None | Some(0) => 0,
            Some(n) => (n - 1) * self.chunks_of(0) + self.chunks_of(self.n_batches() - 1),
        }
    }

    /// The positions of a chunk's images, chunks counted from the first batch of this plan.
    pub fn chunk(&self, chunk: usize) -> &[u32] {
        // All batches but the last have as many chunks as batch 0.
        let (per_batch, last) = (self.chunks_of(0), self.n_batches() - 1);
        let n_before_last = (last - self.first_batch) * per_batch;
        let (batch, chunk_of_batch) = match chunk.checked_sub(n_before_last) {
            Some(chunk_of_last) => (last, chunk_of_last),
            None => (self.first_batch + chunk / per_batch, chunk % per_batch),
        };
        let slice = &self.order[self.slice(batch)];
        let start = chunk_of_batch * CHUNK;
        &slice[start..slice.len().min(start + CHUNK)]
    }

    /// Chunks that are worth having in the making: two batches, or enough to keep every thread busy.
    pub fn chunks_ahead(&self, n_workers: usize) -> usize {
        (2 * self.chunks_of(0)).max(2 * n_workers)
    }
}
