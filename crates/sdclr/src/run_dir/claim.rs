//! Taking a run directory in two steps: a claim looks and locks, and only [`Claim::begin`] changes what is there.
//!
//! Between the two everything else that can fail is prepared. A claim that is dropped leaves the folder as it found it.

use super::writer::{append_to, read_skipped};
use super::{CONFIG_HEADER, Existing, LOCK_FILE, RUN_FILES, RunDir, RunDirError, RunWriter, numbered, write_atomic};
use crate::probe::ProbeRecord;
use sdclr_records::names::Precision;
use sdclr_records::{ProbeResult, RunConfig};
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Keys that may differ when a run is resumed: they change how fast and how often, not what is computed.
/// Bit-identical results still need the same number of threads. Source and split may have moved: the checkpoint knows
/// whether its images are the same.
const RESUMABLE_KEYS: &[&str] = &[
    "data.source",
    "data.split",
    "data.root",
    "data.workers",
    "data.cache_mib",
    "data.strict",
    "data.max_broken",
    "train.device",
    "train.threads",
    "train.log_every_steps",
    "train.checkpoint_every_epochs",
    "train.keep_every_epochs",
    "prune.mask_save_every_epochs",
];

/// A run directory that this process alone may begin to write to.
#[derive(Debug)]
pub struct Claim {
    dir: RunDir,
    existing: Existing,
    /// Whether there is a run already.
    occupied: bool,
    /// Folders that the claim made, outermost first.
    made: Vec<PathBuf>,
    /// Holds the lock; the system releases it when the process ends, however it ends. `None` once a writer has it.
    lock: Option<File>,
}

impl Claim {
    pub(super) fn new(root: &Path, existing: Existing, config: &RunConfig) -> Result<Self, RunDirError> {
        config.validate()?;
        let mut claim =
            Self { dir: RunDir { root: root.to_owned() }, existing, occupied: false, made: Vec::new(), lock: None };
        claim.check()?;
        claim.made = missing_folders(root);
        std::fs::create_dir_all(root).map_err(|e| RunDirError::write(root, e))?;
        claim.lock = Some(lock(root)?);
        // Looked at again under the lock: another process may have begun a run in between.
        claim.check()?;
        if existing == Existing::Resume && claim.occupied {
            check_resumable(&claim.dir, config)?;
        }
        Ok(claim)
    }

    /// Whether a run that is there is to go on; there may be none yet.
    pub fn resumes(&self) -> bool {
        self.existing == Existing::Resume
    }

    /// Whether a run that is there is to be deleted.
    pub fn replaces(&self) -> bool {
        self.existing == Existing::Overwrite && self.occupied
    }

    /// The directory.
    pub fn dir(&self) -> &RunDir {
        &self.dir
    }

    /// The config of the run that is to go on; `None` where a run begins.
    ///
    /// # Errors
    /// [`RunDirError::Config`].
    pub fn stored_config(&self) -> Result<Option<RunConfig>, RunDirError> {
        if self.resumes() && self.occupied { self.dir.config().map(Some) } else { Ok(None) }
    }

    /// Deletes what is to be replaced, writes the config and opens the files that grow.
    ///
    /// # Errors
    /// [`RunDirError::Write`]; a folder that was empty is then empty again.
    pub fn begin(mut self, config: &RunConfig) -> Result<RunWriter, RunDirError> {
        let root = self.dir.root.clone();
        if self.replaces() {
            delete_run(&root)?;
        }
        let writer = self.write(config);
        if writer.is_err() && !self.occupied {
            // The first error is the one worth reporting.
            let _ = delete_run(&root);
        }
        writer
    }

    fn write(&mut self, config: &RunConfig) -> Result<RunWriter, RunDirError> {
        let (root, checkpoints) = (self.dir.root.as_path(), self.dir.root.join("checkpoints"));
        sweep(root, Duration::ZERO)?;
        sweep(&checkpoints, Duration::ZERO)?;
        // A probe may be writing a result at this moment, which takes milliseconds.
        sweep(&root.join("results"), Duration::from_secs(60))?;
        // First of all, so that a kill at any later moment leaves what is recognised as a run.
        if self.stored_config()?.as_ref() != Some(config) {
            self.write_config(config)?;
        }
        std::fs::create_dir_all(&checkpoints).map_err(|e| RunDirError::write(&checkpoints, e))?;
        let skipped = read_skipped(&self.dir)?;
        let (metrics, log) = (append_to(&self.dir.metrics_path())?, append_to(&root.join("log.txt"))?);
        Ok(RunWriter {
            dir: self.dir.clone(),
            metrics,
            log,
            skipped,
            has_unwritten_skipped: false,
            made: std::mem::take(&mut self.made),
            _lock: self.lock.take(),
        })
    }

