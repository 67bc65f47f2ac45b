//! A byte-level BPE vocabulary counted from texts (Sennrich et al., arXiv 1508.07909).
//!
//! Words are cut by the very rule that the engine's tokenizer cuts with ([`Pre`]), which is why the
//! merges are counted here and not by a library: what was counted is what will be encoded.

use std::collections::{BTreeMap, HashMap};

use tessera_model::gguf::{GgufWriter, MetaValue};
use tessera_model::tokenizer::{Pre, Texts, Tokenizer, TokenizerSpec};

use crate::{Error, Result};

/// Begins and ends every text, and fills what is left of a row.
pub const END: &str = "<|endoftext|>";
/// Stands for a token that is to be predicted.
pub const MASK: &str = "[MASK]";
/// Tokens besides the bytes: [`END`] and [`MASK`].
const SPECIAL: usize = 2;
/// Tokens of a vocabulary without merges.
pub const BYTES: usize = 256 + SPECIAL;
/// Words are told apart up to this length in bytes; longer ones take no part in counting.
const LONGEST: usize = 32;

/// Merges in order, over 256 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    /// What each token that is not special spells, by id.
    tokens: Vec<Vec<u8>>,
    merges: Vec<(u32, u32)>,
    /// Control tokens behind the special ones that nothing means.
    unused: usize,
}

/// How byte-level vocabularies write a byte: printable bytes as themselves, the others shifted.
fn letter(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let code = match printable(byte) {
        true => u32::from(byte),
        false => 256 + (0..byte).filter(|&b| !printable(b)).count() as u32,
    };
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn spelling(bytes: &[u8]) -> String {
    bytes.iter().map(|&b| letter(b)).collect()
}

impl Vocabulary {
    /// Counts `texts` and merges the most frequent neighbours until there are `size` tokens, the
    /// special ones included, or no pair occurs twice.
    ///
    /// # Errors
    /// A size below 258.
    pub fn train<'t>(texts: impl Iterator<Item = &'t str>, size: usize) -> Result<Self> {
        if size < BYTES {
            return Err(Error::setting(format!("vocabulary = {size}: must be at least {BYTES}")));
        }
        let mut counts: HashMap<&str, u64> = HashMap::new();
        for text in texts {
            Pre::Smollm.split(text, |word| {
                if word.len() <= LONGEST {
                    *counts.entry(word).or_default() += 1;
                }
            });
        }
        let mut words: Vec<(Vec<u32>, u64)> = Vec::with_capacity(counts.len());
        let mut sorted: Vec<_> = counts.into_iter().collect();
        sorted.sort_unstable();
        words.extend(sorted.iter().map(|(w, n)| (w.bytes().map(u32::from).collect(), *n)));
        Ok(Self::merge(words, size - SPECIAL))
    }

    /// Merges until there are `size` tokens. Pairs are counted once and kept up to date; ties go to
    /// the pair of the smaller ids.
    fn merge(mut words: Vec<(Vec<u32>, u64)>, size: usize) -> Self {
        let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|b| vec![b]).collect();
        let mut merges = Vec::new();
        // Count of each pair, and the words it may occur in.
        let mut pairs: BTreeMap<(u32, u32), (u64, Vec<u32>)> = BTreeMap::new();
        for (index, (word, count)) in words.iter().enumerate() {
            for pair in word.windows(2) {
                let entry = pairs.entry((pair[0], pair[1])).or_default();
                entry.0 += count;
                entry.1.push(index as u32);
            }
        }
        while tokens.len() < size {
            let best = pairs.iter().max_by(|a, b| (a.1.0).cmp(&b.1.0).then(b.0.cmp(a.0)));
            let Some((&pair, &(count, _))) = best else { break };
            if count < 2 {
                break;
            }
            let id = tokens.len() as u32;
            tokens.push([&tokens[pair.0 as usize][..], &tokens[pair.1 as usize]].concat());
            merges.push(pair);
            let (_, mut places) = pairs.remove(&pair).unwrap_or_default();
            places.dedup();
            for index in places {
                let (word, count) = &mut words[index as usize];
                for old in word.windows(2) {
                    if let Some(entry) = pairs.get_mut(&(old[0], old[1])) {
                        entry.0 = entry.0.saturating_sub(*count);
                    }
                }
                let mut at = 0;
                while at + 1 < word.len() {
                    if (word[at], word[at + 1]) == pair {
                        word[at] = id;
                        word.remove(at + 1);
                    }
                    at += 1;
                }
                for new in word.windows(2) {
                    // The pair that was just merged is gone from the word.
                    let entry = pairs.entry((new[0], new[1])).or_default();
                    entry.0 += *count;
                    if entry.1.last() != Some(&index) {
                        entry.1.push(index);
                    }
                }
            }
        }
        Self { tokens, merges, unused: 0 }
    }

    /// With unused tokens behind the others, so that their number is a multiple of `of`.
    #[must_use]
    pub fn filled(mut self, of: usize) -> Self {
        self.unused += self.len().next_multiple_of(of) - self.len();
        self
    }

    /// Number of tokens, the special and the unused ones included.
    pub fn len(&self) -> usize {
        self.tokens.len() + SPECIAL + self.unused
    }

    /// Never: there are always the bytes.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The token that begins and ends texts.
    pub fn end(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// The token that stands for one to be predicted.
    pub fn mask(&self) -> u32 {
        self.tokens.len() as u32 + 1
    }

    /// The engine's tokenizer for this vocabulary.
    ///
    /// # Errors
    /// None that a trained vocabulary meets.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let texts = |list: Vec<String>| {
            let mut texts = Texts::default();
            list.iter().for_each(|text| texts.push(text));
            texts
        };
        let spec = TokenizerSpec {
            model: "gpt2".to_owned(),
            pre: Some("smollm".to_owned()),
            tokens: texts(self.spellings()),
            token_types: self.kinds(),
            merges: texts(self.rules()),
            bos: Some(self.end()),
            eos: Some(self.end()),
            pad: Some(self.end()),
            add_bos: Some(true),
            ..TokenizerSpec::default()
        };
        Ok(Tokenizer::new(&spec)?)
    }

    /// Sets the keys of a GGUF file that describe this tokenizer.
    pub fn write(&self, out: &mut GgufWriter) {
        out.set("tokenizer.ggml.model", "gpt2");
        out.set("tokenizer.ggml.pre", "smollm");
        out.set("tokenizer.ggml.tokens", MetaValue::Strs(self.spellings()));
        out.set("tokenizer.ggml.token_type", MetaValue::I32s(self.kinds()));
        out.set("tokenizer.ggml.merges", MetaValue::Strs(self.rules()));
        for key in ["bos", "eos", "padding"] {
            out.set(&format!("tokenizer.ggml.{key}_token_id"), self.end());
        }
        out.set("tokenizer.ggml.mask_token_id", self.mask());
        out.set("tokenizer.ggml.add_bos_token", MetaValue::Bool(true));
    }

    fn spellings(&self) -> Vec<String> {
        let special = [END, MASK].map(str::to_owned);
        let unused = (0..self.unused).map(|i| format!("<|unused{i}|>"));
        self.tokens.iter().map(|t| spelling(t)).chain(special).chain(unused).collect()
    }

    /// Normal tokens and control tokens, as GGUF numbers them.
    fn kinds(&self) -> Vec<i32> {
        let normal = std::iter::repeat_n(1, self.tokens.len());
        normal.chain(std::iter::repeat_n(3, SPECIAL + self.unused)).collect()
    }

    fn rules(&self) -> Vec<String> {
        let of = |id: u32| spelling(&self.tokens[id as usize]);
        self.merges.iter().map(|&(a, b)| format!("{} {}", of(a), of(b))).collect()
    }
}

