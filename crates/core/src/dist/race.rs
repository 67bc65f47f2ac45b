//! The draw itself: an exponential race with one keyed number per token.
//!
//! Token `i` of probability `p_i` arrives at time `E_i / p_i`, with `E_i` standard exponential; the
//! first to arrive has law `p`. In logarithms that is the largest `logit_i / T - ln E_i` (Gumbel's
//! form), so no probability is ever computed and truncation is simply not taking part.
//!
//! Two consequences carry the exactness rules. `E_i` depends on the key and the id only: order,
//! batch and pruning cannot matter. And a drafter that races *its* distribution with the same key
//! shares the `E_i`, so the two agree about as often as two different laws can.
//!
//! Pruning: `E_i = -ln(1 - v) >= v >= 2^-(z+1)`, where `z` is the number of leading zero bits of
//! the token's hash. So the largest logit of a block says how many zero bits a hash must begin with
//! for its token to win; a token with fewer costs one hash and one comparison, and a block that
//! would need more than there are (`E_i >= 2^-53`) costs not even that. The bounds are exact, so the
//! result is that of the whole race.

use super::key::{Key, open};
use super::scalar::{ln, neg_ln_1m, times_ln2};
use crate::TokenId;

/// A token and its logit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The token.
    pub id: TokenId,
    /// Its logit, before temperature.
    pub logit: f32,
}

/// Room for the rounding of bounds and scores, far above it and far below any bound's use.
const SLACK: f64 = 1e-9;

/// No `-ln E` exceeds this: `E >= 2^-53`.
const LARGEST: u32 = 53;

/// Tokens looked at together before hashing.
const BLOCK: usize = 64;

/// A race under way.
struct Race {
    key: Key,
    max: f64,
    inverse: f64,
    best: f64,
    winner: TokenId,
}

impl Race {
    fn new(first: Candidate, max: f32, temperature: f32, key: Key) -> Self {
        let inverse = 1.0 / f64::from(temperature);
        let mut race =
            Self { key, max: f64::from(max), inverse, best: f64::NEG_INFINITY, winner: first.id };
        race.enter(first.id, first.logit);
        race
    }

    #[inline]
    fn enter(&mut self, id: TokenId, logit: f32) {
        let bits = self.key.bits(id);
        let base = (f64::from(logit) - self.max) * self.inverse;
        let zeros = bits.leading_zeros().min(LARGEST - 1);
        if base + times_ln2(zeros + 1) + SLACK < self.best {
            return;
        }
        let score = base - ln(neg_ln_1m(open(bits)));
        if score > self.best || (score == self.best && id < self.winner) {
            self.best = score;
            self.winner = id;
        }
    }

    /// Zero bits that the hash of a token with logit `logit` or less must begin with to win.
    fn needed_zeros(&self, logit: f32) -> f64 {
        let base = (f64::from(logit) - self.max) * self.inverse;
        (self.best - base - SLACK) / times_ln2(1) - 1.0
    }
}

/// Draws from `softmax(logits / temperature)` restricted to the tokens whose logit is at least
/// `floor`.
///
/// `first` is the most probable token (see [`super::argmax`]); `temperature` is above 0; logits are
/// finite or `-inf`.
pub fn draw_all(
    logits: &[f32],
    first: Candidate,
    floor: f64,
    temperature: f32,
    key: Key,
) -> TokenId {
    let mut race = Race::new(first, first.logit, temperature, key);
    for (block, values) in logits.chunks(BLOCK).enumerate() {
        let top = values.iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m });
        let needed = race.needed_zeros(top);
        if needed > f64::from(LARGEST) || f64::from(top) < floor {
            continue;
        }
        // Rounded down, and below 0 for nothing: too many tokens are let through, never too few.
        let largest = u64::MAX >> (needed as u32);
        for (id, &logit) in ((block * BLOCK) as TokenId..).zip(values) {
            if key.bits(id) <= largest && f64::from(logit) >= floor {
                race.enter(id, logit);
            }
        }
    }
    race.winner
}

/// Draws from the softmax of the candidates' logits over `temperature`. The order of the
/// candidates does not matter. `None` if there are none.
///
/// `max` is the largest logit of the whole distribution: with it the scores are the same numbers
/// as [`draw_all`]'s.
pub fn draw_of(candidates: &[Candidate], max: f32, temperature: f32, key: Key) -> Option<TokenId> {
    let (&first, rest) = candidates.split_first()?;
    let mut race = Race::new(first, max, temperature, key);
    rest.iter().for_each(|c| race.enter(c.id, c.logit));
    Some(race.winner)
}

