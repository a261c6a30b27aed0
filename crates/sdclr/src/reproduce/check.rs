//! Whether image sets fit an experiment: class counts, and no validation image where that would spoil the choice of an epoch.

use super::sets::{Opener, Sets, scaled, tail_counts};
use crate::error::Error;
use sdclr_data::Dataset;
use sdclr_records::Experiment;
use sdclr_records::experiment::Tail;
use sdclr_records::names::ImageSet;
use sdclr_records::results::ImagesRecord;
use std::collections::HashSet;

/// What a set's class counts should be.
#[derive(Clone, Copy)]
enum Expected {
    /// The long tail of this split, from 1.
    Tail(usize),
    /// So many of each class.
    Each(usize),
    /// At least one of each class.
    Some,
}

/// Checks every set; returns what is worth knowing about those that pass.
pub(super) fn check(experiment: &Experiment, sets: &Sets, scale: f64) -> Result<Vec<String>, Error> {
    let each = |count: usize| Expected::Each(scaled(count, scale));
    let mut opener = Opener::default();
    let train = opener.open(&sets.train)?;
    let validation = opener.open(&sets.validation)?;
    let checker = Checker {
        experiment,
        scale,
        is_given: sets.given,
        kept: (0..validation.len()).map(|position| validation.name(position)).collect(),
    };
    if matches!(experiment.tail, Tail::Exponential { .. }) {
        checker.distinct(sets, &mut opener)?;
    }
    let mut notes = Vec::new();
    checker.counts(&sets.validation, &validation, each(experiment.validation_per_class), &mut notes)?;
    let expected = experiment.probe_per_class.map_or(Expected::Some, each);
    checker.learned_from(&sets.train, &train, expected, &mut notes)?;
    for (split, one) in (1..).zip(&sets.splits) {
        let few_shot = each(experiment.few_shot_per_class);
        let balanced = each(experiment.balanced_per_class);
        for (record, expected) in
            [(&one.long_tail, Expected::Tail(split)), (&one.balanced, balanced), (&one.few_shot, few_shot)]
        {
            checker.learned_from(record, &opener.open(record)?, expected, &mut notes)?;
        }
    }
    let test = crate::probe::matched(&opener.open(&sets.test)?, &train, "to test on")?;
    checker.counts(&sets.test, &test, Expected::Some, &mut notes)?;
    Ok(notes)
}

struct Checker<'a> {
    experiment: &'a Experiment,
    scale: f64,
    is_given: bool,
    /// Names of the validation images.
    kept: HashSet<String>,
}

impl Checker<'_> {
    /// A set that something learns from.
    fn learned_from(
        &self,
        record: &ImagesRecord,
        images: &Dataset,
        expected: Expected,
        notes: &mut Vec<String>,
    ) -> Result<(), Error> {
        let n_shared = (0..images.len()).filter(|&position| self.kept.contains(&images.name(position))).count();
        if n_shared > 0 {
            return self.refuse(record, &format!("{n_shared} of its images are validation images"));
        }
        self.counts(record, images, expected, notes)
    }

    fn counts(
        &self,
        record: &ImagesRecord,
        images: &Dataset,
        expected: Expected,
        notes: &mut Vec<String>,
    ) -> Result<(), Error> {
        let n_classes = self.experiment.n_classes;
        let mut counts = images.class_counts().unwrap_or_default();
        if counts.len() > n_classes {
            return self.refuse(record, &format!("it has {} classes, not {n_classes}", counts.len()));
        }
        counts.resize(n_classes, 0);
        if let Some(empty) = counts.iter().position(|&count| count == 0) {
            return self.refuse(record, &format!("class {empty} has no images in it"));
        }
        let Some(problem) = self.misfit(&counts, expected) else { return Ok(()) };
        // Of full ImageNet the counts are recalled: there the published file knows better.
        let is_recalled = self.experiment.images == ImageSet::ImageNet && self.is_given && self.scale == 1.0;
        if !is_recalled {
            return self.refuse(record, &problem);
        }
        notes.push(format!("{}: {problem} by what this program knows; used as it is", file(record)));
        Ok(())
    }

    /// A drawn class order tells the splits apart: two files of one order are the same split twice.
    fn distinct(&self, sets: &Sets, opener: &mut Opener) -> Result<(), Error> {
        let mut seen: Vec<Vec<usize>> = Vec::new();
        for one in &sets.splits {
            let counts = opener.open(&one.long_tail)?.class_counts().unwrap_or_default();
            if let Some(other) = seen.iter().position(|before| *before == counts) {
                let split = other + 1;
                return self.refuse(&one.long_tail, &format!("its class counts are those of split {split}"));
            }
            seen.push(counts);
        }
        Ok(())
    }

    fn misfit(&self, counts: &[usize], expected: Expected) -> Option<String> {
        let (n_images, largest) = (counts.iter().sum::<usize>(), counts.iter().max().copied().unwrap_or(0));
        let problem = format!("its class counts, {n_images} images with {largest} of the largest, are not the paper's");
        let at_scale = |split: usize| tail_counts(self.experiment, split, self.scale);
        match (expected, &self.experiment.tail) {
            (Expected::Some, _) => None,
            (Expected::Each(n), _) => {
                (counts.iter().any(|&count| count != n)).then(|| format!("{problem}, which are {n} of each class"))
            }
            (Expected::Tail(split), Tail::Named { class_counts }) => {
                let other = || (1..=class_counts.len()).find(|&other| counts == at_scale(other));
                (counts != at_scale(split)).then(|| match other() {
                    Some(other) => format!("its class counts are those of split {other}"),
                    None => problem,
                })
            }
            // The order of the classes is the file's own.
            (Expected::Tail(split), Tail::Exponential { .. }) => {
                (sorted(counts) != sorted(&at_scale(split))).then_some(problem)
            }
        }
    }

    fn refuse(&self, record: &ImagesRecord, problem: &str) -> Result<(), Error> {
        let scaled = if self.scale == 1.0 { String::new() } else { format!(" at --scale {}", self.scale) };
        let text = format!("{}: {problem}{scaled}; is this a split of {}?", file(record), self.experiment.title);
        Err(Error::Unfit(text))
    }
}

fn file(record: &ImagesRecord) -> String {
    record.split.as_ref().unwrap_or(&record.source).display().to_string()
}

fn sorted(counts: &[usize]) -> Vec<usize> {
    let mut counts = counts.to_vec();
    counts.sort_unstable();
    counts
}
