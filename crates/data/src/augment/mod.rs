//! From a decoded image to a square view: parameters are drawn first ([`Augmenter::sample`]), then applied
//! ([`Augmenter::apply`]), so that what is applied can be compared with other programs.
//!
//! Source: torchvision's transforms on Pillow images, whose arithmetic is followed step by step (8-bit results between
//! the steps, fixed-point filters). The same parameters give Pillow's pixels.

mod blur;
mod crop;
mod jitter;
mod params;
mod randaugment;
mod resize;

pub use crop::{Crop, Geometry};
pub use params::{JitterOp, JitterParams, Params};
pub use randaugment::{Boost, N_RAND_OPS, RandOp};
pub use resize::Filter;

use pulp::{Arch, Simd, WithSimd};
use sdclr_records::augment::Augmentation;

use crate::error::DataError;
use crate::rng::Rng;
use crate::source::RgbImage;

/// The largest side of a view.
pub const IMAGE_SIZE_MAX: u32 = 4096;

/// A recipe for views of one size. Holds no state; each thread brings its [`Scratch`].
#[derive(Clone, Debug)]
pub struct Augmenter {
    recipe: Augmentation,
    image_size: u32,
}

/// Buffers that one thread reuses from image to image.
#[derive(Debug)]
pub struct Scratch {
    arch: Arch,
    resize: resize::Buffers,
    /// The view while it is worked on: three planes of `image_size * image_size`.
    planes: Vec<u8>,
    line: Vec<u8>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { arch: Arch::new(), resize: resize::Buffers::default(), planes: Vec::new(), line: Vec::new() }
    }
}

impl Augmenter {
    /// A recipe for views of `image_size * image_size` pixels.
    ///
    /// # Errors
    /// If the recipe has a value out of range, or the size is 0 or above [`IMAGE_SIZE_MAX`].
    pub fn new(recipe: Augmentation, image_size: u32) -> Result<Self, DataError> {
        recipe.validate().map_err(|problem| DataError::Setting(format!("augmentation: {problem}")))?;
        if !(1..=IMAGE_SIZE_MAX).contains(&image_size) {
            let problem = format!("image size {image_size}: it must be in 1..={IMAGE_SIZE_MAX} pixels");
            return Err(DataError::Setting(problem));
        }
        Ok(Self { recipe, image_size })
    }

    /// Bytes of a view: `image_size * image_size * 3`.
    pub fn view_len(&self) -> usize {
        self.image_size as usize * self.image_size as usize * 3
    }

    /// Draws the parameters for one view of an image of `width * height` pixels.
    pub fn sample(&self, rng: &mut Rng, width: u32, height: u32) -> Params {
        Params::sample(&self.recipe, self.image_size, rng, width, height)
    }

    /// Makes a view `[image_size, image_size, 3]`: crop and resize, flip, jitter, grayscale, blur.
    ///
    /// # Panics
    /// If `view` has not [`Self::view_len`] bytes, or the crop of `params` does not lie inside the image.
    pub fn apply(&self, image: &RgbImage, params: &Params, scratch: &mut Scratch, view: &mut [u8]) {
        assert_eq!(view.len(), self.view_len(), "a view of side {}", self.image_size);
        let side = self.image_size as usize;
        let Scratch { arch, resize, planes, line } = scratch;
        if params.is_copy() && params.geometry.is_copy() {
            return crop::copy_window(image, &params.geometry, params.flip, side, view);
        }
        resize::resized_window(*arch, image, &params.geometry, params.flip, side, resize, view);
        if params.is_copy() {
            return;
        }
        planes.resize(view.len(), 0);
        arch.dispatch(Deinterleave { pixels: view, planes });
        if let Some(jitter) = &params.jitter {
            jitter::apply(*arch, jitter, planes);
        }
        if params.grayscale {
            jitter::grayscale(*arch, planes);
        }
        if let Some(sigma_px) = params.blur_sigma_px {
            for plane in planes.chunks_exact_mut(side * side) {
                blur::gaussian(*arch, plane, side, sigma_px, line);
            }
        }
        arch.dispatch(Interleave { planes, pixels: view });
    }
}

