//! Losses: NT-Xent over the embeddings of both branches and all ranks, and cross-entropy.

use crate::NnError;
use crate::collective::Collective;
use sdclr_engine::{Act, Engine, NtXent, Rows, Span};
use std::ops::Range;

/// Embeddings `[n, d]` of one forward pass, where their gradient goes, and their rows among the interleaved views.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Embeddings.
    pub embedding: Act,
    /// Gradient of the embeddings.
    pub grad: Act,
    /// Number of embeddings.
    pub n: usize,
    /// Row of each: view 1 of image i is row 2i, view 2 is row 2i + 1.
    pub rows: Rows,
}

/// NT-Xent (Chen et al. 2020, eq. 1) with negatives from all ranks.
#[derive(Debug)]
pub struct ContrastiveLoss {
    /// γ of the focal weighting of each anchor's loss; 0, as it is at first, is NT-Xent. See [`NtXent::focal_gamma`].
    pub focal_gamma: f32,
    dim: usize,
    z: Span,
    dz: Span,
    norms: Span,
    loss: Span,
    total: Span,
    /// Host copy of this rank's losses, and the ranks' parts of `z`: kept so that a step allocates nothing.
    losses: Vec<f32>,
    parts: Vec<Range<usize>>,
}

impl ContrastiveLoss {
    /// Room for batches of `max_global` images (2·`max_global` views), at most `max_own` of them this rank's, with embeddings of size `dim`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(engine: &mut dyn Engine, max_global: usize, max_own: usize, dim: usize) -> Result<Self, NnError> {
        engine.plan_nt_xent(2 * max_own, 2 * max_global)?;
        let mut floats = |len| -> Result<Span, NnError> {
            let buf = engine.alloc_f32(len)?;
            Ok(engine.whole(buf))
        };
        let rows = 2 * max_global;
        Ok(Self {
            focal_gamma: 0.0,
            dim,
            z: floats(rows * dim)?,
            dz: floats(rows * dim)?,
            norms: floats(rows)?,
            loss: floats(rows)?,
            total: floats(1)?,
            losses: Vec::with_capacity(rows),
            parts: Vec::new(),
        })
    }

    /// The loss over the global batch, and the gradients of this rank's embeddings.
    ///
    /// `images` are this rank's images among the global batch's. Each rank takes its own views as anchors against all
    /// views; the gather's gradient brings every rank's contributions home.
    ///
    /// # Errors
    /// A lost rank or a failed device.
    pub fn forward_backward(
        &mut self,
        engine: &mut dyn Engine,
        views: &[View],
        images: &[Range<usize>],
        temperature: f32,
        ranks: &dyn Collective,
    ) -> Result<f32, NnError> {
        let own = images[ranks.rank()].clone();
        let m = 2 * images.last().map_or(0, |range| range.end);
        let (z, dz) = (self.z.slice(0..m * self.dim), self.dz.slice(0..m * self.dim));
        let rows = |view: &View| Rows { first: view.rows.first + 2 * own.start, step: view.rows.step };
        for view in views {
            engine.l2_normalize(view.n, view.embedding, rows(view), z, self.norms);
        }
        self.parts.clear();
        self.parts.extend(images.iter().map(|r| 2 * r.start * self.dim..2 * r.end * self.dim));
        ranks.all_gather(engine, z, &self.parts)?;
        let loss = self.loss.slice(2 * own.start..2 * own.end);
        engine.nt_xent(NtXent {
            z,
            dim: self.dim,
            first_anchor: 2 * own.start,
            n_anchors: 2 * own.len(),
            temperature,
            focal_gamma: self.focal_gamma,
            loss,
            dz,
        });
        ranks.all_gather_backward(engine, dz, &self.parts)?;
        for view in views {
            engine.l2_normalize_backward(view.n, rows(view), z, self.norms, dz, view.grad);
        }
        self.mean(engine, loss, m, ranks)
    }

    /// The loss of each image of the global batch, the mean of its two views', in the batch's order and on every rank: what
    /// [`Self::forward_backward`] last computed, before its mean. `images` are those that it was given.
    ///
    /// # Errors
    /// A lost rank or a failed device.
    pub fn image_losses(
        &mut self,
        engine: &mut dyn Engine,
        images: &[Range<usize>],
        ranks: &dyn Collective,
        losses: &mut Vec<f32>,
    ) -> Result<(), NnError> {
        let all = self.loss.slice(0..2 * images.last().map_or(0, |range| range.end));
        self.parts.clear();
        self.parts.extend(images.iter().map(|r| 2 * r.start..2 * r.end));
        ranks.all_gather(engine, all, &self.parts)?;
        self.losses.resize(all.len, 0.0);
        engine.read_f32(all, &mut self.losses)?;
        losses.clear();
        losses.extend(self.losses.as_chunks::<2>().0.iter().map(|[first, second]| 0.5 * (first + second)));
        Ok(())
    }

    fn mean(&mut self, engine: &mut dyn Engine, loss: Span, m: usize, ranks: &dyn Collective) -> Result<f32, NnError> {
        self.losses.resize(loss.len, 0.0);
        engine.read_f32(loss, &mut self.losses)?;
        let mut total = [self.losses.iter().map(|&l| f64::from(l)).sum::<f64>() as f32];
        if ranks.n_ranks() > 1 {
            engine.write_f32(self.total, &total);
            ranks.all_reduce_sum(engine, self.total)?;
            engine.read_f32(self.total, &mut total)?;
        }
        Ok(total[0] / m as f32)
    }
}

/// Mean cross-entropy of a classifier.
#[derive(Debug)]
pub struct CrossEntropy {
    loss: Span,
    losses: Vec<f32>,
}

impl CrossEntropy {
    /// Room for `max_batch` images.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(engine: &mut dyn Engine, max_batch: usize) -> Result<Self, NnError> {
        let buf = engine.alloc_f32(max_batch)?;
        Ok(Self { loss: engine.whole(buf), losses: Vec::with_capacity(max_batch) })
    }

    /// The mean loss of `logits` `[n, classes]` on this process's `n` images, and its gradient into `grad`.
    ///
    /// # Errors
    /// A failed device.
    pub fn forward_backward(
        &mut self,
        engine: &mut dyn Engine,
        n: usize,
        logits: Act,
        labels: &[u32],
        grad: Act,
    ) -> Result<f32, NnError> {
        let loss = self.loss.slice(0..n);
        engine.cross_entropy(n, logits, labels, loss, grad);
        self.losses.resize(n, 0.0);
        engine.read_f32(loss, &mut self.losses)?;
        Ok((self.losses.iter().map(|&l| f64::from(l)).sum::<f64>() / n as f64) as f32)
    }
}
