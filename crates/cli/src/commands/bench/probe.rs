//! `sdclr bench probe`: features and the linear head, by the path of `eval linear`.

use super::against::{Contest, Rival};
use super::setup::{Setup, object};
use super::{Report, show};
use crate::args::BenchProbeArgs;
use crate::context::Context;
use crate::exit::UsageError;
use sdclr::bench::data::made_up;
use sdclr::bench::probe::{HeadRate, ProbeBench};
use sdclr::bench::{Repeats, median};
use sdclr_data::Dataset;
use serde_json::{Map, Value, json};
use std::process::ExitCode;

/// Times the probe of an untrained network, and another program's features in turn.
///
/// # Errors
/// Settings that do not do, images without labels, too little memory, a failing program.
pub fn run(args: &BenchProbeArgs, context: Context) -> anyhow::Result<ExitCode> {
    if args.images == 0 {
        return Err(UsageError("--images 0: must be at least 1".to_owned()).into());
    }
    if !(args.seconds > 0.0 && args.seconds.is_finite()) {
        return Err(UsageError(format!("--seconds {}: must be a number above 0", args.seconds)).into());
    }
    let rival = Rival::new(&args.against)?;
    let mut setup = Setup::new(&args.flags, context)?;
    let repeats = Repeats { at_least: 1, ..Repeats::lasting(args.seconds) };
    let Some(rival) = rival else {
        let report = measure(&mut setup, args.images, repeats)?;
        return show(&report, &setup);
    };
    let images = images(&setup, args.images)?;
    let mut bench = ProbeBench::new(&setup.config, &setup.machine, &images)?;
    let contest = rival.contest(&mut setup, "features_images_per_s", |setup| {
        let rates = repeats.collect(|| match rival.stopped() {
            Some(signal) => Err(Ok(signal)),
            None => bench.features_per_s(&mut setup.peaks).map_err(|e| Err(e.into())),
        });
        match rates {
            Ok(rates) => Ok(Ok(median(&rates))),
            Err(stopped) => stopped.map(Err),
        }
    })?;
    match contest {
        Ok(contest) => {
            let alone = report(&mut bench, contest.ours())?;
            show(&ProbeReport { contest: Some(contest), ..alone }, &setup)
        }
        Err(signal) => Ok(ExitCode::from(signal.exit_code())),
    }
}

/// Times the features of `n_images` images and the head on them.
///
/// # Errors
/// Images without labels, too little memory.
pub fn measure(setup: &mut Setup, n_images: usize, repeats: Repeats) -> anyhow::Result<ProbeReport> {
    let images = images(setup, n_images)?;
    let mut bench = ProbeBench::new(&setup.config, &setup.machine, &images)?;
    let rates = repeats.collect(|| bench.features_per_s(&mut setup.peaks))?;
    report(&mut bench, median(&rates))
}

/// At most `n_images` images with labels.
fn images(setup: &Setup, n_images: usize) -> anyhow::Result<Dataset> {
    setup.context.note(&format!("features of {n_images} images and the linear head"));
    Ok(match setup.images()? {
        Some(all) if all.len() > n_images => {
            // Spread over the data set, which may be sorted by class.
            all.select(&(0..n_images).map(|i| i * all.len() / n_images).collect::<Vec<_>>())?
        }
        Some(all) => all,
        None => made_up(setup.config.data.image_size, n_images),
    })
}

/// Times the head, too.
fn report(bench: &mut ProbeBench, features_per_s: f64) -> anyhow::Result<ProbeReport> {
    let head = bench.head()?;
    let (n_images, width) = (bench.features.len(), bench.features.width);
    Ok(ProbeReport { n_images, width, features_per_s, head, contest: None })
}

/// What was reached.
pub struct ProbeReport {
    n_images: usize,
    /// Length of a feature.
    width: usize,
    features_per_s: f64,
    head: HeadRate,
    contest: Option<Contest>,
}

impl Report for ProbeReport {
    fn json(&self, _: &Setup) -> Map<String, Value> {
        let mut json = object(json!({
            "images": self.n_images,
            "features_images_per_s": self.features_per_s,
            "feature_width": self.width,
            "classes": self.head.n_classes,
            "head_epochs": self.head.epochs,
            "head_s": self.head.seconds,
            "head_images_per_s": self.head.features_per_s,
        }));
        json.extend(self.contest.iter().map(|contest| ("against".to_owned(), contest.json())));
        json
    }

    fn text(&self, setup: &Setup) -> anyhow::Result<String> {
        let Self { n_images, width, features_per_s, .. } = self;
        let HeadRate { n_classes, epochs, seconds, features_per_s: head } = self.head;
        let (model, size) = (&setup.config.model.name, setup.config.data.image_size);
        let mut text = format!(
            "linear probe of {model}, {n_images} images of {size} pixels, {width} features, {n_classes} classes\n\
             features  {features_per_s:>9.0} images/s\n\
             head      {head:>9.0} images/s, {seconds:.2} s for {epochs} epochs\n"
        );
        text.extend(self.contest.iter().map(Contest::text));
        Ok(text)
    }
}
