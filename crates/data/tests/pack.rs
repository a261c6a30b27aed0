//! Packs: what is read back is what was put in, however many threads wrote it, and damage is found.

mod common;

use std::path::{Path, PathBuf};

use common::{cifar10_binary, encoded, npy_i64, write};
use image::{ImageFormat, Rgb};
use sdclr_data::augment::{Augmenter, Scratch};
use sdclr_data::pack::{PackJob, PackSpec, Packed, Storage, estimated_bytes, pack};
use sdclr_data::rng::{Purpose, Rng};
use sdclr_data::{DataError, Dataset, OpenOptions, RgbImage, inspect};
use sdclr_records::augment::Augmentation;
use tempfile::{TempDir, tempdir};

fn open(path: &Path) -> Result<Dataset, DataError> {
    Dataset::open(path, &OpenOptions::default())
}

fn spec() -> PackSpec {
    PackSpec { shorter_side: Some(256), storage: Storage::Raw, workers: 2, max_broken_share: 0.5, strict: false }
}

fn pack_to(dataset: &Dataset, out: &Path, spec: PackSpec) -> Result<Packed, DataError> {
    let job = PackJob { dataset, out, spec, stop: &|| false, progress: &mut |_, _| {} };
    Ok(pack(job)?.expect("nobody stopped it"))
}

/// A packed copy of a data set beside it.
fn packed(dataset: &Dataset, spec: PackSpec) -> (TempDir, PathBuf, Dataset) {
    let folder = tempdir().unwrap();
    let path = folder.path().join("images.sdpack");
    pack_to(dataset, &path, spec).unwrap();
    let opened = open(&path).unwrap();
    (folder, path, opened)
}

/// An image in which every pixel differs from its neighbours.
fn pattern(width: u32, height: u32, seed: u32) -> image::RgbImage {
    let value = |x: u32, y: u32, c: u32| ((x * 7 + y * 13 + c * 59 + seed * 31) ^ (x * y / 5)) as u8;
    image::RgbImage::from_fn(width, height, |x, y| Rgb([value(x, y, 0), value(x, y, 1), value(x, y, 2)]))
}

/// Class folders with PNGs of several sizes, one of which is broken.
fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    let sizes = [("ant/1.png", 400, 300), ("ant/2.png", 90, 70), ("bee/1.png", 300, 701), ("bee/2.png", 256, 900)];
    for (seed, (name, width, height)) in sizes.into_iter().enumerate() {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        pattern(width, height, seed as u32).save(path).unwrap();
    }
    write(&folder.path().join("ant/0.png"), b"no picture");
    folder
}

#[test]
fn an_unresized_pack_holds_the_very_pixels_names_labels_and_classes() {
    let folder = folder();
    cifar10_binary(&folder.path().join("cifar"));
    for (path, n_broken) in [(folder.path().join("ant"), 1), (folder.path().join("cifar"), 0)] {
        let source = open(&path).unwrap();
        let whole: Vec<usize> = (0..source.len()).filter(|&position| source.decode(position).is_ok()).collect();
        let (_folder, _, pack) = packed(&source, PackSpec { shorter_side: None, ..spec() });
        assert_eq!(pack.len(), source.len() - n_broken);
        for (position, &original) in whole.iter().enumerate() {
            assert_eq!(pack.decode(position).unwrap(), source.decode(original).unwrap());
            assert_eq!(pack.name(position), source.name(original));
            assert_eq!(pack.label(position), source.label(original));
        }
        assert_eq!(pack.class_names(), source.class_names());
        assert_eq!(pack.n_classes(), source.n_classes());
        assert!(pack.in_memory());
    }
    let cifar = open(&folder.path().join("cifar")).unwrap();
    let (_folder, _, pack) = packed(&cifar, spec());
    assert_eq!(pack.fingerprint(), cifar.fingerprint(), "the same images, numbered alike: a run may go on with them");
    assert!(pack.description().contains("pack (raw RGB, sizes kept) of CIFAR-10 train"), "{}", pack.description());
}

