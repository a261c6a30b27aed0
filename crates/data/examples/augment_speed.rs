//! Views per second of the two contrastive recipes on one thread, as two-view samples: the counterpart of a torchvision
//! script that does the same to random images (32×32 for the CIFAR recipe, 500×375 for the ImageNet one, no decoding).
//!
//! `cargo run --release -p sdclr-data --example augment_speed [SECONDS]`

use std::io::Write;
use std::time::Instant;

use sdclr_data::augment::{Augmenter, Scratch};
use sdclr_data::rng::{Purpose, Rng};
use sdclr_data::{Dataset, Loader, LoaderSpec, Order, RgbImage, Shard};
use sdclr_records::augment::{Augmentation, Contrastive};

fn main() -> std::io::Result<()> {
    let seconds: f64 = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(2.0);
    let only = |change: fn(&mut Contrastive)| {
        let mut recipe = Contrastive { flip_p: 0.0, jitter_p: 0.0, grayscale_p: 0.0, ..Contrastive::default() };
        change(&mut recipe);
        Augmentation::Contrastive(recipe)
    };
    let hue = |recipe: &mut Contrastive| {
        recipe.jitter_p = 1.0;
        recipe.jitter = serde_json::from_str(r#"{"brightness":0,"contrast":0,"saturation":0,"hue":0.1}"#).unwrap();
    };
    for (name, recipe, side, width, height) in [
        ("cifar", Augmentation::cifar_contrastive(), 32, 32, 32),
        ("imagenet", Augmentation::imagenet_contrastive(), 224, 500, 375),
        ("cifar crop and resize", only(|_| ()), 32, 32, 32),
        ("cifar + jitter", only(|recipe| recipe.jitter_p = 1.0), 32, 32, 32),
        ("cifar + hue", only(hue), 32, 32, 32),
        ("cifar + grayscale", only(|recipe| recipe.grayscale_p = 1.0), 32, 32, 32),
        ("cifar + blur", only(|recipe| recipe.blur_p = 1.0), 32, 32, 32),
        ("imagenet crop and resize", only(|recipe| recipe.area_min = 0.08), 224, 500, 375),
        ("cifar probe", Augmentation::cifar_probe_train(), 32, 32, 32),
    ] {
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
        let samples_per_s = n_samples as f64 / start.elapsed().as_secs_f64();
        let microseconds = 5e5 / samples_per_s;
        writeln!(std::io::stdout(), "{name}: {samples_per_s:.0} samples/s, {microseconds:.1} us/view")?;
    }
    through_the_loader(seconds)
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
    let samples_per_s = n_samples as f64 / start.elapsed().as_secs_f64();
    writeln!(std::io::stdout(), "cifar through the loader: {samples_per_s:.0} samples/s")
}

fn noise(width: u32, height: u32, index: u64) -> RgbImage {
    let mut rng = Rng::new(0, Purpose::EpochOrder, 0, index, 0);
    let pixels = (0..width * height * 3).map(|_| rng.below(256) as u8).collect();
    RgbImage::new(width, height, pixels)
}
