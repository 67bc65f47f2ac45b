//! Every policy that evicts, on real models: the plain run's text where its settings change nothing,
//! alone and under speculation; and where they do, memory that really drops, sequences that are not
//! mistaken for plain ones, and one prompt continued under many budgets.
//!
//! The gate runs a sample; `TESSERA_LONG=1` runs longer texts. `--nocapture` shows what is kept.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

use std::sync::atomic::AtomicBool;

use tessera_model::store::testing::find_test_model;
use tessera_runtime::{
    Control, Event, METHODS, Message, MethodCall, Options, Outcome, Prompt, Recipe, Request,
    Sampling, Sequence, Session,
};

/// Settings under which each policy changes nothing.
const NEUTRAL: &[&str] = &[
    "streaming:ratio=0",
    "streaming:budget=100000,rerank=true",
    "random-eviction:ratio=0",
    "random-eviction:budget=100000,decode=true",
    "snapkv:ratio=0",
    "snapkv:budget=100000",
    "dapq:ratio=0",
    "dapq:budget=100000",
    "treekv:ratio=0",
    "treekv:budget=100000",
    "treekv:budget=100000,per_head=true",
    "fasa:ratio=0",
    "fasa:budget=100000,from=0",
    "token-sparse-attention:tau=0",
    "token-sparse-attention:min_tokens=100000",
];

/// Settings under which each policy forgets, with a budget for the prompt of 64 rows.
const REDUCED: &[&str] = &[
    "streaming:budget=64",
    "streaming:budget=64,rerank=true",
    "random-eviction:budget=64",
    "random-eviction:budget=64,decode=true,apart=false",
    "snapkv:budget=64",
    "snapkv:budget=64,pooling=max,window=16",
    "dapq:budget=64",
    "dapq:budget=64,linked=false,sinks=4,window=16,pooling=mean",
    "treekv:budget=64",
    "treekv:budget=64,per_head=true",
    "treekv:budget=64,leaves=younger",
    "treekv:budget=64,leaves=random",
    "treekv:budget=64,rerank=false",
];

fn recipe(texts: &[&str]) -> Recipe {
    let call = |text: &&str| MethodCall::parse(METHODS, text).unwrap();
    Recipe::resolve(METHODS, &texts.iter().map(call).collect::<Vec<_>>()).unwrap()
}

fn answer(session: &Session, sequence: &mut Sequence, request: &Request) -> Outcome {
    let cancel = AtomicBool::new(false);
    session.generate_in(sequence, request, &mut |_| Control::Continue, &cancel).unwrap()
}

fn fresh(session: &Session, request: &Request) -> Outcome {
    answer(session, &mut session.sequence().unwrap(), request)
}

fn open(model: &str) -> Option<Session> {
    let path = find_test_model(model)?;
    Some(Session::load(model, &path, &Options::default(), &|_| {}).unwrap())
}

/// A prompt of some `lines` lines of 20 tokens or so.
fn request(session: &Session, lines: usize, tokens: usize) -> Request {
    let line = |i: usize| format!("Line {i}: the {} of house {} is {}.\n", i % 7, i * 3, i * i);
    let text: String = (0..lines).map(line).collect();
    let text = format!("{text}What do these lines have in common? Quote the first one.");
    let mut request = session.request(&Prompt::Chat(&[Message::new("user", text)])).unwrap();
    request.max_tokens = Some(tokens);
    request.sampling = Sampling::greedy();
    request.ignore_end = true;
    request
}

fn long() -> bool {
    std::env::var_os("TESSERA_LONG").is_some_and(|v| v == "1")
}

fn neutral_is_plain(model: &str, lines: usize, tokens: usize) {
    let Some(session) = open(model) else { return };
    for (sampling, choices) in [(Sampling::greedy(), 1), (Sampling::default(), 2)] {
        let mut asked = Request { sampling, choices, seed: 5, ..request(&session, lines, tokens) };
        let plain = fresh(&session, &asked);
        assert_eq!(plain.stats.forgotten(), 0.0);
        let mut drafted = 0;
        let mut base = session.sequence().unwrap();
        answer(&session, &mut base, &Request { max_tokens: Some(0), ..asked.clone() });
        for text in NEUTRAL {
            for drafter in [None, Some("prompt-lookup"), Some("cascade")] {
                asked.recipe = recipe(&drafter.into_iter().chain([*text]).collect::<Vec<_>>());
                // From nothing where nobody drafts, from the same prompt's rows otherwise.
                let mut sequence = match drafter {
                    None if text.contains("budget") => session.sequence().unwrap(),
                    _ => base.fork().unwrap(),
                };
                let with = answer(&session, &mut sequence, &asked);
                assert_eq!(with.choices, plain.choices, "{model}, {text}, {drafter:?}");
                assert_eq!(with.stats.forgotten(), 0.0, "{text}");
                assert!(sequence.tokens().starts_with(&asked.prompt), "rows are those of the text");
                drafted += with.stats.drafted_tokens;
            }
        }
        assert!(drafted > 0 || tokens < 12);
    }
}

#[test]
fn smollm2_says_the_same_where_nothing_is_forgotten() {
    let (lines, tokens) = if long() { (40, 128) } else { (4, 16) };
    neutral_is_plain("smollm2", lines, tokens);
}

