//! Another program's runtime (RTen, with its own reader and its own kernels) computes from an exported ONNX model what this
//! project's engine computes from the tensors.

use rten_tensor::prelude::*;
use rten_tensor::{NdTensor, Tensor as OtherTensor};
use sdclr_engine::{CpuOptions, Engine, Kernels, Rows, f32_engine};
use sdclr_interop::{Branch as ExportBranch, ExportHead, ExportOptions, export_onnx};
use sdclr_nn::graph::ValueId;
use sdclr_nn::model::torch_shape;
use sdclr_nn::{Batch, Branch, GradPool, Head, Mode, Model, Network, NetworkSpec, ParamKind, Pass, PassSpec, Single};
use sdclr_records::checkpoint::Tensor;
use std::collections::BTreeMap;

/// Largest difference over largest magnitude; the two sum in other orders, in f32, through fifty layers at most.
const TOLERANCE: f32 = 1e-4;
const N_IMAGES: usize = 3;

/// Numbers in [0, 1), the same on every machine (a 64-bit linear congruential generator, Knuth's constants).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 24) as f32
    }

    fn between(&mut self, low: f32, high: f32, n: usize) -> Vec<f32> {
        (0..n).map(|_| low + (high - low) * self.next()).collect()
    }
}

/// A network's tensors as after some training: weights of Kaiming's size, batch norms that are not the identity.
fn trained(network: &Network) -> BTreeMap<String, Tensor> {
    let mut random = Random(7);
    let mut tensors = BTreeMap::new();
    for param in &network.params {
        let shape = torch_shape(param);
        let fan_in: usize = shape[1..].iter().product();
        let width = (6.0 / fan_in as f32).sqrt();
        let (low, high) = match param.kind {
            ParamKind::Conv | ParamKind::Linear => (-width, width),
            ParamKind::NormWeight => (0.5, 1.5),
            ParamKind::LinearBias { .. } | ParamKind::NormBias => (-0.5, 0.5),
        };
        tensors.insert(param.name.clone(), Tensor::f32(&shape, random.between(low, high, param.len)));
    }
    for norm in &network.norms {
        for set in &norm.sets {
            let mut put = |kind: &str, low, high| {
                let values = random.between(low, high, norm.channels);
                tensors.insert(format!("{}.{kind}", set.name), Tensor::f32(&[norm.channels], values));
            };
            put("running_mean", -0.5, 0.5);
            put("running_var", 0.5, 4.0);
        }
    }
    tensors
}

/// What this project's engine makes of images.
struct Ours {
    engine: Box<dyn Engine>,
    model: Model,
}

impl Ours {
    /// Loads the tensors, masks half of the weights, and puts the mask among the tensors.
    fn new(network: Network, tensors: &mut BTreeMap<String, Tensor>) -> Self {
        let options = CpuOptions { n_threads: 1, kernels: Kernels::default() };
        let mut engine: Box<dyn Engine> = f32_engine(options).expect("an engine");
        let mut model = Model::new(&mut *engine, network).expect("memory");
        let plain = |tensor: &Tensor| {
            let data = tensor.as_f32().expect("floats").to_vec();
            sdclr_nn::Tensor { shape: tensor.shape.clone(), data }
        };
        let loaded = tensors.iter().map(|(name, tensor)| (name.clone(), plain(tensor))).collect();
        model.import(&mut *engine, model.params(), &loaded).expect("parameters");
        model.import_running(&mut *engine, &loaded).expect("statistics");
        model.update_mask(&mut *engine, 0.5, 0.0, 0, 1).expect("a mask");
        for (name, (shape, mask)) in model.masks() {
            tensors.insert(format!("mask.{name}"), Tensor::u8(&shape, mask));
        }
        Self { engine, model }
    }

    /// The value `until` of one branch in evaluation mode.
    fn run(&mut self, branch: Branch, until: ValueId, images: &[u8]) -> Vec<f32> {
        let (engine, network) = (&mut *self.engine, &self.model.network);
        let n = images.len() / network.dims(network.input).len();
        let spec = PassSpec { max_batch: n, branch, mode: Mode::Eval, until };
        let pass = Pass::new(engine, &self.model, spec, &mut GradPool::default()).expect("memory");
        let buffer = engine.alloc_bytes(images.len()).expect("memory");
        engine.write_bytes(buffer, images);
        pass.pack(engine, &self.model);
        pass.load(engine, &self.model, n, buffer, Rows::ALL);
        pass.forward(engine, &self.model, Batch::local(n), &Single).expect("runs");
        let mut values = vec![0.0; n * network.dims(until).len()];
        engine.read_act(n, pass.act(until), &mut values).expect("reads");
        values
    }
}

