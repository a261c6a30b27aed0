//! `sdclr reproduce`: the paper's experiments end to end.

mod plan;

use super::summary::{self, Gathered};
use crate::args::{OnlyArg, ReproduceArgs};
use crate::context::Context;
use crate::exit::UsageError;
use crate::progress::Progress;
use crate::{signals, system};
use anyhow::Context as _;
use sdclr::Machine;
use sdclr::metrics::GroupRule;
use sdclr::pretrain::{Outcome, PretrainJob, pretrain};
use sdclr::probe::{ProbeJob, Probed, StoredProbe, Subject, TestJob, Weights, probe, test};
use sdclr::reproduce::{self, Phase, Places, Plan, SETTINGS_FILE, Settings, State};
use sdclr::run_dir::{CheckpointName, Existing, RunDir};
use sdclr::signals::{StopFlag, StopSignal};
use sdclr_data::Dataset;
use sdclr_records::experiment::Arm;
use sdclr_records::names::{Part, Protocol};
use sdclr_records::results::ImagesRecord;
use sdclr_records::{Experiment, ProbeResult, RunConfig};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Plans, says so, and does what is left.
///
/// # Errors
/// Images, splits or settings that do not do, and whatever a run or a probe can fail with.
pub fn run(args: &ReproduceArgs, context: Context) -> anyhow::Result<ExitCode> {
    let experiment = Experiment::named(&args.experiment)?;
    let out = std::path::absolute(args.out.clone().unwrap_or_else(|| format!("sdclr-{}", experiment.name).into()))?;
    let (splits, arms) = (chosen_splits(args, &experiment)?, chosen_arms(args, &experiment)?);
    let settings = settings(args)?;
    check_folder(&out, &settings)?;
    check_recipes(&experiment, &settings, &arms, args)?;
    if args.dry_run {
        let planned = plan::Planned::before(&experiment, &settings, &out, args)?;
        let rows = planned.rows(&splits, &arms, args.only)?;
        match context.json {
            true => context.print_json(&planned.json(&rows))?,
            false => context.print(&planned.text(&rows))?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let places = Places { data: &settings.data, given: settings.split_dir.as_deref(), made: &out.join("splits") };
    let stop = signals::install_for_training()?;
    let is_new = Settings::stored(&out)?.is_none();
    settings.keep(&out)?;
    let sets = reproduce::sets(&experiment, &places, settings.scale).inspect_err(|_| {
        if is_new {
            // Nothing was begun: another try may have other settings. A file that stays is told of then.
            let _ = std::fs::remove_file(out.join(SETTINGS_FILE));
            // Only an empty folder goes.
            let _ = std::fs::remove_dir(&out);
        }
    })?;
    sets.notes.iter().for_each(|note| context.note(&format!("note: {note}")));
    let job = Job { args, context, stop, plan: Plan { experiment, settings, sets, out, machine: machine_flags(args) } };
    let planned = plan::Planned::of(&job.plan, args)?;
    context.note(&planned.text(&planned.rows(&splits, &arms, args.only)?));
    drop(planned);
    let walked = job.walk(&splits, &arms).inspect_err(|_| {
        let has_run =
            (1..=job.plan.experiment.n_splits).any(|split| job.plan.out.join(format!("split{split}")).exists());
        if is_new && !has_run {
            // As above.
            let _ = std::fs::remove_file(job.plan.out.join(SETTINGS_FILE));
        }
    });
    if let Some(signal) = walked? {
        context.note("stopped; the same command goes on from here");
        return Ok(ExitCode::from(signal.exit_code()));
    }
    job.show()
}

/// A run of the experiment.
struct Task<'a> {
    split: usize,
    arm: &'a Arm,
    run: PathBuf,
}

struct Job<'a> {
    args: &'a ReproduceArgs,
    context: Context,
    stop: StopFlag,
    plan: Plan,
}

