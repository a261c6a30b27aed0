//! Training with the first layers fixed: they and their optimizer state stay, and the others learn as if they did not.

use sdclr_engine::*;
use sdclr_nn::*;
use std::collections::BTreeMap;

const N: usize = 5;
const LR: f64 = 0.1;
const SGD: OptimizerKind = OptimizerKind::Sgd { momentum: 0.9, weight_decay: 0.1 };
const LARS: OptimizerKind = OptimizerKind::Lars { momentum: 0.9, weight_decay: 0.1, eta: 0.1 };
const ADAM: OptimizerKind = OptimizerKind::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 };

fn network(model: &str) -> Network {
    let head = Head::Classifier { n_classes: 3 };
    let spec =
        NetworkSpec { model: model.into(), image_size: 8, small_stem: true, base_width: 4, dual_bn: false, head };
    spec.build_with_blocks(&[1, 1, 2]).unwrap()
}

fn numbers(purpose: &str, len: usize) -> Vec<f32> {
    let mut rng = rng::stream(7, purpose, 0);
    (0..len).map(|_| rng::normal(&mut rng) as f32).collect()
}

struct State {
    params: BTreeMap<String, Tensor>,
    grads: BTreeMap<String, Tensor>,
    running: BTreeMap<String, Tensor>,
    moments: BTreeMap<String, Tensor>,
    bytes: usize,
}

/// Parameters, gradients, running statistics and first moments after a number of steps.
fn train(network: &Network, fixed: Fixed, kind: OptimizerKind, n_steps: usize) -> State {
    let e: &mut dyn Engine = &mut *f32_engine(CpuOptions::threads(2)).unwrap();
    let mut model = Model::new(e, network.clone()).unwrap();
    model.init(e, 3);
    let spec = PassSpec { max_batch: N, branch: Branch::Dense, mode: Mode::Train, until: network.output };
    let pass = Pass::with_fixed(e, &model, spec, fixed, &mut GradPool::default()).unwrap();
    let mut optimizer = Optimizer::with_fixed(e, &model, kind, fixed).unwrap();
    let input = numbers("input", N * network.dims(network.input).len());
    let gradient = numbers("gradient", N * 3);
    for _ in 0..n_steps {
        e.write_act(N, pass.act(network.input), &input);
        pass.forward(e, &model, Batch::local(N), &Single).unwrap();
        model.zero_grads(e);
        e.write_act(N, pass.output_grad(), &gradient);
        pass.backward(e, &model, Batch::local(N), &Single).unwrap();
        optimizer.step(e, &model, LR);
    }
    let moments = optimizer.moments()[0].1;
    State {
        params: model.export(e, model.params()).unwrap(),
        grads: model.export(e, model.grads()).unwrap(),
        running: model.export_running(e).unwrap(),
        moments: model.export(e, moments).unwrap(),
        bytes: e.bytes_held(),
    }
}

fn fixed(up_to: usize, norms: Mode) -> Fixed {
    Fixed { up_to: Some(up_to), norms }
}

#[test]
fn fixed_parameters_stay_bit_for_bit_and_all_others_move() {
    for model in ["resnet18", "resnet32s-bbn", "resnet32s-ride"] {
        let network = network(model);
        for (kind, norms) in [(SGD, Mode::Eval), (LARS, Mode::Train), (ADAM, Mode::Eval)] {
            let start = train(&network, fixed(2, norms), kind, 0);
            let end = train(&network, fixed(2, norms), kind, 3);
            for param in &network.params {
                let (name, is_fixed) = (&param.name, param.layer.is_some_and(|layer| layer <= 2));
                assert_eq!(start.params[name] == end.params[name], is_fixed, "{model}, {kind:?}: {name}");
                assert_eq!(end.moments[name].data.iter().all(|&v| v == 0.0), is_fixed, "{model}, {kind:?}: {name}");
                assert!(!is_fixed || end.grads[name].data.iter().all(|&v| v == 0.0), "{model}: {name}");
            }
        }
    }
}

#[test]
fn running_statistics_of_fixed_norms_move_in_train_mode_only() {
    let network = network("resnet32s-ride");
    let layer_of = |name: &str| {
        let norm = network.norms.iter().find(|norm| name.starts_with(&format!("{}.running", norm.name))).unwrap();
        network.params[norm.sets[0].gamma.0].layer
    };
    for (norms, moves) in [(Mode::Eval, false), (Mode::Train, true)] {
        let start = train(&network, fixed(1, norms), SGD, 0).running;
        for (name, end) in train(&network, fixed(1, norms), SGD, 1).running {
            let expected = moves || layer_of(&name) > Some(1);
            assert_eq!(end != start[&name], expected, "{norms:?}: {name}");
        }
    }
}

#[test]
fn gradients_of_the_rest_are_those_of_a_network_that_trains_whole() {
    for model in ["resnet18", "resnet32s-bbn", "resnet32s-ride"] {
        let network = network(model);
        let whole = train(&network, Fixed::NOTHING, SGD, 1);
        for up_to in 0..=network.n_layers() {
            let part = train(&network, fixed(up_to, Mode::Train), SGD, 1);
            for param in network.params.iter().filter(|param| param.layer.is_none_or(|layer| layer > up_to)) {
                assert_eq!(part.grads[&param.name], whole.grads[&param.name], "{model} to {up_to}: {}", param.name);
            }
            assert_eq!(part.running, whole.running, "{model} to {up_to}");
        }
    }
}

/// With constant statistics in the fixed layers, what follows sees other inputs; the features' own norm is what evaluation has.
#[test]
fn frozen_norms_feed_the_rest_what_evaluation_would() {
    let network = network("resnet18");
    let e: &mut dyn Engine = &mut *f32_engine(CpuOptions::threads(1)).unwrap();
    let mut model = Model::new(e, network.clone()).unwrap();
    model.init(e, 3);
    // Everything but the classifier is fixed: its input must be the evaluated feature.
    let input = numbers("input", N * network.dims(network.input).len());
    let feature_of = |e: &mut dyn Engine, mode| {
        let spec = PassSpec { max_batch: N, branch: Branch::Dense, mode, until: network.output };
        let all = fixed(network.n_layers(), Mode::Eval);
        let pass = Pass::with_fixed(e, &model, spec, all, &mut GradPool::default()).unwrap();
        e.write_act(N, pass.act(network.input), &input);
        pass.pack(e, &model);
        pass.forward(e, &model, Batch::local(N), &Single).unwrap();
        let mut feature = vec![0.0; N * network.dims(network.feature).len()];
        e.read_act(N, pass.act(network.feature), &mut feature).unwrap();
        feature
    };
    let trained = feature_of(e, Mode::Train);
    assert_eq!(trained, feature_of(e, Mode::Eval));
    assert!(trained.iter().any(|&v| v > 0.0));
}

#[test]
fn fixed_layers_hold_no_activations_for_backward() {
    let network = network("resnet18");
    let bytes = |fixed| train(&network, fixed, SGD, 0).bytes;
    let (whole, most) = (bytes(Fixed::NOTHING), bytes(fixed(3, Mode::Eval)));
    assert!(most < whole, "{most} bytes with every layer fixed, {whole} without");
}
