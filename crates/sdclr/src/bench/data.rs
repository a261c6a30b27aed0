//! How fast images become views: augmentation on one core, and decoding and augmentation on all workers.

use super::{Repeats, median};
use crate::error::Error;
use sdclr_data::augment::{Augmenter, Scratch};
use sdclr_data::rng::{Purpose, Rng};
use sdclr_data::{Dataset, Loader, LoaderSpec, Order, RgbImage, Shard};
use sdclr_records::RunConfig;
use sdclr_records::augment::Augmentation;
use std::time::Instant;

/// Views of an image.
const N_VIEWS: usize = 2;
/// Side in pixels up to which made-up images are as large as the views, as those of small data sets are.
const LARGEST_SMALL: usize = 64;
/// Width and height of larger made-up images: ImageNet's median.
const PHOTOGRAPH: (u32, u32) = (500, 375);
/// Images that one augmentation sample goes through: enough for every branch of the recipe.
const N_AUGMENTED: usize = 64;

/// Images of random bytes, labelled by ten classes in turn, as a data set for `image_size`.
#[must_use]
pub fn made_up(image_size: usize, n_images: usize) -> Dataset {
    let small = image_size <= LARGEST_SMALL;
    let (width, height) = if small { (image_size as u32, image_size as u32) } else { PHOTOGRAPH };
    let image = |index: usize| {
        let mut rng = Rng::new(0, Purpose::EpochOrder, 0, index as u64, 0);
        RgbImage::new(width, height, (0..width * height * 3).map(|_| rng.below(256) as u8).collect())
    };
    let labels = (0..n_images as u32).map(|index| index % 10).collect();
    Dataset::from_memory((0..n_images).map(image).collect(), Some(labels))
}

/// Images that stand for a data set of this view size, few enough to make and hold.
#[must_use]
pub fn n_made_up(image_size: usize) -> usize {
    if image_size <= LARGEST_SMALL { 2048 } else { 128 }
}

/// Images a second that one thread turns into two views each, decoding excluded; a sample is a pass over some images.
///
/// # Errors
/// A recipe that does not do, no image that can be decoded.
pub fn augmentation_rate(config: &RunConfig, dataset: &Dataset, repeats: Repeats) -> Result<f64, Error> {
    let augmenter = Augmenter::new(Augmentation::Contrastive(config.augment.clone()), config.data.image_size as u32)?;
    let images = dataset.sample(N_AUGMENTED);
    if images.is_empty() {
        return Err(Error::NoImages { n: dataset.len(), what: "to augment".to_owned() });
    }
    let (mut scratch, mut view, mut n_seen) = (Scratch::default(), vec![0; augmenter.view_len()], 0);
    let mut pass = || {
        let began = Instant::now();
        for image in &images {
            for v in 0..N_VIEWS as u64 {
                let mut rng = Rng::new(config.seed, Purpose::Augmentation, 0, n_seen, v);
                let params = augmenter.sample(&mut rng, image.width, image.height);
                augmenter.apply(image, &params, &mut scratch, &mut view);
            }
            n_seen += 1;
        }
        Ok::<f64, Error>(images.len() as f64 / began.elapsed().as_secs_f64())
    };
    pass()?;
    Ok(median(&repeats.collect(pass)?))
}

/// What the loader reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoaderRate {
    /// Images a second, two views each, decoded and augmented by all workers.
    pub images_per_s: f64,
    /// Threads that did it.
    pub workers: usize,
    /// Images of a batch.
    pub batch_size: usize,
}

/// Images a second that arrive while nothing else computes, over about `seconds`; a first batch is not counted.
///
/// # Errors
/// Broken images, settings that the loader refuses.
pub fn loader_rate(config: &RunConfig, dataset: &Dataset, seconds: f64) -> Result<LoaderRate, Error> {
    let workers = match config.data.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let batch_size = config.train.batch_size.min(dataset.len());
    let spec = LoaderSpec {
        recipe: Augmentation::Contrastive(config.augment.clone()),
        image_size: config.data.image_size as u32,
        n_views: N_VIEWS,
        batch_size,
        order: Order::Shuffled,
        seed: config.seed,
        workers,
        jpeg_scaling: config.data.jpeg_scaling,
        cache_bytes: config.data.cache_bytes(),
        shard: Shard::default(),
        max_broken_share: config.data.max_broken as f32,
        strict: config.data.strict,
    };
    let mut loader = Loader::new(dataset.clone(), spec)?;
    let (mut began, mut n_images, mut n_batches) = (Instant::now(), 0, 0);
    for epoch in 0.. {
        loader.start_epoch(epoch, 0);
        while let Some(batch) = loader.next_batch() {
            let batch = batch?;
            if n_batches == 0 {
                began = Instant::now();
            } else {
                n_images += batch.n_images();
            }
            n_batches += 1;
            loader.recycle(batch);
            let elapsed = began.elapsed().as_secs_f64();
            if n_images > 0 && elapsed >= seconds {
                return Ok(LoaderRate { images_per_s: n_images as f64 / elapsed, workers, batch_size });
            }
        }
        if epoch > 0 && n_images == 0 {
            break;
        }
    }
    Err(Error::NoImages { n: dataset.len(), what: "to load".to_owned() })
}
