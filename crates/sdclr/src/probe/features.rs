//! Features of images: the frozen dense branch in evaluation mode, or the pixels themselves.

use super::{Halt, Subject, Weights};
use crate::backend::{self, Machine};
use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::progress::Observer;
use crate::signals::{StopFlag, StopSignal};
use crate::snapshot;
use sdclr_data::{Dataset, Loader, LoaderSpec, Order, Shard};
use sdclr_engine::{ByteBuf, Engine, Rows};
use sdclr_nn::{Batch, Branch, GradPool, Mode, Model, Network, Pass, PassSpec, Single};
use sdclr_records::augment::Augmentation;
use sdclr_records::results::WeightsRecord;
use sdclr_records::{CheckpointState, RunConfig};

/// Features of a data set, in its order; broken images are left out.
pub struct Features {
    /// Row-major `[n, width]`.
    pub values: Vec<f32>,
    /// Length of a row.
    pub width: usize,
    /// Label of each row; empty if unlabelled.
    pub labels: Vec<u32>,
    /// Position in the data set of each row.
    pub positions: Vec<u32>,
}

impl Features {
    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }
}

/// How a subject's images are loaded: single views.
pub(super) struct ViewSpec {
    image_size: usize,
    max_broken: f64,
    strict: bool,
    workers: usize,
}

impl ViewSpec {
    /// As the subject's run loaded its own.
    pub fn new(config: &RunConfig, machine: &Machine) -> Self {
        let data = &config.data;
        let (image_size, max_broken, strict) = (data.image_size, data.max_broken, data.strict);
        Self { image_size, max_broken, strict, workers: machine.workers }
    }

    /// A loader of single views.
    ///
    /// # Errors
    /// Settings that the loader refuses.
    pub fn loader(
        &self,
        images: &Dataset,
        recipe: &Augmentation,
        order: Order,
        seed: u64,
        batch_size: usize,
    ) -> Result<Loader, Error> {
        let spec = LoaderSpec {
            recipe: recipe.clone(),
            image_size: self.image_size as u32,
            n_views: 1,
            batch_size,
            order,
            seed,
            workers: self.workers,
            jpeg_scaling: false,
            cache_bytes: LoaderSpec::CACHE_BYTES,
            shard: Shard::default(),
            max_broken_share: self.max_broken as f32,
            strict: self.strict,
        };
        Ok(Loader::new(images.clone(), spec)?)
    }
}

/// A frozen subject on an engine.
pub struct Extractor {
    /// The compute back end, which probes share.
    pub engine: Box<dyn Engine>,
    views: ViewSpec,
    network: Option<Frozen>,
    /// Which weights these are; `None` for raw pixels.
    pub weights: Option<WeightsRecord>,
}

struct Frozen {
    model: Model,
    pass: Pass,
    images: ByteBuf,
}

/// Floats of the largest activation that a batch may have: 256 MiB.
const LARGEST_ACTIVATION: usize = 1 << 26;

impl Extractor {
    /// Loads the subject.
    ///
    /// # Errors
    /// A checkpoint that cannot be read or is of another network, out of memory.
    pub fn new(subject: &Subject, machine: &Machine) -> Result<Self, Error> {
        let mut engine = machine.engine()?;
        let record = |frozen: &Frozen| WeightsRecord {
            method: subject.config.method,
            model: frozen.model.network.name.clone(),
            checkpoint: None,
            epoch: 0,
            step: 0,
            seed: subject.config.seed,
        };
        let (network, weights) = match &subject.weights {
            Weights::RawPixels => (None, None),
            Weights::Untrained => {
                let mut frozen = frozen(&mut *engine, subject)?;
                frozen.model.init(&mut *engine, subject.config.seed);
                let record = record(&frozen);
                (Some(frozen), Some(record))
            }
            Weights::Trained(path) => {
                let frozen = frozen(&mut *engine, subject)?;
                let checkpoint = Checkpoint::load(path)?;
                snapshot::load_model(&mut *engine, &frozen.model, &checkpoint)?;
                let CheckpointState { epoch, step, seed, .. } = checkpoint.state;
                let record = WeightsRecord { checkpoint: Some(path.clone()), epoch, step, seed, ..record(&frozen) };
                (Some(frozen), Some(record))
            }
        };
        if let Some(frozen) = &network {
            frozen.pass.pack(&mut *engine, &frozen.model);
        }
        Ok(Self { engine, views: ViewSpec::new(&subject.config, machine), network, weights })
    }