    fn write_config(&self, config: &RunConfig) -> Result<(), RunDirError> {
        let path = self.dir.config_path();
        let use_it = if config.import.is_some() {
            "An imported model: nothing was trained here, and no value but the model's and the image size is used. \
             Train on: sdclr pretrain --init-from RUN --data SRC --out NEW"
        } else {
            "Run it again: sdclr pretrain --config config.toml --out NEW"
        };
        let text = format!("{CONFIG_HEADER} {}. {use_it}\n{}", env!("CARGO_PKG_VERSION"), config.to_toml());
        write_atomic(&path, |file| file.write_all(text.as_bytes())).map_err(|e| RunDirError::write(&path, e))
    }

    fn check(&mut self) -> Result<(), RunDirError> {
        let path = &self.dir.root;
        self.occupied = is_occupied(path)?;
        match self.existing {
            Existing::Refuse if self.occupied => Err(RunDirError::NotEmpty { path: path.clone() }),
            Existing::Overwrite | Existing::Resume if self.occupied && !self.dir.config_path().is_file() => {
                Err(RunDirError::Foreign { path: path.clone() })
            }
            Existing::Overwrite if self.occupied => check_is_run(&self.dir),
            _ => Ok(()),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Nothing was begun, so nothing but the lock and empty folders is to be taken away; what is in use stays.
        if self.lock.is_some() && !self.occupied {
            let _ = std::fs::remove_file(self.dir.root.join(LOCK_FILE));
        }
        self.made.iter().rev().for_each(|folder| drop(std::fs::remove_dir(folder)));
    }
}

/// Whether the folder holds anything but what a process leaves that was killed before it began.
fn is_occupied(root: &Path) -> Result<bool, RunDirError> {
    let entries = match std::fs::read_dir(root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        Err(e) if e.kind() == ErrorKind::NotADirectory => {
            return Err(RunDirError::NotAFolder { path: root.to_owned() });
        }
        Err(e) => return Err(RunDirError::read(root, e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| RunDirError::read(root, e))?;
        let name = entry.file_name();
        let is_empty_folder = || std::fs::read_dir(entry.path()).is_ok_and(|mut inside| inside.next().is_none());
        let harmless = name == LOCK_FILE || is_leftover(&entry.path()) || (name == "checkpoints" && is_empty_folder());
        if !harmless {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The folders that do not exist yet of a path, outermost first.
fn missing_folders(root: &Path) -> Vec<PathBuf> {
    let parts = root.ancestors().filter(|path| !path.as_os_str().is_empty());
    let mut missing: Vec<PathBuf> = parts.take_while(|path| !path.exists()).map(Path::to_owned).collect();
    missing.reverse();
    missing
}

fn lock(root: &Path) -> Result<File, RunDirError> {
    let path = root.join(LOCK_FILE);
    let file = append_to(&path)?;
    match file.try_lock() {
        // A claim that was given up takes its lock file away: this one may be of a name that is gone.
        Ok(()) if path.exists() => Ok(file),
        Ok(()) | Err(TryLockError::WouldBlock) => Err(RunDirError::Locked { path: root.to_owned() }),
        // Some network file systems have no locks; training there is better than not at all.
        Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => Ok(file),
        Err(TryLockError::Error(e)) => Err(RunDirError::write(&path, e)),
    }
}

/// Checks that a run is of this config but for values that cannot change its result.
///
/// # Errors
/// [`RunDirError::ConfigChanged`] naming each value that differs.
pub(super) fn check_resumable(dir: &RunDir, config: &RunConfig) -> Result<(), RunDirError> {
    let stored = dir.config()?;
    let mut config = config.clone();
    if config.train.precision == Precision::Auto {
        // The run goes on in the numbers that it began in.
        config.train.precision = stored.train.precision;
    }
    let differences = stored.differences(&config);
    let fixed = differences.iter().filter(|(key, ..)| !RESUMABLE_KEYS.contains(&key.as_str()));
    let changes: Vec<String> = fixed.map(|(key, old, new)| format!("{key} = {old}, not {new}")).collect();
    if changes.is_empty() {
        return Ok(());
    }
    Err(RunDirError::ConfigChanged { path: dir.root.clone(), change: changes.join(", ") })
}

/// Checks that the config is one that a run wrote, so that replacing the run destroys nobody else's files.
fn check_is_run(dir: &RunDir) -> Result<(), RunDirError> {
    let foreign = |why: String| RunDirError::ForeignConfig { path: dir.root.clone(), why };
    let path = dir.config_path();
    let text = std::fs::read_to_string(&path).map_err(|e| foreign(format!("its config.toml cannot be read: {e}")))?;
    if !is_ours(dir, &text) {
        return Err(foreign("its config.toml was not written by a run".to_owned()));
    }
    dir.config().map(drop).map_err(|e| foreign(e.to_string()))
}

/// Whether `config.toml` with this text is one that a run wrote. It may have been edited, then the run's metrics tell.
pub(super) fn is_ours(dir: &RunDir, config: &str) -> bool {
    config.starts_with(CONFIG_HEADER) || dir.metrics_path().is_file()
}

/// Deletes the files that a run writes, the config last, so that what a kill leaves is still recognised as a run.
/// Whatever else lies among them stays, and the folder that it lies in.
pub(super) fn delete_run(root: &Path) -> Result<(), RunDirError> {
    delete_matching(&root.join("checkpoints"), is_checkpoint)?;
    delete_matching(&root.join("results"), is_result)?;
    delete_matching(&root.join("probes"), |path| ProbeRecord::load(path).is_ok())?;
    for file in RUN_FILES.iter().rev() {
        delete_file(&root.join(file))?;
    }
    Ok(())
}

/// Deletes the files of a folder that are a run's, and the folder if nothing is left.
fn delete_matching(folder: &Path, is_ours: fn(&Path) -> bool) -> Result<(), RunDirError> {
    let entries = match std::fs::read_dir(folder) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        entries => entries.map_err(|e| RunDirError::read(folder, e))?,
    };
    for entry in entries {
        let path = entry.map_err(|e| RunDirError::read(folder, e))?.path();
        if is_ours(&path) || is_leftover(&path) {
            delete_file(&path)?;
        }
    }
    // A folder that is not empty holds somebody else's files.
    let _ = std::fs::remove_dir(folder);
    Ok(())
}

fn delete_file(path: &Path) -> Result<(), RunDirError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(RunDirError::write(path, e)),
        _ => Ok(()),
    }
}

/// Whether a file is named as a run names its checkpoints: `last`, `epoch-N` or `mask-N`.
fn is_checkpoint(path: &Path) -> bool {
    let is_last = path.file_name().is_some_and(|name| name == "last.safetensors");
    is_last || ["epoch-", "mask-"].into_iter().any(|prefix| numbered(path, prefix).is_some())
}

/// Whether a file holds a probe's result.
fn is_result(path: &Path) -> bool {
    let read = || serde_json::from_str::<ProbeResult>(&std::fs::read_to_string(path).ok()?).ok();
    path.extension().is_some_and(|extension| extension == "json") && read().is_some()
}

/// Deletes the half-written files of processes that were killed, those at least this old.
fn sweep(folder: &Path, min_age: Duration) -> Result<(), RunDirError> {
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|e| RunDirError::read(folder, e))?,
    };
    for entry in entries {
        let path = entry.map_err(|e| RunDirError::read(folder, e))?.path();
        let age = || path.metadata().ok()?.modified().ok()?.elapsed().ok();
        if is_leftover(&path) && (min_age.is_zero() || age().is_some_and(|age| age >= min_age)) {
            std::fs::remove_file(&path).map_err(|e| RunDirError::write(&path, e))?;
        }
    }
    Ok(())
}

/// Whether a file is named as [`write_atomic`] names what it has not finished: `.NAME.PID.tmp`.
fn is_leftover(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let pid = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp")).and_then(|name| name.rsplit_once('.'));
    pid.is_some_and(|(_, pid)| pid.parse::<u32>().is_ok())
}
