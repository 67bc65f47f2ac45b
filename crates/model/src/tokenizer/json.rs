//! Hugging Face `tokenizer.json`, read into the same description as a GGUF file's tokenizer. The
//! vocabulary and merges are what matters; the library that defines the format brings far more
//! than the two families here need.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::{Texts, TokenizerError, TokenizerSpec, spm};
use crate::FileError;
use crate::file_error::{Fault, printable, quoted};
use crate::safetensors::Root;

/// Longest `tokenizer.json` taken, in bytes; real ones have 2 to 35 million.
const MAX_FILE: u64 = 256 << 20;
/// Longest of the other files; real ones have up to 1.2 million, mostly lists of added tokens.
const MAX_SIDE: u64 = 16 << 20;
/// Ids that no token has are allowed up to this many: a few bytes must not ask for gigabytes.
const MAX_HOLES: usize = 1 << 16;

/// The published pattern of the Qwen family.
pub(super) const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const CONFIG: &str = "tokenizer_config.json";
pub(super) const GENERATION: &str = "generation_config.json";
const TEMPLATE: &str = "chat_template.jinja";

/// What a safetensors directory says about its tokenizer.
#[derive(Debug, Clone, PartialEq)]
pub struct HuggingFace {
    /// The tokenizer.
    pub spec: TokenizerSpec,
    /// The chat template, if the model has one.
    pub chat_template: Option<String>,
}

impl HuggingFace {
    /// Reads `tokenizer.json` from a directory, and what is there of `tokenizer_config.json`,
    /// `generation_config.json` and `chat_template.jinja`.
    ///
    /// # Errors
    /// A file that cannot be read, is too long, leads out of the directory, or describes a
    /// tokenizer of another family.
    pub fn from_directory(directory: &Path) -> Result<Self, TokenizerError> {
        let root = Root::new(directory)?;
        let tokenizer = text(&root, TOKENIZER, MAX_FILE)?;
        let config = optional(&root, CONFIG)?;
        let generation = optional(&root, GENERATION)?;
        let mut read = Self::from_json(&tokenizer, config.as_deref(), generation.as_deref())?;
        read.chat_template = optional(&root, TEMPLATE)?.or(read.chat_template);
        Ok(read)
    }

    /// Reads the text of `tokenizer.json` and, if they are there, of `tokenizer_config.json` and
    /// `generation_config.json`.
    ///
    /// # Errors
    /// Names the part that is wrong or of another family.
    pub fn from_json(
        tokenizer: &str,
        config: Option<&str>,
        generation: Option<&str>,
    ) -> Result<Self, TokenizerError> {
        let file: File<'_> = parse(TOKENIZER, tokenizer)?;
        let config: Config =
            config.map(|text| parse(CONFIG, text)).transpose()?.unwrap_or_default();
        let generation: Generation =
            generation.map(|text| parse(GENERATION, text)).transpose()?.unwrap_or_default();
        let chat_template = config.template();
        Ok(Self { spec: spec(&file, &config, &generation)?, chat_template })
    }
}

fn parse<'a, T: Deserialize<'a>>(file: &str, text: &'a str) -> Result<T, TokenizerError> {
    serde_json::from_str(text)
        .map_err(|error| TokenizerError::field(file, printable(&error.to_string(), 200)))
}

/// An optional file's text; a link that leads nowhere counts as there, so that it is named.
fn optional(root: &Root, name: &str) -> Result<Option<String>, FileError> {
    root.holds(name).then(|| text(root, name, MAX_SIDE)).transpose()
}

fn text(root: &Root, name: &str, most: u64) -> Result<String, FileError> {
    let bytes = root.read(name, most)?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let field = format!("file {}, byte {at}", quoted(name));
        Fault::malformed(field, "not UTF-8", "UTF-8 text").at(root.path())
    })
}

#[derive(Deserialize)]
struct File<'a> {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
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

/// Ids that generation starts and ends with.
#[derive(Deserialize, Default)]
struct Generation {
    #[serde(default)]
    bos_token_id: Option<u32>,
    #[serde(default)]
    eos_token_id: Option<Ids>,
    #[serde(default)]
    pad_token_id: Option<u32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Several(Vec<u32>),
}

impl Ids {
    fn list(&self) -> &[u32] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Several(list) => list,
        }
    }
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

fn spec(
    file: &File<'_>,
    config: &Config,
    generation: &Generation,
) -> Result<TokenizerSpec, TokenizerError> {
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
    let bos = id(&config.bos_token).or(generation.bos_token_id);
    let ends = generation.eos_token_id.as_ref().map_or(&[][..], Ids::list);
    let unk = model.unk_token.as_deref().and_then(id_of);
    let mut token_types: Vec<i32> = texts.iter().map(|(_, kind)| *kind).collect();
    // Where it is an added token too, it is a control token already.
    if let Some(kind) = unk.and_then(|unk| token_types.get_mut(unk as usize)).filter(|k| **k == 1) {
        *kind = 2;
    }
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
        token_types,
        merges: if spm {
            Texts::default()
        } else {
            model.merges.iter().map(|rule| &*rule.0).collect()
        },
        bos,
        eos: id(&config.eos_token).or(ends.first().copied()),
        ends: ends.to_vec(),
        pad: id(&config.pad_token).or(generation.pad_token_id),
        unk,
        add_bos: config.add_bos_token.or_else(starts).map(|add| add && bos.is_some()),
        add_eos: config.add_eos_token,
        add_space_prefix: Some(spm && adds_space(file)),
        ..TokenizerSpec::default()
    })
}

/// Whether texts get a space in front: a step of the normalizer, or of the rule for words.
fn adds_space(file: &File<'_>) -> bool {
    let spaced = |step: &Value| {
        let space =
            |key: &str| step[key].as_str().is_some_and(|text| text.chars().eq([spm::SPACE]));
        match step["type"].as_str() {
            Some("Prepend") => space("prepend"),
            Some("Metaspace") => match step["prepend_scheme"].as_str() {
                Some(scheme) => scheme != "never",
                None => step["add_prefix_space"] != false,
            },
            _ => false,
        }
    };
    let any = |part: &Value, list: &str| match part[list].as_array() {
        Some(steps) => steps.iter().any(spaced),
        None => spaced(part),
    };
    any(&file.normalizer, "normalizers") || any(&file.pre_tokenizer, "pretokenizers")
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
