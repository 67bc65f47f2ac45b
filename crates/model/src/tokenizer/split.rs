//! How byte-level BPE cuts text into words before merging: hand-written scanners for the two
//! published patterns, each linear in the text whatever it holds.
//!
//! `smollm` first isolates every number character, then applies to what lies between
//!
//! ```text
//! 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//! ```
//!
//! and `qwen2` applies to the whole
//!
//! ```text
//! (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
//! ```

use std::sync::OnceLock;

use super::TokenizerError;

/// A rule for cutting text into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pre {
    /// Single digits, then the words of GPT-2.
    Smollm,
    /// Words with one leading character of any kind, single digits, line ends kept together.
    Qwen2,
}

impl Pre {
    /// The names files use.
    pub const NAMES: [&'static str; 2] = ["smollm", "qwen2"];

    /// The rule a file names.
    pub(super) fn from_name(name: Option<&str>) -> Result<Self, TokenizerError> {
        match name {
            Some("smollm") => Ok(Self::Smollm),
            Some("qwen2") => Ok(Self::Qwen2),
            other => {
                Err(TokenizerError::UnknownPre { found: other.unwrap_or("(none)").to_owned() })
            }
        }
    }

    /// Calls `word` with each word of `text`, in order, none empty, together the whole text.
    pub fn split<'t>(self, text: &'t str, mut word: impl FnMut(&'t str)) {
        match self {
            Self::Qwen2 => words(text, qwen2, &mut word),
            Self::Smollm => {
                let mut rest = text;
                while !rest.is_empty() {
                    let (between, tail) = rest.split_at(run(rest, |c| c != Class::Number).0);
                    words(between, gpt2, &mut word);
                    let (digit, tail) =
                        tail.split_at(tail.chars().next().map_or(0, char::len_utf8));
                    if !digit.is_empty() {
                        word(digit);
                    }
                    rest = tail;
                }
            }
        }
    }
}

fn words<'t>(text: &'t str, next: impl Fn(&str) -> usize, word: &mut impl FnMut(&'t str)) {
    let mut rest = text;
    while !rest.is_empty() {
        let (head, tail) = rest.split_at(next(rest));
        word(head);
        rest = tail;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

/// One bit per code point for letters and one for numbers.
struct Classes {
    letters: Vec<u64>,
    numbers: Vec<u64>,
}

/// Letters and numbers as of Unicode 15.1, the version the peers' tables have: a character
/// assigned later must not change how old models see text.
fn classes() -> &'static Classes {
    static CLASSES: OnceLock<Classes> = OnceLock::new();
    CLASSES.get_or_init(|| Classes {
        letters: bits(r"[\p{L}&&\p{age:15.1}]"),
        numbers: bits(r"[\p{N}&&\p{age:15.1}]"),
    })
}

fn bits(class: &str) -> Vec<u64> {
    let mut bits = vec![0u64; 0x11_0000 / 64];
    // The two classes above parse (tested); were they not to, text would still be cut somehow.
    if let Ok(hir) = regex_syntax::parse(class)
        && let regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(set)) =
            hir.kind()
    {
        for range in set.iter() {
            for c in u32::from(range.start())..=u32::from(range.end()) {
                bits[c as usize / 64] |= 1 << (c % 64);
            }
        }
    }
    bits
}

fn class(c: char) -> Class {
    match c {
        'a'..='z' | 'A'..='Z' => Class::Letter,
        '0'..='9' => Class::Number,
        _ if c.is_whitespace() => Class::Space,
        _ if c.is_ascii() => Class::Other,
        _ => {
            let (classes, at, bit) = (classes(), c as usize / 64, 1 << (c as u32 % 64));
            if classes.letters[at] & bit != 0 {
                Class::Letter
            } else if classes.numbers[at] & bit != 0 {
                Class::Number
            } else {
                Class::Other
            }
        }
    }
}

fn first(text: &str) -> Option<Class> {
    text.chars().next().map(class)
}

/// Bytes and characters of the longest prefix whose characters all are `of` the asked classes.
fn run(text: &str, of: impl Fn(Class) -> bool) -> (usize, usize) {
    let mut chars = 0;
    for (at, c) in text.char_indices() {
        if !of(class(c)) {
            return (at, chars);
        }
        chars += 1;
    }
    (text.len(), chars)
}

/// Length of `'s`, `'t`, `'re` ... at the start of the text, 0 when there is none.
fn contraction(text: &str, fold_case: bool) -> usize {
    let mut letters = text.bytes().map(|b| if fold_case { b.to_ascii_lowercase() } else { b });
    if letters.next() != Some(b'\'') {
        return 0;
    }
    match (letters.next(), letters.next()) {
        (Some(b's' | b't' | b'm' | b'd'), _) => 2,
        (Some(b'r' | b'v'), Some(b'e')) | (Some(b'l'), Some(b'l')) => 3,
        _ => 0,
    }
}

/// The white space at the start of a text that has some: all of it at the end of the text, all
/// but the last character before something else, which takes that one along if it can.
fn white_space(text: &str) -> usize {
    let (bytes, chars) = run(text, |c| c == Class::Space);
    if chars > 1 && bytes < text.len() {
        let last = text[..bytes].chars().next_back().map_or(0, char::len_utf8);
        return bytes - last;
    }
    bytes
}

/// Length of the first word of a text that is not empty.
fn gpt2(text: &str) -> usize {
    let contracted = contraction(text, false);
    if contracted > 0 {
        return contracted;
    }
    let lead = usize::from(text.starts_with(' '));
    match first(&text[lead..]) {
        Some(kind) if kind != Class::Space => lead + run(&text[lead..], |c| c == kind).0,
        _ => white_space(text),
    }
}

/// Length of the first word of a text that is not empty.
fn qwen2(text: &str) -> usize {
    let contracted = contraction(text, true);
    if contracted > 0 {
        return contracted;
    }
    let Some(c) = text.chars().next() else {
        return 0;
    };
    let (kind, len) = (class(c), c.len_utf8());
    let letters = |from: usize| from + run(&text[from..], |c| c == Class::Letter).0;
    match kind {
        Class::Letter => return letters(0),
        Class::Number => return len,
        _ if c != '\r' && c != '\n' && first(&text[len..]) == Some(Class::Letter) => {
            return letters(len);
        }
        _ => {}
    }
    let lead = usize::from(c == ' ');
    if first(&text[lead..]) == Some(Class::Other) {
        let end = lead + run(&text[lead..], |c| c == Class::Other).0;
        return end + text[end..].bytes().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    }
    let (spaces, _) = run(text, |c| c == Class::Space);
    match text[..spaces].rfind(['\r', '\n']) {
        Some(last) => last + 1,
        None => white_space(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(pre: Pre, text: &str) -> Vec<&str> {
        let mut out = Vec::new();
        pre.split(text, |word| out.push(word));
        assert_eq!(out.concat(), text);
        assert!(out.iter().all(|word| !word.is_empty()));
        out
    }

    #[test]
    fn the_classes_are_those_of_unicode_15_1() {
        let count = |bits: &[u64]| bits.iter().map(|b| b.count_ones()).sum::<u32>();
        assert_eq!(count(&classes().letters), LETTERS_15_1);
        assert_eq!(count(&classes().numbers), 1831);
    }

    /// Number of letters in Unicode 15.1.
    const LETTERS_15_1: u32 = 136_726;

    #[test]
    fn smollm_words() {
        assert_eq!(cut(Pre::Smollm, "I'll go"), ["I", "'ll", " go"]);
        assert_eq!(cut(Pre::Smollm, "I'LL"), ["I", "'", "LL"]);
        assert_eq!(cut(Pre::Smollm, "a 12b"), ["a", " ", "1", "2", "b"]);
        assert_eq!(cut(Pre::Smollm, "a   b \n"), ["a", "  ", " b", " \n"]);
        assert_eq!(cut(Pre::Smollm, "a  1"), ["a", "  ", "1"]);
        assert_eq!(cut(Pre::Smollm, "x!? \u{a0}y"), ["x", "!?", " ", "\u{a0}", "y"]);
        assert_eq!(cut(Pre::Smollm, "१२ क"), ["१", "२", " क"]);
    }

    #[test]
    fn qwen2_words() {
        assert_eq!(cut(Pre::Qwen2, "I'LL go"), ["I", "'LL", " go"]);
        assert_eq!(cut(Pre::Qwen2, "(a) 12"), ["(a", ")", " ", "1", "2"]);
        assert_eq!(cut(Pre::Qwen2, "x;\r\n\n  y"), ["x", ";\r\n\n", " ", " y"]);
        assert_eq!(cut(Pre::Qwen2, "  \n  \n z"), ["  \n  \n", " z"]);
        assert_eq!(cut(Pre::Qwen2, "\tx \t"), ["\tx", " \t"]);
        assert_eq!(cut(Pre::Qwen2, " !\n"), [" !\n"]);
        assert_eq!(cut(Pre::Qwen2, "a "), ["a", " "]);
    }
}
