//! The distributions of the augmentations' random parameters: the recipe's ranges and frequencies.

use sdclr_data::augment::{Augmenter, JitterOp, Params};
use sdclr_data::rng::{Purpose, Rng};
use sdclr_records::augment::{Augmentation, Contrastive};

const N: u64 = 20_000;

fn sampled(recipe: Augmentation, size: u32, width: u32, height: u32) -> Vec<Params> {
    let augmenter = Augmenter::new(recipe, size).unwrap();
    (0..N).map(|i| augmenter.sample(&mut Rng::new(4, Purpose::Augmentation, 0, i, 0), width, height)).collect()
}

/// The share of samples that satisfy a condition lies within four standard errors of p.
fn check_share(params: &[Params], p: f64, condition: impl Fn(&Params) -> bool) {
    let share = params.iter().filter(|params| condition(params)).count() as f64 / params.len() as f64;
    let tolerance = 4.0 * (p * (1.0 - p) / params.len() as f64).sqrt();
    assert!((share - p).abs() <= tolerance, "{share} instead of {p}");
}

#[test]
fn probabilities_are_the_recipes() {
    let params = sampled(Augmentation::imagenet_contrastive(), 224, 500, 375);
    check_share(&params, 0.5, |params| params.flip);
    check_share(&params, 0.8, |params| params.jitter.is_some());
    check_share(&params, 0.2, |params| params.grayscale);
    check_share(&params, 0.5, |params| params.blur_sigma_px.is_some());
    check_share(&params, 0.4, |params| params.flip && params.jitter.is_some());
    assert!(params.iter().filter_map(|params| params.blur_sigma_px).all(|sigma| (0.1..2.0).contains(&sigma)));
    check_share(&sampled(Augmentation::cifar_contrastive(), 32, 32, 32), 0.0, |params| params.blur_sigma_px.is_some());
}

#[test]
fn crops_cover_the_recipes_areas_and_shapes_inside_the_image() {
    let params = sampled(Augmentation::imagenet_contrastive(), 224, 500, 375);
    for params in &params {
        let crop = params.geometry.crop;
        assert!(crop.left + crop.width <= 500 && crop.top + crop.height <= 375, "{crop:?}");
        let (area, shape) =
            (f64::from(crop.width * crop.height) / 187_500.0, f64::from(crop.width) / f64::from(crop.height));
        // Rounding to whole pixels moves the smallest crop (122 pixels) by less than a percent.
        assert!((0.079..=1.0).contains(&area) && (0.74..1.35).contains(&shape), "{crop:?}");
    }
    // An area below half of the image always fits: uniform shares of the accepted range's lower part are equal.
    let area = |params: &Params| f64::from(params.geometry.crop.width * params.geometry.crop.height) / 187_500.0;
    let below = |limit: f64| params.iter().filter(|params| area(params) < limit).count() as f64;
    let ratio = (below(0.48) - below(0.28)) / (below(0.28) - below(0.08));
    assert!((0.93..1.07).contains(&ratio), "{ratio}");
}

#[test]
fn long_images_fall_back_to_their_centre() {
    for (width, height, crop_width, crop_height) in [(1000, 10, 13, 10), (10, 1000, 10, 13)] {
        let recipe = Contrastive { area_min: 0.9, ..Contrastive::default() };
        for params in sampled(Augmentation::Contrastive(recipe), 32, width, height) {
            let crop = params.geometry.crop;
            assert_eq!((crop.width, crop.height), (crop_width, crop_height));
            assert_eq!((crop.left, crop.top), ((width - crop_width) / 2, (height - crop_height) / 2));
        }
    }
    // Images of one pixel, and of one row.
    for (width, height) in [(1, 1), (3000, 1), (1, 3000)] {
        for params in sampled(Augmentation::cifar_contrastive(), 32, width, height) {
            let crop = params.geometry.crop;
            assert!(crop.width >= 1 && crop.height >= 1 && crop.left + crop.width <= width);
        }
    }
}

#[test]
fn jitter_orders_are_equally_likely_and_strength_scales_the_ranges() {
    let recipe = Contrastive { strength: 0.5, jitter_p: 1.0, ..Contrastive::default() };
    let params = sampled(Augmentation::Contrastive(recipe), 32, 32, 32);
    for op in [JitterOp::Brightness, JitterOp::Contrast, JitterOp::Saturation, JitterOp::Hue] {
        for place in 0..4 {
            check_share(&params, 0.25, |params| params.jitter.unwrap().order[place] == op);
        }
    }
    let jitters: Vec<_> = params.iter().map(|params| params.jitter.unwrap()).collect();
    let range = |value: fn(&sdclr_data::augment::JitterParams) -> f64| {
        let values = jitters.iter().map(value);
        values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)))
    };
    let close = |(low, high): (f64, f64), expected_low: f64, expected_high: f64| {
        assert!(low >= expected_low && high <= expected_high, "{low}..{high}");
        assert!((low - expected_low).abs() < 1e-3 && (high - expected_high).abs() < 1e-3, "{low}..{high}");
    };
    close(range(|jitter| jitter.brightness), 0.8, 1.2);
    close(range(|jitter| jitter.contrast), 0.8, 1.2);
    close(range(|jitter| jitter.saturation), 0.8, 1.2);
    close(range(|jitter| jitter.hue), -0.05, 0.05);
}

#[test]
fn probe_crops_move_by_at_most_their_padding() {
    let params = sampled(Augmentation::cifar_probe_train(), 32, 32, 32);
    for shift in -4..=4 {
        check_share(&params, 1.0 / 9.0, |params| params.geometry.window.0 == shift);
        check_share(&params, 1.0 / 9.0, |params| params.geometry.window.1 == shift);
    }
    check_share(&params, 0.5, |params| params.flip);
}
