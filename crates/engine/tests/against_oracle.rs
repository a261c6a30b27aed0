//! Every fast operation against the naive oracle, over random shapes, thread counts and instruction sets.

mod support;

use proptest::prelude::*;
use sdclr_engine::*;
use support::{Bench, Norm, cases, most};

/// All of an f32's.
const BITS: u32 = 24;

/// Runs `f` on the oracle and on every fast engine and compares all results.
///
/// Tolerance: f32 sums of up to a few thousand products of numbers below one round by about 1e-5 of the largest result.
fn check(what: &str, f: impl Fn(&mut Bench) -> Vec<Vec<f32>>) -> Result<(), TestCaseError> {
    check_at(&[1, 3], what, f)
}

fn check_at(threads: &[usize], what: &str, f: impl Fn(&mut Bench) -> Vec<Vec<f32>>) -> Result<(), TestCaseError> {
    let expected = f(&mut Bench::new(Box::new(Oracle::new()), BITS));
    for level in Level::available().filter(|&level| level <= Level::Avx512) {
        let each = |&n_threads: &usize| {
            [Algorithm::Direct, Algorithm::Winograd, Algorithm::Sparse].map(|algorithm| (n_threads, algorithm))
        };
        for (n_threads, algorithm) in threads.iter().flat_map(each) {
            let engine =
                f32_engine(CpuOptions { n_threads, kernels: Kernels { level: Some(level), algorithm } }).unwrap();
            let got = f(&mut Bench::new(engine, BITS));
            for (k, (got, expected)) in got.iter().zip(&expected).enumerate() {
                let largest = expected.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
                for (i, (g, e)) in got.iter().zip(expected).enumerate() {
                    prop_assert!(
                        (g - e).abs() <= 2e-5 * largest,
                        "{what}, result {k}[{i}]: {g} instead of {e} ({}, {n_threads} threads, {})",
                        level.name(),
                        algorithm.name()
                    );
                }
            }
        }
    }
    Ok(())
}

fn conv_shape() -> impl Strategy<Value = (ConvShape, usize)> {
    let kernel = prop_oneof![1 => Just(1usize), 2 => Just(3), 1 => Just(7)];
    (1..most(40, 10), 1..most(50, 20), kernel, 1usize..3, 1..most(20, 6), 1..most(20, 6), 1..most(5, 3)).prop_map(
        |(cin, cout, kernel, stride, h, w, n)| {
            (ConvShape { input: Dims { h, w, c: cin }, cout, kernel, stride, pad: kernel / 2 }, n)
        },
    )
}

fn check_conv(shape: ConvShape, n: usize) -> Result<(), TestCaseError> {
    check_conv_at(&[1, 3], shape, n)
}

fn check_conv_at(threads: &[usize], shape: ConvShape, n: usize) -> Result<(), TestCaseError> {
    check_at(threads, &format!("{shape:?}, n = {n}"), |b| {
        // The plan is for a larger batch than the one that runs.
        let max = n + 2;
        let conv = b.engine.alloc_conv(shape, max, ConvUse::Train, true).unwrap();
        let (w, mask) = (b.span(shape.n_weights()), b.mask(shape.n_weights()));
        let (x, dy) = (b.act(max, shape.input), b.act(max, shape.output()));
        let (y, dx) = (b.act(max, shape.output()), b.act(max, shape.input));
        let (sums, dw) = (b.span(2 * shape.cout), b.span(shape.n_weights()));
        let mut results = Vec::new();
        for mask in [None, Some(mask)] {
            b.engine.pack_conv(conv, Direction::Forward, w, mask);
            b.engine.conv_forward(n, conv, x, y, Some(sums));
            results.push(b.read(n, y, shape.output()));
            results.push(b.floats(sums));
            b.engine.pack_conv(conv, Direction::BackwardData, w, mask);
            for write in [Write::Set, Write::Add] {
                b.engine.conv_backward_data(n, conv, dy, dx, write);
                results.push(b.read(n, dx, shape.input));
            }
            b.engine.conv_backward_weight(n, conv, WeightGrad { x, dy, dw, mask });
            results.push(b.floats(dw));
        }
        results
    })
}

