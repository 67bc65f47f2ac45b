//! Samplers of models that fill masks, against a source whose every conditional is known.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::atomic::AtomicBool;

use tessera_core::dist::Sampling;
use tessera_core::dist::chi::{ERROR_LEVEL, goodness};
use tessera_core::entry::MethodCall;
use tessera_core::{Control, Event, Position};
use tessera_engine::{Model, Outcome, Recipe, Request, generate};
use tessera_methods::ENTRIES;
use tessera_testkit::{Chain, Words};

const LENGTH: u32 = 4;

fn recipe(methods: &[&str]) -> Recipe {
    let calls: Vec<MethodCall> =
        methods.iter().map(|m| MethodCall::parse(ENTRIES, m).unwrap()).collect();
    Recipe::resolve(ENTRIES, &calls).unwrap()
}

/// A vocabulary of letters, none of which ends a text.
fn words(count: usize) -> Words {
    Words::new((0..count).map(|i| char::from(b'a' + i as u8).to_string()))
}

/// A text of the chain after token 0.
fn text(chain: &Chain, recipe: &Recipe, seed: u64, length: usize) -> Outcome {
    let denoiser = chain.denoiser(64);
    let letters = words(chain.states() + 1);
    let filling = Some(chain.filling());
    let model = Model { backbone: &denoiser, vocabulary: &letters, draft: None, filling };
    let mut request = Request::new(vec![0]);
    request.max_tokens = Some(length);
    request.sampling = Sampling::neutral();
    request.seed = seed;
    request.ignore_end = true;
    request.recipe = recipe.clone();
    let mut listener = |_: Event<'_>| Control::Continue;
    generate(model, &request, &mut listener, &AtomicBool::new(false)).unwrap()
}

/// How well the texts of a recipe fit the chain's law: the tail of a chi-square test.
fn fit(chain: &Chain, methods: &[&str]) -> f64 {
    let recipe = recipe(methods);
    let joint = chain.joint(0, LENGTH);
    let mut counts = vec![0u64; joint.len()];
    for seed in 0..6000 {
        let made = text(chain, &recipe, seed, LENGTH as usize);
        counts[chain.index(&made.choices[0].tokens)] += 1;
    }
    goodness(&counts, &joint)
}

#[test]
fn first_hitting_has_the_law_of_the_source_and_parallel_steps_do_not() {
    let chain = Chain::seeded(3, 11, 3.0);
    assert!(fit(&chain, &["first-hitting"]) > ERROR_LEVEL);
    // As many grid times as that: almost every step fills one mask.
    assert!(fit(&chain, &["ancestral:steps=4096"]) > ERROR_LEVEL);
    // Two tokens a step, neither of which knows the other.
    assert!(fit(&chain, &["confidence:steps=2,score=random"]) < 1e-6);
    assert!(fit(&chain, &["ancestral:steps=1"]) < 1e-6);
    // Left to right, one at a time, whatever the order: the law again.
    assert!(fit(&chain, &["first-hitting", "blocks:length=1"]) > ERROR_LEVEL);
}

#[test]
fn neutral_settings_are_the_plain_run() {
    let chain = Chain::seeded(5, 3, 2.0);
    for seed in 0..20 {
        let plain = text(&chain, &Recipe::plain(), seed, 12);
        assert_eq!(plain.stats.passes, 12);
        for methods in [
            &["confidence"][..],
            &["threshold:tau=2"],
            &["blocks:length=1048576"],
            &["confidence:steps=12", "blocks:length=12"],
        ] {
            let made = text(&chain, &recipe(methods), seed, 12);
            assert_eq!(made.choices, plain.choices, "{methods:?}");
            assert_eq!(made.stats.passes, 12, "{methods:?}");
        }
        let all = text(&chain, &recipe(&["threshold:tau=0"]), seed, 12);
        assert_eq!(all.stats.passes, 1);
    }
}

#[test]
fn every_mask_is_filled_once_and_what_is_given_stays() {
    let chain = Chain::seeded(4, 9, 2.0);
    let denoiser = chain.denoiser(64);
    let letters = words(5);
    let filling = Some(chain.filling());
    let model = Model { backbone: &denoiser, vocabulary: &letters, draft: None, filling };
    for methods in [&["ancestral:steps=5"][..], &["first-hitting"], &["threshold:tau=0.5"], &[]] {
        let mut request = Request::new(vec![0, 1]);
        request.max_tokens = Some(10);
        request.ignore_end = true;
        request.canvas.template = vec![(3, 2), (9, 1)];
        request.recipe = recipe(methods);
        let mut filled: Vec<Position> = Vec::new();
        let mut listener = |event: Event<'_>| {
            if let Event::Denoised { positions, remasked, length, .. } = event {
                filled.extend(positions);
                assert!(remasked.is_empty() && length == 12);
            }
            Control::Continue
        };
        let made = generate(model, &request, &mut listener, &AtomicBool::new(false)).unwrap();
        let tokens = &made.choices[0].tokens;
        assert_eq!((tokens.len(), tokens[3], tokens[9]), (10, 2, 1), "{methods:?}");
        filled.sort_unstable();
        assert_eq!(filled, [2, 3, 4, 6, 7, 8, 9, 10], "{methods:?}");
    }
}

