//! `sdclr demo`: both methods on bundled real images, measured beside two yardsticks.

use crate::args::DemoArgs;
use crate::context::Context;
use crate::progress::Progress;
use crate::wiring::{self, Outcome, PretrainJob};
use crate::{config, signals};
use anyhow::Context as _;
use sdclr::run_dir::{Existing, RunDir, RunDirError, describe_io, write_atomic};
use sdclr::signals::{StopFlag, StopSignal};
use sdclr_records::RunConfig;
use sdclr_records::layers::{Layer, resolve};
use sdclr_records::names::Method;
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

/// Trains, probes and prints.
///
/// # Errors
/// A folder that cannot be written, or training that fails.
pub fn run(args: &DemoArgs, context: Context) -> anyhow::Result<ExitCode> {
    let out = std::path::absolute(args.out.clone().unwrap_or_else(free_folder))?;
    let data = unpack(&out)?;
    let stop = signals::install()?;
    context.note(&format!("writing to {}", out.display()));
    for method in Method::ALL.iter().copied() {
        let run_config = demo_config(args, method, &data)?;
        if let Err(signal) = pretrain(&run_config, &out.join(method.as_str()), &stop, context)? {
            return Ok(ExitCode::from(signal.exit_code()));
        }
    }
    anyhow::bail!("the demo's probes are not wired yet")
}

/// Writes the bundled images into `OUT/data`, which is new or empty.
fn unpack(out: &Path) -> anyhow::Result<PathBuf> {
    let occupied = std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    if occupied {
        anyhow::bail!("{}: the folder is not empty; give another --out", out.display());
    }
    let data = out.join("data");
    let failed = |path: &Path, e: &std::io::Error| format!("{}: cannot write: {}", path.display(), describe_io(e));
    std::fs::create_dir_all(&data).map_err(|e| anyhow::anyhow!(failed(&data, &e)))?;
    for (name, bytes) in ASSETS {
        let path = data.join(name);
        write_atomic(&path, |file| file.write_all(bytes)).map_err(|e| anyhow::anyhow!(failed(&path, &e)))?;
    }
    Ok(data)
}

fn demo_config(args: &DemoArgs, method: Method, data: &Path) -> anyhow::Result<RunConfig> {
    let source = data.join("train-images-idx3-ubyte.gz");
    let source = source.to_str().context("the folder's name is not Unicode")?;
    let mut flags = vec![
        ("method".to_owned(), method.to_string()),
        ("data".to_owned(), source.to_owned()),
        ("threads".to_owned(), args.threads.to_string()),
    ];
    flags.extend(args.epochs.map(|epochs| ("epochs".to_owned(), epochs.to_string())));
    flags.extend(args.seed.map(|seed| ("seed".to_owned(), seed.to_string())));
    Ok(resolve(&[Layer::preset("demo")?, Layer::from_flags(&flags)?])?)
}

fn pretrain(
    run_config: &RunConfig,
    out: &Path,
    stop: &StopFlag,
    context: Context,
) -> anyhow::Result<Result<(), StopSignal>> {
    let dataset = config::open_training_images(run_config)?;
    let writer = RunDir::create(out, Existing::Refuse, run_config).map_err(|e: RunDirError| anyhow::anyhow!(e))?;
    let mut progress = Progress::new(context, run_config.method.as_str());
    let job = PretrainJob { config: run_config, dataset, writer, resume: false, stop, observer: &mut progress };
    let outcome = wiring::pretrain(job);
    progress.finish();
    Ok(match outcome? {
        Outcome::Finished { .. } => Ok(()),
        Outcome::Stopped(signal) => Err(signal),
    })
}

/// `sdclr-demo`, or the first of `sdclr-demo-2`, … that is not there.
fn free_folder() -> PathBuf {
    let numbered = (2..).map(|n| PathBuf::from(format!("sdclr-demo-{n}")));
    let mut candidates = std::iter::once(PathBuf::from("sdclr-demo")).chain(numbered);
    candidates.find(|path| !path.exists()).unwrap_or_else(|| PathBuf::from("sdclr-demo"))
}
