//! `sdclr bench step`: the training step, timed as pre-training runs it; alone or in turn with another program.

use super::against::{Contest, Rival};
use super::setup::{Setup, object};
use super::{Report, explained, show};
use crate::args::BenchStepArgs;
use crate::context::Context;
use sdclr::bench::{Repeats, StepBench, median, sample};
use serde_json::{Map, Value, json};
use std::process::ExitCode;

/// Times steps on random images, and another program's in turn.
///
/// # Errors
/// Settings that do not do, too little memory, a failing program.
pub fn run(args: &BenchStepArgs, context: Context) -> anyhow::Result<ExitCode> {
    let rival = Rival::new(&args.against)?;
    let mut setup = Setup::new(&args.flags, context)?;
    let Some(rival) = rival else {
        let report = measure(&mut setup, Repeats::exactly(args.steps.get()))?;
        return show(&report, &setup);
    };
    let mut bench = Bench::new(&setup)?;
    let mut report = bench.report(&setup);
    let contest = rival.contest(&mut setup, "samples_per_s", |setup| {
        let first = report.seconds.len();
        for _ in 0..args.steps.get() {
            if let Some(signal) = rival.stopped() {
                return Ok(Err(signal));
            }
            bench.run(setup, Repeats::exactly(1), &mut report)?;
        }
        Ok(Ok(report.batch_size as f64 / median(&report.seconds[first..])))
    })?;
    match contest {
        Ok(contest) => report.contest = Some(contest),
        Err(signal) => return Ok(ExitCode::from(signal.exit_code())),
    }
    show(&report, &setup)
}

/// Times steps, with samples of the peaks between them.
///
/// # Errors
/// A model that cannot be built, too little memory.
pub fn measure(setup: &mut Setup, steps: Repeats) -> anyhow::Result<StepReport> {
    let mut bench = Bench::new(setup)?;
    let mut report = bench.report(setup);
    bench.run(setup, steps, &mut report)?;
    Ok(report)
}

struct Bench(StepBench);

impl Bench {
    fn new(setup: &Setup) -> anyhow::Result<Self> {
        setup.context.note(&format!("steps of {}", setup.subject()));
        let mut bench = StepBench::new(&setup.config, &setup.machine)?;
        setup.check_memory(bench.bytes_held())?;
        // The first step touches fresh memory.
        bench.step()?;
        Ok(Self(bench))
    }

    fn report(&self, setup: &Setup) -> StepReport {
        let (gflop, bytes_held) = (self.0.gflop, self.0.bytes_held());
        let batch_size = setup.config.train.batch_size;
        StepReport { seconds: Vec::new(), batch_size, gflop, bytes_held, contest: None }
    }

    fn run(&mut self, setup: &mut Setup, steps: Repeats, report: &mut StepReport) -> anyhow::Result<()> {
        let seconds = steps.collect(|| {
            sample(&mut setup.peaks);
            self.0.step()
        })?;
        sample(&mut setup.peaks);
        report.seconds.extend(seconds);
        Ok(())
    }
}

/// Steps that were timed.
pub struct StepReport {
    seconds: Vec<f64>,
    batch_size: usize,
    /// 10⁹ operations of a step.
    gflop: f64,
    bytes_held: usize,
    contest: Option<Contest>,
}

impl StepReport {
    fn best_s(&self) -> f64 {
        self.seconds.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

impl Report for StepReport {
    fn json(&self, setup: &Setup) -> Map<String, Value> {
        let median_s = median(&self.seconds);
        let gflops = self.gflop / median_s;
        let mut json = object(json!({
            "steps": self.seconds.len(),
            "step_s_median": median_s,
            "step_s_min": self.best_s(),
            "samples_per_s": self.batch_size as f64 / median_s,
            "gflops": gflops,
            "share_of_peak": gflops / setup.unit().1,
            "bytes_held": self.bytes_held,
        }));
        json.extend(self.contest.iter().map(|contest| ("against".to_owned(), contest.json())));
        json
    }

    fn text(&self, setup: &Setup) -> anyhow::Result<String> {
        let (median_s, (unit, peak)) = (median(&self.seconds), setup.unit());
        let gflops = self.gflop / median_s;
        let mut text = format!(
            "{} step of {}: {median_s:.3} s (median of {}, best {:.3}), {:.1} images/s, {gflops:.0} GFLOP/s, {:.0} % of the \
             {unit} peak, {:.2} GB\n",
            setup.config.method,
            setup.subject(),
            self.seconds.len(),
            self.best_s(),
            self.batch_size as f64 / median_s,
            100.0 * gflops / peak,
            self.bytes_held as f64 / 1e9
        );
        text += explained(unit, [gflops / peak]);
        if let Some(contest) = &self.contest {
            text += &contest.text();
        }
        Ok(text)
    }
}
