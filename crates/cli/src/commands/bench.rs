//! `sdclr bench step`: the training step, timed as pre-training runs it.

use crate::args::StepBenchArgs;
use crate::context::Context;
use crate::system;
use sdclr::Machine;
use sdclr::bench::StepBench;
use sdclr_records::layers::{Layer, merge};
use serde_json::json;
use std::process::ExitCode;

/// Times steps on random images and prints the median.
///
/// # Errors
/// Settings that do not do, or too little memory.
pub fn step(args: &StepBenchArgs, context: Context) -> anyhow::Result<ExitCode> {
    // The images are made up; a name keeps the checks of a real run.
    let images = Layer::from_flags(&[("data".to_owned(), "random images".to_owned())])?;
    let config = merge(&[images, args.flags.layer()?])?;
    config.validate()?;
    let machine = Machine::of(&config, system::level()?);
    let mut bench = StepBench::new(&config, &machine)?;
    // The first step touches fresh memory.
    bench.step()?;
    let mut seconds = (0..args.steps.max(1)).map(|_| bench.step()).collect::<Result<Vec<f64>, _>>()?;
    seconds.sort_by(f64::total_cmp);
    let (median, batch_size) = (seconds[seconds.len() / 2], config.train.batch_size);
    let (samples_per_s, gflops) = (batch_size as f64 / median, bench.gflop / median);
    if context.json {
        context.print_json(&json!({
            "peer": "sdclr",
            "version": env!("CARGO_PKG_VERSION"),
            "engine": bench.engine_name(),
            "method": config.method,
            "model": config.model.name,
            "image_size": config.data.image_size,
            "batch_size": batch_size,
            "threads": machine.n_threads(),
            "steps": seconds.len(),
            "step_s_median": median,
            "step_s_min": seconds[0],
            "samples_per_s": samples_per_s,
            "gflops": gflops,
            "bytes_held": bench.bytes_held(),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    context.print(&format!(
        "{}: {} step of {}, {} images of {} pixels\n\
         {median:.3} s a step (median of {}, best {:.3}), {samples_per_s:.1} images/s, {gflops:.0} GFLOP/s, {:.2} GB\n",
        bench.engine_name(),
        config.method,
        config.model.name,
        batch_size,
        config.data.image_size,
        seconds.len(),
        seconds[0],
        bench.bytes_held() as f64 / 1e9
    ))?;
    Ok(ExitCode::SUCCESS)
}
