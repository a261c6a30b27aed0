//! `sdclr bench probe`: features and the linear head, by the path of `eval linear`.

use super::setup::{Setup, object};
use super::{Report, show};
use crate::args::BenchProbeArgs;
use crate::context::Context;
use crate::exit::UsageError;
use sdclr::bench::Repeats;
use sdclr::bench::data::made_up;
use sdclr::bench::probe::{ProbeRates, probe_rates};
use serde_json::{Map, Value, json};
use std::process::ExitCode;

/// Times the probe of an untrained network.
///
/// # Errors
/// Settings that do not do, images without labels, too little memory.
pub fn run(args: &BenchProbeArgs, context: Context) -> anyhow::Result<ExitCode> {
    if args.images == 0 {
        return Err(UsageError("--images 0: must be at least 1".to_owned()).into());
    }
    if !(args.seconds > 0.0 && args.seconds.is_finite()) {
        return Err(UsageError(format!("--seconds {}: must be a number above 0", args.seconds)).into());
    }
    let mut setup = Setup::new(&args.flags, context)?;
    let report = measure(&mut setup, args.images, Repeats { at_least: 1, ..Repeats::lasting(args.seconds) })?;
    show(&report, &setup)
}

/// Times the features of `n_images` images and the head on them.
///
/// # Errors
/// Images without labels, too little memory.
pub fn measure(setup: &mut Setup, n_images: usize, repeats: Repeats) -> anyhow::Result<ProbeReport> {
    setup.context.note(&format!("features of {n_images} images and the linear head"));
    let images = match setup.images()? {
        Some(all) if all.len() > n_images => {
            // Spread over the data set, which may be sorted by class.
            all.select(&(0..n_images).map(|i| i * all.len() / n_images).collect::<Vec<_>>())?
        }
        Some(all) => all,
        None => made_up(setup.config.data.image_size, n_images),
    };
    Ok(ProbeReport(probe_rates(&setup.config, &setup.machine, &mut setup.peaks, &images, repeats)?))
}

/// What was reached.
pub struct ProbeReport(ProbeRates);

impl Report for ProbeReport {
    fn json(&self, _: &Setup) -> Map<String, Value> {
        let rates = &self.0;
        object(json!({
            "images": rates.n_images,
            "features_images_per_s": rates.features_per_s,
            "feature_width": rates.width,
            "classes": rates.n_classes,
            "head_epochs": rates.head_epochs,
            "head_s": rates.head_s,
            "head_images_per_s": rates.head_features_per_s,
        }))
    }

    fn text(&self, setup: &Setup) -> anyhow::Result<String> {
        let ProbeRates { features_per_s, width, n_images, n_classes, head_s, head_epochs, head_features_per_s } =
            self.0;
        let (model, size) = (&setup.config.model.name, setup.config.data.image_size);
        Ok(format!(
            "linear probe of {model}, {n_images} images of {size} pixels, {width} features, {n_classes} classes\n\
             features  {features_per_s:>9.0} images/s\n\
             head      {head_features_per_s:>9.0} images/s, {head_s:.2} s for {head_epochs} epochs\n"
        ))
    }
}
