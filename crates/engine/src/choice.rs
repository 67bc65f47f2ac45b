//! One of a request's texts while it grows: its tokens, its text, and whether it has ended.

use tessera_core::dist::{Key, Sampler, Sampling, log_sum_exp};
use tessera_core::text::{StopMatcher, StreamDecoder};
use tessera_core::{
    Constrained, Error, FinishReason, KvStore, Position, Result, Reveal, TokenId, Vocabulary,
};

use crate::autoregressive::Model;
use crate::cast::Cast;
use crate::pace::Pace;
use crate::request::{Completion, Request};
use crate::speculation::{Ahead, Speculation};

pub(crate) struct Choice {
    pub(crate) index: usize,
    /// Prompt and drawn tokens.
    history: Vec<TokenId>,
    prompt: usize,
    decoder: StreamDecoder,
    stops: StopMatcher,
    text: String,
    /// Where the text that the last step released begins.
    released: usize,
    /// Decoded bytes on their way to the stop matcher.
    piece: String,
    pub(crate) reason: Option<FinishReason>,
    pub(crate) speculation: Speculation,
    /// The text to follow, and what the model thought of it.
    forced: Vec<TokenId>,
    logprobs: Vec<f64>,
    pub(crate) constrained: Option<Constrained>,
}

/// What a request fixes for all its choices.
pub(crate) struct Bounds {
    pub(crate) limit: usize,
    pub(crate) max_tokens: usize,
    pub(crate) seed: u64,
    pub(crate) ignore_end: bool,
}

impl Choice {
    pub(crate) fn new(
        index: usize,
        request: &Request,
        room: usize,
        speculation: Speculation,
        constrained: Option<Constrained>,
    ) -> Result<Self> {
        let mut history = Vec::with_capacity(room.max(request.prompt.len()));
        history.extend_from_slice(&request.prompt);
        Ok(Self {
            index,
            prompt: history.len(),
            history,
            decoder: StreamDecoder::new(),
            stops: StopMatcher::new(request.stops.iter().map(String::as_str))?,
            text: String::new(),
            released: 0,
            piece: String::new(),
            reason: None,
            speculation,
            forced: request.forced.clone(),
            logprobs: Vec::new(),
            constrained,
        })
    }

    /// Commits the next token, unless it ends the choice.
    pub(crate) fn commit(&mut self, token: TokenId, vocabulary: &dyn Vocabulary, bounds: &Bounds) {
        self.released = self.text.len();
        if vocabulary.is_end(token) && !bounds.ignore_end {
            self.end(FinishReason::End { token });
            return;
        }
        self.history.push(token);
        self.piece.clear();
        self.decoder.push(vocabulary.bytes(token), &mut self.piece);
        if let Some(index) = self.stops.push(&self.piece, &mut self.text) {
            self.reason = Some(FinishReason::Stop { index });
        } else if self.constrained.as_ref().is_some_and(|c| c.guard.finished()) {
            self.end(FinishReason::Constraint);
        } else if self.made() >= bounds.max_tokens {
            self.end(FinishReason::Length);
        } else if self.history.len() >= bounds.limit {
            self.end(FinishReason::ContextFull);
        }
    }

    /// Guesses ahead and lays out the next pass's rows.
    pub(crate) fn prepare(
        &mut self,
        bounds: &Bounds,
        sampling: &Sampling,
        model: Model<'_>,
        cache: &mut dyn KvStore,
        position: Position,
    ) -> Result<()> {
        let room = bounds.limit - self.history.len();
        let ahead = Ahead {
            history: &self.history,
            prompt: self.prompt,
            position,
            remaining: room.min(bounds.max_tokens.saturating_sub(self.made())),
            seed: bounds.seed,
            choice: self.index as u32,
            sampling,
        };
        self.speculation.prepare(&ahead, model.backbone, cache, model.draft)
    }

    /// Chooses the next token, which must then be committed; see [`Speculation::choose`].
    pub(crate) fn choose(
        &mut self,
        reveal: &Reveal,
        segment: usize,
        sampler: &mut Sampler,
        vocabulary: &dyn Vocabulary,
        bounds: &Bounds,
    ) -> Result<(TokenId, bool)> {
        if let Some(&token) = self.forced.get(self.made()) {
            let logits = reveal.logits(segment, 0);
            let logit = f64::from(logits.get(token as usize).copied().unwrap_or_default());
            self.logprobs.push(logit - log_sum_exp(logits)?);
            return Ok((token, false));
        }
        let key = Key::new(bounds.seed, self.index as u32, self.history.len() as Position);
        let constrained = self.constrained.as_mut().map(|c| (c, vocabulary));
        let history = &self.history;
        let chosen =
            self.speculation.choose(reveal, segment, history, key, sampler, constrained)?;
        if let Some(constrained) = &mut self.constrained {
            constrained.guard.accept(chosen.0, vocabulary)?;
        }
        Ok(chosen)
    }

