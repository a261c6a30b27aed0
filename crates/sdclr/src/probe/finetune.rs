//! Fine-tuning: backbone and classifier trained together on labelled images, the first layers fixed if asked for; and the
//! same from scratch, the supervised reference.
//!
//! The network is the dense branch alone. The classifier begins as the linear probe's does, and the best epoch is chosen as
//! there; [`sdclr_records::fine_tuning`] has the recipe, which is ours.

mod tuned;

use super::classifier::first_weights;
use super::features::ViewSpec;
use super::linear::{argmax, is_look_due, lr_at, selection_accuracy};
use super::{Halt, LEARN, ProbeJob, ProbeRecord, StoredProbe, Subject, TEST, TestJob, VALIDATION, Verdict, Weights};
use crate::backend::{self, Machine};
use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::metrics::{TOP5, rank};
use crate::progress::{Observer, StepReport};
use crate::signals::StopFlag;
use crate::snapshot;
use sdclr_data::{Dataset, Loader, Order};
use sdclr_engine::{Engine, Rows};
use sdclr_nn::{
    Batch, Branch, CrossEntropy, Fixed, GradPool, Mode, Model, Network, Optimizer, OptimizerKind, Pass, PassSpec,
    Single,
};
use sdclr_records::augment::Augmentation;
use sdclr_records::names::{FrozenBn, Protocol};
use sdclr_records::results::{ProbeData, WeightsRecord};
use sdclr_records::{ProbeConfig, RunConfig};
use std::time::{Duration, Instant};
pub(super) use tuned::network;
use tuned::{State, Tuned};

/// Trains, chooses the best epoch and tests it.
pub(super) fn train(job: &mut ProbeJob, n_classes: usize) -> Result<(Verdict, Option<WeightsRecord>), Halt> {
    let probe = job.probe.clone();
    let mut tuner = FineTuner::new(job.subject, &job.machine, &probe, n_classes)?;
    let views = ViewSpec::new(&job.subject.config, &job.machine);
    let mut epochs = Epochs::new(&views, &job.train, &probe)?;
    if let Some(limit) = job.memory_limit {
        // The weights once more for the best epoch, and twice on their way to a file.
        let held = tuner.net.engine.bytes_held() + epochs.loader.memory_bytes() + 3 * 4 * tuner.net.model.params().len;
        backend::check_memory(probe.batch_size, held as u64, limit)?;
    }
    let judged = |images: &Dataset, what| {
        Judged::new(&views, images, &probe.augment_test, &tuner.net)?.decoded_once(what, job.stop)
    };
    let mut validation = job.validation.as_ref().map(|images| judged(images, VALIDATION)).transpose()?;
    let mut test = judged(&job.test, TEST)?;
    let mut best: Option<(f64, usize, State)> = None;
    for epoch in 1..=probe.epochs {
        epochs.run(epoch, &mut tuner, &probe, job.stop, job.observer)?;
        let Some(validation) = validation.as_mut().filter(|_| is_look_due(&probe, epoch)) else { continue };
        let (logits, labels) = validation.classify(&mut tuner.net, job.stop, None)?;
        let accuracy = selection_accuracy(&probe, &logits, &labels);
        if best.as_ref().is_none_or(|(most, ..)| accuracy > *most) {
            best = Some((accuracy, epoch, tuner.net.state()?));
        }
    }
    if let Some((.., state)) = &best {
        tuner.net.set_state(state);
    }
    let best_epoch = best.map(|(_, epoch, _)| epoch);
    let n_skipped = [Some(&epochs.loader), validation.as_ref().map(|images| &images.loader)];
    let record = ProbeRecord {
        protocol: probe.protocol,
        n_classes,
        class_names: Vec::new(),
        epoch: best_epoch,
        weights: None,
        n_train: job.train.len() - epochs.loader.n_skipped(),
        n_skipped: n_skipped.into_iter().flatten().map(Loader::n_skipped).sum(),
        settings: probe.settings(),
        data: ProbeData::default(),
    };
    let verdict = test.verdict(&mut tuner.net, &record, job.stop, job.observer)?;
    let classifier = Some(StoredProbe::of_network(record, tuner.net.tensors()?));
    Ok((Verdict { classifier, ..verdict }, Some(tuner.weights)))
}

