//! Properties of small vocabularies; the real ones are in `tests/tokenizer.rs`.

use proptest::prelude::*;
use tessera_core::text::StreamDecoder;

use super::*;
use crate::gguf::Gguf;

/// All bytes, then what `merges` make, then markers.
fn byte_level(merges: &[&str], markers: &[(&str, i32)]) -> TokenizerSpec {
    let mut spec = TokenizerSpec {
        model: "gpt2".into(),
        pre: Some("qwen2".into()),
        merges: merges.iter().copied().collect(),
        ..TokenizerSpec::default()
    };
    for byte in 0..=u8::MAX {
        spec.tokens.push(&bpe::char_of(byte).to_string());
        spec.token_types.push(1);
    }
    for rule in merges {
        spec.tokens.push(&rule.replacen(' ', "", 1));
        spec.token_types.push(1);
    }
    for (text, kind) in markers {
        spec.tokens.push(text);
        spec.token_types.push(*kind);
    }
    spec
}

/// Byte tokens, then tokens with scores, then markers.
fn sentence_piece(tokens: &[(&str, f32)], markers: &[(&str, i32)]) -> TokenizerSpec {
    let mut spec = TokenizerSpec {
        model: "llama".into(),
        add_space_prefix: Some(false),
        ..TokenizerSpec::default()
    };
    let bytes = (0..=u8::MAX).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6));
    let tokens = tokens.iter().map(|(text, score)| ((*text).to_owned(), *score, 1));
    let markers = markers.iter().map(|(text, kind)| ((*text).to_owned(), 0.0, *kind));
    for (text, score, kind) in bytes.chain(tokens).chain(markers) {
        spec.tokens.push(&text);
        spec.scores.push(score);
        spec.token_types.push(kind);
    }
    spec
}

fn ids(tokenizer: &Tokenizer, text: &str, special: Special) -> Vec<u32> {
    let mut ids = Vec::new();
    tokenizer.encode(text, special, &mut ids);
    ids
}

fn read(tokenizer: &Tokenizer, text: &str, special: Special) -> Vec<String> {
    ids(tokenizer, text, special).iter().map(|id| tokenizer.spelling(*id).into_owned()).collect()
}

fn fault(spec: &TokenizerSpec) -> String {
    Tokenizer::new(spec).unwrap_err().to_string()
}

#[test]
fn hex_byte_tokens_with_signs_or_other_lengths_are_refused() {
    for bad in ["<0x-1>", "<0x+1>", "<0x1>", "<0x100>", "<0xG0>", "<0x>", "<0x", "0x41", "<0x 1>"] {
        let mut spec = sentence_piece(&[("a", 0.0)], &[]);
        spec.tokens.push(bad);
        spec.scores.push(0.0);
        spec.token_types.push(6);
        let error = fault(&spec);
        assert!(error.contains("tokens[257]") && error.contains("no byte token"), "{error}");
    }
}

#[test]
fn an_empty_token_is_never_matched() {
    for (mut spec, kind) in [(byte_level(&[], &[]), 1), (byte_level(&[], &[]), 3)] {
        spec.tokens.push("");
        spec.token_types.push(kind);
        let tokenizer = Tokenizer::new(&spec).unwrap();
        for special in [Special::AsText, Special::Parse] {
            assert_eq!(ids(&tokenizer, "ab", special), [97, 98]);
            assert_eq!(ids(&tokenizer, "", special), [0; 0]);
        }
        assert_eq!(tokenizer.token_bytes(256), b"");
    }
}

#[test]
fn merges_that_name_unknown_tokens_are_refused() {
    for (bad, what) in [
        ("a zz", "names \"zz\""),
        ("zz a", "names \"zz\""),
        ("a b", "makes no token"),
        ("ab", "not two tokens"),
        ("", "not two tokens"),
        ("語 a", "names \"語\""),
    ] {
        let mut spec = byte_level(&["a a"], &[]);
        spec.merges.push(bad);
        let error = fault(&spec);
        assert!(error.contains("merges[1]") && error.contains(what), "{error}");
    }
}

