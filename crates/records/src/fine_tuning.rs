//! The settings of probes that train the backbone too: fine-tuning, and the supervised reference from scratch.
//!
//! The SDCLR paper's scripts fix which layers stay as they are, and nothing else; the rest of these recipes is ours, of values
//! that are usual in the field. CIFAR-size, batch 128, weight decay 5e-4: from scratch 200 epochs at 0.05, ×0.1 after 120
//! and 160 (0.1 is as usual, but without a warm-up ResNet-32s does not get over its first steps on a thousand images); from
//! trained weights 100 epochs at 0.02, ×0.1 after 60 and 80. ImageNet-size, batch 256, weight decay 1e-4: 90
//! epochs at 0.1, ×0.1 after 30 and 60 (He et al. 2016); from trained weights 30 epochs at 0.02, ×0.1 after 18 and 24.

use crate::names::{Freeze, FrozenBn, Protocol};
use crate::probe::ProbeConfig;
use serde::{Deserialize, Serialize};

/// Which layers stay as they are while the rest trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FineTuning {
    /// The stem and the layers up to this one are fixed.
    pub freeze: Freeze,
    /// The mode of their batch norms in training.
    pub frozen_bn: FrozenBn,
}

impl Default for FineTuning {
    fn default() -> Self {
        Self { freeze: Freeze::None, frozen_bn: FrozenBn::Eval }
    }
}

/// Turns the defaults of a linear probe into those of a probe that trains the backbone too.
pub(crate) fn set_recipe(probe: &mut ProbeConfig, small: bool) {
    let from_scratch = probe.protocol == Protocol::Supervised;
    (probe.epochs, probe.milestones) = match (small, from_scratch) {
        (true, true) => (200, vec![120, 160]),
        (true, false) => (100, vec![60, 80]),
        (false, true) => (90, vec![30, 60]),
        (false, false) => (30, vec![18, 24]),
    };
    probe.lr = match (small, from_scratch) {
        (true, true) => 0.05,
        (false, true) => 0.1,
        (_, false) => 0.02,
    };
    (probe.batch_size, probe.weight_decay) = if small { (128, 5e-4) } else { (256, 1e-4) };
    probe.fine_tuning = Some(FineTuning::default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_are_those_documented_and_can_run() {
        for (protocol, image_size, epochs, lr, milestones) in [
            (Protocol::Finetune, 32, 100, 0.02, [60, 80]),
            (Protocol::Supervised, 32, 200, 0.05, [120, 160]),
            (Protocol::Finetune, 224, 30, 0.02, [18, 24]),
            (Protocol::Supervised, 224, 90, 0.1, [30, 60]),
        ] {
            let probe = ProbeConfig::new(protocol, image_size, 1);
            assert_eq!((probe.epochs, probe.lr, &probe.milestones[..]), (epochs, lr, &milestones[..]), "{protocol}");
            probe.validate().expect("defaults are good");
            assert!(!probe.augment_train.is_deterministic(), "{protocol}");
        }
    }

    #[test]
    fn settings_say_what_was_fixed_and_those_of_other_probes_do_not() {
        let mut probe = ProbeConfig::new(Protocol::Finetune, 32, 1);
        probe.fine_tuning = Some(FineTuning { freeze: Freeze::Layer2, frozen_bn: FrozenBn::Train });
        let expected = serde_json::json!({ "freeze": "layer2", "frozen_bn": "train" });
        assert_eq!(probe.settings()["fine_tuning"], expected);
        assert!(!ProbeConfig::new(Protocol::LinearPaper, 32, 1).settings().contains_key("fine_tuning"));
    }

    #[test]
    fn the_last_fixed_layer_is_the_named_one() {
        let layers: Vec<_> = Freeze::ALL.iter().map(|freeze| freeze.last_layer()).collect();
        assert_eq!(layers, [None, Some(1), Some(2), Some(3), Some(4)]);
    }

    #[test]
    fn a_batch_of_one_image_is_refused_where_batch_norms_train() {
        let mut probe = ProbeConfig::new(Protocol::Supervised, 32, 1);
        probe.batch_size = 1;
        assert_eq!(probe.validate().expect_err("bad").to_string(), "--batch-size = 1: must be at least 2");
    }
}
