//! What goes wrong in the middle: full disks, damaged and foreign checkpoints, broken images, other data on resuming.
#![cfg(unix)]

use assert_cmd::cargo::cargo_bin;
use sdclr::checkpoint::Checkpoint;
use sdclr_records::ProbeResult;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;

const TRAIN_IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fashion-mnist-lt/train-images-idx3-ubyte.gz");

/// A training of a moment on 40 images of 8 pixels; checkpoints of both epochs are kept.
const SMALL: &[&str] = &[
    "pretrain",
    "--data",
    TRAIN_IMAGES,
    "--split",
    "some.npy",
    "--model",
    "resnet10",
    "--base-width",
    "4",
    "--image-size",
    "8",
    "--batch-size",
    "16",
    "--epochs",
    "2",
    "--lr",
    "0.05",
    "--threads=1",
    "--keep-every",
    "1",
    "--quiet",
];

fn write_split(folder: &Path, first: usize) {
    let indices: Vec<usize> = (0..40).map(|i| first + i * 60).collect();
    sdclr_data::splits::write_indices(&folder.join("some.npy"), &indices).expect("writes");
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("temporary folder");
    write_split(dir.path(), 0);
    dir
}

/// Exit code, stdout and stderr.
fn sdclr(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    finish(Command::new(cargo_bin("sdclr")).current_dir(folder).args(arguments))
}

fn finish(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().expect("runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn succeed(folder: &Path, arguments: &[&str]) -> (String, String) {
    let (code, stdout, stderr) = sdclr(folder, arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {stderr}");
    (stdout, stderr)
}

/// Must fail with this code and one line that holds `expected`.
#[track_caller]
fn fail((code, _, stderr): (Option<i32>, String, String), expected_code: i32, expected: &str) {
    assert_eq!(code, Some(expected_code), "{stderr}");
    assert!(stderr.starts_with("sdclr: error: ") && stderr.lines().count() == 1, "{stderr}");
    assert!(stderr.contains(expected), "{stderr:?} lacks {expected:?}");
}

fn small<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [SMALL, &["--out", out], more].concat()
}

fn checkpoint(folder: &Path, run: &str, name: &str) -> PathBuf {
    folder.join(run).join("checkpoints").join(format!("{name}.safetensors"))
}

/// Every file below a folder with its content.
fn contents(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).expect("there") {
        let path = entry.expect("there").path();
        match path.is_dir() {
            true => found.extend(contents(&path)),
            false => found.push((path.clone(), std::fs::read(&path).expect("reads"))),
        }
    }
    found.sort();
    found
}

/// The program under a limit on the size of files, which stops a write in its middle as a full disk does.
fn with_little_space(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new("sh");
    // 40 blocks of 512 bytes or 1 kB.
    command.args(["-c", "ulimit -f 40; exec \"$0\" \"$@\""]).arg(cargo_bin("sdclr"));
    finish(command.current_dir(folder).args(arguments))
}

#[test]
fn a_disk_that_fills_up_costs_no_checkpoint() {
    let dir = folder();
    succeed(dir.path(), &small("run", &[]));
    let last = checkpoint(dir.path(), "run", "last");
    std::fs::copy(checkpoint(dir.path(), "run", "epoch-1"), &last).expect("copies");
    std::fs::remove_file(checkpoint(dir.path(), "run", "epoch-2")).expect("removes");
    assert!(std::fs::metadata(&last).expect("there").len() > 40 * 1024, "larger than the limit");
    fail(with_little_space(dir.path(), &small("run", &["--resume"])), 1, "ulimit -f");
    assert_eq!(Checkpoint::load(&last).expect("whole").state.epoch, 1, "the last good one");
    let files = contents(&dir.path().join("run"));
    assert!(files.iter().all(|(path, _)| path.extension().is_none_or(|e| e != "tmp")), "no leftovers");
    succeed(dir.path(), &small("run", &["--resume"]));
    assert_eq!(Checkpoint::load(&last).expect("whole").state.epoch, 2);
    let test = TRAIN_IMAGES.replace("train-", "test-");
    fail(
        with_little_space(dir.path(), &["embed", "run", "--data", &test, "--out", "e.npy", "--quiet"]),
        1,
        "ulimit -f",
    );
    assert!(!dir.path().join("e.npy").exists() && !dir.path().join("e.csv").exists(), "both or neither");
    succeed(dir.path(), &["export", "run", "--out", "model.safetensors", "--quiet"]);
    let import = ["import", "model.safetensors", "--out", "imported", "--quiet"];
    fail(with_little_space(dir.path(), &import), 1, "ulimit -f");
    assert!(!dir.path().join("imported").exists(), "nothing of it stays");
    succeed(dir.path(), &import);
}

