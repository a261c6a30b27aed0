//! Several ranks train as one process does: SyncBN, gathered negatives, summed gradients.

use sdclr::boost::Boost;
use sdclr::learner::shares;
use sdclr::{Learner, LearnerSpec};
use sdclr_engine::{CpuOptions, Engine, Oracle, f32_engine};
use sdclr_nn::{Collective, Head, Network, NetworkSpec, OptimizerKind, Single, ThreadRank, rng};
use sdclr_records::names::Method;
use sdclr_records::options::BoostConfig;

const SIZE: usize = 8;
/// Small, because noise images through batch norm over a few pixels make training chaotic: at 0.02 the order of f32 sums
/// alone moves the tenth loss by percents.
const LR: f64 = 1e-3;

fn network(method: Method) -> Network {
    let dual_bn = method == Method::SdClr;
    let head = Head::Projection { layers: if dual_bn { 3 } else { 2 }, dim: 8 };
    let model = "resnet18".into();
    let spec = NetworkSpec { model, image_size: SIZE, small_stem: true, base_width: 4, dual_bn, head };
    spec.build_with_blocks(&[1, 1, 1]).unwrap()
}

fn views(step: u64, n: usize) -> Vec<u8> {
    let mut rng = rng::stream(5, "views", step);
    (0..2 * n * SIZE * SIZE * 3).map(|_| (rng::uniform(&mut rng) * 256.0) as u8).collect()
}

/// Losses of ten steps and the parameters and statistics after them, on the rank that `ranks` is.
fn train(
    method: Method,
    engine: Box<dyn Engine>,
    ranks: Box<dyn Collective>,
    batch: usize,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let optimizer = OptimizerKind::Sgd { momentum: 0.9, weight_decay: 1e-4 };
    let spec = LearnerSpec { method, max_batch: batch, temperature: 0.5, optimizer };
    let mut l = Learner::new(engine, ranks, network(method), &spec).unwrap();
    // Ranks begin with different weights and take rank 0's.
    l.model.init(&mut *l.engine, 1 + l.ranks.rank() as u64);
    l.ranks.broadcast(&mut *l.engine, l.model.params()).unwrap();
    let mut losses = Vec::new();
    for step in 0..10 {
        if method == Method::SdClr && step % 5 == 0 {
            l.update_mask(0.5, 0.1, 0, step).unwrap();
        }
        // The last batches are smaller, and not a multiple of the ranks.
        let n = if step < 6 { batch } else { batch - 3 };
        let own = shares(n, l.ranks.n_ranks()).nth(l.ranks.rank()).unwrap();
        let per_image = 2 * SIZE * SIZE * 3;
        let all = views(step, n);
        losses.push(l.step(&all[own.start * per_image..own.end * per_image], n, LR).unwrap());
    }
    let mut params = vec![0.0; l.model.params().len];
    l.engine.read_f32(l.model.params(), &mut params).unwrap();
    let mut running = vec![0.0; l.model.running().len];
    l.engine.read_f32(l.model.running(), &mut running).unwrap();
    (losses, params, running)
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    let largest = a.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max) / largest
}

/// Ten steps: another order of f32 sums is all that differs, and grows by less than a hundredfold.
#[test]
fn two_and_four_ranks_train_as_one_process() {
    let cpu = || -> Box<dyn Engine> { f32_engine(CpuOptions::threads(1)).unwrap() };
    for method in [Method::SimClr, Method::SdClr] {
        let one = train(method, cpu(), Box::new(Single), 12);
        for n_ranks in [2, 4] {
            let results: Vec<_> = std::thread::scope(|scope| {
                let ranks: Vec<_> = ThreadRank::group(n_ranks)
                    .into_iter()
                    .map(|rank| scope.spawn(move || train(method, cpu(), Box::new(rank), 12)))
                    .collect();
                ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
            });
            for many in &results {
                assert_eq!(many, &results[0], "all ranks end with the same bits");
            }
            let many = &results[0];
            assert!(difference(&one.0, &many.0) < 1e-5, "{method} losses: {:?} and {:?}", one.0, many.0);
            assert!(difference(&one.1, &many.1) < 1e-4, "{method} weights at {n_ranks} ranks");
            assert!(difference(&one.2, &many.2) < 1e-4, "{method} statistics at {n_ranks} ranks");
        }
    }
}

/// The focal loss and the memory of losses: every rank remembers the images of all.
#[test]
fn ranks_agree_on_weighted_losses_and_on_what_is_remembered() {
    let run = |ranks: Box<dyn Collective>| {
        let spec = LearnerSpec {
            method: Method::SdClr,
            max_batch: 12,
            temperature: 0.5,
            optimizer: OptimizerKind::Sgd { momentum: 0.9, weight_decay: 1e-4 },
        };
        let cpu = f32_engine(CpuOptions::threads(1)).unwrap();
        let mut l = Learner::new(cpu, ranks, network(Method::SdClr), &spec).unwrap().with_focal_gamma(2.0);
        l.model.init(&mut *l.engine, 1);
        l.update_mask(0.5, 0.0, 0, 0).unwrap();
        // More images than a half of an index counts.
        let config = BoostConfig { enabled: true, momentum: 0.5, ..BoostConfig::default() };
        let mut boost = Boost::new(&config, 70_000, 12, &mut l).unwrap();
        let planned = l.engine.bytes_held();
        let mut losses = Vec::new();
        for step in 0..4 {
            let n = if step < 3 { 12 } else { 9 };
            let own = shares(n, l.ranks.n_ranks()).nth(l.ranks.rank()).unwrap();
            let per_image = 2 * SIZE * SIZE * 3;
            let views = views(step, n);
            losses.push(l.step(&views[own.start * per_image..own.end * per_image], n, LR).unwrap());
            let images: Vec<u32> = own.map(|i| 65_530 + i as u32).collect();
            boost.record(&mut l, &images).unwrap();
            assert_eq!(l.engine.bytes_held(), planned, "a step allocates nothing in the engine");
        }
        boost.begin_epoch();
        let scores = boost.augmentation().memorization.to_vec();
        (losses, scores[65_530..65_542].to_vec(), scores)
    };
    let one = run(Box::new(Single));
    assert!(
        one.1.iter().any(|&score| score == 1.0 || score == 0.0),
        "one image lies farthest from the mean: {:?}",
        one.1
    );
    assert_eq!(
        one.2.iter().filter(|&&score| score != 0.0).count(),
        one.1.iter().filter(|&&score| score != 0.0).count()
    );
    for n_ranks in [2, 3] {
        let results: Vec<_> = std::thread::scope(|scope| {
            let ranks: Vec<_> =
                ThreadRank::group(n_ranks).into_iter().map(|rank| scope.spawn(|| run(Box::new(rank)))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        for many in &results {
            assert_eq!(many, &results[0], "all ranks remember the same bits");
        }
        assert!(difference(&one.0, &results[0].0) < 1e-5, "losses: {:?} and {:?}", one.0, results[0].0);
        assert!(difference(&one.1, &results[0].1) < 1e-4, "scores: {:?} and {:?}", one.1, results[0].1);
    }
}

#[test]
fn fast_engine_trains_as_the_oracle() {
    let cpu = f32_engine(CpuOptions::threads(3)).unwrap();
    let fast = train(Method::SdClr, cpu, Box::new(Single), 6);
    let slow = train(Method::SdClr, Box::new(Oracle::new()), Box::new(Single), 6);
    assert!(difference(&fast.0, &slow.0) < 1e-4, "{:?} and {:?}", fast.0, slow.0);
}
