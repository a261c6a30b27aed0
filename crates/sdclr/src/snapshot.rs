//! Between a learner or model on an engine and the tensors of a checkpoint.
//!
//! Parameters and running statistics keep their names (`layer1.0.conv1.weight`, `bn1.dense.running_mean`), in PyTorch's
//! layout. Optimizer moments are `optimizer.KIND.NAME`, masks `mask.NAME`.

use crate::checkpoint::{Checkpoint, CheckpointError, Tensor as Stored};
use crate::error::Error;
use crate::learner::Learner;
use sdclr_engine::Engine;
use sdclr_nn::model::torch_shape;
use sdclr_nn::{Model, Tensor};
use sdclr_records::checkpoint::CheckpointState;
use std::collections::BTreeMap;

/// All tensors of a learner: what training needs to go on bit for bit.
///
/// # Errors
/// A failed device.
pub fn checkpoint(learner: &mut Learner, state: CheckpointState) -> Result<Checkpoint, Error> {
    let mut checkpoint = Checkpoint::new(state);
    let Learner { engine, model, optimizer, .. } = learner;
    let engine = &mut **engine;
    let mut put = |prefix: &str, tensors: BTreeMap<String, Tensor>| {
        for (name, tensor) in tensors {
            checkpoint.insert(format!("{prefix}{name}"), Stored::f32(&tensor.shape, tensor.data));
        }
    };
    put("", model.export(engine, model.params())?);
    put("", model.export_running(engine)?);
    for (kind, moment) in optimizer.moments() {
        put(&format!("optimizer.{kind}."), model.export(engine, moment)?);
    }
    for (name, tensor) in masks(model, learner.pruned.is_some()) {
        checkpoint.insert(name, tensor);
    }
    Ok(checkpoint)
}

/// The masks of a model as stored tensors, or none without a pruned branch.
pub fn masks(model: &Model, has_pruned_branch: bool) -> Vec<(String, Stored)> {
    if !has_pruned_branch {
        return Vec::new();
    }
    let named =
        |(name, (shape, bytes)): (String, (Vec<usize>, Vec<u8>))| (format!("mask.{name}"), Stored::u8(&shape, bytes));
    model.masks().into_iter().map(named).collect()
}

/// Puts a learner where a checkpoint left off.
///
/// # Errors
/// [`CheckpointError::OtherModel`] if it is of another network or optimizer.
pub fn restore(learner: &mut Learner, checkpoint: &Checkpoint) -> Result<(), Error> {
    let network = &learner.model.network;
    let mut layout = learner.model.network.tensor_layout();
    for (kind, _) in learner.optimizer.moments() {
        layout.extend(network.params.iter().map(|p| (format!("optimizer.{kind}.{}", p.name), torch_shape(p))));
    }
    if learner.pruned.is_some() {
        layout.extend(network.prunable().map(|p| (format!("mask.{}", p.name), torch_shape(p))));
    }
    checkpoint.expect_layout(layout.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())))?;
    load_model(&mut *learner.engine, &learner.model, checkpoint)?;
    let Learner { engine, model, optimizer, .. } = learner;
    for (kind, moment) in optimizer.moments() {
        model.import(&mut **engine, moment, &floats(checkpoint, &format!("optimizer.{kind}.")))?;
    }
    if learner.pruned.is_some() {
        let bytes = |(name, tensor): (&String, &Stored)| {
            Some((name.strip_prefix("mask.")?.to_owned(), (tensor.shape.clone(), tensor.as_u8()?.to_vec())))
        };
        let masks = checkpoint.tensors.iter().filter_map(bytes).collect();
        learner.model.set_masks(&mut *learner.engine, &masks)?;
    }
    learner.optimizer.n_updates = checkpoint.state.optimizer_steps;
    Ok(())
}

/// Loads parameters and running statistics only.
///
/// # Errors
/// [`CheckpointError::OtherModel`] if a tensor of the network is missing or of another shape.
pub fn load_model(engine: &mut dyn Engine, model: &Model, checkpoint: &Checkpoint) -> Result<(), Error> {
    for (name, shape) in model.network.tensor_layout() {
        let _: &[f32] = checkpoint.expect_f32(&name, &shape).map_err(|e: CheckpointError| Error::from(e))?;
    }
    let tensors = floats(checkpoint, "");
    model.import(engine, model.params(), &tensors)?;
    model.import_running(engine, &tensors)?;
    Ok(())
}

/// Loads the dense branch of a backbone into a network with one branch and another head, whose parameters stay.
///
/// # Errors
/// [`CheckpointError::OtherModel`] if a tensor of the backbone is missing or of another shape.
pub fn load_backbone(engine: &mut dyn Engine, model: &Model, checkpoint: &Checkpoint) -> Result<(), Error> {
    let mut tensors = model.export(engine, model.params())?;
    tensors.extend(model.export_running(engine)?);
    for (name, shape) in model.network.tensor_layout() {
        if model.network.param(&name).is_some_and(|param| param.layer.is_none()) {
            continue;
        }
        // `bn1.weight` is `bn1.dense.weight` where each branch has its own.
        let dual = name.rsplit_once('.').map(|(norm, kind)| format!("{norm}.dense.{kind}"));
        let stored = dual.filter(|dual| checkpoint.tensors.contains_key(dual)).unwrap_or_else(|| name.clone());
        let data = checkpoint.expect_f32(&stored, &shape)?.to_vec();
        tensors.insert(name, Tensor { shape, data });
    }
    model.import(engine, model.params(), &tensors)?;
    model.import_running(engine, &tensors)?;
    Ok(())
}

/// Float tensors whose name begins with `prefix`, without it.
fn floats(checkpoint: &Checkpoint, prefix: &str) -> BTreeMap<String, Tensor> {
    let one = |(name, tensor): (&String, &Stored)| {
        let data = tensor.as_f32()?.to_vec();
        Some((name.strip_prefix(prefix)?.to_owned(), Tensor { shape: tensor.shape.clone(), data }))
    };
    checkpoint.tensors.iter().filter_map(one).collect()
}
