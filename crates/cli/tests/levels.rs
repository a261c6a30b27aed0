//! `SDCLR_CPU_LEVEL` and `SDCLR_CPU_CONVOLUTION` force every path of the CPU engine, in both precisions; all of them train alike.

use assert_cmd::Command;
use sdclr_engine::{Algorithm, Level};
use serde_json::Value;
use std::path::Path;

const TRAIN_IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fashion-mnist-lt/train-images-idx3-ubyte.gz");

fn sdclr(level: &str, algorithm: &str, args: &[&str]) -> std::process::Output {
    let mut command = Command::cargo_bin("sdclr").expect("the program is built");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SDCLR_")) {
        command.env_remove(name);
    }
    command.env("SDCLR_CPU_LEVEL", level).env("SDCLR_CPU_CONVOLUTION", algorithm).args(args).output().expect("runs")
}

/// Mean loss of an epoch of a small network.
fn loss(level: &str, algorithm: &str, precision: &str, out: &Path) -> f64 {
    let run = out.join(format!("{level}-{algorithm}-{precision}"));
    let run = run.to_str().expect("text");
    let args = ["pretrain", "--data", TRAIN_IMAGES, "--out", run, "--precision", precision, "--epochs", "1", "--quiet"];
    let model = ["--model", "resnet10", "--base-width", "8", "--image-size", "16", "--batch-size", "128"];
    let output =
        sdclr(level, algorithm, &[&args[..], &model, &["--threads", "1", "--seed", "1", "--lr", "0.002"]].concat());
    assert!(output.status.success(), "{level}, {algorithm}, {precision}: {}", String::from_utf8_lossy(&output.stderr));
    let metrics = std::fs::read_to_string(Path::new(run).join("metrics.jsonl")).expect("metrics");
    let mut epochs = metrics.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let epoch = epochs.rfind(|line| line["kind"] == "epoch").expect("an epoch");
    epoch["loss"].as_f64().expect("a loss")
}

#[test]
fn every_level_trains_alike() {
    let out = tempfile::tempdir().expect("a folder");
    let expected = loss("portable", "direct", "f32", out.path());
    let mut n_seen = 0;
    for level in Level::available().map(Level::name) {
        // Paths round differently, and twenty steps spread that: at this low rate to 0.06 % of the loss in f32, 0.4 % where tiles of
        // 4 × 4 are forced upon maps of 2 × 2, and 0.5 % in bf16 (at 0.05 it grows to 1.5 %, which would hide a wrong path); each
        // bound is three to four times the spread.
        for precision in ["f32", "bf16"] {
            for algorithm in Algorithm::names() {
                let tolerance = match (precision, algorithm) {
                    ("bf16", _) => 2e-2,
                    (_, "winograd") => 1.5e-2,
                    _ => 2e-3,
                };
                let loss = loss(level, algorithm, precision, &out.path().join(level));
                let is_near = (loss - expected).abs() < tolerance * expected;
                assert!(is_near, "{level}, {algorithm}, {precision}: {loss}, not {expected}");
                n_seen += 1;
            }
        }
    }
    assert!(n_seen >= 4, "every machine has the portable level");
}

#[test]
fn an_unknown_path_is_named_with_the_known_ones() {
    let check = |level: &str, algorithm: &str, mut known: Box<dyn Iterator<Item = &'static str>>| {
        let output = sdclr(level, algorithm, &["doctor"]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(known.all(|name| error.contains(name)), "{error}");
    };
    check("sse", "auto", Box::new(Level::names()));
    check("portable", "fft", Box::new(Algorithm::names()));
}
