//! A weight that is not a number shows in the loss at once, and the step says so instead of training on.

use sdclr::{Error, Learner, LearnerSpec};
use sdclr_engine::{CpuOptions, Engine, Oracle, f32_engine};
use sdclr_nn::{Head, NetworkSpec, OptimizerKind, Single};
use sdclr_records::names::Method;

#[test]
fn one_broken_weight_is_a_non_finite_loss_in_every_method_and_engine() {
    let engines: [fn() -> Box<dyn Engine>; 2] =
        [|| Box::new(Oracle::new()), || f32_engine(CpuOptions::threads(2)).unwrap()];
    for make in engines {
        for method in [Method::SimClr, Method::SdClr] {
            let head = Head::Projection { layers: 2, dim: 8 };
            let (model, dual_bn) = ("resnet18".into(), method == Method::SdClr);
            let spec = NetworkSpec { model, image_size: 16, small_stem: false, base_width: 4, dual_bn, head };
            let optimizer = OptimizerKind::Sgd { momentum: 0.9, weight_decay: 1e-4 };
            let learner = LearnerSpec { method, max_batch: 4, temperature: 0.5, optimizer };
            let network = spec.build_with_blocks(&[1]).unwrap();
            let mut l = Learner::new(make(), Box::new(Single), network, &learner).unwrap();
            l.model.init(&mut *l.engine, 1);
            let views: Vec<u8> = (0..8 * 16 * 16 * 3).map(|i| (i * 37 % 256) as u8).collect();
            l.step(&views, 4, 0.01).unwrap();
            l.engine.fill(l.model.params().slice(5..6), f32::NAN);
            let error = l.step(&views, 4, 0.01).unwrap_err();
            assert!(matches!(error, Error::NonFiniteLoss { step: 2, .. }), "{method}: {error}");
        }
    }
}
