//! Patterns that hold while masks are filled, whatever the decoder.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

use std::sync::atomic::AtomicBool;

use tessera_core::dist::{Key, Sampling};
use tessera_core::entry::MethodCall;
use tessera_core::{Control, Event, Filling};
use tessera_engine::{Completion, Model, Outcome, Recipe, Request, generate};
use tessera_methods::ENTRIES;
use tessera_testkit::{Scripted, Words};

/// `a` to `d`, `ab`; then a control token, which is the mask, and an end token.
fn words() -> Words {
    Words::new(["a", "b", "c", "d", "ab"])
}

/// Fills masks by chance, and differently whatever it sees.
fn denoiser(seed: u64) -> Scripted {
    Scripted::placed(7, 64, move |own, seen, logits| {
        let mut key = Key::new(seed, 0, own);
        for &(position, token) in seen {
            key = key.purpose(u64::from(position) << 32 | u64::from(token));
        }
        (0..).zip(logits).for_each(|(id, logit)| *logit = 4.0 * key.uniform(id) as f32);
    })
}

fn run(
    methods: &[&str],
    seed: u64,
    change: &dyn Fn(&mut Request),
) -> tessera_core::Result<Outcome> {
    let calls: Vec<MethodCall> =
        methods.iter().map(|m| MethodCall::parse(ENTRIES, m).unwrap()).collect();
    let (model, guide, words) = (denoiser(seed), Scripted::hashed(7, 64, seed, 4.0), words());
    let filling = Some(Filling { mask: words.control(), shift: false, any_subset: false });
    let model = Model { backbone: &model, vocabulary: &words, draft: Some(&guide), filling };
    let mut request = Request::new(vec![0, 1]);
    request.recipe = Recipe::resolve(ENTRIES, &calls)?;
    request.max_tokens = Some(9);
    request.sampling = Sampling::neutral();
    request.seed = seed;
    change(&mut request);
    let mut listener = |_: Event<'_>| Control::Continue;
    generate(model, &request, &mut listener, &AtomicBool::new(false))
}

/// A pattern, and the same said by hand.
type Pattern = (&'static str, fn(&str) -> bool);

const PATTERNS: [Pattern; 4] = [
    ("(ab)+", |t| !t.is_empty() && t.replace("ab", "").is_empty()),
    ("[ab]{3,9}", |t| (3..=9).contains(&t.len()) && t.bytes().all(|b| b < b'c')),
    ("a(b|cd)*a", |t| {
        let inside = t.strip_prefix('a').and_then(|t| t.strip_suffix('a'));
        inside.is_some_and(|t| t.replace("cd", "").replace('b', "").is_empty())
    }),
    ("(a|b|c|d)*dd", |t| t.ends_with("dd")),
];

const DECODERS: [&[&str]; 15] = [
    &[],
    &["threshold:tau=0"],
    &["confidence:steps=2"],
    &["ancestral:steps=2"],
    &["first-hitting"],
    &["blocks:length=3", "threshold:tau=0.2"],
    &["ete:tau=0.3"],
    &["ete:tau=0.3,explore=gain"],
    &["ccd"],
    &["ccd:form=soft,history=2,eps=9"],
    &["dimple:gamma=0.1"],
    &["dllm-asr:tau=0.1,prune=every"],
    &["context-aware-init:rho=0,scope=both", "threshold:tau=0.1"],
    &["guided-diffusion:rule=threshold,tau=0"],
    &["edlm:k=4,steps=3"],
];

#[test]
fn every_finished_text_matches_whatever_the_decoder() {
    for (pattern, matches) in PATTERNS {
        let rule = format!("regex:pattern={pattern}");
        for decoder in DECODERS {
            let methods: Vec<&str> =
                [&rule[..]].into_iter().chain(decoder.iter().copied()).collect();
            for seed in 0..12 {
                let prior = |r: &mut Request| r.canvas.prior = vec![3, 0, 1, 2];
                let made =
                    run(&methods, seed, &prior).unwrap_or_else(|e| panic!("{methods:?}: {e}"));
                let Completion { text, complete, .. } = &made.choices[0];
                assert!(matches(text) && *complete == Some(true), "{methods:?}: {text:?}");
            }
        }
    }
}

#[test]
fn a_pattern_that_everything_matches_changes_nothing() {
    for decoder in DECODERS {
        let ruled: Vec<&str> = ["regex"].into_iter().chain(decoder.iter().copied()).collect();
        for seed in 0..5 {
            let prior = |r: &mut Request| r.canvas.prior = vec![3, 0, 1, 2];
            let (plain, made) = (run(decoder, seed, &prior), run(&ruled, seed, &prior));
            let (plain, made) = (plain.unwrap(), made.unwrap());
            assert_eq!(made.choices[0].tokens, plain.choices[0].tokens, "{decoder:?}");
            assert_eq!(made.stats.passes, plain.stats.passes, "{decoder:?}");
        }
    }
}

#[test]
fn a_template_stays_and_the_pattern_holds_around_it() {
    for seed in 0..20 {
        let middle = |r: &mut Request| r.canvas.template = vec![(4, 2)];
        let made = run(&["regex:pattern=[ab]*c[ab]*", "threshold:tau=0"], seed, &middle).unwrap();
        let text = &made.choices[0].text;
        assert!(text.matches('c').count() == 1 && !text.contains('d'), "{text}");
        assert_eq!(made.choices[0].tokens[4], 2);
    }
}

#[test]
fn what_cannot_be_held_is_refused_by_name() {
    let refused = |methods: &[&str], change: &dyn Fn(&mut Request)| {
        run(methods, 0, change).unwrap_err().to_string()
    };
    let error = refused(&["json-schema"], &|_| {});
    assert!(error.starts_with("method `json-schema`: cannot say what may stand in"), "{error}");
    let error = refused(&["regex:pattern=("], &|_| {});
    assert!(error.starts_with("constraint: regex on a canvas"), "{error}");
    let error = refused(&["regex:pattern=d{40}"], &|_| {});
    assert!(error.contains("no text of at most 9 tokens"), "{error}");
    let error = refused(&["regex:pattern=[ab]*"], &|r| r.canvas.template = vec![(2, 3)]);
    assert!(error.contains("no text of at most 9 tokens"), "{error}");
}