#[test]
fn labels_that_a_split_brought_and_classes_without_an_image_are_kept() {
    let folder = folder();
    let split = write(&folder.path().join("split.txt"), "bee/1.png 5\nant/2.png 2\n");
    let narrow = |split| Dataset::open(folder.path(), &OpenOptions { split: Some(split), ..OpenOptions::default() });
    let (_folder, path, pack) = packed(&narrow(split).unwrap(), spec());
    assert_eq!((pack.name(0), pack.label(0), pack.label(1)), ("bee/1.png".to_owned(), Some(5), Some(2)));
    assert_eq!((pack.class_names(), pack.n_classes()), (None, Some(6)));
    // Splits of the pack itself, by position and by name.
    let indices = write(&path.with_file_name("second.npy"), npy_i64(&[1]));
    let names = write(&path.with_file_name("first.txt"), "all/bee/1.png\n");
    for (split, expected) in [(indices, "ant/2.png"), (names, "bee/1.png")] {
        let options = OpenOptions { split: Some(split), ..OpenOptions::default() };
        assert_eq!(Dataset::open(&path, &options).unwrap().name(0), expected);
    }
    let split = write(&folder.path().join("bees.txt"), "bee/1.png\nbee/2.png\n");
    let (_folder, _, pack) = packed(&narrow(split).unwrap(), spec());
    assert_eq!(pack.class_names().unwrap(), ["ant", "bee"]);
    assert_eq!(pack.class_counts(), Some(vec![0, 2]));
    let unlabelled = Dataset::from_memory(vec![RgbImage::new(1, 1, vec![1, 2, 3])], None);
    let (_folder, _, pack) = packed(&unlabelled, spec());
    assert_eq!((pack.label(0), pack.class_names(), pack.name(0)), (None, None, "memory:0".to_owned()));
}

#[test]
fn the_shorter_side_shrinks_as_testing_on_imagenet_resizes_it_and_never_grows() {
    let folder = folder();
    let source = open(folder.path()).unwrap();
    let (_folder, _, pack) = packed(&source, spec());
    let size = |position: usize| {
        let image = pack.decode(position).unwrap();
        (image.width, image.height)
    };
    // torchvision's int(256 * longer / shorter).
    assert_eq!([0, 1, 2, 3].map(size), [(341, 256), (90, 70), (256, 598), (256, 900)]);
    let description = pack.description();
    assert!(description.contains("2 of 4 images shrunk to a shorter side of 256"), "{description}");
    // Views of ImageNet's test recipe are those of the originals, to the byte.
    let augmenter = Augmenter::new(Augmentation::imagenet_test(), 224).unwrap();
    let view = |image: &RgbImage| {
        let mut rng = Rng::new(0, Purpose::Augmentation, 0, 0, 0);
        let params = augmenter.sample(&mut rng, image.width, image.height);
        let mut view = vec![0; augmenter.view_len()];
        augmenter.apply(image, &params, &mut Scratch::default(), &mut view);
        view
    };
    for position in 0..4 {
        assert!(view(&pack.decode(position).unwrap()) == view(&source.decode(position + 1).unwrap()), "{position}");
    }
    // And a square made smaller is that of a plain resize.
    let square = Dataset::from_memory(vec![RgbImage::new(500, 500, pattern(500, 500, 9).into_raw())], None);
    let (_folder, _, small) = packed(&square, PackSpec { shorter_side: Some(64), ..spec() });
    let augmenter = Augmenter::new(Augmentation::cifar_test(), 64).unwrap();
    let mut rng = Rng::new(0, Purpose::Augmentation, 0, 0, 0);
    let (params, mut expected) = (augmenter.sample(&mut rng, 500, 500), vec![0; 64 * 64 * 3]);
    augmenter.apply(&square.decode(0).unwrap(), &params, &mut Scratch::default(), &mut expected);
    assert!(small.decode(0).unwrap().pixels == expected);
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let folder = folder();
    let source = open(folder.path()).unwrap();
    for storage in [Storage::Raw, Storage::Jpeg { quality: 90 }] {
        let bytes = [1, 3].map(|workers| {
            let (_folder, path, _) = packed(&source, PackSpec { workers, storage, ..spec() });
            std::fs::read(path).unwrap()
        });
        assert!(bytes[0] == bytes[1], "{storage:?}");
    }
}

#[test]
fn a_jpeg_pack_is_smaller_and_nearly_the_same() {
    let smooth = image::RgbImage::from_fn(640, 480, |x, y| Rgb([(x / 3) as u8, (y / 2) as u8, ((x + y) / 5) as u8]));
    let source = Dataset::from_memory(vec![RgbImage::new(640, 480, smooth.into_raw())], Some(vec![3]));
    let jpeg = PackSpec { storage: Storage::Jpeg { quality: 95 }, ..spec() };
    let (_folder, raw_path, raw) = packed(&source, spec());
    let (_folder, path, pack) = packed(&source, jpeg.clone());
    assert!(std::fs::metadata(&path).unwrap().len() < std::fs::metadata(&raw_path).unwrap().len() / 4);
    let (image, exact) = (pack.decode(0).unwrap(), raw.decode(0).unwrap());
    assert_eq!((image.width, image.height, pack.label(0)), (341, 256, Some(3)));
    assert!(image.pixels.iter().zip(&exact.pixels).all(|(a, b)| a.abs_diff(*b) <= 12));
    assert!(!pack.in_memory() && pack.description().contains("pack (JPEG,"), "{}", pack.description());
    assert_ne!(pack.fingerprint(), raw.fingerprint(), "the same names, other pixels");
    // Only a JPEG can be decoded at a fraction of its size.
    let mut half = RgbImage::default();
    assert_eq!(pack.decode_scaled_into(0, &mut |_, _| 2, &mut half).unwrap(), 2);
    assert_eq!((half.width, half.height), (171, 128));
    assert_eq!(raw.decode_scaled_into(0, &mut |_, _| 2, &mut half).unwrap(), 1);
    assert_eq!(estimated_bytes(&source, &spec()).unwrap(), Some(341 * 256 * 3));
    assert!(estimated_bytes(&source, &jpeg).unwrap().unwrap() < 341 * 256);
}

