//! Pre-training from outside: a stopped or killed run goes on and ends as if nothing had happened.
#![cfg(unix)]

use assert_cmd::cargo::cargo_bin;
use rustix::process::{Pid, Signal, kill_process};
use sdclr::checkpoint::{Checkpoint, Tensor};
use sdclr::run_dir::{CheckpointName, RunDir};
use sdclr_records::MetricLine;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

const TRAIN_IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fashion-mnist-lt/train-images-idx3-ubyte.gz");

/// Long enough that a signal sent after the first line arrives before the end.
const N_EPOCHS: &str = "150";

/// A training of seconds: 40 images of 8 pixels, a narrow network.
fn pretrain(folder: &Path, out: &str) -> Command {
    pretrain_for(folder, out, N_EPOCHS)
}

fn pretrain_for(folder: &Path, out: &str, n_epochs: &str) -> Command {
    let mut command = Command::new(cargo_bin("sdclr"));
    command.current_dir(folder).args(["pretrain", "--out", out, "--data", TRAIN_IMAGES, "--split", "some.npy"]);
    command.args(["--model", "resnet10", "--base-width", "4", "--image-size", "8", "--batch-size", "16"]);
    command.args([
        "--epochs",
        n_epochs,
        "--lr",
        "0.05",
        "--threads",
        "1",
        "--log-every",
        "1",
        "--checkpoint-every",
        "3",
    ]);
    command
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("temporary folder");
    let images =
        sdclr_data::Dataset::open(Path::new(TRAIN_IMAGES), &sdclr_data::OpenOptions::default()).expect("opens");
    // One of every class, for a tail needs them all, and others up to 40.
    let first = |label| (0..images.len()).find(|&i| images.label(i) == Some(label)).expect("has images");
    let mut indices: Vec<usize> = (0..10).map(first).collect();
    indices.extend(
        (1..images.len()).map(|i| i * 60 % images.len()).filter(|i| !indices.contains(i)).take(30).collect::<Vec<_>>(),
    );
    sdclr_data::splits::write_indices(&dir.path().join("some.npy"), &indices).expect("writes");
    dir
}

/// Starts a run, sends a signal once it has trained a step, and returns how it ended.
fn interrupt(folder: &Path, out: &str, signal: Signal) -> (Option<i32>, String) {
    interrupt_command(pretrain(folder, out), signal)
}

fn interrupt_command(mut command: Command, signal: Signal) -> (Option<i32>, String) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    let first = stderr.find(|line| line.contains("epoch "));
    assert!(first.is_some(), "no progress before the end");
    kill_process(Pid::from_child(&child), signal).expect("is running");
    let rest = stderr.collect::<Vec<_>>().join("\n");
    (child.wait().expect("ends").code(), rest)
}

/// What does not depend on the clock: tensors of the last checkpoint, and each metric line's step and loss.
fn outcome(run: &Path) -> (BTreeMap<String, Tensor>, Vec<(u64, f64)>) {
    let run = RunDir::open(run).expect("a run");
    let checkpoint = Checkpoint::load(&run.checkpoint_path(CheckpointName::Last)).expect("a checkpoint");
    let metrics = std::fs::read_to_string(run.metrics_path()).expect("metrics");
    let lines = metrics.lines().map(|line| serde_json::from_str(line).expect("a metric line"));
    let losses = lines.map(|line| match line {
        MetricLine::Step(line) => (line.step, line.loss),
        MetricLine::Epoch(line) => (line.step, line.loss),
    });
    (checkpoint.tensors, losses.collect())
}

#[track_caller]
fn run_to_end(mut command: Command) -> String {
    let output = command.output().expect("runs");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    stderr
}

/// Whether this process, and so its children, began with SIGHUP ignored: bit 0 of `SigIgn`, proc(5).
fn hup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap_or("0").trim();
    u64::from_str_radix(ignored, 16).is_ok_and(|mask| mask & 1 == 1)
}

