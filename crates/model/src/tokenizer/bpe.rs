//! Byte-level BPE: text is cut into words, a word into bytes, and neighbours are merged, the rule
//! of lowest rank first, the leftmost of equal rank first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::tables::{Arena, Index, Merge, NONE, Pairs};
use super::{Pre, TokenizerError, spec::Texts};
use crate::file_error::quoted;

/// Words up to this many bytes are merged by looking at every pair, longer ones with a heap, so
/// that a megabyte of one letter costs n log n.
const SHORT: usize = 48;
/// Words past this many bytes are merged in parts, so that places fit 32 bits.
const LONGEST: usize = 1 << 30;

#[derive(Debug)]
pub(super) struct Bpe {
    pre: Pre,
    /// Token of each byte; [`NONE`] for bytes this vocabulary cannot spell.
    bytes: [u32; 256],
    pairs: Pairs,
}

/// Room for one word, used again for the next.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    ids: Vec<u32>,
    merges: Vec<Merge>,
    prev: Vec<u32>,
    next: Vec<u32>,
}

impl Bpe {
    /// Resolves the merge rules against the vocabulary.
    pub fn new(
        pre: Pre,
        merges: &Texts,
        arena: &Arena,
        normal: &Index,
        special: impl Fn(&str) -> bool,
    ) -> Result<Self, TokenizerError> {
        let mut bytes = [NONE; 256];
        for (byte, id) in (0..=u8::MAX).zip(&mut bytes) {
            *id = normal.get(arena, &[byte]).unwrap_or(NONE);
        }
        let mut pairs = Pairs::new(merges.len());
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for (rank, rule) in merges.iter().enumerate() {
            let fault = |what: String| {
                TokenizerError::field(format!("tokenizer.ggml.merges[{rank}]"), what)
            };
            // A token cannot be empty, so the separator is not the first character.
            let first = rule.chars().next().map_or(0, char::len_utf8);
            let Some(space) = rule[first..].find(' ').map(|at| at + first) else {
                return Err(fault(format!("{} is not two tokens and a space", quoted(rule))));
            };
            let (left_text, right_text) = (&rule[..space], &rule[space + 1..]);
            // Text must never merge into a control token, nor by way of one.
            if special(left_text) || special(right_text) {
                continue;
            }
            let find = |text: &str, buffer: &mut Vec<u8>| {
                buffer.clear();
                let known = decode(text, buffer).then(|| normal.get(arena, buffer)).flatten();
                known.ok_or_else(|| {
                    fault(format!("{} names {}, which is no token", quoted(rule), quoted(text)))
                })
            };
            let left_id = find(left_text, &mut left)?;
            let right_id = find(right_text, &mut right)?;
            left.extend_from_slice(&right);
            match normal.get(arena, &left) {
                Some(id) => {
                    // Ranks fit: there are fewer rules than bytes in their text.
                    let rank = u32::try_from(rank).unwrap_or(u32::MAX - 1);
                    pairs.insert(left_id, right_id, Merge { rank, id });
                }
                None if special(&format!("{left_text}{right_text}")) => {}
                None => return Err(fault(format!("{} makes no token", quoted(rule)))),
            }
        }
        Ok(Self { pre, bytes, pairs })
    }

    /// Whether every byte has a token; text with one that has none loses it.
    pub fn spells(&self, byte: u8) -> bool {
        self.bytes[usize::from(byte)] != NONE
    }

    pub fn encode(&self, text: &str, scratch: &mut Scratch, out: &mut Vec<u32>) {
        self.pre.split(text, |word| {
            for part in word.as_bytes().chunks(LONGEST) {
                self.word(part, scratch, out);
            }
        });
    }

    /// Encodes a text whose last `placed` bytes stand for `tail`, the beginning of a character.
    pub fn encode_open(
        &self,
        text: &str,
        placed: usize,
        tail: &[u8],
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) {
        let mut at = 0;
        self.pre.split(text, |word| {
            at += word.len();
            if at < text.len() {
                self.word(word.as_bytes(), scratch, out);
            } else {
                let whole = word.len().saturating_sub(placed);
                self.word(&[&word.as_bytes()[..whole], tail].concat(), scratch, out);
            }
        });
    }

    fn word(&self, word: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { ids, merges, .. } = scratch;
        ids.clear();
        ids.extend(word.iter().map(|byte| self.bytes[usize::from(*byte)]));
        if ids.len() > 1 {
            merges.clear();
            merges.extend(ids.windows(2).map(|pair| self.pairs.get(pair[0], pair[1])));
            if ids.len() <= SHORT {
                self.merge_short(ids, merges);
            } else {
                self.merge_long(scratch);
            }
        }
        out.extend(scratch.ids.iter().filter(|id| **id != NONE));
    }

