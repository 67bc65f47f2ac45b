//! Title: Fast Inference from Transformers via Speculative Decoding; for several siblings, SpecInfer
//!   and DySpec
//! Authors: Leviathan, Kalman, Matias; Miao et al.; Xiong et al.
//! Year: 2023
//! Id: arXiv:2211.17192, arXiv:2305.09781, arXiv:2410.11744
//! Implemented: a guess y drawn from D is accepted with probability min(1, R(y) / D(y)), where R is
//!   the target's distribution; rejected, R becomes norm(max(R - D, 0)) and y is struck from D; the
//!   next sibling is tested against what is left, and after the last one a token is drawn from R.
//!   A guess that no chance took part in has D = 1 at its token.
//! Left out: nothing. Numbers of the tests and of the final draw are keyed by position and purpose
//!   and shared with nothing else.
//! Tag: residual

use tessera_core::draft::Law;
use tessera_core::entry::{
    Exactness, Kind, Method, MethodEntry, Needs, NoSettings, Paper, Place, Role, Site, defaults_of,
    read_as, resolve_as, schema_of,
};
use tessera_core::{Accept, Decision, Result, TokenId};

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "residual",
    aliases: &["residual-acceptance", "rejection"],
    name: "Residual acceptance",
    paper: Some(Paper {
        title: "Fast Inference from Transformers via Speculative Decoding",
        authors: "Leviathan, Kalman, Matias",
        year: 2023,
        id: "arXiv:2211.17192",
    }),
    summary: "Accepts a guess with probability min(1, p/q) and draws from the residual otherwise.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Accept, site: Site::Whole }],
    exactness: Exactness::DistributionExact,
    needs: Needs::NONE,
    claims: &[],
    schema: schema_of::<NoSettings>,
    defaults: defaults_of::<NoSettings>,
    // Its draws have keys of their own, so even without guesses it is equal in distribution only.
    neutral: None,
    read: resolve_as::<NoSettings>,
    build: |settings| {
        read_as::<NoSettings>("residual", settings)
            .map(|_| Method::Accept(Box::new(Residual::default())))
    },
};

/// The purposes of its numbers (`Key::purpose`).
const TEST: u64 = 1;
const DRAW: u64 = 2;

/// The rule, with memory for its work.
#[derive(Debug, Default)]
pub struct Residual {
    rest: Law,
    /// By number of the law: what is left of it.
    laws: Vec<Option<Law>>,
}

impl Accept for Residual {
    fn choose(&mut self, decision: &mut Decision<'_>) -> Result<TokenId> {
        let Decision { logits, history, key, guesses, laws, .. } = *decision;
        let rest = &mut self.rest;
        decision.sampler.distribution(logits, history, rest)?;
        self.laws.clear();
        self.laws.resize(laws.len(), None);
        for (i, guess) in (0..).zip(guesses) {
            let y = guess.token;
            let certain = vec![(y, 1.0)];
            let law = match guess.drawn_from {
                None => &certain,
                Some(n) => self.laws[n as usize].get_or_insert_with(|| laws[n as usize].clone()),
            };
            let (p, q) = (probability(rest, y), probability(law, y));
            // A guess of probability 0 cannot have been drawn from what is left: it is no test.
            if q <= 0.0 {
                continue;
            }
            if key.purpose(TEST).uniform(i) * q <= p {
                return Ok(y);
            }
            subtract(rest, law);
            if let Some(Some(law)) = guess.drawn_from.map(|n| &mut self.laws[n as usize]) {
                law.retain(|&(token, _)| token != y);
                normalise(law);
            }
        }
        if rest.is_empty() {
            // Only rounding empties it: target and draft are equal up to it.
            decision.sampler.distribution(logits, history, rest)?;
        }
        // An exponential race: the winner has the probabilities of `rest`.
        let key = key.purpose(DRAW);
        let time = |&(token, p): &(TokenId, f64)| key.exponential(token) / p;
        let first = rest.iter().min_by(|a, b| time(a).total_cmp(&time(b)));
        match first {
            Some(&(token, _)) => Ok(token),
            None => decision.draw(),
        }
    }
}

