//! The paper's experiments end to end: which runs and probes there are, which are done, and how each is configured.
//!
//! Source: Jiang et al., ICML 2021, section 4, and the published scripts: per split pre-train, then linear separability, then
//! few-shot. Nothing here trains: a caller asks [`Plan::state`] of each split, arm and phase, and runs what is left with [`crate::pretrain`] and
//! [`crate::probe`].
//! All state is in the run directories, so a plan made again after a stop shows what is left.

mod check;
mod sets;
mod settings;

pub use sets::{Opener, Places, Sets, SplitSets, check_images, located, open, scaled, sets, tail_counts};
pub use settings::{SETTINGS_FILE, Settings, epochs};

use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::metrics::GroupRule;
use crate::run_dir::{CheckpointName, RunDir};
use sdclr_records::experiment::{Arm, Grouping};
use sdclr_records::layers::{Layer, resolve};
use sdclr_records::names::Protocol;
use sdclr_records::results::{ImagesRecord, ProbeData};
use sdclr_records::{Experiment, ProbeConfig, ProbeResult, RunConfig};
use std::path::{Path, PathBuf};

/// A part of an experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Training the backbone.
    Pretrain,
    /// One of the two probes.
    Probe(Protocol),
}

impl Phase {
    /// All, in their order.
    pub const ALL: [Self; 3] = [Self::Pretrain, Self::Probe(Protocol::LinearPaper), Self::Probe(Protocol::FewShot)];

    /// Its name for people.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Pretrain => "pre-training",
            Self::Probe(Protocol::FewShot) => "few-shot",
            Self::Probe(_) => "linear separability",
        }
    }
}

/// How far a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not begun.
    Todo,
    /// Pre-training stands at the end of this epoch.
    Partly {
        /// Epochs finished.
        epoch: usize,
    },
    /// Finished, with these settings.
    Done,
}

/// An experiment with its settings and images, ready to be walked.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The experiment.
    pub experiment: Experiment,
    /// What is changed of it.
    pub settings: Settings,
    /// Its images.
    pub sets: Sets,
    /// The folder that everything goes to.
    pub out: PathBuf,
    /// Flags that cannot change a result: threads, workers, device.
    pub machine: Vec<(String, String)>,
}

impl Plan {
    /// The plan of a folder that an experiment was begun in; `None` for a folder without one, or whose splits are not all there.
    ///
    /// # Errors
    /// Settings that cannot be read.
    pub fn of_folder(out: &Path) -> Result<Option<Self>, Error> {
        let Some(settings) = Settings::stored(out)? else { return Ok(None) };
        let (experiment, out) = (Experiment::named(&settings.experiment)?, out.to_owned());
        let places = Places { data: &settings.data, given: settings.split_dir.as_deref(), made: &out.join("splits") };
        let sets = located(&experiment, &places)?;
        Ok(sets.map(|sets| Self { experiment, settings, sets, out, machine: Vec::new() }))
    }

    /// The run directory of an arm on a split.
    #[must_use]
    pub fn run_path(&self, split: usize, arm: &Arm) -> PathBuf {
        self.out.join(format!("split{split}")).join(&arm.name)
    }

    /// The images that an arm trains on.
    #[must_use]
    pub fn training_images(&self, split: usize, arm: &Arm) -> &ImagesRecord {
        let sets = &self.sets.splits[split - 1];
        if arm.balanced { &sets.balanced } else { &sets.long_tail }
    }

    /// The config of an arm's run; see [`recipe`].
    ///
    /// # Errors
    /// A setting that no config has, or of a wrong value.
    pub fn run_config(&self, split: usize, arm: &Arm) -> Result<RunConfig, Error> {
        let images = self.training_images(split, arm);
        // Only a share of the images may be less than a batch.
        let n_images = if self.settings.scale == 1.0 { usize::MAX >> 1 } else { open(images)?.len() };
        recipe(&self.experiment, &self.settings, arm, images, n_images, &self.machine)
    }

    /// The settings of one of the two probes.
    #[must_use]
    pub fn probe_config(&self, protocol: Protocol, run: &RunConfig) -> ProbeConfig {
        // The published probes have no seed of their own.
        let mut probe = self.experiment.probe(protocol, run.data.image_size, self.settings.seed.unwrap_or(0));
        let epochs = self.settings.probe_epochs(&self.experiment, protocol);
        if epochs != probe.epochs {
            probe.set_epochs(epochs);
        }
        probe
    }

    /// The images that a probe learns from, validates and tests on, and the tail that groups classes.
    #[must_use]
    pub fn probe_data(&self, split: usize, protocol: Protocol) -> ProbeData {
        let sets = &self.sets.splits[split - 1];
        let train = if protocol == Protocol::FewShot { &sets.few_shot } else { &self.sets.train };
        ProbeData {
            train: Some(train.clone()),
            validation: Some(self.sets.validation.clone()),
            test: Some(self.sets.test.clone()),
            // Of the balanced run too: its classes are grouped by the long tail's counts.
            tail: Some(sets.long_tail.clone()),
        }
    }

    /// How classes are grouped.
    #[must_use]
    pub fn group_rule(&self) -> GroupRule {
        match self.experiment.groups {
            Grouping::Thirds => GroupRule::Thirds,
            Grouping::Thresholds => GroupRule::IMAGENET,
        }
    }

