//! IDX files, plain or gzipped: the format of MNIST and its relatives.
//!
//! Source: <http://yann.lecun.com/exdb/mnist/>: two zero bytes, a type (8: unsigned byte), the number of dimensions,
//! the dimensions as big-endian 32-bit integers, the values. Colour images `[N, H, W, 3]` are accepted as well.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::Part;
use super::memory::Table;
use crate::error::DataError;

/// How the names of the training and of the test files begin.
const TRAIN: &[&str] = &["train"];
const TEST: &[&str] = &["t10k", "test"];

/// The type code of unsigned bytes.
const UNSIGNED_BYTE: u8 = 8;

/// Opens a file of images with its file of labels beside it, if there is one.
///
/// # Errors
/// If the file is no IDX file of images, is cut short, or has another number of labels.
pub fn open_file(images_path: &Path) -> Result<Table, DataError> {
    let images = IdxArray::read(images_path)?;
    let (width, height, channels) = match images.shape[..] {
        [_, height, width] => (width, height, 1),
        [_, height, width, 3] => (width, height, 3),
        _ => {
            let problem = format!(
                "this IDX file has shape {:?}, which is not images ([N, H, W] or [N, H, W, 3]); give the images file",
                images.shape
            );
            return Err(DataError::format(images_path, problem));
        }
    };
    if images.bytes.is_empty() {
        return Err(DataError::format(images_path, "this IDX file holds no images"));
    }
    let labels = match labels_path(images_path) {
        Some(path) => Some(read_labels(&path, images_path, images.shape[0])?),
        None => None,
    };
    let colour = if channels == 1 { "grey" } else { "RGB" };
    Ok(Table {
        width: width as u32,
        height: height as u32,
        channels,
        bytes: images.bytes,
        labels,
        class_names: None,
        prefix: "idx",
        description: format!("IDX, {width}x{height} {colour}"),
    })
}

/// Whether a folder of IDX files has a training and a test file, `None` if it has no file that is named like one.
///
/// # Errors
/// If it cannot be listed.
pub fn has_parts(folder: &Path) -> Result<Option<bool>, DataError> {
    let files = folder_files(folder)?;
    let any = |prefixes: &[&str]| files.iter().any(|f| prefixes.iter().any(|prefix| file_name(f).starts_with(prefix)));
    Ok(if files.is_empty() { None } else { Some(any(TRAIN) && any(TEST)) })
}

/// The IDX image files of a folder or of the `raw` below it.
fn folder_files(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let files = image_files(folder)?;
    let raw = folder.join("raw");
    if files.is_empty() && raw.is_dir() { image_files(&raw) } else { Ok(files) }
}

/// Opens a folder of IDX files, `None` if it has no file that is named like one.
///
/// # Errors
/// If the wanted part is missing, has no labels file, or has a defect.
pub fn open_folder(folder: &Path, part: Part) -> Result<Option<Table>, DataError> {
    let files = folder_files(folder)?;
    if files.is_empty() {
        return Ok(None);
    }
    let open = |prefixes: &[&str]| -> Result<Table, DataError> {
        let path = pick(folder, &files, prefixes)?;
        if labels_path(path).is_none() {
            let problem = "its labels file (…labels-idx1-ubyte or …labels-idx1-ubyte.gz) is missing beside it; \
                           to use the images unlabelled, give this file instead of the folder";
            return Err(DataError::format(path, problem));
        }
        open_file(path)
    };
    Ok(Some(match part {
        Part::Train => open(TRAIN)?,
        Part::Test => open(TEST)?,
        Part::All => {
            let mut all = open(TRAIN)?;
            let test = open(TEST)?;
            all.append(test).map_err(|problem| DataError::format(folder, problem))?;
            all
        }
    }))
}

