//! Closed lists of names: one spelling from the command-line flag to the JSON key.

use crate::error::{Error, hint};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

macro_rules! named_enum {
    ($(#[$meta:meta])* $name:ident ($what:literal) { $($(#[$vmeta:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $text)] $variant,)+ }

        impl $name {
            /// Every name, in the order of help texts.
            pub const NAMES: &'static [&'static str] = &[$($text,)+];
            /// Every value, in the order of [`Self::NAMES`].
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name as users write it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.pad(self.as_str()) }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(Error::UnknownName {
                        what: $what,
                        name: text.to_owned(),
                        hint: hint(text, Self::NAMES.iter().copied()),
                    }),
                }
            }
        }
    };
}

named_enum! {
    /// The pre-training method.
    Method ("method") {
        /// SimCLR: two views through one branch; the baseline.
        SimClr = "simclr",
        /// SDCLR: one view through the model, the other through its pruned copy.
        SdClr = "sdclr",
    }
}

impl Method {
    /// The name as papers write it.
    pub fn title(self) -> &'static str {
        match self {
            Self::SimClr => "SimCLR",
            Self::SdClr => "SDCLR",
        }
    }
}

named_enum! {
    /// The backbone.
    ModelName ("model") {
        /// Basic blocks 1-1-1-1.
        ResNet10 = "resnet10",
        /// Basic blocks 2-2-2-2.
        ResNet18 = "resnet18",
        /// Basic blocks 3-4-6-3.
        ResNet34 = "resnet34",
        /// Bottlenecks 3-4-6-3.
        ResNet50 = "resnet50",
        /// Bottlenecks 3-4-23-3.
        ResNet101 = "resnet101",
        /// Bottlenecks 3-8-36-3.
        ResNet152 = "resnet152",
        /// ResNet-50 with bottlenecks twice as wide.
        WideResNet50x2 = "wide-resnet50-2",
        /// The CIFAR family's ResNet-32: three stages of five blocks, 16-32-64 channels, parameter-free shortcuts.
        ResNet32s = "resnet32s",
        /// ResNet-32s with its last block twice, side by side, as BBN has it: 128 features.
        ResNet32sBbn = "resnet32s-bbn",
        /// ResNet-32s whose stages 2 and 3 are four narrow experts side by side, as RIDE has it: 192 features.
        ResNet32sRide = "resnet32s-ride",
    }
}

impl ModelName {
    /// Whether it is one of the CIFAR family, which has three stages, 16 channels in the first, and the small stem only.
    pub fn is_cifar_family(self) -> bool {
        matches!(self, Self::ResNet32s | Self::ResNet32sBbn | Self::ResNet32sRide)
    }
}

named_enum! {
    /// The first layers of a ResNet.
    Stem ("stem") {
        /// 3×3 convolution, stride 1, no pooling: images up to 64 pixels.
        Small = "small",
        /// 7×7 convolution, stride 2, and a 3×3 max-pool, stride 2: larger images.
        ImageNet = "imagenet",
    }
}

named_enum! {
    /// The part of a data set that comes in parts.
    Part ("part") {
        /// Training images.
        Train = "train",
        /// Test images.
        Test = "test",
        /// Both, training images first.
        All = "all",
    }
}

named_enum! {
    /// The optimizer of pre-training.
    OptimizerKind ("optimizer") {
        /// Stochastic gradient descent with momentum; weight decay is added to the gradient, as in PyTorch.
        Sgd = "sgd",
        /// Layer-wise adaptive rate scaling, as published with SDCLR.
        Lars = "lars",
        /// Adam with PyTorch's constants.
        Adam = "adam",
    }
}

named_enum! {
    /// How the learning rate moves.
    ScheduleKind ("schedule") {
        /// Linear warm-up, then half a cosine down to `min_lr`.
        Cosine = "cosine",
        /// The same rate throughout, after the warm-up.
        Constant = "constant",
        /// Multiplied by `gamma` after each milestone.
        Step = "step",
    }
}

