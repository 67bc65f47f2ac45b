//! The byte level on the real vocabularies and models of the catalogue. `TESSERA_LONG=1` runs more of
//! the same.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

use std::sync::Arc;

use tessera_core::dist::Key;
use tessera_model::store::testing::find_test_model;
use tessera_runtime::exact_byte_level::{ByteModel, END, Ensemble, ExactByteLevel, Lexicon, Mode};
use tessera_runtime::{Options, Session};

const MODELS: [&str; 3] = ["smollm2", "qwen2.5-coder:0.5b", "gemma3:270m"];

fn long() -> bool {
    std::env::var_os("TESSERA_LONG").is_some_and(|v| v == "1")
}

fn session(name: &str) -> Option<Session> {
    let path = find_test_model(name)?;
    Some(Session::load(name, &path, &Options::default(), &|_| {}).unwrap())
}

fn model<'s>(session: &'s Session, settings: ExactByteLevel) -> ByteModel<'s> {
    let stem = [session.document_mark().unwrap()];
    session.byte_model(&Arc::new(session.lexicon()), settings, &stem).unwrap()
}

/// Texts that are hard to cut: white space of all kinds beside words, digits, marks and characters of
/// several bytes.
fn texts(count: u32) -> Vec<String> {
    const PARTS: [&str; 40] = [
        " ",
        " ",
        " ",
        "  ",
        "\n",
        "\n",
        "\n\n",
        "\t",
        "    ",
        "\r\n",
        "\u{a0}",
        "\u{3000}",
        "a",
        "the",
        "Then",
        "ing",
        "don't",
        "'ll",
        "'",
        "I'm",
        "7",
        "42",
        "3.14",
        "!",
        "?!",
        "(",
        ");",
        "->",
        "==",
        "//",
        "_x",
        "é",
        "日本",
        "€",
        "👩‍👩‍👧",
        "<h1>",
        "</code>",
        "<|im_end|>",
        "ſ",
        "Ⅷ",
    ];
    (0..count)
        .map(|i| {
            let key = Key::new(77, 0, i);
            let length = 1 + (key.uniform(1000) * 14.0) as u32;
            (0..length).map(|j| PARTS[(key.uniform(j) * PARTS.len() as f64) as usize]).collect()
        })
        .collect()
}

#[test]
fn every_beginning_of_an_encoding_is_known_to_be_one() {
    for name in MODELS {
        let Some(session) = session(name) else { continue };
        let lexicon = session.lexicon();
        let mut seen = 0;
        // In Qwen's vocabulary the last byte of the first character is merged with the second character.
        let astride = ["]\n\n\u{fe}示", "\u{fe}示"].map(str::to_owned);
        for text in texts(if long() { 20_000 } else { 1500 }).into_iter().chain(astride) {
            let tokens = lexicon.encode(text.as_bytes());
            if !lexicon.spells(&tokens, text.as_bytes()) {
                continue; // SmolLM2 cannot spell everything.
            }
            for n in 0..=tokens.len() {
                let bytes = &text.as_bytes()[..lexicon.length(&tokens[..n])];
                assert!(
                    lexicon.begins(bytes, &tokens[..n]),
                    "{name}: {text:?}: {:?} of {tokens:?}",
                    &tokens[..n]
                );
                let spellings = lexicon.spellings(bytes);
                assert!(spellings.contains(&tokens[..n]), "{name}: {text:?} {n}: {spellings:?}");
                seen += 1;
            }
        }
        println!("{name}: {seen} beginnings");
    }
}

#[test]
fn no_token_crosses_a_safe_place() {
    for name in MODELS {
        let Some(session) = session(name) else { continue };
        let lexicon = session.lexicon();
        let (mut safe, mut all) = (0, 0);
        let texts = texts(if long() { 20_000 } else { 1500 });
        for pair in texts.windows(2) {
            // What follows must not matter either.
            let (text, more) = (&pair[0], &pair[1]);
            let at = lexicon.safe(text.as_bytes());
            (safe, all) = (safe + usize::from(at > 0), all + 1);
            let whole = format!("{text}{more}");
            let (left, right) = whole.as_bytes().split_at(at);
            let parts = [lexicon.encode(left), lexicon.encode(right)].concat();
            assert_eq!(parts, lexicon.encode(whole.as_bytes()), "{name}: {whole:?} at {at}");
        }
        println!("{name}: {safe} of {all} texts have a safe place inside");
        assert!(safe * 5 > all, "{name}: {safe} of {all}");
    }
}

const TEXTS: [&str; 6] = [
    "The capital of Fra",
    "def add(first, second):\n    return first + sec",
    "She said: \u{201c}I don't kn",
    "x = [1, 2, 3]\n\n",
    "na\u{ef}ve caf\u{e9} in the 日",
    "two  ",
];

