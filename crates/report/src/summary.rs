//! What the published analysis prints of an experiment, over its splits: All, class-wise std, Std, Many, Medium, Few; with the
//! worst class, an interval, the published row, the difference and a verdict.
//!
//! Source: the SDCLR paper's section 4.2 and its published analysis. Each number is computed per split and then averaged: mean ±
//! population standard deviation over splits.

use crate::table::{Align, Cell, Table};
use sdclr_records::experiment::{Experiment, PublishedRow};
use sdclr_records::names::Protocol;
use sdclr_records::results::Group;
use sdclr_records::{ProbeResult, experiment::Arm};
use serde::Serialize;

/// One probe of one run.
#[derive(Debug, Clone, Copy)]
pub struct Measured<'a> {
    /// What was trained: rows are of one arm each.
    pub arm: &'a str,
    /// Its title.
    pub title: &'a str,
    /// The split, from 1, or the run's number.
    pub split: usize,
    /// The numbers.
    pub result: &'a ProbeResult,
}

/// A mean and a population standard deviation over splits, in percent or percentage points.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Mean over splits.
    pub mean: f64,
    /// Population standard deviation over splits.
    pub std: f64,
}

/// What was published, beside what was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The published row.
    pub published: PublishedRow,
    /// Measured mean of All minus the published one, in percentage points.
    pub difference: f64,
    /// What that says.
    pub verdict: Verdict,
}

/// Whether a published All lies where the mean of as many splits of our own would fall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Inside the 95 % interval that our spread over splits allows for it.
    Agrees,
    /// We measured more than the interval allows.
    Above,
    /// We measured less.
    Below,
    /// One split has no spread.
    OneSplit,
}

/// One arm under one protocol, over its splits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SummaryRow {
    /// The arm.
    pub arm: String,
    /// Its title.
    pub title: String,
    /// How it was examined.
    pub protocol: Protocol,
    /// The splits behind the numbers.
    pub splits: Vec<usize>,
    /// Mean of the class accuracies.
    pub all: Spread,
    /// Half the width of the 95 % interval of All's mean; see [`DEFINITIONS`].
    pub all_ci95: Option<f64>,
    /// Standard deviation of the class accuracies.
    pub class_std: Spread,
    /// Mean accuracy of the Many classes; absent without groups.
    pub many: Option<Spread>,
    /// Of the Medium classes.
    pub medium: Option<Spread>,
    /// Of the Few classes.
    pub few: Option<Spread>,
    /// Standard deviation of the three groups' means, per split.
    pub group_std: Option<Spread>,
    /// The lowest class accuracy, per split.
    pub worst_class: Spread,
    /// The published row, if there is one.
    pub comparison: Option<Comparison>,
}

/// What the columns mean, for `--definitions`.
pub const DEFINITIONS: &str = "\
All        mean of the class accuracies on the test set, percent; mean ± population std over splits, as all columns
±95 %      half the width of All's 95 % interval: over splits (Student's t) with two or more, else over test images (each class a
           binomial of its own)
Many, Medium, Few
           mean accuracy of the classes with many, medium and few images in the long-tail split: thirds by count for the CIFAR
           family (the lowest C/3, rounded down, Few; the next C/3 Medium; the rest Many); for ImageNet above 100, 20 to 100
           and below 20 images. A balanced run is grouped by its split's long tail too