#[test]
fn a_refused_resume_changes_nothing() {
    let dir = folder();
    succeed(dir.path(), &small("run", &[]));
    succeed(dir.path(), &small("wide", &["--head-dim", "64"]));
    let last = checkpoint(dir.path(), "run", "last");
    let whole = std::fs::read(&last).expect("there");
    let check = |code, expected: &str| {
        let before = contents(&dir.path().join("run"));
        fail(sdclr(dir.path(), &small("run", &["--resume", "--log-every", "3"])), code, expected);
        assert!(contents(&dir.path().join("run")) == before, "{expected}: a file was changed");
    };
    let mut damaged = whole.clone();
    *damaged.last_mut().expect("not empty") ^= 1;
    std::fs::write(&last, damaged).expect("writes");
    check(1, "epoch-2.safetensors over it and resume from there");
    std::fs::write(&last, &whole[..whole.len() / 2]).expect("writes");
    check(1, "the checkpoint is damaged");
    std::fs::copy(checkpoint(dir.path(), "wide", "last"), &last).expect("copies");
    check(1, "another network");
    std::fs::write(&last, &whole).expect("writes");
    write_split(dir.path(), 1);
    check(2, "trained on 40 other images");
    write_split(dir.path(), 0);
    std::fs::copy(checkpoint(dir.path(), "run", "epoch-1"), &last).expect("copies");
    succeed(dir.path(), &small("run", &["--resume", "--log-every", "3"]));
}

/// The small run with some of its flags replaced, into `--out run` as `more` says.
fn changed<'a>(changes: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    let is_changed = |i: usize| changes.contains(&SMALL[i]) && SMALL[i].starts_with("--");
    let kept = (0..SMALL.len()).filter(|&i| !is_changed(i) && (i == 0 || !is_changed(i - 1)));
    [&kept.map(|i| SMALL[i]).collect::<Vec<_>>()[..], changes, &["--out", "run"], more].concat()
}

/// Terabytes of activations, and little to store: the system refuses to promise them, or the program counts them; neither is written to.
const TOO_LARGE: &[&str] = &["--image-size", "4096", "--batch-size", "40", "--base-width", "256"];

#[test]
fn a_run_that_cannot_fit_leaves_nothing() {
    let dir = folder();
    let (code, _, stderr) = sdclr(dir.path(), &changed(TOO_LARGE, &[]));
    assert!(matches!(code, Some(1 | 2)) && stderr.contains("memory") && stderr.lines().count() == 1, "{stderr}");
    assert!(!dir.path().join("run").exists());
}

#[test]
fn a_refused_overwrite_keeps_the_run() {
    let dir = folder();
    succeed(dir.path(), &small("run", &[]));
    let before = contents(dir.path());
    for (changes, expected) in
        [(TOO_LARGE, "memory"), (&["--batch-size", "41"], "only 40 images"), (&["--device", "cuda"], "no CUDA")]
    {
        let (code, _, stderr) = sdclr(dir.path(), &changed(changes, &["--overwrite"]));
        assert!(matches!(code, Some(1 | 2)) && stderr.contains(expected), "{stderr}");
        assert!(contents(dir.path()) == before, "{changes:?}: a file was changed");
    }
}

fn jpeg(seed: u8) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let pixel = |x: u32, y: u32| image::Rgb([(x * 16) as u8, (y * 16) as u8, seed.wrapping_mul(37)]);
    image::RgbImage::from_fn(16, 16, pixel).write_to(&mut bytes, image::ImageFormat::Jpeg).expect("encodes");
    bytes.into_inner()
}

/// Class folders of JPEGs.
fn photos(root: &Path, classes: &[&str], n: u8) {
    for (c, class) in classes.iter().enumerate() {
        std::fs::create_dir_all(root.join(class)).expect("makes a folder");
        for i in 0..n {
            std::fs::write(root.join(class).join(format!("{i}.jpg")), jpeg(c as u8 * 50 + i)).expect("writes");
        }
    }
}

