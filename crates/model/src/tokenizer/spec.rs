//! The plain description a tokenizer is built from, whatever file it came out of.

use super::TokenizerError;
use crate::gguf::Metadata;

/// Many short strings in one allocation: a vocabulary of 262,144 tokens is two vectors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Texts {
    text: String,
    ends: Vec<usize>,
}

impl Texts {
    /// Appends one string.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The string at `index`.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { *self.ends.get(index - 1)? };
        self.text.get(start..end)
    }

    /// The strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |end| {
            let text = &self.text[start..*end];
            start = *end;
            text
        })
    }

    /// Length of all of them together, in bytes.
    pub fn total_bytes(&self) -> usize {
        self.text.len()
    }
}

impl<'a> FromIterator<&'a str> for Texts {
    fn from_iter<I: IntoIterator<Item = &'a str>>(iter: I) -> Self {
        let mut texts = Self::default();
        for text in iter {
            texts.push(text);
        }
        texts
    }
}

/// What a token is for, as GGUF files number it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    Normal,
    /// Stands for what the vocabulary cannot spell.
    Unknown,
    /// Steers the model; never part of the text.
    Control,
    /// Text that is matched before anything else.
    UserDefined,
    /// A hole in the numbering.
    Unused,
    /// One raw byte.
    Byte,
}

impl TokenKind {
    /// The kind with this number in a GGUF file; 0 (undefined) counts as normal.
    pub fn from_gguf(id: i32) -> Option<Self> {
        Some(match id {
            0 | 1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// A tokenizer as files describe it, not yet checked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenizerSpec {
    /// The algorithm: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: String,
    /// How byte-level BPE cuts text into words first, such as `smollm`.
    pub pre: Option<String>,
    /// Spelling of each token, by id, in the file's own encoding.
    pub tokens: Texts,
    /// Merge priority of each token (SentencePiece), higher first; empty when there are none.
    pub scores: Vec<f32>,
    /// Kind of each token as GGUF numbers it; empty when all are normal.
    pub token_types: Vec<i32>,
    /// Merge rules `left right` in order of priority (byte-level BPE).
    pub merges: Texts,
    /// Starts a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Ends a turn of a conversation.
    pub eot: Option<u32>,
    /// Ends a message that another message of the same speaker follows.
    pub eom: Option<u32>,
    /// Further tokens that end generation, beside those that are known by name.
    pub ends: Vec<u32>,
    /// Fills unused positions.
    pub pad: Option<u32>,
    /// Stands for what cannot be spelled.
    pub unk: Option<u32>,
    /// Whether texts start with `bos`; `None` leaves it to the algorithm.
    pub add_bos: Option<bool>,
    /// Whether texts end with `eos`.
    pub add_eos: Option<bool>,
    /// Whether texts start with a space that decoding takes off (SentencePiece).
    pub add_space_prefix: Option<bool>,
}

impl TokenizerSpec {
    /// Reads `tokenizer.ggml.*` of a GGUF file.
    ///
    /// # Errors
    /// A key that is missing, or of another type than it should be; both name the key.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, TokenizerError> {
        const PREFIX: &str = "tokenizer.ggml.";
        let key = |name: &str| format!("{PREFIX}{name}");
        let id = |name: &str| metadata.get_u32(&key(name));
        let flag = |name: &str| metadata.get_bool(&key(name));
        let list = |name: &str| -> Result<Texts, TokenizerError> {
            Ok(metadata.get_arr_str(&key(name))?.map(|a| a.iter().collect()).unwrap_or_default())
        };
        let tokens: Texts = metadata.arr_str(&key("tokens"))?.iter().collect();
        let mut token_types = metadata.get_arr_i32(&key("token_type"))?.unwrap_or_default();
        if let Some(mask) = id("mask_token_id")?.filter(|mask| (*mask as usize) < tokens.len()) {
            // The mask steers the model and is never part of a text, whatever the file calls it.
            if token_types.is_empty() {
                token_types = vec![1; tokens.len()];
            }
            if let Some(kind) = token_types.get_mut(mask as usize) {
                *kind = 3;
            }
        }
        Ok(Self {
            model: metadata.str(&key("model"))?.to_owned(),
            pre: metadata.get_str(&key("pre"))?.map(str::to_owned),
            tokens,
            scores: metadata.get_arr_f32(&key("scores"))?.unwrap_or_default(),
            token_types,
            merges: list("merges")?,
            bos: id("bos_token_id")?,
            eos: id("eos_token_id")?,
            eot: id("eot_token_id")?,
            eom: id("eom_token_id")?,
            ends: Vec::new(),
            pad: id("padding_token_id")?,
            unk: id("unknown_token_id")?,
            add_bos: flag("add_bos_token")?,
            add_eos: flag("add_eos_token")?,
            add_space_prefix: flag("add_space_prefix")?,
        })
    }
}
