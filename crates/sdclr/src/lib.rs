//! placeholder
pub mod checkpoint;
pub mod metrics;
pub mod run_dir;
pub mod signals;