/// The bytes to follow that are tried: all, or in the short form the most probable.
fn tried(law: &[f64]) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..=255).filter(|&b: &u8| law[usize::from(b)] > 0.0).collect();
    bytes.sort_by(|&a, &b| law[usize::from(b)].total_cmp(&law[usize::from(a)]));
    bytes
}

#[test]
fn the_next_bytes_and_the_end_share_the_probability_of_the_text() {
    let exact = ExactByteLevel { mode: Mode::Exact, floor: 1e-12 };
    for name in if long() { &MODELS[..] } else { &MODELS[..1] } {
        let Some(session) = session(name) else { continue };
        let (mut here, mut next) = (model(&session, exact), model(&session, exact));
        for text in if long() { &TEXTS[..] } else { &TEXTS[..2] } {
            let from = session.lexicon().safe(text.as_bytes());
            here.start_from(text.as_bytes(), from).unwrap();
            let law = here.distribution();
            let own = here.log_mass();
            let mut sum = law[END];
            for byte in tried(&law) {
                let longer = [text.as_bytes(), &[byte]].concat();
                // From the same place, so that both are probabilities of the same kind.
                next.start_from(&longer, from).unwrap();
                let share = (next.log_mass() - own).exp();
                let said = law[usize::from(byte)];
                // What the floor leaves out after a node counts for more where little may follow it.
                assert!(
                    (share - said).abs() < 1e-6 * said + 1e-9,
                    "{name} {text:?} {byte}: {share} {said}"
                );
                sum += share;
            }
            println!("{name}, exact, {text:?}: sum over bytes and end = {sum:.12} P(text)");
            assert!((sum - 1.0).abs() < 1e-6, "{name} {text:?}: {sum}");
        }
    }
}

#[test]
fn advancing_is_starting_anew_on_a_real_model() {
    let Some(session) = session("smollm2") else { return };
    for mode in [Mode::Exact, Mode::Fast] {
        // What a floor leaves out counts for more after an improbable byte: here nothing is left out.
        let settings = ExactByteLevel { mode, floor: 0.0 };
        let (mut steps, mut anew) = (model(&session, settings), model(&session, settings));
        let text = "It is a truth univ\u{e9}rsally acknowledged,\n\n  that 42 don't";
        let text = &text.as_bytes()[..if long() { text.len() } else { 26 }];
        steps.start(&text[..1]).unwrap();
        let mut worst = 0.0f64;
        for at in 1..text.len() {
            assert!(steps.advance(text[at]).unwrap());
            anew.start(&text[..=at]).unwrap();
            let pairs = steps.distribution().into_iter().zip(anew.distribution());
            worst = pairs.map(|(a, b)| (a - b).abs()).fold(worst, f64::max);
        }
        println!("{mode:?}: largest difference {worst:e}");
        // In the fast mode covers that are no encoding's beginning count until they are found out.
        assert!(mode == Mode::Fast || worst < 1e-9, "{mode:?}: {worst}");
    }
}

#[test]
fn an_ensemble_of_a_model_with_itself_is_the_model() {
    let Some(session) = session("smollm2") else { return };
    let fast = ExactByteLevel { mode: Mode::Fast, ..ExactByteLevel::default() };
    let mut alone = model(&session, fast);
    let mut twice =
        Ensemble::new(vec![model(&session, fast), model(&session, fast)], &[2.0, 5.0]).unwrap();
    alone.start(b"Once upon a ti").unwrap();
    twice.start(b"Once upon a ti").unwrap();
    for &byte in b"me, th" {
        for (a, b) in alone.distribution().iter().zip(twice.distribution()) {
            assert!((a - b).abs() < 1e-12);
        }
        assert!(alone.advance(byte).unwrap() && twice.advance(byte).unwrap());
    }
}

#[test]
fn at_a_boundary_the_next_byte_is_the_first_of_the_next_token() {
    // After a finished word and before a space nothing hangs over: bytes and tokens must agree.
    let Some(session) = session("smollm2") else { return };
    let lexicon = Lexicon::new(session.tokenizer());
    let fast = ExactByteLevel { mode: Mode::Fast, ..ExactByteLevel::default() };
    let mut model = model(&session, fast);
    model.start(b"The cat sat on the ").unwrap();
    let (tokens, share) = model.settled().unwrap_or_default();
    // The space belongs to the next word: its own token is all but impossible.
    assert!(share < 0.01 && lexicon.length(&tokens) <= 19, "{share}");
    let law = model.distribution();
    let best = (0..=255u8).max_by(|&a, &b| law[usize::from(a)].total_cmp(&law[usize::from(b)]));
    assert!(best.unwrap().is_ascii_lowercase(), "{best:?}");
}
