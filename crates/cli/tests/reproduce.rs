//! The paper's experiments from outside, at toy length, on generated files in the true formats.
#![cfg(unix)]

use assert_cmd::cargo::cargo_bin;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// CIFAR's binary files: `n_a_file` images of classes in turn, each class with a colour of its own and some noise.
fn cifar(root: &Path, n_classes: usize, n_a_file: usize) -> PathBuf {
    let (folder, files, n_labels) = match n_classes {
        10 => (
            "cifar-10-batches-bin",
            (1..=5).map(|i| format!("data_batch_{i}")).chain(["test_batch".into()]).collect(),
            1,
        ),
        _ => ("cifar-100-binary", vec!["train".to_owned(), "test".to_owned()], 2),
    };
    let folder = root.join(folder);
    std::fs::create_dir_all(&folder).unwrap();
    for (number, file) in files.iter().enumerate() {
        let mut bytes = Vec::new();
        for i in 0..n_a_file {
            let class = i % n_classes;
            bytes.extend(std::iter::repeat_n(class as u8, n_labels));
            bytes.extend(
                (0..3072usize).map(|k| (class * 37 + k / 1024 * class * 11 + (k * (i + number + 3)) % 89) as u8),
            );
        }
        std::fs::write(folder.join(format!("{file}.bin")), bytes).unwrap();
    }
    folder
}

/// ImageNet's folders, `n_train` and one test image a class.
fn imagenet(root: &Path, n_classes: usize, n_train: usize) -> PathBuf {
    for class in 0..n_classes {
        for (part, n_images) in [("train", n_train), ("val", 1)] {
            let folder = root.join(part).join(format!("n{class:08}"));
            std::fs::create_dir_all(&folder).unwrap();
            for i in 0..n_images {
                let colour = image::Rgb([(class * 29) as u8, (class * 71) as u8, (i * 40) as u8]);
                image::RgbImage::from_pixel(24, 20, colour).save(folder.join(format!("{part}_{i}.png"))).unwrap();
            }
        }
    }
    root.to_owned()
}

fn reproduce(experiment: &str, data: &Path, out: &Path, more: &str) -> Command {
    let mut command = Command::new(cargo_bin("sdclr"));
    command.arg("reproduce").arg(experiment).arg("--data").arg(data).arg("--out").arg(out);
    command
        .args("--epochs 2 --probe-epochs 1 --threads 1 --set model.name=resnet10 --set model.base_width=4".split(' '));
    command.args(more.split_whitespace());
    command
}

#[track_caller]
fn finish(mut command: Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

#[track_caller]
fn refused(mut command: Command, expected: &str) {
    let Output { status, stderr, .. } = command.output().unwrap();
    let message = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(2), "{message}");
    assert!(message.contains(expected), "{message}");
}

/// Kills the command as soon as it says a line that begins so.
fn kill_at(mut command: Command, line: &str) {
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let said = BufReader::new(child.stderr.take().unwrap()).lines();
    let found = said.map(Result::unwrap).any(|said| said.starts_with(line));
    assert!(found, "it never said: {line}");
    kill_process(Pid::from_child(&child), Signal::KILL).expect("is running");
    child.wait().unwrap();
}

