//! `--against`: another program, run in turn with our own measurements.

use super::setup::Setup;
use crate::args::AgainstArgs;
use crate::exit::UsageError;
use crate::signals;
use anyhow::{Context as _, anyhow};
use sdclr::bench::median;
use sdclr::signals::{StopFlag, StopSignal};
use sdclr_report::table::{Align, Table};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

/// Another program.
pub struct Rival {
    command: String,
    /// Turns of each.
    pub rounds: usize,
    stop: StopFlag,
    /// What it last wrote to stderr, for messages.
    stderr: RefCell<String>,
}

/// How often to look whether the program has ended, or we are to stop.
const POLL: Duration = Duration::from_millis(20);
/// Characters of its stderr that a message quotes.
const TAIL: usize = 500;

impl Rival {
    /// The program that was named, if one was; installs the signal handlers that end it.
    ///
    /// # Errors
    /// No rounds.
    pub fn new(args: &AgainstArgs) -> anyhow::Result<Option<Self>> {
        let Some(command) = args.against.clone() else { return Ok(None) };
        if args.rounds == 0 {
            return Err(UsageError("--rounds 0: must be at least 1".to_owned()).into());
        }
        let (stop, stderr) = (signals::install()?, RefCell::default());
        Ok(Some(Self { command, rounds: args.rounds, stop, stderr }))
    }

    /// Runs the program to its end and returns its stdout; the inner error is the signal that stopped us, and it.
    ///
    /// # Errors
    /// A program that cannot be started, or fails.
    pub fn run(&self) -> anyhow::Result<Result<String, StopSignal>> {
        if let Some(signal) = self.stop.raised() {
            return Ok(Err(signal));
        }
        let mut running = Running::start(&self.command)?;
        let status = loop {
            if let Some(signal) = self.stop.raised() {
                return Ok(Err(signal));
            }
            match running.child.try_wait().context("--against: waiting")? {
                Some(status) => break status,
                None => std::thread::sleep(POLL),
            }
        };
        let (stdout, stderr) = running.texts();
        if self.stop.raised().is_none() && !status.success() {
            return Err(anyhow!("--against: `{}` failed ({}){}", self.command, describe(status), quoted(&stderr)));
        }
        self.stderr.replace(stderr);
        Ok(self.stop.raised().map_or(Ok(stdout), Err))
    }

    /// All rounds: our rate, then the program's under `key` of its last JSON line that has one; the inner error is the signal that
    /// stopped us, or it.
    ///
    /// # Errors
    /// Those of `ours`; a program that cannot be started, fails, or prints no such line.
    pub fn contest(
        &self,
        setup: &mut Setup,
        key: &str,
        mut ours: impl FnMut(&mut Setup) -> anyhow::Result<Result<f64, StopSignal>>,
    ) -> anyhow::Result<Result<Contest, StopSignal>> {
        let mut contest = Contest { command: self.command.clone(), ours: Vec::new(), theirs: Vec::new() };
        for round in 1..=self.rounds {
            setup.context.note(&format!("round {round} of {}", self.rounds));
            match ours(setup)? {
                Ok(rate) => contest.ours.push(rate),
                Err(signal) => return Ok(Err(signal)),
            }
            let stdout = match self.run()? {
                Ok(stdout) => stdout,
                Err(signal) => return Ok(Err(signal)),
            };
            let rate = json_lines(&stdout).iter().filter_map(|line| positive(line, key)).next_back();
            contest.theirs.push(rate.ok_or_else(|| self.lacks(key))?);
        }
        Ok(Ok(contest))
    }

    /// What stopped us, if anything did.
    pub fn stopped(&self) -> Option<StopSignal> {
        self.stop.raised()
    }

    /// The error of a program that ends well and prints no such line.
    pub fn lacks(&self, key: &str) -> anyhow::Error {
        anyhow!("--against: `{}` printed no JSON line with {key}{}", self.command, quoted(&self.stderr.borrow()))
    }
}

/// A running program, which does not outlive this value.
struct Running {
    child: Child,
    readers: Vec<JoinHandle<String>>,
}

impl Running {
    fn start(command: &str) -> anyhow::Result<Self> {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, so that whatever the shell starts can be ended with it.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut shell, 0);
        let mut child = shell.spawn().context("--against: cannot start a shell")?;
        // Both at once: a full pipe would stop the program.
        let mut readers = Vec::new();
        readers.extend(child.stdout.take().map(read_all));
        readers.extend(child.stderr.take().map(read_all));
        Ok(Self { child, readers })
    }

    /// What the program wrote to stdout and stderr. It has ended; what it left running is ended here.
    fn texts(&mut self) -> (String, String) {
        self.end();
        let mut texts = self.readers.drain(..).map(|reader| reader.join().unwrap_or_default());
        (texts.next().unwrap_or_default(), texts.next().unwrap_or_default())
    }

    /// Ends the program and whatever it started. That there is nothing left to end is no failure.
    fn end(&mut self) {
        #[cfg(unix)]
        let _ = rustix::process::kill_process_group(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::KILL,
        );
        #[cfg(not(unix))]
        let _ = self.child.kill();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
        // Nobody is left to hear of it.
        let _ = self.child.wait();
    }
}

