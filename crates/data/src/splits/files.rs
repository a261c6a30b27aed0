//! Splits as files: `.npy` index arrays and `.txt` lists of paths, checked against the data set they select from.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use super::npy;
use crate::error::DataError;
use crate::source::list::{self, List};
use crate::source::paths::Paths;

/// Reads a one-dimensional integer `.npy` file of indices into a data set of `n_images` images.
///
/// # Errors
/// If the file is no such array, is empty, or has an index that is negative, past the end, or there twice.
pub fn read_indices(path: &Path, description: &str, n_images: usize) -> Result<Vec<usize>, DataError> {
    let bytes = std::fs::read(path).map_err(|source| DataError::read(path, source))?;
    let values = npy::parse(&bytes).map_err(|problem| DataError::split(path, problem))?;
    if values.is_empty() {
        return Err(DataError::split(path, "the array is empty; a split selects at least one image"));
    }
    let mut first_position = vec![None; n_images];
    let mut indices = Vec::with_capacity(values.len());
    for (position, value) in values.into_iter().enumerate() {
        let Some(index) = usize::try_from(value).ok().filter(|index| *index < n_images) else {
            let problem = if value < 0 {
                format!("index {value} at position {position} is negative; indices count from 0")
            } else {
                format!(
                    "index {value} at position {position} is past the end of {description} ({n_images} images); is this \
                     a split for another dataset?"
                )
            };
            return Err(DataError::split(path, problem));
        };
        if let Some(first) = first_position[index].replace(position) {
            let problem = format!("index {index} is there twice, at positions {first} and {position}; remove one");
            return Err(DataError::split(path, problem));
        }
        indices.push(index);
    }
    Ok(indices)
}

/// Reads a `.txt` list and finds its paths among the names of a data set: positions, and labels if the list has them.
///
/// A line may have more leading folders than the names have: `train/cat/1.png` finds `cat/1.png`.
///
/// # Errors
/// If the file is no list, or a path is unknown or there twice.
pub fn read_list(path: &Path, description: &str, names: &Paths) -> Result<(Vec<usize>, Option<Vec<u32>>), DataError> {
    let List { paths, labels, lines } = list::read(path)?;
    let by_name: HashMap<&str, usize> = names.names().zip(0..).collect();
    // 0 stands for no line.
    let mut first_line = vec![0; names.len()];
    let mut positions = Vec::with_capacity(lines.len());
    for (name, &line) in paths.names().zip(&lines) {
        let Some(position) = find(&by_name, name) else {
            let n = by_name.len();
            let problem = format!(
                "line {line}: {name} is not among the {n} images of this {description}; is this a split for another \
                 dataset, or relative to another folder?"
            );
            return Err(DataError::split(path, problem));
        };
        let first = std::mem::replace(&mut first_line[position], line);
        if first > 0 {
            let problem = format!("{name} is there twice, on lines {first} and {line}; remove one");
            return Err(DataError::split(path, problem));
        }
        positions.push(position);
    }
    Ok((positions, labels))
}

/// The position of the name that a path ends with: the path itself, else without its leading folders.
fn find(by_name: &HashMap<&str, usize>, path: &str) -> Option<usize> {
    let path = path.trim_start_matches("./");
    let starts = std::iter::once(0).chain(path.match_indices('/').map(|(slash, _)| slash + 1));
    starts.into_iter().find_map(|start| by_name.get(&path[start..]).copied())
}

/// Writes indices as an int64 `.npy` file, the same bytes as `numpy.save`; the file appears whole or not at all.
///
/// # Errors
/// If the file cannot be written.
pub fn write_indices(path: &Path, indices: &[usize]) -> Result<(), DataError> {
    let values: Vec<i64> = indices.iter().map(|index| *index as i64).collect();
    write_whole(path, &npy::encode(&values))
}

/// Writes a `.txt` list, a line `path label` (or `path`) each; the file appears whole or not at all.
///
/// # Errors
/// If the file cannot be written, or a path has a line break in it.
pub fn write_list<'a>(path: &Path, entries: impl IntoIterator<Item = (&'a str, Option<u32>)>) -> Result<(), DataError> {
    let mut text = String::new();
    for (name, label) in entries {
        if name.contains(['\n', '\r']) {
            return Err(DataError::split(path, format!("the path {name:?} has a line break in it; rename the file")));
        }
        text.push_str(name);
        if let Some(label) = label {
            text.push_str(&format!(" {label}"));
        }
        text.push('\n');
    }
    write_whole(path, text.as_bytes())
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    // Two processes may write the same file: each its own first, and either one whole in the end.
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&partial, path)
    };
    write().map_err(|source| DataError::write(path, source))
}
