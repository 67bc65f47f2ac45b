//! From tokens to text: bytes that arrive in pieces become characters, and stop strings are found
//! wherever the pieces happen to be cut.
//!
//! Both types are incremental and independent of the cutting: any way of splitting the same bytes
//! gives the same text. That is what makes a stream equal to the finished answer.

use crate::{Error, Result};

/// Turns a stream of bytes into text without ever splitting a character.
///
/// A token may end in the middle of a character; its first bytes wait for the rest. Bytes that can
/// never become a character are replaced by U+FFFD, one per maximal wrong piece, as
/// [`String::from_utf8_lossy`] does.
#[derive(Debug, Clone, Default)]
pub struct StreamDecoder {
    /// The beginning of a character, at most three bytes.
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// With nothing pending.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends to `out` every character that `bytes` completes.
    pub fn push(&mut self, bytes: &[u8], out: &mut String) {
        if self.pending.is_empty() {
            let rest = decode(bytes, out);
            self.pending.extend_from_slice(rest);
            return;
        }
        let mut joined = std::mem::take(&mut self.pending);
        joined.extend_from_slice(bytes);
        let rest = decode(&joined, out).len();
        joined.drain(..joined.len() - rest);
        self.pending = joined;
    }

    /// Number of bytes waiting for the rest of their character.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Ends the stream: an unfinished character becomes one U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        if !self.pending.is_empty() {
            self.pending.clear();
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

/// Appends what can be decoded and returns the unfinished end.
fn decode<'a>(mut bytes: &'a [u8], out: &mut String) -> &'a [u8] {
    loop {
        match std::str::from_utf8(bytes) {
            Ok(text) => {
                out.push_str(text);
                return &[];
            }
            Err(error) => {
                let (good, rest) = bytes.split_at(error.valid_up_to());
                // Valid by the error's own word; the lossy form costs nothing then.
                out.push_str(&String::from_utf8_lossy(good));
                match error.error_len() {
                    None => return rest,
                    Some(wrong) => {
                        out.push(char::REPLACEMENT_CHARACTER);
                        bytes = &rest[wrong..];
                    }
                }
            }
        }
    }
}

/// Finds stop strings in a stream of text and holds back whatever might be the beginning of one.
///
/// The match that is *completed* first wins, and among those completed by the same character the
/// longest: so the answer does not depend on how the stream is cut.
#[derive(Debug, Clone, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text not yet released: a proper beginning of at least one stop string.
    held: String,
}

impl StopMatcher {
    /// For these stop strings; none at all is fine.
    ///
    /// # Errors
    /// [`Error::Setting`] for an empty stop string, which would match everywhere.
    pub fn new(stops: impl IntoIterator<Item = impl Into<String>>) -> Result<Self> {
        let stops: Vec<String> = stops.into_iter().map(Into::into).collect();
        if stops.iter().any(String::is_empty) {
            return Err(Error::setting("stop", "\"\"", "a text of at least one character"));
        }
        Ok(Self { stops, held: String::new() })
    }

    /// Takes the next piece of text. Appends to `out` what is certainly not part of a stop string,
    /// and returns the index of the stop string found, if one was completed; then `out` ends right
    /// before it and the rest of `text` is dropped.
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<usize> {
        if self.stops.is_empty() {
            out.push_str(text);
            return None;
        }
        self.held.push_str(text);
        let found = self
            .stops
            .iter()
            .enumerate()
            .filter_map(|(i, stop)| self.held.find(stop).map(|at| (at + stop.len(), at, i)))
            .min();
        if let Some((_, at, index)) = found {
            out.push_str(&self.held[..at]);
            self.held.clear();
            return Some(index);
        }
        let keep = self.possible_beginning();
        out.push_str(&self.held[..keep]);
        self.held.drain(..keep);
        None
    }

    /// Text held back.
    pub fn held(&self) -> &str {
        &self.held
    }

    /// The stop string with this index.
    pub fn stop(&self, index: usize) -> &str {
        self.stops.get(index).map_or("", String::as_str)
    }

    /// Ends the stream: what was held back was no stop string after all.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }

