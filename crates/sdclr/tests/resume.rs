//! Stopping and resuming: bit for bit the uninterrupted run, without doing again what a checkpoint holds.

use sdclr::pretrain::{Outcome, PretrainJob, pretrain};
use sdclr::progress::{Observer, StepReport};
use sdclr::run_dir::{CheckpointName, Existing, RunDir};
use sdclr::signals::{StopFlag, StopSignal};
use sdclr_data::{Dataset, RgbImage};
use sdclr_records::RunConfig;
use sdclr_records::metrics::MetricLine;
use sdclr_records::names::{Method, ModelName};
use std::path::Path;

/// Counts steps and raises the flag at one of them.
struct Stopper {
    stop: StopFlag,
    at: Option<u64>,
    steps: Vec<u64>,
}

impl Observer for Stopper {
    fn on_step(&mut self, report: &StepReport) {
        self.steps.push(report.step);
        if self.at == Some(report.step) {
            self.stop.raise(StopSignal::Terminate);
        }
    }
    fn on_epoch(&mut self, _: &StepReport) {}
    fn message(&mut self, _: &str) {}
}

fn images() -> Dataset {
    // 21 images in batches of 5: the last batch of an epoch holds one image and is skipped.
    let image = |i: usize| {
        let pixels = (0..8 * 8 * 3).map(|k| ((i * 31 + k * (i % 7 + 1)) % 256) as u8).collect();
        RgbImage { width: 8, height: 8, pixels }
    };
    Dataset::from_memory((0..21).map(image).collect(), None)
}

fn config(method: Method) -> RunConfig {
    let mut config = RunConfig { method, seed: 4, ..RunConfig::default() };
    config.data.source = "memory".into();
    config.data.image_size = 8;
    config.data.workers = 2;
    config.model.name = ModelName::ResNet32s;
    config.model.base_width = 4;
    config.model.dual_bn = method == Method::SdClr;
    config.model.head_layers = if method == Method::SdClr { 3 } else { 2 };
    config.model.head_dim = 8;
    config.prune.random_rate = 0.1;
    config.prune.mask_save_every_epochs = 2;
    config.train.epochs = 4;
    config.train.batch_size = 5;
    config.train.threads = 2;
    config.train.log_every_steps = 3;
    config.train.keep_every_epochs = 2;
    config.schedule.warmup_epochs = 1.0;
    config
}

/// Trains in `root`, stopping after step `stop_at`; returns the steps that this sitting did.
fn sitting(root: &Path, config: &RunConfig, existing: Existing, stop_at: Option<u64>) -> (Outcome, Vec<u64>) {
    let stop = StopFlag::new();
    let mut observer = Stopper { stop: stop.clone(), at: stop_at, steps: Vec::new() };
    let writer = RunDir::create(root, existing, config).unwrap();
    let resume = existing == Existing::Resume;
    let job = PretrainJob {
        config,
        dataset: images(),
        writer,
        resume,
        level: None,
        memory_limit: None,
        stop: &stop,
        observer: &mut observer,
    };
    let outcome = pretrain(job).unwrap();
    (outcome, observer.steps)
}

fn tensors(root: &Path, name: CheckpointName) -> std::collections::BTreeMap<String, sdclr::checkpoint::Tensor> {
    let path = RunDir::open(root).unwrap().checkpoint_path(name);
    sdclr::checkpoint::Checkpoint::load(&path).unwrap().tensors
}

/// Metric lines without what depends on the clock.
fn losses(root: &Path) -> Vec<(u64, f64, f64)> {
    let text = std::fs::read_to_string(root.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| match serde_json::from_str(line).unwrap() {
            MetricLine::Step(m) => (m.step, m.loss, m.lr),
            MetricLine::Epoch(m) => (m.step, m.loss, m.lr),
        })
        .collect()
}

