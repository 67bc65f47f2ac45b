//! Constraints in the loops: texts, drafters, particles, and what is refused.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tessera_core::dist::Sampling;
use tessera_core::entry::{MethodCall, Role};
use tessera_core::{
    Backbone, Control, Error, Event, FinishReason, Judged, Judgement, Predicate, TokenId,
};
use tessera_engine::{Model, Outcome, Recipe, Request, generate};
use tessera_methods::ENTRIES;
use tessera_testkit::laws::{repeating_toy, text_toy};
use tessera_testkit::texts::Question;
use tessera_testkit::{Scripted, Words};

const STRICT: &str = "([a-m]{2,5} )*[0-9]{1,9}(\\.[0-9]+)?";

fn recipe(calls: &[&str]) -> Recipe {
    let calls = calls.iter().map(|c| MethodCall::parse(ENTRIES, c)).collect::<Result<Vec<_>, _>>();
    Recipe::resolve(ENTRIES, &calls.unwrap()).unwrap()
}

fn strict(more: &[&str]) -> Recipe {
    let mut calls: Vec<MethodCall> =
        more.iter().map(|c| MethodCall::parse(ENTRIES, c).unwrap()).collect();
    let settings = std::iter::once(("pattern".to_owned(), serde_json::json!(STRICT))).collect();
    calls.push(MethodCall { id: "regex".to_owned(), settings });
    Recipe::resolve(ENTRIES, &calls).unwrap()
}

fn answer(toy: &dyn Backbone, words: &Words, request: &Request) -> tessera_core::Result<Outcome> {
    let model = Model { backbone: toy, vocabulary: words, draft: Some(toy), filling: None };
    generate(model, request, &mut |_| Control::Continue, &AtomicBool::new(false))
}

fn request(recipe: Recipe) -> Request {
    let mut request = Request::new(Words::bytes().encode_bytes(b"a toy prompt"));
    request.recipe = recipe;
    request.sampling = Sampling::neutral();
    request.max_tokens = Some(40);
    request
}

#[test]
fn drafters_change_nothing_under_a_constraint() {
    let words = Words::bytes();
    let (random, repeating) = (text_toy(3), repeating_toy());
    let drafters: Vec<&str> = ENTRIES
        .iter()
        .filter(|e| e.places.iter().any(|p| p.role == Role::Draft))
        .map(|e| e.slug)
        .collect();
    let mut accepted = 0;
    for toy in [&random, &repeating] {
        for sampler in ["mask", "awrs"] {
            let mut plain = request(strict(&[sampler]));
            plain.choices = 3;
            let reference = answer(toy, &words, &plain).unwrap();
            for drafter in &drafters {
                let drafted = Request { recipe: strict(&[sampler, drafter]), ..plain.clone() };
                let made = answer(toy, &words, &drafted).unwrap();
                assert_eq!(made.choices, reference.choices, "{drafter} {sampler}");
                accepted += made.stats.accepted_tokens;
            }
        }
    }
    assert!(accepted > 0, "no guess came true: nothing was tested");
}

#[test]
fn choices_are_constrained_apart_and_awrs_asks_less_for_the_same_texts() {
    let words = Words::bytes();
    let toy = text_toy(5);
    let run = |sampler: &str| {
        let mut request = request(strict(&[sampler]));
        request.choices = 4;
        answer(&toy, &words, &request).unwrap()
    };
    let (masked, few) = (run("mask"), run("awrs"));
    assert_eq!(masked.choices, few.choices);
    let texts: std::collections::HashSet<&str> =
        masked.choices.iter().map(|c| c.text.as_str()).collect();
    assert!(texts.len() > 1, "{texts:?}");
    let (masked, few) = (masked.stats.constraint.unwrap(), few.stats.constraint.unwrap());
    assert!(masked.masks > 0 && few.masks == 0 && few.evaluations > masked.evaluations);
    let one = Request { choices: 1, ..request(strict(&["awrs"])) };
    let alone = answer(&toy, &words, &one).unwrap();
    assert_eq!(alone.choices[0], run("awrs").choices[0]);
}

