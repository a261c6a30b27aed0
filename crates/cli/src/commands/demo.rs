//! `sdclr demo`: both methods on bundled real images, measured beside two yardsticks.

use super::export::write_file;
use crate::args::DemoArgs;
use crate::context::Context;
use crate::progress::Progress;
use crate::{config, signals, system};
use anyhow::Context as _;
use sdclr::Machine;
use sdclr::metrics::{GroupRule, class_groups};
use sdclr::pretrain::{Outcome, PretrainJob, pretrain};
use sdclr::probe::{ProbeJob, Subject, Weights, probe};
use sdclr::run_dir::{CheckpointName, Existing, RunDir, describe_io};
use sdclr::signals::{StopFlag, StopSignal};
use sdclr_data::Dataset;
use sdclr_records::layers::{Layer, resolve};
use sdclr_records::names::{Method, Part, Protocol};
use sdclr_records::{ProbeConfig, ProbeResult, RunConfig};
use sdclr_report::{ResultRow, results_table, tail_line};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

macro_rules! asset {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../assets/fashion-mnist-lt/", $name)))
    };
}

/// A long-tailed subset of Fashion-MNIST (MIT licence; see the README beside the files).
const ASSETS: &[(&str, &[u8])] = &[
    asset!("train-images-idx3-ubyte.gz"),
    asset!("train-labels-idx1-ubyte.gz"),
    asset!("probe-images-idx3-ubyte.gz"),
    asset!("probe-labels-idx1-ubyte.gz"),
    asset!("test-images-idx3-ubyte.gz"),
    asset!("test-labels-idx1-ubyte.gz"),
    asset!("README.md"),
];

/// Fashion-MNIST's classes, by label; IDX files hold no names.
const CLASS_NAMES: [&str; 10] =
    ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"];

/// A row of the table: what was measured of one subject.
struct Row {
    name: &'static str,
    linear: ProbeResult,
    knn: ProbeResult,
}

/// Trains, probes and prints.
///
/// # Errors
/// A folder that cannot be written, or training that fails.
pub fn run(args: &DemoArgs, context: Context) -> anyhow::Result<ExitCode> {
    let out = std::path::absolute(args.out.clone().unwrap_or_else(free_folder))?;
    unpack(&out)?;
    let demo = Demo { args, context, stop: signals::install()?, out };
    match demo.rows()? {
        Ok(rows) => demo.show(&rows),
        Err(signal) => Ok(ExitCode::from(signal.exit_code())),
    }
}

struct Demo<'a> {
    args: &'a DemoArgs,
    context: Context,
    stop: StopFlag,
    out: PathBuf,
}