#[test]
fn broken_images_are_left_out_up_to_the_share_that_is_allowed() {
    let folder = folder();
    let source = open(folder.path()).unwrap();
    let out = folder.path().join("out.sdpack");
    let found = pack_to(&source, &out, spec()).unwrap();
    assert_eq!((found.n_images, found.n_resized, found.skipped.len()), (4, 2, 1));
    assert_eq!(found.n_bytes, std::fs::metadata(&out).unwrap().len());
    assert_eq!(found.skipped[0].name, "ant/0.png");
    let before = std::fs::read(&out).unwrap();
    for (spec, expected) in [
        (PackSpec { strict: true, ..spec() }, "ant/0.png: broken image"),
        (PackSpec { max_broken_share: 0.1, ..spec() }, "1 of 5 images are broken"),
        (PackSpec { shorter_side: Some(0), ..spec() }, "shorter side 0"),
        (PackSpec { storage: Storage::Jpeg { quality: 101 }, ..spec() }, "JPEG quality 101"),
    ] {
        let message = pack_to(&source, &out, spec).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let only = source.select(&[0]).unwrap();
    let message = pack_to(&only, &out, PackSpec { max_broken_share: 1.0, ..spec() }).unwrap_err().to_string();
    assert!(message.contains("1 of 1 images are broken, which leaves none"), "{message}");
    let message = pack_to(&source, &folder.path().join("none/x.sdpack"), spec()).unwrap_err().to_string();
    assert!(message.contains("none/x.sdpack: cannot write: No such file"), "{message}");
    assert!(std::fs::read(&out).unwrap() == before, "the file that is there stays");
    assert_eq!(leftovers(folder.path()), Vec::<String>::new());
}

/// Files in a folder but packs and what [`folder`] made.
fn leftovers(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(".tmp")).collect()
}

#[test]
fn stopping_leaves_nothing_behind() {
    let folder = folder();
    let source = open(folder.path()).unwrap();
    let out = folder.path().join("out.sdpack");
    let n_done = std::cell::Cell::new(0);
    let mut progress = |done, total| {
        assert_eq!(total, 5);
        n_done.set(done);
    };
    let stop = || n_done.get() == 2;
    let job = PackJob { dataset: &source, out: &out, spec: spec(), stop: &stop, progress: &mut progress };
    assert_eq!(pack(job).unwrap(), None);
    assert_eq!((n_done.get(), out.exists()), (2, false));
    assert_eq!(leftovers(folder.path()), Vec::<String>::new());
}

/// A pack of three small images, its bytes, and what it holds.
fn small_pack(storage: Storage) -> (TempDir, PathBuf, Vec<u8>, Vec<RgbImage>) {
    let images = [(3, 2), (8, 8), (1, 4)].map(|(w, h)| RgbImage::new(w, h, pattern(w, h, 3).into_raw()));
    let source = Dataset::from_memory(images.to_vec(), Some(vec![0, 2, 1]));
    let (folder, path, pack) = packed(&source, PackSpec { storage, ..spec() });
    let bytes = std::fs::read(&path).unwrap();
    let images = (0..3).map(|position| pack.decode(position).unwrap()).collect();
    (folder, path, bytes, images)
}

#[test]
fn a_pack_that_was_cut_short_is_refused_wherever_it_was_cut() {
    let (_folder, path, bytes, _) = small_pack(Storage::Raw);
    for len in 0..bytes.len() {
        write(&path, &bytes[..len]);
        let message = open(&path).unwrap_err().to_string();
        let expected = if len < 8 { "not a pack, or a damaged one" } else { "cut short" };
        assert!(message.contains(expected) && message.contains("write it again with sdclr pack"), "{len}: {message}");
    }
    write(&path, [&bytes[..], &[0]].concat());
    let message = open(&path).unwrap_err().to_string();
    assert!(message.contains("1 more than its header says"), "{message}");
}

