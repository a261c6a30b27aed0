//! The image sets of an experiment: found among published files, or made from labels and a seed.
//!
//! Source: the SDCLR paper, section 4.1, and the published splits' names. Sets made here have the published ones' sizes and
//! class counts and are the same bytes on every machine; which images they hold differs.

use crate::error::Error;
use sdclr_data::splits::{SplitFamily, in_random_class_order, long_tail_counts, write_indices, write_list};
use sdclr_data::{Dataset, OpenOptions, Part as DataPart};
use sdclr_records::Experiment;
use sdclr_records::experiment::Tail;
use sdclr_records::names::{ImageSet, Part};
use sdclr_records::results::ImagesRecord;
use std::path::{Path, PathBuf};

/// The seed of the cut into validation and training images; split i has this plus i.
const SEED: u64 = 2021;

/// Every set of an experiment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sets {
    /// What the linear probe learns from.
    pub train: ImagesRecord,
    /// What the best epoch is chosen on.
    pub validation: ImagesRecord,
    /// What is tested on.
    pub test: ImagesRecord,
    /// Those of each split, from split 1.
    pub splits: Vec<SplitSets>,
    /// Whether they are files that somebody had, rather than made here.
    pub given: bool,
    /// What is worth knowing about them.
    pub notes: Vec<String>,
}

/// The sets of one split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitSets {
    /// D_i.
    pub long_tail: ImagesRecord,
    /// D_b.
    pub balanced: ImagesRecord,
    /// S_b.
    pub few_shot: ImagesRecord,
}

/// Where to look for an experiment's images and splits.
#[derive(Debug, Clone)]
pub struct Places<'a> {
    /// The data set.
    pub data: &'a Path,
    /// Published splits; `None` makes them below `made`.
    pub given: Option<&'a Path>,
    /// Where made splits go.
    pub made: &'a Path,
}

/// Opens the images of a record.
///
/// # Errors
/// Images or a split that cannot be opened.
pub fn open(record: &ImagesRecord) -> Result<Dataset, Error> {
    let part = match record.part {
        Part::Train => DataPart::Train,
        Part::Test => DataPart::Test,
        Part::All => DataPart::All,
    };
    let options = OpenOptions { part, split: record.split.clone(), root: record.root.clone() };
    Ok(Dataset::open(&record.source, &options)?)
}

/// The class counts of a split of an experiment, by label, as the paper's are. `scale` multiplies each, to at least 1.
#[must_use]
pub fn tail_counts(experiment: &Experiment, split: usize, scale: f64) -> Vec<usize> {
    let counts = match &experiment.tail {
        Tail::Named { class_counts } => class_counts[split - 1].clone(),
        Tail::Exponential { n_max, imbalance_factor } => {
            let counts = long_tail_counts(experiment.n_classes, *n_max, 1.0 / imbalance_factor);
            in_random_class_order(&counts, SEED + split as u64)
        }
    };
    counts.into_iter().map(|count| scaled(count, scale)).collect()
}

/// A count times `scale`, at least 1.
#[must_use]
pub fn scaled(count: usize, scale: f64) -> usize {
    ((count as f64 * scale).round() as usize).max(1)
}

/// Finds or makes the sets. Those that are there are left as they are.
///
/// # Errors
/// Images of another data set, missing or unfitting split files, a folder that cannot be written.
pub fn sets(experiment: &Experiment, places: &Places<'_>, scale: f64) -> Result<Sets, Error> {
    let sets = match places.given {
        Some(folder) => found(experiment, places.data, folder)?,
        None => {
            check_images(experiment, places.data)?;
            let wanted = |relative: &str| Some(places.made.join(relative));
            let there = records(experiment, places.data, &wanted, false);
            let all_there = there.as_ref().is_some_and(|sets| files_of(sets).iter().all(|file| file.exists()));
            match there {
                Some(sets) if all_there => sets,
                _ => make(experiment, places, scale)?,
            }
        }
    };
    let notes = check(experiment, &sets, scale)?;
    Ok(Sets { notes, ..sets })
}

