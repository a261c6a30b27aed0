//! The supported networks: torchvision-shaped ResNets and the CIFAR family ResNet-32s, with their heads.
//!
//! Source: He et al. 2016 as torchvision builds it (stride on the 3×3 of a bottleneck), and the published SDCLR code for
//! the small-image stem, the projection heads and ResNet-32s.

mod branches;

use crate::NnError;
use crate::graph::{Builder, Network, ValueId};
use crate::init::Fan;
use branches::Ending;
use sdclr_engine::{Dims, Role};

/// What follows the backbone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Nothing: the output is the feature.
    None,
    /// fc-BN-ReLU(-fc-BN-ReLU)-fc-BN; the first layer has a bias.
    Projection {
        /// Two or three layers.
        layers: usize,
        /// Embedding size.
        dim: usize,
    },
    /// One linear layer with bias.
    Classifier {
        /// Classes.
        n_classes: usize,
    },
}

/// Everything that decides a network's nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSpec {
    /// One of [`MODELS`].
    pub model: String,
    /// Height and width of the input in pixels.
    pub image_size: usize,
    /// 3×3 stride-1 stem without max-pool instead of 7×7 stride-2 with it. ResNet-32s has its own 3×3 stem.
    pub small_stem: bool,
    /// Channels of the first stage: 64 for ResNets, 16 for ResNet-32s.
    pub base_width: usize,
    /// Batch norm per branch.
    pub dual_bn: bool,
    /// What follows the backbone.
    pub head: Head,
}

/// The models that [`NetworkSpec::build`] knows.
pub const MODELS: [&str; 10] = [
    "resnet10",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide-resnet50-2",
    "resnet32s",
    "resnet32s-bbn",
    "resnet32s-ride",
];

/// Blocks per stage, their kind, and what the last ones are.
struct Plan {
    blocks: Vec<usize>,
    block: Block,
    ending: Ending,
}

#[derive(Clone, Copy)]
enum Block {
    Basic,
    Bottleneck {
        widen: usize,
    },
    /// Basic block with the parameter-free shortcut A.
    BasicA,
}

fn plan(model: &str) -> Option<Plan> {
    let bottleneck = Block::Bottleneck { widen: 1 };
    let (blocks, block) = match model {
        "resnet10" => (vec![1, 1, 1, 1], Block::Basic),
        "resnet18" => (vec![2, 2, 2, 2], Block::Basic),
        "resnet34" => (vec![3, 4, 6, 3], Block::Basic),
        "resnet50" => (vec![3, 4, 6, 3], bottleneck),
        "resnet101" => (vec![3, 4, 23, 3], bottleneck),
        "resnet152" => (vec![3, 8, 36, 3], bottleneck),
        "wide-resnet50-2" => (vec![3, 4, 6, 3], Block::Bottleneck { widen: 2 }),
        "resnet32s" | "resnet32s-bbn" | "resnet32s-ride" => (vec![5, 5, 5], Block::BasicA),
        _ => return None,
    };
    let ending = match model {
        "resnet32s-bbn" => Ending::TwoBlocks,
        "resnet32s-ride" => Ending::Experts,
        _ => Ending::Single,
    };
    Some(Plan { blocks, block, ending })
}

impl NetworkSpec {
    /// The standard width of a model's first stage.
    #[must_use]
    pub fn standard_width(model: &str) -> usize {
        if model.starts_with("resnet32s") { 16 } else { 64 }
    }

    /// Builds the network.
    ///
    /// # Errors
    /// [`NnError::Network`] for an unknown model or a head that does not exist.
    pub fn build(&self) -> Result<Network, NnError> {
        let plan = plan(&self.model).ok_or_else(|| {
            NnError::Network(format!("model `{}` is not known; known are {}", self.model, MODELS.join(", ")))
        })?;
        self.build_plan(&plan)
    }

