//! The threads' side of the loader: what they share with it, and how a chunk of images becomes views.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use super::plan::EpochPlan;
use super::{Batch, LoaderSpec, Skipped};
use crate::augment::{Augmenter, Scratch, pad_mnist};
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::ordered::message;
use crate::rng::{Purpose, Rng};
use crate::source::RgbImage;

/// A part of a batch.
#[derive(Default)]
pub(super) struct Chunk {
    pub batch: Batch,
}

/// What the loader and its threads share.
pub(super) struct Shared {
    pub dataset: Dataset,
    pub spec: LoaderSpec,
    augmenter: Augmenter,
    /// Decoded images by position; empty for sources that are in memory anyway.
    cache: Vec<OnceLock<Box<RgbImage>>>,
    cached_bytes: AtomicUsize,
    state: Mutex<State>,
    /// A chunk may be begun, or the loader stops.
    pub work_ready: Condvar,
    /// A chunk is finished.
    pub chunk_done: Condvar,
}

pub(super) struct State {
    plan: Arc<EpochPlan>,
    n_chunks: usize,
    next_chunk: usize,
    /// Chunks that the loader took.
    pub consumed: usize,
    /// Finished chunks, each in the slot of its number modulo the length.
    pub finished: Vec<Option<Result<Chunk, DataError>>>,
    spare: Vec<Chunk>,
    /// Broken images by position.
    pub broken: BTreeMap<u32, Skipped>,
    stopped: bool,
}

/// What one thread keeps between images.
#[derive(Default)]
struct Worker {
    scratch: Scratch,
    decoded: RgbImage,
    padded: RgbImage,
    /// Pixels of a view while it is boosted.
    boosted: Vec<u8>,
    /// The image in work, for the report of a panic.
    position: usize,
}

/// A decoded image and the size that it has in its file.
struct Decoded<'a> {
    image: &'a RgbImage,
    divisor: u32,
    width: u32,
    height: u32,
}

impl<'a> Decoded<'a> {
    fn whole(image: &'a RgbImage) -> Self {
        Self { image, divisor: 1, width: image.width, height: image.height }
    }
}

impl Shared {
    pub fn new(dataset: Dataset, spec: LoaderSpec, n_workers: usize, plan: Arc<EpochPlan>) -> Result<Self, DataError> {
        let augmenter = Augmenter::new(spec.recipe.clone(), spec.image_size)?;
        let n_cached = if dataset.in_memory() || spec.cache_bytes == 0 { 0 } else { dataset.len() };
        let n_slots = plan.chunks_ahead(n_workers);
        let state = State {
            plan,
            n_chunks: 0,
            next_chunk: 0,
            consumed: 0,
            finished: (0..n_slots).map(|_| None).collect(),
            spare: Vec::new(),
            broken: BTreeMap::new(),
            stopped: false,
        };
        Ok(Self {
            dataset,
            spec,
            augmenter,
            cache: (0..n_cached).map(|_| OnceLock::new()).collect(),
            cached_bytes: AtomicUsize::new(0),
            state: Mutex::new(state),
            work_ready: Condvar::new(),
            chunk_done: Condvar::new(),
        })
    }

