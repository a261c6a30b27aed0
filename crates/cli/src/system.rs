//! What the machine offers: memory, disk, and the kernels that environment variables may force.

use crate::exit::UsageError;
use sdclr::run_dir::{describe_io, kept_checkpoints};
use sdclr_engine::{Algorithm, Kernels, Level};
use sdclr_records::RunConfig;
use std::path::Path;
use sysinfo::System;

/// Caps the CPU kernels at an instruction set, to try each path: one of [`Level::names`].
pub const LEVEL_VARIABLE: &str = "SDCLR_CPU_LEVEL";

/// Forces how convolutions are computed, to try each path: one of [`Algorithm::names`].
pub const CONVOLUTION_VARIABLE: &str = "SDCLR_CPU_CONVOLUTION";

/// Bytes of memory in all and free, a container's limit included.
pub fn memory() -> (u64, u64) {
    let mut system = System::new();
    system.refresh_memory();
    match system.cgroup_limits() {
        Some(limits) => (limits.total_memory, limits.free_memory),
        None => (system.total_memory(), system.available_memory()),
    }
}

/// What the processor calls itself.
pub fn processor() -> Option<String> {
    let mut system = System::new();
    system.refresh_cpu_all();
    system.cpus().first().map(|cpu| cpu.brand().trim().to_owned()).filter(|name| !name.is_empty())
}

/// Free bytes on the file system that holds `path`, if that can be told. Parts of the path need not exist yet.
pub fn disk_free(path: &Path) -> Option<u64> {
    free_at(&std::path::absolute(path).ok()?)
}

#[cfg(not(any(not(unix), target_vendor = "apple")))]
fn free_at(path: &Path) -> Option<u64> {
    // Links are followed: what they lead to may be elsewhere.
    let found = path.ancestors().find_map(|part| rustix::fs::statvfs(part).ok())?;
    // Such as /proc hold no files of ours, and have no size.
    (found.f_blocks > 0).then_some(found.f_bavail.saturating_mul(found.f_frsize))
}

// Apple counts blocks in 32 bits.
#[cfg(any(not(unix), target_vendor = "apple"))]
fn free_at(path: &Path) -> Option<u64> {
    let disks = sysinfo::Disks::new_with_refreshed_list();
    let holding = disks.iter().filter(|disk| path.starts_with(disk.mount_point()));
    let nearest = holding.max_by_key(|disk| disk.mount_point().as_os_str().len())?;
    Some(nearest.available_space())
}

/// A number of bytes for people.
pub fn size(n_bytes: u64) -> String {
    match n_bytes {
        0..1_000_000 => format!("{:.1} kB", n_bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n_bytes as f64 / 1e6),
        _ => format!("{:.1} GB", n_bytes as f64 / 1e9),
    }
}

/// Checks that the disk has room for `needed` bytes of `what` (with its verb) at `path`.
///
/// # Errors
/// If it has not, with the advice.
pub fn check_room(path: &Path, needed: u64, what: &str, advice: &str) -> anyhow::Result<()> {
    match disk_free(path) {
        Some(free) if free < needed => anyhow::bail!(
            "{}: {}: {what} {} and {} are free; {advice}",
            path.display(),
            describe_io(&std::io::ErrorKind::StorageFull.into()),
            size(needed),
            size(free)
        ),
        _ => Ok(()),
    }
}

/// The kernels that [`LEVEL_VARIABLE`] and [`CONVOLUTION_VARIABLE`] ask for.
///
/// # Errors
/// An unknown name.
pub fn kernels() -> anyhow::Result<Kernels> {
    let level = named(LEVEL_VARIABLE, Level::from_name, Level::names())?;
    let algorithm = named(CONVOLUTION_VARIABLE, Algorithm::from_name, Algorithm::names())?.unwrap_or_default();
    Ok(Kernels { level, algorithm })
}

/// What a variable names, if it is set.
fn named<T>(
    variable: &str,
    from_name: impl Fn(&str) -> Option<T>,
    names: impl Iterator<Item = &'static str>,
) -> anyhow::Result<Option<T>> {
    let Ok(name) = std::env::var(variable) else { return Ok(None) };
    match from_name(&name) {
        Some(value) => Ok(Some(value)),
        None => {
            let known: Vec<_> = names.collect();
            Err(UsageError(format!("{variable}={name}: known are {}", known.join(", "))).into())
        }
    }
}

/// Checks that the disk has room for a run's checkpoints: the last one beside the one that replaces it, and those kept. Those that are there
/// need none: a resumed run keeps them, and one that replaces a run deletes them before it writes any.
///
/// # Errors
/// If it has not.
pub fn check_disk(config: &RunConfig, out: &Path) -> anyhow::Result<()> {
    let kept = config.train.epochs.checked_div(config.train.keep_every_epochs).unwrap_or(0);
    let folder = out.join("checkpoints");
    let there = kept_checkpoints(&folder).len().min(kept) + usize::from(folder.join("last.safetensors").is_file());
    let needed = sdclr::backend::checkpoint_bytes(config)? * (2 + kept - there) as u64;
    check_room(&folder, needed, "the checkpoints need", "use another disk or keep fewer (--keep-every)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_is_that_of_the_nearest_folder_that_is_there() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let near = |path: &Path, other: &Path| {
            // Other programs write meanwhile.
            let [a, b] = [path, other].map(|path| disk_free(path).expect("told") as f64);
            (a - b).abs() < 0.1 * a.max(b) + 1e9
        };
        assert!(near(&dir.path().join("not/yet/there"), dir.path()));
        if cfg!(target_os = "linux") && Path::new("/dev/shm").is_dir() {
            assert_eq!(disk_free(Path::new("/proc/run")), None, "it has no size");
            let link = dir.path().join("link");
            #[cfg(unix)]
            std::os::unix::fs::symlink("/dev/shm", &link).expect("links");
            assert!(near(&link.join("run"), Path::new("/dev/shm")));
        }
    }
}
