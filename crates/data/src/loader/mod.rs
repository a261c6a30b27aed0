//! Batches of augmented views, made ahead of time by worker threads.
//!
//! What a batch holds depends on (seed, epoch, data set, recipe, batch size) alone: the order is a permutation from
//! (seed, epoch), each view's randomness is keyed by its image's index in the source, and a rank takes its contiguous
//! slice of each global batch. Threads, ranks and timing change nothing but speed.

mod plan;
mod work;

use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sdclr_records::augment::Augmentation;

use crate::augment::Boost;
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::ordered::n_workers;
use plan::EpochPlan;
use work::{Chunk, Shared};

/// In which order the images of an epoch come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// A new permutation every epoch.
    Shuffled,
    /// As in the data set.
    Sequential,
}

/// Which part of each global batch this process takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// This process's number, below `ranks`.
    pub rank: usize,
    /// Number of processes.
    pub ranks: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Self { rank: 0, ranks: 1 }
    }
}

/// What a loader is to do.
#[derive(Clone, Debug)]
pub struct LoaderSpec {
    /// How views are made.
    pub recipe: Augmentation,
    /// Side of a view in pixels.
    pub image_size: u32,
    /// Views per image, at least 1.
    pub n_views: usize,
    /// Images per batch, over all ranks.
    pub batch_size: usize,
    /// Order of the images.
    pub order: Order,
    /// Seed of the order and of the augmentations.
    pub seed: u64,
    /// Threads; 0 takes one per processor.
    pub workers: usize,
    /// Whether large JPEGs are decoded at 1/2, 1/4 or 1/8 where every view's crop stays at least as large as the view. Views
    /// then differ by a few grey levels from those of the whole image, and such images are not kept in memory.
    pub jpeg_scaling: bool,
    /// Bytes that decoded images may take: they are kept, each decoded once, until the next one would not fit. Sources that
    /// lie decoded in memory anyway take none of it.
    pub cache_bytes: usize,
    /// This process's part.
    pub shard: Shard,
    /// Share of broken images that is tolerated, in [0, 1].
    pub max_broken_share: f32,
    /// Whether the first broken image is an error.
    pub strict: bool,
}

impl LoaderSpec {
    /// A limit for [`Self::cache_bytes`] that keeps small data sets in memory whole: 1 GiB, 7,000 images of 256×192 pixels.
    pub const CACHE_BYTES: usize = 1 << 30;

    fn validate(&self) -> Result<(), DataError> {
        let ensure = |condition, problem: String| if condition { Ok(()) } else { Err(DataError::Setting(problem)) };
        let Shard { rank, ranks } = self.shard;
        ensure(self.batch_size > 0, "batch size 0: a batch needs at least one image".to_owned())?;
        ensure((1..=16).contains(&self.n_views), format!("{} views per image: it must be in 1..=16", self.n_views))?;
        ensure(rank < ranks, format!("rank {rank} of {ranks}: ranks count from 0"))?;
        let share = self.max_broken_share;
        ensure((0.0..=1.0).contains(&share), format!("allowed share of broken images {share}: it must be in 0..=1"))
    }
}

/// Views of a batch's images. Smaller than asked for if images were broken, empty if all of them were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// `[n_images * n_views, image_size, image_size, 3]`; an image's views are adjacent.
    pub views: Vec<u8>,
    /// Position in the data set of each image.
    pub indices: Vec<u32>,
    /// Label of each image; empty if the data set is unlabelled.
    pub labels: Vec<u32>,
}

impl Batch {
    /// Number of images.
    pub fn n_images(&self) -> usize {
        self.indices.len()
    }

    fn clear(&mut self) {
        self.views.clear();
        self.indices.clear();
        self.labels.clear();
    }

    fn extend(&mut self, other: &Self) {
        self.views.extend_from_slice(&other.views);
        self.indices.extend_from_slice(&other.indices);
        self.labels.extend_from_slice(&other.labels);
    }
}

/// An image that was left out because it is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The image's name in its source.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Skipped {
    pub(crate) fn new(dataset: &Dataset, position: usize, error: &DataError) -> Self {
        let reason = match error {
            DataError::Image { reason, .. } => reason.clone(),
            other => other.to_string(),
        };
        Self { name: dataset.name(position), reason }
    }
}

/// Hands out the batches of one epoch after the other. Dropping it stops its threads.
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    plan: Arc<EpochPlan>,
    /// The next batch of the current epoch and the next of its chunks.
    next_batch: usize,
    next_chunk: usize,
    spare_batches: Vec<Batch>,
    waited: Duration,
}

impl Loader {
    /// Starts the threads; they have nothing to do until [`Self::start_epoch`].
    ///
    /// # Errors
    /// If a setting makes no sense, or a thread cannot be started.
    pub fn new(dataset: Dataset, spec: LoaderSpec) -> Result<Self, DataError> {
        spec.validate()?;
        let n_workers = n_workers(spec.workers);
        let plan = Arc::new(EpochPlan::finished(dataset.len(), &spec));
        let shared = Arc::new(Shared::new(dataset, spec, n_workers, Arc::clone(&plan))?);
        let mut loader = Self {
            shared,
            threads: Vec::new(),
            next_batch: plan.n_batches(),
            next_chunk: 0,
            plan,
            spare_batches: Vec::new(),
            waited: Duration::ZERO,
        };
        for n in 0..n_workers {
            let shared = Arc::clone(&loader.shared);
            let thread = std::thread::Builder::new().name(format!("loader-{n}")).spawn(move || shared.work());
            let problem = |error| DataError::Setting(format!("cannot start loader thread {n} of {n_workers}: {error}"));
            loader.threads.push(thread.map_err(problem)?);
        }
        Ok(loader)
    }

