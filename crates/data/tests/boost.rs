//! Boosted contrastive learning's further augmentation: its operations give Pillow's pixels, and the loader's batches stay a
//! function of the seed and the scores alone.
//!
//! Values: `fixtures/randaugment.json`, recorded by `fixtures/make_randaugment_fixtures.py`. Tolerance: none.

use std::collections::BTreeMap;
use std::sync::Arc;

use sdclr_data::augment::{Boost, N_RAND_OPS, RandOp};
use sdclr_data::{Batch, Dataset, Loader, LoaderSpec, Order, RgbImage, Shard};
use sdclr_records::augment::Augmentation;
use serde_json::Value;

/// The fixture's formula.
fn picture(side: usize, base: usize, span: usize) -> Vec<u8> {
    let value = |y: usize, x: usize, c: usize| (base + (x * x + 3 * y + 7 * c + x * y) % span) as u8;
    let at = |i: usize| value(i / 3 / side, i / 3 % side, i % 3);
    (0..side * side * 3).map(at).collect()
}

fn operation(name: &str, value: &Value) -> RandOp {
    let number = |value: &Value| value.as_f64().unwrap();
    match name {
        "shear_x" => RandOp::ShearX(number(value)),
        "shear_y" => RandOp::ShearY(number(value)),
        "translate_x" => RandOp::TranslateX(number(value)),
        "translate_y" => RandOp::TranslateY(number(value)),
        "rotate" => RandOp::Rotate(number(value)),
        "auto_contrast" => RandOp::AutoContrast,
        "invert" => RandOp::Invert,
        "equalize" => RandOp::Equalize,
        "solarize" => RandOp::Solarize(number(value)),
        "posterize" => RandOp::Posterize(number(value) as u32),
        "contrast" => RandOp::Contrast(number(value)),
        "colour" => RandOp::Colour(number(value)),
        "brightness" => RandOp::Brightness(number(value)),
        "sharpness" => RandOp::Sharpness(number(value)),
        "cutout" => RandOp::Cutout { centre: [number(&value[0]), number(&value[1])], size: number(&value[2]) },
        other => panic!("{other}"),
    }
}

#[test]
fn every_operation_gives_pillows_pixels() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/randaugment.json")).unwrap();
    let mut buffer = Vec::new();
    let mut wrong: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let cases = fixture["cases"].as_array().unwrap();
    for case in cases {
        let [side, base, span] = [0, 1, 2].map(|i| case["input"][i].as_u64().unwrap() as usize);
        let mut view = picture(side, base, span);
        let name = case["operation"].as_str().unwrap();
        operation(name, &case["value"]).apply(side, &mut view, &mut buffer);
        let mut crc = flate2::Crc::new();
        crc.update(&view);
        if u64::from(crc.sum()) != case["crc32"].as_u64().unwrap() {
            wrong.entry(name.to_owned()).or_default().push(format!("{} of side {side}", case["value"]));
        }
    }
    assert_eq!(cases.len(), 476);
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn operations_cover_the_published_ranges() {
    let at = |kind, strength| RandOp::at(kind, strength, false, [0.25, 0.75]);
    for (kind, low, high) in [
        (0, RandOp::ShearX(0.0), RandOp::ShearX(0.6)),
        (3, RandOp::TranslateY(0.0), RandOp::TranslateY(0.66)),
        (4, RandOp::Rotate(0.0), RandOp::Rotate(60.0)),
        (7, RandOp::Equalize, RandOp::Equalize),
        (8, RandOp::Solarize(0.0), RandOp::Solarize(110.0)),
        (9, RandOp::Posterize(4), RandOp::Posterize(8)),
        (12, RandOp::Brightness(0.1), RandOp::Brightness(1.9)),
        (14, RandOp::Cutout { centre: [0.25, 0.75], size: 0.0 }, RandOp::Cutout { centre: [0.25, 0.75], size: 0.4 }),
    ] {
        assert_eq!((at(kind, 0.0), at(kind, 1.0)), (low, high));
    }
    assert_eq!(RandOp::at(4, 0.5, true, [0.0; 2]), RandOp::Rotate(-30.0));
}

fn boost(scores: Vec<f32>, n_ops: usize) -> Boost {
    Boost { memorization: scores.into(), n_ops, magnitude: 1.0 }
}

