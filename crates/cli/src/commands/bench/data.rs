//! `sdclr bench data`: augmentation on one core, decoding and augmentation on all workers.

use super::setup::{Setup, object};
use super::{Report, show};
use crate::args::BenchDataArgs;
use crate::context::Context;
use crate::exit::UsageError;
use sdclr::bench::Repeats;
use sdclr::bench::data::{LoaderRate, augmentation_rate, loader_rate, made_up, n_made_up};
use serde_json::{Map, Value, json};
use std::process::ExitCode;

/// Times augmentation and the loader.
///
/// # Errors
/// Settings that do not do, images that cannot be read.
pub fn run(args: &BenchDataArgs, context: Context) -> anyhow::Result<ExitCode> {
    if !(args.seconds > 0.0 && args.seconds.is_finite()) {
        return Err(UsageError(format!("--seconds {}: must be a number above 0", args.seconds)).into());
    }
    let mut setup = Setup::new(&args.flags, context)?;
    let report = measure(&mut setup, args.seconds)?;
    show(&report, &setup)
}

/// Times both, each for about `seconds`.
///
/// # Errors
/// Images that cannot be read.
pub fn measure(setup: &mut Setup, seconds: f64) -> anyhow::Result<DataReport> {
    setup.context.note("augmentation and the loader");
    let (config, size) = (&setup.config, setup.config.data.image_size);
    let dataset = setup.images()?.unwrap_or_else(|| made_up(size, n_made_up(size)));
    let augmented_per_s = augmentation_rate(config, &dataset, Repeats::lasting(seconds))?;
    let loader = loader_rate(config, &dataset, seconds)?;
    Ok(DataReport { images: dataset.description(), augmented_per_s, loader })
}

/// What was reached, in images a second with two views each.
pub struct DataReport {
    images: String,
    augmented_per_s: f64,
    loader: LoaderRate,
}

impl Report for DataReport {
    fn json(&self, setup: &Setup) -> Map<String, Value> {
        object(json!({
            "images": self.images,
            "made_up": !setup.has_data,
            "augmentation_images_per_s_per_core": self.augmented_per_s,
            "loader_images_per_s": self.loader.images_per_s,
            "loader_workers": self.loader.workers,
            "loader_batch_size": self.loader.batch_size,
        }))
    }

    fn text(&self, setup: &Setup) -> anyhow::Result<String> {
        let LoaderRate { images_per_s, workers, .. } = self.loader;
        let size = setup.config.data.image_size;
        Ok(format!(
            "{}{}, two views of {size} pixels each\n\
             augmentation  {:>9.0} images/s on one core\n\
             loader        {images_per_s:>9.0} images/s with {workers} workers\n",
            self.images,
            if setup.has_data { "" } else { " (made up)" },
            self.augmented_per_s,
        ))
    }
}
