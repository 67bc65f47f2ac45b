//! What the first bytes of a character may become.
//!
//! Where text is cut into words, tokenizers tell letters, numbers, marks, white space and the rest apart,
//! and a text that breaks off inside a character is the beginning of some text only with a character that
//! really begins so: no white space begins with the byte 0xCE. Tokens may end there, too, and go on in no
//! such character: all numbers that begin with 0xEF begin with 0xEF 0xBC, which may be one token. To take such
//! tokens for possible would keep covers alive that no text has.

use std::collections::HashMap;
use std::sync::OnceLock;

use regex_syntax::hir::{Class, HirKind};

/// Beginnings of characters of several bytes, each with one character of every kind that begins so.
type Table = HashMap<Vec<u8>, Vec<char>>;

/// A character of each kind that the beginning of a character may become; none for what begins none.
pub(super) fn unfinished(tail: &[u8]) -> &'static [char] {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(table).get(tail).map_or(&[], Vec::as_slice)
}

/// All characters of the kind of `like` that begin with `tail`, which is the beginning of one.
pub(super) fn finished(tail: &[u8], like: char) -> impl Iterator<Item = char> {
    let length = match tail.first() {
        Some(0xc2..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        _ => 4,
    };
    // The six bits of every byte that is there, then all that may follow.
    let lead = tail.first().map_or(0, |b| u32::from(*b) & (0x7f >> length));
    let bits = tail.iter().skip(1).fold(lead, |bits, b| bits << 6 | (u32::from(*b) & 0x3f));
    let open = 6 * (length - tail.len().clamp(1, length));
    let range = bits << open..(bits + 1) << open;
    let kind = kinds()[like as usize];
    // What is no character (a surrogate, an overlong form) begins with nothing of the table.
    let begins = move |c: &char| c.len_utf8() == length && kinds()[*c as usize] == kind;
    range.filter_map(char::from_u32).filter(begins)
}

/// The ranges of a class such as `\p{L}`.
fn ranges(class: &str) -> Vec<(char, char)> {
    match regex_syntax::parse(class).map(regex_syntax::hir::Hir::into_kind) {
        Ok(HirKind::Class(Class::Unicode(all))) => {
            all.iter().map(|range| (range.start(), range.end())).collect()
        }
        // The classes are those below, which the parser knows.
        _ => Vec::new(),
    }
}

/// The kind of every character: letters, numbers, marks and white space have a bit each.
fn kinds() -> &'static [u8] {
    static KINDS: OnceLock<Vec<u8>> = OnceLock::new();
    KINDS.get_or_init(|| {
        let mut kinds = vec![0; char::MAX as usize + 1];
        for (bit, class) in [r"\p{L}", r"\p{N}", r"\p{M}", r"\s"].into_iter().enumerate() {
            for (first, last) in ranges(class) {
                kinds[first as usize..=last as usize].iter_mut().for_each(|kind| *kind |= 1 << bit);
            }
        }
        kinds
    })
}

fn table() -> Table {
    let kinds = kinds();
    let mut table = Table::new();
    // Kinds seen of the beginnings of one, two and three bytes that are being filled.
    let mut open: [(Vec<u8>, u32); 3] = Default::default();
    for c in '\u{80}'..=char::MAX {
        let kind = kinds[c as usize];
        let mut buffer = [0; 4];
        let bytes = c.encode_utf8(&mut buffer).as_bytes();
        for (n, (begin, seen)) in (1..bytes.len()).zip(&mut open) {
            if begin.as_slice() != &bytes[..n] {
                (*begin, *seen) = (bytes[..n].to_vec(), 0);
            }
            if *seen & 1 << kind == 0 {
                *seen |= 1 << kind;
                table.entry(begin.clone()).or_default().push(c);
            }
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_become_what_characters_there_are() {
        for (tail, white, letter) in [
            (&[0xce][..], false, true),
            (&[0xc2], true, true),
            (&[0xe3, 0x80], true, true),
            (&[0xe2, 0x80], true, false),
            (&[0xf0, 0x9f], false, false),
            (&[0xf0, 0x9f, 0x99], false, false),
        ] {
            let kinds = unfinished(tail);
            assert!(!kinds.is_empty(), "{tail:x?}");
            assert!(kinds.iter().all(|c| c.to_string().as_bytes().starts_with(tail)), "{tail:x?}");
            assert_eq!(kinds.iter().any(|c| c.is_whitespace()), white, "{tail:x?} {kinds:?}");
            assert_eq!(kinds.iter().any(|c| c.is_alphabetic()), letter, "{tail:x?} {kinds:?}");
        }
        let digits: String = finished(&[0xef], '0').collect();
        assert_eq!(
            digits,
            "\u{ff10}\u{ff11}\u{ff12}\u{ff13}\u{ff14}\u{ff15}\u{ff16}\u{ff17}\u{ff18}\u{ff19}"
        );
        for (tail, like) in [(&[0xc3][..], 'a'), (&[0xe3, 0x80], ' '), (&[0xf0, 0x9f], '!')] {
            let mut all =
                ('\u{80}'..=char::MAX).filter(|c| c.to_string().as_bytes().starts_with(tail));
            let own = kinds()[like as usize];
            assert!(finished(tail, like).eq(all.by_ref().filter(|c| kinds()[*c as usize] == own)));
        }
        // Nothing begins with these: a continuation, an overlong form, a surrogate, what is too large.
        for tail in [&[0x80][..], &[0xc0], &[0xed, 0xa0], &[0xf4, 0x90], b"a", &[]] {
            assert!(unfinished(tail).is_empty(), "{tail:x?}");
        }
    }
}
