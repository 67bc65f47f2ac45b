//! `tessera explain`: which tokens of a prompt made the model choose the next one.

use std::fmt::Write;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use serde_json::Value;
use tessera_core::TokenId;
use tessera_core::entry::{find, read_as};
use tessera_runtime::reagent::{Attribution, Probe, ReAGent, explain};
use tessera_runtime::{METHODS, Message, Prompt, Session};

use super::result;
use crate::Globals;
use crate::failure::BadUsage;
use crate::flags::ModelFlags;
use crate::slow_bar::SlowBar;

mod faithfulness;
mod page;

/// What `explain` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The text whose next token is explained.
    #[arg(long, required_unless_present = "faithfulness")]
    prompt: Option<String>,
    /// Explain why this follows (its first token); default: what the model itself would say.
    #[arg(long)]
    target: Option<String>,
    /// A name from `tessera list`, `org/repo[:QUANT][@revision]`, or a path.
    #[arg(short, long, env = "TESSERA_MODEL", default_value = "smollm2")]
    model: String,
    /// Put the prompt into the model's chat template, whose own tokens stay as they are.
    #[arg(long)]
    chat: bool,
    /// Write the explanation as a page that needs nothing else.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Measure how faithful the attributions are on a few prompts, beside random and leave-one-out.
    #[arg(long, conflicts_with_all = ["prompt", "target", "chat", "html"])]
    faithfulness: bool,
    /// With `--faithfulness`: only the first N prompts.
    #[arg(long, value_name = "N", requires = "faithfulness")]
    prompts: Option<usize>,
    /// With `--faithfulness`: random masks a prompt.
    #[arg(long, value_name = "N", requires = "faithfulness", default_value_t = 16)]
    masks: u32,
    #[command(flatten)]
    settings: SettingFlags,
    #[command(flatten)]
    flags: ModelFlags,
}

/// Settings of the method; `tessera methods show reagent` describes them, with their defaults.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "ReAGent")]
struct SettingFlags {
    /// Share of the positions that a step replaces.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    rho: Option<f64>,
    /// Positions that the stop test leaves as they are.
    #[arg(long, value_name = "N")]
    keep: Option<usize>,
    /// At most this share of the positions stays, but one does.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    keep_share: Option<f64>,
    /// The stop test passes if the target is among this many most probable tokens.
    #[arg(long, value_name = "K")]
    top: Option<usize>,
    /// Most steps of a probe.
    #[arg(long, value_name = "N")]
    max_steps: Option<usize>,
    /// Independent probes.
    #[arg(long, value_name = "N")]
    probes: Option<usize>,
    /// Where replacements come from: class, vocabulary or model.
    #[arg(long, value_name = "SOURCE")]
    replace: Option<String>,
    /// What the importances start from: noise or zeros.
    #[arg(long, value_name = "START")]
    start: Option<String>,
    /// Equal seeds give equal results.
    #[arg(short, long, value_name = "N")]
    seed: Option<u64>,
}

impl SettingFlags {
    fn resolve(&self) -> anyhow::Result<ReAGent> {
        let number = |x: Option<usize>| x.map(Value::from);
        let given = [
            ("rho", self.rho.map(Value::from)),
            ("keep", number(self.keep)),
            ("keep_share", self.keep_share.map(Value::from)),
            ("top", number(self.top)),
            ("max_steps", number(self.max_steps)),
            ("probes", number(self.probes)),
            ("replace", self.replace.clone().map(Value::from)),
            ("start", self.start.clone().map(Value::from)),
            ("seed", self.seed.map(Value::from)),
        ];
        let given = given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Ok(read_as("reagent", &find(METHODS, "reagent")?.resolve(&given.collect())?)?)
    }
}

