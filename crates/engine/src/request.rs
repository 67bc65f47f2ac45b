//! What is asked of a loop, and what it answers.

use serde::Serialize;
use tessera_core::dist::Sampling;
use tessera_core::entry::{Place, Role};
use tessera_core::{ConstraintStats, Error, FinishReason, ModelSpec, Position, Result, TokenId};

use crate::recipe::Recipe;

/// Prompt rows computed per pass: large enough for the kernels' best rate, small enough that a
/// cancelled run stops and a progress bar moves.
pub const CHUNK: usize = 512;

/// Most choices of one request.
pub const MAX_CHOICES: usize = 64;

/// A request for text.
#[derive(Debug, Clone)]
pub struct Request {
    /// The prompt.
    pub prompt: Vec<TokenId>,
    /// Most tokens to make, per choice; `None` goes on until the model ends or the context is full.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The request's seed: equal requests with equal seeds give equal text.
    pub seed: u64,
    /// Texts that end a choice; they are not part of it.
    pub stops: Vec<String>,
    /// How many texts to make, 1 to [`MAX_CHOICES`].
    pub choices: usize,
    /// Most tokens, prompt included; `None` for what the model was trained for.
    pub context: Option<usize>,
    /// Go on after the model's end token.
    pub ignore_end: bool,
    /// Prompt rows per pass. Has no influence on the result.
    pub chunk: usize,
    /// The methods that take part.
    pub recipe: Recipe,
    /// Text to follow instead of drawing it: its tokens are committed whatever the model says, and
    /// what the model (with the recipe) thought of each is in [`Completion::logprobs`]. Usually empty.
    pub forced: Vec<TokenId>,
    /// What is known of the answer beforehand; for models that fill masks.
    pub canvas: Known,
}

/// What is known of an answer before it is made, where masks are filled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Tokens that stand in the answer, by their place in it (0 is the first after the prompt): a
    /// template whose holes are filled.
    pub template: Vec<(Position, TokenId)>,
    /// A rough answer, for methods that start from one.
    pub prior: Vec<TokenId>,
}

impl Known {
    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.template.is_empty() && self.prior.is_empty()
    }
}

impl Request {
    /// A request with the default settings and seed 0.
    pub fn new(prompt: Vec<TokenId>) -> Self {
        Self {
            prompt,
            max_tokens: None,
            sampling: Sampling::default(),
            seed: 0,
            stops: Vec::new(),
            choices: 1,
            context: None,
            ignore_end: false,
            chunk: CHUNK,
            recipe: Recipe::plain(),
            forced: Vec::new(),
            canvas: Known::default(),
        }
    }

    /// Checks the request against the model and returns how many tokens fit its context.
    ///
    /// # Errors
    /// [`Error::Setting`] naming what is impossible; [`Error::ContextFull`] if the prompt leaves no
    /// room for a token.
    pub fn limit(&self, spec: &ModelSpec) -> Result<usize> {
        self.sampling.validate()?;
        if self.prompt.is_empty() {
            return Err(Error::setting("prompt", "empty", "at least one token: write something"));
        }
        if !(1..=MAX_CHOICES).contains(&self.choices) {
            return Err(Error::setting("choices", self.choices, "between 1 and 64"));
        }
        if self.chunk == 0 {
            return Err(Error::setting("chunk", 0, "at least 1"));
        }
        if !self.forced.is_empty() {
            let drafts = |role: &Place| role.role == Role::Draft;
            let member = self.recipe.members().iter().find(|m| m.entry.places.iter().any(drafts));
            if let Some(member) = member {
                let value = format!("given with `{}`", member.entry.slug);
                return Err(Error::setting("forced", value, "a recipe that guesses nothing"));
            }
            if let Some(&bad) = self.forced.iter().find(|&&t| t as usize >= spec.vocab) {
                return Err(Error::setting("forced", bad, "tokens of the model's vocabulary"));
            }
        }
        let limit = match self.context {
            None => spec.context,
            Some(0) => {
                return Err(Error::setting("context", 0, "at least 1 token"));
            }
            Some(asked) if asked > spec.context => {
                let value = format!("{asked} (the model was trained for {})", spec.context);
                return Err(Error::setting("context", value, "at most the model's own context"));
            }
            Some(asked) => asked,
        };
        if self.ignore_end && self.recipe.is_constrained() {
            let rule = "left out under a constraint, which says where the text may end";
            return Err(Error::setting("ignore-end", true, rule));
        }
        let needed = self.prompt.len() + usize::from(self.max_tokens != Some(0));
        if needed > limit {
            return Err(Error::ContextFull { needed, limit, trained: spec.context });
        }
        Ok(limit)
    }
}