fn read(path: PathBuf) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn a_reproduction_killed_in_each_phase_ends_with_the_same_numbers() {
    let root = tempfile::tempdir().unwrap();
    let data = cifar(root.path(), 10, 220);
    let command = |out: &str| {
        let more = "--scale 0.01 --splits 1,2 --methods simclr,sdclr";
        reproduce("cifar10-lt", &data, &root.path().join(out), more)
    };
    let table = finish(command("whole"));
    for part in [
        "CIFAR-10-LT",
        "Not the paper's experiment: 2 epochs",
        "Linear separability",
        "Few-shot",
        "recalled",
        "SDCLR on",
    ] {
        assert!(table.contains(part), "{part} is not in\n{table}");
    }
    for line in [
        "split 1 simclr: epoch",
        "split 1 simclr linear-paper: epoch",
        "split 1 simclr few-shot: epoch",
        "split 2 sdclr: epoch",
        "split 2 sdclr few-shot: epoch",
    ] {
        kill_at(command("killed"), line);
    }
    assert_eq!(finish(command("killed")), table);
    let (whole, killed) = (root.path().join("whole"), root.path().join("killed"));
    for file in ["summary.json", "summary.csv", "summary.md"] {
        assert_eq!(read(whole.join(file)), read(killed.join(file)), "{file}");
    }
    // All is done: nothing is trained again, and testing the stored probes gives the same numbers.
    let checkpoint = whole.join("split1/sdclr/checkpoints/last.safetensors");
    let before = std::fs::metadata(&checkpoint).unwrap().modified().unwrap();
    let again = finish(command("whole"));
    let mut test = command("whole");
    test.args(["--only", "test"]);
    assert_eq!((&again, &finish(test)), (&table, &table));
    assert_eq!(std::fs::metadata(&checkpoint).unwrap().modified().unwrap(), before);
    // A probe of the same settings on other images, by hand, is not the experiment's.
    let mut by_hand = Command::new(cargo_bin("sdclr"));
    by_hand.args(["eval", "linear", "--protocol", "paper", "--epochs", "1", "--threads", "1", "--data"]).arg(&data);
    finish({
        by_hand.arg(whole.join("split1/sdclr"));
        by_hand
    });
    assert_eq!(finish(command("whole")), table);
    // A folder that moved goes on: nothing in it depends on where it lies.
    let moved = root.path().join("moved");
    std::fs::rename(&killed, &moved).unwrap();
    assert_eq!(finish(command("moved")), table);
    // The summary alone is the same table; of one run, one row.
    let summary = |path: &Path, flags: &[&str]| {
        let mut command = Command::new(cargo_bin("sdclr"));
        command.arg("summary").arg(path).args(flags);
        finish(command)
    };
    assert_eq!(summary(&whole, &[]), table);
    assert_eq!(summary(&whole, &["--csv"]), read(whole.join("summary.csv")));
    assert_eq!(summary(&whole, &["--markdown"]), read(whole.join("summary.md")));
    let rows: serde_json::Value = serde_json::from_str(&summary(&whole, &["--json"])).unwrap();
    assert_eq!((rows.as_array().unwrap().len(), rows[0]["splits"].as_array().unwrap().len()), (4, 2));
    let one = summary(&whole.join("split1/sdclr"), &["--csv"]);
    assert_eq!(one.lines().count(), 3, "{one}");
    let in_tables = || table.lines().skip_while(|line| !line.starts_with("Linear separability"));
    assert!(in_tables().count() > 30 && in_tables().all(|line| line.chars().count() <= 110), "{table}");
    // What the folder is, without the table.
    let mut inspect = Command::new(cargo_bin("sdclr"));
    inspect.args(["inspect", "--json"]).arg(&whole);
    let found: serde_json::Value = serde_json::from_str(&finish(inspect)).unwrap();
    assert_eq!((found["kind"].as_str(), found["experiment"].as_str()), (Some("reproduction"), Some("cifar10-lt")));
    let runs = found["runs"].as_array().unwrap();
    assert_eq!((runs.len(), runs[3]["run"].as_str()), (4, Some("split2/sdclr")));
    assert_eq!((&runs[3]["pre_training"], &runs[3]["few_shot"].is_f64()), (&"trained".into(), &true));
}

