//! What a probe found: written, printed, and checked beforehand that it can be.

use crate::context::Context;
use crate::exit::UsageError;
use anyhow::{anyhow, bail};
use sdclr::probe::ProbeRecord;
use sdclr::run_dir::{RunDir, describe_io};
use sdclr_records::ProbeResult;
use sdclr_records::names::Protocol;
use sdclr_records::results::{ProbeData, WeightsRecord};
use sdclr_report::{result_table, tail_line};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Checks that a result can be written, and what is `trained` by a protocol: before the work, not after it. Nothing stays behind.
///
/// # Errors
/// What is in the way, what another part of eval has trained under this name, or what the system says.
pub fn check_writable(run: &RunDir, name: &str, trained: Option<Protocol>) -> anyhow::Result<()> {
    try_to_write(&result_path(run, name))?;
    let Some(protocol) = trained else { return Ok(()) };
    let (path, asked) = (run.probe_path(name), command_of(protocol));
    if let Ok(record) = ProbeRecord::load(&path)
        && command_of(record.protocol) != asked
    {
        let (path, own) = (path.display(), command_of(record.protocol));
        return Err(UsageError(format!("{path}: what eval {own} trained is there; choose another --name")).into());
    }
    if protocol == Protocol::Knn { Ok(()) } else { try_to_write(&path) }
}

/// The part of `sdclr eval` that trains by a protocol.
pub fn command_of(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::LinearPaper | Protocol::LinearCached | Protocol::RawPixels => "linear",
        Protocol::FewShot => "few-shot",
        Protocol::Knn => "knn",
        Protocol::Finetune | Protocol::Supervised => "finetune",
    }
}

fn try_to_write(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let cannot = |path: &Path, e: &io::Error| anyhow!("{}: cannot write: {}", path.display(), describe_io(e));
    if path.is_dir() {
        bail!("{}: cannot write: a folder is in the way; choose another --name", path.display());
    }
    let is_new = !folder.exists();
    std::fs::create_dir_all(folder).map_err(|e| cannot(folder, &e))?;
    let trial = folder.join(format!(".{}.trial", std::process::id()));
    let written = std::fs::File::create(&trial).and_then(|_| std::fs::remove_file(&trial));
    if is_new {
        // An empty folder that stays does no harm.
        let _ = std::fs::remove_dir(folder);
    }
    written.map_err(|e| cannot(path, &e))
}

fn result_path(run: &RunDir, name: &str) -> PathBuf {
    run.root().join("results").join(format!("{name}.json"))
}

/// What is lost by writing `result` over the file that is there, if that is more than another try of the same.
fn replaced(path: &Path, result: &ProbeResult) -> Option<&'static str> {
    let text = std::fs::read_to_string(path).ok()?;
    let Ok(old) = serde_json::from_str::<ProbeResult>(&text) else { return Some("a file that is no result") };
    // A run may have been moved, and its checkpoint with it.
    let weights =
        |result: &ProbeResult| result.weights.clone().map(|weights| WeightsRecord { checkpoint: None, ..weights });
    let images = |result: &ProbeResult| ProbeData { tail: None, ..result.data.clone() };
    let settings = |result: &ProbeResult| (result.protocol, result.settings.clone());
    if settings(&old) != settings(result) {
        Some("a result of other settings")
    } else if weights(&old) != weights(result) {
        Some("the result of other weights")
    } else if images(&old) != images(result) {
        Some("a result on other images")
    } else {
        (old.data != result.data).then_some("a result grouped by another tail")
    }
}

/// Writes the result and prints it; numbers that cannot be written are printed before that is said.
///
/// # Errors
/// A result that cannot be written.
pub fn show(result: &ProbeResult, run: &RunDir, name: &str, context: Context) -> anyhow::Result<ExitCode> {
    let replaced = replaced(&result_path(run, name), result);
    let written = run.write_result(name, result);
    if result.n_skipped > 0 {
        context.warn(&format!("{} broken images are left out", result.n_skipped));
    }
    let printed = print(result, name, context);
    let path = written?;
    printed?;
    match replaced {
        Some(what) => context.note(&format!("{}: replaces {what}; --name keeps both", path.display())),
        None if context.json => {}
        None => context.note(&format!("{}: written", path.display())),
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the result's row, or the result as JSON.
///
/// # Errors
/// A stdout that cannot be written to.
pub fn print(result: &ProbeResult, name: &str, context: Context) -> anyhow::Result<()> {
    if context.json {
        return context.print_json(&serde_json::to_value(result)?);
    }
    context.print(&result_table(name, result).to_text())?;
    if let Some(groups) = &result.groups {
        context.note(&tail_line(&groups.class_counts, &groups.class_groups, &result.class_names));
    }
    Ok(())
}
