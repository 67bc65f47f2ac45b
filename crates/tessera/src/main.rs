//! The `tessera` command.

mod bench;
mod canvas;
mod canvas_view;
mod commands;
mod constraints;
mod conversation;
mod failure;
mod flags;
mod interrupt;
mod logging;
mod measuring;
mod printer;
mod pull_progress;
mod slow_bar;

use std::io::Write;
use std::process::ExitCode;

use clap::builder::FalseyValueParser;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};

/// Token-based generation in which every efficiency method can be switched on and checked.
///
/// Exit codes: 0 done (also when Ctrl-C ended an answer), 1 failed (also when an answer ended inside
/// its constraint), 2 the command line was wrong.
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
    /// Print the result as JSON (`run`: one object a line).
    #[arg(long, global = true, env = "TESSERA_JSON", value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,
    /// Use no network (also TESSERA_OFFLINE=1 or HF_HUB_OFFLINE=1).
    #[arg(long, global = true)]
    pub(crate) offline: bool,
    /// Show no progress and no statistics.
    #[arg(
        short = 'q',
        long = "no-progress",
        visible_alias = "quiet",
        global = true,
        env = "TESSERA_QUIET",
        value_parser = FalseyValueParser::new()
    )]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer one prompt.
    Run(commands::run::Arguments),
    /// Talk with a model.
    Chat(commands::chat::Arguments),
    /// Fetch a model: a name of the list, `org/repo[:QUANT][@revision]`, or hf://org/repo.
    Pull(commands::pull::Arguments),
    /// List the models known by name and those on this machine.
    #[command(visible_alias = "ls")]
    List,
    /// Show what a model file holds.
    Show(commands::show::Arguments),
    /// Delete a model from this machine.
    Rm(commands::rm::Arguments),
    /// List the methods, or show one.
    Methods(commands::methods::Arguments),
    /// Measure what a method gains: claimed, measured, control.
    Check(commands::check::Arguments),
    /// Prove or refute on a model that a method keeps its promise about the text.
    Verify(commands::verify::Arguments),
    /// Make one page with plots of what was measured.
    Report(commands::report::Arguments),
    /// Find the fastest recipe here that keeps a promise, and keep it for `run` and `chat`.
    Tune(commands::tune::Arguments),
    /// Measure a model once for the methods that need it.
    Calibrate(commands::calibrate::Arguments),
    /// Measure a model's speed on this machine.
    Bench(commands::bench::Arguments),
    /// Store a model's weights in fewer bits.
    #[command(visible_alias = "quantise")]
    Quantize(commands::quantize::Arguments),
    /// How well a model predicts a text.
    Perplexity(commands::perplexity::Arguments),
    /// Continue a text wherever it breaks off, byte by byte if asked; fill in the middle.
    Complete(commands::complete::Arguments),
    /// Which tokens of a prompt made the model choose the next one.
    Explain(commands::explain::Arguments),
    /// Bits for each byte of a text: comparable between vocabularies.
    Score(commands::score::Arguments),
    /// Serve a model over HTTP, as OpenAI's clients ask.
    Serve(commands::serve::Arguments),
    /// Show the server's settings and where each comes from.
    Config(commands::config::Arguments),
    /// Print what a shell needs to complete commands and flags.
    Completions(commands::shell::Completions),
    /// Print the manual page, or write one for every command.
    Man(commands::shell::Man),
    /// Sample simple stories from a model into a text file, many at a time.
    Corpus(commands::corpus::Arguments),
    /// Train a small model by a recipe; run again to go on where it was stopped.
    Train(commands::train::Arguments),
    /// Train a model that learns where to cut characters into segments, and see what it makes.
    Zonkey(commands::zonkey::Arguments),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let globals = &cli.globals;
    let outcome = match &cli.command {
        Command::Run(arguments) => commands::run::run(globals, arguments),
        Command::Chat(arguments) => commands::chat::run(globals, arguments),
        Command::Pull(arguments) => commands::pull::run(globals, arguments),
        Command::List => commands::list::run(globals),
        Command::Show(arguments) => commands::show::run(globals, arguments),
        Command::Rm(arguments) => commands::rm::run(globals, arguments),
        Command::Methods(arguments) => commands::methods::run(globals, arguments),
        Command::Check(arguments) => commands::check::run(globals, arguments),
        Command::Verify(arguments) => commands::verify::run(globals, arguments),
        Command::Report(arguments) => commands::report::run(globals, arguments),
        Command::Tune(arguments) => commands::tune::run(globals, arguments),
        Command::Calibrate(arguments) => commands::calibrate::run(globals, arguments),
        Command::Bench(arguments) => commands::bench::run(globals, arguments),
        Command::Quantize(arguments) => commands::quantize::run(globals, arguments),
        Command::Perplexity(arguments) => commands::perplexity::run(globals, arguments),
        Command::Complete(arguments) => commands::complete::run(globals, arguments),
        Command::Explain(arguments) => commands::explain::run(globals, arguments),
        Command::Score(arguments) => commands::score::run(globals, arguments),
        Command::Serve(arguments) => commands::serve::run(globals, arguments),
        Command::Config(arguments) => commands::config::run(globals, arguments),
        Command::Completions(arguments) => commands::shell::completions(arguments, Cli::command()),
        Command::Man(arguments) => commands::shell::man(globals, arguments, Cli::command()),
        Command::Corpus(arguments) => commands::corpus::run(globals, arguments),
        Command::Zonkey(arguments) => commands::zonkey::run(globals, arguments),
        Command::Train(arguments) => commands::train::run(globals, arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if failure::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(if failure::is_usage(&error) { 2 } else { 1 })
        }
    }
}

/// Answers a command line that asks for help, or cannot be read.
fn refuse(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
        _ => {
            let known = Cli::command();
            let named = std::env::args().skip(1).find_map(|a| known.find_subcommand(a));
            let line = failure::usage_line(error, named.map(clap::Command::get_name));
            let _ = writeln!(std::io::stderr(), "error: {line}");
            ExitCode::from(2)
        }
    }
}
