//! A Markov chain as an oracle: what a perfect denoiser and a perfect autoregressive model of it say.
//!
//! The joint law of a text, every conditional of it and every order of writing are known exactly, so
//! a sampler is tested by counting.

use tessera_core::dist::Key;
use tessera_core::{Filling, TokenId};

use crate::Scripted;

/// A chain over tokens `0..states`; the token `states` is the mask.
#[derive(Debug, Clone)]
pub struct Chain {
    /// `transition[a][b]`: the probability that `b` follows `a`.
    pub transition: Vec<Vec<f64>>,
}

impl Chain {
    /// A chain with these probabilities; rows sum to 1.
    pub fn new(transition: Vec<Vec<f64>>) -> Self {
        Self { transition }
    }

    /// A seeded chain of `states` states; the larger `spread`, the further from uniform.
    pub fn seeded(states: usize, seed: u64, spread: f64) -> Self {
        let row = |a: usize| {
            let key = Key::new(seed, 0, a as u32);
            let weights: Vec<f64> =
                (0..states as u32).map(|b| (spread * key.uniform(b)).exp()).collect();
            let sum: f64 = weights.iter().sum();
            weights.iter().map(|w| w / sum).collect()
        };
        Self::new((0..states).map(row).collect())
    }

    /// Number of states.
    pub fn states(&self) -> usize {
        self.transition.len()
    }

    /// How its denoiser fills masks.
    pub fn filling(&self) -> Filling {
        Filling { mask: self.states() as TokenId, shift: false, any_subset: false }
    }

    /// Given a text in which `None` is not known and the first token is, the law of every position.
    pub fn laws(&self, text: &[Option<TokenId>]) -> Vec<Vec<f64>> {
        let states = self.states();
        let evidence = |at: usize, s: usize| match text[at] {
            Some(token) => f64::from(u8::from(token as usize == s)),
            None => 1.0,
        };
        let mut forward = vec![vec![0.0; states]; text.len()];
        let mut backward = vec![vec![1.0; states]; text.len()];
        forward[0].iter_mut().enumerate().for_each(|(s, p)| *p = evidence(0, s));
        for at in 1..text.len() {
            for s in 0..states {
                let sum: f64 =
                    (0..states).map(|a| forward[at - 1][a] * self.transition[a][s]).sum();
                forward[at][s] = sum * evidence(at, s);
            }
        }
        for at in (0..text.len().saturating_sub(1)).rev() {
            for s in 0..states {
                backward[at][s] = (0..states)
                    .map(|b| self.transition[s][b] * evidence(at + 1, b) * backward[at + 1][b])
                    .sum();
            }
        }
        let law = |at: usize| {
            let mut law: Vec<f64> = (0..states).map(|s| forward[at][s] * backward[at][s]).collect();
            let sum: f64 = law.iter().sum();
            law.iter_mut().for_each(|p| *p /= sum);
            law
        };
        (0..text.len()).map(law).collect()
    }

    /// A model that fills masks as well as that can be done.
    pub fn denoiser(&self, context: usize) -> Scripted {
        let chain = self.clone();
        let mask = self.states() as TokenId;
        Scripted::placed(self.states() + 1, context, move |own, seen, logits| {
            // Positions that are not seen at all are as unknown as masks.
            let length = seen.iter().map(|&(p, _)| p).max().unwrap_or(0).max(own);
            let mut text = vec![None; length as usize + 1];
            for &(p, token) in seen.iter().filter(|&&(_, token)| token != mask) {
                text[p as usize] = Some(token);
            }
            for (logit, p) in logits.iter_mut().zip(&chain.laws(&text)[own as usize]) {
                *logit = p.ln().max(-60.0) as f32;
            }
        })
    }

    /// A causal model with the same law.
    pub fn writer(&self, context: usize) -> Scripted {
        let chain = self.clone();
        Scripted::new(self.states() + 1, context, move |seen, logits| {
            let last = seen.last().map_or(0, |&(_, token)| token as usize);
            let Some(row) = chain.transition.get(last) else { return };
            for (logit, p) in logits.iter_mut().zip(row) {
                *logit = p.ln().max(-60.0) as f32;
            }
            logits[chain.states()] = -60.0;
        })
    }

    /// The probability of `text` after `first`.
    pub fn probability(&self, first: TokenId, text: &[TokenId]) -> f64 {
        let (mut p, mut last) = (1.0, first as usize);
        for &token in text {
            p *= self.transition[last][token as usize];
            last = token as usize;
        }
        p
    }

    /// The probabilities of all texts of `length` tokens after `first`, in counting order (the first
    /// token is the most significant digit).
    pub fn joint(&self, first: TokenId, length: u32) -> Vec<f64> {
        let states = self.states();
        (0..states.pow(length))
            .map(|index| self.probability(first, &self.text(index, length)))
            .collect()
    }

    /// The text of this number, as [`Chain::joint`] counts.
    pub fn text(&self, mut index: usize, length: u32) -> Vec<TokenId> {
        let mut text: Vec<TokenId> = (0..length)
            .map(|_| {
                let digit = index % self.states();
                index /= self.states();
                digit as TokenId
            })
            .collect();
        text.reverse();
        text
    }

    /// The number of a text.
    pub fn index(&self, text: &[TokenId]) -> usize {
        text.iter().fold(0, |index, &token| index * self.states() + token as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laws_agree_with_the_joint() {
        let chain = Chain::seeded(3, 5, 2.0);
        let joint = chain.joint(1, 4);
        assert!((joint.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        // Given that the third token is 2: the law of the second by summation.
        let laws = chain.laws(&[Some(1), None, None, Some(2), None]);
        let mut by_hand = [0.0; 3];
        for (index, p) in joint.iter().enumerate() {
            let text = chain.text(index, 4);
            assert_eq!(chain.index(&text), index);
            if text[2] == 2 {
                by_hand[text[1] as usize] += p;
            }
        }
        let sum: f64 = by_hand.iter().sum();
        for s in 0..3 {
            assert!((laws[2][s] - by_hand[s] / sum).abs() < 1e-12);
        }
    }
}