Std        population std of the three group means, per split (\"balancedness\"; lower is better)
Class std  population std of the class accuracies, per split
Worst      the lowest class accuracy, per split
Published  the paper's All; \"recalled\" means from memory, not from a page at hand
Diff       measured All minus the published one, percentage points
Verdict    agrees: the published All, a mean over m splits, lies where our own spread over n splits lets such a mean fall with
           95 % (mean ± t·s·√(1/n + 1/m), s with n−1); above, below: we measured more, less. One split allows no verdict
";

/// Puts measurements together, an arm and protocol a row, in the order in which they come.
pub fn summarise(measured: &[Measured<'_>], experiment: Option<&Experiment>) -> Vec<SummaryRow> {
    let mut keys: Vec<(&str, Protocol)> = Vec::new();
    for one in measured {
        if !keys.contains(&(one.arm, one.result.protocol)) {
            keys.push((one.arm, one.result.protocol));
        }
    }
    let row = |(arm, protocol): (&str, Protocol)| {
        let members: Vec<&Measured<'_>> =
            measured.iter().filter(|one| one.arm == arm && one.result.protocol == protocol).collect();
        summary_row(arm, protocol, &members, experiment)
    };
    keys.into_iter().map(row).collect()
}

fn summary_row(
    arm: &str,
    protocol: Protocol,
    members: &[&Measured<'_>],
    experiment: Option<&Experiment>,
) -> SummaryRow {
    let results: Vec<&ProbeResult> = members.iter().map(|one| one.result).collect();
    let over = |value: &dyn Fn(&ProbeResult) -> Option<f64>| -> Option<Spread> {
        let values: Option<Vec<f64>> = results.iter().map(|result| value(result)).collect();
        values.filter(|values| !values.is_empty()).map(|values| spread(&values))
    };
    let group = |which: Group| {
        over(&|result: &ProbeResult| {
            let groups = result.groups.as_ref()?;
            match which {
                Group::Many => groups.many,
                Group::Medium => groups.medium,
                Group::Few => groups.few,
            }
        })
    };
    let values: Vec<f64> = results.iter().map(|result| result.all).collect();
    let all = spread(&values);
    let worst = |result: &ProbeResult| result.class_accuracy.iter().copied().flatten().reduce(f64::min);
    let none = Spread { mean: f64::NAN, std: f64::NAN };
    SummaryRow {
        arm: arm.to_owned(),
        title: members.first().map_or(arm, |one| one.title).to_owned(),
        protocol,
        splits: members.iter().map(|one| one.split).collect(),
        all,
        all_ci95: half_width(&values).or_else(|| results.first().and_then(|result| binomial_half_width(result))),
        class_std: over(&|result| Some(result.class_std)).unwrap_or(none),
        many: group(Group::Many),
        medium: group(Group::Medium),
        few: group(Group::Few),
        group_std: over(&|result| result.groups.as_ref()?.std),
        worst_class: over(&worst).unwrap_or(none),
        comparison: experiment
            .and_then(|experiment| Some(compare(&values, experiment.published(arm, protocol)?, experiment.n_splits))),
    }
}

/// `n_published` splits are behind the published mean.
fn compare(values: &[f64], published: &PublishedRow, n_published: usize) -> Comparison {
    let difference = spread(values).mean - published.all;
    let verdict = match half_width(values) {
        None => Verdict::OneSplit,
        // t·s/√n, widened to t·s·√(1/n + 1/m).
        Some(half) if difference.abs() <= half * (1.0 + values.len() as f64 / n_published as f64).sqrt() => {
            Verdict::Agrees
        }
        Some(_) if difference > 0.0 => Verdict::Above,
        Some(_) => Verdict::Below,
    };
    Comparison { published: published.clone(), difference, verdict }
}

/// Mean and population standard deviation.
fn spread(values: &[f64]) -> Spread {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    Spread { mean, std: (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n).sqrt() }
}

/// Student's t at 97.5 % for 1, 2, … 30 degrees of freedom (any table of it); 1.96 beyond.
const T_975: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// Half the width of the mean's 95 % interval over two or more values.
fn half_width(values: &[f64]) -> Option<f64> {
    let n = values.len();
    let t = T_975.get(n.checked_sub(2)?).copied().unwrap_or(1.96);
    let sample_std = spread(values).std * (n as f64 / (n - 1) as f64).sqrt();
    Some(t * sample_std / (n as f64).sqrt())
}

/// The same for one result, from the number of its test images: every class is a binomial of as many images as the others.
fn binomial_half_width(result: &ProbeResult) -> Option<f64> {
    let shares: Vec<f64> = result.class_accuracy.iter().copied().flatten().map(|percent| percent / 100.0).collect();
    let n_a_class = result.n_test as f64 / shares.len() as f64;
    let variance = shares.iter().map(|p| p * (1.0 - p) / n_a_class).sum::<f64>() / (shares.len() as f64).powi(2);
    (!shares.is_empty() && result.n_test > 0).then(|| 100.0 * 1.96 * variance.sqrt())
}

/// One table a protocol: its title and its rows.
pub fn summary_tables(rows: &[SummaryRow]) -> Vec<(String, Table)> {
    let table = |protocol: Protocol| {
        let members: Vec<&SummaryRow> = rows.iter().filter(|row| row.protocol == protocol).collect();
        (protocol_title(protocol).to_owned(), summary_table(&members))
    };
    distinct(rows.iter().map(|row| row.protocol)).into_iter().map(table).collect()
}

/// A protocol's name for people.
pub fn protocol_title(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::LinearPaper => "Linear separability (all labels, the paper's probe)",
        Protocol::LinearCached => "Linear probe on cached features",
        Protocol::FewShot => "Few-shot",
        Protocol::Knn => "Nearest neighbours",
        Protocol::RawPixels => "Raw pixels",
        Protocol::Finetune => "Fine-tuning",
        Protocol::Supervised => "Supervised, from scratch",
    }
}

fn summary_table(rows: &[&SummaryRow]) -> Table {
    let titles = ["All", "±95 %", "Many", "Medium", "Few", "Std", "Class std", "Worst", "Splits"];
    let published = rows.iter().any(|row| row.comparison.is_some());
    let right = titles.into_iter().chain(if published { vec!["Published", "Diff"] } else { vec![] });
    let mut columns: Vec<(&str, Align)> = vec![("", Align::Left)];
    columns.extend(right.map(|title| (title, Align::Right)));
    if published {
        columns.push(("Verdict", Align::Left));
    }
    let mut table = Table::new(&columns);
    for row in rows {
        let over = |value: Option<Spread>| match value {
            Some(Spread { mean, .. }) if row.splits.len() == 1 => Cell::Percent(mean),
            Some(Spread { mean, std }) => Cell::MeanStd(mean, std),
            None => Cell::Missing,
        };
        let mut cells = vec![
            row.title.as_str().into(),
            over(Some(row.all)),
            Cell::percent(row.all_ci95),
            over(row.many),
            over(row.medium),
            over(row.few),
            over(row.group_std),
            over(Some(row.class_std)),
            over(Some(row.worst_class)),
            Cell::Count(row.splits.len()),
        ];
        if published {
            cells.extend(comparison_cells(row.comparison.as_ref()));
        }
        table.push(cells);
    }
    table
}

fn comparison_cells(comparison: Option<&Comparison>) -> [Cell; 3] {
    let Some(Comparison { published, difference, verdict }) = comparison else {
        return [Cell::Missing, Cell::Missing, Cell::Missing];
    };
    let recalled = if published.is_recalled("all") { " recalled" } else { "" };
    [
        format!("{:.2}{recalled}", published.all).as_str().into(),
        format!("{difference:+.2}").as_str().into(),
        verdict_text(*verdict).into(),
    ]
}

/// Every number of every row as comma-separated values with full precision, a column each.
pub fn summary_csv(rows: &[SummaryRow]) -> String {
    let spreads = ["all", "many", "medium", "few", "std", "class_std", "worst_class"];
    let mut columns = vec!["arm".to_owned(), "protocol".to_owned(), "n_splits".to_owned()];
    columns.extend(spreads.iter().flat_map(|name| [(*name).to_owned(), format!("{name}_over_splits")]));
    columns.extend(["all_ci95", "published_all", "recalled", "difference", "verdict"].map(str::to_owned));
    let titles: Vec<(&str, Align)> = columns.iter().map(|title| (title.as_str(), Align::Left)).collect();
    let mut table = Table::new(&titles);
    for row in rows {
        let spreads =
            [Some(row.all), row.many, row.medium, row.few, row.group_std, Some(row.class_std), Some(row.worst_class)];
        let mut cells = vec![row.arm.as_str().into(), row.protocol.as_str().into(), Cell::Count(row.splits.len())];
        cells.extend(spreads.iter().flat_map(|one| {
            [Cell::percent(one.map(|spread| spread.mean)), Cell::percent(one.map(|spread| spread.std))]
        }));
        cells.push(Cell::percent(row.all_ci95));
        match &row.comparison {
            Some(Comparison { published, difference, verdict }) => cells.extend([
                Cell::Percent(published.all),
                published.is_recalled("all").to_string().as_str().into(),
                Cell::Percent(*difference),
                verdict_text(*verdict).into(),
            ]),
            None => cells.extend([Cell::Missing, Cell::Missing, Cell::Missing, Cell::Missing]),
        }
        table.push(cells);
    }
    table.to_csv()
}

fn verdict_text(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Agrees => "agrees",
        Verdict::Above => "above",
        Verdict::Below => "below",
        Verdict::OneSplit => "one split, no verdict",
    }
}

/// The published rows of an experiment, one table a protocol with its title; each number from memory is marked.
pub fn published_tables(experiment: &Experiment) -> Vec<(String, Table)> {
    let table = |protocol: Protocol| {
        let rows: Vec<&PublishedRow> = experiment.published.iter().filter(|row| row.protocol == protocol).collect();
        (format!("Published: {}", protocol_title(protocol)), published_table(experiment, &rows))
    };
    distinct(experiment.published.iter().map(|row| row.protocol)).into_iter().map(table).collect()
}

fn published_table(experiment: &Experiment, rows: &[&PublishedRow]) -> Table {
    let right = ["All", "Many", "Medium", "Few", "Std"].map(|title| (title, Align::Right));
    let mut columns: Vec<(&str, Align)> = vec![("", Align::Left)];
    columns.extend(right);
    columns.push(("Source", Align::Left));
    let mut table = Table::new(&columns);
    for row in rows {
        let title = experiment.arms.iter().find(|arm: &&Arm| arm.name == row.arm).map_or(&row.arm, |arm| &arm.title);
        let cell = |field: &str, value: Option<f64>| match value {
            Some(value) if row.is_recalled(field) => format!("{value:.2} recalled").as_str().into(),
            Some(value) => Cell::Percent(value),
            None => Cell::Missing,
        };
        table.push(vec![
            title.as_str().into(),
            cell("all", Some(row.all)),
            cell("many", row.many),
            cell("medium", row.medium),
            cell("few", row.few),
            cell("std", row.std),
            row.source.as_str().into(),
        ]);
    }
    table
}

/// Each protocol once, in the order in which they come.
fn distinct(protocols: impl Iterator<Item = Protocol>) -> Vec<Protocol> {
    let mut found = Vec::new();
    for protocol in protocols {
        if !found.contains(&protocol) {
            found.push(protocol);
        }
    }
    found
}

#[cfg(test)]
#[path = "summary_tests.rs"]
mod tests;
