//! A trained classifier as a file, `RUN/probes/NAME.safetensors`, and testing with it alone.
//!
//! The file holds `fc.weight` `[classes, width]` and `fc.bias` `[classes]` on the backbone's plain features (the cached
//! protocol's standardisation is folded in), and in its metadata under `sdclr_probe` a [`ProbeRecord`] as JSON. Fine-tuning
//! changes the backbone, too: then its tensors are there as well, those of a network with one branch.

mod file;

use super::classifier::Classifier;
use super::features::{Extractor, Features};
use super::{Halt, Subject, TEST, Verdict, finetune};
use crate::backend::{self, Machine};
use crate::checkpoint::{Checkpoint, Tensor as Stored};
use crate::error::Error;
use crate::metrics::{self, GroupRule, TOP5, rank};
use crate::progress::Observer;
use crate::signals::{StopFlag, StopSignal};
use sdclr_data::Dataset;
use sdclr_engine::Engine;
use sdclr_nn::{Head, Network, Tensor};
use sdclr_records::augment::Augmentation;
use sdclr_records::names::Protocol;
use sdclr_records::results::{ProbeData, RESULT_VERSION, WeightsRecord};
use sdclr_records::{ProbeConfig, ProbeResult, RunConfig};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The classifier's tensors.
const WEIGHT: &str = "fc.weight";
const BIAS: &str = "fc.bias";

/// What a stored classifier says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeRecord {
    /// How it was trained.
    pub protocol: Protocol,
    /// Number of classes.
    pub n_classes: usize,
    /// Their names where the images had them, else empty.
    #[serde(default)]
    pub class_names: Vec<String>,
    /// The epoch of its training that it is of, if one was chosen.
    #[serde(default)]
    pub epoch: Option<usize>,
    /// The weights whose features it is on, or which fine-tuning began with; absent where it came from elsewhere.
    #[serde(default)]
    pub weights: Option<WeightsRecord>,
    /// Images that it learned from.
    #[serde(default)]
    pub n_train: usize,
    /// Broken images that were left out before testing.
    #[serde(default)]
    pub n_skipped: usize,
    /// The settings of its training.
    #[serde(default)]
    pub settings: BTreeMap<String, serde_json::Value>,
    /// Where its images came from.
    #[serde(default)]
    pub data: ProbeData,
}

/// A backbone with a trained classifier, whole.
pub struct Classifying {
    /// The backbone with the classifier as its output.
    pub network: Network,
    /// Its tensors, `fc.weight` and `fc.bias` among them; there may be others.
    pub tensors: BTreeMap<String, Stored>,
    /// Epochs of pre-training that the backbone had.
    pub epoch: usize,
}

/// A linear classifier on plain features, and the backbone that makes them where it is not the run's.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredProbe {
    /// What it is.
    pub record: ProbeRecord,
    /// `[n_classes, width]`, row-major.
    pub weight: Vec<f32>,
    /// `[n_classes]`.
    pub bias: Vec<f32>,
    /// The fine-tuned backbone's tensors under their names; empty for a classifier on the features of a run's.
    pub backbone: BTreeMap<String, Tensor>,
}

impl StoredProbe {
    /// Of a network whose tensors are these, `fc.weight` and `fc.bias` among them.
    pub(super) fn of_network(record: ProbeRecord, mut backbone: BTreeMap<String, Tensor>) -> Self {
        let [weight, bias] =
            [WEIGHT, BIAS].map(|name| backbone.remove(name).map(|tensor| tensor.data).unwrap_or_default());
        Self { record, weight, bias, backbone }
    }

    /// The whole network: the classifier on the backbone of a run's checkpoint, or on its own.
    ///
    /// # Errors
    /// [`Error::Unfit`] if it is on other weights or of another model than the run's; a checkpoint that cannot be read.
    pub fn whole(&self, config: &RunConfig, checkpoint: &Path) -> Result<Classifying, Error> {
        let own =
            self.parts().into_iter().map(|(name, shape, data)| (name.to_owned(), Stored::f32(&shape, data.to_vec())));
        if !self.backbone.is_empty() {
            let epoch = self.record.weights.as_ref().map_or(0, |weights| weights.epoch);
            return Ok(Classifying { network: self.own_network(config)?, tensors: own.collect(), epoch });
        }
        let head = Head::Classifier { n_classes: self.record.n_classes };
        let network = backend::network(&config.model, config.data.image_size, head)?;
        let Checkpoint { state, mut tensors, .. } = Checkpoint::load(checkpoint)?;
        self.check_fit(network.dims(network.feature).len(), Some((&state.model, state.step, state.seed)))?;
        tensors.extend(own);
        Ok(Classifying { network, tensors, epoch: state.epoch })
    }

