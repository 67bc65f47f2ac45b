//! A template of an answer as a person writes it: text with holes.

use tessera_core::{Position, TokenId, Vocabulary};

use crate::{Error, Result};

/// The hole of one token.
const HOLE: &str = "[MASK]";

/// An answer of which some tokens are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holes {
    /// The known tokens, by their place in the answer.
    pub given: Vec<(Position, TokenId)>,
    /// Tokens of the answer, holes included.
    pub length: usize,
}

impl Holes {
    /// Reads text in which `[MASK]` is a hole of one token and `{12}` one of twelve. Each piece between
    /// two holes is tokenised on its own.
    ///
    /// # Errors
    /// [`Error::Option`] for a template without a hole, or a hole of no or too many tokens.
    pub fn read(text: &str, vocabulary: &dyn Vocabulary) -> Result<Self> {
        let fail = |what: String| Error::Option { what: format!("template: {what}") };
        let (mut given, mut length, mut holes) = (Vec::new(), 0usize, 0usize);
        let mut rest = text;
        loop {
            let found = next_hole(rest);
            let literal = found.map_or(rest, |(start, _, _)| &rest[..start]);
            for token in vocabulary.encode(literal) {
                given.push((length as Position, token));
                length += 1;
            }
            let Some((_, end, digits)) = found else { break };
            let size = match digits {
                None => 1,
                Some(digits) => {
                    digits.parse().ok().filter(|n| (1..=1 << 20).contains(n)).ok_or_else(|| {
                        fail(format!("a hole of {digits} tokens: must be 1 to 1048576"))
                    })?
                }
            };
            length += size;
            holes += 1;
            rest = &rest[end..];
        }
        match holes {
            0 => {
                Err(fail(format!("has no hole. Next: write {HOLE} or {{8}} where text is missing")))
            }
            _ => Ok(Self { given, length }),
        }
    }
}

/// Where the next hole begins and ends, and its number in braces.
fn next_hole(text: &str) -> Option<(usize, usize, Option<&str>)> {
    let mask = text.find(HOLE).map(|at| (at, at + HOLE.len(), None));
    let braces = text.match_indices('{').find_map(|(at, _)| {
        let inside = &text[at + 1..];
        let end = inside.find('}')?;
        let digits = &inside[..end];
        let number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        number.then_some((at, at + end + 2, Some(digits)))
    });
    mask.into_iter().chain(braces).min_by_key(|&(start, _, _)| start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_testkit::Words;

    #[test]
    fn holes_of_one_and_of_many() {
        let words = Words::bytes();
        let read = |text| Holes::read(text, &words).map_err(|e| e.to_string());
        let made = read("a[MASK]b{3}{\"c").unwrap();
        assert_eq!(made.given, [(0, 97), (2, 98), (6, 123), (7, 34), (8, 99)]);
        assert_eq!(made.length, 9);
        let made = read("{2}[MASK]").unwrap();
        assert_eq!((made.given.len(), made.length), (0, 3));
        assert!(read("no hole, {x} {}").unwrap_err().starts_with("template: has no hole."));
        assert!(read("{0}").unwrap_err().contains("a hole of 0 tokens"));
        assert!(read("{99999999999999999999999}").unwrap_err().contains("must be 1 to"));
    }
}
