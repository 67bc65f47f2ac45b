//! Tests of the chain: against a definition written the slow way, and against chance.

use super::*;
use crate::dist::chi::{ERROR_LEVEL, goodness};

/// The chain as its documentation defines it, over the whole sorted vocabulary.
fn definition(s: &Sampling, logits: &[f32], history: &[TokenId]) -> Vec<f64> {
    let mut l: Vec<f64> = logits.iter().map(|&v| f64::from(v)).collect();
    if s.penalises() {
        let window = &history[history.len().saturating_sub(s.penalty_window)..];
        for (id, logit) in l.iter_mut().enumerate() {
            let count = window.iter().filter(|&&t| t as usize == id).count();
            if count > 0 {
                let r = f64::from(s.repeat_penalty);
                *logit = if *logit > 0.0 { *logit / r } else { *logit * r };
                *logit -= f64::from(s.presence_penalty);
                *logit -= count as f64 * f64::from(s.frequency_penalty);
            }
        }
    }
    let mut rank: Vec<usize> = (0..l.len()).filter(|&i| l[i] > f64::NEG_INFINITY).collect();
    rank.sort_by(|&a, &b| l[b].total_cmp(&l[a]).then(a.cmp(&b)));
    if s.top_k > 0 {
        rank.truncate(s.top_k);
    }
    let max = l[rank[0]];
    if s.top_p < 1.0 {
        let mass: f64 = rank.iter().map(|&i| (l[i] - max).exp()).sum();
        let mut sum = 0.0;
        let mut reached = false;
        rank.retain(|&i| {
            let keep = !reached;
            sum += (l[i] - max).exp();
            reached |= sum >= f64::from(s.top_p) * mass;
            keep
        });
    }
    rank.retain(|&i| (l[i] - max).exp() >= f64::from(s.min_p) * (1.0 - 1e-12));
    let mut p = vec![0.0; l.len()];
    if s.temperature == 0.0 {
        p[rank[0]] = 1.0;
        return p;
    }
    for &i in &rank {
        p[i] = ((l[i] - max) / f64::from(s.temperature)).exp();
    }
    let sum: f64 = p.iter().sum();
    p.iter_mut().for_each(|v| *v /= sum);
    p
}

fn random_logits(seed: u64, n: usize, spread: f64) -> Vec<f32> {
    let key = Key::new(seed, 1, 0);
    (0..n as u32).map(|i| (spread * (key.uniform(i) + key.uniform(i + 999) - 1.0)) as f32).collect()
}

fn settings() -> Vec<(&'static str, Sampling)> {
    let n = Sampling::neutral();
    vec![
        ("neutral", n),
        ("temperature 0.5", Sampling { temperature: 0.5, ..n }),
        ("temperature 2", Sampling { temperature: 2.0, ..n }),
        ("top-k", Sampling { top_k: 3, ..n }),
        ("top-p", Sampling { top_p: 0.7, ..n }),
        ("min-p", Sampling { min_p: 0.2, ..n }),
        ("min-p and temperature", Sampling { min_p: 0.1, temperature: 1.7, ..n }),
        ("top-k and top-p", Sampling { top_k: 5, top_p: 0.8, ..n }),
        ("repetition", Sampling { repeat_penalty: 1.8, ..n }),
        ("presence", Sampling { presence_penalty: 0.9, ..n }),
        ("frequency", Sampling { frequency_penalty: 0.6, penalty_window: 5, ..n }),
        ("defaults", Sampling::default()),
        (
            "everything",
            Sampling {
                temperature: 1.3,
                top_k: 6,
                top_p: 0.9,
                min_p: 0.05,
                repeat_penalty: 1.2,
                presence_penalty: 0.3,
                frequency_penalty: -0.2,
                penalty_window: 6,
            },
        ),
    ]
}

const HISTORY: [TokenId; 8] = [6, 0, 3, 3, 1, 3, 5, 0];

#[test]
fn the_distribution_is_the_definition() {
    for (name, s) in settings() {
        let mut sampler = Sampler::new(s).unwrap();
        for round in 0..60 {
            let n = [2, 3, 8, 700][round as usize % 4];
            let mut logits = random_logits(round, n, 6.0);
            if n > 4 {
                logits[4] = f32::NEG_INFINITY;
                logits[5] = logits[2];
            }
            let mut out = Vec::new();
            sampler.distribution(&logits, &HISTORY, &mut out).unwrap();
            let mut dense = vec![0.0; n];
            out.iter().for_each(|&(id, p)| dense[id as usize] = p);
            for (id, (got, want)) in dense.iter().zip(definition(&s, &logits, &HISTORY)).enumerate()
            {
                assert!(
                    (got - want).abs() < 2e-6,
                    "{name}, round {round}, token {id}: {got} {want}"
                );
                assert_eq!(*got > 0.0, want > 0.0, "{name}, round {round}, token {id}");
            }
        }
    }
}

