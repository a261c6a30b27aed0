//! CIFAR-10 and CIFAR-100 as their authors distribute them: Python pickles or binary files.
//!
//! Source: <https://www.cs.toronto.edu/~kriz/cifar.html>. The index of a training image is its place in the
//! concatenation of `data_batch_1` … `data_batch_5`, as the published index splits count. CIFAR-100: fine labels.

use std::path::{Path, PathBuf};

use super::Part;
use super::memory::Table;
use super::pickle::Pickle;
use crate::error::DataError;

/// Side length of the images.
const SIDE: usize = 32;
/// Bytes of one channel of an image.
const PLANE: usize = SIDE * SIDE;
/// Bytes of an image.
const IMAGE: usize = 3 * PLANE;

/// Which of the four distributions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `cifar-10-batches-py`
    Cifar10Python,
    /// `cifar-10-batches-bin`
    Cifar10Binary,
    /// `cifar-100-python`
    Cifar100Python,
    /// `cifar-100-binary`
    Cifar100Binary,
}

const KINDS: [Kind; 4] = [Kind::Cifar10Python, Kind::Cifar10Binary, Kind::Cifar100Python, Kind::Cifar100Binary];

impl Kind {
    /// The name of the folder inside the authors' archive.
    pub fn folder_name(self) -> &'static str {
        match self {
            Self::Cifar10Python => "cifar-10-batches-py",
            Self::Cifar10Binary => "cifar-10-batches-bin",
            Self::Cifar100Python => "cifar-100-python",
            Self::Cifar100Binary => "cifar-100-binary",
        }
    }

    fn is_python(self) -> bool {
        matches!(self, Self::Cifar10Python | Self::Cifar100Python)
    }

    fn n_classes(self) -> u32 {
        if matches!(self, Self::Cifar10Python | Self::Cifar10Binary) { 10 } else { 100 }
    }

    fn files(self, part: Part) -> Vec<String> {
        let (train, test): (Vec<String>, &str) = match self {
            Self::Cifar10Python => ((1..=5).map(|i| format!("data_batch_{i}")).collect(), "test_batch"),
            Self::Cifar10Binary => ((1..=5).map(|i| format!("data_batch_{i}.bin")).collect(), "test_batch.bin"),
            Self::Cifar100Python => (vec!["train".to_owned()], "test"),
            Self::Cifar100Binary => (vec!["train.bin".to_owned()], "test.bin"),
        };
        match part {
            Part::Train => train,
            Part::Test => vec![test.to_owned()],
            Part::All => train.into_iter().chain([test.to_owned()]).collect(),
        }
    }

    fn is_in(self, folder: &Path) -> bool {
        if folder.file_name().is_some_and(|name| name == self.folder_name()) {
            return true;
        }
        // Renamed folders are known by their files. CIFAR-100's `train` alone could be anything.
        let marker = match self {
            Self::Cifar100Python => Some("meta"),
            Self::Cifar100Binary => Some("fine_label_names.txt"),
            Self::Cifar10Python | Self::Cifar10Binary => None,
        };
        let any_file = self.files(Part::All).iter().any(|file| folder.join(file).is_file());
        any_file && marker.is_none_or(|marker| folder.join(marker).is_file())
    }
}

/// A CIFAR distribution that was found.
#[derive(Clone, Debug)]
pub struct Archive {
    kind: Kind,
    folder: PathBuf,
}

/// Whether a file is named like one of CIFAR's.
pub(crate) fn is_batch_name(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    KINDS.iter().any(|kind| kind.files(Part::All).contains(&name))
}

/// Looks for CIFAR in a folder and in its direct sub-folders of the authors' names.
///
/// # Errors
/// If there is more than one distribution of different data.
pub fn find(folder: &Path) -> Result<Option<Archive>, DataError> {
    if let Some(kind) = KINDS.into_iter().find(|kind| kind.is_in(folder)) {
        return Ok(Some(Archive { kind, folder: folder.to_owned() }));
    }
    let below: Vec<Archive> = KINDS
        .into_iter()
        .map(|kind| Archive { kind, folder: folder.join(kind.folder_name()) })
        .filter(|archive| archive.folder.is_dir())
        .collect();
    match &below[..] {
        [first, rest @ ..] if rest.iter().any(|other| other.kind.n_classes() != first.kind.n_classes()) => {
            let names: Vec<_> = below.iter().map(|archive| archive.kind.folder_name()).collect();
            let problem = format!("holds {}; give one of these folders", names.join(" and "));
            Err(DataError::format(folder, problem))
        }
        _ => Ok(below.into_iter().next()),
    }
}

