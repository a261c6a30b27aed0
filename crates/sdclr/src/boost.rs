//! Boosted contrastive learning around a step: each image's loss into a memory, and the memory into the loader's next epoch.
//!
//! Source: Zhou et al., "Contrastive Learning with Boosted Memorization", ICML 2022; the formulas are in
//! [`sdclr_nn::loss_memory`] and [`sdclr_data::augment::Boost`]. With SimCLR it is their method on identity, with SDCLR that
//! on damage. The steps do not know of it.

use crate::checkpoint::{Checkpoint, CheckpointError, Tensor};
use crate::error::Error;
use crate::learner::Learner;
use sdclr_engine::Span;
use sdclr_nn::LossMemory;
use sdclr_records::options::BoostConfig;
use std::ops::Range;
use std::sync::Arc;

/// Names of the two tensors in a checkpoint, `[n_images]` each.
const LOSSES: &str = "boost.losses";
const MEMORIZATION: &str = "boost.memorization";

/// What a run remembers of its images.
pub struct Boost {
    config: BoostConfig,
    memory: LossMemory,
    /// The scores that the epoch in progress augments by: those that the memory gave at its beginning.
    memorization: Arc<[f32]>,
    /// Where the ranks exchange which images they have, two floats each.
    exchange: Span,
    // Kept so that a step allocates nothing.
    parts: Vec<Range<usize>>,
    halves: Vec<f32>,
    losses: Vec<f32>,
}

impl Boost {
    /// Remembers nothing yet of `n_images` images, of which a batch has at most `max_batch` over all ranks.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(config: &BoostConfig, n_images: usize, max_batch: usize, learner: &mut Learner) -> Result<Self, Error> {
        let buf = learner.engine.alloc_f32(2 * max_batch)?;
        Ok(Self {
            config: config.clone(),
            memory: LossMemory::new(n_images, config.momentum),
            memorization: vec![0.0; n_images].into(),
            exchange: learner.engine.whole(buf),
            parts: Vec::with_capacity(learner.ranks.n_ranks()),
            halves: Vec::with_capacity(2 * max_batch),
            losses: Vec::with_capacity(max_batch),
        })
    }

    /// Takes the memory's scores for the epoch that begins.
    pub fn begin_epoch(&mut self) {
        self.memorization = self.memory.memorization().into();
    }

    /// What the loader is to do in the epoch in progress.
    #[must_use]
    pub fn augmentation(&self) -> sdclr_data::augment::Boost {
        sdclr_data::augment::Boost {
            memorization: Arc::clone(&self.memorization),
            n_ops: self.config.n_ops,
            magnitude: self.config.magnitude,
        }
    }

    /// Remembers the losses of the learner's last step, whose images on this rank were `own`, by position in the data set.
    /// Every rank then remembers those of all.
    ///
    /// # Errors
    /// A lost rank or a failed device.
    ///
    /// # Panics
    /// If the step had another number of images.
    pub fn record(&mut self, learner: &mut Learner, own: &[u32]) -> Result<(), Error> {
        learner.image_losses(&mut self.losses)?;
        let Learner { engine, ranks, shares, .. } = learner;
        let engine = &mut **engine;
        self.parts.clear();
        self.parts.extend(shares.iter().map(|images| 2 * images.start..2 * images.end));
        let all = self.exchange.slice(0..2 * self.losses.len());
        // A float holds 24 bits of a whole number: each half of an index fits.
        self.halves.clear();
        self.halves.extend(own.iter().flat_map(|&index| [(index >> 16) as f32, (index & 0xffff) as f32]));
        engine.write_f32(all.slice(self.parts[ranks.rank()].clone()), &self.halves);
        ranks.all_gather(engine, all, &self.parts)?;
        self.halves.resize(all.len, 0.0);
        engine.read_f32(all, &mut self.halves)?;
        for ([high, low], &loss) in self.halves.as_chunks::<2>().0.iter().zip(&self.losses) {
            self.memory.record((*high as usize) << 16 | *low as usize, loss);
        }
        Ok(())
    }

    /// Momentum losses and the scores in use, into a checkpoint.
    pub fn store(&self, checkpoint: &mut Checkpoint) {
        for (name, values) in [(LOSSES, self.memory.losses()), (MEMORIZATION, &*self.memorization)] {
            checkpoint.insert(name, Tensor::f32(&[values.len()], values.to_vec()));
        }
    }

    /// Takes them out of a checkpoint, of which the rest is the learner's.
    ///
    /// # Errors
    /// [`CheckpointError::OtherModel`] if they are missing or of another number of images.
    pub fn restore(&mut self, checkpoint: &mut Checkpoint) -> Result<(), CheckpointError> {
        let shape = [self.memorization.len()];
        let losses = checkpoint.expect_f32(LOSSES, &shape)?.to_vec();
        self.memorization = checkpoint.expect_f32(MEMORIZATION, &shape)?.into();
        self.memory = LossMemory::from_losses(losses, self.config.momentum);
        checkpoint.tensors.retain(|name, _| name != LOSSES && name != MEMORIZATION);
        Ok(())
    }
}
