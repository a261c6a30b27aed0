//! Every kind of source, opened by path as a user would.

mod common;

use std::path::Path;

use common::{cifar10_binary, encoded, gzip, idx, npy, npy_i64, write};
use image::ImageFormat;
use sdclr_data::{DataError, Dataset, OpenOptions, Part, inspect};
use tempfile::tempdir;

fn open(path: &Path) -> Result<Dataset, DataError> {
    Dataset::open(path, &OpenOptions::default())
}

fn open_part(path: &Path, part: Part) -> Dataset {
    Dataset::open(path, &OpenOptions { part, ..OpenOptions::default() }).unwrap()
}

fn with_split(path: &Path, split: &Path) -> Result<Dataset, DataError> {
    Dataset::open(path, &OpenOptions { split: Some(split.to_owned()), ..OpenOptions::default() })
}

fn labels(dataset: &Dataset) -> Vec<Option<u32>> {
    (0..dataset.len()).map(|position| dataset.label(position)).collect()
}

fn names(dataset: &Dataset) -> Vec<String> {
    (0..dataset.len()).map(|position| dataset.name(position)).collect()
}

#[test]
fn idx_folder_gives_its_parts_plain_or_gzipped() {
    let folder = tempdir().unwrap();
    let folder = folder.path();
    write(&folder.join("train-images-idx3-ubyte.gz"), gzip(&idx(&[3, 1, 2], &[1, 2, 3, 4, 5, 6])));
    write(&folder.join("train-labels-idx1-ubyte"), idx(&[3], &[0, 4, 0]));
    write(&folder.join("t10k-images-idx3-ubyte"), idx(&[1, 1, 2], &[7, 8]));
    write(&folder.join("t10k-labels-idx1-ubyte"), idx(&[1], &[2]));

    let train = open(folder).unwrap();
    assert_eq!(labels(&train), [Some(0), Some(4), Some(0)]);
    assert_eq!(train.class_counts(), Some(vec![2, 0, 0, 0, 1]));
    let image = train.decode(1).unwrap();
    assert_eq!((image.width, image.height, &image.pixels[..]), (2, 1, &[3, 3, 3, 4, 4, 4][..]));
    assert_eq!(train.name(1), "idx:1");
    assert_eq!(labels(&open_part(folder, Part::Test)), [Some(2)]);
    assert_eq!(labels(&open_part(folder, Part::All)), [Some(0), Some(4), Some(0), Some(2)]);
}

#[test]
fn single_idx_file_finds_its_labels_beside_it() {
    let folder = tempdir().unwrap();
    let images = write(&folder.path().join("probe-images-idx3-ubyte"), idx(&[2, 1, 1], &[1, 2]));
    assert_eq!(labels(&open(&images).unwrap()), [None, None]);
    write(&folder.path().join("probe-labels-idx1-ubyte.gz"), gzip(&idx(&[2], &[1, 0])));
    assert_eq!(labels(&open(&images).unwrap()), [Some(1), Some(0)]);
}

#[test]
fn bundled_demo_images_open() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/fashion-mnist-lt");
    let train = open(&folder).unwrap();
    assert_eq!(train.class_counts(), Some(vec![46, 27, 359, 215, 10, 16, 1000, 599, 77, 129]));
    let probe = open(&folder.join("probe-images-idx3-ubyte.gz")).unwrap();
    assert_eq!(probe.class_counts(), Some(vec![100; 10]));
    assert_eq!(open_part(&folder, Part::Test).class_counts(), Some(vec![200; 10]));
}

#[test]
fn binary_cifar_10_counts_through_its_training_files() {
    let parent = tempdir().unwrap();
    cifar10_binary(&parent.path().join("cifar-10-batches-bin"));
    for path in [parent.path().to_owned(), parent.path().join("cifar-10-batches-bin")] {
        let train = open(&path).unwrap();
        assert_eq!(labels(&train), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4].map(Some));
        assert_eq!(train.decode(7).unwrap().pixels[..6], [31, 1, 2, 31, 1, 2]);
        assert_eq!(labels(&open_part(&path, Part::Test)), [Some(5), Some(5)]);
        assert_eq!(open_part(&path, Part::All).len(), 12);
    }
}

