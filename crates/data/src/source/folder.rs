//! A folder of image files, recursive: class sub-folders give labels, their absence an unlabelled source.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageReader};
use walkdir::{DirEntry, WalkDir};

use super::{Part, RgbImage, Source, lowercase_extension};
use crate::error::DataError;

/// Extensions of the formats that can be decoded, in lower case.
pub const EXTENSIONS: &[&str] = &["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"];

/// Images as files. Names are paths relative to the root, sorted component by component.
#[derive(Clone, Debug)]
pub struct FolderSource {
    pub(crate) root: PathBuf,
    pub(crate) files: Vec<PathBuf>,
    pub(crate) labels: Option<Vec<u32>>,
    pub(crate) class_names: Option<Vec<String>>,
    pub(crate) kind: &'static str,
}

impl FolderSource {
    /// Finds the images below `root`. If every image lies in a sub-folder, the first-level sub-folders are the
    /// classes, sorted by name. A root with a `train` folder and a `val` or `test` folder is taken as two parts.
    ///
    /// # Errors
    /// If a folder cannot be listed or holds no image.
    pub fn open(root: &Path, part: Part) -> Result<Self, DataError> {
        match parts(root) {
            Some((train, held_out)) => match part {
                Part::Train => Self::open_part(&train),
                Part::Test => Self::open_part(&held_out),
                Part::All => Self::open_part(&train)?.followed_by(Self::open_part(&held_out)?, root),
            },
            None => Self::open_part(root),
        }
    }

    fn open_part(root: &Path) -> Result<Self, DataError> {
        let files = image_files(root)?;
        if files.is_empty() {
            let problem = format!("no images in this folder or below it (looked for {})", EXTENSIONS.join(", "));
            return Err(DataError::format(root, problem));
        }
        let (labels, class_names) = match classes(root, &files)? {
            Some((labels, names)) => (Some(labels), Some(names)),
            None => (None, None),
        };
        Ok(Self { root: root.to_owned(), files, labels, class_names, kind: "folder of images" })
    }

    fn followed_by(mut self, other: Self, root: &Path) -> Result<Self, DataError> {
        if self.class_names != other.class_names {
            let (a, b) = (self.root.display(), other.root.display());
            let problem =
                format!("{a} and {b} have different class folders, so they cannot be joined; open one of them");
            return Err(DataError::format(root, problem));
        }
        let below_root = |part: &Self| -> Vec<PathBuf> {
            let prefix = part.root.strip_prefix(root).unwrap_or(&part.root);
            part.files.iter().map(|file| prefix.join(file)).collect()
        };
        let files = below_root(&self).into_iter().chain(below_root(&other)).collect();
        if let (Some(labels), Some(more)) = (&mut self.labels, other.labels) {
            labels.extend(more);
        }
        Ok(Self { root: root.to_owned(), files, ..self })
    }
}

/// The training and the held-out folder of a root that has both.
pub(crate) fn parts(root: &Path) -> Option<(PathBuf, PathBuf)> {
    let held_out = ["test", "val"].map(|name| root.join(name)).into_iter().find(|path| path.is_dir())?;
    Some((root.join("train"), held_out)).filter(|(train, _)| train.is_dir())
}

impl Source for FolderSource {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.as_ref().map(|labels| labels[index])
    }

    fn name(&self, index: usize) -> String {
        let parts: Vec<_> = self.files[index].iter().map(|part| part.to_string_lossy()).collect();
        parts.join("/")
    }

    fn decode_into(&self, index: usize, image: &mut RgbImage) -> Result<(), DataError> {
        let broken = |reason: String| DataError::Image { name: self.name(index), reason };
        let bytes = std::fs::read(self.root.join(&self.files[index])).map_err(|error| broken(error.to_string()))?;
        let decoded = decode_file(&bytes).map_err(broken)?;
        *image = RgbImage { width: decoded.width(), height: decoded.height(), pixels: decoded.into_raw() };
        Ok(())
    }

    fn class_names(&self) -> Option<&[String]> {
        self.class_names.as_deref()
    }

    fn description(&self) -> String {
        self.kind.to_owned()
    }
}