    /// Builds a network of the same kind with other numbers of blocks per stage, at least one each (for tests and experiments).
    ///
    /// # Errors
    /// As [`NetworkSpec::build`].
    pub fn build_with_blocks(&self, blocks: &[usize]) -> Result<Network, NnError> {
        let plan = plan(&self.model).ok_or_else(|| NnError::Network(format!("model `{}` is not known", self.model)))?;
        self.build_plan(&Plan { blocks: blocks.to_vec(), ..plan })
    }

    fn build_plan(&self, plan: &Plan) -> Result<Network, NnError> {
        let block = plan.block;
        if self.image_size == 0 || self.base_width == 0 {
            return Err(NnError::Network("image size and base width must be positive".into()));
        }
        let dims = Dims { h: self.image_size, w: self.image_size, c: 3 };
        let mut b = Builder::new(self.describe(), dims, Role::Map, self.dual_bn);
        if matches!(block, Block::BasicA) {
            b.set_fan(Fan::In);
        }
        let small = self.small_stem || matches!(block, Block::BasicA);
        b.set_layer(Some(0));
        let x = b.input();
        let (kernel, stride) = if small { (3, 1) } else { (7, 2) };
        let x = b.conv("conv1", x, self.base_width, kernel, stride);
        let mut x = b.norm("bn1", x, None, true);
        if !small {
            x = b.max_pool(x);
        }
        let feature = branches::stages(&mut b, x, plan, self.base_width);
        b.set_layer(None);
        let output = head(&mut b, feature, self.head)?;
        Ok(b.finish(feature, output))
    }

    /// One line that names everything that decides the tensors.
    #[must_use]
    pub fn describe(&self) -> String {
        let stem = if self.small_stem { "small stem" } else { "ImageNet stem" };
        let norm = if self.dual_bn { "dual batch norm" } else { "single batch norm" };
        let head = match self.head {
            Head::None => "no head".into(),
            Head::Projection { layers, dim } => format!("{layers}-layer head of {dim}"),
            Head::Classifier { n_classes } => format!("classifier of {n_classes}"),
        };
        format!("{}, width {}, {stem}, {norm}, {head}", self.model, self.base_width)
    }
}

fn residual_block(b: &mut Builder, name: &str, x: ValueId, width: usize, stride: usize, block: Block) -> ValueId {
    let cin = b.dims(x).c;
    let (mut y, last, cout) = match block {
        Block::Basic | Block::BasicA => {
            let y = b.conv(&format!("{name}.conv1"), x, width, 3, stride);
            let y = b.norm(&format!("{name}.bn1"), y, None, true);
            (b.conv(&format!("{name}.conv2"), y, width, 3, 1), "bn2", width)
        }
        Block::Bottleneck { widen } => {
            let y = b.conv(&format!("{name}.conv1"), x, width * widen, 1, 1);
            let y = b.norm(&format!("{name}.bn1"), y, None, true);
            let y = b.conv(&format!("{name}.conv2"), y, width * widen, 3, stride);
            let y = b.norm(&format!("{name}.bn2"), y, None, true);
            (b.conv(&format!("{name}.conv3"), y, 4 * width, 1, 1), "bn3", 4 * width)
        }
    };
    let shortcut = if stride == 1 && cin == cout {
        x
    } else if matches!(block, Block::BasicA) {
        b.shortcut(x, cout)
    } else {
        let s = b.conv(&format!("{name}.downsample.conv"), x, cout, 1, stride);
        b.norm(&format!("{name}.downsample.bn"), s, None, false)
    };
    y = b.norm(&format!("{name}.{last}"), y, Some(shortcut), true);
    y
}

fn head(b: &mut Builder, feature: ValueId, head: Head) -> Result<ValueId, NnError> {
    match head {
        Head::None => Ok(feature),
        Head::Classifier { n_classes } => Ok(b.linear("fc", feature, n_classes, true)),
        Head::Projection { layers, dim } => {
            if !(2..=3).contains(&layers) {
                return Err(NnError::Network(format!("a projection head has 2 or 3 layers, not {layers}")));
            }
            let width = b.dims(feature).len();
            let mut x = feature;
            for layer in 1..=layers {
                let out = if layer == layers { dim } else { width };
                x = b.linear(&format!("fc.fc{layer}"), x, out, layer == 1);
                x = b.norm(&format!("fc.bn{layer}"), x, None, layer < layers);
            }
            Ok(x)
        }
    }
}

