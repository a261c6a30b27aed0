//! The flags of a pre-training run: one table that makes the help, the man page, the completions and the config layer.
//!
//! Which config key a flag sets stands in `sdclr_records::layers::FLAGS`; defaults are read off the default config.

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use sdclr_records::layers::{Layer, default_of, key_of};
use sdclr_records::names::{
    Method, ModelName, OptimizerKind, Part, Precision, PruneScheduleKind, ScheduleKind, Stem, TemperatureScheduleKind,
};

/// One flag.
struct Flag {
    name: &'static str,
    heading: &'static str,
    /// What its value is called; the unit where it has one.
    value: &'static str,
    help: &'static str,
    /// Its only values, if it has a closed list.
    names: &'static [&'static str],
    /// Whether `-h` shows it too.
    common: bool,
}

const fn flag(heading: &'static str, name: &'static str, value: &'static str, help: &'static str) -> Flag {
    Flag { name, heading, value, help, names: &[], common: false }
}

impl Flag {
    const fn of(self, names: &'static [&'static str]) -> Self {
        Self { names, ..self }
    }

    const fn common(self) -> Self {
        Self { common: true, ..self }
    }
}

/// Headings of the help.
pub const DATA: &str = "Data";
pub const VIEWS: &str = "Views";
const MODEL: &str = "Model";
pub const METHOD: &str = "Method";
const TRAINING: &str = "Training";
pub const OPTIMIZER: &str = "Optimizer and schedule";
const MACHINE: &str = "Machine";
const SAVING: &str = "Logging and saving";

const BOOLEANS: &[&str] = &["true", "false"];