    fn merge_short(&self, ids: &mut Vec<u32>, merges: &mut Vec<Merge>) {
        loop {
            let Some((at, best)) = merges.iter().copied().enumerate().min_by_key(|(_, m)| m.rank)
            else {
                return;
            };
            if best == Merge::NEVER {
                return;
            }
            ids[at] = best.id;
            ids.remove(at + 1);
            merges.remove(at);
            if at > 0 {
                merges[at - 1] = self.pairs.get(ids[at - 1], best.id);
            }
            if at < merges.len() {
                merges[at] = self.pairs.get(best.id, ids[at + 1]);
            }
        }
    }

    fn merge_long(&self, scratch: &mut Scratch) {
        let Scratch { ids, merges, prev, next } = scratch;
        let len = ids.len() as u32;
        // A symbol that went into its left neighbour keeps its place with no merge of its own.
        merges.push(Merge::NEVER);
        prev.clear();
        prev.extend((0..len).map(|at| at.wrapping_sub(1)));
        next.clear();
        next.extend(1..=len);
        // Rank above, place below: the order of merging, in one word.
        let entry = |merge: Merge, at: u32| {
            (merge != Merge::NEVER).then(|| Reverse(u64::from(merge.rank) << 32 | u64::from(at)))
        };
        let mut heap: BinaryHeap<Reverse<u64>> =
            (0..len).zip(&*merges).filter_map(|(at, merge)| entry(*merge, at)).collect();
        while let Some(Reverse(best)) = heap.pop() {
            let (place, at) = (best as u32, best as u32 as usize);
            let merge = merges[at];
            if u64::from(merge.rank) != best >> 32 {
                continue; // One of the two was merged meanwhile.
            }
            let gone = next[at] as usize;
            let after = next[gone];
            ids[at] = merge.id;
            ids[gone] = NONE;
            merges[gone] = Merge::NEVER;
            merges[at] = Merge::NEVER;
            next[at] = after;
            if after < len {
                prev[after as usize] = place;
                merges[at] = self.pairs.get(merge.id, ids[after as usize]);
                heap.extend(entry(merges[at], place));
            }
            if at > 0 {
                let left = prev[at];
                merges[left as usize] = self.pairs.get(ids[left as usize], merge.id);
                heap.extend(entry(merges[left as usize], left));
            }
        }
    }
}

/// First of the characters that stand for bytes which print badly.
const SHIFTED: u32 = 256;

/// Byte-level vocabularies spell each byte as one printable character: printable Latin-1 stands
/// for itself, the other 68 bytes for U+0100 onwards in order.
fn prints(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// The byte a character stands for.
fn byte_of(c: char) -> Option<u8> {
    const TABLE: [u8; 68] = {
        let mut table = [0; 68];
        let (mut byte, mut at) = (0u16, 0);
        while byte < 256 {
            let b = byte as u8;
            if !matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
                table[at] = b;
                at += 1;
            }
            byte += 1;
        }
        table
    };
    match u8::try_from(u32::from(c)) {
        Ok(byte) => prints(byte).then_some(byte),
        Err(_) => TABLE.get((u32::from(c) - SHIFTED) as usize).copied(),
    }
}

#[cfg(test)]
/// The character a byte is spelled as.
pub(super) fn char_of(byte: u8) -> char {
    if prints(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !prints(*b)).count() as u32;
    char::from_u32(SHIFTED + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// Appends the bytes a spelling stands for; false when one of its characters stands for none.
pub(super) fn decode(text: &str, out: &mut Vec<u8>) -> bool {
    if text.is_ascii() && !text.bytes().any(|b| !prints(b)) {
        out.extend_from_slice(text.as_bytes());
        return true;
    }
    text.chars().all(|c| byte_of(c).map(|byte| out.push(byte)).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_printable_character() {
        for byte in 0..=u8::MAX {
            assert_eq!(byte_of(char_of(byte)), Some(byte));
        }
        assert_eq!(char_of(b' '), 'Ġ');
        assert_eq!(char_of(b'\n'), 'Ċ');
        assert_eq!(byte_of(' '), None);
        assert_eq!(byte_of('\u{ad}'), None);
        assert_eq!(byte_of('語'), None);
    }
}