#[test]
fn a_truncated_image_is_skipped_and_listed_or_stops_a_strict_run() {
    let dir = folder();
    photos(&dir.path().join("photos"), &["cat", "dog"], 12);
    let broken = dir.path().join("photos/cat/7.jpg");
    let whole = std::fs::read(&broken).expect("there");
    std::fs::write(&broken, &whole[..whole.len() / 2]).expect("writes");
    let pretrain = |out: &'static str, more: &[&'static str]| {
        let flags = ["pretrain", "--data", "photos", "--model", "resnet10", "--base-width", "4", "--batch-size", "8"];
        let rest = ["--image-size", "16", "--epochs", "1", "--threads", "1", "--quiet", "--out", out];
        sdclr(dir.path(), &[&flags[..], &rest, more].concat())
    };
    let (code, _, stderr) = pretrain("run", &[]);
    assert_eq!(code, Some(0), "{stderr}");
    let listed = std::fs::read_to_string(dir.path().join("run/skipped.csv")).expect("listed");
    assert!(listed.contains("cat/7.jpg") && listed.contains("cut short"), "{listed}");
    fail(pretrain("strict", &["--strict"]), 1, "cat/7.jpg: broken image");
    fail(pretrain("few", &["--max-broken", "0.01"]), 1, "1 of 24 images are broken so far");
    assert!(dir.path().join("few/skipped.csv").is_file());
    let knn = ["eval", "knn", "run", "--data", "photos", "--test", "photos", "--json"];
    let (stdout, stderr) = succeed(dir.path(), &knn);
    let result: ProbeResult = serde_json::from_str(&stdout).expect("a result");
    assert_eq!((result.n_train, result.n_test, result.n_skipped), (23, 23, 2));
    assert!(stderr.contains("24 of the images that are learned from are tested on too"), "{stderr}");
}

#[test]
fn probes_need_a_test_set_with_the_classes_they_learn() {
    let dir = folder();
    succeed(dir.path(), &small("run", &[]));
    photos(&dir.path().join("train"), &["ant", "bee", "cat"], 4);
    photos(&dir.path().join("some"), &["bee", "cat"], 2);
    photos(&dir.path().join("other"), &["bee", "dog"], 2);
    photos(&dir.path().join("parts/train"), &["ant", "bee"], 2);
    photos(&dir.path().join("parts/test"), &["ant", "bee"], 1);
    let knn = |flags: &[&str]| sdclr(dir.path(), &[&["eval", "knn", "run", "--json"], flags].concat());
    for data in ["train", TRAIN_IMAGES] {
        fail(knn(&["--data", data]), 2, "give --test or --test-split");
    }
    fail(knn(&["--data", "train", "--test", "other", "--quiet"]), 2, "lack: dog");
    std::fs::write(dir.path().join("bare.txt"), "some/bee/0.jpg\n").expect("writes");
    fail(knn(&["--data", "train", "--test", "bare.txt"]), 2, "the images to test on have no labels");
    let named = |flags: &[&str]| {
        let (code, stdout, stderr) = knn(flags);
        assert_eq!(code, Some(0), "{flags:?}: {stderr}");
        serde_json::from_str::<ProbeResult>(&stdout).expect("a result")
    };
    let result = named(&["--data", "train", "--test", "some"]);
    let present = result.class_accuracy.iter().map(Option::is_some);
    assert!(present.eq([false, true, true]), "bee and cat keep their places");
    assert_eq!(named(&["--data", "parts"]).n_test, 2, "the test part");
    std::fs::write(dir.path().join("numbers.txt"), "some/bee/0.jpg 1\nsome/cat/0.jpg 2\n").expect("writes");
    for (data, test, named) in [("train", "numbers.txt", "learn from"), ("numbers.txt", "some", "test on")] {
        let (_, stderr) = succeed(dir.path(), &["eval", "knn", "run", "--json", "--data", data, "--test", test]);
        assert!(stderr.contains(&format!("matched by number: only the images to {named} have names")), "{stderr}");
    }
    std::fs::write(dir.path().join("tail.txt"), "ant/0.jpg\nant/1.jpg\nbee/0.jpg\ncat/0.jpg\n").expect("writes");
    std::fs::write(dir.path().join("even.txt"), "ant/0.jpg\nbee/0.jpg\ncat/0.jpg\n").expect("writes");
    let tail = named(&["--data", "train", "--test", "some", "--tail", "tail.txt"]);
    assert_eq!(tail.groups.expect("groups").class_counts, [2, 1, 1]);
    assert!(tail.data.tail.expect("recorded").split.expect("a split").ends_with("tail.txt"));
    fail(knn(&["--data=train", "--test=some", "--tail=even.txt"]), 2, "--tail even.txt: each class has 1 images");
}

