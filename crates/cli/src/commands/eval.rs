//! `sdclr eval linear|few-shot|knn|finetune`.

mod outcome;
pub mod stored;

use crate::args::{
    ClassifierArgs, EvalCommand, FewShotArgs, FinetuneTrainingArgs, GroupsArg, LinearProtocol, MachineArgs, ProbeArgs,
    ProbeDataArgs,
};
use crate::context::Context;
use crate::exit::UsageError;
use crate::progress::Progress;
use crate::{config, signals, system};
use anyhow::Context as _;
use outcome::{check_writable, print, show};
use sdclr::Machine;
use sdclr::metrics::GroupRule;
use sdclr::probe::{ProbeJob, Probed, Subject, Weights, matched};
use sdclr::run_dir::RunDir;
use sdclr_data::Dataset;
use sdclr_data::source::has_parts;
use sdclr_data::splits::SplitFamily;
use sdclr_records::names::{Freeze, Part, Precision, Protocol};
use sdclr_records::results::{ImagesRecord, ProbeData};
use sdclr_records::{ProbeConfig, RunConfig};
use std::path::Path;
use std::process::ExitCode;

/// Probes, writes the result into the run and prints it.
///
/// # Errors
/// A run, image or setting that does not do.
pub fn run(command: EvalCommand, context: Context) -> anyhow::Result<ExitCode> {
    let (protocol, probe_args) = asked(&command);
    if let Some(name) = &probe_args.name {
        RunDir::check_result_name(name).context("--name")?;
    }
    if let EvalCommand::FewShot(FewShotArgs { per_class: Some(0), .. }) = &command {
        return Err(UsageError("--per-class 0: must be at least 1".to_owned()).into());
    }
    let (run, checkpoint) = config::locate(&probe_args.run)?;
    let subject = Subject { config: run.config()?, weights: Weights::Trained(std::path::absolute(&checkpoint)?) };
    let mut probe = ProbeConfig::new(protocol, subject.config.data.image_size, probe_args.seed);
    match &command {
        EvalCommand::Linear(args) => apply(&args.classifier, &mut probe),
        EvalCommand::FewShot(args) => apply(&args.classifier, &mut probe),
        EvalCommand::Knn(args) => probe.neighbours = args.neighbours,
        EvalCommand::Finetune(args) => apply_finetune(&args.training, &mut probe)?,
    }
    probe.validate()?;
    sdclr::probe::check_layers(&subject.config, &probe)?;
    let name = probe_args.name.clone().unwrap_or_else(|| result_name(&probe, &checkpoint));
    if let Some(stored) = to_test(&command, &name) {
        check_writable(&run, &name, None)?;
        return stored::run(probe_args, protocol, stored, &name, &run, &subject, context);
    }
    check_writable(&run, &name, Some(protocol))?;
    if matches!(command, EvalCommand::Knn(_)) && probe_args.data.val_split.is_some() {
        context.note("--val-split has no effect on kNN, which has no epochs to choose from");
    }
    let mut images = open(&probe_args.data, true, &context)?;
    if let EvalCommand::FewShot(args) = &command
        && let Some(per_class) = args.per_class
    {
        images.train = draw(&images.train, per_class, probe.seed)?;
        images.data.train.iter_mut().for_each(|record| record.per_class = Some(per_class));
    }
    let tail = tail(&probe_args.data, &subject.config, &images.train, &context)?;
    let (tail, record) = tail.map_or((None, None), |(tail, record)| (Some(tail), Some(record)));
    images.data.tail = record;
    let stop = signals::install()?;
    let mut progress = Progress::new(context, "");
    let job = ProbeJob {
        tail,
        subject: &subject,
        probe,
        train: images.train,
        validation: images.validation,
        test: images.test,
        data: images.data,
        machine: machine(&probe_args.machine, &subject.config)?,
        memory_limit: Some(system::memory().1),
        stop: &stop,
        observer: &mut progress,
    };
    let result = sdclr::probe::probe(job);
    progress.finish();
    match result? {
        Ok(Probed { result, classifier }) => {
            // The classifier first: beside a result there is always the one that it is of.
            if let Some(Err(error)) = classifier.map(|classifier| classifier.save(&run.probe_path(&name))) {
                print(&result, &name, context)?;
                return Err(error.into());
            }
            show(&result, &run, &name, context)
        }
        Err(signal) => {
            context.note("stopped; no result was written");
            Ok(ExitCode::from(signal.exit_code()))
        }
    }
}

