//! Progress on stderr: a bar on a terminal, plain lines elsewhere, nothing when quiet.

use crate::context::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sdclr::progress::{Observer, StepReport};
use std::time::{Duration, Instant};

/// The observer of the command line.
pub struct Progress {
    context: Context,
    /// What is being trained, before each line; empty for a single run.
    label: String,
    bar: Option<ProgressBar>,
    /// When this sitting began, and at which step.
    began: Option<(Instant, u64)>,
    last_line: Option<Instant>,
    started: Instant,
}

/// Between plain lines; an epoch's end always gets one, unless epochs are shorter than this.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

impl Progress {
    /// An observer that speaks as asked.
    pub fn new(context: Context, label: &str) -> Self {
        Self { context, label: label.to_owned(), bar: None, began: None, last_line: None, started: Instant::now() }
    }

    /// Removes the bar.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Something that is done to `done` of `total` images: `packed`.
    pub fn on_images(&mut self, what: &str, done: usize, total: usize) {
        let text = format!("{what} {done}/{total} images");
        if self.context.bar {
            let total = total as u64;
            // The bar is of one length; another one begins for other images.
            if self.bar.as_ref().is_none_or(|bar| bar.length() != Some(total) || bar.position() >= total) {
                self.finish();
                self.bar = Some(new_bar(total, &self.label));
            }
            if let Some(bar) = &self.bar {
                bar.set_position(done as u64);
                bar.set_message(text);
            }
            if done == total as usize {
                self.finish();
            }
        } else if self.last_line.unwrap_or(self.started).elapsed() >= LINE_INTERVAL {
            self.last_line = Some(Instant::now());
            self.context.note(&format!("{}{text}", self.prefix()));
        }
    }

    fn prefix(&self) -> String {
        if self.label.is_empty() { String::new() } else { format!("{}: ", self.label) }
    }

    fn time_left(&mut self, report: &StepReport) -> Option<Duration> {
        let (began, first) = *self.began.get_or_insert_with(|| (Instant::now(), report.step));
        let done = u32::try_from(report.step.saturating_sub(first)).ok().filter(|done| *done > 0)?;
        let left = report.n_steps.saturating_sub(report.step);
        Some(Duration::from_secs_f64(began.elapsed().as_secs_f64() / f64::from(done) * left as f64))
    }

    fn show(&mut self, report: &StepReport, is_epoch_end: bool) {
        let time_left = self.time_left(report);
        let text = line(report, time_left);
        if self.context.bar {
            let bar = self.bar.get_or_insert_with(|| new_bar(report.n_steps, &self.label));
            bar.set_position(report.step);
            bar.set_message(text);
            return;
        }
        let is_last = report.step == report.n_steps;
        let due = self.last_line.is_none_or(|last| last.elapsed() >= LINE_INTERVAL);
        if due || (is_last && is_epoch_end) {
            self.last_line = Some(Instant::now());
            self.context.note(&format!("{}{text}", self.prefix()));
        }
    }
}

impl Observer for Progress {
    fn on_step(&mut self, report: &StepReport) {
        self.show(report, false);
    }

    fn on_epoch(&mut self, report: &StepReport) {
        self.show(report, true);
    }

    fn on_features(&mut self, done: usize, total: usize) {
        self.on_images("features of", done, total);
    }

    fn message(&mut self, text: &str) {
        let text = format!("{}{text}", self.prefix());
        match &self.bar {
            Some(bar) => bar.suspend(|| self.context.note(&text)),
            None => self.context.note(&text),
        }
    }
}

fn new_bar(n_steps: u64, label: &str) -> ProgressBar {
    // Four redraws a second are smooth enough and cost nothing.
    let bar = ProgressBar::with_draw_target(Some(n_steps), ProgressDrawTarget::stderr_with_hz(4));
    // No colours, so that NO_COLOR needs no case of its own.
    if let Ok(style) = ProgressStyle::with_template("{prefix}{bar:24} {percent:>3}%  {msg}") {
        bar.set_style(style.progress_chars("━╸─"));
    }
    if !label.is_empty() {
        bar.set_prefix(format!("{label} "));
    }
    bar
}

fn line(report: &StepReport, time_left: Option<Duration>) -> String {
    let StepReport { epoch, n_epochs, loss, images_per_s, .. } = report;
    let left = time_left.map_or_else(String::new, |left| format!("  {} left", duration(left)));
    let wait = 100.0 * report.wait_share;
    format!("epoch {epoch}/{n_epochs}  loss {loss:.4}  {images_per_s:.0} images/s  waiting for data {wait:.0}%{left}")
}

/// The two largest units: `2d 3h`, `4h 05m`, `6m 07s`, `8s`.
pub fn duration(duration: Duration) -> String {
    let s = duration.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {:02}s", s / 60, s % 60),
        3600..86400 => format!("{}h {:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d {}h", s / 86400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_show_their_two_largest_units() {
        for (seconds, expected) in [(8, "8s"), (367, "6m 07s"), (14_700, "4h 05m"), (183_600, "2d 3h")] {
            assert_eq!(duration(Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn a_line_holds_what_one_wants_to_know() {
        let report = StepReport {
            epoch: 2,
            n_epochs: 30,
            step: 40,
            n_steps: 600,
            loss: 4.56789,
            lr: 0.1,
            images_per_s: 812.4,
            wait_share: 0.031,
        };
        let text = line(&report, Some(Duration::from_secs(61)));
        assert_eq!(text, "epoch 2/30  loss 4.5679  812 images/s  waiting for data 3%  1m 01s left");
    }
}
