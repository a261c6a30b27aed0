//! How fast a backbone is probed: features of labelled images, and the linear head on them.
//!
//! The path is that of `eval linear`: images through the loader and the frozen network in evaluation mode, then SGD on the
//! cached features.

use super::{Repeats, median, sample};
use crate::backend::Machine;
use crate::error::Error;
use crate::probe::classifier::Classifier;
use crate::probe::{Extractor, Halt, Subject, Weights};
use crate::progress::Unobserved;
use crate::signals::StopFlag;
use sdclr_data::Dataset;
use sdclr_engine::Peaks;
use sdclr_records::names::Protocol;
use sdclr_records::{ProbeConfig, RunConfig};
use std::time::Instant;

/// What a probe reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbeRates {
    /// Images a second from the source to features.
    pub features_per_s: f64,
    /// Length of a feature.
    pub width: usize,
    /// Images whose features were computed each time.
    pub n_images: usize,
    /// Classes of the head.
    pub n_classes: usize,
    /// Seconds of the head's training: every epoch of the probe over these images' features.
    pub head_s: f64,
    /// Those epochs.
    pub head_epochs: usize,
    /// Features a second in the head's training.
    pub head_features_per_s: f64,
}

/// Times the probe of an untrained network on labelled images.
///
/// # Errors
/// Images without labels, out of memory, a failed device.
pub fn probe_rates(
    config: &RunConfig,
    machine: &Machine,
    peaks: &mut Peaks,
    images: &Dataset,
    repeats: Repeats,
) -> Result<ProbeRates, Error> {
    let n_classes = images.n_classes().ok_or_else(|| Error::Unfit("a probe needs images with labels".to_owned()))?;
    let probe = ProbeConfig::new(Protocol::LinearCached, config.data.image_size, config.seed);
    let subject = Subject { config: config.clone(), weights: Weights::Untrained };
    let mut extractor = Extractor::new(&subject, machine)?;
    let (stop, recipe) = (StopFlag::new(), &probe.augment_test);
    let mut extract = || match extractor.all(images, "to probe", recipe, &stop, &mut Unobserved) {
        Ok(features) => Ok(features),
        Err(Halt::Failed(error)) => Err(error),
        Err(Halt::Stopped(_)) => unreachable!("nobody raises this flag"),
    };
    // The first touches fresh memory, and decodes what the loader keeps.
    let features = extract()?;
    let times = repeats.collect(|| {
        sample(peaks);
        let began = Instant::now();
        extract()?;
        Ok::<f64, Error>(began.elapsed().as_secs_f64())
    })?;
    let engine = &mut *extractor.engine;
    let mut head = Classifier::new(engine, features.width, n_classes, &probe)?;
    let began = Instant::now();
    for _ in 0..probe.epochs {
        let rows = features.values.chunks(probe.batch_size * features.width);
        for (rows, labels) in rows.zip(features.labels.chunks(probe.batch_size)) {
            // A rate this small keeps the loss finite on features that are not standardised.
            head.step(engine, rows, labels, 1e-6)?;
        }
    }
    engine.sync()?;
    let head_s = began.elapsed().as_secs_f64();
    let n_images = features.len();
    Ok(ProbeRates {
        features_per_s: n_images as f64 / median(&times),
        width: features.width,
        n_images,
        n_classes,
        head_s,
        head_epochs: probe.epochs,
        head_features_per_s: (n_images * probe.epochs) as f64 / head_s,
    })
}
