//! What a user changes of an experiment, and the file that remembers it.

use crate::error::Error;
use sdclr_records::Experiment;
use sdclr_records::names::Protocol;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The file that tells a folder of an experiment.
pub const SETTINGS_FILE: &str = "reproduce.json";

/// What a user may change of an experiment. It is written to `OUT/reproduce.json`; a folder goes on only with the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The experiment's name.
    pub experiment: String,
    /// The data set.
    pub data: PathBuf,
    /// Published splits; absent where they were made.
    pub split_dir: Option<PathBuf>,
    /// Epochs of pre-training instead of the paper's; warm-up and cosine scale with them.
    pub epochs: Option<usize>,
    /// Epochs of the linear probe instead of the paper's 30; few-shot has 10/3 of them.
    pub probe_epochs: Option<usize>,
    /// The seed of pre-training and probes instead of the paper's.
    pub seed: Option<u64>,
    /// The share of every class count that is used, in (0, 1].
    pub scale: f64,
    /// The numbers that everything computes in: `auto`, `f32` or `bf16`.
    pub precision: String,
    /// `KEY=VALUE` changes of the recipe.
    pub assignments: Vec<String>,
}

/// Config keys that the experiment or a flag of its own decides, which `assignments` may not.
const OWN_KEYS: &[&str] = &[
    "method",
    "seed",
    "data.source",
    "data.split",
    "data.root",
    "data.part",
    "data.workers",
    "model.init_from",
    "train.epochs",
    "train.device",
    "train.precision",
    "train.threads",
];

/// So many epochs, for people.
#[must_use]
pub fn epochs(n: usize) -> String {
    format!("{n} epoch{}", if n == 1 { "" } else { "s" })
}

impl Settings {
    /// Checks the scale, and that no assignment is of a key that something else decides.
    ///
    /// # Errors
    /// [`Error::Unfit`] naming it.
    pub fn validate(&self) -> Result<(), Error> {
        if !(self.scale > 0.0 && self.scale <= 1.0) {
            return Err(Error::Unfit(format!("--scale {}: must be above 0 and at most 1", self.scale)));
        }
        let key = |text: &String| text.split_once('=').map_or(text.as_str(), |(key, _)| key).trim().to_owned();
        match self.assignments.iter().map(key).find(|key| OWN_KEYS.contains(&key.as_str())) {
            Some(key) => Err(Error::Unfit(format!(
                "--set {key}: the experiment decides it; --epochs, --seed, --precision, --device, --threads and --workers are flags of their own"
            ))),
            None => Ok(()),
        }
    }

    /// What keeps the result from being the paper's experiment, each as a phrase.
    #[must_use]
    pub fn departures(&self) -> Vec<String> {
        let mut departures = Vec::new();
        departures.extend(self.epochs.map(|n| format!("{} of pre-training", epochs(n))));
        departures.extend(self.probe_epochs.map(|n| format!("{} of the linear probe", epochs(n))));
        departures.extend(self.seed.map(|seed| format!("seed {seed}")));
        if self.scale != 1.0 {
            departures.push(format!("{} of every class count", self.scale));
        }
        departures.extend(self.assignments.iter().cloned());
        departures
    }

    /// Epochs of one of the two probes: fewer for both in the same proportion.
    #[must_use]
    pub fn probe_epochs(&self, experiment: &Experiment, protocol: Protocol) -> usize {
        let (linear, few_shot) = (experiment.linear.epochs, experiment.few_shot.epochs);
        match (self.probe_epochs, protocol) {
            (None, Protocol::FewShot) => few_shot,
            (None, _) => linear,
            (Some(epochs), Protocol::FewShot) => (epochs * few_shot).div_ceil(linear),
            (Some(epochs), _) => epochs,
        }
    }

    /// The settings that `OUT/reproduce.json` holds, `None` where there is no such file.
    ///
    /// # Errors
    /// [`Error::Unfit`] for a file that is not one.
    pub fn stored(out: &Path) -> Result<Option<Self>, Error> {
        let path = out.join(SETTINGS_FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(Error::Unfit(format!("{}: cannot read: {e}", path.display()))),
        };
        serde_json::from_str(&text).map(Some).map_err(|e| {
            Error::Unfit(format!("{}: not the settings of a reproduction ({e}); give another --out", path.display()))
        })
    }

    /// Writes `OUT/reproduce.json`, or checks that the one there is the same.
    ///
    /// # Errors
    /// [`Error::Unfit`] naming the first setting that differs, [`Error::Write`].
    pub fn keep(&self, out: &Path) -> Result<(), Error> {
        if let Some(stored) = Self::stored(out)? {
            // Data and splits may have moved: what they hold is checked where it counts.
            let here = Self { data: self.data.clone(), split_dir: self.split_dir.clone(), ..stored.clone() };
            if stored.split_dir.is_some() != self.split_dir.is_some() {
                let made = if stored.split_dir.is_some() { "with --split-dir" } else { "without --split-dir" };
                return Err(Error::Unfit(format!(
                    "{}: was begun {made}; go on so, or give another --out",
                    out.display()
                )));
            }
            let values = |settings: &Self| serde_json::to_value(settings).unwrap_or_default();
            let (old, new) = (values(&here), values(self));
            let differs = old.as_object().into_iter().flatten().find(|(key, value)| new.get(key) != Some(value));
            if let Some((key, value)) = differs {
                let said = |value: Option<&serde_json::Value>| match value {
                    None | Some(serde_json::Value::Null) => "the paper's".to_owned(),
                    Some(value) => value.to_string(),
                };
                let (old, new) = (said(Some(value)), said(new.get(key)));
                let text = format!("was begun with {key} = {old}, not {new}; give the same, or another --out");
                return Err(Error::Unfit(format!("{}: {text}", out.display())));
            }
            if stored == *self {
                return Ok(());
            }
        }
        let path = out.join(SETTINGS_FILE);
        let failed = |source| Error::Write { path: path.clone(), source };
        std::fs::create_dir_all(out).map_err(failed)?;
        let text = serde_json::to_string_pretty(self).map_err(|e| failed(e.into()))?;
        crate::run_dir::write_atomic(&path, |file| writeln!(file, "{text}")).map_err(failed)
    }
}
