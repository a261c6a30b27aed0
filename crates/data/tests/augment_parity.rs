//! The augmentations against torchvision on Pillow images, for fixed parameters.
//!
//! Values: `fixtures/augment.{json,bin.gz}`, recorded by `fixtures/make_augment_fixtures.py`. Tolerance: none. The same
//! integers and the same floating-point operations in the same order are computed, so every pixel is equal.

use std::collections::BTreeMap;
use std::io::Read;

use sdclr_data::RgbImage;
use sdclr_data::augment::{Augmenter, Crop, Filter, Geometry, JitterOp, JitterParams, Params, Scratch};
use sdclr_records::augment::Augmentation;
use serde_json::Value;

struct Fixtures {
    index: Value,
    bytes: Vec<u8>,
}

impl Fixtures {
    fn load() -> Self {
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(&include_bytes!("fixtures/augment.bin.gz")[..]).read_to_end(&mut bytes).unwrap();
        Self { index: serde_json::from_str(include_str!("fixtures/augment.json")).unwrap(), bytes }
    }

    fn image(&self, place: &Value) -> RgbImage {
        let [offset, width, height] = integers(place);
        let len = (width * height * 3) as usize;
        RgbImage::new(width as u32, height as u32, self.bytes[offset as usize..][..len].to_vec())
    }
}

fn integers<const N: usize>(value: &Value) -> [i64; N] {
    let values: Vec<i64> = value.as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect();
    values.try_into().unwrap()
}

fn geometry(case: &Value, image: &RgbImage, side: u32) -> Geometry {
    let (width, height) = (image.width, image.height);
    if let Some(crop) = case.get("crop") {
        let [left, top, width, height] = integers(crop).map(|v| v as u32);
        let filter = if case["filter"] == "bicubic" { Filter::Bicubic } else { Filter::Bilinear };
        return Geometry::resized_crop(Crop { left, top, width, height }, side, filter);
    }
    if let Some(shorter) = case.get("centre") {
        let shorter = shorter.as_u64().filter(|s| *s > 0).map(|s| s as u32);
        return Geometry::centre(width, height, shorter, side);
    }
    let [columns, rows] = case.get("window").map_or([0, 0], integers);
    Geometry::fitted(width, height, side).shifted(columns as i32, rows as i32)
}

fn jitter(value: &Value) -> JitterParams {
    let order: Vec<JitterOp> = value["order"].as_array().unwrap().iter().map(operation).collect();
    let factor = |name: &str| value["factors"][name].as_f64().unwrap();
    JitterParams {
        order: order.try_into().unwrap(),
        brightness: factor("brightness"),
        contrast: factor("contrast"),
        saturation: factor("saturation"),
        hue: factor("hue"),
    }
}

fn operation(name: &Value) -> JitterOp {
    match name.as_str().unwrap() {
        "brightness" => JitterOp::Brightness,
        "contrast" => JitterOp::Contrast,
        "saturation" => JitterOp::Saturation,
        "hue" => JitterOp::Hue,
        other => panic!("{other}"),
    }
}

#[test]
fn every_operation_gives_pillows_pixels() {
    let fixtures = Fixtures::load();
    let mut scratch = Scratch::default();
    let mut errors: BTreeMap<&str, (usize, u8)> = BTreeMap::new();
    for case in fixtures.index["cases"].as_array().unwrap() {
        let (input, expected) = (fixtures.image(&case["input"]), fixtures.image(&case["output"]));
        let params = Params {
            flip: case.get("flip").is_some_and(|flip| flip == true),
            jitter: case.get("jitter").map(jitter),
            grayscale: case.get("grayscale").is_some_and(|grayscale| grayscale == true),
            blur_sigma_px: case.get("blur_sigma_px").and_then(Value::as_f64),
            ..Params::plain(geometry(case, &input, expected.width))
        };
        let augmenter = Augmenter::new(Augmentation::cifar_contrastive(), expected.width).unwrap();
        let mut view = vec![0xaa; augmenter.view_len()];
        augmenter.apply(&input, &params, &mut scratch, &mut view);

        let differences = view.iter().zip(&expected.pixels).map(|(a, b)| a.abs_diff(*b));
        let error = errors.entry(case["name"].as_str().unwrap()).or_default();
        *error = (error.0 + 1, error.1.max(differences.max().unwrap()));
    }
    assert_eq!(errors.values().map(|error| error.0).sum::<usize>(), 124);
    assert!(errors.values().all(|error| error.1 == 0), "name: (cases, largest difference) {errors:?}");
}

/// All 2^24 colours through the 8-bit HSV conversion and back, for four shifts.
#[test]
fn hue_shift_gives_pillows_pixels_for_every_colour() {
    let fixtures = Fixtures::load();
    let colours = (0..1u32 << 24).flat_map(|rgb| [(rgb >> 16) as u8, (rgb >> 8) as u8, rgb as u8]).collect();
    let image = RgbImage::new(4096, 4096, colours);
    let augmenter = Augmenter::new(Augmentation::cifar_contrastive(), 4096).unwrap();
    let (mut scratch, mut view) = (Scratch::default(), vec![0; augmenter.view_len()]);
    for (hue, expected) in fixtures.index["hue_crc32"].as_object().unwrap() {
        let order = [JitterOp::Hue, JitterOp::Brightness, JitterOp::Contrast, JitterOp::Saturation];
        let (brightness, contrast, saturation) = (1.0, 1.0, 1.0);
        let jitter = JitterParams { order, brightness, contrast, saturation, hue: hue.parse().unwrap() };
        let plain = Params::plain(Geometry::fitted(4096, 4096, 4096));
        augmenter.apply(&image, &Params { jitter: Some(jitter), ..plain }, &mut scratch, &mut view);
        let mut crc = flate2::Crc::new();
        crc.update(&view);
        assert_eq!(u64::from(crc.sum()), expected.as_u64().unwrap(), "hue {hue}");
    }
}
