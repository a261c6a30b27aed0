//! Images that lie decoded in memory: tables of equal-sized images (IDX, CIFAR) and images handed over by a program.

use super::{RgbImage, Source};
use crate::error::DataError;

/// Equal-sized images in one block of bytes, as small research data sets come.
#[derive(Clone, Debug)]
pub struct Table {
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// 1 (grey) or 3 (RGB, interleaved).
    pub(crate) channels: usize,
    /// `[n_images, height, width, channels]`.
    pub(crate) bytes: Vec<u8>,
    /// One per image.
    pub(crate) labels: Option<Vec<u32>>,
    pub(crate) class_names: Option<Vec<String>>,
    /// What stands before the colon in an image's name.
    pub(crate) prefix: &'static str,
    pub(crate) description: String,
}

impl Table {
    fn image_len(&self) -> usize {
        self.width as usize * self.height as usize * self.channels
    }

    /// Appends another table of the same shape: the two parts of one data set.
    pub(crate) fn append(&mut self, other: Table) -> Result<(), String> {
        let shape = |table: &Table| (table.width, table.height, table.channels, table.labels.is_some());
        if shape(self) != shape(&other) {
            return Err("the training and the test part differ in image size or in having labels".to_owned());
        }
        self.bytes.extend_from_slice(&other.bytes);
        if let (Some(labels), Some(more)) = (&mut self.labels, other.labels) {
            labels.extend(more);
        }
        Ok(())
    }
}

impl Source for Table {
    fn len(&self) -> usize {
        self.bytes.len() / self.image_len()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.as_ref().map(|labels| labels[index])
    }

    fn name(&self, index: usize) -> String {
        format!("{}:{index}", self.prefix)
    }

    fn decode_into(&self, index: usize, image: &mut RgbImage) -> Result<(), DataError> {
        let bytes = &self.bytes[index * self.image_len()..][..self.image_len()];
        (image.width, image.height) = (self.width, self.height);
        image.pixels.clear();
        if self.channels == 3 {
            image.pixels.extend_from_slice(bytes);
        } else {
            image.pixels.extend(bytes.iter().flat_map(|&grey| [grey; 3]));
        }
        Ok(())
    }

    fn class_names(&self) -> Option<&[String]> {
        self.class_names.as_deref()
    }

    fn description(&self) -> String {
        self.description.clone()
    }

    fn in_memory(&self) -> bool {
        true
    }
}

/// Images handed over by a program; they may differ in size.
#[derive(Clone, Debug)]
pub struct MemorySource {
    images: Vec<RgbImage>,
    labels: Option<Vec<u32>>,
}

impl MemorySource {
    /// A source of these images.
    ///
    /// # Panics
    /// If there are labels, but not one for each image.
    pub fn new(images: Vec<RgbImage>, labels: Option<Vec<u32>>) -> Self {
        if let Some(labels) = &labels {
            assert_eq!(labels.len(), images.len(), "one label per image");
        }
        Self { images, labels }
    }
}

impl Source for MemorySource {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.as_ref().map(|labels| labels[index])
    }

    fn name(&self, index: usize) -> String {
        format!("memory:{index}")
    }

    fn decode_into(&self, index: usize, image: &mut RgbImage) -> Result<(), DataError> {
        let RgbImage { width, height, pixels } = &self.images[index];
        if *width == 0 || *height == 0 || pixels.len() != *width as usize * *height as usize * 3 {
            let reason = format!("{} bytes are not the pixels of a {width}x{height} RGB image", pixels.len());
            return Err(DataError::Image { name: self.name(index), reason });
        }
        image.clone_from(&self.images[index]);
        Ok(())
    }

    fn class_names(&self) -> Option<&[String]> {
        None
    }

    fn description(&self) -> String {
        "images in memory".to_owned()
    }

    fn in_memory(&self) -> bool {
        true
    }
}