#[test]
fn a_run_that_was_stopped_or_killed_resumes_to_the_same_end() {
    let dir = folder();
    run_to_end(pretrain(dir.path(), "whole"));
    let expected = outcome(&dir.path().join("whole"));
    for (signal, code, name) in [
        (Signal::TERM, Some(143), "term"),
        (Signal::INT, Some(130), "int"),
        #[cfg(target_os = "linux")]
        (Signal::HUP, Some(129), "hup"),
        (Signal::KILL, None, "kill"),
    ] {
        // Under `nohup` the program ignores it, as it was told to.
        if signal == Signal::HUP && hup_is_ignored() {
            continue;
        }
        let (found, stderr) = interrupt(dir.path(), name, signal);
        assert_eq!(found, code, "{name}: {stderr}");
        assert_eq!(stderr.contains("--resume"), code.is_some(), "{name}: {stderr}");
        let mut resume = pretrain(dir.path(), name);
        resume.arg("--resume");
        let stderr = run_to_end(resume);
        assert!(code.is_none() || stderr.contains("resuming"), "{name}: {stderr}");
        assert!(outcome(&dir.path().join(name)) == expected, "{name}: not the same as without an interruption");
    }
}

/// Large enough that a step takes longer than it takes to send two signals.
fn slow_pretrain(folder: &Path, out: &str) -> Command {
    let mut command = Command::new(cargo_bin("sdclr"));
    command.current_dir(folder).args(["pretrain", "--out", out, "--data", TRAIN_IMAGES, "--split", "some.npy"]);
    command.args(["--model", "resnet18", "--image-size", "128", "--batch-size", "40", "--epochs", "100"]);
    command.args(["--threads", "1"]);
    command
}

#[test]
fn the_first_signal_is_answered_at_once_and_the_second_stops_at_once() {
    let dir = folder();
    let mut command = slow_pretrain(dir.path(), "run");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    stderr.find(|line| line.starts_with("training on")).expect("it begins");
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::INT).expect("is running");
    let first = stderr.next().expect("an answer");
    assert_eq!(first, "stopping after this step; press Ctrl-C again to stop at once without a checkpoint");
    kill_process(pid, Signal::TERM).expect("is running");
    let rest: Vec<String> = stderr.collect();
    assert_eq!(rest, ["stopped at once; the last checkpoint, if there is one, stands"]);
    assert_eq!(child.wait().expect("ends").code(), Some(143));
    let run = RunDir::open(&dir.path().join("run")).expect("a run");
    assert!(!run.checkpoint_path(CheckpointName::Last).exists(), "none was written");
}

#[test]
fn a_resumed_run_needs_no_flags_and_accepts_no_other_settings() {
    let dir = folder();
    let (code, stderr) = interrupt(dir.path(), "run", Signal::TERM);
    assert_eq!(code, Some(143), "{stderr}");
    let resume = |flags: &[&str]| {
        let mut command = Command::new(cargo_bin("sdclr"));
        command.current_dir(dir.path()).args(["pretrain", "--out", "run", "--resume", "--quiet"]).args(flags);
        command.output().expect("runs")
    };
    let refused = resume(&["--temperature", "0.5"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("train.temperature = 0.2, not 0.5"));
    let done = resume(&[]);
    assert!(done.status.success());
    let config = || std::fs::read_to_string(dir.path().join("run/config.toml")).expect("there");
    let before = config();
    let again = resume(&["--threads", "2", "--workers", "1", "--log-every", "7"]);
    assert!(again.status.success());
    assert_eq!(config(), before, "a finished run keeps its description");
    assert!(done.stderr.is_empty(), "quiet: {}", String::from_utf8_lossy(&done.stderr));
    assert!(String::from_utf8_lossy(&done.stdout).contains("trained"));
}

#[test]
fn resuming_with_other_threads_says_what_it_costs() {
    let dir = folder();
    let (code, stderr) = interrupt(dir.path(), "run", Signal::TERM);
    assert_eq!(code, Some(143), "{stderr}");
    let mut resume = Command::new(cargo_bin("sdclr"));
    resume.current_dir(dir.path()).args(["pretrain", "--out", "run", "--resume", "--threads", "2"]);
    assert!(run_to_end(resume).contains("note: 2 threads compute, not 1"));
    let config = std::fs::read_to_string(dir.path().join("run/config.toml")).expect("there");
    assert!(config.contains("threads = 2"), "{config}");
}

#[test]
fn a_trained_run_is_measured_embedded_and_exported() {
    let dir = folder();
    run_to_end(pretrain(dir.path(), "run"));
    let sdclr = |arguments: &[&str]| {
        let output = Command::new(cargo_bin("sdclr")).current_dir(dir.path()).args(arguments).output().expect("runs");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).expect("text")
    };
    let (probe, test) = (TRAIN_IMAGES.replace("train-", "probe-"), TRAIN_IMAGES.replace("train-", "test-"));
    for (what, flags) in [
        ("knn", &["--neighbours", "5"][..]),
        ("linear", &["--epochs", "2"]),
        ("linear", &["--epochs", "1", "--protocol", "paper"]),
        ("few-shot", &["--per-class", "3", "--epochs", "2"]),
    ] {
        let arguments = [&["eval", what, "run", "--data", &probe, "--test", &test, "--json"], flags].concat();
        let result: sdclr_records::ProbeResult = serde_json::from_str(&sdclr(&arguments)).expect("a result");
        assert_eq!((result.n_test, result.class_accuracy.len()), (2000, 10), "{what}");
        assert!(result.groups.is_some(), "{what}: the run's own images give the tail");
    }
    let run = RunDir::open(&dir.path().join("run")).expect("a run");
    let names: Vec<String> = run.results().expect("results").into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["few-shot", "knn", "linear-cached", "linear-paper"]);
    sdclr(&["embed", "run", "--data", &test, "--out", "e.npy"]);
    // 2000 rows of 32 floats (the last stage of width 4) after a header of two lines of 64 bytes.
    assert_eq!(std::fs::metadata(dir.path().join("e.npy")).expect("written").len(), 128 + 2000 * 32 * 4);
    let rows = std::fs::read_to_string(dir.path().join("e.csv")).expect("written");
    assert_eq!(rows.lines().count(), 2001);
    sdclr(&["export", "run", "--out", "b.safetensors", "--branch", "pruned"]);
}

