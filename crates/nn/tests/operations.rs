//! Single operations against recorded PyTorch values, on the oracle and on the fast engine.
//!
//! `tests/fixtures/README.md` says what each fixture holds. Tolerances are relative to the largest expected value: 1e-5
//! for sums of a few hundred terms in f32, more only where a comment says why.

use safetensors::{SafeTensors, tensor::TensorView};
use sdclr_engine::*;
use sdclr_nn::*;
use std::slice::from_ref;

type MakeEngine = fn() -> Box<dyn Engine>;

const ENGINES: [MakeEngine; 2] = [|| Box::new(Oracle::new()), || f32_engine(CpuOptions::threads(2)).unwrap()];

struct Fixture {
    json: serde_json::Value,
    bytes: Vec<u8>,
}

impl Fixture {
    fn load(name: &str) -> Self {
        let path = |extension| format!("{}/tests/fixtures/{name}.{extension}", env!("CARGO_MANIFEST_DIR"));
        let json = serde_json::from_str(&std::fs::read_to_string(path("json")).unwrap()).unwrap();
        Self { json, bytes: std::fs::read(path("safetensors")).unwrap_or_default() }
    }

    fn with<R>(&self, key: &str, f: impl FnOnce(TensorView<'_>) -> R) -> R {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        f(tensors.tensor(key).unwrap_or_else(|_| panic!("{key} is recorded")))
    }

    fn floats(&self, key: &str) -> Vec<f32> {
        self.with(key, |v| v.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect())
    }

    fn bytes(&self, key: &str) -> Vec<u8> {
        self.with(key, |v| v.data().to_vec())
    }

    fn labels(&self, key: &str) -> Vec<u32> {
        let one = |b: &[u8]| u32::try_from(i64::from_le_bytes(b.try_into().unwrap())).unwrap();
        self.with(key, |v| v.data().chunks_exact(8).map(one).collect())
    }

    fn shape(&self, key: &str) -> Vec<usize> {
        self.with(key, |v| v.shape().to_vec())
    }
}

fn number(value: &serde_json::Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

fn numbers(value: &serde_json::Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[track_caller]
fn assert_close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= tolerance * largest, "{what}[{i}]: {g} instead of {e}");
    }
}

fn flat(c: usize) -> Dims {
    Dims { h: 1, w: 1, c }
}

fn role(dims: Dims) -> Role {
    if dims.pixels() == 1 { Role::Vector } else { Role::Map }
}

fn act(e: &mut dyn Engine, n: usize, dims: Dims, values: &[f32]) -> Act {
    let act = e.alloc_act(n, dims, role(dims)).unwrap();
    e.write_act(n, act, values);
    act
}

fn span(e: &mut dyn Engine, values: &[f32]) -> Span {
    let buf = e.alloc_f32(values.len()).unwrap();
    let span = e.whole(buf);
    e.write_f32(span, values);
    span
}

fn read_act(e: &mut dyn Engine, n: usize, act: Act, dims: Dims) -> Vec<f32> {
    let mut values = vec![0.0; n * dims.len()];
    e.read_act(n, act, &mut values).unwrap();
    values
}

fn read(e: &mut dyn Engine, span: Span) -> Vec<f32> {
    let mut values = vec![0.0; span.len];
    e.read_f32(span, &mut values).unwrap();
    values
}

