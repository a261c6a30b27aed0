//! From errors to one line on stderr and an exit code.

use sdclr::run_dir::RunDirError;
use sdclr_records::Error as RecordError;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

/// Something failed.
pub const FAILED: u8 = 1;
/// The command line, environment or config cannot be run.
pub const USAGE: u8 = 2;

/// A mistake in how the program was called that only a command can notice.
#[derive(Debug)]
pub struct UsageError(pub String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Reports what clap has to say: help and version on stdout, a mistake as one line on stderr.
pub fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A reader that closed the pipe has read all it wanted.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let rendered = error.render().to_string();
    let lines = rendered.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty() && !line.starts_with("For more")).collect();
    if lines.first().is_none_or(|line| !line.starts_with("error: ")) {
        // A command group without a command: clap shows its help instead.
        return write_stderr(&rendered, USAGE);
    }
    let line = lines.join("; ").replace(":;", ":");
    write_stderr(&format!("sdclr: {line} (see --help)\n"), USAGE)
}

/// Reports an error and chooses its exit code.
pub fn failure(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    write_stderr(&format!("sdclr: error: {}\n", one_line(error)), code_of(error))
}

fn code_of(error: &anyhow::Error) -> u8 {
    let is_usage = error.chain().any(|cause| {
        let unfit = matches!(cause.downcast_ref(), Some(sdclr::Error::Unfit(_)));
        let record_is_wrong = record_error(cause).is_some_and(|record| !matches!(record, RecordError::Read { .. }));
        cause.is::<UsageError>() || unfit || record_is_wrong || run_dir_error(cause).is_some_and(is_wrong_out)
    });
    if is_usage { USAGE } else { FAILED }
}

/// The config error that this is; transparent wrappers do not show it in the chain.
fn record_error<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a RecordError> {
    match (cause.downcast_ref(), run_dir_error(cause)) {
        (Some(sdclr::Error::Config(record)), _) | (_, Some(RunDirError::Config(record))) => Some(record),
        _ => cause.downcast_ref(),
    }
}

/// The error of a run directory that this is.
fn run_dir_error<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a RunDirError> {
    match cause.downcast_ref() {
        Some(sdclr::Error::RunDir(error)) => Some(error),
        _ => cause.downcast_ref(),
    }
}

/// Whether another --out, --resume, --overwrite or --name is all that is needed.
fn is_wrong_out(error: &RunDirError) -> bool {
    use RunDirError::{BadName, Foreign, ForeignConfig, NotAFolder, NotEmpty};
    matches!(error, NotEmpty { .. } | Foreign { .. } | ForeignConfig { .. } | NotAFolder { .. } | BadName { .. })
}

/// The error and its causes, each said once, without line breaks.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if line.contains(&text) {
            continue;
        }
        let separator = if line.is_empty() { "" } else { ": " };
        // Writing to a String cannot fail.
        let _ = write!(line, "{separator}{text}");
    }
    line
}

/// Whether whoever read our stdout has gone, which is not our failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kinds = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    kinds.into_iter().any(|kind| kind == io::ErrorKind::BrokenPipe)
}

fn write_stderr(text: &str, code: u8) -> ExitCode {
    // Without a stderr there is nobody left to tell.
    let _ = io::stderr().write_all(text.as_bytes());
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn causes_are_joined_and_said_once() {
        let cause = io::Error::other("no\nspace");
        let error = anyhow::Error::new(cause).context("run/a: cannot write: no space").context("saving");
        assert_eq!(one_line(&error), "saving: run/a: cannot write: no space");
    }

    #[test]
    fn bad_values_are_wrong_usage_and_unreadable_files_are_failures() {
        let bad = sdclr_records::Error::BadAssignment { text: "x".to_owned() };
        let in_run = sdclr::run_dir::RunDirError::from(sdclr_records::Error::BadAssignment { text: "x".to_owned() });
        let unreadable = sdclr_records::Error::Read { path: "a".into(), source: io::Error::other("gone") };
        let deep = sdclr::Error::from(RunDirError::from(RecordError::BadAssignment { text: "x".to_owned() }));
        let not_empty = || RunDirError::NotEmpty { path: "a".into() };
        let cases: [(anyhow::Error, u8); 9] = [
            (not_empty().into(), USAGE),
            (sdclr::Error::from(not_empty()).into(), USAGE),
            (RunDirError::NotARun { path: "a".into() }.into(), FAILED),
            (deep.into(), USAGE),
            (sdclr::Error::Unfit("x".to_owned()).into(), USAGE),
            (bad.into(), USAGE),
            (in_run.into(), USAGE),
            (unreadable.into(), FAILED),
            (UsageError("x".to_owned()).into(), USAGE),
        ];
        for (error, expected) in cases {
            assert_eq!(code_of(&Err::<(), _>(error).context("doing it").expect_err("an error")), expected);
        }
    }
}
