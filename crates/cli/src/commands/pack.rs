//! `sdclr pack`: a data set in one file that trains without decoding the originals.

use super::embed::check_folder;
use super::export::{refuse_existing, write_file};
use crate::args::{PackArgs, StoreArg};
use crate::context::Context;
use crate::exit::UsageError;
use crate::progress::Progress;
use crate::{config, signals, system};
use sdclr::run_dir::describe_io;
use sdclr_data::pack::{PackJob, PackSpec, Packed, Storage, estimated_bytes, pack};
use sdclr_data::{DataError, Dataset, Skipped};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The quality of JPEGs where none is given: hardly visible changes.
const QUALITY: u8 = 95;

/// Writes a pack, whole or not at all.
///
/// # Errors
/// Images, settings or an output file that do not do.
pub fn run(args: &PackArgs, context: Context) -> anyhow::Result<ExitCode> {
    let spec = spec(args)?;
    if args.out.extension().is_none_or(|extension| extension != "sdpack") {
        return Err(UsageError(format!("--out {}: must end in .sdpack", args.out.display())).into());
    }
    refuse_existing(&args.out, args.overwrite)?;
    check_folder(&args.out)?;
    let images = config::open_part(&args.source, args.part.parse()?, args.split.clone(), args.data_root.clone())?;
    let stop = signals::install_for_packing()?;
    check_disk(&images, &spec, &args.out, &context)?;
    let mut progress = Progress::new(context, "");
    let job = PackJob {
        dataset: &images,
        out: &args.out,
        spec: spec.clone(),
        stop: &|| stop.raised().is_some(),
        progress: &mut |done, total| progress.on_images("packed", done, total),
    };
    let packed = pack(job);
    progress.finish();
    let packed = packed.map_err(|error| match error {
        DataError::Io { path, action: "write", source } => {
            anyhow::anyhow!("{}: cannot write: {}", path.display(), describe_io(&source))
        }
        error => error.into(),
    })?;
    match (packed, stop.raised()) {
        (Some(packed), _) => show(&packed, &spec, args, context),
        (None, signal) => {
            context.note("stopped; nothing was written");
            Ok(ExitCode::from(signal.map_or(1, |signal| signal.exit_code())))
        }
    }
}

fn spec(args: &PackArgs) -> anyhow::Result<PackSpec> {
    let storage = match (args.store, args.quality) {
        (StoreArg::Raw, None) => Storage::Raw,
        (StoreArg::Jpeg, quality) => Storage::Jpeg { quality: quality.unwrap_or(QUALITY) },
        (StoreArg::Raw, Some(_)) => {
            return Err(UsageError("--quality: raw pixels have none; give --store jpeg too".to_owned()).into());
        }
    };
    if !(0.0..=1.0).contains(&args.max_broken) {
        return Err(UsageError(format!("--max-broken {}: must be a share from 0 to 1", args.max_broken)).into());
    }
    Ok(PackSpec {
        shorter_side: (args.shorter_side > 0).then_some(args.shorter_side),
        storage,
        workers: args.workers,
        max_broken_share: args.max_broken,
        strict: args.strict,
    })
}

/// Says how large the pack will be, and refuses to begin where the disk has no room for it.
fn check_disk(images: &Dataset, spec: &PackSpec, out: &Path, context: &Context) -> anyhow::Result<()> {
    let Some(needed) = estimated_bytes(images, spec)? else { return Ok(()) };
    context.note(&format!("packing {} images into about {}", images.len(), system::size(needed)));
    let advice = "use another disk, a smaller --shorter-side or --store jpeg";
    system::check_room(out, needed, "the pack needs about", advice)
}

fn show(packed: &Packed, spec: &PackSpec, args: &PackArgs, context: Context) -> anyhow::Result<ExitCode> {
    let Packed { n_images, n_resized, n_bytes, skipped } = packed;
    let list = skipped_path(&args.out);
    if skipped.is_empty() {
        // An earlier pack's list would be taken for this one's; there mostly is none.
        let _ = std::fs::remove_file(&list);
    } else {
        write_file(&list, rows(skipped).as_bytes())?;
        let n_skipped = skipped.len();
        context.warn(&format!("{n_skipped} broken images are left out; {} lists them", list.display()));
    }
    let as_jpeg = matches!(spec.storage, Storage::Jpeg { .. });
    if context.json {
        context.print_json(&serde_json::json!({
            "out": args.out,
            "images": n_images,
            "resized": n_resized,
            "bytes": n_bytes,
            "skipped": skipped.len(),
            "exact": *n_resized == 0 && !as_jpeg,
        }))?;
    } else {
        let (out, size) = (args.out.display(), system::size(*n_bytes));
        context.print(&format!("{out}: {n_images} images, {n_resized} of them resized, {size}\n"))?;
    }
    let changes = [
        (*n_resized > 0).then(|| {
            format!(
                "{n_resized} images were resized to a shorter side of {} pixels, so training crops are not those of \
                 the originals (the paper's recipe); --shorter-side 0 keeps sizes",
                args.shorter_side
            )
        }),
        as_jpeg.then(|| "JPEG changes pixels by a few grey levels; --store raw keeps them".to_owned()),
    ];
    for change in changes.into_iter().flatten() {
        context.note(&format!("note: {change}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// `FILE.sdpack.skipped.csv`
fn skipped_path(out: &Path) -> PathBuf {
    let mut path = out.as_os_str().to_owned();
    path.push(".skipped.csv");
    path.into()
}

/// `image,reason` a line, as a run's `skipped.csv`.
fn rows(skipped: &[Skipped]) -> String {
    let quote = |text: &str| format!("\"{}\"", text.replace(['\n', '\r'], " ").replace('"', "\"\""));
    let rows = skipped.iter().map(|image| format!("{},{}\n", quote(&image.name), quote(&image.reason)));
    std::iter::once("image,reason\n".to_owned()).chain(rows).collect()
}
