//! Probes on scripted models whose dependencies are known.

use tessera_testkit::{Scripted, Words};

use super::*;

/// Words are two letters; the model answers with the value of the key: the token after the question
/// mark is decided by the token at position `at` alone.
fn planted(at: usize, vocab: usize) -> Scripted {
    Scripted::new(vocab, 64, move |seen, logits| {
        let key = seen.iter().find(|s| s.0 as usize == at).map_or(0, |s| s.1);
        logits[key as usize] = 6.0;
    })
}

fn words() -> Words {
    Words::new((0..40).map(|i| format!(" {}{}", (b'a' + i / 6) as char, (b'a' + i % 6) as char)))
}

fn settings() -> ReAGent {
    ReAGent { max_steps: 60, keep: 2, top: 1, ..ReAGent::default() }
}

fn run(toy: &Scripted, settings: &ReAGent, context: &[TokenId]) -> Attribution {
    let positions: Vec<usize> = (1..context.len()).collect();
    explain(toy, &words(), settings, context, &positions, None, &mut |_, _| ()).unwrap()
}

const CONTEXT: [TokenId; 10] = [40, 3, 9, 14, 2, 27, 33, 8, 19, 5];

#[test]
fn a_planted_key_comes_first_in_nearly_all_cases() {
    let mut first = 0;
    for (at, &key) in CONTEXT.iter().enumerate().skip(1) {
        for seed in 0..10 {
            let toy = planted(at, 42);
            let found = run(&toy, &ReAGent { seed, ..settings() }, &CONTEXT);
            assert_eq!(found.target, key);
            assert!((found.scores.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            let best = (0..9).max_by(|&a, &b| found.scores[a].total_cmp(&found.scores[b])).unwrap();
            first += usize::from(found.positions[best] == at);
        }
    }
    assert!(first >= 88, "{first} of 90");
}

#[test]
fn leaving_the_key_out_costs_the_whole_probability() {
    // Leaving a token out moves the later ones, so only what comes after the key is inert.
    let toy = planted(3, 42);
    let falls = leave_one_out(&toy, &CONTEXT, &[3, 4, 5, 9], 14).unwrap();
    assert!(falls[0] > 0.8 && falls[1..].iter().all(|f| f.abs() < 1e-9), "{falls:?}");
}

#[test]
fn nothing_replaced_or_everything_replaced_says_nothing() {
    let toy = planted(4, 42);
    for rho in [0.0, 1.0] {
        let quiet = ReAGent { rho, start: Start::Zeros, max_steps: 7, ..settings() };
        let found = run(&toy, &quiet, &CONTEXT);
        assert!(found.scores.iter().all(|s| (s - 1.0 / 9.0).abs() < 1e-9), "{:?}", found.scores);
    }
    let start = run(&toy, &ReAGent { max_steps: 0, ..settings() }, &CONTEXT);
    let rho0 = run(&toy, &ReAGent { rho: 0.0, max_steps: 5, ..settings() }, &CONTEXT);
    assert!(start.none_stopped);
    assert_eq!(
        start.probes.iter().map(|p| &p.scores).collect::<Vec<_>>(),
        rho0.probes.iter().map(|p| &p.scores).collect::<Vec<_>>()
    );
}

#[test]
fn probes_are_independent_and_seeds_repeat() {
    let toy = Scripted::hashed(42, 64, 2, 5.0);
    let positions: Vec<usize> = (1..10).collect();
    let settings = ReAGent { probes: 5, ..settings() };
    let all = run(&toy, &settings, &CONTEXT);
    assert_eq!(all, run(&toy, &settings, &CONTEXT));
    assert_ne!(all.scores, run(&toy, &ReAGent { seed: 1, ..settings.clone() }, &CONTEXT).scores);
    for number in 0..5 {
        let alone = explain_probes(
            &toy,
            &words(),
            &settings,
            &CONTEXT,
            &positions,
            None,
            &[number],
            &mut |_, _| (),
        )
        .unwrap();
        assert_eq!(alone.probes[0], all.probes[number as usize]);
    }
}

#[test]
fn positions_without_influence_are_equally_important_on_average() {
    let settings = ReAGent { probes: 256, keep: 1, top: 1, max_steps: 12, ..ReAGent::default() };
    // The stop test would freeze probes at different times, so it can never pass here.
    let toy = Scripted::new(42, 64, move |seen, logits| {
        let key = seen.iter().find(|s| s.0 == 4).map_or(0, |s| s.1);
        logits[key as usize] = 1.0;
        let whole = seen.iter().filter(|s| s.0 > 0).all(|s| CONTEXT[s.0 as usize] == s.1);
        logits[41] = if whole { 0.0 } else { 9.0 };
    });
    let found = run(&toy, &settings, &CONTEXT);
    let inert: Vec<usize> = (0..9).filter(|&i| found.positions[i] != 4).collect();
    let mean = inert.iter().map(|&i| found.scores[i]).sum::<f64>() / 8.0;
    for &i in &inert {
        let values: Vec<f64> = found.probes.iter().map(|p| p.scores[i]).collect();
        let m = values.iter().sum::<f64>() / 256.0;
        let variance = values.iter().map(|v| (v - m).powi(2)).sum::<f64>() / 255.0;
        assert!((m - mean).abs() < 4.0 * (variance / 256.0).sqrt(), "{i}: {m} {mean}");
    }
}

#[test]
fn an_improbable_target_widens_the_stop_test() {
    let toy = Scripted::new(42, 64, |_, logits| {
        (0..10).for_each(|i| logits[i] = 10.0 - i as f32);
    });
    let positions: Vec<usize> = (1..10).collect();
    let found = explain(&toy, &words(), &settings(), &CONTEXT, &positions, Some(7), &mut |_, _| ())
        .unwrap();
    assert_eq!((found.rank, found.top), (7, 8));
    assert!(found.probes.iter().all(|p| p.stopped && p.steps == 1));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let toy = planted(4, 42);
    let ask = |positions: &[usize], target| {
        explain(&toy, &words(), &settings(), &CONTEXT, positions, target, &mut |_, _| ())
            .unwrap_err()
            .to_string()
    };
    assert!(ask(&[], None).contains("at least one token"));
    assert!(ask(&[10], None).contains("at least one token"));
    assert!(ask(&[1], Some(99)).contains("target"));
}