fn read_all(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before a failure is still worth quoting.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn describe(status: ExitStatus) -> String {
    status.code().map_or_else(|| status.to_string(), |code| format!("exit code {code}"))
}

/// The end of what a program said, to be appended to a message.
fn quoted(stderr: &str) -> String {
    let text = stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    let skipped = text.chars().count().saturating_sub(TAIL);
    let tail: String = text.chars().skip(skipped).collect();
    match (tail.is_empty(), skipped) {
        (true, _) => "; it wrote nothing to stderr".to_owned(),
        (false, 0) => format!("; its stderr: {tail}"),
        (false, _) => format!("; its stderr ends: …{tail}"),
    }
}

/// The JSON objects of a program's output: one a line, or the whole as one, as `sdclr --json` prints it.
pub fn json_lines(stdout: &str) -> Vec<Value> {
    let parse = |text: &str| serde_json::from_str::<Value>(text).ok().filter(Value::is_object);
    if let Some(whole) = parse(stdout) {
        return vec![whole];
    }
    stdout.lines().filter_map(parse).collect()
}

/// A number above zero under a key.
pub fn positive(value: &Value, key: &str) -> Option<f64> {
    value.get(key)?.as_f64().filter(|number| number.is_finite() && *number > 0.0)
}

/// Rates of both, round by round.
#[derive(Debug, Clone, PartialEq)]
pub struct Contest {
    command: String,
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

impl Contest {
    /// Our median.
    pub fn ours(&self) -> f64 {
        median(&self.ours)
    }

    /// Our median over theirs.
    pub fn ratio(&self) -> f64 {
        self.ours() / median(&self.theirs)
    }

    /// The command, all rates, and the ratio of their medians.
    pub fn json(&self) -> Value {
        json!({
            "command": self.command,
            "rounds": self.theirs.len(),
            "samples_per_s": self.theirs,
            "own_samples_per_s": self.ours,
            "ratio": self.ratio(),
        })
    }

    /// A table of the rounds and a line for the medians.
    pub fn text(&self) -> String {
        let columns = ["round", "sdclr, images/s", "other, images/s", "ratio"].map(|title| (title, Align::Right));
        let mut table = Table::new(&columns);
        let row = |name: String, ours: f64, theirs: f64| {
            [name, format!("{ours:.1}"), format!("{theirs:.1}"), format!("{:.2}", ours / theirs)]
                .map(|cell| cell.as_str().into())
                .to_vec()
        };
        for (round, (ours, theirs)) in self.ours.iter().zip(&self.theirs).enumerate() {
            table.push(row((round + 1).to_string(), *ours, *theirs));
        }
        table.push(row("median".to_owned(), median(&self.ours), median(&self.theirs)));
        format!("\nagainst {}\n{}", self.command, table.to_text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_of_the_medians() {
        let contest = Contest { command: "x".to_owned(), ours: vec![10.0, 30.0, 20.0], theirs: vec![9.0, 10.0, 1.0] };
        assert_eq!(contest.ratio(), 20.0 / 9.0);
        let json = contest.json();
        assert_eq!((&json["rounds"], &json["samples_per_s"]), (&json!(3), &json!([9.0, 10.0, 1.0])));
        let text = contest.text();
        assert!(text.contains("median             20.0              9.0   2.22"), "{text}");
    }

    #[test]
    fn json_is_found_among_other_lines_and_as_a_whole() {
        let mixed = "warming up\n{\"samples_per_s\": 3}\n[1]\n{broken\n{\"samples_per_s\": 4.5}\ndone\n";
        let rates: Vec<_> = json_lines(mixed).iter().filter_map(|line| positive(line, "samples_per_s")).collect();
        assert_eq!(rates, [3.0, 4.5]);
        let whole = "{\n  \"samples_per_s\": 7\n}\n";
        assert_eq!(positive(&json_lines(whole)[0], "samples_per_s"), Some(7.0));
        for bad in ["0", "-1", "null", "\"7\""] {
            let value = serde_json::from_str(&format!("{{\"samples_per_s\": {bad}}}")).expect("JSON");
            assert_eq!(positive(&value, "samples_per_s"), None, "{bad}");
        }
    }

    #[test]
    fn a_message_quotes_the_end_of_stderr() {
        assert_eq!(quoted(" \n"), "; it wrote nothing to stderr");
        assert_eq!(quoted("a\nb"), "; its stderr: a b");
        let long = quoted(&format!("{}end", "x".repeat(2 * TAIL)));
        assert!(long.starts_with("; its stderr ends: …x") && long.ends_with("xend"), "{long}");
    }
}
