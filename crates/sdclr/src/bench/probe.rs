//! How fast a backbone is probed: features of labelled images, and the linear head on them.
//!
//! The path is that of `eval linear`: images through the loader and the frozen network in evaluation mode, then SGD on the
//! cached features.

use super::sample;
use crate::backend::Machine;
use crate::error::Error;
use crate::probe::classifier::Classifier;
use crate::probe::{Extractor, Features, Halt, Subject, Weights};
use crate::progress::Unobserved;
use crate::signals::StopFlag;
use sdclr_data::Dataset;
use sdclr_engine::Peaks;
use sdclr_records::names::Protocol;
use sdclr_records::{ProbeConfig, RunConfig};
use std::time::Instant;

/// How fast the linear head was trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadRate {
    /// Classes of the head.
    pub n_classes: usize,
    /// Epochs of the probe.
    pub epochs: usize,
    /// Seconds of all of them.
    pub seconds: f64,
    /// Features a second.
    pub features_per_s: f64,
}

/// The probe of an untrained network on labelled images.
pub struct ProbeBench<'a> {
    images: &'a Dataset,
    n_classes: usize,
    probe: ProbeConfig,
    extractor: Extractor,
    /// Every image's, by the network as it was made.
    pub features: Features,
}

impl<'a> ProbeBench<'a> {
    /// Makes the network and computes features once, which touches fresh memory and decodes what the loader keeps.
    ///
    /// # Errors
    /// Images without labels, out of memory, a failed device.
    pub fn new(config: &RunConfig, machine: &Machine, images: &'a Dataset) -> Result<Self, Error> {
        let n_classes =
            images.n_classes().ok_or_else(|| Error::Unfit("a probe needs images with labels".to_owned()))?;
        let probe = ProbeConfig::new(Protocol::LinearCached, config.data.image_size, config.seed);
        let subject = Subject { config: config.clone(), weights: Weights::Untrained };
        let mut extractor = Extractor::new(&subject, machine)?;
        let features = extract(&mut extractor, images, &probe)?;
        Ok(Self { images, n_classes, probe, extractor, features })
    }

    /// Images a second from the source to features, of one pass over all.
    ///
    /// # Errors
    /// Images that can no longer be read, a failed device.
    pub fn features_per_s(&mut self, peaks: &mut Peaks) -> Result<f64, Error> {
        sample(peaks);
        let began = Instant::now();
        extract(&mut self.extractor, self.images, &self.probe)?;
        Ok(self.features.len() as f64 / began.elapsed().as_secs_f64())
    }

    /// Trains the linear head on the features, as long as the probe does.
    ///
    /// # Errors
    /// Out of memory, a failed device.
    pub fn head(&mut self) -> Result<HeadRate, Error> {
        let (engine, probe, features) = (&mut *self.extractor.engine, &self.probe, &self.features);
        let mut head = Classifier::new(engine, features.width, self.n_classes, probe)?;
        let began = Instant::now();
        for _ in 0..probe.epochs {
            let rows = features.values.chunks(probe.batch_size * features.width);
            for (rows, labels) in rows.zip(features.labels.chunks(probe.batch_size)) {
                // A rate this small keeps the loss finite on features that are not standardised.
                head.step(engine, rows, labels, 1e-6)?;
            }
        }
        engine.sync()?;
        let seconds = began.elapsed().as_secs_f64();
        let features_per_s = (features.len() * probe.epochs) as f64 / seconds;
        Ok(HeadRate { n_classes: self.n_classes, epochs: probe.epochs, seconds, features_per_s })
    }
}

fn extract(extractor: &mut Extractor, images: &Dataset, probe: &ProbeConfig) -> Result<Features, Error> {
    match extractor.all(images, "to probe", &probe.augment_test, &StopFlag::new(), &mut Unobserved) {
        Ok(features) => Ok(features),
        Err(Halt::Failed(error)) => Err(error),
        Err(Halt::Stopped(_)) => unreachable!("nobody raises this flag"),
    }
}
