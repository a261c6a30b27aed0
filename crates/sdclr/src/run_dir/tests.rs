//! Tests of the run directory: what is refused, what survives, what a resumed run keeps.

use super::*;
use sdclr_records::MetricLine;
use sdclr_records::metrics::StepMetrics;
use std::io;

fn config() -> RunConfig {
    let mut config = RunConfig::default();
    config.data.source = "images".into();
    config
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("temporary directory")
}

fn line(step: u64) -> MetricLine {
    MetricLine::Step(StepMetrics {
        epoch: 1,
        step,
        loss: 1.0,
        lr: 0.5,
        images_per_s: 100.0,
        wait_share: 0.0,
        elapsed_s: 1.0,
        n_skipped: 0,
    })
}

fn create(root: &Path, existing: Existing) -> Result<RunWriter, String> {
    RunDir::create(root, existing, &config()).map_err(|e| e.to_string())
}

#[track_caller]
fn check_refused(root: &Path, existing: Existing, expected: &str) {
    let message = create(root, existing).expect_err("must be refused");
    assert!(message.contains(expected), "{message:?} lacks {expected:?}");
}

#[test]
fn a_new_run_can_be_opened_and_gives_its_config_back() {
    let dir = folder();
    let root = dir.path().join("a/b");
    drop(create(&root, Existing::Refuse).expect("new"));
    assert_eq!(RunDir::open(&root).expect("a run").config().expect("own config"), config());
}

#[test]
fn a_folder_that_is_not_empty_is_refused() {
    let dir = folder();
    std::fs::write(dir.path().join("holiday.jpg"), "").expect("writes");
    check_refused(dir.path(), Existing::Refuse, "--resume");
    check_refused(dir.path(), Existing::Overwrite, "left alone");
    check_refused(dir.path(), Existing::Resume, "left alone");
    assert!(dir.path().join("holiday.jpg").exists());
    assert!(!dir.path().join(LOCK_FILE).exists(), "nothing half-written");
    check_refused(&dir.path().join("holiday.jpg"), Existing::Refuse, "not a folder");
}

#[test]
fn overwriting_deletes_the_run_and_nothing_else() {
    let dir = folder();
    let mut writer = create(dir.path(), Existing::Refuse).expect("new");
    writer.append_metric(&line(1)).expect("appends");
    drop(writer);
    std::fs::write(dir.path().join("notes.md"), "mine").expect("writes");
    let writer = create(dir.path(), Existing::Overwrite).expect("a run");
    assert_eq!(std::fs::read_to_string(writer.dir().metrics_path()).expect("there"), "");
    assert!(dir.path().join("notes.md").exists());
}

#[test]
fn overwriting_leaves_foreign_files_among_those_of_the_run() {
    let dir = folder();
    let put = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("inside")).expect("makes");
        std::fs::write(path, text).expect("writes");
    };
    drop(create(dir.path(), Existing::Refuse).expect("new"));
    let result = serde_json::to_string(&probe_result()).expect("serializes");
    let ours = ["last", "epoch-10", "mask-2"].map(|name| format!("checkpoints/{name}.safetensors"));
    ours.iter().for_each(|name| put(name, "old"));
    put("results/knn.json", &result);
    put("skipped.csv", "old");
    let foreign = [
        "checkpoints/llama.safetensors",
        "checkpoints/epoch-best.safetensors",
        "results/paper.json",
        "results/table.csv",
        "probes/mine.txt",
        "data/photo.jpg",
    ];
    foreign.iter().for_each(|name| put(name, "mine"));
    drop(create(dir.path(), Existing::Overwrite).expect("a run"));
    for name in foreign {
        assert_eq!(std::fs::read_to_string(dir.path().join(name)).expect(name), "mine");
    }
    let gone = ours.iter().map(String::as_str).chain(["results/knn.json", "skipped.csv"]);
    gone.for_each(|name| assert!(!dir.path().join(name).exists(), "{name}"));
}

#[test]
fn a_folder_with_another_program_s_config_is_not_overwritten() {
    let by_hand = "[data]\nsource = \"images\"\n";
    for text in ["", "[build]\njobs = 4\n", "not = [toml", by_hand] {
        let dir = folder();
        for name in ["checkpoints/last.safetensors", "results/a.json", "log.txt"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("inside")).expect("makes");
            std::fs::write(path, "mine").expect("writes");
        }
        std::fs::write(dir.path().join("config.toml"), text).expect("writes");
        let before = contents(dir.path());
        check_refused(dir.path(), Existing::Overwrite, "not a run");
        assert_eq!(contents(dir.path()), before, "{text:?}");
    }
}

