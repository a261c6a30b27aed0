//! `sdclr split`: subsets of labelled images, made and checked.

mod check;

use super::export::refuse_existing;
use crate::args::{BalancedArgs, HoldoutArgs, LongTailArgs, PaperArgs, ShapeArg, SplitCommand, SplitFrom};
use crate::config::open_images;
use crate::context::Context;
use crate::exit::UsageError;
use anyhow::Context as _;
use sdclr::reproduce::{Places, sets, tail_counts};
use sdclr_data::Dataset;
use sdclr_data::splits::{
    SplitFamily, in_random_class_order, long_tail_counts, pareto_counts, step_counts, write_indices, write_list,
};
use sdclr_records::Experiment;
use sdclr_records::names::Part;
use std::collections::HashSet;
use std::path::Path;
use std::process::ExitCode;

/// Makes or checks a split.
///
/// # Errors
/// Images without labels, counts that they do not allow, files that cannot be read or written.
pub fn run(command: SplitCommand, context: Context) -> anyhow::Result<ExitCode> {
    match command {
        SplitCommand::LongTail(args) => long_tail(&args, context),
        SplitCommand::Balanced(args) => balanced(&args, context),
        SplitCommand::Holdout(args) => holdout(&args, context),
        SplitCommand::Paper(args) => paper(&args, context),
        SplitCommand::Check(args) => check::run(&args, context),
    }
}

/// The images that a split is drawn from.
struct Candidates {
    all: Dataset,
    labels: Vec<u32>,
    /// Positions in `all` that may be drawn.
    positions: Vec<usize>,
    family: SplitFamily,
    seed: u64,
}

impl Candidates {
    fn open(from: &SplitFrom, outs: &[&Path]) -> anyhow::Result<Self> {
        for out in outs {
            file_kind(out)?;
            refuse_existing(out, from.overwrite)?;
        }
        let all = open_images(&from.data, Part::Train, None, None)?;
        let labels: Option<Vec<u32>> = (0..all.len()).map(|position| all.label(position)).collect();
        let labels = labels.ok_or_else(|| {
            let what = all.description();
            UsageError(format!("{}: splits need labelled images, these have no labels ({what})", from.data.display()))
        })?;
        let narrowed = |file: &Path| -> anyhow::Result<HashSet<usize>> {
            let images = all.narrowed_by(file)?;
            Ok((0..images.len()).map(|position| images.source_index(position)).collect())
        };
        let among = from.split.as_deref().map(narrowed).transpose()?;
        let mut left_out = HashSet::new();
        for file in &from.exclude {
            left_out.extend(narrowed(file)?);
        }
        let is_candidate = |position: &usize| {
            let index = all.source_index(*position);
            among.as_ref().is_none_or(|among| among.contains(&index)) && !left_out.contains(&index)
        };
        let positions: Vec<usize> = (0..all.len()).filter(is_candidate).collect();
        if positions.is_empty() {
            return Err(UsageError("--split and --exclude leave no image to draw from".to_owned()).into());
        }
        let family = SplitFamily::among(&labels, positions.iter().copied(), from.seed);
        Ok(Self { all, labels, positions, family, seed: from.seed })
    }

    /// Images of each class that may be drawn.
    fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.family.n_classes()];
        self.positions.iter().for_each(|&position| counts[self.labels[position] as usize] += 1);
        counts
    }

    /// Checks that each class has as many images as are wanted of it; `flag` is what asks for them.
    fn check_enough(&self, wanted: &[usize], flag: &str) -> anyhow::Result<()> {
        let there = self.counts();
        let Some(label) = (0..there.len()).find(|&label| wanted[label] > there[label]) else { return Ok(()) };
        let name = self.all.class_names().and_then(|names| names.get(label).cloned());
        let (class, n, wanted) = (name.unwrap_or_else(|| label.to_string()), there[label], wanted[label]);
        let text = format!("class {class} has {n} images to draw from, {wanted} are wanted; lower {flag}");
        Err(UsageError(text).into())
    }

    /// Writes positions as indices or as a list, and prints what they are.
    fn write(&self, out: &Path, positions: &[usize], context: Context) -> anyhow::Result<()> {
        let (json, text) = self.write_file(out, positions)?;
        if context.json { context.print_json(&json) } else { context.print(&text) }
    }

    /// Writes positions as indices or as a list; what they are, for programs and for people.
    fn write_file(&self, out: &Path, positions: &[usize]) -> anyhow::Result<(serde_json::Value, String)> {
        if file_kind(out)? == FileKind::Indices {
            write_indices(out, positions)?;
        } else {
            let names: Vec<String> = positions.iter().map(|&position| self.all.name(position)).collect();
            let entries =
                names.iter().zip(positions).map(|(name, &position)| (name.as_str(), self.all.label(position)));
            write_list(out, entries)?;
        }
        let mut counts = vec![0; self.family.n_classes()];
        positions.iter().for_each(|&position| counts[self.labels[position] as usize] += 1);
        let summary = check::Summary::of(&counts);
        let json = serde_json::json!({ "out": out, "class_counts": counts, "n_images": positions.len() });
        Ok((json, format!("{}: {}\n", out.display(), summary.line())))
    }
}

