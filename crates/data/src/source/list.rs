//! A `.txt` list of image files: a line `relative/path label` each, the label optional. Blank lines are skipped,
//! and so are comments, which begin with `#`.

use std::path::{Path, PathBuf};

use super::folder::{EXTENSIONS, FolderSource};
use super::lowercase_extension;
use crate::error::DataError;

/// The largest label that is taken for one: counts per class are kept for all smaller ones.
const LABEL_MAX: u32 = 10_000_000;

/// One line of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListEntry {
    /// The path as written.
    pub path: String,
    /// The number after it.
    pub label: Option<u32>,
    /// Line number, from 1.
    pub line: usize,
}

/// Opens the images of a list, whose paths are relative to `root` or else to the list's folder.
///
/// # Errors
/// If the list cannot be read, is empty, has labels on some lines only, or if none of its files exists.
pub fn open(list: &Path, root: Option<&Path>) -> Result<FolderSource, DataError> {
    let entries = read(list)?;
    let root = root.unwrap_or_else(|| list.parent().unwrap_or(Path::new(""))).to_owned();
    let files: Vec<PathBuf> = entries.iter().map(|entry| PathBuf::from(&entry.path)).collect();
    if !files.iter().any(|file| root.join(file).exists()) {
        let problem = format!(
            "none of its {} files exists below {}; the first is {}. Name the folder that the paths are relative to",
            files.len(),
            if root.as_os_str().is_empty() { Path::new(".") } else { &root }.display(),
            entries[0].path
        );
        return Err(DataError::format(list, problem));
    }
    let labels = entries.iter().map(|entry| entry.label).collect();
    Ok(FolderSource { root, files, labels, class_names: None, description: "list of images".to_owned() })
}

/// Reads a list's lines; either all of them have a label or none.
///
/// # Errors
/// If the file cannot be read, is no UTF-8 text, is empty, mixes lines with and without a label, or has a label that is
/// no whole number from 0.
pub fn read(list: &Path) -> Result<Vec<ListEntry>, DataError> {
    let bytes = std::fs::read(list).map_err(|source| DataError::read(list, source))?;
    let text = String::from_utf8(bytes).map_err(|_| DataError::format(list, "not a text file in UTF-8"))?;
    let entries: Vec<ListEntry> = text
        .trim_start_matches('\u{feff}')
        .lines()
        .enumerate()
        .map(|(number, line)| (number + 1, line.trim()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| parse_line(line, number).map_err(|problem| DataError::format(list, problem)))
        .collect::<Result<_, _>>()?;
    let Some(first) = entries.first() else {
        return Err(DataError::format(list, "the list is empty; expected a line `relative/path label` per image"));
    };
    if let Some(odd) = entries.iter().find(|entry| entry.label.is_some() != first.label.is_some()) {
        let has = |entry: &ListEntry| if entry.label.is_some() { "has a label" } else { "has no label" };
        let (a, b) = (has(first), has(odd));
        let problem =
            format!("line {} {a} but line {} ({}) {b}; label all lines or none", first.line, odd.line, odd.path);
        return Err(DataError::format(list, problem));
    }
    if let Some(bad) = entries.iter().find(|entry| entry.label.is_some_and(|label| label > LABEL_MAX)) {
        let (line, label) = (bad.line, bad.label.unwrap_or_default());
        let problem = format!("line {line}: label {label} is too large; labels number the classes from 0");
        return Err(DataError::format(list, problem));
    }
    Ok(entries)
}

fn parse_line(line: &str, number: usize) -> Result<ListEntry, String> {
    let entry = |path: &str, label| ListEntry { path: path.to_owned(), label, line: number };
    if let Some((path, label)) = line.rsplit_once(char::is_whitespace)
        && let Ok(label) = label.parse()
    {
        return Ok(entry(path.trim_end(), Some(label)));
    }
    // Paths may have spaces in them, so what follows one is a label only if it does not end as an image does.
    let is_image = |text: &str| EXTENSIONS.contains(&lowercase_extension(Path::new(text)).as_str());
    let spaces = || line.char_indices().filter(|(_, c)| c.is_whitespace()).map(|(space, _)| space);
    match spaces().find(|&space| is_image(&line[..space])) {
        Some(space) if !is_image(line) => {
            let label = line[space..].trim();
            let problem = format!("the label {label:?} is not a whole number from 0 to {LABEL_MAX}");
            Err(format!("line {number}: {problem}; labels number the classes from 0"))
        }
        _ => Ok(entry(line, None)),
    }
}
