//! Writing a file so that its name always shows a whole one.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes a file beside its place, flushes it to the disk, and renames it into place.
///
/// At any moment, a kill or a full disk included, the name shows the old content or the new. After an error the
/// half-written file is gone.
///
/// # Errors
/// What the system or `write` says; the old file is then untouched.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let temporary = temporary_beside(path)?;
    let written = write_through(&temporary, write).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // The first error is the one worth reporting; the file may never have been made.
        let _ = std::fs::remove_file(&temporary);
        return written;
    }
    sync_folder(path)
}

/// An I/O error in words, with what to do where that is known.
pub fn describe_io(error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the disk is full; free some space there, or choose a folder on another disk"
        }
        io::ErrorKind::PermissionDenied => "no permission; choose a folder that you may write to",
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only; choose a folder on another one",
        io::ErrorKind::NotADirectory => "a part of this path is a file, not a folder",
        _ => return error.to_string(),
    };
    advice.to_owned()
}

fn write_through(temporary: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut buffered = BufWriter::new(File::create(temporary)?);
    write(&mut buffered)?;
    buffered.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// `.NAME.PID.tmp` in the same folder, hence on the same file system.
fn temporary_beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.tmp", std::process::id()));
    Ok(path.with_file_name(hidden))
}

/// Makes the rename itself survive a power cut.
fn sync_folder(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if cfg!(unix) { File::open(parent)?.sync_all() } else { Ok(()) }
}
