//! Damaged and mistaken input: every case is one message that says what, where and what to do.

mod common;

use std::path::{Path, PathBuf};

use common::{cifar10_binary, encoded, gzip, idx, npy, npy_i64, write};
use image::ImageFormat;
use sdclr_data::{Dataset, OpenOptions};
use tempfile::tempdir;

/// The message of opening what `make` made in a new folder, given the path to open and perhaps a split.
fn message(make: impl FnOnce(&Path) -> (PathBuf, Option<PathBuf>)) -> String {
    let folder = tempdir().unwrap();
    let (path, split) = make(folder.path());
    let result = Dataset::open(&path, &OpenOptions { split, ..OpenOptions::default() });
    result.unwrap_err().to_string()
}

fn check(expected: &[&str], make: impl FnOnce(&Path) -> (PathBuf, Option<PathBuf>)) {
    let message = message(make);
    for part in expected {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    assert!(!message.contains('\n'), "{message:?} has more than one line");
}

#[test]
fn missing_and_empty_paths_are_named() {
    check(&["nowhere", "cannot read", "No such file"], |folder| (folder.join("nowhere"), None));
    check(&["no images in this folder", "jpg"], |folder| (folder.to_owned(), None));
    check(&["list.txt", "the list is empty"], |folder| (write(&folder.join("list.txt"), "\n \n"), None));
    check(&["single image", "give the folder"], |folder| (write(&folder.join("a.png"), b""), None));
    check(&["index array", "as the split"], |folder| (write(&folder.join("a.npy"), b""), None));
    check(&["one file of CIFAR"], |folder| (write(&folder.join("data_batch_3"), b""), None));
}

#[test]
fn idx_defects_are_named() {
    let file = |bytes: Vec<u8>| move |folder: &Path| (write(&folder.join("x-images-idx3-ubyte"), bytes), None);
    check(&["starts with 01 02 03 04", "IDX"], file(vec![1, 2, 3, 4, 5]));
    check(&["2 bytes are too few"], file(vec![0, 0]));
    check(&["cut short: 5 bytes", "header alone has 16"], file(vec![0, 0, 8, 3, 0]));
    check(&["cut short: 3 bytes of values for shape [2, 1, 2]"], file(idx(&[2, 1, 2], &[1, 2, 3])));
    check(&["longer than its header says"], file(idx(&[1, 1, 2], &[1, 2, 3])));
    check(&["cut short"], file(idx(&[u32::MAX, u32::MAX, u32::MAX], &[1])));
    check(&["holds no images"], file(idx(&[0, 28, 28], &[])));
    check(&["shape [3]", "give the images file"], file(idx(&[3], &[1, 2, 3])));
    let mut cut = gzip(&idx(&[2, 1, 2], &[1, 2, 3, 4]));
    cut.truncate(cut.len() - 9);
    check(&["damaged or cut-short gzip"], file(cut));
}

#[test]
fn idx_labels_must_fit_the_images() {
    let with_labels = |name: &'static str, labels: Vec<u8>| {
        move |folder: &Path| {
            write(&folder.join("train-images-idx3-ubyte"), idx(&[2, 1, 1], &[1, 2]));
            write(&folder.join(name), labels);
            (folder.to_owned(), None)
        }
    };
    let name = "train-labels-idx1-ubyte";
    check(&["3 labels for the 2 images", "train-images-idx3-ubyte"], with_labels(name, idx(&[3], &[1, 2, 3])));
    check(&["shape [2, 1]", "labels have one dimension"], with_labels(name, idx(&[2, 1], &[1, 2])));
    check(&["its labels file", "is missing"], with_labels("unrelated", vec![]));
    check(&["no IDX images file here starts with train", "a-images-idx3-ubyte, b-images-idx3-ubyte"], |folder| {
        write(&folder.join("a-images-idx3-ubyte"), []);
        write(&folder.join("b-images-idx3-ubyte"), []);
        (folder.to_owned(), None)
    });
}

#[test]
fn cifar_defects_are_named() {
    check(&["data_batch_4.bin is missing"], |folder| {
        cifar10_binary(folder);
        std::fs::remove_file(folder.join("data_batch_4.bin")).unwrap();
        (folder.to_owned(), None)
    });
    check(&["data_batch_2.bin: cut short", "1 records of 3073 bytes"], |folder| {
        cifar10_binary(folder);
        write(&folder.join("data_batch_2.bin"), vec![1; 4000]);
        (folder.to_owned(), None)
    });
    check(&["data_batch_1.bin", "label 77 of image 0", "not below 10"], |folder| {
        cifar10_binary(folder);
        write(&folder.join("data_batch_1.bin"), vec![77; 3073]);
        (folder.to_owned(), None)
    });
    check(&["holds cifar-10-batches-py and cifar-100-python"], |folder| {
        std::fs::create_dir(folder.join("cifar-10-batches-py")).unwrap();
        std::fs::create_dir(folder.join("cifar-100-python")).unwrap();
        (folder.to_owned(), None)
    });
}

