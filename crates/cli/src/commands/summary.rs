//! `sdclr summary`: many results, one table.

use crate::args::SummaryArgs;
use crate::context::Context;
use crate::exit::UsageError;
use sdclr::checkpoint::Checkpoint;
use sdclr::reproduce::{Plan, Settings};
use sdclr::run_dir::{CheckpointName, RunDir};
use sdclr_records::names::Protocol;
use sdclr_records::{Experiment, ProbeResult};
use sdclr_report::summary::DEFINITIONS;
use sdclr_report::{Measured, SummaryRow, published_tables, summarise, summary_csv, summary_tables};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Columns of text that any terminal of today shows in a line.
const COLUMNS: usize = 100;

/// Prints the summary of runs.
///
/// # Errors
/// A folder that is neither a run nor an experiment's, or holds no result.
pub fn run(args: &SummaryArgs, context: Context) -> anyhow::Result<ExitCode> {
    if args.definitions {
        context.print(DEFINITIONS)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut gathered = Gathered::default();
    let paths = with_runs_inside(&args.paths)?;
    check_paths(&paths)?;
    for path in &paths {
        let n_before = gathered.results.len();
        gathered.add(path)?;
        if gathered.results.len() == n_before && paths.len() > 1 {
            context.warn(&format!("{}: no result yet; left out", path.display()));
        }
    }
    gathered.outdated.iter().for_each(|text| context.warn(text));
    if gathered.is_mixed() {
        context.warn("these runs were tested on different images: their mean says little");
    }
    if gathered.has_networks() {
        context.warn("these runs are of different networks: their mean says little");
    }
    if let Some(name) = &args.experiment {
        gathered.experiment = Some(Experiment::named(name)?);
    }
    let rows = gathered.rows();
    if rows.is_empty() {
        let path = paths[0].display();
        let text = match gathered.experiment.is_some() && args.experiment.is_none() {
            true => format!("{path}: no probe of this experiment is done yet; go on with sdclr reproduce"),
            false => format!("{path}: no result yet; probe with: sdclr eval linear {path} --data SRC"),
        };
        return Err(UsageError(text).into());
    }
    if context.json {
        context.print_json(&serde_json::to_value(&rows)?)?;
    } else if args.csv {
        context.print(&summary_csv(&rows))?;
    } else {
        context.print(&text(&rows, gathered.experiment.as_ref(), &gathered.departures, args.markdown))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The paths, and in the place of a folder that is neither a run nor an experiment's the runs that lie in it.
fn with_runs_inside(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in paths {
        let inside = match RunDir::open(path).is_ok() || Settings::stored(path)?.is_some() {
            true => Vec::new(),
            false => RunDir::inside(path),
        };
        match inside.is_empty() {
            true => all.push(path.clone()),
            false => all.extend(inside.iter().map(|run| run.root().to_owned())),
        }
    }
    Ok(all)
}

/// An experiment's folder is a whole, and a run counts once.
fn check_paths(paths: &[PathBuf]) -> anyhow::Result<()> {
    for (i, path) in paths.iter().enumerate() {
        if paths.len() > 1 && Settings::stored(path)?.is_some() {
            let text = format!("{}: a folder of sdclr reproduce is summarised alone", path.display());
            return Err(UsageError(text).into());
        }
        let same =
            |other: &PathBuf| other.canonicalize().ok().zip(path.canonicalize().ok()).is_some_and(|(a, b)| a == b);
        if paths[..i].iter().any(same) {
            return Err(UsageError(format!("{}: is there twice", path.display())).into());
        }
    }
    Ok(())
}

/// Results and where they are from.
#[derive(Default)]
pub struct Gathered {
    /// The experiment of the folders, if one is.
    pub experiment: Option<Experiment>,
    /// What keeps it from being the paper's.
    pub departures: Vec<String>,
    results: Vec<Found>,
    /// Results of other weights than the run's last checkpoint now holds, in words.
    outdated: Vec<String>,
}

struct Found {
    arm: String,
    title: String,
    split: usize,
    result: ProbeResult,
}

impl Gathered {
    /// Adds a run directory, or every run of an experiment's folder.
    ///
    /// # Errors
    /// A folder that is neither, or results that cannot be read.
    pub fn add(&mut self, path: &Path) -> anyhow::Result<()> {
        if let Some(settings) = Settings::stored(path)? {
            return self.add_experiment(path, &settings);
        }
        if !path.is_dir() {
            anyhow::bail!("{}: no such folder", path.display());
        }
        let run = RunDir::open(path)?;
        let config = run.config()?;
        let is_unknown = config.import.as_ref().is_some_and(|import| !import.knows_method);
        let (arm, title) = match is_unknown {
            true => ("imported".to_owned(), "imported"),
            false => (config.method.to_string(), config.method.title()),
        };
        let split =
            1 + self.results.iter().filter(|found| found.arm == arm).map(|found| found.split).max().unwrap_or(0);
        self.add_run(&run, &arm, title, split)
    }

    fn add_experiment(&mut self, path: &Path, settings: &Settings) -> anyhow::Result<()> {
        let experiment = Experiment::named(&settings.experiment)?;
        self.departures = settings.departures();
        // Only what belongs to the experiment: a run may have been probed by hand too, at another epoch or on other images.
        let plan = Plan::of_folder(path)?;
        let runs = experiment.arms.iter().flat_map(|arm| (1..=experiment.n_splits).map(move |split| (arm, split)));
        for (arm, split) in runs {
            for protocol in [Protocol::LinearPaper, Protocol::FewShot] {
                let result = plan.as_ref().map(|plan| plan.result(split, arm, protocol)).transpose()?.flatten();
                let unpublished = if arm.unpublished { " (unpublished values)" } else { "" };
                let (arm, title) = (arm.name.clone(), format!("{}{unpublished}", arm.title));
                self.results.extend(result.map(|result| Found { arm, title, split, result }));
            }
        }
        self.experiment = Some(experiment);
        Ok(())
    }

    fn add_run(&mut self, run: &RunDir, arm: &str, title: &str, split: usize) -> anyhow::Result<()> {
        let last = run.checkpoint_path(CheckpointName::Last);
        let now = Checkpoint::load_state(&last).ok().map(|state| state.step);
        for (name, result) in run.results()? {
            let weights = result.weights.as_ref();
            // What has another name, or is of a kept checkpoint, is of other weights on purpose.
            let of_last = weights.filter(|w| {
                let file = w.checkpoint.as_ref().and_then(|path| path.file_name());
                name == result.protocol.as_str() && file == last.file_name()
            });
            if let (Some(weights), Some(now)) = (of_last, now)
                && weights.step != now
            {
                let (run, step) = (run.root().display(), weights.step);
                self.outdated
                    .push(format!("{run}: {name} is of step {step}, the checkpoint is of step {now}: probe it again"));
            }
            // A network trained from scratch has nothing of the run but its kind.
            let (arm, title, split) = match result.protocol {
                Protocol::Supervised => ("supervised", "Supervised", 1 + self.n_supervised()),
                _ => (arm, title, split),
            };
            // Another checkpoint's or another name's result is another row.
            let own = name == result.protocol.as_str();
            let (arm, title) = match own {
                true => (arm.to_owned(), title.to_owned()),
                false => (format!("{arm}/{name}"), format!("{title}, {name}")),
            };
            self.results.push(Found { arm, title, split, result });
        }
        Ok(())
    }

    fn n_supervised(&self) -> usize {
        self.results.iter().filter(|found| found.result.protocol == Protocol::Supervised).count()
    }

    /// Whether results of one protocol are on different test images.
    fn is_mixed(&self) -> bool {
        let on = |found: &Found| (found.result.protocol, found.result.n_test, found.result.class_accuracy.len());
        let test = |found: &Found| found.result.data.test.clone();
        let is_experiment = self.experiment.is_some();
        !is_experiment
            && self.results.iter().any(|a| {
                self.results.iter().any(|b| {
                    a.arm == b.arm && a.result.protocol == b.result.protocol && (on(a) != on(b) || test(a) != test(b))
                })
            })
    }

    /// Whether one row would be of different networks.
    fn has_networks(&self) -> bool {
        fn network(found: &Found) -> Option<&str> {
            found.result.weights.as_ref().map(|weights| weights.model.as_str())
        }
        let differ =
            |a: &Found, b: &Found| a.arm == b.arm && a.result.protocol == b.result.protocol && network(a) != network(b);
        self.experiment.is_none() && self.results.iter().any(|a| self.results.iter().any(|b| differ(a, b)))
    }

    /// The table's rows.
    pub fn rows(&self) -> Vec<SummaryRow> {
        let mut sorted: Vec<&Found> = self.results.iter().collect();
        // Within a protocol's table the methods keep the experiment's order.
        let place = |found: &Found| self.results.iter().position(|other| other.arm == found.arm);
        sorted.sort_by_key(|found| (place(found), found.result.protocol == Protocol::FewShot));
        let measured: Vec<Measured<'_>> = sorted
            .into_iter()
            .map(|Found { arm, title, split, result }| Measured { arm, title, split: *split, result })
            .collect();
        summarise(&measured, self.experiment.as_ref())
    }
}

/// The tables as text or Markdown, and what keeps them from being the paper's.
pub fn text(rows: &[SummaryRow], experiment: Option<&Experiment>, departures: &[String], markdown: bool) -> String {
    let mut text = String::new();
    let heading = |title: &str| if markdown { format!("## {title}\n\n") } else { format!("{title}\n\n") };
    let render =
        |table: &sdclr_report::Table| if markdown { table.to_markdown() } else { table.to_fitted_text(COLUMNS) };
    if let Some(experiment) = experiment {
        let (title, source) = (&experiment.title, &experiment.source);
        text.push_str(&if markdown { format!("# {title}\n\n{source}\n\n") } else { format!("{title}: {source}\n\n") });
    }
    if !departures.is_empty() {
        text.push_str(&format!("Not the paper's experiment: {}.\n\n", departures.join(", ")));
    }
    let published = experiment.map(published_tables).unwrap_or_default();
    for (title, table) in summary_tables(rows).into_iter().chain(published) {
        text.push_str(&format!("{}{}\n", heading(&title), render(&table)));
    }
    text.push_str(
        "Percent, mean ± population std over splits. sdclr summary --definitions says what the columns mean.\n",
    );
    text
}

/// Writes `summary.md`, `summary.csv` and `summary.json` of an experiment's folder.
///
/// # Errors
/// A file that cannot be written.
pub fn write(out: &Path, gathered: &Gathered) -> anyhow::Result<Vec<PathBuf>> {
    let rows = gathered.rows();
    let markdown = text(&rows, gathered.experiment.as_ref(), &gathered.departures, true);
    let files = [
        (out.join("summary.md"), markdown),
        (out.join("summary.csv"), summary_csv(&rows)),
        (out.join("summary.json"), format!("{:#}\n", serde_json::to_value(&rows)?)),
    ];
    for (path, text) in &files {
        super::export::write_file(path, text.as_bytes())?;
    }
    Ok(files.into_iter().map(|(path, _)| path).collect())
}
