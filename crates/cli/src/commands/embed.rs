//! `sdclr embed`.

use super::eval::machine;
use super::export::refuse_existing;
use crate::args::EmbedArgs;
use crate::context::Context;
use crate::exit::UsageError;
use crate::progress::Progress;
use crate::{config, signals};
use sdclr::probe::{Extractor, Subject, Weights};
use sdclr::run_dir::{describe_io, write_together};
use sdclr_data::Dataset;
use sdclr_records::ProbeConfig;
use sdclr_records::names::Protocol;
use std::path::Path;
use std::process::ExitCode;

/// Writes features, and beside them what they are of.
///
/// # Errors
/// A run, image or output file that does not do.
pub fn run(args: &EmbedArgs, context: Context) -> anyhow::Result<ExitCode> {
    if args.out.extension().is_none_or(|extension| extension != "npy") {
        return Err(UsageError(format!("--out {}: must end in .npy", args.out.display())).into());
    }
    let names_path = args.out.with_extension("csv");
    for path in [&args.out, &names_path] {
        refuse_existing(path, args.overwrite)?;
    }
    check_folder(&args.out)?;
    let (run, checkpoint) = config::locate(&args.run)?;
    let subject = Subject { config: run.config()?, weights: Weights::Trained(checkpoint) };
    let images = config::open_part(&args.data, args.part.parse()?, args.split.clone(), args.data_root.clone())?;
    // Images are seen as a probe sees those that it is tested on.
    let recipe = ProbeConfig::new(Protocol::Knn, subject.config.data.image_size, 0).augment_test;
    let stop = signals::install()?;
    let mut extractor = Extractor::new(&subject, &machine(&args.machine, &subject.config)?)?;
    let mut progress = Progress::new(context, "");
    let features = extractor.embed(&images, &recipe, &stop, &mut progress);
    progress.finish();
    let features = match features? {
        Ok(features) => features,
        Err(signal) => {
            context.note("stopped; nothing was written");
            return Ok(ExitCode::from(signal.exit_code()));
        }
    };
    let (n, width) = (features.len(), features.width);
    if n < images.len() {
        context.warn(&format!("{} broken images are left out", images.len() - n));
    }
    let rows = names(&images, &features.positions);
    let values = sdclr_interop::npy_f32(&[n, width], &features.values);
    write_together(&[(&names_path, rows.as_bytes()), (&args.out, &values)])
        .map_err(|(path, e)| anyhow::anyhow!("{}: cannot write: {}", path.display(), describe_io(&e)))?;
    if context.json {
        context.print_json(&serde_json::json!({ "out": args.out, "names": names_path, "shape": [n, width] }))?;
    } else {
        let (out, names) = (args.out.display(), names_path.display());
        context.print(&format!("{out}: {n} images, {width} features each; their names: {names}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// An output folder that is missing is noticed before the work, not after it.
///
/// # Errors
/// If it is missing.
pub fn check_folder(out: &Path) -> anyhow::Result<()> {
    match out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) if !folder.is_dir() => anyhow::bail!("{}: no such folder; make it first", folder.display()),
        _ => Ok(()),
    }
}

/// `path,label` a line, in the order of the features; no label where there is none.
fn names(images: &Dataset, positions: &[u32]) -> String {
    let mut text = String::from("path,label\n");
    for position in positions.iter().map(|&position| position as usize) {
        let label = images.label(position).map(|label| label.to_string()).unwrap_or_default();
        text.push_str(&format!("\"{}\",{label}\n", images.name(position).replace('"', "\"\"")));
    }
    text
}
