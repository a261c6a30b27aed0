//! What SDCLR's successors add, from outside: a run with all of it, what can be done with it, and what is refused.

use assert_cmd::cargo::cargo_bin;
use std::path::Path;
use std::process::{Command, Output};

const TRAIN_IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fashion-mnist-lt/train-images-idx3-ubyte.gz");

fn sdclr(folder: &Path, args: &[&str]) -> Output {
    Command::new(cargo_bin("sdclr")).current_dir(folder).args(args).output().expect("runs")
}

/// A training of a second: 40 images of 8 pixels, a narrow network, three epochs.
fn pretrain(folder: &Path, out: &str, options: &[&str]) -> Output {
    let every: Vec<usize> = (0..40).map(|i| i * 60).collect();
    sdclr_data::splits::write_indices(&folder.join("some.npy"), &every).expect("writes");
    let plain = ["pretrain", "--out", out, "--data", TRAIN_IMAGES, "--split", "some.npy", "--model", "resnet10"];
    let small = ["--base-width", "4", "--image-size", "8", "--batch-size", "16", "--epochs", "3", "--threads", "1"];
    sdclr(folder, &[&plain[..], &small[..], options].concat())
}

const ALL: &[&str] = &[
    "--temperature-schedule",
    "cosine",
    "--temperature-period-epochs",
    "2",
    "--temperature",
    "0.3",
    "--focal-gamma",
    "2",
    "--boost",
    "--boost-ops",
    "2",
    "--prune-schedule",
    "cubic",
    "--prune-ramp-epochs",
    "2",
    "--prune-rate",
    "0.5",
];

#[track_caller]
fn stderr_of(output: &Output, code: i32) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    stderr
}

#[test]
fn a_run_with_every_option_can_be_resumed_probed_and_exported() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let stderr = stderr_of(&pretrain(dir.path(), "run", ALL), 0);
    assert!(stderr.contains("--temperature has no effect with --temperature-schedule cosine"), "{stderr}");
    let config = std::fs::read_to_string(dir.path().join("run/config.toml")).expect("config");
    for line in ["temperature_schedule = \"cosine\"", "focal_gamma = 2.0", "enabled = true", "schedule = \"cubic\""] {
        assert!(config.contains(line), "{config} lacks {line}");
    }
    let metrics = std::fs::read_to_string(dir.path().join("run/metrics.jsonl")).expect("metrics");
    let epochs: Vec<serde_json::Value> = metrics
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .filter(|m: &serde_json::Value| m["kind"] == "epoch")
        .collect();
    let temperatures: Vec<f64> = epochs.iter().map(|epoch| epoch["temperature"].as_f64().expect("scheduled")).collect();
    assert!(
        temperatures.iter().zip([0.1, 1.0, 0.1]).all(|(got, expected)| (got - expected).abs() < 1e-12),
        "{metrics}"
    );
    let kept: Vec<f64> = epochs.iter().map(|epoch| epoch["mask_kept_share"].as_f64().expect("sdclr")).collect();
    assert!(kept.iter().zip([1.0, 0.5625, 0.5]).all(|(got, expected)| (got - expected).abs() < 1e-3), "{metrics}");

    stderr_of(&sdclr(dir.path(), &["pretrain", "--out", "run", "--resume"]), 0);
    let changed = stderr_of(&sdclr(dir.path(), &["pretrain", "--out", "run", "--resume", "--focal-gamma", "1"]), 1);
    assert!(changed.contains("train.focal_gamma = 2.0, not 1.0"), "{changed}");
    stderr_of(&sdclr(dir.path(), &["export", "run", "--out", "backbone.safetensors"]), 0);
    stderr_of(&sdclr(dir.path(), &["inspect", "run"]), 0);
    stderr_of(
        &sdclr(dir.path(), &["embed", "run", "--data", TRAIN_IMAGES, "--split", "some.npy", "--out", "e.npy"]),
        0,
    );
}

#[test]
fn settings_that_cannot_be_run_are_refused_with_what_to_give() {
    let dir = tempfile::tempdir().expect("temporary folder");
    for (options, expected) in [
        (&["--prune-schedule", "linear"][..], "--prune-ramp-epochs (prune.ramp_epochs) = 0: give the epochs"),
        (&["--temperature-schedule", "cosin"], "'cosine'"),
        (&["--set", "train.temperature_schedule=cosin"], "did you mean `cosine`?"),
        (&["--set", "boost.enable=true"], "did you mean `boost.enabled`?"),
        (&["--focal-gamma", "-1"], "--focal-gamma (train.focal_gamma) = -1"),
        (&["--boost", "--boost-momentum", "1"], "--boost-momentum (boost.momentum) = 1"),
    ] {
        let stderr = stderr_of(&pretrain(dir.path(), "run", options), 2);
        assert!(stderr.contains(expected), "{stderr:?} lacks {expected:?}");
        assert!(!dir.path().join("run").exists(), "{options:?}");
    }
}