#[test]
fn draws_follow_the_distribution() {
    let logits = [1.2f32, -0.4, 0.3, 0.9, f32::NEG_INFINITY, -1.1, 0.3, 0.0];
    for (name, s) in settings() {
        let mut sampler = Sampler::new(s).unwrap();
        let law = definition(&s, &logits, &HISTORY);
        let mut counts = [0u64; 8];
        for position in 0..20_000 {
            let key = Key::new(42, 0, position);
            counts[sampler.draw(&logits, &HISTORY, key).unwrap() as usize] += 1;
        }
        let p = goodness(&counts, &law);
        assert!(p > ERROR_LEVEL, "{name}: p = {p}, {counts:?} for {law:?}");
        // The same counts must refuse another law, or the test could not fail.
        let mut other = law.clone();
        other.rotate_left(1);
        assert!(goodness(&counts, &other) < ERROR_LEVEL, "{name}");
    }
}

#[test]
fn a_large_vocabulary_draws_by_its_law_too() {
    let logits = random_logits(3, 5000, 14.0);
    let s = Sampling::neutral();
    let law = definition(&s, &logits, &[]);
    let mut sampler = Sampler::new(s).unwrap();
    let mut counts = vec![0u64; 5000];
    for position in 0..30_000 {
        counts[sampler.draw(&logits, &[], Key::new(1, 2, position)).unwrap() as usize] += 1;
    }
    assert!(goodness(&counts, &law) > ERROR_LEVEL);
}

#[test]
fn neutral_settings_change_nothing() {
    let logits = random_logits(9, 300, 10.0);
    let mut neutral = Sampler::new(Sampling::neutral()).unwrap();
    let same = [
        Sampling { top_k: 300, ..Sampling::neutral() },
        Sampling { top_k: 5000, ..Sampling::neutral() },
        Sampling { penalty_window: 0, repeat_penalty: 2.0, ..Sampling::neutral() },
    ];
    for s in same {
        let mut other = Sampler::new(s).unwrap();
        for position in 0..500 {
            let key = Key::new(8, 0, position);
            assert_eq!(
                neutral.draw(&logits, &HISTORY, key).unwrap(),
                other.draw(&logits, &HISTORY, key).unwrap()
            );
        }
    }
    // A truncation that excludes nothing that is ever drawn changes no draw either: the race is
    // the same one, with fewer runners.
    let mut truncated = Sampler::new(Sampling { top_k: 40, ..Sampling::neutral() }).unwrap();
    let mut law = Vec::new();
    truncated.distribution(&logits, &[], &mut law).unwrap();
    for position in 0..500 {
        let key = Key::new(8, 0, position);
        let whole = neutral.draw(&logits, &[], key).unwrap();
        if law.iter().any(|&(id, _)| id == whole) {
            assert_eq!(truncated.draw(&logits, &[], key).unwrap(), whole);
        }
    }
}

#[test]
fn temperature_zero_is_the_first_maximum_after_penalties() {
    let logits = [0.5f32, 2.0, 2.0, -1.0];
    let mut greedy = Sampler::new(Sampling::greedy()).unwrap();
    let key = Key::new(0, 0, 0);
    assert_eq!(greedy.draw(&logits, &[], key).unwrap(), 1);
    let s = Sampling { presence_penalty: 1.0, ..Sampling::greedy() };
    let mut penalised = Sampler::new(s).unwrap();
    assert_eq!(penalised.draw(&logits, &[1], key).unwrap(), 2);
    assert_eq!(penalised.draw(&logits, &[1, 2], key).unwrap(), 1);
    assert_eq!(penalised.draw(&logits, &[1, 2, 77], key).unwrap(), 1);
}

#[test]
fn top_k_and_top_p_break_ties_by_id_at_every_size() {
    let logits = vec![1.0f32; 1000];
    let mut out = Vec::new();
    for k in [1, 2, 63, 64, 65, 500, 999] {
        let mut sampler = Sampler::new(Sampling { top_k: k, ..Sampling::neutral() }).unwrap();
        sampler.distribution(&logits, &[], &mut out).unwrap();
        assert!(out.iter().map(|c| c.0).eq(0..k as u32), "{k}");
    }
    let mut sampler = Sampler::new(Sampling { top_p: 0.25, ..Sampling::neutral() }).unwrap();
    sampler.distribution(&logits, &[], &mut out).unwrap();
    assert!(out.iter().map(|c| c.0).eq(0..250));
}

#[test]
fn broken_logits_are_errors_in_every_setting() {
    for (name, s) in settings() {
        let mut sampler = Sampler::new(s).unwrap();
        for bad in [f32::NAN, f32::INFINITY] {
            let mut logits = vec![0.5; 20];
            logits[13] = bad;
            assert!(sampler.draw(&logits, &HISTORY, Key::new(0, 0, 0)).is_err(), "{name}");
        }
        assert!(sampler.draw(&[f32::NEG_INFINITY; 8], &[], Key::new(0, 0, 0)).is_err(), "{name}");
        assert!(sampler.draw(&[], &[], Key::new(0, 0, 0)).is_err(), "{name}");
    }
}
