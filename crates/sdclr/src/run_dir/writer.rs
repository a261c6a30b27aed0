//! The one process that trains into a run directory: making the folder, its lock, and the files that grow.

use super::{Existing, LOCK_FILE, RUN_FILES, RUN_FOLDERS, RunDir, RunDirError, write_atomic};
use sdclr_records::{MetricLine, RunConfig};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Keys that may differ when a run is resumed: they change how fast and how often, not what is computed.
/// Bit-identical results still need the same number of threads.
const RESUMABLE_KEYS: &[&str] = &[
    "data.source",
    "data.split",
    "data.workers",
    "train.device",
    "train.threads",
    "train.log_every_steps",
    "train.checkpoint_every_epochs",
    "train.keep_every_epochs",
    "prune.mask_save_every_epochs",
];

/// A run directory that this process alone writes to, until it is dropped.
#[derive(Debug)]
pub struct RunWriter {
    dir: RunDir,
    metrics: File,
    log: File,
    /// Holds the lock; the system releases it when the process ends, however it ends.
    _lock: File,
}

impl RunWriter {
    /// The directory.
    pub fn dir(&self) -> &RunDir {
        &self.dir
    }

    /// Appends one line to `metrics.jsonl`.
    ///
    /// # Errors
    /// [`RunDirError::Write`].
    pub fn append_metric(&mut self, line: &MetricLine) -> Result<(), RunDirError> {
        let path = self.dir.metrics_path();
        let mut text = serde_json::to_string(line).map_err(|e| RunDirError::write(&path, e.into()))?;
        text.push('\n');
        // One write a line: a kill leaves at most the last one half-written.
        self.metrics.write_all(text.as_bytes()).map_err(|e| RunDirError::write(&path, e))
    }

    /// Drops every line of `metrics.jsonl` after a step, and a half-written one: a resumed run writes them again.
    ///
    /// # Errors
    /// [`RunDirError::Read`] or [`RunDirError::Write`].
    pub fn truncate_metrics(&mut self, last_step: u64) -> Result<(), RunDirError> {
        let path = self.dir.metrics_path();
        let bytes = std::fs::read(&path).map_err(|e| RunDirError::read(&path, e))?;
        let kept = |line: &&[u8]| {
            line.ends_with(b"\n")
                && serde_json::from_slice::<MetricLine>(line).is_ok_and(|line| line.step() <= last_step)
        };
        let lines: Vec<&[u8]> = bytes.split_inclusive(|&byte| byte == b'\n').filter(kept).collect();
        write_atomic(&path, |file| lines.iter().try_for_each(|line| file.write_all(line)))
            .map_err(|e| RunDirError::write(&path, e))?;
        self.metrics = append_to(&path)?;
        Ok(())
    }

    /// Makes sure that the lines written so far are on the disk; called before each checkpoint.
    ///
    /// # Errors
    /// [`RunDirError::Write`].
    pub fn sync_metrics(&mut self) -> Result<(), RunDirError> {
        self.metrics.sync_data().map_err(|e| RunDirError::write(&self.dir.metrics_path(), e))
    }

    /// Appends one line to `log.txt`.
    ///
    /// # Errors
    /// [`RunDirError::Write`].
    pub fn log(&mut self, message: &str) -> Result<(), RunDirError> {
        let path = self.dir.root.join("log.txt");
        writeln!(self.log, "{message}").map_err(|e| RunDirError::write(&path, e))
    }

    /// Writes `skipped.csv`: each broken image and why it was skipped.
    ///
    /// # Errors
    /// [`RunDirError::Write`].
    pub fn write_skipped(&self, skipped: &[(String, String)]) -> Result<(), RunDirError> {
        let path = self.dir.root.join("skipped.csv");
        let quote = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let written = write_atomic(&path, |file| {
            writeln!(file, "image,reason")?;
            skipped.iter().try_for_each(|(image, reason)| writeln!(file, "{},{}", quote(image), quote(reason)))
        });
        written.map_err(|e| RunDirError::write(&path, e))
    }
}