fn check_norm(dims: Dims, n: usize, norm: Norm) -> Result<(), TestCaseError> {
    check(&format!("{norm:?} of {dims:?}, n = {n}"), |b| {
        let Norm { relu, residual, .. } = norm;
        let c = dims.c;
        let (x, dy, y) = (b.act(n, dims), b.act(n, dims), b.act(n, dims));
        let (dx, r, dr) = (b.act(n, dims), b.act(n, dims), b.act(n, dims));
        let (gamma, beta, running, coef, sums) = (b.span(c), b.span(c), b.span(2 * c), b.span(4 * c), b.span(2 * c));
        let (dgamma, dbeta) = (b.span(c), b.span(c));
        let values = b.read(n, x, dims);
        let mut totals = vec![0.0f32; 2 * c];
        for (i, v) in values.iter().enumerate() {
            totals[i % c] += v;
            totals[c + i % c] += v * v;
        }
        b.engine.write_f32(sums, &totals);
        let count = n * dims.pixels();
        let train = NormTrain { sums, count, gamma, beta, running, eps: 1e-2, momentum: 0.1, coef };
        b.engine.norm_train(train);
        let mut results = vec![b.floats(running), b.floats(coef)];
        b.engine.norm_apply(n, NormApply { x, coef, residual: residual.then_some(r), relu, y });
        results.push(b.read(n, y, dims));
        let back = NormBackward { dy, gate: norm.gate(y), x, coef, sums };
        b.engine.norm_backward_sums(n, back);
        b.engine.norm_param_grad(sums, dgamma, dbeta);
        // Where terms cancel, their sum still rounds as they do: what it is compared to is about as large as its partial sums.
        let partial = vec![1.0 + count as f32 / 64.0];
        results.push([b.floats(sums), b.floats(dgamma), b.floats(dbeta), partial].concat());
        for (count, write) in [(Some(count), Write::Set), (None, Write::Add)] {
            b.engine.norm_backward_apply(n, back, count, Some(dx), residual.then_some((dr, write)));
            results.extend([b.read(n, dx, dims), b.read(n, dr, dims)]);
        }
        // In the place of what they are computed from.
        b.engine.norm_backward_apply(n, back, Some(count), Some(x), residual.then_some((dy, Write::Set)));
        results.extend([b.read(n, x, dims), b.read(n, dy, dims)]);
        b.engine.norm_apply(n, NormApply { x, coef, residual: residual.then_some(r), relu, y: x });
        results.push(b.read(n, x, dims));
        b.engine.write_f32(running, &vec![0.5; 2 * c]);
        b.engine.norm_eval(NormEval { gamma, beta, running, eps: 1e-5, coef });
        results.push(b.floats(coef));
        results
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(48), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn convolutions_agree((shape, n) in conv_shape()) {
        check_conv(shape, n)?;
    }

    #[test]
    fn batch_norm_agrees(h in 1..most(9, 4), w in 1..most(9, 4), c in 1..most(70, 20), n in 1..most(6, 3), relu: bool, residual: bool, output: bool) {
        prop_assume!(h * w * n > 1);
        check_norm(Dims { h, w, c }, n, Norm { relu, residual, output })?;
    }

    #[test]
    fn pools_and_shortcut_agree(h in 1..most(13, 5), w in 1..most(13, 5), c in 1..most(40, 20), n in 1..most(5, 3)) {
        check("pools", |b| {
            let dims = Dims { h, w, c };
            let x = b.act(n, dims);
            let mut results = Vec::new();
            let out = Dims { h: h.div_ceil(2), w: w.div_ceil(2), c };
            let mean = Dims { h: 1, w: 1, c };
            let wide = Dims { c: 2 * c, ..out };
            let (pooled, mean_y, short) = (b.act(n, out), b.act(n, mean), b.act(n, wide));
            let (dpooled, dmean, dshort, dx) = (b.act(n, out), b.act(n, mean), b.act(n, wide), b.act(n, dims));
            b.engine.max_pool_forward(n, x, pooled);
            b.engine.avg_pool_forward(n, x, mean_y);
            b.engine.shortcut_forward(n, x, short);
            results.extend([b.read(n, pooled, out), b.read(n, mean_y, mean), b.read(n, short, wide)]);
            for write in [Write::Set, Write::Add] {
                b.engine.max_pool_backward(n, x, pooled, dpooled, dx, write);
                results.push(b.read(n, dx, dims));
                b.engine.avg_pool_backward(n, dmean, dx, write);
                results.push(b.read(n, dx, dims));
                b.engine.shortcut_backward(n, dshort, dx, write);
                results.push(b.read(n, dx, dims));
            }
            results
        })?;
    }

    #[test]
    fn vectors_side_by_side_agree(widths in prop::collection::vec(1..most(40, 9), 1..5), n in 1..most(9, 3)) {
        check("concatenation", |b| {
            let flat = |c| Dims { h: 1, w: 1, c };
            let all = flat(widths.iter().sum());
            // One more image than run: its numbers must stay.
            let (y, dy) = (b.act(n + 1, all), b.act(n + 1, all));
            let mut results = Vec::new();
            let mut at = 0;
            for &c in &widths {
                let (x, dx) = (b.act(n + 1, flat(c)), b.act(n + 1, flat(c)));
                b.engine.concat_forward(n, x, y, at);
                results.push(b.read(n + 1, y, all));
                for write in [Write::Set, Write::Add] {
                    b.engine.concat_backward(n, dy, at, dx, write);
                    results.push(b.read(n + 1, dx, flat(c)));
                }
                at += c;
            }
            results
        })?;
    }

    #[test]
    fn linear_and_losses_agree(
        cin in prop_oneof![1..most(80, 9), most(500, 9)..most(530, 11)],
        cout in prop_oneof![2..most(40, 9), most(250, 9)..most(300, 20)],
        n in 1..most(70, 9),
        tau in 0.05f32..1.0,
    ) {
        check("linear and losses", |b| {
            let flat = |c| Dims { h: 1, w: 1, c };
            let (x, y, dy, dx) = (b.act(n, flat(cin)), b.act(n, flat(cout)), b.act(n, flat(cout)), b.act(n, flat(cin)));
            let (w, bias, sums, dw, db) =
                (b.span(cin * cout), b.span(cout), b.span(2 * cout), b.span(cin * cout), b.span(cout));
            let mut results = Vec::new();
            for bias in [None, Some(bias)] {
                b.engine.linear_forward(n, x, w, bias, y, Some(sums));
                results.extend([b.read(n, y, flat(cout)), b.floats(sums)]);
            }
            for write in [Write::Set, Write::Add] {
                b.engine.linear_backward_data(n, dy, w, dx, write);
                results.push(b.read(n, dx, flat(cin)));
            }
            b.engine.linear_backward_weight(n, x, dy, dw, Some(db));
            results.extend([b.floats(dw), b.floats(db)]);
            let labels: Vec<u32> = (0..n as u32).map(|i| i % cout as u32).collect();
            let loss = b.span(2 * n);
            b.engine.cross_entropy(n, y, &labels, loss.slice(0..n), dy);
            results.extend([b.floats(loss.slice(0..n)), b.read(n, dy, flat(cout))]);
            // Two branches' embeddings, interleaved per image.
            let (z, dz, norms) = (b.span(2 * n * cout), b.span(2 * n * cout), b.span(2 * n));
            let views = [b.act(n, flat(cout)), b.act(n, flat(cout))];
            for (first, act) in views.into_iter().enumerate() {
                b.engine.l2_normalize(n, act, Rows { first, step: 2 }, z, norms);
            }
            let ranges = [(0, 2 * n, 0.0), (n / 2, n, 0.0), (0, 2 * n, 2.0), (n / 2, n, 0.5)];
            for (first_anchor, n_anchors, focal_gamma) in ranges {
                let loss = loss.slice(0..n_anchors);
                let temperature = tau;
                b.engine.nt_xent(NtXent { z, dim: cout, first_anchor, n_anchors, temperature, focal_gamma, loss, dz });
                results.extend([b.floats(z), b.floats(norms), b.floats(loss), b.floats(dz)]);
            }
            let out = b.act(n, flat(cout));
            b.engine.l2_normalize_backward(n, Rows { first: 1, step: 2 }, z, norms, dz, out);
            results.push(b.read(n, out, flat(cout)));
            results
        })?;
    }

    #[test]
    fn optimizers_agree(len in prop_oneof![3 => 1..most(5000, 200), 1 => most(60_000, 200)..most(150_000, 300)]) {
        check("optimizers", |b| {
            let (w, g, m, v) = (b.span(len), b.span(len), b.span(len), b.span(len));
            b.engine.fill(v, 0.5);
            let mut results = Vec::new();
            for first in [true, false] {
                b.engine.sgd_step(w, g, m, SgdStep { lr: 0.1, momentum: 0.9, weight_decay: 1e-2 }, first);
                results.extend([b.floats(w), b.floats(m)]);
            }
            let half = len / 2;
            let lars = LarsStep { lr: 1.0, momentum: 0.9, weight_decay: 1e-3, eta: 1e-2 };
            b.engine.lars_step(w, g, m, &[(0, half), (half, len - half)], lars);
            results.extend([b.floats(w), b.floats(m)]);
            b.engine.adam_step(w, g, m, v, AdamStep { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, step: 3 });
            results.extend([b.floats(w), b.floats(m), b.floats(v)]);
            results
        })?;
    }

    #[test]
    fn input_is_normalised(n in 1usize..4, first in 0usize..2, step in 1usize..3) {
        check("input", |b| {
            let dims = Dims { h: 3, w: 2, c: 3 };
            let total = first + n * step;
            let images = b.engine.alloc_bytes(total * dims.len()).unwrap();
            let bytes: Vec<u8> = (0..total * dims.len()).map(|i| (i * 37 % 256) as u8).collect();
            b.engine.write_bytes(images, &bytes);
            let x = b.act(n, dims);
            b.engine.input_normalize(n, images, Rows { first, step }, &IMAGENET, x);
            vec![b.read(n, x, dims)]
        })?;
    }
}

/// The shapes of real networks, where bands, groups and panels are all full.
#[test]
#[cfg_attr(miri, ignore = "takes too long")]
fn convolutions_of_real_networks_agree() {
    let shapes = [
        (3, 64, 3, 1, 32),
        (64, 64, 3, 1, 32),
        (64, 128, 3, 2, 32),
        (64, 128, 1, 2, 32),
        (3, 16, 7, 2, 56),
        // So wide that threads share the weight gradient by blocks.
        (300, 200, 3, 1, 5),
        (200, 300, 3, 2, 7),
        // So deep, too, that a share's inputs are gathered in one round where all inputs take several.
        (252, 1056, 1, 1, 14),
    ];
    for (cin, cout, kernel, stride, size) in shapes {
        let input = Dims { h: size, w: size, c: cin };
        check_conv(ConvShape { input, cout, kernel, stride, pad: kernel / 2 }, 2).unwrap();
    }
}

/// Where a layer has fewer blocks of weights than two for each thread, or tasks than threads, they divide the work further.
#[test]
#[cfg_attr(miri, ignore = "takes too long")]
fn convolutions_agree_at_many_threads() {
    for stride in [1, 2] {
        let input = Dims { h: 8 * stride, w: 8 * stride, c: 128 };
        check_conv_at(&[16], ConvShape { input, cout: 128 * stride, kernel: 3, stride, pad: 1 }, 2).unwrap();
    }
}

/// A rank may have no image of a small last batch. What earlier operations left behind must not count.
#[test]
fn no_images_give_no_gradient() {
    for (c, threads) in [(16, 1), (16, 3), (128, 1), (128, 3)] {
        for algorithm in [Algorithm::Direct, Algorithm::Winograd, Algorithm::Sparse] {
            let kernels = Kernels { level: None, algorithm };
            let options = CpuOptions { n_threads: threads, kernels };
            for engine in [f32_engine(options).unwrap(), bf16_engine(options).unwrap()] {
                let mut b = Bench::new(engine, BITS);
                let shape = ConvShape { input: Dims { h: 8, w: 8, c }, cout: c, kernel: 3, stride: 1, pad: 1 };
                let conv = b.engine.alloc_conv(shape, 2, ConvUse::Train, true).unwrap();
                let (x, dy) = (b.act(2, shape.input), b.act(2, shape.output()));
                let (dw, other) = (b.span(shape.n_weights()), b.span(shape.n_weights()));
                let (before, w, mask) = (b.floats(dw), b.span(shape.n_weights()), Some(b.mask(shape.n_weights())));
                b.engine.pack_conv(conv, Direction::Forward, w, mask);
                b.engine.conv_backward_weight(2, conv, WeightGrad { x, dy, dw: other, mask });
                b.engine.conv_backward_weight(0, conv, WeightGrad { x, dy, dw, mask });
                assert!(b.floats(dw) == before, "{c} channels, {threads} threads, {}", algorithm.name());
            }
        }
    }
}

/// Partial sums are cut by shape, not by thread: the forward pass and batch norm give the same bits at any team size.
#[test]
fn forward_and_statistics_are_bit_identical_at_any_thread_count() {
    let shape = ConvShape { input: Dims { h: 16, w: 16, c: 8 }, cout: 40, kernel: 3, stride: 1, pad: 1 };
    for algorithm in [Algorithm::Auto, Algorithm::Sparse] {
        let run = |n_threads| {
            let kernels = Kernels { level: None, algorithm };
            let mut b = Bench::new(f32_engine(CpuOptions { n_threads, kernels }).unwrap(), BITS);
            let conv = b.engine.alloc_conv(shape, 16, ConvUse::Train, true).unwrap();
            let (w, mask) = (b.span(shape.n_weights()), b.mask(shape.n_weights()));
            let (x, y, sums) = (b.act(16, shape.input), b.act(16, shape.output()), b.span(2 * shape.cout));
            b.engine.pack_conv(conv, Direction::Forward, w, Some(mask));
            b.engine.conv_forward(16, conv, x, y, Some(sums));
            (b.read(16, y, shape.output()), b.floats(sums))
        };
        assert_eq!(run(1), run(2), "{}", algorithm.name());
        assert_eq!(run(1), run(5), "{}", algorithm.name());
    }
}

/// A diverged network must show in the loss: PyTorch's ReLU, batch norm and max-pool let not-a-number through, and so do these.
#[test]
fn not_a_number_goes_through_norms_and_pools() {
    let engines: [Box<dyn Engine>; 2] = [Box::new(Oracle::new()), f32_engine(CpuOptions::threads(1)).unwrap()];
    for engine in engines {
        let mut b = Bench::new(engine, BITS);
        let dims = Dims { h: 4, w: 4, c: 3 };
        let (x, y) = (b.act(1, dims), b.act(1, dims));
        let (gamma, beta, running, coef, sums) = (b.span(3), b.span(3), b.span(6), b.span(12), b.span(6));
        b.engine.fill(sums, f32::NAN);
        b.engine.norm_train(NormTrain { sums, count: 16, gamma, beta, running, eps: 1e-5, momentum: 0.1, coef });
        b.engine.norm_apply(1, NormApply { x, coef, residual: None, relu: true, y });
        assert!(b.read(1, y, dims).iter().all(|v| v.is_nan()));
        let pooled_dims = Dims { h: 2, w: 2, c: 3 };
        let pooled = b.act(1, pooled_dims);
        let mut values = vec![1.0; dims.len()];
        values[(4 + 1) * 3] = f32::NAN;
        b.engine.write_act(1, x, &values);
        b.engine.max_pool_forward(1, x, pooled);
        let got = b.read(1, pooled, pooled_dims);
        // It lies in all four windows: the last one's first pixel, and the first one's last.
        assert!(got.chunks(3).all(|pixel| pixel[0].is_nan() && pixel[1] == 1.0), "{got:?}");
    }
}