#[cfg(test)]
mod tests {
    use tessera_model::tokenizer::Special;

    use super::*;

    const TEXT: &str = "low low low lower lower newest newest newest newest widest widest, said Tom's dog. \"Oh!\"";

    #[test]
    fn the_most_frequent_neighbours_are_merged_first() {
        let v = Vocabulary::train([TEXT].into_iter(), 256 + SPECIAL + 3).unwrap();
        // "es" occurs six times, then "est"; " low" and "lo" follow.
        assert_eq!(v.tokens[256], b"es");
        assert_eq!(v.tokens[257], b"est");
        assert_eq!(v.len(), 256 + SPECIAL + 3);
        assert!(Vocabulary::train([TEXT].into_iter(), 257).is_err());
    }

    #[test]
    fn the_engine_encodes_with_the_merges_and_back() {
        let v = Vocabulary::train([TEXT].into_iter(), 300).unwrap();
        assert_eq!(v, Vocabulary::train([TEXT].into_iter(), 300).unwrap());
        let tokenizer = v.tokenizer().unwrap();
        for text in [TEXT, "newest low", "Zebra \u{e9}\u{4e2d} 12", ""] {
            let mut ids = Vec::new();
            tokenizer.encode(text, Special::AsText, &mut ids);
            assert_eq!(tokenizer.decode(&ids), text);
        }
        let mut ids = Vec::new();
        tokenizer.encode(" newest", Special::AsText, &mut ids);
        assert_eq!(ids.len(), 1, "a frequent word is one token");
        assert!(tokenizer.is_end(v.end()) && tokenizer.is_control(v.mask()));
        assert_eq!(tokenizer.vocab_size(), v.len());
        let (end, before) = (v.end(), v.len());
        let filled = v.filled(16);
        assert_eq!((filled.len(), filled.end()), (before.next_multiple_of(16), end));
        let tokenizer = filled.tokenizer().unwrap();
        assert_eq!(tokenizer.vocab_size(), filled.len());
        assert!(tokenizer.is_control(filled.len() as u32 - 1));
    }
}
