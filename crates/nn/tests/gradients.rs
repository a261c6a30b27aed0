//! Finite differences: backward of every topology is the derivative of its forward, on the oracle and on the fast engine.
//!
//! The loss is a fixed random projection of the outputs. Along a random direction d of one tensor at a time,
//! (L(w + h·d) − L(w − h·d)) / 2h must be g·d. ReLU, max-pool and f32 make this noisy: 5 % of ‖g‖·‖d‖ is asked for,
//! which a wrong term anywhere in a backward exceeds by far.

use sdclr_engine::*;
use sdclr_nn::*;

type MakeEngine = fn() -> Box<dyn Engine>;

const ENGINES: [(&str, MakeEngine); 2] =
    [("oracle", || Box::new(Oracle::new())), ("cpu", || f32_engine(CpuOptions::threads(2)).unwrap())];

const N: usize = 4;

struct Rig {
    engine: Box<dyn Engine>,
    model: Model,
    pass: Pass,
    projection: Vec<f32>,
}

fn numbers(purpose: &str, len: usize) -> Vec<f32> {
    let mut rng = rng::stream(7, purpose, 0);
    (0..len).map(|_| rng::normal(&mut rng) as f32).collect()
}

impl Rig {
    fn new(mut engine: Box<dyn Engine>, network: Network, branch: Branch) -> Self {
        let e = &mut *engine;
        let mut model = Model::new(e, network).unwrap();
        model.init(e, 3);
        // Away from the special point γ = 1, β = 0.
        let mut params = vec![0.0; model.params().len];
        e.read_f32(model.params(), &mut params).unwrap();
        for (p, noise) in params.iter_mut().zip(numbers("perturb", model.params().len)) {
            *p += 0.05 * noise;
        }
        e.write_f32(model.params(), &params);
        model.update_mask(e, 0.4, 0.0, 0, 0).unwrap();
        let spec = PassSpec { max_batch: N + 1, branch, mode: Mode::Train, until: model.network.output };
        let pass = Pass::new(e, &model, spec, &mut GradPool::default()).unwrap();
        let input = numbers("input", N * model.network.dims(model.network.input).len());
        e.write_act(N, pass.act(model.network.input), &input);
        let projection = numbers("projection", N * model.network.dims(model.network.output).len());
        Self { engine, model, pass, projection }
    }

    fn loss(&mut self) -> f64 {
        let e = &mut *self.engine;
        self.pass.forward(e, &self.model, Batch::local(N), &Single).unwrap();
        let mut out = vec![0.0; self.projection.len()];
        e.read_act(N, self.pass.act(self.model.network.output), &mut out).unwrap();
        out.iter().zip(&self.projection).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    }

    fn gradient(&mut self) -> Vec<f32> {
        self.loss();
        let e = &mut *self.engine;
        self.model.zero_grads(e);
        e.write_act(N, self.pass.output_grad(), &self.projection);
        self.pass.backward(e, &self.model, Batch::local(N), &Single).unwrap();
        let mut grads = vec![0.0; self.model.grads().len];
        e.read_f32(self.model.grads(), &mut grads).unwrap();
        grads
    }
}

fn check(what: &str, network: &Network, branch: Branch) {
    for (engine_name, make) in ENGINES {
        let grads = Rig::new(make(), network.clone(), branch).gradient();
        // Differences of losses are taken on the oracle, whose sums round least: they are what the last digits show.
        let mut rig = Rig::new(Box::new(Oracle::new()), network.clone(), branch);
        let mut params = vec![0.0; grads.len()];
        rig.engine.read_f32(rig.model.params(), &mut params).unwrap();
        let direction = numbers("direction", grads.len());
        let scale = grads.iter().fold(0.0f32, |m, g| m.max(g.abs()));
        let mut n_checked = 0;
        for p in &network.params {
            let range = p.range();
            let norm = |v: &[f32]| v.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            // Along the gradient and a random direction, so that neither a wrong size nor a wrong turn hides.
            let g = &grads[range.clone()];
            if norm(g) < 1e-3 * f64::from(scale) {
                continue;
            }
            let mixed: Vec<f64> = g
                .iter()
                .zip(&direction[range.clone()])
                .map(|(&v, &d)| f64::from(v) / norm(g) + 0.5 * f64::from(d) / norm(&direction[range.clone()]))
                .collect();
            let expected: f64 = g.iter().zip(&mixed).map(|(&g, d)| f64::from(g) * d).sum();
            let size = mixed.iter().map(|d| d * d).sum::<f64>().sqrt();
            let mut error_at = |relative_step: f64| {
                let h = relative_step * norm(&params[range.clone()]).max(0.5) / size;
                let mut at = |sign: f64| {
                    let mut moved = params.clone();
                    moved[range.clone()].iter_mut().zip(&mixed).for_each(|(w, d)| *w += (sign * h * d) as f32);
                    rig.engine.write_f32(rig.model.params(), &moved);
                    rig.loss()
                };
                ((at(1.0) - at(-1.0)) / (2.0 * h) - expected).abs() / (norm(g) * size)
            };
            // Kinks spoil long steps and rounding short ones; a wrong gradient spoils all.
            let error = [1e-3, 3e-4, 1e-4, 3e-5].map(&mut error_at).into_iter().fold(f64::INFINITY, f64::min);
            assert!(error < 0.05, "{what} on {engine_name}, {}: off by {error:.3} of the gradient", p.name);
            n_checked += 1;
        }
        assert!(n_checked > network.params.len() / 4, "{what}: only {n_checked} tensors have a gradient");
    }
}