#[test]
fn a_text_cut_in_the_middle_says_so() {
    let words = Words::bytes();
    let toy = text_toy(7);
    let mut request = request(strict(&[]));
    request.max_tokens = Some(2);
    let all: Vec<_> = (0..40)
        .map(|seed| {
            request.seed = seed;
            answer(&toy, &words, &request).unwrap().choices.remove(0)
        })
        .collect();
    let pattern = |text: &str| text.chars().all(|c| c.is_ascii_digit()) && !text.is_empty();
    for choice in &all {
        assert_eq!(choice.complete, Some(pattern(&choice.text)), "{choice:?}");
    }
    assert!(all.iter().any(|c| c.complete == Some(true)));
    assert!(all.iter().any(|c| c.complete == Some(false) && c.reason == FinishReason::Length));
    // Where nothing can follow, the text ends by itself.
    request.recipe = recipe(&["regex:pattern=[0-9]{2}"]);
    let done = answer(&toy, &words, &request).unwrap().choices.remove(0);
    assert_eq!((done.reason, done.complete), (FinishReason::Constraint, Some(true)));
    // A stop text cuts the answer: nobody knows whether what is left meets the constraint.
    request.recipe = recipe(&["regex:pattern=[0-9]+"]);
    request.max_tokens = Some(30);
    request.stops = (0..10).map(|d| d.to_string()).collect();
    let cut = answer(&toy, &words, &request).unwrap().choices.remove(0);
    assert!(matches!(cut.reason, FinishReason::Stop { .. }) && cut.complete == Some(false));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let words = Words::bytes();
    let toy = text_toy(7);
    let refused = |request: &Request| answer(&toy, &words, request).unwrap_err().to_string();
    for alone in ["awrs", "mask", "smc"] {
        let error = refused(&request(recipe(&[alone])));
        assert!(error.contains(alone) && error.contains("needs a constraint"), "{error}");
    }
    let error = refused(&Request { ignore_end: true, ..request(strict(&[])) });
    assert!(error.starts_with("ignore-end"), "{error}");
    let smc = || request(strict(&["smc"]));
    for (bad, said) in [
        (Request { choices: 2, ..smc() }, "one text"),
        (Request { sampling: Sampling::greedy(), ..smc() }, "temperature"),
        (Request { stops: vec!["x".to_owned()], ..smc() }, "stop"),
        (request(strict(&["smc", "awrs:form=unweighted"])), "weights"),
    ] {
        let error = refused(&bad);
        assert!(error.contains("smc") && error.contains(said), "{error}");
    }
    let pair = |a: &str, b: &str| {
        let calls = [a, b].map(|c| MethodCall::parse(ENTRIES, c).unwrap());
        Recipe::resolve(ENTRIES, &calls).unwrap_err().to_string()
    };
    for (a, b, said) in [
        ("regex", "grammar", "which tokens are allowed"),
        ("awrs", "mask", "how an allowed token is drawn"),
        ("regex", "residual", "without the constraint"),
        ("residual", "awrs", "without the constraint"),
        ("smc", "prompt-lookup", "resampled between tokens"),
        ("smc", "keyed", "resampled between tokens"),
        ("skipdecode", "smc", "resampled between tokens"),
    ] {
        let error = pair(a, b);
        assert!(error.contains(said) && error.contains(a) && error.contains(b), "{error}");
    }
    let predicate = || Arc::new(Judged(Arc::new(Pairs)));
    assert!(recipe(&["residual"]).with_constraint(predicate()).is_err());
    assert!(recipe(&["regex"]).with_constraint(predicate()).is_err());
    assert!(recipe(&["keyed", "prompt-lookup", "awrs"]).with_constraint(predicate()).is_ok());
    // A truncation that leaves nothing is a dead end, not a free text.
    let mut narrow = request(strict(&["awrs"]));
    narrow.sampling = Sampling { top_k: 1, ..Sampling::neutral() };
    assert!(refused(&narrow).contains("--top-k 0"));
}

/// Words a, b, c, d (tokens 0 to 3), a control token 4, an end token 5. Texts without `bb`, complete
/// where they end with `c`.
#[derive(Debug)]
struct Pairs;

