//! The linear probes: the paper's on augmented images, and the fast one on cached features.
//!
//! Source: the SDCLR paper's evaluation as its published code runs it (see [`ProbeConfig`] for the numbers): backbone
//! frozen in evaluation mode, best epoch by validation accuracy, that epoch reported on the test images.

use super::classifier::Classifier;
use super::features::{Extractor, Features};
use super::{Halt, LEARN, ProbeJob, ProbeRecord, StoredProbe, TEST, VALIDATION, Verdict};
use crate::error::Error;
use crate::metrics::{TOP5, rank};
use crate::progress::StepReport;
use sdclr_data::{Dataset, Order};
use sdclr_engine::Engine;
use sdclr_nn::rng;
use sdclr_records::ProbeConfig;
use sdclr_records::results::ProbeData;
use std::collections::BTreeMap;
use std::time::Instant;

/// Augmented images through the frozen network, every epoch anew.
pub(super) fn on_images(job: &mut ProbeJob, extractor: &mut Extractor, n_classes: usize) -> Result<Verdict, Halt> {
    let probe = job.probe.clone();
    let validation = validation(job, extractor)?;
    let test = extractor.all(&job.test, TEST, &probe.augment_test, job.stop, job.observer)?;
    let mut training = Training::new(&mut *extractor.engine, test.width, n_classes, &probe)?;
    let mut loader =
        extractor.loader(&job.train, &probe.augment_train, Order::Shuffled, probe.seed, probe.batch_size)?;
    let steps_per_epoch = loader.batches_per_epoch();
    let mut features = Vec::new();
    for epoch in 1..=probe.epochs {
        loader.start_epoch(epoch as u64, 0);
        while let Some(batch) = loader.next_batch() {
            let batch = batch?;
            features.clear();
            extractor.extract(&batch.views, &mut features)?;
            training.step(job, &mut *extractor.engine, epoch, steps_per_epoch, &features, &batch.labels)?;
            loader.recycle(batch);
        }
        if training.n_steps == 0 {
            return Err(Error::NoImages { n: job.train.len(), what: LEARN.to_owned() }.into());
        }
        training.look(&mut *extractor.engine, epoch, validation.as_ref())?;
    }
    let n_train = job.train.len() - loader.n_skipped();
    training.verdict(&mut *extractor.engine, job, n_train, validation.as_ref(), &test, None)
}

/// Features of the validation images, if there are any.
fn validation(job: &mut ProbeJob, extractor: &mut Extractor) -> Result<Option<Features>, Halt> {
    let Some(images) = &job.validation else { return Ok(None) };
    Ok(Some(extractor.all(images, VALIDATION, &job.probe.augment_test, job.stop, job.observer)?))
}

/// Features computed once, standardised by the training features' means and deviations.
pub(super) fn on_features(job: &mut ProbeJob, extractor: &mut Extractor, n_classes: usize) -> Result<Verdict, Halt> {
    let probe = job.probe.clone();
    let mut train = extractor.all(&job.train, LEARN, &probe.augment_test, job.stop, job.observer)?;
    let mut validation = validation(job, extractor)?;
    let test = extractor.all(&job.test, TEST, &probe.augment_test, job.stop, job.observer)?;
    let scale = Standardiser::of(&train);
    for features in [Some(&mut train), validation.as_mut()].into_iter().flatten() {
        scale.apply(&mut features.values);
    }
    let engine = &mut *extractor.engine;
    let mut training = Training::new(engine, train.width, n_classes, &probe)?;
    let steps_per_epoch = train.len().div_ceil(probe.batch_size);
    let mut order: Vec<usize> = (0..train.len()).collect();
    let (mut rows, mut labels) = (Vec::new(), Vec::new());
    for epoch in 1..=probe.epochs {
        shuffle(&mut order, probe.seed, epoch as u64);
        for batch in order.chunks(probe.batch_size) {
            rows.clear();
            labels.clear();
            for &row in batch {
                rows.extend_from_slice(&train.values[row * train.width..(row + 1) * train.width]);
                labels.push(train.labels[row]);
            }
            training.step(job, engine, epoch, steps_per_epoch, &rows, &labels)?;
        }
        training.look(engine, epoch, validation.as_ref())?;
    }
    training.verdict(engine, job, train.len(), validation.as_ref(), &test, Some(&scale))
}