#[test]
fn cifar_10_pickles_of_every_python_are_read() {
    for content in [
        &include_bytes!("fixtures/cifar10_python2.pickle")[..],
        include_bytes!("fixtures/cifar10_protocol2.pickle"),
        include_bytes!("fixtures/cifar10_protocol4.pickle"),
    ] {
        let folder = tempdir().unwrap();
        for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"] {
            write(&folder.path().join(name), content);
        }
        let dataset = open(folder.path()).unwrap();
        assert_eq!(labels(&dataset), [6, 9, 6, 9, 6, 9, 6, 9, 6, 9].map(Some));
        let value =
            |image: usize, channel: usize, pixel: usize| ((image * 3072 + channel * 1024 + pixel) * 7 % 251) as u8;
        let pixels = dataset.decode(3).unwrap().pixels;
        for (pixel, channels) in pixels.chunks_exact(3).enumerate() {
            assert_eq!(channels, [value(1, 0, pixel), value(1, 1, pixel), value(1, 2, pixel)]);
        }
    }
}

#[test]
fn cifar_100_gives_fine_labels_and_their_names() {
    let python = tempdir().unwrap();
    write(&python.path().join("train"), include_bytes!("fixtures/cifar100_python2.pickle"));
    write(&python.path().join("meta"), include_bytes!("fixtures/cifar100_meta.pickle"));
    let binary = tempdir().unwrap();
    let folder = binary.path().join("cifar-100-binary");
    let record = |labels: [u8; 2]| [labels.to_vec(), vec![0; 3072]].concat();
    write(&folder.join("train.bin"), [record([19, 99]), record([1, 0])].concat());
    let names: Vec<String> = (0..100).map(|i| format!("fine {i}\n")).collect();
    write(&folder.join("fine_label_names.txt"), names.concat());
    for path in [python.path(), binary.path()] {
        let dataset = open(path).unwrap();
        assert_eq!(labels(&dataset), [Some(99), Some(0)]);
        assert_eq!((dataset.n_classes(), &dataset.class_names().unwrap()[99][..]), (Some(100), "fine 99"));
        assert!(dataset.description().contains("CIFAR-100 train"), "{}", dataset.description());
    }
}

#[test]
fn cifar_10_class_names_come_from_its_meta_file() {
    let folder = tempdir().unwrap();
    for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"] {
        write(&folder.path().join(name), include_bytes!("fixtures/cifar10_python2.pickle"));
    }
    write(&folder.path().join("batches.meta"), include_bytes!("fixtures/cifar10_meta.pickle"));
    assert_eq!(open(folder.path()).unwrap().class_names().unwrap()[6], "class 6");
}

#[test]
fn pickle_that_would_run_code_is_refused() {
    let folder = tempdir().unwrap();
    for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"] {
        write(&folder.path().join(name), b"\x80\x02cos\nsystem\nU\x04true\x85R.");
    }
    let message = open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("data_batch_1: ") && message.contains("calling os.system is not allowed"), "{message}");
}

#[test]
fn every_image_format_is_decoded_whatever_the_case_of_its_extension() {
    let folder = tempdir().unwrap();
    let formats = [
        ("a.BMP", ImageFormat::Bmp),
        ("b.gif", ImageFormat::Gif),
        ("c.Jpeg", ImageFormat::Jpeg),
        ("d.PNG", ImageFormat::Png),
        ("e.tif", ImageFormat::Tiff),
        ("f.webp", ImageFormat::WebP),
    ];
    for (name, format) in formats {
        write(&folder.path().join(name), encoded(format, 5, 3, [200, 100, 50]));
    }
    write(&folder.path().join("._d.PNG"), b"left by macOS");
    write(&folder.path().join("notes.txt"), b"no image");
    let dataset = open(folder.path()).unwrap();
    assert_eq!(names(&dataset), formats.map(|(name, _)| name));
    for position in 0..dataset.len() {
        let image = dataset.decode(position).unwrap();
        assert_eq!((image.width, image.height), (5, 3));
        let close = image.pixels.iter().zip([200u8, 100, 50].iter().cycle()).all(|(a, b)| a.abs_diff(*b) <= 3);
        assert!(close, "{}: {:?}", dataset.name(position), &image.pixels[..3]);
    }
    assert_eq!(labels(&dataset), [None; 6]);
}

#[test]
fn grey_alpha_palette_and_16_bit_become_rgb() {
    use image::{DynamicImage, ImageBuffer, Luma, LumaA, Rgba};
    let folder = tempdir().unwrap();
    let images: [(&str, DynamicImage); 4] = [
        ("grey.png", ImageBuffer::from_pixel(2, 2, Luma([77u8])).into()),
        ("grey16.png", ImageBuffer::from_pixel(2, 2, Luma([77u16 * 257])).into()),
        ("grey_alpha.png", ImageBuffer::from_pixel(2, 2, LumaA([77u8, 3])).into()),
        ("transparent.png", ImageBuffer::from_pixel(2, 2, Rgba([77u8, 77, 77, 0])).into()),
    ];
    for (name, image) in images {
        image.save(folder.path().join(name)).unwrap();
    }
    let dataset = open(folder.path()).unwrap();
    for position in 0..4 {
        assert_eq!(dataset.decode(position).unwrap().pixels, [77; 12], "{}", dataset.name(position));
    }
}