#[test]
fn every_flipped_bit_is_found() {
    // JPEGs are longer and no other case; some of their bytes do.
    for (storage, step) in [(Storage::Raw, 1), (Storage::Jpeg { quality: 50 }, 13)] {
        let (_folder, path, bytes, images) = small_pack(storage);
        let index_offset = u64::from_le_bytes(bytes[24..32].try_into().unwrap()) as usize;
        for place in (0..bytes.len()).step_by(step) {
            for bit in [0, 7] {
                let mut damaged = bytes.clone();
                damaged[place] ^= 1 << bit;
                write(&path, &damaged);
                if !(64..index_offset).contains(&place) {
                    assert!(open(&path).is_err(), "byte {place}");
                    continue;
                }
                let pack = open(&path).unwrap();
                let found = inspect(&pack, usize::MAX);
                assert_eq!((found.n_decoded, found.broken.len()), (3, 1), "byte {place}: one image");
                assert!(found.broken[0].reason.contains("do not match their checksum"), "{:?}", found.broken);
                let sound = (0..3).filter(|&position| pack.decode(position).ok().as_ref() == Some(&images[position]));
                assert_eq!(sound.count(), 2, "byte {place}: the others are sound");
            }
        }
    }
}

#[test]
fn a_pack_of_another_version_says_so() {
    let (_folder, path, mut bytes, _) = small_pack(Storage::Raw);
    bytes[8] = 2;
    write(&path, &bytes);
    let message = open(&path).unwrap_err().to_string();
    assert!(message.contains("a pack of version 2; this program reads version 1"), "{message}");
}

/// Numbers in the header and the index are not trusted even where the checksums are right.
#[test]
fn a_pack_that_was_made_wrong_is_refused_or_read_but_never_panics() {
    let (_folder, path, bytes, _) = small_pack(Storage::Raw);
    let index_offset = u64::from_le_bytes(bytes[24..32].try_into().unwrap()) as usize;
    let crc = |bytes: &[u8]| crc32fast::hash(bytes).to_le_bytes();
    let mut n_refused = 0;
    for place in (12..52).chain(index_offset..bytes.len() - 4) {
        for value in [[0; 4], [1, 0, 0, 0], [0xff; 4], [0xf0, 0xff, 0xff, 0x7f]] {
            let mut wrong = bytes.clone();
            wrong[place..place + 4].copy_from_slice(&value);
            let index_crc = crc(&wrong[index_offset..]);
            wrong[56..60].copy_from_slice(&index_crc);
            let header_crc = crc(&wrong[..60]);
            wrong[60..64].copy_from_slice(&header_crc);
            write(&path, &wrong);
            match open(&path) {
                Ok(pack) => {
                    (0..pack.len()).for_each(|position| drop((pack.decode(position), pack.name(position))));
                    drop((pack.class_counts(), pack.n_classes(), pack.fingerprint(), pack.description()));
                }
                Err(error) => {
                    n_refused += 1;
                    assert!(error.to_string().contains("sdclr pack"), "{place}: {error}");
                }
            }
        }
    }
    assert!(n_refused > 100, "{n_refused}");
}

#[test]
#[cfg(unix)]
fn a_pack_that_is_cut_short_while_it_is_open_has_broken_images() {
    let (_folder, path, bytes, images) = small_pack(Storage::Raw);
    let pack = open(&path).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(64 + 18 + 10).unwrap();
    assert_eq!(pack.decode(0).unwrap(), images[0]);
    let message = pack.decode(1).unwrap_err().to_string();
    assert!(
        message.contains("memory:1: broken image") && message.contains("cut short while it was in use"),
        "{message}"
    );
    // Replacing it by another, as `sdclr pack` does, changes nothing for whoever has it open.
    write(&path, &bytes);
    let pack = open(&path).unwrap();
    pack_to(&pack.select(&[1]).unwrap(), &path, spec()).unwrap();
    assert_eq!((pack.decode(2).unwrap(), open(&path).unwrap().len()), (images[2].clone(), 1));
}

#[test]
fn a_file_that_is_only_called_a_pack_is_none() {
    let folder = tempdir().unwrap();
    let message = open(&write(&folder.path().join("a.sdpack"), b"hello")).unwrap_err().to_string();
    assert!(message.contains("a.sdpack: not a pack"), "{message}");
    let png = encoded(ImageFormat::Png, 2, 2, [1, 2, 3]);
    let source = Dataset::from_memory(vec![RgbImage::new(2, 2, vec![7; 12])], None);
    let path = folder.path().join("named like nothing");
    pack_to(&source, &path, spec()).unwrap();
    assert_eq!(open(&path).unwrap().decode(0).unwrap().pixels, [7; 12], "a pack is known by its content");
    write(&path, png);
    assert!(open(&path).is_err());
}
