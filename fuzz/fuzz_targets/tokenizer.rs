//! A vocabulary may hold anything; text of any kind survives a byte vocabulary.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tessera_model::gguf::{Gguf, GgufWriter, MetaValue};
use tessera_model::tokenizer::{Special, Tokenizer, TokenizerSpec};

/// The tokenizer of a file, if it has a sound one.
fn tokenizer(file: Vec<u8>) -> Option<Tokenizer> {
    let file = Gguf::from_bytes(file, "fuzz.gguf").ok()?;
    let spec = TokenizerSpec::from_gguf(file.metadata()).ok()?;
    Tokenizer::new(&spec).ok()
}

/// A file whose vocabulary is the 256 bytes, spelled as byte-level BPE spells them.
fn bytes_only() -> Vec<u8> {
    let plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    let spelled = (0..=255u8).map(|byte| {
        let code = if plain(byte) { u32::from(byte) } else { next };
        next += u32::from(!plain(byte));
        char::from_u32(code).map(String::from).unwrap_or_default()
    });
    let mut writer = GgufWriter::new();
    writer.set("tokenizer.ggml.model", "gpt2");
    writer.set("tokenizer.ggml.pre", "qwen2");
    writer.set("tokenizer.ggml.tokens", MetaValue::Strs(spelled.collect()));
    writer.set("tokenizer.ggml.token_type", MetaValue::I32s(vec![1; 256]));
    writer.set("tokenizer.ggml.merges", MetaValue::Strs(Vec::new()));
    writer.to_bytes().unwrap_or_default()
}

fuzz_target!(|data: &[u8]| {
    if data.starts_with(b"GGUF") {
        if let Some(tokenizer) = tokenizer(data.to_vec()) {
            let _ = tokenizer.encode_with_bos("a <b> \u{e9}\n\n 12", Special::Parse);
        }
    } else if let Ok(text) = std::str::from_utf8(data) {
        let tokenizer = tokenizer(bytes_only()).expect("a sound vocabulary");
        let mut ids = Vec::new();
        tokenizer.encode(text, Special::AsText, &mut ids);
        assert_eq!(tokenizer.decode_bytes(&ids), data);
    }
});
