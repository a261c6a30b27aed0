//! Two-view samples a second from a folder of JPEGs by one loader thread, decoded whole and scaled (`--jpeg-scaling`) in
//! turn: a JSON line each. Every image is decoded once a line; the files should lie in the system's cache.
//!
//! `cargo run --release -p sdclr-data --example jpeg_speed FOLDER [ROUNDS] [IMAGE_SIZE]`

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use sdclr_data::{Dataset, Loader, LoaderSpec, OpenOptions, Order, Shard};
use sdclr_records::augment::Augmentation;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("name a folder of JPEG files")?);
    let rounds: usize = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let image_size: u32 = arguments.next().map_or(Ok(224), |text| text.parse())?;
    let dataset = Dataset::open(&folder, &OpenOptions::default())?;
    let first = dataset.decode(0)?;
    for _ in 0..rounds {
        for scaling in [false, true] {
            let spec = LoaderSpec {
                recipe: Augmentation::imagenet_contrastive(),
                image_size,
                n_views: 2,
                batch_size: 16,
                order: Order::Sequential,
                seed: 1,
                workers: 1,
                jpeg_scaling: scaling,
                cache_bytes: 0,
                shard: Shard::default(),
                max_broken_share: 0.0,
                strict: true,
            };
            let mut loader = Loader::new(dataset.clone(), spec)?;
            let start = Instant::now();
            loader.start_epoch(0, 0);
            while let Some(batch) = loader.next_batch() {
                loader.recycle(batch?);
            }
            let samples_per_s = dataset.len() as f64 / start.elapsed().as_secs_f64();
            writeln!(
                std::io::stdout(),
                r#"{{"width": {}, "height": {}, "images": {}, "image_size": {image_size}, "jpeg_scaling": {scaling}, "samples_per_s": {samples_per_s:.1}}}"#,
                first.width,
                first.height,
                dataset.len()
            )?;
        }
    }
    Ok(())
}
