//! The lines of `RUN/metrics.jsonl`: one JSON object a line, appended while training.

use serde::{Deserialize, Serialize};

/// One line of `metrics.jsonl`; its `kind` says which.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MetricLine {
    /// Written every `train.log_every_steps` steps.
    Step(StepMetrics),
    /// Written at the end of every epoch.
    Epoch(EpochMetrics),
}

impl MetricLine {
    /// The last optimizer step that the line covers, counted from the start of the run.
    pub fn step(&self) -> u64 {
        match self {
            Self::Step(line) => line.step,
            Self::Epoch(line) => line.step,
        }
    }
}

/// Averages over the steps since the last line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Epoch in progress, from 1.
    pub epoch: usize,
    /// Optimizer steps done, from 1.
    pub step: u64,
    /// Mean NT-Xent loss of the interval.
    pub loss: f64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Images (not views) a second.
    pub images_per_s: f64,
    /// Share of the time spent waiting for data, in [0, 1].
    pub wait_share: f64,
    /// Seconds of training since the run began, earlier sittings included.
    pub elapsed_s: f64,
    /// Broken images skipped so far.
    pub n_skipped: usize,
}

/// One finished epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochMetrics {
    /// The epoch that ended, from 1.
    pub epoch: usize,
    /// Optimizer steps done by its end.
    pub step: u64,
    /// Mean NT-Xent loss over the epoch's steps.
    pub loss: f64,
    /// Learning rate of its last step.
    pub lr: f64,
    /// Images (not views) a second over the epoch.
    pub images_per_s: f64,
    /// Share of the time spent waiting for data, in [0, 1].
    pub wait_share: f64,
    /// Seconds of training since the run began, earlier sittings included.
    pub elapsed_s: f64,
    /// Broken images skipped so far.
    pub n_skipped: usize,
    /// Its temperature; absent where a schedule does not move it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// The magnitude below which the pruned branch's weights were masked; absent for SimCLR.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_threshold: Option<f64>,
    /// Share of prunable weights that the mask kept, in [0, 1]; absent for SimCLR.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_kept_share: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_its_kind_and_survives_the_round_trip() {
        let line = MetricLine::Step(StepMetrics {
            epoch: 1,
            step: 10,
            loss: 0.1 + 0.2,
            lr: 0.05,
            images_per_s: 123.4,
            wait_share: 0.01,
            elapsed_s: 3.5,
            n_skipped: 0,
        });
        let text = serde_json::to_string(&line).expect("plain numbers");
        assert!(text.starts_with(r#"{"kind":"step","epoch":1,"step":10,"loss":0.30000000000000004"#), "{text}");
        assert_eq!(serde_json::from_str::<MetricLine>(&text).expect("own output"), line);
    }
}