/// The protocol of a part of the command, and what all parts have.
fn asked(command: &EvalCommand) -> (Protocol, &ProbeArgs) {
    match command {
        EvalCommand::Linear(args) => match args.protocol {
            LinearProtocol::Paper => (Protocol::LinearPaper, &args.probe),
            LinearProtocol::Cached => (Protocol::LinearCached, &args.probe),
        },
        EvalCommand::FewShot(args) => (Protocol::FewShot, &args.probe),
        EvalCommand::Knn(args) => (Protocol::Knn, &args.probe),
        EvalCommand::Finetune(args) if args.training.from_scratch => (Protocol::Supervised, &args.probe),
        EvalCommand::Finetune(args) => (Protocol::Finetune, &args.probe),
    }
}

/// The stored probe that is only to be tested, if that is asked for.
fn to_test<'a>(command: &'a EvalCommand, name: &'a str) -> Option<&'a str> {
    let again = match command {
        EvalCommand::Linear(args) => &args.classifier.again,
        EvalCommand::FewShot(args) => &args.classifier.again,
        EvalCommand::Finetune(args) => &args.training.again,
        EvalCommand::Knn(_) => return None,
    };
    again.test_only.then(|| again.stored.as_deref().unwrap_or(name))
}

/// The probe's name, the last fixed layer's, and the checkpoint's where it is not the last one: `knn`, `finetune-layer2`,
/// `knn-epoch-100`.
fn result_name(probe: &ProbeConfig, checkpoint: &Path) -> String {
    let mut name = probe.protocol.to_string();
    if let Some(settings) = probe.fine_tuning.filter(|settings| settings.freeze != Freeze::None) {
        name = format!("{name}-{}", settings.freeze);
    }
    match checkpoint.file_stem().map(|stem| stem.to_string_lossy().into_owned()) {
        // From scratch no checkpoint counts.
        Some(stem) if stem != "last" && probe.protocol != Protocol::Supervised => format!("{name}-{stem}"),
        _ => name,
    }
}

/// What a probe's machine flags ask for. A run in f32 is measured in f32, one in bf16 in bf16 where there are instructions for it.
///
/// # Errors
/// An unknown device.
pub fn machine(args: &MachineArgs, config: &RunConfig) -> anyhow::Result<Machine> {
    let (threads, workers) = (args.threads, args.workers);
    let precision = match config.train.precision {
        Precision::Bf16 => Precision::Auto,
        Precision::F32 | Precision::Auto => Precision::F32,
    };
    Ok(Machine { device: args.device.parse()?, precision, threads, workers, kernels: system::kernels()? })
}

struct Images {
    train: Dataset,
    validation: Option<Dataset>,
    test: Dataset,
    data: ProbeData,
}

