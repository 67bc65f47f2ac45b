//! `tessera run`: one prompt, one answer.

use std::io::{IsTerminal, Read, Write};

use clap::builder::FalseyValueParser;
use serde_json::json;
use tessera_core::entry::plain_json;
use tessera_runtime::{Completion, FinishReason, Message, Outcome, Prompt, Session};

use crate::Globals;
use crate::canvas::CanvasFlags;
use crate::canvas_view::{CanvasView, terminal};
use crate::failure::BadUsage;
use crate::flags::{GenerateFlags, ModelFlags};
use crate::interrupt;
use crate::printer::{Printer, stats_line};

/// What `run` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A name from `tessera list`, `org/repo[:QUANT][@revision]`, or a path.
    model: String,
    /// The prompt; read from stdin if it is left out or `-`.
    prompt: Option<String>,
    /// Continue the prompt as it is, without the model's chat template.
    #[arg(long, env = "TESSERA_RAW", value_parser = FalseyValueParser::new())]
    raw: bool,
    #[command(flatten)]
    canvas: CanvasFlags,
    #[command(flatten)]
    model_flags: ModelFlags,
    #[command(flatten)]
    generate: GenerateFlags,
}

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    let mut settings = arguments.generate.settings()?;
    if arguments.raw && arguments.generate.system.is_some() {
        let what = "--system needs the chat template, which --raw leaves out: give one of them";
        return Err(BadUsage(what.to_owned()).into());
    }
    let text = prompt(arguments.prompt.as_deref())?;
    let flags = &arguments.generate;
    let model = &arguments.model;
    let session = arguments.model_flags.open_tuned(globals, model, flags, &mut settings)?;
    let mut request = session.request(&shape(&session, arguments, &text).prompt())?;
    settings.apply(&session, &mut request);
    arguments.canvas.apply(&session, &mut request)?;

    if globals.json {
        started(&session, &request, &arguments.model)?;
    }
    if session.must_measure(&request.recipe) && !globals.quiet {
        let line =
            "[measuring the model once for this method, which takes a while; kept for later]";
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    let out = std::io::stdout().lock();
    let mut printer = Printer::new(out, globals.json, request.prompt.len(), globals.quiet);
    if session.filling().is_some()
        && let Some(size) = terminal(globals)
    {
        let (vocabulary, given) = (session.vocabulary(), &request.canvas.template);
        printer = printer.watching(CanvasView::new(vocabulary, request.prompt.len(), given, size));
    }
    let outcome =
        session.generate(&request, &mut |event| printer.hear(event), interrupt::flag())?;
    printer.finish(&outcome, request.seed)?;
    if !globals.json && !globals.quiet {
        let reason = outcome.choices[0].reason;
        let most = request.max_tokens.unwrap_or(outcome.stats.drawn_tokens);
        let line = stats_line(&outcome.stats, reason, request.seed, most);
        let _ = writeln!(std::io::stderr(), "{line}");
        if let Some(population) = &outcome.population {
            let _ = writeln!(
                std::io::stderr(),
                "[{} particles, {:.1} effective, resampled {} times · ln P(constraint) about {:.2}]",
                population.count,
                population.effective,
                population.resamplings,
                population.log_probability
            );
        }
    }
    complete(&outcome)
}

/// A text that ended in the middle of its constraint is no answer to what was asked.
fn complete(outcome: &Outcome) -> anyhow::Result<()> {
    let cut = |c: &&Completion| c.complete == Some(false) && c.reason != FinishReason::Cancelled;
    match outcome.choices.iter().find(cut) {
        None => Ok(()),
        Some(choice) => Err(anyhow::anyhow!(
            "incomplete: the answer ended inside its constraint ({}, {} tokens). Next: more tokens \
             (-n), or ask for less",
            choice.reason.word(),
            choice.tokens.len()
        )),
    }
}

/// The first JSON line: what is about to run.
fn started(
    session: &Session,
    request: &tessera_runtime::Request,
    model: &str,
) -> std::io::Result<()> {
    let line = json!({
        "event": "started",
        "model": model,
        "engine": session.info(),
        "prompt_tokens": request.prompt.len(),
        "max_tokens": request.max_tokens,
        "sampling": plain_json(&request.sampling),
        "seed": request.seed,
        "methods": request.recipe.to_json(),
        "predicate": request.recipe.constraint().is_some(),
    });
    writeln!(std::io::stdout(), "{line}")
}

/// The prompt given, or all of stdin.
fn prompt(given: Option<&str>) -> anyhow::Result<String> {
    let text = match given {
        Some(text) if text != "-" => text.to_owned(),
        _ => {
            let mut stdin = std::io::stdin();
            if given.is_none() && stdin.is_terminal() {
                let what =
                    "no prompt: give one after the model, pipe one in, or use `tessera chat`";
                return Err(BadUsage(what.to_owned()).into());
            }
            let mut bytes = Vec::new();
            stdin.read_to_end(&mut bytes)?;
            let text = String::from_utf8(bytes).map_err(|e| {
                let at = e.utf8_error().valid_up_to();
                BadUsage(format!("the prompt on stdin is no UTF-8 text (byte {at}): convert it"))
            })?;
            // The shell's line end is not part of what was written.
            text.strip_suffix('\n').map(str::to_owned).unwrap_or(text)
        }
    };
    if text.trim().is_empty() {
        let what = "the prompt is empty: write something after the model's name";
        return Err(BadUsage(what.to_owned()).into());
    }
    Ok(text)
}

/// A prompt with the messages it borrows from.
enum Shaped<'a> {
    Raw(&'a str),
    Chat(Vec<Message>),
}

impl Shaped<'_> {
    fn prompt(&self) -> Prompt<'_> {
        match self {
            Shaped::Raw(text) => Prompt::Raw(text),
            Shaped::Chat(messages) => Prompt::Chat(messages),
        }
    }
}

/// A conversation for models made for it, plain text for others.
fn shape<'a>(session: &Session, arguments: &Arguments, text: &'a str) -> Shaped<'a> {
    if arguments.raw || !session.info().chat {
        return Shaped::Raw(text);
    }
    let system = arguments.generate.system.as_deref().map(|s| Message::new("system", s));
    Shaped::Chat(system.into_iter().chain([Message::new("user", text)]).collect())
}
