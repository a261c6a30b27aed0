use super::*;
use sdclr_records::experiment::Experiment;

/// CIFAR-10 in its binary form with `n_a_batch` images in each of six files, classes in turn.
fn cifar10(root: &Path, n_a_batch: usize) -> PathBuf {
    let folder = root.join("cifar-10-batches-bin");
    std::fs::create_dir_all(&folder).unwrap();
    for file in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"] {
        let mut bytes = Vec::new();
        for i in 0..n_a_batch {
            bytes.push((i % 10) as u8);
            bytes.extend(std::iter::repeat_n((i * 7) as u8, 3072));
        }
        std::fs::write(folder.join(format!("{file}.bin")), bytes).unwrap();
    }
    folder
}

/// Class folders with one tiny image each name; only lists and labels matter here.
fn folders(root: &Path, n_classes: usize, n_images: usize) {
    for part in ["train", "val"] {
        for class in 0..n_classes {
            let folder = root.join(part).join(format!("n{class:08}"));
            std::fs::create_dir_all(&folder).unwrap();
            for i in 0..n_images {
                std::fs::write(folder.join(format!("{part}_{i}.JPEG")), b"").unwrap();
            }
        }
    }
}

fn made<'a>(data: &'a Path, out: &'a Path) -> Places<'a> {
    Places { data, given: None, made: out }
}

fn indices(record: &ImagesRecord) -> Vec<usize> {
    let images = open(record).unwrap();
    (0..images.len()).map(|position| images.source_index(position)).collect()
}

#[test]
fn made_sets_have_the_papers_counts_and_nest_and_leave_the_validation_images_alone() {
    let root = tempfile::tempdir().unwrap();
    let data = cifar10(root.path(), 1000);
    let experiment = Experiment::named("cifar10-lt").unwrap();
    let sets = sets(&experiment, &made(&data, &root.path().join("splits")), 0.1).unwrap();
    let (train, validation) = (indices(&sets.train), indices(&sets.validation));
    assert_eq!((train.len(), validation.len(), indices(&sets.test).len()), (450, 500, 1000));
    assert!(validation.iter().all(|index| !train.contains(index)));
    assert_eq!((sets.splits.len(), sets.given, sets.notes.len()), (5, false, 0));
    for (split, one) in (1..).zip(&sets.splits) {
        let counts = open(&one.long_tail).unwrap().class_counts().unwrap();
        assert_eq!(counts, tail_counts(&experiment, split, 0.1));
        let few_shot = indices(&one.few_shot);
        let (long_tail, balanced) = (indices(&one.long_tail), indices(&one.balanced));
        // 45 and 1116 a class become 5 and 112. The rarest class has 4.5, rounded to 5, too.
        assert_eq!((few_shot.len(), balanced.len()), (50, 1120));
        assert!(few_shot.iter().all(|index| long_tail.contains(index) && balanced.contains(index)), "split {split}");
        assert!(long_tail.iter().all(|index| !validation.contains(index)));
    }
    assert_ne!(indices(&sets.splits[0].long_tail), indices(&sets.splits[1].long_tail));
}

#[test]
fn made_sets_are_the_same_bytes_everywhere() {
    let root = tempfile::tempdir().unwrap();
    let data = cifar10(root.path(), 100);
    let experiment = Experiment::named("cifar10-lt").unwrap();
    let mut hasher = crc32fast::Hasher::new();
    let sets = sets(&experiment, &made(&data, &root.path().join("splits")), 0.01).unwrap();
    for file in files_of(&sets) {
        if file.is_file() {
            hasher.update(&std::fs::read(file).unwrap());
        }
    }
    // Recorded: a change of it means that everybody's splits change.
    assert_eq!(hasher.finalize(), 2_341_588_012);
}

#[test]
fn sets_that_are_there_are_not_made_again() {
    let root = tempfile::tempdir().unwrap();
    let (data, out) = (cifar10(root.path(), 100), root.path().join("splits"));
    let experiment = Experiment::named("cifar10-lt").unwrap();
    let first = sets(&experiment, &made(&data, &out), 0.01).unwrap();
    let tail = first.splits[2].long_tail.split.clone().unwrap();
    // The same counts, other images: ours stay.
    let mut other: Vec<usize> = indices(&first.splits[2].long_tail);
    other.reverse();
    write_indices(&tail, &other).unwrap();
    let again = sets(&experiment, &made(&data, &out), 0.01).unwrap();
    assert_eq!((&again, indices(&again.splits[2].long_tail)), (&first, other));
}

