//! `sdclr inspect`: what is this?

use crate::args::InspectArgs;
use crate::config;
use crate::context::Context;
use anyhow::{Context as _, bail};
use sdclr::checkpoint::{Checkpoint, TensorData};
use sdclr::probe::{ProbeRecord, StoredProbe};
use sdclr::reproduce::{Phase, Plan, Settings, State};
use sdclr::run_dir::{CheckpointName, RunDir};
use sdclr_interop::{ExportSummary, export_summary, npy_header, onnx_summary};
use sdclr_records::names::Protocol;
use sdclr_records::{Experiment, MetricLine, ProbeResult};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Images of a data set that are decoded unless `--all` is given.
const SAMPLE: usize = 1000;
/// Broken images and classes that are listed by name.
const LISTED: usize = 20;
/// More than any header of a `.npy` file of plain numbers takes.
const HEADER_BYTES: u64 = 1 << 17;

/// Tells a run, a folder of runs, a reproduction, what lies in a run, an export, features, a split and a data set from each other, and describes
/// it.
///
/// # Errors
/// If it is none of them, or damaged.
pub fn run(args: &InspectArgs, context: Context) -> anyhow::Result<ExitCode> {
    let ends_in = |wanted: &str| args.path.extension().is_some_and(|extension| extension == wanted);
    let description = if ends_in("safetensors") {
        checkpoint_or_export(&args.path)?
    } else if ends_in("pt") || ends_in("pth") {
        super::import::describe(&args.path)?
    } else if ends_in("onnx") {
        onnx(&args.path)?
    } else if ends_in("npy") {
        array(&args.path)?
    } else if args.path.join("config.toml").is_file() {
        run_directory(&args.path)?
    } else if let Some(settings) = Settings::stored(&args.path)? {
        reproduction(&args.path, &settings)?
    } else if ends_in("json") {
        results(&args.path)?
    } else if let Some(metrics) = ends_in("jsonl").then(|| metrics(&args.path)).flatten() {
        metrics
    } else if let Some(runs) = folder_of_runs(&args.path)? {
        runs
    } else if let Some(run) = run_around(&args.path) {
        bail!("{}: belongs to a run; inspect {}", args.path.display(), run.display());
    } else {
        data_set(args)?
    };
    if context.json {
        context.print_json(&description)?;
    } else {
        context.print(&text(&description, 0))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn checkpoint_or_export(path: &Path) -> anyhow::Result<Value> {
    let checkpoint_error = match checkpoint(path) {
        Ok(description) => return Ok(description),
        Err(error) => error,
    };
    if ProbeRecord::load(path).is_ok() {
        let probe = StoredProbe::load(path)?;
        let record = &probe.record;
        let description = if probe.backbone.is_empty() {
            "a trained classifier on a run's features; eval --test-only tests it again, export --probe takes it along"
        } else {
            "a network trained with its classifier; eval finetune --test-only tests it again, export --probe writes it"
        };
        return Ok(json!({
            "kind": "probe",
            "description": description,
            "protocol": record.protocol,
            "classes": record.n_classes,
            "features": probe.width(),
            "images_learned_from": record.n_train,
            "epoch": record.epoch,
        }));
    }
    let Some(export) = std::fs::read(path).ok().and_then(|bytes| export_summary(&bytes)) else {
        return Err(checkpoint_error);
    };
    Ok(described(&format!("{} for other programs, without the state of a training", noun(&export)), &export))
}

fn onnx(path: &Path) -> anyhow::Result<Value> {
    let bytes = std::fs::read(path).with_context(|| format!("{}: cannot read", path.display()))?;
    let Some(export) = onnx_summary(&bytes) else {
        bail!("{}: not an ONNX model that export wrote, or a damaged one", path.display());
    };
    let outputs = if export.n_classes.is_some() { "features and logits" } else { "features" };
    Ok(described(&format!("{} for ONNX runtimes: from pixels in [0, 1] to {outputs}", noun(&export)), &export))
}

fn noun(export: &ExportSummary) -> &'static str {
    if export.n_classes.is_some() { "a classifier with its backbone" } else { "a backbone" }
}

fn described(description: &str, export: &ExportSummary) -> Value {
    json!({
        "kind": "export",
        "description": description,
        "model": export.model,
        "stem": export.stem,
        "branch": export.branch,
        "with_head": export.with_head,
        "classes": export.n_classes,
        "class_names": (!export.class_names.is_empty()).then(|| export.class_names.join(", ")),
        "epoch": export.epoch,
        "image_size": export.image_size,
        "tensors": export.n_tensors,
        "floats": export.n_values,
    })
}

/// A `.npy` file by its header: features of `embed`, or indices for `--split`.
fn array(path: &Path) -> anyhow::Result<Value> {
    let context = || format!("{}: cannot read", path.display());
    let metadata = std::fs::metadata(path).with_context(context)?;
    if !metadata.is_file() {
        bail!("{}: not a file", path.display());
    }
    let mut bytes = Vec::new();
    File::open(path).with_context(context)?.take(HEADER_BYTES).read_to_end(&mut bytes).with_context(context)?;
    let Some((dtype, shape, header)) = npy_header(&bytes) else {
        bail!("{}: not a .npy file of numbers, or a damaged one", path.display());
    };
    let kind = dtype.trim_start_matches(['<', '>', '|', '=']).chars().next();
    // Behind the letter, the bytes of a number.
    let width = dtype.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|width| width.parse::<u64>().ok());
    let least = shape.iter().try_fold(width.unwrap_or(0), |bytes, axis| bytes.checked_mul(*axis as u64));
    if least.and_then(|least| least.checked_add(header as u64)).is_none_or(|least| metadata.len() < least) {
        bail!(
            "{}: cut short: a file of {} bytes cannot hold {shape:?} numbers of {dtype}",
            path.display(),
            metadata.len()
        );
    }
    let (kind, description) = match (kind, &shape[..]) {
        (Some('f'), [n, width]) => ("features", format!("{n} images, {width} features each, as embed writes them")),
        (Some('i' | 'u'), [n]) => ("split", format!("{n} indices into a data set; give it as --split")),
        _ => ("array", "neither features (floats in two dimensions) nor a split (integers in one)".to_owned()),
    };
    Ok(json!({ "kind": kind, "description": description, "dtype": dtype, "shape": shape }))
}

