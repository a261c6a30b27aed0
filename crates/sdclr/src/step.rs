//! The algorithm: one SimCLR step and one SDCLR step.
//!
//! Source: Jiang, Chen, Mortazavi, Wang, "Self-Damaging Contrastive Learning", ICML 2021; SimCLR: Chen et al. 2020.
//! The published code runs three forwards and two backwards per SDCLR step, a workaround for its data-parallel wrapper.
//! One joint graph has the same gradient with two forwards and one backward through each branch, and that is what runs
//! here. One difference is visible: running statistics are updated once per forward.
//!
//! Both steps read a batch of N images as 2N interleaved views: rows 2i and 2i + 1 are the views of image i.

use crate::error::Error;
use crate::learner::Learner;
use sdclr_engine::Rows;
use sdclr_nn::Batch;
use sdclr_nn::loss::View;

/// View 1 of every image of an interleaved batch.
const FIRST_VIEWS: Rows = Rows { first: 0, step: 2 };
/// View 2 of every image.
const SECOND_VIEWS: Rows = Rows { first: 1, step: 2 };

/// One SimCLR step: all 2N views go through the model in one batch, so batch norm sees them together.
///
/// `views` holds this rank's images as bytes `[2n, size, size, 3]`. Returns the mean loss over all ranks' views.
///
/// # Errors
/// [`Error::NonFiniteLoss`] before the weights are updated (running statistics already are); a lost rank; a failed device.
pub fn simclr_step(l: &mut Learner, views: &[u8], n_global: usize, lr: f64) -> Result<f32, Error> {
    let n = l.share(n_global);
    let (engine, ranks) = (&mut *l.engine, &*l.ranks);
    let batch = Batch { n: 2 * n, n_global: 2 * n_global };

    engine.write_bytes(l.images, views);
    l.dense.load(engine, &l.model, 2 * n, l.images, Rows::ALL);
    l.dense.forward(engine, &l.model, batch, ranks)?;
    let embedding = l.dense.act(l.model.network.output);
    let z = View { embedding, grad: l.dense.output_grad(), n: 2 * n, rows: Rows::ALL };
    let loss = l.loss.forward_backward(engine, &[z], &l.shares, l.temperature, ranks)?;
    l.check_finite(loss, lr)?;

    let engine = &mut *l.engine;
    l.model.zero_grads(engine);
    l.dense.backward(engine, &l.model, batch, ranks)?;
    l.update(lr)?;
    Ok(loss)
}

/// One SDCLR step: view 1 through the model, view 2 through its pruned copy, one loss, and the gradients of the weights
/// that the branches share add up. What the pruned copy forgets, the rare images, gets the larger loss.
///
/// Arguments and errors as [`simclr_step`].
///
/// # Panics
/// If the learner was made without a pruned branch.
pub fn sdclr_step(l: &mut Learner, views: &[u8], n_global: usize, lr: f64) -> Result<f32, Error> {
    let n = l.share(n_global);
    let (engine, ranks) = (&mut *l.engine, &*l.ranks);
    let pruned = l.pruned.as_ref().expect("an SDCLR learner has a pruned branch");
    let batch = Batch { n, n_global };
    let output = l.model.network.output;

    engine.write_bytes(l.images, views);
    for (branch, rows) in [(&l.dense, FIRST_VIEWS), (pruned, SECOND_VIEWS)] {
        branch.load(engine, &l.model, n, l.images, rows);
        branch.forward(engine, &l.model, batch, ranks)?;
    }
    let a = View { embedding: l.dense.act(output), grad: l.dense.output_grad(), n, rows: FIRST_VIEWS };
    let b = View { embedding: pruned.act(output), grad: pruned.output_grad(), n, rows: SECOND_VIEWS };
    let loss = l.loss.forward_backward(engine, &[a, b], &l.shares, l.temperature, ranks)?;
    l.check_finite(loss, lr)?;

    let engine = &mut *l.engine;
    l.model.zero_grads(engine);
    l.dense.backward(engine, &l.model, batch, ranks)?;
    pruned.backward(engine, &l.model, batch, ranks)?;
    l.update(lr)?;
    Ok(loss)
}
