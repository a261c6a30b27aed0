//! `sdclr export`: every format of a whole model, and what is refused.

use assert_cmd::Command;
use sdclr::backend::run_network;
use sdclr::checkpoint::{Checkpoint, Tensor};
use sdclr::run_dir::{CheckpointName, Existing, RunDir};
use sdclr_records::names::{Method, ModelName, OptimizerKind, Stem};
use sdclr_records::{CheckpointState, RunConfig};
use std::path::Path;

fn state() -> CheckpointState {
    CheckpointState {
        model: "resnet10".to_owned(),
        method: Method::SdClr,
        epoch: 5,
        batch_in_epoch: 0,
        step: 10,
        total_steps: 10,
        seed: 1,
        optimizer: OptimizerKind::Sgd,
        optimizer_steps: 10,
        epoch_loss_sum: 0.0,
        epoch_steps: 2,
        interval_loss_sum: 0.0,
        interval_steps: 0,
        elapsed_s: 1.0,
        n_skipped: 0,
        mask_threshold: None,
        data: None,
    }
}

/// A folder with `run`: a small ResNet-10 with both branches; every weight is 0.5, every second one masked.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("temporary folder");
    let mut config = RunConfig::default();
    config.data.source = "images".into();
    config.data.image_size = 8;
    config.model.name = ModelName::ResNet10;
    config.model.stem = Stem::Small;
    config.model.base_width = 2;
    let network = run_network(&config).expect("a network");
    let mut checkpoint = Checkpoint::new(state());
    for param in &network.params {
        let shape = match param.shape[..] {
            [cout, kh, kw, cin] => vec![cout, cin, kh, kw],
            _ => param.shape.clone(),
        };
        checkpoint.insert(&param.name, Tensor::f32(&shape, vec![0.5; param.len]));
        let mask = (0..param.len).map(|i| (i % 2) as u8).collect();
        checkpoint.insert(format!("mask.{}", param.name), Tensor::u8(&shape, mask));
    }
    for norm in &network.norms {
        for set in &norm.sets {
            for kind in ["running_mean", "running_var"] {
                let values = vec![1.0; norm.channels];
                checkpoint.insert(format!("{}.{kind}", set.name), Tensor::f32(&[norm.channels], values));
            }
        }
    }
    let writer = RunDir::create(&dir.path().join("run"), Existing::Refuse, &config).expect("new run");
    checkpoint.save(&writer.dir().checkpoint_path(CheckpointName::Last)).expect("saves");
    dir
}

