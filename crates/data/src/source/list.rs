//! A `.txt` list of image files: a line `relative/path label` each, the label optional. Blank lines are skipped,
//! and so are comments, which begin with `#`.

use std::collections::HashMap;
use std::path::Path;

use super::folder::{FolderSource, is_image_name};
use super::paths::Paths;
use crate::error::DataError;

/// The largest label that is taken for one: counts per class are kept for all smaller ones.
pub(crate) const LABEL_MAX: u32 = 10_000_000;

/// A list's lines, read.
#[derive(Clone, Debug, Default)]
pub struct List {
    /// The paths, in the list's order.
    pub paths: Paths,
    /// A label for each, or none at all.
    pub labels: Option<Vec<u32>>,
    /// Line number of each, from 1.
    pub lines: Vec<usize>,
}

/// Opens the images of a list, whose paths are relative to `root` or else to the list's folder.
///
/// # Errors
/// If the list cannot be read, is empty, has labels on some lines only, or if none of its files exists.
pub fn open(list: &Path, root: Option<&Path>) -> Result<FolderSource, DataError> {
    let List { paths: files, labels, .. } = read(list)?;
    let root = root.unwrap_or_else(|| list.parent().unwrap_or(Path::new(""))).to_owned();
    if !any_exists(&root, &files) {
        let problem = format!(
            "none of its {} files exists below {}; the first is {}. Name the folder that the paths are relative to",
            files.len(),
            if root.as_os_str().is_empty() { Path::new(".") } else { &root }.display(),
            files.name(0)
        );
        return Err(DataError::format(list, problem));
    }
    Ok(FolderSource { root, files, labels, class_names: None, description: "list of images".to_owned() })
}

/// Whether any of the files exists. The first one mostly does; where the root is wrong, the few folders are asked for and
/// not the million files in them.
fn any_exists(root: &Path, files: &Paths) -> bool {
    let mut folders: HashMap<&Path, bool> = HashMap::new();
    (0..files.len()).any(|index| {
        let file = files.path(index);
        let folder = file.parent().unwrap_or(Path::new(""));
        let folder_exists = folders.entry(folder).or_insert_with(|| {
            let folder = root.join(folder);
            // No name at all stands for the current folder.
            folder.as_os_str().is_empty() || folder.exists()
        });
        *folder_exists && root.join(file).exists()
    })
}

/// Reads a list's lines; either all of them have a label or none.
///
/// # Errors
/// If the file cannot be read, is no UTF-8 text, is empty, mixes lines with and without a label, or has a label that is
/// no whole number from 0.
pub fn read(list: &Path) -> Result<List, DataError> {
    let bytes = std::fs::read(list).map_err(|source| DataError::read(list, source))?;
    let text = String::from_utf8(bytes).map_err(|_| DataError::format(list, "not a text file in UTF-8"))?;
    parse(&text).map_err(|problem| DataError::format(list, problem))
}

fn parse(text: &str) -> Result<List, String> {
    let mut list = List::default();
    let mut labels = Vec::new();
    for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (path, label) = parse_line(line).map_err(|problem| format!("line {number}: {problem}"))?;
        if let Some(&first) = list.lines.first()
            && label.is_some() == labels.is_empty()
        {
            let has = |labelled| if labelled { "has a label" } else { "has no label" };
            let (a, b) = (has(label.is_none()), has(label.is_some()));
            return Err(format!("line {first} {a} but line {number} ({path}) {b}; label all lines or none"));
        }
        if let Some(label) = label.filter(|&label| label > LABEL_MAX) {
            return Err(format!("line {number}: label {label} is too large; labels number the classes from 0"));
        }
        list.paths.push(Path::new(path));
        list.lines.push(number);
        labels.extend(label);
    }
    if list.paths.is_empty() {
        return Err("the list is empty; expected a line `relative/path label` per image".to_owned());
    }
    list.labels = (!labels.is_empty()).then_some(labels);
    Ok(list)
}

fn parse_line(line: &str) -> Result<(&str, Option<u32>), String> {
    if let Some((path, label)) = line.rsplit_once(char::is_whitespace)
        && let Ok(label) = label.parse()
    {
        return Ok((path.trim_end(), Some(label)));
    }
    // Paths may have spaces in them, so what follows one is a label only if it does not end as an image does.
    let is_image = |text: &str| is_image_name(Path::new(text));
    let spaces = || line.char_indices().filter(|(_, c)| c.is_whitespace()).map(|(space, _)| space);
    match spaces().find(|&space| is_image(&line[..space])) {
        Some(space) if !is_image(line) => {
            let label = line[space..].trim();
            let problem = format!("the label {label:?} is not a whole number from 0 to {LABEL_MAX}");
            Err(format!("{problem}; labels number the classes from 0"))
        }
        _ => Ok((line, None)),
    }
}
