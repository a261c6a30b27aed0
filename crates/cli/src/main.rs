//! The `sdclr` program: flags become validated configs, configs become library calls, results become text.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 and 143 stopped by
//! SIGINT and SIGTERM.

mod args;
mod commands;
mod config;
mod context;
mod exit;
mod flags;
mod progress;
mod signals;
mod system;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::usage(&error),
    };
    signals::let_large_writes_fail();
    match commands::run(cli) {
        Ok(code) => code,
        Err(error) => exit::failure(&error),
    }
}