    /// Where the longest end of `held` that begins a stop string starts; its length if none does.
    fn possible_beginning(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest.saturating_sub(1));
        (from..self.held.len())
            .filter(|&at| self.held.is_char_boundary(at))
            .find(|&at| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..])))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist::Key;

    /// All the ways a test cuts `n` bytes: whole, one by one, and some seeded random ones.
    fn cuts(n: usize) -> Vec<Vec<usize>> {
        let mut all = vec![vec![n], vec![1; n]];
        for seed in 0..40 {
            let (mut at, mut cut) = (0, Vec::new());
            while at < n {
                let step = 1 + (Key::new(seed, 0, at as u32).bits(0) % 5) as usize;
                cut.push(step.min(n - at));
                at += step;
            }
            all.push(cut);
        }
        all
    }

    fn pieces<'a>(bytes: &'a [u8], cut: &[usize]) -> Vec<&'a [u8]> {
        let mut at = 0;
        cut.iter().map(|n| (&bytes[at..at + n], at += n).0).collect()
    }

    #[test]
    fn decoding_does_not_depend_on_the_cutting_and_equals_the_lossy_form() {
        let texts: [&[u8]; 6] = [
            "plain, naïve, 日本語, 👩‍👩‍👧 and \u{10FFFF}".as_bytes(),
            b"\xff\xfe broken \xe6\x97 half \xf0\x9f\x91 and a lone \x80",
            b"\xed\xa0\x80 surrogate, \xc0\xaf overlong, \xf4\x90\x80\x80 too large",
            b"ends open \xe6\x97",
            b"ends open \xf0\x9f\x91",
            b"",
        ];
        for bytes in texts {
            for cut in cuts(bytes.len()) {
                let (mut decoder, mut out) = (StreamDecoder::new(), String::new());
                for piece in pieces(bytes, &cut) {
                    decoder.push(piece, &mut out);
                    assert!(decoder.pending() <= 3);
                }
                decoder.finish(&mut out);
                assert_eq!(out, String::from_utf8_lossy(bytes), "cut {cut:?}");
            }
        }
    }

    #[test]
    fn a_character_appears_with_its_last_byte_and_not_before() {
        let (mut decoder, mut out) = (StreamDecoder::new(), String::new());
        for (i, byte) in "€".bytes().enumerate() {
            assert_eq!((out.as_str(), decoder.pending()), ("", i));
            decoder.push(&[byte], &mut out);
        }
        assert_eq!((out.as_str(), decoder.pending()), ("€", 0));
    }

    fn run(stops: &[&str], text: &str, cut: &[usize]) -> (String, Option<usize>) {
        let mut matcher = StopMatcher::new(stops.iter().copied()).unwrap();
        let mut out = String::new();
        for piece in pieces(text.as_bytes(), cut) {
            let piece = std::str::from_utf8(piece).unwrap();
            if let Some(found) = matcher.push(piece, &mut out) {
                return (out, Some(found));
            }
            // Whatever is out is never taken back: no stop string may begin inside it.
            assert!(text.starts_with(&out) && text[out.len()..].starts_with(matcher.held()));
        }
        matcher.finish(&mut out);
        (out, None)
    }

    #[test]
    fn stops_are_found_across_pieces_whatever_the_cutting() {
        let cases: [(&[&str], &str, &str, Option<usize>); 9] = [
            (&["###"], "a##b####c", "a##b", Some(0)),
            (&["abc", "b"], "xxabc", "xxa", Some(1)),
            (&["b", "ab"], "xxab", "xx", Some(1)),
            (&["aab"], "aaaab", "aa", Some(0)),
            (&["END"], "no such thing EN", "no such thing EN", None),
            (&["END"], "END", "", Some(0)),
            (&["abab", "bac"], "ababac", "", Some(0)),
            (&[], "anything", "anything", None),
            (&["User:", "\n\n"], "Hello.\n\nUser:", "Hello.", Some(1)),
        ];
        for (stops, text, want, found) in cases {
            for cut in cuts(text.len()) {
                assert_eq!(run(stops, text, &cut), (want.to_owned(), found), "{text:?} {cut:?}");
            }
        }
    }

    #[test]
    fn only_possible_beginnings_are_held_back() {
        let mut matcher = StopMatcher::new(["</s>", "日本"]).unwrap();
        let mut out = String::new();
        assert_eq!(matcher.push("x < y </", &mut out), None);
        assert_eq!((out.as_str(), matcher.held()), ("x < y ", "</"));
        assert_eq!(matcher.push("b> 日", &mut out), None);
        assert_eq!((out.as_str(), matcher.held()), ("x < y </b> ", "日"));
        assert_eq!(matcher.push("本語", &mut out), Some(1));
        assert_eq!((out.as_str(), matcher.held(), matcher.stop(1)), ("x < y </b> ", "", "日本"));
    }

    #[test]
    fn an_empty_stop_is_refused_by_name() {
        let error = StopMatcher::new(["x", ""]).unwrap_err().to_string();
        assert!(error.contains("stop"), "{error}");
    }
}
