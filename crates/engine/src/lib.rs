//! The training operations of sdclr behind one trait, and their CPU back ends.
//!
//! - [`engine`]: the trait, with its conventions. A network speaks to this and nothing else.
//! - [`types`]: handles, shapes, errors.
//! - [`oracle`]: every operation as its definition; slow, and the tests' reference.
//! - [`cpu`]: the fast f32 path: direct convolutions on AVX-512, AVX2 or portable vectors, several threads.

pub mod cpu;
mod element;
pub mod engine;
mod host;
pub mod oracle;
mod scalar;
pub mod types;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use cpu::CpuBf16;
pub use cpu::{Cpu, CpuOptions, Level};
pub use engine::{Engine, Memory, NormApply, NormBackward, NormEval, NormTrain, NtXent, WeightGrad};
pub use oracle::Oracle;
pub use types::*;