    /// Batches in an epoch, the last partial one included.
    pub fn batches_per_epoch(&self) -> usize {
        self.plan.n_batches()
    }

    /// The data set that is loaded.
    pub fn dataset(&self) -> &Dataset {
        &self.shared.dataset
    }

    /// Starts an epoch at one of its batches (not 0 when a run is resumed); what is left of the last one is dropped.
    pub fn start_epoch(&mut self, epoch: u64, first_batch: usize) {
        self.start(EpochPlan::new(self.shared.dataset.len(), &self.shared.spec, epoch, first_batch));
    }

    /// [`Self::start_epoch`] with further augmentation, image by image: for boosted contrastive learning. It is drawn from
    /// streams of its own, so what the recipe does stays the same.
    ///
    /// # Panics
    /// If `boost` has not a score for each image.
    pub fn start_boosted_epoch(&mut self, epoch: u64, first_batch: usize, boost: Boost) {
        let n_images = self.shared.dataset.len();
        assert_eq!(boost.memorization.len(), n_images, "a score for each image");
        let plan = EpochPlan::new(n_images, &self.shared.spec, epoch, first_batch);
        self.start(plan.boosted(boost));
    }

    fn start(&mut self, plan: EpochPlan) {
        let first_batch = plan.first_batch();
        self.plan = Arc::new(plan);
        self.next_batch = first_batch.min(self.plan.n_batches());
        self.next_chunk = 0;
        self.shared.start(Arc::clone(&self.plan));
    }

    /// The next batch, `None` after the last one of the epoch (or before the first epoch); blocks until it is there.
    /// After an error the epoch is over.
    pub fn next_batch(&mut self) -> Option<Result<Batch, DataError>> {
        if self.next_batch >= self.plan.n_batches() {
            return None;
        }
        let mut batch = self.spare_batches.pop().unwrap_or_default();
        batch.clear();
        for _ in 0..self.plan.chunks_of(self.next_batch) {
            match self.next_chunk() {
                Ok(chunk) => {
                    batch.extend(&chunk.batch);
                    self.shared.give_back(chunk);
                }
                Err(error) => {
                    self.next_batch = self.plan.n_batches();
                    return Some(Err(error));
                }
            }
        }
        self.next_batch += 1;
        Some(Ok(batch))
    }

    /// Gives a batch back for its buffers: a loop that does so allocates nothing per batch.
    pub fn recycle(&mut self, batch: Batch) {
        // More than a caller can hold at once would only pile up.
        if self.spare_batches.len() < 4 {
            self.spare_batches.push(batch);
        }
    }

    /// Seconds that [`Self::next_batch`] waited for the threads since the loader was made.
    pub fn waited_s(&self) -> f64 {
        self.waited.as_secs_f64()
    }

    /// The broken images met so far, by their position in the data set.
    pub fn skipped(&self) -> Vec<Skipped> {
        self.shared.lock().broken.values().cloned().collect()
    }

    /// Number of broken images met so far.
    pub fn n_skipped(&self) -> usize {
        self.shared.lock().broken.len()
    }

    /// Bytes that the loader will come to hold, roughly: decoded images that are kept, and views in the making.
    pub fn memory_bytes(&self) -> usize {
        let Shared { spec, dataset, .. } = &*self.shared;
        let per_image = spec.n_views * 3 * (spec.image_size as usize).pow(2);
        let batch = spec.batch_size.min(dataset.len()).div_ceil(spec.shard.ranks);
        // In chunks ahead: two batches, or on many processors what keeps all of them busy, but nothing of the next epoch.
        let n_slots = self.shared.lock().finished.len();
        let ahead = n_slots * batch / self.plan.chunks_of(0).max(1);
        let ahead = ahead.min(dataset.len().div_ceil(spec.shard.ranks)).max(2 * batch);
        // And two put together: the one in use and a spare.
        let views = per_image * (ahead + 2 * batch);
        self.shared.cache_bytes() + views
    }

    fn next_chunk(&mut self) -> Result<Chunk, DataError> {
        let mut state = self.shared.lock();
        let slot = self.next_chunk % state.finished.len();
        if state.finished[slot].is_none() {
            let start = Instant::now();
            while state.finished[slot].is_none() {
                state = self.shared.chunk_done.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            self.waited += start.elapsed();
        }
        self.next_chunk += 1;
        state.consumed = self.next_chunk;
        let chunk = state.finished[slot].take();
        drop(state);
        self.shared.work_ready.notify_one();
        chunk.unwrap_or_else(|| Ok(Chunk::default()))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.stop();
        for thread in self.threads.drain(..) {
            // A worker catches the panics of its work; whatever else ended it was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader").field("dataset", &self.shared.dataset).field("spec", &self.shared.spec).finish()
    }
}
