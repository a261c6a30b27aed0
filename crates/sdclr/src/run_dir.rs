//! The run directory: one place for everything a run writes, each file whole at any moment, one writer at a time.
//!
//! `config.toml`, `metrics.jsonl`, `checkpoints/{last,epoch-N,mask-N}.safetensors`, `results/NAME.json`,
//! `probes/NAME.safetensors`, `log.txt`, `skipped.csv`. Files other than the appended ones are written beside their place and
//! renamed into it.

mod atomic;
mod claim;
mod error;
mod writer;

pub use atomic::{describe_io, write_atomic, write_together};
pub use claim::Claim;
pub use error::RunDirError;
pub use writer::RunWriter;

use sdclr_records::layers::Layer;
use sdclr_records::{MetricLine, ProbeResult, RunConfig};
use std::path::{Path, PathBuf};

/// What a run directory holds beside its checkpoints and results; overwriting deletes nothing else.
const RUN_FILES: &[&str] = &["config.toml", "metrics.jsonl", "log.txt", "skipped.csv", "report.html"];
const LOCK_FILE: &str = ".lock";

/// What to do about a run that is already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Refuse anything but a missing or empty folder.
    Refuse,
    /// Delete the run there, and only a run, once the new config is known to be good.
    Overwrite,
    /// Go on from its [newest checkpoint](RunDir::newest); begin where there is nothing.
    Resume,
}

/// How the config begins that a run writes: it tells a run from a folder whose owner wrote a config by hand.
const CONFIG_HEADER: &str = "# Every setting of this run of sdclr";

/// The checkpoints of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointName {
    /// The last that was written.
    Last,
    /// The one kept at the end of an epoch.
    Epoch(usize),
    /// The masks of an epoch.
    Mask(usize),
}