#[test]
fn ids_past_the_vocabulary_are_refused_and_decode_to_nothing() {
    let spec = byte_level(&[], &[]);
    type Field = fn(&mut TokenizerSpec) -> &mut Option<u32>;
    let fields: [(&str, Field); 6] = [
        ("bos_token_id", |spec| &mut spec.bos),
        ("eos_token_id", |spec| &mut spec.eos),
        ("eot_token_id", |spec| &mut spec.eot),
        ("eom_token_id", |spec| &mut spec.eom),
        ("padding_token_id", |spec| &mut spec.pad),
        ("unknown_token_id", |spec| &mut spec.unk),
    ];
    for (name, field) in fields {
        for bad in [256, u32::MAX] {
            let mut spec = spec.clone();
            *field(&mut spec) = Some(bad);
            assert!(fault(&spec).contains(name));
        }
    }
    let tokenizer = Tokenizer::new(&spec).unwrap();
    assert_eq!(tokenizer.decode(&[256, u32::MAX]), "");
    assert!(!tokenizer.is_control(u32::MAX) && !tokenizer.is_end(u32::MAX));
    assert_eq!(tokenizer.spelling(u32::MAX), "");
}

#[test]
fn arrays_of_the_wrong_length_kind_or_number_are_refused() {
    let mut short = byte_level(&[], &[]);
    short.token_types.pop();
    assert!(fault(&short).contains("token_type: 255 entries for 256 tokens"));
    let mut kind = byte_level(&[], &[]);
    kind.token_types[7] = 9;
    assert!(fault(&kind).contains("token_type[7]: 9"));
    let mut scores = sentence_piece(&[("a", 0.0)], &[]);
    scores.scores.pop();
    assert!(fault(&scores).contains("scores: 256 entries for 257 tokens"));
    scores.scores.push(f32::NAN);
    assert!(fault(&scores).contains("scores[256]"));
    assert!(fault(&TokenizerSpec { tokens: Texts::default(), ..short }).contains("0 tokens"));
    let no_bytes = TokenizerSpec {
        model: "llama".into(),
        tokens: ["a"].into_iter().collect(),
        scores: vec![0.0],
        ..TokenizerSpec::default()
    };
    assert!(fault(&no_bytes).contains("no token for byte 0x00"));
    let no_bos = TokenizerSpec { add_bos: Some(true), ..byte_level(&[], &[]) };
    assert!(fault(&no_bos).contains("add_bos_token: true"));
}

#[test]
fn unknown_algorithms_are_refused_by_name_with_the_list() {
    let model = TokenizerSpec { model: "rwkv".into(), ..byte_level(&[], &[]) };
    assert!(fault(&model).contains("`rwkv`") && fault(&model).contains("gpt2"));
    for (pre, name) in [(Some("llama-bpe"), "`llama-bpe`"), (None, "`(none)`")] {
        let error = fault(&TokenizerSpec { pre: pre.map(str::to_owned), ..byte_level(&[], &[]) });
        assert!(error.contains(name) && error.contains("smollm, qwen2"), "{error}");
    }
}

/// A GGUF file of one metadata key after a sound `tokenizer.ggml.model`.
fn file_with(key: &str, ty: u32, value: &[u8]) -> Gguf {
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.extend(2u64.to_le_bytes());
    let mut entry = |key: &str, ty: u32, value: &[u8]| {
        file.extend((key.len() as u64).to_le_bytes());
        file.extend(key.as_bytes());
        file.extend(ty.to_le_bytes());
        file.extend(value);
    };
    entry("tokenizer.ggml.model", 8, b"\x04\0\0\0\0\0\0\0gpt2");
    entry(key, ty, value);
    file.resize(file.len().next_multiple_of(32) + 32, 0);
    Gguf::from_bytes(file, "toy.gguf").unwrap()
}

#[test]
fn element_type_confusion_in_tokenizer_arrays_is_refused() {
    // An array of four 32-bit words, an integer and a string where something else belongs.
    let words = |ty: u32| [&ty.to_le_bytes()[..], &4u64.to_le_bytes(), &[1; 16]].concat();
    for (key, ty, value) in [
        ("tokenizer.ggml.tokens", 9, words(5)),
        ("tokenizer.ggml.tokens", 9, words(6)),
        ("tokenizer.ggml.tokens", 4, vec![1; 4]),
        ("tokenizer.ggml.tokens", 8, b"\x01\0\0\0\0\0\0\0x".to_vec()),
    ] {
        let file = file_with(key, ty, &value);
        let error = TokenizerSpec::from_gguf(file.metadata()).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("array of strings"), "{error}");
    }
    // The other arrays are only looked at beside a list of tokens: put it under another key.
    for key in ["pre", "bos_token_id", "add_bos_token"] {
        let key = format!("tokenizer.ggml.{key}");
        let file = file_with(&key, 9, &words(6));
        let error = TokenizerSpec::from_gguf(file.metadata()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.ggml."), "{error}");
    }
}

