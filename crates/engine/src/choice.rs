//! One of a request's texts while it grows: its tokens, its text, and whether it has ended.

use tessera_core::dist::{Key, Sampler};
use tessera_core::text::{StopMatcher, StreamDecoder};
use tessera_core::{FinishReason, Position, Result, TokenId, Vocabulary};

use crate::request::{Completion, Request};

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
    /// The last token and its position: the next pass's row.
    pub(crate) row: ([TokenId; 1], [Position; 1]),
}

/// What a request fixes for all its choices.
pub(crate) struct Bounds {
    pub(crate) limit: usize,
    pub(crate) max_tokens: usize,
    pub(crate) seed: u64,
    pub(crate) ignore_end: bool,
}

impl Choice {
    pub(crate) fn new(index: usize, request: &Request, room: usize) -> Result<Self> {
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
            row: ([0], [0]),
        })
    }

    /// Draws the next token from `logits` and commits it, unless it ends the choice.
    pub(crate) fn step(
        &mut self,
        logits: &[f32],
        sampler: &mut Sampler,
        vocabulary: &dyn Vocabulary,
        bounds: &Bounds,
    ) -> Result<()> {
        let position = self.history.len() as Position;
        let key = Key::new(bounds.seed, self.index as u32, position);
        let token = sampler.draw(logits, &self.history, key)?;
        self.released = self.text.len();
        if vocabulary.is_end(token) && !bounds.ignore_end {
            self.end(FinishReason::End { token });
            return Ok(());
        }
        self.history.push(token);
        self.row = ([token], [position]);
        self.piece.clear();
        self.decoder.push(vocabulary.bytes(token), &mut self.piece);
        if let Some(index) = self.stops.push(&self.piece, &mut self.text) {
            self.reason = Some(FinishReason::Stop { index });
        } else if self.made() >= bounds.max_tokens {
            self.end(FinishReason::Length);
        } else if self.history.len() >= bounds.limit {
            self.end(FinishReason::ContextFull);
        }
        Ok(())
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

    pub(crate) fn finish(mut self) -> Completion {
        Completion {
            tokens: self.history.split_off(self.prompt),
            text: self.text,
            reason: self.reason.unwrap_or(FinishReason::Cancelled),
        }
    }
}
