//! A data set: a source and the indices of its images that are in use. Cloning one copies two pointers.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use crate::error::DataError;
use crate::source::memory::MemorySource;
use crate::source::paths::Paths;
use crate::source::{self, OpenOptions, RgbImage, Source};
use crate::splits;

/// Images in a fixed order, with or without labels.
#[derive(Clone)]
pub struct Dataset {
    source: Arc<dyn Source>,
    indices: Arc<[u32]>,
    /// Labels that replace the source's.
    labels: Option<Labels>,
}

/// Labels of a data set's own: a `.txt` split's, or the source's under another numbering of the classes.
#[derive(Clone)]
struct Labels {
    by_position: Arc<[u32]>,
    class_names: Option<Arc<[String]>>,
}

impl Dataset {
    /// Opens whatever lies at `path` (see [`crate::source`]), narrowed by a split if the options name one.
    ///
    /// # Errors
    /// If the path, the data or the split has a defect.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, DataError> {
        let all = Self::from_source(source::open(path, options)?)?;
        match &options.split {
            Some(split) => all.narrowed_by(split),
            None => Ok(all),
        }
    }

    /// Every image of a source.
    ///
    /// # Errors
    /// If there are more than 2^32 − 1 images or none.
    pub fn from_source(source: Box<dyn Source>) -> Result<Self, DataError> {
        let n_images = u32::try_from(source.len())
            .map_err(|_| DataError::Setting(format!("{} images are more than 2^32 - 1", source.len())))?;
        if n_images == 0 {
            return Err(DataError::Setting("a data set needs at least one image".to_owned()));
        }
        Ok(Self { source: source.into(), indices: (0..n_images).collect(), labels: None })
    }

    /// Images handed over by a program.
    ///
    /// # Panics
    /// If there are no images, or labels but not one per image.
    pub fn from_memory(images: Vec<RgbImage>, labels: Option<Vec<u32>>) -> Self {
        assert!(!images.is_empty(), "a data set needs at least one image");
        let indices = (0..images.len() as u32).collect();
        Self { source: Arc::new(MemorySource::new(images, labels)), indices, labels: None }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether there is no image; a data set that exists has at least one.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// The class of the image at a position, `None` without labels.
    ///
    /// # Panics
    /// If `position` is not below `len()`; so do the other functions of a position.
    pub fn label(&self, position: usize) -> Option<u32> {
        match &self.labels {
            Some(labels) => Some(labels.by_position[position]),
            None => self.source.label(self.source_index(position)),
        }
    }

    /// The image's path relative to its root, or `idx:123`.
    pub fn name(&self, position: usize) -> String {
        self.source.name(self.source_index(position))
    }

    /// Appends the image's name to a text.
    pub fn push_name(&self, position: usize, text: &mut String) {
        self.source.push_name(self.source_index(position), text);
    }

    /// The image's index in the source, which no selection changes.
    pub fn source_index(&self, position: usize) -> usize {
        self.indices[position] as usize
    }

    /// Decodes an image.
    ///
    /// # Errors
    /// If it is broken.
    pub fn decode(&self, position: usize) -> Result<RgbImage, DataError> {
        self.source.decode(self.source_index(position))
    }

    /// Decodes an image into a buffer, which is reused.
    ///
    /// # Errors
    /// If it is broken.
    pub fn decode_into(&self, position: usize, image: &mut RgbImage) -> Result<(), DataError> {
        self.source.decode_into(self.source_index(position), image)
    }

    /// Decodes an image at a fraction of its size where that can be done: see [`Source::decode_scaled_into`].
    ///
    /// # Errors
    /// If it is broken.
    pub fn decode_scaled_into(
        &self,
        position: usize,
        divisor: &mut dyn FnMut(u32, u32) -> u32,
        image: &mut RgbImage,
    ) -> Result<u32, DataError> {
        self.source.decode_scaled_into(self.source_index(position), divisor, image)
    }

    /// The data set of the images at these positions, in this order.
    ///
    /// # Errors
    /// If there is none, or one is past the end.
    pub fn select(&self, positions: &[usize]) -> Result<Self, DataError> {
        if positions.is_empty() {
            return Err(DataError::Setting("a selection needs at least one image".to_owned()));
        }
        if let Some(bad) = positions.iter().find(|position| **position >= self.len()) {
            let problem = format!("position {bad} is past the end of the data set ({} images)", self.len());
            return Err(DataError::Setting(problem));
        }
        let indices = positions.iter().map(|position| self.indices[*position]).collect();
        let labels = self.labels.as_ref().map(|labels| Labels {
            by_position: positions.iter().map(|position| labels.by_position[*position]).collect(),
            class_names: labels.class_names.clone(),
        });
        Ok(Self { source: Arc::clone(&self.source), indices, labels })
    }

    /// Images per class, by label; `None` without labels.
    pub fn class_counts(&self) -> Option<Vec<usize>> {
        let mut counts = vec![0; self.class_names().map_or(0, <[String]>::len)];
        for position in 0..self.len() {
            let label = self.label(position)? as usize;
            // Labels of lists are free numbers; a count per possible class would be absurd past this.
            if label >= counts.len() {
                counts.resize(label + 1, 0);
            }
            counts[label] += 1;
        }
        Some(counts)
    }

    /// Number of classes: that of the class names, else the largest label plus one.
    pub fn n_classes(&self) -> Option<usize> {
        let largest = (0..self.len()).map(|position| self.label(position)).max().flatten()?;
        Some(self.class_names().map_or(0, <[String]>::len).max(largest as usize + 1))
    }

    /// Names of the classes, by label.
    pub fn class_names(&self) -> Option<&[String]> {
        match &self.labels {
            // The labels of a split number classes their own way, so the source's names do not apply to them.
            Some(labels) => labels.class_names.as_deref(),
            None => self.source.class_names(),
        }
    }

    /// The same images with the classes of another data set: labels are matched by class name.
    ///
    /// Without names on either side the labels stay as they are.
    ///
    /// # Errors
    /// The names of the classes that have images here and are not among the other's.
    pub fn with_classes_of(&self, other: &Self) -> Result<Self, Vec<String>> {
        other.class_names().map_or_else(|| Ok(self.clone()), |names| self.with_class_names(names))
    }

    /// The same images with these classes: labels are matched by class name. Without names of its own the labels stay.
    ///
    /// # Errors
    /// The names of the classes that have images here and are not among them.
    pub fn with_class_names(&self, names: &[String]) -> Result<Self, Vec<String>> {
        let Some(own) = self.class_names() else { return Ok(self.clone()) };
        if own == names {
            return Ok(self.clone());
        }
        let counts = self.class_counts().unwrap_or_default();
        let by_name: HashMap<&String, u32> = names.iter().zip(0..).collect();
        let places: Vec<Option<u32>> = own.iter().map(|name| by_name.get(name).copied()).collect();
        let used = own.iter().enumerate().filter(|(label, _)| counts.get(*label).is_some_and(|&count| count > 0));
        let unknown: Vec<String> = used.filter(|(label, _)| places[*label].is_none()).map(|(_, n)| n.clone()).collect();
        let by_position: Option<Arc<[u32]>> =
            (0..self.len()).map(|position| places.get(self.label(position)? as usize).copied().flatten()).collect();
        match by_position {
            Some(by_position) => {
                let labels = Labels { by_position, class_names: Some(names.into()) };
                Ok(Self { labels: Some(labels), ..self.clone() })
            }
            None => Err(unknown),
        }
    }

    /// Number of images that another selection from the same source has too.
    pub fn n_shared_with(&self, other: &Self) -> usize {
        let theirs: HashSet<u32> = other.indices.iter().copied().collect();
        self.indices.iter().filter(|index| theirs.contains(index)).count()
    }

    /// Number of images whose name an earlier one has too: those that a list names twice.
    pub fn n_repeated(&self) -> usize {
        let names = self.names();
        self.len() - names.names().collect::<HashSet<_>>().len()
    }

    fn names(&self) -> Paths {
        let mut names = Paths::default();
        (0..self.len()).for_each(|position| names.push_with(|text| self.push_name(position, text)));
        names
    }

    /// A CRC-32 that tells these images, in this order, from others without reading all of them: over their indices and
    /// names, and over the pixels of a few where names say too little. Where the data lies does not matter, nor do labels.
    pub fn fingerprint(&self) -> u32 {
        const N_SAMPLED: usize = 16;
        let (mut hasher, mut name) = (crc32fast::Hasher::new(), String::new());
        for &index in &*self.indices {
            name.clear();
            self.source.push_name(index as usize, &mut name);
            hasher.update(&index.to_le_bytes());
            hasher.update(name.as_bytes());
        }
        let n_sampled = if self.source.is_known_by_pixels() { N_SAMPLED.min(self.len()) } else { 0 };
        for n in 0..n_sampled {
            // A broken image adds nothing, which is the same every time.
            if let Ok(image) = self.decode(spread(n, n_sampled, self.len())) {
                hasher.update(&image.pixels);
            }
        }
        hasher.finalize()
    }

    /// Decodes up to `n_wanted` images that are not broken, spread over the data set, giving up after four times as many.
    pub fn sample(&self, n_wanted: usize) -> Vec<RgbImage> {
        let n_tried = (4 * n_wanted).min(self.len());
        let positions = (0..n_tried).map(|n| spread(n, n_tried, self.len()));
        positions.filter_map(|position| self.decode(position).ok()).take(n_wanted).collect()
    }

    /// What this is, for people: the source's description and the number of images.
    pub fn description(&self) -> String {
        let (n_images, n_source) = (self.len(), self.source.len());
        let share = if n_images == n_source { String::new() } else { format!(" of {n_source}") };
        format!("{}, {n_images}{share} images", self.source.description())
    }

    /// What the source is, for people.
    pub fn source_description(&self) -> String {
        self.source.description()
    }

    /// Whether decoding is a copy from memory.
    pub fn in_memory(&self) -> bool {
        self.source.in_memory()
    }

    /// The images that a split selects: `.npy` indices or a `.txt` list.
    ///
    /// # Errors
    /// If the split has a defect or does not fit.
    pub fn narrowed_by(&self, split: &Path) -> Result<Self, DataError> {
        match source::lowercase_extension(split).as_str() {
            "npy" => {
                let what = (self.source.description(), self.len());
                self.select(&splits::read_indices(split, &what.0, what.1)?)
            }
            "txt" => {
                let (positions, labels) = splits::read_list(split, &self.source.description(), &self.names())?;
                let narrowed = self.select(&positions)?;
                let same = labels.as_ref().is_none_or(|labels| {
                    labels.iter().enumerate().all(|(position, label)| narrowed.label(position) == Some(*label))
                });
                let own = |labels: Vec<u32>| Labels { by_position: labels.into(), class_names: None };
                Ok(if same { narrowed } else { Self { labels: labels.map(own), ..narrowed } })
            }
            _ => {
                let problem = "a split is a .npy file of indices or a .txt list of paths";
                Err(DataError::split(split, problem))
            }
        }
    }
}

/// The `n`-th of `n_spread` positions spread evenly over `len`.
pub(crate) fn spread(n: usize, n_spread: usize, len: usize) -> usize {
    (n as u128 * len as u128 / n_spread as u128) as usize
}

impl std::fmt::Debug for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dataset({})", self.description())
    }
}
