//! A chat template comes with the model and may hold anything: it ends, within its limits.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use tessera_model::chat::{Chat, ChatTemplate, Message};
use tessera_model::tokenizer::Tokenizer;

/// A template and two messages, apart from one another by the first two zero bytes.
fuzz_target!(|text: &str| {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    let tokenizer = TOKENIZER.get_or_init(tokenizer);
    let mut parts = text.splitn(3, '\0');
    let mut part = || parts.next().unwrap_or_default();
    let source = part();
    let chat = Chat::answer_to(vec![Message::new("system", part()), Message::new("user", part())]);
    if let Ok(template) = ChatTemplate::new("fuzzed", source, tokenizer) {
        let _ = template.encode(tokenizer, &chat);
    }
});

/// The toy model's: all bytes and the marks around a message.
fn tokenizer() -> Tokenizer {
    let bytes = tessera_model::toy::gguf(tessera_model::toy::Flavour::Llama, 1);
    let file =
        tessera_model::gguf::Gguf::from_bytes(bytes, "toy.gguf").expect("the toy is a model");
    let spec = tessera_model::tokenizer::TokenizerSpec::from_gguf(file.metadata());
    Tokenizer::new(&spec.expect("the toy has a vocabulary")).expect("the toy's vocabulary is one")
}
