//! `sdclr import`: what PyTorch trained gives the same features here, and can be probed, exported and trained on.
//!
//! Files and PyTorch's numbers: `crates/interop/tests/fixtures/make_checkpoints.py`.

use assert_cmd::Command;
use safetensors::SafeTensors;
use sdclr::Machine;
use sdclr::checkpoint::{Checkpoint, Tensor};
use sdclr::probe::{Extractor, Subject, Weights};
use sdclr::run_dir::{CheckpointName, RunDir};
use sdclr_engine::Kernels;
use sdclr_records::names::{Device, Precision};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const TRAIN_IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fashion-mnist-lt/train-images-idx3-ubyte.gz");

/// What the issue of this command promises: float32 rounds sums of some hundred terms to about 1e-6 of their size.
const TOLERANCE: f32 = 1e-4;

fn fixture(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../interop/tests/fixtures").join(name);
    path.to_str().expect("Unicode").to_owned()
}

fn sdclr(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::cargo_bin("sdclr").expect("the program is built");
    let output = command.current_dir(folder).args(arguments).output().expect("runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Runs the program to success; returns what it said on stdout and stderr.
#[track_caller]
fn done(folder: &Path, arguments: &[&str]) -> (String, String) {
    let (code, stdout, stderr) = sdclr(folder, arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {stderr}");
    (stdout, stderr)
}

#[track_caller]
fn refused(folder: &Path, arguments: &[&str], expected_code: i32, expected: &str) {
    let (code, _, stderr) = sdclr(folder, arguments);
    assert_eq!(code, Some(expected_code), "{arguments:?}: {stderr}");
    assert!(stderr.contains(expected), "{stderr:?} lacks {expected:?}");
}

/// Imports a fixture into `folder/out`.
#[track_caller]
fn import(folder: &Path, name: &str, out: &str, more: &[&str]) -> (String, String) {
    let file = fixture(name);
    done(folder, &[&["import", &file, "--out", out][..], more].concat())
}

fn expected(name: &str) -> (Vec<u8>, Vec<usize>) {
    let bytes = std::fs::read(fixture("expected.safetensors")).expect("reads");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensor = file.tensor(name).expect(name);
    (tensor.data().to_vec(), tensor.shape().to_vec())
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Features of the recorded images by a run's last checkpoint.
fn features(run: &Path, image_size: usize) -> Vec<f32> {
    let run = RunDir::open(run).expect("a run");
    let config = run.config().expect("a config");
    assert_eq!(config.data.image_size, image_size);
    let weights = Weights::Trained(run.checkpoint_path(CheckpointName::Last));
    let (device, precision, kernels) = (Device::Cpu, Precision::F32, Kernels::default());
    let machine = Machine { device, precision, threads: 1, workers: 1, kernels };
    let mut extractor = Extractor::new(&Subject { config, weights }, &machine).expect("loads");
    let mut found = Vec::new();
    extractor.extract(&expected(&format!("images.{image_size}")).0, &mut found).expect("computes");
    found
}

#[track_caller]
fn check_features(run: &Path, image_size: usize, name: &str) {
    let (found, (expected, shape)) = (features(run, image_size), expected(name));
    let expected = floats(&expected);
    assert_eq!(found.len(), shape.iter().product::<usize>(), "{name}");
    assert!(expected.iter().any(|value| value.abs() > 0.1), "{name}: features that say nothing");
    let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= TOLERANCE, "{name}: off by {worst}");
}

fn tensors(run: &Path) -> BTreeMap<String, Tensor> {
    let run = RunDir::open(run).expect("a run");
    Checkpoint::load(&run.checkpoint_path(CheckpointName::Last)).expect("a checkpoint").tensors
}

#[test]
fn imported_models_have_the_features_that_pytorch_computes() {
    let dir = tempfile::tempdir().expect("temporary folder");
    for (file, size) in [
        ("sdclr_dual.pt", "16"),
        ("sdclr_single_legacy.pt", "16"),
        ("simclr.pt", "16"),
        ("odd.pt", "16"),
        ("resnet32s.pth", "16"),
        ("best_model.pt", "16"),
        ("torchvision_resnet18.pth", "64"),
        ("resnet50.safetensors", "64"),
    ] {
        import(dir.path(), file, file, &["--image-size", size]);
        let name = file.split('.').next().expect("a name");
        check_features(&dir.path().join(file), size.parse().expect("a number"), &format!("{name}.dense"));
    }
}

#[test]
fn the_pruned_branch_has_the_features_that_pytorch_computes() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let mask = fixture("mask_7.pt");
    let (stdout, _) = import(dir.path(), "sdclr_dual.pt", "dual", &["--image-size", "16", "--mask", &mask]);
    assert!(stdout.contains("dual batch norm") && stdout.contains("with masks"), "{stdout}");
    done(dir.path(), &["export", "dual", "--branch", "pruned", "--with-head", "--out", "pruned.safetensors"]);
    // Our own exports say the size of their images.
    let (stdout, stderr) = done(dir.path(), &["import", "pruned.safetensors", "--out", "pruned"]);
    assert!(!stderr.contains("--image-size"), "{stderr}");
    assert!(stdout.contains("single batch norm, 3-layer head of 32"), "{stdout}");
    check_features(&dir.path().join("pruned"), 16, "sdclr_dual.pruned");
}

#[test]
fn a_stored_probe_is_kept_beside_its_model() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let best = fixture("best_model.pt");
    import(dir.path(), "best_model.pt", "alone", &["--image-size", "16"]);
    import(dir.path(), "sdclr_dual.pt", "dual", &["--image-size", "16", "--probe", &best, "--probe-name", "best"]);
    let alone = std::fs::read(dir.path().join("alone/probes/linear-paper.safetensors")).expect("stored");
    assert_eq!(std::fs::read(dir.path().join("dual/probes/best.safetensors")).expect("stored"), alone);
    let probe = SafeTensors::deserialize(&alone).expect("safetensors");
    let [weight, bias] = ["fc.weight", "fc.bias"].map(|name| floats(probe.tensor(name).expect(name).data()));
    let logits: Vec<f32> = features(&dir.path().join("dual"), 16)
        .chunks_exact(16)
        .flat_map(|feature| {
            let dot = |row: &[f32]| row.iter().zip(feature).map(|(w, x)| w * x).sum::<f32>();
            weight.chunks_exact(16).zip(&bias).map(|(row, bias)| dot(row) + bias).collect::<Vec<_>>()
        })
        .collect();
    let worst = logits.iter().zip(floats(&expected("best_model.logits").0)).map(|(a, b)| (a - b).abs());
    // Sixteen features, each by a weight of about one.
    assert!(worst.fold(0.0, f32::max) <= 16.0 * TOLERANCE);
    // A classifier of other features is of no use.
    let other = fixture("torchvision_resnet18.pth");
    let model = fixture("sdclr_dual.pt");
    let arguments = ["import", &model, "--out", "none", "--probe", &other];
    refused(dir.path(), &arguments, 1, "its backbone is another");
    assert!(!dir.path().join("none").exists());
}

#[test]
fn an_imported_probe_is_tested_in_one_command_and_names_pytorch_s_classes() {
    let dir = tempfile::tempdir().expect("temporary folder");
    import(dir.path(), "best_model.pt", "run", &["--image-size", "16"]);
    let (images, logits) = (expected("images.16").0, floats(&expected("best_model.logits").0));
    let mut list = String::new();
    for (i, (pixels, row)) in images.chunks_exact(16 * 16 * 3).zip(logits.chunks_exact(5)).enumerate() {
        let image = image::RgbImage::from_raw(16, 16, pixels.to_vec()).expect("16 by 16");
        image.save(dir.path().join(format!("{i}.png"))).expect("writes");
        let best = (0..5).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("five");
        list.push_str(&format!("{i}.png {best}\n"));
    }
    std::fs::write(dir.path().join("list.txt"), &list).expect("writes");
    let test =
        ["eval", "linear", "run", "--protocol", "paper", "--test-only", "--data", "list.txt", "--test", "list.txt"];
    let (stdout, _) = done(dir.path(), &[&test[..], &["--json", "--threads", "1"]].concat());
    let result: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((&result["top1"], &result["n_test"]), (&100.0.into(), &list.lines().count().into()), "{list}");
    assert!(dir.path().join("run/results/linear-paper.json").is_file());
    let cached = ["eval", "linear", "run", "--test-only", "--data", "list.txt", "--test", "list.txt"];
    refused(dir.path(), &cached, 2, "stored: linear-paper");
}

#[test]
fn a_file_is_told_what_it_is_and_what_is_missing() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (_, stderr) = import(dir.path(), "torchvision_resnet18.pth", "run", &[]);
    for part in ["left out: fc.weight, fc.bias", "no projection head", "--image-size 224"] {
        assert!(stderr.contains(part), "{stderr:?} lacks {part:?}");
    }
    let (mask, simclr, dual) = (fixture("mask_7.pt"), fixture("simclr.pt"), fixture("sdclr_dual.pt"));
    refused(dir.path(), &["import", &mask, "--out", "x"], 1, "give it by --mask");
    refused(
        dir.path(),
        &["import", &simclr, "--mask", &mask, "--method", "simclr", "--out", "x"],
        2,
        "--method simclr",
    );
    refused(dir.path(), &["import", &dual, "--method", "simclr", "--out", "x"], 2, "leave --method out");
    refused(dir.path(), &["import", &simclr, "--image-size", "4", "--out", "x"], 2, "image_size");
    refused(dir.path(), &["import", &simclr, "--out", "run"], 2, "--overwrite");
    refused(dir.path(), &["import", &fixture("whole_module.pt"), "--out", "x"], 1, "torch.nn.modules.linear.Linear");
    assert!(!dir.path().join("x").exists());
    let (_, stderr) = import(dir.path(), "sdclr_single_legacy.pt", "later", &["--mask", &mask]);
    assert!(stderr.contains("the masks are of epoch 7, the model of epoch 3"), "{stderr}");
    let (stdout, _) = done(dir.path(), &["inspect", &simclr, "--json"]);
    let found: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((&found["kind"], &found["epoch"]), (&"PyTorch checkpoint".into(), &5.into()));
}