/// Looks for the published files, at their published places or all in one folder.
fn found(experiment: &Experiment, data: &Path, folder: &Path) -> Result<Sets, Error> {
    let files = &experiment.files;
    let mut wanted: Vec<String> = vec![files.train.clone(), files.validation.clone()];
    wanted.extend(files.test.clone());
    for split in 1..=experiment.n_splits {
        for name in [&files.long_tail, &files.balanced, &files.few_shot] {
            wanted.push(name.replace("{split}", &split.to_string()));
        }
    }
    let place = |relative: &str| -> Option<PathBuf> {
        let flat = Path::new(relative).file_name().unwrap_or_default();
        [folder.join(relative), folder.join(flat)].into_iter().find(|path| path.is_file())
    };
    let missing: Vec<&str> = wanted.iter().filter(|name| place(name).is_none()).map(String::as_str).collect();
    if !missing.is_empty() {
        return Err(Error::Unfit(format!(
            "{}: {} of the {} split files of {} are missing, the first is {}; without --split-dir splits of the same sizes are made",
            folder.display(),
            missing.len(),
            wanted.len(),
            experiment.title,
            missing[0]
        )));
    }
    records(experiment, data, &place, true)
        .ok_or_else(|| Error::Unfit(format!("{}: the split files are incomplete", folder.display())))
}

/// The records of all sets, `None` if a file has no place.
fn records(experiment: &Experiment, data: &Path, place: &dyn Fn(&str) -> Option<PathBuf>, given: bool) -> Option<Sets> {
    let set = |relative: &str| Some(record(data, place(relative)?, Part::Train));
    let files = &experiment.files;
    let one = |split: usize| {
        let named = |name: &str| set(&name.replace("{split}", &split.to_string()));
        Some(SplitSets {
            long_tail: named(&files.long_tail)?,
            balanced: named(&files.balanced)?,
            few_shot: named(&files.few_shot)?,
        })
    };
    Some(Sets {
        train: set(&files.train)?,
        validation: set(&files.validation)?,
        test: match &files.test {
            Some(test) => set(test)?,
            None => {
                ImagesRecord { source: data.to_owned(), part: Part::Test, split: None, root: None, per_class: None }
            }
        },
        splits: (1..=experiment.n_splits).map(one).collect::<Option<_>>()?,
        given,
        notes: Vec::new(),
    })
}

/// Indices narrow the data set; a list is a source of its own, whose paths are relative to the data.
fn record(data: &Path, file: PathBuf, part: Part) -> ImagesRecord {
    if file.extension().is_some_and(|extension| extension == "txt") {
        let root = Some(data.to_owned());
        return ImagesRecord { source: file, part: Part::All, split: None, root, per_class: None };
    }
    ImagesRecord { source: data.to_owned(), part, split: Some(file), root: None, per_class: None }
}

fn files_of(sets: &Sets) -> Vec<PathBuf> {
    let splits = sets.splits.iter().flat_map(|split| [&split.long_tail, &split.balanced, &split.few_shot]);
    let all = [&sets.train, &sets.validation, &sets.test].into_iter().chain(splits);
    all.map(|record| record.split.clone().unwrap_or_else(|| record.source.clone())).collect()
}