/// The first `count` of the candidates to arrive, in that order; the first one is [`draw_of`]'s.
///
/// Taken one after another they are draws without replacement: each has the candidates' law
/// restricted to those that have not arrived yet.
pub fn first_of<'a>(
    candidates: impl Iterator<Item = &'a Candidate>,
    max: f32,
    temperature: f32,
    key: Key,
    count: usize,
) -> Vec<Candidate> {
    let (max, inverse) = (f64::from(max), 1.0 / f64::from(temperature));
    let order =
        |a: &(f64, Candidate), b: &(f64, Candidate)| b.0.total_cmp(&a.0).then(a.1.id.cmp(&b.1.id));
    let room = count.saturating_mul(2).max(count.saturating_add(64));
    let mut home: Vec<(f64, Candidate)> = Vec::new();
    // The last score that still counts, once `count` have arrived.
    let mut last = f64::NEG_INFINITY;
    for c in candidates {
        let bits = key.bits(c.id);
        let base = (f64::from(c.logit) - max) * inverse;
        let zeros = bits.leading_zeros().min(LARGEST - 1);
        if base + times_ln2(zeros + 1) + SLACK < last {
            continue;
        }
        let score = base - ln(neg_ln_1m(open(bits)));
        if score >= last {
            home.push((score, *c));
        }
        if home.len() >= room && count > 0 {
            home.select_nth_unstable_by(count - 1, order);
            home.truncate(count);
            last = home[count - 1].0;
        }
    }
    home.sort_unstable_by(order);
    home.truncate(count);
    home.into_iter().map(|(_, c)| c).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist::argmax;

    /// The definition, without any pruning.
    fn whole(logits: &[f32], floor: f64, temperature: f32, key: Key) -> TokenId {
        let max = f64::from(argmax(logits).unwrap().1);
        let mut best = (f64::NEG_INFINITY, 0);
        for (id, &logit) in logits.iter().enumerate() {
            if f64::from(logit) < floor {
                continue;
            }
            let base = (f64::from(logit) - max) * (1.0 / f64::from(temperature));
            let score = base - ln(key.exponential(id as TokenId));
            if score > best.0 {
                best = (score, id as TokenId);
            }
        }
        best.1
    }

    fn logits(seed: u64, n: usize, spread: f32) -> Vec<f32> {
        let key = Key::new(seed, 9, 9);
        (0..n as u32)
            .map(|i| spread * (key.uniform(i) as f32 + key.uniform(i + 7) as f32))
            .collect()
    }

    #[test]
    fn pruning_never_changes_the_winner() {
        for round in 0..300u64 {
            let n = 1 + (round as usize * 37) % 1500;
            let spread = [0.0, 0.5, 5.0, 30.0, 200.0][round as usize % 5];
            let temperature = [1.0, 0.1, 0.7, 3.0, 1e-6, 50.0][round as usize % 6];
            let mut values = logits(round, n, spread);
            values[n / 2] = f32::NEG_INFINITY;
            values[0] = 0.25;
            let (id, logit) = argmax(&values).unwrap();
            let first = Candidate { id, logit };
            let floor = [f64::NEG_INFINITY, f64::from(logit) - 2.0][round as usize % 2];
            let mut listed: Vec<Candidate> = values
                .iter()
                .enumerate()
                .map(|(id, &logit)| Candidate { id: id as TokenId, logit })
                .filter(|c| f64::from(c.logit) >= floor)
                .collect();
            for position in 0..20 {
                let key = Key::new(round, 0, position);
                let want = whole(&values, floor, temperature, key);
                assert_eq!(draw_all(&values, first, floor, temperature, key), want, "{round}");
                // Any order of candidates gives the same token.
                let turn = position as usize % listed.len();
                listed.rotate_left(turn);
                assert_eq!(draw_of(&listed, logit, temperature, key), Some(want), "{round}");
                listed.reverse();
                assert_eq!(draw_of(&listed, logit, temperature, key), Some(want), "{round}");
            }
        }
    }

    #[test]
    fn arrivals_are_draws_from_those_that_are_left() {
        for round in 0..60u64 {
            let n = 1 + (round as usize * 53) % 900;
            let values = logits(round, n, [0.0, 2.0, 30.0][round as usize % 3]);
            let max = argmax(&values).unwrap().1;
            let all: Vec<Candidate> =
                (0..).zip(&values).map(|(id, &logit)| Candidate { id, logit }).collect();
            for count in [0, 1, 3, 70, 2000] {
                let key = Key::new(round, 1, count as u32);
                let home = first_of(all.iter(), max, 0.7, key, count);
                assert_eq!(home.len(), count.min(n));
                let mut left = all.clone();
                for c in home {
                    assert_eq!(Some(c.id), draw_of(&left, max, 0.7, key), "{round} {count}");
                    left.retain(|l| l.id != c.id);
                }
            }
        }
    }

    #[test]
    fn a_token_of_probability_zero_is_never_drawn() {
        let mut values = vec![f32::NEG_INFINITY; 500];
        values[123] = -4.0;
        let first = Candidate { id: 123, logit: -4.0 };
        for position in 0..1000 {
            let key = Key::new(0, 0, position);
            assert_eq!(draw_all(&values, first, f64::NEG_INFINITY, 1.0, key), 123);
        }
        assert_eq!(draw_of(&[], 0.0, 1.0, Key::new(0, 0, 0)), None);
    }

    #[test]
    fn a_drafter_with_the_same_key_agrees_more_than_independent_draws_would() {
        let target = logits(1, 50, 3.0);
        let mut draft = target.clone();
        draft.iter_mut().zip(logits(2, 50, 1.0)).for_each(|(d, noise)| *d += noise);
        let draw = |values: &[f32], key| {
            let (id, logit) = argmax(values).unwrap();
            draw_all(values, Candidate { id, logit }, f64::NEG_INFINITY, 1.0, key)
        };
        let agree = |other: u64| {
            (0..2000)
                .filter(|&p| {
                    draw(&target, Key::new(5, 0, p)) == draw(&draft, Key::new(other, 0, p))
                })
                .count()
        };
        let (same, independent) = (agree(5), agree(6));
        assert!(same > 1200 && independent < 400, "{same} against {independent}");
    }
}
