//! `sdclr export`.

use crate::args::{BranchArg, ExportArgs, ExportFormat};
use crate::config;
use crate::context::Context;
use crate::exit::UsageError;
use anyhow::Context as _;
use sdclr::checkpoint::Checkpoint;
use sdclr::run_dir::{describe_io, write_atomic};
use sdclr_interop::{Branch, ExportOptions, export_safetensors};
use std::path::Path;
use std::process::ExitCode;

/// Writes the backbone.
///
/// # Errors
/// A run, checkpoint or output file that does not do.
pub fn run(args: &ExportArgs, context: Context) -> anyhow::Result<ExitCode> {
    refuse_existing(&args.out, args.overwrite)?;
    let (run, path) = config::locate(&args.run)?;
    let run_config = run.config()?;
    let checkpoint = Checkpoint::load(&path)?;
    let options = ExportOptions {
        branch: match args.branch {
            BranchArg::Dense => Branch::Dense,
            BranchArg::Pruned => Branch::Pruned,
        },
        with_head: args.with_head,
        model: run_config.model.name.to_string(),
        stem: run_config.model.stem.to_string(),
    };
    let bytes = match args.format {
        ExportFormat::Safetensors => export_safetensors(&checkpoint.tensors, &options),
    };
    let bytes = bytes.with_context(|| format!("{}: cannot export", path.display()))?;
    write_file(&args.out, &bytes)?;
    if context.json {
        context.print_json(&serde_json::json!({ "out": args.out, "bytes": bytes.len() }))?;
    } else {
        let (out, model) = (args.out.display(), &options.model);
        context.print(&format!("{out}: {model}, epoch {}, {} bytes\n", checkpoint.state.epoch, bytes.len()))?;
    }
    Ok(ExitCode::SUCCESS)
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
