//! The stages between stem and head: one path, or the parallel paths of ResNet-32s's variants.
//!
//! Source: BBN (Zhou et al. 2020) and RIDE (Wang et al. 2021) as the published SDCLR code builds their backbones, whose module
//! names these are. That code normalises RIDE's input by CIFAR-100's statistics or not at all; here all models share one.

use super::{Block, Plan, residual_block};
use crate::graph::{Builder, ValueId};

/// What the last blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Like the others.
    Single,
    /// BBN: the last block twice, side by side, `cb_block` and `rb_block`.
    TwoBlocks,
    /// RIDE: every stage but the first four times, side by side, three quarters as wide: `layer2s.E`, `layer3s.E`.
    Experts,
}

const N_EXPERTS: usize = 4;

/// All stages on `x`, and the pooled feature.
pub(super) fn stages(b: &mut Builder, x: ValueId, plan: &Plan, base_width: usize) -> ValueId {
    match plan.ending {
        Ending::Single => {
            let x = trunk(b, x, &plan.blocks, plan.block, base_width);
            b.avg_pool(x)
        }
        Ending::TwoBlocks => two_blocks(b, x, plan, base_width),
        Ending::Experts => experts(b, x, plan, base_width),
    }
}

/// A run of blocks of one width; `index` counts from 0.
#[derive(Clone, Copy)]
struct Stage {
    index: usize,
    n_blocks: usize,
    width: usize,
    block: Block,
}

impl Stage {
    /// All stages but the first begin by halving the map.
    fn stride(self, block: usize) -> usize {
        if self.index > 0 && block == 0 { 2 } else { 1 }
    }
}

fn one_stage(b: &mut Builder, name: &str, mut x: ValueId, stage: Stage) -> ValueId {
    b.set_layer(Some(stage.index + 1));
    for i in 0..stage.n_blocks {
        x = residual_block(b, &format!("{name}.{i}"), x, stage.width, stage.stride(i), stage.block);
    }
    x
}

fn trunk(b: &mut Builder, mut x: ValueId, blocks: &[usize], block: Block, base_width: usize) -> ValueId {
    for (index, &n_blocks) in blocks.iter().enumerate() {
        let stage = Stage { index, n_blocks, width: base_width << index, block };
        x = one_stage(b, &format!("layer{}", index + 1), x, stage);
    }
    x
}

fn two_blocks(b: &mut Builder, x: ValueId, plan: &Plan, base_width: usize) -> ValueId {
    let index = plan.blocks.len() - 1;
    let mut blocks = plan.blocks.clone();
    blocks[index] -= 1;
    let stage = Stage { index, n_blocks: blocks[index], width: base_width << index, block: plan.block };
    let x = trunk(b, x, &blocks, plan.block, base_width);
    let both = ["cb_block", "rb_block"].map(|name| {
        let y = residual_block(b, name, x, stage.width, stage.stride(stage.n_blocks), stage.block);
        b.avg_pool(y)
    });
    b.concat(&both)
}

fn experts(b: &mut Builder, x: ValueId, plan: &Plan, base_width: usize) -> ValueId {
    let shared = trunk(b, x, &plan.blocks[..1], plan.block, base_width);
    let experts: Vec<ValueId> = (0..N_EXPERTS)
        .map(|expert| {
            let mut x = shared;
            for (index, &n_blocks) in plan.blocks.iter().enumerate().skip(1) {
                let stage = Stage { index, n_blocks, width: (base_width << index) * 3 / 4, block: plan.block };
                x = one_stage(b, &format!("layer{}s.{expert}", index + 1), x, stage);
            }
            b.avg_pool(x)
        })
        .collect();
    b.concat(&experts)
}

#[cfg(test)]
mod tests {
    use crate::resnet::{Head, NetworkSpec};
    use sdclr_engine::Dims;
    use std::collections::BTreeSet;

    fn spec(model: &str, head: Head) -> NetworkSpec {
        NetworkSpec { model: model.into(), image_size: 32, small_stem: true, base_width: 16, dual_bn: false, head }
    }

    /// Convolutions and batch norms of a stage of basic blocks with parameter-free shortcuts.
    fn stage(n_blocks: usize, cin: usize, width: usize) -> usize {
        let norms = 2 * 2 * width;
        9 * cin * width + 9 * width * width + norms + (n_blocks - 1) * (2 * 9 * width * width + norms)
    }

    #[test]
    fn parameter_counts_and_feature_sizes_are_those_counted_by_hand() {
        let shared = 9 * 3 * 16 + 2 * 16 + stage(5, 16, 16);
        let plain = shared + stage(5, 16, 32) + stage(5, 32, 64);
        // The known 0.46 M of ResNet-32 for CIFAR, less the classifier; one block more; four experts.
        assert_eq!(plain, 463_504);
        let bbn = plain + 2 * 9 * 64 * 64 + 4 * 64;
        let ride = shared + 4 * (stage(5, 16, 24) + stage(5, 24, 48));
        for (model, n_params, width) in
            [("resnet32s", plain, 64), ("resnet32s-bbn", bbn, 128), ("resnet32s-ride", ride, 192)]
        {
            let network = spec(model, Head::None).build().unwrap();
            assert_eq!(network.n_params(), n_params, "{model}");
            assert_eq!(network.dims(network.feature), Dims { h: 1, w: 1, c: width }, "{model}");
            assert_eq!(network.n_layers(), 3, "{model}");
            // The head's layers are as wide as the features.
            let network = spec(model, Head::Projection { layers: 3, dim: 128 }).build().unwrap();
            assert_eq!(network.param("fc.fc2.weight").unwrap().shape, [width, width], "{model}");
        }
    }

    #[test]
    fn every_convolution_can_be_pruned_and_has_a_published_name() {
        for (model, n_convs, names) in [
            ("resnet32s-bbn", 33, &["layer3.3.conv2.weight", "cb_block.conv1.weight", "rb_block.conv2.weight"][..]),
            ("resnet32s-ride", 1 + 10 + 4 * 20, &["layer2s.0.0.conv1.weight", "layer3s.3.4.conv2.weight"]),
        ] {
            let network = spec(model, Head::None).build().unwrap();
            let found: BTreeSet<&str> = network.prunable().map(|p| p.name.as_str()).collect();
            assert_eq!(found.len(), n_convs, "{model}");
            assert!(names.iter().all(|name| found.contains(name)), "{model}: {found:?}");
        }
    }

    #[test]
    fn parameters_know_their_layer() {
        for (model, name, layer) in [
            ("resnet18", "bn1.weight", Some(0)),
            ("resnet18", "layer4.1.bn2.bias", Some(4)),
            ("resnet32s-bbn", "rb_block.conv2.weight", Some(3)),
            ("resnet32s-ride", "layer2s.3.0.conv1.weight", Some(2)),
            ("resnet32s-ride", "fc.weight", None),
        ] {
            let network = spec(model, Head::Classifier { n_classes: 2 }).build().unwrap();
            assert_eq!(network.param(name).unwrap().layer, layer, "{model}, {name}");
        }
    }
}