/// Makes every set and writes its file.
fn make(experiment: &Experiment, places: &Places<'_>, scale: f64) -> Result<Sets, Error> {
    let images = Dataset::open(places.data, &OpenOptions { part: DataPart::Train, ..OpenOptions::default() })?;
    let labels = labels(&images, experiment)?;
    let files = &experiment.files;
    let write = |relative: &str, indices: &[usize]| write_set(&places.made.join(relative), &images, "train", indices);
    let too_small = |e: sdclr_data::DataError| {
        let (data, title, n) = (places.data.display(), &experiment.title, images.len());
        Error::Unfit(format!(
            "{data}: too few images for {title} ({n} are there): {e}; --scale 0.1 takes a tenth of every count"
        ))
    };
    let cut = SplitFamily::new(&labels, SEED);
    let validation = cut.balanced(scaled(experiment.validation_per_class, scale)).map_err(too_small)?;
    let is_kept: std::collections::HashSet<usize> = validation.iter().copied().collect();
    let rest: Vec<usize> = (0..images.len()).filter(|index| !is_kept.contains(index)).collect();
    let train = match experiment.probe_per_class {
        Some(n) => {
            SplitFamily::among(&labels, rest.iter().copied(), SEED).balanced(scaled(n, scale)).map_err(too_small)?
        }
        None if scale == 1.0 => rest.clone(),
        None => share_of_each_class(&labels, &rest, scale)?,
    };
    write(&files.train, &train)?;
    write(&files.validation, &validation)?;
    if let Some(test) = &files.test {
        let held_out = Dataset::open(places.data, &OpenOptions { part: DataPart::Test, ..OpenOptions::default() })?;
        let held_out = crate::probe::matched(&held_out, &images, "to test on")?;
        let all: Vec<usize> = (0..held_out.len()).collect();
        // Of the two names that a held-out folder may have, the one that was opened.
        let folder = if places.data.join("test").is_dir() { "test" } else { "val" };
        write_set(&places.made.join(test), &held_out, folder, &all)?;
    }
    for split in 1..=experiment.n_splits {
        let family = SplitFamily::among(&labels, rest.iter().copied(), SEED + split as u64);
        let named = |name: &str| name.replace("{split}", &split.to_string());
        let tail = family.take(&tail_counts(experiment, split, scale)).map_err(too_small)?;
        write(&named(&files.long_tail), &tail)?;
        write(
            &named(&files.balanced),
            &family.balanced(scaled(experiment.balanced_per_class, scale)).map_err(too_small)?,
        )?;
        write(
            &named(&files.few_shot),
            &family.balanced(scaled(experiment.few_shot_per_class, scale)).map_err(too_small)?,
        )?;
    }
    let place = |relative: &str| Some(places.made.join(relative));
    records(experiment, places.data, &place, false)
        .ok_or_else(|| Error::Unfit(format!("{}: the splits could not be made", places.made.display())))
}

/// `scale` times as many of these images of each class.
fn share_of_each_class(labels: &[u32], images: &[usize], scale: f64) -> Result<Vec<usize>, Error> {
    let family = SplitFamily::among(labels, images.iter().copied(), SEED);
    let mut counts = vec![0; family.n_classes()];
    images.iter().for_each(|&index| counts[labels[index] as usize] += 1);
    let wanted: Vec<usize> = counts.iter().map(|&count| scaled(count, scale).min(count)).collect();
    Ok(family.take(&wanted)?)
}

/// Indices as `.npy`, or a list of `folder/path label` lines.
fn write_set(path: &Path, images: &Dataset, folder: &str, indices: &[usize]) -> Result<(), Error> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|source| Error::Write { path: parent.to_owned(), source })?;
    }
    if path.extension().is_some_and(|extension| extension == "npy") {
        return Ok(write_indices(path, indices)?);
    }
    let names: Vec<String> = indices.iter().map(|&index| format!("{folder}/{}", images.name(index))).collect();
    let entries = names.iter().zip(indices).map(|(name, &index)| (name.as_str(), images.label(index)));
    Ok(write_list(path, entries)?)
}

fn labels(images: &Dataset, experiment: &Experiment) -> Result<Vec<u32>, Error> {
    let labels: Option<Vec<u32>> = (0..images.len()).map(|position| images.label(position)).collect();
    labels.ok_or_else(|| {
        let (what, title) = (images.description(), &experiment.title);
        Error::Unfit(format!("{title} needs labelled images, these have no labels ({what})"))
    })
}

