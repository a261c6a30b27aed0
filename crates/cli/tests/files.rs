//! Commands that read a run directory: what they say of a good one, and of a damaged one.

use assert_cmd::Command;
use sdclr::checkpoint::{Checkpoint, Tensor};
use sdclr::run_dir::{CheckpointName, Existing, RunDir};
use sdclr_records::names::{Method, OptimizerKind};
use sdclr_records::{CheckpointState, RunConfig};
use std::path::{Path, PathBuf};

fn state() -> CheckpointState {
    CheckpointState {
        model: "resnet18".to_owned(),
        method: Method::SdClr,
        epoch: 3,
        batch_in_epoch: 0,
        step: 30,
        total_steps: 100,
        seed: 1,
        optimizer: OptimizerKind::Sgd,
        optimizer_steps: 30,
        epoch_loss_sum: 0.0,
        epoch_steps: 3,
        interval_loss_sum: 0.0,
        interval_steps: 0,
        elapsed_s: 1.0,
        n_skipped: 0,
        mask_threshold: None,
        data: None,
    }
}

/// A run with a checkpoint of three tensors.
fn run_in(folder: &Path) -> PathBuf {
    let mut config = RunConfig::default();
    config.data.source = "images".into();
    let writer = RunDir::create(&folder.join("run"), Existing::Refuse, &config).expect("new run");
    let mut checkpoint = Checkpoint::new(state());
    checkpoint.insert("conv1.weight", Tensor::f32(&[1, 1, 1, 2], vec![1.0, 2.0]));
    checkpoint.insert("bn1.dense.weight", Tensor::f32(&[1], vec![3.0]));
    checkpoint.insert("fc.fc1.weight", Tensor::f32(&[1, 1], vec![4.0]));
    let path = writer.dir().checkpoint_path(CheckpointName::Last);
    checkpoint.save(&path).expect("saves");
    path
}

fn sdclr(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::cargo_bin("sdclr").expect("the program is built");
    let output = command.current_dir(folder).args(arguments).output().expect("runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_backbone_is_exported_under_torchvision_s_names() {
    let dir = tempfile::tempdir().expect("temporary folder");
    run_in(dir.path());
    let export = ["export", "run", "--out", "b.safetensors"];
    let (code, _, stderr) = sdclr(dir.path(), &export);
    assert_eq!(code, Some(0), "{stderr}");
    let bytes = std::fs::read(dir.path().join("b.safetensors")).expect("written");
    let header = String::from_utf8_lossy(&bytes);
    for name in ["\"conv1.weight\"", "\"bn1.weight\"", "\"pt\""] {
        assert!(header.contains(name), "{name}");
    }
    assert!(!header.contains("fc1"), "the head stays behind");
    let (code, _, stderr) = sdclr(dir.path(), &export);
    assert_eq!(code, Some(2), "not replaced unasked");
    assert!(stderr.contains("--overwrite"), "{stderr}");
    let (code, _, stderr) = sdclr(dir.path(), &[&export[..], &["--overwrite", "--branch", "pruned"]].concat());
    assert_eq!(code, Some(1));
    assert!(stderr.contains("mask.conv1.weight"), "{stderr}");
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = run_in(dir.path());
    let mut bytes = std::fs::read(&path).expect("there");
    *bytes.last_mut().expect("not empty") ^= 1;
    std::fs::write(&path, bytes).expect("writes");
    for arguments in [&["export", "run", "--out", "b.safetensors"][..], &["inspect", "run"]] {
        let (code, _, stderr) = sdclr(dir.path(), arguments);
        assert_eq!(code, Some(1));
        assert!(stderr.contains("the checkpoint is damaged (its checksum does not match)"), "{stderr}");
    }
    assert!(!dir.path().join("b.safetensors").exists());
}

#[test]
fn inspect_tells_a_run_from_a_checkpoint() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = run_in(dir.path());
    let kind = |path: &str| {
        let (code, stdout, stderr) = sdclr(dir.path(), &["inspect", path, "--json"]);
        assert_eq!(code, Some(0), "{stderr}");
        serde_json::from_str::<serde_json::Value>(&stdout).expect("JSON")
    };
    assert_eq!(kind("run")["last_checkpoint"]["epoch"], 3);
    assert_eq!(kind(path.to_str().expect("Unicode"))["floats"], 4);
    let (code, _, stderr) = sdclr(dir.path(), &["export", "run", "--out", "b.safetensors"]);
    assert_eq!(code, Some(0), "{stderr}");
    let export = kind("b.safetensors");
    assert_eq!(
        (&export["kind"], &export["model"], &export["floats"]),
        (&"export".into(), &"resnet18".into(), &3.into())
    );
    std::fs::write(dir.path().join("f.npy"), sdclr_interop::npy_f32(&[2, 3], &[0.0; 6])).expect("writes");
    let features = kind("f.npy");
    assert_eq!((&features["kind"], features["shape"][1].as_u64()), (&"features".into(), Some(3)));
    sdclr_data::splits::write_indices(&dir.path().join("s.npy"), &[1, 2]).expect("writes");
    assert_eq!(kind("s.npy")["kind"], "split");
    let features = std::fs::read(dir.path().join("f.npy")).expect("written");
    std::fs::write(dir.path().join("cut.npy"), &features[..features.len() / 10 * 9]).expect("writes");
    let (code, _, stderr) = sdclr(dir.path(), &["inspect", "cut.npy"]);
    assert!(code == Some(1) && stderr.contains("cut.npy: cut short"), "{stderr}");
}