    /// Bytes that the decoded images will take, by the sizes of a few.
    pub fn cache_bytes(&self) -> usize {
        const N_SAMPLED: usize = 4;
        if self.cache.is_empty() {
            return 0;
        }
        let sizes: Vec<usize> = self.dataset.sample(N_SAMPLED).iter().map(|image| image.pixels.len()).collect();
        let mean = sizes.iter().sum::<usize>() / sizes.len().max(1);
        mean.saturating_mul(self.cache.len()).min(self.spec.cache_bytes)
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under the lock, so a poisoned state is still a whole one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn start(&self, plan: Arc<EpochPlan>) {
        let mut state = self.lock();
        state.n_chunks = plan.n_chunks();
        (state.next_chunk, state.consumed) = (0, 0);
        let State { finished, spare, .. } = &mut *state;
        spare.extend(finished.iter_mut().filter_map(Option::take).flatten());
        state.plan = plan;
        self.work_ready.notify_all();
    }

    pub fn stop(&self) {
        self.lock().stopped = true;
        self.work_ready.notify_all();
    }

    pub fn give_back(&self, chunk: Chunk) {
        self.lock().spare.push(chunk);
    }

    /// A thread's life: takes the next chunk that is wanted, works on it, delivers it.
    pub fn work(&self) {
        let mut worker = Worker::default();
        let mut state = self.lock();
        loop {
            if state.stopped {
                return;
            }
            let number = state.next_chunk;
            if number >= state.n_chunks || number >= state.consumed + state.finished.len() {
                state = self.work_ready.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.next_chunk += 1;
            let plan = Arc::clone(&state.plan);
            let mut chunk = state.spare.pop().unwrap_or_default();
            drop(state);

            let outcome = catch_unwind(AssertUnwindSafe(|| self.fill(&plan, number, &mut worker, &mut chunk.batch)));
            let result = outcome.unwrap_or_else(|payload| Err(self.panicked(&*payload, worker.position)));

            state = self.lock();
            if Arc::ptr_eq(&plan, &state.plan) {
                let slot = number % state.finished.len();
                state.finished[slot] = Some(result.map(|()| chunk));
                self.chunk_done.notify_one();
            } else {
                state.spare.push(chunk); // of an epoch that was given up
            }
        }
    }

    fn fill(&self, plan: &EpochPlan, number: usize, worker: &mut Worker, batch: &mut Batch) -> Result<(), DataError> {
        batch.clear();
        for &position in plan.chunk(number) {
            worker.position = position as usize;
            if let Err(error) = self.append_views(plan, worker, batch) {
                if self.spec.strict {
                    return Err(error);
                }
                self.note_broken(position, &error)?;
                continue;
            }
            batch.indices.push(position);
            batch.labels.extend(self.dataset.label(position as usize));
        }
        Ok(())
    }

    fn append_views(&self, plan: &EpochPlan, worker: &mut Worker, batch: &mut Batch) -> Result<(), DataError> {
        let Worker { scratch, decoded, padded, boosted, position } = worker;
        let epoch = plan.epoch;
        let source_index = self.dataset.source_index(*position) as u64;
        let draw = |view, width, height| {
            let mut rng = Rng::new(self.spec.seed, Purpose::Augmentation, epoch, source_index, view);
            self.augmenter.sample(&mut rng, width, height)
        };
        let views = 0..self.spec.n_views as u64;
        // The largest with which every view has the pixels that it needs.
        let divisor = |width, height| {
            let can = |view, divisor| draw(view, width, height).geometry.reduced(divisor).is_some();
            [8, 4, 2].into_iter().find(|&divisor| views.clone().all(|view| can(view, divisor))).unwrap_or(1)
        };
        let Decoded { mut image, divisor, mut width, mut height } = self.decoded(*position, decoded, divisor)?;
        if pad_mnist(image, self.spec.image_size, padded) {
            image = padded;
            (width, height) = (image.width, image.height);
        }
        for view in views {
            let mut params = draw(view, width, height);
            if divisor > 1 {
                params.geometry = params.geometry.reduced(divisor).unwrap_or(params.geometry);
            }
            let start = batch.views.len();
            batch.views.resize(start + self.augmenter.view_len(), 0);
            let pixels = &mut batch.views[start..];
            self.augmenter.apply(image, &params, scratch, pixels);
            if let Some(boost) = &plan.boost {
                let side = self.spec.image_size as usize;
                let operations = boost.sample(self.spec.seed, epoch, *position, source_index, view);
                operations.for_each(|operation| operation.apply(side, pixels, boosted));
            }
        }
        Ok(())
    }

    /// The decoded image, from the cache or else through the buffer. `divisor` chooses by how much a JPEG is reduced.
    fn decoded<'a>(
        &'a self,
        position: usize,
        buffer: &'a mut RgbImage,
        divisor: impl Fn(u32, u32) -> u32,
    ) -> Result<Decoded<'a>, DataError> {
        if let Some(image) = self.cache.get(position).and_then(OnceLock::get) {
            return Ok(Decoded::whole(image));
        }
        if !self.spec.jpeg_scaling {
            self.dataset.decode_into(position, buffer)?;
            return Ok(Decoded::whole(self.kept(position, buffer)));
        }
        let mut full = None;
        let mut choose = |width, height| {
            full = Some((width, height));
            divisor(width, height)
        };
        let divisor = self.dataset.decode_scaled_into(position, &mut choose, buffer)?;
        match full {
            Some((width, height)) if divisor > 1 => Ok(Decoded { image: buffer, divisor, width, height }),
            // An image that another epoch may reduce is not kept: what was kept would decide over the pixels.
            Some((width, height)) if width.min(height) >= 2 * self.spec.image_size => Ok(Decoded::whole(buffer)),
            _ => Ok(Decoded::whole(self.kept(position, buffer))),
        }
    }

    /// The image in the buffer, moved into the cache if there is room for it.
    fn kept<'a>(&'a self, position: usize, buffer: &'a mut RgbImage) -> &'a RgbImage {
        if let Some(place) = self.cache.get(position) {
            let n_bytes = buffer.pixels.len();
            if self.cached_bytes.fetch_add(n_bytes, Ordering::Relaxed) + n_bytes <= self.spec.cache_bytes {
                return place.get_or_init(|| Box::new(std::mem::take(buffer)));
            }
            self.cached_bytes.fetch_sub(n_bytes, Ordering::Relaxed);
        }
        buffer
    }

    fn note_broken(&self, position: u32, error: &DataError) -> Result<(), DataError> {
        let skipped = Skipped::new(&self.dataset, position as usize, error);
        let mut state = self.lock();
        state.broken.insert(position, skipped);
        let (broken, total, limit) = (state.broken.len(), self.dataset.len(), self.spec.max_broken_share);
        if broken as f64 <= f64::from(limit) * total as f64 {
            return Ok(());
        }
        let first = state.broken.values().next().map(|first| format!("{} ({})", first.name, first.reason));
        Err(DataError::TooManyBroken { broken, total, limit, first: first.unwrap_or_default() })
    }

    fn panicked(&self, payload: &(dyn std::any::Any + Send), position: usize) -> DataError {
        let message = message(payload);
        // A source that panics may do so again; this thread must live to report it.
        let name = catch_unwind(AssertUnwindSafe(|| self.dataset.name(position)));
        DataError::Panicked { name: name.unwrap_or_else(|_| format!("image {position}")), message }
    }
}
