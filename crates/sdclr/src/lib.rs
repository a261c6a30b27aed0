//! Self-damaging contrastive learning for long-tailed unlabelled images.
//!
//! Start at [`step`]: the SimCLR and the SDCLR step, whole. [`learner`] is what a step works on, [`pretrain`] the loop
//! around it, [`reproduce`] the paper's experiments, [`run_dir`] and [`checkpoint`] what a run leaves behind, [`probe`] how its features are judged.

pub mod backend;
pub mod bench;
pub mod boost;
pub mod checkpoint;
pub mod error;
pub mod init_from;
pub mod learner;
pub mod metrics;
pub mod pretrain;
pub mod probe;
pub mod progress;
pub mod reproduce;
pub mod run_dir;
pub mod signals;
pub mod snapshot;
pub mod step;

pub use backend::Machine;
pub use error::Error;
pub use learner::{Learner, LearnerSpec};
