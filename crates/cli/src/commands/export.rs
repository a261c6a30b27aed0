//! `sdclr export`.

use super::embed::check_folder;
use super::eval::stored;
use crate::args::{BranchArg, ExportArgs, ExportFormat};
use crate::config;
use crate::context::Context;
use crate::exit::UsageError;
use anyhow::Context as _;
use clap::ValueEnum as _;
use sdclr::backend;
use sdclr::checkpoint::Checkpoint;
use sdclr::run_dir::{RunDir, describe_io, write_atomic};
use sdclr_interop::{Branch, ExportHead, ExportOptions, export_onnx, export_pt, export_safetensors};
use std::path::Path;
use std::process::ExitCode;

/// Writes the backbone, and the classifier if asked for one.
///
/// # Errors
/// A run, checkpoint or output file that does not do.
pub fn run(args: &ExportArgs, context: Context) -> anyhow::Result<ExitCode> {
    let format = format(args)?;
    refuse_existing(&args.out, args.overwrite)?;
    check_folder(&args.out)?;
    let (run, mut path) = config::locate(&args.run)?;
    refuse_own(&run, &args.out)?;
    let run_config = run.config()?;
    let (tensors, network, epoch, branch, head) = match &args.probe {
        Some(name) => {
            let stored = stored::load(&run, name)?;
            let whole = stored.whole(&run_config, &path);
            path = run.probe_path(name);
            let whole = whole.with_context(|| cannot_export(&path))?;
            let head = ExportHead::Classifier { class_names: stored.record.class_names };
            (whole.tensors, whole.network, whole.epoch, Branch::Dense, head)
        }
        None => {
            let branch = if args.branch == BranchArg::Pruned { Branch::Pruned } else { Branch::Dense };
            let head = if args.with_head { ExportHead::Projection } else { ExportHead::None };
            let Checkpoint { state, tensors, .. } = Checkpoint::load(&path)?;
            (tensors, backend::run_network(&run_config)?, state.epoch, branch, head)
        }
    };
    let (model, stem) = (run_config.model.name.to_string(), run_config.model.stem.to_string());
    let options = ExportOptions { branch, head, model, stem, image_size: run_config.data.image_size, epoch };
    let bytes = match format {
        ExportFormat::Safetensors => export_safetensors(&tensors, &options),
        ExportFormat::Pt => export_pt(&tensors, &options),
        ExportFormat::Onnx => export_onnx(&tensors, &network, &options),
    };
    let bytes = bytes.with_context(|| cannot_export(&path))?;
    write_file(&args.out, &bytes)?;
    if context.json {
        context.print_json(&serde_json::json!({ "out": args.out, "bytes": bytes.len() }))?;
    } else {
        let (out, model) = (args.out.display(), &options.model);
        let what = args.probe.as_ref().map(|name| format!(", probe {name}")).unwrap_or_default();
        context.print(&format!("{out}: {model}, epoch {epoch}{what}, {} bytes\n", bytes.len()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses to write over what the run itself needs.
fn refuse_own(run: &RunDir, out: &Path) -> anyhow::Result<()> {
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folders = ["checkpoints", "probes"].map(|name| run.root().join(name).canonicalize().ok());
    if parent.canonicalize().is_ok_and(|parent| folders.contains(&Some(parent))) {
        let text = format!("--out {}: that folder is the run's own; write elsewhere", out.display());
        return Err(UsageError(text).into());
    }
    Ok(())
}

fn cannot_export(path: &Path) -> String {
    format!("{}: cannot export", path.display())
}

/// The format asked for, or that of the ending of `--out`. The two must not contradict each other: readers, `inspect`
/// among them, go by the ending.
fn format(args: &ExportArgs) -> Result<ExportFormat, UsageError> {
    let out = args.out.display();
    let by_ending = args.out.extension().and_then(|ending| match ending.to_str()? {
        "safetensors" => Some(ExportFormat::Safetensors),
        "pt" | "pth" => Some(ExportFormat::Pt),
        "onnx" => Some(ExportFormat::Onnx),
        _ => None,
    });
    match (args.format, by_ending) {
        (Some(asked), Some(named)) if asked != named => {
            let (asked, named) = (name_of(asked), name_of(named));
            Err(UsageError(format!("--out {out}: --format {asked} under the ending of {named}; change one of them")))
        }
        (Some(format), _) | (None, Some(format)) => Ok(format),
        (None, None) => Err(UsageError(format!(
            "--out {out}: the ending names no format; use .safetensors, .pt or .onnx, or give --format"
        ))),
    }
}

/// What is typed after `--format`.
fn name_of(format: ExportFormat) -> String {
    format.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Refuses to replace a file that nobody said may be replaced.
///
/// # Errors
/// [`UsageError`].
pub fn refuse_existing(path: &Path, overwrite: bool) -> anyhow::Result<()> {
    if path.exists() && !overwrite {
        let text = format!("{}: exists already; give --overwrite to replace it", path.display());
        return Err(UsageError(text).into());
    }
    Ok(())
}

/// Writes a file whole or not at all.
///
/// # Errors
/// What the system says, with what to do.
pub fn write_file(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    write_atomic(path, |file| file.write_all(bytes))
        .map_err(|e| anyhow::anyhow!("{}: cannot write: {}", path.display(), describe_io(&e)))
}
