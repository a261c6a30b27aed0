//! Ten steps with each option that SDCLR's successors use, against PyTorch's from the sources' formulas.
//!
//! Values: `crates/nn/tests/fixtures/options.json`, recorded by `make_option_fixtures.py` beside it. What the option does in a
//! step is computed by the code that training runs (schedules, mask, loss, memory, augmentation) from its settings alone.

use crate::fixture::{self, Fixture};
use crate::{ENGINES, MakeEngine};
use sdclr::Learner;
use sdclr::boost::Boost;
use sdclr_data::augment::{N_RAND_OPS, RandOp};
use sdclr_nn::{PruneSchedule, Ramp, TemperatureSchedule};
use sdclr_records::names::Method;
use sdclr_records::options::BoostConfig;
use serde_json::Value;

/// PyTorch's own float32 is off its float64 by 3e-6 at most; sums in another order may be off by a few times that.
const TOLERANCE: f64 = 2e-5;
/// As in the script: two batches make an epoch of the boosted cases.
const N_BOOST_IMAGES: usize = 12;
const BOOST_BATCHES: usize = 2;

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

/// The temperature of step `step`, each being an epoch to the schedules.
fn temperature(f: &Fixture, step: usize) -> f64 {
    let schedule = match &f.json["option"]["temperature"] {
        Value::Null => TemperatureSchedule::Constant(number(&f.json["config"]["temperature"])),
        cosine => TemperatureSchedule::Cosine {
            min: number(&cosine["min"]),
            max: number(&cosine["max"]),
            period_epochs: number(&cosine["period_epochs"]),
        },
    };
    schedule.temperature_at(step as u64 + 1)
}

/// The rates of the mask of step `step`, if it gets a new one.
fn prune_rates(f: &Fixture, step: usize) -> Option<(f64, f64)> {
    let option = &f.json["option"];
    let rate = number(&f.json["config"]["prune_rate"]);
    let random_rate = option["random_rate"].as_f64().unwrap_or(0.0);
    let plain = PruneSchedule { rate, random_rate, start: 0.0, ramp_epochs: 0, ramp: Ramp::None };
    let schedule = match &option["prune"] {
        Value::Null if step.is_multiple_of(5) => plain,
        Value::Null => return None,
        moving => {
            let ramp = match moving["ramp"].as_str().unwrap() {
                "linear" => Ramp::Linear,
                "cosine" => Ramp::Cosine,
                "cubic" => Ramp::Cubic,
                other => panic!("{other}"),
            };
            PruneSchedule { start: number(&moving["start"]), ramp_epochs: count(&moving["ramp_epochs"]), ramp, ..plain }
        }
    };
    Some(schedule.rates_at(step as u64 + 1))
}

/// The images of a boosted step, and their views as the memory has them augmented.
fn boosted_batch(f: &Fixture, boost: &mut Boost, step: usize, n_operations: &mut u64) -> (Vec<u32>, Vec<u8>) {
    let (epoch, part) = (step / BOOST_BATCHES, step % BOOST_BATCHES);
    if part == 0 {
        boost.begin_epoch();
    }
    let augmentation = boost.augmentation();
    let order = (0..N_BOOST_IMAGES).map(|i| (5 * i + epoch) % N_BOOST_IMAGES);
    let chosen: Vec<u32> = order.skip(part * f.n_images()).take(f.n_images()).map(|i| i as u32).collect();
    let tag = format!("{}epoch{epoch}", f.json["config"]["images"].as_str().unwrap());
    let side = usize::try_from(count(&f.json["config"]["image_size"])).unwrap();
    let bytes = fixture::bytes(&tag, 2 * N_BOOST_IMAGES * side * side * 3);
    let (mut views, mut buffer) = (Vec::new(), Vec::new());
    for &image in &chosen {
        let image = image as usize;
        let score = f64::from(augmentation.memorization[image]);
        let strength = fixture::unit(&format!("{tag}-zeta"), image) * score * augmentation.magnitude;
        for view in 0..2 {
            let draw = |k: usize| fixture::unit(&format!("{tag}-draws"), (2 * image + view) * 5 + k);
            let at = views.len();
            views.extend_from_slice(&bytes[(2 * image + view) * side * side * 3..][..side * side * 3]);
            if draw(1) < score {
                let kind = (draw(0) * N_RAND_OPS as f64) as usize;
                let operation = RandOp::at(kind, strength, draw(2) < 0.5, [draw(3), draw(4)]);
                operation.apply(side, &mut views[at..], &mut buffer);
                *n_operations += 1;
            }
        }
    }
    (chosen, views)
}

