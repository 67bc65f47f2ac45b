//! The library over small vocabularies: answers by hand, refusals, grammar bombs.

use serde_json::json;
use tessera_core::Guard;
use tessera_testkit::Words;

use super::*;

fn guidance(source: Source) -> Guidance {
    Guidance { name: "test", next: "mend it", source, seconds: 10.0 }
}

fn regex(pattern: &str) -> Guidance {
    guidance(Source::Regex(pattern.to_owned()))
}

/// Whether `text`, byte by byte, is allowed as a beginning, and whether it may end there.
fn reads(guidance: &Guidance, text: &[u8]) -> (bool, bool) {
    let words = Words::bytes();
    let mut guard = Guard::new(guidance.begin(&words).unwrap(), &words);
    for &byte in text {
        if !guard.check(byte.into(), &words).unwrap() {
            return (false, false);
        }
        guard.accept(byte.into(), &words).unwrap();
    }
    (true, guard.complete().unwrap())
}

fn refused(guidance: &Guidance) -> String {
    guidance.begin(&Words::bytes()).unwrap_err().to_string()
}

#[test]
fn a_pattern_matches_the_whole_text() {
    let pattern = regex("a+b?");
    for (text, want) in [
        ("", (true, false)),
        ("a", (true, true)),
        ("aab", (true, true)),
        ("b", (false, false)),
        ("abb", (false, false)),
    ] {
        assert_eq!(reads(&pattern, text.as_bytes()), want, "{text}");
    }
    // Slashes, quotes and line ends are characters like others.
    assert_eq!(reads(&regex("a/\"\n"), b"a/\"\n"), (true, true));
    // Pieces of a character are a beginning of it; bytes of none are not.
    let any = regex("(?s:.*)");
    assert_eq!(reads(&any, "é".as_bytes()), (true, true));
    assert_eq!(reads(&any, &"é".as_bytes()[..1]), (true, false));
    assert_eq!(reads(&any, b"\xff"), (false, false));
    assert_eq!(reads(&any, b"\x80"), (false, false));
}

#[test]
fn a_grammar_and_a_schema_read_their_texts() {
    let grammar = guidance(Source::Lark("start: \"(\" start \")\" | \"x\"".to_owned()));
    assert_eq!(reads(&grammar, b"((x))"), (true, true));
    assert_eq!(reads(&grammar, b"((x)"), (true, false));
    assert_eq!(reads(&grammar, b"(x))"), (false, false));
    let schema = json!({
        "type": "object",
        "properties": { "a": { "type": "integer" } },
        "required": ["a"],
        "additionalProperties": false,
        "x-guidance": { "whitespace_flexible": false },
    });
    let schema = guidance(Source::JsonSchema(schema));
    assert_eq!(reads(&schema, b"{\"a\":-12}"), (true, true));
    assert_eq!(reads(&schema, b"{\"b\""), (false, false));
    assert_eq!(reads(&schema, b"{\"a\":1.5"), (false, false));
}

#[test]
fn a_text_that_cannot_go_on_is_known_to_be_finished() {
    let words = Words::bytes();
    let mut guard = Guard::new(regex("ab?").begin(&words).unwrap(), &words);
    guard.accept(97, &words).unwrap();
    assert!(!guard.finished() && guard.complete().unwrap());
    guard.accept(98, &words).unwrap();
    assert!(guard.finished() && guard.complete().unwrap());
    assert!(!guard.check(97, &words).unwrap() && guard.check(words.end(), &words).unwrap());
    // And it can be taken back from there.
    guard.rollback(1).unwrap();
    assert!(!guard.finished() && guard.check(98, &words).unwrap());
}

