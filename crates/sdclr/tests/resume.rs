//! Stopping and resuming: bit for bit the uninterrupted run, without doing again what a checkpoint holds.

use sdclr::pretrain::{Outcome, PretrainJob, pretrain};
use sdclr::progress::{Observer, StepReport};
use sdclr::run_dir::{CheckpointName, Existing, RunDir};
use sdclr::signals::{StopFlag, StopSignal};
use sdclr_data::{Dataset, RgbImage};
use sdclr_engine::{Kernels, Level};
use sdclr_records::RunConfig;
use sdclr_records::metrics::MetricLine;
use sdclr_records::names::{Method, ModelName, Precision, PruneScheduleKind, TemperatureScheduleKind};
use sdclr_records::options::BoostConfig;
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
    sitting_at(Kernels::default(), root, config, existing, stop_at)
}

/// [`sitting`] on a machine whose processor has no more than `level`.
fn sitting_at(
    kernels: Kernels,
    root: &Path,
    config: &RunConfig,
    existing: Existing,
    stop_at: Option<u64>,
) -> (Outcome, Vec<u64>) {
    let stop = StopFlag::new();
    let mut observer = Stopper { stop: stop.clone(), at: stop_at, steps: Vec::new() };
    let claim = RunDir::claim(root, existing, config).unwrap();
    let job = PretrainJob {
        config,
        dataset: images(),
        claim,
        kernels,
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

#[test]
fn a_run_with_every_option_resumes_bit_for_bit_and_says_what_they_did() {
    let folder = tempfile::tempdir().unwrap();
    for method in [Method::SimClr, Method::SdClr] {
        let mut config = config(method);
        config.train.temperature_schedule = TemperatureScheduleKind::Cosine;
        config.train.temperature_period_epochs = 3.0;
        config.train.focal_gamma = 1.5;
        config.boost = BoostConfig { enabled: true, momentum: 0.5, n_ops: 2, magnitude: 1.0 };
        (config.prune.schedule, config.prune.rate_start, config.prune.ramp_epochs) =
            (PruneScheduleKind::Linear, 0.3, 2);
        let whole = folder.path().join(format!("{method}-whole"));
        sitting(&whole, &config, Existing::Refuse, None);
        for stop_at in [1, 4, 6, 11] {
            let root = folder.path().join(format!("{method}-{stop_at}"));
            sitting(&root, &config, Existing::Refuse, Some(stop_at));
            sitting(&root, &config, Existing::Resume, None);
            assert_eq!(losses(&root), losses(&whole), "{method} stopped at {stop_at}");
            for name in [CheckpointName::Last, CheckpointName::Epoch(2)] {
                assert!(tensors(&root, name) == tensors(&whole, name), "{method} stopped at {stop_at}: {name:?}");
            }
        }
        let text = std::fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
        let epochs = text.lines().filter_map(|line| match serde_json::from_str(line).unwrap() {
            MetricLine::Epoch(epoch) => Some(epoch),
            MetricLine::Step(_) => None,
        });
        for (epoch, (tau, kept)) in epochs.zip([(0.325, 0.7), (0.325, 0.4), (1.0, 0.1), (0.325, 0.1)]) {
            assert!((epoch.temperature.unwrap() - tau).abs() < 1e-9, "{epoch:?}");
            // The random part takes as many as it should on average only.
            assert!(epoch.mask_kept_share.is_none_or(|share| (share - kept).abs() < 0.03), "{epoch:?}");
        }
        let end = tensors(&whole, CheckpointName::Last);
        let scores = end["boost.memorization"].as_f32().unwrap();
        assert!(scores.len() == 21 && scores.iter().all(|score| (0.0..=1.0).contains(score)), "{scores:?}");
        assert!(end["boost.losses"].as_f32().unwrap().iter().filter(|&&loss| loss > 0.0).count() >= 20);
        config.boost.enabled = false;
        let plain = folder.path().join(format!("{method}-plain"));
        sitting(&plain, &config, Existing::Refuse, None);
        assert_eq!(losses(&plain)[0], losses(&whole)[0], "nothing is boosted in the first epoch");
        assert_ne!(losses(&plain).last(), losses(&whole).last());
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
    let remove = |name| std::fs::remove_file(RunDir::open(&root).unwrap().checkpoint_path(name)).unwrap();
    remove(CheckpointName::Last);
    let (_, steps) = sitting(&root, &config, Existing::Resume, None);
    assert_eq!(steps, (1..=16).collect::<Vec<_>>());
    assert_eq!(losses(&root).iter().filter(|(step, ..)| *step == 3).count(), 1, "no line is there twice");
    // Once there were checkpoints, what the metrics tell of is not begun anew.
    [CheckpointName::Last, CheckpointName::Epoch(2), CheckpointName::Epoch(4)].into_iter().for_each(remove);
    let error = refusal(&root, &config, Existing::Resume, images(), None);
    assert!(error.contains("last.safetensors: gone"), "{error}");
}

#[test]
fn the_newest_kept_checkpoint_stands_in_for_a_lost_last_one() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("run");
    let mut config = config(Method::SdClr);
    config.boost = BoostConfig { enabled: true, momentum: 0.5, n_ops: 2, magnitude: 1.0 };
    sitting(&root, &config, Existing::Refuse, None);
    let (run, last, kept) = (RunDir::open(&root).unwrap(), CheckpointName::Last, CheckpointName::Epoch(4));
    let (whole, all) = (tensors(&root, last), losses(&root));
    for (gone, epoch) in [(&[last][..], 4), (&[last, kept], 2)] {
        gone.iter().for_each(|&name| std::fs::remove_file(run.checkpoint_path(name)).unwrap());
        let (_, steps) = sitting(&root, &config, Existing::Resume, None);
        assert_eq!(steps, (4 * epoch as u64 + 1..=16).collect::<Vec<_>>());
        assert!(tensors(&root, last) == whole && losses(&root) == all);
        let (log, from) = (std::fs::read_to_string(root.join("log.txt")).unwrap(), CheckpointName::Epoch(epoch));
        assert!(log.contains(&format!("going on from {}", run.checkpoint_path(from).display())), "{log}");
    }
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
    let error = refusal(&root, &small, Existing::Resume, images(), None);
    assert!(error.contains("another network") && error.contains("width 8"), "{error}");
}

/// The message of a run that must be refused, which leaves every file as it was.
#[track_caller]
fn refusal(root: &Path, config: &RunConfig, existing: Existing, dataset: Dataset, memory_limit: Option<u64>) -> String {
    let contents = || {
        let files = ["config.toml", "metrics.jsonl", "checkpoints/last.safetensors"];
        files.map(|file| std::fs::read(root.join(file)).ok())
    };
    let (before, existed) = (contents(), root.exists());
    let claim = RunDir::claim(root, existing, config).unwrap();
    let (stop, mut observer) = (StopFlag::new(), sdclr::progress::Unobserved);
    let job = PretrainJob {
        config,
        dataset,
        claim,
        kernels: Kernels::default(),
        memory_limit,
        stop: &stop,
        observer: &mut observer,
    };
    let message = pretrain(job).unwrap_err().to_string();
    assert!(contents() == before, "something was written: {message}");
    assert_eq!(root.exists(), existed, "{message}");
    message
}

#[test]
fn a_run_goes_on_in_the_numbers_that_it_began_in_on_any_machine() {
    let folder = tempfile::tempdir().unwrap();
    let plain = Kernels { level: Some(Level::Portable), ..Kernels::default() };
    let best = Kernels::default();
    let machine_s_own = if Level::detect().has_bf16() { Precision::Bf16 } else { Precision::F32 };
    let auto = config(Method::SdClr);
    for (begun_with, begun_at, went_on_at, expected) in [
        (Precision::Auto, plain, best, Precision::F32),
        (Precision::Auto, best, plain, machine_s_own),
        (Precision::Bf16, plain, best, Precision::Bf16),
        (Precision::F32, best, plain, Precision::F32),
    ] {
        let root = folder.path().join(format!("{begun_with}-{begun_at:?}"));
        let mut begun = auto.clone();
        begun.train.precision = begun_with;
        sitting_at(begun_at, &root, &begun, Existing::Refuse, Some(3));
        let stored = || RunDir::open(&root).unwrap().config().unwrap();
        assert_eq!(stored().train.precision, expected, "{begun_with} is settled at the beginning");
        for asked in [&auto, &stored()] {
            sitting_at(went_on_at, &root, asked, Existing::Resume, Some(6));
            assert_eq!(stored().train.precision, expected, "{begun_with}");
        }
        let log = std::fs::read_to_string(root.join("log.txt")).unwrap();
        assert!(log.lines().all(|line| line.contains(&format!("CPU, {expected},"))), "{log}");
        let mut other = auto.clone();
        other.train.precision = if expected == Precision::F32 { Precision::Bf16 } else { Precision::F32 };
        let refused = RunDir::claim(&root, Existing::Resume, &other).unwrap_err().to_string();
        assert!(refused.contains("train.precision"), "{refused}");
    }
}

#[test]
fn other_images_are_refused_on_resume_and_the_same_ones_elsewhere_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(Method::SimClr);
    let root = folder.path().join("run");
    sitting(&root, &config, Existing::Refuse, Some(2));
    config.train.log_every_steps = 1;
    let resume = |images| refusal(&root, &config, Existing::Resume, images, None);
    let fewer = resume(images().select(&(0..20).collect::<Vec<_>>()).unwrap());
    assert!(fewer.contains("trained on 21 images, the data set now has 20"), "{fewer}");
    let reversed = resume(images().select(&(0..21).rev().collect::<Vec<_>>()).unwrap());
    assert!(reversed.contains("trained on 21 other images"), "{reversed}");
    config.data.source = "moved".into();
    let (outcome, _) = sitting(&root, &config, Existing::Resume, None);
    assert!(matches!(outcome, Outcome::Finished { step: 16, .. }), "{outcome:?}");
}

#[test]
fn a_run_that_cannot_begin_leaves_the_folder_alone() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(Method::SimClr);
    let (fresh, run) = (folder.path().join("a/fresh"), folder.path().join("run"));
    sitting(&run, &config, Existing::Refuse, Some(1));
    for (root, existing) in [(&fresh, Existing::Refuse), (&run, Existing::Overwrite), (&run, Existing::Resume)] {
        let message = refusal(root, &config, existing, images(), Some(1000));
        assert!(message.contains("GB of memory"), "{message}");
        let mut large = config.clone();
        large.train.batch_size = 22;
        if existing != Existing::Resume {
            let message = refusal(root, &large, existing, images(), None);
            assert!(message.contains("only 21 images"), "{message}");
        }
    }
    assert!(!folder.path().join("a").exists());
}

