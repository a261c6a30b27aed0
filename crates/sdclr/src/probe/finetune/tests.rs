//! Fine-tuning from inside: what moves, what stays, what it begins with.

use super::*;
use crate::learner::{Learner, LearnerSpec};
use crate::probe::probe;
use crate::progress::Unobserved;
use crate::signals::StopSignal;
use sdclr_data::RgbImage;
use sdclr_engine::Kernels;
use sdclr_nn::Tensor;
use sdclr_records::checkpoint::CheckpointState;
use sdclr_records::names::{Freeze, Method, ModelName};
use sdclr_records::{FineTuning, ProbeResult};
use std::collections::BTreeMap;
use std::path::Path;

const SIZE: usize = 8;
const N_CLASSES: usize = 3;

/// Images of noise, which only a network that trains can tell apart.
fn images(n: usize) -> Dataset {
    let image = |i: usize| {
        let pixel = |k: usize| ((k * 7919 + i * 104_729 + k * k * (i + 1) * 31) % 251) as u8;
        RgbImage { width: SIZE as u32, height: SIZE as u32, pixels: (0..SIZE * SIZE * 3).map(pixel).collect() }
    };
    let labels = (0..n).map(|i| (i % N_CLASSES) as u32).collect();
    Dataset::from_memory((0..n).map(image).collect(), Some(labels))
}

fn config(model: ModelName, dual_bn: bool) -> RunConfig {
    let method = if dual_bn { Method::SdClr } else { Method::SimClr };
    let mut config = RunConfig { method, seed: 5, ..RunConfig::default() };
    config.data.image_size = SIZE;
    config.model.name = model;
    config.model.base_width = 4;
    config.model.dual_bn = dual_bn;
    config.model.head_layers = if dual_bn { 3 } else { 2 };
    config.model.head_dim = 6;
    config.train.threads = 1;
    config
}

/// After one step.
fn state(config: &RunConfig) -> CheckpointState {
    CheckpointState {
        model: config.model.name.to_string(),
        method: config.method,
        epoch: 0,
        batch_in_epoch: 1,
        step: 1,
        total_steps: 2,
        seed: config.seed,
        optimizer: config.optimizer.kind,
        optimizer_steps: 1,
        epoch_loss_sum: 1.0,
        epoch_steps: 1,
        interval_loss_sum: 1.0,
        interval_steps: 1,
        elapsed_s: 1.0,
        n_skipped: 0,
        mask_threshold: None,
        data: None,
    }
}

/// A run's checkpoint after one step, whose branches' batch norms differ from one another and from the first ones.
fn checkpoint(config: &RunConfig, path: &Path) -> BTreeMap<String, Tensor> {
    let engine = Machine::of(config, Kernels::default()).engine().unwrap();
    let optimizer = OptimizerKind::Sgd { momentum: 0.9, weight_decay: 0.0 };
    let spec = LearnerSpec { method: config.method, max_batch: 4, temperature: 0.5, optimizer };
    let mut l = Learner::new(engine, Box::new(Single), backend::run_network(config).unwrap(), &spec).unwrap();
    l.model.init(&mut *l.engine, config.seed);
    l.update_mask(0.5, 0.0, 0, 0).unwrap();
    let views: Vec<u8> = (0..2 * 4 * SIZE * SIZE * 3).map(|i| (i * 7919 % 256) as u8).collect();
    l.step(&views, 4, 0.1).unwrap();
    crate::snapshot::checkpoint(&mut l, state(config)).unwrap().save(path).unwrap();
    let mut tensors = l.model.export(&mut *l.engine, l.model.params()).unwrap();
    tensors.extend(l.model.export_running(&mut *l.engine).unwrap());
    tensors
}

fn settings(protocol: Protocol, freeze: Freeze, frozen_bn: FrozenBn) -> ProbeConfig {
    let mut probe = ProbeConfig::new(protocol, SIZE, 1);
    probe.set_epochs(2);
    probe.batch_size = 4;
    probe.fine_tuning = Some(FineTuning { freeze, frozen_bn });
    probe
}

fn tuner(subject: &Subject, probe: &ProbeConfig) -> Result<FineTuner, Error> {
    FineTuner::new(subject, &Machine::of(&subject.config, Kernels::default()), probe, N_CLASSES)
}

fn tensors(tuner: &mut FineTuner) -> (BTreeMap<String, Tensor>, BTreeMap<String, Tensor>) {
    let Tuned { engine, model, .. } = &mut tuner.net;
    (model.export(&mut **engine, model.params()).unwrap(), model.export_running(&mut **engine).unwrap())
}