#[test]
fn the_other_experiments_run_every_phase() {
    let root = tempfile::tempdir().unwrap();
    let cifar100 = cifar(root.path(), 100, 2000);
    let imagenet100 = imagenet(&root.path().join("imagenet100"), 100, 8);
    let imagenet = imagenet(&root.path().join("imagenet"), 1000, 3);
    let large = "--set data.image_size=72 --methods simclr,sdclr";
    for (experiment, data, more) in [
        ("cifar100-lt", &cifar100, "--scale 0.03 --splits 3 --methods simclr-balanced,sdclr"),
        ("imagenet100-lt", &imagenet100, &format!("--scale 0.005 {large}")),
        ("imagenet-lt", &imagenet, &format!("--scale 0.001 {large}")),
    ] {
        let out = root.path().join(format!("out-{experiment}"));
        let (pretrained, probed) = (format!("{more} --only pretrain"), format!("{more} --only eval"));
        refused(reproduce(experiment, data, &out, &probed), "not trained yet");
        assert_eq!(finish(reproduce(experiment, data, &out, &pretrained)), "");
        let table = finish(reproduce(experiment, data, &out, &probed));
        assert!(table.contains("Few-shot") && table.contains("SDCLR on the long tail"), "{table}");
        assert_eq!(table.contains("unpublished"), experiment == "imagenet-lt", "{table}");
        let to_test = finish(reproduce(experiment, data, &out, &format!("{more} --only test --dry-run")));
        assert_eq!(to_test.matches("to test").count(), 4, "{to_test}");
        // The splits that were made serve as published ones.
        let splits = out.join("splits");
        let mut planned = reproduce(experiment, data, &root.path().join("none"), &format!("{more} --dry-run --json"));
        planned.arg("--split-dir").arg(&splits);
        let planned: serde_json::Value = serde_json::from_str(&finish(planned)).unwrap();
        assert_eq!(planned["tasks"].as_array().unwrap().len(), 6);
        assert!(planned["tasks"][0]["estimated_s"].as_f64().unwrap() > 0.0);
        assert!(!root.path().join("none").exists(), "a dry run writes nothing");
    }
}

#[test]
fn wrong_combinations_say_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let data = cifar(root.path(), 10, 220);
    let out = root.path().join("out");
    let check =
        |experiment: &str, more: &str, expected: &str| refused(reproduce(experiment, &data, &out, more), expected);
    check("cifar-10", "", "cifar10-lt");
    check("cifar100-lt", "", "give the folder cifar-100-python or -binary");
    check("cifar10-lt", "", "too few images for CIFAR-10-LT");
    check("cifar10-lt", "--dry-run", "too few images for CIFAR-10-LT");
    check("cifar10-lt", "--scale 0.01 --set train.precision=f32", "the experiment decides it");
    check("cifar10-lt", "--methods sdcl", "did you mean `sdclr`?");
    check("cifar10-lt", "--splits 2-7", "splits are 1 to 5");
    check("imagenet-lt", "--splits 2", "there is only split 1");
    check("cifar10-lt", "--scale 2", "must be above 0 and at most 1");
    check("cifar10-lt", "--scale 0.01 --set model.base_with=3", "did you mean `model.base_width`?");
    check(
        "cifar10-lt",
        &format!("--split-dir {}", root.path().display()),
        "17 of the 17 split files of CIFAR-10-LT are missing",
    );
    assert!(!out.join("reproduce.json").exists(), "nothing was begun");
    finish(reproduce("cifar10-lt", &data, &out, "--scale 0.01 --splits 1 --methods simclr --only pretrain"));
    check("cifar10-lt", "--scale 0.02", "was begun with scale = 0.01, not 0.02");
    check("cifar10-lt", "--scale 0.01 --splits 1 --methods simclr --only test", "no stored probe to test");
    // A plan says what such a command would stop at.
    let plan =
        |more: &str| finish(reproduce("cifar10-lt", &data, &out, &format!("--scale 0.01 --splits 1 {more} --dry-run")));
    let untested = plan("--methods simclr --only test");
    assert!(untested.contains("2 of 2 have no stored probe: run --only eval first"), "{untested}");
    let untrained = plan("--methods simclr,sdclr --only eval");
    assert!(untrained.contains("2 of 4 are of runs that are not trained: leave --only out"), "{untrained}");
    assert_eq!((untrained.matches("to do").count(), untrained.matches("left, judging").count()), (2, 1), "{untrained}");
    let foreign = root.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis.tex"), "").unwrap();
    refused(reproduce("cifar10-lt", &data, &foreign, ""), "not empty and no reproduction's");
    let mut summary = Command::new(cargo_bin("sdclr"));
    summary.arg("summary").arg(out.join("split1/simclr"));
    refused(summary, "no result yet");
}