#[test]
fn overwriting_leaves_nothing_of_the_run_before() {
    let dir = tempfile::tempdir().expect("temporary folder");
    import(dir.path(), "best_model.pt", "run", &[]);
    assert!(dir.path().join("run/probes/linear-paper.safetensors").is_file());
    let (stdout, _) = done(dir.path(), &["inspect", "run/probes/linear-paper.safetensors", "--json"]);
    let found: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((&found["kind"], &found["protocol"]), (&"probe".into(), &"linear-paper".into()));
    import(dir.path(), "simclr.pt", "run", &["--overwrite"]);
    assert!(!dir.path().join("run/probes").exists());
}

#[test]
fn an_imported_run_is_probed_and_says_that_it_was_imported() {
    let dir = tempfile::tempdir().expect("temporary folder");
    import(dir.path(), "torchvision_resnet18.pth", "run", &["--image-size", "32"]);
    import(dir.path(), "simclr.pt", "simclr", &["--image-size", "16"]);
    let data = Path::new(TRAIN_IMAGES).parent().and_then(Path::to_str).expect("a folder");
    for (run, subject) in [("run", "imported"), ("simclr", "SimCLR")] {
        let (stdout, stderr) = done(dir.path(), &["eval", "knn", run, "--data", data, "--threads", "1", "--json"]);
        let result: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
        assert_eq!(result["subject"], subject);
        assert!(stderr.contains("an imported model, whose training images nobody knows"), "{stderr}");
    }
}