fn steps(tuner: &mut FineTuner, n: usize) {
    let images = images(4);
    let views: Vec<u8> = (0..4).flat_map(|i| images.decode(i).unwrap().pixels).collect();
    for _ in 0..n {
        tuner.step(&views, &[0, 1, 2, 0], 0.1).unwrap();
    }
}

fn measure(subject: &Subject, probe_config: ProbeConfig, n: usize) -> Result<ProbeResult, String> {
    let job = ProbeJob {
        subject,
        probe: probe_config,
        train: images(n),
        validation: Some(images(n)),
        test: images(n),
        tail: None,
        data: Default::default(),
        machine: Machine::of(&subject.config, Kernels::default()),
        memory_limit: None,
        stop: &StopFlag::new(),
        observer: &mut Unobserved,
    };
    probe(job).map(|result| result.expect("nobody raised the flag").result).map_err(|e| e.to_string())
}

#[test]
fn it_begins_with_the_dense_branch_of_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("last.safetensors");
    for (model, dual_bn) in [(ModelName::ResNet10, true), (ModelName::ResNet32sBbn, true), (ModelName::ResNet10, false)]
    {
        let config = config(model, dual_bn);
        let run = checkpoint(&config, &path);
        let subject = Subject { config, weights: Weights::Trained(path.clone()) };
        let mut tuner = tuner(&subject, &settings(Protocol::Finetune, Freeze::None, FrozenBn::Eval)).unwrap();
        assert_eq!((tuner.weights.step, tuner.weights.checkpoint.as_ref()), (1, Some(&path)));
        let (params, running) = tensors(&mut tuner);
        let mut n_compared = 0;
        for (name, tensor) in params.iter().chain(&running).filter(|(name, _)| !name.starts_with("fc.")) {
            let (norm, kind) = name.rsplit_once('.').unwrap();
            let (dense, pruned) = (format!("{norm}.dense.{kind}"), format!("{norm}.pruned.{kind}"));
            assert_eq!(tensor, run.get(&dense).unwrap_or_else(|| &run[name]), "{model}: {name}");
            n_compared += usize::from(run.get(&pruned).is_some_and(|pruned| pruned != tensor));
        }
        assert_eq!(n_compared > 20, dual_bn, "{model}: the branches' norms differ in {n_compared} tensors");
        assert!(params["fc.bias"].data.iter().all(|&b| b == 0.0));
        assert_eq!(params["fc.weight"].shape[0], N_CLASSES);
    }
}

#[test]
fn fixed_layers_stay_bit_for_bit_and_their_statistics_do_as_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("last.safetensors");
    let config = config(ModelName::ResNet32sRide, true);
    checkpoint(&config, &path);
    let subject = Subject { config, weights: Weights::Trained(path) };
    for frozen_bn in [FrozenBn::Eval, FrozenBn::Train] {
        let mut tuner = tuner(&subject, &settings(Protocol::Finetune, Freeze::Layer2, frozen_bn)).unwrap();
        let is_fixed = |name: &str| ["conv1", "bn1", "layer1.", "layer2s."].iter().any(|part| name.starts_with(part));
        let (params, running) = tensors(&mut tuner);
        steps(&mut tuner, 3);
        let (trained, statistics) = tensors(&mut tuner);
        for (name, tensor) in &trained {
            assert_eq!(*tensor == params[name], is_fixed(name), "{name}");
        }
        for (name, tensor) in &statistics {
            assert_eq!(*tensor == running[name], is_fixed(name) && frozen_bn == FrozenBn::Eval, "{frozen_bn}: {name}");
        }
    }
}

#[test]
fn from_scratch_is_drawn_from_the_seed_and_not_from_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("last.safetensors");
    let config = config(ModelName::ResNet10, true);
    let run = checkpoint(&config, &path);
    let subject = Subject { config, weights: Weights::Trained(path) };
    let mut probe = settings(Protocol::Supervised, Freeze::None, FrozenBn::Eval);
    let drawn = |probe: &ProbeConfig| tensors(&mut tuner(&subject, probe).unwrap());
    let (params, running) = drawn(&probe);
    assert_ne!(params["conv1.weight"], run["conv1.weight"]);
    assert!(running["bn1.running_mean"].data.iter().all(|&v| v == 0.0));
    assert_eq!(drawn(&probe), (params.clone(), running));
    probe.seed += 1;
    assert_ne!(drawn(&probe).0["layer4.0.conv1.weight"], params["layer4.0.conv1.weight"]);
}