/// Reads the files of a part into memory.
///
/// # Errors
/// If a file is missing, cut short or not what it should be.
pub fn open(archive: &Archive, part: Part) -> Result<Table, DataError> {
    let Archive { kind, folder } = archive;
    let files = kind.files(part);
    if let Some(missing) = files.iter().find(|file| !folder.join(file).is_file()) {
        let problem = format!("{missing} is missing; unpack the whole archive again ({} files)", files.len());
        return Err(DataError::format(folder, problem));
    }
    let (mut bytes, mut labels) = (Vec::new(), Vec::new());
    for file in files {
        let path = folder.join(file);
        let content = std::fs::read(&path).map_err(|source| DataError::read(&path, source))?;
        let read = if kind.is_python() { read_pickle } else { read_binary };
        read(*kind, &content, &mut bytes, &mut labels).map_err(|problem| DataError::format(&path, problem))?;
    }
    let n_classes = kind.n_classes();
    Ok(Table {
        width: SIDE as u32,
        height: SIDE as u32,
        channels: 3,
        bytes,
        labels: Some(labels),
        class_names: class_names(*kind, folder),
        prefix: if n_classes == 10 { "cifar10" } else { "cifar100" },
        description: format!("CIFAR-{n_classes} {}, 32x32 RGB", part_name(part)),
    })
}

fn part_name(part: Part) -> &'static str {
    match part {
        Part::Train => "train",
        Part::Test => "test",
        Part::All => "train and test",
    }
}

fn read_pickle(kind: Kind, content: &[u8], bytes: &mut Vec<u8>, labels: &mut Vec<u32>) -> Result<(), String> {
    let pickle = Pickle::read(content)?;
    let label_key = if kind.n_classes() == 10 { "labels" } else { "fine_labels" };
    let missing =
        |key| format!("the pickle has no usable entry {key:?}; is this a file of CIFAR-{}?", kind.n_classes());
    let data = pickle.get("data").and_then(|value| pickle.byte_array(value)).ok_or_else(|| missing("data"))?;
    let label_list = pickle.get(label_key).and_then(|value| pickle.items(value)).ok_or_else(|| missing(label_key))?;

    let n_before = labels.len();
    for label in label_list {
        let label = pickle.int(label).and_then(|label| u32::try_from(label).ok()).ok_or_else(|| missing(label_key))?;
        push_label(kind, label, n_before, labels)?;
    }
    let n_images = labels.len() - n_before;
    if data.shape != [n_images, IMAGE] || data.bytes.len() != n_images * IMAGE {
        let (shape, n_bytes) = (&data.shape, data.bytes.len());
        return Err(format!(
            "{n_bytes} bytes of shape {shape:?} for {n_images} labels; expected [{n_images}, {IMAGE}]"
        ));
    }
    data.bytes.chunks_exact(IMAGE).for_each(|planes| interleave(planes, bytes));
    Ok(())
}

fn read_binary(kind: Kind, content: &[u8], bytes: &mut Vec<u8>, labels: &mut Vec<u32>) -> Result<(), String> {
    // CIFAR-100 has the coarse label first.
    let n_labels = if kind.n_classes() == 10 { 1 } else { 2 };
    let record = n_labels + IMAGE;
    if content.is_empty() || !content.len().is_multiple_of(record) {
        let (n, rest) = (content.len() / record, content.len() % record);
        return Err(format!(
            "cut short: {} bytes are {n} records of {record} bytes and {rest} bytes more; get the file again",
            content.len()
        ));
    }
    let n_before = labels.len();
    for image in content.chunks_exact(record) {
        push_label(kind, u32::from(image[n_labels - 1]), n_before, labels)?;
        interleave(&image[n_labels..], bytes);
    }
    Ok(())
}

fn push_label(kind: Kind, label: u32, n_before: usize, labels: &mut Vec<u32>) -> Result<(), String> {
    let n_classes = kind.n_classes();
    if label >= n_classes {
        let index = labels.len() - n_before;
        return Err(format!("label {label} of image {index} is not below {n_classes}; is this CIFAR-{n_classes}?"));
    }
    labels.push(label);
    Ok(())
}

/// `[3, 32, 32]` to `[32, 32, 3]`.
fn interleave(planes: &[u8], bytes: &mut Vec<u8>) {
    let (red, rest) = planes.split_at(PLANE);
    let (green, blue) = rest.split_at(PLANE);
    bytes.extend(red.iter().zip(green).zip(blue).flat_map(|((r, g), b)| [*r, *g, *b]));
}

/// Class names from the meta file; a distribution without one still works.
fn class_names(kind: Kind, folder: &Path) -> Option<Vec<String>> {
    let (file, key) = match kind {
        Kind::Cifar10Python => ("batches.meta", "label_names"),
        Kind::Cifar100Python => ("meta", "fine_label_names"),
        Kind::Cifar10Binary => ("batches.meta.txt", ""),
        Kind::Cifar100Binary => ("fine_label_names.txt", ""),
    };
    let content = std::fs::read(folder.join(file)).ok()?;
    let names: Vec<String> = if kind.is_python() {
        let pickle = Pickle::read(&content).ok()?;
        let names = pickle.items(pickle.get(key)?)?;
        names.map(|name| pickle.text(name).map(|t| String::from_utf8_lossy(t).into_owned())).collect::<Option<_>>()?
    } else {
        String::from_utf8(content).ok()?.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    };
    (names.len() == kind.n_classes() as usize).then_some(names)
}
