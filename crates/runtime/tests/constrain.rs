//! Constraints on a real vocabulary: neutral ones change nothing, drafters change nothing, and what is
//! made is what was asked for. `TESSERA_LONG=1` takes more prompts and Qwen 0.5B too.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};
use tessera_model::store::testing::find_test_model;
use tessera_runtime::{
    Control, METHODS, Message, MethodCall, Options, Outcome, Prompt, Recipe, Sampling, Session,
};

fn long() -> bool {
    std::env::var_os("TESSERA_LONG").is_some()
}

fn sessions() -> Vec<Session> {
    let names: &[&str] = if long() { &["smollm2", "qwen2.5-coder:0.5b"] } else { &["smollm2"] };
    names
        .iter()
        .filter_map(|name| {
            let path = find_test_model(name)?;
            Some(Session::load(name, &path, &Options::default(), &|_| {}).unwrap())
        })
        .collect()
}

fn schema() -> MethodCall {
    let schema = json!({
        "type": "object",
        "properties": {
            "city": { "type": "string", "minLength": 1, "maxLength": 24 },
            "large": { "type": "boolean" },
            "districts": { "type": "integer", "minimum": 1, "maximum": 99 },
        },
        "required": ["city", "large", "districts"],
        "additionalProperties": false,
    });
    let settings = [("schema".to_owned(), schema), ("whitespace".to_owned(), json!(false))];
    MethodCall { id: "json-schema".to_owned(), settings: settings.into_iter().collect() }
}

fn answer(session: &Session, calls: &[MethodCall], sampling: Sampling, seed: u64) -> Outcome {
    let question = [Message::new("user", "Describe a city you know, as JSON.")];
    let mut request = session.request(&Prompt::Chat(&question)).unwrap();
    request.recipe = Recipe::resolve(METHODS, calls).unwrap();
    request.sampling = sampling;
    request.seed = seed;
    request.choices = 2;
    request.max_tokens = Some(64);
    session.generate(&request, &mut |_| Control::Continue, &AtomicBool::new(false)).unwrap()
}

fn call(text: &str) -> MethodCall {
    MethodCall::parse(METHODS, text).unwrap()
}

#[test]
fn what_is_made_is_what_was_asked_for_and_drafters_change_nothing() {
    for session in sessions() {
        for seed in 0..if long() { 6 } else { 1 } {
            for sampling in [Sampling::greedy(), Sampling::neutral()] {
                let masked = answer(&session, &[schema()], sampling, seed);
                for choice in masked.choices.iter().filter(|c| c.complete == Some(true)) {
                    let value: Value = serde_json::from_str(&choice.text).unwrap();
                    assert!(value["city"].is_string() && value["large"].is_boolean(), "{value}");
                    assert!((1..=99).contains(&value["districts"].as_i64().unwrap()), "{value}");
                }
                for more in ["awrs", "prompt-lookup", "token-recycling"] {
                    let made = answer(&session, &[schema(), call(more)], sampling, seed);
                    assert_eq!(made.choices, masked.choices, "{more}");
                }
            }
        }
    }
}

#[test]
fn a_constraint_that_allows_every_text_changes_none() {
    for session in sessions() {
        for sampling in [Sampling::greedy(), Sampling::default(), Sampling::neutral()] {
            let plain = answer(&session, &[], sampling, 3);
            for source in ["regex", "grammar"] {
                let under = answer(&session, &[call(source), call("awrs")], sampling, 3);
                for (one, other) in under.choices.iter().zip(&plain.choices) {
                    assert_eq!(one.tokens, other.tokens, "{source} {sampling:?}");
                }
            }
        }
    }
}
