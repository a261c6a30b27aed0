//! Reads a recorded fixture and rebuilds its network, parameters and images from their formulas.

use safetensors::SafeTensors;
use sdclr::{Learner, LearnerSpec};
use sdclr_engine::{Engine, Rows};
use sdclr_nn::mask::MaskStats;
use sdclr_nn::model::torch_shape;
use sdclr_nn::{Head, NetworkSpec, OptimizerKind, ParamKind, Single, Tensor};
use sdclr_records::names::Method;
use std::collections::BTreeMap;
use std::path::PathBuf;

pub struct Fixture {
    pub json: serde_json::Value,
    tensors: BTreeMap<String, Vec<f32>>,
}

/// The finaliser of splitmix64.
pub fn splitmix64(x: u64) -> u64 {
    let z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn fnv1a64(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

/// A parameter of the fixtures, in PyTorch's layout.
fn formula(name: &str, kind: ParamKind, shape: &[usize]) -> Tensor {
    let seed = fnv1a64(name);
    let fan_in: usize = shape[1..].iter().product();
    let value = |i: usize| {
        let u = (splitmix64(seed.wrapping_add(i as u64)) >> 40) as f64 / (1u64 << 24) as f64;
        match kind {
            ParamKind::Conv | ParamKind::Linear => ((2.0 * u - 1.0) * (6.0 / fan_in as f64).sqrt()) as f32,
            ParamKind::NormWeight => (0.75 + 0.5 * u) as f32,
            ParamKind::NormBias | ParamKind::LinearBias { .. } => ((2.0 * u - 1.0) * 0.1) as f32,
        }
    };
    Tensor { shape: shape.to_vec(), data: (0..shape.iter().product()).map(value).collect() }
}

/// Entries at flat indices ⌊j·n/256⌋, as the fixtures summarise large gradients.
pub fn sampled(values: &[f32]) -> Vec<f32> {
    let n = values.len();
    if n <= 256 { values.to_vec() } else { (0..256).map(|j| values[j * n / 256]).collect() }
}

pub fn max_abs(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m, v| m.max(v.abs()))
}

/// ‖got − expected‖ / ‖expected‖.
pub fn rel_l2(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(expected).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    difference / norm(&mut expected.iter().map(|&v| f64::from(v))).max(1e-12)
}

/// Number `i` of the tensor called `name`, in [0, 1).
pub fn unit(name: &str, i: usize) -> f64 {
    (splitmix64(fnv1a64(name).wrapping_add(i as u64)) >> 40) as f64 / (1u64 << 24) as f64
}

/// The first `len` bytes of the images called `name`.
pub fn bytes(name: &str, len: usize) -> Vec<u8> {
    let seed = fnv1a64(name);
    (0..len).map(|i| (splitmix64(seed.wrapping_add(i as u64)) >> 56) as u8).collect()
}

impl Fixture {
    /// A fixture without tensors.
    pub fn of(json: serde_json::Value) -> Self {
        Self { json, tensors: BTreeMap::new() }
    }

    pub fn load(name: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../nn/tests/fixtures");
        let json = std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
        let bytes = std::fs::read(folder.join(format!("{name}.safetensors"))).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let tensors = tensors.iter().map(|(name, view)| (name.to_owned(), floats(view.data()))).collect();
        Self { json: serde_json::from_str(&json).unwrap(), tensors }
    }

    pub fn tensor(&self, key: &str) -> Option<Vec<f32>> {
        self.tensors.get(key).cloned()
    }

    pub fn floats(&self, key: &str) -> Vec<f64> {
        self.json[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    }

    fn number(&self, key: &str) -> usize {
        usize::try_from(self.json["config"][key].as_u64().unwrap()).unwrap()
    }

    pub fn n_images(&self) -> usize {
        self.number("n_images")
    }

    fn method(&self) -> Method {
        self.json["config"]["method"].as_str().unwrap().parse().unwrap()
    }

    /// The images that the dense branch reads.
    pub fn dense_rows(&self) -> Rows {
        if self.method() == Method::SimClr { Rows::ALL } else { Rows { first: 0, step: 2 } }
    }

    /// Interleaved views `[2n, size, size, 3]`: those of the single step, or of the step that is appended.
    pub fn images(&self, step: &str) -> Vec<u8> {
        let name = format!("{}{step}", self.json["config"]["images"].as_str().unwrap());
        let size = self.number("image_size");
        bytes(&name, 2 * self.n_images() * size * size * 3)
    }

    /// A learner with the fixture's network, parameters and mask; plain SGD without momentum or decay.
    pub fn learner(&self, engine: Box<dyn Engine>) -> Learner {
        self.make(engine, OptimizerKind::Sgd { momentum: 0.0, weight_decay: 0.0 })
    }

    pub fn learner_with_optimizer(&self, engine: Box<dyn Engine>) -> Learner {
        let number = |key: &str| self.json[key].as_f64().unwrap() as f32;
        let (momentum, weight_decay) = (number("momentum"), number("weight_decay"));
        self.make(engine, OptimizerKind::Sgd { momentum, weight_decay })
    }

    pub fn update_mask(&self, l: &mut Learner) -> MaskStats {
        l.update_mask(self.json["config"]["prune_rate"].as_f64().unwrap(), 0.0, 0, 0).unwrap()
    }

    fn make(&self, engine: Box<dyn Engine>, optimizer: OptimizerKind) -> Learner {
        let config = &self.json["config"];
        let model = match config["block"].as_str().unwrap() {
            "basic" => "resnet18",
            "bottleneck" => "resnet50",
            "resnet_s_bbn" => "resnet32s-bbn",
            "resnet_s_ride" => "resnet32s-ride",
            _ => "resnet32s",
        };
        let head = Head::Projection { layers: self.number("head_layers"), dim: self.number("embedding_dim") };
        let network = NetworkSpec {
            model: model.into(),
            image_size: self.number("image_size"),
            small_stem: config["stem"] == "small",
            base_width: self.number("base_width"),
            dual_bn: config["dual_bn"].as_bool().unwrap(),
            head,
        };
        let blocks: Vec<usize> = config["blocks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| usize::try_from(v.as_u64().unwrap()).unwrap())
            .collect();
        let network = network.build_with_blocks(&blocks).unwrap();
        let params: BTreeMap<String, Tensor> =
            network.params.iter().map(|p| (p.name.clone(), formula(&p.name, p.kind, &torch_shape(p)))).collect();
        let temperature = config["temperature"].as_f64().unwrap() as f32;
        let spec = LearnerSpec { method: self.method(), max_batch: self.n_images() + 1, temperature, optimizer };
        let mut l = Learner::new(engine, Box::new(Single), network, &spec).unwrap();
        l.model.import(&mut *l.engine, l.model.params(), &params).unwrap();
        if self.method() == Method::SdClr {
            self.update_mask(&mut l);
        }
        l
    }
}