/// A token of the prompt with its importance.
#[derive(Debug, Serialize)]
struct Part {
    text: String,
    token: TokenId,
    /// `None` for tokens that were never replaced.
    importance: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Explained {
    model: String,
    target: String,
    target_token: TokenId,
    probability: f64,
    rank: usize,
    tokens: Vec<Part>,
    stopped: usize,
    /// What each probe found, position by position.
    probes: Vec<Probe>,
    passes: usize,
    rows: usize,
    seconds: f64,
    settings: ReAGent,
    warning: Option<String>,
}

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    let settings = arguments.settings.resolve()?;
    if arguments.faithfulness {
        return faithfulness::run(globals, arguments, &settings);
    }
    let prompt = arguments.prompt.as_deref().unwrap_or_default();
    if prompt.is_empty() {
        return Err(BadUsage("prompt: is empty, so there is nothing to explain".to_owned()).into());
    }
    let session = arguments.flags.open(globals, &arguments.model, None)?;
    session.expect_causal("explain")?;
    let (context, positions) = context(&session, prompt, arguments.chat)?;
    let target = match &arguments.target {
        None => None,
        Some(text) => Some(first_token(&session, text)?),
    };
    let start = Instant::now();
    let bar = SlowBar::new("explaining", settings.max_steps as u64, globals.quiet);
    let found = explain(
        session.backbone(),
        session.vocabulary(),
        &settings,
        &context,
        &positions,
        target,
        &mut |step, _| bar.at(step as u64),
    )?;
    bar.clear();
    let seconds = start.elapsed().as_secs_f64();
    let explained = describe(&session, arguments, &context, found, settings, seconds);
    if let Some(path) = &arguments.html {
        std::fs::write(path, page::html(&explained)).map_err(|e| {
            anyhow::anyhow!("{}: {e}. Next: name a file that can be written", path.display())
        })?;
    }
    result(globals, &explained, &heat(&explained, colours()))
}

/// The tokens in front of the one explained, and which of them are the prompt's own.
fn context(
    session: &Session,
    prompt: &str,
    chat: bool,
) -> anyhow::Result<(Vec<TokenId>, Vec<usize>)> {
    let own: Vec<usize>;
    let tokens = if chat {
        let shaped = |text: &str| session.tokens(&Prompt::Chat(&[Message::new("user", text)]));
        let (with, without) = (shaped(prompt)?, shaped("\u{b6}")?);
        // What differs between two conversations is the message.
        let alike = |a: &mut dyn Iterator<Item = (&TokenId, &TokenId)>| {
            a.take_while(|(a, b)| a == b).count()
        };
        let before = alike(&mut with.iter().zip(&without));
        let after = alike(&mut with.iter().rev().zip(without.iter().rev()));
        own = (before..with.len().saturating_sub(after).max(before)).collect();
        with
    } else {
        let tokens = session.tokens(&Prompt::Raw(prompt))?;
        own = (0..tokens.len()).collect();
        tokens
    };
    let text = |&p: &usize| !session.tokenizer().is_structural(tokens[p]);
    let positions = own.into_iter().filter(text).collect();
    Ok((tokens, positions))
}

fn first_token(session: &Session, text: &str) -> anyhow::Result<TokenId> {
    let tokens = session.vocabulary().encode(text);
    tokens.first().copied().ok_or_else(|| {
        BadUsage("target: is empty. Next: name a word, with its space in front".to_owned()).into()
    })
}

fn describe(
    session: &Session,
    arguments: &Arguments,
    context: &[TokenId],
    found: Attribution,
    settings: ReAGent,
    seconds: f64,
) -> Explained {
    let spelt = |t: TokenId| session.tokenizer().spelling(t).into_owned();
    let importance = |p: usize| {
        let at = found.positions.iter().position(|&own| own == p);
        at.map(|i| found.scores[i])
    };
    let stopped = found.probes.iter().filter(|p| p.stopped).count();
    let warning = found.none_stopped.then(|| {
        format!(
            "no probe passed the stop test in {} steps: what is shown is the mean of all of them, which \
             may be noise. Next: raise --max-steps, --keep or --top",
            settings.max_steps
        )
    });
    Explained {
        model: arguments.model.clone(),
        target: spelt(found.target),
        target_token: found.target,
        probability: found.probability,
        rank: found.rank,
        tokens: context
            .iter()
            .enumerate()
            .map(|(p, &token)| Part { text: spelt(token), token, importance: importance(p) })
            .collect(),
        stopped,
        probes: found.probes,
        passes: found.passes,
        rows: found.rows,
        seconds,
        settings,
        warning,
    }
}