impl Predicate for Pairs {
    fn judge(&self, text: &[u8]) -> tessera_core::Result<Judgement> {
        let allowed = !text.windows(2).any(|w| w == b"bb");
        Ok(Judgement { allowed, complete: allowed && text.last() == Some(&b'c') })
    }
}

fn four() -> Words {
    Words::new(["a", "b", "c", "d"])
}

fn four_toy() -> Scripted {
    let hashed = |seen: &[(u32, TokenId)], logits: &mut [f32]| {
        let mut key = tessera_core::dist::Key::new(77, 0, 0);
        for &(position, token) in seen {
            key = key.purpose(u64::from(position) << 32 | u64::from(token));
        }
        (0..).zip(logits.iter_mut()).for_each(|(id, l)| *l = 2.5 * key.uniform(id) as f32);
        logits[4] = f32::NEG_INFINITY;
    };
    Scripted::new(6, 64, hashed)
}

/// The probability of every allowed text of at most `most` tokens and its end, by brute force.
fn truth(toy: &Scripted, most: usize, predicate: &dyn Predicate) -> HashMap<Vec<TokenId>, f64> {
    let words = four();
    let mut found = HashMap::new();
    for tokens in 1..=most + 1 {
        let question = Question { prompt: vec![0], tokens, sampling: Sampling::neutral() };
        for (number, p) in question.law(toy).unwrap().into_iter().enumerate() {
            let digits: Vec<TokenId> = (0..tokens as u32)
                .rev()
                .map(|place| (number / 6usize.pow(place) % 6) as TokenId)
                .collect();
            let (text, end) = digits.split_at(tokens - 1);
            let bytes: Vec<u8> = text
                .iter()
                .flat_map(|&t| tessera_core::Vocabulary::bytes(&words, t).to_vec())
                .collect();
            let plain = text.iter().all(|&t| t < 4) && end == [5];
            if plain && predicate.judge(&bytes).unwrap().complete {
                found.insert(text.to_vec(), p);
            }
        }
    }
    found
}

fn particles(
    toy: &Scripted,
    calls: &[&str],
    predicate: impl Predicate + 'static,
    most: usize,
) -> Request {
    let recipe = recipe(calls).with_constraint(Arc::new(Judged(Arc::new(predicate)))).unwrap();
    let mut request = Request::new(vec![0]);
    request.recipe = recipe;
    request.sampling = Sampling::neutral();
    request.max_tokens = Some(most);
    let _ = toy;
    request
}

#[test]
fn the_mean_weight_of_particles_is_unbiased() {
    const RUNS: u64 = 3000;
    let (toy, words) = (four_toy(), four());
    let want: f64 = truth(&toy, 4, &Pairs).values().sum();
    println!("P(constraint, at most 4 tokens) = {want:.5}");
    for calls in [
        &["smc:particles=3", "awrs:form=recursive"][..],
        &["smc:particles=3", "awrs:form=two_loops"],
        &["smc:particles=3", "awrs:form=geometric"],
        &["smc:particles=4,threshold=1", "awrs"],
        &["smc:particles=4,threshold=0", "awrs:max_rejects=2"],
        &["smc:particles=2", "mask"],
    ] {
        let mut request = particles(&toy, calls, Pairs, 4);
        let (mut sum, mut squares, mut none) = (0.0, 0.0, 0);
        for seed in 0..RUNS {
            request.seed = seed;
            match answer(&toy, &words, &request) {
                Ok(outcome) => {
                    let population = outcome.population.unwrap();
                    let p = population.log_probability.exp();
                    sum += p;
                    squares += p * p;
                    let weights: f64 = population.particles.iter().map(|p| p.weight).sum();
                    assert!((weights - 1.0).abs() < 1e-9);
                    let all = population.particles.iter();
                    assert!(all.clone().all(|p| p.completion.complete == Some(true)));
                    assert!(all.clone().any(|p| p.completion == outcome.choices[0]));
                }
                Err(Error::Constraint { .. }) => none += 1,
                Err(error) => panic!("{error}"),
            }
        }
        let n = RUNS as f64;
        let mean = sum / n;
        let error = ((squares / n - mean * mean) / n).sqrt();
        println!("{calls:?}: {mean:.5} +- {error:.5}, {none} of {RUNS} runs without a text");
        assert!((mean - want).abs() < 4.5 * error, "{calls:?}: {mean} for {want} +- {error}");
    }
}

