//! What the byte level asks of a vocabulary: which tokens begin with given bytes, which sequences
//! begin the encoding of some text, and where no token can cross.

use std::collections::BTreeSet;

use tessera_core::{TokenId, Vocabulary};

use super::unfinished::{finished, unfinished};

/// What may follow a text that ends in white space, one of each kind that tokenizers tell apart: they
/// look one character past white space, and nowhere else. That these are enough is tested on the
/// vocabularies of the catalogue.
const AFTER_SPACE: [&str; 7] = ["a", "0", "!", " ", "\n", "'", "\u{4e00}"];
/// Most tokens that are tried behind one that ends inside a character.
const BEHIND: usize = 4;

/// A vocabulary, sorted by the bytes of its tokens.
pub struct Lexicon<'v> {
    vocabulary: &'v dyn Vocabulary,
    /// Tokens that stand for bytes, by their bytes, each byte string once.
    sorted: Vec<TokenId>,
    ends: Vec<TokenId>,
    /// Tokens that begin inside a character, in a vocabulary that has some which end in another one.
    astride: Vec<TokenId>,
    /// Whether no token holds a space after something else, so that none crosses a word's start.
    words: bool,
    /// Whether no token holds anything after a line end but white space.
    lines: bool,
    /// Length of the longest token, in bytes.
    longest: usize,
}

impl<'v> Lexicon<'v> {
    /// Sorts the vocabulary.
    pub fn new(vocabulary: &'v dyn Vocabulary) -> Self {
        let ids = 0..vocabulary.len() as TokenId;
        let mut sorted: Vec<TokenId> = ids
            .clone()
            .filter(|&t| !vocabulary.is_control(t) && !vocabulary.is_end(t))
            .filter(|&t| !vocabulary.bytes(t).is_empty())
            .collect();
        sorted.sort_unstable_by(|&a, &b| {
            vocabulary.bytes(a).cmp(vocabulary.bytes(b)).then(a.cmp(&b))
        });
        // Of tokens that spell the same (a piece and its byte form), the one that text becomes.
        let mut unique = Vec::with_capacity(sorted.len());
        for same in sorted.chunk_by(|&a, &b| vocabulary.bytes(a) == vocabulary.bytes(b)) {
            let own = (same.len() > 1).then(|| std::str::from_utf8(vocabulary.bytes(same[0])));
            let own = own.and_then(Result::ok).map(|text| vocabulary.encode(text));
            let chosen = own.filter(|ids| ids.len() == 1 && same.contains(&ids[0]));
            unique.push(chosen.map_or(same[0], |ids| ids[0]));
        }
        let pairs = |bad: fn(u8, u8) -> bool| {
            unique.iter().all(|&t| !vocabulary.bytes(t).windows(2).any(|w| bad(w[0], w[1])))
        };
        let inside = |b: &u8| (0x80..0xc0).contains(b);
        let mut astride = unique.clone();
        astride.retain(|&t| vocabulary.bytes(t).first().is_some_and(inside));
        if astride.iter().all(|&t| vocabulary.bytes(t).iter().all(inside)) {
            astride.clear();
        }
        Self {
            astride,
            words: pairs(|a, b| !a.is_ascii_whitespace() && b == b' '),
            lines: pairs(|a, b| a == b'\n' && !b.is_ascii_whitespace() && b.is_ascii()),
            longest: unique.iter().map(|&t| vocabulary.bytes(t).len()).max().unwrap_or(0),
            ends: ids.filter(|&t| vocabulary.is_end(t)).collect(),
            sorted: unique,
            vocabulary,
        }
    }

    /// Number of ids, control tokens and all.
    pub fn ids(&self) -> usize {
        self.vocabulary.len()
    }

    /// The tokens that stand for bytes, by their bytes.
    pub fn tokens(&self) -> &[TokenId] {
        &self.sorted
    }

    /// The tokens that end a text.
    pub fn ends(&self) -> &[TokenId] {
        &self.ends
    }

