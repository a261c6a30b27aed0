//! A folder of image files, recursive: class sub-folders give labels, their absence an unlabelled source.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageReader};
use walkdir::{DirEntry, WalkDir};

use super::paths::Paths;
use super::{Part, RgbImage, Source, jpeg};
use crate::error::DataError;

/// Extensions of the formats that can be decoded, in lower case.
pub const EXTENSIONS: &[&str] = &["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"];

/// Whether a path ends as an image's does, whatever the case.
pub(super) fn is_image_name(path: &Path) -> bool {
    path.extension().is_some_and(|extension| EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

/// Images as files. Names are paths relative to the root, sorted component by component.
#[derive(Clone, Debug)]
pub struct FolderSource {
    pub(crate) root: PathBuf,
    pub(crate) files: Paths,
    pub(crate) labels: Option<Vec<u32>>,
    pub(crate) class_names: Option<Vec<String>>,
    pub(crate) description: String,
}

impl FolderSource {
    /// Finds the images below `root`. If every image lies in a sub-folder, the first-level sub-folders are the
    /// classes, sorted by name; a folder without an image is no class. A root with a `train` folder and a `test` or `val`
    /// folder is taken as two parts. Whatever is neither a file nor a folder is left out.
    ///
    /// # Errors
    /// If a folder cannot be listed or holds no image.
    pub fn open(root: &Path, part: Part) -> Result<Self, DataError> {
        match parts(root) {
            Some((train, held_out)) => {
                let opened = match part {
                    Part::Train => Self::open_part(&train)?,
                    Part::Test => Self::open_part(&held_out)?,
                    Part::All => Self::open_part(&train)?.followed_by(Self::open_part(&held_out)?, root)?,
                };
                let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let used = match part {
                    Part::Train => name(&train),
                    Part::Test => name(&held_out),
                    Part::All => format!("{} and {}", name(&train), name(&held_out)),
                };
                let there: Vec<&str> = PARTS.into_iter().filter(|part| root.join(part).is_dir()).collect();
                let description =
                    format!("{}, part {used} of a folder with parts {}", opened.description, there.join(", "));
                Ok(Self { description, ..opened })
            }
            None => Self::open_part(root),
        }
    }

    fn open_part(root: &Path) -> Result<Self, DataError> {
        let files = image_files(root)?;
        if files.is_empty() {
            let problem = format!("no images in this folder or below it (looked for {})", EXTENSIONS.join(", "));
            return Err(DataError::format(root, problem));
        }
        let mut description = "folder of images".to_owned();
        let (labels, class_names) = match classes(&files) {
            Ok((labels, names)) => (Some(labels), Some(names)),
            Err(loose) => {
                if files.names().any(|name| name.contains('/')) {
                    description +=
                        &format!(" without classes, for {loose} lies beside the folders and in none of them");
                }
                (None, None)
            }
        };
        Ok(Self { root: root.to_owned(), files, labels, class_names, description })
    }

    fn followed_by(mut self, other: Self, root: &Path) -> Result<Self, DataError> {
        // The class of each of the other's labels here; the other may lack classes, not have more.
        let places: Option<Vec<u32>> = match (&self.class_names, &other.class_names) {
            (Some(own), Some(names)) => {
                let by_name: HashMap<&String, u32> = own.iter().zip(0..).collect();
                names.iter().map(|name| by_name.get(name).copied()).collect()
            }
            (None, None) => Some(Vec::new()),
            _ => None,
        };
        let Some(places) = places else {
            let (a, b) = (self.root.display(), other.root.display());
            let problem =
                format!("{a} and {b} have different class folders, so they cannot be joined; open one of them");
            return Err(DataError::format(root, problem));
        };
        let mut files = Paths::default();
        for part in [&self, &other] {
            let prefix = part.root.strip_prefix(root).unwrap_or(&part.root);
            (0..part.files.len()).for_each(|file| files.push(&prefix.join(part.files.path(file))));
        }
        if let (Some(labels), Some(more)) = (&mut self.labels, other.labels) {
            labels.extend(more.into_iter().map(|label| places[label as usize]));
        }
        Ok(Self { root: root.to_owned(), files, ..self })
    }
}

/// Folders that are parts of a data set rather than classes.
const PARTS: [&str; 3] = ["train", "test", "val"];

/// The training and the held-out folder of a root that has both.
pub fn parts(root: &Path) -> Option<(PathBuf, PathBuf)> {
    let has_classes =
        |path: &Path| std::fs::read_dir(path).is_ok_and(|mut all| all.any(|e| e.is_ok_and(|e| e.path().is_dir())));
    let mut held_out = ["test", "val"].map(|name| root.join(name)).into_iter().filter(|path| path.is_dir());
    let (first, second) = (held_out.next()?, held_out.next());
    // ImageNet's test images have no classes, and its validation images are what everybody tests on.
    let held_out = second.filter(|second| !has_classes(&first) && has_classes(second)).unwrap_or(first);
    Some((root.join("train"), held_out)).filter(|(train, _)| train.is_dir())
}

impl FolderSource {
    fn broken(&self, index: usize, reason: String) -> DataError {
        DataError::Image { name: self.name(index), reason }
    }

    fn read(&self, index: usize) -> Result<Vec<u8>, DataError> {
        let path = self.root.join(self.files.path(index));
        let metadata = std::fs::metadata(&path).map_err(|error| self.broken(index, error.to_string()))?;
        // Reading a pipe that a list names would wait for ever.
        if !metadata.is_file() {
            return Err(self.broken(index, "not a regular file".to_owned()));
        }
        std::fs::read(path).map_err(|error| self.broken(index, error.to_string()))
    }
}

impl Source for FolderSource {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.as_ref().map(|labels| labels[index])
    }

    fn name(&self, index: usize) -> String {
        self.files.name(index).to_owned()
    }

    fn push_name(&self, index: usize, text: &mut String) {
        text.push_str(self.files.name(index));
    }

    fn decode_into(&self, index: usize, image: &mut RgbImage) -> Result<(), DataError> {
        decode_whole(&self.read(index)?, image).map_err(|reason| self.broken(index, reason))
    }

    fn decode_scaled_into(
        &self,
        index: usize,
        divisor: &mut dyn FnMut(u32, u32) -> u32,
        image: &mut RgbImage,
    ) -> Result<u32, DataError> {
        decode_scaled(&self.read(index)?, divisor, image).map_err(|reason| self.broken(index, reason))
    }

    fn class_names(&self) -> Option<&[String]> {
        self.class_names.as_deref()
    }

    fn description(&self) -> String {
        self.description.clone()
    }
}

/// Decodes a file's content, a JPEG's at the fraction that `divisor` chooses: see [`Source::decode_scaled_into`].
///
/// # Errors
/// What is wrong with it.
pub(super) fn decode_scaled(
    bytes: &[u8],
    divisor: &mut dyn FnMut(u32, u32) -> u32,
    image: &mut RgbImage,
) -> Result<u32, String> {
    if let Some((width, height)) = jpeg::size(bytes) {
        let divisor = divisor(width, height);
        // What the scaling decoder cannot do is left to the other one, which then also says what is wrong.
        if divisor > 1
            && jpeg::is_complete(bytes)
            && let Some(scaled) = jpeg::decode_scaled(bytes, divisor)
        {
            *image = scaled;
            return Ok(divisor);
        }
    }
    decode_whole(bytes, image)?;
    Ok(1)
}

fn decode_whole(bytes: &[u8], image: &mut RgbImage) -> Result<(), String> {
    let decoded = decode_file(bytes)?;
    *image = RgbImage { width: decoded.width(), height: decoded.height(), pixels: decoded.into_raw() };
    Ok(())
}

/// Decodes a file of any supported format to 8-bit RGB: palettes are looked up, 16 bits scaled to 8, alpha dropped
/// (not blended, as Pillow's `convert("RGB")` does), grey repeated. Of an animation, the first frame.
fn decode_file(bytes: &[u8]) -> Result<image::RgbImage, String> {
    if bytes.is_empty() {
        return Err("the file is empty".to_owned());
    }
    if jpeg::is_jpeg(bytes) && !jpeg::is_complete(bytes) {
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

/// Relative paths of all images, sorted component by component, in one pass that asks the system about no single file but
/// links. Hidden files and folders are left out, and `__MACOSX` with the `._x.jpg` that macOS packs into archives; so are
/// pipes, sockets, devices, and links that lead in a circle.
fn image_files(root: &Path) -> Result<Paths, DataError> {
    let mut files = Paths::default();
    let wanted = |entry: &DirEntry| {
        let name = entry.file_name();
        entry.depth() == 0 || !(name.as_encoded_bytes().starts_with(b".") || name == "__MACOSX")
    };
    for entry in WalkDir::new(root).follow_links(true).sort_by_file_name().into_iter().filter_entry(wanted) {
        let path = match entry {
            Ok(entry) if !entry.file_type().is_file() => continue,
            Ok(entry) => entry.into_path(),
            Err(error) if error.loop_ancestor().is_some() => continue,
            Err(error) => match error.path().filter(|path| error.depth() > 0 && path.is_symlink()) {
                // A dangling link to an image is a broken image: it is listed here and skipped when it is decoded.
                Some(link) if is_image_name(link) => link.to_owned(),
                Some(_) => continue,
                None => {
                    let path = error.path().unwrap_or(root).to_owned();
                    return Err(DataError::Io { path, action: "list", source: error.into() });
                }
            },
        };
        if is_image_name(&path) {
            files.push(path.strip_prefix(root).unwrap_or(&path));
        }
    }
    Ok(files)
}

/// A label per file, and the names by label.
type Classes = (Vec<u32>, Vec<String>);

/// The classes of sorted files, or the first image that lies directly in the root.
fn classes(files: &Paths) -> Result<Classes, &str> {
    // Files are sorted by their folders first, so those of a class follow each other.
    let (mut labels, mut folders) = (Vec::with_capacity(files.len()), Vec::<&OsStr>::new());
    for file in 0..files.len() {
        let mut parts = files.path(file).iter();
        let (Some(folder), Some(_)) = (parts.next(), parts.next()) else { return Err(files.name(file)) };
        if folders.last() != Some(&folder) {
            folders.push(folder);
        }
        labels.push(folders.len() as u32 - 1);
    }
    Ok((labels, folders.iter().map(|folder| folder.to_string_lossy().into_owned()).collect()))
}
