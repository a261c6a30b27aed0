//! `--test-only`: testing a probe that was trained before.

use super::outcome::show;
use super::{Images, machine, open, tail};
use crate::args::ProbeArgs;
use crate::context::Context;
use crate::exit::UsageError;
use crate::progress::Progress;
use crate::signals;
use anyhow::Context as _;
use sdclr::probe::{StoredProbe, Subject, TestJob, test};
use sdclr::run_dir::RunDir;
use sdclr_records::ProbeConfig;
use sdclr_records::names::Protocol;
use std::process::ExitCode;

/// The stored probe `name` of a run.
///
/// # Errors
/// No such probe, or a file that is none.
pub fn load(run: &RunDir, name: &str) -> anyhow::Result<StoredProbe> {
    RunDir::check_result_name(name).with_context(|| format!("stored probe {name:?}"))?;
    let path = run.probe_path(name);
    if !path.is_file() {
        let there = run.probe_names().join(", ");
        let there = if there.is_empty() { "none is stored yet".to_owned() } else { format!("stored: {there}") };
        let text = format!("{}: no such stored probe ({there}); sdclr eval trains one", path.display());
        return Err(UsageError(text).into());
    }
    Ok(StoredProbe::load(&path)?)
}

/// Tests the stored probe `name` of a run, writes the result and prints it.
///
/// # Errors
/// No such probe, or one that does not fit; images that do not do.
pub fn run(
    args: &ProbeArgs,
    protocol: Protocol,
    name: &str,
    run: &RunDir,
    subject: &Subject,
    context: Context,
) -> anyhow::Result<ExitCode> {
    let stored = load(run, name)?;
    let (asked, own) = (command_of(protocol), command_of(stored.record.protocol));
    if asked != own {
        let path = run.probe_path(name);
        let text =
            format!("{}: what eval {own} trained: test it by eval {own} --test-only --name {name}", path.display());
        return Err(UsageError(text).into());
    }
    let Images { train, test: images, data, .. } = open(&args.data, false, &context)?;
    // Groups are of the classes as the classifier numbers them.
    let names = &stored.record.class_names;
    let train = if names.is_empty() { train } else { train.with_class_names(names).unwrap_or(train) };
    let tail = tail(&args.data, &subject.config, &train, &context)?;
    let (tail, record) = tail.map_or((None, None), |(tail, record)| (Some(tail), Some(record)));
    let stop = signals::install()?;
    let mut progress = Progress::new(context, "");
    let job = TestJob {
        subject,
        stored: &stored,
        test: images,
        recipe: ProbeConfig::new(protocol, subject.config.data.image_size, args.seed).augment_test,
        tail,
        data: sdclr_records::results::ProbeData { tail: record, ..data },
        machine: machine(&args.machine, &subject.config)?,
        stop: &stop,
        observer: &mut progress,
    };
    let result = test(job);
    progress.finish();
    match result? {
        Ok(result) => show(&result, run, name, context),
        Err(signal) => {
            context.note("stopped; no result was written");
            Ok(ExitCode::from(signal.exit_code()))
        }
    }
}

/// The part of `sdclr eval` that trains by a protocol.
fn command_of(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::LinearPaper | Protocol::LinearCached | Protocol::RawPixels => "linear",
        Protocol::FewShot => "few-shot",
        Protocol::Knn => "knn",
        Protocol::Finetune | Protocol::Supervised => "finetune",
    }
}