#[test]
fn a_mask_says_what_checks_say() {
    let words = Words::new(["a", "ab", "abc", "b", "bc", "\"", "", "a", "é"].map(str::as_bytes));
    for pattern in ["(ab)*c?", "[^b]{1,3}", "a|é", "(?s:.*)"] {
        let mut state = regex(pattern).begin(&words).unwrap();
        for token in [0, 3, 1] {
            let mut mask = TokenSet::default();
            mask.reset(words.len());
            assert!(state.mask(&mut mask).unwrap());
            for t in 0..words.len() as TokenId {
                let bytes = words.bytes(t).to_vec();
                let checked = !bytes.is_empty() && state.check(t, &bytes).unwrap();
                assert_eq!(mask.contains(t), checked, "{pattern}: token {t}");
            }
            let bytes = words.bytes(token).to_vec();
            if state.check(token, &bytes).unwrap() {
                state.accept(token, &bytes).unwrap();
            }
        }
    }
}

#[test]
fn what_cannot_be_read_or_met_is_refused_and_named() {
    for (source, named) in [
        (Source::Regex("(a".to_owned()), "unclosed group"),
        (Source::Regex("a(?=b)".to_owned()), "look"),
        (Source::Regex("(a)\\1".to_owned()), "backreferences"),
        (Source::Regex("[^\\s\\S]".to_owned()), ""),
        (Source::Lark("start: foo".to_owned()), "foo"),
        (Source::Lark("start: \"a".to_owned()), ""),
        (Source::Lark("nothing: \"a\"".to_owned()), "start"),
        (Source::Lark("start: a \"x\"\na[stop=\"b\"]: /[a-z]*/".to_owned()), "stop="),
        (Source::Lark("start: a \"x\"\na[max_tokens=3]: /[a-z]*/".to_owned()), "max_tokens="),
        (Source::Lark("start: <|im_end|>".to_owned()), "control token"),
        (Source::JsonSchema(json!({ "type": "tensor" })), "tensor"),
        (Source::JsonSchema(json!({ "type": "string", "pattern": "(" })), "unclosed"),
        (Source::JsonSchema(json!({ "type": "integer", "minimum": 5, "maximum": 3 })), "minimum"),
        (Source::JsonSchema(json!({ "if": {} })), "if"),
        (Source::JsonSchema(json!({ "$ref": "https://example.org/x.json" })), ""),
        (Source::JsonSchema(json!({ "$ref": "#/$defs/none" })), ""),
    ] {
        let error = refused(&guidance(source.clone()));
        assert!(error.contains(named) && error.contains("Next: mend it"), "{source:?}: {error}");
        assert!(!error.contains('\n') && error.len() < 700, "{error}");
    }
}

#[test]
fn grammar_bombs_are_errors_in_bounded_time() {
    let deep = |n: usize, open: &str, close: &str| open.repeat(n) + "a" + &close.repeat(n);
    let nested = (0..200).fold(json!({ "type": "null" }), |inner, _| json!({ "items": inner }));
    let wide: serde_json::Map<String, serde_json::Value> =
        (0..60_000).map(|i| (format!("p{i}"), json!({ "type": "integer" }))).collect();
    let bombs = [
        Source::Regex(deep(60_000, "(", ")")),
        Source::Regex("((((a{100}){100}){100}){100}){100}".to_owned()),
        Source::Regex("(a|b|ab)*".repeat(3000)),
        Source::Lark(format!("start: {}", deep(60_000, "(", ")").replace('a', "\"a\""))),
        Source::Lark("start: \"a\"{1000000000}".to_owned()),
        Source::Lark("start: a\n".to_owned() + &"a: a a | \"x\"\n".repeat(2000)),
        Source::JsonSchema(nested),
        Source::JsonSchema(json!({ "type": "object", "properties": wide })),
        Source::JsonSchema(json!({ "type": "string", "pattern": "(.*a){40}b{1000}" })),
        Source::JsonSchema(json!({ "type": "array", "minItems": 4_000_000_000u32 })),
        Source::JsonSchema(
            json!({ "anyOf": (0..3000).map(|i| json!({ "pattern": format!("^.*{i}.*$") })).collect::<Vec<_>>() }),
        ),
        Source::JsonSchema(
            json!({ "$defs": { "a": { "$ref": "#/$defs/a" } }, "$ref": "#/$defs/a" }),
        ),
    ];
    let words = Words::bytes();
    for bomb in bombs {
        let start = Instant::now();
        let name: String = format!("{bomb:?}").chars().take(60).collect();
        let guidance = Guidance { seconds: 5.0, ..guidance(bomb) };
        // Read or refused; what is read still answers or says that it is too much.
        if let Ok(mut state) = guidance.begin(&words) {
            let mut mask = TokenSet::default();
            mask.reset(words.len());
            let _ = state.mask(&mut mask);
            let _ = state.check(97, b"a");
        }
        assert!(start.elapsed().as_secs() < 20, "{name} took {:?}", start.elapsed());
    }
}

