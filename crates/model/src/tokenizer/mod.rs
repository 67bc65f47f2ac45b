//! Long because every way into and out of a tokenizer is one type's.
//!
//! Text to tokens and back, equal to llama.cpp's on the same file, with one difference that is
//! meant: text encoded [`Special::AsText`] never becomes a control token, however it is spelled.
//!
//! ```
//! use tessera_model::tokenizer::{Special, Tokenizer, TokenizerSpec};
//! # fn main() -> Result<(), tessera_model::tokenizer::TokenizerError> {
//! let tokenizer = Tokenizer::new(&TokenizerSpec {
//!     model: "gpt2".into(),
//!     pre: Some("smollm".into()),
//!     tokens: ["h", "i", "hi", "<|im_end|>"].into_iter().collect(),
//!     merges: ["h i"].into_iter().collect(),
//!     token_types: vec![1, 1, 1, 3],
//!     ..TokenizerSpec::default()
//! })?;
//! let mut ids = Vec::new();
//! tokenizer.encode("hi<|im_end|>", Special::Parse, &mut ids);
//! assert_eq!(ids, [2, 3]);
//! assert!(tokenizer.is_end(3));
//! # Ok(()) }
//! ```

mod bpe;
mod error;
mod json;
mod json_write;
mod marks;
mod spec;
mod specials;
mod split;
mod spm;
mod tables;

pub use error::TokenizerError;
pub use json::HuggingFace;
pub use spec::{Texts, TokenKind, TokenizerSpec};
pub use split::Pre;

use std::borrow::Cow;

use crate::file_error::quoted;
use bpe::Bpe;
pub use marks::FillIn;
use marks::Marks;
use specials::{Fragment, Specials};
use spm::Spm;
use tables::{Arena, Index, NONE};

/// What spellings of control tokens in a text mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Plain text: for everything a user wrote.
    AsText,
    /// The tokens themselves: for text the program or the model's template wrote.
    Parse,
}

/// A piece of a prompt, for [`Tokenizer::encode_pieces`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'t> {
    /// Text; spellings of control tokens in it are text too.
    Text(&'t str),
    /// A token.
    Token(u32),
}

/// A tokenizer. It is immutable and may be shared between threads.
#[derive(Debug)]
pub struct Tokenizer {
    algorithm: Algorithm,
    /// What each token means in text: empty for control tokens.
    arena: Arena,
    /// How each token that is not ordinary is spelled; empty for ordinary ones.
    raw: Arena,
    kinds: Vec<TokenKind>,
    /// Tokens that merging may produce, over `arena`.
    normal: Index,
    /// All other tokens, over `raw`.
    marked: Index,
    /// Matched before anything else in text that may hold control tokens, and in plain text.
    parse: Specials,
    plain: Specials,
    /// Per token: user-defined, but steering like a control token.
    structural: Vec<u32>,
    marks: Marks,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    unk: Option<u32>,
    add_bos: bool,
    add_eos: bool,
}

#[derive(Debug)]
enum Algorithm {
    Bpe(Box<Bpe>),
    Spm(Box<Spm>),
}