#[test]
fn a_bad_config_destroys_nothing() {
    let dir = folder();
    let mut writer = create(dir.path(), Existing::Refuse).expect("new");
    writer.append_metric(&line(1)).expect("appends");
    drop(writer);
    let mut bad = config();
    bad.prune.rate = 1.3;
    RunDir::create(dir.path(), Existing::Overwrite, &bad).expect_err("bad config");
    assert_ne!(std::fs::read_to_string(dir.path().join("metrics.jsonl")).expect("there"), "");
    let fresh = dir.path().join("fresh");
    RunDir::create(&fresh, Existing::Refuse, &bad).expect_err("bad config");
    assert!(!fresh.exists(), "nothing half-written");
}

#[test]
fn a_second_writer_is_refused_until_the_first_is_gone() {
    let dir = folder();
    let first = create(dir.path(), Existing::Refuse).expect("new");
    check_refused(dir.path(), Existing::Resume, "another process is writing");
    check_refused(dir.path(), Existing::Overwrite, "another process is writing");
    drop(first);
    create(dir.path(), Existing::Resume).expect("free again");
}

#[test]
fn a_resumed_run_keeps_the_lines_up_to_its_checkpoint() {
    let dir = folder();
    let mut writer = create(dir.path(), Existing::Refuse).expect("new");
    for step in [10, 20, 30] {
        writer.append_metric(&line(step)).expect("appends");
    }
    drop(writer);
    let path = dir.path().join("metrics.jsonl");
    let mut text = std::fs::read_to_string(&path).expect("there");
    text.push_str("{\"kind\":\"step\",\"epo");
    std::fs::write(&path, text).expect("writes");
    let mut writer = create(dir.path(), Existing::Resume).expect("a run");
    writer.truncate_metrics(20).expect("truncates");
    writer.append_metric(&line(25)).expect("appends");
    let text = std::fs::read_to_string(&path).expect("there");
    let steps: Vec<u64> =
        text.lines().map(|l| serde_json::from_str::<MetricLine>(l).expect("whole lines").step()).collect();
    assert_eq!(steps, [10, 20, 25]);
}

#[test]
fn resuming_allows_other_threads_but_not_another_method() {
    let dir = folder();
    drop(create(dir.path(), Existing::Refuse).expect("new"));
    let mut changed = config();
    changed.train.threads = 3;
    changed.train.device = sdclr_records::names::Device::Cpu;
    (changed.data.max_broken, changed.data.strict) = (0.5, true);
    drop(RunDir::create(dir.path(), Existing::Resume, &changed).expect("resumable"));
    changed.data.source = "moved".into();
    drop(RunDir::create(dir.path(), Existing::Resume, &changed).expect("its images are compared later"));
    changed.train.temperature = 0.5;
    let message = RunDir::create(dir.path(), Existing::Resume, &changed).expect_err("changed").to_string();
    assert!(message.contains("train.temperature = 0.2, not 0.5"), "{message}");
    create(&dir.path().join("new"), Existing::Resume).expect("begins where there is nothing");
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

#[test]
fn a_claim_that_is_given_up_leaves_everything_as_it_was() {
    let dir = folder();
    let claim = |root: &Path, existing| RunDir::claim(root, existing, &config()).expect("free");
    let fresh = dir.path().join("a/b/c");
    let held = claim(&fresh, Existing::Refuse);
    check_refused(&fresh, Existing::Refuse, "another process is writing");
    assert!(!held.resumes());
    drop(held);
    assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 0, "no folder, no lock");
    let run = dir.path().join("run");
    let mut writer = create(&run, Existing::Refuse).expect("new");
    writer.append_metric(&line(1)).expect("appends");
    drop(writer);
    let before = contents(&run);
    for existing in [Existing::Overwrite, Existing::Resume] {
        let claim = claim(&run, existing);
        assert_eq!(claim.resumes(), existing == Existing::Resume);
        drop(claim);
        assert_eq!(contents(&run), before, "{existing:?}");
    }
}

#[test]
fn what_a_kill_before_the_beginning_leaves_is_no_obstacle() {
    let dir = folder();
    std::fs::create_dir(dir.path().join("checkpoints")).expect("makes");
    std::fs::write(dir.path().join(LOCK_FILE), "").expect("writes");
    let leftover = dir.path().join(".config.toml.123.tmp");
    std::fs::write(&leftover, "half").expect("writes");
    drop(create(dir.path(), Existing::Refuse).expect("as good as empty"));
    assert!(!leftover.exists());
    let other = folder();
    std::fs::write(other.path().join(".profile.tmp"), "mine").expect("writes");
    check_refused(other.path(), Existing::Refuse, "not empty");
}

