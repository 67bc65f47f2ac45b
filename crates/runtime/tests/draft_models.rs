//! A real draft model beside a real model: the text is the plain run's, whatever is guessed.
//!
//! SmolLM2 guesses for itself, so that every guess of the chain must come true; with
//! `TESSERA_LONG=1` Qwen2.5-Coder 0.5B guesses for 1.5B.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a failed step is a failed test")]

use std::path::Path;
use std::sync::atomic::AtomicBool;

use tessera_model::store::testing::find_test_model;
use tessera_runtime::{
    Control, METHODS, Message, MethodCall, Options, Outcome, Prompt, Recipe, Sampling, Session,
};

const PROMPTS: [&str; 3] = [
    "Write a Python function that reverses a linked list, and one that prints it.",
    "Name three rivers in Europe and say where each of them ends.",
    "Repeat after me, twice: the quick brown fox jumps over the lazy dog.",
];

fn open(target: &str, draft: Option<&Path>) -> Option<Session> {
    let path = find_test_model(target)?;
    let draft_model = draft.map(|path| path.to_str().unwrap().to_owned());
    let options = Options { draft_model, context: Some(1024), ..Options::default() };
    Some(Session::load(target, &path, &options, &|_| {}).unwrap())
}

fn recipe(methods: &str) -> Recipe {
    let calls = methods.split_whitespace().map(|m| MethodCall::parse(METHODS, m).unwrap());
    Recipe::resolve(METHODS, &calls.collect::<Vec<_>>()).unwrap()
}

fn answer(
    session: &Session,
    prompt: &str,
    methods: &str,
    sampling: Sampling,
    tokens: usize,
) -> tessera_runtime::Result<Outcome> {
    let question = [Message::new("user", prompt)];
    let mut request = session.request(&Prompt::Chat(&question)).unwrap();
    request.recipe = recipe(methods);
    request.sampling = sampling;
    request.max_tokens = Some(tokens);
    request.seed = 7;
    session.generate(&request, &mut |_| Control::Continue, &AtomicBool::new(false))
}

/// Runs every method on `prompts`, greedy and sampled, and compares the tokens with the plain
/// run's. `alike`: the draft is the target, and a chain's guesses are all accepted.
fn equal_to_plain(session: &Session, prompts: &[&str], tokens: usize, alike: bool) {
    for prompt in prompts {
        for sampling in [Sampling::greedy(), Sampling::default()] {
            let plain = answer(session, prompt, "none", sampling, tokens).unwrap();
            for methods in ["draft-model", "dyspec", "dyspec:form=budget,budget=8"] {
                let got = answer(session, prompt, methods, sampling, tokens).unwrap();
                assert_eq!(got.choices, plain.choices, "{methods}: {prompt}");
                let s = got.stats;
                println!(
                    "{methods} at temperature {}: {} of {} guesses accepted, {} passes for {} tokens",
                    sampling.temperature,
                    s.accepted_tokens,
                    s.drafted_tokens,
                    s.passes,
                    s.drawn_tokens
                );
                assert!(s.drafted_tokens > 0);
                if alike && methods == "draft-model" {
                    // Guesses past an end token are the only ones that nobody asks for.
                    let off = s.drafted_tokens - s.accepted_tokens;
                    assert!(off < 5, "{off} guesses of the model about itself were wrong");
                }
            }
            if sampling == Sampling::greedy() {
                let got = answer(session, prompt, "dyspec residual", sampling, tokens).unwrap();
                assert_eq!(got.choices, plain.choices, "residual: {prompt}");
            }
        }
    }
}

#[test]
fn smollm2_guesses_for_itself_and_is_always_right() {
    let Some(path) = find_test_model("smollm2") else { return };
    let session = open("smollm2", Some(&path)).unwrap();
    assert!(session.offer().draft_model);
    equal_to_plain(&session, &PROMPTS[..2], 32, true);
}

#[test]
fn a_method_without_its_draft_model_is_refused_with_the_next_step() {
    let Some(session) = open("smollm2", None) else { return };
    let error = answer(&session, "Hi", "dyspec", Sampling::greedy(), 4).unwrap_err();
    let text = error.to_string();
    assert!(error.is_usage() && text.contains("--draft-model"), "{text}");
}

#[test]
fn a_draft_model_with_another_vocabulary_is_refused() {
    let Some(path) = find_test_model("smollm2") else { return };
    let Some(other) = find_test_model("gemma3:270m") else { return };
    let draft_model = Some(other.to_str().unwrap().to_owned());
    let options = Options { draft_model, ..Options::default() };
    let error = Session::load("smollm2", &path, &options, &|_| {}).err().unwrap();
    let text = error.to_string();
    assert!(error.is_usage() && text.contains("vocabulary") && text.contains("Next:"), "{text}");
}

#[test]
fn qwen_half_a_billion_guesses_for_one_and_a_half() {
    if std::env::var_os("TESSERA_LONG").is_none() {
        println!("left to the long checks (TESSERA_LONG=1)");
        return;
    }
    let Some(path) = find_test_model("qwen2.5-coder:0.5b") else { return };
    let Some(session) = open("qwen2.5-coder:1.5b", Some(&path)) else { return };
    equal_to_plain(&session, &PROMPTS, 96, false);
}
