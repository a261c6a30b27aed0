//! What can go wrong while reading or checking records, said so that the reader knows what to do.

use std::fmt;
use std::path::PathBuf;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of configs and other records.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("{path}: cannot read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A text is not TOML.
    #[error("{origin}: not valid TOML: {message}")]
    Toml {
        /// Where the text came from.
        origin: String,
        /// The parser's words, on one line.
        message: String,
    },
    /// A key that no config has.
    #[error("{origin}: unknown key `{key}`{hint}")]
    UnknownKey {
        /// Where it was given.
        origin: String,
        /// The dotted key.
        key: String,
        /// A did-you-mean, or what the known keys are.
        hint: String,
    },
    /// A key with a value of another type or outside its choices.
    #[error("{origin}: {key} = {value}: {expected}")]
    WrongValue {
        /// Where it was given.
        origin: String,
        /// The dotted key.
        key: String,
        /// The value as given.
        value: String,
        /// What it should have been.
        expected: String,
    },
    /// `--set` without an equals sign.
    #[error("--set {text}: expected KEY=VALUE, for example --set train.epochs=200")]
    BadAssignment {
        /// What was given.
        text: String,
    },
    /// A name outside a closed list.
    #[error("unknown {what} `{name}`{hint}")]
    UnknownName {
        /// What kind of thing it names.
        what: &'static str,
        /// The name given.
        name: String,
        /// A did-you-mean or the list of names.
        hint: String,
    },
    /// A config whose values cannot be run.
    #[error("{}", join(.0))]
    Invalid(Vec<Problem>),
}

/// One value that cannot be run, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The dotted key, for example `prune.rate`.
    pub key: &'static str,
    /// The value as given; empty where `advice` names it.
    pub value: String,
    /// Why it cannot be run and what to give instead.
    pub advice: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match crate::layers::flag_of(self.key) {
            Some(flag) => write!(f, "--{flag} ({})", self.key)?,
            None => f.write_str(self.key)?,
        }
        if !self.value.is_empty() {
            write!(f, " = {}", self.value)?;
        }
        write!(f, ": {}", self.advice)
    }
}

fn join(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    lines.join("; ")
}

/// The known name nearest to `name`, as `; did you mean `x`?`, else the list of known names.
pub(crate) fn hint<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    let scored = known.iter().map(|k| (strsim::jaro_winkler(&name.to_lowercase(), &k.to_lowercase()), *k));
    match scored.max_by(|a, b| a.0.total_cmp(&b.0)) {
        // 0.7 keeps one or two slips in a word of six letters and drops unrelated words.
        Some((score, best)) if score > 0.7 => format!("; did you mean `{best}`?"),
        _ => format!("; known: {}", known.join(", ")),
    }
}