#[test]
fn what_is_not_for_masks_is_refused_by_name() {
    let chain = Chain::seeded(3, 1, 1.0);
    let (denoiser, letters) = (chain.denoiser(64), words(4));
    let filling = Some(chain.filling());
    let model = Model { backbone: &denoiser, vocabulary: &letters, draft: None, filling };
    let refused = |change: &dyn Fn(&mut Request)| {
        let mut request = Request::new(vec![0]);
        request.max_tokens = Some(4);
        change(&mut request);
        let mut listener = |_: Event<'_>| Control::Continue;
        generate(model, &request, &mut listener, &AtomicBool::new(false)).unwrap_err().to_string()
    };
    let error = refused(&|r| r.recipe = recipe(&["prompt-lookup"]));
    assert!(error.starts_with("method `prompt-lookup`: is for models that write"), "{error}");
    let error = refused(&|r| r.canvas.template = vec![(4, 1)]);
    assert!(error.contains("template"), "{error}");
    let error = refused(&|r| r.canvas.template = vec![(1, 1), (1, 2)]);
    assert!(error.contains("template"), "{error}");
    let error = refused(&|r| r.max_tokens = Some(64));
    assert!(error.contains("context is full"), "{error}");
    // And the other way round.
    let writer = chain.writer(64);
    let causal = Model { backbone: &writer, filling: None, ..model };
    let mut request = Request::new(vec![0]);
    request.canvas.template = vec![(0, 1)];
    let mut listener = |_: Event<'_>| Control::Continue;
    let error = generate(causal, &request, &mut listener, &AtomicBool::new(false)).unwrap_err();
    assert!(error.to_string().contains("from left to right"), "{error}");
}

/// Texts of four holes among given tokens, and how well they fit the law given all of those.
fn any_subset(chain: &Chain, method: &str, template: &[(Position, u32)], guesses: usize) -> f64 {
    let denoiser = chain.denoiser(64);
    let letters = words(chain.states() + 1);
    let filling = Some(chain.filling());
    let model = Model { backbone: &denoiser, vocabulary: &letters, draft: None, filling };
    let length = 4 + template.len();
    let given = |at: usize| template.iter().find(|&&(p, _)| p as usize == at).map(|&(_, t)| t);
    // The law of the holes: the joint law of the whole text where it agrees with the template.
    let joint = chain.joint(0, length as u32);
    let holes = |text: &[u32]| -> Vec<u32> {
        (0..length).filter(|&at| given(at).is_none()).map(|at| text[at]).collect()
    };
    let mut law = vec![0.0; chain.states().pow(4)];
    for (index, p) in joint.iter().enumerate() {
        let text = chain.text(index, length as u32);
        if (0..length).all(|at| given(at).is_none_or(|t| t == text[at])) {
            law[chain.index(&holes(&text))] += p;
        }
    }
    let sum: f64 = law.iter().sum();
    law.iter_mut().for_each(|p| *p /= sum);
    let mut counts = vec![0u64; law.len()];
    for seed in 0..6000 {
        let mut request = Request::new(vec![0]);
        request.max_tokens = Some(length);
        request.sampling = Sampling::neutral();
        request.seed = seed;
        request.ignore_end = true;
        request.canvas.template = template.to_vec();
        request.recipe = recipe(&[method]);
        let mut listener = |_: Event<'_>| Control::Continue;
        let made = generate(model, &request, &mut listener, &AtomicBool::new(false)).unwrap();
        // One pass for what is given; two a round, each of which writes two tokens or the last.
        assert!(made.stats.passes <= 1 + 4, "{} passes", made.stats.passes);
        assert!(guesses > 1 || made.stats.passes == 5);
        counts[chain.index(&holes(&made.choices[0].tokens))] += 1;
    }
    goodness(&counts, &law)
}

#[test]
fn any_subset_decoding_has_the_law_of_writing_one_by_one() {
    let chain = Chain::seeded(3, 11, 3.0);
    for template in [&[][..], &[(1, 2)], &[(0, 1), (2, 2), (5, 0)]] {
        for guesses in [1, 2, 3, 8] {
            for accept in ["keyed", "residual"] {
                let method = format!("any-subset:guesses={guesses},accept={accept}");
                let fit = any_subset(&chain, &method, template, guesses);
                assert!(fit > ERROR_LEVEL, "{method} {template:?}: {fit}");
            }
        }
    }
}

#[test]
fn keyed_any_subset_decoding_gives_the_very_tokens() {
    let chain = Chain::seeded(6, 5, 4.0);
    let mut rounds = 0;
    for seed in 0..30 {
        let single = text(&chain, &recipe(&["any-subset:guesses=1"]), seed, 20);
        assert_eq!(single.stats.passes, 21);
        for guesses in [2, 5, 32] {
            let made = text(&chain, &recipe(&[&format!("any-subset:guesses={guesses}")]), seed, 20);
            assert_eq!(made.choices, single.choices);
            assert!(made.stats.passes <= 21);
            rounds += made.stats.passes;
        }
    }
    assert!(rounds < 30 * 3 * 20, "{rounds} passes in all");
}