#[test]
fn class_folders_give_labels_in_the_order_of_their_names() {
    let folder = tempdir().unwrap();
    let png = encoded(ImageFormat::Png, 1, 1, [1, 2, 3]);
    for name in ["dog/b.png", "dog/a.png", "cat/deep/er/z.png", "emu/1.png"] {
        write(&folder.path().join(name), &png);
    }
    let dataset = open(folder.path()).unwrap();
    assert_eq!(names(&dataset), ["cat/deep/er/z.png", "dog/a.png", "dog/b.png", "emu/1.png"]);
    assert_eq!(labels(&dataset), [0, 1, 1, 2].map(Some));
    assert_eq!(dataset.class_names().unwrap(), ["cat", "dog", "emu"]);
    write(&folder.path().join("loose.png"), &png);
    let dataset = open(folder.path()).unwrap();
    assert_eq!(labels(&dataset), [None; 5]);
    let description = dataset.description();
    assert!(description.contains("without classes, for loose.png lies beside the folders"), "{description}");
}

#[test]
fn folders_without_an_image_are_no_classes() {
    let folder = tempdir().unwrap();
    let root = folder.path();
    folder_of(root, &["cat/1.png", "dog/1.png", "__MACOSX/cat/._1.png", "__MACOSX/x.png", ".git/2.png"]);
    write(&root.join("notes/readme.txt"), b"no image");
    std::fs::create_dir(root.join("empty")).unwrap();
    let dataset = open(root).unwrap();
    assert_eq!(dataset.class_names().unwrap(), ["cat", "dog"]);
    assert_eq!(dataset.class_counts(), Some(vec![1, 1]));
}

#[test]
fn parts_may_differ_in_empty_classes() {
    let folder = tempdir().unwrap();
    folder_of(folder.path(), &["train/ant/1.png", "train/bee/1.png", "val/bee/2.png"]);
    std::fs::create_dir(folder.path().join("val/ant")).unwrap();
    assert_eq!(labels(&open_part(folder.path(), Part::All)), [0, 1, 1].map(Some));
    folder_of(folder.path(), &["val/cat/1.png"]);
    let options = OpenOptions { part: Part::All, ..OpenOptions::default() };
    let message = Dataset::open(folder.path(), &options).unwrap_err().to_string();
    assert!(message.contains("different class folders"), "{message}");
}

