//! Hugging Face `tokenizer.json`, read into the same description as a GGUF file's tokenizer. The
//! vocabulary and merges are what matters; the library that defines the format brings far more
//! than the two families here need.

use std::borrow::Cow;
use std::fmt;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::{Texts, TokenizerError, TokenizerSpec};
use crate::FileError;
use crate::file_error::{Fault, quoted};

/// Longest file taken, in bytes; real ones have 2 to 35 million.
const MAX_FILE: u64 = 256 << 20;
/// Ids that no token has are allowed up to this many: a few bytes must not ask for gigabytes.
const MAX_HOLES: usize = 1 << 16;

/// The published pattern of the Qwen family.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What a safetensors directory says about its tokenizer.
#[derive(Debug, Clone, PartialEq)]
pub struct HuggingFace {
    /// The tokenizer.
    pub spec: TokenizerSpec,
    /// The chat template, if the model has one.
    pub chat_template: Option<String>,
}

impl HuggingFace {
    /// Reads `tokenizer.json`, and `tokenizer_config.json` and `chat_template.jinja` where they
    /// are, from a directory.
    ///
    /// # Errors
    /// A file that cannot be read, is too long, or describes a tokenizer of another family.
    pub fn from_directory(directory: &Path) -> Result<Self, TokenizerError> {
        let tokenizer = read(&directory.join("tokenizer.json"))?;
        let config = optional(&directory.join("tokenizer_config.json"))?;
        let template = optional(&directory.join("chat_template.jinja"))?;
        let mut read = Self::from_json(&tokenizer, config.as_deref())?;
        read.chat_template = template.or(read.chat_template);
        Ok(read)
    }

    /// Reads the text of `tokenizer.json` and, if there is one, of `tokenizer_config.json`.
    ///
    /// # Errors
    /// Names the part that is wrong or of another family.
    pub fn from_json(tokenizer: &str, config: Option<&str>) -> Result<Self, TokenizerError> {
        let broken = |file: &str| {
            let file = file.to_owned();
            move |error: serde_json::Error| TokenizerError::field(file, error.to_string())
        };
        let file: File<'_> = serde_json::from_str(tokenizer).map_err(broken("tokenizer.json"))?;
        let config: Config = match config {
            Some(text) => serde_json::from_str(text).map_err(broken("tokenizer_config.json"))?,
            None => Config::default(),
        };
        let chat_template = config.template();
        Ok(Self { spec: spec(&file, &config)?, chat_template })
    }
}

fn read(path: &Path) -> Result<String, FileError> {
    let io = |source| {
        let next = "check that the directory holds a whole model";
        Fault::Io { field: "tokenizer".to_owned(), source, next }.at(path)
    };
    let len = fs::metadata(path).map_err(io)?.len();
    if len > MAX_FILE {
        let expected = format!("at most {MAX_FILE}");
        return Err(Fault::malformed("length", len, expected).at(path));
    }
    fs::read_to_string(path).map_err(io)
}

fn optional(path: &Path) -> Result<Option<String>, FileError> {
    if path.exists() { read(path).map(Some) } else { Ok(None) }
}

#[derive(Deserialize)]
struct File<'a> {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(borrow)]
    model: Model<'a>,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model<'a> {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(borrow)]
    vocab: Vocab<'a>,
    #[serde(borrow)]
    merges: Vec<Rule<'a>>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

/// A string, borrowed from the file where it has no escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsText;
        impl<'de> Visitor<'de> for AsText {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(AsText)
    }
}

struct Vocab<'a>(Vec<(Cow<'a, str>, u32)>);

impl<'de: 'a, 'a> Deserialize<'de> for Vocab<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsVocab;
        impl<'de> Visitor<'de> for AsVocab {
            type Value = Vocab<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tokens to ids")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some((Text(text), id)) = map.next_entry()? {
                    all.push((text, id));
                }
                Ok(Vocab(all))
            }
        }
        deserializer.deserialize_map(AsVocab)
    }
}

/// A merge rule, `left right` in one string. Files write that or a list of two.
struct Rule<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Rule<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsRule;
        impl<'de> Visitor<'de> for AsRule {
            type Value = Rule<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge rule: a string, or a list of two")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Rule(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Rule(Cow::Owned(text.to_owned())))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let two = (list.next_element::<Text<'de>>()?, list.next_element::<Text<'de>>()?);
                match (two, list.next_element::<Text<'de>>()?) {
                    ((Some(Text(left)), Some(Text(right))), None) if !left.contains(' ') => {
                        Ok(Rule(Cow::Owned(format!("{left} {right}"))))
                    }
                    _ => {
                        Err(A::Error::custom("a merge rule is two tokens, the first without space"))
                    }
                }
            }
        }
        deserializer.deserialize_any(AsRule)
    }
}

#[derive(Deserialize, Default)]
struct Config {
    #[serde(default)]
    bos_token: Value,
    #[serde(default)]
    eos_token: Value,
    #[serde(default)]
    pad_token: Value,
    #[serde(default)]
    add_bos_token: Option<bool>,
    #[serde(default)]
    add_eos_token: Option<bool>,
    #[serde(default)]
    chat_template: Value,
}

impl Config {
    /// The template, or the one called `default` of several.
    fn template(&self) -> Option<String> {
        let named = |list: &Vec<Value>| {
            let default = list.iter().find(|entry| entry["name"] == "default")?;
            default["template"].as_str().map(str::to_owned)
        };
        match &self.chat_template {
            Value::String(text) => Some(text.clone()),
            Value::Array(list) => named(list),
            _ => None,
        }
    }
}