#[test]
fn nt_xent_agrees_with_pytorch_and_its_closed_form() {
    let f = Fixture::load("nt_xent");
    for make in ENGINES {
        for (case, spec) in f.json["cases"].as_object().unwrap() {
            let (n, d) = (number(&spec["n_images"]), number(&spec["embedding_dim"]));
            let e = &mut *make();
            let mut loss = ContrastiveLoss::new(e, n + 1, n + 1, d).unwrap();
            let mut views = Vec::new();
            for (first, key) in ["a", "b"].into_iter().enumerate() {
                let embedding = act(e, n, flat(d), &f.floats(&format!("{case}.{key}")));
                let grad = e.alloc_act(n, flat(d), Role::Vector).unwrap();
                views.push(loss::View { embedding, grad, n, rows: Rows { first, step: 2 } });
            }
            let images = 0..n;
            let temperature = spec["temperature"].as_f64().unwrap() as f32;
            let got = f64::from(loss.forward_backward(e, &views, from_ref(&images), temperature, &Single).unwrap());
            let expected = spec["loss"].as_f64().unwrap();
            assert!((got - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{case}: {got} instead of {expected}");
            if case == "identical" {
                assert!((got - f64::from(2 * n as u32 - 1).ln()).abs() < 1e-6, "identical embeddings give ln(2N − 1)");
            }
            for (view, key) in views.iter().zip(["grad_a", "grad_b"]) {
                let expected = f.floats(&format!("{case}.{key}"));
                let got = read_act(e, n, view.grad, flat(d));
                if spec[format!("{key}_rel_err_f64")].is_null() || case == "identical" || case == "single_image" {
                    // Zero in exact arithmetic.
                    assert!(got.iter().all(|g| g.abs() < 1e-5), "{case}.{key}");
                } else {
                    // Large logits leave few digits in the probabilities' differences.
                    let tolerance = if case == "large_logits" { 1e-3 } else { 5e-5 };
                    assert_close(&format!("{case}.{key}"), &got, &expected, tolerance);
                }
            }
        }
    }
}

#[test]
fn masks_agree_with_pytorch_entry_by_entry() {
    let f = Fixture::load("masks");
    for (case, spec) in f.json["cases"].as_object().unwrap() {
        let layers: Vec<String> = match &spec["layers"] {
            serde_json::Value::Array(names) => names.iter().map(|v| v.as_str().unwrap().to_owned()).collect(),
            other => other.as_object().unwrap().keys().cloned().collect(),
        };
        let weights: Vec<f32> = layers.iter().flat_map(|l| f.floats(&format!("{case}.{l}.weight"))).collect();
        for (i, result) in spec["results"].as_array().unwrap().iter().enumerate() {
            let mut mask = vec![0; weights.len()];
            let stats = mask::magnitude(&weights, result["prune_rate"].as_f64().unwrap(), &mut mask);
            let expected: Vec<u8> = layers.iter().flat_map(|l| f.bytes(&format!("{case}.{l}.mask{i}"))).collect();
            assert_eq!(mask, expected, "{case}, rate {}", result["prune_rate"]);
            assert_eq!(stats.n_kept, number(&result["kept"]), "{case}");
            assert_eq!(stats.threshold, result["threshold"].as_f64().unwrap() as f32, "{case}");
        }
    }
}

#[test]
fn optimizers_agree_with_pytorch_step_by_step() {
    let f = Fixture::load("optimizers");
    let names = ["weight", "bias", "zero_weight", "zero_grad"];
    let join = |prefix: &str, range: Option<usize>| -> Vec<f32> {
        names
            .iter()
            .flat_map(|t| {
                let all = f.floats(&format!("{prefix}.{t}"));
                let len = all.len() / if range.is_some() { 10 } else { 1 };
                all[range.unwrap_or(0) * len..][..len].to_vec()
            })
            .collect()
    };
    for make in ENGINES {
        for kind in ["sgd", "lars", "adam"] {
            let e = &mut *make();
            let w = span(e, &join("start", None));
            let g = span(e, &vec![0.0; w.len]);
            let (m, v) = (span(e, &vec![0.0; w.len]), span(e, &vec![0.0; w.len]));
            let mut tensors = Vec::new();
            for t in names {
                let at = tensors.last().map_or(0, |(at, len)| at + len);
                tensors.push((at, f.floats(&format!("start.{t}")).len()));
            }
            for (step, lr) in numbers(&f.json["lr"][kind]).into_iter().enumerate() {
                e.write_f32(g, &join("grads", Some(step)));
                let lr = lr as f32;
                match kind {
                    "sgd" => e.sgd_step(w, g, m, SgdStep { lr, momentum: 0.9, weight_decay: 1e-4 }, step == 0),
                    "lars" => {
                        let lars = LarsStep { lr, momentum: 0.9, weight_decay: 1e-6, eta: 1e-3 };
                        e.lars_step(w, g, m, &tensors, lars);
                    }
                    _ => {
                        let step = step as u64 + 1;
                        e.adam_step(w, g, m, v, AdamStep { lr, beta1: 0.9, beta2: 0.999, eps: 1e-8, step });
                    }
                }
                assert_close(&format!("{kind}, step {step}"), &read(e, w), &join(kind, Some(step)), 1e-6);
            }
        }
    }
}

#[test]
fn batch_norm_agrees_with_pytorch_over_batches_of_different_sizes() {
    let f = Fixture::load("batch_norm");
    let c = number(&f.json["channels"]);
    for make in ENGINES {
        for case in ["three", "two_values"] {
            let e = &mut *make();
            let (gamma, beta) = (span(e, &f.floats("weight")), span(e, &f.floats("bias")));
            let mut start = vec![0.0; c];
            start.resize(2 * c, 1.0);
            let (running, coef, sums) = (span(e, &start), span(e, &vec![0.0; 4 * c]), span(e, &vec![0.0; 2 * c]));
            let n_batches = number(&f.json["n_batches"][case]);
            let mut last = None;
            for i in 0..n_batches {
                let shape = f.shape(&format!("{case}.x{i}"));
                let (n, dims) = (shape[0], Dims { h: shape[1], w: shape[2], c });
                let values = f.floats(&format!("{case}.x{i}"));
                let (x, y) = (act(e, n, dims, &values), e.alloc_act(n, dims, role(dims)).unwrap());
                let mut totals = vec![0.0f64; 2 * c];
                for (k, &v) in values.iter().enumerate() {
                    totals[k % c] += f64::from(v);
                    totals[c + k % c] += f64::from(v).powi(2);
                }
                e.write_f32(sums, &totals.iter().map(|&v| v as f32).collect::<Vec<_>>());
                let count = n * dims.pixels();
                e.norm_train(NormTrain { sums, count, gamma, beta, running, eps: 1e-5, momentum: 0.1, coef });
                e.norm_apply(n, NormApply { x, coef, residual: None, relu: false, y });
                // A channel of mean 10 loses the digits of its mean's square; a constant one has no spread but rounding.
                assert_close(
                    &format!("{case}.y{i}"),
                    &read_act(e, n, y, dims),
                    &f.floats(&format!("{case}.y{i}")),
                    2e-4,
                );
                let got = read(e, running);
                for (k, key) in ["running_mean", "running_var"].into_iter().enumerate() {
                    let expected = f.floats(&format!("{case}.{key}"));
                    let expected = &expected[i * c..(i + 1) * c];
                    assert_close(&format!("{case}.{key} {i}"), &got[k * c..(k + 1) * c], expected, 1e-5);
                }
                last = Some((n, dims, x, count));
            }
            let (n, dims, x, count) = last.unwrap();
            let dy = act(e, n, dims, &f.floats(&format!("{case}.grad_y")));
            let dx = e.alloc_act(n, dims, role(dims)).unwrap();
            let (dgamma, dbeta) = (span(e, &vec![0.0; c]), span(e, &vec![0.0; c]));
            let back = NormBackward { dy, gate: Gate::Open, x, coef, sums };
            e.norm_backward_sums(n, back);
            e.norm_param_grad(sums, dgamma, dbeta);
            e.norm_backward_apply(n, back, Some(count), Some(dx), None);
            assert_close(&format!("{case}.grad_bias"), &read(e, dbeta), &f.floats(&format!("{case}.grad_bias")), 1e-5);
            if case == "three" {
                let weight = f.floats("three.grad_weight");
                assert_close("three.grad_weight", &read(e, dgamma), &weight, 2e-4);
                assert_close("three.grad_x", &read_act(e, n, dx, dims), &f.floats("three.grad_x"), 2e-3);
            }
            e.norm_eval(NormEval { gamma, beta, running, eps: 1e-5, coef });
            let y = e.alloc_act(n, dims, role(dims)).unwrap();
            e.norm_apply(n, NormApply { x, coef, residual: None, relu: false, y });
            let expected = f.floats(&format!("{case}.eval_y"));
            assert_close(&format!("{case}.eval_y"), &read_act(e, n, y, dims), &expected, 1e-4);
        }
    }
}

#[test]
fn schedules_agree_with_pytorch_update_by_update() {
    let f = Fixture::load("schedules");
    for case in f.json["cases"].as_array().unwrap() {
        let iterations = case["iterations_per_epoch"].as_u64().unwrap();
        let rates = numbers(&case["lr"]);
        let schedule = Schedule {
            base_lr: case["base_lr"].as_f64().unwrap(),
            warmup: (case["warmup_epochs"].as_f64().unwrap() * iterations as f64).round() as u64,
            decay: Decay::Cosine { min_lr: case["min_lr"].as_f64().unwrap(), total: rates.len() as u64 },
        };
        for (i, expected) in rates.iter().enumerate() {
            let got = schedule.lr_at(i as u64 + 1);
            assert!((got - expected).abs() <= 1e-12, "update {} of {case}: {got} instead of {expected}", i + 1);
        }
    }
}

#[test]
fn linear_classifier_agrees_with_pytorch_over_ten_steps() {
    let f = Fixture::load("cross_entropy_linear");
    let (n, d, c) = (number(&f.json["n"]), number(&f.json["feature_dim"]), number(&f.json["n_classes"]));
    for make in ENGINES {
        let e = &mut *make();
        let model = Model::new(e, resnet::linear_classifier(d, c)).unwrap();
        let tensors = [
            ("fc.weight".to_owned(), Tensor { shape: vec![c, d], data: f.floats("weight") }),
            ("fc.bias".to_owned(), Tensor { shape: vec![c], data: vec![0.0; c] }),
        ];
        model.import(e, model.params(), &tensors.into()).unwrap();
        let spec = PassSpec { max_batch: n, branch: Branch::Dense, mode: Mode::Train, until: model.network.output };
        let pass = Pass::new(e, &model, spec, &mut GradPool::default()).unwrap();
        let mut loss = CrossEntropy::new(e, n).unwrap();
        let settings = OptimizerKind::Sgd { momentum: 0.9, weight_decay: 0.0 };
        let mut optimizer = Optimizer::new(e, &model, settings).unwrap();
        e.write_act(n, pass.act(model.network.input), &f.floats("features"));
        let rates = numbers(&f.json["lr"]);
        for (step, expected) in numbers(&f.json["losses"]).into_iter().enumerate() {
            pass.forward(e, &model, Batch::local(n), &Single).unwrap();
            let logits = pass.act(model.network.output);
            let labels = f.labels("labels");
            let got = loss.forward_backward(e, n, logits, &labels, pass.output_grad()).unwrap();
            assert!((f64::from(got) / expected - 1.0).abs() < 1e-4, "step {step}: {got} instead of {expected}");
            model.zero_grads(e);
            pass.backward(e, &model, Batch::local(n), &Single).unwrap();
            if step == 0 {
                let grads = model.export(e, model.grads()).unwrap();
                assert_close("grad_weight", &grads["fc.weight"].data, &f.floats("grad_weight"), 1e-5);
                assert_close("grad_bias", &grads["fc.bias"].data, &f.floats("grad_bias"), 1e-5);
            }
            optimizer.step(e, &model, rates[step]);
        }
        let weights = model.export(e, model.params()).unwrap();
        assert_close("final_weight", &weights["fc.weight"].data, &f.floats("final_weight"), 1e-4);
        assert_close("final_bias", &weights["fc.bias"].data, &f.floats("final_bias"), 1e-4);
    }
}
