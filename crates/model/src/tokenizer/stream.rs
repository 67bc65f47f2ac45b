//! From a stream of tokens to a stream of text that is valid UTF-8 at every step.

use super::Tokenizer;

/// Turns token bytes into text pieces. A character split over tokens is held back until it is
/// whole; bytes that can no longer become one turn into U+FFFD, as
/// [`String::from_utf8_lossy`] would make of the whole.
#[derive(Debug, Clone, Default)]
pub struct StreamDecoder {
    /// The start of a character, at most three bytes, and what follows while it is looked at.
    pending: Vec<u8>,
    piece: String,
}

impl StreamDecoder {
    /// A decoder at the start of a text.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one token and returns the text that is certain now, perhaps none.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> &str {
        self.push_bytes(tokenizer.token_bytes(id))
    }

    /// As [`Self::push`], for bytes.
    pub fn push_bytes(&mut self, bytes: &[u8]) -> &str {
        self.piece.clear();
        self.pending.extend_from_slice(bytes);
        let mut held = 0;
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            self.piece.push_str(chunk.valid());
            let bad = chunk.invalid();
            if chunks.peek().is_none() && may_grow(bad) {
                held = bad.len();
            } else if !bad.is_empty() {
                self.piece.push(char::REPLACEMENT_CHARACTER);
            }
        }
        let done = self.pending.len() - held;
        self.pending.drain(..done);
        &self.piece
    }

    /// Ends the text: what is still held back can no longer become a character.
    pub fn finish(&mut self) -> &str {
        self.piece.clear();
        if !self.pending.is_empty() {
            self.pending.clear();
            self.piece.push(char::REPLACEMENT_CHARACTER);
        }
        &self.piece
    }
}

/// Whether bytes at the end of a text are the start of a character.
fn may_grow(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(error) if error.error_len().is_none())
}
