//! Everything a pre-training run needs, resolved: written to `RUN/config.toml` and runnable again from there.
//!
//! Defaults are the CIFAR recipe of the SDCLR paper (Jiang et al., ICML 2021, section 4 and appendix) as its
//! published implementation runs it. Values that depend on others (stem, head, warm-up, …) are filled in by
//! [`crate::layers::resolve`]; a config that exists has them all.

use crate::augment::Contrastive;
use crate::names::{
    Device, Method, ModelName, OptimizerKind, Part, Precision, PruneScheduleKind, ScheduleKind, Stem,
    TemperatureScheduleKind,
};
use crate::options::BoostConfig;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A whole pre-training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// SimCLR or SDCLR.
    pub method: Method,
    /// Everything random derives from it. 0 to 2⁶³−1 (TOML integers are signed).
    pub seed: u64,
    /// Which images.
    pub data: DataConfig,
    /// How an image becomes two views; by default the recipe for the image size (CIFAR's up to 64 pixels).
    pub augment: Contrastive,
    /// Which network.
    pub model: ModelConfig,
    /// How the damaged branch is made (SDCLR only).
    pub prune: PruneConfig,
    /// How long, how many at a time, on what.
    pub train: TrainConfig,
    /// How weights move.
    pub optimizer: OptimizerConfig,
    /// How the learning rate moves.
    pub schedule: ScheduleConfig,
    /// Whether and how much images with large losses are augmented more.
    #[serde(default)]
    pub boost: BoostConfig,
    /// Where the model is from, if another program trained it. Nothing is trained by such a config: of its other values
    /// only those of the model and the image size mean something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import: Option<ImportConfig>,
}

/// `[data]`: which images, and how they are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// A folder of images, a `.txt` list, or a CIFAR or IDX data set.
    pub source: PathBuf,
    /// A `.npy` index array or `.txt` list that narrows the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<PathBuf>,
    /// The folder that the paths of a `.txt` list are relative to; the list's own folder if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
    /// Which part of a source that comes in parts.
    pub part: Part,
    /// Side of the square images that the model sees, in pixels.
    pub image_size: usize,
    /// Threads that decode and augment; 0 lets the program choose.
    pub workers: usize,
    /// Memory that decoded images may take, in MiB: a data set that fits is decoded once. 0 keeps none.
    #[serde(default = "default_cache_mib")]
    pub cache_mib: usize,
    /// Whether large JPEGs are decoded at 1/2, 1/4 or 1/8 where the crop stays at least as large as the view. Off in all
    /// presets, for the views are then not those of the published recipes to the pixel.
    #[serde(default)]
    pub jpeg_scaling: bool,
    /// Whether one broken image stops the run.
    pub strict: bool,
    /// The share of broken images, in [0, 1], past which a run that is not strict stops.
    pub max_broken: f64,
}

/// `[model]`: the backbone and its projection head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The backbone.
    pub name: ModelName,
    /// Its first layers; by default small up to 64 pixels.
    pub stem: Stem,
    /// Channels of the first stage: 64, and 16 for the ResNet-32s family.
    pub base_width: usize,
    /// Layers of the projection head, 2 or 3; by default 3 with dual batch norm, else 2.
    pub head_layers: usize,
    /// Width of the embedding z that the loss sees.
    pub head_dim: usize,
    /// Whether each branch has batch norms of its own; SDCLR's default.
    pub dual_bn: bool,
    /// The checkpoint whose parameters and running statistics the run begins with; drawn from the seed if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
}

/// `[import]`: where a model is from that another program trained.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportConfig {
    /// The file that it was imported from.
    pub file: PathBuf,
    /// Whether the projection head came with it; else it is drawn from the seed.
    #[serde(default)]
    pub has_head: bool,
    /// Whether it is known that the config's method trained it.
    #[serde(default)]
    pub knows_method: bool,
}

/// `[prune]`: the damaged branch of SDCLR.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneConfig {
    /// Share of the backbone's convolution weights that the pruned branch lacks, in [0, 1).
    pub rate: f64,
    /// The part of `rate` that is drawn at random instead of by magnitude, in [0, rate].
    pub random_rate: f64,
    /// How the rate moves from `rate_start` to `rate`; constant by default.
    #[serde(default)]
    pub schedule: PruneScheduleKind,
    /// The rate of the first epoch where it moves, in [0, 1); 0 by default.
    #[serde(default)]
    pub rate_start: f64,
    /// Epochs over which it moves; the epoch after them has the full rate.
    #[serde(default)]
    pub ramp_epochs: usize,
    /// Epochs between saved masks (`checkpoints/mask-N.safetensors`); 0 saves none.
    pub mask_save_every_epochs: usize,
}