    /// The network of its own backbone and its classifier, which is the run's model.
    pub(super) fn own_network(&self, config: &RunConfig) -> Result<Network, Error> {
        let network = finetune::network(config, self.record.n_classes)?;
        let own: BTreeMap<&str, Vec<usize>> = self.parts().into_iter().map(|(name, shape, _)| (name, shape)).collect();
        let layout = network.tensor_layout();
        if layout.len() == own.len() && layout.iter().all(|(name, shape)| own.get(name.as_str()) == Some(shape)) {
            return Ok(network);
        }
        Err(Error::Unfit(match self.record.weights.as_ref().map(|weights| &weights.model) {
            Some(own) if *own != network.name => {
                format!("the stored probe is of {own}, the run's network is {}: it is another model's", network.name)
            }
            _ => format!("the stored probe's tensors are not those of {}: train it anew", network.name),
        }))
    }

    /// Refuses features of another width, or of weights (the model in words, steps, seed) that it is not on.
    fn check_fit(&self, width: usize, weights: Option<(&str, u64, u64)>) -> Result<(), Error> {
        if self.width() != width {
            let own = self.width();
            let text = format!("the stored probe reads {own} features, the model has {width}: it is another model's");
            return Err(Error::Unfit(text));
        }
        match (&self.record.weights, weights) {
            (Some(own), Some(now)) if (own.model.as_str(), own.step, own.seed) != now => Err(Error::Unfit(format!(
                "the stored probe is on the weights of step {} and seed {}, the checkpoint is of step {} and seed {}: name its own \
                 checkpoint, or probe this one anew",
                own.step, own.seed, now.1, now.2
            ))),
            _ => Ok(()),
        }
    }

    /// All tensors: name, shape, values.
    fn parts(&self) -> Vec<(&str, Vec<usize>, &[f32])> {
        let n_classes = self.bias.len();
        let backbone = self.backbone.iter();
        let mut parts: Vec<(&str, Vec<usize>, &[f32])> =
            backbone.map(|(name, tensor)| (name.as_str(), tensor.shape.clone(), tensor.data.as_slice())).collect();
        parts.push((WEIGHT, vec![n_classes, self.width()], &self.weight));
        parts.push((BIAS, vec![n_classes], &self.bias));
        parts
    }

    /// All tensors under their names.
    pub(super) fn tensors(&self) -> BTreeMap<String, Tensor> {
        let owned =
            |(name, shape, data): (&str, Vec<usize>, &[f32])| (name.to_owned(), Tensor { shape, data: data.to_vec() });
        self.parts().into_iter().map(owned).collect()
    }

    /// Length of the features that it reads.
    #[must_use]
    pub fn width(&self) -> usize {
        self.weight.len() / self.bias.len().max(1)
    }

    /// The most likely class of each row of features, and how many of the `labels` are among the five most likely.
    ///
    /// # Errors
    /// A failed device.
    pub(super) fn predict(
        &self,
        engine: &mut dyn Engine,
        features: &Features,
        labels: &[usize],
    ) -> Result<(Vec<usize>, usize), Error> {
        const ROWS_A_BATCH: usize = 256;
        // Only its batch size matters for a classifier whose weights are given.
        let settings = ProbeConfig { batch_size: ROWS_A_BATCH, ..ProbeConfig::new(self.record.protocol, 32, 0) };
        let classifier = Classifier::new(engine, self.width(), self.bias.len(), &settings)?;
        classifier.set_weights(engine, &[self.weight.as_slice(), &self.bias].concat());
        let logits = classifier.logits(engine, &features.values)?;
        let rows = || logits.chunks_exact(self.bias.len());
        let n_top5 = rows().zip(labels).filter(|(row, label)| rank(row, **label) < TOP5).count();
        Ok((rows().map(super::linear::argmax).collect(), n_top5))
    }
}

/// A test of a stored classifier, ready to go.
pub struct TestJob<'a> {
    /// The backbone.
    pub subject: &'a Subject,
    /// The classifier on its features, or on a backbone of its own.
    pub stored: &'a StoredProbe,
    /// Labelled images.
    pub test: Dataset,
    /// How they become views.
    pub recipe: Augmentation,
    /// Class counts of the long tail, `[C]`, and the rule that groups by them.
    pub tail: Option<(Vec<usize>, GroupRule)>,
    /// Where these came from; where the classifier's own images came from is in its record.
    pub data: ProbeData,
    /// On what.
    pub machine: Machine,
    /// Looked at between batches.
    pub stop: &'a StopFlag,
    /// Told of progress.
    pub observer: &'a mut dyn Observer,
}

