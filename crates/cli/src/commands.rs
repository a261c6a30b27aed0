//! One module a command: flags in, library calls, text out.

mod bench;
mod demo;
mod doctor;
mod embed;
mod eval;
mod export;
mod import;
mod inspect;
mod pack;
mod pretrain;
mod reproduce;
mod shell;
mod split;
mod summary;

use crate::args::{Cli, Command};
use crate::context::Context;
use std::process::ExitCode;

/// Runs the command that was typed.
///
/// # Errors
/// Whatever the command cannot do.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let context = Context::new(&cli.common);
    match cli.command {
        Command::Demo(args) => demo::run(&args, context),
        Command::Pretrain(args) => pretrain::run(&args, context),
        Command::Eval(command) => eval::run(*command, context),
        Command::Reproduce(args) => reproduce::run(&args, context),
        Command::Summary(args) => summary::run(&args, context),
        Command::Split(command) => split::run(command, context),
        Command::Embed(args) => embed::run(&args, context),
        Command::Export(args) => export::run(&args, context),
        Command::Import(args) => import::run(&args, context),
        Command::Inspect(args) => inspect::run(&args, context),
        Command::Pack(args) => pack::run(&args, context),
        Command::Bench(args) => bench::run(&args, context),
        Command::Doctor => doctor::run(context),
        Command::Completions(args) => shell::completions(&args, context),
        Command::Man(args) => shell::man(&args, context),
    }
}
