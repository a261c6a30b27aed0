//! `sdclr import`: a checkpoint of another program becomes a run directory.

use crate::args::ImportArgs;
use crate::context::Context;
use crate::exit::UsageError;
use crate::system;
use anyhow::{Context as _, bail};
use sdclr::checkpoint::{Checkpoint, Tensor};
use sdclr::probe::{ProbeRecord, StoredProbe};
use sdclr::run_dir::{CheckpointName, Existing, RunDir};
use sdclr_interop::{ImportedMasks, ImportedModel, LinearClassifier, import_masks, import_model};
use sdclr_records::config::ImportConfig;
use sdclr_records::layers::{Layer, merge};
use sdclr_records::names::{Method, Protocol};
use sdclr_records::{CheckpointState, RunConfig};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Names that are listed of tensors that stay behind.
const LISTED: usize = 10;
/// Width of the embedding of a projection head that is drawn: the published one.
const HEAD_DIM: usize = 128;

/// Reads everything, then writes the run.
///
/// # Errors
/// A file that cannot be imported, files that do not belong together, a folder that does not do.
pub fn run(args: &ImportArgs, context: Context) -> anyhow::Result<ExitCode> {
    RunDir::check_result_name(&args.probe_name).context("--probe-name")?;
    if args.checkpoint.is_dir() {
        let text = format!("{}: a folder; give the file of the weights", args.checkpoint.display());
        return Err(UsageError(text).into());
    }
    let is_occupied = std::fs::read_dir(&args.out).is_ok_and(|mut entries| entries.next().is_some());
    if is_occupied && !args.overwrite {
        let text =
            format!("{}: the folder is not empty; give --overwrite to replace the run there", args.out.display());
        return Err(UsageError(text).into());
    }
    let mut model = read(&args.checkpoint)?;
    let probe = probe(args, &mut model)?;
    let masks = args.mask.as_ref().map(|path| {
        import_masks(path, &model).with_context(|| path.display().to_string()).map(|masks| (masks, path.as_path()))
    });
    let masks = masks.transpose()?;
    let has_head = model.has_head();
    let (method, knows_method) = method(args, &model, masks.is_some())?;
    let import = ImportConfig { file: std::path::absolute(&args.checkpoint)?, has_head, knows_method };
    let config = config(args, &mut model, method, import)?;
    report(args, &model, masks.as_ref(), &config, context);
    check_finite(&model, probe.as_ref().map(|(classifier, _)| classifier))?;
    // Before a run is deleted: its own checkpoint makes room.
    let floats: usize = model.tensors.values().filter_map(|tensor| tensor.as_f32().map(<[f32]>::len)).sum();
    let replaced = std::fs::metadata(args.out.join("checkpoints/last.safetensors")).map_or(0, |file| file.len());
    let needed = (4 * floats as u64).saturating_sub(replaced);
    system::check_room(&args.out, needed, "the checkpoint needs", "use another disk")?;
    let existing = if args.overwrite { Existing::Overwrite } else { Existing::Refuse };
    let mut writer = RunDir::create(&args.out, existing, &config)?;
    let masks = masks.map(|(masks, _)| masks);
    let (mask_epoch, has_masks) = (masks.as_ref().and_then(|masks| masks.epoch), masks.is_some());
    let write = || -> anyhow::Result<Option<PathBuf>> {
        checkpoint(&config, &mut model, masks).save(&writer.dir().checkpoint_path(CheckpointName::Last))?;
        writer.log(&format!("{}, imported from {}", model.spec.describe(), args.checkpoint.display()))?;
        let write = |(classifier, epoch)| write_probe(writer.dir(), &args.probe_name, &classifier, epoch);
        probe.map(write).transpose()
    };
    let probe = match write() {
        Ok(probe) => probe,
        Err(error) => {
            writer.discard();
            return Err(error);
        }
    };
    let description = json!({
        "run": args.out,
        "model": model.spec.describe(),
        "image_size": config.data.image_size,
        "method": knows_method.then_some(method),
        "epoch": model.epoch,
        "head": if has_head { "imported" } else { "drawn" },
        "masks": has_masks,
        "mask_epoch": mask_epoch,
        "probe": probe,
        "left_out": model.left_out,
    });
    print(args, &description, context)?;
    Ok(ExitCode::SUCCESS)
}

