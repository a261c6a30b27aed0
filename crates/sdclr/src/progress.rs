//! What a training loop tells whoever watches it.

/// One step, told after it.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Epoch in progress, from 1.
    pub epoch: usize,
    /// Epochs of the run.
    pub n_epochs: usize,
    /// Steps done, earlier sittings included.
    pub step: u64,
    /// Steps of the run.
    pub n_steps: u64,
    /// Mean loss of the epoch so far.
    pub loss: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Images (not views) a second in this epoch.
    pub images_per_s: f64,
    /// Share of the epoch's time spent waiting for data, in [0, 1].
    pub wait_share: f64,
}

/// Whoever watches a loop.
pub trait Observer {
    /// A step is done.
    fn on_step(&mut self, report: &StepReport);
    /// An epoch is done; `report` is of its last step.
    fn on_epoch(&mut self, report: &StepReport);
    /// Features of `done` of `total` images are computed.
    fn on_features(&mut self, _done: usize, _total: usize) {}
    /// Something worth a line.
    fn message(&mut self, text: &str);
}

/// An observer that looks away.
pub struct Unobserved;

impl Observer for Unobserved {
    fn on_step(&mut self, _: &StepReport) {}
    fn on_epoch(&mut self, _: &StepReport) {}
    fn message(&mut self, _: &str) {}
}
