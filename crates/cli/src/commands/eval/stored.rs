//! `--test-only`: testing a probe that was trained before.

use super::outcome::{command_of, show};
use super::{Images, machine, open, same_file, tail};
use crate::args::ProbeArgs;
use crate::config::open_images;
use crate::context::Context;
use crate::exit::UsageError;
use crate::progress::Progress;
use crate::signals;
use anyhow::Context as _;
use sdclr::probe::{StoredProbe, Subject, TestJob, test};
use sdclr::run_dir::RunDir;
use sdclr_data::Dataset;
use sdclr_records::ProbeConfig;
use sdclr_records::names::Protocol;
use sdclr_records::results::ImagesRecord;
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

/// Tests a stored probe of a run, writes the result under `name` and prints it.
///
/// # Errors
/// No such probe, or one that does not fit; images that do not do.
pub fn run(
    args: &ProbeArgs,
    protocol: Protocol,
    probe: &str,
    name: &str,
    run: &RunDir,
    subject: &Subject,
    context: Context,
) -> anyhow::Result<ExitCode> {
    let stored = load(run, probe)?;
    let own = stored.record.protocol;
    // Only from scratch says which of the two it is; the other may mean either.
    let is_other = protocol == Protocol::Supervised && own != protocol;
    if command_of(protocol) != command_of(own) || is_other {
        let (path, flag) = (run.probe_path(probe), if is_other { " without --from-scratch" } else { "" });
        let own = command_of(own);
        let text = format!("{}: what eval {own} trained; eval {own} --test-only{flag} tests it", path.display());
        return Err(UsageError(text).into());
    }
    let Images { train, test: images, data, .. } = open(&args.data, false, &context)?;
    warn_of_shared(&stored, &images, data.test.as_ref(), context);
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

/// Warns where the images to test on are among those that the probe learned from, as far as these are still there.
fn warn_of_shared(stored: &StoredProbe, test: &Dataset, tested: Option<&ImagesRecord>, context: Context) {
    let (Some(learned), Some(tested)) = (&stored.record.data.train, tested) else { return };
    if learned.part != tested.part || !same_file(&learned.source, &tested.source) {
        return;
    }
    let (split, root) = (learned.split.clone(), learned.root.clone());
    let n_shared =
        open_images(&learned.source, learned.part, split, root).map_or(0, |learned| learned.n_shared_with(test));
    if n_shared > 0 {
        context.warn(&format!("{n_shared} of the images that it learned from are tested on"));
    }
}
