//! ResNet-32s's variants and fine-tuning from outside.
#![cfg(unix)]

use assert_cmd::cargo::cargo_bin;
use rustix::process::{Pid, Signal, kill_process};
use sdclr_records::ProbeResult;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

const TRAIN_IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fashion-mnist-lt/train-images-idx3-ubyte.gz");

/// Exit code, stdout and stderr.
fn sdclr(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(cargo_bin("sdclr")).current_dir(folder).args(arguments).output().expect("runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn succeeds(folder: &Path, arguments: &[&str]) -> String {
    let (code, stdout, stderr) = sdclr(folder, arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {stderr}");
    stdout
}

/// A folder with a run of one epoch on 40 images of 8 pixels.
fn trained(model: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("temporary folder");
    // Inside all three parts; every class of the probe part is among them.
    let indices: Vec<usize> = (0..40).map(|i| i * 25).collect();
    sdclr_data::splits::write_indices(&dir.path().join("some.npy"), &indices).expect("writes");
    let data = ["pretrain", "--out", "run", "--data", TRAIN_IMAGES, "--split", "some.npy", "--image-size", "8"];
    let settings = ["--model", model, "--base-width", "4", "--batch-size", "16", "--epochs", "1", "--lr", "0.05"];
    succeeds(dir.path(), &[&data[..], &settings, &["--threads", "1"]].concat());
    dir
}

fn part(name: &str) -> String {
    TRAIN_IMAGES.replace("train-", name)
}

#[test]
fn the_variants_of_resnet32s_are_trained_measured_embedded_and_exported() {
    for (model, n_features, own_tensor) in
        [("resnet32s-bbn", 32, "rb_block.bn2.running_var"), ("resnet32s-ride", 48, "layer3s.3.4.conv2.weight")]
    {
        let dir = trained(model);
        let (probe, test) = (part("probe-"), part("test-"));
        succeeds(dir.path(), &["eval", "knn", "run", "--data", &probe, "--test", &test]);
        succeeds(dir.path(), &["embed", "run", "--data", TRAIN_IMAGES, "--split", "some.npy", "--out", "e.npy"]);
        // A header of two lines of 64 bytes.
        let bytes = std::fs::metadata(dir.path().join("e.npy")).expect("written").len();
        assert_eq!(bytes, 128 + 40 * n_features * 4, "{model}");
        for branch in ["dense", "pruned"] {
            succeeds(dir.path(), &["export", "run", "--out", "b.safetensors", "--branch", branch, "--overwrite"]);
            let file = std::fs::read(dir.path().join("b.safetensors")).expect("written");
            let header = String::from_utf8_lossy(&file[8..file.len().min(40_000)]).into_owned();
            assert!(header.contains(&format!("\"{own_tensor}\"")), "{model}, {branch}");
            assert!(!header.contains(".dense.") && !header.contains("\"fc."), "{model}, {branch}");
        }
    }
}

#[test]
fn fine_tuning_and_the_supervised_reference_write_their_results() {
    let dir = trained("resnet32s-bbn");
    let (probe, test) = (part("probe-"), part("test-"));
    let mut results = Vec::new();
    for flags in [
        &["--freeze", "none"][..],
        &["--freeze", "layer2"],
        &["--freeze", "layer3", "--frozen-bn", "train", "--name", "other"],
        &["--from-scratch", "--weight-decay", "0.001"],
    ] {
        let data = ["eval", "finetune", "run", "--data", &probe, "--split", "some.npy", "--test", &test, "--json"];
        let settings = ["--val-split", "some.npy", "--epochs", "2", "--batch-size", "16", "--threads", "1"];
        let stdout = succeeds(dir.path(), &[&data[..], &settings, flags].concat());
        results.push(serde_json::from_str::<ProbeResult>(&stdout).expect("a result"));
    }
    for (result, name) in results.iter().zip(["finetune", "finetune-layer2", "other", "supervised"]) {
        let text = std::fs::read_to_string(dir.path().join(format!("run/results/{name}.json"))).expect(name);
        assert_eq!(serde_json::from_str::<ProbeResult>(&text).expect("a result"), *result);
        assert_eq!((result.n_train, result.n_test), (40, 2000), "{name}");
        assert!(result.best_epoch.is_some(), "{name}");
    }
    assert_eq!((results[0].subject.as_str(), results[3].subject.as_str()), ("SDCLR", "supervised"));
    let settings: Vec<_> = results.iter().map(|result| result.settings["fine_tuning"].to_string()).collect();
    assert_eq!(settings[1], r#"{"freeze":"layer2","frozen_bn":"eval"}"#);
    assert_eq!(settings[2], r#"{"freeze":"layer3","frozen_bn":"train"}"#);
    assert_eq!(results[3].settings["weight_decay"], 0.001);
    let checkpoint = |i: usize| results[i].weights.as_ref().expect("has weights").checkpoint.is_some();
    assert!(checkpoint(0) && !checkpoint(3));
    // A fine-tuned network has a classifier and is no other network for that; one from scratch has nothing of the method.
    succeeds(dir.path(), &["eval", "knn", "run", "--data", &probe, "--split", "some.npy", "--test", &test, "--json"]);
    let (_, table, stderr) = sdclr(dir.path(), &["summary", "run"]);
    assert!(!stderr.contains("different networks"), "{stderr}");
    assert_eq!(table.lines().filter(|line| line.starts_with("Supervised ")).count(), 1, "{table}");
}

#[test]
fn what_was_trained_is_kept_tested_again_and_exported() {
    let dir = trained("resnet10");
    let (probe, test) = (part("probe-"), part("test-"));
    let eval = |kind: &str, flags: &[&str]| {
        let data = ["eval", kind, "run", "--data", &probe, "--split", "some.npy", "--test", &test, "--json"];
        let stdout = succeeds(dir.path(), &[&data[..], &["--threads", "1"], flags].concat());
        serde_json::from_str::<ProbeResult>(&stdout).expect("a result")
    };
    let tuned = eval("finetune", &["--epochs", "2", "--batch-size", "16"]);
    assert_eq!(eval("finetune", &["--test-only"]), tuned);
    eval("linear", &["--protocol", "cached", "--epochs", "2"]);
    let mut exports = Vec::new();
    for (name, ending) in [("finetune", "safetensors"), ("linear-cached", "safetensors"), ("finetune", "onnx")] {
        let out = format!("{name}.{ending}");
        let stdout = succeeds(dir.path(), &["export", "run", "--probe", name, "--out", &out]);
        assert!(stdout.starts_with(&format!("{out}: resnet10, epoch 1, probe {name}, ")), "{stdout}");
        let found = succeeds(dir.path(), &["inspect", &out, "--json"]);
        let found: serde_json::Value = serde_json::from_str(&found).expect("JSON");
        assert_eq!((&found["classes"], &found["with_head"]), (&10.into(), &false.into()), "{out}");
        exports.push((found["floats"].clone(), std::fs::read(dir.path().join(out)).expect("written")));
    }
    assert_eq!(exports[0].0, exports[1].0, "the same network");
    assert_ne!(exports[0].1, exports[1].1, "with other weights");
    let export = ["export", "run", "--out", "c.onnx", "--probe"];
    let (code, _, stderr) = sdclr(dir.path(), &[&export[..], &["knn"]].concat());
    assert!(code == Some(2) && stderr.contains("no such stored probe (stored: finetune, linear-cached)"), "{stderr}");
    let (code, _, stderr) = sdclr(dir.path(), &[&export[..], &["finetune", "--with-head"]].concat());
    assert!(code == Some(2) && stderr.contains("cannot be used with"), "{stderr}");
    // Trained on: the linear probe is of weights that are gone, the fine-tuned network is one of its own.
    let rerun = ["pretrain", "--out", "other", "--config", "run/config.toml", "--epochs", "2"];
    succeeds(dir.path(), &rerun);
    let last = "checkpoints/last.safetensors";
    std::fs::copy(dir.path().join("other").join(last), dir.path().join("run").join(last)).expect("copies");
    let (code, _, stderr) = sdclr(dir.path(), &[&export[..], &["linear-cached"]].concat());
    assert!(code == Some(2) && stderr.contains("probe this one anew"), "{stderr}");
    let stdout = succeeds(dir.path(), &[&export[..], &["finetune"]].concat());
    assert!(stdout.contains("epoch 1, probe finetune"), "the epoch that it began with: {stdout}");
    // A run that is replaced takes what it kept along, damaged or not.
    let kept = dir.path().join("run/probes/finetune.safetensors");
    let bytes = std::fs::read(&kept).expect("kept");
    std::fs::write(&kept, &bytes[..bytes.len() / 2]).expect("writes");
    succeeds(dir.path(), &[&rerun[..2], &["run"], &rerun[3..], &["--overwrite"]].concat());
    assert!(!dir.path().join("run/probes").exists());
}

#[test]
fn what_was_trained_is_not_taken_for_something_else() {
    let (dir, other) = (trained("resnet10"), trained("resnet18"));
    let (probe, test) = (part("probe-"), part("test-"));
    let data = ["--data", &probe, "--split", "some.npy", "--test", &test, "--threads", "1", "--quiet"];
    let eval = |kind: &str, flags: &[&str]| [&["eval", kind, "run"], flags, &data[..]].concat().join("\n");
    let run = |folder: &Path, arguments: &str| sdclr(folder, &arguments.split('\n').collect::<Vec<_>>());
    assert_eq!(run(dir.path(), &eval("finetune", &["--epochs", "1"])).0, Some(0));
    let (code, _, stderr) = run(dir.path(), &eval("linear", &["--test-only", "--name", "finetune"]));
    assert!(code == Some(2) && stderr.contains("what eval finetune trained"), "{stderr}");
    let (code, _, stderr) = run(dir.path(), &eval("knn", &["--name", "finetune"]));
    assert!(code == Some(2) && stderr.contains("choose another --name"), "{stderr}");
    let (code, _, stderr) =
        run(dir.path(), &eval("finetune", &["--test-only", "--from-scratch", "--stored", "finetune"]));
    assert!(code == Some(2) && stderr.contains("without --from-scratch"), "{stderr}");
    let own = ["eval", "finetune", "run", "--test-only", "--stored", "finetune", "--name", "own", "--threads", "1"];
    let learned = ["--data", &probe, "--test", &probe, "--test-split", "some.npy"];
    let (code, _, stderr) = sdclr(dir.path(), &[&own[..], &learned].concat());
    assert!(code == Some(0) && stderr.contains("40 of the images that it learned from are tested on"), "{stderr}");
    assert!(
        dir.path().join("run/results/own.json").is_file() && dir.path().join("run/results/finetune.json").is_file()
    );
    std::fs::create_dir(other.path().join("run/probes")).expect("makes a folder");
    let kept = "run/probes/finetune.safetensors";
    std::fs::copy(dir.path().join(kept), other.path().join(kept)).expect("copies");
    let (code, _, stderr) = run(other.path(), &eval("finetune", &["--test-only"]));
    assert!(code == Some(2) && stderr.contains("it is another model's"), "{stderr}");
    let (code, _, stderr) = sdclr(other.path(), &["export", "run", "--probe", "finetune", "--out", "c.pt"]);
    assert!(code == Some(2) && stderr.contains(kept) && stderr.contains("it is another model's"), "{stderr}");
    let damaged = std::fs::read(other.path().join(kept)).expect("there");
    std::fs::write(other.path().join(kept), &damaged[..damaged.len() / 2]).expect("writes");
    let (code, _, stderr) = sdclr(other.path(), &["inspect", kept]);
    assert!(code == Some(1) && stderr.contains("the stored probe is damaged"), "{stderr}");
    // Known before the training, not after it.
    std::fs::remove_dir_all(dir.path().join("run/probes")).expect("removes");
    std::fs::write(dir.path().join("run/probes"), "in the way").expect("writes");
    let (code, _, stderr) = run(dir.path(), &eval("finetune", &["--epochs", "100000"]));
    assert!(code == Some(1) && stderr.contains("run/probes: cannot write"), "{stderr}");
}

#[test]
fn wrong_flags_say_what_would_do() {
    let dir = trained("resnet32s");
    let probe = part("probe-");
    for (flags, expected) in [
        (&["--freeze", "layer4"][..], "--freeze layer4: resnet32s has 3 layers; give none, layer1, layer2 or layer3"),
        (&["--freeze", "layer5"], "possible values: none, layer1, layer2, layer3, layer4"),
        (&["--frozen-bn", "train"], "--freeze"),
        (&["--freeze", "layer1", "--from-scratch"], "cannot be used with"),
        (&["--batch-size", "1"], "--batch-size = 1: must be at least 2"),
        (&["--weight-decay", "-1"], "--weight-decay = -1: must be a number, 0 or above"),
        (&["--epochs", "0"], "--epochs = 0: must be at least 1"),
    ] {
        let arguments = ["eval", "finetune", "run", "--data", &probe, "--test", &probe];
        let (code, _, stderr) = sdclr(dir.path(), &[&arguments[..], flags].concat());
        assert!(code == Some(2) && stderr.contains(expected), "{flags:?}: {code:?} {stderr}");
    }
    assert!(!dir.path().join("run/results").exists(), "nothing was measured");
}

#[test]
fn a_stopped_fine_tuning_writes_no_result() {
    let dir = trained("resnet32s");
    let (probe, test) = (part("probe-"), part("test-"));
    let mut command = Command::new(cargo_bin("sdclr"));
    command.current_dir(dir.path()).args(["eval", "finetune", "run", "--data", &probe, "--test", &test]);
    command.args(["--epochs", "100000", "--batch-size", "16"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    assert!(stderr.any(|line| line.contains("epoch ")), "no progress before the end");
    kill_process(Pid::from_child(&child), Signal::INT).expect("is running");
    let rest = stderr.collect::<Vec<_>>().join("\n");
    assert_eq!(child.wait().expect("ends").code(), Some(130), "{rest}");
    assert!(rest.contains("no result was written"), "{rest}");
    assert!(!dir.path().join("run/results/finetune.json").exists());
}
