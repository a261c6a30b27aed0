//! How one image becomes a view: the random transformations' ranges and probabilities, not their application.
//!
//! Source: the paper's recipes as its published code runs them (CIFAR-size and ImageNet-size; pre-training, probe
//! training, test). `sdclr-data` applies them; this is what a configuration file or a run directory holds.

use serde::{Deserialize, Serialize};

/// A recipe for turning a decoded image into a square view of the model's size.
///
/// In TOML it is a table with a `kind` (`contrastive`, `random-resized`, `crop-pad`, `center`, `none`) beside the
/// fields of that kind; an unknown key is an error, a missing one takes the value named on the field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Augmentation {
    /// Contrastive pre-training: random crop, flip, colour jitter, grayscale, blur.
    Contrastive(Contrastive),
    /// Probe training on ImageNet-size images: random crop and flip.
    RandomResized(RandomResized),
    /// Probe training on CIFAR-size images: zero padding, a random crop of the original size, flip.
    CropPad(CropPad),
    /// Test on ImageNet-size images: resize the shorter side, cut the centre.
    Center(Center),
    /// Nothing random: the image itself, zero-padded or scaled to the model's size where it differs.
    #[serde(rename = "none")]
    Plain(Plain),
}

/// How pixels are interpolated when a crop is resized; both filter when shrinking, as Pillow does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Triangle filter.
    Bilinear,
    /// Cubic filter with a = −0.5.
    Bicubic,
}

/// Widths of the colour jitter's ranges, before `strength` scales them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Jitter {
    /// Brightness factor in [1 − b, 1 + b], not below 0. Default 0.4.
    pub brightness: f64,
    /// Contrast factor in [1 − c, 1 + c], not below 0. Default 0.4.
    pub contrast: f64,
    /// Saturation factor in [1 − s, 1 + s], not below 0. Default 0.4.
    pub saturation: f64,
    /// Hue shift in [−h, h] turns of the colour wheel; h times the strength is at most 0.5. Default 0.1.
    pub hue: f64,
}

impl Default for Jitter {
    fn default() -> Self {
        Self { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 }
    }
}

/// The contrastive recipe. The default is the one for CIFAR-size images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Contrastive {
    /// Smallest share of the image's area that a crop covers. Default 0.1.
    pub area_min: f64,
    /// Largest share. Default 1.
    pub area_max: f64,
    /// Smallest and largest width-to-height ratio of a crop. Default 3/4 and 4/3.
    pub ratio: [f64; 2],
    /// How the crop is resized. Default bicubic.
    pub interpolation: Interpolation,
    /// Probability of a horizontal flip. Default 0.5.
    pub flip_p: f64,
    /// Ranges of the colour jitter.
    pub jitter: Jitter,
    /// Probability of the colour jitter. Default 0.8.
    pub jitter_p: f64,
    /// Probability of dropping the colours. Default 0.2.
    pub grayscale_p: f64,
    /// Probability of a Gaussian blur. Default 0.
    pub blur_p: f64,
    /// Smallest and largest standard deviation of the blur, in pixels. Default 0.1 and 2.
    pub blur_sigma_px: [f64; 2],
    /// Multiplies every width in `jitter`. Default 1.
    pub strength: f64,
}

impl Default for Contrastive {
    fn default() -> Self {
        Self {
            area_min: 0.1,
            area_max: 1.0,
            ratio: STANDARD_RATIO,
            interpolation: Interpolation::Bicubic,
            flip_p: 0.5,
            jitter: Jitter::default(),
            jitter_p: 0.8,
            grayscale_p: 0.2,
            blur_p: 0.0,
            blur_sigma_px: [0.1, 2.0],
            strength: 1.0,
        }
    }
}

/// Random crop, resized to the model's size, and flip. The default is probe training on ImageNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RandomResized {
    /// Smallest share of the image's area that a crop covers. Default 0.08.
    pub area_min: f64,
    /// Largest share. Default 1.
    pub area_max: f64,
    /// Smallest and largest width-to-height ratio of a crop. Default 3/4 and 4/3.
    pub ratio: [f64; 2],
    /// How the crop is resized. Default bilinear.
    pub interpolation: Interpolation,
    /// Probability of a horizontal flip. Default 0.5.
    pub flip_p: f64,
}

impl Default for RandomResized {
    fn default() -> Self {
        let interpolation = Interpolation::Bilinear;
        Self { area_min: 0.08, area_max: 1.0, ratio: STANDARD_RATIO, interpolation, flip_p: 0.5 }
    }
}

/// Random crop out of the zero-padded image, and flip. The default is probe training on CIFAR.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CropPad {
    /// Black pixels added on each side before the crop. Default 4.
    pub padding: u32,
    /// Probability of a horizontal flip. Default 0.5.
    pub flip_p: f64,
}

impl Default for CropPad {
    fn default() -> Self {
        Self { padding: 4, flip_p: 0.5 }
    }
}

/// Centre crop. The default resizes nothing first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Center {
    /// Length in pixels that the shorter side is resized to (bilinear) before the crop; absent: no resize.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resize: Option<u32>,
}

/// No parameters: see [`Augmentation::Plain`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plain {}

/// torchvision's range of crop shapes.
const STANDARD_RATIO: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];

impl Augmentation {
    /// Contrastive pre-training on CIFAR-size images.
    pub fn cifar_contrastive() -> Self {
        Self::Contrastive(Contrastive::default())
    }

    /// Contrastive pre-training on ImageNet-size images: smaller crops, and blur half of the time.
    pub fn imagenet_contrastive() -> Self {
        Self::Contrastive(Contrastive { area_min: 0.08, blur_p: 0.5, ..Contrastive::default() })
    }