const FLAGS: &[Flag] = &[
    flag(DATA, "data", "SRC", "Images: a folder (recursive), a .txt list, a pack, CIFAR-10/100 or IDX files").common(),
    flag(DATA, "split", "FILE", "Use only these images: .npy indices or a .txt list").common(),
    flag(DATA, "data-root", "DIR", "Folder that the paths of a .txt list are relative to [default: the list's]"),
    flag(DATA, "part", "PART", "Which part of a data set that comes in parts").of(Part::NAMES),
    flag(DATA, "image-size", "PIXELS", "Side of the model's square input [default: 32, 64 or 224, by the images]")
        .common(),
    flag(DATA, "workers", "N", "Threads that decode and augment; 0 chooses"),
    flag(DATA, "cache-mib", "MIB", "Memory for decoded images, which are then decoded once; 0 keeps none"),
    flag(DATA, "jpeg-scaling", "", "Decode large JPEGs at 1/2 to 1/8 where no view needs more pixels; not pixel-exact"),
    flag(DATA, "strict", "", "Stop at the first broken image instead of skipping it"),
    flag(DATA, "max-broken", "SHARE", "Stop when more than this share of the images is broken, 0 to 1"),
    flag(VIEWS, "jitter-strength", "FACTOR", "Strength of the colour jitter"),
    flag(VIEWS, "blur-p", "P", "Probability of a Gaussian blur [default: 0, above 64 pixels 0.5]"),
    flag(MODEL, "model", "NAME", "Backbone").of(ModelName::NAMES).common(),
    flag(MODEL, "stem", "STEM", "First layers: small up to 64 pixels, else imagenet [default: auto]").of(Stem::NAMES),
    flag(MODEL, "base-width", "CHANNELS", "Channels of the first stage [default: 64, resnet32s family 16]"),
    flag(MODEL, "head-layers", "N", "Layers of the projection head, 2 or 3 [default: 3 with dual batch norm, else 2]"),
    flag(MODEL, "head-dim", "N", "Width of the embedding that the loss sees"),
    flag(MODEL, "init-from", "RUN", "Begin with the weights of this run or checkpoint, and by default its network"),
    flag(METHOD, "method", "METHOD", "What to train with").of(Method::NAMES).common(),
    flag(METHOD, "temperature", "TAU", "Temperature of the NT-Xent loss").common(),
    flag(METHOD, "prune-rate", "RATE", "Share of weights that the damaged branch lacks, 0 to below 1 (sdclr)").common(),
    flag(METHOD, "random-prune-rate", "RATE", "Part of the prune rate that is drawn at random (sdclr)"),
    flag(METHOD, "prune-schedule", "NAME", "How the prune rate moves over the epochs (sdclr)")
        .of(PruneScheduleKind::NAMES),
    flag(METHOD, "prune-rate-start", "RATE", "Prune rate of the first epoch where a schedule moves it"),
    flag(METHOD, "prune-ramp-epochs", "EPOCHS", "Epochs that it moves over [default: none, a schedule needs it]"),
    flag(METHOD, "temperature-schedule", "NAME", "How the temperature moves; cosine: down and up again")
        .of(TemperatureScheduleKind::NAMES),
    flag(METHOD, "temperature-min", "TAU", "Lowest temperature of the cosine schedule"),
    flag(METHOD, "temperature-max", "TAU", "Highest, from which it starts"),
    flag(METHOD, "temperature-period-epochs", "EPOCHS", "Epochs from one highest to the next"),
    flag(METHOD, "focal-gamma", "GAMMA", "Weight each view's loss by (1 - p)^GAMMA, p being how sure its pair is"),
    flag(METHOD, "boost", "", "Augment images more whose losses stay large (boosted contrastive learning)"),
    flag(METHOD, "boost-momentum", "BETA", "How long the losses are remembered, 0 to below 1"),
    flag(METHOD, "boost-ops", "N", "RandAugment operations that are drawn for each view"),
    flag(METHOD, "boost-magnitude", "SHARE", "Their largest strength, as a share of their ranges"),
    flag(METHOD, "dual-bn", "BOOL", "Batch norms of its own for each branch [default: true for sdclr]").of(BOOLEANS),
    flag(TRAINING, "epochs", "N", "Passes over the images").common(),
    flag(TRAINING, "batch-size", "N", "Images a step, two views each").common(),
    flag(TRAINING, "seed", "N", "Everything random derives from it; the same result with the same number of threads")
        .common(),
    flag(OPTIMIZER, "optimizer", "NAME", "Optimizer").of(OptimizerKind::NAMES),
    flag(OPTIMIZER, "lr", "RATE", "Peak learning rate [default: 0.5, adam 0.001]").common(),
    flag(OPTIMIZER, "momentum", "M", "Momentum of sgd and lars"),
    flag(OPTIMIZER, "weight-decay", "W", "Weight decay [default: sgd 1e-4, lars 1e-6, adam 0]"),
    flag(OPTIMIZER, "schedule", "NAME", "How the learning rate moves").of(ScheduleKind::NAMES),
    flag(OPTIMIZER, "warmup-epochs", "EPOCHS", "Linear warm-up [default: a tenth of the epochs, at most 10]"),
    flag(OPTIMIZER, "min-lr", "RATE", "Learning rate at the end of the cosine"),
    flag(OPTIMIZER, "milestones", "EPOCHS", "Epochs after which the step schedule lowers the rate, as 60,80"),
    flag(OPTIMIZER, "gamma", "FACTOR", "By which the step schedule lowers it"),
    flag(MACHINE, "device", "DEVICE", "auto, cpu, cuda or cuda:N").common(),
    flag(MACHINE, "precision", "NAME", "Numbers of feature maps; auto: bf16 where the processor has it")
        .of(Precision::NAMES),
    flag(MACHINE, "threads", "N", "Threads that compute; 0 takes every core"),
    flag(SAVING, "log-every", "STEPS", "Steps between lines of metrics.jsonl"),
    flag(SAVING, "checkpoint-every", "EPOCHS", "Epochs between checkpoints: what a killed run repeats at most"),
    flag(SAVING, "keep-every", "EPOCHS", "Epochs between checkpoints that are kept; 0 keeps only the last"),
    flag(SAVING, "mask-save-every", "EPOCHS", "Epochs between masks that are kept; 0 keeps none (sdclr)"),
];

/// The flags that were given, with their texts.
#[derive(Debug, Clone, Default)]
pub struct ConfigFlags(Vec<(String, String)>);

impl ConfigFlags {
    /// Their values, checked.
    ///
    /// # Errors
    /// A value of the wrong type, naming the flag.
    pub fn layer(&self) -> sdclr_records::Result<Layer> {
        Layer::from_flags(&self.0)
    }
}

