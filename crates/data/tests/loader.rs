//! The loader: the same batches at any number of threads and ranks, and what happens when images are broken.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{encoded, write};
use image::ImageFormat;
use sdclr_data::{Batch, DataError, Dataset, Loader, LoaderSpec, OpenOptions, Order, RgbImage, Shard, Source};
use sdclr_records::augment::Augmentation;
use tempfile::tempdir;

fn spec() -> LoaderSpec {
    LoaderSpec {
        recipe: Augmentation::cifar_contrastive(),
        image_size: 16,
        n_views: 2,
        batch_size: 40,
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

/// Images of different sizes whose first pixel's red is their index.
fn images(n: usize) -> Dataset {
    let image = |i: usize| {
        let (width, height) = (12 + (i % 9) as u32, 20 - (i % 5) as u32);
        let mut image = RgbImage::new(width, height, vec![0; (width * height * 3) as usize]);
        image.pixels.iter_mut().enumerate().for_each(|(at, value)| *value = (at * (i + 3) % 253) as u8);
        image.pixels[0] = i as u8;
        image
    };
    Dataset::from_memory((0..n).map(image).collect(), Some((0..n as u32).map(|i| i % 7).collect()))
}

fn epoch(loader: &mut Loader, epoch: u64, first_batch: usize) -> Vec<Batch> {
    loader.start_epoch(epoch, first_batch);
    std::iter::from_fn(|| loader.next_batch()).map(Result::unwrap).collect()
}

fn run(dataset: &Dataset, spec: LoaderSpec, epochs: std::ops::Range<u64>) -> Vec<Batch> {
    let mut loader = Loader::new(dataset.clone(), spec).unwrap();
    epochs.flat_map(|n| epoch(&mut loader, n, 0)).collect()
}

#[test]
fn batches_are_the_same_at_any_number_of_threads() {
    let dataset = images(101);
    let expected = run(&dataset, LoaderSpec { workers: 1, ..spec() }, 1..3);
    assert_eq!(expected.iter().map(Batch::n_images).collect::<Vec<_>>(), [40, 40, 21, 40, 40, 21]);
    for workers in [2, 3, 8] {
        assert_eq!(run(&dataset, LoaderSpec { workers, ..spec() }, 1..3), expected, "{workers} threads");
    }
}

#[test]
fn ranks_share_each_global_batch() {
    let dataset = images(101);
    let expected = run(&dataset, spec(), 1..2);
    for ranks in [2, 3, 50] {
        let parts: Vec<_> =
            (0..ranks).map(|rank| run(&dataset, LoaderSpec { shard: Shard { rank, ranks }, ..spec() }, 1..2)).collect();
        for (n, expected) in expected.iter().enumerate() {
            let joined = Batch {
                views: parts.iter().flat_map(|batches| batches[n].views.clone()).collect(),
                indices: parts.iter().flat_map(|batches| batches[n].indices.clone()).collect(),
                labels: parts.iter().flat_map(|batches| batches[n].labels.clone()).collect(),
            };
            assert_eq!(&joined, expected, "batch {n} of {ranks} ranks");
        }
    }
}

#[test]
fn a_loader_knows_roughly_what_it_will_hold() {
    let folder = tempdir().unwrap();
    for n in 0..10 {
        write(&folder.path().join(format!("{n}.png")), encoded(ImageFormat::Png, 30, 20, [0; 3]));
    }
    let views = |n_images: usize| 4 * n_images * 2 * 3 * 16 * 16;
    let files = Dataset::open(folder.path(), &OpenOptions::default()).unwrap();
    assert_eq!(Loader::new(files, spec()).unwrap().memory_bytes(), 10 * 30 * 20 * 3 + views(10));
    assert_eq!(Loader::new(images(101), spec()).unwrap().memory_bytes(), views(40), "nothing is kept twice");
    // 20 threads work on 40 chunks of 16 images, 64 on all that there is.
    let on_many = |workers| {
        let spec = LoaderSpec { workers, batch_size: 32, ..spec() };
        Loader::new(images(1000), spec).unwrap().memory_bytes() / (2 * 3 * 16 * 16)
    };
    assert_eq!([2, 20, 64].map(on_many), [4 * 32, 40 * 16 + 64, 1000 + 64]);
}

/// Grey images of 10×10 pixels that count how often they are decoded.
struct Counting(Arc<AtomicUsize>);

impl Source for Counting {
    fn len(&self) -> usize {
        20
    }
    fn label(&self, _: usize) -> Option<u32> {
        None
    }
    fn name(&self, index: usize) -> String {
        format!("image {index}")
    }
    fn decode_into(&self, index: usize, image: &mut RgbImage) -> Result<(), DataError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        *image = RgbImage::new(10, 10, vec![index as u8; 300]);
        Ok(())
    }
    fn class_names(&self) -> Option<&[String]> {
        None
    }
    fn description(&self) -> String {
        "a source for this test".to_owned()
    }
}

#[test]
fn decoded_images_stay_in_memory_up_to_the_limit() {
    let check = |cache_bytes: usize, expected_decoded: usize| {
        let n_decoded = Arc::new(AtomicUsize::new(0));
        let dataset = Dataset::from_source(Box::new(Counting(Arc::clone(&n_decoded)))).unwrap();
        // One thread, so that no two images want the last place at once.
        let batches = run(&dataset, LoaderSpec { cache_bytes, workers: 1, ..spec() }, 0..3);
        assert_eq!(n_decoded.load(Ordering::Relaxed), expected_decoded, "{cache_bytes} bytes");
        batches
    };
    let all = check(LoaderSpec::CACHE_BYTES, 20);
    assert_eq!(check(20 * 300, 20), all, "just enough");
    assert_eq!(check(15 * 300 + 299, 20 + 2 * 5), all, "room for 15");
    assert_eq!(check(0, 3 * 20), all, "room for none");
}

#[test]
fn resumed_epoch_continues_where_it_stopped() {
    let dataset = images(101);
    let whole = run(&dataset, spec(), 5..6);
    let mut loader = Loader::new(dataset, spec()).unwrap();
    for first in 0..=3 {
        assert_eq!(epoch(&mut loader, 5, first), whole[first..]);
    }
    loader.start_epoch(4, 0);
    loader.next_batch().unwrap().unwrap();
    assert_eq!(epoch(&mut loader, 5, 0), whole, "after an epoch that was given up");
    assert!(loader.next_batch().is_none());
}

#[test]
fn every_image_comes_once_with_its_label_in_a_new_order_each_epoch() {
    let dataset = images(101);
    let order = |n| -> Vec<u32> { run(&dataset, spec(), n..n + 1).into_iter().flat_map(|b| b.indices).collect() };
    let (first, second) = (order(1), order(2));
    assert_ne!(first, second);
    for batch in run(&dataset, spec(), 1..2) {
        let labels: Vec<u32> = batch.indices.iter().map(|index| index % 7).collect();
        assert_eq!(batch.labels, labels);
    }
    for mut indices in [first, second] {
        indices.sort_unstable();
        assert_eq!(indices, (0..101).collect::<Vec<_>>());
    }
    let sequential = run(&dataset, LoaderSpec { order: Order::Sequential, ..spec() }, 1..2);
    assert!(sequential.iter().flat_map(|batch| &batch.indices).copied().eq(0..101));
}

#[test]
fn views_of_an_image_depend_on_its_source_index_not_on_the_selection() {
    let dataset = images(50);
    let all = run(&dataset, LoaderSpec { order: Order::Sequential, ..spec() }, 3..4);
    let some = dataset.select(&[31, 7]).unwrap();
    let some = run(&some, LoaderSpec { order: Order::Sequential, ..spec() }, 3..4);
    let view_len = 16 * 16 * 3;
    let image = |batch: &Batch, n: usize| batch.views[n * 2 * view_len..(n + 1) * 2 * view_len].to_vec();
    assert_eq!(image(&some[0], 0), image(&all[0], 31));
    assert_eq!(image(&some[0], 1), image(&all[0], 7));
    let views = image(&some[0], 0);
    assert_ne!(views[..view_len], views[view_len..], "two views of one image differ");
}

#[test]
fn mnist_images_are_padded_and_others_scaled() {
    let white = |side: u32| RgbImage::new(side, side, vec![255; (side * side * 3) as usize]);
    let dataset = Dataset::from_memory(vec![white(28), white(7), white(32)], None);
    let spec = LoaderSpec { recipe: Augmentation::cifar_test(), image_size: 32, n_views: 1, ..spec() };
    let batch = run(&dataset, LoaderSpec { order: Order::Sequential, ..spec }, 0..1).remove(0);
    assert!(batch.labels.is_empty());
    let black: Vec<_> = batch.views.chunks_exact(32 * 32 * 3).map(|v| v.iter().filter(|v| **v == 0).count()).collect();
    assert_eq!(black, [(32 * 32 - 28 * 28) * 3, 0, 0]);
}

fn folder_with_broken(path: &Path, n_images: usize, n_broken: usize) -> Dataset {
    for i in 0..n_images {
        let bytes = if i < n_broken { b"broken".to_vec() } else { encoded(ImageFormat::Png, 9, 9, [i as u8; 3]) };
        write(&path.join(format!("{i:03}.png")), bytes);
    }
    Dataset::open(path, &OpenOptions::default()).unwrap()
}

#[test]
fn broken_images_are_left_out_and_listed() {
    let folder = tempdir().unwrap();
    let dataset = folder_with_broken(folder.path(), 50, 2);
    let mut loader = Loader::new(dataset, spec()).unwrap();
    for n in 0..3 {
        let batches = epoch(&mut loader, n, 0);
        assert_eq!(batches.iter().map(Batch::n_images).sum::<usize>(), 48);
        assert!(batches.iter().all(|batch| batch.views.len() == batch.n_images() * 2 * 16 * 16 * 3));
    }
    let skipped = loader.skipped();
    assert_eq!(skipped.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["000.png", "001.png"]);
    assert!(skipped[0].reason.contains("no supported image format"), "{}", skipped[0].reason);
}

fn first_error(dataset: Dataset, spec: LoaderSpec) -> DataError {
    let mut loader = Loader::new(dataset, spec).unwrap();
    loader.start_epoch(0, 0);
    let error = std::iter::from_fn(|| loader.next_batch()).find_map(Result::err).unwrap();
    assert!(loader.next_batch().is_none(), "an error ends the epoch");
    error
}

#[test]
fn strictness_and_too_many_broken_images_are_errors() {
    let folder = tempdir().unwrap();
    let dataset = folder_with_broken(folder.path(), 50, 3);
    let message = first_error(dataset.clone(), spec()).to_string();
    assert!(message.starts_with("3 of 50 images are broken") && message.contains(".png"), "{message}");
    let message = first_error(dataset, LoaderSpec { strict: true, ..spec() }).to_string();
    assert!(message.contains("broken image"), "{message}");
}

/// A source with a defect of its own.
struct Panicking;

impl Source for Panicking {
    fn len(&self) -> usize {
        30
    }
    fn label(&self, _: usize) -> Option<u32> {
        None
    }
    fn name(&self, index: usize) -> String {
        format!("image {index}")
    }
    fn decode_into(&self, index: usize, image: &mut RgbImage) -> Result<(), DataError> {
        assert!(index != 17, "cannot count to 17");
        *image = RgbImage::new(1, 1, vec![0; 3]);
        Ok(())
    }
    fn class_names(&self) -> Option<&[String]> {
        None
    }
    fn description(&self) -> String {
        "a source for this test".to_owned()
    }
}

#[test]
fn panic_in_a_thread_is_an_error_here() {
    let dataset = Dataset::from_source(Box::new(Panicking)).unwrap();
    let message = first_error(dataset, spec()).to_string();
    assert!(message.contains("image 17") && message.contains("cannot count to 17"), "{message}");
}

#[test]
fn loader_can_be_dropped_at_any_time() {
    for n_batches in 0..3 {
        let mut loader = Loader::new(images(200), LoaderSpec { workers: 3, ..spec() }).unwrap();
        loader.start_epoch(0, 0);
        for _ in 0..n_batches {
            let batch = loader.next_batch().unwrap().unwrap();
            loader.recycle(batch);
        }
    }
}

#[test]
fn settings_without_sense_are_named() {
    let check = |change: fn(&mut LoaderSpec), expected: &str| {
        let mut spec = spec();
        change(&mut spec);
        let message = Loader::new(images(3), spec).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    };
    check(|spec| spec.batch_size = 0, "batch size 0");
    check(|spec| spec.n_views = 0, "0 views");
    check(|spec| spec.shard = Shard { rank: 2, ranks: 2 }, "rank 2 of 2");
    check(|spec| spec.max_broken_share = 1.5, "1.5");
    check(|spec| spec.image_size = 0, "image size 0");
    check(
        |spec| spec.recipe = Augmentation::CropPad(sdclr_records::augment::CropPad { padding: 4, flip_p: 2.0 }),
        "flip_p",
    );
}

#[test]
fn recycled_buffers_are_used_again() {
    let mut loader = Loader::new(images(101), spec()).unwrap();
    loader.start_epoch(0, 0);
    let batch = loader.next_batch().unwrap().unwrap();
    let (place, expected_len) = (batch.views.as_ptr(), batch.views.len());
    loader.recycle(batch);
    let batch = loader.next_batch().unwrap().unwrap();
    assert_eq!((batch.views.as_ptr(), batch.views.len()), (place, expected_len));
}