named_enum! {
    /// How the temperature of NT-Xent moves.
    #[derive(Default)]
    TemperatureScheduleKind ("temperature schedule") {
        /// `train.temperature` throughout.
        #[default]
        Constant = "constant",
        /// Between `temperature_max` and `temperature_min` and back (Kukleva et al. 2023).
        Cosine = "cosine",
    }
}

named_enum! {
    /// How the prune rate moves.
    #[derive(Default)]
    PruneScheduleKind ("prune schedule") {
        /// `prune.rate` throughout: SDCLR's.
        #[default]
        Constant = "constant",
        /// In a straight line from `rate_start` to `rate`.
        Linear = "linear",
        /// Along half a cosine.
        Cosine = "cosine",
        /// Fast at first (Zhu and Gupta 2017).
        Cubic = "cubic",
    }
}

named_enum! {
    /// The numbers that training computes in.
    Precision ("precision") {
        /// The fastest that this device does well.
        Auto = "auto",
        /// 32-bit floating point: the reference.
        F32 = "f32",
        /// bfloat16 activations and products, 32-bit sums and master weights.
        Bf16 = "bf16",
    }
}

named_enum! {
    /// How a trained model was examined.
    Protocol ("protocol") {
        /// Linear classifier on augmented images through the frozen network: the paper's.
        LinearPaper = "linear-paper",
        /// Linear classifier on features computed once: fast.
        LinearCached = "linear-cached",
        /// Linear classifier on a few labelled images a class.
        FewShot = "few-shot",
        /// Backbone and classifier trained on from the run's weights.
        Finetune = "finetune",
        /// Backbone and classifier trained from scratch: the reference with all labels.
        Supervised = "supervised",
        /// Votes of the nearest training features; nothing is trained.
        Knn = "knn",
        /// The cached linear classifier on the pixels themselves: a yardstick.
        RawPixels = "raw-pixels",
    }
}

named_enum! {
    /// The images that an experiment needs.
    ImageSet ("image set") {
        /// CIFAR-10.
        Cifar10 = "cifar10",
        /// CIFAR-100, fine labels.
        Cifar100 = "cifar100",
        /// Fashion-MNIST.
        FashionMnist = "fashion-mnist",
        /// A hundred of ImageNet's classes.
        ImageNet100 = "imagenet-100",
        /// ImageNet's thousand classes.
        ImageNet = "imagenet",
    }
}

named_enum! {
    /// The layers that fine-tuning leaves as they are: none, or the stem and all up to one.
    Freeze ("--freeze") {
        /// Everything trains.
        None = "none",
        /// The stem and layer1.
        Layer1 = "layer1",
        /// The stem, layer1 and layer2.
        Layer2 = "layer2",
        /// The stem, layer1 to layer3.
        Layer3 = "layer3",
        /// The stem, layer1 to layer4.
        Layer4 = "layer4",
    }
}

impl Freeze {
    /// The last fixed layer, if any.
    pub fn last_layer(self) -> Option<usize> {
        Self::ALL.iter().position(|&freeze| freeze == self).filter(|&layer| layer > 0)
    }
}

named_enum! {
    /// Where the batch norms of fixed layers get their statistics from in training.
    FrozenBn ("--frozen-bn") {
        /// The running statistics, which stay as they are.
        Eval = "eval",
        /// The batch; the running statistics move on.
        Train = "train",
    }
}

/// The device that trains: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// The fastest one present.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The NVIDIA GPU of this index.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let unknown = || Error::UnknownName {
            what: "device",
            name: text.to_owned(),
            hint: "; known: auto, cpu, cuda, cuda:N".to_owned(),
        };
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                index.parse().map(Self::Cuda).map_err(|_| unknown())
            }
        }
    }
}

impl TryFrom<String> for Device {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}