impl Tokenizer {
    /// Checks a description and builds the lookup tables.
    ///
    /// # Errors
    /// Names the field that is wrong or asks for something that is not supported.
    pub fn new(spec: &TokenizerSpec) -> Result<Self, TokenizerError> {
        let bpe = match spec.model.as_str() {
            "gpt2" => true,
            "llama" => false,
            other => return Err(TokenizerError::UnknownModel { found: other.to_owned() }),
        };
        let pre = if bpe { Some(Pre::from_name(spec.pre.as_deref())?) } else { None };
        check(spec, bpe)?;

        let count = spec.tokens.len();
        let marks = Marks::find(spec);
        let kinds = marks.kinds(spec)?;
        let mut bytes = [NONE; 256];
        let mut arena = Arena::with_capacity(count, spec.tokens.total_bytes());
        let mut raw = Arena::with_capacity(count, 0);
        let mut longest = 0;
        let mut buffer = Vec::new();
        for (id, (text, kind)) in spec.tokens.iter().zip(&kinds).enumerate() {
            buffer.clear();
            let mut spelling = text;
            match kind {
                TokenKind::Normal => {
                    if bpe {
                        if !bpe::decode(text, &mut buffer) {
                            // Bytes cannot be read off it, so no text merges into it.
                            buffer.clear();
                            buffer.extend_from_slice(text.as_bytes());
                        }
                    } else {
                        buffer.extend_from_slice(spaced(text).as_bytes());
                    }
                    longest = longest.max(buffer.len());
                    spelling = "";
                }
                TokenKind::UserDefined => buffer.extend_from_slice(text.as_bytes()),
                TokenKind::Byte => {
                    let byte = hex_byte(text).ok_or_else(|| {
                        TokenizerError::field(
                            format!("tokenizer.ggml.tokens[{id}]"),
                            format!("{} is no byte token such as <0x0A>", quoted(text)),
                        )
                    })?;
                    bytes[usize::from(byte)] = id as u32;
                    buffer.push(byte);
                }
                TokenKind::Unknown | TokenKind::Control | TokenKind::Unused => {}
            }
            if !arena.push(buffer.iter().copied()) || !raw.push(spelling.bytes()) {
                return Err(TokenizerError::field("tokenizer.ggml.tokens", "longer than 4 GiB"));
            }
        }

        let ids = 0..count as u32;
        let of = |wanted: fn(TokenKind) -> bool| {
            let kinds = &kinds;
            ids.clone().filter(move |id| wanted(kinds[*id as usize]))
        };
        let mut normal = Index::new(count);
        for id in of(|kind| kind == TokenKind::Normal) {
            if !arena.get(id).is_empty() {
                normal.insert(&arena, id);
            }
        }
        let others: Vec<u32> = of(|kind| kind != TokenKind::Normal).collect();
        let mut marked = Index::new(others.len());
        others.iter().for_each(|id| marked.insert(&raw, *id));

        let matched: Vec<u32> = of(|kind| {
            matches!(kind, TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined)
        })
        .collect();
        let plain: Vec<u32> = of(|kind| kind == TokenKind::UserDefined)
            .filter(|id| spec.tokens.get(*id as usize).is_some_and(specials::is_plain))
            .collect();
        let structural = of(|kind| kind == TokenKind::UserDefined)
            .filter(|id| plain.binary_search(id).is_err())
            .collect();
        let parse = Specials::new(&raw, &matched);
        let plain = Specials::new(&raw, &plain);

        let algorithm = match pre {
            Some(pre) => {
                let special = |text: &str| marked.get(&raw, text.as_bytes()).is_some();
                Algorithm::Bpe(Box::new(Bpe::new(pre, &spec.merges, &arena, &normal, special)?))
            }
            None => Algorithm::Spm(Box::new(Spm::new(
                &spec.scores,
                bytes,
                spec.unk,
                (&arena, &normal),
                longest,
                spec.add_space_prefix.unwrap_or(true),
            )?)),
        };
        Ok(Self {
            algorithm,
            arena,
            raw,
            kinds,
            normal,
            marked,
            parse,
            plain,
            structural,
            marks,
            bos: spec.bos,
            eos: spec.eos,
            pad: spec.pad,
            unk: spec.unk,
            add_bos: spec.add_bos.unwrap_or(!bpe && spec.bos.is_some()),
            add_eos: spec.add_eos.unwrap_or(false),
        })
    }

    /// Appends the tokens of a text to `out`, without any that mark its start or end.
    pub fn encode(&self, text: &str, special: Special, out: &mut Vec<u32>) {
        let specials = match special {
            Special::AsText => &self.plain,
            Special::Parse => &self.parse,
        };
        let mut state = Encoding::default();
        specials.partition(text, |fragment| self.fragment(fragment, &mut state, out));
    }

    /// Appends the tokens of a text that breaks off inside a character. Where text is cut into words,
    /// the unfinished character counts as `like`.
    pub fn encode_open(&self, bytes: &[u8], like: char, out: &mut Vec<u32>) {
        let (whole, tail) = match std::str::from_utf8(bytes) {
            Ok(text) => return self.encode(text, Special::AsText, out),
            Err(error) => bytes.split_at(error.valid_up_to()),
        };
        let whole = String::from_utf8_lossy(whole).into_owned();
        let text = format!("{whole}{like}");
        let mut state = Encoding::default();
        let mut at = 0;
        self.plain.partition(&text, |fragment| {
            match fragment {
                Fragment::Token(id) => at += self.raw.get(id).len(),
                Fragment::Text(part) => at += part.len(),
            }
            match (fragment, &self.algorithm) {
                (Fragment::Text(part), Algorithm::Bpe(bpe)) if at == text.len() => {
                    bpe.encode_open(part, like.len_utf8(), tail, &mut state.scratch, out);
                }
                (Fragment::Text(part), Algorithm::Spm(spm)) if at == text.len() => {
                    let before = &part[..part.len() - like.len_utf8()];
                    if !before.is_empty() || !state.inside {
                        self.fragment(Fragment::Text(before), &mut state, out);
                    }
                    spm.spell(tail, out);
                }
                (fragment, _) => self.fragment(fragment, &mut state, out),
            }
        });
    }

