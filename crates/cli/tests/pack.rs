//! `sdclr pack` from outside, and the commands that read packs and lists that lie elsewhere.
#![cfg(unix)]

use assert_cmd::cargo::cargo_bin;
use image::{Rgb, RgbImage};
use rustix::process::{Pid, Signal, kill_process};
use sdclr_records::{MetricLine, ProbeResult};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

fn sdclr(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(cargo_bin("sdclr")).current_dir(folder).args(arguments).output().expect("runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn stdout_of(folder: &Path, arguments: &[&str]) -> String {
    let (code, stdout, stderr) = sdclr(folder, arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {stderr}");
    stdout
}

#[track_caller]
fn json_of(folder: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&stdout_of(folder, &[arguments, &["--json"]].concat())).expect("JSON")
}

#[track_caller]
fn check_error(folder: &Path, arguments: &[&str], code: i32, expected: &str) {
    let (found, _, stderr) = sdclr(folder, arguments);
    assert!(found == Some(code) && stderr.contains(expected), "{arguments:?}: {found:?} {stderr}");
}

/// `images/{ant,bee}/NN.png`, 20 each, of 12 to 15 pixels.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("temporary folder");
    for (c, class) in ["ant", "bee"].into_iter().enumerate() {
        std::fs::create_dir_all(dir.path().join("images").join(class)).expect("makes a folder");
        for n in 0..20 {
            let value = |x: u32, y: u32| (x * 37 + y * 11 + n * 5 + c as u32 * 90) as u8;
            let image = RgbImage::from_fn(12 + n % 3, 15 - n % 2, |x, y| Rgb([value(x, y), value(y, x), 7]));
            image.save(dir.path().join(format!("images/{class}/{n:02}.png"))).expect("writes");
        }
    }
    dir
}

fn pretrain<'a>(data: &'a str, out: &'a str, flags: &[&'a str]) -> Vec<&'a str> {
    let small = ["--model", "resnet10", "--base-width", "4", "--image-size", "8", "--batch-size", "8"];
    let short = ["--epochs", "2", "--lr", "0.05", "--threads", "1", "--log-every", "1"];
    [&["pretrain", "--data", data, "--out", out], &small[..], &short, flags].concat()
}

fn losses(run: &Path) -> Vec<(u64, f64)> {
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let lines = metrics.lines().map(|line| serde_json::from_str(line).expect("a metric line"));
    lines
        .map(|line| match line {
            MetricLine::Step(line) => (line.step, line.loss),
            MetricLine::Epoch(line) => (line.step, line.loss),
        })
        .collect()
}

#[test]
fn training_on_a_pack_of_unresized_images_is_training_on_the_images() {
    let dir = folder();
    let stdout = stdout_of(dir.path(), &["pack", "images", "--out", "p.sdpack"]);
    assert!(stdout.starts_with("p.sdpack: 40 images, 0 of them resized, "), "{stdout}");
    stdout_of(dir.path(), &pretrain("images", "source", &[]));
    stdout_of(dir.path(), &pretrain("p.sdpack", "packed", &[]));
    let expected = losses(&dir.path().join("source"));
    assert!(expected.len() > 10 && losses(&dir.path().join("packed")) == expected);
    // A pack of smaller images is other data.
    stdout_of(dir.path(), &["pack", "images", "--out", "s.sdpack", "--shorter-side", "9"]);
    stdout_of(dir.path(), &pretrain("s.sdpack", "small", &[]));
    assert_ne!(losses(&dir.path().join("small")), expected);
}

