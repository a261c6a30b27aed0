//! `sdclr split` from outside.

use assert_cmd::cargo::cargo_bin;
use std::path::Path;
use std::process::{Command, Output};

/// Class folders `a`, `b`, `c` with these numbers of empty files; only their names matter.
fn folders(root: &Path, counts: [usize; 3]) {
    for (name, count) in ["a", "b", "c"].iter().zip(counts) {
        let folder = root.join("images").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for i in 0..count {
            std::fs::write(folder.join(format!("{i:03}.png")), b"").unwrap();
        }
    }
}

fn split(root: &Path, args: &str) -> Output {
    let mut command = Command::new(cargo_bin("sdclr"));
    command.current_dir(root).arg("split").args(args.split_whitespace()).output().unwrap()
}

#[track_caller]
fn made(root: &Path, args: &str) -> String {
    let Output { status, stdout, stderr } = split(root, args);
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

#[track_caller]
fn refused(root: &Path, args: &str, expected: &str) {
    let Output { status, stderr, .. } = split(root, args);
    let message = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(2), "{message}");
    assert!(message.contains(expected), "{message}");
}

#[test]
fn a_long_tail_its_counterpart_and_a_few_shot_set_leave_the_held_out_images_alone() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    folders(root, [110, 105, 120]);
    let said = made(root, "holdout --data images --per-class 5 --out val.txt --rest train.txt");
    assert_eq!(said.lines().next().unwrap(), "val.txt: 15 images, 5 of each of 3 classes");
    let tail = "long-tail --data images --exclude val.txt --n-max 100 --imbalance-factor 100 --seed 3 --out tail.txt";
    let said = made(root, tail);
    assert!(said.starts_with("tail.txt: 111 images, 100 down to 1 in 3 classes (imbalance factor 100.0)"), "{said}");
    made(root, "balanced --data images --exclude val.txt --as-many-as tail.txt --seed 3 --out balanced.txt");
    made(root, "balanced --data images --exclude val.txt --per-class 1 --seed 3 --out few.npy");
    let lines = |file: &str| -> Vec<String> {
        std::fs::read_to_string(root.join(file)).unwrap().lines().map(str::to_owned).collect()
    };
    let (tail, balanced, held_out) = (lines("tail.txt"), lines("balanced.txt"), lines("val.txt"));
    assert_eq!((tail.len(), balanced.len(), lines("train.txt").len()), (111, 111, 320));
    assert!(held_out.iter().all(|line| !tail.contains(line) && !balanced.contains(line)));
    // Sets of one seed nest where one is large enough.
    let shared = tail.iter().filter(|line| balanced.contains(line)).count();
    assert_eq!(shared, 37 + 10 + 1);
    assert!(made(root, "check tail.txt --data images").contains("Many: c 100"), "the tail's groups");
    std::fs::write(root.join("two.txt"), "a/001.png\na/002.png\nb/001.png\n").unwrap();
    let said = made(root, "check two.txt --data images");
    assert!(said.contains("1 class without any") && !said.contains("Many:"), "{said}");
    let checked = made(root, "check tail.txt --data images --validation val.txt --json");
    let checked: serde_json::Value = serde_json::from_str(&checked).unwrap();
    assert_eq!((&checked["n_images"], &checked["n_shared_with_validation"]), (&111.into(), &0.into()));
    assert_eq!(checked["imbalance_factor"].as_f64(), Some(100.0));
    let text = made(root, "check few.npy --data images --validation train.txt");
    assert!(text.contains("3 images, 1 of each of 3 classes") && text.contains("validation split: 3"), "{text}");
}

#[test]
fn check_warns_of_labels_that_are_not_the_class_folders() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    folders(root, [3, 3, 3]);
    let check = |list: &str| -> (u64, String) {
        std::fs::write(root.join("list.txt"), list).unwrap();
        let json: serde_json::Value = serde_json::from_str(&made(root, "check list.txt --data images --json")).unwrap();
        let Output { stderr, .. } = split(root, "check list.txt --data images");
        (json["n_relabelled"].as_u64().unwrap(), String::from_utf8(stderr).unwrap())
    };
    assert_eq!(check("c/001.png 2\na/000.png 0\n"), (0, String::new()));
    let (n, warning) = check("a/000.png 0\nb/001.png 2\nc/002.png 1\n");
    assert!(
        n == 2 && warning.contains("2 of 3 labels") && warning.contains("b/001.png has 2 here and 1 there"),
        "{warning}"
    );
}