fn checkpoint(path: &Path) -> anyhow::Result<Value> {
    let checkpoint = Checkpoint::load(path)?;
    let count = |wanted: fn(&TensorData) -> bool| {
        checkpoint.tensors.values().filter(|tensor| wanted(&tensor.data)).map(|tensor| tensor.data.len()).sum::<usize>()
    };
    Ok(json!({
        "kind": "checkpoint",
        "state": checkpoint.state,
        "tensors": checkpoint.tensors.len(),
        "floats": count(|data| matches!(data, TensorData::F32(_))),
        "mask_bits": count(|data| matches!(data, TensorData::U8(_))),
    }))
}

fn run_directory(path: &Path) -> anyhow::Result<Value> {
    let run = RunDir::open(path)?;
    let last_checkpoint = run.checkpoint_path(CheckpointName::Last);
    let state = if last_checkpoint.is_file() { Some(Checkpoint::load(&last_checkpoint)?.state) } else { None };
    let results: serde_json::Map<String, Value> = run
        .results()?
        .into_iter()
        .map(|(name, result)| {
            let [all, top1] = [result.all, result.top1].map(|accuracy| percent(Some(accuracy)));
            (name, json!({ "all": all, "top1": top1, "protocol": result.protocol }))
        })
        .collect();
    let metrics = std::fs::read_to_string(run.metrics_path()).unwrap_or_default();
    // A run that is being written to, or was killed, may end in half a line.
    let last = metrics.lines().rev().find_map(|line| serde_json::from_str::<MetricLine>(line).ok());
    Ok(json!({
        "kind": "run",
        "config": run.config()?,
        "last_checkpoint": state.map(|state| json!({
            "model": state.model,
            "epoch": state.epoch,
            "step": state.step,
            "total_steps": state.total_steps,
        })),
        "last_metrics": last,
        "results": results,
    }))
}

/// An accuracy as tables have it.
fn percent(accuracy: Option<f64>) -> Option<f64> {
    accuracy.map(|accuracy| (accuracy * 100.0).round() / 100.0)
}

