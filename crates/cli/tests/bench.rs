//! `sdclr bench` from outside: what each part prints, and how it treats another program. No times are judged.

use assert_cmd::Command;
use serde_json::Value;
use std::path::Path;

const TRAIN_IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fashion-mnist-lt/train-images-idx3-ubyte.gz");
const TINY: &[&str] = &[
    "--model",
    "resnet10",
    "--base-width",
    "4",
    "--image-size",
    "8",
    "--batch-size",
    "4",
    "--threads",
    "1",
    "--precision",
    "f32",
];
const PEAKS: &[&str] = &["peak_f32_gflops", "memory_gb_per_s"];

fn bench(part: &[&str], more: &[&str]) -> std::process::Output {
    let mut command = Command::cargo_bin("sdclr").expect("the program is built");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SDCLR_")) {
        command.env_remove(name);
    }
    command.arg("bench").args(part).args(TINY).args(more).output().expect("runs")
}

#[track_caller]
fn stdout(part: &[&str], more: &[&str]) -> String {
    let output = bench(part, more);
    assert!(output.status.success(), "{part:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[track_caller]
fn json(part: &[&str], more: &[&str]) -> Value {
    let text = stdout(part, &[&["--json"], more].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Asserts that there is a number above zero under every key.
#[track_caller]
fn check_positive(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value[key].as_f64().is_some_and(|number| number > 0.0), "{key} is {}", value[key]);
    }
}

#[test]
fn a_step_has_its_rate_and_the_machine_s_peaks() {
    let found = json(&["step"], &["--steps", "2"]);
    check_positive(&found, PEAKS);
    check_positive(&found, &["step_s_median", "step_s_min", "samples_per_s", "gflops", "share_of_peak", "bytes_held"]);
    assert_eq!((&found["peer"], &found["steps"]), (&"sdclr".into(), &2.into()));
    assert_eq!((&found["batch_size"], &found["peak_unit"], &found["threads"]), (&4.into(), &"f32".into(), &1.into()));
    for key in ["peak_bf16_gflops", "peak_amx_gflops", "method", "model", "image_size", "engine", "version"] {
        assert!(found.get(key).is_some(), "{key}");
    }
    assert!(found.get("against").is_none());
    let text = stdout(&["step"], &["--steps", "1"]);
    assert!(text.lines().count() == 2 && text.contains("peaks: f32") && text.contains("% of the f32 peak"), "{text}");
}

#[test]
fn layers_list_the_operations_in_network_order_with_sums() {
    let found = json(&["layers"], &["--steps", "1"]);
    check_positive(&found, PEAKS);
    let rows = found["rows"].as_array().expect("rows");
    let convs: Vec<_> = rows.iter().filter(|row| row["kind"] == "convolution").collect();
    assert_eq!((&convs[0]["op"], &convs[0]["shape"]), (&"conv_forward".into(), &"3,4,3,1,8".into()));
    assert_eq!(convs[1]["op"], "conv_backward_weight", "the first needs no gradient of its data");
    for row in convs {
        let keys = ["calls", "ms", "gflop", "gbytes", "gflops", "share_of_peak", "gb_per_s", "share_of_bandwidth"];
        check_positive(row, &keys);
        check_positive(row, &["floor_ms", "times_floor"]);
    }
    for (group, names) in [("kinds", ["convolution", "batch_norm"]), ("phases", ["forward", "backward"])] {
        names.iter().for_each(|name| check_positive(&found[group][name], &["calls", "ms", "gflops", "floor_ms"]));
    }
    let text = stdout(&["layers"], &["--steps", "1"]);
    assert!(text.contains("conv backward weight") && text.contains("3,4,3,1,8") && text.contains("× floor"), "{text}");
}

#[test]
fn convolutions_are_lines_like_the_peer_s() {
    let text = stdout(&["convs"], &["--seconds", "0.001", "--shape", "3,8,3,2,9", "--shape", "8,8,1,1,4", "--json"]);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let shapes: Vec<_> = lines.iter().map(|line| line["shape"].as_str().expect("text")).collect();
    assert_eq!(shapes, ["3,8,3,2,9", "8,8,1,1,4"]);
    for line in &lines {
        check_positive(line, PEAKS);
        check_positive(line, &["forward", "backward_data", "backward_weight"]);
        check_positive(&line["share_of_peak"], &["forward", "backward_data", "backward_weight"]);
        assert_eq!((&line["batch_size"], &line["dtype"]), (&4.into(), &"f32".into()));
    }
    let text = stdout(&["convs"], &["--seconds", "0.001"]);
    assert!(text.contains("3,4,3,1,8") && text.contains("16,32,1,2,2") && !text.contains("ratio"), "{text}");
    let pruned = ["--seconds", "0.001", "--shape", "64,64,3,1,4", "--pruned", "0.95"];
    let line = json(&["convs"], &pruned);
    check_positive(&line, &["forward", "backward_data", "backward_weight"]);
    assert_eq!(line["pruned"], 0.95);
    assert!(stdout(&["convs"], &pruned).contains("0.95 of their weights pruned"));
}

#[test]
fn data_are_made_up_or_real() {
    let keys = ["augmentation_images_per_s_per_core", "loader_images_per_s", "loader_workers", "loader_batch_size"];
    let made_up = json(&["data"], &["--seconds", "0.01", "--workers", "2"]);
    check_positive(&made_up, &keys);
    assert_eq!((&made_up["made_up"], &made_up["loader_workers"]), (&true.into(), &2.into()));
    let real = json(&["data"], &["--seconds", "0.01", "--data", TRAIN_IMAGES]);
    check_positive(&real, &keys);
    assert_eq!(real["made_up"], false);
    assert!(stdout(&["data"], &["--seconds", "0.01"]).contains("images/s on one core"));
}

#[test]
fn a_probe_has_features_and_a_head() {
    for data in [&[][..], &["--data", TRAIN_IMAGES]] {
        let found = json(&["probe"], &[&["--seconds", "0.01", "--images", "20"], data].concat());
        check_positive(&found, PEAKS);
        check_positive(&found, &["features_images_per_s", "head_s", "head_images_per_s", "head_epochs"]);
        assert_eq!(
            (&found["images"], &found["classes"], &found["feature_width"]),
            (&20.into(), &10.into(), &32.into())
        );
    }
    assert!(stdout(&["probe"], &["--seconds", "0.01", "--images", "20"]).contains("features"));
}

#[test]
fn alone_it_runs_every_part() {
    let found = json(&[], &[]);
    check_positive(&found, PEAKS);
    check_positive(&found["step"], &["samples_per_s"]);
    check_positive(&found["layers"]["phases"]["backward"], &["ms"]);
    check_positive(&found["convolutions"]["shapes"][0], &["forward"]);
    check_positive(&found["data"], &["loader_images_per_s"]);
    check_positive(&found["probe"], &["features_images_per_s"]);
}

#[cfg(unix)]
#[test]
fn another_program_is_run_in_turn() {
    let echo = "echo warming up; echo '{\"samples_per_s\": 10}'";
    let found = json(&["step"], &["--steps", "1", "--rounds", "2", "--against", echo]);
    let against = &found["against"];
    assert_eq!((&against["command"], &against["rounds"]), (&echo.into(), &2.into()));
    assert_eq!(against["samples_per_s"], serde_json::json!([10.0, 10.0]));
    let own: Vec<f64> = serde_json::from_value(against["own_samples_per_s"].clone()).expect("numbers");
    let ratio = against["ratio"].as_f64().expect("a number");
    assert!((ratio - (own[0] + own[1]) / 20.0).abs() < 1e-9 * ratio, "{against}");
    assert_eq!(found["steps"], 2);
    let text = stdout(&["step"], &["--steps", "1", "--rounds", "1", "--against", echo]);
    assert!(text.contains("against echo") && text.lines().last().is_some_and(|line| line.contains("median")), "{text}");
}

#[cfg(unix)]
#[test]
fn another_program_s_features_are_compared_with_ours() {
    let echo = "echo '{\"features_images_per_s\": 4}'";
    let found = json(&["probe"], &["--seconds", "0.01", "--images", "20", "--rounds", "3", "--against", echo]);
    let (against, ours) = (&found["against"], found["features_images_per_s"].as_f64().expect("a number"));
    assert_eq!(against["samples_per_s"], serde_json::json!([4.0, 4.0, 4.0]));
    assert_eq!((&against["rounds"], &against["ratio"]), (&3.into(), &(ours / 4.0).into()));
    check_positive(&found, &["head_s"]);
}

#[cfg(unix)]
#[test]
fn another_program_s_convolutions_are_matched_by_shape() {
    let echo = r#"echo '{"shape": "8,8,1,1,4", "forward": 2, "backward_data": 4, "backward_weight": 5}'"#;
    let arguments = ["--seconds", "0.001", "--shape", "8,8,1,1,4", "--rounds", "2", "--against", echo];
    let found = json(&["convs"], &arguments);
    let ours = found["forward"].as_f64().expect("a number");
    assert_eq!(found["against"]["forward"], 2.0);
    assert_eq!((&found["against"]["rounds"], &found["against"]["ratio"]["forward"]), (&2.into(), &(ours / 2.0).into()));
    assert!(stdout(&["convs"], &arguments).contains("ratio"));
}

#[cfg(unix)]
#[test]
fn a_program_that_does_not_do_is_an_error() {
    for (part, command, expected) in [
        ("step", "echo broken >&2; exit 3", "failed (exit code 3); its stderr: broken"),
        ("step", "echo '{\"rate\": 1}'", "printed no JSON line with samples_per_s; it wrote nothing to stderr"),
        ("step", "echo '{\"samples_per_s\": 0}'; echo hm >&2", "its stderr: hm"),
        ("probe", "echo '{\"samples_per_s\": 1}'", "printed no JSON line with features_images_per_s"),
        ("convs", "echo '{\"shape\": \"1,1,1,1,1\", \"forward\": 2}'", "printed no JSON line with one of these shapes"),
        ("step", "kill -9 $$", "signal: 9"),
    ] {
        let seconds: &[&str] = if part == "step" { &["--steps", "1"] } else { &["--seconds", "0.001"] };
        let output = bench(&[part], &[&["--quiet", "--against", command], seconds].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command}: {stderr}");
        assert!(stderr.contains("sdclr: error: --against: ") && stderr.contains(expected), "{stderr}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    for (part, more, expected) in [
        (&["step"][..], &["--rounds", "2"][..], "--against"),
        (&["step"], &["--rounds", "0", "--against", "x"], "--rounds 0"),
        (&["convs"], &["--shape", "1,2,3"], "expected CIN,COUT,KERNEL,STRIDE,SIZE"),
        (&["convs"], &["--seconds", "0"], "--seconds 0"),
        (&["convs"], &["--pruned", "1"], "--pruned 1: must be a share"),
        (&["data"], &["--seconds", "-1"], "unexpected argument"),
        (&["probe"], &["--images", "0"], "--images 0"),
        (&["--seed", "1", "step"], &[], "--seed: give it after the part"),
        (&["stp"], &[], "'step'"),
        (&["layers"], &["--data", "nowhere"], "--data: only"),
    ] {
        let output = bench(part, more);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{part:?} {more:?}: {stderr}");
        assert!(stderr.contains(expected), "{part:?} {more:?}: {stderr}");
    }
}

/// Whether a process with this number exists; a zombie does not count.
#[cfg(target_os = "linux")]
fn runs(pid: &str) -> bool {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid).join("status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

#[cfg(target_os = "linux")]
#[test]
fn ctrl_c_ends_the_other_program_and_what_it_started() {
    use rustix::process::{Pid, Signal, kill_process};
    use std::time::{Duration, Instant};
    let dir = tempfile::tempdir().expect("temporary folder");
    let file = dir.path().join("pids");
    let command = format!("sleep 300 & echo $! $$ > {0}.new; mv {0}.new {0}; wait", file.display());
    let mut process = std::process::Command::new(assert_cmd::cargo::cargo_bin("sdclr"));
    process.args(["bench", "step"]).args(TINY).args(["--steps", "1", "--against", &command]);
    let mut process = process.stderr(std::process::Stdio::null()).spawn().expect("starts");
    let until = Instant::now() + Duration::from_secs(60);
    while !file.exists() {
        assert!(Instant::now() < until, "the other program starts");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pids = std::fs::read_to_string(&file).expect("written");
    assert!(pids.split_whitespace().all(runs), "{pids}");
    kill_process(Pid::from_child(&process), Signal::INT).expect("is running");
    assert_eq!(process.wait().expect("ends").code(), Some(130));
    while pids.split_whitespace().any(runs) {
        assert!(Instant::now() < until, "{pids} end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_flag_that_changes_nothing_is_named() {
    let notes = |part: &str, more: &[&str]| {
        let output = bench(&[part], more);
        assert!(output.status.success());
        let lines = String::from_utf8(output.stderr).expect("text");
        lines.lines().filter(|line| line.starts_with("note: ")).map(str::to_owned).collect::<Vec<_>>()
    };
    let flags = ["--temperature", "0.5", "--epochs", "3", "--seed", "1"];
    let probe = notes("probe", &[&["--images", "8", "--seconds", "0.01"], &flags[..]].concat());
    assert_eq!(probe, ["temperature", "epochs", "batch-size"].map(|flag| format!("note: --{flag} has no effect here")));
    let step = notes("step", &[&["--steps", "1"], &flags[..]].concat());
    assert_eq!(step, ["note: --epochs has no effect here"]);
}
