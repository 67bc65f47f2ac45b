//! What the worker tells of a request, piece by piece, and how the engine's events become pieces.

use serde_json::{Value, json};
use tessera_measure::record::Record;
use tessera_runtime::{Event, FinishReason, Outcome, Session};

/// How a piece of text came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// Drawn from the model's own pass.
    Drawn,
    /// Guessed, and accepted by the model.
    Guessed,
    /// Written into a canvas.
    Filled,
}

impl How {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Drawn => "drawn",
            Self::Guessed => "guessed",
            Self::Filled => "filled",
        }
    }
}

/// A change of a canvas.
#[derive(Debug)]
pub(crate) struct Canvas {
    pub(crate) choice: usize,
    /// The step, from 0; `None` for a rough answer that was there before the first.
    pub(crate) step: Option<u32>,
    /// Positions filled, with their tokens.
    pub(crate) filled: Vec<(u32, u32)>,
    /// Positions masked again.
    pub(crate) masked: Vec<u32>,
    /// Its length.
    pub(crate) length: usize,
}

impl Canvas {
    /// As a stream tells it: places count from the answer's first token, `prompt` tokens into the canvas.
    pub(crate) fn told(&self, session: &Session, prompt: usize) -> Value {
        let place = |at: u32| (at as usize).saturating_sub(prompt);
        let spelt = |token| String::from_utf8_lossy(session.vocabulary().bytes(token)).into_owned();
        let filled: Vec<Value> =
            self.filled.iter().map(|&(at, token)| json!([place(at), spelt(token)])).collect();
        let masked: Vec<usize> = self.masked.iter().map(|&at| place(at)).collect();
        json!({
            "index": self.choice, "step": self.step, "filled": filled, "masked": masked,
            "length": self.length.saturating_sub(prompt),
        })
    }
}

/// What becomes of a request, piece by piece.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Text of a choice, and of how many tokens.
    Text { choice: usize, text: String, tokens: usize, how: How },
    /// A canvas has changed.
    Canvas(Canvas),
    /// A choice has ended.
    Ended { choice: usize, reason: FinishReason },
    /// All of it.
    Done(Box<Outcome>),
    /// So many of so many runs of a check are done.
    Checked { done: usize, of: usize },
    /// What a check found.
    Record(Box<Record>),
    /// It took longer than a request may.
    Late,
    /// It failed.
    Failed(tessera_runtime::Error),
    /// A check could not be made.
    Unchecked(tessera_measure::Error),
    /// The model was changed.
    Swapped,
    /// The other model could not be loaded.
    Unloaded,
}

/// Adds what an event means to the pieces of this step. Of the texts that a step made for a choice the
/// first were guesses if the model judged some: that is told after them.
pub(crate) fn note(pieces: &mut Vec<Piece>, event: Event<'_>, made: How) {
    match event {
        Event::Committed { choice, tokens, text } if !tokens.is_empty() || !text.is_empty() => {
            let (text, tokens) = (text.to_owned(), tokens.len());
            pieces.push(Piece::Text { choice, text, tokens, how: made });
        }
        Event::Judged { choice, accepted, .. } => {
            let mut left = accepted;
            for piece in pieces {
                match piece {
                    Piece::Text { choice: own, how, tokens, .. } if *own == choice && left > 0 => {
                        *how = How::Guessed;
                        left = left.saturating_sub(*tokens);
                    }
                    _ => {}
                }
            }
        }
        Event::Denoised { choice, step, positions, tokens, remasked, length, .. } => {
            let filled = positions.iter().copied().zip(tokens.iter().copied()).collect();
            let (step, masked) = (Some(step), remasked.to_vec());
            pieces.push(Piece::Canvas(Canvas { choice, step, filled, masked, length }));
        }
        Event::Primed { choice, positions, tokens, length } => {
            let filled = positions.iter().copied().zip(tokens.iter().copied()).collect();
            let (step, masked) = (None, Vec::new());
            pieces.push(Piece::Canvas(Canvas { choice, step, filled, masked, length }));
        }
        Event::Finished { choice, reason } => pieces.push(Piece::Ended { choice, reason }),
        _ => {}
    }
}