/// A file of probe results: a run's, or the list of a demo's.
fn results(path: &Path) -> anyhow::Result<Value> {
    let bytes = std::fs::read(path).with_context(|| format!("{}: cannot read", path.display()))?;
    let all: Vec<ProbeResult> = serde_json::from_slice(&bytes)
        .map(|one| vec![one])
        .or_else(|_| serde_json::from_slice(&bytes))
        .unwrap_or_default();
    if all.is_empty() {
        bail!("{}: JSON that holds no result of a probe, or is damaged", path.display());
    }
    let one = |result: &ProbeResult| {
        let groups = result.groups.as_ref();
        let description = json!({
            "all": percent(Some(result.all)),
            "many": percent(groups.and_then(|groups| groups.many)),
            "medium": percent(groups.and_then(|groups| groups.medium)),
            "few": percent(groups.and_then(|groups| groups.few)),
            "top1": percent(Some(result.top1)),
            "top5": percent(result.top5),
            "epochs_of_pre_training": result.weights.as_ref().map(|weights| weights.epoch),
            "images_learned_from": result.n_train,
            "images_tested": result.n_test,
        });
        (format!("{}, {}", result.subject, result.protocol), description)
    };
    let results: serde_json::Map<String, Value> = all.iter().map(one).collect();
    let description = "accuracies in percent; sdclr summary RUN prints a run's as a table";
    Ok(json!({ "kind": "results", "description": description, "results": results }))
}

/// A run's metrics, by their last lines.
fn metrics(path: &Path) -> Option<Value> {
    let text = std::fs::read_to_string(path).ok()?;
    let lines: Vec<MetricLine> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let epochs = lines.iter().filter(|line| matches!(line, MetricLine::Epoch(_))).count();
    Some(json!({ "kind": "metrics", "lines": lines.len(), "epochs": epochs, "last": lines.last()? }))
}

fn one_of_many(run: &RunDir, name: Option<&str>) -> anyhow::Result<Value> {
    let config = run.config()?;
    let last = run.checkpoint_path(CheckpointName::Last);
    let epoch = if last.is_file() { Checkpoint::load_state(&last)?.epoch } else { 0 };
    let results = run.results()?.into_iter().map(|(name, result)| format!("{name} {:.2} %", result.all));
    let results = results.collect::<Vec<_>>().join(", ");
    Ok(json!({
        "run": name,
        "method": config.method,
        "model": config.model.name,
        "epochs": format!("epoch {epoch} of {}", config.train.epochs),
        "results": (!results.is_empty()).then_some(results),
    }))
}

/// A folder whose sub-folders are runs, as a demo's.
fn folder_of_runs(path: &Path) -> anyhow::Result<Option<Value>> {
    let mut described = Vec::new();
    for run in RunDir::inside(path) {
        let name = run.root().file_name().map(|name| name.to_string_lossy().into_owned());
        // One that is damaged does not hide the others.
        let one = one_of_many(&run, name.as_deref());
        described.push(one.unwrap_or_else(|error| json!({ "run": name, "damaged": format!("damaged: {error:#}") })));
    }
    if described.is_empty() {
        return Ok(None);
    }
    let description = "sdclr summary prints the probes of runs as a table";
    Ok(Some(json!({ "kind": "runs", "description": description, "runs": described })))
}

/// The run that a file or folder belongs to which says nothing by itself.
fn run_around(path: &Path) -> Option<PathBuf> {
    const PARTS: &[&str] =
        &["checkpoints", "results", "probes", "config.toml", "metrics.jsonl", "log.txt", "skipped.csv"];
    let is_bare = path.parent().is_some_and(|parent| parent.as_os_str().is_empty());
    let path = if is_bare { std::path::absolute(path).ok()? } else { path.to_owned() };
    let name = path.file_name()?.to_str()?;
    let is_run = |folder: &&Path| RunDir::open(folder).is_ok_and(|run| run.has_config_of_a_run());
    path.parent().filter(|_| PARTS.contains(&name)).filter(is_run).map(Path::to_owned)
}

