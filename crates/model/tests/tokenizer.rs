//! Real vocabularies against llama.cpp's ids; `goldens/tokenizer/make.py` wrote them.

use std::path::PathBuf;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use tessera_model::gguf::Gguf;
use tessera_model::tokenizer::{Special, StreamDecoder, Tokenizer, TokenizerSpec};

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
    let found = std::env::var_os("TESSERA_TEST_MODELS")
        .map(|dir| PathBuf::from(dir).join(format!("{name}.gguf")))
        .filter(|path| path.exists());
    if found.is_none() {
        let required = std::env::var_os("TESSERA_REQUIRE_MODELS").is_some_and(|v| v == "1");
        assert!(!required, "{name}.gguf is not in TESSERA_TEST_MODELS");
        eprintln!("skipped: {name}.gguf is not in TESSERA_TEST_MODELS");
    }
    found
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
        let mut stream = StreamDecoder::new();
        let mut streamed: String =
            got.iter().map(|id| stream.push(&tokenizer, *id).to_owned()).collect();
        streamed.push_str(stream.finish());
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
            let text = unit.repeat((1 << 18) / unit.len());
            for special in [Special::AsText, Special::Parse] {
                let ids = encode(&tokenizer, &text, special);
                assert_eq!(tokenizer.decode(&ids), text, "{name} {unit:?}");
            }
        }
    }
}