/// No prefix of a pickle and no pickle with one byte changed panics or is taken for data of another size.
#[test]
fn damaged_pickles_never_panic() {
    let whole = include_bytes!("fixtures/cifar10_python2.pickle");
    let folder = tempdir().unwrap();
    for i in 1..=5 {
        write(&folder.path().join(format!("data_batch_{i}")), whole);
    }
    let first = folder.path().join("data_batch_1");
    let open = || Dataset::open(folder.path(), &OpenOptions::default());
    for len in (0..300).chain((300..whole.len()).step_by(97)) {
        write(&first, &whole[..len]);
        let message = open().unwrap_err().to_string();
        assert!(message.contains("data_batch_1: not a readable pickle"), "{message}");
    }
    for position in 0..250 {
        for change in [1, 0x20, 0x80, 0xff] {
            let mut bytes = whole.to_vec();
            bytes[position] ^= change;
            write(&first, &bytes);
            if let Ok(dataset) = open() {
                assert_eq!(dataset.len(), 10, "byte {position} changed by {change}");
            }
        }
    }
}

#[test]
fn list_defects_are_named() {
    let list = |text: &'static str| {
        move |folder: &Path| {
            write(&folder.join("a.png"), encoded(ImageFormat::Png, 1, 1, [0; 3]));
            (write(&folder.join("list.txt"), text), None)
        }
    };
    check(&["line 1 has a label but line 3 (b.png) has no label"], list("a.png 1\n\nb.png\n"));
    check(&["line 1: label 4294967295 is too large"], list("a.png 4294967295\n"));
    for (text, label) in [("a.png 0\na.png -1\n", "-1"), ("#\na.png cat\n", "cat"), ("# x\na.png 1.5", "1.5")] {
        check(&["list.txt: line 2: the label", label, "is not a whole number"], list(text));
    }
    check(&["none of its 1 files exists", "wrong.png"], list("wrong.png 1\n"));
    check(&["not a text file"], |folder| (write(&folder.join("list.txt"), [0xff, 0xfe, 0]), None));
}

#[test]
fn split_defects_are_named() {
    let split = |bytes: Vec<u8>| {
        move |folder: &Path| {
            cifar10_binary(folder);
            (folder.to_owned(), Some(write(&folder.join("split.npy"), bytes)))
        }
    };
    check(
        &["index 10 at position 2", "past the end of CIFAR-10 train", "(10 images)", "split for another dataset?"],
        split(npy_i64(&[0, 1, 10])),
    );
    check(&["index -1 at position 1 is negative"], split(npy_i64(&[0, -1])));
    check(&["index 4 is there twice, at positions 0 and 2"], split(npy_i64(&[4, 1, 4])));
    check(&["the array is empty"], split(npy_i64(&[])));
    check(&["dtype <f8", "int64"], split(npy("<f8", "(1,)", &[0; 8])));
    check(&["dtype |b1"], split(npy("|b1", "(8,)", &[0; 8])));
    check(&["shape (2, 3) has 2 dimensions"], split(npy("<i8", "(2, 3)", &[0; 48])));
    check(&["shape () has 0 dimensions"], split(npy("<i8", "()", &[0; 8])));
    check(&["damaged"], split(npy("<i8", "(3,)", &[0; 16])));
    check(&["damaged"], split(npy("<i8", "(18446744073709551615,)", &[0; 16])));
    check(&["not a .npy file"], split(b"PK\x03\x04".to_vec()));
    check(&["cut short inside the header"], split(npy_i64(&[1])[..30].to_vec()));
    check(&["a split is a .npy file"], |folder| {
        cifar10_binary(folder);
        (folder.to_owned(), Some(folder.join("split.csv")))
    });
    check(&["gone.npy", "cannot read"], |folder| {
        cifar10_binary(folder);
        (folder.to_owned(), Some(folder.join("gone.npy")))
    });
}

#[test]
fn list_split_for_another_data_set_is_named() {
    let split = |text: &'static str| {
        move |folder: &Path| {
            write(&folder.join("data/cat/1.png"), encoded(ImageFormat::Png, 1, 1, [0; 3]));
            (folder.join("data"), Some(write(&folder.join("split.txt"), text)))
        }
    };
    check(&["line 2: cat/9.png is not among the 1 images", "another dataset"], split("cat/1.png\ncat/9.png\n"));
    check(&["cat/1.png is there twice, on lines 1 and 2"], split("cat/1.png\n./cat/1.png\n"));
}

#[test]
fn broken_images_say_what_is_wrong() {
    let jpeg = encoded(ImageFormat::Jpeg, 64, 64, [9, 200, 30]);
    let png = encoded(ImageFormat::Png, 64, 64, [9, 200, 30]);
    for (name, bytes, expected) in [
        ("cut.jpg", jpeg[..jpeg.len() * 2 / 3].to_vec(), "cut short"),
        ("header.jpg", jpeg[..20].to_vec(), ""),
        ("cut.png", png[..png.len() / 2].to_vec(), ""),
        ("empty.png", vec![], "the file is empty"),
        ("text.gif", b"hello".to_vec(), "no supported image format"),
    ] {
        let folder = tempdir().unwrap();
        write(&folder.path().join(name), bytes);
        let dataset = Dataset::open(folder.path(), &OpenOptions::default()).unwrap();
        let message = dataset.decode(0).unwrap_err().to_string();
        assert!(message.starts_with(name) && message.contains(expected), "{message}");
    }
    // An embedded preview's end-of-image marker is not the image's.
    let mut with_preview = jpeg[..2].to_vec();
    with_preview.extend([0xff, 0xe1, 0, 8, 0xff, 0xda, 0, 2, 0xff, 0xd9]);
    with_preview.extend(&jpeg[2..jpeg.len() - 2]);
    let folder = tempdir().unwrap();
    write(&folder.path().join("a.jpg"), with_preview);
    let dataset = Dataset::open(folder.path(), &OpenOptions::default()).unwrap();
    assert!(dataset.decode(0).unwrap_err().to_string().contains("cut short"));
}
