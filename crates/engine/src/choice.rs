//! One of a request's texts while it grows: its tokens, its text, and whether it has ended.

use tessera_core::dist::{Key, Sampler, Sampling};
use tessera_core::text::{StopMatcher, StreamDecoder};
use tessera_core::{FinishReason, KvStore, Position, Result, Reveal, TokenId, Vocabulary};

use crate::autoregressive::Model;
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

    /// Chooses the next token; see [`Speculation::choose`].
    pub(crate) fn choose(
        &mut self,
        reveal: &Reveal,
        segment: usize,
        sampler: &mut Sampler,
        bounds: &Bounds,
    ) -> Result<(TokenId, bool)> {
        let key = Key::new(bounds.seed, self.index as u32, self.history.len() as Position);
        self.speculation.choose(reveal, segment, &self.history, key, sampler)
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

    pub(crate) fn finish(&mut self) -> Completion {
        Completion {
            tokens: self.history.split_off(self.prompt),
            text: std::mem::take(&mut self.text),
            reason: self.reason.unwrap_or(FinishReason::Cancelled),
        }
    }
}
