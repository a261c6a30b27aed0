//! Where images come from: one trait, and the detection of what lies at a path.

pub mod cifar;
pub mod folder;
pub mod idx;
mod jpeg;
pub mod list;
mod map;
pub mod memory;
pub mod pack;
pub mod paths;
mod pickle;

use std::path::{Path, PathBuf};

use crate::error::DataError;

/// A decoded image, 8 bits per channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RgbImage {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `[height, width, 3]`, row by row.
    pub pixels: Vec<u8>,
}

impl RgbImage {
    /// An image from its pixels `[height, width, 3]`.
    ///
    /// # Panics
    /// If the length of `pixels` is not `height * width * 3`.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Self {
        assert_eq!(pixels.len(), width as usize * height as usize * 3, "pixels of a {width}x{height} image");
        Self { width, height, pixels }
    }

    /// Makes this a black image of the given size, keeping the buffer.
    pub(crate) fn reset(&mut self, width: u32, height: u32) {
        (self.width, self.height) = (width, height);
        self.pixels.clear();
        self.pixels.resize(width as usize * height as usize * 3, 0);
    }
}

/// A numbered collection of images, perhaps with labels. Indices run over `0..len()`; a larger one panics.
pub trait Source: Send + Sync {
    /// Number of images, broken ones included.
    fn len(&self) -> usize;

    /// Whether there is no image; no opened source is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The class of an image, `None` in an unlabelled source.
    fn label(&self, index: usize) -> Option<u32>;

    /// The image's path relative to the source's root (with `/`), or `idx:123` where images have no files.
    fn name(&self, index: usize) -> String;

    /// Appends an image's name to a text: that of a million images takes no million allocations.
    fn push_name(&self, index: usize, text: &mut String) {
        text.push_str(&self.name(index));
    }

    /// Decodes an image into a buffer, which is reused.
    ///
    /// # Errors
    /// If the image cannot be read or decoded; `image` then holds nothing meaningful.
    fn decode_into(&self, index: usize, image: &mut RgbImage) -> Result<(), DataError>;

    /// Decodes an image at a fraction of its size if its format can do so: then `divisor` is asked, with the full width and
    /// height in pixels, which of 1, 2, 4 and 8 to divide them by (rounding up). Returns what they were divided by, 1 without
    /// such a format; an undivided image is that of [`Self::decode_into`].
    ///
    /// # Errors
    /// As [`Self::decode_into`].
    fn decode_scaled_into(
        &self,
        index: usize,
        _divisor: &mut dyn FnMut(u32, u32) -> u32,
        image: &mut RgbImage,
    ) -> Result<u32, DataError> {
        self.decode_into(index, image)?;
        Ok(1)
    }

    /// Decodes an image.
    ///
    /// # Errors
    /// If it cannot be read or decoded.
    fn decode(&self, index: usize) -> Result<RgbImage, DataError> {
        let mut image = RgbImage::default();
        self.decode_into(index, &mut image)?;
        Ok(image)
    }

    /// Names of the classes, by label.
    fn class_names(&self) -> Option<&[String]>;

    /// What this is, for people: `IDX, 28x28 grey`.
    fn description(&self) -> String;

    /// Whether decoding is a copy from memory, so that keeping decoded images is no gain.
    fn in_memory(&self) -> bool {
        false
    }

    /// Whether names alone do not tell these images from others.
    fn is_known_by_pixels(&self) -> bool {
        self.in_memory()
    }
}

/// Which files of a data set that comes in two parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// The training files.
    #[default]
    Train,
    /// The test files.
    Test,
    /// Training files, then test files.
    All,
}

/// How to open a path.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Which files of CIFAR, IDX or `train`/`val` folders. Ignored by other sources.
    pub part: Part,
    /// A `.npy` or `.txt` file that narrows the source.
    pub split: Option<PathBuf>,
    /// The folder that the paths of a `.txt` list are relative to; the list's own folder if absent.
    pub root: Option<PathBuf>,
}

/// Opens whatever lies at `path`.
///
/// # Errors
/// If there is nothing, nothing that is recognised, or a recognised format with a defect.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Box<dyn Source>, DataError> {
    let metadata = std::fs::metadata(path).map_err(|source| DataError::read(path, source))?;
    if metadata.is_dir() {
        open_folder(path, options)
    } else if metadata.is_file() {
        open_file(path, options)
    } else {
        Err(DataError::format(path, "neither a file nor a folder"))
    }
}

/// Whether the data at `path` comes in a training and a test part, so that [`Part`] chooses between them.
///
/// # Errors
/// If the path cannot be read.
pub fn has_parts(path: &Path) -> Result<bool, DataError> {
    let metadata = std::fs::metadata(path).map_err(|source| DataError::read(path, source))?;
    if !metadata.is_dir() {
        return Ok(false);
    }
    if cifar::find(path)?.is_some() {
        return Ok(true);
    }
    Ok(idx::has_parts(path)?.unwrap_or_else(|| folder::parts(path).is_some()))
}

fn open_folder(path: &Path, options: &OpenOptions) -> Result<Box<dyn Source>, DataError> {
    if let Some(archive) = cifar::find(path)? {
        return Ok(Box::new(cifar::open(&archive, options.part)?));
    }
    if let Some(table) = idx::open_folder(path, options.part)? {
        return Ok(Box::new(table));
    }
    Ok(Box::new(folder::FolderSource::open(path, options.part)?))
}

fn open_file(path: &Path, options: &OpenOptions) -> Result<Box<dyn Source>, DataError> {
    if pack::is_pack(path)? {
        return Ok(Box::new(pack::PackSource::open(path)?));
    }
    match lowercase_extension(path).as_str() {
        "sdpack" => {
            let problem = "not a pack, or a damaged one: it does not begin as a pack does; get the file again, or write \
                           it again with sdclr pack";
            return Err(DataError::format(path, problem));
        }
        "txt" => return Ok(Box::new(list::open(path, options.root.as_deref())?)),
        "npy" => {
            let problem = "this is an index array, not images; give the images as the data and this as the split";
            return Err(DataError::format(path, problem));
        }
        "tar" | "tgz" | "parquet" | "zip" => {
            return Err(DataError::format(path, "this archive format is not supported; unpack it and give the folder"));
        }
        extension if folder::EXTENSIONS.contains(&extension) => {
            return Err(DataError::format(path, "this is a single image; give the folder that holds the images"));
        }
        _ => {}
    }
    if cifar::is_batch_name(path) {
        return Err(DataError::format(path, "this is one file of CIFAR; give the folder that holds all of them"));
    }
    Ok(Box::new(idx::open_file(path)?))
}

/// The extension in lower case, empty if there is none.
pub(crate) fn lowercase_extension(path: &Path) -> String {
    path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}