/// `[train]`: the loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Passes over the images.
    pub epochs: usize,
    /// Images a step, at least 2; two views of each are trained on.
    pub batch_size: usize,
    /// τ of NT-Xent, above 0.
    pub temperature: f64,
    /// How the temperature moves; constant by default.
    #[serde(default)]
    pub temperature_schedule: TemperatureScheduleKind,
    /// τ₋ of the cosine schedule, above 0; 0.1 by default, as in its paper.
    #[serde(default = "default_temperature_min")]
    pub temperature_min: f64,
    /// τ₊, from which it starts, at least τ₋; 1 by default, as in its paper.
    #[serde(default = "default_temperature_max")]
    pub temperature_max: f64,
    /// T, epochs from one τ₊ to the next; 400 by default, as in its paper.
    #[serde(default = "default_temperature_period_epochs")]
    pub temperature_period_epochs: f64,
    /// γ of the focal weighting of NT-Xent, 0 or above; 0, the default, weights nothing.
    #[serde(default)]
    pub focal_gamma: f64,
    /// What computes.
    pub device: Device,
    /// In what numbers.
    pub precision: Precision,
    /// Threads that compute; 0 takes every core.
    pub threads: usize,
    /// Steps between metric lines.
    pub log_every_steps: usize,
    /// Epochs between checkpoints (`checkpoints/last.safetensors`); what a killed run redoes at most.
    pub checkpoint_every_epochs: usize,
    /// Epochs between checkpoints that are kept (`checkpoints/epoch-N.safetensors`); 0 keeps only the last.
    pub keep_every_epochs: usize,
}

/// `[optimizer]`: how weights move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    /// SGD, LARS or Adam.
    pub kind: OptimizerKind,
    /// Peak learning rate: 0.5, and 1e-3 for Adam.
    pub lr: f64,
    /// Momentum of SGD and LARS, in [0, 1).
    pub momentum: f64,
    /// Weight decay on every parameter: 1e-4 for SGD, 1e-6 for LARS, 0 for Adam.
    pub weight_decay: f64,
    /// η of LARS.
    pub lars_eta: f64,
}

/// `[schedule]`: how the learning rate moves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Cosine, constant or step.
    pub kind: ScheduleKind,
    /// Epochs of linear warm-up; fractions are allowed; by default min(10, epochs / 10).
    pub warmup_epochs: f64,
    /// The learning rate at the end of the cosine.
    pub min_lr: f64,
    /// Epochs after which `step` multiplies the rate by `gamma`, ascending.
    pub milestones: Vec<usize>,
    /// The factor of `step`.
    pub gamma: f64,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            method: Method::SdClr,
            seed: 10,
            data: DataConfig::default(),
            augment: Contrastive::default(),
            model: ModelConfig::default(),
            prune: PruneConfig {
                rate: 0.9,
                random_rate: 0.0,
                schedule: PruneScheduleKind::Constant,
                rate_start: 0.0,
                ramp_epochs: 0,
                mask_save_every_epochs: 100,
            },
            train: TrainConfig::default(),
            optimizer: OptimizerConfig {
                kind: OptimizerKind::Sgd,
                lr: 0.5,
                momentum: 0.9,
                weight_decay: 1e-4,
                lars_eta: 1e-3,
            },
            schedule: ScheduleConfig {
                kind: ScheduleKind::Cosine,
                warmup_epochs: 10.0,
                min_lr: 1e-6,
                milestones: Vec::new(),
                gamma: 0.1,
            },
            boost: BoostConfig::default(),
            import: None,
        }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            source: PathBuf::new(),
            split: None,
            root: None,
            part: Part::Train,
            image_size: 32,
            workers: 0,
            cache_mib: default_cache_mib(),
            jpeg_scaling: false,
            strict: false,
            max_broken: 0.05,
        }
    }
}

fn default_cache_mib() -> usize {
    1024
}

fn default_temperature_min() -> f64 {
    0.1
}

fn default_temperature_max() -> f64 {
    1.0
}

fn default_temperature_period_epochs() -> f64 {
    400.0
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            name: ModelName::ResNet18,
            stem: Stem::Small,
            base_width: 64,
            head_layers: 3,
            head_dim: 128,
            dual_bn: true,
            init_from: None,
        }
    }
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 200,
            batch_size: 512,
            temperature: 0.2,
            temperature_schedule: TemperatureScheduleKind::Constant,
            temperature_min: default_temperature_min(),
            temperature_max: default_temperature_max(),
            temperature_period_epochs: default_temperature_period_epochs(),
            focal_gamma: 0.0,
            device: Device::Auto,
            precision: Precision::Auto,
            threads: 0,
            log_every_steps: 10,
            checkpoint_every_epochs: 1,
            keep_every_epochs: 0,
        }
    }
}

impl DataConfig {
    /// `cache_mib` in bytes.
    pub fn cache_bytes(&self) -> usize {
        self.cache_mib.saturating_mul(1 << 20)
    }
}

impl RunConfig {
    /// Whether training runs a damaged branch.
    pub fn has_pruned_branch(&self) -> bool {
        self.method == Method::SdClr
    }

    /// The dotted keys in which two configs differ, with this one's value and the other's as TOML.
    pub fn differences(&self, other: &Self) -> Vec<(String, String, String)> {
        let leaves = |config: &Self| crate::layers::flatten(&toml::Table::try_from(config).unwrap_or_default());
        let (mine, theirs) = (leaves(self), leaves(other));
        let text = |values: &[(String, toml::Value)], key: &str| {
            crate::layers::value_of(values, key).map_or_else(|| "none".to_owned(), toml::Value::to_string)
        };
        let mut keys: Vec<&String> = mine.iter().chain(&theirs).map(|(key, _)| key).collect();
        keys.sort();
        keys.dedup();
        let all = keys.into_iter().map(|key| (key.clone(), text(&mine, key), text(&theirs, key)));
        all.filter(|(_, a, b)| a != b).collect()
    }

    /// The config as the text of `config.toml`, defaults included.
    pub fn to_toml(&self) -> String {
        // Every field is a TOML type and the seed is checked to fit, so this cannot fail on a valid config.
        toml::to_string(self).unwrap_or_else(|e| format!("# not representable: {e}\n"))
    }
}