#[test]
fn a_run_stopped_anywhere_and_resumed_equals_an_uninterrupted_one() {
    let folder = tempfile::tempdir().unwrap();
    for method in [Method::SimClr, Method::SdClr] {
        let config = config(method);
        let whole = folder.path().join(format!("{method}-whole"));
        let (outcome, steps) = sitting(&whole, &config, Existing::Refuse, None);
        assert!(matches!(outcome, Outcome::Finished { step: 16, .. }), "{outcome:?}");
        assert_eq!(steps, (1..=16).collect::<Vec<_>>());
        // In the middle of an epoch, at its last step, at its end, at the end of all.
        for stop_at in [1, 4, 6, 11, 16] {
            let root = folder.path().join(format!("{method}-{stop_at}"));
            let (outcome, first) = sitting(&root, &config, Existing::Refuse, Some(stop_at));
            assert_eq!(outcome, Outcome::Stopped(StopSignal::Terminate));
            let (outcome, second) = sitting(&root, &config, Existing::Resume, None);
            assert!(matches!(outcome, Outcome::Finished { step: 16, .. }), "{outcome:?}");
            assert_eq!((first, second), ((1..=stop_at).collect(), (stop_at + 1..=16).collect()), "nothing is redone");
            assert_eq!(losses(&root), losses(&whole), "{method} stopped at {stop_at}");
            for name in [CheckpointName::Last, CheckpointName::Epoch(2), CheckpointName::Epoch(4)] {
                assert!(tensors(&root, name) == tensors(&whole, name), "{method} stopped at {stop_at}: {name:?}");
            }
            if method == Method::SdClr {
                assert!(tensors(&root, CheckpointName::Mask(4)) == tensors(&whole, CheckpointName::Mask(4)));
            }
        }
    }
}

/// A kill leaves the last checkpoint and metrics that run past it; both are put right.
#[test]
fn a_killed_run_goes_on_from_the_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(Method::SdClr);
    let whole = folder.path().join("whole");
    sitting(&whole, &config, Existing::Refuse, None);
    // The state that a kill in epoch 4 leaves: the checkpoint of epoch 2 (here, the kept one) and later metrics.
    let run = RunDir::open(&whole).unwrap();
    let (last, kept) = (run.checkpoint_path(CheckpointName::Last), run.checkpoint_path(CheckpointName::Epoch(2)));
    let (expected_tensors, expected_losses) = (tensors(&whole, CheckpointName::Last), losses(&whole));
    std::fs::copy(kept, last).unwrap();
    let metrics = whole.join("metrics.jsonl");
    let mut text = std::fs::read(&metrics).unwrap();
    text.extend_from_slice(b"{\"kind\":\"step\",\"epo");
    std::fs::write(&metrics, text).unwrap();
    let (_, steps) = sitting(&whole, &config, Existing::Resume, None);
    assert_eq!(steps, (9..=16).collect::<Vec<_>>(), "the first two epochs are not done again");
    assert!(tensors(&whole, CheckpointName::Last) == expected_tensors);
    assert_eq!(losses(&whole), expected_losses);
}

#[test]
fn resuming_without_a_checkpoint_starts_over() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(Method::SimClr);
    let root = folder.path().join("run");
    sitting(&root, &config, Existing::Refuse, Some(2));
    std::fs::remove_file(RunDir::open(&root).unwrap().checkpoint_path(CheckpointName::Last)).unwrap();
    let (_, steps) = sitting(&root, &config, Existing::Resume, None);
    assert_eq!(steps, (1..=16).collect::<Vec<_>>());
    assert_eq!(losses(&root).iter().filter(|(step, ..)| *step == 3).count(), 1, "no line is there twice");
}

#[test]
fn a_checkpoint_of_another_architecture_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let small = config(Method::SimClr);
    let root = folder.path().join("run");
    sitting(&root, &small, Existing::Refuse, Some(1));
    let mut wide = small.clone();
    wide.model.base_width = 8;
    let other = folder.path().join("other");
    sitting(&other, &wide, Existing::Refuse, Some(1));
    let path = |root| RunDir::open(root).unwrap().checkpoint_path(CheckpointName::Last);
    std::fs::copy(path(&other), path(&root)).unwrap();
    let writer = RunDir::create(&root, Existing::Resume, &small).unwrap();
    let (stop, mut observer) = (StopFlag::new(), sdclr::progress::Unobserved);
    let job = PretrainJob {
        config: &small,
        dataset: images(),
        writer,
        resume: true,
        level: None,
        memory_limit: None,
        stop: &stop,
        observer: &mut observer,
    };
    let error = pretrain(job).unwrap_err().to_string();
    assert!(error.contains("another network") && error.contains("width 8"), "{error}");
}
