//! The bf16 engine trains as the f32 engine does: gradients of a whole network point the same way, layer by layer.
//!
//! PyTorch's bf16 beside ours, and how both fare through a training run: `benches/runs/bf16-gradients.md`.

use sdclr::{Learner, LearnerSpec};
use sdclr_data::{Dataset, Loader, LoaderSpec, OpenOptions, Order, Shard};
use sdclr_engine::{CpuOptions, Engine, bf16_engine, f32_engine};
use sdclr_nn::{Head, NetworkSpec, OptimizerKind, Single, Tensor};
use sdclr_records::augment::Augmentation;
use sdclr_records::names::Method;
use std::collections::BTreeMap;
use std::path::Path;

const SIZE: usize = 32;
const N: usize = 64;
/// Gradients of a network that has just been drawn turn by more, PyTorch's too: its features differ little between images.
const TRAINED_STEPS: usize = 20;
/// Moments at which gradients are compared, and steps from one to the next. At one moment in fifteen or so a layer's cosine falls to 0.98 or less,
/// in PyTorch too, and there it may be so with several batches.
const N_MOMENTS: usize = 7;
const BETWEEN: usize = 6;
/// Of a layer's weights, the median over moments.
const COSINE: f64 = 0.99;

/// Two views of the bundled images, a batch at a time.
fn batches() -> Vec<Vec<u8>> {
    let images =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/fashion-mnist-lt/train-images-idx3-ubyte.gz");
    let spec = LoaderSpec {
        recipe: Augmentation::cifar_contrastive(),
        image_size: SIZE as u32,
        n_views: 2,
        batch_size: N,
        order: Order::Shuffled,
        seed: 1,
        workers: 2,
        jpeg_scaling: false,
        cache_bytes: 0,
        shard: Shard::default(),
        max_broken_share: 0.0,
        strict: true,
    };
    let mut loader = Loader::new(Dataset::open(&images, &OpenOptions::default()).unwrap(), spec).unwrap();
    let mut views = Vec::new();
    for epoch in 0.. {
        loader.start_epoch(epoch, 0);
        while let Some(batch) = loader.next_batch() {
            let batch = batch.unwrap();
            if batch.n_images() == N {
                views.push(batch.views);
            }
            if views.len() == TRAINED_STEPS + (N_MOMENTS - 1) * BETWEEN + 1 {
                return views;
            }
        }
    }
    unreachable!("epochs do not end")
}

fn learner(engine: Box<dyn Engine>, model: &str, small_stem: bool) -> Learner {
    let head = Head::Projection { layers: 3, dim: 64 };
    let spec = NetworkSpec { model: model.into(), image_size: SIZE, small_stem, base_width: 16, dual_bn: true, head };
    let optimizer = OptimizerKind::Sgd { momentum: 0.9, weight_decay: 1e-4 };
    let learner = LearnerSpec { method: Method::SdClr, max_batch: N, temperature: 0.2, optimizer };
    Learner::new(engine, Box::new(Single), spec.build().unwrap(), &learner).unwrap()
}

/// Loss and gradients of a step that moves nothing.
fn gradients(l: &mut Learner, views: &[u8]) -> (f32, BTreeMap<String, Tensor>) {
    let loss = l.step(views, N, 0.0).unwrap();
    (loss, l.model.export(&mut *l.engine, l.model.grads()).unwrap())
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn check(model: &str, small_stem: bool) {
    let options = CpuOptions::threads(2);
    let mut reference = learner(f32_engine(options).unwrap(), model, small_stem);
    reference.model.init(&mut *reference.engine, 1);
    reference.update_mask(0.5, 0.0, 1, 0).unwrap();
    let batches = batches();
    let (trained_on, later) = batches.split_at(TRAINED_STEPS);
    for (step, views) in trained_on.iter().enumerate() {
        reference.step(views, N, 0.5 * (step + 1) as f64 / TRAINED_STEPS as f64).unwrap();
    }

    let mut l = learner(bf16_engine(options).unwrap(), model, small_stem);
    l.model.set_masks(&mut *l.engine, &reference.model.masks()).unwrap();
    let mut cosines: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for batches in later.chunks(BETWEEN) {
        let weights = reference.model.export(&mut *reference.engine, reference.model.params()).unwrap();
        l.model.import(&mut *l.engine, l.model.params(), &weights).unwrap();
        let (loss, exact) = gradients(&mut reference, &batches[0]);
        let (fast_loss, got) = gradients(&mut l, &batches[0]);
        assert!((loss - fast_loss).abs() < 0.005 * loss, "{model}: loss {fast_loss} instead of {loss}");
        for (name, exact) in exact.into_iter().filter(|(_, exact)| exact.shape.len() > 1) {
            let cosine = cosine(&exact.data, &got[&name].data);
            cosines.entry(name).or_default().push(cosine);
        }
        for views in batches {
            reference.step(views, N, 0.5).unwrap();
        }
    }
    for (name, mut cosines) in cosines {
        cosines.sort_by(f64::total_cmp);
        let median = cosines[N_MOMENTS / 2];
        assert!(median > COSINE, "{model}, {name}: cosines {cosines:.4?}");
    }
}

#[test]
fn gradients_of_whole_networks_point_the_same_way() {
    check("resnet10", true);
    check("resnet18", false);
    check("resnet32s", true);
    check("resnet32s-ride", true);
}
