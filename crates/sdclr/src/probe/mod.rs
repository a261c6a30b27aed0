//! Judging features: linear and few-shot probes, nearest neighbours, and the features themselves.
//!
//! [`Protocol::LinearPaper`] and [`Protocol::FewShot`] are the paper's: augmented labelled images through the frozen
//! network, SGD with learning rate 30. [`Protocol::LinearCached`] trains the same classifier on features computed once
//! and standardised, which takes seconds; results say which it was. kNN trains nothing.

mod classifier;
mod features;
mod knn;
mod linear;

pub use features::{Extractor, Features};

use crate::backend::Machine;
use crate::error::Error;
use crate::metrics::{self, GroupRule};
use crate::progress::Observer;
use crate::signals::{StopFlag, StopSignal};
use sdclr_data::Dataset;
use sdclr_records::names::Protocol;
use sdclr_records::results::RESULT_VERSION;
use sdclr_records::{ProbeConfig, ProbeResult, RunConfig};
use std::path::PathBuf;

/// What is examined.
pub struct Subject {
    /// The config that says what network it is, and what its images look like.
    pub config: RunConfig,
    /// Its weights.
    pub weights: Weights,
}

/// Where a subject's weights come from.
pub enum Weights {
    /// A checkpoint of the config's network.
    Trained(PathBuf),
    /// The config's network as it is before the first step.
    Untrained,
    /// No network: the pixels themselves are the features.
    RawPixels,
}

/// A probe, ready to go.
pub struct ProbeJob<'a> {
    /// What is examined.
    pub subject: &'a Subject,
    /// How.
    pub probe: ProbeConfig,
    /// Labelled images to learn from.
    pub train: Dataset,
    /// Labelled images to choose the best epoch on; the last epoch is reported without.
    pub validation: Option<Dataset>,
    /// Labelled images to test on.
    pub test: Dataset,
    /// Class counts of the long tail, `[C]`, and the rule that groups by them.
    pub tail: Option<(Vec<usize>, GroupRule)>,
    /// On what.
    pub machine: Machine,
    /// Looked at between batches.
    pub stop: &'a StopFlag,
    /// Told of progress.
    pub observer: &'a mut dyn Observer,
}

/// Why a probe ended before its end.
pub(crate) enum Halt {
    Stopped(StopSignal),
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// What a probe found before it is counted: a prediction per test image.
pub(crate) struct Verdict {
    pub labels: Vec<usize>,
    pub predictions: Vec<usize>,
    pub n_train: usize,
    pub best_epoch: Option<usize>,
}

/// Examines a subject; the inner error is the signal that ended it early.
///
/// # Errors
/// Images without labels, a checkpoint that does not fit, a failed device.
pub fn probe(mut job: ProbeJob<'_>) -> Result<Result<ProbeResult, StopSignal>, Error> {
    let n_classes = labelled(&job.train, "to learn from")?;
    for (name, images) in [("validation", job.validation.as_ref()), ("test", Some(&job.test))] {
        if let Some(images) = images {
            let n_other = labelled(images, name)?;
            if n_other > n_classes {
                return Err(Error::Unfit(format!(
                    "the {name} images have {n_other} classes, those to learn from {n_classes}"
                )));
            }
        }
    }
    let verdict = match job.probe.protocol {
        Protocol::LinearPaper | Protocol::FewShot => linear::on_images(&mut job, n_classes),
        Protocol::LinearCached | Protocol::RawPixels => linear::on_features(&mut job, n_classes),
        Protocol::Knn => knn::vote(&mut job, n_classes),
    };
    match verdict {
        Ok(verdict) => Ok(Ok(result(&job, n_classes, verdict))),
        Err(Halt::Stopped(signal)) => Ok(Err(signal)),
        Err(Halt::Failed(error)) => Err(error),
    }
}

fn labelled(images: &Dataset, name: &str) -> Result<usize, Error> {
    images.n_classes().ok_or_else(|| {
        Error::Unfit(format!("the images {name} have no labels: use class folders, a list with labels or a data set"))
    })
}

fn result(job: &ProbeJob, n_classes: usize, verdict: Verdict) -> ProbeResult {
    let tail = job.tail.as_ref().map(|(counts, rule)| (counts.as_slice(), *rule));
    let found = metrics::accuracies(&verdict.labels, &verdict.predictions, n_classes, tail);
    ProbeResult {
        version: RESULT_VERSION,
        protocol: job.probe.protocol,
        subject: job.subject.config.method.to_string(),
        top1: found.top1,
        class_accuracy: found.class_accuracy,
        groups: found.groups,
        all: found.all,
        class_std: found.class_std,
        class_names: job.train.class_names().map(<[String]>::to_vec).unwrap_or_default(),
        n_train: verdict.n_train,
        n_test: verdict.labels.len(),
        best_epoch: verdict.best_epoch,
        settings: job.probe.settings(),
    }
}
