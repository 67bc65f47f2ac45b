//! The estimators by enumeration, and the sampler against full masking.

use tessera_core::constrain::Masking;
use tessera_core::dist::chi::{ERROR_LEVEL, goodness};
use tessera_core::dist::{Key, Sampler, Sampling};
use tessera_core::{Guard, Vocabulary};
use tessera_testkit::{Listed, Words};

use super::*;

/// Every order in which tokens of these probabilities can come home, with its probability.
fn orders(p: &[f64]) -> Vec<(Vec<usize>, f64)> {
    let mut done = vec![(Vec::new(), 1.0, 1.0)];
    for _ in 0..p.len() {
        let longer = |(order, q, left): &(Vec<usize>, f64, f64)| -> Vec<(Vec<usize>, f64, f64)> {
            let free = (0..p.len()).filter(|i| !order.contains(i));
            free.map(|i| ([&order[..], &[i]].concat(), q * p[i] / left, left - p[i])).collect()
        };
        done = done.iter().flat_map(longer).collect();
    }
    done.into_iter().map(|(order, q, _)| (order, q)).collect()
}

/// A draw whose orders are given; counts first questions only, or all.
struct Scripted<'a> {
    p: &'a [f64],
    ok: &'a [bool],
    races: Vec<Vec<usize>>,
    asked: Vec<usize>,
    questions: usize,
}

impl Walk for Scripted<'_> {
    fn token(&mut self, race: usize, n: usize) -> Result<Option<(TokenId, f64)>> {
        Ok(self.races[race].get(n).map(|&i| (i as TokenId, self.p[i])))
    }

    fn allows(&mut self, token: TokenId) -> Result<bool> {
        self.questions += 1;
        if !self.asked.contains(&(token as usize)) {
            self.asked.push(token as usize);
        }
        Ok(self.ok[token as usize])
    }

    fn uniform(&self, _: u32) -> f64 {
        0.5
    }
}

/// What enumeration finds: `E[w 1{x = i}]` by token, the variance of the weight, mean distinct
/// questions, mean questions with those asked twice.
struct Exact {
    mean: Vec<f64>,
    variance: f64,
    distinct: f64,
    questions: f64,
}

fn enumerate(
    p: &[f64],
    ok: &[bool],
    races: usize,
    form: impl Fn(&mut dyn Walk) -> Result<Weighted>,
) -> Exact {
    let mut found =
        Exact { mean: vec![0.0; p.len()], variance: 0.0, distinct: 0.0, questions: 0.0 };
    let all = orders(p);
    let mut squares = 0.0;
    let mut visit = |orders: Vec<&Vec<usize>>, q: f64| {
        let races = orders.into_iter().cloned().collect();
        let mut walk = Scripted { p, ok, races, asked: Vec::new(), questions: 0 };
        if let Some((token, w)) = form(&mut walk).unwrap() {
            found.mean[token as usize] += q * w;
            squares += q * w * w;
        }
        found.distinct += q * walk.asked.len() as f64;
        found.questions += q * walk.questions as f64;
    };
    for (first, q) in &all {
        match races {
            1 => visit(vec![first], *q),
            _ => all.iter().for_each(|(second, r)| visit(vec![first, second], q * r)),
        }
    }
    found.variance = squares - found.mean.iter().sum::<f64>().powi(2);
    found
}

const CASES: [(&[f64], &[bool]); 5] = [
    (&[0.5, 0.3, 0.2], &[false, true, false]),
    (&[0.4, 0.3, 0.2, 0.1], &[false, true, false, true]),
    (&[0.9, 0.05, 0.05], &[false, true, false]),
    (&[0.9, 0.05, 0.05], &[true, true, true]),
    (&[0.25, 0.25, 0.25, 0.25], &[false, false, false, false]),
];