    /// The tokens of a whole text, with the ones that mark start and end where the model wants
    /// them.
    pub fn encode_with_bos(&self, text: &str, special: Special) -> Vec<u32> {
        let mut out = Vec::new();
        out.extend(self.bos.filter(|_| self.add_bos));
        self.encode(text, special, &mut out);
        out.extend(self.eos.filter(|_| self.add_eos));
        out
    }

    /// Appends the tokens of a prompt made of text and tokens. Text between two tokens should
    /// come in one piece: how it is cut into words depends on what is next to it.
    pub fn encode_pieces<'t>(
        &self,
        pieces: impl IntoIterator<Item = Piece<'t>>,
        out: &mut Vec<u32>,
    ) {
        let mut state = Encoding::default();
        for piece in pieces {
            match piece {
                Piece::Token(id) => self.fragment(Fragment::Token(id), &mut state, out),
                Piece::Text(text) => self.plain.partition(text, |fragment| {
                    self.fragment(fragment, &mut state, out);
                }),
            }
        }
    }

    fn fragment(&self, fragment: Fragment<'_>, state: &mut Encoding, out: &mut Vec<u32>) {
        let text = match fragment {
            Fragment::Text(text) => text,
            Fragment::Token(id) => {
                out.push(id);
                state.inside = false;
                return;
            }
        };
        match &self.algorithm {
            Algorithm::Bpe(bpe) => bpe.encode(text, &mut state.scratch, out),
            Algorithm::Spm(spm) => {
                let mut text = spaced(text);
                if spm.space_prefix && !state.inside {
                    text.to_mut().insert(0, ' ');
                }
                spm.encode(&text, &self.arena, &self.normal, out);
            }
        }
        state.inside = true;
    }

    /// The text of some tokens. Control tokens have none; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        String::from_utf8_lossy(&self.decode_bytes(ids)).into_owned()
    }

    /// The bytes of some tokens one after the other. Control tokens have none.
    pub fn decode_bytes(&self, ids: &[u32]) -> Vec<u8> {
        ids.iter().flat_map(|id| self.token_bytes(*id)).copied().collect()
    }

    /// The bytes a token adds to a text: none for control tokens and ids past the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.arena.get(id)
    }

    /// How a token reads in a listing: the spelling for control tokens, else its text, lossy.
    pub fn spelling(&self, id: u32) -> Cow<'_, str> {
        let bytes = if self.is_control(id) { self.raw.get(id) } else { self.arena.get(id) };
        String::from_utf8_lossy(bytes)
    }

    /// The kind of a token; `None` past the vocabulary.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// Whether a token is never part of a text: control tokens, the unknown token, holes.
    pub fn is_control(&self, id: u32) -> bool {
        matches!(self.kind(id), Some(TokenKind::Control | TokenKind::Unknown | TokenKind::Unused))
    }

    /// Whether [`Special::AsText`] never yields this token: control tokens, and user-defined ones
    /// that steer the model, such as `<tool_call>`.
    pub fn is_structural(&self, id: u32) -> bool {
        self.is_control(id) || self.structural.binary_search(&id).is_ok()
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.arena.len()
    }

    /// The token that is spelled like this: a marker (control, user-defined) before a text token.
    pub fn id_of(&self, text: &str) -> Option<u32> {
        let bytes = text.as_bytes();
        self.marked.get(&self.raw, bytes).or_else(|| self.normal.get(&self.arena, bytes))
    }

    /// The control tokens and steering user-defined tokens, by id.
    pub fn structural_ids(&self) -> impl Iterator<Item = u32> {
        (0..self.vocab_size() as u32)
            .filter(|id| self.is_structural(*id) && self.kind(*id) != Some(TokenKind::Unused))
    }

    /// The token that starts a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The token that ends a turn of a conversation.
    pub fn eot(&self) -> Option<u32> {
        self.marks.eot
    }

    /// The token that fills unused positions.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// The token for what the vocabulary cannot spell.
    pub fn unk(&self) -> Option<u32> {
        self.unk
    }

    /// Whether texts start with [`Self::bos`].
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// Every token that ends generation, ascending: end of text, end of turn, and the others that
    /// llama.cpp recognises by name.
    pub fn end_ids(&self) -> &[u32] {
        &self.marks.ends
    }

    /// Whether a token ends generation.
    pub fn is_end(&self, id: u32) -> bool {
        self.marks.ends.binary_search(&id).is_ok()
    }

    /// The tokens for filling in the middle of a text, if the model has them.
    pub fn fill_in(&self) -> Option<FillIn> {
        self.marks.fill_in
    }

    /// Whether the vocabulary can spell a byte. Text loses the bytes it cannot spell, as in
    /// llama.cpp: SmolLM2 has no token for six control characters and for planes 4 to 11.
    pub fn spells(&self, byte: u8) -> bool {
        match &self.algorithm {
            Algorithm::Bpe(bpe) => bpe.spells(byte),
            Algorithm::Spm(_) => true,
        }
    }
}