#[test]
fn a_pack_is_inspected_probed_and_embedded_as_its_source_is() {
    let dir = folder();
    stdout_of(dir.path(), &["pack", "images", "--out", "p.sdpack", "--quiet"]);
    stdout_of(dir.path(), &pretrain("p.sdpack", "run", &[]));
    let (source, pack) = (json_of(dir.path(), &["inspect", "images"]), json_of(dir.path(), &["inspect", "p.sdpack"]));
    for key in ["images", "width", "height", "broken", "classes"] {
        assert_eq!(source[key], pack[key], "{key}");
    }
    assert_eq!(pack["description"], "pack (raw RGB, sizes kept) of folder of images, 40 images");
    for data in ["images", "p.sdpack"] {
        let result = json_of(dir.path(), &["eval", "knn", "run", "--data", data, "--test", data]);
        let result: ProbeResult = serde_json::from_value(result).expect("a result");
        assert_eq!((result.n_train, result.class_names), (40, vec!["ant".to_owned(), "bee".to_owned()]));
        stdout_of(dir.path(), &["embed", "run", "--data", data, "--out", "e.npy", "--overwrite"]);
        std::fs::rename(dir.path().join("e.npy"), dir.path().join(format!("{data}.npy"))).expect("moves");
    }
    let features = |name: &str| std::fs::read(dir.path().join(name)).expect("written");
    assert!(features("images.npy") == features("p.sdpack.npy"));

    // One byte of a pixel.
    let path = dir.path().join("p.sdpack");
    let mut bytes = std::fs::read(&path).expect("there");
    bytes[100] ^= 1;
    std::fs::write(&path, bytes).expect("writes");
    let damaged = json_of(dir.path(), &["inspect", "p.sdpack", "--all"]);
    assert_eq!(damaged["broken"], 1);
    let reason = damaged["broken_images"][0].as_str().expect("text");
    assert!(reason.starts_with("ant/00.png: its bytes do not match their checksum"), "{reason}");
    stdout_of(dir.path(), &pretrain("p.sdpack", "damaged", &[]));
    let skipped = std::fs::read_to_string(dir.path().join("damaged/skipped.csv")).expect("written");
    assert!(skipped.contains("\"ant/00.png\""), "{skipped}");
}

#[test]
fn broken_images_are_left_out_of_a_pack_and_listed() {
    let dir = folder();
    std::fs::write(dir.path().join("images/bee/03.png"), "").expect("writes");
    let pack = ["pack", "images", "--out", "p.sdpack"];
    check_error(dir.path(), &[&pack[..], &["--strict"]].concat(), 1, "bee/03.png: broken image: the file is empty");
    check_error(dir.path(), &[&pack[..], &["--max-broken", "0.01"]].concat(), 1, "1 of 40 images are broken");
    let (code, stdout, stderr) = sdclr(dir.path(), &pack);
    assert!(code == Some(0) && stdout.contains("39 images"), "{stdout} {stderr}");
    assert!(stderr.contains("1 broken images are left out; p.sdpack.skipped.csv lists them"), "{stderr}");
    let list = std::fs::read_to_string(dir.path().join("p.sdpack.skipped.csv")).expect("written");
    assert_eq!(list, "image,reason\n\"bee/03.png\",\"the file is empty\"\n");
}

