//! `sdclr completions` and `sdclr man`, from the one definition of flags.

use crate::args::{Cli, CompletionsArgs, ManArgs};
use crate::context::Context;
use anyhow::Context as _;
use clap::{Command, CommandFactory};
use std::process::ExitCode;

/// Prints a completion script.
///
/// # Errors
/// If stdout cannot be written.
pub fn completions(args: &CompletionsArgs, context: Context) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "sdclr", &mut script);
    context.print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints `sdclr(1)`, or writes a page a command into a folder.
///
/// # Errors
/// If stdout or the folder cannot be written.
pub fn man(args: &ManArgs, context: Context) -> anyhow::Result<ExitCode> {
    let command = for_pages(Cli::command());
    match &args.out {
        Some(folder) => {
            std::fs::create_dir_all(folder)
                .and_then(|()| clap_mangen::generate_to(command, folder))
                .with_context(|| format!("{}: cannot write the manual pages", folder.display()))?;
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            context.print(&String::from_utf8_lossy(&page))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The command as its manual pages describe it: an option that `-h` leaves out has its text there, and each page the version.
fn for_pages(command: Command) -> Command {
    let command = command.mut_args(|arg| arg.hide_short_help(false)).mut_subcommands(for_pages);
    if command.get_version().is_some() {
        return command;
    }
    command.version(env!("CARGO_PKG_VERSION")).disable_version_flag(true)
}
