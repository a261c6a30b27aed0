//! The one process that trains into a run directory: the files that grow.

use super::claim::delete_run;
use super::{LOCK_FILE, RunDir, RunDirError, write_atomic};
use sdclr_records::MetricLine;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// A run directory that this process alone writes to, until it is dropped.
#[derive(Debug)]
pub struct RunWriter {
    pub(super) dir: RunDir,
    pub(super) metrics: File,
    pub(super) log: File,
    /// Broken images, earlier sittings' included: why each was skipped, by name.
    pub(super) skipped: BTreeMap<String, String>,
    /// Whether some of them are not written yet.
    pub(super) has_unwritten_skipped: bool,
    /// Folders that were made for it, outermost first.
    pub(super) made: Vec<PathBuf>,
    /// Holds the lock; the system releases it when the process ends, however it ends.
    pub(super) _lock: Option<File>,
}

impl RunWriter {
    /// The directory.
    pub fn dir(&self) -> &RunDir {
        &self.dir
    }

    /// Deletes what was written, as far as that can be done, for a run that comes to nothing.
    pub fn discard(self) {
        let _ = delete_run(&self.dir.root);
        let _ = std::fs::remove_file(self.dir.root.join(LOCK_FILE));
        self.made.iter().rev().for_each(|folder| drop(std::fs::remove_dir(folder)));
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

    /// Number of broken images noted so far, earlier sittings' included.
    pub fn n_skipped(&self) -> usize {
        self.skipped.len()
    }

    /// Notes broken images, each with why it was skipped; [`Self::write_skipped`] writes them.
    pub fn note_skipped(&mut self, skipped: impl IntoIterator<Item = (String, String)>) {
        // One line an image, whatever its name or the decoder's words.
        let one_line = |text: String| text.replace(['\n', '\r'], " ");
        self.has_unwritten_skipped = true;
        self.skipped.extend(skipped.into_iter().map(|(name, reason)| (one_line(name), one_line(reason))));
    }

    /// Writes `skipped.csv`: each broken image and why it was skipped. Nothing is written where nothing was noted since.
    ///
    /// # Errors
    /// [`RunDirError::Write`].
    pub fn write_skipped(&mut self) -> Result<(), RunDirError> {
        if !self.has_unwritten_skipped {
            return Ok(());
        }
        let path = self.dir.root.join("skipped.csv");
        let quote = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let written = write_atomic(&path, |file| {
            writeln!(file, "image,reason")?;
            self.skipped.iter().try_for_each(|(image, reason)| writeln!(file, "{},{}", quote(image), quote(reason)))
        });
        written.map_err(|e| RunDirError::write(&path, e))?;
        self.has_unwritten_skipped = false;
        Ok(())
    }
}

/// The rows of `skipped.csv` by image name; none if there is no such file.
pub(super) fn read_skipped(dir: &RunDir) -> Result<BTreeMap<String, String>, RunDirError> {
    let path = dir.root.join("skipped.csv");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(e) => return Err(RunDirError::read(&path, e)),
    };
    // Written by `write_skipped`: two quoted fields a line.
    let row = |line: &str| {
        let (name, reason) = line.strip_prefix('"')?.strip_suffix('"')?.split_once("\",\"")?;
        Some((name.replace("\"\"", "\""), reason.replace("\"\"", "\"")))
    };
    Ok(text.lines().skip(1).filter_map(row).collect())
}

pub(super) fn append_to(path: &Path) -> Result<File, RunDirError> {
    OpenOptions::new().create(true).append(true).open(path).map_err(|e| RunDirError::write(path, e))
}