impl Job<'_> {
    /// Does every task that is left; returns the signal that ended it early.
    fn walk(&self, splits: &[usize], arms: &[Arm]) -> anyhow::Result<Option<StopSignal>> {
        for &split in splits {
            for arm in arms {
                for phase in Phase::ALL.into_iter().filter(|phase| includes(self.args.only, *phase)) {
                    let state = self.plan.state(split, arm, phase)?;
                    let run = self.plan.run_path(split, arm);
                    let task = Task { split, arm, run };
                    let is_test = self.args.only == Some(OnlyArg::Test);
                    if state == State::Done && !is_test {
                        continue;
                    }
                    let name = format!("split {split}, {}: {}", arm.title, phase.title());
                    let stopped = match phase {
                        Phase::Pretrain => self.pretrain(&task)?,
                        Phase::Probe(protocol) if is_test => self.test(&task, protocol, &name)?,
                        Phase::Probe(protocol) => self.probe(&task, protocol, &name)?,
                    };
                    if stopped.is_some() {
                        return Ok(stopped);
                    }
                }
            }
        }
        Ok(None)
    }

    fn pretrain(&self, task: &Task<'_>) -> anyhow::Result<Option<StopSignal>> {
        let dataset = reproduce::open(self.plan.training_images(task.split, task.arm))?;
        let config = self.plan.run_config(task.split, task.arm)?;
        let epochs = reproduce::epochs(config.train.epochs);
        self.context.note(&format!("split {}, {}: {epochs}", task.split, task.arm.title));
        system::check_disk(&config, &task.run)?;
        let existing = if RunDir::open(&task.run).is_ok() { Existing::Resume } else { Existing::Refuse };
        let claim = RunDir::claim(&task.run, existing, &config)?;
        let mut progress = Progress::new(self.context, &format!("split {} {}", task.split, task.arm.name));
        let job = PretrainJob {
            config: &config,
            dataset,
            claim,
            kernels: system::kernels()?,
            memory_limit: Some(system::memory().1),
            stop: &self.stop,
            observer: &mut progress,
        };
        let outcome = pretrain(job);
        progress.finish();
        Ok(match outcome? {
            Outcome::Finished { .. } => None,
            Outcome::Stopped(signal) => Some(signal),
        })
    }

    fn probe(&self, task: &Task<'_>, protocol: Protocol, name: &str) -> anyhow::Result<Option<StopSignal>> {
        let (run, subject) = self.trained(task)?;
        self.context.note(name);
        let data = self.plan.probe_data(task.split, protocol);
        let mut opener = reproduce::Opener::default();
        let mut open = |record: &Option<_>| {
            opener.open(record.as_ref().context("every set of an experiment is there")?).map_err(anyhow::Error::from)
        };
        let mut progress = Progress::new(self.context, &format!("split {} {} {protocol}", task.split, task.arm.name));
        let tail = self.tail(&open(&data.tail)?);
        let job = ProbeJob {
            subject: &subject,
            probe: self.plan.probe_config(protocol, &subject.config),
            train: open(&data.train)?,
            validation: Some(open(&data.validation)?),
            test: open(&data.test)?,
            tail: Some(tail),
            data,
            machine: self.machine(&subject.config)?,
            memory_limit: None,
            stop: &self.stop,
            observer: &mut progress,
        };
        let probed = probe(job);
        progress.finish();
        match probed? {
            Ok(Probed { result, classifier }) => {
                // The classifier first: a result that is there says that all is.
                if let Some(classifier) = classifier {
                    classifier.save(&run.probe_path(protocol.as_str()))?;
                }
                self.keep(&run, protocol, name, &result)?;
                Ok(None)
            }
            Err(signal) => Ok(Some(signal)),
        }
    }

    /// Tests a stored probe again.
    fn test(&self, task: &Task<'_>, protocol: Protocol, name: &str) -> anyhow::Result<Option<StopSignal>> {
        let (run, subject) = self.trained(task)?;
        let path = run.probe_path(protocol.as_str());
        if !path.is_file() {
            return Err(UsageError(format!(
                "{}: there is no stored probe to test; run --only eval first",
                path.display()
            ))
            .into());
        }
        let stored = StoredProbe::load(&path)?;
        let data = self.plan.probe_data(task.split, protocol);
        let mut progress = Progress::new(self.context, name);
        let tail = self.tail(&reproduce::open(&self.plan.sets.splits[task.split - 1].long_tail)?);
        let job = TestJob {
            subject: &subject,
            stored: &stored,
            test: reproduce::open(&self.plan.sets.test)?,
            recipe: self.plan.probe_config(protocol, &subject.config).augment_test,
            tail: Some(tail),
            data,
            machine: self.machine(&subject.config)?,
            stop: &self.stop,
            observer: &mut progress,
        };
        let result = test(job);
        progress.finish();
        match result? {
            Ok(result) => {
                self.keep(&run, protocol, name, &result)?;
                Ok(None)
            }
            Err(signal) => Ok(Some(signal)),
        }
    }

    fn keep(&self, run: &RunDir, protocol: Protocol, name: &str, result: &ProbeResult) -> anyhow::Result<()> {
        run.write_result(protocol.as_str(), result)?;
        if result.n_skipped > 0 {
            self.context.warn(&format!("{name}: {} broken images are left out", result.n_skipped));
        }
        self.context.note(&format!("{name}: {:.2} %", result.all));
        Ok(())
    }

    /// The run of a task, which must be trained to its end.
    fn trained(&self, task: &Task<'_>) -> anyhow::Result<(RunDir, Subject)> {
        match self.plan.state(task.split, task.arm, Phase::Pretrain)? {
            State::Done => {
                let run = RunDir::open(&task.run)?;
                let weights = Weights::Trained(run.checkpoint_path(CheckpointName::Last));
                let config = run.config()?;
                Ok((run, Subject { config, weights }))
            }
            State::Partly { epoch } => {
                let (run, epochs) = (task.run.display(), reproduce::epochs(epoch));
                let text = format!("{run}: trained for {epochs} only; go on without --only first");
                Err(UsageError(text).into())
            }
            State::Todo => Err(UsageError(format!("{}: not trained yet; leave --only out", task.run.display())).into()),
        }
    }

    /// Class counts of a long tail, and the rule that groups by them.
    fn tail(&self, images: &Dataset) -> (Vec<usize>, GroupRule) {
        let mut counts = images.class_counts().unwrap_or_default();
        counts.resize(self.plan.experiment.n_classes, 0);
        (counts, self.plan.group_rule())
    }

    fn machine(&self, config: &RunConfig) -> anyhow::Result<Machine> {
        let args = crate::args::MachineArgs {
            device: self.args.machine.device.clone(),
            threads: self.args.machine.threads,
            workers: self.args.machine.workers,
        };
        super::eval::machine(&args, config)
    }

    /// Prints the summary and writes it beside the runs.
    fn show(&self) -> anyhow::Result<ExitCode> {
        let mut gathered = Gathered::default();
        gathered.add(&self.plan.out)?;
        let rows = gathered.rows();
        if rows.is_empty() {
            self.context.note("pre-training is done; the probes are next: the same command without --only pretrain");
            return Ok(ExitCode::SUCCESS);
        }
        let files = summary::write(&self.plan.out, &gathered)?;
        if self.context.json {
            self.context.print_json(&serde_json::to_value(&rows)?)?;
        } else {
            self.context.print(&summary::text(&rows, gathered.experiment.as_ref(), &gathered.departures, false))?;
        }
        let names: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
        self.context.note(&format!("written: {}", names.join(", ")));
        Ok(ExitCode::SUCCESS)
    }
}

