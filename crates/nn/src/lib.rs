//! Networks, losses, optimizers, schedules, pruning masks and collectives, on any engine.
//!
//! - [`graph`]: a network is a list of nodes; [`resnet`] builds the supported ones.
//! - [`model`]: a network's parameters, gradients, running statistics and mask on an engine.
//! - [`pass`]: a node list planned for one branch, run forward and, reversed, backward.
//! - [`loss`]: NT-Xent over both branches (and all ranks), cross-entropy.
//! - [`loss_memory`]: what boosted contrastive learning remembers of each image's losses.
//! - [`mask`]: the global magnitude rule and random pruning.
//! - [`optimizer`], [`schedule`]: SGD, LARS, Adam; cosine with warm-up, constant, step; temperatures, prune rates.
//! - [`collective`]: what ranks say to each other.

pub mod collective;
pub mod graph;
pub mod init;
pub mod loss;
pub mod loss_memory;
pub mod mask;
pub mod model;
pub mod optimizer;
pub mod pass;
pub mod resnet;
pub mod rng;
pub mod schedule;

pub use collective::{Collective, CollectiveError, Single, ThreadRank};
pub use graph::{Network, NormStats, ParamKind};
pub use loss::{ContrastiveLoss, CrossEntropy};
pub use loss_memory::LossMemory;
pub use model::{Model, Tensor};
pub use optimizer::{Optimizer, OptimizerKind};
pub use pass::{Batch, Branch, Fixed, GradPool, Mode, Pass, PassSpec};
pub use resnet::{Head, NetworkSpec};
pub use schedule::{Decay, PruneSchedule, Ramp, Schedule, TemperatureSchedule};

/// What can fail in this crate.
#[derive(Debug, thiserror::Error)]
pub enum NnError {
    /// The engine ran out of memory or its device failed.
    #[error(transparent)]
    Engine(#[from] sdclr_engine::EngineError),
    /// Ranks could not exchange data.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// A network cannot be built as asked.
    #[error("{0}")]
    Network(String),
    /// Tensors do not fit the network.
    #[error("{0}")]
    Tensors(String),
}
