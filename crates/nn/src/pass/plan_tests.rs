//! Tests of where a pass keeps what: places are shared, and nothing shows of it.

use super::*;
use crate::collective::Single;
use crate::model::Model;
use crate::pass::{Batch, Branch, PassSpec};
use crate::resnet::{Head, NetworkSpec};
use crate::rng;
use sdclr_engine::{Memory, Oracle};

const N: usize = 2;

/// A model of a name with so many blocks a stage, or its own numbers of them.
fn model(engine: &mut Oracle, name: &str, blocks: Option<&[usize]>, base_width: usize) -> Model {
    let head = Head::Projection { layers: 2, dim: 4 };
    let spec = NetworkSpec { model: name.into(), image_size: 8, small_stem: true, base_width, dual_bn: true, head };
    let network = blocks.map_or_else(|| spec.build(), |blocks| spec.build_with_blocks(blocks)).unwrap();
    let mut model = Model::new(engine, network).unwrap();
    model.init(engine, 1);
    model
}

fn pass(engine: &mut Oracle, model: &Model, branch: Branch, mode: Mode, fixed: Fixed, pool: &mut GradPool) -> Pass {
    let spec = PassSpec { max_batch: N, branch, mode, until: model.network.output };
    Pass::with_fixed(engine, model, spec, fixed, pool).unwrap()
}

#[test]
fn gradients_take_the_place_of_what_only_a_batch_norm_reads() {
    for name in ["resnet18", "resnet50", "resnet32s"] {
        let engine = &mut Oracle::new();
        let model = model(engine, name, None, 4);
        let mut pool = GradPool::default();
        let [train, eval] =
            [Mode::Train, Mode::Eval].map(|mode| pass(engine, &model, Branch::Pruned, mode, Fixed::NOTHING, &mut pool));
        for node in &train.nodes {
            let Op::Norm { x, .. } = node.op else { continue };
            assert_eq!(train.grads[x.0], train.acts[x.0], "{name}");
            assert_ne!(train.acts[node.y.0], train.acts[x.0], "{name}: backward reads both");
            assert_eq!(eval.acts[node.y.0], eval.acts[x.0], "{name}");
        }
        // The gradient on its way through blocks, and those of bottlenecks that no later map is like.
        let like = |value| pool.slots.iter().filter(|(v, ..)| *v == value).count();
        assert!(pool.slots.iter().all(|&(value, ..)| like(value) == 1), "{name}: {pool:?}");
    }
}

#[test]
fn normalised_maps_inside_blocks_lie_where_their_gradients_will() {
    for name in ["resnet18", "resnet50", "resnet32s"] {
        let engine = &mut Oracle::new();
        let model = model(engine, name, None, 4);
        let pool = &mut GradPool::default();
        let train = pass(engine, &model, Branch::Dense, Mode::Train, Fixed::NOTHING, pool);
        let (mut n_later, mut n_pooled) = (0, 0);
        for node in &train.nodes {
            let Op::Norm { norm, residual, .. } = node.op else { continue };
            let norm = &model.network.norms[norm.0].name;
            let is_inside = norm.starts_with("layer") && !norm.contains("downsample") && residual.is_none();
            assert_eq!(train.twice[node.y.0], is_inside, "{norm} of {name}");
            let act = train.acts[node.y.0].unwrap();
            assert_eq!(train.grads[node.y.0] == Some(act), is_inside, "{norm} of {name}");
            if is_inside {
                let is_pooled = pool.slots.iter().any(|(.., slot)| *slot == act);
                (n_later, n_pooled) = (n_later + usize::from(!is_pooled), n_pooled + usize::from(is_pooled));
            }
        }
        // Those of a stage's last bottleneck have no map behind them that is as wide.
        let expected = match name {
            "resnet18" => (8, 0),
            "resnet50" => (21, 11),
            _ => (15, 0),
        };
        assert_eq!((n_later, n_pooled), expected, "{name}");
    }
}

/// What both branches' passes give when every value and every gradient has a place of its own, to the bit.
#[test]
fn shared_places_change_no_gradient() {
    let networks: [(&str, &[usize]); 6] = [
        ("resnet18", &[2, 2, 1]),
        ("resnet50", &[2, 3]),
        ("wide-resnet50-2", &[2, 1]),
        ("resnet32s", &[2, 2, 1]),
        ("resnet32s-bbn", &[1, 2, 2]),
        ("resnet32s-ride", &[1, 2, 1]),
    ];
    for ((name, blocks), last) in networks.into_iter().flat_map(|n| [None, Some(0), Some(1)].map(|last| (n, last))) {
        let engine = &mut Oracle::new();
        let model = model(engine, name, Some(blocks), 3);
        let fixed = Fixed { up_to: last, norms: Mode::Eval };
        let mut gradients = |apart: bool| {
            let mut pool = GradPool::default();
            let mut passes = [Branch::Dense, Branch::Pruned]
                .map(|branch| pass(engine, &model, branch, Mode::Train, fixed, &mut pool));
            for pass in passes.iter_mut().filter(|_| apart) {
                let fresh = |engine: &mut Oracle, v: usize| {
                    let value = model.network.values[v];
                    Some(engine.alloc_act(N, value.dims, value.role).unwrap())
                };
                pass.acts = (0..model.network.values.len()).map(|v| fresh(engine, v)).collect();
                pass.grads = (0..pass.wanted.len()).map(|v| fresh(engine, v)).collect();
            }
            run(engine, &model, &passes)
        };
        let (expected, got) = (gradients(true), gradients(false));
        assert!(expected.iter().any(|&g| g != 0.0) && expected.iter().all(|g| g.is_finite()), "{name}");
        assert!(expected == got, "{name}, fixed up to {last:?}");
    }
}

/// The gradients of two steps of passes that share a pool: all forwards, then all backwards.
fn run(engine: &mut Oracle, model: &Model, passes: &[Pass]) -> Vec<f32> {
    let mut numbers = rng::stream(1, "places", 0);
    let mut written = |engine: &mut Oracle, act: Act, len: usize| {
        let values: Vec<f32> = (0..N * len).map(|_| rng::normal(&mut numbers) as f32).collect();
        engine.write_act(N, act, &values);
    };
    let net = &model.network;
    model.zero_grads(engine);
    for _ in 0..2 {
        for pass in passes {
            written(engine, pass.act(net.input), net.dims(net.input).len());
            pass.forward(engine, model, Batch::local(N), &Single).unwrap();
        }
        for pass in passes {
            written(engine, pass.output_grad(), net.dims(net.output).len());
            pass.backward(engine, model, Batch::local(N), &Single).unwrap();
        }
    }
    let mut gradients = vec![0.0; model.grads().len];
    engine.read_f32(model.grads(), &mut gradients).unwrap();
    gradients
}
