//! Flags that several commands share, and what they become.

use std::io::Write;
use std::path::Path;

use clap::Args;
use tessera_measure::tuned::{Tuned, data_dir};
use tessera_runtime::{Backend, Encoder, METHODS, Options, Recipe, Request, Sampling, Session};

use crate::Globals;
use crate::commands::store;
use crate::commands::tune::typed;
use crate::constraints::{ConstraintFlags, method_call};
use crate::failure::BadUsage;
use crate::pull_progress::PullProgress;
use crate::slow_bar::SlowBar;

/// How the model is run.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelFlags {
    /// Most tokens of prompt and answer together (default: what the model was trained for).
    #[arg(
        short = 'c',
        long,
        value_name = "TOKENS",
        env = "TESSERA_CONTEXT",
        allow_negative_numbers = true
    )]
    pub(crate) context: Option<usize>,
    /// Threads (default: all cores).
    #[arg(
        short = 't',
        long,
        value_name = "N",
        env = "TESSERA_THREADS",
        allow_negative_numbers = true,
        default_value_t = 0,
        hide_default_value = true
    )]
    pub(crate) threads: usize,
    /// What computes: own kernels, or the candle library (in builds with `--features candle`).
    #[arg(long, value_enum, env = "TESSERA_BACKEND", default_value_t = BackendName::Cpu)]
    pub(crate) backend: BackendName,
}

/// A backend, as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum BackendName {
    Cpu,
    Candle,
}

impl ModelFlags {
    /// Finds or fetches the model and, if one is given, the draft model, and loads them, with
    /// progress on stderr.
    pub(crate) fn open(
        &self,
        globals: &Globals,
        model: &str,
        draft_model: Option<&str>,
    ) -> anyhow::Result<Session> {
        self.open_as(globals, model, &mut |_, _| Ok(draft_model.map(str::to_owned)))
    }

    /// [`ModelFlags::open`] with what `tessera tune` found for the model, put into `settings`: the
    /// recipe where no method was asked for, the cost curve in any case.
    pub(crate) fn open_tuned(
        &self,
        globals: &Globals,
        model: &str,
        generate: &GenerateFlags,
        settings: &mut Settings,
    ) -> anyhow::Result<Session> {
        self.open_as(globals, model, &mut |name, path| {
            let given = generate.draft_model.clone();
            let Ok(data) = data_dir(|name| std::env::var_os(name)) else { return Ok(given) };
            let tuned = match self.backend {
                BackendName::Cpu => Tuned::load(&data, name, path, self.threads),
                BackendName::Candle => Ok(None),
            };
            let tuned = match tuned {
                Ok(Some(tuned)) => tuned,
                Ok(None) => return Ok(given),
                Err(error) => {
                    // No reason not to answer: the plain run needs no tuning.
                    let _ = writeln!(std::io::stderr(), "note: {error}");
                    return Ok(given);
                }
            };
            if !generate.is_open() {
                let recipe = std::mem::take(&mut settings.recipe);
                settings.recipe = recipe.with_curve(tuned.curve)?;
                return Ok(given);
            }
            settings.recipe = tuned.recipe()?;
            if !settings.recipe.is_plain() && !globals.quiet && !globals.json {
                let _ = writeln!(
                    std::io::stderr(),
                    "[{}: tuned here on {}, {:.2}x; --method none turns it off]",
                    typed(&tuned.methods),
                    tuned.date,
                    tuned.speedup,
                );
            }
            Ok(given.or(tuned.draft_model))
        })
    }

    /// Finds or fetches an encoder and loads it.
    pub(crate) fn open_encoder(&self, globals: &Globals, name: &str) -> anyhow::Result<Encoder> {
        let mut pull = PullProgress::new(name, globals.quiet);
        let located = store(globals)?.ensure_with(name, &mut |event| pull.hear(event))?;
        if located.entry.as_ref().is_some_and(|entry| !entry.makes_embeddings()) {
            let what = format!(
                "embedding-model = {name}: writes text; its own embeddings are means of its last hidden \
                 states, without this flag. Next: all-minilm"
            );
            return Err(BadUsage(what).into());
        }
        Ok(Encoder::open(&located.name, &located.path, self.threads)?)
    }

