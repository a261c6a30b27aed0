//! The focal weighting of NT-Xent: closed forms, limits, and its gradient by finite differences.
//!
//! Ten training steps against PyTorch are in `crates/sdclr/tests/parity`.

use sdclr_engine::{Act, CpuOptions, Dims, Engine, Oracle, Role, Rows, f32_engine};
use sdclr_nn::loss::View;
use sdclr_nn::{ContrastiveLoss, Single, rng};
use std::slice::from_ref;

type MakeEngine = fn() -> Box<dyn Engine>;

const ENGINES: [(&str, MakeEngine); 2] =
    [("oracle", || Box::new(Oracle::new())), ("cpu", || f32_engine(CpuOptions::threads(2)).unwrap())];

/// Loss, each image's loss, and the gradient of the embeddings `[2n, dim]`, whose rows are interleaved views.
fn evaluate(make: MakeEngine, z: &[f32], dim: usize, temperature: f32, gamma: f32) -> (f32, Vec<f32>, Vec<f32>) {
    let (engine, n) = (&mut *make(), z.len() / dim / 2);
    let flat = Dims { h: 1, w: 1, c: dim };
    let act = |engine: &mut dyn Engine| -> Act { engine.alloc_act(2 * n, flat, Role::Vector).unwrap() };
    let (embedding, grad) = (act(engine), act(engine));
    engine.write_act(2 * n, embedding, z);
    let mut loss = ContrastiveLoss::new(engine, n + 1, n + 1, dim).unwrap();
    loss.focal_gamma = gamma;
    let view = View { embedding, grad, n: 2 * n, rows: Rows::ALL };
    let images = 0..n;
    let mean = loss.forward_backward(engine, &[view], from_ref(&images), temperature, &Single).unwrap();
    let (mut of_images, mut dz) = (Vec::new(), vec![0.0; z.len()]);
    loss.image_losses(engine, from_ref(&images), &Single, &mut of_images).unwrap();
    engine.read_act(2 * n, grad, &mut dz).unwrap();
    (mean, of_images, dz)
}

fn embeddings(n: usize, dim: usize) -> Vec<f32> {
    let mut rng = rng::stream(3, "focal", 0);
    (0..2 * n * dim).map(|_| rng::normal(&mut rng) as f32).collect()
}

/// The mean of (1 − p)^γ · (−ln p), term by term in f64.
fn by_definition(z: &[f32], dim: usize, temperature: f64, gamma: f64) -> f64 {
    let rows: Vec<Vec<f64>> = z
        .chunks(dim)
        .map(|row| {
            let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            row.iter().map(|v| f64::from(*v) / norm).collect()
        })
        .collect();
    let e = |a: usize, b: usize| (rows[a].iter().zip(&rows[b]).map(|(x, y)| x * y).sum::<f64>() / temperature).exp();
    let of_anchor = |i: usize| {
        let p = e(i, i ^ 1) / (0..rows.len()).filter(|&j| j != i).map(|j| e(i, j)).sum::<f64>();
        (1.0 - p).powf(gamma) * -p.ln()
    };
    (0..rows.len()).map(of_anchor).sum::<f64>() / rows.len() as f64
}

#[test]
fn the_focal_loss_is_its_definition() {
    let (n, dim) = (5, 6);
    let z = embeddings(n, dim);
    for (name, make) in ENGINES {
        for gamma in [0.0, 0.5, 1.0, 2.0, 5.0] {
            let (loss, of_images, _) = evaluate(make, &z, dim, 0.5, gamma);
            let expected = by_definition(&z, dim, 0.5, f64::from(gamma));
            assert!((f64::from(loss) - expected).abs() < 1e-5 * expected, "{name}, γ {gamma}: {loss}, not {expected}");
            let mean = of_images.iter().sum::<f32>() / n as f32;
            assert!((mean - loss).abs() < 1e-5 * loss, "{name}, γ {gamma}: the images' losses are its parts");
        }
    }
}

#[test]
fn identical_embeddings_give_the_closed_form() {
    // Each of the 2n − 1 others has the same probability.
    let (n, dim) = (4, 8);
    let row = &embeddings(1, dim)[..dim];
    let z = row.repeat(2 * n);
    let p = 1.0 / (2.0 * n as f64 - 1.0);
    for (name, make) in ENGINES {
        for gamma in [0.0, 1.0, 3.0] {
            let (loss, ..) = evaluate(make, &z, dim, 0.2, gamma);
            let expected = (1.0 - p).powf(f64::from(gamma)) * -p.ln();
            assert!((f64::from(loss) - expected).abs() < 1e-6, "{name}, γ {gamma}: {loss}, not {expected}");
        }
    }
}

#[test]
fn the_weight_is_differentiated_too() {
    let (n, dim, temperature) = (3, 4, 0.5);
    let z = embeddings(n, dim);
    for (name, make) in ENGINES {
        for gamma in [0.5, 1.0, 2.0] {
            let (_, _, dz) = evaluate(make, &z, dim, temperature as f32, gamma);
            for at in 0..z.len() {
                let moved = |by: f32| {
                    let mut z = z.clone();
                    z[at] += by;
                    by_definition(&z, dim, temperature, f64::from(gamma))
                };
                // The quotient's own error is of the order of its square; less would lose it in the embeddings' rounding.
                let step = 1.0 / 512.0;
                let expected = (moved(step) - moved(-step)) / f64::from(2.0 * step);
                let error = (f64::from(dz[at]) - expected).abs();
                assert!(error < 2e-4, "{name}, γ {gamma}, entry {at}: {} instead of {expected}", dz[at]);
            }
        }
    }
}

#[test]
fn what_nothing_contradicts_has_no_loss_and_no_gradient() {
    // A single image has no negatives: p is 1, where γ below 1 has an infinite slope.
    let z = embeddings(1, 4);
    for (name, make) in ENGINES {
        for gamma in [0.0, 0.5, 2.0] {
            let (loss, of_images, dz) = evaluate(make, &z, 4, 0.2, gamma);
            assert!(
                loss == 0.0 && of_images == [0.0] && dz.iter().all(|&v| v.abs() < 1e-6),
                "{name}, γ {gamma}: {dz:?}"
            );
        }
    }
}

#[test]
fn numbers_that_are_none_stay_visible() {
    let mut z = embeddings(3, 4);
    z[5] = f32::NAN;
    for (name, make) in ENGINES {
        for gamma in [0.0, 2.0] {
            assert!(evaluate(make, &z, 4, 0.2, gamma).0.is_nan(), "{name}, γ {gamma}");
        }
    }
}