#[test]
fn a_result_says_what_it_is_of_and_does_not_replace_another_checkpoint_s() {
    let dir = folder();
    // Enough for an image of every class, without which there is no long tail.
    let indices: Vec<usize> = (0..1200).map(|i| i * 2).collect();
    sdclr_data::splits::write_indices(&dir.path().join("some.npy"), &indices).expect("writes");
    succeed(dir.path(), &small("run", &["--method", "simclr"]));
    let (probe, test) = (TRAIN_IMAGES.replace("train-", "probe-"), TRAIN_IMAGES.replace("train-", "test-"));
    for (subject, name, epoch) in [("run", "knn", 2), ("run/checkpoints/epoch-1.safetensors", "knn-epoch-1", 1)] {
        let arguments = ["eval", "knn", subject, "--data", &probe, "--test", &test, "--split", "few.npy"];
        sdclr_data::splits::write_indices(&dir.path().join("few.npy"), &[1, 2, 3, 500]).expect("writes");
        succeed(dir.path(), &arguments);
        let path = dir.path().join("run/results").join(format!("{name}.json"));
        let result: ProbeResult =
            serde_json::from_str(&std::fs::read_to_string(path).expect("written")).expect("a result");
        assert_eq!(result.subject, "SimCLR");
        let weights = result.weights.expect("a trained network");
        assert_eq!((weights.epoch, weights.step), (epoch, 75 * epoch as u64));
        let file = weights.checkpoint.expect("a file");
        assert!(file.is_absolute() && file.is_file(), "{file:?}");
        let train = result.data.train.expect("recorded");
        assert!(train.source.ends_with("probe-images-idx3-ubyte.gz") && train.split.expect("a split").is_absolute());
        assert!(result.data.test.is_some() && result.data.tail.is_some());
    }
}

#[test]
fn a_mean_over_different_networks_is_warned_of() {
    let dir = folder();
    photos(&dir.path().join("photos"), &["cat", "dog"], 12);
    for (run, model) in [("one", "resnet10"), ("two", "resnet10"), ("other", "resnet18")] {
        succeed(dir.path(), &changed(&["--epochs", "1", "--model", model], &[]));
        std::fs::rename(dir.path().join("run"), dir.path().join(run)).expect("renames");
        succeed(dir.path(), &["eval", "knn", run, "--data", "photos", "--test", "photos", "--quiet"]);
    }
    let (_, alike) = succeed(dir.path(), &["summary", "one", "two"]);
    assert!(!alike.contains("different networks"), "{alike}");
    let (_, mixed) = succeed(dir.path(), &["summary", "one", "other"]);
    assert!(mixed.contains("these runs are of different networks"), "{mixed}");
}

