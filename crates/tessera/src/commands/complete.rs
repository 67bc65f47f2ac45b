//! `tessera complete`: what follows a text, wherever it breaks off.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde::Serialize;
use tessera_core::Control;
use tessera_core::dist::Sampler;
use tessera_core::text::{StopMatcher, StreamDecoder};
use tessera_runtime::bytes::{MiddleFrom, Opening};
use tessera_runtime::exact_byte_level::complete::{Ended, Tokens, bytes};
use tessera_runtime::exact_byte_level::{Ensemble, ExactByteLevel, Healing, Lexicon, Mode};
use tessera_runtime::{Continuations, Session};

use crate::Globals;
use crate::failure::BadUsage;
use crate::flags::{ModelFlags, SamplingFlags};
use crate::interrupt;

/// What `complete` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The text to continue; read from stdin if it is left out or `-`.
    text: Option<String>,
    #[command(flatten)]
    models: Models,
    /// Continue byte by byte: exact wherever the text breaks off, also inside a token.
    #[arg(long)]
    exact_bytes: bool,
    /// Take the last token back and let the model spell it again (the usual remedy).
    #[arg(long, conflicts_with = "exact_bytes")]
    heal: bool,
    #[command(flatten)]
    exact: ExactFlags,
    /// Go on with tokens once the text ends at a boundary between tokens: faster.
    #[arg(long, requires = "exact_bytes")]
    mixed: bool,
    /// What comes after the hole: fills in the middle.
    #[arg(long, value_name = "TEXT")]
    suffix: Option<String>,
    /// A file with what comes after the hole.
    #[arg(long, value_name = "FILE", conflicts_with = "suffix")]
    suffix_file: Option<PathBuf>,
    /// Where the middle begins for the model when a hole is filled (default: `cursor` for plain
    /// completion, else `line`).
    #[arg(long, value_enum)]
    middle_from: Option<MiddleName>,
    /// Most bytes to make.
    #[arg(short = 'n', long = "bytes", value_name = "BYTES", default_value_t = 128)]
    bytes: usize,
    /// Ends the completion where this text appears; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    flags: ModelFlags,
}

/// The models that read together.
#[derive(Debug, clap::Args)]
pub(crate) struct Models {
    /// A name from `tessera list`, `org/repo[:QUANT][@revision]`, or a path; several read the same
    /// bytes together.
    #[arg(short, long, env = "TESSERA_MODEL", default_value = "smollm2")]
    pub(crate) model: Vec<String>,
    /// Weights of the models in their mean, comma separated (default: equal).
    #[arg(long, value_name = "W", value_delimiter = ',')]
    pub(crate) weights: Vec<f64>,
}

impl Models {
    pub(crate) fn open(
        &self,
        globals: &Globals,
        flags: &ModelFlags,
    ) -> anyhow::Result<Vec<Session>> {
        self.model.iter().map(|name| flags.open(globals, name, None)).collect()
    }
}

/// How exactly.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Exact bytes")]
pub(crate) struct ExactFlags {
    /// Without the mask of canonical sequences: several times faster, close to exact.
    #[arg(long, requires = "exact_bytes")]
    pub(crate) fast: bool,
    /// Share of the probability that may be left out at each byte.
    #[arg(long, value_name = "X", requires = "exact_bytes", allow_negative_numbers = true)]
    pub(crate) floor: Option<f64>,
}

impl ExactFlags {
    pub(crate) fn settings(&self) -> anyhow::Result<ExactByteLevel> {
        let default = ExactByteLevel::default();
        let mode = if self.fast { Mode::Fast } else { default.mode };
        let settings = ExactByteLevel { mode, floor: self.floor.unwrap_or(default.floor) };
        tessera_core::entry::MethodConfig::validate(&settings).map_err(BadUsage)?;
        Ok(settings)
    }
}

/// Where the middle begins, as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum MiddleName {
    /// At the cursor.
    Cursor,
    /// At the beginning of the cursor's line.
    Line,
}

