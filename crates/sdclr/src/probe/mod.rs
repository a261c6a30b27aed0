//! Judging features: linear and few-shot probes, nearest neighbours, fine-tuning, and the features themselves.
//!
//! [`Protocol::LinearPaper`] and [`Protocol::FewShot`] are the paper's: augmented labelled images through the frozen
//! network, SGD with learning rate 30. [`Protocol::LinearCached`] trains the same classifier on features computed once
//! and standardised, which takes seconds; results say which it was. kNN trains nothing. [`Protocol::Finetune`] trains the
//! backbone too, and [`Protocol::Supervised`] does so from scratch.

pub(crate) mod classifier;
mod features;
mod finetune;
mod knn;
mod linear;
mod stored;

pub use features::{Extractor, Features};
pub use finetune::check_layers;
pub use stored::{Classifying, ProbeRecord, StoredProbe, TestJob, test};

use crate::backend::Machine;
use crate::error::Error;
use crate::metrics::{self, GroupRule};
use crate::progress::Observer;
use crate::signals::{StopFlag, StopSignal};
use sdclr_data::Dataset;
use sdclr_records::names::Protocol;
use sdclr_records::results::{ProbeData, RESULT_VERSION, WeightsRecord};
use sdclr_records::{ProbeConfig, ProbeResult, RunConfig};
use std::path::PathBuf;

/// What is examined.
pub struct Subject {
    /// The config that says what network it is, and what its images look like.
    pub config: RunConfig,
    /// Its weights.
    pub weights: Weights,
}

impl Subject {
    /// What a row of a table calls it.
    #[must_use]
    pub fn title(&self) -> &'static str {
        match self.weights {
            // Nobody knows what trained it.
            Weights::Trained(_) if self.config.import.as_ref().is_some_and(|import| !import.knows_method) => "imported",
            Weights::Trained(_) => self.config.method.title(),
            Weights::Untrained => "untrained",
            Weights::RawPixels => "raw pixels",
        }
    }

    /// The same of a probe that may not begin with the subject's weights.
    fn title_in(&self, protocol: Protocol) -> &'static str {
        if protocol == Protocol::Supervised { "supervised" } else { self.title() }
    }
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
    /// Where all of these came from, for the record.
    pub data: ProbeData,
    /// On what.
    pub machine: Machine,
    /// Bytes of memory that fine-tuning may take; `None` does not look.
    pub memory_limit: Option<u64>,
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
    /// Images whose class is among the five best; `None` of votes, which rank only the few classes that got any.
    pub n_top5: Option<usize>,
    pub n_train: usize,
    pub n_skipped: usize,
    pub best_epoch: Option<usize>,
    pub classifier: Option<StoredProbe>,
}

/// What a probe leaves.
#[derive(Debug, Clone, PartialEq)]
pub struct Probed {
    /// The numbers.
    pub result: ProbeResult,
    /// The classifier behind them; kNN has none.
    pub classifier: Option<StoredProbe>,
}

/// What images are for, as messages say it.
const LEARN: &str = "to learn from";
const VALIDATION: &str = "to choose the best epoch on";
const TEST: &str = "to test on";

