//! Tokens that are matched in the raw text before anything else. Longer spellings win over
//! shorter ones anywhere in the text, then the leftmost wins: the order in which llama.cpp cuts.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;

use super::tables::{Arena, Merge, NONE, Pairs};

/// A trie over the spellings: the longest match at a place costs its own length.
#[derive(Debug)]
pub(super) struct Specials {
    /// Node by first byte.
    first: [u32; 256],
    /// From a node and the next byte to a node.
    edges: Pairs,
    /// The token that ends at each node.
    ends: Vec<u32>,
}

/// A piece of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

impl Specials {
    pub fn new(raw: &Arena, ids: &[u32]) -> Self {
        let bytes = ids.iter().map(|id| raw.get(*id).len()).sum();
        let mut specials = Self { first: [NONE; 256], edges: Pairs::new(bytes), ends: Vec::new() };
        for id in ids {
            let mut spelling = raw.get(*id).iter();
            let Some(byte) = spelling.next() else {
                continue; // Nothing to match.
            };
            let mut node = specials.first[usize::from(*byte)];
            if node == NONE {
                node = specials.node();
                specials.first[usize::from(*byte)] = node;
            }
            for byte in spelling {
                let byte = u32::from(*byte);
                let mut next = specials.edges.get(node, byte).id;
                if next == NONE {
                    next = specials.node();
                    specials.edges.insert(node, byte, Merge { rank: 0, id: next });
                }
                node = next;
            }
            specials.ends[node as usize] = *id;
        }
        specials
    }

    fn node(&mut self) -> u32 {
        self.ends.push(NONE);
        // Fewer nodes than bytes in the arena, whose length fits.
        (self.ends.len() - 1) as u32
    }

    /// Length and token of the longest spelling at the start of `text`.
    fn longest(&self, text: &[u8]) -> Option<(usize, u32)> {
        let mut node = self.first[usize::from(*text.first()?)];
        let mut found = None;
        let mut len = 1;
        while node != NONE {
            match self.ends[node as usize] {
                NONE => {}
                id => found = Some((len, id)),
            }
            let Some(byte) = text.get(len) else {
                break;
            };
            node = self.edges.get(node, u32::from(*byte)).id;
            len += 1;
        }
        found
    }

    /// Calls `each` with the fragments of `text` in order.
    pub fn partition<'t>(&self, text: &'t str, mut each: impl FnMut(Fragment<'t>)) {
        let bytes = text.as_bytes();
        // Places still to try, by the length of their longest remaining match.
        let mut places: BTreeMap<Reverse<usize>, Vec<usize>> = BTreeMap::new();
        for at in 0..bytes.len() {
            if let Some((len, _)) = self.longest(&bytes[at..]) {
                places.entry(Reverse(len)).or_default().push(at);
            }
        }
        if places.is_empty() {
            if !text.is_empty() {
                each(Fragment::Text(text));
            }
            return;
        }
        let mut taken = vec![false; bytes.len()];
        let mut matches: Vec<(Range<usize>, u32)> = Vec::new();
        while let Some((Reverse(len), mut starts)) = places.pop_first() {
            starts.sort_unstable();
            for at in starts {
                if taken[at] {
                    continue;
                }
                // The longest free match here: of this length, or a shorter one in its turn.
                let free = taken[at..at + len].iter().take_while(|taken| !**taken).count();
                match self.longest(&bytes[at..at + free]) {
                    Some((found, id)) if found == len => {
                        taken[at..at + len].fill(true);
                        matches.push((at..at + len, id));
                    }
                    Some((found, _)) => places.entry(Reverse(found)).or_default().push(at),
                    None => {}
                }
            }
        }
        matches.sort_unstable_by_key(|(range, _)| range.start);
        let mut from = 0;
        for (range, id) in matches {
            // Spellings are whole characters, so every cut is at a character.
            if let Some(before) = text.get(from..range.start).filter(|text| !text.is_empty()) {
                each(Fragment::Text(before));
            }
            each(Fragment::Token(id));
            from = range.end;
        }
        if let Some(rest) = text.get(from..).filter(|text| !text.is_empty()) {
            each(Fragment::Text(rest));
        }
    }
}

/// Tags of markup that text vocabularies hold whole. In user text they are text like any other.
const MARKUP: [&str; 34] = [
    "a",
    "b",
    "bbox",
    "blockquote",
    "body",
    "caption",
    "code",
    "div",
    "em",
    "footer",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "html",
    "i",
    "iframe",
    "img",
    "li",
    "ol",
    "p",
    "s",
    "span",
    "strong",
    "sub",
    "sup",
    "table",
    "tbody",
    "td",
    "tfoot",
    "th",
    "thead",
];
const MORE_MARKUP: [&str; 3] = ["tr", "u", "ul"];

/// Whether a user-defined token is ordinary text (runs of white space, markup tags). The other
/// user-defined ones (`<tool_call>`, `<start_of_image>`) steer the model like control tokens and
/// are never made out of user text.
pub(super) fn is_plain(spelling: &str) -> bool {
    let tag = || {
        let name = spelling.strip_prefix('<')?.strip_suffix('>')?;
        Some(name.strip_prefix('/').unwrap_or(name))
    };
    spelling.chars().all(char::is_whitespace)
        || tag().is_some_and(|name| MARKUP.contains(&name) || MORE_MARKUP.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(spellings: &[&str], text: &str) -> Vec<String> {
        let mut raw = Arena::default();
        for spelling in spellings {
            assert!(raw.push(spelling.bytes()));
        }
        let ids: Vec<u32> = (0..spellings.len() as u32).collect();
        let specials = Specials::new(&raw, &ids);
        let mut out = Vec::new();
        specials.partition(text, |fragment| {
            out.push(match fragment {
                Fragment::Text(text) => format!("{text:?}"),
                Fragment::Token(id) => spellings[id as usize].to_owned(),
            });
        });
        out
    }

    #[test]
    fn longer_spellings_win_anywhere_then_the_leftmost() {
        assert_eq!(cut(&["ab", "bcd"], "abcdab"), ["\"a\"", "bcd", "ab"]);
        assert_eq!(cut(&["  ", "    "], "       x"), ["    ", "  ", "\" x\""]);
        assert_eq!(cut(&["abc", "a", "cd"], "abcd"), ["abc", "\"d\""]);
        // The longest match at 0 is blocked, a shorter one there is not.
        assert_eq!(cut(&["abc", "a", "bcde"], "abcde"), ["a", "bcde"]);
        assert_eq!(cut(&["", "é"], "éaé"), ["é", "\"a\"", "é"]);
        assert_eq!(cut(&["x"], ""), Vec::<String>::new());
    }

    #[test]
    fn plain_is_white_space_and_markup_only() {
        for plain in ["\n\n", "  ", "\t", "<h1>", "</code>", "<s>"] {
            assert!(is_plain(plain), "{plain:?}");
        }
        for other in ["<tool_call>", "<start_of_image>", "[multimodal]", "<|x|>", "<unused1>"] {
            assert!(!is_plain(other), "{other:?}");
        }
    }
}