#[derive(PartialEq, Eq)]
enum FileKind {
    Indices,
    List,
}

fn file_kind(path: &Path) -> anyhow::Result<FileKind> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("npy") => Ok(FileKind::Indices),
        Some("txt") => Ok(FileKind::List),
        _ => {
            let text = format!("{}: a split is a .npy file of indices or a .txt list; name it so", path.display());
            Err(UsageError(text).into())
        }
    }
}

fn long_tail(args: &LongTailArgs, context: Context) -> anyhow::Result<ExitCode> {
    let candidates = Candidates::open(&args.from, &[&args.out])?;
    let there = candidates.counts();
    for flag in without_effect(args) {
        context.note(&format!("note: {flag} has no effect on these counts"));
    }
    let wanted = match &args.class_counts {
        Some(text) => named_counts(text, there.len())?,
        None => in_random_class_order(&shape(args, &there)?, candidates.seed),
    };
    candidates.check_enough(&wanted, if args.class_counts.is_some() { "--class-counts" } else { "--n-max" })?;
    candidates.write(&args.out, &candidates.family.take(&wanted)?, context)?;
    Ok(ExitCode::SUCCESS)
}

/// Flags that were given and belong to another shape.
fn without_effect(args: &LongTailArgs) -> impl Iterator<Item = &'static str> {
    let shape = args.class_counts.is_none().then_some(args.shape);
    let (is_pareto, is_step) = (shape == Some(ShapeArg::Pareto), shape == Some(ShapeArg::Step));
    let has_factor = is_step || shape == Some(ShapeArg::Exponential);
    [
        ("--n-max", args.n_max.is_some() && shape.is_none()),
        ("--imbalance-factor", args.imbalance_factor.is_some() && !has_factor),
        ("--n-min", args.n_min.is_some() && !is_pareto),
        ("--alpha", args.alpha.is_some() && !is_pareto),
        ("--share-of-few", args.share_of_few.is_some() && !is_step),
    ]
    .into_iter()
    .filter_map(|(flag, is_idle)| is_idle.then_some(flag))
}

fn shape(args: &LongTailArgs, there: &[usize]) -> anyhow::Result<Vec<usize>> {
    let (factor, n_min) = (args.imbalance_factor.unwrap_or(100.0), args.n_min.unwrap_or(5));
    let (alpha, share_of_few) = (args.alpha.unwrap_or(6.0), args.share_of_few.unwrap_or(0.5));
    let refuse = |text: String| Err(UsageError(text).into());
    let n_max = args.n_max.unwrap_or_else(|| there.iter().copied().min().unwrap_or(0));
    if n_max == 0 {
        return refuse(
            "a class has no image to draw; give --n-max for the largest and class counts that fit".to_owned(),
        );
    }
    if !(factor >= 1.0 && factor.is_finite()) {
        return refuse(format!("--imbalance-factor {factor}: must be 1 or more, the largest class over the smallest"));
    }
    let counts = match args.shape {
        ShapeArg::Exponential => long_tail_counts(there.len(), n_max, 1.0 / factor),
        ShapeArg::Step if !(share_of_few > 0.0 && share_of_few <= 1.0) => {
            return refuse(format!("--share-of-few {share_of_few}: must be above 0 and at most 1"));
        }
        ShapeArg::Step => step_counts(there.len(), n_max, 1.0 / factor, share_of_few),
        ShapeArg::Pareto if !(alpha > 0.0 && alpha.is_finite()) => {
            return refuse(format!("--alpha {alpha}: must be a number above 0"));
        }
        ShapeArg::Pareto if n_min > n_max => {
            return refuse(format!("--n-min {n_min}: the largest class has only {n_max}"));
        }
        ShapeArg::Pareto => pareto_counts(there.len(), n_max, n_min, alpha),
    };
    if counts.contains(&0) {
        return refuse(format!(
            "the smallest class would have no image: lower --imbalance-factor below {n_max} or raise --n-max"
        ));
    }
    Ok(counts)
}

