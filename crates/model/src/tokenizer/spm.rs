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

/// Texts past this many bytes are merged in parts, so that places fit 32 bits.
const LONGEST: usize = 1 << 30;

/// A run of bytes of the text; runs that went into their left neighbour have length 0.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: u32,
    len: u32,
    prev: u32,
    next: u32,
    id: u32,
}

impl Symbol {
    fn bytes(self, text: &[u8]) -> &[u8] {
        &text[self.start as usize..(self.start + self.len) as usize]
    }
}

/// A merge that may happen: best score first, then leftmost. `len` tells whether it still can.
type Candidate = (i32, Reverse<u32>, u32, u32);

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

    /// Appends one token per byte: for the beginning of a character.
    pub fn spell(&self, bytes: &[u8], out: &mut Vec<u32>) {
        out.extend(bytes.iter().map(|byte| self.bytes[usize::from(*byte)]));
    }

    /// Encodes a text whose spaces are written as spaces.
    pub fn encode(&self, text: &str, arena: &Arena, normal: &Index, out: &mut Vec<u32>) {
        let mut rest = text;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.floor_char_boundary(LONGEST));
            self.part(part, arena, normal, out);
            rest = after;
        }
    }

    fn part(&self, text: &str, arena: &Arena, normal: &Index, out: &mut Vec<u32>) {
        let bytes = text.as_bytes();
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .zip(0u32..)
            .map(|((start, c), at)| Symbol {
                start: start as u32,
                len: c.len_utf8() as u32,
                prev: at.wrapping_sub(1),
                next: at + 1,
                id: NONE,
            })
            .collect();
        let count = symbols.len() as u32;
        let candidate = |symbols: &[Symbol], left: u32| -> Option<Candidate> {
            let a = symbols.get(left as usize)?;
            let b = symbols.get(a.next as usize)?;
            let both = Symbol { len: a.len + b.len, ..*a };
            if both.len as usize > self.longest {
                return None;
            }
            let id = normal.get(arena, both.bytes(bytes))?;
            Some((*self.scores.get(id as usize)?, Reverse(left), both.len, id))
        };
        let mut heap: BinaryHeap<Candidate> =
            (0..count).filter_map(|left| candidate(&symbols, left)).collect();
        while let Some((_, Reverse(left), len, id)) = heap.pop() {
            let Symbol { len: now, next, prev, .. } = symbols[left as usize];
            let Some(right) = symbols.get(next as usize).copied() else {
                continue;
            };
            if now == 0 || now + right.len != len {
                continue; // One of the two was merged meanwhile.
            }
            symbols[left as usize].len = len;
            symbols[left as usize].id = id;
            symbols[left as usize].next = right.next;
            symbols[next as usize].len = 0;
            if let Some(after) = symbols.get_mut(right.next as usize) {
                after.prev = left;
            }
            if left > 0 {
                heap.extend(candidate(&symbols, prev));
            }
            heap.extend(candidate(&symbols, left));
        }
        let mut at = 0;
        while let Some(symbol) = symbols.get(at as usize) {
            let spelling = symbol.bytes(bytes);
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
