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

/// Writes several files that belong together: all of them beside their places first, so that a full disk leaves none.
///
/// # Errors
/// The path at fault and what the system says. Once the last file is written, only a rename can fail.
pub fn write_together(files: &[(&Path, &[u8])]) -> Result<(), (PathBuf, io::Error)> {
    let mut temporaries = Vec::new();
    let mut write = || -> Result<(), (PathBuf, io::Error)> {
        for (path, bytes) in files {
            let failed = |e| (path.to_path_buf(), e);
            temporaries.push(temporary_beside(path).map_err(failed)?);
            let temporary = &temporaries[temporaries.len() - 1];
            write_through(temporary, |file| file.write_all(bytes)).map_err(failed)?;
        }
        for ((path, _), temporary) in files.iter().zip(&temporaries) {
            let renamed = std::fs::rename(temporary, path).and_then(|()| sync_folder(path));
            renamed.map_err(|e| (path.to_path_buf(), e))?;
        }
        Ok(())
    };
    let written = write();
    if written.is_err() {
        // The first error is the one worth reporting; some of the files may never have been made.
        temporaries.iter().for_each(|temporary| drop(std::fs::remove_file(temporary)));
    }
    written
}

/// An I/O error in words, with what to do where that is known.
pub fn describe_io(error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the disk is full; free some space there, or choose a folder on another disk"
        }
        io::ErrorKind::FileTooLarge => {
            "the file is larger than the file system or a limit (ulimit -f) allows; raise the limit, or choose a folder on another disk"
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