    /// Length of a feature.
    #[must_use]
    pub fn width(&self) -> usize {
        match &self.network {
            Some(frozen) => frozen.model.network.dims(frozen.model.network.feature).len(),
            None => self.views.image_size * self.views.image_size * 3,
        }
    }

    /// A loader of single views for this subject.
    ///
    /// # Errors
    /// Settings that the loader refuses.
    pub fn loader(
        &self,
        images: &Dataset,
        recipe: &Augmentation,
        order: Order,
        seed: u64,
        batch_size: usize,
    ) -> Result<Loader, Error> {
        self.views.loader(images, recipe, order, seed, batch_size)
    }

    /// Features of images as bytes `[n, size, size, 3]`, appended to `out`; any `n`.
    ///
    /// # Errors
    /// A failed device.
    pub fn extract(&mut self, views: &[u8], out: &mut Vec<f32>) -> Result<(), Error> {
        let per_image = self.views.image_size * self.views.image_size * 3;
        let width = self.width();
        let Some(Frozen { model, pass, images }) = &self.network else {
            out.extend(views.iter().map(|&byte| f32::from(byte) / 255.0));
            return Ok(());
        };
        let engine = &mut *self.engine;
        for views in views.chunks(pass.max_batch() * per_image) {
            let n = views.len() / per_image;
            engine.write_bytes(*images, views);
            pass.load(engine, model, n, *images, Rows::ALL);
            pass.forward(engine, model, Batch::local(n), &Single)?;
            let at = out.len();
            out.resize(at + n * width, 0.0);
            engine.read_act(n, pass.act(model.network.feature), &mut out[at..])?;
        }
        Ok(())
    }

    /// Features of a whole data set in its order; `what` it is for stands in the message when it has no whole image.
    ///
    /// # Errors
    /// Too many broken images or only such, a failed device; a raised `stop`.
    pub(crate) fn all(
        &mut self,
        images: &Dataset,
        what: &str,
        recipe: &Augmentation,
        stop: &StopFlag,
        observer: &mut dyn Observer,
    ) -> Result<Features, Halt> {
        let batch_size = self.network.as_ref().map_or(256, |frozen| frozen.pass.max_batch());
        let mut loader = self.loader(images, recipe, Order::Sequential, 0, batch_size)?;
        let mut features =
            Features { values: Vec::new(), width: self.width(), labels: Vec::new(), positions: Vec::new() };
        features.values.reserve_exact(images.len() * self.width());
        let mut n_done = 0;
        loader.start_epoch(0, 0);
        while let Some(batch) = loader.next_batch() {
            if let Some(signal) = stop.raised() {
                return Err(Halt::Stopped(signal));
            }
            let batch = batch?;
            self.extract(&batch.views, &mut features.values)?;
            features.labels.extend_from_slice(&batch.labels);
            features.positions.extend_from_slice(&batch.indices);
            loader.recycle(batch);
            n_done = (n_done + batch_size).min(images.len());
            observer.on_features(n_done, images.len());
        }
        if features.is_empty() {
            return Err(Error::NoImages { n: images.len(), what: what.to_owned() }.into());
        }
        Ok(features)
    }

    /// Features of a data set of a subject, as `sdclr embed` writes them; the inner error is the signal that ended it.
    ///
    /// # Errors
    /// Too many broken images or only such, a failed device.
    pub fn embed(
        &mut self,
        images: &Dataset,
        recipe: &Augmentation,
        stop: &StopFlag,
        observer: &mut dyn Observer,
    ) -> Result<Result<Features, StopSignal>, Error> {
        match self.all(images, "to embed", recipe, stop, observer) {
            Ok(features) => Ok(Ok(features)),
            Err(Halt::Stopped(signal)) => Ok(Err(signal)),
            Err(Halt::Failed(error)) => Err(error),
        }
    }
}

/// Most images that are evaluated at a time.
pub(super) fn evaluation_batch(network: &Network) -> usize {
    let largest = network.values.iter().map(|value| value.dims.len()).max().unwrap_or(1);
    (LARGEST_ACTIVATION / largest).clamp(1, 128)
}

fn frozen(engine: &mut dyn Engine, subject: &Subject) -> Result<Frozen, Error> {
    let network = backend::run_network(&subject.config)?;
    let max_batch = evaluation_batch(&network);
    let model = Model::new(engine, network)?;
    let until = model.network.feature;
    let spec = PassSpec { max_batch, branch: Branch::Dense, mode: Mode::Eval, until };
    let pass = Pass::new(engine, &model, spec, &mut GradPool::default())?;
    let images = engine.alloc_bytes(max_batch * model.network.dims(model.network.input).len())?;
    Ok(Frozen { model, pass, images })
}
