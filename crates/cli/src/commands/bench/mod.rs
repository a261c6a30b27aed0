//! `sdclr bench`: how fast this machine trains, beside what it could do at most.
//!
//! Each part is a module that measures into a report; a report is text or JSON. Alone, the command runs every part.

mod against;
mod convs;
mod data;
mod layers;
mod probe;
mod setup;
mod step;

use crate::args::{
    BenchArgs, BenchCommand, BenchConvsArgs, BenchDataArgs, BenchLayersArgs, BenchProbeArgs, BenchStepArgs,
};
use crate::context::Context;
use crate::exit::UsageError;
use crate::flags::BenchFlags;
use clap::{Args, Command};
use sdclr::bench::Repeats;
use sdclr_report::table::Cell;
use serde_json::{Map, Value};
use setup::Setup;
use std::process::ExitCode;

/// Runs one part, or all.
///
/// # Errors
/// Settings that do not do, too little memory, a failing program of --against.
pub fn run(args: &BenchArgs, context: Context) -> anyhow::Result<ExitCode> {
    let Some(command) = &args.command else { return everything(args, context) };
    if let Some(flag) = args.flags.names().next() {
        let text = format!("--{flag}: give it after the part, as in sdclr bench step --{flag} …");
        return Err(UsageError(text).into());
    }
    if let BenchCommand::Step(BenchStepArgs { flags, .. })
    | BenchCommand::Layers(BenchLayersArgs { flags, .. })
    | BenchCommand::Convs(BenchConvsArgs { flags, .. }) = command
        && flags.names().any(|flag| flag == "data")
    {
        return Err(UsageError("--data: only bench data and bench probe read images".to_owned()).into());
    }
    match command {
        BenchCommand::Step(args) => {
            note_idle::<BenchStepArgs>(&args.flags, context);
            step::run(args, context)
        }
        BenchCommand::Layers(args) => {
            note_idle::<BenchLayersArgs>(&args.flags, context);
            layers::run(args, context)
        }
        BenchCommand::Convs(args) => {
            note_idle::<BenchConvsArgs>(&args.flags, context);
            convs::run(args, context)
        }
        BenchCommand::Data(args) => {
            note_idle::<BenchDataArgs>(&args.flags, context);
            data::run(args, context)
        }
        BenchCommand::Probe(args) => {
            note_idle::<BenchProbeArgs>(&args.flags, context);
            probe::run(args, context)
        }
    }
}

/// Names the flags that were given and change nothing: those that the help of `A` does not list.
fn note_idle<A: Args>(flags: &BenchFlags, context: Context) {
    let command = A::augment_args(Command::new("bench"));
    let is_idle = |flag: &&str| command.get_arguments().any(|arg| arg.get_id() == *flag && arg.is_hide_set());
    flags.names().filter(is_idle).for_each(|flag| context.note(&format!("note: --{flag} has no effect here")));
}

/// What a part measured.
trait Report {
    /// Keys beside those of the machine and the model.
    fn json(&self, setup: &Setup) -> Map<String, Value>;
    /// Lines under the one of the machine.
    fn text(&self, setup: &Setup) -> anyhow::Result<String>;
}

/// A line that says how a rate can lie above the peak of a unit, if one of these shares of it does.
fn explained(unit: &str, shares: impl IntoIterator<Item = f64>) -> &'static str {
    let is_above = shares.into_iter().any(|share| share > 1.0);
    if !is_above {
        ""
    } else if unit == "amx" {
        "GFLOP/s count direct multiplications of all weights, also those that are left out: by the padding of small maps, and of pruned \
         weights where few are kept. And the peak is that of operands from the second cache: a rate can exceed it.\n"
    } else {
        "GFLOP/s count direct multiplications of all weights. Most 3 × 3 convolutions take a quarter of these, pruned ones of few weights only their \
         own: a rate can exceed the peak.\n"
    }
}

/// Prints the machine, the model and one part.
fn show(report: &dyn Report, setup: &Setup) -> anyhow::Result<ExitCode> {
    if setup.context.json {
        let mut json = setup.json();
        json.append(&mut report.json(setup));
        setup.context.print_json(&Value::Object(json))?;
    } else {
        setup.context.print(&format!("{}\n{}", setup.headline(), report.text(setup)?))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Seconds for the steps of each part that runs steps, when every part runs.
const STEPS_S: f64 = 6.0;
/// Seconds for each pass of each convolution.
const CONV_S: f64 = 0.1;
/// Seconds for each measurement of the loader.
const DATA_S: f64 = 1.0;
/// Images and seconds for the probe's features.
const PROBE: (usize, f64) = (256, 2.0);

/// Every part for a few seconds.
fn everything(args: &BenchArgs, context: Context) -> anyhow::Result<ExitCode> {
    note_idle::<BenchArgs>(&args.flags, context);
    let mut setup = Setup::new(&args.flags, context)?;
    let steps = Repeats { at_least: 2, at_most: 5, seconds: STEPS_S };
    let mut parts: Vec<(&str, Box<dyn Report>)> = Vec::new();
    parts.push(("step", Box::new(step::measure(&mut setup, steps)?)));
    let steps = Repeats { at_least: 1, at_most: 3, seconds: STEPS_S };
    parts.push(("layers", Box::new(layers::measure(&mut setup, steps)?)));
    let shapes = convs::shapes(&setup, &[])?;
    let each = Repeats { at_least: 2, ..Repeats::lasting(CONV_S) };
    parts.push(("convolutions", Box::new(convs::measure(&mut setup, &shapes, each)?)));
    parts.push(("data", Box::new(data::measure(&mut setup, DATA_S)?)));
    let each = Repeats { at_least: 1, ..Repeats::lasting(PROBE.1) };
    parts.push(("probe", Box::new(probe::measure(&mut setup, PROBE.0, each)?)));
    if setup.context.json {
        let mut json = setup.json();
        json.extend(parts.iter().map(|(name, report)| ((*name).to_owned(), Value::Object(report.json(&setup)))));
        setup.context.print_json(&Value::Object(json))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!("{}\n", setup.headline());
    for (name, report) in &parts {
        text += &format!("\n{name}\n{}", report.text(&setup)?);
    }
    setup.context.print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// A number with so many decimals; nothing where there is none to speak of.
fn number(value: f64, decimals: usize) -> Cell {
    if value.is_finite() && value > 0.0 { Cell::Text(format!("{value:.decimals$}")) } else { Cell::Missing }
}

/// A share as a percentage without decimals.
fn percent(share: f64) -> Cell {
    number(100.0 * share, 0)
}