#[test]
fn a_tiny_set_of_noise_is_learned_by_heart_and_results_say_how() {
    let subject = Subject { config: config(ModelName::ResNet10, false), weights: Weights::Untrained };
    for (protocol, title) in [(Protocol::Finetune, "untrained"), (Protocol::Supervised, "supervised")] {
        let mut probe = settings(protocol, Freeze::None, FrozenBn::Eval);
        probe.set_epochs(40);
        // The same views in training and tests.
        probe.augment_train = probe.augment_test.clone();
        let result = measure(&subject, probe.clone(), 12).unwrap();
        assert_eq!((result.all, result.n_train, result.n_test, result.n_skipped), (100.0, 12, 12, 0), "{protocol}");
        assert_eq!((result.subject.as_str(), result.protocol), (title, protocol));
        assert!(result.best_epoch.is_some_and(|epoch| epoch > 1), "{:?}", result.best_epoch);
        assert_eq!(result.settings["fine_tuning"]["freeze"], "none");
        assert_eq!(result, measure(&subject, probe, 12).unwrap(), "the same again");
    }
}

#[test]
fn with_every_layer_fixed_only_the_classifier_learns() {
    let subject = Subject { config: config(ModelName::ResNet10, false), weights: Weights::Untrained };
    let mut tuner = tuner(&subject, &settings(Protocol::Finetune, Freeze::Layer4, FrozenBn::Eval)).unwrap();
    let before = tensors(&mut tuner);
    steps(&mut tuner, 2);
    let after = tensors(&mut tuner);
    let moved: Vec<&String> = after.0.iter().filter(|(name, t)| **t != before.0[*name]).map(|(name, _)| name).collect();
    assert_eq!(moved, ["fc.bias", "fc.weight"]);
    assert_eq!(before.1, after.1);
}

#[test]
fn a_last_batch_of_one_image_is_left_out_and_one_image_alone_is_refused() {
    let subject = Subject { config: config(ModelName::ResNet10, false), weights: Weights::Untrained };
    let probe = settings(Protocol::Finetune, Freeze::None, FrozenBn::Eval);
    assert_eq!(measure(&subject, probe.clone(), 5).unwrap().n_train, 5);
    let message = measure(&subject, probe, 1).unwrap_err();
    assert_eq!(message, "one image to learn from is too few: batch norm needs two");
}

#[test]
fn what_cannot_be_fine_tuned_is_named() {
    let refused = |model, weights, freeze| {
        let subject = Subject { config: config(model, false), weights };
        tuner(&subject, &settings(Protocol::Finetune, freeze, FrozenBn::Eval)).err().unwrap().to_string()
    };
    let message = refused(ModelName::ResNet32s, Weights::Untrained, Freeze::Layer4);
    assert_eq!(message, "--freeze layer4: resnet32s has 3 layers; give none, layer1, layer2 or layer3");
    let message = refused(ModelName::ResNet10, Weights::RawPixels, Freeze::None);
    assert!(message.contains("raw pixels"), "{message}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("last.safetensors");
    checkpoint(&config(ModelName::ResNet10, false), &path);
    let message = refused(ModelName::ResNet18, Weights::Trained(path), Freeze::None);
    assert!(message.contains("`layer1.1.conv1.weight` is missing"), "{message}");
}

/// Fine-tunes an untrained network on six images.
fn tune(stop: &StopFlag, memory_limit: Option<u64>) -> Result<Option<StopSignal>, String> {
    let subject = Subject { config: config(ModelName::ResNet10, false), weights: Weights::Untrained };
    let job = ProbeJob {
        subject: &subject,
        probe: settings(Protocol::Finetune, Freeze::None, FrozenBn::Eval),
        train: images(6),
        validation: None,
        test: images(6),
        tail: None,
        data: Default::default(),
        machine: Machine::of(&subject.config, Kernels::default()),
        memory_limit,
        stop,
        observer: &mut Unobserved,
    };
    probe(job).map(Result::err).map_err(|e| e.to_string())
}

#[test]
fn what_does_not_fit_into_memory_is_refused_before_the_first_epoch() {
    let message = tune(&StopFlag::new(), Some(1 << 10)).unwrap_err();
    assert!(message.contains("of memory and 0.0 GB are free; try --batch-size 2"), "{message}");
}

#[test]
fn a_raised_flag_ends_it_before_a_step() {
    let stop = StopFlag::new();
    stop.raise(StopSignal::Interrupt);
    assert_eq!(tune(&stop, None), Ok(Some(StopSignal::Interrupt)));
}
