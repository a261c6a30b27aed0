//! `sdclr bench layers`: where a step's time goes, operation by operation, beside the least that the machine allows.

use super::setup::{Setup, object};
use super::{Report, explained, number, percent, show};
use crate::args::BenchLayersArgs;
use crate::context::Context;
use sdclr::bench::layers::{LayersBench, Roofline};
use sdclr::bench::profile::{Kind, Op, Phase, Row, grouped};
use sdclr::bench::{Repeats, sample};
use sdclr_report::table::{Align, Cell, Table};
use serde_json::{Map, Value, json};
use std::process::ExitCode;

/// Times the operations of some steps.
///
/// # Errors
/// Settings that do not do, too little memory.
pub fn run(args: &BenchLayersArgs, context: Context) -> anyhow::Result<ExitCode> {
    let mut setup = Setup::new(&args.flags, context)?;
    let report = measure(&mut setup, Repeats::exactly(args.steps.get()))?;
    show(&report, &setup)
}

/// Times steps through the profiling engine, with samples of the peaks between them.
///
/// # Errors
/// A model that cannot be built, too little memory.
pub fn measure(setup: &mut Setup, steps: Repeats) -> anyhow::Result<LayersReport> {
    setup.context.note(&format!("operations of a step of {}", setup.subject()));
    let mut bench = LayersBench::new(&setup.config, &setup.machine)?;
    setup.check_memory(bench.bytes_held())?;
    bench.warm_up()?;
    steps.collect(|| {
        sample(&mut setup.peaks);
        bench.step()
    })?;
    sample(&mut setup.peaks);
    let (rows, step_s, outside_s) = (bench.rows(), bench.step_s(), bench.outside_s());
    Ok(LayersReport { rows, step_s, outside_s, n_steps: bench.n_steps() })
}

/// The operations of the median step.
pub struct LayersReport {
    rows: Vec<Row>,
    step_s: f64,
    /// Seconds of the step that no operation took.
    outside_s: f64,
    n_steps: usize,
}

impl LayersReport {
    /// Sums by a property of the operations, with its name, calls and times.
    fn sums<K: Ord + Copy>(
        &self,
        setup: &Setup,
        key: fn(Op) -> K,
        name: fn(K) -> &'static str,
    ) -> Vec<(&'static str, usize, Roofline)> {
        let sum = |(key, rows): (K, Vec<Row>)| {
            let calls = rows.iter().map(|row| row.calls).sum();
            (name(key), calls, Roofline::sum(&rows, &setup.machine, &setup.rates()))
        };
        grouped(&self.rows, key).into_iter().map(sum).collect()
    }

    /// Sums by kind and by phase.
    fn all_sums(&self, setup: &Setup) -> [Vec<(&'static str, usize, Roofline)>; 2] {
        [self.sums(setup, Op::kind, Kind::name), self.sums(setup, Op::phase, Phase::name)]
    }

    fn table(&self, setup: &Setup) -> Table {
        let mut table = table("operation", "shape");
        for row in &self.rows {
            let roof = Roofline::of(row, &setup.machine, &setup.rates());
            let names = [row.op.name().into(), Cell::Text(row.shape.to_string())];
            table.push(cells(names, row.calls, &roof, self.step_s));
        }
        table
    }

    /// Sums by kind and sums by phase, as two tables.
    fn totals(&self, setup: &Setup) -> String {
        let tables = ["kind", "phase"].into_iter().zip(self.all_sums(setup)).map(|(title, sums)| {
            let mut totals = table(title, "");
            for (name, calls, roof) in sums {
                totals.push(cells([name.into(), "".into()], calls, &roof, self.step_s));
            }
            totals.to_text()
        });
        tables.collect::<Vec<_>>().join("\n")
    }
}

impl Report for LayersReport {
    fn json(&self, setup: &Setup) -> Map<String, Value> {
        let row = |row: &Row| {
            let mut json = object(json!({
                "op": row.op, "shape": row.shape, "kind": row.op.kind(), "phase": row.op.phase(), "calls": row.calls,
            }));
            json.append(&mut numbers(&Roofline::of(row, &setup.machine, &setup.rates())));
            Value::Object(json)
        };
        let sum = |(name, calls, roof): (&str, usize, Roofline)| {
            let mut json = object(json!({ "calls": calls }));
            json.append(&mut numbers(&roof));
            (name.replace(' ', "_"), Value::Object(json))
        };
        let [kinds, phases] = self.all_sums(setup).map(|sums| sums.into_iter().map(sum).collect::<Map<_, _>>());
        object(json!({
            "steps": self.n_steps,
            "step_s_median": self.step_s,
            "outside_s": self.outside_s,
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "kinds": kinds,
            "phases": phases,
        }))
    }

    fn text(&self, setup: &Setup) -> anyhow::Result<String> {
        let (step_ms, outside_ms) = (1e3 * self.step_s, 1e3 * self.outside_s);
        let shares = self.rows.iter().map(|row| Roofline::of(row, &setup.machine, &setup.rates()).share_of_peak());
        Ok(format!(
            "{} step of {}: {step_ms:.1} ms with every operation timed (median of {}), {outside_ms:.1} ms outside them\n\n{}\n{}{}",
            setup.config.method,
            setup.subject(),
            self.n_steps,
            self.table(setup).to_text(),
            self.totals(setup),
            explained(setup.unit().0, shares)
        ))
    }
}

fn table(first: &str, second: &str) -> Table {
    let numbers = ["calls", "ms", "% of step", "GFLOP/s", "% of peak", "GB/s", "% of memory", "floor ms", "× floor"];
    let names = [(first, Align::Left), (second, Align::Left)];
    Table::new(&names.into_iter().chain(numbers.map(|title| (title, Align::Right))).collect::<Vec<_>>())
}

fn cells(names: [Cell; 2], calls: usize, roof: &Roofline, step_s: f64) -> Vec<Cell> {
    let numbers = [
        Cell::Count(calls),
        number(1e3 * roof.seconds, 2),
        number(100.0 * roof.seconds / step_s, 1),
        number(roof.gflops(), 1),
        percent(roof.share_of_peak()),
        number(roof.gb_per_s(), 1),
        percent(roof.share_of_bandwidth()),
        number(1e3 * roof.floor_s, 2),
        number(roof.times_floor(), 1),
    ];
    names.into_iter().chain(numbers).collect()
}

fn numbers(roof: &Roofline) -> Map<String, Value> {
    object(json!({
        "ms": 1e3 * roof.seconds,
        "gflop": roof.flop / 1e9,
        "gbytes": roof.bytes / 1e9,
        "gflops": roof.gflops(),
        "share_of_peak": roof.share_of_peak(),
        "gb_per_s": roof.gb_per_s(),
        "share_of_bandwidth": roof.share_of_bandwidth(),
        "floor_ms": 1e3 * roof.floor_s,
        "times_floor": roof.times_floor(),
    }))
}