/// Opens the images. `learns`: whether those of `--data` are learned from, or only say which classes there are.
fn open(args: &ProbeDataArgs, learns: bool, context: &Context) -> anyhow::Result<Images> {
    let root = args.data_root.as_deref();
    let (train, train_record) = open_recorded(&args.data, Part::Train, args.split.as_deref(), root)?;
    let has_parts = has_parts(&args.data)?;
    if args.test.is_none() && args.test_split.is_none() && !has_parts {
        let text = format!(
            "{}: there is no test part, and testing on the images to learn from would say nothing; \
             give --test or --test-split",
            args.data.display()
        );
        return Err(UsageError(text).into());
    }
    let test_source = args.test.as_ref().unwrap_or(&args.data);
    let test_root = args.test_root.as_deref().or(root);
    let (test, test_record) = open_recorded(test_source, Part::Test, args.test_split.as_deref(), test_root)?;
    let validation = match &args.val_split {
        Some(split) => Some(open_recorded(&args.data, Part::Train, Some(split), root)?),
        None => None,
    };
    let (validation, validation_record) = validation.unzip();
    if learns {
        // Before what is only worth a warning.
        matched(&test, &train, "to test on")?;
    }
    let same_test = !has_parts && same_file(&args.data, test_source);
    for (name, other) in [("tested", same_test.then_some(&test)), ("validated", validation.as_ref())] {
        let n_shared = other.map_or(0, |other| train.n_shared_with(other));
        if learns && n_shared > 0 {
            context.warn(&format!("{n_shared} of the images that are learned from are {name} on too"));
        }
    }
    if train.class_names().is_some() != test.class_names().is_some() {
        let (named, other) =
            if test.class_names().is_some() { ("to test on", &train) } else { ("to learn from", &test) };
        context.warn(&format!(
            "classes are matched by number: only the images {named} have names of classes, and not {}; labels that do not \
             count as those do would give wrong results",
            other.description()
        ));
    }
    let n_repeated = test.n_repeated();
    if n_repeated > 0 {
        context.warn(&format!("{n_repeated} of the images to test on are listed again and count again"));
    }
    let (train_record, test_record) = (Some(train_record), Some(test_record));
    let data = ProbeData { train: train_record, validation: validation_record, test: test_record, tail: None };
    Ok(Images { train, validation, test, data })
}

/// Opens images and says where they are from. Only a list has a root.
fn open_recorded(
    source: &Path,
    part: Part,
    split: Option<&Path>,
    root: Option<&Path>,
) -> anyhow::Result<(Dataset, ImagesRecord)> {
    let is_list = source.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt"));
    let root = root.filter(|_| is_list).map(std::path::absolute).transpose()?;
    let images = config::open_images(source, part, split.map(Path::to_owned), root.clone())?;
    let split = split.map(std::path::absolute).transpose()?;
    let part = if has_parts(source)? { part } else { Part::All };
    Ok((images, ImagesRecord { source: std::path::absolute(source)?, part, split, root, per_class: None }))
}

fn same_file(a: &Path, b: &Path) -> bool {
    a.canonicalize().ok().zip(b.canonicalize().ok()).is_some_and(|(a, b)| a == b)
}

fn apply(args: &ClassifierArgs, probe: &mut ProbeConfig) {
    if let Some(epochs) = args.epochs {
        probe.set_epochs(epochs);
    }
    probe.batch_size = args.batch_size.unwrap_or(probe.batch_size);
    probe.lr = args.lr.unwrap_or(probe.lr);
}

fn apply_finetune(args: &FinetuneTrainingArgs, probe: &mut ProbeConfig) -> anyhow::Result<()> {
    if let Some(epochs) = args.epochs {
        probe.set_epochs(epochs);
    }
    probe.batch_size = args.batch_size.unwrap_or(probe.batch_size);
    probe.lr = args.lr.unwrap_or(probe.lr);
    probe.weight_decay = args.weight_decay.unwrap_or(probe.weight_decay);
    let mut settings = probe.fine_tuning.unwrap_or_default();
    if let Some(freeze) = &args.freeze {
        settings.freeze = freeze.parse()?;
    }
    if let Some(mode) = &args.frozen_bn {
        settings.frozen_bn = mode.parse()?;
    }
    probe.fine_tuning = Some(settings);
    Ok(())
}