#[test]
fn half_written_files_are_swept_away() {
    let dir = folder();
    drop(create(dir.path(), Existing::Refuse).expect("new"));
    let result = dir.path().join("results/.knn.json.123.tmp");
    std::fs::create_dir(dir.path().join("results")).expect("makes");
    let leftovers = [dir.path().join("checkpoints/.last.safetensors.123.tmp"), dir.path().join(".skipped.csv.7.tmp")];
    for path in leftovers.iter().chain([&result]) {
        std::fs::write(path, "half").expect("writes");
    }
    drop(create(dir.path(), Existing::Resume).expect("a run"));
    leftovers.iter().for_each(|path| assert!(!path.exists(), "{path:?}"));
    assert!(result.exists(), "a probe may be writing it");
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(120);
    std::fs::File::options().append(true).open(&result).and_then(|file| file.set_modified(old)).expect("sets");
    drop(create(dir.path(), Existing::Resume).expect("a run"));
    assert!(!result.exists());
}

#[test]
fn skipped_images_of_all_sittings_are_listed() {
    let dir = folder();
    let note = |existing, name: &str| {
        let mut writer = create(dir.path(), existing).expect("a run");
        writer.write_skipped().expect("nothing to write");
        writer.note_skipped([(name.to_owned(), "cut, \"short\"\nearly".to_owned())]);
        writer.write_skipped().expect("writes");
        writer.n_skipped()
    };
    assert_eq!(note(Existing::Refuse, "a \"b\".jpg"), 1);
    assert_eq!(note(Existing::Resume, "c.jpg"), 2);
    assert_eq!(note(Existing::Resume, "c.jpg"), 2);
    let text = std::fs::read_to_string(dir.path().join("skipped.csv")).expect("there");
    let reason = "\"cut, \"\"short\"\" early\"";
    assert_eq!(text, format!("image,reason\n\"a \"\"b\"\".jpg\",{reason}\n\"c.jpg\",{reason}\n"));
}

#[test]
fn files_that_belong_together_appear_together_or_not_at_all() {
    let dir = folder();
    let (a, b) = (dir.path().join("a.csv"), dir.path().join("missing/b.npy"));
    let (path, _) = write_together(&[(&a, b"1"), (&b, b"2")]).expect_err("no folder");
    assert_eq!(path, b);
    assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 0);
    let b = dir.path().join("b.npy");
    write_together(&[(&a, b"1"), (&b, b"2")]).expect("writes");
    assert_eq!(contents(dir.path()), [(a, b"1".to_vec()), (b, b"2".to_vec())]);
}

#[test]
fn a_full_disk_leaves_the_old_file_and_a_clear_message() {
    let dir = folder();
    let path = dir.path().join("file");
    write_atomic(&path, |file| file.write_all(b"old")).expect("writes");
    let full = |file: &mut dyn io::Write| {
        file.write_all(b"half of the new")?;
        Err(io::Error::from(io::ErrorKind::StorageFull))
    };
    let error = write_atomic(&path, full).expect_err("full");
    assert!(describe_io(&error).contains("the disk is full"));
    assert_eq!(std::fs::read(&path).expect("there"), b"old");
    assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 1, "no leftover");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_device_is_recognised_as_a_full_disk() {
    use std::io::Write;
    let mut device = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("every Linux has it");
    let error = device.write_all(b"x").expect_err("full");
    assert!(RunDirError::write(Path::new("metrics.jsonl"), error).to_string().contains("the disk is full"));
}

fn probe_result() -> ProbeResult {
    ProbeResult {
        version: sdclr_records::results::RESULT_VERSION,
        protocol: sdclr_records::names::Protocol::Knn,
        subject: "SDCLR".to_owned(),
        top1: 50.0,
        top5: None,
        class_accuracy: vec![Some(50.0), None],
        groups: None,
        all: 50.0,
        class_std: 0.0,
        class_names: Vec::new(),
        n_train: 10,
        n_test: 2,
        n_skipped: 0,
        weights: None,
        data: Default::default(),
        best_epoch: None,
        settings: [("neighbours".to_owned(), 20.into())].into(),
    }
}

#[test]
fn results_are_listed_by_name() {
    let dir = folder();
    let writer = create(dir.path(), Existing::Refuse).expect("new");
    let result = probe_result();
    for name in ["", "a/b", "..", ".hidden", "a\\b"] {
        let message = writer.dir().write_result(name, &result).expect_err("bad name").to_string();
        assert!(message.contains("must be a file name"), "{message}");
    }
    for name in ["linear", "knn"] {
        writer.dir().write_result(name, &result).expect("writes");
    }
    let found = writer.dir().results().expect("reads");
    assert_eq!(found, [("knn".to_owned(), result.clone()), ("linear".to_owned(), result)]);
}
