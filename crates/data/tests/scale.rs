//! Lists as long as ImageNet's: the results are those of short ones.

mod common;

use std::fmt::Write as _;

use common::{encoded, write};
use image::ImageFormat;
use sdclr_data::{Dataset, OpenOptions};
use tempfile::tempdir;

const N_IMAGES: usize = 200_000;
const N_CLASSES: usize = 1000;
/// The only image that exists.
const EXISTING: usize = 123_456;

fn name(index: usize) -> String {
    format!("train/n{:08}/n{:08}_{index}.JPEG", index % N_CLASSES, index % N_CLASSES)
}

#[test]
fn a_list_of_hundreds_of_thousands_is_opened_narrowed_counted_and_marked() {
    let folder = tempdir().unwrap();
    let root = folder.path().join("images");
    write(&root.join(name(EXISTING)), encoded(ImageFormat::Jpeg, 6, 4, [9; 3]));
    let mut text = String::new();
    for index in 0..N_IMAGES {
        writeln!(text, "{} {}", name(index), index % N_CLASSES).unwrap();
    }
    let list = write(&folder.path().join("all.txt"), text);
    let options = OpenOptions { root: Some(root.clone()), ..OpenOptions::default() };
    let all = Dataset::open(&list, &options).unwrap();
    assert_eq!((all.len(), all.n_classes()), (N_IMAGES, Some(N_CLASSES)));
    assert_eq!(all.class_counts(), Some(vec![N_IMAGES / N_CLASSES; N_CLASSES]));
    assert_eq!((all.name(EXISTING), all.label(EXISTING)), (name(EXISTING), Some(456)));
    assert_eq!((all.decode(EXISTING).unwrap().width, all.decode(0).is_err()), (6, true));

    // Every third image, last first, with leading folders that the list has not.
    let kept: Vec<usize> = (0..N_IMAGES).rev().filter(|index| index % 3 == 0).collect();
    let mut text = String::new();
    kept.iter().for_each(|&index| writeln!(text, "./imagenet/{} {}", name(index), index % N_CLASSES).unwrap());
    let split = write(&folder.path().join("tail.txt"), text);
    let narrowed = Dataset::open(&list, &OpenOptions { split: Some(split), ..options.clone() }).unwrap();
    assert_eq!(narrowed.len(), kept.len());
    assert!((0..kept.len()).all(|position| narrowed.source_index(position) == kept[position]));
    let mut counts = vec![0; N_CLASSES];
    kept.iter().for_each(|index| counts[index % N_CLASSES] += 1);
    assert_eq!(narrowed.class_counts(), Some(counts));
    assert_eq!(narrowed.n_shared_with(&all), kept.len());
    assert_eq!(narrowed.fingerprint(), all.select(&kept).unwrap().fingerprint());
    assert_ne!(narrowed.fingerprint(), all.fingerprint());

    let options = OpenOptions { root: Some(folder.path().to_owned()), ..options };
    let message = Dataset::open(&list, &options).unwrap_err().to_string();
    assert!(message.contains("none of its 200000 files exists"), "{message}");
}
