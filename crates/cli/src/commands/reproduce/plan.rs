//! What an experiment will do, how far it is, and how long the rest takes on this machine.

use super::{includes, machine_flags};
use crate::args::{OnlyArg, ReproduceArgs};
use crate::exit::UsageError;
use crate::progress::duration;
use crate::system;
use sdclr::Machine;
use sdclr::bench::StepBench;
use sdclr::reproduce::{self, Phase, Places, Plan, Settings, State, forward_passes, recipe, tail_counts};
use sdclr::run_dir::RunDir;
use sdclr_data::{Dataset, OpenOptions, Part as DataPart};
use sdclr_records::experiment::Arm;
use sdclr_records::names::{Part, Protocol};
use sdclr_records::results::ImagesRecord;
use sdclr_records::{Experiment, RunConfig};
use sdclr_report::{Align, Cell, Table};
use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

/// Images of each set.
struct Sizes {
    /// Of each split.
    tail: Vec<usize>,
    balanced: usize,
    few_shot: usize,
    train: usize,
    validation: usize,
    test: usize,
}

/// An experiment that may not have begun.
pub struct Planned<'a> {
    experiment: &'a Experiment,
    settings: &'a Settings,
    args: &'a ReproduceArgs,
    /// Absent while its sets are not there.
    plan: Option<Cow<'a, Plan>>,
    out: &'a Path,
    sizes: Sizes,
}

/// How a task stands, and what `--only` asks of it.
#[derive(Clone, Copy, PartialEq)]
enum Standing {
    /// As without `--only`.
    Task(State),
    /// A stored probe, to be tested again.
    ToTest,
    /// A probe of a run that is not trained to its end: `--only` stops there.
    NotTrained,
    /// A test of a probe that is not stored: likewise.
    NoProbe,
}

/// One line of the plan.
pub struct Row {
    split: usize,
    arm: String,
    phase: Phase,
    n_images: usize,
    epochs: usize,
    standing: Standing,
    /// Seconds that are left of it.
    seconds: f64,
}

impl<'a> Planned<'a> {
    /// The plan of an experiment whose sets are there.
    ///
    /// # Errors
    /// Images that cannot be opened.
    pub fn of(plan: &'a Plan, args: &'a ReproduceArgs) -> anyhow::Result<Self> {
        let sizes = measured_sizes(plan)?;
        let (experiment, settings, out) = (&plan.experiment, &plan.settings, plan.out.as_path());
        Ok(Self { experiment, settings, args, plan: Some(Cow::Borrowed(plan)), out, sizes })
    }

    /// The plan of an experiment of which nothing may be there; writes nothing.
    ///
    /// # Errors
    /// Images or split files that do not do.
    pub fn before(
        experiment: &'a Experiment,
        settings: &'a Settings,
        out: &'a Path,
        args: &'a ReproduceArgs,
    ) -> anyhow::Result<Self> {
        let places = Places { data: &settings.data, given: settings.split_dir.as_deref(), made: &out.join("splits") };
        if reproduce::located(experiment, &places)?.is_none() {
            let sizes = expected_sizes(experiment, settings)?;
            return Ok(Self { experiment, settings, args, plan: None, out, sizes });
        }
        // All files are there, so this only reads them.
        let sets = reproduce::sets(experiment, &places, settings.scale)?;
        let plan = Plan {
            experiment: experiment.clone(),
            settings: settings.clone(),
            sets,
            out: out.to_owned(),
            machine: machine_flags(args),
        };
        let sizes = measured_sizes(&plan)?;
        Ok(Self { experiment, settings, args, plan: Some(Cow::Owned(plan)), out, sizes })
    }