    /// Opens the model; `draft` is told its name and file and says which draft model it needs.
    fn open_as(
        &self,
        globals: &Globals,
        model: &str,
        draft: &mut dyn FnMut(&str, &Path) -> anyhow::Result<Option<String>>,
    ) -> anyhow::Result<Session> {
        let store = store(globals)?;
        let find = |name: &str| {
            let mut pull = PullProgress::new(name, globals.quiet);
            let located = store.ensure_with(name, &mut |event| pull.hear(event))?;
            if located.entry.as_ref().is_some_and(|entry| entry.makes_embeddings()) {
                let what = format!(
                    "model = {name}: makes embeddings and writes no text. Next: `tessera serve \
                     --embedding-model {name}`, or another model"
                );
                return Err(BadUsage(what).into());
            }
            let bytes = std::fs::metadata(&located.path).map_or(0, |m| m.len());
            anyhow::Ok((located, bytes))
        };
        let (located, bytes) = find(model)?;
        let draft_model = draft(&located.name, &located.path)?;
        let draft_bytes = draft_model.as_deref().map_or(anyhow::Ok(0), |name| Ok(find(name)?.1))?;
        let options = Options {
            threads: self.threads,
            backend: match self.backend {
                BackendName::Cpu => Backend::Cpu,
                BackendName::Candle => Backend::Candle,
            },
            context: self.context,
            offline: globals.offline,
            draft_model,
        };
        let bar = SlowBar::new("loading", bytes + draft_bytes, globals.quiet);
        Ok(Session::load(&located.name, &located.path, &options, &|done| bar.at(done))?)
    }
}

/// How tokens are chosen. Applied in this order: penalties, top-k, top-p, min-p, temperature.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingFlags {
    /// Sharper below 1, flatter above; 0 always takes the most probable token.
    #[arg(long, visible_alias = "temp", env = "TESSERA_TEMPERATURE", value_name = "X",
        allow_negative_numbers = true, default_value_t = Sampling::default().temperature)]
    temperature: f32,
    /// Only the K most probable tokens; 0 for all (default: 40, and 0 under a constraint).
    #[arg(long, env = "TESSERA_TOP_K", value_name = "K", allow_negative_numbers = true)]
    top_k: Option<usize>,
    /// Only the most probable tokens that together reach P; 1 for all (default: 0.95, and 1 under a
    /// constraint).
    #[arg(long, env = "TESSERA_TOP_P", value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Only tokens at least P times as probable as the most probable one; 0 for all (default: 0.05,
    /// and 0 under a constraint).
    #[arg(long, env = "TESSERA_MIN_P", value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Weakens tokens of the last `--penalty-window`: divides or multiplies their logit; 1 is off.
    #[arg(long, env = "TESSERA_REPEAT_PENALTY", value_name = "X", allow_negative_numbers = true,
        default_value_t = Sampling::default().repeat_penalty)]
    repeat_penalty: f32,
    /// Subtracted from the logit of tokens in the window; 0 is off.
    #[arg(long, env = "TESSERA_PRESENCE_PENALTY", value_name = "X", allow_negative_numbers = true,
        default_value_t = Sampling::default().presence_penalty)]
    presence_penalty: f32,
    /// Subtracted once per occurrence in the window; 0 is off.
    #[arg(long, env = "TESSERA_FREQUENCY_PENALTY", value_name = "X", allow_negative_numbers = true,
        default_value_t = Sampling::default().frequency_penalty)]
    frequency_penalty: f32,
    /// How many of the last tokens the penalties look at.
    #[arg(long, env = "TESSERA_PENALTY_WINDOW", value_name = "TOKENS", allow_negative_numbers = true,
        default_value_t = Sampling::default().penalty_window)]
    penalty_window: usize,
    /// Equal seeds give equal text (default: a new one each time, printed with the statistics).
    #[arg(short, long, env = "TESSERA_SEED", value_name = "N", allow_negative_numbers = true)]
    seed: Option<u64>,
}

impl SamplingFlags {
    /// The settings, checked. Truncations apply before a constraint, and could leave it nothing: by
    /// default there are none then.
    pub(crate) fn sampling(&self, constrained: bool) -> tessera_core::Result<Sampling> {
        let base = if constrained { Sampling::neutral() } else { Sampling::default() };
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            repeat_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            penalty_window: self.penalty_window,
        };
        sampling.validate().map(|()| sampling)
    }

    /// The seed given, or one from the clock: short, so that it is easily typed again.
    pub(crate) fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(0, |t| (t.as_nanos() / 1000 % 1_000_000) as u64)
        })
    }
}