impl Args for ConfigFlags {
    fn augment_args(command: Command) -> Command {
        FLAGS.iter().fold(command, |command, flag| command.arg(arg(flag)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ConfigFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Vec::new();
        for flag in FLAGS {
            let text = if is_switch(flag) {
                matches.get_flag(flag.name).then(|| "true".to_owned())
            } else {
                matches.get_one::<String>(flag.name).cloned()
            };
            given.extend(text.map(|text| (flag.name.to_owned(), text)));
        }
        Ok(Self(given))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// [`ConfigFlags`] of a benchmark: another default batch size, and no mention of what a benchmark does not look at.
#[derive(Debug, Clone, Default)]
pub struct BenchFlags(ConfigFlags);

/// The batch size of a benchmark where none is given: a peer's usual one, and a step of a second or so.
pub const BENCH_BATCH_SIZE: usize = 128;

/// Flags that change nothing about speed.
const IDLE: &[&str] = &[
    "init-from",
    "epochs",
    "prune-schedule",
    "prune-rate-start",
    "prune-ramp-epochs",
    "temperature-schedule",
    "temperature-min",
    "temperature-max",
    "temperature-period-epochs",
    "focal-gamma",
    "boost",
    "boost-momentum",
    "boost-ops",
    "boost-magnitude",
    "lr",
    "schedule",
    "warmup-epochs",
    "min-lr",
    "milestones",
    "gamma",
    "log-every",
    "checkpoint-every",
    "keep-every",
    "mask-save-every",
];

impl BenchFlags {
    /// Their values, checked, over a benchmark's defaults.
    ///
    /// # Errors
    /// A value of the wrong type, naming the flag.
    pub fn layers(&self) -> sdclr_records::Result<[Layer; 2]> {
        // The images may be made up; a name keeps the checks of a real run.
        let defaults = [("data", "random images".to_owned()), ("batch-size", BENCH_BATCH_SIZE.to_string())];
        let defaults = defaults.map(|(flag, value)| (flag.to_owned(), value));
        Ok([Layer::from_flags(&defaults)?, self.0.layer()?])
    }

    /// The flags that were given.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.0.iter().map(|(flag, _)| flag.as_str())
    }
}

impl Args for BenchFlags {
    fn augment_args(command: Command) -> Command {
        let command = ConfigFlags::augment_args(command);
        let batch_size = format!("Images a step, two views each [default: {BENCH_BATCH_SIZE}]");
        let command = command
            .mut_arg("batch-size", |arg| arg.help(batch_size))
            .mut_arg("image-size", |arg| arg.help("Side of the model's square input [default: 32]"))
            .mut_arg("data", |arg| arg.help("Images of bench data and bench probe [default: made up]"))
            .mut_arg("precision", |arg| arg.hide_short_help(false))
            .mut_arg("threads", |arg| arg.hide_short_help(false));
        IDLE.iter().fold(command, |command, flag| command.mut_arg(*flag, |arg| arg.hide(true)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for BenchFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        ConfigFlags::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

fn arg(flag: &Flag) -> Arg {
    let default =
        key_of(flag.name).and_then(default_of).filter(|_| !flag.help.contains("[default") && !is_switch(flag));
    let help = match default {
        Some(default) => format!("{} [default: {default}]", flag.help),
        None => flag.help.to_owned(),
    };
    let arg = Arg::new(flag.name).long(flag.name).help(help).help_heading(flag.heading).hide_short_help(!flag.common);
    if is_switch(flag) {
        return arg.action(ArgAction::SetTrue);
    }
    let arg = arg.value_name(flag.value).allow_negative_numbers(true);
    if flag.names.is_empty() { arg } else { arg.value_parser(PossibleValuesParser::new(flag.names)) }
}

/// Whether the flag takes no value.
fn is_switch(flag: &Flag) -> bool {
    flag.value.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_config_flag_is_in_the_table_and_the_other_way_round() {
        let mut here: Vec<&str> = FLAGS.iter().map(|flag| flag.name).collect();
        let mut there: Vec<&str> = sdclr_records::layers::FLAGS.iter().map(|(flag, _)| *flag).collect();
        here.sort_unstable();
        there.sort_unstable();
        assert_eq!(here, there);
    }
}