    /// The bytes of a token.
    pub fn bytes(&self, token: TokenId) -> &'v [u8] {
        self.vocabulary.bytes(token)
    }

    /// Length of the longest token, in bytes.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Bytes of some tokens together.
    pub fn length(&self, tokens: &[TokenId]) -> usize {
        tokens.iter().map(|&t| self.bytes(t).len()).sum()
    }

    /// The tokens of a whole text, or of one that breaks off inside a character.
    pub fn encode(&self, bytes: &[u8]) -> Vec<TokenId> {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.vocabulary.encode(text),
            Err(error) => {
                let like = unfinished(&bytes[error.valid_up_to()..]).first();
                self.vocabulary.encode_open(bytes, like.copied().unwrap_or('a'))
            }
        }
    }

    /// The tokens that begin with `bytes` and are longer.
    pub fn longer_than(&self, bytes: &[u8]) -> &[TokenId] {
        let from = self.sorted.partition_point(|&t| self.bytes(t) <= bytes);
        let rest = &self.sorted[from..];
        &rest[..rest.partition_point(|&t| self.bytes(t).starts_with(bytes))]
    }

    /// Whether `tokens`, which together spell `bytes`, begin the encoding of some text. It is so
    /// exactly if every shorter beginning of them does, too.
    pub fn begins(&self, bytes: &[u8], tokens: &[TokenId]) -> bool {
        self.begins_before(bytes, tokens, BEHIND)
    }

    fn begins_before(&self, bytes: &[u8], tokens: &[TokenId], more: usize) -> bool {
        match std::str::from_utf8(bytes) {
            Ok(text) => {
                let own = self.vocabulary.encode(text);
                if own == tokens {
                    return true;
                }
                // Without a look ahead, what follows changes nothing about what is there.
                text.chars().next_back().is_some_and(char::is_whitespace)
                    && AFTER_SPACE.iter().any(|more| {
                        self.vocabulary.encode(&format!("{text}{more}")).starts_with(tokens)
                    })
            }
            Err(error) if error.error_len().is_none() => {
                let (whole, tail) = bytes.split_at(error.valid_up_to());
                let fits = |&like: &char| {
                    self.vocabulary.encode_open(bytes, like) == tokens
                        && finished(tail, like).any(|c| self.goes_on(whole, c, tokens))
                };
                unfinished(tail).iter().any(fits)
                    || more > 0 && self.goes_on_astride(bytes, tokens, more - 1)
            }
            Err(_) => false,
        }
    }

    /// Whether a token may follow that ends the character in which `bytes` break off and goes on in the
    /// next one: the bytes of two characters may be merged across their border before those of each are.
    fn goes_on_astride(&self, bytes: &[u8], tokens: &[TokenId], more: usize) -> bool {
        self.astride.iter().any(|&token| {
            let longer = [bytes, self.bytes(token)].concat();
            self.begins_before(&longer, &[tokens, &[token]].concat(), more)
        })
    }

    /// Whether `tokens` begin the encoding of some text that begins with `before` and `c`.
    fn goes_on(&self, before: &[u8], c: char, tokens: &[TokenId]) -> bool {
        let Ok(before) = std::str::from_utf8(before) else { return false };
        let begins = |after: &str| {
            self.vocabulary.encode(&format!("{before}{c}{after}")).starts_with(tokens)
        };
        begins("") || c.is_whitespace() && AFTER_SPACE.iter().any(|after| begins(after))
    }

    /// Whether `tokens`, which spell `bytes`, are the encoding of a text that ends there.
    pub fn is_whole(&self, bytes: &[u8], tokens: &[TokenId]) -> bool {
        std::str::from_utf8(bytes).is_ok_and(|text| self.vocabulary.encode(text) == tokens)
    }

    /// Every sequence that spells exactly `bytes` and begins the encoding of some text: one, but for
    /// texts that end in white space or inside a character.
    pub fn spellings(&self, bytes: &[u8]) -> BTreeSet<Vec<TokenId>> {
        let mut found = BTreeSet::new();
        let mut add = |mut tokens: Vec<TokenId>| {
            let mut length = 0;
            let until = tokens.iter().position(|&t| {
                let done = length == bytes.len();
                length += self.bytes(t).len();
                done
            });
            tokens.truncate(until.unwrap_or(tokens.len()));
            if self.spells(&tokens, bytes) {
                found.insert(tokens);
            }
        };
        match std::str::from_utf8(bytes) {
            Ok(text) => {
                add(self.vocabulary.encode(text));
                if text.chars().next_back().is_some_and(char::is_whitespace) {
                    for more in AFTER_SPACE {
                        add(self.vocabulary.encode(&format!("{text}{more}")));
                    }
                }
            }
            Err(error) if error.error_len().is_none() => {
                let kinds = unfinished(&bytes[error.valid_up_to()..]);
                kinds.iter().for_each(|&like| add(self.vocabulary.encode_open(bytes, like)));
            }
            Err(_) => {}
        }
        found
    }

    /// Whether `tokens` spell `bytes`.
    pub fn spells(&self, tokens: &[TokenId], bytes: &[u8]) -> bool {
        let mut rest = bytes;
        let all = tokens.iter().all(|&t| match rest.strip_prefix(self.bytes(t)) {
            Some(after) => {
                rest = after;
                true
            }
            None => false,
        });
        all && rest.is_empty()
    }

    /// The last place in `text` that no token of any text that begins so crosses, and after which
    /// tokens do not depend on what is before it; 0 if none is known.
    ///
    /// Such places are the space after anything but white space, and the character after a line end;
    /// both only in vocabularies that have no token across them. The claim is checked on this text.
    pub fn safe(&self, text: &[u8]) -> usize {
        let whole = std::str::from_utf8(text).map_or_else(|e| e.valid_up_to(), str::len);
        let Ok(readable) = std::str::from_utf8(&text[..whole]) else { return 0 };
        let mut after: Option<char> = None;
        let mut at = whole;
        for c in readable.chars().rev() {
            let here = match after {
                Some(' ') => self.words && !c.is_whitespace(),
                Some(next) => self.lines && c == '\n' && next.is_ascii() && !next.is_whitespace(),
                None => false,
            };
            if here && self.parts(text, at) {
                return at;
            }
            at -= c.len_utf8();
            after = Some(c);
        }
        0
    }

    /// Whether a space after `text` would be such a place.
    pub fn is_safe_before_space(&self, text: &[u8]) -> bool {
        // Other characters than these may be white space; they take the slower path.
        self.words && text.last().is_some_and(u8::is_ascii_graphic)
    }

    /// Whether the encoding of `text` is that of its two parts.
    fn parts(&self, text: &[u8], at: usize) -> bool {
        // What is far from the place does not matter to it; a long text need not be read again.
        let from = at.saturating_sub(4 * self.longest.clamp(16, 64));
        let Ok(near) = std::str::from_utf8(&text[..at]) else { return false };
        let from = near.floor_char_boundary(from);
        let (left, right) = (&text[from..at], &text[at..]);
        [self.encode(left), self.encode(right)].concat() == self.encode(&text[from..])
    }
}