/// What a checkpoint of another program is, for `sdclr inspect`.
///
/// # Errors
/// A file that cannot be imported.
pub fn describe(path: &Path) -> anyhow::Result<Value> {
    let model = read(path)?;
    Ok(json!({
        "kind": "PyTorch checkpoint",
        "description": "a model as PyTorch programs save it; sdclr import makes a run of it",
        "model": model.spec.describe(),
        "epoch": model.epoch,
        "tensors": model.tensors.len(),
        "floats": model.tensors.values().map(|tensor| tensor.data.len()).sum::<usize>(),
        "classes": model.classifier.as_ref().map(LinearClassifier::n_classes),
        "left_out": model.left_out,
        "warnings": model.warnings,
    }))
}

fn read(path: &Path) -> anyhow::Result<ImportedModel> {
    import_model(path).with_context(|| path.display().to_string())
}

/// The classifier to store and its epoch: that of `--probe`, or of a checkpoint that is a probe itself.
fn probe(args: &ImportArgs, model: &mut ImportedModel) -> anyhow::Result<Option<(LinearClassifier, usize)>> {
    let Some(path) = &args.probe else {
        if model.is_probe {
            return Ok(model.classifier.take().map(|classifier| (classifier, model.epoch.unwrap_or(0))));
        }
        if model.classifier.is_some() {
            model.left_out.extend(["fc.weight", "fc.bias"].map(str::to_owned));
        }
        return Ok(None);
    };
    let other = read(path)?;
    let differences = model.backbone_differences(&other);
    if let Some(first) = differences.first() {
        bail!(
            "--probe {}: its backbone is another than that of {} (`{first}` and {} more tensors differ), and a classifier \
             fits only the features that it was trained on; import it as a model of its own: sdclr import {} --out RUN",
            path.display(),
            args.checkpoint.display(),
            differences.len() - 1,
            path.display()
        );
    }
    let epoch = other.epoch.unwrap_or(0);
    let classifier = other.classifier.with_context(|| {
        format!("--probe {}: it has no classifier (fc.weight, fc.bias) on its features", path.display())
    })?;
    Ok(Some((classifier, epoch)))
}

/// The method, and whether anybody knows it.
fn method(args: &ImportArgs, model: &ImportedModel, has_masks: bool) -> anyhow::Result<(Method, bool)> {
    let said = args.method.as_deref().map(str::parse::<Method>).transpose()?;
    match (said, model.is_sdclr() || has_masks) {
        (Some(Method::SimClr), true) => {
            let what = if has_masks { "--mask belongs to" } else { "the file is of" };
            Err(UsageError(format!("--method simclr: {what} a model with a pruned branch; leave --method out")).into())
        }
        (Some(method), _) => Ok((method, true)),
        (None, true) => Ok((Method::SdClr, true)),
        (None, false) => Ok((Method::SimClr, model.has_head())),
    }
}

/// The config of the run; a head that the model lacks is drawn by its seed.
fn config(
    args: &ImportArgs,
    model: &mut ImportedModel,
    method: Method,
    import: ImportConfig,
) -> anyhow::Result<RunConfig> {
    let (layers, dim) = model.head().unwrap_or((if model.spec.dual_bn { 3 } else { 2 }, HEAD_DIM));
    let flags = [
        ("method", method.to_string()),
        ("image-size", args.image_size.unwrap_or(model.spec.image_size).to_string()),
        ("model", model.spec.model.clone()),
        ("stem", if model.spec.small_stem { "small" } else { "imagenet" }.to_owned()),
        ("base-width", model.spec.base_width.to_string()),
        ("head-layers", layers.to_string()),
        ("head-dim", dim.to_string()),
        ("dual-bn", model.spec.dual_bn.to_string()),
    ];
    let mut config = merge(&[Layer::from_flags(&flags.map(|(flag, value)| (flag.to_owned(), value)))?])?;
    config.import = Some(import);
    config.validate()?;
    if model.head().is_none() {
        model.draw_head(layers, dim, config.seed)?;
    }
    Ok(config)
}

/// The tensors move into it.
fn checkpoint(config: &RunConfig, model: &mut ImportedModel, masks: Option<ImportedMasks>) -> Checkpoint {
    let mut checkpoint = Checkpoint::new(CheckpointState {
        model: model.spec.describe(),
        method: config.method,
        epoch: model.epoch.unwrap_or(0),
        batch_in_epoch: 0,
        step: 0,
        total_steps: 0,
        seed: config.seed,
        optimizer: config.optimizer.kind,
        optimizer_steps: 0,
        epoch_loss_sum: 0.0,
        epoch_steps: 0,
        interval_loss_sum: 0.0,
        interval_steps: 0,
        elapsed_s: 0.0,
        n_skipped: 0,
        mask_threshold: None,
        data: None,
    });
    checkpoint.tensors = std::mem::take(&mut model.tensors);
    checkpoint.tensors.extend(masks.into_iter().flat_map(|masks| masks.tensors));
    checkpoint
}