/// Makes whole images smaller, with buffers that are reused.
#[derive(Debug)]
pub(crate) struct Resizer {
    arch: Arch,
    buffers: resize::Buffers,
}

impl Default for Resizer {
    fn default() -> Self {
        Self { arch: Arch::new(), buffers: resize::Buffers::default() }
    }
}

impl Resizer {
    /// The image with its shorter side resized to `shorter` pixels, as testing on ImageNet does it ([`Geometry::centre`]);
    /// `None` if that side is no larger.
    pub fn shrink(&mut self, image: &RgbImage, shorter: u32) -> Option<RgbImage> {
        if image.width.min(image.height) <= shorter {
            return None;
        }
        let Geometry { resized, filter, .. } = Geometry::centre(image.width, image.height, Some(shorter), shorter);
        let mut smaller = RgbImage::default();
        smaller.reset(resized.0, resized.1);
        resize::resized_whole(self.arch, image, resized, filter, &mut self.buffers, &mut smaller.pixels);
        Some(smaller)
    }
}

/// `[n, 3]` to `[3, n]`.
struct Deinterleave<'a> {
    pixels: &'a [u8],
    planes: &'a mut [u8],
}

impl WithSimd for Deinterleave<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (red, rest) = self.planes.split_at_mut(self.planes.len() / 3);
        let (green, blue) = rest.split_at_mut(red.len());
        for (((pixel, r), g), b) in self.pixels.as_chunks::<3>().0.iter().zip(red).zip(green).zip(blue) {
            [*r, *g, *b] = *pixel;
        }
    }
}

/// `[3, n]` to `[n, 3]`.
struct Interleave<'a> {
    planes: &'a [u8],
    pixels: &'a mut [u8],
}

impl WithSimd for Interleave<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (red, rest) = self.planes.split_at(self.planes.len() / 3);
        let (green, blue) = rest.split_at(red.len());
        for (((pixel, r), g), b) in self.pixels.as_chunks_mut::<3>().0.iter_mut().zip(red).zip(green).zip(blue) {
            *pixel = [*r, *g, *b];
        }
    }
}

/// The side of MNIST-like images, and the side they are padded to.
const MNIST_SIDES: (u32, u32) = (28, 32);

/// Zero-pads an image of the MNIST family (28×28) to 32×32 if that is the model's size, as published experiments on it
/// do; leaves every other image as it is. `padded` is a buffer; whether it now holds the image.
pub fn pad_mnist(image: &RgbImage, image_size: u32, padded: &mut RgbImage) -> bool {
    let (from, to) = MNIST_SIDES;
    if image_size != to || (image.width, image.height) != (from, from) {
        return false;
    }
    padded.reset(to, to);
    let (margin, row_len) = ((to - from) as usize / 2, from as usize * 3);
    let rows = padded.pixels.chunks_exact_mut(to as usize * 3).skip(margin);
    for (target, row) in rows.zip(image.pixels.chunks_exact(row_len)) {
        target[margin * 3..][..row_len].copy_from_slice(row);
    }
    true
}

#[cfg(test)]
mod tests {
    use sdclr_records::augment::Contrastive;

    use super::*;
    use crate::rng::Purpose;

    #[test]
    fn plain_and_vector_code_give_the_same_pixels() {
        let recipe = Contrastive { blur_p: 0.5, ..Contrastive::default() };
        let augmenter = Augmenter::new(Augmentation::Contrastive(recipe), 35).unwrap();
        let pixels = (0..61u32 * 47 * 3).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let image = RgbImage::new(61, 47, pixels);
        let (mut plain, mut vector) = (Scratch { arch: Arch::Scalar, ..Scratch::default() }, Scratch::default());
        let (mut a, mut b) = (vec![0; augmenter.view_len()], vec![0; augmenter.view_len()]);
        for index in 0..200 {
            let params = augmenter.sample(&mut Rng::new(0, Purpose::Augmentation, 0, index, 0), 61, 47);
            augmenter.apply(&image, &params, &mut plain, &mut a);
            augmenter.apply(&image, &params, &mut vector, &mut b);
            assert!(a == b, "{params:?}");
        }
    }
}