#[test]
fn damaged_constraints_are_refused_or_read_and_never_panic() {
    let seeds = [
        "start: item (\",\" item)*\nitem: NAME \"=\" /[0-9]+(\\.[0-9]+)?/ | \"(\" start \")\"\nNAME: /[a-z]{1,8}/\n",
        "([a-z]+\\d{2,5}|\\p{Greek}*?)(?i:x)[^\"\\\\]",
        r##"{"type":"object","properties":{"a":{"anyOf":[{"type":"integer","minimum":-3},{"$ref":"#/$defs/b"}]}},"$defs":{"b":{"type":"string","pattern":"^x+$","maxLength":9}},"required":["a"]}"##,
    ];
    let words = Words::bytes();
    let (mut read, mut all) = (0, 0);
    for round in 0..240u64 {
        let kind = (round % 3) as usize;
        let mut text: Vec<char> = seeds[kind].chars().collect();
        let key = tessera_core::dist::Key::new(round, 0, 0);
        for edit in 0..1 + round as u32 % 4 {
            let bits = key.bits(edit);
            let at = (bits >> 8) as usize % text.len();
            match bits % 4 {
                0 => drop(text.remove(at)),
                1 => text.insert(at, text[(bits >> 40) as usize % text.len()]),
                2 => text[at] = char::from((bits >> 48) as u8 & 0x7f),
                _ => {
                    let other = (bits >> 40) as usize % text.len();
                    text.swap(at, other);
                }
            }
        }
        let text: String = text.into_iter().collect();
        let source = match kind {
            0 => Source::Lark(text),
            1 => Source::Regex(text),
            _ => match serde_json::from_str(&text) {
                Ok(schema) => Source::JsonSchema(schema),
                Err(_) => continue,
            },
        };
        all += 1;
        match guidance(source).begin(&words) {
            Ok(state) => {
                read += 1;
                let mut guard = Guard::new(state, &words);
                for token in 0..words.len() as TokenId {
                    guard.check(token, &words).unwrap();
                }
            }
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        }
    }
    assert!(read > 20 && read < all, "{read} of {all} were read");
}

#[test]
fn hostile_strings_in_a_schema_change_nothing() {
    let hostile = ["%llguidance {}", "\"\n/start: x", "\u{0}\u{ffff}", "{{", "<|im_end|>", "\\"];
    for text in hostile {
        let schema = json!({
            "description": text,
            "title": text,
            "type": "object",
            "properties": { text: { "type": "boolean", "description": text } },
            "required": [text],
            "additionalProperties": false,
            "x-guidance": { "whitespace_flexible": false },
        });
        let instance = json!({ text: true }).to_string();
        let guidance = guidance(Source::JsonSchema(schema));
        assert_eq!(reads(&guidance, instance.as_bytes()), (true, true), "{instance}");
        assert_eq!(reads(&guidance, b"{}"), (false, false));
    }
}

#[test]
fn time_over_is_an_error() {
    let slow = Guidance { seconds: 1e-9, ..regex("a") };
    let error = refused(&slow);
    assert!(error.contains("longer than") && error.contains("seconds"), "{error}");
}

#[test]
fn a_grammar_without_a_finite_sentence_never_completes() {
    let grammar = guidance(Source::Lark("start: a\na: \"x\" a".to_owned()));
    assert_eq!(reads(&grammar, b"xxxx"), (true, false));
}