/// A training of one epoch on 32 images whose learning rate moves no weight.
fn still(folder: &Path, out: &str, more: &[&str]) -> (Option<i32>, String, String) {
    let split = folder.join("some.npy");
    sdclr_data::splits::write_indices(&split, &(0..32).collect::<Vec<_>>()).expect("writes");
    let fixed =
        ["--epochs", "1", "--batch-size", "16", "--schedule", "constant", "--lr", "1e-30", "--weight-decay", "0"];
    let data = ["pretrain", "--out", out, "--data", TRAIN_IMAGES, "--split", "some.npy", "--threads", "1"];
    sdclr(folder, &[&data[..], &["--precision", "f32"], &fixed, more].concat())
}

/// Tensors of the backbone or head that do not move: all but the running statistics.
fn weights(tensors: &BTreeMap<String, Tensor>, is_head: bool) -> BTreeMap<String, Tensor> {
    let moves = |name: &str| name.contains("running_") || name.starts_with("optimizer.") || name.starts_with("mask.");
    let wanted = tensors.iter().filter(|(name, _)| !moves(name) && name.starts_with("fc.") == is_head);
    wanted.map(|(name, tensor)| (name.clone(), tensor.clone())).collect()
}

#[test]
fn a_run_begins_with_the_weights_of_an_imported_one() {
    let dir = tempfile::tempdir().expect("temporary folder");
    import(dir.path(), "sdclr_dual.pt", "dual", &["--image-size", "16"]);
    let (code, _, stderr) = still(dir.path(), "new", &["--init-from", "dual"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("starting from the weights of") && stderr.contains("epoch 7"), "{stderr}");
    let (before, after) = (tensors(&dir.path().join("dual")), tensors(&dir.path().join("new")));
    assert_eq!(weights(&after, false), weights(&before, false));
    assert_eq!(weights(&after, true), weights(&before, true), "the head too, for it has the same shape");
    // Two steps move a running mean by a fifth of the way at most, from where it stood.
    let mean =
        |tensors: &BTreeMap<String, Tensor>| tensors["bn1.dense.running_mean"].as_f32().expect("floats").to_vec();
    assert!(mean(&before).iter().zip(mean(&after)).all(|(a, b)| (a - b).abs() < 0.5 * a.abs().max(1.0)));
    let config = RunDir::open(&dir.path().join("new")).expect("a run").config().expect("a config");
    assert!(config.model.init_from.expect("recorded").ends_with("dual/checkpoints/last.safetensors"));
    assert_eq!((config.data.image_size, config.import), (16, None));
    // Whoever resumes needs the other run no more.
    std::fs::remove_dir_all(dir.path().join("dual")).expect("removes");
    let (_, stderr) = done(dir.path(), &["pretrain", "--out", "new", "--resume"]);
    assert!(stderr.contains("resuming after epoch 1") && !stderr.contains("starting from"), "{stderr}");
    assert_eq!(tensors(&dir.path().join("new")), after);
}

#[test]
fn both_branches_begin_with_norms_that_were_shared() {
    let dir = tempfile::tempdir().expect("temporary folder");
    import(dir.path(), "simclr.pt", "simclr", &["--image-size", "16"]);
    let (code, _, stderr) = still(dir.path(), "new", &["--init-from", "simclr", "--method", "sdclr"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("both branches begin with the batch norms"), "{stderr}");
    let (before, after) = (tensors(&dir.path().join("simclr")), tensors(&dir.path().join("new")));
    for name in ["layer2.0.bn1.*.weight", "layer4.0.downsample.bn.*.bias", "fc.bn1.*.weight"] {
        for branch in ["dense", "pruned"] {
            assert_eq!(after[&name.replace('*', branch)], before[&name.replace(".*", "")], "{name}");
        }
    }
    // And back: the dense branch's.
    let (code, _, stderr) = still(dir.path(), "back", &["--init-from", "new", "--method", "simclr"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("its dense branch's batch norms are taken"), "{stderr}");
    assert_eq!(weights(&tensors(&dir.path().join("back")), false), weights(&before, false));
}

#[test]
fn a_head_of_another_shape_is_drawn_anew_and_said_so() {
    let dir = tempfile::tempdir().expect("temporary folder");
    import(dir.path(), "simclr.pt", "simclr", &["--image-size", "16"]);
    import(dir.path(), "best_model.pt", "probe", &["--image-size", "16"]);
    for (out, more) in [
        ("a", &["--init-from", "simclr", "--method", "simclr", "--head-dim", "8"][..]),
        ("b", &["--init-from", "probe", "--method", "simclr", "--seed", "3"]),
    ] {
        let (code, _, stderr) = still(dir.path(), out, more);
        assert_eq!(code, Some(0), "{stderr}");
        assert!(stderr.contains("the projection head is drawn anew"), "{stderr}");
    }
    let (simclr, probe) = (tensors(&dir.path().join("simclr")), tensors(&dir.path().join("probe")));
    let (a, b) = (tensors(&dir.path().join("a")), tensors(&dir.path().join("b")));
    assert_eq!((weights(&a, false), weights(&b, false)), (weights(&simclr, false), weights(&probe, false)));
    // The same shape, but that head was itself only drawn, from another seed.
    assert_eq!(b["fc.fc1.weight"].shape, probe["fc.fc1.weight"].shape);
    assert_ne!(b["fc.fc1.weight"], probe["fc.fc1.weight"]);
}

#[test]
fn other_networks_and_foreign_files_are_no_beginning() {
    let dir = tempfile::tempdir().expect("temporary folder");
    import(dir.path(), "simclr.pt", "simclr", &["--image-size", "16"]);
    let check = |more: &[&str], expected_code: i32, expected: &str| {
        let (code, _, stderr) = still(dir.path(), "new", more);
        assert_eq!(code, Some(expected_code), "{stderr}");
        assert!(stderr.contains(expected), "{stderr:?} lacks {expected:?}");
        assert!(!dir.path().join("new").exists());
    };
    check(&["--init-from", "simclr", "--model", "resnet18"], 2, "`layer1.1.bn1.dense.bias` is missing");
    check(&["--init-from", "simclr", "--base-width", "4"], 2, "`bn1.bias` has shape [2] instead of [4]");
    check(&["--init-from", "simclr", "--stem", "imagenet"], 2, "instead of [2, 3, 7, 7]");
    check(&["--init-from", &fixture("simclr.pt")], 2, "import it first");
    check(&["--init-from", "nowhere"], 1, "no such run directory or checkpoint");
    refused(dir.path(), &["pretrain", "--out", "simclr", "--resume"], 2, "--init-from");
    // Its own source would be gone before it begins.
    let (code, _, stderr) = still(dir.path(), "simclr", &["--init-from", "simclr", "--overwrite"]);
    assert!(code == Some(2) && stderr.contains("would delete what --init-from begins with"), "{stderr}");
    assert!(dir.path().join("simclr/checkpoints/last.safetensors").is_file());
    let again = ["pretrain", "--config", "simclr/config.toml", "--data", TRAIN_IMAGES, "--out", "new"];
    refused(dir.path(), &again, 2, "--init-from");
}