#[test]
fn numbers_that_cannot_be_written_are_printed_and_replaced_ones_are_noted() {
    let dir = folder();
    run_to_end(pretrain_for(dir.path(), "run", "1"));
    let (probe, test) = (TRAIN_IMAGES.replace("train-", "probe-"), TRAIN_IMAGES.replace("train-", "test-"));
    let eval = |shell: &str, flags: &[&str]| {
        let mut command = Command::new("sh");
        command.current_dir(dir.path()).args(["-c", &format!("{shell} exec \"$0\" \"$@\"")]);
        command.arg(cargo_bin("sdclr")).args(["eval", "knn", "run", "--data", &probe, "--test", &test]);
        let output = command.args(flags).output().expect("runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let full_disk = "ulimit -f 0;";
    for flags in [&[][..], &["--json"]] {
        let (code, stdout, stderr) = eval(full_disk, flags);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains("results/knn.json: cannot write"), "{stderr}");
        assert!(stdout.contains("knn"), "the numbers: {stdout}");
    }
    let (code, _, stderr) = eval("", &[]);
    assert_eq!((code, stderr.contains("replaces")), (Some(0), false), "{stderr}");
    let (code, _, stderr) = eval("", &["--neighbours", "3", "--json"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("results/knn.json: replaces a result of other settings"), "{stderr}");
    std::fs::rename(dir.path().join("run/results"), dir.path().join("aside")).expect("moves");
    std::fs::write(dir.path().join("run/results"), "").expect("writes");
    let (code, stdout, stderr) = eval("", &[]);
    assert_eq!((code, stdout.as_str()), (Some(1), ""), "before the work");
    assert!(stderr.contains("run/results: cannot write"), "{stderr}");
}

#[test]
fn a_stopped_demo_says_how_to_go_on() {
    let dir = folder();
    let mut demo = Command::new(cargo_bin("sdclr"));
    demo.current_dir(dir.path()).args(["demo", "--out", "d", "--epochs", "1000"]);
    let (code, stderr) = interrupt_command(demo, Signal::TERM);
    assert_eq!(code, Some(143), "{stderr}");
    assert!(stderr.contains("sdclr demo") && stderr.contains("simclr --resume"), "{stderr}");
    let run = RunDir::open(&dir.path().join("d/simclr")).expect("a run");
    assert!(run.checkpoint_path(CheckpointName::Last).is_file());
}

#[test]
fn classes_too_few_for_a_draw_or_a_long_tail_are_named() {
    let dir = folder();
    run_to_end(pretrain_for(dir.path(), "run", "1"));
    let png = image::RgbImage::from_pixel(8, 8, image::Rgb([9, 99, 200]));
    for name in ["ant/1", "ant/2", "ant/3", "bee/1", "bee/2", "bee/3", "cat/1", "cat/2"] {
        for part in ["train", "test"] {
            let path = dir.path().join(format!("data/{part}/{name}.png"));
            std::fs::create_dir_all(path.parent().expect("inside")).expect("makes a folder");
            png.save(path).expect("writes");
        }
    }
    for part in ["train", "test"] {
        std::fs::create_dir(dir.path().join(format!("data/{part}/empty"))).expect("makes a folder");
    }
    std::fs::write(dir.path().join("tail.txt"), "ant/1.png\nant/2.png\nbee/1.png\n").expect("writes");
    let eval = |what: &str, flags: &[&str]| {
        let mut command = Command::new(cargo_bin("sdclr"));
        command.current_dir(dir.path()).args(["eval", what, "run", "--data", "data"]).args(flags);
        let output = command.output().expect("runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (n, expected) in
        [("0", "--per-class 0: must be at least 1"), ("3", "--per-class 3: class cat has only 2 images")]
    {
        let (code, stderr) = eval("few-shot", &["--per-class", n]);
        assert!(code == Some(2) && stderr.contains(expected), "{code:?} {stderr}");
    }
    let (code, stderr) = eval("few-shot", &["--per-class", "2", "--epochs", "1"]);
    assert_eq!(code, Some(0), "an empty folder is no class: {stderr}");
    let (code, stderr) = eval("knn", &["--tail", "tail.txt"]);
    assert!(code == Some(2) && stderr.contains("2 of its classes have images"), "{code:?} {stderr}");
}

#[test]
fn a_run_is_replaced_once_there_is_a_batch_to_replace_it_with() {
    let dir = folder();
    run_to_end(pretrain_for(dir.path(), "run", "1"));
    std::fs::create_dir(dir.path().join("empty")).expect("makes a folder");
    (0..20).for_each(|i| std::fs::write(dir.path().join(format!("empty/{i}.jpg")), "").expect("writes"));
    let last = dir.path().join("run/checkpoints/last.safetensors");
    let before = std::fs::read(&last).expect("a checkpoint");
    for (out, flags, expected) in [
        ("run", &["--strict"][..], "broken image: the file is empty"),
        ("run", &["--max-broken", "1"], "none of the 20 images to train on can be decoded"),
        ("new", &["--max-broken", "1"], "none of the 20 images to train on can be decoded"),
    ] {
        let mut command = Command::new(cargo_bin("sdclr"));
        command.current_dir(dir.path()).args([
            "pretrain",
            "--data",
            "empty",
            "--model",
            "resnet10",
            "--base-width",
            "4",
        ]);
        command.args(["--image-size", "8", "--batch-size", "16", "--epochs", "1", "--overwrite", "--out", out]);
        let output = command.args(flags).output().expect("runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && stderr.contains(expected), "{flags:?}: {stderr}");
    }
    assert!(std::fs::read(&last).expect("still there") == before, "the run is as it was");
}

#[test]
fn a_result_of_weights_that_were_trained_on_since_is_warned_of() {
    let dir = folder();
    let run = |arguments: &[&str]| {
        let output = Command::new(cargo_bin("sdclr")).current_dir(dir.path()).args(arguments).output().expect("runs");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{stderr}");
        stderr
    };
    let status = pretrain_for(dir.path(), "run", "6").args(["--keep-every", "3", "--quiet"]).status();
    assert!(status.expect("runs").success());
    let path = |name| RunDir::open(&dir.path().join("run")).expect("a run").checkpoint_path(name);
    std::fs::copy(path(CheckpointName::Epoch(3)), path(CheckpointName::Last)).expect("copies");
    let (probe, test) = (TRAIN_IMAGES.replace("train-", "probe-"), TRAIN_IMAGES.replace("train-", "test-"));
    run(&["eval", "knn", "run", "--data", &probe, "--test", &test, "--quiet"]);
    assert!(!run(&["summary", "run"]).contains("of step"));
    run(&["pretrain", "--out", "run", "--resume", "--quiet"]);
    let stderr = run(&["summary", "run"]);
    assert!(stderr.contains("run: knn is of step 9, the checkpoint is of step 18: probe it again"), "{stderr}");
}