fn includes(only: Option<OnlyArg>, phase: Phase) -> bool {
    match only {
        None => true,
        Some(OnlyArg::Pretrain) => phase == Phase::Pretrain,
        Some(OnlyArg::Eval | OnlyArg::Test) => phase != Phase::Pretrain,
    }
}

fn machine_flags(args: &ReproduceArgs) -> Vec<(String, String)> {
    let machine = &args.machine;
    [
        ("device", machine.device.clone()),
        ("threads", machine.threads.to_string()),
        ("workers", machine.workers.to_string()),
    ]
    .map(|(flag, value)| (flag.to_owned(), value))
    .to_vec()
}

fn settings(args: &ReproduceArgs) -> anyhow::Result<Settings> {
    let changes = &args.changes;
    for (flag, value) in [("--epochs", changes.epochs), ("--probe-epochs", changes.probe_epochs)] {
        if value == Some(0) {
            return Err(UsageError(format!("{flag} 0: must be at least 1")).into());
        }
    }
    let settings = Settings {
        experiment: args.experiment.clone(),
        data: std::path::absolute(&args.data)?,
        split_dir: args.split_dir.as_ref().map(std::path::absolute).transpose()?,
        epochs: changes.epochs,
        probe_epochs: changes.probe_epochs,
        seed: changes.seed,
        scale: changes.scale,
        precision: args.machine.precision.clone(),
        assignments: changes.assignments.clone(),
    };
    settings.validate()?;
    Ok(settings)
}

