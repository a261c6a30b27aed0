//! Settings of what SDCLR's successors add to its loop; all of it is off by default. `docs/options.md` lists sources and
//! differences.

use serde::{Deserialize, Serialize};

/// `[boost]`: boosted contrastive learning (Zhou et al., ICML 2022). Images whose losses stay large are augmented more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BoostConfig {
    /// Whether it is done. Default false.
    pub enabled: bool,
    /// β of the memory of an image's losses, in [0, 1). Default 0.97, as published with SDCLR (0.95 with SimCLR).
    pub momentum: f64,
    /// k: operations that are drawn for each view. Default 1, as published.
    pub n_ops: usize,
    /// Largest strength of an operation as a share of its range, in [0, 1]. Default 1, the published 30 of 30.
    pub magnitude: f64,
}

impl Default for BoostConfig {
    fn default() -> Self {
        Self { enabled: false, momentum: 0.97, n_ops: 1, magnitude: 1.0 }
    }
}