/// Tests a stored network; its images have the classes that it has.
pub(super) fn test(job: &mut TestJob<'_>) -> Result<Verdict, Halt> {
    let TestJob { subject, stored, machine, .. } = job;
    let mut net = Tuned::new(stored.own_network(&subject.config)?, machine, 1)?;
    net.load(&stored.tensors())?;
    let views = ViewSpec::new(&subject.config, machine);
    let mut test = Judged::new(&views, &job.test, &job.recipe, &net)?;
    test.verdict(&mut net, &stored.record, job.stop, job.observer)
}

/// The passes over the images to learn from.
struct Epochs {
    loader: Loader,
    n_images: usize,
    steps_per_epoch: usize,
    n_steps: u64,
}

impl Epochs {
    fn new(views: &ViewSpec, images: &Dataset, probe: &ProbeConfig) -> Result<Self, Error> {
        let loader = views.loader(images, &probe.augment_train, Order::Shuffled, probe.seed, probe.batch_size)?;
        // Batch norm needs two images: a last batch of one is no step.
        let steps_per_epoch = loader.batches_per_epoch() - usize::from(images.len() % probe.batch_size == 1);
        Ok(Self { loader, n_images: images.len(), steps_per_epoch, n_steps: 0 })
    }

    fn run(
        &mut self,
        epoch: usize,
        tuner: &mut FineTuner,
        probe: &ProbeConfig,
        stop: &StopFlag,
        observer: &mut dyn Observer,
    ) -> Result<(), Halt> {
        let (lr, began, mut waited) = (lr_at(probe, epoch), Instant::now(), Duration::ZERO);
        let (mut total_loss, mut n_epoch_steps, mut n_done) = (0.0, 0, 0);
        self.loader.start_epoch(epoch as u64, 0);
        loop {
            let asked = Instant::now();
            let Some(batch) = self.loader.next_batch() else { break };
            waited += asked.elapsed();
            if let Some(signal) = stop.raised() {
                return Err(Halt::Stopped(signal));
            }
            let batch = batch?;
            if batch.labels.len() > 1 {
                total_loss += f64::from(tuner.step(&batch.views, &batch.labels, lr)?);
                (n_epoch_steps, n_done, self.n_steps) =
                    (n_epoch_steps + 1, n_done + batch.labels.len(), self.n_steps + 1);
                let elapsed = began.elapsed().as_secs_f64().max(1e-9);
                observer.on_step(&StepReport {
                    epoch,
                    n_epochs: probe.epochs,
                    step: self.n_steps,
                    n_steps: (self.steps_per_epoch * probe.epochs) as u64,
                    loss: total_loss / f64::from(n_epoch_steps),
                    lr,
                    images_per_s: n_done as f64 / elapsed,
                    wait_share: waited.as_secs_f64() / elapsed,
                });
            }
            self.loader.recycle(batch);
        }
        match (self.n_steps, self.n_images - self.loader.n_skipped()) {
            (0, 0) => Err(Error::NoImages { n: self.n_images, what: LEARN.to_owned() }.into()),
            (0, _) => Err(Error::Unfit(format!("one image {LEARN} is too few: batch norm needs two")).into()),
            _ => Ok(()),
        }
    }
}

/// Images that are classified and not learned from.
struct Judged {
    loader: Loader,
    n_images: usize,
}

impl Judged {
    fn new(views: &ViewSpec, images: &Dataset, recipe: &Augmentation, net: &Tuned) -> Result<Self, Error> {
        let loader = views.loader(images, recipe, Order::Sequential, 0, net.max_batch())?;
        Ok(Self { loader, n_images: images.len() })
    }