/// Whether the terminal shows colours.
fn colours() -> bool {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    !plain && std::io::stdout().is_terminal()
}

/// The prompt with its important tokens shaded, and the same as a list with bars.
fn heat(e: &Explained, colours: bool) -> String {
    let mut text = String::new();
    if let Some(warning) = &e.warning {
        let _ = writeln!(text, "warning: {warning}");
    }
    let most = e.tokens.iter().filter_map(|t| t.importance).fold(0.0, f64::max).max(1e-9);
    if colours {
        for part in &e.tokens {
            match part.importance {
                Some(importance) => {
                    // From the terminal's own background to a full red.
                    let step = (importance / most * 5.0).round() as u8;
                    let shade = [0, 52, 88, 124, 160, 196][usize::from(step.min(5))];
                    match shade {
                        0 => text.push_str(&part.text),
                        _ => {
                            let _ = write!(text, "\x1b[48;5;{shade}m\x1b[97m{}\x1b[0m", part.text);
                        }
                    }
                }
                None => {
                    let _ = write!(text, "\x1b[2m{}\x1b[0m", part.text);
                }
            }
        }
        text.push_str("\n\n");
    }
    for part in &e.tokens {
        let shown = format!("{:?}", part.text);
        let _ = match part.importance {
            Some(importance) => {
                let bar = "#".repeat((importance / most * 40.0).round() as usize);
                writeln!(text, "{shown:<20}{:>7.1} %  {bar}", 100.0 * importance)
            }
            None => writeln!(text, "{shown:<20}      -"),
        };
    }
    let _ = writeln!(
        text,
        "-> {:?} (probability {:.3}, rank {}); {} of {} probes stopped after {} steps, {} passes, {} rows, {:.1} s",
        e.target,
        e.probability,
        e.rank + 1,
        e.stopped,
        e.probes.len(),
        range(&e.probes),
        e.passes,
        e.rows,
        e.seconds
    );
    text
}

/// The least and the most steps that a probe took.
fn range(probes: &[Probe]) -> String {
    let steps = || probes.iter().map(|p| p.steps);
    let (low, high) = (steps().min().unwrap_or(0), steps().max().unwrap_or(0));
    if low == high { low.to_string() } else { format!("{low} to {high}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn explained() -> Explained {
        let part = |text: &str, importance| Part { text: text.to_owned(), token: 1, importance };
        Explained {
            model: "toy".to_owned(),
            target: " <b>".to_owned(),
            target_token: 3,
            probability: 0.25,
            rank: 0,
            tokens: vec![part("<s>", None), part("a&b", Some(0.75)), part("\n", Some(0.25))],
            stopped: 0,
            probes: [4, 9]
                .map(|steps| Probe { scores: vec![0.75, 0.25], steps, stopped: false })
                .to_vec(),
            passes: 10,
            rows: 20,
            seconds: 0.5,
            settings: ReAGent::default(),
            warning: Some("no probe passed".to_owned()),
        }
    }

    #[test]
    fn a_heat_map_without_colours_has_no_escapes_and_shows_the_warning_first() {
        let text = heat(&explained(), false);
        assert!(text.starts_with("warning: no probe passed") && !text.contains('\x1b'), "{text}");
        assert!(text.contains("\"a&b\"                  75.0 %  ####") && text.contains("4 to 9"));
        assert!(heat(&explained(), true).contains("\x1b[48;5;196m"));
    }
}
