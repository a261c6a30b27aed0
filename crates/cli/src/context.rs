//! What every command shares: how to speak, and where to.

use crate::args::Common;
use std::io::{self, IsTerminal, Write};

/// The manners asked for.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// Results as JSON.
    pub json: bool,
    /// Nothing on stderr but errors.
    pub quiet: bool,
    /// A bar that redraws itself.
    pub bar: bool,
}

impl Context {
    /// From the flags and the terminal.
    pub fn new(common: &Common) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let terminal = io::stderr().is_terminal() && !dumb;
        Self { json: common.json, quiet: common.quiet, bar: terminal && !common.no_progress && !common.quiet }
    }

    /// Writes a result to stdout.
    ///
    /// # Errors
    /// What the system says, a reader that has gone included.
    pub fn print(&self, text: &str) -> anyhow::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()?;
        Ok(())
    }

    /// Writes a result to stdout as one JSON document.
    ///
    /// # Errors
    /// What the system says.
    pub fn print_json(&self, value: &serde_json::Value) -> anyhow::Result<()> {
        self.print(&format!("{value:#}\n"))
    }

    /// Writes a line to stderr, unless quiet.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            // Progress that nobody can read is no reason to stop working.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// Writes a warning to stderr, quiet or not.
    pub fn warn(&self, text: &str) {
        // As above.
        let _ = writeln!(io::stderr(), "sdclr: warning: {text}");
    }
}