/// A folder is new, empty, or of the same reproduction.
fn check_folder(out: &Path, settings: &Settings) -> anyhow::Result<()> {
    if Settings::stored(out)?.is_some() {
        return Ok(settings.keep(out)?);
    }
    let is_occupied = std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    // Splits alone are what a first try leaves that did not get further.
    let is_leftover =
        || std::fs::read_dir(out).is_ok_and(|entries| entries.flatten().all(|e| e.file_name() == "splits"));
    if is_occupied && !is_leftover() {
        let text = format!("{}: the folder is not empty and no reproduction's; give another --out", out.display());
        return Err(UsageError(text).into());
    }
    Ok(())
}

/// A setting that cannot be run is noticed before anything is written.
fn check_recipes(
    experiment: &Experiment,
    settings: &Settings,
    arms: &[Arm],
    args: &ReproduceArgs,
) -> anyhow::Result<()> {
    let (source, part) = (settings.data.clone(), Part::Train);
    let images = ImagesRecord { source, part, split: None, root: None, per_class: None };
    for arm in arms {
        // Whether a batch is too large is seen when the images are.
        reproduce::recipe(experiment, settings, arm, &images, usize::MAX >> 1, &machine_flags(args))?;
    }
    Ok(())
}

fn chosen_arms(args: &ReproduceArgs, experiment: &Experiment) -> anyhow::Result<Vec<Arm>> {
    if args.methods.is_empty() {
        return Ok(experiment.arms.clone());
    }
    let mut arms = Vec::new();
    for name in &args.methods {
        let arm = experiment.arm(name.trim())?.clone();
        if !arms.contains(&arm) {
            arms.push(arm);
        }
    }
    Ok(arms)
}

/// `1-3`, `2`, `1,4-5`: ascending, without doubles.
fn chosen_splits(args: &ReproduceArgs, experiment: &Experiment) -> anyhow::Result<Vec<usize>> {
    let n = experiment.n_splits;
    let Some(text) = &args.splits else { return Ok((1..=n).collect()) };
    let wrong = || {
        let known = if n == 1 { "there is only split 1".to_owned() } else { format!("splits are 1 to {n}") };
        UsageError(format!("--splits {text}: expected numbers and ranges such as 1-3 or 1,4; {known}"))
    };
    let mut splits = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>().ok().filter(|split| (1..=n).contains(split));
        let (first, last) = number(first).zip(number(last)).ok_or_else(wrong)?;
        if first > last {
            return Err(wrong().into());
        }
        splits.extend(first..=last);
    }
    splits.sort_unstable();
    splits.dedup();
    Ok(splits)
}