/// A run directory, to read from and to add results to.
#[derive(Debug, Clone)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// Opens an existing run.
    ///
    /// # Errors
    /// [`RunDirError::NotARun`] if there is no `config.toml`.
    pub fn open(root: &Path) -> Result<Self, RunDirError> {
        let run = Self { root: root.to_owned() };
        if run.config_path().is_file() { Ok(run) } else { Err(RunDirError::NotARun { path: root.to_owned() }) }
    }

    /// The runs that lie directly in a folder, by name, damaged ones among them; none of a folder that cannot be read.
    #[must_use]
    pub fn inside(folder: &Path) -> Vec<Self> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut runs: Vec<Self> =
            entries.map(|entry| Self { root: entry.path() }).filter(Self::has_config_of_a_run).collect();
        runs.sort_by(|a, b| a.root.cmp(&b.root));
        runs
    }

    /// Whether a run wrote the folder's `config.toml`; somebody else's may have one, too.
    #[must_use]
    pub fn has_config_of_a_run(&self) -> bool {
        std::fs::read_to_string(self.config_path()).is_ok_and(|text| claim::is_ours(self, &text))
    }

    /// Checks that a run may begin or go on here and keeps other writers out, changing nothing else.
    ///
    /// With [`Existing::Resume`] the config must match the stored one but for values that cannot change the result
    /// (threads, workers, device, intervals), and the source's path; the new ones are stored by [`Claim::begin`].
    ///
    /// # Errors
    /// [`RunDirError`]: an invalid config, a folder that is not empty or not a run, a second writer, a changed config,
    /// no permission.
    pub fn claim(root: &Path, existing: Existing, config: &RunConfig) -> Result<Claim, RunDirError> {
        Claim::new(root, existing, config)
    }

    /// [`Self::claim`] and [`Claim::begin`] in one, for callers that have nothing left to prepare.
    ///
    /// # Errors
    /// Those of both.
    pub fn create(root: &Path, existing: Existing, config: &RunConfig) -> Result<RunWriter, RunDirError> {
        Self::claim(root, existing, config)?.begin(config)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `config.toml`.
    pub fn config_path(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// `metrics.jsonl`.
    pub fn metrics_path(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// The file of a checkpoint, whether it exists or not.
    pub fn checkpoint_path(&self, name: CheckpointName) -> PathBuf {
        let name = match name {
            CheckpointName::Last => "last".to_owned(),
            CheckpointName::Epoch(epoch) => format!("epoch-{epoch}"),
            CheckpointName::Mask(epoch) => format!("mask-{epoch}"),
        };
        self.root.join("checkpoints").join(name + ".safetensors")
    }

    /// The checkpoint from which a run resumes: the last one, or the newest that was kept where that is lost.
    pub fn newest(&self) -> Option<PathBuf> {
        let last = self.checkpoint_path(CheckpointName::Last);
        if last.is_file() { Some(last) } else { kept_checkpoints(&self.root.join("checkpoints")).pop() }
    }

    /// The config that the run was started with.
    ///
    /// # Errors
    /// [`RunDirError::Config`] for a file that cannot be read or run.
    pub fn config(&self) -> Result<RunConfig, RunDirError> {
        let layer = Layer::from_file(&self.config_path())?;
        Ok(sdclr_records::layers::resolve(&[layer])?)
    }

    /// Checks that this run is of a config, but for values that cannot change its result, such as threads, and paths.
    ///
    /// # Errors
    /// [`RunDirError::ConfigChanged`] naming each value that differs, [`RunDirError::Config`].
    pub fn check_is_of(&self, config: &RunConfig) -> Result<(), RunDirError> {
        claim::check_resumable(self, config)
    }

    /// Checks that a name can be a result's: it becomes a file name in `results/`.
    ///
    /// # Errors
    /// [`RunDirError::BadName`].
    pub fn check_result_name(name: &str) -> Result<(), RunDirError> {
        let bad = name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0']);
        if bad { Err(RunDirError::BadName { name: name.to_owned() }) } else { Ok(()) }
    }

    /// Writes `results/NAME.json`, replacing an earlier one.
    ///
    /// # Errors
    /// [`RunDirError::Write`] or [`RunDirError::BadName`].
    pub fn write_result(&self, name: &str, result: &ProbeResult) -> Result<PathBuf, RunDirError> {
        Self::check_result_name(name)?;
        let folder = self.root.join("results");
        std::fs::create_dir_all(&folder).map_err(|e| RunDirError::write(&folder, e))?;
        let path = folder.join(format!("{name}.json"));
        let text = serde_json::to_string_pretty(result).map_err(|e| RunDirError::write(&path, e.into()))?;
        write_atomic(&path, |file| writeln!(file, "{text}")).map_err(|e| RunDirError::write(&path, e))?;
        Ok(path)
    }

    /// How many epochs the metrics tell of: none without metrics.
    pub fn n_epochs(&self) -> usize {
        let text = std::fs::read_to_string(self.metrics_path()).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<MetricLine>(line).ok());
        lines.filter(|line| matches!(line, MetricLine::Epoch(_))).count()
    }

    /// The file of a stored probe, whether it exists or not.
    pub fn probe_path(&self, name: &str) -> PathBuf {
        self.root.join("probes").join(format!("{name}.safetensors"))
    }

    /// The names of the stored probes, sorted.
    pub fn probe_names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.join("probes")).into_iter().flatten().flatten();
        let name =
            |entry: std::fs::DirEntry| Some(entry.file_name().to_str()?.strip_suffix(".safetensors")?.to_owned());
        let mut names: Vec<String> = entries.filter_map(name).filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    }

    /// Every result, by name, sorted.
    ///
    /// # Errors
    /// [`RunDirError::Read`] or [`RunDirError::BadRecord`].
    pub fn results(&self) -> Result<Vec<(String, ProbeResult)>, RunDirError> {
        let folder = self.root.join("results");
        let mut results = Vec::new();
        if !folder.is_dir() {
            return Ok(results);
        }
        for entry in std::fs::read_dir(&folder).map_err(|e| RunDirError::read(&folder, e))? {
            let path = entry.map_err(|e| RunDirError::read(&folder, e))?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".json")) else {
                continue;
            };
            let text = std::fs::read_to_string(&path).map_err(|e| RunDirError::read(&path, e))?;
            let result = serde_json::from_str(&text)
                .map_err(|e| RunDirError::BadRecord { path: path.clone(), message: e.to_string() })?;
            results.push((name.to_owned(), result));
        }
        results.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(results)
    }
}

/// The checkpoints of a folder that were kept, as `epoch-N`, in their order.
pub fn kept_checkpoints(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let kept = entries.filter_map(|path| Some((numbered(&path, "epoch-")?, path))).filter(|(_, path)| path.is_file());
    let mut kept: Vec<(usize, PathBuf)> = kept.collect();
    kept.sort();
    kept.into_iter().map(|(_, path)| path).collect()
}

/// The N of a checkpoint's file `PREFIX-N`.
fn numbered(path: &Path, prefix: &str) -> Option<usize> {
    let number = path.file_name()?.to_str()?.strip_suffix(".safetensors")?.strip_prefix(prefix)?;
    number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse().ok()).flatten()
}

#[cfg(test)]
mod tests;
