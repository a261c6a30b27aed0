//! The manners of the program from outside: exit codes, one clear line an error, nothing half-written.

use assert_cmd::Command;
use std::path::Path;

const TRAIN_IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fashion-mnist-lt/train-images-idx3-ubyte.gz");

fn sdclr(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("sdclr").expect("the program is built");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SDCLR_")) {
        command.env_remove(name);
    }
    command.current_dir(folder).args(arguments);
    command
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("temporary folder")
}

/// Runs a command that must fail with this code and one line on stderr that holds `expected`, and nothing on stdout.
#[track_caller]
fn check_error(folder: &Path, arguments: &[&str], code: i32, expected: &str) {
    let output = sdclr(folder, arguments).output().expect("runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert!(stderr.starts_with("sdclr: error: ") && stderr.trim_end().lines().count() == 1, "{arguments:?}: {stderr}");
    assert!(stderr.contains(expected), "{arguments:?}: {stderr:?} lacks {expected:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
}

#[track_caller]
fn stdout_of(folder: &Path, arguments: &[&str]) -> String {
    let output = sdclr(folder, arguments).output().expect("runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn wrong_usage_exits_with_2_and_says_what_to_do() {
    let dir = folder();
    let pretrain = |flags: &[&'static str]| [&["pretrain", "--out", "r", "--data", TRAIN_IMAGES], flags].concat();
    let cases: &[(Vec<&str>, &str)] = &[
        (vec!["frob"], "unrecognized subcommand 'frob'"),
        (vec!["eval", "lineer"], "'linear'"),
        (vec!["pretrain"], "--out <RUN>"),
        (vec!["pretrain", "--out", "r"], "--data (data.source)"),
        (pretrain(&["--epoch", "3"]), "'--epochs'"),
        (pretrain(&["--epochs", "ten"]), "expected a whole number"),
        (pretrain(&["--epochs", "0"]), "--epochs (train.epochs) = 0: must be at least 1"),
        (pretrain(&["--prune-rate", "1.3"]), "--prune-rate (prune.rate) = 1.3"),
        (pretrain(&["--temperature", "0"]), "--temperature (train.temperature) = 0"),
        (pretrain(&["--lr", "-1"]), "--lr (optimizer.lr) = -1"),
        (pretrain(&["--batch-size", "1"]), "--batch-size (train.batch_size) = 1"),
        (pretrain(&["--batch-size", "100000"]), "images; give at most that many"),
        (pretrain(&["--part", "test"]), "--part test, but it has no parts"),
        (pretrain(&["--model", "resnet19"]), "resnet18"),
        (pretrain(&["--device", "gpu"]), "unknown device `gpu`"),
        (pretrain(&["--preset", "cifar10"]), "cifar10-lt"),
        (pretrain(&["--set", "trian.epochs=3"]), "did you mean `train.epochs`?"),
        (pretrain(&["--resume", "--overwrite"]), "cannot be used with"),
        (pretrain(&["--warmup-epochs", "300"]), "--warmup-epochs (schedule.warmup_epochs) = 300"),
        (vec!["eval", "few-shot", "r", "--data", "x"], "--per-class"),
        (vec!["eval", "knn", "r", "--data", "x", "--name", "a/b"], "--name: the name \"a/b\": must be a file name"),
        (vec!["import", "m.pt", "--out", "r", "--probe-name", "../x"], "--probe-name: the name \"../x\""),
        (vec!["demo", "--epochs", "0"], "--epochs (train.epochs) = 0"),
    ];
    for (arguments, expected) in cases {
        check_error(dir.path(), arguments, 2, expected);
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 0, "nothing half-written");
}

#[test]
fn what_is_not_there_exits_with_1_and_names_the_path() {
    let dir = folder();
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).expect("makes a folder");
    for (arguments, expected) in [
        (&["pretrain", "--out", "r", "--data", "nowhere"][..], "nowhere"),
        (&["pretrain", "--out", "r", "--data", "empty"], "empty"),
        (&["pretrain", "--out", "r", "--data", TRAIN_IMAGES, "--config", "no.toml"], "no.toml"),
        (&["pretrain", "--out", "r", "--data", TRAIN_IMAGES, "--split", "no.npy"], "no.npy"),
        (&["inspect", "nowhere"], "nowhere"),
        (&["eval", "linear", "nowhere", "--data", TRAIN_IMAGES], "nowhere"),
        (&["export", "empty", "--out", "x.safetensors"], "not a run directory"),
        (&["embed", "empty", "--data", TRAIN_IMAGES, "--out", "e.npy"], "not a run directory"),
    ] {
        check_error(dir.path(), arguments, 1, expected);
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 1, "nothing half-written");
}

#[test]
fn a_folder_that_is_not_empty_is_left_alone() {
    let dir = folder();
    std::fs::write(dir.path().join("holiday.jpg"), "").expect("writes");
    let arguments = ["pretrain", "--out", ".", "--data", TRAIN_IMAGES];
    check_error(dir.path(), &arguments, 2, "the folder is not empty");
    check_error(dir.path(), &[&arguments[..], &["--overwrite"]].concat(), 2, "not a run directory");
    check_error(dir.path(), &["pretrain", "--out", "holiday.jpg", "--data", TRAIN_IMAGES], 2, "not a folder");
    check_error(dir.path(), &["demo", "--out", "."], 2, "the folder is not empty");
    assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 1);
}

#[test]
fn bad_files_are_named_before_anything_is_written() {
    let dir = folder();
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).expect("writes");
    write("images-idx3-ubyte", b"not an IDX file at all");
    let cifar = dir.path().join("cifar-10-batches-bin");
    std::fs::create_dir(&cifar).expect("makes a folder");
    for n in 1..=5 {
        std::fs::write(cifar.join(format!("data_batch_{n}.bin")), vec![0; 3073 - n / 5]).expect("writes");
    }
    // Version 1.0 headers as NumPy writes them; one float64, one index past the end.
    let npy = |descr: &str, data: &[u8]| {
        let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (1,), }}");
        header.push_str(&" ".repeat(117 - header.len()));
        [b"\x93NUMPY\x01\x00\x76\x00", header.as_bytes(), b"\n", data].concat()
    };
    write("floats.npy", &npy("<f8", &1.0_f64.to_le_bytes()));
    write("beyond.npy", &npy("<i8", &2478_i64.to_le_bytes()));
    write("short.npy", &npy("<i8", &[0; 3]));
    let train = |data: &'static str, split: &'static str| {
        let mut arguments = vec!["pretrain", "--out", "r", "--data", data];
        if !split.is_empty() {
            arguments.extend(["--split", split]);
        }
        arguments
    };
    for (arguments, expected) in [
        (train("images-idx3-ubyte", ""), "images-idx3-ubyte"),
        (train("cifar-10-batches-bin", ""), "data_batch_5.bin: cut short"),
        (train(TRAIN_IMAGES, "floats.npy"), "floats.npy"),
        (train(TRAIN_IMAGES, "beyond.npy"), "index 2478"),
        (train(TRAIN_IMAGES, "short.npy"), "short.npy"),
    ] {
        check_error(dir.path(), &arguments, 1, expected);
    }
    assert!(!dir.path().join("r").exists(), "nothing half-written");
}

