//! The `tessera` command.

mod commands;
mod pull_progress;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tessera_model::store::StoreError;

/// Token-based generation in which every efficiency method can be switched on and checked.
#[derive(Debug, Parser)]
#[command(name = "tessera", version, about)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Globals {
    /// Print the result as JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Use no network (also TESSERA_OFFLINE=1 or HF_HUB_OFFLINE=1).
    #[arg(long, global = true)]
    pub(crate) offline: bool,
    /// Show no progress.
    #[arg(short = 'q', long = "no-progress", visible_alias = "quiet", global = true)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch a model: a name of the list, org/repo[:QUANT][@revision], or hf://org/repo.
    Pull(commands::pull::Arguments),
    /// List the models known by name and those on this machine.
    #[command(visible_alias = "ls")]
    List,
    /// Show what a model file holds.
    Show(commands::show::Arguments),
    /// Delete a model from this machine.
    Rm(commands::rm::Arguments),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let globals = &cli.globals;
    let outcome = match &cli.command {
        Command::Pull(arguments) => commands::pull::run(globals, arguments),
        Command::List => commands::list::run(globals),
        Command::Show(arguments) => commands::show::run(globals, arguments),
        Command::Rm(arguments) => commands::rm::run(globals, arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe has had enough; that is not a failure.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            let usage = error.downcast_ref::<StoreError>().is_some_and(StoreError::is_usage);
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
}
