//! `sdclr demo`: both methods on bundled real images, measured beside two yardsticks.

use super::export::write_file;
use crate::args::DemoArgs;
use crate::context::Context;
use crate::exit::UsageError;
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
use sdclr_records::results::{ImagesRecord, ProbeData};
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

/// What is trained, in this order.
const METHODS: [Method; 2] = [Method::SimClr, Method::SdClr];

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
    let demo = Demo { args, context, stop: signals::install_for_training()?, out };
    // What was typed is checked before anything is written.
    for method in METHODS {
        drop(Machine::of(&demo.config(method)?, system::kernels()?).engine()?);
    }
    unpack(&demo.out)?;
    match demo.rows()? {
        Ok(rows) => demo.show(&rows),
        Err(signal) => {
            demo.say_how_to_go_on();
            Ok(ExitCode::from(signal.exit_code()))
        }
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
        for method in METHODS {
            let run_config = self.config(method)?;
            let run = match self.pretrain(&run_config)? {
                Ok(run) => run,
                Err(signal) => return Ok(Err(signal)),
            };
            let weights = Weights::Trained(run.checkpoint_path(CheckpointName::Last));
            match self.probe(Subject { config: run_config, weights })? {
                Ok(row) => rows.push(row),
                Err(signal) => return Ok(Err(signal)),
            }
            let row = &rows[rows.len() - 1];
            run.write_result("linear", &row.linear)?;
            run.write_result("knn", &row.knn)?;
        }
        for weights in [Weights::Untrained, Weights::RawPixels] {
            match self.probe(Subject { config: self.config(Method::SdClr)?, weights })? {
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
        let claim = RunDir::claim(&self.run_path(run_config.method), Existing::Refuse, run_config)?;
        let run = claim.dir().clone();
        let mut progress = Progress::new(self.context, run_config.method.title());
        let job = PretrainJob {
            config: run_config,
            dataset,
            claim,
            kernels: system::kernels()?,
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

    fn probe(&self, subject: Subject) -> anyhow::Result<Result<Row, StopSignal>> {
        let name = subject.title();
        let linear_protocol = match subject.weights {
            Weights::RawPixels => Protocol::RawPixels,
            _ => Protocol::LinearCached,
        };
        let linear = match self.measure(&subject, linear_protocol)? {
            Ok(result) => result,
            Err(signal) => return Ok(Err(signal)),
        };
        Ok(self.measure(&subject, Protocol::Knn)?.map(|knn| Row { name, linear, knn }))
    }

    fn measure(&self, subject: &Subject, protocol: Protocol) -> anyhow::Result<Result<ProbeResult, StopSignal>> {
        let counts = self.images("train")?.class_counts().context("the bundled images have labels")?;
        let mut progress = Progress::new(self.context, subject.title());
        let record = |part: &str| {
            let (source, part) = (self.images_path(part), Part::All);
            Some(ImagesRecord { source, part, split: None, root: None, per_class: None })
        };
        let job = ProbeJob {
            subject,
            probe: ProbeConfig::new(protocol, subject.config.data.image_size, subject.config.seed),
            train: self.images("probe")?,
            validation: None,
            test: self.images("test")?,
            tail: Some((counts, GroupRule::Thirds)),
            data: ProbeData { train: record("probe"), validation: None, test: record("test"), tail: record("train") },
            machine: Machine::of(&subject.config, system::kernels()?),
            memory_limit: None,
            stop: &self.stop,
            observer: &mut progress,
        };
        let result = probe(job);
        progress.finish();
        let named =
            |result: ProbeResult| ProbeResult { class_names: CLASS_NAMES.map(str::to_owned).to_vec(), ..result };
        Ok(result?.map(|probed| named(probed.result)))
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

    /// After a stop: the demo itself begins anew, the run that it was training can go on alone.
    fn say_how_to_go_on(&self) {
        let mut text = "stopped; begin the demo anew with: sdclr demo".to_owned();
        let begun = METHODS.into_iter().rev().map(|method| self.run_path(method));
        if let Some(run) = begun.into_iter().find(|run| RunDir::open(run).is_ok()) {
            text.push_str(&format!(
                "; go on with the run it was at by: sdclr pretrain --out {} --resume",
                run.display()
            ));
        }
        self.context.note(&text);
    }

    fn run_path(&self, method: Method) -> PathBuf {
        self.out.join(method.as_str())
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
        return Err(UsageError(format!("{}: the folder is not empty; give another --out", out.display())).into());
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
