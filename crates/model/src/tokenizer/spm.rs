//! SentencePiece-style BPE: a text is cut into characters, and neighbours that together spell a
//! token are merged, the highest score first, the leftmost of equal score first. Characters
//! without a token become one token per byte.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::TokenizerError;
use super::tables::{Arena, Index, NONE};

/// Stands for a space inside tokens.
pub(super) const SPACE: char = '\u{2581}';

#[derive(Debug)]
pub(super) struct Spm {
    /// Merge priority by token, as integers that order like the scores.
    scores: Vec<i32>,
    /// Token of each byte.
    bytes: [u32; 256],
    /// Length in bytes of the longest token that text can become.
    longest: usize,
    pub space_prefix: bool,
}

/// A run of bytes of the text; runs that went into their left neighbour have length 0.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    prev: usize,
    next: usize,
    id: u32,
}

/// A merge that may happen: best score first, then leftmost. `len` tells whether it still can.
type Candidate = (i32, Reverse<usize>, usize, u32);

impl Spm {
    pub fn new(
        scores: &[f32],
        bytes: [u32; 256],
        unk: Option<u32>,
        (arena, normal): (&Arena, &Index),
        longest: usize,
        space_prefix: bool,
    ) -> Result<Self, TokenizerError> {
        let mut all = bytes;
        for (byte, id) in (0..=u8::MAX).zip(&mut all) {
            if *id == NONE {
                *id = normal.get(arena, &[byte]).or(unk).ok_or_else(|| {
                    let what = format!("no token for byte {byte:#04x} and no unknown token");
                    TokenizerError::field("tokenizer.ggml.tokens", what)
                })?;
            }
        }
        let scores = scores.iter().map(|score| ordered(*score)).collect();
        Ok(Self { scores, bytes: all, longest, space_prefix })
    }

    /// Encodes a text whose spaces are written as spaces.
    pub fn encode(&self, text: &str, arena: &Arena, normal: &Index, out: &mut Vec<u32>) {
        let bytes = text.as_bytes();
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(at, (start, c))| Symbol {
                start,
                len: c.len_utf8(),
                prev: at.wrapping_sub(1),
                next: at + 1,
                id: NONE,
            })
            .collect();
        let count = symbols.len();
        let candidate = |symbols: &[Symbol], left: usize| -> Option<Candidate> {
            let a = symbols.get(left)?;
            let b = symbols.get(a.next)?;
            let len = a.len + b.len;
            if len > self.longest {
                return None;
            }
            let id = normal.get(arena, &bytes[a.start..a.start + len])?;
            Some((*self.scores.get(id as usize)?, Reverse(left), len, id))
        };
        let mut heap: BinaryHeap<Candidate> =
            (0..count).filter_map(|left| candidate(&symbols, left)).collect();
        while let Some((_, Reverse(left), len, id)) = heap.pop() {
            let Symbol { len: now, next, prev, .. } = symbols[left];
            let Some(right) = symbols.get(next).copied() else {
                continue;
            };
            if now == 0 || now + right.len != len {
                continue; // One of the two was merged meanwhile.
            }
            symbols[left].len = len;
            symbols[left].id = id;
            symbols[left].next = right.next;
            symbols[next].len = 0;
            if let Some(after) = symbols.get_mut(right.next) {
                after.prev = left;
            }
            if left > 0 {
                heap.extend(candidate(&symbols, prev));
            }
            heap.extend(candidate(&symbols, left));
        }
        let mut at = 0;
        while let Some(symbol) = symbols.get(at) {
            let spelling = &bytes[symbol.start..symbol.start + symbol.len];
            let id = if symbol.id == NONE { normal.get(arena, spelling) } else { Some(symbol.id) };
            match id {
                Some(id) => out.push(id),
                None => out.extend(spelling.iter().map(|byte| self.bytes[usize::from(*byte)])),
            }
            at = symbol.next;
        }
    }
}

/// An integer that orders as the float does; both zeros are equal.
fn ordered(score: f32) -> i32 {
    let bits = (score + 0.0).to_bits() as i32;
    bits ^ (((bits >> 31) as u32) >> 1) as i32
}

#[cfg(test)]
mod tests {
    use super::ordered;

    #[test]
    fn scores_keep_their_order_as_integers() {
        let scores = [f32::NEG_INFINITY, -1000.0, -2.5, -1e-30, 0.0, 1e-30, 2.0, f32::INFINITY];
        assert!(scores.map(ordered).is_sorted_by(|a, b| a < b));
        assert_eq!(ordered(-0.0), ordered(0.0));
    }
}