#[test]
fn a_folder_of_runs_and_what_lies_in_one_are_known() {
    let dir = folder();
    photos(&dir.path().join("photos"), &["cat", "dog"], 12);
    for method in ["simclr", "sdclr"] {
        let run = format!("runs/{method}");
        succeed(dir.path(), &changed(&["--epochs", "1", "--method", method], &[]));
        std::fs::create_dir_all(dir.path().join("runs")).expect("creates");
        std::fs::rename(dir.path().join("run"), dir.path().join(&run)).expect("renames");
        succeed(dir.path(), &["eval", "knn", &run, "--data", "photos", "--test", "photos", "--quiet"]);
    }
    let (table, _) = succeed(dir.path(), &["summary", "runs"]);
    assert_eq!(table, succeed(dir.path(), &["summary", "runs/sdclr", "runs/simclr"]).0);
    assert!(table.contains("SimCLR") && table.contains("SDCLR"), "{table}");
    fail(sdclr(dir.path(), &["summary", "photos"]), 1, "not a run directory");
    let described = |path: &str| -> serde_json::Value {
        serde_json::from_str(&succeed(dir.path(), &["inspect", path, "--json"]).0).expect("JSON")
    };
    let runs = described("runs");
    assert_eq!(
        (&runs["kind"], &runs["runs"][1]["method"], &runs["runs"][1]["epochs"]),
        (&"runs".into(), &"simclr".into(), &"epoch 1 of 1".into())
    );
    let results = described("runs/sdclr/results/knn.json");
    assert_eq!((&results["kind"], &results["results"]["SDCLR, knn"]["images_tested"]), (&"results".into(), &24.into()));
    let metrics = described("runs/sdclr/metrics.jsonl");
    assert_eq!(
        (&metrics["kind"], &metrics["epochs"], &metrics["last"]["epoch"]),
        (&"metrics".into(), &1.into(), &1.into())
    );
    let inside = dir.path().join("runs/sdclr");
    fail(sdclr(&inside, &["inspect", "config.toml"]), 1, "belongs to a run; inspect /");
    // A config.toml does not make a run of a folder.
    std::fs::create_dir(dir.path().join("project")).expect("creates");
    std::fs::write(dir.path().join("project/config.toml"), "title = \"x\"").expect("writes");
    photos(&dir.path().join("project/results"), &["cat"], 2);
    assert_eq!(described("project/results")["kind"], "data set");
    std::fs::write(dir.path().join("results.json"), "[]").expect("writes");
    fail(sdclr(dir.path(), &["inspect", "results.json"]), 1, "holds no result of a probe");
    // A damaged run is not left out in silence.
    let config = std::fs::read_to_string(inside.join("config.toml")).expect("written");
    std::fs::write(inside.join("config.toml"), config.replace("method =", "method")).expect("writes");
    fail(sdclr(dir.path(), &["summary", "runs"]), 2, "runs/sdclr/config.toml");
    assert!(described("runs")["runs"][0]["damaged"].as_str().is_some_and(|why| why.contains("not valid TOML")));
    std::fs::write(inside.join("config.toml"), config).expect("writes");
    for part in ["checkpoints", "config.toml", "log.txt"] {
        fail(sdclr(dir.path(), &["inspect", &format!("runs/sdclr/{part}")]), 1, "belongs to a run; inspect runs/sdclr");
    }
}

#[test]
fn the_default_batch_fits_the_images_and_a_given_one_must() {
    let dir = folder();
    let position = SMALL.iter().position(|flag| *flag == "--batch-size").expect("there");
    let rest: Vec<&str> =
        [&SMALL[..position], &SMALL[position + 2..]].concat().into_iter().filter(|flag| *flag != "--quiet").collect();
    let (_, stderr) = succeed(dir.path(), &[&rest[..], &["--out", "run"]].concat());
    assert!(stderr.contains("note: --batch-size 32, not") && stderr.contains("only 40 images"), "{stderr}");
    let config = std::fs::read_to_string(dir.path().join("run/config.toml")).expect("written");
    assert!(config.contains("batch_size = 32"), "{config}");
    let given = [&rest[..], &["--out", "other", "--quiet", "--batch-size", "64"]].concat();
    fail(sdclr(dir.path(), &given), 2, "only 40 images");
}

#[test]
fn resuming_where_there_is_no_run_says_so() {
    let dir = folder();
    fail(sdclr(dir.path(), &["pretrain", "--out", "typo", "--resume"]), 2, "typo: there is no run to resume");
    assert!(!dir.path().join("typo").exists());
}

#[test]
fn a_flag_without_effect_is_mentioned() {
    let dir = folder();
    let loud: Vec<&str> = SMALL.iter().copied().filter(|flag| *flag != "--quiet").collect();
    let more =
        ["--out", "run", "--method", "simclr", "--prune-rate", "0.5", "--optimizer", "adam", "--momentum", "0.1"];
    let (_, stderr) = succeed(dir.path(), &[&loud[..], &more].concat());
    for expected in
        ["--prune-rate has no effect with --method simclr", "--momentum has no effect with --optimizer adam"]
    {
        assert!(stderr.contains(expected), "{stderr}");
    }
    photos(&dir.path().join("photos"), &["cat", "dog"], 2);
    std::fs::write(dir.path().join("one.txt"), "cat/0.jpg\n").expect("writes");
    let knn = ["eval", "knn", "run", "--data", "photos", "--test", "photos", "--val-split", "one.txt"];
    assert!(succeed(dir.path(), &knn).1.contains("--val-split has no effect on kNN"));
}