#[test]
fn text_never_merges_into_a_marker() {
    // Rules that lead to, and through, the spelling of a control token.
    let merges = ["< |", "<| x", "<|x >", "<|x> y"];
    let mut spec = byte_level(&merges[..2], &[("<|x>", 3), ("y", 1), ("<|x>y", 1)]);
    spec.merges.push(merges[2]);
    spec.merges.push(merges[3]);
    let tokenizer = Tokenizer::new(&spec).unwrap();
    assert_eq!(read(&tokenizer, "<|x>", Special::Parse), ["<|x>"]);
    let text = ids(&tokenizer, "<|x>", Special::AsText);
    assert!(text.iter().all(|id| !tokenizer.is_structural(*id)));
    assert_eq!(tokenizer.decode(&text), "<|x>");

    let tokens = [("<", -1.0), ("u", -1.0), (">", -1.0), ("<u", 0.0)];
    let tokenizer =
        Tokenizer::new(&sentence_piece(&tokens, &[("<u>", 3), ("<0x41>", 6), ("<t>", 4)])).unwrap();
    for text in ["<u>", "<0x41>", "<t>"] {
        let ids = ids(&tokenizer, text, Special::AsText);
        assert!(ids.iter().all(|id| !tokenizer.is_structural(*id)));
        assert_eq!(tokenizer.decode(&ids), text);
    }
    assert_eq!(read(&tokenizer, "<u><t>", Special::Parse), ["<u>", "<t>"]);
}

#[test]
fn a_space_goes_before_text_where_the_file_says_so() {
    let mut spec = sentence_piece(&[(" ", -9.0), ("a", -9.0), (" a", 1.0)], &[("<s>", 3)]);
    assert_eq!(read(&Tokenizer::new(&spec).unwrap(), "a<s>a", Special::Parse), ["a", "<s>", "a"]);
    spec.add_space_prefix = None;
    let tokenizer = Tokenizer::new(&spec).unwrap();
    assert_eq!(read(&tokenizer, "a<s>a", Special::Parse), [" a", "<s>", " a"]);
    assert_eq!(read(&tokenizer, "\u{2581}a", Special::AsText), [" ", " a"]);
}

#[test]
fn end_tokens_are_found_by_name() {
    let markers = [("<|im_end|>", 1), ("<|endoftext|>", 3), ("<|fim_pad|>", 3), ("<|other|>", 3)];
    let spec = TokenizerSpec { eos: Some(259), ..byte_level(&[], &markers) };
    let tokenizer = Tokenizer::new(&spec).unwrap();
    assert_eq!(tokenizer.end_ids(), [256, 257, 258, 259]);
    assert_eq!(tokenizer.eot(), Some(256));
    assert!(tokenizer.is_control(256), "its name makes it one, whatever the file says");
    assert_eq!(tokenizer.id_of("<|im_end|>"), Some(256));
    assert_eq!(tokenizer.id_of("a"), Some(97));
    assert_eq!(tokenizer.id_of("ab"), None);
    assert_eq!(tokenizer.fill_in(), None);
}

#[test]
fn start_and_end_are_added_only_where_the_file_says_so() {
    let spec = byte_level(&[], &[("<s>", 3), ("<e>", 3)]);
    let spec = TokenizerSpec { bos: Some(256), eos: Some(257), ..spec };
    let encode =
        |spec: &TokenizerSpec| Tokenizer::new(spec).unwrap().encode_with_bos("a", Special::AsText);
    assert_eq!(encode(&spec), [97]);
    let both = TokenizerSpec { add_bos: Some(true), add_eos: Some(true), ..spec };
    assert_eq!(encode(&both), [256, 97, 257]);
}

/// Merges by the definition: the best pair, the leftmost of equals, again and again.
fn naive(mut parts: Vec<String>, better: impl Fn(&str, &str) -> Option<i64>) -> Vec<String> {
    loop {
        let best = (1..parts.len())
            .filter_map(|at| better(&parts[at - 1], &parts[at]).map(|rank| (rank, at)))
            .min();
        let Some((_, at)) = best else { return parts };
        let right = parts.remove(at);
        parts[at - 1].push_str(&right);
    }
}

