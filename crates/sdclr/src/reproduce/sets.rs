//! The image sets of an experiment: found among published files, or made from labels and a seed.
//!
//! Source: the SDCLR paper, section 4.1, and the published splits' names. Sets made here have the published ones' sizes and
//! class counts and are the same bytes on every machine; which images they hold differs.

use super::check::check;
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

/// The same of few-shot sets that are independent of the long tails.
const FEW_SHOT_SEED: u64 = 12_021;

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

/// Opens many sets of few data sets, each data set once.
#[derive(Default)]
pub struct Opener(Vec<(ImagesRecord, Dataset)>);

impl Opener {
    /// As [`open`].
    ///
    /// # Errors
    /// Images or a split that cannot be opened.
    pub fn open(&mut self, record: &ImagesRecord) -> Result<Dataset, Error> {
        let whole = ImagesRecord { split: None, ..record.clone() };
        let images = match self.0.iter().find(|(known, _)| *known == whole) {
            Some((_, images)) => images.clone(),
            None => {
                let images = open(&whole)?;
                self.0.push((whole, images.clone()));
                images
            }
        };
        Ok(match &record.split {
            Some(split) => images.narrowed_by(split)?,
            None => images,
        })
    }
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
    if places.given.is_none() {
        check_images(experiment, places.data)?;
    }
    let sets = match located(experiment, places)? {
        Some(sets) => sets,
        None => make(experiment, places, scale)?,
    };
    let notes = check(experiment, &sets, scale)?;
    Ok(Sets { notes, ..sets })
}

/// The sets where their files are all there, unchecked; `None` where they are to be made.
///
/// # Errors
/// Given files of which some are missing.
pub fn located(experiment: &Experiment, places: &Places<'_>) -> Result<Option<Sets>, Error> {
    if let Some(folder) = places.given {
        return found(experiment, places.data, folder).map(Some);
    }
    let wanted = |relative: &str| Some(places.made.join(relative));
    let sets = records(experiment, places.data, &wanted, false);
    Ok(sets.filter(|sets| files_of(sets).iter().all(|file| file.exists())))
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
            "{data}: too few images for {title} ({n} are there): {e}; --scale takes a share of every count"
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
        let folder = sdclr_data::source::folder::parts(places.data)
            .and_then(|(_, folder)| Some(folder.file_name()?.to_string_lossy().into_owned()));
        write_set(&places.made.join(test), &held_out, folder.as_deref().unwrap_or("val"), &all)?;
    }
    for split in 1..=experiment.n_splits {
        let family = SplitFamily::among(&labels, rest.iter().copied(), SEED + split as u64);
        // CIFAR's published few-shot images are among the pre-training images, ImageNet's are drawn independently.
        let few_shot_seed = if files.test.is_some() { FEW_SHOT_SEED } else { SEED } + split as u64;
        let few_shot = SplitFamily::among(&labels, rest.iter().copied(), few_shot_seed);
        let named = |name: &str| name.replace("{split}", &split.to_string());
        let tail = family.take(&tail_counts(experiment, split, scale)).map_err(too_small)?;
        write(&named(&files.long_tail), &tail)?;
        write(
            &named(&files.balanced),
            &family.balanced(scaled(experiment.balanced_per_class, scale)).map_err(too_small)?,
        )?;
        write(
            &named(&files.few_shot),
            &few_shot.balanced(scaled(experiment.few_shot_per_class, scale)).map_err(too_small)?,
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

#[cfg(test)]
#[path = "sets_tests.rs"]
mod tests;
