//! `sdclr split check`: what a split holds, and whether it fits.

use crate::args::CheckArgs;
use crate::config::open_images;
use crate::context::Context;
use sdclr::metrics::{GroupRule, class_groups};
use sdclr::reproduce::tail_counts;
use sdclr_data::Dataset;
use sdclr_records::Experiment;
use sdclr_records::names::Part;
use sdclr_report::tail_line;
use std::collections::HashSet;
use std::process::ExitCode;

/// The widest bar of a histogram, in characters.
const BAR_WIDTH: usize = 40;
/// Classes that are shown one by one; of more, the tail's ends.
const N_SHOWN: usize = 20;

/// Checks a split and prints its histogram.
///
/// # Errors
/// A split that does not fit the images, which says where and why.
pub fn run(args: &CheckArgs, context: Context) -> anyhow::Result<ExitCode> {
    let whole = open_images(&args.data, Part::Train, None, None)?;
    let images = whole.narrowed_by(&args.file)?;
    let n_images = images.len();
    let n_shared = match &args.validation {
        Some(file) => {
            let validation = whole.narrowed_by(file)?;
            let theirs: HashSet<usize> = (0..validation.len()).map(|p| validation.source_index(p)).collect();
            Some((0..n_images).filter(|&p| theirs.contains(&images.source_index(p))).count())
        }
        None => None,
    };
    let n_classes = whole.n_classes().unwrap_or(0);
    let mut counts = images.class_counts().unwrap_or_default();
    counts.resize(n_classes.max(counts.len()), 0);
    let recognised = recognise(&counts);
    if context.json {
        context.print_json(&serde_json::json!({
            "file": args.file, "n_images": n_images, "class_counts": counts, "recognised": recognised,
            "imbalance_factor": Summary::of(&counts).imbalance_factor(), "n_shared_with_validation": n_shared,
            "n_relabelled": relabelled(&images, &whole).count(),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let names = images.class_names().map(<[String]>::to_vec).unwrap_or_default();
    let mut text = format!("{}: fits {}\n", args.file.display(), whole.description());
    if counts.is_empty() {
        text.push_str(&format!("{n_images} images without labels\n"));
    } else {
        text.push_str(&format!("{}\n", Summary::of(&counts).line()));
        text.push_str(&histogram(&counts, &names));
        // Groups are of a long tail, in which every class has images.
        if counts.iter().any(|count| *count != counts[0]) && !counts.contains(&0) {
            let groups = class_groups(&counts, GroupRule::Thirds);
            text.push_str(&format!("{}\n", tail_line(&counts, &groups, &names)));
        }
    }
    match &recognised {
        Some(what) => text.push_str(&format!("Recognised by its class counts: {what}\n")),
        None => text.push_str("Its class counts are none of the paper's splits'\n"),
    }
    if let Some(n_shared) = n_shared {
        text.push_str(&format!("Images shared with the validation split: {n_shared}\n"));
    }
    context.print(&text)?;
    if let Some((position, here, there)) = relabelled(&images, &whole).next() {
        let (n, name) = (relabelled(&images, &whole).count(), images.name(position));
        context.warn(&format!(
            "{n} of {n_images} labels are not those of the data set: {name} has {here} here and {there} there; a classifier of one means other \
             classes than one of the other"
        ));
    }
    if n_shared.is_some_and(|n| n > 0) {
        context.warn("validation images are among these: choosing an epoch on them would say nothing");
    }
    Ok(ExitCode::SUCCESS)
}

/// The images whose label is not the whole data set's: their positions, and both labels.
fn relabelled<'a>(images: &'a Dataset, whole: &'a Dataset) -> impl Iterator<Item = (usize, u32, u32)> + 'a {
    let both = |position| Some((position, images.label(position)?, whole.label(images.source_index(position))?));
    (0..images.len()).filter_map(both).filter(|(_, here, there)| here != there)
}

/// What class counts amount to.
pub struct Summary {
    n_images: usize,
    n_classes: usize,
    largest: usize,
    smallest: usize,
    n_empty: usize,
}

impl Summary {
    /// Of counts by label.
    pub fn of(counts: &[usize]) -> Self {
        let present = || counts.iter().copied().filter(|&count| count > 0);
        Self {
            n_images: counts.iter().sum(),
            n_classes: counts.len(),
            largest: present().max().unwrap_or(0),
            smallest: present().min().unwrap_or(0),
            n_empty: counts.iter().filter(|&&count| count == 0).count(),
        }
    }

    /// The largest class over the smallest that has images.
    pub fn imbalance_factor(&self) -> f64 {
        self.largest as f64 / self.smallest.max(1) as f64
    }

    /// In words.
    pub fn line(&self) -> String {
        let empty = match self.n_empty {
            0 => String::new(),
            1 => ", 1 class without any".to_owned(),
            n => format!(", {n} classes without any"),
        };
        let Self { n_images, n_classes, largest, smallest, .. } = self;
        if largest == smallest && self.n_empty == 0 {
            return format!("{n_images} images, {largest} of each of {n_classes} classes");
        }
        let factor = self.imbalance_factor();
        format!(
            "{n_images} images, {largest} down to {smallest} in {n_classes} classes (imbalance factor {factor:.1}){empty}"
        )
    }
}

/// The paper's split that has these counts.
fn recognise(counts: &[usize]) -> Option<String> {
    for experiment in Experiment::all().ok()?.into_iter().filter(|one| one.n_classes == counts.len()) {
        let title = &experiment.title;
        if let Some(split) = (1..=experiment.n_splits).find(|&split| tail_counts(&experiment, split, 1.0) == counts) {
            return Some(format!("the long tail D_i of {title}, split {split}"));
        }
        let sorted = |counts: &[usize]| {
            let mut counts = counts.to_vec();
            counts.sort_unstable();
            counts
        };
        if sorted(counts) == sorted(&tail_counts(&experiment, 1, 1.0)) {
            return Some(format!("a long tail of {title}, in a class order of its own"));
        }
        let all = |n: usize| counts.iter().all(|&count| count == n);
        let sets = [
            (experiment.balanced_per_class, "the balanced subset D_b"),
            (experiment.few_shot_per_class, "the few-shot set S_b"),
            (experiment.validation_per_class, "the validation images"),
        ];
        if let Some((_, what)) = sets.into_iter().find(|(n, _)| all(*n)) {
            return Some(format!("{what} of {title}"));
        }
    }
    None
}

/// A bar a class, largest first; of many classes the first and last.
fn histogram(counts: &[usize], names: &[String]) -> String {
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by_key(|&label| std::cmp::Reverse(counts[label]));
    let name = |label: usize| names.get(label).cloned().unwrap_or_else(|| label.to_string());
    let width = order.iter().map(|&label| name(label).chars().count()).max().unwrap_or(0).min(24);
    let largest = counts.iter().copied().max().unwrap_or(0).max(1);
    let line = |label: usize| {
        let n_blocks = (counts[label] * BAR_WIDTH).div_ceil(largest);
        let shown: String = name(label).chars().take(width).collect();
        format!("  {shown:<width$} {:>7} {}\n", counts[label], "█".repeat(n_blocks))
    };
    if order.len() <= N_SHOWN {
        return order.into_iter().map(line).collect();
    }
    let (first, last) = (&order[..N_SHOWN / 2], &order[order.len() - N_SHOWN / 2..]);
    let n_between = order.len() - first.len() - last.len();
    let lines = |labels: &[usize]| labels.iter().map(|&label| line(label)).collect::<String>();
    format!("{}  … {n_between} classes between …\n{}", lines(first), lines(last))
}
