//! JPEGs decoded at a fraction of their size: close to the whole image, only on request, never too small for the view.

mod common;

use std::path::Path;

use common::write;
use image::ImageFormat;
use sdclr_data::augment::{Augmenter, Crop, Filter, Geometry, Scratch};
use sdclr_data::rng::{Purpose, Rng};
use sdclr_data::{Batch, Dataset, Loader, LoaderSpec, OpenOptions, Order, Shard};
use sdclr_records::augment::{Augmentation, Contrastive};
use tempfile::tempdir;

const IMAGE_SIZE: u32 = 32;

/// Crops alone: what follows them is the same with and without scaling.
fn spec(jpeg_scaling: bool) -> LoaderSpec {
    let crops = Contrastive { flip_p: 0.0, jitter_p: 0.0, grayscale_p: 0.0, ..Contrastive::default() };
    LoaderSpec {
        recipe: Augmentation::Contrastive(crops),
        image_size: IMAGE_SIZE,
        n_views: 2,
        batch_size: 8,
        order: Order::Sequential,
        seed: 3,
        workers: 2,
        jpeg_scaling,
        cache_bytes: LoaderSpec::CACHE_BYTES,
        shard: Shard::default(),
        max_broken_share: 0.0,
        strict: true,
    }
}

/// Waves of 200 pixels and 60 grey levels up and down.
fn waves(format: ImageFormat, width: u32, height: u32, seed: u32) -> Vec<u8> {
    let image = image::RgbImage::from_fn(width, height, |x, y| {
        let wave = |phase: u32| {
            let turns = (f64::from(x) + 0.5 * f64::from(y)) / 200.0 + f64::from(phase) / 7.0;
            (128.0 + 60.0 * (turns * std::f64::consts::TAU).sin()) as u8
        };
        image::Rgb([wave(seed), wave(seed + 2), wave(seed + 4)])
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn folder(path: &Path, format: ImageFormat, sides: (u32, u32)) -> Dataset {
    let extension = format.extensions_str()[0];
    for n in 0..16 {
        let bytes = waves(format, sides.0 + 3 * n, sides.1 + n, n);
        write(&path.join(format!("{n:02}.{extension}")), bytes);
    }
    Dataset::open(path, &OpenOptions::default()).unwrap()
}

fn run(dataset: &Dataset, spec: LoaderSpec) -> Vec<Batch> {
    let mut loader = Loader::new(dataset.clone(), spec).unwrap();
    let mut batches = Vec::new();
    // A second epoch sees what the first one kept in memory.
    for epoch in 0..2 {
        loader.start_epoch(epoch, 0);
        batches.extend(std::iter::from_fn(|| loader.next_batch()).map(Result::unwrap));
    }
    batches
}

fn mean_difference(a: &[Batch], b: &[Batch]) -> f64 {
    let pixels = |batches: &[Batch]| -> Vec<u8> { batches.iter().flat_map(|batch| batch.views.clone()).collect() };
    let (a, b) = (pixels(a), pixels(b));
    assert_eq!(a.len(), b.len());
    a.iter().zip(&b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
}

#[test]
fn without_the_option_views_are_those_of_the_whole_image() {
    let folder_path = tempdir().unwrap();
    let dataset = folder(folder_path.path(), ImageFormat::Jpeg, (400, 300));
    let spec = spec(false);
    let augmenter = Augmenter::new(spec.recipe.clone(), IMAGE_SIZE).unwrap();
    let (mut scratch, mut view) = (Scratch::default(), vec![0; augmenter.view_len()]);
    let mut expected = Vec::new();
    for epoch in 0..2 {
        for position in 0..dataset.len() {
            let image = dataset.decode(position).unwrap();
            for number in 0..2 {
                let mut rng = Rng::new(spec.seed, Purpose::Augmentation, epoch, position as u64, number);
                let params = augmenter.sample(&mut rng, image.width, image.height);
                augmenter.apply(&image, &params, &mut scratch, &mut view);
                expected.extend_from_slice(&view);
            }
        }
    }
    let views: Vec<u8> = run(&dataset, spec).into_iter().flat_map(|batch| batch.views).collect();
    assert!(views == expected);
}

#[test]
fn scaled_views_are_close_to_those_of_the_whole_image() {
    for sides in [(160, 140), (400, 300), (900, 700)] {
        let folder_path = tempdir().unwrap();
        let dataset = folder(folder_path.path(), ImageFormat::Jpeg, sides);
        let (whole, scaled) = (run(&dataset, spec(false)), run(&dataset, spec(true)));
        let difference = mean_difference(&whole, &scaled);
        // A crop's edges move by 2 of 8 pixels on average, over slopes of 4 · 60 / 200 grey levels a pixel on average and up
        // to that in both directions: 2.4 levels, and one for rounding in the JPEG and in the resize.
        assert!(difference > 0.0 && difference < 3.4, "{sides:?}: {difference} grey levels");
    }
}

#[test]
fn what_is_too_small_or_no_jpeg_is_never_scaled() {
    for (format, sides) in [(ImageFormat::Jpeg, (48, 47)), (ImageFormat::Png, (400, 300))] {
        let folder_path = tempdir().unwrap();
        let dataset = folder(folder_path.path(), format, sides);
        assert!(run(&dataset, spec(true)) == run(&dataset, spec(false)), "{format:?}");
    }
}

#[test]
fn grey_jpegs_are_scaled_and_stay_grey() {
    let folder_path = tempdir().unwrap();
    let grey = image::GrayImage::from_fn(300, 200, |x, y| image::Luma([(x / 2 + y / 4) as u8]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    grey.write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
    write(&folder_path.path().join("grey.jpg"), bytes.into_inner());
    let dataset = Dataset::open(folder_path.path(), &OpenOptions::default()).unwrap();
    let (whole, scaled) = (run(&dataset, spec(false)), run(&dataset, spec(true)));
    assert!(scaled[0].views.as_chunks::<3>().0.iter().all(|[r, g, b]| r == g && g == b));
    // The slopes are half a level and a quarter of one a pixel.
    assert!(mean_difference(&whole, &scaled) < 3.0);
}

#[test]
fn a_broken_jpeg_is_broken_with_scaling_too() {
    let whole = waves(ImageFormat::Jpeg, 300, 200, 0);
    for end in [3, 200, whole.len() / 2, whole.len() - 2] {
        let folder_path = tempdir().unwrap();
        write(&folder_path.path().join("cut.jpg"), &whole[..end]);
        let dataset = Dataset::open(folder_path.path(), &OpenOptions::default()).unwrap();
        let message = |jpeg_scaling| {
            let mut loader = Loader::new(dataset.clone(), spec(jpeg_scaling)).unwrap();
            loader.start_epoch(0, 0);
            loader.next_batch().unwrap().unwrap_err().to_string()
        };
        assert_eq!(message(true), message(false), "{end} bytes");
    }
}

#[test]
fn scaled_batches_are_the_same_at_any_number_of_threads() {
    let folder_path = tempdir().unwrap();
    // Some of them may be kept in memory and some may not.
    let dataset = folder(folder_path.path(), ImageFormat::Jpeg, (70, 50));
    let expected = run(&dataset, LoaderSpec { workers: 1, ..spec(true) });
    for workers in [2, 5] {
        assert!(run(&dataset, LoaderSpec { workers, ..spec(true) }) == expected, "{workers} threads");
    }
}

#[test]
fn a_reduced_crop_has_at_least_the_pixels_of_the_view_and_lies_inside() {
    let mut rng = Rng::new(0, Purpose::SplitImages, 0, 0, 0);
    for _ in 0..20_000 {
        let [full_width, full_height] = [0; 2].map(|_| 1 + rng.below(2000) as u32);
        let (width, height) = (1 + rng.below(full_width.into()) as u32, 1 + rng.below(full_height.into()) as u32);
        let left = rng.below(u64::from(full_width - width) + 1) as u32;
        let top = rng.below(u64::from(full_height - height) + 1) as u32;
        let geometry = Geometry::resized_crop(Crop { left, top, width, height }, 64, Filter::Bicubic);
        for divisor in [2, 4, 8] {
            let Some(Geometry { crop, .. }) = geometry.reduced(divisor) else {
                assert!(width.min(height) < 65 * divisor, "{geometry:?} can do with 1/{divisor}");
                continue;
            };
            assert!(crop.width >= 64 && crop.height >= 64, "{geometry:?} at 1/{divisor}: {crop:?}");
            let inside = crop.left + crop.width <= full_width.div_ceil(divisor)
                && crop.top + crop.height <= full_height.div_ceil(divisor);
            assert!(inside, "{geometry:?} at 1/{divisor}: {crop:?}");
        }
    }
}