/// The files named like IDX images, sorted; where a plain and a gzipped one exist, the plain one.
fn image_files(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let list_error = |source| DataError::Io { path: folder.to_owned(), action: "list", source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(list_error)? {
        let path = entry.map_err(list_error)?.path();
        let name = file_name(&path);
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        let is_images = ["-idx3-ubyte", ".idx3-ubyte", "-idx4-ubyte", ".idx4-ubyte"].iter().any(|e| name.ends_with(e));
        if is_images && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    files.dedup_by(|gzipped, plain| file_name(gzipped).strip_suffix(".gz") == Some(&file_name(plain)));
    Ok(files)
}

fn pick<'a>(folder: &Path, files: &'a [PathBuf], prefixes: &[&str]) -> Result<&'a PathBuf, DataError> {
    let named = files.iter().find(|file| prefixes.iter().any(|prefix| file_name(file).starts_with(prefix)));
    named.or(if let [only] = files { Some(only) } else { None }).ok_or_else(|| {
        let found: Vec<_> = files.iter().map(|file| file_name(file)).collect();
        let problem = format!(
            "no IDX images file here starts with {}; found {}. Give one of these files instead of the folder",
            prefixes.join(" or "),
            found.join(", ")
        );
        DataError::format(folder, problem)
    })
}

/// The labels file that belongs to an images file, if it exists, gzipped or not.
fn labels_path(images_path: &Path) -> Option<PathBuf> {
    let name = file_name(images_path);
    let plain = name.strip_suffix(".gz").unwrap_or(&name);
    let labels = plain.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1");
    if labels == plain {
        return None;
    }
    let candidates = [images_path.with_file_name(&labels), images_path.with_file_name(format!("{labels}.gz"))];
    candidates.into_iter().find(|path| path.is_file())
}

fn read_labels(path: &Path, images_path: &Path, n_images: usize) -> Result<Vec<u32>, DataError> {
    let labels = IdxArray::read(path)?;
    if labels.shape.len() != 1 {
        let problem = format!("this IDX file has shape {:?}; labels have one dimension", labels.shape);
        return Err(DataError::format(path, problem));
    }
    if labels.bytes.len() != n_images {
        let (n_labels, images_name) = (labels.bytes.len(), file_name(images_path));
        let problem =
            format!("{n_labels} labels for the {n_images} images of {images_name}; are these two parts mixed?");
        return Err(DataError::format(path, problem));
    }
    Ok(labels.bytes.into_iter().map(u32::from).collect())
}

/// An IDX file's content.
struct IdxArray {
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl IdxArray {
    fn read(path: &Path) -> Result<Self, DataError> {
        let mut bytes = std::fs::read(path).map_err(|source| DataError::read(path, source))?;
        if bytes.starts_with(&[0x1f, 0x8b]) {
            let mut plain = Vec::new();
            flate2::read::MultiGzDecoder::new(&bytes[..])
                .read_to_end(&mut plain)
                .map_err(|error| DataError::format(path, format!("damaged or cut-short gzip data: {error}")))?;
            bytes = plain;
        }
        Self::parse(bytes).map_err(|problem| DataError::format(path, problem))
    }

    fn parse(mut bytes: Vec<u8>) -> Result<Self, String> {
        let magic: [u8; 4] = match bytes.first_chunk() {
            Some(magic) => *magic,
            None => return Err(format!("{} bytes are too few for an IDX file", bytes.len())),
        };
        if magic[..2] != [0, 0] || magic[2] != UNSIGNED_BYTE || !(1..=4).contains(&magic[3]) {
            return Err(format!(
                "not a data file this program knows: it starts with {:02x} {:02x} {:02x} {:02x}, an IDX file of bytes \
                 with 00 00 08 and the number of dimensions",
                magic[0], magic[1], magic[2], magic[3]
            ));
        }
        let header_len = 4 + 4 * usize::from(magic[3]);
        if bytes.len() < header_len {
            return Err(format!("cut short: {} bytes, the header alone has {header_len}", bytes.len()));
        }
        let shape: Vec<usize> = bytes[4..header_len]
            .chunks_exact(4)
            .map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize)
            .collect();
        let expected = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
        let found = bytes.len() - header_len;
        if expected != Some(found) {
            let cause = if expected.is_none_or(|n| n > found) { "cut short" } else { "longer than its header says" };
            return Err(format!("{cause}: {found} bytes of values for shape {shape:?}; get the file again"));
        }
        bytes.drain(..header_len);
        Ok(Self { shape, bytes })
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