/// A folder of `sdclr reproduce`: its settings, and how far each run that was begun is.
fn reproduction(path: &Path, settings: &Settings) -> anyhow::Result<Value> {
    let experiment = Experiment::named(&settings.experiment)?;
    let mut runs = Vec::new();
    if let Some(plan) = Plan::of_folder(path)? {
        for (split, arm) in
            (1..=experiment.n_splits).flat_map(|split| experiment.arms.iter().map(move |arm| (split, arm)))
        {
            let pretraining = match plan.state(split, arm, Phase::Pretrain)? {
                State::Todo => continue,
                State::Partly { epoch } => format!("at epoch {epoch}"),
                State::Done => "trained".to_owned(),
            };
            let all = |protocol| anyhow::Ok(plan.result(split, arm, protocol)?.map(|result| result.all));
            runs.push(json!({
                "run": format!("split{split}/{}", arm.name),
                "pre_training": pretraining,
                "linear_separability": all(Protocol::LinearPaper)?,
                "few_shot": all(Protocol::FewShot)?,
            }));
        }
    }
    Ok(json!({
        "kind": "reproduction",
        "description": format!("{} by sdclr reproduce; sdclr summary prints its table", experiment.title),
        "experiment": settings.experiment,
        "departures": settings.departures(),
        "data": settings.data,
        "split_dir": settings.split_dir,
        "runs": runs,
    }))
}

fn data_set(args: &InspectArgs) -> anyhow::Result<Value> {
    let dataset = config::open_part(&args.path, args.part.parse()?, args.split.clone(), args.data_root.clone())?;
    let found = sdclr_data::inspect(&dataset, if args.all { usize::MAX } else { SAMPLE });
    let range = |range: Option<(u32, u32)>| range.map(|(min, max)| json!({ "min": min, "max": max }));
    let broken = found.broken.iter().take(LISTED).map(|image| json!(format!("{}: {}", image.name, image.reason)));
    let classes = found.class_counts.as_ref().map(|counts| {
        let name = |label: usize| match &found.class_names {
            Some(names) => names.get(label).cloned().unwrap_or_else(|| label.to_string()),
            None => label.to_string(),
        };
        let mut order: Vec<usize> = (0..counts.len()).collect();
        order.sort_by_key(|&label| std::cmp::Reverse(counts[label]));
        order.into_iter().map(|label| json!({ "class": name(label), "images": counts[label] })).collect::<Vec<_>>()
    });
    Ok(json!({
        "kind": "data set",
        "description": found.description,
        "images": found.n_images,
        "looked_at": found.n_decoded,
        "width": range(found.width_range),
        "height": range(found.height_range),
        "broken": found.broken.len(),
        "broken_images": broken.collect::<Vec<_>>(),
        "classes": classes,
    }))
}

/// An indented outline of a JSON value, without what is null or empty.
fn text(value: &Value, depth: usize) -> String {
    let indent = "  ".repeat(depth);
    let mut lines = String::new();
    let Value::Object(map) = value else { return format!("{indent}{}\n", plain(value)) };
    for (key, value) in map {
        let key = key.replace('_', " ");
        match value {
            Value::Null => {}
            Value::Object(inner) if inner.is_empty() => {}
            Value::Object(inner) if inner.keys().eq(["min", "max"]) => {
                let (min, max) = (&inner["min"], &inner["max"]);
                let range = if min == max { min.to_string() } else { format!("{min} to {max}") };
                lines.push_str(&format!("{indent}{key}: {range}\n"));
            }
            Value::Object(_) => lines.push_str(&format!("{indent}{key}:\n{}", text(value, depth + 1))),
            Value::Array(items) if items.is_empty() => {}
            Value::Array(items) if items.iter().any(|item| !item.is_number()) => {
                lines.push_str(&format!("{indent}{key}: {}\n", items.len()));
                let shown = items.iter().take(LISTED).map(|item| format!("{indent}  {}\n", plain(item)));
                lines.extend(shown);
                if items.len() > LISTED {
                    lines.push_str(&format!("{indent}  … and {} more\n", items.len() - LISTED));
                }
            }
            _ => lines.push_str(&format!("{indent}{key}: {}\n", plain(value))),
        }
    }
    lines
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(map) => map.values().filter(|value| !value.is_null()).map(plain).collect::<Vec<_>>().join("  "),
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outline_leaves_out_what_is_not_there() {
        let value = json!({ "a_b": 1, "gone": null, "none": [], "inner": { "x": "y" }, "side": { "min": 1, "max": 2 }, "list": [{ "c": "cat", "n": 3 }] });
        assert_eq!(text(&value, 0), "a b: 1\ninner:\n  x: y\nside: 1 to 2\nlist: 1\n  cat  3\n");
    }
}