    /// Decodes all images: what cannot be is better known before the training than after it.
    fn decoded_once(mut self, what: &str, stop: &StopFlag) -> Result<Self, Halt> {
        let mut n_whole = 0;
        self.loader.start_epoch(0, 0);
        while let Some(batch) = self.loader.next_batch() {
            if let Some(signal) = stop.raised() {
                return Err(Halt::Stopped(signal));
            }
            let batch = batch?;
            n_whole += batch.labels.len();
            self.loader.recycle(batch);
        }
        if n_whole == 0 {
            return Err(Error::NoImages { n: self.n_images, what: what.to_owned() }.into());
        }
        Ok(self)
    }

    /// Logits `[n, classes]` and labels of all whole images; tells `observer` how far it is.
    fn classify(
        &mut self,
        net: &mut Tuned,
        stop: &StopFlag,
        mut observer: Option<&mut dyn Observer>,
    ) -> Result<(Vec<f32>, Vec<u32>), Halt> {
        let (mut logits, mut labels, mut n_done) = (Vec::new(), Vec::new(), 0);
        net.pack();
        self.loader.start_epoch(0, 0);
        while let Some(batch) = self.loader.next_batch() {
            if let Some(signal) = stop.raised() {
                return Err(Halt::Stopped(signal));
            }
            let batch = batch?;
            net.logits(&batch.views, batch.labels.len(), &mut logits)?;
            labels.extend_from_slice(&batch.labels);
            n_done = (n_done + net.max_batch()).min(self.n_images);
            if let Some(observer) = observer.as_deref_mut() {
                observer.on_features(n_done, self.n_images);
            }
            self.loader.recycle(batch);
        }
        Ok((logits, labels))
    }

    /// What the network, of which `record` tells, makes of these images.
    fn verdict(
        &mut self,
        net: &mut Tuned,
        record: &ProbeRecord,
        stop: &StopFlag,
        observer: &mut dyn Observer,
    ) -> Result<Verdict, Halt> {
        let (logits, labels) = self.classify(net, stop, Some(observer))?;
        if labels.is_empty() {
            return Err(Error::NoImages { n: self.n_images, what: TEST.to_owned() }.into());
        }
        let labels: Vec<usize> = labels.into_iter().map(|label| label as usize).collect();
        let rows = || logits.chunks_exact(record.n_classes);
        Ok(Verdict {
            predictions: rows().map(argmax).collect(),
            n_top5: Some(rows().zip(&labels).filter(|(row, label)| rank(row, **label) < TOP5).count()),
            labels,
            n_train: record.n_train,
            n_skipped: record.n_skipped + self.loader.n_skipped(),
            best_epoch: record.epoch,
            classifier: None,
        })
    }
}

/// A backbone with a classifier in training.
struct FineTuner {
    net: Tuned,
    train: Pass,
    loss: CrossEntropy,
    optimizer: Optimizer,
    /// What it began with.
    weights: WeightsRecord,
}

impl FineTuner {
    /// The subject's network with a classifier, and its weights or, for the supervised reference, ones drawn from the probe's seed.
    ///
    /// # Errors
    /// A layer that the model does not have, a checkpoint that cannot be read or is of another network, out of memory.
    fn new(subject: &Subject, machine: &Machine, probe: &ProbeConfig, n_classes: usize) -> Result<Self, Error> {
        let network = network(&subject.config, n_classes)?;
        let fixed = fixed(&network, &subject.config, probe)?;
        let mut net = Tuned::new(network, machine, probe.batch_size)?;
        let Tuned { engine, model, .. } = &mut net;
        let e = &mut **engine;
        let weights = begin(e, model, subject, probe)?;
        let until = model.network.output;
        let spec = PassSpec { max_batch: probe.batch_size, branch: Branch::Dense, mode: Mode::Train, until };
        let train = Pass::with_fixed(e, model, spec, fixed, &mut GradPool::default())?;
        let loss = CrossEntropy::new(e, probe.batch_size)?;
        let (momentum, weight_decay) = (probe.momentum as f32, probe.weight_decay as f32);
        let optimizer = Optimizer::with_fixed(e, model, OptimizerKind::Sgd { momentum, weight_decay }, fixed)?;
        Ok(Self { net, train, loss, optimizer, weights })
    }