/// A classifier in training and the best it was.
struct Training {
    probe: ProbeConfig,
    classifier: Classifier,
    n_classes: usize,
    best: Option<(f64, usize, Vec<f32>)>,
    n_steps: u64,
    epoch_loss: (f64, u64),
    n_images: usize,
    began: Instant,
}

impl Training {
    fn new(engine: &mut dyn Engine, width: usize, n_classes: usize, probe: &ProbeConfig) -> Result<Self, Error> {
        let classifier = Classifier::new(engine, width, n_classes, probe)?;
        let began = Instant::now();
        let probe = probe.clone();
        Ok(Self { probe, classifier, n_classes, best: None, n_steps: 0, epoch_loss: (0.0, 0), n_images: 0, began })
    }

    fn step(
        &mut self,
        job: &mut ProbeJob,
        engine: &mut dyn Engine,
        epoch: usize,
        steps_per_epoch: usize,
        features: &[f32],
        labels: &[u32],
    ) -> Result<(), Halt> {
        if let Some(signal) = job.stop.raised() {
            return Err(Halt::Stopped(signal));
        }
        if labels.is_empty() {
            return Ok(());
        }
        let lr = lr_at(&self.probe, epoch);
        let loss = self.classifier.step(engine, features, labels, lr)?;
        self.n_steps += 1;
        self.n_images += labels.len();
        self.epoch_loss = (self.epoch_loss.0 + f64::from(loss), self.epoch_loss.1 + 1);
        job.observer.on_step(&StepReport {
            epoch,
            n_epochs: self.probe.epochs,
            step: self.n_steps,
            n_steps: (steps_per_epoch * self.probe.epochs) as u64,
            loss: self.epoch_loss.0 / self.epoch_loss.1 as f64,
            lr,
            images_per_s: self.n_images as f64 / self.began.elapsed().as_secs_f64().max(1e-9),
            wait_share: 0.0,
        });
        Ok(())
    }

    /// The end of an epoch: remembers the weights if they are the best so far on the validation images.
    fn look(&mut self, engine: &mut dyn Engine, epoch: usize, validation: Option<&Features>) -> Result<(), Error> {
        self.epoch_loss = (0.0, 0);
        let Some(validation) = validation else { return Ok(()) };
        if !is_look_due(&self.probe, epoch) {
            return Ok(());
        }
        let logits = self.classifier.logits(engine, &validation.values)?;
        let accuracy = selection_accuracy(&self.probe, &logits, &validation.labels);
        if self.best.as_ref().is_none_or(|(best, ..)| accuracy > *best) {
            self.best = Some((accuracy, epoch, self.classifier.weights(engine)?));
        }
        Ok(())
    }

    /// The best epoch's predictions on the test images, or the last's without validation images.
    ///
    /// `test` holds plain features; `scale` is what the others were standardised by.
    fn verdict(
        self,
        engine: &mut dyn Engine,
        job: &ProbeJob,
        n_train: usize,
        validation: Option<&Features>,
        test: &Features,
        scale: Option<&Standardiser>,
    ) -> Result<Verdict, Halt> {
        let best_epoch = self.best.as_ref().map(|(_, epoch, _)| *epoch);
        let weights = match self.best {
            Some((.., weights)) => weights,
            None => self.classifier.weights(engine)?,
        };
        let (weight, bias) = weights.split_at(test.width * self.n_classes);
        let (mut weight, mut bias) = (weight.to_vec(), bias.to_vec());
        if let Some(scale) = scale {
            scale.fold_into(&mut weight, &mut bias);
        }
        let n_given_to_learn = job.train.len() + job.validation.as_ref().map_or(0, Dataset::len);
        let n_skipped = n_given_to_learn - n_train - validation.map_or(0, Features::len);
        let record = ProbeRecord {
            protocol: self.probe.protocol,
            n_classes: self.n_classes,
            class_names: Vec::new(),
            epoch: best_epoch,
            weights: None,
            n_train,
            n_skipped,
            settings: self.probe.settings(),
            data: ProbeData::default(),
        };
        let stored = StoredProbe { record, weight, bias, backbone: BTreeMap::new() };
        // What is stored is what is tested, so that a later test of it gives the same numbers.
        let labels: Vec<usize> = test.labels.iter().map(|&label| label as usize).collect();
        let (predictions, n_top5) = stored.predict(engine, test, &labels)?;
        let n_skipped = n_skipped + job.test.len() - test.len();
        let (n_top5, classifier) = (Some(n_top5), Some(stored));
        Ok(Verdict { labels, predictions, n_top5, n_train, n_skipped, best_epoch, classifier })
    }
}