#[test]
fn a_run_that_diverges_names_the_last_good_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(Method::SimClr);
    config.optimizer.lr = 1e30;
    config.schedule.warmup_epochs = 0.0;
    let root = folder.path().join("run");
    let claim = RunDir::claim(&root, Existing::Refuse, &config).unwrap();
    let (stop, mut observer) = (StopFlag::new(), sdclr::progress::Unobserved);
    let dataset = images();
    let job = PretrainJob {
        config: &config,
        dataset,
        claim,
        kernels: Kernels::default(),
        memory_limit: None,
        stop: &stop,
        observer: &mut observer,
    };
    let message = pretrain(job).unwrap_err().to_string();
    assert!(message.contains("training diverged") && message.contains("lower --lr"), "{message}");
    let last = root.join("checkpoints/last.safetensors");
    assert_eq!(message.contains("the last good checkpoint is"), last.is_file(), "{message}");
    if last.is_file() {
        let checkpoint = sdclr::checkpoint::Checkpoint::load(&last).unwrap();
        let finite = checkpoint.tensors.values().filter_map(|t| t.as_f32()).flatten().all(|v| v.is_finite());
        assert!(finite, "weights that are not numbers were kept");
    }
}

#[test]
fn broken_images_are_listed_once_over_all_sittings() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(Method::SimClr);
    config.data.max_broken = 0.2;
    let root = folder.path().join("run");
    let broken = || {
        let mut images: Vec<_> = (0..21).map(|i| images().decode(i).unwrap()).collect();
        images[3].width = 0;
        images[8].pixels.clear();
        Dataset::from_memory(images, None)
    };
    let run = |existing, stop_at| {
        let stop = StopFlag::new();
        let mut observer = Stopper { stop: stop.clone(), at: stop_at, steps: Vec::new() };
        let claim = RunDir::claim(&root, existing, &config).unwrap();
        let job = PretrainJob {
            config: &config,
            dataset: broken(),
            claim,
            kernels: Kernels::default(),
            memory_limit: None,
            stop: &stop,
            observer: &mut observer,
        };
        pretrain(job).unwrap()
    };
    run(Existing::Refuse, Some(5));
    let listed = || std::fs::read_to_string(root.join("skipped.csv")).unwrap();
    assert_eq!(listed().lines().count(), 3, "{}", listed());
    run(Existing::Resume, None);
    assert_eq!(listed().lines().count(), 3, "{}", listed());
    config.data.max_broken = 0.05;
    let other = folder.path().join("other");
    let claim = RunDir::claim(&other, Existing::Refuse, &config).unwrap();
    let (stop, mut observer) = (StopFlag::new(), sdclr::progress::Unobserved);
    let job = PretrainJob {
        config: &config,
        dataset: broken(),
        claim,
        kernels: Kernels::default(),
        memory_limit: None,
        stop: &stop,
        observer: &mut observer,
    };
    pretrain(job).unwrap_err();
    assert!(other.join("skipped.csv").is_file(), "a run with too many says which they are");
}
