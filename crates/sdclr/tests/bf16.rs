//! The bf16 engine trains as the f32 engine does: gradients of a whole network point the same way, layer by layer.
//! Passes without a look where the processor has no AMX.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use sdclr::{Learner, LearnerSpec};
use sdclr_engine::{Cpu, CpuBf16, CpuOptions, Engine};
use sdclr_nn::{Head, NetworkSpec, OptimizerKind, Single, rng};
use sdclr_records::names::Method;
use std::collections::BTreeMap;

const SIZE: usize = 32;
/// Observed: 0.986 at the least. The loss looks at small differences between embeddings, so rounding in the forward pass turns
/// its gradient a little whatever the backward pass does.
const COSINE: f64 = 0.97;
const N: usize = 32;
const WARM_UP: usize = 5;

/// Images with structure: noise alone makes gradients of a random network mostly noise too.
fn views() -> Vec<u8> {
    let mut views = Vec::new();
    for image in 0..N as u64 {
        let mut rng = rng::stream(3, "views", image);
        let waves: Vec<[f64; 4]> = (0..4).map(|_| std::array::from_fn(|_| rng::uniform(&mut rng))).collect();
        for view in 0..2 {
            for (y, x, c) in (0..SIZE).flat_map(|y| (0..SIZE).flat_map(move |x| (0..3).map(move |c| (y, x, c)))) {
                let (y, x) = (y as f64 + 3.0 * f64::from(view), x as f64);
                let wave = |w: &[f64; 4]| (w[0] * y * 0.6 + w[1] * x * 0.6 + w[2] * 6.0 + w[3] * f64::from(c)).sin();
                let value = waves.iter().map(wave).sum::<f64>();
                views.push((128.0 + 28.0 * value + 8.0 * rng::uniform(&mut rng)) as u8);
            }
        }
    }
    views
}

fn learner(engine: Box<dyn Engine>, model: &str, small_stem: bool) -> Learner {
    let head = Head::Projection { layers: 3, dim: 64 };
    let base_width = NetworkSpec::standard_width(model);
    let spec = NetworkSpec { model: model.into(), image_size: SIZE, small_stem, base_width, dual_bn: true, head };
    let optimizer = OptimizerKind::Sgd { momentum: 0.9, weight_decay: 1e-4 };
    let learner = LearnerSpec { method: Method::SdClr, max_batch: N, temperature: 0.2, optimizer };
    let mut l = Learner::new(engine, Box::new(Single), spec.build().unwrap(), &learner).unwrap();
    l.model.init(&mut *l.engine, 1);
    l.update_mask(0.5, 0.0, 1, 0).unwrap();
    l
}

fn gradients(l: &mut Learner) -> (f32, BTreeMap<String, sdclr_nn::Tensor>) {
    let loss = l.step(&views(), N, 0.0).unwrap();
    (loss, l.model.export(&mut *l.engine, l.model.grads()).unwrap())
}

fn check(model: &str, small_stem: bool) {
    let options = CpuOptions { n_threads: 2, level: None };
    let Ok(fast) = CpuBf16::new(options) else { return };
    let mut reference = learner(Box::new(Cpu::new(options).unwrap()), model, small_stem);
    // A random network maps all images to nearly the same feature, whose differences are then mostly rounding.
    for _ in 0..WARM_UP {
        reference.step(&views(), N, 0.05).unwrap();
    }
    let mut l = learner(Box::new(fast), model, small_stem);
    let weights = reference.model.export(&mut *reference.engine, reference.model.params()).unwrap();
    l.model.import(&mut *l.engine, l.model.params(), &weights).unwrap();
    let (loss, exact) = gradients(&mut reference);
    let (fast_loss, got) = gradients(&mut l);
    assert!((loss - fast_loss).abs() < 0.02 * loss, "{model}: loss {fast_loss} instead of {loss}");
    for (name, exact) in &exact {
        let got = &got[name].data;
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let norm = dot(&exact.data, &exact.data).sqrt();
        // The bias before a batch norm has no gradient but rounding.
        if norm > 1e-6 && name.ends_with("weight") && exact.shape.len() > 1 {
            let cosine = dot(got, &exact.data) / (norm * dot(got, got).sqrt());
            assert!(cosine > COSINE, "{model}, {name}: cosine {cosine:.4}");
        }
    }
}

#[test]
fn gradients_of_whole_networks_point_the_same_way() {
    check("resnet10", true);
    check("resnet18", false);
    check("resnet32s", true);
}