#[test]
fn the_score_is_the_probability_of_an_operation_and_its_strength_is_shared() {
    let n = 20_000;
    let scored = |score: f32, magnitude| Boost { magnitude, ..boost(vec![score; n], 1) };
    for score in [0.0, 0.3, 1.0] {
        let boost = scored(score, 1.0);
        let operations: Vec<RandOp> = (0..n).flat_map(|i| boost.sample(1, 2, i, i as u64, 0)).collect();
        let share = operations.len() as f64 / n as f64;
        assert!((share - f64::from(score)).abs() < 0.015, "{share} of {score}");
        let kinds = operations.iter().map(std::mem::discriminant).collect::<std::collections::HashSet<_>>();
        assert!(score == 0.0 || kinds.len() == N_RAND_OPS, "all kinds are drawn");
        let degrees = operations.iter().filter_map(|op| if let RandOp::Rotate(v) = op { Some(v.abs()) } else { None });
        let (mut largest, mut sum, mut n_rotations) = (0.0f64, 0.0, 0);
        for degrees in degrees {
            (largest, sum, n_rotations) = (largest.max(degrees), sum + degrees, n_rotations + 1);
        }
        let end = 60.0 * f64::from(score);
        assert!(largest <= end, "{largest} at a score of {score}");
        assert!(score == 0.0 || (sum / f64::from(n_rotations) - end / 2.0).abs() < 0.1 * end, "ζ is uniform");
    }
    // Brightness tells the strength: the same in both views of an image and in all of their operations.
    let strength = |op: RandOp| if let RandOp::Brightness(factor) = op { Some((factor - 0.1) / 1.8) } else { None };
    let boost = Boost { n_ops: 16, ..scored(1.0, 0.5) };
    for i in 0..50 {
        let all: Vec<f64> =
            (0..2).flat_map(|view| boost.sample(1, 2, i, i as u64, view)).filter_map(strength).collect();
        assert!(all.iter().all(|s| (s - all[0]).abs() < 1e-12 && *s <= 0.5), "{all:?}");
    }
}

fn spec() -> LoaderSpec {
    LoaderSpec {
        recipe: Augmentation::cifar_contrastive(),
        image_size: 16,
        n_views: 2,
        batch_size: 20,
        order: Order::Shuffled,
        seed: 10,
        workers: 2,
        jpeg_scaling: false,
        cache_bytes: LoaderSpec::CACHE_BYTES,
        shard: Shard::default(),
        max_broken_share: 0.05,
        strict: false,
    }
}

const N_IMAGES: usize = 47;

fn dataset() -> Dataset {
    let image = |i: usize| RgbImage::new(16, 16, picture(16, i, 200 - i));
    Dataset::from_memory((0..N_IMAGES).map(image).collect(), None)
}

/// Image i has score i / 46.
fn scores() -> Vec<f32> {
    (0..N_IMAGES).map(|i| i as f32 / (N_IMAGES - 1) as f32).collect()
}

fn run(spec: LoaderSpec, boost: Option<Boost>, first_batch: usize) -> Vec<Batch> {
    let mut loader = Loader::new(dataset(), spec).unwrap();
    match boost {
        Some(boost) => loader.start_boosted_epoch(3, first_batch, boost),
        None => loader.start_epoch(3, first_batch),
    }
    std::iter::from_fn(|| loader.next_batch()).map(Result::unwrap).collect()
}

#[test]
fn boosted_batches_are_the_same_at_any_number_of_threads_and_ranks_and_from_any_batch() {
    let boost = boost(scores(), 2);
    let expected = run(LoaderSpec { workers: 1, ..spec() }, Some(boost.clone()), 0);
    for workers in [2, 5] {
        assert_eq!(run(LoaderSpec { workers, ..spec() }, Some(boost.clone()), 0), expected, "{workers} threads");
    }
    assert_eq!(run(spec(), Some(boost.clone()), 1), expected[1..], "an epoch that is gone on with");
    let ranks =
        [0, 1, 2].map(|rank| run(LoaderSpec { shard: Shard { rank, ranks: 3 }, ..spec() }, Some(boost.clone()), 0));
    for (n, expected) in expected.iter().enumerate() {
        let views: Vec<u8> = ranks.iter().flat_map(|batches| batches[n].views.clone()).collect();
        assert_eq!(views, expected.views, "batch {n} of three ranks");
    }
}

#[test]
fn what_is_not_boosted_is_the_recipes_to_the_pixel() {
    let plain = run(spec(), None, 0);
    assert_eq!(run(spec(), Some(boost(vec![0.0; N_IMAGES], 3)), 0), plain, "a score of zero adds nothing");
    let boosted = run(spec(), Some(boost(scores(), 1)), 0);
    let (mut n_changed, mut n_high) = (0, 0);
    for (plain, boosted) in plain.iter().zip(&boosted) {
        assert_eq!(plain.indices, boosted.indices);
        let views = plain.views.chunks(2 * 16 * 16 * 3).zip(boosted.views.chunks(2 * 16 * 16 * 3));
        for (&image, (a, b)) in plain.indices.iter().zip(views) {
            n_changed += usize::from(a != b);
            n_high += usize::from(a != b && image as usize > N_IMAGES / 2);
            assert!(image > 0 || a == b, "image 0 has a score of zero");
        }
    }
    assert!(n_changed > 15 && n_high > n_changed / 2, "{n_high} of {n_changed} changed images have high scores");
}

#[test]
#[should_panic(expected = "a score for each image")]
fn scores_of_other_images_are_refused() {
    let memorization: Arc<[f32]> = vec![0.5; N_IMAGES - 1].into();
    run(spec(), Some(Boost { memorization, n_ops: 1, magnitude: 1.0 }), 0);
}
