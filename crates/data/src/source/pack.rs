//! A pack: images in one mapped file, as [`mod@crate::pack`] writes it. Each image is checked against its checksum when it is
//! read, so that a damaged one is a broken image and not a wrong one.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::map::Map;
use super::paths::Paths;
use super::{RgbImage, Source, folder};
use crate::error::DataError;
use crate::pack::Storage;
use crate::pack::format::{Entry, HEADER_LEN, Header, Index, MAGIC};

/// An opened pack. The index is held in memory (36 bytes and the name of each image), pixels stay in the file.
#[derive(Debug)]
pub struct PackSource {
    path: PathBuf,
    map: Map,
    storage: Storage,
    entries: Vec<Entry>,
    names: Paths,
    labels: Option<Vec<u32>>,
    class_names: Option<Vec<String>>,
    description: String,
}

/// Whether a file begins as a pack does.
///
/// # Errors
/// If it cannot be read.
pub(super) fn is_pack(path: &Path) -> Result<bool, DataError> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(|source| DataError::read(path, source))?;
    file.take(MAGIC.len() as u64).read_to_end(&mut start).map_err(|source| DataError::read(path, source))?;
    Ok(start == MAGIC)
}

impl PackSource {
    /// Opens a pack and checks its header and index; pixels are checked when they are read.
    ///
    /// # Errors
    /// If it cannot be read, is no pack of a known version, or is damaged.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let read = |source| DataError::read(path, source);
        let damaged = |problem| DataError::format(path, problem);
        let map = Map::new(File::open(path).map_err(read)?).map_err(read)?;
        let start = map.bytes(0..map.len().min(HEADER_LEN as u64)).map_err(read)?;
        let header = Header::parse(start, map.len()).map_err(damaged)?;
        let index = map.bytes(header.index_offset..map.len()).map_err(read)?;
        let Index { entries, labels, names: (text, ends), class_names, description } =
            Index::parse(index, &header).map_err(damaged)?;
        let pixels = match header.shorter_side {
            side if header.n_resized > 0 => {
                format!("{} of {} images shrunk to a shorter side of {side}", header.n_resized, header.n_images)
            }
            _ => "sizes kept".to_owned(),
        };
        let description = format!("pack ({}, {pixels}) of {description}", header.storage.name());
        let (path, names) = (path.to_owned(), Paths::from_text(text, ends));
        Ok(Self { path, map, storage: header.storage, entries, names, labels, class_names, description })
    }

    /// An image's bytes in the file, found whole.
    fn stored(&self, index: usize) -> Result<&[u8], DataError> {
        let Entry { offset, n_bytes, crc32, .. } = self.entries[index];
        let bytes = self.map.bytes(offset..offset + u64::from(n_bytes)).map_err(|error| {
            self.broken(index, format!("{}: {error}; get the file again, or write it again", self.path.display()))
        })?;
        if crc32fast::hash(bytes) != crc32 {
            let reason = "its bytes do not match their checksum; get the pack again, or write it again with sdclr pack";
            return Err(self.broken(index, reason.to_owned()));
        }
        Ok(bytes)
    }

    fn broken(&self, index: usize, reason: String) -> DataError {
        DataError::Image { name: self.name(index), reason }
    }

    /// The image that a JPEG holds, reduced by what `divisor` says.
    fn decode_jpeg(
        &self,
        index: usize,
        divisor: &mut dyn FnMut(u32, u32) -> u32,
        image: &mut RgbImage,
    ) -> Result<u32, DataError> {
        let divisor =
            folder::decode_scaled(self.stored(index)?, divisor, image).map_err(|reason| self.broken(index, reason))?;
        let Entry { width, height, .. } = self.entries[index];
        if (image.width, image.height) != (width.div_ceil(divisor), height.div_ceil(divisor)) {
            let reason = format!("it has {}x{} pixels, its entry says {width}x{height}", image.width, image.height);
            return Err(self.broken(index, reason));
        }
        Ok(divisor)
    }
}

impl Source for PackSource {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.as_ref().map(|labels| labels[index])
    }

    fn name(&self, index: usize) -> String {
        self.names.name(index).to_owned()
    }

    fn push_name(&self, index: usize, text: &mut String) {
        text.push_str(self.names.name(index));
    }

    fn decode_into(&self, index: usize, image: &mut RgbImage) -> Result<(), DataError> {
        self.decode_scaled_into(index, &mut |_, _| 1, image).map(drop)
    }

    fn decode_scaled_into(
        &self,
        index: usize,
        divisor: &mut dyn FnMut(u32, u32) -> u32,
        image: &mut RgbImage,
    ) -> Result<u32, DataError> {
        if let Storage::Jpeg { .. } = self.storage {
            return self.decode_jpeg(index, divisor, image);
        }
        let bytes = self.stored(index)?;
        (image.width, image.height) = (self.entries[index].width, self.entries[index].height);
        image.pixels.clear();
        image.pixels.extend_from_slice(bytes);
        Ok(1)
    }

    fn class_names(&self) -> Option<&[String]> {
        self.class_names.as_deref()
    }

    fn description(&self) -> String {
        self.description.clone()
    }

    fn in_memory(&self) -> bool {
        self.storage == Storage::Raw
    }

    fn is_known_by_pixels(&self) -> bool {
        // Its images have the names of the originals, but perhaps not their pixels.
        true
    }
}