/// Examines a subject; the inner error is the signal that ended it early.
///
/// Classes are matched by name where both the images to learn from and the others have names.
///
/// # Errors
/// Bad settings, images without labels or with other classes, a checkpoint that does not fit, a failed device.
pub fn probe(mut job: ProbeJob<'_>) -> Result<Result<Probed, StopSignal>, Error> {
    job.probe.validate()?;
    let n_classes = labelled(&job.train, LEARN)?;
    job.test = matched(&job.test, &job.train, TEST)?;
    job.validation = job.validation.map(|images| matched(&images, &job.train, VALIDATION)).transpose()?;
    if let Some((counts, _)) = job.tail.as_ref().filter(|(counts, _)| counts.len() != n_classes) {
        let text = format!("the long tail has {} classes, the images {LEARN} {n_classes}", counts.len());
        return Err(Error::Unfit(text));
    }
    let verdict = match job.probe.protocol {
        Protocol::LinearPaper | Protocol::FewShot => frozen(&mut job, n_classes, linear::on_images),
        Protocol::LinearCached | Protocol::RawPixels => frozen(&mut job, n_classes, linear::on_features),
        Protocol::Knn => frozen(&mut job, n_classes, knn::vote),
        Protocol::Finetune | Protocol::Supervised => finetune::train(&mut job, n_classes),
    };
    match verdict {
        Ok((mut verdict, weights)) => {
            let classifier = verdict.classifier.take();
            let result = result(job, weights, n_classes, verdict);
            let classifier = classifier.map(|stored| StoredProbe {
                record: ProbeRecord {
                    class_names: result.class_names.clone(),
                    weights: result.weights.clone(),
                    data: result.data.clone(),
                    ..stored.record
                },
                ..stored
            });
            Ok(Ok(Probed { result, classifier }))
        }
        Err(Halt::Stopped(signal)) => Ok(Err(signal)),
        Err(Halt::Failed(error)) => Err(error),
    }
}

/// Examines a backbone that stays as it is.
fn frozen(
    job: &mut ProbeJob,
    n_classes: usize,
    examine: impl FnOnce(&mut ProbeJob, &mut Extractor, usize) -> Result<Verdict, Halt>,
) -> Result<(Verdict, Option<WeightsRecord>), Halt> {
    let mut extractor = Extractor::new(job.subject, &job.machine)?;
    let verdict = examine(job, &mut extractor, n_classes)?;
    Ok((verdict, extractor.weights))
}

/// Images with the classes of those to learn from: matched by name where both have names, else at most as many.
///
/// `what` they are for stands in the message.
///
/// # Errors
/// [`Error::Unfit`]: no labels, or classes that the others lack.
pub fn matched(images: &Dataset, train: &Dataset, what: &str) -> Result<Dataset, Error> {
    const N_LISTED: usize = 5;
    let n_classes = labelled(train, LEARN)?;
    let n_own = labelled(images, what)?;
    let has_names = images.class_names().is_some() && train.class_names().is_some();
    if !has_names && n_own > n_classes {
        let text = format!("the images {what} have {n_own} classes, those {LEARN} {n_classes}");
        return Err(Error::Unfit(text));
    }
    images.with_classes_of(train).map_err(|unknown| {
        let more =
            if unknown.len() > N_LISTED { format!(" and {} more", unknown.len() - N_LISTED) } else { String::new() };
        let listed = unknown[..unknown.len().min(N_LISTED)].join(", ");
        Error::Unfit(format!("the images {what} have classes that those {LEARN} lack: {listed}{more}"))
    })
}

fn labelled(images: &Dataset, what: &str) -> Result<usize, Error> {
    images.n_classes().ok_or_else(|| {
        Error::Unfit(format!(
            "the images {what} have no labels ({}): use class folders, a list with labels or a labelled data set",
            images.description()
        ))
    })
}

fn result(job: ProbeJob<'_>, weights: Option<WeightsRecord>, n_classes: usize, verdict: Verdict) -> ProbeResult {
    let tail = job.tail.as_ref().map(|(counts, rule)| (counts.as_slice(), *rule));
    let found = metrics::accuracies(&verdict.labels, &verdict.predictions, n_classes, tail);
    ProbeResult {
        version: RESULT_VERSION,
        protocol: job.probe.protocol,
        subject: job.subject.title_in(job.probe.protocol).to_owned(),
        weights,
        top1: found.top1,
        top5: verdict.n_top5.and_then(|n_right| metrics::top5(n_right, verdict.labels.len(), n_classes)),
        class_accuracy: found.class_accuracy,
        groups: found.groups,
        all: found.all,
        class_std: found.class_std,
        class_names: job.train.class_names().map(<[String]>::to_vec).unwrap_or_default(),
        n_train: verdict.n_train,
        n_test: verdict.labels.len(),
        n_skipped: verdict.n_skipped,
        best_epoch: verdict.best_epoch,
        settings: job.probe.settings(),
        data: job.data,
    }
}
