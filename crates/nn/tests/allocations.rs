//! Once planned, forward, backward and update of a backbone allocate nothing at all, at any batch size.
//!
//! Linear layers and NT-Xent are left out: the GEMM library that they call allocates its packing buffers.

use sdclr_engine::{CpuOptions, Engine, Rows, f32_engine};
use sdclr_nn::*;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const SIZE: usize = 16;

#[test]
fn a_steady_backbone_step_allocates_nothing() {
    let head = Head::None;
    let models = [("resnet18", true), ("resnet50", false), ("resnet32s-bbn", true), ("resnet32s-ride", true)];
    for (model_name, small_stem) in models {
        let model = model_name.into();
        let spec = NetworkSpec { model, image_size: SIZE, small_stem, base_width: 16, dual_bn: true, head };
        let e: &mut dyn Engine = &mut *f32_engine(CpuOptions::threads(2)).unwrap();
        let mut model = Model::new(e, spec.build().unwrap()).unwrap();
        model.init(e, 1);
        model.update_mask(e, 0.5, 0.0, 1, 0).unwrap();
        let settings = OptimizerKind::Sgd { momentum: 0.9, weight_decay: 1e-4 };
        let mut optimizer = Optimizer::new(e, &model, settings).unwrap();
        let mut pool = GradPool::default();
        let spec = PassSpec { max_batch: 8, branch: Branch::Pruned, mode: Mode::Train, until: model.network.output };
        let pass = Pass::new(e, &model, spec, &mut pool).unwrap();
        let images = e.alloc_bytes(8 * SIZE * SIZE * 3).unwrap();
        let mut step = |e: &mut dyn Engine, n: usize| {
            pass.load(e, &model, n, images, Rows::ALL);
            pass.forward(e, &model, Batch::local(n), &Single).unwrap();
            model.zero_grads(e);
            pass.backward(e, &model, Batch::local(n), &Single).unwrap();
            optimizer.step(e, &model, 0.01);
        };
        for n in [8, 8, 5] {
            step(e, n);
        }
        let region = Region::new(ALLOCATOR);
        for n in [8, 5, 3, 8] {
            step(e, n);
        }
        assert_eq!(region.change().allocations, 0, "{model_name}: {:?}", region.change());
    }
}