/// A lone linear classifier on features of size `n_features` (the cached linear probe).
#[must_use]
pub fn linear_classifier(n_features: usize, n_classes: usize) -> Network {
    let dims = Dims { h: 1, w: 1, c: n_features };
    let mut b = Builder::new(format!("linear {n_features} to {n_classes}"), dims, Role::Vector, false);
    let x = b.input();
    let y = b.linear("fc", x, n_classes, true);
    b.finish(x, y)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(model: &str, image_size: usize, small_stem: bool) -> NetworkSpec {
        let base_width = NetworkSpec::standard_width(model);
        NetworkSpec { model: model.into(), image_size, small_stem, base_width, dual_bn: false, head: Head::None }
    }

    #[test]
    fn parameter_counts_are_those_of_torchvision() {
        // torchvision's counts without the 1000-way classifier.
        let counts = [
            ("resnet18", 11_176_512),
            ("resnet34", 21_284_672),
            ("resnet50", 23_508_032),
            ("resnet101", 42_500_160),
            ("resnet152", 58_143_808),
            ("wide-resnet50-2", 66_834_240),
        ];
        for (model, expected) in counts {
            assert_eq!(spec(model, 224, false).build().unwrap().n_params(), expected, "{model}");
        }
    }

    #[test]
    fn prunable_weights_are_those_of_the_paper() {
        let net = spec("resnet18", 32, true).build().unwrap();
        assert_eq!(net.prunable().map(|p| p.len).sum::<usize>(), 11_159_232);
        assert_eq!(net.multiply_adds(), 555_417_600);
    }

    /// What is kept of weights as they are drawn, when 90 % are pruned: docs/decisions/0010-kept-weights.md says so.
    #[test]
    fn wide_layers_keep_the_fewest_weights() {
        let small = [("layer1.1.conv2", 0.49), ("layer3.1.conv2", 0.17), ("layer4.1.conv2", 0.052)];
        let large =
            [("layer1.1.conv1", 0.71), ("layer3.1.conv2", 0.024), ("layer4.1.conv2", 0.001), ("layer4.1.conv3", 0.033)];
        for (net, cases) in [(spec("resnet18", 32, true), &small[..]), (spec("resnet50", 224, false), &large[..])] {
            let net = net.build().unwrap();
            let params = crate::init::parameters(&net, 1);
            let weights: Vec<f32> = net.prunable().flat_map(|p| &params[p.range()]).copied().collect();
            let mut mask = vec![0; weights.len()];
            crate::mask::magnitude(&weights, 0.9, &mut mask);
            let (mut rest, mut n_seen) = (&mask[..], 0);
            for p in net.prunable() {
                let (kept, after) = rest.split_at(p.len);
                rest = after;
                let share = kept.iter().map(|&keep| f64::from(keep)).sum::<f64>() / p.len as f64;
                for (_, expected) in cases.iter().filter(|(name, _)| p.name == format!("{name}.weight")) {
                    assert!((share - expected).abs() < 0.05 * expected + 0.0005, "{}: {share}, not {expected}", p.name);
                    n_seen += 1;
                }
            }
            assert_eq!(n_seen, cases.len());
        }
    }

    #[test]
    fn feature_sizes_follow_the_family() {
        for (model, size, small, expected) in
            [("resnet32s", 32, true, 64), ("resnet10", 32, true, 512), ("resnet50", 64, false, 2048)]
        {
            let net = spec(model, size, small).build().unwrap();
            assert_eq!(net.dims(net.feature), Dims { h: 1, w: 1, c: expected }, "{model}");
        }
    }

    #[test]
    fn unknown_model_is_named_with_the_known_ones() {
        let error = spec("resnet19", 32, true).build().unwrap_err().to_string();
        assert!(error.contains("resnet19") && error.contains("resnet18"), "{error}");
    }
}