    /// Every task and what is left of it, timed by a few steps if anything is.
    ///
    /// # Errors
    /// A run that cannot be read, a setting that cannot be run.
    pub fn rows(&self, splits: &[usize], arms: &[Arm], only: Option<OnlyArg>) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        let mut seconds_per_forward = None;
        for &split in splits {
            for arm in arms {
                let n_images = if arm.balanced { self.sizes.balanced } else { self.sizes.tail[split - 1] };
                let config = self.config(arm, n_images)?;
                for phase in Phase::ALL.into_iter().filter(|phase| includes(only, *phase)) {
                    let standing = self.standing(split, arm, phase, only)?;
                    let mut row = self.row(split, arm, phase, n_images, &config, standing);
                    if row.seconds > 0.0 {
                        let one = match seconds_per_forward {
                            Some(seconds) => seconds,
                            None => *seconds_per_forward.insert(time_a_forward(&config)?),
                        };
                        row.seconds *= one;
                    }
                    rows.push(row);
                }
            }
        }
        Ok(rows)
    }

    fn standing(&self, split: usize, arm: &Arm, phase: Phase, only: Option<OnlyArg>) -> anyhow::Result<Standing> {
        let state = |phase| match &self.plan {
            Some(plan) => plan.state(split, arm, phase),
            None => Ok(State::Todo),
        };
        if let (Phase::Probe(protocol), Some(only)) = (phase, only) {
            if state(Phase::Pretrain)? != State::Done {
                return Ok(Standing::NotTrained);
            }
            if only == OnlyArg::Test {
                let run = self.plan.as_ref().map(|plan| RunDir::open(&plan.run_path(split, arm))).transpose()?;
                let is_stored = run.is_some_and(|run| run.probe_path(protocol.as_str()).is_file());
                return Ok(if is_stored { Standing::ToTest } else { Standing::NoProbe });
            }
        }
        Ok(Standing::Task(state(phase)?))
    }

    /// A row whose time is in forward passes.
    fn row(
        &self,
        split: usize,
        arm: &Arm,
        phase: Phase,
        n_images: usize,
        config: &RunConfig,
        standing: Standing,
    ) -> Row {
        let (n_images, epochs, n_other) = match phase {
            Phase::Pretrain => (n_images, config.train.epochs, 0),
            Phase::Probe(protocol) => {
                let n_train = if protocol == Protocol::FewShot { self.sizes.few_shot } else { self.sizes.train };
                (n_train, self.probe_epochs(protocol), self.sizes.validation + self.sizes.test)
            }
        };
        let seconds = match standing {
            Standing::Task(State::Todo) => forward_passes(phase, n_images, epochs, n_other),
            Standing::Task(State::Partly { epoch }) => {
                forward_passes(phase, n_images, epochs.saturating_sub(epoch), n_other)
            }
            Standing::ToTest => forward_passes(phase, 0, 0, self.sizes.test),
            Standing::Task(State::Done) | Standing::NotTrained | Standing::NoProbe => 0.0,
        };
        Row { split, arm: arm.name.clone(), phase, n_images, epochs, standing, seconds }
    }

    fn probe_epochs(&self, protocol: Protocol) -> usize {
        self.settings.probe_epochs(self.experiment, protocol)
    }

    fn config(&self, arm: &Arm, n_images: usize) -> anyhow::Result<RunConfig> {
        let source = self.settings.data.clone();
        let images = ImagesRecord { source, part: Part::Train, split: None, root: None, per_class: None };
        Ok(recipe(self.experiment, self.settings, arm, &images, n_images, &machine_flags(self.args))?)
    }

    /// The plan for people.
    pub fn text(&self, rows: &[Row]) -> String {
        let mut table = Table::new(&[
            ("Split", Align::Right),
            ("Run", Align::Left),
            ("Part", Align::Left),
            ("Images", Align::Right),
            ("Epochs", Align::Right),
            ("State", Align::Left),
            ("Time", Align::Right),
        ]);
        for row in rows {
            let state = match row.standing {
                Standing::Task(State::Todo) => "to do".to_owned(),
                Standing::Task(State::Partly { epoch }) => format!("epoch {epoch} done"),
                Standing::Task(State::Done) => "done".to_owned(),
                Standing::ToTest => "to test".to_owned(),
                Standing::NotTrained => "not trained".to_owned(),
                Standing::NoProbe => "no probe".to_owned(),
            };
            let time = if row.seconds > 0.0 { about(row.seconds) } else { String::new() };
            table.push(vec![
                Cell::Count(row.split),
                row.arm.as_str().into(),
                row.phase.title().into(),
                Cell::Count(row.n_images),
                Cell::Count(row.epochs),
                state.as_str().into(),
                time.as_str().into(),
            ]);
        }
        let experiment = self.experiment;
        let mut text = format!("{}: {}\n", experiment.title, experiment.source);
        let departures = self.settings.departures();
        if !departures.is_empty() {
            text.push_str(&format!("Not the paper's experiment: {}\n", departures.join(", ")));
        }
        for arm in experiment.arms.iter().filter(|arm| arm.unpublished && rows.iter().any(|row| row.arm == arm.name)) {
            text.push_str(&format!("{}: the paper has no recipe for it, the values are unpublished\n", arm.title));
        }
        text.push_str(&format!("Folder: {}\n\n{}\n", self.out.display(), table.to_text()));
        let left: f64 = rows.iter().map(|row| row.seconds).sum();
        if left > 0.0 {
            text.push_str(&format!("About {} left, judging by a few steps on this machine.", about(left)));
            if departures.is_empty() {
                let (hours, on) = (experiment.hours, &experiment.hours_on);
                text.push_str(&format!(" One SDCLR pre-training takes about {hours} h on {on}."));
            }
            text.push('\n');
        }
        let n_of = |standing| rows.iter().filter(|row| row.standing == standing).count();
        match (n_of(Standing::NotTrained), n_of(Standing::NoProbe)) {
            (0, 0) if left > 0.0 => {}
            (0, 0) => text.push_str("All of it is done.\n"),
            (0, n) => text.push_str(&format!("{n} of {} have no stored probe: run --only eval first.\n", rows.len())),
            (n, _) => {
                text.push_str(&format!("{n} of {} are of runs that are not trained: leave --only out.\n", rows.len()))
            }
        }
        text
    }

    /// The plan for programs.
    pub fn json(&self, rows: &[Row]) -> serde_json::Value {
        let row = |row: &Row| {
            let (state, epochs_done) = match row.standing {
                Standing::Task(State::Todo) => ("todo", 0),
                Standing::Task(State::Partly { epoch }) => ("partly", epoch),
                Standing::Task(State::Done) => ("done", row.epochs),
                Standing::ToTest => ("to_test", row.epochs),
                Standing::NotTrained => ("not_trained", 0),
                Standing::NoProbe => ("no_probe", 0),
            };
            serde_json::json!({
                "split": row.split, "run": row.arm, "part": row.phase.title(), "n_images": row.n_images,
                "epochs": row.epochs, "epochs_done": epochs_done, "state": state, "estimated_s": row.seconds,
            })
        };
        serde_json::json!({
            "experiment": self.experiment.name,
            "departures": self.settings.departures(),
            "out": self.out,
            "tasks": rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

fn about(seconds: f64) -> String {
    duration(Duration::from_secs_f64(seconds))
}

/// Seconds of one image's forward pass, by a few training steps of a small batch.
fn time_a_forward(config: &RunConfig) -> anyhow::Result<f64> {
    const N_STEPS: usize = 3;
    const MAX_BATCH: usize = 16;
    let mut config = config.clone();
    config.train.batch_size = config.train.batch_size.min(MAX_BATCH);
    let mut bench = StepBench::new(&config, &Machine::of(&config, system::kernels()?))?;
    bench.step()?;
    let mut seconds: Vec<f64> = (0..N_STEPS).map(|_| bench.step()).collect::<Result<_, _>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[N_STEPS / 2] / forward_passes(Phase::Pretrain, config.train.batch_size, 1, 0))
}

fn measured_sizes(plan: &Plan) -> anyhow::Result<Sizes> {
    let mut opener = reproduce::Opener::default();
    let mut len = |record: &ImagesRecord| -> anyhow::Result<usize> { Ok(opener.open(record)?.len()) };
    let sets = &plan.sets;
    Ok(Sizes {
        tail: sets.splits.iter().map(|split| len(&split.long_tail)).collect::<Result<_, _>>()?,
        balanced: len(&sets.splits[0].balanced)?,
        few_shot: len(&sets.splits[0].few_shot)?,
        train: len(&sets.train)?,
        validation: len(&sets.validation)?,
        test: len(&sets.test)?,
    })
}

fn expected_sizes(experiment: &Experiment, settings: &Settings) -> anyhow::Result<Sizes> {
    reproduce::check_images(experiment, &settings.data)?;
    let test = OpenOptions { part: DataPart::Test, ..OpenOptions::default() };
    let each = |count: usize| experiment.n_classes * reproduce::scaled(count, settings.scale);
    let there = Dataset::open(&settings.data, &OpenOptions::default())?.class_counts().unwrap_or_default();
    let kept = reproduce::scaled(experiment.validation_per_class, settings.scale);
    for split in 1..=experiment.n_splits {
        let wanted = tail_counts(experiment, split, settings.scale);
        let Some(label) = (0..wanted.len()).find(|&label| there[label] < wanted[label] + kept) else { continue };
        let (data, title, n) = (settings.data.display(), &experiment.title, wanted[label] + kept);
        let text = format!(
            "{data}: too few images for {title}: class {label} has {}, {n} are needed; --scale takes a share of every count",
            there[label]
        );
        return Err(UsageError(text).into());
    }
    // As the sets are made: a share of what each class has left.
    let rest = || there.iter().map(|&count| count.saturating_sub(kept));
    let share = |count: usize| reproduce::scaled(count, settings.scale).min(count);
    Ok(Sizes {
        tail: (1..=experiment.n_splits).map(|s| tail_counts(experiment, s, settings.scale).iter().sum()).collect(),
        balanced: each(experiment.balanced_per_class),
        few_shot: each(experiment.few_shot_per_class),
        train: experiment.probe_per_class.map_or_else(|| rest().map(share).sum(), each),
        validation: each(experiment.validation_per_class),
        test: Dataset::open(&settings.data, &test)?.len(),
    })
}
