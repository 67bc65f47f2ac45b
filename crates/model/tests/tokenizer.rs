//! Real vocabularies against llama.cpp's ids; `goldens/tokenizer/make.py` wrote them.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests, too

use std::path::PathBuf;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use tessera_core::text::StreamDecoder;
use tessera_model::gguf::Gguf;
use tessera_model::store::testing::find_test_model;
use tessera_model::tokenizer::{HuggingFace, Special, Tokenizer, TokenizerSpec};

#[derive(Deserialize)]
struct Sample {
    group: String,
    text: String,
    #[serde(default)]
    parse: bool,
}

#[derive(Deserialize)]
struct Golden {
    vocab_size: usize,
    ends: Vec<u32>,
    control: String,
    pieces: String,
    bos: i64,
    eos: i64,
    add_bos: bool,
    text: Vec<Vec<u32>>,
    parse: Vec<Vec<u32>>,
}

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/tokenizer")
}

fn read<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    let path = goldens().join(name);
    serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap()
}

/// The model file, or `None` with a line that says so.
fn model(name: &str) -> Option<PathBuf> {
    // The goldens are named as the files are: without the colon of the catalogue's names.
    let known = match name {
        "qwen2.5-coder-0.5b" => "qwen2.5-coder:0.5b",
        "gemma3-270m" => "gemma3:270m",
        other => other,
    };
    find_test_model(known)
}

fn load(name: &str) -> Option<Tokenizer> {
    let file = Gguf::open(&model(name)?).unwrap();
    let spec = TokenizerSpec::from_gguf(file.metadata()).unwrap();
    Some(Tokenizer::new(&spec).unwrap())
}

fn encode(tokenizer: &Tokenizer, text: &str, special: Special) -> Vec<u32> {
    let mut ids = Vec::new();
    tokenizer.encode(text, special, &mut ids);
    ids
}