#[test]
#[cfg(unix)]
fn links_in_a_circle_and_what_is_no_file_are_left_out() {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    let folder = tempdir().unwrap();
    let root = folder.path();
    folder_of(root, &["cat/1.png", "dog/1.png"]);
    symlink(root, root.join("cat/up")).unwrap();
    symlink(root.join("dog/self.d"), root.join("dog/self.d")).unwrap();
    symlink(root.join("nowhere"), root.join("dog/gone")).unwrap();
    let _socket = UnixListener::bind(root.join("dog/socket.png")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(root.join("cat/pipe.png")).status().unwrap();
    assert!(made.success());
    assert_eq!(names(&open(root).unwrap()), ["cat/1.png", "dog/1.png"]);
    let list = write(&root.join("list.txt"), "cat/1.png\ncat/pipe.png\n");
    let message = open(&list).unwrap().decode(1).unwrap_err().to_string();
    assert!(message.contains("not a regular file"), "{message}");
    let message = open(&root.join("cat/pipe.png")).unwrap_err().to_string();
    assert!(message.contains("neither a file nor a folder"), "{message}");
}

#[test]
fn train_and_val_folders_are_parts() {
    let folder = tempdir().unwrap();
    for name in ["train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png"] {
        write(&folder.path().join(name), encoded(ImageFormat::Png, 1, 1, [0; 3]));
    }
    assert_eq!(names(&open(folder.path()).unwrap()), ["cat/1.png", "dog/2.png"]);
    assert_eq!(names(&open_part(folder.path(), Part::Test)), ["cat/3.png", "dog/4.png"]);
    let all = open_part(folder.path(), Part::All);
    assert_eq!(names(&all), ["train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png"]);
    assert_eq!(labels(&all), [0, 1, 0, 1].map(Some));
    assert!(all.decode(3).is_ok());
    for (part, expected) in [(Part::Train, "train"), (Part::Test, "val"), (Part::All, "train and val")] {
        let description = open_part(folder.path(), part).description();
        assert!(description.contains(&format!("part {expected} of a folder with parts train, val")), "{description}");
    }
}

#[test]
fn lists_name_their_images_and_labels() {
    let folder = tempdir().unwrap();
    let root = folder.path().join("images");
    write(&root.join("my cat.png"), encoded(ImageFormat::Png, 1, 1, [1; 3]));
    write(&root.join("b/dog.png"), encoded(ImageFormat::Png, 1, 1, [2; 3]));
    let list = write(&root.join("list.txt"), "# path label\nb/dog.png 7\r\n\nmy cat.png 3\n");
    let dataset = open(&list).unwrap();
    assert_eq!(
        (names(&dataset), labels(&dataset)),
        (vec!["b/dog.png".into(), "my cat.png".into()], vec![Some(7), Some(3)])
    );
    assert_eq!(dataset.decode(0).unwrap().pixels, [2; 3]);

    let elsewhere = write(&folder.path().join("list.txt"), "my cat.png\nb/dog.png");
    let options = OpenOptions { root: Some(root), ..OpenOptions::default() };
    let dataset = Dataset::open(&elsewhere, &options).unwrap();
    assert_eq!((labels(&dataset), dataset.decode(1).unwrap().pixels), (vec![None, None], vec![2; 3]));
    let message = open(&elsewhere).unwrap_err().to_string();
    assert!(message.contains("none of its 2 files exists") && message.contains("my cat.png"), "{message}");
}

#[test]
fn index_splits_select_by_source_index() {
    let folder = tempdir().unwrap();
    cifar10_binary(folder.path());
    let split = folder.path().join("split.npy");
    let expected = [8usize, 0, 3];
    write(&split, npy_i64(&[8, 0, 3]));
    let check = |dataset: Dataset| {
        let indices: Vec<_> = (0..dataset.len()).map(|position| dataset.source_index(position)).collect();
        assert_eq!(indices, expected);
        assert_eq!(labels(&dataset), [4, 0, 1].map(Some));
    };
    check(with_split(folder.path(), &split).unwrap());
    for (descr, bytes) in [
        ("<i4", [8i32, 0, 3].map(i32::to_le_bytes).concat()),
        (">u2", [8u16, 0, 3].map(u16::to_be_bytes).concat()),
        ("|u1", vec![8, 0, 3]),
    ] {
        write(&split, npy(descr, "(3,)", &bytes));
        check(with_split(folder.path(), &split).unwrap());
    }
    sdclr_data::splits::write_indices(&split, &expected).unwrap();
    check(with_split(folder.path(), &split).unwrap());
    assert_eq!(std::fs::read(&split).unwrap().len(), 128 + 3 * 8, "numpy's header has 128 bytes");
}

#[test]
fn list_splits_select_by_name_and_bring_their_labels() {
    let folder = tempdir().unwrap();
    for name in ["data/cat/1.png", "data/dog/2.png", "data/emu/3.png"] {
        write(&folder.path().join(name), encoded(ImageFormat::Png, 1, 1, [0; 3]));
    }
    let data = folder.path().join("data");
    let split = write(&folder.path().join("split.txt"), "train/emu/3.png 0\ntrain/cat/1.png 1\n");
    let dataset = with_split(&data, &split).unwrap();
    assert_eq!(
        (names(&dataset), labels(&dataset)),
        (vec!["emu/3.png".into(), "cat/1.png".into()], vec![Some(0), Some(1)])
    );
    assert_eq!((dataset.n_classes(), dataset.class_names()), (Some(2), None));
    write(&split, "dog/2.png\n");
    let dataset = with_split(&data, &split).unwrap();
    assert_eq!((labels(&dataset), dataset.n_classes()), (vec![Some(1)], Some(3)));
}

#[test]
fn inspection_counts_sizes_and_broken_images() {
    let folder = tempdir().unwrap();
    write(&folder.path().join("cat/1.png"), encoded(ImageFormat::Png, 4, 9, [0; 3]));
    write(&folder.path().join("dog/2.png"), encoded(ImageFormat::Png, 7, 2, [0; 3]));
    write(&folder.path().join("dog/3.png"), b"not a picture");
    let inspection = inspect(&open(folder.path()).unwrap(), usize::MAX);
    assert_eq!(inspection.class_counts, Some(vec![1, 2]));
    assert_eq!((inspection.width_range, inspection.height_range), (Some((4, 7)), Some((2, 9))));
    assert_eq!(inspection.broken.iter().map(|skipped| skipped.name.as_str()).collect::<Vec<_>>(), ["dog/3.png"]);
    assert_eq!(inspect(&open(folder.path()).unwrap(), 1).n_decoded, 1);
}

fn folder_of(root: &Path, files: &[&str]) {
    files.iter().for_each(|file| drop(write(&root.join(file), encoded(ImageFormat::Png, 2, 2, [1, 2, 3]))));
}

#[test]
fn sources_with_a_test_part_are_told_from_those_without() {
    let folder = tempdir().unwrap();
    let has_parts = |name: &str| sdclr_data::source::has_parts(&folder.path().join(name)).unwrap();
    cifar10_binary(&folder.path().join("cifar"));
    folder_of(folder.path(), &["plain/a/1.png", "parts/train/a/1.png", "parts/val/a/1.png", "lone/train/a/1.png"]);
    write(&folder.path().join("list.txt"), "plain/a/1.png 0");
    write(&folder.path().join("idx/train-images-idx3-ubyte"), idx(&[1, 1, 1], &[1]));
    for (name, expected) in
        [("cifar", true), ("plain", false), ("parts", true), ("lone", false), ("list.txt", false), ("idx", false)]
    {
        assert_eq!(has_parts(name), expected, "{name}");
    }
    write(&folder.path().join("idx/t10k-images-idx3-ubyte"), idx(&[1, 1, 1], &[1]));
    assert!(has_parts("idx"));
    assert!(!has_parts("idx/train-images-idx3-ubyte"), "one file is one part");
}

#[test]
fn classes_are_matched_by_name() {
    let folder = tempdir().unwrap();
    let root = folder.path();
    folder_of(root, &["train/ant/1.png", "train/bee/1.png", "train/cat/1.png", "test/bee/1.png", "test/cat/2.png"]);
    folder_of(root, &["other/bee/1.png", "other/dog/1.png"]);
    std::fs::create_dir(root.join("test/elk")).unwrap();
    let [train, test, other] = ["train", "test", "other"].map(|name| open(&root.join(name)).unwrap());
    assert_eq!(labels(&test), [Some(0), Some(1)]);
    let matched = test.with_classes_of(&train).unwrap();
    assert_eq!((labels(&matched), matched.class_names()), (vec![Some(1), Some(2)], train.class_names()));
    assert_eq!(matched.class_counts(), Some(vec![0, 1, 1]));
    assert_eq!(labels(&matched.select(&[1]).unwrap()), [Some(2)]);
    assert_eq!(other.with_classes_of(&train).unwrap_err(), ["dog"], "elk is empty, dog is not");
    let unnamed = Dataset::from_memory(vec![test.decode(0).unwrap()], Some(vec![7]));
    assert_eq!(labels(&unnamed.with_classes_of(&train).unwrap()), [Some(7)], "nothing to match by");
}

#[test]
fn a_fingerprint_knows_the_images_wherever_they_lie() {
    let folder = tempdir().unwrap();
    for name in ["here", "there"] {
        folder_of(folder.path(), &[&format!("{name}/a/1.png"), &format!("{name}/b/2.png")]);
    }
    let [here, there] = ["here", "there"].map(|name| open(&folder.path().join(name)).unwrap());
    assert_eq!(here.fingerprint(), there.fingerprint());
    assert_ne!(here.fingerprint(), here.select(&[0]).unwrap().fingerprint());
    assert_ne!(here.fingerprint(), here.select(&[1, 0]).unwrap().fingerprint(), "the order counts");
    let table = |values: &[u8]| {
        let path = write(&folder.path().join("images-idx3-ubyte"), idx(&[2, 1, 1], values));
        open(&path).unwrap().fingerprint()
    };
    assert_ne!(table(&[1, 2]), table(&[1, 3]), "numbered images are known by their pixels");
    assert_eq!(here.n_shared_with(&here.select(&[1]).unwrap()), 1);
}

#[test]
fn looking_at_a_sample_gives_up_on_a_broken_set() {
    let folder = tempdir().unwrap();
    for n in 0..20 {
        write(
            &folder.path().join(format!("{n:02}.png")),
            if n == 5 { encoded(ImageFormat::Png, 4, 4, [0; 3]) } else { vec![] },
        );
    }
    let dataset = open(folder.path()).unwrap();
    // 4 positions are tried for one image: 0, 5, 10 and 15.
    assert_eq!(dataset.sample(1).len(), 1);
    assert_eq!(dataset.select(&[0, 1, 2]).unwrap().sample(1).len(), 0);
}
