//! `sdclr eval linear|few-shot|knn`.

use crate::args::{ClassifierArgs, EvalCommand, GroupsArg, LinearProtocol, MachineArgs, ProbeArgs, ProbeDataArgs};
use crate::context::Context;
use crate::exit::UsageError;
use crate::progress::Progress;
use crate::{config, signals, system};
use anyhow::Context as _;
use sdclr::Machine;
use sdclr::metrics::GroupRule;
use sdclr::probe::{ProbeJob, Subject, Weights};
use sdclr::run_dir::RunDir;
use sdclr_data::Dataset;
use sdclr_data::splits::SplitFamily;
use sdclr_records::names::{Part, Precision, Protocol};
use sdclr_records::{ProbeConfig, ProbeResult, RunConfig};
use sdclr_report::{result_table, tail_line};
use std::process::ExitCode;

/// Probes, writes the result into the run and prints it.
///
/// # Errors
/// A run, image or setting that does not do.
pub fn run(command: EvalCommand, context: Context) -> anyhow::Result<ExitCode> {
    let (protocol, probe_args) = match &command {
        EvalCommand::Linear(args) => match args.protocol {
            LinearProtocol::Paper => (Protocol::LinearPaper, &args.probe),
            LinearProtocol::Cached => (Protocol::LinearCached, &args.probe),
        },
        EvalCommand::FewShot(args) => (Protocol::FewShot, &args.probe),
        EvalCommand::Knn(args) => (Protocol::Knn, &args.probe),
    };
    let (run, checkpoint) = config::locate(&probe_args.run)?;
    let subject = Subject { config: run.config()?, weights: Weights::Trained(checkpoint) };
    let mut probe = ProbeConfig::new(protocol, subject.config.data.image_size, probe_args.seed);
    match &command {
        EvalCommand::Linear(args) => apply(&args.classifier, &mut probe),
        EvalCommand::FewShot(args) => apply(&args.classifier, &mut probe),
        EvalCommand::Knn(args) => probe.neighbours = args.neighbours,
    }
    probe.validate()?;
    let mut images = open(&probe_args.data)?;
    if let EvalCommand::FewShot(args) = &command
        && let Some(per_class) = args.per_class
    {
        images.train = draw(&images.train, per_class, probe.seed)?;
    }
    let stop = signals::install()?;
    let mut progress = Progress::new(context, "");
    let job = ProbeJob {
        tail: tail(&probe_args.data, &subject.config, &images.train, &context)?,
        subject: &subject,
        probe,
        train: images.train,
        validation: images.validation,
        test: images.test,
        machine: machine(&probe_args.machine)?,
        stop: &stop,
        observer: &mut progress,
    };
    let result = sdclr::probe::probe(job);
    progress.finish();
    match result? {
        Ok(result) => show(&result, &run, probe_args, context),
        Err(signal) => Ok(ExitCode::from(signal.exit_code())),
    }
}

/// What a probe's machine flags ask for.
///
/// # Errors
/// An unknown device.
pub fn machine(args: &MachineArgs) -> anyhow::Result<Machine> {
    let (threads, workers) = (args.threads, args.workers);
    Ok(Machine { device: args.device.parse()?, precision: Precision::Auto, threads, workers, level: system::level()? })
}

struct Images {
    train: Dataset,
    validation: Option<Dataset>,
    test: Dataset,
}

fn open(args: &ProbeDataArgs) -> anyhow::Result<Images> {
    let train = config::open_images(&args.data, Part::Train, args.split.clone(), None)?;
    let validation = match &args.val_split {
        Some(split) => Some(config::open_images(&args.data, Part::Train, Some(split.clone()), None)?),
        None => None,
    };
    let test_source = args.test.as_ref().unwrap_or(&args.data);
    let test = config::open_images(test_source, Part::Test, args.test_split.clone(), None)?;
    let n_classes = train.n_classes().ok_or_else(|| {
        UsageError(format!(
            "{}: a probe needs labelled images: class folders or a list with labels",
            args.data.display()
        ))
    })?;
    for (name, other) in [("validation", validation.as_ref()), ("test", Some(&test))] {
        let Some(other) = other else { continue };
        let n_other = other.n_classes().ok_or_else(|| UsageError(format!("the {name} images have no labels")))?;
        if n_other > n_classes {
            let text = format!("the {name} images have {n_other} classes, those to learn from {n_classes}");
            return Err(UsageError(text).into());
        }
    }
    Ok(Images { train, validation, test })
}

fn apply(args: &ClassifierArgs, probe: &mut ProbeConfig) {
    if let Some(epochs) = args.epochs {
        // The rate falls at the same parts of a shorter or longer training.
        let rescale = |epoch: &mut usize| *epoch = *epoch * epochs / probe.epochs.max(1);
        probe.milestones.iter_mut().for_each(rescale);
        probe.epochs = epochs;
    }
    probe.batch_size = args.batch_size.unwrap_or(probe.batch_size);
    probe.lr = args.lr.unwrap_or(probe.lr);
}

fn draw(images: &Dataset, per_class: usize, seed: u64) -> anyhow::Result<Dataset> {
    let labels: Option<Vec<u32>> = (0..images.len()).map(|position| images.label(position)).collect();
    let labels = labels.context("few-shot images need labels")?;
    let positions = SplitFamily::new(&labels, seed).balanced(per_class)?;
    Ok(images.select(&positions)?)
}

/// The long tail by which classes are grouped: the given split's, else that of the images the run was trained on.
fn tail(
    args: &ProbeDataArgs,
    run: &RunConfig,
    train: &Dataset,
    context: &Context,
) -> anyhow::Result<Option<(Vec<usize>, GroupRule)>> {
    let n_classes = train.n_classes().unwrap_or(0);
    let counts = match &args.tail {
        Some(split) => {
            let images = config::open_images(&args.data, Part::Train, Some(split.clone()), None)?;
            images.class_counts()
        }
        // The training images may have moved since; that costs the groups, not the probe.
        None => config::open_training_images(run).ok().and_then(|images| images.class_counts()),
    };
    let counts = counts.filter(|counts| counts.len() == n_classes && counts.iter().min() != counts.iter().max());
    let Some(counts) = counts else {
        context.note("no Many, Medium and Few: the long tail is unknown (name its split with --tail)");
        return Ok(None);
    };
    let rule = match args.groups {
        Some(GroupsArg::Thirds) => GroupRule::Thirds,
        Some(GroupsArg::Thresholds) => GroupRule::IMAGENET,
        None if n_classes <= 100 && run.data.image_size <= 64 => GroupRule::Thirds,
        None => GroupRule::IMAGENET,
    };
    Ok(Some((counts, rule)))
}

fn show(result: &ProbeResult, run: &RunDir, args: &ProbeArgs, context: Context) -> anyhow::Result<ExitCode> {
    let name = args.name.clone().unwrap_or_else(|| result.protocol.to_string());
    let path = run.write_result(&name, result)?;
    if context.json {
        context.print_json(&serde_json::to_value(result)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    context.print(&result_table(&name, result).to_text())?;
    if let Some(groups) = &result.groups {
        context.note(&tail_line(&groups.class_counts, &groups.class_groups, &result.class_names));
    }
    context.note(&format!("{}: written", path.display()));
    Ok(ExitCode::SUCCESS)
}
