//! `sdclr bench convs`: each convolution of the model by itself, each pass; alone or in turn with another program.

use super::against::{Rival, json_lines, positive};
use super::setup::{Setup, object};
use super::{Report, explained, number, percent};
use crate::args::BenchConvsArgs;
use crate::context::Context;
use crate::exit::UsageError;
use sdclr::bench::convs::{ConvRates, conv_rates, parse_shape, shapes_of};
use sdclr::bench::profile::Shape;
use sdclr::bench::{Repeats, median};
use sdclr_engine::ConvShape;
use sdclr_report::table::{Align, Cell, Table};
use serde_json::{Map, Value, json};
use std::process::ExitCode;

/// The passes, as JSON calls them.
const PASSES: [&str; 3] = ["forward", "backward_data", "backward_weight"];

/// Times the shapes, and another program's in turn.
///
/// # Errors
/// Settings that do not do, too little memory, a failing program.
pub fn run(args: &BenchConvsArgs, context: Context) -> anyhow::Result<ExitCode> {
    if !(args.seconds > 0.0 && args.seconds.is_finite()) {
        return Err(UsageError(format!("--seconds {}: must be a number above 0", args.seconds)).into());
    }
    if !(0.0..1.0).contains(&args.pruned) {
        return Err(UsageError(format!("--pruned {}: must be a share from 0 to below 1", args.pruned)).into());
    }
    let rival = Rival::new(&args.against)?;
    let mut setup = Setup::new(&args.flags, context)?;
    let (shapes, each) = (shapes(&setup, &args.shape)?, Repeats::lasting(args.seconds));
    let mut report = ConvsReport::new(&shapes, args.pruned, args.against.against.clone());
    for round in 1..=rival.as_ref().map_or(1, |rival| rival.rounds) {
        if let Some(rival) = &rival {
            setup.context.note(&format!("round {round} of {}", rival.rounds));
        }
        if let Some(signal) = report.add(&mut setup, each, rival.as_ref())? {
            return Ok(ExitCode::from(signal.exit_code()));
        }
    }
    if setup.context.json {
        // One line a shape, as the peer's.
        for row in &report.rows {
            let mut line = setup.json();
            if args.pruned > 0.0 {
                line.insert("pruned".to_owned(), json!(args.pruned));
            }
            line.append(&mut row.json(&setup, report.command.as_deref()));
            setup.context.print(&format!("{}\n", Value::Object(line)))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    setup.context.print(&format!("{}\n{}", setup.headline(), report.text(&setup)?))?;
    Ok(ExitCode::SUCCESS)
}

/// The shapes that were typed, or else the model's.
///
/// # Errors
/// A shape that is none.
pub fn shapes(setup: &Setup, typed: &[String]) -> anyhow::Result<Vec<ConvShape>> {
    if typed.is_empty() {
        return Ok(shapes_of(&sdclr::backend::run_network(&setup.config)?));
    }
    let parsed: Result<_, String> = typed.iter().map(|text| parse_shape(text)).collect();
    parsed.map_err(|problem| UsageError(format!("--shape {problem}")).into())
}

/// Times each shape once.
///
/// # Errors
/// Too little memory.
pub fn measure(setup: &mut Setup, shapes: &[ConvShape], each: Repeats) -> anyhow::Result<ConvsReport> {
    let mut report = ConvsReport::new(shapes, 0.0, None);
    report.add(setup, each, None)?;
    Ok(report)
}

/// Rates of all shapes.
pub struct ConvsReport {
    rows: Vec<ConvRow>,
    /// Share of the weights that is pruned.
    pruned: f64,
    command: Option<String>,
}

/// Rates of a shape's passes, one a round, in GFLOP/s; the other program's too.
struct ConvRow {
    shape: ConvShape,
    ours: [Vec<f64>; 3],
    theirs: [Vec<f64>; 3],
}

impl ConvsReport {
    fn new(shapes: &[ConvShape], pruned: f64, command: Option<String>) -> Self {
        Self { rows: shapes.iter().map(|&shape| ConvRow::new(shape)).collect(), pruned, command }
    }

    /// One round: every shape, then the other program. Returns the signal that stopped it.
    fn add(
        &mut self,
        setup: &mut Setup,
        each: Repeats,
        rival: Option<&Rival>,
    ) -> anyhow::Result<Option<sdclr::signals::StopSignal>> {
        for row in &mut self.rows {
            if let Some(signal) = rival.and_then(Rival::stopped) {
                return Ok(Some(signal));
            }
            setup.context.note(&format!("convolution {}", Shape::Conv(row.shape)));
            let n = setup.config.train.batch_size;
            let ConvRates { forward, backward_data, backward_weight, .. } =
                conv_rates(&setup.machine, &mut setup.peaks, row.shape, n, self.pruned, each)?;
            let rates = [forward, backward_data, backward_weight];
            row.ours.iter_mut().zip(rates).for_each(|(all, rate)| all.push(rate));
        }
        let Some(rival) = rival else { return Ok(None) };
        let stdout = match rival.run()? {
            Ok(stdout) => stdout,
            Err(signal) => return Ok(Some(signal)),
        };
        let lines = json_lines(&stdout);
        let mut found = false;
        for row in &mut self.rows {
            let name = Shape::Conv(row.shape).to_string();
            for line in lines.iter().filter(|line| line["shape"] == name.as_str()) {
                for (all, pass) in row.theirs.iter_mut().zip(PASSES) {
                    found |= positive(line, pass).map(|rate| all.push(rate)).is_some();
                }
            }
        }
        if found {
            Ok(None)
        } else {
            Err(rival.lacks("one of these shapes and forward, backward_data, backward_weight"))
        }
    }
}

impl ConvRow {
    fn new(shape: ConvShape) -> Self {
        Self { shape, ours: Default::default(), theirs: Default::default() }
    }

    fn rates(&self) -> [f64; 3] {
        self.ours.each_ref().map(|rates| median(rates))
    }

    /// Our medians over theirs; not-a-number where there is none.
    fn ratios(&self) -> [f64; 3] {
        let theirs = self.theirs.each_ref().map(|rates| median(rates));
        std::array::from_fn(|pass| self.rates()[pass] / theirs[pass])
    }

    fn json(&self, setup: &Setup, command: Option<&str>) -> Map<String, Value> {
        let named = |values: [f64; 3]| PASSES.into_iter().map(str::to_owned).zip(values.map(Value::from));
        let mut json = object(json!({ "shape": Shape::Conv(self.shape), "dtype": setup.machine.numbers() }));
        json.extend(named(self.rates()));
        let peak = setup.unit().1;
        let shares: Map<_, _> = named(self.rates().map(|rate| rate / peak)).collect();
        json.insert("share_of_peak".to_owned(), Value::Object(shares));
        if let Some(command) = command {
            let mut against = object(json!({ "command": command, "rounds": self.theirs[0].len() }));
            against.extend(named(self.theirs.each_ref().map(|rates| median(rates))));
            against.insert("ratio".to_owned(), Value::Object(named(self.ratios()).collect()));
            json.insert("against".to_owned(), Value::Object(against));
        }
        json
    }
}

impl Report for ConvsReport {
    fn json(&self, setup: &Setup) -> Map<String, Value> {
        let rows: Vec<Value> = self.rows.iter().map(|row| Value::Object(row.json(setup, None))).collect();
        object(json!({ "shapes": rows }))
    }

    fn text(&self, setup: &Setup) -> anyhow::Result<String> {
        let (unit, peak) = setup.unit();
        let mut columns = vec![("shape", Align::Left)];
        for title in ["forward", "backward data", "backward weight"] {
            columns.extend([(title, Align::Right), ("% of peak", Align::Right)]);
            columns.extend(self.command.iter().map(|_| ("ratio", Align::Right)));
        }
        let mut table = Table::new(&columns);
        for row in &self.rows {
            let mut cells = vec![Cell::Text(Shape::Conv(row.shape).to_string())];
            for (rate, ratio) in row.rates().into_iter().zip(row.ratios()) {
                cells.extend([number(rate, 1), percent(rate / peak)]);
                cells.extend(self.command.iter().map(|_| number(ratio, 2)));
            }
            table.push(cells);
        }
        let n = setup.config.train.batch_size;
        let against = self.command.as_ref().map_or_else(String::new, |command| format!("; ratios to {command}"));
        let explained = explained(unit, self.rows.iter().flat_map(|row| row.rates()).map(|rate| rate / peak));
        let pruned =
            if self.pruned > 0.0 { format!(", {} of their weights pruned", self.pruned) } else { String::new() };
        Ok(format!("GFLOP/s at {n} images{pruned}, beside the {unit} peak{against}\n\n{}{explained}", table.to_text()))
    }
}
