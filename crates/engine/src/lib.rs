//! The training operations of sdclr behind one trait, and their CPU back ends.
//!
//! - [`engine`]: the trait, with its conventions. A network speaks to this and nothing else.
//! - [`types`]: handles, shapes, errors.
//! - [`oracle`]: every operation as its definition; slow, and the tests' reference.
//! - [`cpu`]: the fast path in f32 and bf16: direct convolutions on AMX tiles, AVX-512, AVX2 or portable vectors, several threads.
//! - [`peak`]: what the machine could do at most.

mod buffer;
pub mod cpu;
mod element;
pub mod engine;
mod host;
pub mod oracle;
pub mod peak;
mod scalar;
pub mod types;

pub use cpu::{Algorithm, CpuOptions, Kernels, Level, bf16_engine, f32_engine};
pub use engine::{Engine, Gate, Memory, NormApply, NormBackward, NormEval, NormTrain, NtXent, WeightGrad};
pub use oracle::Oracle;
pub use peak::{Peaks, Rates};
pub use types::*;
