//! `tessera chat`: a conversation in the terminal.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};
use tessera_runtime::{Prompt, Sequence, Session};

use crate::Globals;
use crate::conversation::{Conversation, HELP, Line, list, parse, set};
use crate::failure::BadUsage;
use crate::flags::{GenerateFlags, ModelFlags, Settings};
use crate::interrupt;
use crate::printer::{Printer, stats_line};

/// What `chat` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A name from `tessera list`, `org/repo[:QUANT][@revision]`, or a path.
    #[arg(default_value = "smollm2", env = "TESSERA_MODEL")]
    model: String,
    #[command(flatten)]
    model_flags: ModelFlags,
    #[command(flatten)]
    generate: GenerateFlags,
}

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    let mut settings = arguments.generate.settings()?;
    let flags = &arguments.generate;
    let model = &arguments.model;
    let session = arguments.model_flags.open_tuned(globals, model, flags, &mut settings)?;
    if !session.info().chat {
        let what = format!(
            "{} has no chat template: it continues text. Next: `tessera run {} \"...\"`",
            arguments.model, arguments.model
        );
        return Err(BadUsage(what).into());
    }
    let mut chat = Chat {
        sequence: session.sequence()?,
        session: &session,
        conversation: Conversation::new(arguments.generate.system.as_deref()),
        settings,
        stats: !globals.quiet && !globals.json,
        globals,
    };
    let mut input = Input::new(globals.quiet);
    while let Some(line) = input.read()? {
        match chat.take(&line) {
            Ok(true) => {}
            Ok(false) => break,
            // A failed turn ends no conversation.
            Err(error) if !crate::failure::is_broken_pipe(&error) => {
                let _ = writeln!(std::io::stderr(), "error: {error}");
            }
            Err(error) => return Err(error),
        }
    }
    input.save();
    Ok(())
}

struct Chat<'a> {
    session: &'a Session,
    sequence: Sequence,
    conversation: Conversation,
    settings: Settings,
    stats: bool,
    globals: &'a Globals,
}

impl Chat<'_> {
    /// Does what a line says; returns whether to go on.
    fn take(&mut self, line: &str) -> anyhow::Result<bool> {
        let mut note = std::io::stderr();
        match parse(line).map_err(BadUsage)? {
            Line::Nothing => {}
            Line::Quit => return Ok(false),
            Line::Help => write!(note, "{HELP}")?,
            Line::Clear => self.conversation.clear(),
            Line::System(text) => self.conversation = Conversation::new(Some(text)),
            Line::Show => {
                for (name, value) in list(&self.settings) {
                    writeln!(note, "{name:<20}{value}")?;
                }
            }
            Line::Set(name, value) => set(&mut self.settings, name, value).map_err(BadUsage)?,
            Line::Stats => {
                self.stats = !self.stats;
                writeln!(note, "statistics are {}", if self.stats { "on" } else { "off" })?;
            }
            Line::Say(text) => self.say(text)?,
        }
        Ok(true)
    }

    fn say(&mut self, text: &str) -> anyhow::Result<()> {
        let messages = self.conversation.asking(text);
        let mut request = self.session.request(&Prompt::Chat(&messages))?;
        self.settings.apply(self.session, &mut request);
        let globals = self.globals;
        let out = std::io::stdout().lock();
        let mut printer = Printer::new(out, globals.json, request.prompt.len(), globals.quiet);
        let mut hear = |event: tessera_runtime::Event<'_>| printer.hear(event);
        let flag = interrupt::flag();
        let outcome = self.session.generate_in(&mut self.sequence, &request, &mut hear, flag);
        // A full context is the one failure that the conversation itself causes.
        let outcome = outcome.map_err(|error| match error {
            tessera_runtime::Error::Core(tessera_core::Error::ContextFull { needed, limit, .. }) => {
                anyhow::anyhow!(
                    "the conversation needs {needed} tokens and {limit} fit. Next: /clear begins anew"
                )
            }
            error => error.into(),
        })?;
        printer.finish(&outcome, request.seed)?;
        let choice = &outcome.choices[0];
        if choice.complete == Some(false) {
            let _ = writeln!(std::io::stderr(), "note: the answer ended inside its constraint");
        }
        if self.stats {
            let line =
                stats_line(&outcome.stats, choice.reason, request.seed, self.settings.tokens);
            let _ = writeln!(std::io::stderr(), "{line}");
        }
        self.conversation.answered(text, &choice.text);
        Ok(())
    }
}

/// Lines from an editor on a terminal, else from stdin as they come.
enum Input {
    Editor { editor: Box<DefaultEditor>, history: Option<PathBuf> },
    Plain,
}

impl Input {
    fn new(quiet: bool) -> Self {
        if !std::io::stdin().is_terminal() {
            return Self::Plain;
        }
        let config = Config::builder().auto_add_history(true).build();
        let Ok(mut editor) = DefaultEditor::with_config(config) else { return Self::Plain };
        let history = history_file();
        if let Some(file) = &history {
            // The first chat has none.
            let _ = editor.load_history(file);
        }
        if !quiet {
            let _ = writeln!(std::io::stderr(), "/help lists the commands, Ctrl-D leaves.");
        }
        Self::Editor { editor: Box::new(editor), history }
    }

    /// The next line, joined with those it goes on in; `None` at the end.
    fn read(&mut self) -> anyhow::Result<Option<String>> {
        let mut whole = String::new();
        loop {
            let line = match self {
                Self::Editor { editor, .. } => {
                    match editor.readline(if whole.is_empty() { "> " } else { ". " }) {
                        Ok(line) => Some(line),
                        // Ctrl-C drops the line.
                        Err(ReadlineError::Interrupted) => {
                            whole.clear();
                            continue;
                        }
                        Err(ReadlineError::Eof) => None,
                        Err(error) => return Err(error.into()),
                    }
                }
                Self::Plain => std::io::stdin().lock().lines().next().transpose()?,
            };
            let Some(line) = line else {
                return Ok(if whole.is_empty() { None } else { Some(whole) });
            };
            match line.strip_suffix('\\') {
                Some(beginning) => {
                    whole.push_str(beginning);
                    whole.push('\n');
                }
                None => {
                    whole.push_str(&line);
                    return Ok(Some(whole));
                }
            }
        }
    }

    fn save(&mut self) {
        if let Self::Editor { editor, history: Some(file) } = self {
            if let Some(directory) = file.parent() {
                let _ = std::fs::create_dir_all(directory);
            }
            let _ = editor.save_history(file);
        }
    }
}

/// `$TESSERA_HOME/history`, else below the user's data directory.
fn history_file() -> Option<PathBuf> {
    let path = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    path("TESSERA_HOME")
        .or_else(|| path("XDG_DATA_HOME").map(|d| d.join("tessera")))
        .or_else(|| path("HOME").map(|d| d.join(".local/share/tessera")))
        .map(|d| d.join("history"))
}