#[test]
fn every_form_s_expectation_is_exact() {
    type Named = (&'static str, usize, fn(&mut dyn Walk) -> Result<Weighted>);
    let forms: [Named; 4] = [
        ("B", 2, two_loops),
        ("C", 1, |walk| recursive(walk, usize::MAX)),
        ("C, 2 tries", 1, |walk| recursive(walk, 2)),
        ("C, 3 tries", 1, |walk| recursive(walk, 3)),
    ];
    for (p, ok) in CASES {
        for (name, races, form) in forms {
            let found = enumerate(p, ok, races, form);
            for ((mean, p), ok) in found.mean.iter().zip(p).zip(ok) {
                let want = if *ok { *p } else { 0.0 };
                assert!((mean - want).abs() < 1e-12, "{name} {p:?}: {mean} for {want}");
            }
        }
    }
    // A weight that forgets the mass rejected is caught by the same sum.
    let wrong = |walk: &mut dyn Walk| Ok(recursive(walk, usize::MAX)?.map(|(t, _)| (t, 1.0)));
    assert!((enumerate(CASES[0].0, CASES[0].1, 1, wrong).mean[1] - 0.3).abs() > 0.1);
}

#[test]
fn the_published_table_of_variances_and_questions() {
    let (p, ok) = CASES[1];
    let row = |races, form: &dyn Fn(&mut dyn Walk) -> Result<Weighted>| {
        let e = enumerate(p, ok, races, form);
        (e.variance, e.distinct, e.questions)
    };
    let near = |a: (f64, f64, f64), b: (f64, f64, f64)| {
        let close = |x: f64, y: f64| (x - y).abs() < 6e-3;
        assert!(close(a.0, b.0) && close(a.1, b.1) && close(a.2, b.2), "{a:?} for {b:?}");
    };
    // B asks some tokens twice; the guard answers those from memory.
    near(row(2, &two_loops), (0.0823, 2.68, 3.31));
    near(row(1, &|walk| recursive(walk, usize::MAX)), (0.050, 2.83, 2.83));
    near(row(1, &|walk| recursive(walk, 2)), (0.10, 2.0, 2.0));
    // Only one token allowed: C's weight is Z itself.
    assert!(row(1, &|_| recursive_of_one()).0.abs() < 1e-12);
}

fn recursive_of_one() -> Result<Weighted> {
    let (p, ok) = CASES[0];
    let spread = enumerate(p, ok, 1, |walk| recursive(walk, usize::MAX)).variance;
    // E[w^2] = Z E[w]: the weight is Z wherever it is not 0.
    assert!(spread.abs() < 1e-12, "{spread}");
    Ok(Some((0, 1.0)))
}

struct Bench {
    words: Words,
    logits: Vec<f32>,
    sampler: Sampler,
    allowed: Vec<TokenId>,
}

impl Bench {
    fn new(p: &[f64], ok: &[bool], sampling: Sampling) -> Self {
        let words = Words::new((0..p.len()).map(|i| format!("w{i}")));
        let mut logits: Vec<f32> = p.iter().map(|p| p.ln() as f32).collect();
        // The control token and the end token.
        logits.extend([f32::NEG_INFINITY; 2]);
        let allowed = (0..).zip(ok).filter(|(_, ok)| **ok).map(|(i, _)| i).collect();
        Self { words, logits, sampler: Sampler::new(sampling).unwrap(), allowed }
    }

    /// What `sampler` draws at a place, and how many questions that took.
    fn draw(&mut self, rule: &mut dyn ConstrainedSampler, at: u32) -> (Drawn, u64) {
        let state = Box::new(Listed(self.allowed.clone()));
        let mut guard = Guard::new(state, &self.words);
        let drawn = rule.draw(&mut ConstrainedDraw {
            logits: &self.logits,
            history: &[],
            key: Key::new(3, 0, at),
            sampler: &mut self.sampler,
            guard: &mut guard,
            vocabulary: &self.words,
            weighted: true,
        });
        (drawn.unwrap(), guard.stats().evaluations)
    }
}

fn form(form: Form, max_accepts: usize, max_rejects: Option<usize>) -> Adaptive {
    let config = Awrs { form, max_accepts, max_rejects };
    config.validate().unwrap();
    Adaptive::new(config)
}

#[test]
fn geometric_weights_are_unbiased_and_the_first_token_has_the_conditional_law() {
    const N: u32 = 60_000;
    for (p, ok) in CASES {
        let forms = [
            form(Form::Geometric, 2, None),
            form(Form::Geometric, 4, None),
            form(Form::Geometric, 2, Some(3)),
            form(Form::Recursive, 2, None),
            form(Form::TwoLoops, 2, None),
            form(Form::Auto, 2, None),
        ];
        for mut rule in forms {
            let mut bench = Bench::new(p, ok, Sampling::neutral());
            let (mut sums, mut squares) = (vec![0.0; p.len()], vec![0.0; p.len()]);
            let mut counts = vec![0; p.len()];
            for at in 0..N {
                let (drawn, _) = bench.draw(&mut rule, at);
                let Some(token) = drawn.token else { continue };
                let w = drawn.log_weight.exp();
                sums[token as usize] += w;
                squares[token as usize] += w * w;
                counts[token as usize] += 1;
            }
            let n = f64::from(N);
            for i in 0..p.len() {
                let want = if ok[i] { p[i] } else { 0.0 };
                let mean = sums[i] / n;
                let error = (f64::max(squares[i] / n - mean * mean, 0.0) / n).sqrt();
                let off = (mean - want).abs();
                assert!(off < 4.5 * error + 1e-6, "{rule:?} {p:?} token {i}: {mean} for {want}");
            }
            // Where a bound ends the search, what is found depends on how long it took.
            let z: f64 = p.iter().zip(ok).filter(|(_, ok)| **ok).map(|(p, _)| p).sum();
            if z > 0.0 && rule.config.max_rejects.is_none() {
                let law: Vec<f64> =
                    p.iter().zip(ok).map(|(p, ok)| if *ok { p / z } else { 0.0 }).collect();
                assert!(goodness(&counts, &law) > ERROR_LEVEL, "{rule:?}: {counts:?}");
            }
        }
    }
}

#[test]
fn every_form_draws_what_full_masking_draws_and_asks_less() {
    let p: Vec<f64> = (0..300).map(|i| 1.0 / f64::from(i + 3)).collect();
    let ok: Vec<bool> = (0..300).map(|i| i % 3 == 1).collect();
    let settings = [
        Sampling::neutral(),
        Sampling::greedy(),
        Sampling { top_k: 40, top_p: 0.8, temperature: 0.7, ..Sampling::neutral() },
        Sampling { min_p: 0.1, ..Sampling::neutral() },
    ];
    for sampling in settings {
        let mut bench = Bench::new(&p, &ok, sampling);
        let (mut few, mut all) = (0, 0);
        for at in 0..300 {
            let (masked, questions) = bench.draw(&mut Masking::default(), at);
            all += questions;
            let forms = [Form::Unweighted, Form::TwoLoops, Form::Recursive, Form::Geometric];
            for rule in forms {
                let (drawn, questions) = bench.draw(&mut form(rule, 2, None), at);
                assert_eq!(drawn.token, masked.token, "{rule:?} {sampling:?}");
                few += if rule == Form::Recursive { questions } else { 0 };
            }
        }
        assert!(few < all / 2, "{few} questions, {all} by masking");
    }
}

#[test]
fn all_allowed_weighs_one_and_none_allowed_weighs_nothing() {
    for rule in [Form::TwoLoops, Form::Recursive, Form::Geometric] {
        let mut bench = Bench::new(CASES[3].0, CASES[3].1, Sampling::neutral());
        for at in 0..200 {
            let (drawn, _) = bench.draw(&mut form(rule, 2, None), at);
            assert!(drawn.log_weight.abs() < 1e-6, "{rule:?}: {drawn:?}");
        }
        let mut bench = Bench::new(CASES[4].0, CASES[4].1, Sampling::neutral());
        let (drawn, questions) = bench.draw(&mut form(rule, 2, None), 0);
        assert_eq!((drawn, questions), (Drawn::NOTHING, 4), "{rule:?}");
    }
}

#[test]
fn control_tokens_are_pruned_and_their_mass_is_weighed() {
    let (p, ok) = ([0.4, 0.6], [true, true]);
    let mut bench = Bench::new(&p, &ok, Sampling::neutral());
    // The control token has the mass of both words together; the text may not end.
    bench.logits[2] = 0.0;
    for rule in [Form::TwoLoops, Form::Recursive, Form::Geometric] {
        for at in 0..50 {
            let (drawn, _) = bench.draw(&mut form(rule, 2, None), at);
            assert!((drawn.log_weight - 0.5f64.ln()).abs() < 1e-6, "{rule:?}: {drawn:?}");
        }
    }
    assert!(bench.words.is_control(2));
}
