//! A grammar, a schema or a pattern may say anything: it is refused in one line, or holds a text to
//! what it says, within its limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};
use tessera_core::entry::{Method, MethodEntry};
use tessera_core::{Guard, TokenId, Vocabulary};
use tessera_methods::constrain::{grammar, json_schema, regex};

/// All bytes, and an end token.
struct Bytes([u8; 256]);

impl Vocabulary for Bytes {
    fn len(&self) -> usize {
        257
    }

    fn bytes(&self, token: TokenId) -> &[u8] {
        self.0.get(token as usize).map_or(&[], std::slice::from_ref)
    }

    fn is_control(&self, token: TokenId) -> bool {
        token > 255
    }

    fn is_end(&self, token: TokenId) -> bool {
        token == 256
    }

    fn encode(&self, text: &str) -> Vec<TokenId> {
        text.bytes().map(TokenId::from).collect()
    }
}

// The first character says which language, the rest up to a zero byte is the constraint, what
// follows a text to read.
fuzz_target!(|text: &str| {
    let mut characters = text.chars();
    let (entry, field): (&MethodEntry, _) = match characters.next() {
        Some('g') => (&grammar::ENTRY, "lark"),
        Some('j') => (&json_schema::ENTRY, "schema"),
        _ => (&regex::ENTRY, "pattern"),
    };
    let (source, text) = characters.as_str().split_once('\0').unwrap_or((characters.as_str(), ""));
    let mut settings = Map::new();
    settings.insert(field.to_owned(), Value::String(source.to_owned()));
    settings.insert("seconds".to_owned(), Value::from(2.0));
    let Ok(settings) = entry.resolve(&settings) else { return };
    let Ok(Method::Constrain(constraint)) = (entry.build)(&settings) else {
        panic!("an accepted constraint builds one");
    };
    let words = Bytes(std::array::from_fn(|b| b as u8));
    let state = match constraint.begin(&words) {
        Ok(state) => state,
        Err(error) => {
            assert!(!error.to_string().contains('\n'), "{error}");
            return;
        }
    };
    let mut guard = Guard::new(state, &words);
    for byte in text.bytes().take(64) {
        match guard.check(byte.into(), &words) {
            Ok(true) => {}
            _ => return,
        }
        if guard.accept(byte.into(), &words).is_err() || guard.complete().is_err() {
            return;
        }
    }
});