/// Weights that nobody can use are refused before a run is replaced by them.
fn check_finite(model: &ImportedModel, classifier: Option<&LinearClassifier>) -> anyhow::Result<()> {
    let own = model.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    let classifier = classifier.into_iter().flat_map(|one| [("fc.weight", &one.weight), ("fc.bias", &one.bias)]);
    let is_bad = |tensor: &Tensor| tensor.as_f32().is_some_and(|values| !values.iter().all(|v| v.is_finite()));
    match own.chain(classifier).find(|(_, tensor)| is_bad(tensor)) {
        Some((name, _)) => bail!("`{name}` holds values that are infinite or not numbers: its training had diverged"),
        None => Ok(()),
    }
}

/// Stores a classifier beside the run, as a probe would.
fn write_probe(run: &RunDir, name: &str, classifier: &LinearClassifier, epoch: usize) -> anyhow::Result<PathBuf> {
    let record = ProbeRecord {
        protocol: Protocol::LinearPaper,
        n_classes: classifier.n_classes(),
        class_names: Vec::new(),
        epoch: Some(epoch),
        // Nothing else is known of how it was trained.
        weights: None,
        n_train: 0,
        n_skipped: 0,
        settings: Default::default(),
        data: Default::default(),
    };
    let floats = |tensor: &Tensor| tensor.as_f32().unwrap_or_default().to_vec();
    let stored = StoredProbe {
        record,
        weight: floats(&classifier.weight),
        bias: floats(&classifier.bias),
        backbone: BTreeMap::new(),
    };
    let path = run.probe_path(name);
    stored.save(&path)?;
    Ok(path)
}

/// Says what whoever uses the run should know.
fn report(
    args: &ImportArgs,
    model: &ImportedModel,
    masks: Option<&(ImportedMasks, &Path)>,
    config: &RunConfig,
    context: Context,
) {
    for warning in &model.warnings {
        context.warn(&format!("{}: {warning}", args.checkpoint.display()));
    }
    for (warning, path) in masks.iter().flat_map(|(masks, path)| masks.warnings.iter().map(move |text| (text, path))) {
        context.warn(&format!("{}: {warning}", path.display()));
    }
    let mask_epoch = masks.and_then(|(masks, _)| masks.epoch);
    if let (Some(mask_epoch), Some(epoch)) = (mask_epoch, model.epoch)
        && mask_epoch != epoch
    {
        context.warn(&format!("the masks are of epoch {mask_epoch}, the model of epoch {epoch}"));
    }
    if !model.left_out.is_empty() {
        let mut names = model.left_out[..model.left_out.len().min(LISTED)].join(", ");
        if model.left_out.len() > LISTED {
            names.push_str(&format!(" and {} more", model.left_out.len() - LISTED));
        }
        let hint = if model.classifier.is_some() { " (--probe with the same file stores its classifier)" } else { "" };
        context.note(&format!("note: left out: {names}{hint}"));
    }
    if config.import.as_ref().is_some_and(|import| !import.has_head) {
        let seed = config.seed;
        context.note(&format!(
            "note: the file has no projection head; one is drawn from seed {seed} (features do not see it)"
        ));
    }
    if args.image_size.is_none() && !model.tells_image_size {
        let size = config.data.image_size;
        context.note(&format!("note: --image-size {size} by its stem, for no file tells; give the size that it was trained on if it is another"));
    }
}

fn print(args: &ImportArgs, description: &Value, context: Context) -> anyhow::Result<()> {
    if context.json {
        return context.print_json(description);
    }
    let mut text = format!("{}: {}", args.out.display(), description["model"].as_str().unwrap_or_default());
    if let Some(epoch) = description["epoch"].as_u64() {
        text.push_str(&format!(", epoch {epoch}"));
    }
    if description["masks"] == true {
        text.push_str(", with masks");
    }
    if let Some(probe) = description["probe"].as_str() {
        text.push_str(&format!(", with the probe {probe}"));
    }
    context.print(&(text + "\n"))
}