/// Tests a stored classifier; on the images of the probe that made it, the result is that probe's.
///
/// # Errors
/// A classifier of other features or on other weights, classes that do not fit, a failed device.
pub fn test(mut job: TestJob<'_>) -> Result<Result<ProbeResult, StopSignal>, Error> {
    let record = &job.stored.record;
    let names = (!record.class_names.is_empty()).then_some(record.class_names.as_slice());
    job.test = with_classes(&job.test, names, record.n_classes)?;
    if let Some((counts, _)) = job.tail.as_ref().filter(|(counts, _)| counts.len() != record.n_classes) {
        let text = format!("the long tail has {} classes, the stored probe {}", counts.len(), record.n_classes);
        return Err(Error::Unfit(text));
    }
    let tested = if job.stored.backbone.is_empty() {
        on_features(&mut job)
    } else {
        finetune::test(&mut job).map(|verdict| (verdict, record.weights.clone()))
    };
    let (verdict, weights) = match tested {
        Ok(tested) => tested,
        Err(Halt::Stopped(signal)) => return Ok(Err(signal)),
        Err(Halt::Failed(error)) => return Err(error),
    };
    let tail = job.tail.as_ref().map(|(counts, rule)| (counts.as_slice(), *rule));
    let found = metrics::accuracies(&verdict.labels, &verdict.predictions, record.n_classes, tail);
    Ok(Ok(ProbeResult {
        version: RESULT_VERSION,
        protocol: record.protocol,
        subject: job.subject.title_in(record.protocol).to_owned(),
        weights,
        top1: found.top1,
        top5: verdict.n_top5.and_then(|n_right| metrics::top5(n_right, verdict.labels.len(), record.n_classes)),
        class_accuracy: found.class_accuracy,
        groups: found.groups,
        all: found.all,
        class_std: found.class_std,
        class_names: record.class_names.clone(),
        n_train: record.n_train,
        n_test: verdict.labels.len(),
        n_skipped: verdict.n_skipped,
        best_epoch: record.epoch,
        settings: record.settings.clone(),
        data: ProbeData { train: record.data.train.clone(), validation: record.data.validation.clone(), ..job.data },
    }))
}

/// Tests a classifier on the features of the subject.
fn on_features(job: &mut TestJob<'_>) -> Result<(Verdict, Option<WeightsRecord>), Halt> {
    let (stored, record) = (job.stored, &job.stored.record);
    let mut extractor = Extractor::new(job.subject, &job.machine)?;
    let weights = extractor.weights.as_ref().map(|weights| (weights.model.as_str(), weights.step, weights.seed));
    stored.check_fit(extractor.width(), weights)?;
    let features = extractor.all(&job.test, TEST, &job.recipe, job.stop, job.observer)?;
    let labels: Vec<usize> = features.labels.iter().map(|&label| label as usize).collect();
    let (predictions, n_top5) = stored.predict(&mut *extractor.engine, &features, &labels)?;
    let verdict = Verdict {
        predictions,
        n_top5: Some(n_top5),
        labels,
        n_train: record.n_train,
        n_skipped: record.n_skipped + job.test.len() - features.len(),
        best_epoch: record.epoch,
        classifier: None,
    };
    Ok((verdict, extractor.weights))
}

/// The images under the classifier's numbering of the classes.
fn with_classes(images: &Dataset, names: Option<&[String]>, n_classes: usize) -> Result<Dataset, Error> {
    let n_own = super::labelled(images, TEST)?;
    let both_named = names.is_some() && images.class_names().is_some();
    if !both_named && n_own > n_classes {
        return Err(Error::Unfit(format!("the images {TEST} have {n_own} classes, the stored probe {n_classes}")));
    }
    let Some(names) = names else {
        // Folders number their classes by themselves: only the same set of them has the classifier's numbers.
        if images.class_names().is_some() && n_own != n_classes {
            return Err(Error::Unfit(format!(
                "the images {TEST} have {n_own} named classes, the stored probe {n_classes} without names: give a list whose labels are its numbers"
            )));
        }
        return Ok(images.clone());
    };
    images.with_class_names(names).map_err(|unknown| {
        Error::Unfit(format!("the images {TEST} have classes that the stored probe lacks: {}", unknown.join(", ")))
    })
}