fn probability(law: &Law, token: TokenId) -> f64 {
    law.binary_search_by_key(&token, |&(t, _)| t).map_or(0.0, |at| law[at].1)
}

/// `rest <- norm(max(rest - law, 0))`.
fn subtract(rest: &mut Law, law: &Law) {
    for (token, p) in rest.iter_mut() {
        *p -= probability(law, *token);
    }
    rest.retain(|&(_, p)| p > 0.0);
    normalise(rest);
}

fn normalise(law: &mut Law) {
    let sum: f64 = law.iter().map(|&(_, p)| p).sum();
    law.iter_mut().for_each(|(_, p)| *p /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_core::Guess;
    use tessera_core::dist::chi::{ERROR_LEVEL, goodness};
    use tessera_core::dist::{Key, Sampler, Sampling};

    const TARGET: [f64; 3] = [0.2, 0.2, 0.6];
    const DRAFT: [f64; 3] = [0.5, 0.3, 0.2];

    /// Counts of the committed token over many keys, for guesses made by `guess` from a number.
    fn counts(guess: impl Fn(Key) -> Vec<Guess>) -> [u64; 3] {
        let logits: Vec<f32> = TARGET.iter().map(|p| p.ln() as f32).collect();
        let laws = [(0..3).zip(DRAFT).collect::<Law>()];
        let mut sampler = Sampler::new(Sampling::neutral()).unwrap();
        let mut rule = Residual::default();
        let mut counts = [0; 3];
        for position in 0..60_000 {
            let key = Key::new(5, 0, position);
            let token = rule.choose(&mut Decision {
                logits: &logits,
                history: &[],
                key,
                sampler: &mut sampler,
                guesses: &guess(key.purpose(99)),
                laws: &laws,
                constrained: None,
            });
            counts[token.unwrap() as usize] += 1;
        }
        counts
    }

    /// Tokens in the order of a race with the draft's probabilities: draws without replacement.
    fn drawn(key: Key, count: usize) -> Vec<Guess> {
        let time = |t: usize| key.exponential(t as u32) / DRAFT[t];
        let mut order = [0, 1, 2];
        order.sort_by(|&a, &b| time(a).total_cmp(&time(b)));
        let guess = |&t: &usize| Guess { token: t as u32, drawn_from: Some(0) };
        order[..count].iter().map(guess).collect()
    }

    #[test]
    fn the_target_law_is_kept_for_any_number_of_siblings() {
        for count in 0..=3 {
            let seen = counts(|key| drawn(key, count));
            assert!(goodness(&seen, &TARGET) > ERROR_LEVEL, "{count} siblings: {seen:?}");
        }
        let fixed = |token| move |_| vec![Guess { token, drawn_from: None }];
        for token in 0..3 {
            let seen = counts(fixed(token));
            assert!(goodness(&seen, &TARGET) > ERROR_LEVEL, "fixed {token}: {seen:?}");
        }
    }

    #[test]
    fn a_second_sibling_may_depend_on_the_mass_left_but_not_on_its_own_value() {
        // The rule: draw again when less than 0.4 was drawn, a decision before the second draw.
        let seen = counts(|key| {
            let first = drawn(key, 1)[0];
            drawn(key, if DRAFT[first.token as usize] < 0.4 { 2 } else { 1 })
        });
        assert!(goodness(&seen, &TARGET) > ERROR_LEVEL, "{seen:?}");
    }

    #[test]
    fn wrong_uses_are_refused_by_the_same_test() {
        // The two best tokens taken for certain, but judged as if drawn.
        let best = [0, 1].map(|token| Guess { token, drawn_from: Some(0) });
        let seen = counts(|_| best.to_vec());
        assert!(goodness(&seen, &TARGET) < 1e-9, "{seen:?}");
        // A drawn token struck because it is improbable.
        let seen = counts(|key| {
            let first = drawn(key, 1);
            if DRAFT[first[0].token as usize] < 0.25 { Vec::new() } else { first }
        });
        assert!(goodness(&seen, &TARGET) < 1e-9, "{seen:?}");
    }
}
