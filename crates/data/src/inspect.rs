//! A look at a data set without training on it: counts, sizes, broken files.

use crate::dataset::{Dataset, spread};
use crate::loader::Skipped;
use crate::source::RgbImage;

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Inspection {
    /// What the source is.
    pub description: String,
    /// Images in the data set.
    pub n_images: usize,
    /// Images per class, by label, if labelled.
    pub class_counts: Option<Vec<usize>>,
    /// Names of the classes, by label, if they have any.
    pub class_names: Option<Vec<String>>,
    /// Images that were decoded: all, or evenly spread ones.
    pub n_decoded: usize,
    /// Smallest and largest width in pixels among the decoded; `None` if all are broken.
    pub width_range: Option<(u32, u32)>,
    /// Smallest and largest height in pixels.
    pub height_range: Option<(u32, u32)>,
    /// Those of the decoded that are broken.
    pub broken: Vec<Skipped>,
}

/// Inspects a data set, decoding at most `limit` of its images, evenly spread.
pub fn inspect(dataset: &Dataset, limit: usize) -> Inspection {
    let n_images = dataset.len();
    let n_decoded = limit.min(n_images);
    let mut image = RgbImage::default();
    let mut inspection = Inspection {
        description: dataset.description(),
        n_images,
        class_counts: dataset.class_counts(),
        class_names: dataset.class_names().map(<[String]>::to_vec),
        n_decoded,
        width_range: None,
        height_range: None,
        broken: Vec::new(),
    };
    for n in 0..n_decoded {
        let position = spread(n, n_decoded, n_images);
        match dataset.decode_into(position, &mut image) {
            Ok(()) => {
                widen(&mut inspection.width_range, image.width);
                widen(&mut inspection.height_range, image.height);
            }
            Err(error) => inspection.broken.push(Skipped::new(dataset, position, &error)),
        }
    }
    inspection
}

fn widen(range: &mut Option<(u32, u32)>, value: u32) {
    let (low, high) = range.unwrap_or((value, value));
    *range = Some((low.min(value), high.max(value)));
}
