//! The serde types that pass between the crates and live in run directories: configs, metrics, results.
//!
//! This crate knows no tensors and no pixels. What a user typed is merged by [`layers`] into one
//! [`RunConfig`], which is checked once and can then be run.

pub mod augment;
pub mod checkpoint;
pub mod config;
mod error;
pub mod experiment;
pub mod fine_tuning;
mod ignored;
pub mod layers;
pub mod metrics;
pub mod names;
pub mod options;
pub mod presets;
pub mod probe;
pub mod results;
mod schema;
mod validate;

pub use checkpoint::CheckpointState;
pub use config::RunConfig;
pub use error::{Error, Problem, Result};
pub use experiment::Experiment;
pub use fine_tuning::FineTuning;
pub use metrics::MetricLine;
pub use probe::ProbeConfig;
pub use results::ProbeResult;
