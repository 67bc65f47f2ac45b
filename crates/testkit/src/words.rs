//! A vocabulary made of a list of words.

use tessera_core::{TokenId, Vocabulary};

/// A vocabulary for tests: the listed byte strings, then one control token, then one end token.
#[derive(Debug, Clone)]
pub struct Words {
    words: Vec<Vec<u8>>,
}

impl Words {
    /// These words, in order; they may be pieces of characters.
    pub fn new<W: AsRef<[u8]>>(words: impl IntoIterator<Item = W>) -> Self {
        Self { words: words.into_iter().map(|w| w.as_ref().to_vec()).collect() }
    }

    /// All 256 bytes, each a word: token `b` is the byte `b`.
    pub fn bytes() -> Self {
        Self::new((0..=255u8).map(|b| [b]))
    }

    /// The tokens of `bytes`, for a vocabulary made by [`Words::bytes`].
    pub fn encode_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        bytes.iter().map(|&b| TokenId::from(b)).collect()
    }

    /// The control token.
    pub fn control(&self) -> TokenId {
        self.words.len() as TokenId
    }

    /// The end token.
    pub fn end(&self) -> TokenId {
        self.words.len() as TokenId + 1
    }
}

impl Vocabulary for Words {
    fn len(&self) -> usize {
        self.words.len() + 2
    }

    fn bytes(&self, token: TokenId) -> &[u8] {
        self.words.get(token as usize).map_or(&[], Vec::as_slice)
    }

    fn is_control(&self, token: TokenId) -> bool {
        token as usize >= self.words.len()
    }

    fn is_end(&self, token: TokenId) -> bool {
        token == self.end()
    }

    /// The longest word first, byte by byte; bytes that no word begins with are left out.
    fn encode(&self, text: &str) -> Vec<TokenId> {
        self.encode_open(text.as_bytes(), ' ')
    }

    fn encode_open(&self, bytes: &[u8], _: char) -> Vec<TokenId> {
        let (mut rest, mut tokens) = (bytes, Vec::new());
        while !rest.is_empty() {
            let longest = (0..)
                .zip(&self.words)
                .filter(|(_, w)| !w.is_empty() && rest.starts_with(w))
                .max_by_key(|(id, w)| (w.len(), std::cmp::Reverse(*id)));
            match longest {
                Some((id, word)) => {
                    tokens.push(id);
                    rest = &rest[word.len()..];
                }
                None => rest = &rest[1..],
            }
        }
        tokens
    }
}
