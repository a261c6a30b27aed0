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
    /// The step that the last line told of.
    last_step: u64,
    epoch_began: Option<Instant>,
    /// When the bar was last drawn after a step.
    drawn: Option<Instant>,
    started: Instant,
}

/// Between plain lines, at first and when a job has run for a while; an epoch's end always gets one, unless epochs are shorter than this.
const LINE_INTERVALS: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(30)];
const A_WHILE: Duration = Duration::from_secs(60);

/// Between drawings of a bar.
const REDRAW: Duration = Duration::from_millis(250);

impl Progress {
    /// An observer that speaks as asked.
    pub fn new(context: Context, label: &str) -> Self {
        let (label, started) = (label.to_owned(), Instant::now());
        Self {
            context,
            label,
            bar: None,
            began: None,
            last_line: None,
            last_step: 0,
            epoch_began: None,
            drawn: None,
            started,
        }
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
                bar.set_message(text);
                bar.set_position(done as u64);
            }
            if done == total as usize {
                self.finish();
            }
        } else if self.last_line.unwrap_or(self.started).elapsed() >= self.line_interval() {
            self.last_line = Some(Instant::now());
            self.context.note(&format!("{}{text}", self.prefix()));
        }
    }

    fn line_interval(&self) -> Duration {
        LINE_INTERVALS[usize::from(self.started.elapsed() >= A_WHILE)]
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
        if self.context.bar {
            let bar = self.bar.get_or_insert_with(|| new_bar(report.n_steps, &self.label));
            bar.set_message(line(report, is_epoch_end, true, time_left));
            bar.set_position(report.step);
            // Whatever redrew the line showed one of both only.
            if self.drawn.is_none_or(|drawn| drawn.elapsed() >= REDRAW) {
                bar.force_draw();
                self.drawn = Some(Instant::now());
            }
            return;
        }
        let text = line(report, is_epoch_end, false, time_left);
        let epoch_began = *self.epoch_began.get_or_insert_with(Instant::now);
        let due = if is_epoch_end {
            self.epoch_began = None;
            let is_long = epoch_began.elapsed() >= self.line_interval();
            (is_long || report.step == report.n_steps) && self.last_step != report.step
        } else {
            self.last_line.is_none_or(|last| last.elapsed() >= self.line_interval())
        };
        if due {
            (self.last_line, self.last_step) = (Some(Instant::now()), report.step);
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
    if let Ok(style) = ProgressStyle::with_template("{prefix}{bar:10} {percent:>3}%  {wide_msg}") {
        bar.set_style(style.progress_chars("━╸─"));
    }
    if !label.is_empty() {
        bar.set_prefix(format!("{label} "));
    }
    bar
}

/// A line of a log; or what fits into 80 columns behind a bar, which says how far an epoch is.
fn line(report: &StepReport, is_epoch_end: bool, is_behind_bar: bool, time_left: Option<Duration>) -> String {
    let StepReport { epoch, n_epochs, step, n_steps, loss, images_per_s, .. } = report;
    let per_epoch = n_steps / *n_epochs as u64;
    // The loss of an epoch that goes on is that of its steps so far.
    let at = match step.saturating_sub(per_epoch * (*epoch as u64 - 1)) {
        done if done < per_epoch && !is_epoch_end && !is_behind_bar => format!(" at {}%", 100 * done / per_epoch),
        _ => String::new(),
    };
    let left = time_left.map_or_else(String::new, |left| format!("{} left  ", duration(left)));
    let (waiting, share) = (if is_behind_bar { "wait" } else { "waiting for data" }, 100.0 * report.wait_share);
    format!("epoch {epoch}/{n_epochs}{at}  loss {loss:.4}  {left}{images_per_s:.0} images/s  {waiting} {share:.0}%")
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
        let text = |step| line(&StepReport { step, ..report.clone() }, false, false, Some(Duration::from_secs(61)));
        assert_eq!(text(40), "epoch 2/30  loss 4.5679  1m 01s left  812 images/s  waiting for data 3%");
        let short = line(&report, false, true, Some(Duration::from_secs(61)));
        assert_eq!(short, "epoch 2/30  loss 4.5679  1m 01s left  812 images/s  wait 3%");
        assert_eq!(text(33), "epoch 2/30 at 65%  loss 4.5679  1m 01s left  812 images/s  waiting for data 3%");
    }
}