fn spec(model: &str, image_size: usize, small_stem: bool, base_width: usize, dual_bn: bool, head: Head) -> NetworkSpec {
    NetworkSpec { model: model.into(), image_size, small_stem, base_width, dual_bn, head }
}

#[test]
fn basic_blocks_with_small_stem() {
    let head = Head::Projection { layers: 2, dim: 5 };
    let network = spec("resnet18", 8, true, 4, false, head).build_with_blocks(&[1, 2]).unwrap();
    check("basic", &network, Branch::Dense);
}

#[test]
fn pruned_branch_with_dual_norms_and_three_layer_head() {
    let head = Head::Projection { layers: 3, dim: 5 };
    let network = spec("resnet18", 8, true, 4, true, head).build_with_blocks(&[1, 1]).unwrap();
    check("pruned", &network, Branch::Pruned);
}

#[test]
fn bottlenecks_with_imagenet_stem() {
    let network = spec("resnet50", 24, false, 4, false, Head::None).build_with_blocks(&[2, 1]).unwrap();
    check("bottleneck", &network, Branch::Dense);
}

#[test]
fn wide_bottlenecks() {
    let network = spec("wide-resnet50-2", 8, true, 3, false, Head::None).build_with_blocks(&[1, 1]).unwrap();
    check("wide", &network, Branch::Dense);
}

#[test]
fn resnet32s_with_shortcut_a_and_classifier() {
    let head = Head::Classifier { n_classes: 3 };
    let network = spec("resnet32s", 8, true, 4, false, head).build_with_blocks(&[1, 1, 1]).unwrap();
    check("resnet32s", &network, Branch::Dense);
}

#[test]
fn bbn_with_two_last_blocks_and_dual_norms() {
    let head = Head::Projection { layers: 2, dim: 5 };
    let network = spec("resnet32s-bbn", 8, true, 4, true, head).build_with_blocks(&[1, 1, 2]).unwrap();
    check("bbn", &network, Branch::Pruned);
}

#[test]
fn ride_with_experts_on_a_shared_stage() {
    let head = Head::Classifier { n_classes: 5 };
    let network = spec("resnet32s-ride", 12, true, 4, true, head).build_with_blocks(&[1, 1, 1]).unwrap();
    check("ride", &network, Branch::Dense);
}

/// The masked weights get nothing from the pruned branch, and the kept ones what an unmasked branch of masked weights has.
#[test]
fn pruned_branch_gives_masked_weights_no_gradient() {
    for (_, make) in ENGINES {
        let network = spec("resnet18", 8, true, 4, true, Head::None).build_with_blocks(&[1, 1]).unwrap();
        let mut rig = Rig::new(make(), network, Branch::Pruned);
        let grads = rig.gradient();
        let grads: std::collections::BTreeMap<_, _> = {
            rig.engine.write_f32(rig.model.grads(), &grads);
            rig.model.export(&mut *rig.engine, rig.model.grads()).unwrap()
        };
        let mut n_masked = 0;
        for (name, (_, mask)) in rig.model.masks() {
            for (g, m) in grads[&name].data.iter().zip(&mask) {
                n_masked += usize::from(*m == 0);
                assert!(*m == 1 || *g == 0.0, "{name}");
            }
            assert!(grads[&name].data.iter().any(|g| *g != 0.0), "{name}");
        }
        assert!(n_masked > 100);
        for (name, grad) in &grads {
            assert!(!name.contains(".dense.") || grad.data.iter().all(|g| *g == 0.0), "{name} is the other branch's");
        }
    }
}