/// Exit code, stdout and stderr.
fn sdclr(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::cargo_bin("sdclr").expect("the program is built");
    let output = command.current_dir(folder).args(arguments).output().expect("runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn export(folder: &Path, out: &str, more: &[&str]) -> Vec<u8> {
    let (code, stdout, stderr) = sdclr(folder, &[&["export", "run", "--out", out], more].concat());
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.starts_with(&format!("{out}: resnet10, epoch 5, ")), "{stdout}");
    std::fs::read(folder.join(out)).expect("written")
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn the_ending_names_the_format() {
    let dir = folder();
    let onnx = export(dir.path(), "b.onnx", &[]);
    assert!(has(&onnx, "GlobalAveragePool") && has(&onnx, "images") && has(&onnx, "features"));
    assert!(!has(&onnx, "projection_head"), "the head stays behind");
    for ending in ["pt", "pth"] {
        let pt = export(dir.path(), &format!("b.{ending}"), &[]);
        assert!(has(&pt, "archive/data.pkl") && has(&pt, "_rebuild_tensor_v2"));
    }
    assert!(has(&export(dir.path(), "b.safetensors", &[]), "\"layer1.0.conv1.weight\""));
    let named = export(dir.path(), "b.bin", &["--format", "onnx"]);
    assert_eq!(named, onnx, "the format asked for, the same bytes");
}

#[test]
fn branches_and_head_reach_every_format() {
    let dir = folder();
    for ending in ["onnx", "pt", "safetensors"] {
        let dense = export(dir.path(), &format!("dense.{ending}"), &[]);
        let pruned = export(dir.path(), &format!("pruned.{ending}"), &["--branch", "pruned"]);
        assert_ne!(dense, pruned, "{ending}");
        let head = export(dir.path(), &format!("head.{ending}"), &["--with-head"]);
        assert!(has(&head, "projection_head.fc1.weight"), "{ending}");
    }
}

#[test]
fn inspect_knows_an_onnx_export() {
    let dir = folder();
    export(dir.path(), "b.onnx", &["--branch", "pruned", "--with-head"]);
    let (code, stdout, stderr) = sdclr(dir.path(), &["inspect", "b.onnx", "--json"]);
    assert_eq!(code, Some(0), "{stderr}");
    let found: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((&found["kind"], &found["branch"]), (&"export".into(), &"pruned".into()));
    assert_eq!((&found["model"], &found["with_head"]), (&"resnet10".into(), &true.into()));
    std::fs::write(dir.path().join("other.onnx"), "other").expect("writes");
    let (code, _, stderr) = sdclr(dir.path(), &["inspect", "other.onnx"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("other.onnx: not an ONNX model that export wrote"), "{stderr}");
}

#[test]
fn what_contradicts_itself_is_wrong_usage() {
    let dir = folder();
    std::fs::write(dir.path().join("there.onnx"), "precious").expect("writes");
    for (out, more, expected) in [
        ("b.safetensors", &["--format", "onnx"][..], "--format onnx under the ending of safetensors"),
        ("b.pth", &["--format", "safetensors"], "--format safetensors under the ending of pt"),
        ("b.bin", &[], "use .safetensors, .pt or .onnx, or give --format"),
        ("b", &[], "use .safetensors, .pt or .onnx, or give --format"),
        ("there.onnx", &[], "--overwrite"),
        ("run/checkpoints/last.safetensors", &["--overwrite"], "that folder is the run's own"),
    ] {
        let (code, _, stderr) = sdclr(dir.path(), &[&["export", "run", "--out", out], more].concat());
        assert_eq!(code, Some(2), "{out}: {stderr}");
        assert!(stderr.contains(expected) && stderr.contains(out), "{out}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    assert_eq!(std::fs::read(dir.path().join("there.onnx")).expect("there"), b"precious");
    export(dir.path(), "there.onnx", &["--overwrite"]);
}

#[test]
fn an_output_that_cannot_be_written_is_named() {
    let dir = folder();
    std::fs::create_dir(dir.path().join("folder.onnx")).expect("makes a folder");
    std::fs::write(dir.path().join("file"), "x").expect("writes");
    for (out, expected) in [
        ("no/such/b.onnx", "no/such: no such folder; make it first"),
        ("file/b.pt", "file: no such folder; make it first"),
    ] {
        let (code, _, stderr) = sdclr(dir.path(), &["export", "run", "--out", out]);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
    }
    let (code, _, stderr) = sdclr(dir.path(), &["export", "run", "--out", "folder.onnx", "--overwrite"]);
    assert_eq!(code, Some(1), "a folder is not replaced");
    assert!(stderr.contains("folder.onnx: cannot write"), "{stderr}");
}

#[test]
fn a_checkpoint_that_lacks_a_tensor_is_refused_by_name() {
    let dir = folder();
    let path = dir.path().join("run/checkpoints/last.safetensors");
    let whole = Checkpoint::load(&path).expect("loads");
    let mut without_masks = whole.clone();
    without_masks.tensors.retain(|name, _| !name.starts_with("mask."));
    without_masks.save(&path).expect("saves");
    for out in ["b.onnx", "b.pt", "b.safetensors"] {
        let (code, _, stderr) = sdclr(dir.path(), &["export", "run", "--out", out, "--branch", "pruned"]);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains("only a checkpoint of an SDCLR run with its masks has a pruned branch"), "{stderr}");
        assert!(!dir.path().join(out).exists());
    }
    let mut cut = whole;
    cut.tensors.remove("layer2.0.bn1.dense.running_var");
    cut.save(&path).expect("saves");
    let (code, _, stderr) = sdclr(dir.path(), &["export", "run", "--out", "b.onnx"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("last.safetensors: cannot export: no tensor `layer2.0.bn1.dense.running_var`"), "{stderr}");
}