/// The rate of an epoch, from 1: milestones are the last epochs before a decay.
pub(super) fn lr_at(probe: &ProbeConfig, epoch: usize) -> f64 {
    let n_decays = probe.milestones.iter().filter(|&&last| epoch > last).count();
    probe.lr * probe.gamma.powi(n_decays as i32)
}

/// Whether the validation images are looked at after an epoch, from 1.
pub(super) fn is_look_due(probe: &ProbeConfig, epoch: usize) -> bool {
    epoch.is_multiple_of(probe.select_every_epochs.max(1)) || epoch == probe.epochs
}

/// The share of rows of `logits` `[n, classes]` that are right, by which the best epoch is chosen.
pub(super) fn selection_accuracy(probe: &ProbeConfig, logits: &[f32], labels: &[u32]) -> f64 {
    let n = labels.len().max(1);
    let n_classes = (logits.len() / n).max(1);
    // With five classes every epoch would be as good as the first by top-5.
    let k = if probe.select_by_top5 && n_classes > TOP5 { TOP5 } else { 1 };
    let rows = logits.chunks_exact(n_classes).zip(labels);
    rows.filter(|(row, label)| rank(row, **label as usize) < k).count() as f64 / n as f64
}

/// Index of the largest value, the first among equals.
pub(super) fn argmax(row: &[f32]) -> usize {
    row.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &v)| if v > best.1 { (i, v) } else { best }).0
}

fn shuffle(order: &mut [usize], seed: u64, epoch: u64) {
    let mut rng = rng::stream(seed, "probe-order", epoch);
    for i in (1..order.len()).rev() {
        order.swap(i, (rng::uniform(&mut rng) * (i + 1) as f64) as usize);
    }
}

/// Means and deviations of features, per column.
struct Standardiser {
    mean: Vec<f32>,
    inv_std: Vec<f32>,
}

impl Standardiser {
    fn of(features: &Features) -> Self {
        let (width, n) = (features.width, features.len().max(1) as f64);
        let (mut sum, mut square) = (vec![0.0f64; width], vec![0.0f64; width]);
        for row in features.values.chunks_exact(width) {
            for (k, &v) in row.iter().enumerate() {
                sum[k] += f64::from(v);
                square[k] += f64::from(v) * f64::from(v);
            }
        }
        let mean = sum.iter().map(|s| (s / n) as f32).collect();
        let inv_std = sum
            .iter()
            .zip(&square)
            .map(|(s, q)| {
                let std = (q / n - (s / n).powi(2)).max(0.0).sqrt();
                // A column that never changes says nothing; it becomes 0.
                if std > 1e-6 { (1.0 / std) as f32 } else { 0.0 }
            })
            .collect();
        Self { mean, inv_std }
    }

    /// Turns a classifier on standardised features into the same on plain ones: `w·(x − m)/s + b = (w/s)·x + (b − (w/s)·m)`.
    fn fold_into(&self, weight: &mut [f32], bias: &mut [f32]) {
        for (row, bias) in weight.chunks_exact_mut(self.mean.len()).zip(bias) {
            let mut shift = 0.0;
            for ((w, mean), inv_std) in row.iter_mut().zip(&self.mean).zip(&self.inv_std) {
                *w *= inv_std;
                shift += f64::from(*w) * f64::from(*mean);
            }
            *bias = (f64::from(*bias) - shift) as f32;
        }
    }

    fn apply(&self, values: &mut [f32]) {
        for row in values.chunks_exact_mut(self.mean.len()) {
            for ((v, mean), inv_std) in row.iter_mut().zip(&self.mean).zip(&self.inv_std) {
                *v = (*v - mean) * inv_std;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_largest_is_predicted() {
        let row = [0.5, 2.0, 2.0, -1.0];
        assert_eq!((argmax(&row), rank(&row, argmax(&row))), (1, 0));
    }

    #[test]
    fn standardised_columns_have_mean_zero_and_deviation_one_and_constants_vanish() {
        let values = vec![1.0, 7.0, 3.0, 7.0, 5.0, 7.0];
        let mut features = Features { values, width: 2, labels: vec![], positions: vec![0, 1, 2] };
        Standardiser::of(&features).apply(&mut features.values);
        let a = 1.5f32.sqrt();
        for (got, expected) in features.values.iter().zip([-a, 0.0, 0.0, 0.0, a, 0.0]) {
            assert!((got - expected).abs() < 1e-6, "{:?}", features.values);
        }
    }
}