#[test]
fn what_a_pack_costs_is_said_and_what_makes_no_sense_is_refused() {
    let dir = folder();
    let pack = |flags: &[&'static str]| [&["pack", "images", "--out", "p.sdpack"], flags].concat();
    let (code, _, stderr) = sdclr(dir.path(), &pack(&["--shorter-side", "9", "--store", "jpeg"]));
    assert!(code == Some(0) && stderr.contains("training crops are not those of the originals"), "{stderr}");
    assert!(stderr.contains("JPEG changes pixels") && stderr.contains("packing 40 images into about"), "{stderr}");
    check_error(dir.path(), &pack(&[]), 2, "p.sdpack: exists already; give --overwrite");
    let found = json_of(dir.path(), &pack(&["--overwrite"]));
    assert_eq!((&found["images"], &found["resized"], &found["exact"]), (&40.into(), &0.into(), &true.into()));
    check_error(dir.path(), &pack(&["--overwrite", "--quality", "80"]), 2, "--quality: raw pixels have none");
    check_error(dir.path(), &pack(&["--overwrite", "--max-broken", "2"]), 2, "--max-broken 2: must be a share");
    check_error(dir.path(), &["pack", "images", "--out", "p.tar"], 2, "must end in .sdpack");
    check_error(dir.path(), &["pack", "images", "--out", "no/p.sdpack"], 1, "no: no such folder");
    check_error(dir.path(), &["pack", "nothing", "--out", "q.sdpack"], 1, "nothing: cannot read");
}

#[test]
fn a_stopped_pack_leaves_no_file() {
    let dir = folder();
    // Decoding this takes long enough, and a list may name it as often as it likes.
    let large = RgbImage::from_fn(1500, 1500, |x, y| Rgb([(x * y) as u8, x as u8, y as u8]));
    large.save(dir.path().join("large.png")).expect("writes");
    std::fs::write(dir.path().join("list.txt"), "large.png\n".repeat(5000)).expect("writes");
    let mut command = Command::new(cargo_bin("sdclr"));
    command.current_dir(dir.path()).args(["pack", "list.txt", "--out", "p.sdpack"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    stderr.find(|line| line.starts_with("packing 5000 images")).expect("it begins");
    kill_process(Pid::from_child(&child), Signal::INT).expect("is running");
    let rest: Vec<String> = stderr.collect();
    assert_eq!(child.wait().expect("ends").code(), Some(130), "{rest:?}");
    assert_eq!(rest.last().map(String::as_str), Some("stopped; nothing was written"));
    let names = std::fs::read_dir(dir.path()).expect("lists").map(|entry| entry.expect("there").file_name());
    let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names, ["images", "large.png", "list.txt"]);
}

#[test]
fn lists_that_lie_elsewhere_are_probed_embedded_and_inspected() {
    let dir = folder();
    let lines = |numbers: std::ops::Range<usize>| -> String {
        let of_class = |class: &'static str, label| {
            numbers.clone().map(move |n| format!("{class}/{n:02}.png {label}\n")).collect::<String>()
        };
        of_class("ant", 0) + &of_class("bee", 1)
    };
    std::fs::create_dir(dir.path().join("lists")).expect("makes a folder");
    std::fs::write(dir.path().join("lists/train.txt"), lines(0..15)).expect("writes");
    std::fs::write(dir.path().join("lists/test.txt"), lines(15..20)).expect("writes");
    std::fs::rename(dir.path().join("images"), dir.path().join("photos")).expect("moves");
    let (train, test) = ("lists/train.txt", "lists/test.txt");
    stdout_of(dir.path(), &pretrain(train, "run", &["--data-root", "photos"]));
    let eval = ["eval", "knn", "run", "--data", train, "--test", test];
    check_error(dir.path(), &eval, 1, "none of its 30 files exists below lists");
    let with_root = [&eval[..], &["--data-root", "photos"]].concat();
    let result: ProbeResult = serde_json::from_value(json_of(dir.path(), &with_root)).expect("a result");
    assert_eq!((result.n_train, result.n_test), (30, 10));
    for record in [result.data.train, result.data.test] {
        let record = record.expect("recorded");
        assert!(record.root.is_some_and(|root| root.is_absolute() && root.ends_with("photos")));
    }
    std::fs::write(dir.path().join("lists/twice.txt"), lines(15..20) + &lines(16..17)).expect("writes");
    let twice = ["eval", "knn", "run", "--data", train, "--test", "lists/twice.txt", "--data-root", "photos"];
    let (_, _, stderr) = sdclr(dir.path(), &twice);
    assert!(stderr.contains("2 of the images to test on are listed again"), "{stderr}");
    std::fs::create_dir(dir.path().join("held-out")).expect("makes a folder");
    for class in ["ant", "bee"] {
        let from = dir.path().join("photos").join(class);
        std::fs::create_dir(dir.path().join("held-out").join(class)).expect("makes a folder");
        for n in 15..20 {
            let name = format!("{n:02}.png");
            std::fs::rename(from.join(&name), dir.path().join("held-out").join(class).join(&name)).expect("moves");
        }
    }
    check_error(dir.path(), &with_root, 1, "test.txt: none of its 10 files exists");
    let result = json_of(dir.path(), &[&with_root[..], &["--test-root", "held-out"]].concat());
    assert_eq!(result["n_test"], 10);
    let without_test = ["eval", "knn", "run", "--data", train, "--test-root", "held-out"];
    check_error(dir.path(), &without_test, 2, "--test <SRC>");

    stdout_of(dir.path(), &["embed", "run", "--data", train, "--data-root", "photos", "--out", "e.npy"]);
    let names = std::fs::read_to_string(dir.path().join("e.csv")).expect("written");
    assert_eq!(names.lines().count(), 31);
    let found = json_of(dir.path(), &["inspect", train, "--data-root", "photos"]);
    assert_eq!((&found["images"], &found["broken"]), (&30.into(), &0.into()));
    let found = json_of(dir.path(), &["pack", train, "--data-root", "photos", "--out", "p.sdpack"]);
    assert_eq!(found["images"], 30);
}