/// One text made for a request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Completion {
    /// Its tokens, without an end token.
    pub tokens: Vec<TokenId>,
    /// Its text, up to the stop string if one was found.
    pub text: String,
    /// Why it ended.
    pub reason: FinishReason,
    /// Natural logarithm of the probability that the model gave each forced token, before
    /// truncations and at temperature 1; empty unless the request forces a text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<f64>,
    /// Whether the constraint is met; `None` without one. False for a text that ended in the middle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub complete: Option<bool>,
}

/// What a request cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were in the cache already.
    pub reused_tokens: usize,
    /// Wall-clock time of the prompt's passes.
    pub prefill_seconds: f64,
    /// Tokens drawn, over all choices.
    pub drawn_tokens: usize,
    /// Tokens drawn from the decoding passes: all but the first of each choice.
    pub decode_tokens: usize,
    /// Wall-clock time of decoding, without the time spent in the listener.
    pub decode_seconds: f64,
    /// Passes, prompt included.
    pub passes: usize,
    /// Rows computed, prompt included.
    pub rows: usize,
    /// Guesses that were computed.
    pub drafted_tokens: usize,
    /// Those of them that became text.
    pub accepted_tokens: usize,
    /// Wall-clock time spent guessing; part of `decode_seconds`.
    pub draft_seconds: f64,
    /// Wall-clock time spent deciding what to forget, and forgetting it; part of `prefill_seconds`
    /// and `decode_seconds`.
    pub reduce_seconds: f64,
    /// Cache rows that prompt and texts would hold, summed over layers, key heads and choices.
    pub whole_rows: usize,
    /// Those of them that the caches hold at the end; the others were evicted.
    pub kept_rows: usize,
    /// Cache rows that lay before the decoding passes, summed over layers, key heads, choices and
    /// passes; a pass's own rows left out.
    pub held_rows: u64,
    /// Those of them that a policy did not rule out of being read.
    pub read_rows: u64,
    /// Bytes of all caches at the end, spare room included.
    pub cache_bytes: usize,
    /// Largest such number seen: before an eviction, or at the end.
    pub peak_cache_bytes: usize,
    /// What the constraint was asked, over all choices; `None` without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constraint: Option<ConstraintStats>,
    /// What filling masks took; `None` for a model that writes from left to right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denoised: Option<Denoised>,
}

/// What filling masks took, over all choices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Denoised {
    /// Steps that wrote something. A policy that looks ahead makes more passes than steps.
    pub rounds: usize,
    /// `-sum ln p` of all tokens written, at temperature 1 with nothing truncated: at most `rounds`
    /// times `most_nats`.
    pub nats: f64,
    /// The most nats that one round wrote.
    pub most_nats: f64,
    /// Passes of the guide; not among [`Stats::passes`].
    pub guide_passes: usize,
    /// Rows of these passes.
    pub guide_rows: usize,
}

impl Stats {
    /// Prompt tokens computed per second; 0 if there was nothing to compute.
    pub fn prefill_rate(&self) -> f64 {
        rate(self.prompt_tokens - self.reused_tokens, self.prefill_seconds)
    }

    /// Share of the cache's rows that was evicted; 0 if nothing was.
    pub fn forgotten(&self) -> f64 {
        match self.whole_rows {
            0 => 0.0,
            whole => 1.0 - self.kept_rows.min(whole) as f64 / whole as f64,
        }
    }

    /// Share of the cached rows that decoding passes read; 1 if nothing was decoded.
    pub fn read(&self) -> f64 {
        if self.held_rows == 0 { 1.0 } else { self.read_rows as f64 / self.held_rows as f64 }
    }

    /// Tokens decoded per second; 0 if there were none.
    pub fn decode_rate(&self) -> f64 {
        rate(self.decode_tokens, self.decode_seconds)
    }
}

fn rate(count: usize, seconds: f64) -> f64 {
    if count == 0 || seconds <= 0.0 { 0.0 } else { count as f64 / seconds }
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The texts, by choice.
    pub choices: Vec<Completion>,
    /// What they cost.
    pub stats: Stats,
    /// What the particle loop made; the choice is one of them, drawn by weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub population: Option<Population>,
}

/// One text of the particle loop.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Particle {
    /// The text.
    #[serde(flatten)]
    pub completion: Completion,
    /// Its share of all weights.
    pub weight: f64,
}

/// What the particle loop made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Population {
    /// All texts that have a weight, dead ones left out.
    pub particles: Vec<Particle>,
    /// Texts that grew together, the dead ones included.
    pub count: usize,
    /// The logarithm of the mean weight: an estimate of the probability that a text of the model
    /// meets the constraint. The mean weight itself is unbiased.
    pub log_probability: f64,
    /// The effective number of texts at the end: `(sum W)^2 / sum W^2`.
    pub effective: f64,
    /// How often ancestors were drawn.
    pub resamplings: usize,
}
