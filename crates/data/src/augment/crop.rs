//! Which part of an image becomes the view, and the copy when nothing needs resizing.

use super::resize::Filter;
use crate::source::RgbImage;

/// A rectangle of pixels inside an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Columns, at least 1.
    pub width: u32,
    /// Rows, at least 1.
    pub height: u32,
}

/// The crop is resized to `resized` (width, height), and the view is the square window whose first column and row in
/// the result are `window`; outside of the result, the view is black.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// What is cut out of the image.
    pub crop: Crop,
    /// Width and height that the crop is resized to.
    pub resized: (u32, u32),
    /// Column and row of the view's first pixel, perhaps outside.
    pub window: (i32, i32),
    /// How pixels are interpolated.
    pub filter: Filter,
}

impl Geometry {
    /// A crop resized to a square: the whole result is the view.
    pub fn resized_crop(crop: Crop, image_size: u32, filter: Filter) -> Self {
        Self { crop, resized: (image_size, image_size), window: (0, 0), filter }
    }

    /// The whole image with its shorter side resized to `shorter` (bilinear; the longer one rounded down, as
    /// torchvision does), and the centre of that. Without `shorter` nothing is resized.
    pub fn centre(width: u32, height: u32, shorter: Option<u32>, image_size: u32) -> Self {
        let scaled = |shorter: u32, side: u32| {
            let side = u64::from(shorter) * u64::from(side) / u64::from(width.min(height));
            u32::try_from(side).unwrap_or(u32::MAX)
        };
        let resized = shorter.map_or((width, height), |shorter| (scaled(shorter, width), scaled(shorter, height)));
        let window = (centred(resized.0, image_size), centred(resized.1, image_size));
        Self { crop: Crop { left: 0, top: 0, width, height }, resized, window, filter: Filter::Bilinear }
    }

    /// The image as it is where it has the model's size, else its centre after resizing the shorter side to it.
    pub fn fitted(width: u32, height: u32, image_size: u32) -> Self {
        Self::centre(width, height, Some(image_size), image_size)
    }

    /// The same with the window moved.
    pub fn shifted(mut self, columns: i32, rows: i32) -> Self {
        self.window = (self.window.0.saturating_add(columns), self.window.1.saturating_add(rows));
        self
    }

    /// The same for the image decoded at 1/`divisor` of its size: the crop's edges move to the nearest whole pixel. `None`
    /// if the crop would be smaller than what it is resized to, so that detail would be lost that the view has.
    pub fn reduced(self, divisor: u32) -> Option<Self> {
        let edge = |edge: u32| (edge + divisor / 2) / divisor;
        let Crop { left, top, width, height } = self.crop;
        let (left, right) = (edge(left), edge(left + width));
        let (top, bottom) = (edge(top), edge(top + height));
        let crop = Crop { left, top, width: right - left, height: bottom - top };
        (crop.width >= self.resized.0 && crop.height >= self.resized.1).then_some(Self { crop, ..self })
    }

    /// Whether nothing is resized.
    pub fn is_copy(&self) -> bool {
        self.resized == (self.crop.width, self.crop.height)
    }
}

/// First pixel of a centred window: torchvision's `int(round((side - window) / 2))` with Python's rounding of halves to
/// even, and its `(window - side) // 2` black pixels where the image is smaller.
fn centred(side: u32, window: u32) -> i32 {
    let difference = i64::from(side) - i64::from(window);
    let first = if difference < 0 { -((-difference) / 2) } else { (difference as f64 / 2.0).round_ties_even() as i64 };
    i32::try_from(first).unwrap_or(i32::MAX)
}

/// The part of `0..side` (view columns or rows) that lies inside a result of `resized` pixels.
pub(super) fn inside(window: i32, resized: u32, side: usize) -> std::ops::Range<usize> {
    let clamp = |position: i64| position.clamp(0, side as i64) as usize;
    let (start, end) = (clamp(-i64::from(window)), clamp(i64::from(resized) - i64::from(window)));
    start..end.max(start)
}

/// Copies the window of an unresized crop into a view, mirrored if `flip`.
pub(super) fn copy_window(image: &RgbImage, geometry: &Geometry, flip: bool, side: usize, view: &mut [u8]) {
    let Geometry { crop, window, .. } = geometry;
    let columns = inside(window.0, crop.width, side);
    let rows = inside(window.1, crop.height, side);
    if columns.len() < side || rows.len() < side {
        view.fill(0);
    }
    let row_len = image.width as usize * 3;
    let first_column = (i64::from(crop.left) + i64::from(window.0) + columns.start as i64) as usize;
    for row in rows {
        let source_row = (i64::from(crop.top) + i64::from(window.1) + row as i64) as usize;
        let source = &image.pixels[source_row * row_len..][first_column * 3..][..columns.len() * 3];
        let target = &mut view[row * side * 3..][..side * 3];
        if flip {
            let mirrored = target[(side - columns.end) * 3..][..source.len()].chunks_exact_mut(3).rev();
            mirrored.zip(source.chunks_exact(3)).for_each(|(target, pixel)| target.copy_from_slice(pixel));
        } else {
            target[columns.start * 3..][..source.len()].copy_from_slice(source);
        }
    }
}