#[test]
fn published_files_are_found_in_their_folders_or_in_one_and_recognised() {
    let root = tempfile::tempdir().unwrap();
    let (data, out) = (cifar10(root.path(), 1000), root.path().join("published"));
    let experiment = Experiment::named("cifar10-lt").unwrap();
    let ours = sets(&experiment, &made(&data, &out), 0.1).unwrap();
    let places = Places { data: &data, given: Some(&out), made: root.path() };
    let found = sets(&experiment, &places, 0.1).unwrap();
    assert_eq!(found, Sets { given: true, ..ours.clone() });
    let flat = root.path().join("flat");
    std::fs::create_dir(&flat).unwrap();
    for file in files_of(&ours).iter().filter(|file| file.is_file()) {
        std::fs::copy(file, flat.join(file.file_name().unwrap())).unwrap();
    }
    let places = Places { data: &data, given: Some(&flat), made: root.path() };
    assert_eq!(
        indices(&sets(&experiment, &places, 0.1).unwrap().splits[4].balanced),
        indices(&ours.splits[4].balanced)
    );
    let check = |change: &dyn Fn(), expected: &str| {
        change();
        let message = sets(&experiment, &places, 0.1).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    };
    // A set of another size, split 2's file in the place of split 1's, then validation images among the few, then a file less.
    let copy = |from: &str, to: &str| assert!(std::fs::copy(flat.join(from), flat.join(to)).unwrap() > 0);
    check(
        &|| copy("split1_D_b.npy", "split1_S_b.npy"),
        "split1_S_b.npy: its class counts, 1120 images with 112 of the largest",
    );
    copy("../published/cifar10_imbSub_with_subsets/split1_S_b.npy", "split1_S_b.npy");
    check(&|| copy("split2_D_i.npy", "split1_D_i.npy"), "split1_D_i.npy: its class counts are those of split 2");
    copy("../published/cifar10_imbSub_with_subsets/split1_D_i.npy", "split1_D_i.npy");
    check(&|| copy("valIdxList.npy", "split3_S_b.npy"), "split3_S_b.npy: 500 of its images are validation images");
    check(
        &|| std::fs::remove_file(flat.join("split5_S_b.npy")).unwrap(),
        "1 of the 17 split files of CIFAR-10-LT are missing",
    );
}

#[test]
fn lists_of_folders_carry_labels_and_find_their_files() {
    let root = tempfile::tempdir().unwrap();
    folders(root.path(), 100, 40);
    let experiment = Experiment::named("imagenet100-lt").unwrap();
    let out = root.path().join("made");
    let sets = sets(&experiment, &made(root.path(), &out), 0.03).unwrap();
    let tail = open(&sets.splits[0].long_tail).unwrap();
    assert_eq!(tail.class_counts().unwrap(), tail_counts(&experiment, 1, 0.03));
    assert_eq!(tail.class_counts().unwrap().iter().max(), Some(&38));
    let text = std::fs::read_to_string(&sets.test.source).unwrap();
    assert!(text.starts_with("val/n00000000/val_0.JPEG 0\n"), "{}", &text[..60]);
    assert_eq!(text.lines().count(), 4000);
    let text = std::fs::read_to_string(&sets.train.source).unwrap();
    assert!(text.lines().all(|line| line.starts_with("train/n")), "{}", &text[..60]);
    let ours =
        super::sets(&experiment, &Places { data: root.path(), given: Some(&out), made: root.path() }, 0.03).unwrap();
    assert!(ours.given);
}

#[test]
fn other_images_are_named_with_what_is_needed() {
    let root = tempfile::tempdir().unwrap();
    let data = cifar10(root.path(), 20);
    let check = |experiment: &str, data: &Path, expected: &[&str]| {
        let experiment = Experiment::named(experiment).unwrap();
        let message = sets(&experiment, &made(data, &root.path().join("none")), 1.0).unwrap_err().to_string();
        assert!(expected.iter().all(|part| message.contains(part)), "{message}");
    };
    check("cifar100-lt", &data, &["CIFAR-100-LT has 100 classes", "CIFAR-10 train", "cifar-100-python"]);
    check("fashion-mnist-lt", &data, &["Fashion-MNIST-LT", "train-images-idx3-ubyte.gz"]);
    check("cifar10-lt", &data, &["too few images for CIFAR-10-LT (100 are there)", "--scale"]);
    let images = root.path().join("folders");
    folders(&images, 3, 2);
    check("imagenet100-lt", &images, &["has 100 classes", "with 3", "--split-dir"]);
    std::fs::remove_dir_all(images.join("val")).unwrap();
    check("imagenet-lt", &images, &["and no test part", "train/ and val/"]);
}