/// `[n, size, size, 3]` bytes as `[n, 3, size, size]` floats in [0, 1].
fn pixels(images: &[u8], size: usize) -> NdTensor<f32, 4> {
    let n = images.len() / (3 * size * size);
    NdTensor::from_fn([n, 3, size, size], |[image, channel, row, column]| {
        f32::from(images[((image * size + row) * size + column) * 3 + channel]) / 255.0
    })
}

/// What the other runtime makes of the same images.
fn theirs(file: Vec<u8>, images: &[u8], size: usize, outputs: &[&str]) -> Vec<Vec<f32>> {
    let model = rten::Model::load(file).expect("RTen reads it");
    let ids: Vec<_> = outputs.iter().map(|name| model.node_id(name).expect("an output")).collect();
    assert_eq!(model.output_ids(), ids);
    let input = model.node_id("images").expect("an input");
    let values = model.run(vec![(input, pixels(images, size).into())], &ids, None).expect("RTen runs it");
    let floats = |value: rten::Value| {
        let tensor: OtherTensor<f32> = value.try_into().expect("floats");
        assert_eq!((tensor.ndim(), tensor.size(0)), (2, images.len() / (3 * size * size)));
        tensor.to_vec()
    };
    values.into_iter().map(floats).collect()
}

#[track_caller]
fn assert_close(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let largest = ours.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    let is_close = |(a, b): (&f32, &f32)| (a - b).abs() <= TOLERANCE * largest;
    assert!(largest > 0.1, "{what}: nothing to compare, the largest value is {largest}");
    assert!(ours.iter().zip(theirs).all(is_close), "{what}:\n{ours:?}\n{theirs:?}");
}

fn check(model: &str, small_stem: bool, base_width: usize, size: usize, dual_bn: bool) {
    let head = Head::Projection { layers: if dual_bn { 3 } else { 2 }, dim: 16 };
    let spec = NetworkSpec { model: model.into(), image_size: size, small_stem, base_width, dual_bn, head };
    check_head(&spec, &ExportHead::Projection, "embedding");
    let spec = NetworkSpec { head: Head::Classifier { n_classes: 5 }, ..spec };
    check_head(&spec, &ExportHead::Classifier { class_names: Vec::new() }, "logits");
}

/// Exports both branches with the head and compares both outputs, for several images and for one.
fn check_head(spec: &NetworkSpec, head: &ExportHead, output: &str) {
    let (network, size) = (spec.build().expect("a network"), spec.image_size);
    let mut tensors = trained(&network);
    let mut ours = Ours::new(network.clone(), &mut tensors);
    let mut random = Random(11);
    let images: Vec<u8> = (0..N_IMAGES * size * size * 3).map(|_| (256.0 * random.next()) as u8).collect();
    let mut features = Vec::new();
    for (branch, exported) in [(Branch::Dense, ExportBranch::Dense), (Branch::Pruned, ExportBranch::Pruned)] {
        let (model, stem) = (spec.model.to_string(), String::new());
        let options = ExportOptions { branch: exported, head: head.clone(), model, stem, image_size: size, epoch: 0 };
        let file = export_onnx(&tensors, &network, &options).expect("exports");
        for images in [&images[..], &images[..size * size * 3]] {
            let what = format!("{branch:?}, {} bytes", images.len());
            let theirs = theirs(file.clone(), images, size, &["features", output]);
            assert_close(&ours.run(branch, network.feature, images), &theirs[0], &what);
            assert_close(&ours.run(branch, network.output, images), &theirs[1], &format!("{what}, head"));
        }
        features.push(ours.run(branch, network.feature, &images));
    }
    assert_ne!(features[0], features[1], "the branches differ");
}

#[test]
fn small_stem_models_agree() {
    check("resnet18", true, 8, 32, true);
}

#[test]
fn imagenet_stem_models_agree() {
    // 45 pixels: halved to 23, 12, 6, 3, 2, with other borders than an even size has.
    check("resnet18", false, 8, 45, true);
}

#[test]
fn bottlenecks_agree() {
    check("resnet50", false, 4, 64, true);
}

#[test]
fn shared_batch_norms_agree() {
    check("resnet10", true, 8, 16, false);
}

#[test]
fn shortcut_a_agrees() {
    check("resnet32s", true, 16, 32, true);
    // An odd side: the last row and column are among every second.
    check("resnet32s", true, 4, 21, true);
}

#[test]
fn concatenated_branches_agree() {
    check("resnet32s-bbn", true, 4, 16, true);
    check("resnet32s-ride", true, 4, 16, true);
}
