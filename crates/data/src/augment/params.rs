//! Drawing the parameters of a view, separate from their use.
//!
//! Source: `get_params` of torchvision's RandomResizedCrop, RandomCrop and ColorJitter. The random numbers are our own
//! stream; the distributions are torchvision's.

use sdclr_records::augment::{Augmentation, Contrastive, Interpolation};

use super::crop::{Crop, Geometry};
use super::resize::Filter;
use crate::rng::Rng;

/// Everything that is random about a view, fixed.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// Crop, resize, window.
    pub geometry: Geometry,
    /// Mirrored left to right, after the geometry.
    pub flip: bool,
    /// Colour jitter, if any.
    pub jitter: Option<JitterParams>,
    /// Colours dropped.
    pub grayscale: bool,
    /// Standard deviation of the Gaussian blur, if any; more than 100 pixels count as 100.
    pub blur_sigma_px: Option<f64>,
}

/// The four operations of a colour jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JitterOp {
    /// Blend with black.
    Brightness,
    /// Blend with the mean grey.
    Contrast,
    /// Blend with the grey image.
    Saturation,
    /// Turn the colour wheel.
    Hue,
}

/// A colour jitter with fixed strengths.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JitterParams {
    /// Every operation once, in the order of application.
    pub order: [JitterOp; 4],
    /// 1 leaves the image as it is, 0 makes it black.
    pub brightness: f64,
    /// 1 leaves the image as it is, 0 makes it grey.
    pub contrast: f64,
    /// 1 leaves the image as it is, 0 removes the colours.
    pub saturation: f64,
    /// Turns of the colour wheel, in [−0.5, 0.5].
    pub hue: f64,
}

impl Params {
    /// The geometry alone, nothing random.
    pub fn plain(geometry: Geometry) -> Self {
        Self { geometry, flip: false, jitter: None, grayscale: false, blur_sigma_px: None }
    }

    /// Whether the pixels stay as the geometry leaves them, but for their place.
    pub(super) fn is_copy(&self) -> bool {
        self.jitter.is_none() && !self.grayscale && self.blur_sigma_px.is_none()
    }

    pub(super) fn sample(recipe: &Augmentation, image_size: u32, rng: &mut Rng, width: u32, height: u32) -> Self {
        let resized_crop = |rng: &mut Rng, area: [f64; 2], ratio: [f64; 2], interpolation| {
            let crop = sample_crop(rng, width, height, area, ratio);
            Geometry::resized_crop(crop, image_size, filter(interpolation))
        };
        match recipe {
            Augmentation::Contrastive(recipe) => {
                let area = [recipe.area_min, recipe.area_max];
                let geometry = resized_crop(rng, area, recipe.ratio, recipe.interpolation);
                Self::sample_colours(recipe, geometry, rng)
            }
            Augmentation::RandomResized(recipe) => {
                let area = [recipe.area_min, recipe.area_max];
                let geometry = resized_crop(rng, area, recipe.ratio, recipe.interpolation);
                Self { flip: rng.chance(recipe.flip_p), ..Self::plain(geometry) }
            }
            Augmentation::CropPad(recipe) => {
                let padding = recipe.padding as i32;
                let mut shift = || rng.below(2 * recipe.padding as u64 + 1) as i32 - padding;
                let (rows, columns) = (shift(), shift());
                let geometry = Geometry::fitted(width, height, image_size).shifted(columns, rows);
                Self { flip: rng.chance(recipe.flip_p), ..Self::plain(geometry) }
            }
            Augmentation::Center(recipe) => Self::plain(Geometry::centre(width, height, recipe.resize, image_size)),
            Augmentation::Plain(_) => Self::plain(Geometry::fitted(width, height, image_size)),
        }
    }

    fn sample_colours(recipe: &Contrastive, geometry: Geometry, rng: &mut Rng) -> Self {
        let flip = rng.chance(recipe.flip_p);
        let jitter = rng.chance(recipe.jitter_p).then(|| sample_jitter(recipe, rng));
        let grayscale = rng.chance(recipe.grayscale_p);
        let [low, high] = recipe.blur_sigma_px;
        let blur_sigma_px = rng.chance(recipe.blur_p).then(|| rng.uniform(low, high));
        Self { geometry, flip, jitter, grayscale, blur_sigma_px }
    }
}

/// Ten tries for a crop of random area and shape, then the largest centred crop of an allowed shape.
fn sample_crop(rng: &mut Rng, width: u32, height: u32, area: [f64; 2], ratio: [f64; 2]) -> Crop {
    let image_area = f64::from(width) * f64::from(height);
    let (log_low, log_high) = (ratio[0].ln(), ratio[1].ln());
    for _ in 0..10 {
        let target = image_area * rng.uniform(area[0], area[1]);
        let shape = rng.uniform(log_low, log_high).exp();
        let crop_width = (target * shape).sqrt().round_ties_even();
        let crop_height = (target / shape).sqrt().round_ties_even();
        let fits = |side: f64, limit: u32| side > 0.0 && side <= f64::from(limit);
        if fits(crop_width, width) && fits(crop_height, height) {
            let (crop_width, crop_height) = (crop_width as u32, crop_height as u32);
            let top = rng.below(u64::from(height - crop_height) + 1) as u32;
            let left = rng.below(u64::from(width - crop_width) + 1) as u32;
            return Crop { left, top, width: crop_width, height: crop_height };
        }
    }
    fallback_crop(width, height, ratio)
}

fn fallback_crop(width: u32, height: u32, ratio: [f64; 2]) -> Crop {
    let image_ratio = f64::from(width) / f64::from(height);
    // At least one pixel, where torchvision would fail on images that are thousands of times longer than wide.
    let side = |exact: f64, limit: u32| (exact.round_ties_even() as u32).clamp(1, limit);
    let (crop_width, crop_height) = if image_ratio < ratio[0] {
        (width, side(f64::from(width) / ratio[0], height))
    } else if image_ratio > ratio[1] {
        (side(f64::from(height) * ratio[1], width), height)
    } else {
        (width, height)
    };
    Crop { left: (width - crop_width) / 2, top: (height - crop_height) / 2, width: crop_width, height: crop_height }
}

fn sample_jitter(recipe: &Contrastive, rng: &mut Rng) -> JitterParams {
    let mut order = [JitterOp::Brightness, JitterOp::Contrast, JitterOp::Saturation, JitterOp::Hue];
    rng.shuffle(&mut order);
    let mut factor = |width: f64| {
        let width = width * recipe.strength;
        rng.uniform((1.0 - width).max(0.0), 1.0 + width)
    };
    let brightness = factor(recipe.jitter.brightness);
    let contrast = factor(recipe.jitter.contrast);
    let saturation = factor(recipe.jitter.saturation);
    let hue_max = recipe.jitter.hue * recipe.strength;
    JitterParams { order, brightness, contrast, saturation, hue: rng.uniform(-hue_max, hue_max) }
}

fn filter(interpolation: Interpolation) -> Filter {
    match interpolation {
        Interpolation::Bilinear => Filter::Bilinear,
        Interpolation::Bicubic => Filter::Bicubic,
    }
}