impl tessera_core::Vocabulary for Tokenizer {
    fn len(&self) -> usize {
        self.vocab_size()
    }

    fn bytes(&self, token: u32) -> &[u8] {
        self.token_bytes(token)
    }

    fn is_control(&self, token: u32) -> bool {
        Self::is_control(self, token)
    }

    fn is_end(&self, token: u32) -> bool {
        Self::is_end(self, token)
    }

    fn encode(&self, text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        Self::encode(self, text, Special::AsText, &mut out);
        out
    }

    fn encode_open(&self, bytes: &[u8], like: char) -> Vec<u32> {
        let mut out = Vec::new();
        Self::encode_open(self, bytes, like, &mut out);
        out
    }
}

#[derive(Default)]
struct Encoding {
    scratch: bpe::Scratch,
    /// Whether the last fragment was text.
    inside: bool,
}

/// Text with its spaces as spaces. Files write spaces inside SentencePiece tokens as U+2581, and
/// text that holds that character itself is not told apart.
fn spaced(text: &str) -> Cow<'_, str> {
    if text.contains(spm::SPACE) {
        Cow::Owned(text.replace(spm::SPACE, " "))
    } else {
        Cow::Borrowed(text)
    }
}

/// The byte of a token such as `<0x0A>`: two hexadecimal digits, nothing else.
fn hex_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    // `from_str_radix` alone would take a sign.
    let exact = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    exact.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// Checks the lengths, numbers and ids of a description.
fn check(spec: &TokenizerSpec, bpe: bool) -> Result<(), TokenizerError> {
    let count = spec.tokens.len();
    if count == 0 || i32::try_from(count).is_err() {
        let what = format!("{count} tokens, expected 1 to 2^31 - 1");
        return Err(TokenizerError::field("tokenizer.ggml.tokens", what));
    }
    for (name, len) in [("scores", spec.scores.len()), ("token_type", spec.token_types.len())] {
        let needed = name == "scores" && !bpe;
        if len != count && (len != 0 || needed) {
            let what = format!("{len} entries for {count} tokens");
            return Err(TokenizerError::field(format!("tokenizer.ggml.{name}"), what));
        }
    }
    if let Some(id) = spec.ends.iter().find(|id| **id as usize >= count) {
        let what = format!("token {id} of a vocabulary of {count}");
        return Err(TokenizerError::field("generation_config.json eos_token_id", what));
    }
    if let Some(at) = spec.scores.iter().position(|score| score.is_nan()) {
        return Err(TokenizerError::field(format!("tokenizer.ggml.scores[{at}]"), "not a number"));
    }
    let ids = [
        ("bos_token_id", spec.bos),
        ("eos_token_id", spec.eos),
        ("eot_token_id", spec.eot),
        ("eom_token_id", spec.eom),
        ("padding_token_id", spec.pad),
        ("unknown_token_id", spec.unk),
    ];
    for (name, id) in ids {
        if let Some(id) = id.filter(|id| *id as usize >= count) {
            let what = format!("token {id} of a vocabulary of {count}");
            return Err(TokenizerError::field(format!("tokenizer.ggml.{name}"), what));
        }
    }
    for (name, wanted, id) in
        [("add_bos_token", spec.add_bos, spec.bos), ("add_eos_token", spec.add_eos, spec.eos)]
    {
        if wanted == Some(true) && id.is_none() {
            let what = "true, but the file names no such token";
            return Err(TokenizerError::field(format!("tokenizer.ggml.{name}"), what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