fn boost_of(f: &Fixture, l: &mut Learner) -> Option<Boost> {
    let settings = f.json["option"]["boost"].as_object()?;
    let config = BoostConfig {
        enabled: true,
        momentum: number(&settings["momentum"]),
        n_ops: 1,
        magnitude: number(&settings["magnitude"]),
    };
    Some(Boost::new(&config, N_BOOST_IMAGES, f.n_images(), l).unwrap())
}

fn check(name: &str, json: &Value, engine_name: &str, make: MakeEngine) {
    let f = Fixture::of(json.clone());
    let what = |step: usize| format!("{name} on {engine_name}, step {step}");
    let gamma = json["option"]["focal_gamma"].as_f64().unwrap_or(0.0);
    let mut l = f.learner_with_optimizer(make()).with_focal_gamma(gamma as f32);
    let mut boost = boost_of(&f, &mut l);
    let seed = json["option"]["seed"].as_u64().unwrap_or(0);
    let is_sdclr = json["config"]["method"] == Method::SdClr.as_str();
    let (mut n_masks, mut n_operations) = (0, 0);
    let (losses, rates) = (f.floats("losses"), f.floats("lr"));
    for (step, (&expected, &lr)) in losses.iter().zip(&rates).enumerate() {
        if let Some((rate, random_rate)) = prune_rates(&f, step).filter(|_| is_sdclr) {
            assert!((rate - f.floats("prune_rate")[n_masks]).abs() < 1e-12, "{}: rate {rate}", what(step));
            let stats = l.update_mask(rate, random_rate, seed, step as u64).unwrap();
            assert_eq!(stats.n_kept as u64, count(&json["kept"][n_masks]), "{}: kept weights", what(step));
            n_masks += 1;
        }
        let tau = temperature(&f, step);
        assert!((tau - f.floats("temperature")[step]).abs() < 1e-12, "{}: temperature {tau}", what(step));
        l.set_temperature(tau as f32);
        let loss = if let Some(boost) = &mut boost {
            let (chosen, views) = boosted_batch(&f, boost, step, &mut n_operations);
            let loss = l.step(&views, f.n_images(), lr).unwrap();
            boost.record(&mut l, &chosen).unwrap();
            loss
        } else {
            l.step(&f.images(&step.to_string()), f.n_images(), lr).unwrap()
        };
        let error = (f64::from(loss) / expected - 1.0).abs();
        assert!(error < TOLERANCE, "{}: {loss} instead of {expected} ({error:.1e})", what(step));
    }
    if let Some(boost) = boost {
        assert_eq!(n_operations, count(&json["n_operations"]), "{name}: operations");
        for (got, expected) in boost.augmentation().memorization.iter().zip(f.floats("scores")) {
            assert!((f64::from(*got) - expected).abs() < 1e-4, "{name}: score {got} instead of {expected}");
        }
    }
    // Learning, and the option, move the losses far more than the tolerance, or this would prove nothing.
    for other in ["losses_without_updates_f64", "losses_without_option_f64"] {
        let moved = losses.iter().zip(f.floats(other)).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
        assert!(moved > 10.0 * TOLERANCE, "{name}: {other} differ by {moved:.1e} only");
    }
}

#[test]
fn ten_steps_with_each_option_agree() {
    let folder = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../nn/tests/fixtures");
    let json: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("options.json")).unwrap()).unwrap();
    let cases = json["cases"].as_object().unwrap();
    assert_eq!(cases.len(), 12);
    for (engine_name, make) in ENGINES {
        for (name, case) in cases {
            check(name, case, engine_name, make);
        }
    }
}