fn draw(images: &Dataset, per_class: usize, seed: u64) -> anyhow::Result<Dataset> {
    let labels: Option<Vec<u32>> = (0..images.len()).map(|position| images.label(position)).collect();
    let labels = labels.with_context(|| {
        let what = images.description();
        format!(
            "the images to learn from have no labels ({what}): use class folders, a list with labels or a labelled data set"
        )
    })?;
    let counts = images.class_counts().unwrap_or_default();
    // A class without images, as a split or a gap in a list's labels leaves, is none to draw from.
    let present = (0..counts.len()).filter(|&label| counts[label] > 0);
    if let Some(label) = present.min_by_key(|&label| counts[label]).filter(|&label| counts[label] < per_class) {
        let name = images.class_names().and_then(|names| names.get(label).cloned());
        let (class, n) = (name.unwrap_or_else(|| label.to_string()), counts[label]);
        let text = format!("--per-class {per_class}: class {class} has only {n} images; give at most {n}");
        return Err(UsageError(text).into());
    }
    let wanted: Vec<usize> = counts.iter().map(|&count| per_class.min(count)).collect();
    // Labels run as far as the largest one drawn from, class names perhaps further.
    let family = SplitFamily::new(&labels, seed);
    let positions = family.take(&wanted[..family.n_classes()])?;
    Ok(images.select(&positions)?)
}

/// Class counts of the long tail, the rule that groups by them, and where they are from.
type Tail = ((Vec<usize>, GroupRule), ImagesRecord);

/// The long tail by which classes are grouped: the given split's, else that of the images the run was trained on.
fn tail(args: &ProbeDataArgs, run: &RunConfig, train: &Dataset, context: &Context) -> anyhow::Result<Option<Tail>> {
    let n_classes = train.n_classes().unwrap_or(0);
    let found = match &args.tail {
        Some(split) => {
            let (images, record) = open_recorded(&args.data, Part::Train, Some(split), args.data_root.as_deref())?;
            match tail_counts(&images, train) {
                Ok(counts) => Ok((counts, record)),
                Err(problem) => return Err(UsageError(format!("--tail {}: {problem}", split.display())).into()),
            }
        }
        // The training images may have moved since; that costs the groups, not the probe.
        None => config::open_training_images(run)
            .map_err(|e| e.to_string())
            .and_then(|images| Ok((tail_counts(&images, train)?, training_record(run)))),
    };
    let (counts, record) = match found {
        Ok(found) => found,
        Err(problem) => {
            let hint = "--tail FILE makes groups by a split of --data that is the long tail";
            context.note(&format!("no Many, Medium and Few: by the run's training images, {problem}; {hint}"));
            return Ok(None);
        }
    };
    let rule = match args.groups {
        Some(GroupsArg::Thirds) => GroupRule::Thirds,
        Some(GroupsArg::Thresholds) => GroupRule::IMAGENET,
        None if n_classes <= 100 && run.data.image_size <= 64 => GroupRule::Thirds,
        None => GroupRule::IMAGENET,
    };
    Ok(Some(((counts, rule), record)))
}

/// Images of each class to learn from in a long tail, or why it is none.
fn tail_counts(images: &Dataset, train: &Dataset) -> Result<Vec<usize>, String> {
    let images = matched(images, train, "of the long tail").map_err(|e| e.to_string())?;
    let counts = images.class_counts().unwrap_or_default();
    let n_classes = train.n_classes().unwrap_or(0);
    if counts.len() != n_classes {
        return Err(format!("it has {} classes, the images to learn from {n_classes}", counts.len()));
    }
    let n_present = counts.iter().filter(|&&count| count > 0).count();
    if n_present < 3 {
        return Err(format!("{n_present} of its classes have images, which is too few for three groups"));
    }
    if n_present < n_classes {
        let n_empty = n_classes - n_present;
        return Err(format!(
            "{n_empty} of the {n_classes} classes have no images in it, so it is no long tail of these"
        ));
    }
    match (counts.iter().min(), counts.iter().max()) {
        (Some(least), Some(most)) if least == most => {
            Err(format!("each class has {most} images, which is no long tail"))
        }
        _ => Ok(counts),
    }
}

fn training_record(run: &RunConfig) -> ImagesRecord {
    let data = run.data.clone();
    ImagesRecord { source: data.source, part: data.part, split: data.split, root: data.root, per_class: None }
}
