//! Writing a tokenizer as `tokenizer.json` and the two small files beside it.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::json::{CONFIG, GENERATION, HuggingFace, QWEN2, TOKENIZER};
use super::{Pre, TokenizerError, TokenizerSpec};
use crate::file_error::Fault;
use crate::gguf::Metadata;
use crate::whole_file::{put, write_whole};

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

impl HuggingFace {
    /// The tokenizer and chat template of a GGUF file.
    ///
    /// # Errors
    /// As [`TokenizerSpec::from_gguf`].
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let chat_template = metadata.get_str("tokenizer.chat_template")?.map(str::to_owned);
        Ok(Self { spec: TokenizerSpec::from_gguf(metadata)?, chat_template })
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` into a
    /// directory, which is made if need be. Read back, they give the same tokens, with two
    /// exceptions: unused tokens lose their spelling, and SentencePiece tokens of equal score are
    /// merged in the order of their ids instead of from the left.
    ///
    /// # Errors
    /// A tokenizer that is of neither family, or files that cannot be written.
    pub fn write_into(&self, directory: &Path) -> Result<(), TokenizerError> {
        std::fs::create_dir_all(directory).map_err(|source| {
            let next = "check the path and its permissions";
            Fault::Io { field: "output directory".into(), source, next }.at(directory)
        })?;
        for (name, document) in [
            (TOKENIZER, tokenizer(&self.spec)?),
            (CONFIG, self.config()),
            (GENERATION, generation(&self.spec)),
        ] {
            let path = directory.join(name);
            write_whole(&path, |out| put(out, format!("{document:#}\n").as_bytes(), &path))?;
        }
        Ok(())
    }

    fn config(&self) -> Value {
        let spec = &self.spec;
        let text = |id: Option<u32>| id.and_then(|id| spec.tokens.get(id as usize));
        let spm = spec.model == "llama";
        let mut config = json!({
            "bos_token": text(spec.bos),
            "eos_token": text(spec.eos),
            "pad_token": text(spec.pad),
            "add_bos_token": spec.add_bos.unwrap_or(spm && spec.bos.is_some()),
            "add_eos_token": spec.add_eos.unwrap_or(false),
        });
        if let Some(template) = &self.chat_template {
            config["chat_template"] = template.as_str().into();
        }
        config
    }
}

fn generation(spec: &TokenizerSpec) -> Value {
    let mut ends: Vec<u32> = Vec::new();
    for id in [spec.eos, spec.eot, spec.eom].into_iter().flatten().chain(spec.ends.iter().copied())
    {
        if !ends.contains(&id) {
            ends.push(id);
        }
    }
    let ends = if ends.is_empty() { Value::Null } else { ends.into() };
    json!({ "bos_token_id": spec.bos, "eos_token_id": ends, "pad_token_id": spec.pad })
}

fn tokenizer(spec: &TokenizerSpec) -> Result<Value, TokenizerError> {
    let spm = match spec.model.as_str() {
        "gpt2" => false,
        "llama" => true,
        other => return Err(TokenizerError::UnknownModel { found: other.to_owned() }),
    };
    let kind = |id: usize| spec.token_types.get(id).copied().unwrap_or(NORMAL);
    let tokens = || spec.tokens.iter().enumerate();
    let vocab: Map<String, Value> = tokens()
        .filter(|(id, _)| !matches!(kind(*id), CONTROL | USER_DEFINED | UNUSED))
        .map(|(id, text)| (text.to_owned(), id.into()))
        .collect();
    let added: Vec<Value> = tokens()
        .filter(|(id, _)| matches!(kind(*id), CONTROL | USER_DEFINED))
        .map(|(id, text)| json!({ "id": id, "content": text, "special": kind(id) == CONTROL }))
        .collect();
    let unk = spec.unk.and_then(|id| spec.tokens.get(id as usize));
    let merges = if spm { merges(spec) } else { rules(spec) };
    Ok(json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": if spm { normalizer(spec) } else { Value::Null },
        "pre_tokenizer": if spm { Value::Null } else { words(spec)? },
        "decoder": if spm { Value::Null } else { byte_level(true) },
        "model": {
            "type": "BPE", "unk_token": unk, "byte_fallback": spm, "vocab": vocab, "merges": merges,
        },
    }))
}

/// The merge rules of byte-level BPE.
fn rules(spec: &TokenizerSpec) -> Vec<Value> {
    spec.merges.iter().filter_map(|rule| rule.split_once(' ')).map(|two| json!(two)).collect()
}

/// Every way to make a SentencePiece token out of two others, the best tokens first.
fn merges(spec: &TokenizerSpec) -> Vec<Value> {
    let kind = |id: usize| spec.token_types.get(id).copied().unwrap_or(NORMAL);
    let normal = || spec.tokens.iter().enumerate().filter(|(id, _)| kind(*id) == NORMAL);
    let texts: HashSet<&str> = normal().map(|(_, text)| text).collect();
    // Of equal spellings the last counts, as in the vocabulary.
    let last: HashMap<&str, usize> = normal().map(|(id, text)| (text, id)).collect();
    let mut ids: Vec<usize> = last.into_values().collect();
    let score = |id: usize| spec.scores.get(id).copied().unwrap_or_default();
    ids.sort_unstable_by(|a, b| score(*b).total_cmp(&score(*a)).then(a.cmp(b)));
    let mut merges = Vec::new();
    for text in ids.into_iter().filter_map(|id| spec.tokens.get(id)) {
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if texts.contains(left) && texts.contains(right) {
                merges.push(json!([left, right]));
            }
        }
    }
    merges
}

fn normalizer(spec: &TokenizerSpec) -> Value {
    let space = super::spm::SPACE.to_string();
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": space });
    if !spec.add_space_prefix.unwrap_or(true) {
        return replace;
    }
    let prepend = json!({ "type": "Prepend", "prepend": space });
    json!({ "type": "Sequence", "normalizers": [prepend, replace] })
}

fn byte_level(words: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": words,
    })
}

fn words(spec: &TokenizerSpec) -> Result<Value, TokenizerError> {
    let steps = match Pre::from_name(spec.pre.as_deref())? {
        Pre::Smollm => {
            json!([{ "type": "Digits", "individual_digits": true }, byte_level(true)])
        }
        Pre::Qwen2 => json!([
            {
                "type": "Split", "pattern": { "Regex": QWEN2 }, "behavior": "Isolated",
                "invert": false,
            },
            byte_level(false),
        ]),
    };
    Ok(json!({ "type": "Sequence", "pretokenizers": steps }))
}