#[derive(Debug, Serialize)]
struct Done {
    models: Vec<String>,
    /// `plain`, `heal`, `exact` or `fast`, with `+tokens` if tokens took over.
    mode: String,
    text: String,
    bytes: usize,
    reason: &'static str,
    passes: usize,
    rows: usize,
    seconds: f64,
    seed: u64,
}

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    let settings = arguments.exact.settings()?;
    let mut sampler = Sampler::new(arguments.sampling.sampling(false)?)?;
    let models = &arguments.models;
    let several = models.model.len() > 1;
    if several && !arguments.exact_bytes {
        let what = "several models read together byte by byte only. Next: add --exact-bytes";
        return Err(BadUsage(what.to_owned()).into());
    }
    if several && arguments.mixed {
        let what = "--mixed goes on with the tokens of one model: give one, or leave it out";
        return Err(BadUsage(what.to_owned()).into());
    }
    if arguments.bytes == 0 {
        return Err(BadUsage("bytes = 0: must be at least 1".to_owned()).into());
    }
    let stops = StopMatcher::new(arguments.stop.iter().map(String::as_str))?;
    let text = text(arguments.text.as_deref())?;
    let suffix = match (&arguments.suffix, &arguments.suffix_file) {
        (Some(text), _) => Some(text.clone()),
        (None, Some(path)) => Some(std::fs::read_to_string(path).map_err(|e| {
            anyhow::anyhow!("{}: {e}. Next: give a readable text file in UTF-8", path.display())
        })?),
        (None, None) => None,
    };
    let sessions = models.open(globals, &arguments.flags)?;
    sessions.iter().try_for_each(|session| session.expect_causal("complete"))?;
    let openings: Vec<Opening> = sessions
        .iter()
        .map(|session| open(session, arguments, &text, suffix.as_deref()))
        .collect::<anyhow::Result<_>>()?;
    let start = Instant::now();
    let seed = arguments.sampling.seed();
    let mut out = Output::new(globals.json, stops);
    let mut mode = if arguments.exact_bytes { settings.mode.word() } else { "plain" }.to_owned();
    let (ended, passes, rows);
    let most = arguments.bytes;
    if arguments.exact_bytes {
        let mut byte_models = Vec::new();
        for (session, opening) in sessions.iter().zip(&openings) {
            let lexicon = Arc::new(session.lexicon());
            byte_models.push(session.byte_model(&lexicon, settings, &opening.stem)?);
        }
        let mut ensemble = Ensemble::new(byte_models, &models.weights)?;
        // Openings differ in what is in front of the text only.
        ensemble.start(&openings[0].text)?;
        let first =
            bytes(&mut ensemble, &mut sampler, seed, most, arguments.mixed, &mut |b| out.hear(b))?;
        let work = ensemble.members().fold((0, 0), |w, m| (w.0 + m.work().0, w.1 + m.work().1));
        if let Ended::Settled(tokens) = first {
            mode.push_str("+tokens");
            let left = most - out.bytes;
            let more = by_tokens(
                &sessions[0],
                tokens,
                Healing::default(),
                &mut sampler,
                seed,
                left,
                &mut out,
            )?;
            (ended, passes, rows) = (more.0, work.0 + more.1, work.1 + more.2);
        } else {
            (ended, passes, rows) = (first, work.0, work.1);
        }
    } else {
        let mut tokens = sessions[0].plain(&openings[0]);
        let lexicon = Lexicon::new(sessions[0].tokenizer());
        let mut healing = Healing::default();
        if arguments.heal {
            "heal".clone_into(&mut mode);
            healing = Healing::new(&lexicon, &mut tokens);
        }
        (ended, passes, rows) =
            by_tokens(&sessions[0], tokens, healing, &mut sampler, seed, most, &mut out)?;
    }
    out.finish()?;
    let done = Done {
        models: models.model.clone(),
        mode,
        bytes: out.bytes,
        reason: match (&ended, out.stopped) {
            (_, true) => "stop",
            (Ended::Full, _) => "bytes",
            (Ended::End, _) => "end",
            (Ended::Heard, _) => "cancelled",
            (Ended::Lost | Ended::Settled(_), _) => "lost",
        },
        text: out.text,
        passes,
        rows,
        seconds: start.elapsed().as_secs_f64(),
        seed,
    };
    if globals.json {
        return super::result(globals, &done, "");
    }
    if !globals.quiet {
        let Done { mode, bytes, seconds, passes, reason, .. } = &done;
        let _ = writeln!(
            std::io::stderr(),
            "[{mode}: {bytes} bytes in {seconds:.2} s, {passes} passes, ended by {reason}, seed {seed}]"
        );
    }
    Ok(())
}