/// Checks that these are the experiment's images.
///
/// # Errors
/// [`Error::Unfit`] saying what they are and what is needed; images that cannot be opened.
pub fn check_images(experiment: &Experiment, data: &Path) -> Result<(), Error> {
    let images = Dataset::open(data, &OpenOptions::default())?;
    let (n, description) = (images.n_classes().unwrap_or(0), images.description());
    let (is_kind, advice) = match experiment.images {
        ImageSet::Cifar10 => (description.starts_with("CIFAR-10 "), "give the folder cifar-10-batches-py or -bin"),
        ImageSet::Cifar100 => (description.starts_with("CIFAR-100 "), "give the folder cifar-100-python or -binary"),
        ImageSet::FashionMnist => {
            (description.starts_with("IDX"), "give the folder with train-images-idx3-ubyte.gz and its three companions")
        }
        ImageSet::ImageNet100 => (
            description.starts_with("folder"),
            "give a folder with train/ and val/ of the hundred class folders, or ImageNet's with --split-dir and the published lists",
        ),
        ImageSet::ImageNet => {
            (description.starts_with("folder"), "give the folder with train/ and val/ of class folders")
        }
    };
    let is_whole = sdclr_data::source::has_parts(data)?;
    if is_kind && n == experiment.n_classes && is_whole {
        return Ok(());
    }
    let (data, title) = (data.display(), &experiment.title);
    Err(Error::Unfit(format!(
        "{data}: {title} has {} classes and a test part, this is {description} with {n}{}; {advice}",
        experiment.n_classes,
        if is_whole { "" } else { " and no test part" }
    )))
}

/// Whether the sets fit the experiment and do not overlap where that would spoil it.
fn check(experiment: &Experiment, sets: &Sets, scale: f64) -> Result<Vec<String>, Error> {
    let validation = open(&sets.validation)?;
    let kept: std::collections::HashSet<String> = (0..validation.len()).map(|i| validation.name(i)).collect();
    let shared = |record: &ImagesRecord| -> Result<(Dataset, usize), Error> {
        let images = open(record)?;
        let n_shared = (0..images.len()).filter(|&i| kept.contains(&images.name(i))).count();
        Ok((images, n_shared))
    };
    let file = |record: &ImagesRecord| record.split.as_ref().unwrap_or(&record.source).display().to_string();
    let refuse = |record: &ImagesRecord, problem: String| {
        let text = format!("{}: {problem}; is this a split of {}?", file(record), experiment.title);
        Err(Error::Unfit(text))
    };
    let mut notes = Vec::new();
    let mut counted = Vec::new();
    for (split, one) in (1..).zip(&sets.splits) {
        counted.push((&one.long_tail, Some(tail_counts(experiment, split, scale))));
        counted.push((&one.balanced, None));
        counted.push((&one.few_shot, None));
    }
    counted.push((&sets.train, None));
    for (record, expected) in counted {
        let (images, n_shared) = shared(record)?;
        if n_shared > 0 {
            return refuse(record, format!("{n_shared} of its images are validation images"));
        }
        let mut counts = images.class_counts().unwrap_or_default();
        if counts.len() > experiment.n_classes {
            return refuse(record, format!("it has {} classes, not {}", counts.len(), experiment.n_classes));
        }
        counts.resize(experiment.n_classes, 0);
        if let Some(empty) = counts.iter().position(|&count| count == 0) {
            return refuse(record, format!("class {empty} has no images in it"));
        }
        let largest = counts.iter().max().copied().unwrap_or(0);
        let problem =
            format!("its class counts, {} images with {largest} of the largest, are not the paper's", images.len());
        match (&experiment.tail, expected) {
            (_, None) => {}
            (Tail::Named { class_counts }, Some(expected)) if counts != expected => {
                let is_of = |split: &usize| counts == tail_counts(experiment, *split, scale);
                let problem = match (1..=class_counts.len()).find(is_of) {
                    Some(split) => format!("its class counts are those of split {split}"),
                    None => problem,
                };
                return refuse(record, problem);
            }
            // The class order is the file's own, and where the formula is recalled the file knows better.
            (Tail::Exponential { .. }, Some(expected)) if sorted(&counts) != sorted(&expected) => {
                if !sets.given {
                    return refuse(record, problem);
                }
                notes
                    .push(format!("{}: {problem} by the formula that this program knows; used as it is", file(record)));
            }
            _ => {}
        }
    }
    Ok(notes)
}

fn sorted(counts: &[usize]) -> Vec<usize> {
    let mut counts = counts.to_vec();
    counts.sort_unstable();
    counts
}

#[cfg(test)]
#[path = "sets_tests.rs"]
mod tests;