fn check(name: &str) {
    let Some(tokenizer) = load(name) else { return };
    let golden: Golden = read(&format!("{name}.json"));
    let corpus: Vec<Sample> = read("corpus.json");
    assert_eq!(corpus.len(), golden.text.len());
    assert_eq!(tokenizer.vocab_size(), golden.vocab_size);
    assert_eq!(tokenizer.end_ids(), golden.ends);
    assert_eq!(tokenizer.bos().map(i64::from), Some(golden.bos));
    assert_eq!(tokenizer.eos().map(i64::from), Some(golden.eos));
    assert_eq!(tokenizer.adds_bos(), golden.add_bos);

    let mut wrong = Vec::new();
    let mut parsed = golden.parse.iter();
    for (sample, want) in corpus.iter().zip(&golden.text) {
        let got = encode(&tokenizer, &sample.text, Special::AsText);
        assert!(got.iter().all(|id| !tokenizer.is_structural(*id)), "{:?}", sample.text);
        // Byte-level BPE keeps everything it can spell.
        if name != "gemma3-270m" {
            let spelled: Vec<u8> =
                sample.text.bytes().filter(|byte| tokenizer.spells(*byte)).collect();
            assert_eq!(tokenizer.decode_bytes(&got), spelled, "{:?}", sample.text);
        } else if !sample.text.contains('\u{2581}') {
            assert_eq!(tokenizer.decode(&got), sample.text);
        }
        let (mut stream, mut streamed) = (StreamDecoder::new(), String::new());
        got.iter().for_each(|id| stream.push(tokenizer.token_bytes(*id), &mut streamed));
        stream.finish(&mut streamed);
        assert_eq!(streamed, tokenizer.decode(&got));
        // The meant difference: see `Special::AsText`.
        if sample.group != "structural" && got != *want {
            wrong.push(format!("{:?} as text\n got {got:?}\nwant {want:?}", sample.text));
        }
        if sample.parse {
            let want = parsed.next().unwrap();
            let got = encode(&tokenizer, &sample.text, Special::Parse);
            if got != *want {
                wrong.push(format!("{:?} parsed\n got {got:?}\nwant {want:?}", sample.text));
            }
        }
    }
    assert!(wrong.is_empty(), "{} samples differ:\n{}", wrong.len(), wrong.join("\n"));

    // Which tokens are control tokens, and what every token decodes to.
    let control: Vec<u32> = (0..golden.vocab_size as u32)
        .filter(|id| tokenizer.kind(*id) == Some(tessera_model::tokenizer::TokenKind::Control))
        .collect();
    let listing: Vec<String> = control.iter().map(u32::to_string).collect();
    assert_eq!(hex(&Sha256::digest(format!("[{}]", listing.join(", ")))), golden.control);
    let mut pieces = Sha256::new();
    for id in 0..golden.vocab_size as u32 {
        let bytes = tokenizer.token_bytes(id);
        pieces.update((bytes.len() as u32).to_le_bytes());
        pieces.update(bytes);
    }
    assert_eq!(hex(&pieces.finalize()), golden.pieces);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn smollm2_equals_llama_cpp() {
    check("smollm2");
}

#[test]
fn qwen2_5_coder_equals_llama_cpp() {
    check("qwen2.5-coder-0.5b");
}

#[test]
fn gemma3_equals_llama_cpp() {
    check("gemma3-270m");
}

#[test]
fn hostile_runs_cost_no_more_than_n_log_n() {
    // Not timed: a quadratic merge or scan would take hours on these.
    for name in ["smollm2", "qwen2.5-coder-0.5b", "gemma3-270m"] {
        let Some(tokenizer) = load(name) else { return };
        for unit in ["a", " ", "\n", "\t", "<", "<|im_", "'", "\u{e9}", "\u{0301}", "1", "\r", "🦀"]
        {
            let text = unit.repeat((1 << 17) / unit.len());
            for special in [Special::AsText, Special::Parse] {
                let ids = encode(&tokenizer, &text, special);
                assert_eq!(tokenizer.decode(&ids), text, "{name} {unit:?}");
            }
        }
    }
}

#[test]
fn tokenizer_json_gives_the_same_tokens() {
    for name in ["smollm2", "qwen2.5-coder-0.5b", "gemma3-270m"] {
        let Some(path) = model(name) else { return };
        let file = Gguf::open(&path).unwrap();
        let spec = TokenizerSpec::from_gguf(file.metadata()).unwrap();
        let tokenizer = Tokenizer::new(&spec).unwrap();
        let written = HuggingFace::from_gguf(file.metadata()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        written.write_into(directory.path()).unwrap();
        let read = HuggingFace::from_directory(directory.path()).unwrap();
        assert_eq!(read.chat_template, written.chat_template);
        let ids = |spec: &TokenizerSpec| (spec.bos, spec.eos, spec.pad, spec.unk);
        assert_eq!(ids(&read.spec), ids(&spec), "{name}");
        let other = Tokenizer::new(&read.spec).unwrap();
        let corpus: Vec<Sample> = self::read("corpus.json");
        for sample in &corpus {
            for special in [Special::AsText, Special::Parse] {
                let want = encode(&tokenizer, &sample.text, special);
                assert_eq!(encode(&other, &sample.text, special), want, "{name} {:?}", sample.text);
            }
        }
        assert_eq!(other.end_ids(), tokenizer.end_ids());
        assert_eq!(
            other.encode_with_bos("a", Special::AsText),
            tokenizer.encode_with_bos("a", Special::AsText)
        );
    }
}

#[test]
fn tokenizer_json_of_other_families_or_broken_is_refused() {
    let fault = |json: &str| HuggingFace::from_json(json, None, None).unwrap_err().to_string();
    for (json, what) in [
        ("{", "tokenizer.json"),
        (r#"{"model": {"type": "WordPiece", "vocab": {}, "merges": []}}"#, "`WordPiece`"),
        (
            r#"{"model": {"vocab": {"a": 4000000000}, "merges": []}, "pre_tokenizer": SMOL}"#,
            "id 4000000000",
        ),
        (r#"{"model": {"vocab": {"a": -1}, "merges": []}}"#, "invalid value"),
        (r#"{"model": {"vocab": [], "merges": []}}"#, "invalid type"),
        (r#"{"model": {"vocab": {}, "merges": [["a"]]}}"#, "merge rule"),
        (r#"{"model": {"vocab": {}, "merges": [["a b", "c"]]}}"#, "merge rule"),
        (r#"{"model": {"vocab": {}, "merges": [7]}}"#, "merge rule"),
        (
            r#"{"model": {"vocab": {}, "merges": []}, "pre_tokenizer": {"type": "Metaspace"}}"#,
            "Metaspace",
        ),
        (
            r#"{"model": {"byte_fallback": true, "vocab": {"a": 0}, "merges": ["a b"]}}"#,
            "merges[0]",
        ),
    ] {
        let smol = r#"{"pretokenizers": [{"type": "Digits", "individual_digits": true}, {"type": "ByteLevel"}]}"#;
        let error = fault(&json.replace("SMOL", smol));
        assert!(error.contains(what), "{json}: {error}");
    }
    let missing = HuggingFace::from_directory("/nonexistent".as_ref()).unwrap_err().to_string();
    assert!(missing.contains("/nonexistent"), "{missing}");
}