fn rules() -> impl Strategy<Value = Vec<(String, String)>> {
    // Each rule joins two of the tokens that exist before it.
    prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..12)
        .prop_map(|picks| {
            let mut tokens: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
            let mut rules = Vec::new();
            for (left, right) in picks {
                let rule = (left.get(&tokens).clone(), right.get(&tokens).clone());
                let made = format!("{}{}", rule.0, rule.1);
                if made.len() <= 12 && !tokens.contains(&made) {
                    tokens.push(made);
                    rules.push(rule);
                }
            }
            rules
        })
}

proptest! {
    #[test]
    fn byte_level_merging_is_the_definition(rules in rules(), word in "[abc]{1,200}") {
        let merges: Vec<String> = rules.iter().map(|(a, b)| format!("{a} {b}")).collect();
        let merges: Vec<&str> = merges.iter().map(String::as_str).collect();
        let tokenizer = Tokenizer::new(&byte_level(&merges, &[])).unwrap();
        let parts = word.chars().map(String::from).collect();
        let want = naive(parts, |a, b| {
            rules.iter().position(|rule| rule.0 == a && rule.1 == b).map(|rank| rank as i64)
        });
        prop_assert_eq!(read(&tokenizer, &word, Special::AsText), want);
    }

    #[test]
    fn sentence_piece_merging_is_the_definition(
        rules in rules(),
        scores in prop::collection::vec(-3i8..3, 12),
        word in "[abcé]{1,200}",
    ) {
        let made: Vec<String> = rules.iter().map(|(a, b)| format!("{a}{b}")).collect();
        let mut tokens: Vec<(&str, f32)> = vec![("a", 0.0), ("b", 0.0), ("c", 0.0)];
        let scored = made.iter().zip(&scores);
        tokens.extend(scored.map(|(text, score)| (text.as_str(), f32::from(*score))));
        let tokenizer = Tokenizer::new(&sentence_piece(&tokens, &[])).unwrap();
        let parts = word.chars().map(String::from).collect();
        let want = naive(parts, |a, b| {
            let joined = format!("{a}{b}");
            tokens.iter().find(|(text, _)| *text == joined).map(|(_, score)| -*score as i64)
        });
        // A character without a token is one token per byte.
        let got: Vec<u8> = ids(&tokenizer, &word, Special::AsText)
            .iter().flat_map(|id| tokenizer.token_bytes(*id).to_vec()).collect();
        prop_assert_eq!(got, word.as_bytes());
        let count: usize = want.iter().map(|part| if part == "é" { 2 } else { 1 }).sum();
        prop_assert_eq!(ids(&tokenizer, &word, Special::AsText).len(), count);
        let plain: Vec<String> = want.into_iter().filter(|part| part != "é").collect();
        let read: Vec<String> = read(&tokenizer, &word, Special::AsText)
            .into_iter().filter(|part| part != "\u{fffd}").collect();
        prop_assert_eq!(read, plain);
    }

    #[test]
    fn text_comes_back_and_holds_no_marker(
        parts in prop::collection::vec(
            prop_oneof![any::<String>(), Just("<|x|>".to_owned()), Just("\r\n  \t".to_owned())], 0..8),
        smollm in any::<bool>(),
    ) {
        let text = parts.concat();
        let mut spec = byte_level(&["t h", "th e", "Ġ a"], &[("<|x|>", 3), ("<|x", 4), ("  ", 4)]);
        spec.pre = Some(if smollm { "smollm" } else { "qwen2" }.into());
        let tokenizer = Tokenizer::new(&spec).unwrap();
        let plain = ids(&tokenizer, &text, Special::AsText);
        prop_assert_eq!(tokenizer.decode(&plain), text.clone());
        prop_assert!(plain.iter().all(|id| !tokenizer.is_structural(*id)));
        let parsed = ids(&tokenizer, &text, Special::Parse);
        let markers = parsed.iter().filter(|id| tokenizer.is_control(**id)).count();
        prop_assert_eq!(markers, text.matches("<|x|>").count());
        let (mut stream, mut streamed) = (StreamDecoder::new(), String::new());
        for id in &plain {
            stream.push(tokenizer.token_bytes(*id), &mut streamed);
        }
        stream.finish(&mut streamed);
        prop_assert_eq!(streamed, text);
    }
}
