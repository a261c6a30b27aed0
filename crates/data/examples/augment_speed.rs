//! Two-view samples a second that one thread makes, by recipe and by operation, as a JSON line each: the counterpart of a
//! torchvision script that does the same to random images (32×32 for CIFAR's recipe, 500×375 for ImageNet's, no decoding).
//!
//! `cargo run --release -p sdclr-data --example augment_speed [SECONDS] [CASE]...`; without a CASE, all of them.

use std::io::Write;
use std::time::Instant;

use sdclr_data::augment::{Augmenter, Scratch};
use sdclr_data::rng::{Purpose, Rng};
use sdclr_data::{Dataset, Loader, LoaderSpec, Order, RgbImage, Shard};
use sdclr_records::augment::{Augmentation, Contrastive};

/// Name, recipe, and the sides in pixels of the view and of the image.
type Case = (String, Augmentation, [u32; 3]);

fn main() -> std::io::Result<()> {
    let seconds: f64 = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(2.0);
    let chosen: Vec<String> = std::env::args().skip(2).collect();
    let is_chosen = |name: &str| chosen.is_empty() || chosen.iter().any(|chosen| chosen == name);
    for (name, recipe, [side, width, height]) in cases().into_iter().filter(|case| is_chosen(&case.0)) {
        let augmenter = Augmenter::new(recipe, side).unwrap();
        let images: Vec<RgbImage> = (0..20).map(|index| noise(width, height, index)).collect();
        let (mut scratch, mut view) = (Scratch::default(), vec![0; augmenter.view_len()]);
        let (start, mut n_samples) = (Instant::now(), 0u64);
        while start.elapsed().as_secs_f64() < seconds {
            for image in &images {
                for v in 0..2 {
                    let mut rng = Rng::new(1, Purpose::Augmentation, 0, n_samples, v);
                    let params = augmenter.sample(&mut rng, width, height);
                    augmenter.apply(image, &params, &mut scratch, &mut view);
                }
                n_samples += 1;
            }
        }
        print(&name, n_samples as f64 / start.elapsed().as_secs_f64())?;
    }
    if is_chosen(THROUGH_THE_LOADER) { through_the_loader(seconds) } else { Ok(()) }
}

const THROUGH_THE_LOADER: &str = "cifar through the loader";

fn print(name: &str, samples_per_s: f64) -> std::io::Result<()> {
    let view_us = 5e5 / samples_per_s;
    writeln!(
        std::io::stdout(),
        r#"{{"peer": "sdclr", "recipe": "{name}", "samples_per_s_per_core": {samples_per_s:.1}, "view_us": {view_us:.2}}}"#
    )
}

/// The recipes, and their crop alone and with one more operation each.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, recipe, sides) in [
        ("cifar", Contrastive::default(), [32, 32, 32]),
        ("imagenet", Contrastive { area_min: 0.08, blur_p: 0.5, ..Contrastive::default() }, [224, 500, 375]),
    ] {
        cases.push((name.to_owned(), Augmentation::Contrastive(recipe.clone()), sides));
        let bare = Contrastive { flip_p: 0.0, jitter_p: 0.0, grayscale_p: 0.0, blur_p: 0.0, ..recipe };
        for (operation, recipe) in [
            ("crop and resize", bare.clone()),
            ("crop + jitter", Contrastive { jitter_p: 1.0, ..bare.clone() }),
            ("crop + grayscale", Contrastive { grayscale_p: 1.0, ..bare.clone() }),
            ("crop + blur", Contrastive { blur_p: 1.0, ..bare }),
        ] {
            cases.push((format!("{name} {operation}"), Augmentation::Contrastive(recipe), sides));
        }
    }
    cases.push(("cifar probe".to_owned(), Augmentation::cifar_probe_train(), [32, 32, 32]));
    cases
}

/// The whole way of a CIFAR-size image with one thread: batches of 512, recycled.
fn through_the_loader(seconds: f64) -> std::io::Result<()> {
    let images = (0..5000).map(|index| noise(32, 32, index)).collect();
    let spec = LoaderSpec {
        recipe: Augmentation::cifar_contrastive(),
        image_size: 32,
        n_views: 2,
        batch_size: 512,
        order: Order::Shuffled,
        seed: 1,
        workers: 1,
        jpeg_scaling: false,
        cache_bytes: LoaderSpec::CACHE_BYTES,
        shard: Shard::default(),
        max_broken_share: 0.0,
        strict: true,
    };
    let mut loader = Loader::new(Dataset::from_memory(images, None), spec).unwrap();
    let (start, mut n_samples, mut epoch) = (Instant::now(), 0, 0);
    while start.elapsed().as_secs_f64() < seconds {
        loader.start_epoch(epoch, 0);
        while let Some(batch) = loader.next_batch() {
            let batch = batch.unwrap();
            n_samples += batch.n_images();
            loader.recycle(batch);
        }
        epoch += 1;
    }
    print(THROUGH_THE_LOADER, n_samples as f64 / start.elapsed().as_secs_f64())
}

fn noise(width: u32, height: u32, index: u64) -> RgbImage {
    let mut rng = Rng::new(0, Purpose::EpochOrder, 0, index, 0);
    let pixels = (0..width * height * 3).map(|_| rng.below(256) as u8).collect();
    RgbImage::new(width, height, pixels)
}