#[test]
#[cfg(target_os = "linux")]
fn an_unwritable_out_is_named() {
    let dir = folder();
    check_error(dir.path(), &["pretrain", "--out", "/proc/run", "--data", TRAIN_IMAGES], 1, "/proc/run: cannot write");
}

#[test]
fn config_files_are_checked_with_their_names_and_lines() {
    let dir = folder();
    let check = |text: &str, expected: &str| {
        std::fs::write(dir.path().join("c.toml"), text).expect("writes");
        let arguments = ["pretrain", "--out", "r", "--data", TRAIN_IMAGES, "--config", "c.toml"];
        check_error(dir.path(), &arguments, 2, expected);
    };
    check("[train]\nepoch = 3", "c.toml: unknown key `train.epoch`; did you mean `train.epochs`?");
    check("[train]\nepochs = ", "c.toml:2: not valid TOML");
    check("[train]\nepochs = 0", "train.epochs");
}

#[test]
fn an_environment_variable_counts_and_a_misspelt_one_is_warned_about() {
    let dir = folder();
    let output = sdclr(dir.path(), &["pretrain", "--out", "r", "--data", TRAIN_IMAGES])
        .env("SDCLR_PRUNE_RATE", "1.3")
        .env("SDCLR_EPOCS", "3")
        .output()
        .expect("runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr.contains("SDCLR_EPOCS means nothing here; did you mean `SDCLR_EPOCHS`?"), "{stderr}");
    assert!(stderr.contains("prune.rate"), "{stderr}");
}

#[test]
fn help_teaches() {
    let dir = folder();
    let short = stdout_of(dir.path(), &["pretrain", "-h"]);
    let long = stdout_of(dir.path(), &["pretrain", "--help"]);
    assert!(short.len() < long.len());
    for part in ["--epochs", "--prune-rate", "[default: 0.9]", "Data:", "Training:"] {
        assert!(short.contains(part), "{part}");
    }
    for part in ["--weight-decay", "--warmup-epochs", "Examples:", "Optimizer and schedule:"] {
        assert!(long.contains(part), "{part}");
    }
    assert!(stdout_of(dir.path(), &["--help"]).contains("sdclr demo"));
    assert!(stdout_of(dir.path(), &["--version"]).starts_with("sdclr "));
}

#[test]
fn completions_and_manual_know_every_flag() {
    let dir = folder();
    assert!(stdout_of(dir.path(), &["completions", "bash"]).contains("--prune-rate"));
    assert!(stdout_of(dir.path(), &["man"]).contains("pretrain"));
    stdout_of(dir.path(), &["man", "--out", "pages"]);
    let page = std::fs::read_to_string(dir.path().join("pages/sdclr-pretrain.1")).expect("written");
    assert!(page.contains("prune\\-rate"));
    // An option's text follows its name.
    let mut lines = page.lines().skip_while(|line| *line != ".SH OPTIONS");
    while lines.by_ref().any(|line| line == ".TP") {
        let (name, text) = (lines.next().expect("a name"), lines.next().expect("a text"));
        assert!(!text.is_empty(), "{name} has no text");
    }
}

#[test]
fn doctor_says_what_is_here_in_words_and_in_json() {
    let dir = folder();
    assert!(stdout_of(dir.path(), &["doctor"]).contains("will use"));
    let json: serde_json::Value = serde_json::from_str(&stdout_of(dir.path(), &["doctor", "--json"])).expect("JSON");
    assert!(json["cores"].as_u64().is_some_and(|cores| cores >= 1));
}

#[test]
fn inspect_counts_the_images_of_a_data_set() {
    let dir = folder();
    let json = stdout_of(dir.path(), &["inspect", TRAIN_IMAGES, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    // int(1000 * 0.01^(i/9)), i = 0…9, summed.
    assert_eq!(json["images"], 2478);
    assert_eq!((json["width"]["max"].clone(), json["broken"].clone()), (28.into(), 0.into()));
    assert!(stdout_of(dir.path(), &["inspect", TRAIN_IMAGES]).contains("classes: 10"));
}

#[test]
#[cfg(unix)]
fn a_reader_that_leaves_early_is_no_error() {
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("sdclr"))
        .args(["completions", "zsh"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}
