//! `sdclr embed`.

use super::eval::machine;
use super::export::{refuse_existing, write_file};
use crate::args::EmbedArgs;
use crate::config;
use crate::context::Context;
use crate::exit::UsageError;
use crate::wiring::{self, Subject, Weights};
use sdclr_data::Dataset;
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
    let (run, checkpoint) = config::locate(&args.run)?;
    let subject = Subject { config: run.config()?, weights: Weights::Trained(checkpoint) };
    let images = config::open_images(&args.data, args.part.parse()?, args.split.clone(), None)?;
    let (features, width) = wiring::embed(&subject, &images, machine(&args.machine)?)?;
    write_file(&names_path, names(&images).as_bytes())?;
    write_file(&args.out, &sdclr_interop::npy_f32(&[images.len(), width], &features))?;
    if context.json {
        let shape = [images.len(), width];
        context.print_json(&serde_json::json!({ "out": args.out, "names": names_path, "shape": shape }))?;
    } else {
        let (out, names) = (args.out.display(), names_path.display());
        context.print(&format!("{out}: {} images, {width} features each; their names: {names}\n", images.len()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `path,label` a line, in the order of the features; no label where there is none.
fn names(images: &Dataset) -> String {
    let mut text = String::from("path,label\n");
    for position in 0..images.len() {
        let label = images.label(position).map(|label| label.to_string()).unwrap_or_default();
        text.push_str(&format!("\"{}\",{label}\n", images.name(position).replace('"', "\"\"")));
    }
    text
}
