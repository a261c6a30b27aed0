//! From what was typed, the environment and files to one checked config, and to the images that it names.

use crate::args::PretrainArgs;
use crate::context::Context;
use crate::exit::UsageError;
use anyhow::Context as _;
use sdclr::run_dir::RunDir;
use sdclr_data::{Dataset, OpenOptions};
use sdclr_records::RunConfig;
use sdclr_records::layers::{Layer, ignored, resolve};
use sdclr_records::names::Part;
use std::path::{Path, PathBuf};

/// Merges every layer of a pre-training command, lowest precedence first: the resumed run's own config, preset, config
/// file, environment, `--set`, flags. Also opens the images, whose size decides the model's where nobody gave one.
///
/// # Errors
/// Whatever a layer has wrong, and images that cannot be opened.
pub fn resolve_run(args: &PretrainArgs, context: &Context) -> anyhow::Result<(RunConfig, Dataset)> {
    let mut layers = Vec::new();
    let stored = args.out.join("config.toml");
    if args.resume && stored.is_file() {
        layers.push(Layer::from_file(&stored)?);
    }
    if let Some(name) = &args.preset {
        layers.push(Layer::preset(name)?);
    }
    if let Some(path) = &args.config {
        layers.push(Layer::from_file(path)?);
    }
    // A variable that is not UTF-8 cannot be one of ours.
    let vars =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let (env, warnings) = Layer::from_env(vars, &[crate::system::LEVEL_VARIABLE, crate::system::CONVOLUTION_VARIABLE])?;
    warnings.iter().for_each(|warning| context.warn(warning));
    layers.push(env);
    layers.push(Layer::from_assignments(&args.assignments)?);
    layers.push(args.flags.layer()?);
    if args.resume && !stored.is_file() && !layers.iter().any(|layer| layer.has("data.source")) {
        return Err(UsageError(format!("{}: there is no run to resume", args.out.display())).into());
    }
    let mut config = resolve(&layers)?;
    if config.import.is_some() {
        let text = if args.resume { format!("{}: the run", args.out.display()) } else { "the config".to_owned() };
        let text = format!(
            "{text} is an imported model's, which has no training to go on with; start a new run from its weights: \
             sdclr pretrain --init-from RUN --data SRC --out NEW"
        );
        return Err(UsageError(text).into());
    }
    // Whoever resumes has the network, and the file may be gone.
    if let Some(from) = config.model.init_from.as_ref().filter(|_| !(args.resume && stored.is_file())) {
        layers.insert(0, network_of(from)?);
        config = resolve(&layers)?;
    }
    let sized = layers.iter().any(|layer| layer.has("data.image_size"));
    make_absolute(&mut config)?;
    let dataset = open_training_images(&config)?;
    // What the images decide where nobody gave it.
    let mut derived = Vec::new();
    if !sized {
        derived.push(("image-size".to_owned(), natural_image_size(&dataset)?.to_string()));
    }
    let (default, n_images) = (config.train.batch_size, dataset.len());
    if n_images == 1 {
        anyhow::bail!("{}: one image is too few: it is contrasted with others", config.data.source.display());
    }
    if default > n_images && !layers.iter().any(|layer| layer.has("train.batch_size")) {
        let fitting = fitting_batch_size(n_images);
        context.note(&format!("note: --batch-size {fitting}, not {default}: there are only {n_images} images"));
        derived.push(("batch-size".to_owned(), fitting.to_string()));
    }
    if !derived.is_empty() {
        layers.insert(0, Layer::from_flags(&derived)?);
        config = resolve(&layers)?;
        make_absolute(&mut config)?;
    }
    // What was typed: environment, --set, flags.
    let typed: Vec<&Layer> = layers.iter().rev().take(3).collect();
    ignored(&config, &typed).iter().for_each(|text| context.note(&format!("note: {text}")));
    Ok((config, dataset))
}

/// The images that a run trains on.
///
/// # Errors
/// Images or a split that cannot be opened.
pub fn open_training_images(config: &RunConfig) -> anyhow::Result<Dataset> {
    let data = &config.data;
    if data.source.as_os_str().is_empty() {
        anyhow::bail!("it is an imported model, whose training images nobody knows");
    }
    let (split, root) = (data.split.clone(), data.root.clone());
    open_part(&data.source, data.part, split, root)
}

/// [`open_images`] where the part was asked for.
///
/// # Errors
/// As there, and if the test part is asked of what has no parts.
pub fn open_part(source: &Path, part: Part, split: Option<PathBuf>, root: Option<PathBuf>) -> anyhow::Result<Dataset> {
    if part == Part::Test && source.exists() && !sdclr_data::source::has_parts(source)? {
        let text = format!("{}: --part test, but it has no parts; leave --part out for all of it", source.display());
        return Err(UsageError(text).into());
    }
    open_images(source, part, split, root)
}