impl Demo<'_> {
    /// Every row, or the signal that ended the demo.
    fn rows(&self) -> anyhow::Result<Result<Vec<Row>, StopSignal>> {
        let mut rows = Vec::new();
        let methods = [("SimCLR", Method::SimClr), ("SDCLR", Method::SdClr)];
        for (name, method) in methods {
            let run_config = self.config(method)?;
            let run = match self.pretrain(&run_config)? {
                Ok(run) => run,
                Err(signal) => return Ok(Err(signal)),
            };
            let weights = Weights::Trained(run.checkpoint_path(CheckpointName::Last));
            match self.probe(name, Subject { config: run_config, weights })? {
                Ok(row) => rows.push(row),
                Err(signal) => return Ok(Err(signal)),
            }
            let row = &rows[rows.len() - 1];
            run.write_result("linear", &row.linear)?;
            run.write_result("knn", &row.knn)?;
        }
        for (name, weights) in [("untrained", Weights::Untrained), ("raw pixels", Weights::RawPixels)] {
            match self.probe(name, Subject { config: self.config(Method::SdClr)?, weights })? {
                Ok(row) => rows.push(row),
                Err(signal) => return Ok(Err(signal)),
            }
        }
        Ok(Ok(rows))
    }

    fn config(&self, method: Method) -> anyhow::Result<RunConfig> {
        let source = self.images_path("train");
        let source = source.to_str().context("the folder's name is not Unicode")?;
        let mut flags = vec![
            ("method".to_owned(), method.to_string()),
            ("data".to_owned(), source.to_owned()),
            ("threads".to_owned(), self.args.threads.to_string()),
        ];
        flags.extend(self.args.epochs.map(|epochs| ("epochs".to_owned(), epochs.to_string())));
        flags.extend(self.args.seed.map(|seed| ("seed".to_owned(), seed.to_string())));
        Ok(resolve(&[Layer::preset("demo")?, Layer::from_flags(&flags)?])?)
    }

    fn pretrain(&self, run_config: &RunConfig) -> anyhow::Result<Result<RunDir, StopSignal>> {
        let dataset = config::open_training_images(run_config)?;
        let writer = RunDir::create(&self.out.join(run_config.method.as_str()), Existing::Refuse, run_config)?;
        let run = writer.dir().clone();
        let mut progress = Progress::new(self.context, run_config.method.as_str());
        let job = PretrainJob {
            config: run_config,
            dataset,
            writer,
            resume: false,
            level: system::level()?,
            memory_limit: Some(system::memory().1),
            stop: &self.stop,
            observer: &mut progress,
        };
        let outcome = pretrain(job);
        progress.finish();
        Ok(match outcome? {
            Outcome::Finished { .. } => Ok(run),
            Outcome::Stopped(signal) => Err(signal),
        })
    }

    fn probe(&self, name: &'static str, subject: Subject) -> anyhow::Result<Result<Row, StopSignal>> {
        let linear_protocol = match subject.weights {
            Weights::RawPixels => Protocol::RawPixels,
            _ => Protocol::LinearCached,
        };
        let linear = match self.measure(name, &subject, linear_protocol)? {
            Ok(result) => result,
            Err(signal) => return Ok(Err(signal)),
        };
        Ok(self.measure(name, &subject, Protocol::Knn)?.map(|knn| Row { name, linear, knn }))
    }

    fn measure(
        &self,
        name: &str,
        subject: &Subject,
        protocol: Protocol,
    ) -> anyhow::Result<Result<ProbeResult, StopSignal>> {
        let counts = self.images("train")?.class_counts().context("the bundled images have labels")?;
        let mut progress = Progress::new(self.context, name);
        let job = ProbeJob {
            subject,
            probe: ProbeConfig::new(protocol, subject.config.data.image_size, subject.config.seed),
            train: self.images("probe")?,
            validation: None,
            test: self.images("test")?,
            tail: Some((counts, GroupRule::Thirds)),
            machine: Machine::of(&subject.config, system::level()?),
            stop: &self.stop,
            observer: &mut progress,
        };
        let result = probe(job);
        progress.finish();
        let named = |result: ProbeResult| ProbeResult {
            subject: name.to_owned(),
            class_names: CLASS_NAMES.map(str::to_owned).to_vec(),
            ..result
        };
        Ok(result?.map(named))
    }

    fn show(&self, rows: &[Row]) -> anyhow::Result<ExitCode> {
        let results: Vec<&ProbeResult> = rows.iter().flat_map(|row| [&row.linear, &row.knn]).collect();
        let json = serde_json::to_value(&results)?;
        write_file(&self.out.join("results.json"), format!("{json:#}\n").as_bytes())?;
        if self.context.json {
            self.context.print_json(&json)?;
            return Ok(ExitCode::SUCCESS);
        }
        let table: Vec<ResultRow<'_>> = rows
            .iter()
            .map(|row| ResultRow { name: row.name, linear: Some(&row.linear), knn: Some(&row.knn) })
            .collect();
        let counts = self.images("train")?.class_counts().unwrap_or_default();
        let names = CLASS_NAMES.map(str::to_owned);
        let tail = tail_line(&counts, &class_groups(&counts, GroupRule::Thirds), &names);
        let (table, out) = (results_table(&table).to_text(), self.out.display());
        self.context.print(&format!(
            "\n{table}\nAccuracy on {} test images, percent: linear probe, and kNN (nearest neighbours' vote).\n\
             Training images a class: {tail}\nRuns, results and images: {out}\n",
            rows[0].linear.n_test
        ))?;
        Ok(ExitCode::SUCCESS)
    }

    fn images(&self, part: &str) -> anyhow::Result<Dataset> {
        config::open_images(&self.images_path(part), Part::All, None, None)
    }

    fn images_path(&self, part: &str) -> PathBuf {
        self.out.join("data").join(format!("{part}-images-idx3-ubyte.gz"))
    }
}

/// Writes the bundled images into `OUT/data`; OUT is new or empty.
fn unpack(out: &Path) -> anyhow::Result<()> {
    let occupied = std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    if occupied {
        anyhow::bail!("{}: the folder is not empty; give another --out", out.display());
    }
    let data = out.join("data");
    std::fs::create_dir_all(&data)
        .map_err(|e| anyhow::anyhow!("{}: cannot write: {}", data.display(), describe_io(&e)))?;
    ASSETS.iter().try_for_each(|(name, bytes)| write_file(&data.join(name), bytes))
}

/// `sdclr-demo`, or the first of `sdclr-demo-2`, … that is not there.
fn free_folder() -> PathBuf {
    let numbered = (2..).map(|n| PathBuf::from(format!("sdclr-demo-{n}")));
    let mut candidates = std::iter::once(PathBuf::from("sdclr-demo")).chain(numbered);
    candidates.find(|path| !path.exists()).unwrap_or_else(|| PathBuf::from("sdclr-demo"))
}