    /// One SGD step on images `[n, size, size, 3]`; returns the mean cross-entropy before it.
    ///
    /// # Errors
    /// [`Error::NonFiniteLoss`], a failed device.
    fn step(&mut self, views: &[u8], labels: &[u32], lr: f64) -> Result<f32, Error> {
        let Tuned { engine, model, images, .. } = &mut self.net;
        let (engine, batch) = (&mut **engine, Batch::local(labels.len()));
        engine.write_bytes(*images, views);
        self.train.load(engine, model, batch.n, *images, Rows::ALL);
        self.train.forward(engine, model, batch, &Single)?;
        let (logits, grad) = (self.train.act(model.network.output), self.train.output_grad());
        let loss = self.loss.forward_backward(engine, batch.n, logits, labels, grad)?;
        if !loss.is_finite() {
            return Err(Error::NonFiniteLoss { loss, step: self.optimizer.n_updates + 1, lr });
        }
        model.zero_grads(engine);
        self.train.backward(engine, model, batch, &Single)?;
        self.optimizer.step(engine, model, lr);
        Ok(loss)
    }
}

/// Gives a model its first weights.
fn begin(
    engine: &mut dyn Engine,
    model: &mut Model,
    subject: &Subject,
    probe: &ProbeConfig,
) -> Result<WeightsRecord, Error> {
    let config = &subject.config;
    let name = model.network.name.clone();
    let mut record =
        WeightsRecord { method: config.method, model: name, checkpoint: None, epoch: 0, step: 0, seed: config.seed };
    match &subject.weights {
        _ if probe.protocol == Protocol::Supervised => {
            record.seed = probe.seed;
            model.init(engine, probe.seed);
        }
        Weights::Untrained => model.init(engine, config.seed),
        Weights::Trained(path) => {
            let checkpoint = Checkpoint::load(path)?;
            snapshot::load_backbone(engine, model, &checkpoint)?;
            (record.epoch, record.step) = (checkpoint.state.epoch, checkpoint.state.step);
            record.checkpoint = Some(path.clone());
        }
        Weights::RawPixels => return Err(Error::Unfit("raw pixels are no network that could be trained".to_owned())),
    }
    let (width, n_classes) = [model.network.feature, model.network.output].map(|v| model.network.dims(v).len()).into();
    let mut params = model.export(engine, model.params())?;
    params.extend(first_weights(width, n_classes, probe));
    model.import(engine, model.params(), &params)?;
    Ok(record)
}

/// Checks that a run's model has the layers that a probe fixes, before there are images.
///
/// # Errors
/// [`Error::Unfit`] with the layers that it has.
pub fn check_layers(config: &RunConfig, probe: &ProbeConfig) -> Result<(), Error> {
    fixed(&network(config, 1)?, config, probe).map(|_| ())
}

/// What the settings fix of a network, if it has the layer.
fn fixed(network: &Network, config: &RunConfig, probe: &ProbeConfig) -> Result<Fixed, Error> {
    let (settings, model) = (probe.fine_tuning.unwrap_or_default(), config.model.name);
    let Some(last) = settings.freeze.last_layer() else { return Ok(Fixed::NOTHING) };
    let n_layers = network.n_layers();
    if last > n_layers {
        let known: Vec<String> = (1..n_layers).map(|layer| format!("layer{layer}")).collect();
        let (freeze, known) = (settings.freeze, known.join(", "));
        return Err(Error::Unfit(format!(
            "--freeze {freeze}: {model} has {n_layers} layers; give none, {known} or layer{n_layers}"
        )));
    }
    let norms = match settings.frozen_bn {
        FrozenBn::Eval => Mode::Eval,
        FrozenBn::Train => Mode::Train,
    };
    Ok(Fixed { up_to: Some(last), norms })
}

#[cfg(test)]
mod tests;
