//! One linear layer on given features, trained by SGD: what both linear protocols train.

use crate::error::Error;
use sdclr_engine::Engine;
use sdclr_nn::{
    Batch, Branch, CrossEntropy, GradPool, Mode, Model, Optimizer, OptimizerKind, Pass, PassSpec, Single, Tensor,
    resnet::linear_classifier, rng,
};
use sdclr_records::ProbeConfig;
use std::collections::BTreeMap;

/// A linear classifier's first weights, N(0, `init_std`), and biases, 0.
pub(super) fn first_weights(width: usize, n_classes: usize, probe: &ProbeConfig) -> BTreeMap<String, Tensor> {
    let mut rng = rng::stream(probe.seed, "probe-init", 0);
    let weights = (0..width * n_classes).map(|_| (rng::normal(&mut rng) * probe.init_std) as f32).collect();
    BTreeMap::from([
        ("fc.weight".to_owned(), Tensor { shape: vec![n_classes, width], data: weights }),
        ("fc.bias".to_owned(), Tensor { shape: vec![n_classes], data: vec![0.0; n_classes] }),
    ])
}

/// A linear classifier with its optimizer.
pub struct Classifier {
    model: Model,
    pass: Pass,
    loss: CrossEntropy,
    optimizer: Optimizer,
    width: usize,
    n_classes: usize,
}

impl Classifier {
    /// Weights N(0, `init_std`), biases 0, as the published probe.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(engine: &mut dyn Engine, width: usize, n_classes: usize, probe: &ProbeConfig) -> Result<Self, Error> {
        let model = Model::new(engine, linear_classifier(width, n_classes))?;
        let spec = PassSpec {
            max_batch: probe.batch_size,
            branch: Branch::Dense,
            mode: Mode::Train,
            until: model.network.output,
        };
        let pass = Pass::new(engine, &model, spec, &mut GradPool::default())?;
        let loss = CrossEntropy::new(engine, probe.batch_size)?;
        let (momentum, weight_decay) = (probe.momentum as f32, probe.weight_decay as f32);
        let optimizer = Optimizer::new(engine, &model, OptimizerKind::Sgd { momentum, weight_decay })?;
        model.import(engine, model.params(), &first_weights(width, n_classes, probe))?;
        Ok(Self { model, pass, loss, optimizer, width, n_classes })
    }

    fn forward(&self, engine: &mut dyn Engine, features: &[f32]) -> Result<Batch, Error> {
        let batch = Batch::local(features.len() / self.width);
        engine.write_act(batch.n, self.pass.act(self.model.network.input), features);
        self.pass.forward(engine, &self.model, batch, &Single)?;
        Ok(batch)
    }

    /// One SGD step on a batch `[n, width]`; returns the mean cross-entropy before it.
    ///
    /// # Errors
    /// [`Error::NonFiniteLoss`], a failed device.
    pub fn step(&mut self, engine: &mut dyn Engine, features: &[f32], labels: &[u32], lr: f64) -> Result<f32, Error> {
        let batch = self.forward(engine, features)?;
        let (logits, grad) = (self.pass.act(self.model.network.output), self.pass.output_grad());
        let loss = self.loss.forward_backward(engine, batch.n, logits, labels, grad)?;
        if !loss.is_finite() {
            return Err(Error::NonFiniteLoss { loss, step: self.optimizer.n_updates + 1, lr });
        }
        self.model.zero_grads(engine);
        self.pass.backward(engine, &self.model, batch, &Single)?;
        self.optimizer.step(engine, &self.model, lr);
        Ok(loss)
    }

    /// Logits of any number of rows, `[n, n_classes]`.
    ///
    /// # Errors
    /// A failed device.
    pub fn logits(&self, engine: &mut dyn Engine, features: &[f32]) -> Result<Vec<f32>, Error> {
        let mut logits = Vec::with_capacity(features.len() / self.width * self.n_classes);
        for rows in features.chunks(self.pass.max_batch() * self.width) {
            let batch = self.forward(engine, rows)?;
            let at = logits.len();
            logits.resize(at + batch.n * self.n_classes, 0.0);
            engine.read_act(batch.n, self.pass.act(self.model.network.output), &mut logits[at..])?;
        }
        Ok(logits)
    }

    /// The weights, to come back to.
    ///
    /// # Errors
    /// A failed device.
    pub fn weights(&self, engine: &mut dyn Engine) -> Result<Vec<f32>, Error> {
        let mut weights = vec![0.0; self.model.params().len];
        engine.read_f32(self.model.params(), &mut weights)?;
        Ok(weights)
    }

    /// Sets weights that [`Classifier::weights`] returned.
    pub fn set_weights(&self, engine: &mut dyn Engine, weights: &[f32]) {
        engine.write_f32(self.model.params(), weights);
    }
}