/// Decodes a file of any supported format to 8-bit RGB: palettes are looked up, 16 bits scaled to 8, alpha dropped
/// (not blended, as Pillow's `convert("RGB")` does), grey repeated. Of an animation, the first frame.
fn decode_file(bytes: &[u8]) -> Result<image::RgbImage, String> {
    if bytes.is_empty() {
        return Err("the file is empty".to_owned());
    }
    if bytes.starts_with(&[0xff, 0xd8]) && !jpeg_is_complete(bytes) {
        return Err("the JPEG file is cut short (it has no end-of-image marker)".to_owned());
    }
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| error.to_string())?;
    if reader.format().is_none() {
        return Err("the content is of no supported image format".to_owned());
    }
    let decoded = reader.decode().map_err(|error| error.to_string())?;
    if decoded.width() == 0 || decoded.height() == 0 {
        return Err("the image has no pixels".to_owned());
    }
    Ok(match decoded {
        DynamicImage::ImageRgb8(rgb) => rgb,
        other => other.into_rgb8(),
    })
}

/// Whether an end-of-image marker follows the first start-of-scan marker of the main image. Lenient decoders fill a
/// cut-short file with grey; training on that silently would be worse than skipping it.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    let mut position = 2;
    while let Some(&[0xff, marker, high, low]) = bytes.get(position..).and_then(|rest| rest.first_chunk::<4>()) {
        match marker {
            0xff => position += 1,
            0xda => return bytes[position..].windows(2).any(|pair| pair == [0xff, 0xd9]),
            _ => position += 2 + usize::from(u16::from_be_bytes([high, low])),
        }
    }
    // Not a marker where one must be: let the decoder say what is wrong.
    position < bytes.len()
}

/// Relative paths of all images, sorted. Hidden files and folders are left out (macOS makes `._x.jpg`).
fn image_files(root: &Path) -> Result<Vec<PathBuf>, DataError> {
    let is_image = |path: &Path| EXTENSIONS.contains(&lowercase_extension(path).as_str());
    let mut files = Vec::new();
    let visible = |entry: &DirEntry| entry.depth() == 0 || !entry.file_name().to_string_lossy().starts_with('.');
    for entry in WalkDir::new(root).follow_links(true).into_iter().filter_entry(visible) {
        let path = match entry {
            Ok(entry) if entry.file_type().is_dir() => continue,
            Ok(entry) => entry.into_path(),
            // A dangling link to an image is a broken image: it is listed here and skipped when it is decoded.
            Err(error) if error.path().is_some_and(is_image) => error.path().map(Path::to_owned).unwrap_or_default(),
            Err(error) => {
                let path = error.path().unwrap_or(root).to_owned();
                return Err(DataError::Io { path, action: "list", source: error.into() });
            }
        };
        if is_image(&path) {
            files.push(path.strip_prefix(root).unwrap_or(&path).to_owned());
        }
    }
    files.sort();
    Ok(files)
}

/// A label per file, and the names by label.
type Classes = (Vec<u32>, Vec<String>);

/// The classes, or `None` if an image lies directly in the root.
fn classes(root: &Path, files: &[PathBuf]) -> Result<Option<Classes>, DataError> {
    if files.iter().any(|file| file.components().count() < 2) {
        return Ok(None);
    }
    // Folders without an image count too, so that a training and a test folder agree on the numbers.
    let list_error = |source| DataError::Io { path: root.to_owned(), action: "list", source };
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(root).map_err(list_error)? {
        let entry = entry.map_err(list_error)?;
        if entry.path().is_dir() && !entry.file_name().to_string_lossy().starts_with('.') {
            folders.push(entry.file_name());
        }
    }
    folders.sort();
    let label_of = |file: &PathBuf| {
        let class = file.iter().next().unwrap_or_default();
        folders.binary_search_by(|folder| folder.as_os_str().cmp(class)).ok().map(|label| label as u32)
    };
    let labels: Option<Vec<u32>> = files.iter().map(label_of).collect();
    let names = folders.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    Ok(labels.map(|labels| (labels, names)))
}