/// What is generated, and with which methods.
#[derive(Debug, Clone, Args)]
pub(crate) struct GenerateFlags {
    /// Most tokens to make (default: 1024). Of a model that fills masks, the masks of the canvas
    /// (default: 128, or the length of the template).
    #[arg(
        short = 'n',
        long = "tokens",
        value_name = "TOKENS",
        env = "TESSERA_TOKENS",
        allow_negative_numbers = true
    )]
    pub(crate) tokens: Option<usize>,
    /// Ends the answer where this text appears; may be given several times.
    #[arg(long, value_name = "TEXT", env = "TESSERA_STOP")]
    pub(crate) stop: Vec<String>,
    /// Says who the model is and how it answers.
    #[arg(long, value_name = "TEXT", env = "TESSERA_SYSTEM")]
    pub(crate) system: Option<String>,
    /// A method, as `slug` or `slug:key=value,...`; may be given several times (`tessera methods`
    /// lists them; `none` is the plain run). Without one, what `tessera tune` found is used.
    #[arg(long, value_name = "METHOD", env = "TESSERA_METHOD")]
    pub(crate) method: Vec<String>,
    /// A smaller model with the same vocabulary, for methods that guess with one (`--method
    /// draft-model`); named as the model is.
    #[arg(long, value_name = "MODEL")]
    pub(crate) draft_model: Option<String>,
    #[command(flatten)]
    pub(crate) constraints: ConstraintFlags,
    #[command(flatten)]
    pub(crate) sampling: SamplingFlags,
}

impl GenerateFlags {
    /// Whether no method was asked for, so that what `tessera tune` found may be used.
    pub(crate) fn is_open(&self) -> bool {
        self.method.is_empty() && !self.constraints.any()
    }

    /// Checks all that can be checked without a model.
    pub(crate) fn settings(&self) -> tessera_core::Result<Settings> {
        if self.tokens == Some(0) {
            return Err(tessera_core::Error::setting("tokens", "0", AT_LEAST_ONE));
        }
        tessera_core::text::StopMatcher::new(self.stop.iter().map(String::as_str))?;
        let calls = self.method.iter().map(|text| method_call(text));
        let mut calls = calls.collect::<tessera_core::Result<Vec<_>>>()?;
        calls.extend(self.constraints.calls()?);
        let mut recipe = Recipe::resolve(METHODS, &calls)?;
        if let Some(predicate) = self.constraints.predicate()? {
            recipe = recipe.with_constraint(predicate)?;
        }
        let sampling = self.sampling.sampling(recipe.is_constrained())?;
        match (recipe.members().iter().find(|m| m.entry.needs.draft_model), &self.draft_model) {
            (Some(member), None) => {
                let what = "needs a draft model. Next: --draft-model NAME, a smaller model with \
                            the same vocabulary";
                let method = member.entry.slug.to_owned();
                return Err(tessera_core::Error::Method { method, what: what.to_owned() });
            }
            (None, Some(name)) => {
                let rule = "left out, as no method uses it. Next: add --method draft-model";
                return Err(tessera_core::Error::setting("draft-model", name, rule));
            }
            _ => {}
        }
        Ok(Settings {
            sampling,
            seed: self.sampling.seed(),
            tokens: self.tokens.unwrap_or(TOKENS),
            tokens_given: self.tokens.is_some(),
            stops: self.stop.clone(),
            recipe,
        })
    }
}

/// Most tokens to make if nobody says.
const TOKENS: usize = 1024;

/// What `-n` and `/set tokens` take.
pub(crate) const AT_LEAST_ONE: &str = "at least 1";

/// The checked settings of a generation.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) sampling: Sampling,
    pub(crate) seed: u64,
    pub(crate) tokens: usize,
    /// Whether somebody said so.
    pub(crate) tokens_given: bool,
    pub(crate) stops: Vec<String>,
    pub(crate) recipe: Recipe,
}

impl Settings {
    /// Puts the settings into a request to `session`.
    pub(crate) fn apply(&self, session: &Session, request: &mut Request) {
        request.sampling = self.sampling;
        request.seed = self.seed;
        let own = session.filling().is_some() && !self.tokens_given;
        request.max_tokens = (!own).then_some(self.tokens);
        request.stops.clone_from(&self.stops);
        request.recipe = self.recipe.clone();
    }
}