/// `ax` or `bx`: the model begins with `a` (0.9) and then hardly ever says `x` (0.01); after `b` it
/// nearly always does (0.9).
#[derive(Debug)]
struct Trap;

impl Predicate for Trap {
    fn judge(&self, text: &[u8]) -> tessera_core::Result<Judgement> {
        let allowed = [&b"ac"[..], b"bc"].iter().any(|whole| whole.starts_with(text));
        Ok(Judgement { allowed, complete: allowed && text.len() == 2 })
    }
}

fn trap_toy() -> Scripted {
    Scripted::new(6, 64, |seen, logits| {
        let text: Vec<TokenId> = seen[1..].iter().map(|&(_, t)| t).collect();
        let p: [f32; 6] = match text[..] {
            [] => [0.9, 0.1, 0.0, 0.0, 0.0, 0.0],
            [0] => [0.0, 0.0, 0.01, 0.99, 0.0, 0.0],
            [1] => [0.0, 0.0, 0.9, 0.1, 0.0, 0.0],
            _ => [0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
        };
        logits.iter_mut().zip(p).for_each(|(l, p)| *l = p.ln());
    })
}

#[test]
fn particles_recover_the_posterior_where_masking_walks_into_the_trap() {
    const RUNS: u64 = 4000;
    let (toy, words) = (trap_toy(), four());
    let all = truth(&toy, 3, &Trap);
    let whole: f64 = all.values().sum();
    let posterior = all[&vec![0, 2]] / whole;
    // Texts that begin with `a`, as a share of runs.
    let share = |request: &mut Request| {
        let mut trapped = 0;
        for seed in 0..RUNS {
            request.seed = seed;
            let outcome = answer(&toy, &words, request).unwrap();
            trapped += u64::from(outcome.choices[0].tokens[0] == 0);
        }
        trapped as f64 / RUNS as f64
    };
    let local = share(&mut particles(&toy, &["awrs"], Trap, 3));
    println!("posterior of the trap {posterior:.4}, under masking {local:.4}");
    assert!((local - 0.9).abs() < 0.02, "masking keeps the frequency of the beginning: {local}");
    let mut distances = Vec::new();
    for count in [1, 2, 5, 20, 60] {
        let calls = [format!("smc:particles={count}"), "awrs".to_owned()];
        let calls: Vec<&str> = calls.iter().map(String::as_str).collect();
        let found = share(&mut particles(&toy, &calls, Trap, 3));
        let distance = (found - posterior).abs();
        println!("{count:>3} particles: {found:.4}, total variation {distance:.4}");
        distances.push(distance);
    }
    assert!(distances.windows(2).all(|w| w[1] < w[0] + 0.01), "{distances:?}");
    assert!(distances[0] > 0.5 && distances[4] < 0.05, "{distances:?}");
}

#[test]
fn particles_are_reproducible_and_tell_one_text() {
    let (toy, words) = (four_toy(), four());
    let request = particles(&toy, &["smc", "awrs"], Pairs, 6);
    let one = answer(&toy, &words, &request).unwrap();
    let mut two = answer(&toy, &words, &request).unwrap();
    assert_eq!(one.choices, two.choices);
    assert_eq!(one.population, two.population);
    two.population = None;
    let population = one.population.unwrap();
    assert_eq!(population.count, 5);
    let mut heard = (String::new(), 0);
    let model = Model { backbone: &toy, vocabulary: &words, draft: None, filling: None };
    let mut listener = |event: Event<'_>| {
        match event {
            Event::Committed { text, .. } => heard.0.push_str(text),
            Event::Finished { .. } => heard.1 += 1,
            _ => {}
        }
        Control::Continue
    };
    generate(model, &request, &mut listener, &AtomicBool::new(false)).unwrap();
    assert_eq!(heard, (two.choices[0].text.clone(), 1));
    // Stopped at once there is no population, and nothing breaks.
    let stopped =
        generate(model, &request, &mut |_| Control::Stop, &AtomicBool::new(true)).unwrap();
    assert_eq!(stopped.choices[0].reason, FinishReason::Cancelled);
}