/// Why it ended, passes, rows.
fn by_tokens(
    session: &Session,
    tokens: Vec<u32>,
    healing: Healing,
    sampler: &mut Sampler,
    seed: u64,
    most: usize,
    out: &mut Output,
) -> anyhow::Result<(Ended, usize, usize)> {
    let lexicon = session.lexicon();
    let mut ask = Continuations::new(session.backbone())?;
    let mut run = Tokens { ask: &mut ask, lexicon: &lexicon, tokens, healing };
    let ended = run.run(sampler, seed, most, &mut |b| out.hear(b))?;
    Ok((ended, ask.passes(), ask.rows()))
}

fn open(
    session: &Session,
    arguments: &Arguments,
    text: &str,
    suffix: Option<&str>,
) -> anyhow::Result<Opening> {
    let Some(suffix) = suffix else { return Ok(session.opening(text)) };
    let plain = !arguments.exact_bytes && !arguments.heal;
    let from = match arguments.middle_from {
        Some(MiddleName::Cursor) => MiddleFrom::Cursor,
        Some(MiddleName::Line) => MiddleFrom::Line,
        None if plain => MiddleFrom::Cursor,
        None => MiddleFrom::Line,
    };
    Ok(session.fill_in(text, suffix, from)?)
}

/// The text given, or all of stdin. A completion may begin anywhere, so nothing is trimmed.
fn text(given: Option<&str>) -> anyhow::Result<String> {
    if let Some(text) = given.filter(|text| *text != "-") {
        return Ok(text.to_owned());
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        BadUsage(format!("the text on stdin is no UTF-8 (byte {at}): convert it")).into()
    })
}

/// Bytes on their way to the terminal.
struct Output {
    quiet: bool,
    decoder: StreamDecoder,
    stops: StopMatcher,
    text: String,
    shown: usize,
    bytes: usize,
    stopped: bool,
    broken: Option<std::io::Error>,
}

impl Output {
    fn new(quiet: bool, stops: StopMatcher) -> Self {
        let (decoder, text) = (StreamDecoder::new(), String::new());
        Self { quiet, decoder, stops, text, shown: 0, bytes: 0, stopped: false, broken: None }
    }

    fn hear(&mut self, bytes: &[u8]) -> Control {
        self.bytes += bytes.len();
        let mut piece = String::new();
        self.decoder.push(bytes, &mut piece);
        self.stopped = self.stops.push(&piece, &mut self.text).is_some();
        self.show();
        if self.stopped || self.broken.is_some() || interrupt::flag().load(Ordering::Relaxed) {
            return Control::Stop;
        }
        Control::Continue
    }

    fn show(&mut self) {
        if !self.quiet {
            let mut out = std::io::stdout().lock();
            let new = &self.text.as_bytes()[self.shown..];
            self.broken = out.write_all(new).and_then(|()| out.flush()).err();
        }
        self.shown = self.text.len();
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        if !self.stopped {
            let mut rest = String::new();
            self.decoder.finish(&mut rest);
            self.stops.push(&rest, &mut self.text);
            self.stops.finish(&mut self.text);
        }
        if !self.quiet {
            self.text.push('\n');
            self.show();
            self.text.pop();
        }
        match self.broken.take() {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }
}