    /// How far a phase is.
    ///
    /// # Errors
    /// A run directory that cannot be read, or is of another recipe.
    pub fn state(&self, split: usize, arm: &Arm, phase: Phase) -> Result<State, Error> {
        let Ok(run) = RunDir::open(&self.run_path(split, arm)) else { return Ok(State::Todo) };
        let Some(newest) = run.newest() else { return Ok(State::Todo) };
        let config = self.run_config(split, arm)?;
        run.check_is_of(&config)?;
        let at = Checkpoint::load_state(&newest)?;
        // Where a kept checkpoint stands in for the last one, training brings that back.
        let is_last = newest == run.checkpoint_path(CheckpointName::Last);
        let is_trained = is_last && at.epoch >= config.train.epochs;
        let Phase::Probe(protocol) = phase else {
            return Ok(if is_trained { State::Done } else { State::Partly { epoch: at.epoch } });
        };
        let is_done = is_trained && self.result_of(split, protocol, &run, &config, (at.step, at.epoch))?.is_some();
        Ok(if is_done { State::Done } else { State::Todo })
    }

    /// The result of a probe, if it is there: of the final weights, with these settings, on these images.
    ///
    /// # Errors
    /// A run directory that cannot be read, or is of another recipe.
    pub fn result(&self, split: usize, arm: &Arm, protocol: Protocol) -> Result<Option<ProbeResult>, Error> {
        if self.state(split, arm, Phase::Probe(protocol))? != State::Done {
            return Ok(None);
        }
        let run = RunDir::open(&self.run_path(split, arm))?;
        let at = Checkpoint::load_state(&run.checkpoint_path(CheckpointName::Last))?;
        self.result_of(split, protocol, &run, &self.run_config(split, arm)?, (at.step, at.epoch))
    }

    fn result_of(
        &self,
        split: usize,
        protocol: Protocol,
        run: &RunDir,
        config: &RunConfig,
        at: (u64, usize),
    ) -> Result<Option<ProbeResult>, Error> {
        let (settings, data) = (self.probe_config(protocol, config).settings(), self.probe_data(split, protocol));
        let fits = |name: &str, result: &ProbeResult| {
            let weights = result.weights.as_ref().map(|weights| (weights.step, weights.epoch));
            let is_own = name == protocol.as_str() && weights == Some(at) && result.settings == settings;
            is_own && same_data(&result.data, &data)
        };
        Ok(run.results()?.into_iter().find(|(name, result)| fits(name, result)).map(|(_, result)| result))
    }
}

/// Whether two probes had the same images, wherever those lie: folders may move.
fn same_data(a: &ProbeData, b: &ProbeData) -> bool {
    let parts = |data: &ProbeData| [&data.train, &data.validation, &data.test, &data.tail].map(Clone::clone);
    let end =
        |path: Option<&PathBuf>| path.map(|path| path.iter().rev().take(2).map(ToOwned::to_owned).collect::<Vec<_>>());
    let same = |(a, b): (Option<ImagesRecord>, Option<ImagesRecord>)| match (a, b) {
        (Some(a), Some(b)) => {
            // A list is a source of its own; any other source is the data set.
            let list = |record: &ImagesRecord| end(record.root.as_ref().map(|_| &record.source));
            (a.part, a.per_class) == (b.part, b.per_class)
                && end(a.split.as_ref()) == end(b.split.as_ref())
                && list(&a) == list(&b)
        }
        (a, b) => a.is_none() && b.is_none(),
    };
    parts(a).into_iter().zip(parts(b)).all(same)
}

/// The config of an arm's run. `machine` holds flags that cannot change a result (threads, workers, device).
///
/// # Errors
/// A setting that no config has, or of a wrong value.
pub fn recipe(
    experiment: &Experiment,
    settings: &Settings,
    arm: &Arm,
    images: &ImagesRecord,
    n_images: usize,
    machine: &[(String, String)],
) -> Result<RunConfig, Error> {
    let mut flags = machine.to_vec();
    flags.push(("precision".to_owned(), settings.precision.clone()));
    let mut set = |flag: &str, value: String| flags.push((flag.to_owned(), value));
    let text = |path: &Path| path.to_string_lossy().into_owned();
    set("method", arm.method.to_string());
    set("data", text(&images.source));
    set("part", images.part.to_string());
    if let Some(split) = &images.split {
        set("split", text(split));
    }
    if let Some(root) = &images.root {
        set("data-root", text(root));
    }
    if let Some(epochs) = settings.epochs {
        set("epochs", epochs.to_string());
    }
    if let Some(seed) = settings.seed {
        set("seed", seed.to_string());
    }
    let changed = Layer::from_assignments(&settings.assignments)?;
    let mut config = resolve(&[Layer::preset(&experiment.name)?, changed, Layer::from_flags(&flags)?])?;
    if settings.scale != 1.0 {
        // A share of the images may be less than a batch.
        config.train.batch_size = config.train.batch_size.min(1 << n_images.max(2).ilog2());
    }
    Ok(config)
}

/// What a task costs in forward passes of one image through the backbone: an estimate of its time scales with it.
///
/// `n_train` images are learned from in each of `epochs`, `n_other` are looked at once.
#[must_use]
pub fn forward_passes(phase: Phase, n_train: usize, epochs: usize, n_other: usize) -> f64 {
    match phase {
        // Two views, each forward, and twice as much backward.
        Phase::Pretrain => 6.0 * (n_train * epochs) as f64,
        // The features of validation and test images are computed once.
        Phase::Probe(_) => (n_train * epochs + n_other) as f64,
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