    /// Training a probe on CIFAR-size images.
    pub fn cifar_probe_train() -> Self {
        Self::CropPad(CropPad::default())
    }

    /// Training a probe on ImageNet-size images.
    pub fn imagenet_probe_train() -> Self {
        Self::RandomResized(RandomResized::default())
    }

    /// Testing on CIFAR-size images.
    pub fn cifar_test() -> Self {
        Self::Plain(Plain {})
    }

    /// Testing on ImageNet-size images: shorter side to 256 pixels, centre crop.
    pub fn imagenet_test() -> Self {
        Self::Center(Center { resize: Some(256) })
    }

    /// Whether two views of one image are always the same.
    pub fn is_deterministic(&self) -> bool {
        matches!(self, Self::Center(_) | Self::Plain(_))
    }

    /// Checks that every value makes sense, naming the first one that does not.
    ///
    /// # Errors
    /// A sentence with the field, its value and the allowed range.
    pub fn validate(&self) -> Result<(), String> {
        match self {
            Self::Contrastive(recipe) => {
                check_crop(recipe.area_min, recipe.area_max, recipe.ratio)?;
                check_probability("flip_p", recipe.flip_p)?;
                check_probability("jitter_p", recipe.jitter_p)?;
                check_probability("grayscale_p", recipe.grayscale_p)?;
                check_probability("blur_p", recipe.blur_p)?;
                check_jitter(&recipe.jitter, recipe.strength)?;
                let [low, high] = recipe.blur_sigma_px;
                let valid = low >= 0.0 && high >= low && high <= 100.0;
                ensure(valid, || format!("blur_sigma_px is [{low}, {high}]; it must satisfy 0 <= low <= high <= 100"))
            }
            Self::RandomResized(recipe) => {
                check_crop(recipe.area_min, recipe.area_max, recipe.ratio)?;
                check_probability("flip_p", recipe.flip_p)
            }
            Self::CropPad(recipe) => {
                ensure(recipe.padding <= 4096, || format!("padding is {}; it must be at most 4096", recipe.padding))?;
                check_probability("flip_p", recipe.flip_p)
            }
            Self::Center(Center { resize: Some(resize) }) => {
                ensure((1..=16384).contains(resize), || format!("resize is {resize}; it must be in 1..=16384"))
            }
            Self::Center(Center { resize: None }) | Self::Plain(_) => Ok(()),
        }
    }
}

fn check_crop(area_min: f64, area_max: f64, ratio: [f64; 2]) -> Result<(), String> {
    ensure(area_min > 0.0 && area_max >= area_min && area_max <= 1.0, || {
        format!("area_min is {area_min} and area_max {area_max}; they must satisfy 0 < area_min <= area_max <= 1")
    })?;
    let [low, high] = ratio;
    let valid = low > 0.0 && high >= low && high.is_finite();
    ensure(valid, || format!("ratio is [{low}, {high}]; it must satisfy 0 < low <= high"))
}

fn check_jitter(jitter: &Jitter, strength: f64) -> Result<(), String> {
    ensure(strength >= 0.0 && strength.is_finite(), || format!("strength is {strength}; it must be 0 or more"))?;
    let widths = [("brightness", jitter.brightness), ("contrast", jitter.contrast), ("saturation", jitter.saturation)];
    for (name, width) in widths {
        let valid = width >= 0.0 && width.is_finite();
        ensure(valid, || format!("jitter.{name} is {width}; it must be 0 or more"))?;
    }
    let hue = jitter.hue;
    let valid = hue >= 0.0 && hue * strength <= 0.5;
    ensure(valid, || format!("jitter.hue is {hue} with strength {strength}; hue times strength must be in 0..=0.5"))
}

fn check_probability(name: &str, p: f64) -> Result<(), String> {
    ensure((0.0..=1.0).contains(&p), || format!("{name} is {p}; a probability lies between 0 and 1"))
}

fn ensure(condition: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(message()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_survive_serialisation_with_their_kind() {
        for (recipe, kind) in [
            (Augmentation::cifar_contrastive(), "contrastive"),
            (Augmentation::imagenet_contrastive(), "contrastive"),
            (Augmentation::cifar_probe_train(), "crop-pad"),
            (Augmentation::imagenet_probe_train(), "random-resized"),
            (Augmentation::cifar_test(), "none"),
            (Augmentation::imagenet_test(), "center"),
        ] {
            recipe.validate().unwrap();
            let json = serde_json::to_value(&recipe).unwrap();
            assert_eq!(json["kind"], kind);
            assert_eq!(serde_json::from_value::<Augmentation>(json).unwrap(), recipe);
        }
    }

    #[test]
    fn unknown_keys_and_kinds_are_refused() {
        for bad in [
            r#"{"kind":"contrastive","blur":1}"#,
            r#"{"kind":"none","flip_p":1}"#,
            r#"{"kind":"mixup"}"#,
            r#"{"kind":"contrastive","jitter":{"sharpness":1}}"#,
        ] {
            assert!(serde_json::from_str::<Augmentation>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn values_out_of_range_are_named() {
        let check = |json: &str, expected: &str| {
            let message = serde_json::from_str::<Augmentation>(json).unwrap().validate().unwrap_err();
            assert!(message.contains(expected), "{message}");
        };
        check(r#"{"kind":"contrastive","flip_p":1.5}"#, "flip_p is 1.5");
        check(r#"{"kind":"contrastive","area_min":0.0}"#, "area_min is 0");
        check(r#"{"kind":"contrastive","strength":6.0}"#, "strength 6");
        check(r#"{"kind":"random-resized","ratio":[2.0,1.0]}"#, "ratio is [2, 1]");
        check(r#"{"kind":"center","resize":0}"#, "resize is 0");
    }
}