/// `500,40,3`, or `cifar10-lt:2`.
fn named_counts(text: &str, n_classes: usize) -> anyhow::Result<Vec<usize>> {
    let counts = match text.split_once(':') {
        Some((name, split)) => {
            let experiment = Experiment::named(name)?;
            let n = experiment.n_splits;
            let split = split.parse().ok().filter(|split| (1..=n).contains(split));
            let split =
                split.with_context(|| format!("--class-counts {text}: {} has splits 1 to {n}", experiment.title));
            tail_counts(&experiment, split.map_err(|e| UsageError(e.to_string()))?, 1.0)
        }
        None => text.split(',').map(|count| count.trim().parse()).collect::<Result<_, _>>().map_err(|_| {
            UsageError(format!(
                "--class-counts {text}: expected numbers such as 500,40,3 or an experiment's split, cifar10-lt:1"
            ))
        })?,
    };
    if counts.len() != n_classes {
        let text = format!("--class-counts {text}: {} counts for {n_classes} classes", counts.len());
        return Err(UsageError(text).into());
    }
    Ok(counts)
}

fn balanced(args: &BalancedArgs, context: Context) -> anyhow::Result<ExitCode> {
    let candidates = Candidates::open(&args.from, &[&args.out])?;
    let n_classes = candidates.family.n_classes();
    let per_class = match (&args.as_many_as, args.per_class) {
        (Some(file), _) => candidates.all.narrowed_by(file)?.len() / n_classes,
        (None, n) => n.unwrap_or(0),
    };
    if per_class == 0 {
        return Err(UsageError("--per-class: must come to at least one image a class".to_owned()).into());
    }
    let flag = if args.as_many_as.is_some() { "the number of images of --as-many-as" } else { "--per-class" };
    candidates.check_enough(&vec![per_class; n_classes], flag)?;
    let positions = candidates.family.balanced(per_class)?;
    candidates.write(&args.out, &positions, context)?;
    Ok(ExitCode::SUCCESS)
}

fn holdout(args: &HoldoutArgs, context: Context) -> anyhow::Result<ExitCode> {
    if std::path::absolute(&args.out)? == std::path::absolute(&args.rest)? {
        return Err(UsageError("--out and --rest: must be two files".to_owned()).into());
    }
    let candidates = Candidates::open(&args.from, &[&args.out, &args.rest])?;
    let there = candidates.counts();
    let wanted: Vec<usize> = match (args.per_class, args.share) {
        (Some(n), _) if n > 0 => vec![n; there.len()],
        (None, Some(share)) if share > 0.0 && share < 1.0 => {
            there.iter().map(|&n| ((n as f64 * share).round() as usize).clamp(n.min(1), n)).collect()
        }
        (Some(n), _) => return Err(UsageError(format!("--per-class {n}: must be at least 1")).into()),
        (None, share) => {
            let share = share.unwrap_or_default();
            return Err(UsageError(format!("--share {share}: must be above 0 and below 1")).into());
        }
    };
    candidates.check_enough(&wanted, "--per-class")?;
    let held_out = candidates.family.take(&wanted)?;
    let is_held_out: HashSet<usize> = held_out.iter().copied().collect();
    let rest: Vec<usize> = candidates.positions.iter().copied().filter(|p| !is_held_out.contains(p)).collect();
    if rest.is_empty() {
        return Err(UsageError("nothing would be left for --rest; hold out fewer images".to_owned()).into());
    }
    let made = [candidates.write_file(&args.out, &held_out)?, candidates.write_file(&args.rest, &rest)?];
    if context.json {
        context.print_json(&serde_json::json!({ "held_out": made[0].0, "rest": made[1].0 }))?;
    } else {
        context.print(&made.map(|(_, text)| text).concat())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn paper(args: &PaperArgs, context: Context) -> anyhow::Result<ExitCode> {
    if !(args.scale > 0.0 && args.scale <= 1.0) {
        return Err(UsageError(format!("--scale {}: must be above 0 and at most 1", args.scale)).into());
    }
    let experiment = Experiment::named(&args.experiment)?;
    let (data, out) = (std::path::absolute(&args.data)?, std::path::absolute(&args.out)?);
    let made = sets(&experiment, &Places { data: &data, given: None, made: &out }, args.scale)?;
    let n_files = 2 + usize::from(experiment.files.test.is_some()) + 3 * made.splits.len();
    if context.json {
        context.print_json(&serde_json::json!({ "out": out, "experiment": experiment.name, "n_files": n_files }))?;
    } else {
        context.print(&format!("{}: the {n_files} sets of {}\n", args.out.display(), experiment.title))?;
    }
    Ok(ExitCode::SUCCESS)
}
