//! A backbone with a classifier as one network in evaluation mode: what fine-tuning trains, stores and tests.

use crate::backend::{self, Machine};
use crate::error::Error;
use crate::probe::features::evaluation_batch;
use sdclr_engine::{ByteBuf, Engine, Rows};
use sdclr_nn::{Batch, Branch, GradPool, Head, Mode, Model, Network, Pass, PassSpec, Single, Tensor};
use sdclr_records::RunConfig;
use sdclr_records::config::ModelConfig;
use std::collections::BTreeMap;

/// The network on an engine; its weights are whatever was last put into `model`.
pub(in crate::probe) struct Tuned {
    pub engine: Box<dyn Engine>,
    pub model: Model,
    /// A batch of images as bytes.
    pub images: ByteBuf,
    eval: Pass,
}

/// Parameters and running statistics, to come back to.
pub(super) struct State {
    params: Vec<f32>,
    running: Vec<f32>,
}

impl Tuned {
    /// Plans the buffers of a [`network`], and room for `max_batch` images where that is more than are evaluated at a time.
    ///
    /// # Errors
    /// A model that cannot be built, out of memory.
    pub fn new(network: Network, machine: &Machine, max_batch: usize) -> Result<Self, Error> {
        let mut engine = machine.engine()?;
        let model = Model::new(&mut *engine, network)?;
        let eval_batch = evaluation_batch(&model.network);
        let until = model.network.output;
        let spec = PassSpec { max_batch: eval_batch, branch: Branch::Dense, mode: Mode::Eval, until };
        let eval = Pass::new(&mut *engine, &model, spec, &mut GradPool::default())?;
        let per_image = model.network.dims(model.network.input).len();
        let images = engine.alloc_bytes(max_batch.max(eval_batch) * per_image)?;
        Ok(Self { engine, model, images, eval })
    }

    /// Most images of [`Self::logits`].
    pub fn max_batch(&self) -> usize {
        self.eval.max_batch()
    }

    /// Packs the weights; to be called between their last change and [`Self::logits`].
    pub fn pack(&mut self) {
        self.eval.pack(&mut *self.engine, &self.model);
    }

    /// Logits `[n, classes]` of images as bytes `[n, size, size, 3]`, `n` at most a batch, appended to `out`.
    ///
    /// # Errors
    /// A failed device.
    pub fn logits(&mut self, views: &[u8], n: usize, out: &mut Vec<f32>) -> Result<(), Error> {
        let (engine, output) = (&mut *self.engine, self.model.network.output);
        engine.write_bytes(self.images, views);
        self.eval.load(engine, &self.model, n, self.images, Rows::ALL);
        self.eval.forward(engine, &self.model, Batch::local(n), &Single)?;
        let at = out.len();
        out.resize(at + n * self.model.network.dims(output).len(), 0.0);
        engine.read_act(n, self.eval.act(output), &mut out[at..])?;
        Ok(())
    }

    /// What [`Self::set_state`] brings back.
    ///
    /// # Errors
    /// A failed device.
    pub fn state(&mut self) -> Result<State, Error> {
        let (params, running) = (self.model.params(), self.model.running());
        let mut state = State { params: vec![0.0; params.len], running: vec![0.0; running.len] };
        self.engine.read_f32(params, &mut state.params)?;
        self.engine.read_f32(running, &mut state.running)?;
        Ok(state)
    }

    /// Takes the weights that the network had.
    pub fn set_state(&mut self, state: &State) {
        self.engine.write_f32(self.model.params(), &state.params);
        self.engine.write_f32(self.model.running(), &state.running);
    }

    /// All tensors under their names.
    ///
    /// # Errors
    /// A failed device.
    pub fn tensors(&mut self) -> Result<BTreeMap<String, Tensor>, Error> {
        let mut tensors = self.model.export(&mut *self.engine, self.model.params())?;
        tensors.extend(self.model.export_running(&mut *self.engine)?);
        Ok(tensors)
    }

    /// Takes the weights from tensors under their names.
    ///
    /// # Errors
    /// [`sdclr_nn::NnError::Tensors`] if one is missing or of another shape.
    pub fn load(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<(), Error> {
        self.model.import(&mut *self.engine, self.model.params(), tensors)?;
        Ok(self.model.import_running(&mut *self.engine, tensors)?)
    }
}

/// The dense branch of a run's backbone with a classifier.
///
/// # Errors
/// A model that cannot be built.
pub(in crate::probe) fn network(config: &RunConfig, n_classes: usize) -> Result<Network, Error> {
    let one_branch = ModelConfig { dual_bn: false, ..config.model.clone() };
    backend::network(&one_branch, config.data.image_size, Head::Classifier { n_classes })
}