#[test]
fn the_same_seed_makes_the_same_bytes_and_another_does_not() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    folders(root, [40, 40, 40]);
    for (seed, out) in [(1, "one.npy"), (1, "again.npy"), (2, "two.npy")] {
        made(root, &format!("long-tail --data images --imbalance-factor 10 --seed {seed} --out {out}"));
    }
    let bytes = |file: &str| std::fs::read(root.join(file)).unwrap();
    assert_eq!(bytes("one.npy"), bytes("again.npy"));
    assert_ne!(bytes("one.npy"), bytes("two.npy"));
}

#[test]
fn shapes_and_counts_are_as_asked() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    folders(root, [60, 60, 60]);
    let check = |flags: &str, expected: [u64; 3]| {
        let text = made(root, &format!("long-tail --data images --overwrite --out s.npy --json {flags}"));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut counts: Vec<u64> =
            value["class_counts"].as_array().unwrap().iter().map(|count| count.as_u64().unwrap()).collect();
        counts.sort_unstable();
        assert_eq!(counts, expected, "{flags}");
    };
    check("--imbalance-factor 36", [1, 10, 60]);
    check("--shape step --imbalance-factor 4 --share-of-few 0.67", [15, 15, 60]);
    // Quantiles 1/6, 3/6 and 5/6 with α = 1: x = 5, 1 and 1/5.
    check("--shape pareto --alpha 1 --n-min 3", [3, 12, 60]);
    check("--class-counts 7,9,8", [7, 8, 9]);
    let idle = |flags: &str| {
        let output = split(root, &format!("long-tail --data images --overwrite --out s.npy {flags}"));
        String::from_utf8(output.stderr).unwrap().matches("has no effect on these counts").count()
    };
    assert_eq!(idle("--shape pareto --imbalance-factor 10 --n-min 3"), 1);
    assert_eq!(idle("--n-min 3 --alpha 2 --share-of-few 0.1 --imbalance-factor 20"), 3);
    assert_eq!(idle("--class-counts 7,9,8 --n-max 20"), 1);
}

#[test]
fn what_cannot_be_made_says_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    folders(root, [10, 10, 8]);
    std::fs::write(root.join("there.npy"), b"").unwrap();
    std::fs::create_dir(root.join("flat")).unwrap();
    std::fs::write(root.join("flat/1.png"), b"").unwrap();
    refused(root, "long-tail --data images --out t.csv", "t.csv: a split is a .npy file");
    refused(root, "long-tail --data images --out there.npy", "exists already; give --overwrite");
    refused(root, "long-tail --data flat --out t.npy", "splits need labelled images");
    refused(
        root,
        "long-tail --data images --n-max 9 --imbalance-factor 1 --out t.npy",
        "class c has 8 images to draw from, 9 are wanted",
    );
    refused(root, "long-tail --data images --out t.npy", "the smallest class would have no image");
    refused(root, "long-tail --data images --imbalance-factor 0.5 --out t.npy", "must be 1 or more");
    refused(root, "long-tail --data images --class-counts 1,2 --out t.npy", "2 counts for 3 classes");
    refused(root, "long-tail --data images --class-counts cifar10-lt:6 --out t.npy", "splits 1 to 5");
    refused(
        root,
        "balanced --data images --per-class 9 --out t.npy",
        "class c has 8 images to draw from, 9 are wanted; lower --per-class",
    );
    refused(root, "balanced --data images --out t.npy", "--per-class");
    refused(root, "holdout --data images --share 0.5 --out t.npy --rest ./t.npy", "must be two files");
    refused(root, "holdout --data images --share 1.5 --out t.npy --rest r.npy", "must be above 0 and below 1");
    let Output { status, stderr, .. } = split(root, "check there.npy --data images");
    let message = String::from_utf8_lossy(&stderr).into_owned();
    assert!(!status.success() && message.contains("there.npy: not a .npy file"), "{message}");
}