/// See [`RunDir::create`].
pub(super) fn create(root: &Path, existing: Existing, config: &RunConfig) -> Result<RunWriter, RunDirError> {
    let dir = RunDir { root: root.to_owned() };
    let occupied = is_occupied(root)?;
    let is_run = dir.config_path().is_file();
    match existing {
        Existing::Refuse if occupied => {
            return Err(RunDirError::NotEmpty { path: root.to_owned() });
        }
        Existing::Overwrite | Existing::Resume if occupied && !is_run => {
            return Err(RunDirError::NotARun { path: root.to_owned() });
        }
        _ => {}
    }
    std::fs::create_dir_all(root).map_err(|e| RunDirError::write(root, e))?;
    let lock = lock(root)?;
    match existing {
        // Looked at again under the lock: another process may have begun a run in between.
        Existing::Refuse if is_occupied(root)? => {
            return Err(RunDirError::NotEmpty { path: root.to_owned() });
        }
        Existing::Overwrite if occupied => delete_run(root)?,
        Existing::Resume if is_run => check_resumable(&dir, config)?,
        _ => {}
    }
    let checkpoints = root.join("checkpoints");
    std::fs::create_dir_all(&checkpoints).map_err(|e| RunDirError::write(&checkpoints, e))?;
    remove_leftovers(&checkpoints)?;
    let path = dir.config_path();
    let text = format!(
        "# Every setting of this run of sdclr {}. Run it again: sdclr pretrain --config config.toml --out NEW\n{}",
        env!("CARGO_PKG_VERSION"),
        config.to_toml()
    );
    write_atomic(&path, |file| file.write_all(text.as_bytes())).map_err(|e| RunDirError::write(&path, e))?;
    let (metrics, log) = (append_to(&dir.metrics_path())?, append_to(&root.join("log.txt"))?);
    Ok(RunWriter { dir, metrics, log, _lock: lock })
}

/// Whether the folder holds anything but a lock left behind.
fn is_occupied(root: &Path) -> Result<bool, RunDirError> {
    match std::fs::read_dir(root) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry.map_err(|e| RunDirError::read(root, e))?;
                if entry.file_name() != LOCK_FILE {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) if e.kind() == ErrorKind::NotADirectory => Err(RunDirError::NotAFolder { path: root.to_owned() }),
        Err(e) => Err(RunDirError::read(root, e)),
    }
}

fn lock(root: &Path) -> Result<File, RunDirError> {
    let path = root.join(LOCK_FILE);
    let file = append_to(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(RunDirError::Locked { path: root.to_owned() }),
        // Some network file systems have no locks; training there is better than not at all.
        Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => Ok(file),
        Err(TryLockError::Error(e)) => Err(RunDirError::write(&path, e)),
    }
}

fn check_resumable(dir: &RunDir, config: &RunConfig) -> Result<(), RunDirError> {
    let differences = dir.config()?.differences(config);
    let fixed = differences.iter().filter(|(key, ..)| !RESUMABLE_KEYS.contains(&key.as_str()));
    let changes: Vec<String> = fixed.map(|(key, old, new)| format!("{key} = {old}, not {new}")).collect();
    if changes.is_empty() {
        return Ok(());
    }
    Err(RunDirError::ConfigChanged { path: dir.root.clone(), change: changes.join(", ") })
}

/// Deletes a run's files, the config last, so that what a kill leaves is still recognised as a run.
fn delete_run(root: &Path) -> Result<(), RunDirError> {
    let missing_is_fine = |path: PathBuf, result: std::io::Result<()>| match result {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(RunDirError::write(&path, e)),
        _ => Ok(()),
    };
    for folder in RUN_FOLDERS {
        let path = root.join(folder);
        let result = std::fs::remove_dir_all(&path);
        missing_is_fine(path, result)?;
    }
    for file in RUN_FILES.iter().rev() {
        let path = root.join(file);
        let result = std::fs::remove_file(&path);
        missing_is_fine(path, result)?;
    }
    Ok(())
}

/// Deletes half-written checkpoints of a process that was killed.
fn remove_leftovers(checkpoints: &Path) -> Result<(), RunDirError> {
    for entry in std::fs::read_dir(checkpoints).map_err(|e| RunDirError::read(checkpoints, e))? {
        let path = entry.map_err(|e| RunDirError::read(checkpoints, e))?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            std::fs::remove_file(&path).map_err(|e| RunDirError::write(&path, e))?;
        }
    }
    Ok(())
}

fn append_to(path: &Path) -> Result<File, RunDirError> {
    OpenOptions::new().create(true).append(true).open(path).map_err(|e| RunDirError::write(path, e))
}
