//! What happens while text is made, as one stream of typed events.
//!
//! A progress bar, a JSON stream, server-sent events and metrics are listeners of this one stream;
//! no loop prints or counts for any of them.

use serde::Serialize;

use crate::{Position, TokenId};

/// Something that happened in a loop. Borrowed, so that making one costs nothing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event<'a> {
    /// A piece of the prompt has been computed.
    Prefill {
        /// Prompt tokens whose rows are in the cache.
        done: usize,
        /// Prompt tokens in all.
        total: usize,
    },
    /// The whole prompt is in the cache.
    PrefillDone {
        /// Prompt tokens in all.
        tokens: usize,
        /// Those of them that were already in the cache.
        reused: usize,
        /// Wall-clock time since the run began.
        seconds: f64,
    },
    /// One pass of a decoding loop.
    Step {
        /// Rows computed, over all choices; 0 for tokens that took no pass of their own.
        rows: usize,
        /// Tokens it committed, over all choices.
        committed: usize,
    },
    /// A draft was judged; its accepted guesses are reported as committed, one by one.
    Judged {
        /// The choice, from 0.
        choice: usize,
        /// Guesses computed.
        drafted: usize,
        /// Guesses that became text.
        accepted: usize,
        /// Deepest guess computed.
        depth: usize,
    },
    /// Rows left a cache.
    Evicted {
        /// The choice, from 0; `None` for the prompt, which all of them share.
        choice: Option<usize>,
        /// Rows held before, summed over layers and key heads.
        held: usize,
        /// Rows held after.
        kept: usize,
        /// Bytes of the cache before, spare room included.
        bytes_before: usize,
        /// Bytes after.
        bytes_after: usize,
    },
    /// A canvas begins with tokens that are neither given nor written by a step: a rough answer.
    Primed {
        /// The choice, from 0.
        choice: usize,
        /// Positions of the tokens (the prompt's first is 0).
        positions: &'a [Position],
        /// The tokens.
        tokens: &'a [TokenId],
        /// Length of the canvas.
        length: usize,
    },
    /// A denoising step has changed a canvas.
    Denoised {
        /// The choice, from 0.
        choice: usize,
        /// The step, from 0.
        step: u32,
        /// Positions that it filled (the prompt's first is 0).
        positions: &'a [Position],
        /// Their tokens.
        tokens: &'a [TokenId],
        /// Positions that it masked again.
        remasked: &'a [Position],
        /// Length of the canvas after it.
        length: usize,
        /// Masks left.
        masks: usize,
        /// `-sum ln p` of the tokens it filled, `p` at temperature 1 with nothing truncated. Over a
        /// run these sum to minus the logarithm of the probability of the path.
        nats: f64,
    },
    /// Something that a method has counted, told when a choice has ended.
    Counted {
        /// The choice, from 0.
        choice: usize,
        /// The method's slug.
        method: &'static str,
        /// What was counted, in a few words.
        name: &'static str,
        /// How much of it.
        value: f64,
    },
    /// Tokens became part of a choice; text became certain.
    Committed {
        /// The choice, from 0.
        choice: usize,
        /// The tokens, in order; empty when only withheld text is released.
        tokens: &'a [TokenId],
        /// Text released with them. It may be empty: the beginning of a character or of a stop
        /// string is withheld until it is known what it is.
        text: &'a str,
    },
    /// A choice has ended.
    Finished {
        /// The choice, from 0.
        choice: usize,
        /// Why.
        reason: FinishReason,
    },
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// A stop string was completed; the text ends before it.
    Stop {
        /// Its index in the request's list.
        index: usize,
    },
    /// The model ended its text.
    End {
        /// The end token it chose.
        token: TokenId,
    },
    /// The constraint is met and allows nothing more.
    Constraint,
    /// As many tokens as were asked for.
    Length,
    /// The listener or the cancel flag stopped it.
    Cancelled,
    /// No room for another token in the context.
    ContextFull,
}

impl FinishReason {
    /// A word for people: `stop`, `end`, `constraint met`, `length`, `cancelled`, `context full`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Stop { .. } => "stop",
            Self::End { .. } => "end",
            Self::Constraint => "constraint met",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::ContextFull => "context full",
        }
    }
}

/// A listener's answer to an event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    #[default]
    Continue,
    /// Stop at once; every open choice ends with [`FinishReason::Cancelled`].
    Stop,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_serialise_flat_with_their_name_first() {
        let line = |e: Event<'_>| serde_json::to_string(&e).unwrap();
        let committed = Event::Committed { choice: 0, tokens: &[3, 4], text: "a\"b" };
        assert_eq!(
            line(committed),
            r#"{"event":"committed","choice":0,"tokens":[3,4],"text":"a\"b"}"#
        );
        let finished = Event::Finished { choice: 1, reason: FinishReason::Stop { index: 2 } };
        assert_eq!(
            line(finished),
            r#"{"event":"finished","choice":1,"reason":{"reason":"stop","index":2}}"#
        );
    }
}