    /// Tells the drafter what became of its guesses; see [`Speculation::learn`].
    pub(crate) fn learn(&mut self, next: TokenId, reveal: &Reveal, segment: usize) -> Result<()> {
        self.speculation.learn(&self.history, next, reveal, segment)
    }

    /// Whether it goes on.
    pub(crate) fn is_open(&self) -> bool {
        self.reason.is_none()
    }

    /// Tokens of the prompt.
    pub(crate) fn prompt(&self) -> usize {
        self.prompt
    }

    /// Prompt and text so far.
    pub(crate) fn history(&self) -> &[TokenId] {
        &self.history
    }

    /// Ends the choice from outside; releases what was withheld.
    pub(crate) fn stop(&mut self, reason: FinishReason) {
        self.released = self.text.len();
        self.end(reason);
    }

    fn end(&mut self, reason: FinishReason) {
        self.reason = Some(reason);
        self.piece.clear();
        self.decoder.finish(&mut self.piece);
        match self.stops.push(&self.piece, &mut self.text) {
            Some(index) => self.reason = Some(FinishReason::Stop { index }),
            None => self.stops.finish(&mut self.text),
        }
    }

    /// Text released by the last step.
    pub(crate) fn fresh(&self) -> &str {
        &self.text[self.released..]
    }

    /// Tokens committed so far.
    pub(crate) fn made(&self) -> usize {
        self.history.len() - self.prompt
    }

    /// Tokens committed from the `from`-th on.
    pub(crate) fn tokens(&self, from: usize) -> &[TokenId] {
        &self.history[self.prompt + from..]
    }

    /// A copy that grows apart from it, as the particle of this index: same text, a constraint state
    /// of its own, nothing that drafts.
    pub(crate) fn fork(&self, index: usize, request: &Request) -> Result<Self> {
        let constrained = match &self.constrained {
            None => None,
            Some(own) => Some(Cast::new(&request.recipe)?.constrained(own.guard.fork())),
        };
        Ok(Self {
            index,
            history: self.history.clone(),
            prompt: self.prompt,
            decoder: self.decoder.clone(),
            stops: self.stops.clone(),
            text: self.text.clone(),
            released: self.released,
            piece: String::new(),
            reason: self.reason,
            speculation: Speculation::new(None, None, Pace::new(None)),
            constrained,
            forced: Vec::new(),
            logprobs: Vec::new(),
        })
    }

    /// Runs `part` on the text so far and its constraint.
    pub(crate) fn with_constrained<R>(
        &mut self,
        part: impl FnOnce(&[TokenId], &mut Constrained) -> Result<R>,
    ) -> Result<R> {
        match &mut self.constrained {
            Some(constrained) => part(&self.history, constrained),
            None => Err(Error::constraint("particles need one")),
        }
    }

    /// Takes a token of a particle; only an end token ends it.
    pub(crate) fn append(&mut self, token: TokenId, vocabulary: &dyn Vocabulary) {
        if vocabulary.is_end(token) {
            return self.end(FinishReason::End { token });
        }
        self.history.push(token);
        self.piece.clear();
        self.decoder.push(vocabulary.bytes(token), &mut self.piece);
        self.text.push_str(&self.piece);
    }

    /// Makes all of the text fresh.
    pub(crate) fn release(&mut self) {
        self.released = 0;
    }

    pub(crate) fn finish(&mut self) -> Result<Completion> {
        let reason = self.reason.unwrap_or(FinishReason::Cancelled);
        let complete = match &mut self.constrained {
            None => None,
            Some(constrained) => Some(match reason {
                FinishReason::End { .. } | FinishReason::Constraint => true,
                // The text was cut before the stop string: who knows what is left.
                FinishReason::Stop { .. } => false,
                _ => constrained.guard.complete()?,
            }),
        };
        let tokens = self.history.split_off(self.prompt);
        let (text, logprobs) = (std::mem::take(&mut self.text), std::mem::take(&mut self.logprobs));
        Ok(Completion { tokens, text, reason, logprobs, complete })
    }
}
