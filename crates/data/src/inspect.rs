//! A look at a data set without training on it: counts, sizes, broken files.

use std::ops::ControlFlow;

use crate::dataset::{Dataset, spread};
use crate::error::DataError;
use crate::loader::Skipped;
use crate::ordered::{in_order, n_workers};
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

/// Inspects a data set, decoding at most `limit` of its images, evenly spread, on all cores.
pub fn inspect(dataset: &Dataset, limit: usize) -> Inspection {
    let n_images = dataset.len();
    let n_decoded = limit.min(n_images);
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
    let decode = |image: &mut RgbImage, n| {
        let position = spread(n, n_decoded, n_images);
        let size = dataset.decode_into(position, image).map(|()| (image.width, image.height));
        size.map_err(|error| Skipped::new(dataset, position, &error))
    };
    in_order(n_decoded, n_workers(0), decode, |n, result| {
        let panicked = |message| DataError::Panicked { name: String::new(), message };
        match result.map_err(|message| Skipped::new(dataset, spread(n, n_decoded, n_images), &panicked(message))) {
            Ok(Ok((width, height))) => {
                widen(&mut inspection.width_range, width);
                widen(&mut inspection.height_range, height);
            }
            Ok(Err(broken)) | Err(broken) => inspection.broken.push(broken),
        }
        ControlFlow::Continue(())
    });
    inspection
}

fn widen(range: &mut Option<(u32, u32)>, value: u32) {
    let (low, high) = range.unwrap_or((value, value));
    *range = Some((low.min(value), high.max(value)));
}