/// A token is written as a string or as an object with its `content`.
fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

fn spec(file: &File<'_>, config: &Config) -> Result<TokenizerSpec, TokenizerError> {
    let model = &file.model;
    let field =
        |name: &str, what: String| TokenizerError::field(format!("tokenizer.json {name}"), what);
    if let Some(kind) = model.kind.as_deref().filter(|kind| *kind != "BPE") {
        return Err(TokenizerError::UnknownModel { found: kind.to_owned() });
    }
    // Byte fallback is what tells SentencePiece vocabularies from byte-level ones.
    let spm = model.byte_fallback;
    let pre = if spm { None } else { Some(pre_name(&file.pre_tokenizer)?.to_owned()) };
    if model.ignore_merges {
        return Err(TokenizerError::UnknownPre { found: "ignore_merges".to_owned() });
    }

    let entries = model.vocab.0.len() + file.added_tokens.len();
    let added = file.added_tokens.iter().map(|token| token.id);
    let last = model.vocab.0.iter().map(|(_, id)| *id).chain(added).max();
    let count = last.map_or(0, |id| id as usize + 1);
    if count > entries + MAX_HOLES {
        return Err(field("model.vocab", format!("id {} among {entries} tokens", count - 1)));
    }
    let mut texts: Vec<(Cow<'_, str>, i32)> = vec![(Cow::Borrowed(""), 5); count];
    for (text, id) in &model.vocab.0 {
        let kind = if spm && super::hex_byte(text).is_some() { 6 } else { 1 };
        texts[*id as usize] = (Cow::Borrowed(&**text), kind);
    }
    for token in &file.added_tokens {
        let mut text = Cow::Borrowed(token.content.as_str());
        if spm && !token.special {
            text = super::spaced(&token.content);
        }
        texts[token.id as usize] = (text, if token.special { 3 } else { 4 });
    }

    let mut scores = Vec::new();
    if spm {
        // A merge's rank is the score of what it makes; nothing else is ever made by merging.
        scores = vec![-1e9; count];
        let by_text: std::collections::HashMap<&str, u32> =
            model.vocab.0.iter().map(|(text, id)| (&**text, *id)).collect();
        for (rank, Rule(rule)) in model.merges.iter().enumerate() {
            let name = || format!("model.merges[{rank}]");
            let two = rule
                .split_once(' ')
                .filter(|(a, b)| by_text.contains_key(a) && by_text.contains_key(b));
            let made = two.and_then(|(a, b)| by_text.get(format!("{a}{b}").as_str()));
            let made =
                made.ok_or_else(|| field(&name(), format!("{} names no tokens", quoted(rule))))?;
            let score = &mut scores[*made as usize];
            *score = f32::max(*score, -(rank as f32));
        }
    }

    let id_of =
        |wanted: &str| texts.iter().position(|(text, _)| text == wanted).map(|at| at as u32);
    let id = |token: &Value| content(token).and_then(id_of);
    let bos = id(&config.bos_token);
    let starts = || {
        let first = &file.post_processor["single"][0]["SpecialToken"]["id"];
        let wanted = content(&config.bos_token)?;
        Some(file.post_processor["type"] == "TemplateProcessing" && first == wanted)
    };
    Ok(TokenizerSpec {
        model: if spm { "llama" } else { "gpt2" }.to_owned(),
        pre,
        tokens: texts.iter().map(|(text, _)| &**text).collect(),
        scores,
        token_types: texts.iter().map(|(_, kind)| *kind).collect(),
        merges: if spm {
            Texts::default()
        } else {
            model.merges.iter().map(|rule| &*rule.0).collect()
        },
        bos,
        eos: id(&config.eos_token),
        pad: id(&config.pad_token),
        unk: model.unk_token.as_deref().and_then(id_of),
        add_bos: config.add_bos_token.or_else(starts).map(|add| add && bos.is_some()),
        add_eos: config.add_eos_token,
        add_space_prefix: Some(false),
        ..TokenizerSpec::default()
    })
}

/// The name of the word rule that a `pre_tokenizer` describes.
fn pre_name(pre: &Value) -> Result<&'static str, TokenizerError> {
    let one = [pre.clone()];
    let steps = pre["pretokenizers"].as_array().map_or(&one[..], Vec::as_slice);
    let bytes = |step: &Value, words: bool| {
        step["type"] == "ByteLevel"
            && step["add_prefix_space"] != true
            && step["use_regex"].as_bool().unwrap_or(true) == words
    };
    match steps {
        [digits, rest]
            if digits["type"] == "Digits"
                && digits["individual_digits"] == true
                && bytes(rest, true) =>
        {
            Ok("smollm")
        }
        [split, rest]
            if split["type"] == "Split"
                && split["pattern"]["Regex"] == QWEN2
                && split["behavior"] == "Isolated"
                && split["invert"] != true
                && bytes(rest, false) =>
        {
            Ok("qwen2")
        }
        _ => {
            let kinds: Vec<&str> =
                steps.iter().map(|step| step["type"].as_str().unwrap_or("none")).collect();
            let found = format!("a pre_tokenizer of {}", kinds.join(" + "));
            Err(TokenizerError::UnknownPre { found })
        }
    }
}