#[test]
fn qwen_says_the_same_where_nothing_is_forgotten() {
    let (lines, tokens) = if long() { (20, 64) } else { (1, 6) };
    neutral_is_plain("qwen2.5-coder:0.5b", lines, tokens);
}

#[test]
fn memory_drops_and_is_told() {
    let Some(session) = open("smollm2") else { return };
    let mut asked = request(&session, 20, 24);
    let plain = fresh(&session, &asked);
    let mut base = session.sequence().unwrap();
    answer(&session, &mut base, &Request { max_tokens: Some(0), ..asked.clone() });
    let per_row = plain.stats.cache_bytes / plain.stats.kept_rows;
    for text in REDUCED {
        for drafter in [None, Some("prompt-lookup"), Some("cascade"), Some("skipdecode-draft")] {
            asked.recipe = recipe(&drafter.into_iter().chain([*text]).collect::<Vec<_>>());
            let mut events = Vec::new();
            let cancel = AtomicBool::new(false);
            let mut listen = |event: Event<'_>| {
                if let Event::Evicted { choice, held, kept, bytes_before, bytes_after } = event {
                    assert!(kept < held && bytes_after <= bytes_before, "{event:?}");
                    events.push((choice, kept));
                }
                Control::Continue
            };
            let mut sequence = base.fork().unwrap();
            let with = session.generate_in(&mut sequence, &asked, &mut listen, &cancel).unwrap();
            let stats = with.stats;
            assert_eq!(with.choices[0].tokens.len(), 24);
            // The first token is that of the whole prompt.
            assert_eq!(with.choices[0].tokens[0], plain.choices[0].tokens[0]);
            assert_eq!(events[0].0, None);
            let heads = session.backbone().spec().layers * session.backbone().spec().kv_heads;
            let text_rows =
                if text.contains("streaming") || text.contains("tree") || text.contains("decode") {
                    0
                } else {
                    24
                };
            assert!(stats.kept_rows <= heads * (64 + text_rows), "{text}: {stats:?}");
            assert!(stats.kept_rows >= heads * 48, "{text}: {stats:?}");
            assert!(3 * stats.cache_bytes < stats.peak_cache_bytes, "{text}: {stats:?}");
            assert!(stats.cache_bytes < 2 * stats.kept_rows * per_row, "{text}: {stats:?}");
            assert_eq!(stats.cache_bytes, sequence.bytes());
            assert!(sequence.tokens().is_empty());
            if drafter.is_none() {
                println!(
                    "{text}: {:.1} of {:.1} MB, {} evictions, {:.1} ms deciding",
                    stats.cache_bytes as f64 / 1e6,
                    stats.peak_cache_bytes as f64 / 1e6,
                    events.len(),
                    1e3 * stats.reduce_seconds,
                );
            }
        }
    }
}

#[test]
fn a_reduced_sequence_is_never_taken_for_a_plain_one() {
    let Some(session) = open("smollm2") else { return };
    let mut asked = request(&session, 8, 12);
    let plain = fresh(&session, &asked);
    for text in REDUCED {
        let mut sequence = session.sequence().unwrap();
        asked.recipe = recipe(&[text]);
        let first = answer(&session, &mut sequence, &asked);
        // Again, from what the last request left behind; after a plain one; and a plain one after it.
        let again = answer(&session, &mut sequence, &asked);
        assert_eq!((&again.choices, again.stats.reused_tokens), (&first.choices, 0), "{text}");
        asked.recipe = Recipe::plain();
        let after = answer(&session, &mut sequence, &asked);
        assert_eq!((&after.choices, after.stats.reused_tokens), (&plain.choices, 0), "{text}");
        asked.recipe = recipe(&[text]);
        let then = answer(&session, &mut sequence, &asked);
        assert_eq!(then.choices, first.choices, "{text}");
        assert_eq!(then.stats.reused_tokens, asked.prompt.len() - 1, "{text}");
    }
}

#[test]
fn one_prompt_is_continued_under_many_budgets() {
    let Some(session) = open("smollm2") else { return };
    let mut asked = request(&session, 8, 12);
    let mut base = session.sequence().unwrap();
    answer(&session, &mut base, &Request { max_tokens: Some(0), ..asked.clone() });
    assert_eq!(base.tokens(), asked.prompt);
    for text in
        ["none", "snapkv:budget=40", "dapq:ratio=0.8", "treekv:budget=40", "streaming:budget=40"]
    {
        asked.recipe = recipe(&[text]);
        let with = answer(&session, &mut base.fork().unwrap(), &asked);
        assert_eq!(with.choices, fresh(&session, &asked).choices, "{text}");
        assert_eq!(with.stats.reused_tokens, asked.prompt.len() - 1);
    }
    assert_eq!(base.tokens(), asked.prompt);
}

#[test]
fn a_text_does_not_depend_on_those_beside_it() {
    let Some(session) = open("smollm2") else { return };
    let mut asked = request(&session, 8, 12);
    asked.sampling = Sampling::default();
    for text in REDUCED {
        asked.recipe = recipe(&["prompt-lookup", text]);
        let alone = fresh(&session, &asked);
        let beside = fresh(&session, &Request { choices: 3, ..asked.clone() });
        assert_eq!(alone.choices[0], beside.choices[0], "{text}");
    }
}
