//! Values that a config holds and that do not do what somebody who typed one expects: never read, or never reached.

use crate::config::RunConfig;
use crate::layers::{Layer, flag_of};
use crate::names::{Method, OptimizerKind, PruneScheduleKind, ScheduleKind, TemperatureScheduleKind};

/// A note for each value in `given` (what somebody typed, not presets or whole configs) that the config never reads, and for a prune rate
/// that the run is too short for.
pub fn ignored(config: &RunConfig, given: &[&Layer]) -> Vec<String> {
    let (method, optimizer, schedule) = (config.method, config.optimizer.kind, config.schedule.kind);
    let (prune_schedule, temperature) = (config.prune.schedule, config.train.temperature_schedule);
    let why = |key: &str| match key {
        _ if key.starts_with("prune.") && method != Method::SdClr => Some(format!("--method {method}")),
        "prune.rate_start" | "prune.ramp_epochs" if prune_schedule == PruneScheduleKind::Constant => {
            Some(format!("--prune-schedule {prune_schedule}"))
        }
        "boost.momentum" | "boost.n_ops" | "boost.magnitude" if !config.boost.enabled => {
            Some("boost.enabled = false (give --boost)".to_owned())
        }
        "train.temperature" if temperature != TemperatureScheduleKind::Constant => {
            Some(format!("--temperature-schedule {temperature}"))
        }
        "train.temperature_min" | "train.temperature_max" | "train.temperature_period_epochs"
            if temperature == TemperatureScheduleKind::Constant =>
        {
            Some(format!("--temperature-schedule {temperature}"))
        }
        "optimizer.momentum" | "optimizer.weight_decay" if optimizer == OptimizerKind::Adam => {
            Some(format!("--optimizer {optimizer}"))
        }
        "optimizer.lars_eta" if optimizer != OptimizerKind::Lars => Some(format!("--optimizer {optimizer}")),
        "schedule.min_lr" if schedule != ScheduleKind::Cosine => Some(format!("--schedule {schedule}")),
        "schedule.milestones" | "schedule.gamma" if schedule != ScheduleKind::Step => {
            Some(format!("--schedule {schedule}"))
        }
        _ => None,
    };
    let note = |key: &str| {
        let name = flag_of(key).map_or_else(|| key.to_owned(), |flag| format!("--{flag}"));
        why(key).map(|why| format!("{name} has no effect with {why}"))
    };
    let keys = || given.iter().flat_map(|layer| &layer.values).map(|(key, _)| key.as_str());
    let mut notes: Vec<String> = keys().filter_map(note).collect();
    let (prune, n_epochs) = (&config.prune, config.train.epochs);
    let moves = method == Method::SdClr && prune_schedule != PruneScheduleKind::Constant;
    let is_asked_for = keys().any(|key| ["prune.ramp_epochs", "prune.schedule", "train.epochs"].contains(&key));
    if moves && prune.ramp_epochs > n_epochs && is_asked_for {
        let (ramp, rate) = (prune.ramp_epochs, prune.rate);
        notes.push(format!(
            "--prune-ramp-epochs {ramp} is more than --epochs {n_epochs}: the prune rate will not reach {rate}"
        ));
    }
    notes.sort();
    notes.dedup();
    notes
}