/// Opens a data set.
///
/// # Errors
/// Images or a split that cannot be opened.
pub fn open_images(
    source: &Path,
    part: Part,
    split: Option<PathBuf>,
    root: Option<PathBuf>,
) -> anyhow::Result<Dataset> {
    let part = match part {
        Part::Train => sdclr_data::Part::Train,
        Part::Test => sdclr_data::Part::Test,
        Part::All => sdclr_data::Part::All,
    };
    Ok(Dataset::open(source, &OpenOptions { part, split, root })?)
}

/// A run directory and one of its checkpoints, from either's path.
///
/// # Errors
/// If there is no such run, or it has no checkpoint yet.
pub fn locate(path: &Path) -> anyhow::Result<(RunDir, PathBuf)> {
    use sdclr::run_dir::CheckpointName;
    if path.is_file() {
        // RUN/checkpoints/NAME.safetensors
        let absolute = std::path::absolute(path)?;
        let root = absolute.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
        let run = RunDir::open(root)
            .with_context(|| format!("{0}: a checkpoint is used where it lies in its run directory; one that lies elsewhere is imported first: sdclr import {0} --out RUN", path.display()))?;
        return Ok((run, path.to_owned()));
    }
    if !path.exists() {
        anyhow::bail!("{}: no such run directory or checkpoint", path.display());
    }
    let run = RunDir::open(path)?;
    let checkpoint = run.checkpoint_path(CheckpointName::Last);
    if !checkpoint.is_file() {
        match run.newest() {
            Some(kept) => anyhow::bail!(
                "{}: not there; use {}, or bring it back with: sdclr pretrain --out {} --resume",
                checkpoint.display(),
                kept.display(),
                path.display()
            ),
            None => anyhow::bail!("{}: the run has no checkpoint yet", path.display()),
        }
    }
    Ok((run, checkpoint))
}

/// The network and image size of a run, for a new one to begin with its weights; a head that was only drawn is none.
fn network_of(path: &Path) -> anyhow::Result<Layer> {
    if path.is_file() && path.extension().is_some_and(|extension| extension == "pt" || extension == "pth") {
        let shown = path.display();
        let text =
            format!("--init-from {shown}: import it first: sdclr import {shown} --out RUN, then --init-from RUN");
        return Err(UsageError(text).into());
    }
    let config = locate(path)?.0.config()?;
    let model = &config.model;
    let mut flags = vec![
        ("model", model.name.to_string()),
        ("stem", model.stem.to_string()),
        ("base-width", model.base_width.to_string()),
        ("image-size", config.data.image_size.to_string()),
    ];
    if config.import.as_ref().is_none_or(|import| import.has_head) {
        flags.extend([("head-layers", model.head_layers.to_string()), ("head-dim", model.head_dim.to_string())]);
    }
    let flags: Vec<_> = flags.into_iter().map(|(flag, value)| (flag.to_owned(), value)).collect();
    Ok(Layer::from_flags(&flags)?)
}

/// A stored config must mean the same from any folder.
fn make_absolute(config: &mut RunConfig) -> anyhow::Result<()> {
    let data = &mut config.data;
    data.source = std::path::absolute(&data.source)?;
    for path in [&mut data.split, &mut data.root].into_iter().flatten() {
        *path = std::path::absolute(&*path)?;
    }
    if let Some(path) = &mut config.model.init_from {
        let checkpoint = path.join("checkpoints").join("last.safetensors");
        *path = std::path::absolute(if path.is_dir() { &checkpoint } else { &*path })?;
    }
    Ok(())
}

/// The largest power of two that is at most the number of images; 2 at least, which batch norm needs.
fn fitting_batch_size(n_images: usize) -> usize {
    1 << n_images.max(2).ilog2()
}

/// 32, 64 or 224 pixels, the one that suits a few images spread over the data set.
fn natural_image_size(dataset: &Dataset) -> anyhow::Result<usize> {
    let mut sides: Vec<u32> = dataset.sample(16).iter().map(|image| image.width.min(image.height)).collect();
    sides.sort_unstable();
    let median = sides.get(sides.len() / 2).context("none of the images that were looked at can be decoded")?;
    // CIFAR and the MNIST family are 28 and 32 pixels, Tiny ImageNet 64; photographs are trained at 224.
    Ok(match median {
        0..=40 => 32,
        41..=96 => 64,
        _ => 224,
    })
}

#[cfg(test)]
mod tests {
    use super::fitting_batch_size;

    #[test]
    fn a_fitting_batch_is_a_power_of_two_and_two_at_least() {
        for (n_images, expected) in [(0, 2), (1, 2), (2, 2), (3, 2), (40, 32), (64, 64), (511, 256)] {
            assert_eq!(fitting_batch_size(n_images), expected, "{n_images}");
        }
    }
}
