//! `sdclr pretrain`.

use crate::args::PretrainArgs;
use crate::context::Context;
use crate::exit::UsageError;
use crate::progress::Progress;
use crate::{config, signals, system};
use sdclr::pretrain::{Outcome, PretrainJob, pretrain};
use sdclr::run_dir::{Existing, RunDir};
use std::process::ExitCode;

/// Checks everything, then trains.
///
/// # Errors
/// A setting, image or folder that does not do, or training that fails.
pub fn run(args: &PretrainArgs, context: Context) -> anyhow::Result<ExitCode> {
    let (run_config, dataset) = config::resolve_run(args, &context)?;
    let existing = match (args.resume, args.overwrite) {
        (true, _) => Existing::Resume,
        (_, true) => Existing::Overwrite,
        _ => Existing::Refuse,
    };
    let out = std::path::absolute(&args.out)?;
    if args.overwrite && run_config.model.init_from.as_ref().is_some_and(|source| source.starts_with(&out)) {
        let text = format!(
            "{}: --overwrite would delete what --init-from begins with; give another --out",
            args.out.display()
        );
        return Err(UsageError(text).into());
    }
    system::check_disk(&run_config, &args.out)?;
    let claim = RunDir::claim(&args.out, existing, &run_config)?;
    let stop = signals::install_for_training()?;
    let mut progress = Progress::new(context, "");
    let job = PretrainJob {
        config: &run_config,
        dataset,
        claim,
        kernels: system::kernels()?,
        memory_limit: Some(system::memory().1),
        stop: &stop,
        observer: &mut progress,
    };
    let outcome = pretrain(job);
    progress.finish();
    match outcome? {
        Outcome::Finished { loss, step } => {
            if context.json {
                context.print_json(&serde_json::json!({ "run": args.out, "loss": loss, "step": step }))?;
            } else {
                context.print(&format!("{}: trained, loss {loss:.4} after {step} steps\n", args.out.display()))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Stopped(signal) => {
            context.note(&format!(
                "stopped after writing a checkpoint; go on with: sdclr pretrain --out {} --resume",
                args.out.display()
            ));
            Ok(ExitCode::from(signal.exit_code()))
        }
    }
}
