//! A new run that begins with the weights of another: parameters and running statistics, not the optimizer, not the
//! position, not the masks (which a run makes anew at the start of every epoch).
//!
//! The backbones must agree. Where they differ in their batch norms only, a run whose branches have their own begins both
//! with shared ones, and a run that shares them begins with the dense branch's. The projection head is taken whole or, where
//! any of it differs or the other run never had one, drawn from the seed.

use crate::checkpoint::{Checkpoint, Tensor as Stored, list};
use crate::error::Error;
use crate::learner::Learner;
use crate::run_dir::RunDir;
use sdclr_engine::Engine;
use sdclr_nn::{Model, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Puts the weights of a checkpoint into a learner whose weights are drawn; returns what whoever waits should know.
///
/// # Errors
/// A checkpoint that cannot be read, or of another backbone; a failed device.
pub fn init_from(learner: &mut Learner, path: &Path) -> Result<Vec<String>, Error> {
    let checkpoint = Checkpoint::load(path)?;
    let Learner { engine, model, .. } = learner;
    let engine = &mut **engine;
    let mut found = Matches::new(&checkpoint, model, engine)?;
    let has_head = found.head.iter().all(Result::is_ok) && !head_was_drawn(path);
    if !found.differences.is_empty() {
        return Err(Error::Unfit(format!(
            "--init-from {}: it is of another network ({}) than the new run ({}): {}; give the --model, --stem and \
             --base-width of the other",
            path.display(),
            checkpoint.state.model,
            model.network.name,
            list(&found.differences)
        )));
    }
    if has_head {
        found.backbone.extend(found.head.drain(..).flatten());
    }
    let mut tensors = model.export(engine, model.params())?;
    tensors.extend(model.export_running(engine)?);
    for Match { name, from } in &found.backbone {
        let data = from.as_f32().unwrap_or_default().to_vec();
        tensors.insert(name.clone(), Tensor { shape: from.shape.clone(), data });
    }
    model.import(engine, model.params(), &tensors)?;
    model.import_running(engine, &tensors)?;
    let mut notes = vec![format!(
        "starting from the weights of {} ({}, epoch {})",
        path.display(),
        checkpoint.state.model,
        checkpoint.state.epoch
    )];
    if found.shares_norms {
        notes.push("both branches begin with the batch norms that it has for one".to_owned());
    }
    if found.drops_pruned {
        notes.push("its dense branch's batch norms are taken, for the new run has one for both branches".to_owned());
    }
    if !has_head {
        notes.push("the projection head is drawn anew: the weights have none of this shape".to_owned());
    }
    Ok(notes)
}

/// Whether the checkpoint is of an imported model that came without a projection head.
fn head_was_drawn(path: &Path) -> bool {
    let run = path.parent().and_then(Path::parent).and_then(|root| RunDir::open(root).ok());
    let import = run.and_then(|run| run.config().ok()).and_then(|config| config.import);
    import.is_some_and(|import| !import.has_head)
}

/// A tensor of the new run and the stored one that it begins with.
struct Match<'a> {
    name: String,
    from: &'a Stored,
}

/// Where each tensor of a new run comes from.
#[derive(Default)]
struct Matches<'a> {
    backbone: Vec<Match<'a>>,
    /// The head's; an error for one that does not fit.
    head: Vec<Result<Match<'a>, String>>,
    /// What does not fit of the backbone.
    differences: Vec<String>,
    shares_norms: bool,
    drops_pruned: bool,
}

impl<'a> Matches<'a> {
    fn new(checkpoint: &'a Checkpoint, model: &Model, engine: &mut dyn Engine) -> Result<Self, Error> {
        let mut wanted: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (name, tensor) in model.export(engine, model.params())?.into_iter().chain(model.export_running(engine)?) {
            wanted.insert(name, tensor.shape);
        }
        let mut matches = Self::default();
        let mut used = BTreeSet::new();
        for (name, shape) in wanted {
            let is_head = name.starts_with("fc.");
            let found = matches.find(checkpoint, name, &shape, &mut used);
            match found {
                found if is_head => matches.head.push(found),
                Ok(found) => matches.backbone.push(found),
                Err(difference) => matches.differences.push(difference),
            }
        }
        let is_state =
            |name: &str| ["optimizer.", "mask.", "fc.", "boost."].iter().any(|prefix| name.starts_with(prefix));
        let left = checkpoint.tensors.keys().filter(|name| !is_state(name) && !used.contains(name.as_str()));
        let extra = left.filter(|name| !(matches.drops_pruned && name.contains(".pruned.")));
        matches.differences.extend(extra.map(|name| format!("`{name}` has no place in the new run's")));
        Ok(matches)
    }

    /// The stored tensor for a name: its own, or that of a batch norm that belongs to other branches.
    fn find(
        &mut self,
        checkpoint: &'a Checkpoint,
        name: String,
        shape: &[usize],
        used: &mut BTreeSet<&'a str>,
    ) -> Result<Match<'a>, String> {
        let shared = name.replace(".dense.", ".").replace(".pruned.", ".");
        let dense = name.rsplit_once('.').map_or_else(String::new, |(norm, part)| format!("{norm}.dense.{part}"));
        let stored = [&name, &shared, &dense].into_iter().find_map(|name| checkpoint.tensors.get_key_value(name));
        let Some((stored_name, from)) = stored else { return Err(format!("`{name}` is missing")) };
        used.insert(stored_name);
        if from.shape != shape || from.as_f32().is_none() {
            return Err(format!("`{stored_name}` has shape {:?} instead of {shape:?}", from.shape));
        }
        if !name.starts_with("fc.") {
            self.shares_norms |= *stored_name != name && *stored_name == shared;
            self.drops_pruned |= *stored_name != name && *stored_name == dense;
        }
        Ok(Match { name, from })
    }
}
