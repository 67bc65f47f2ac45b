//! Whole short texts, counted and enumerated: whether what a loop makes has its model's law.

use std::sync::atomic::AtomicBool;

use tessera_core::dist::{Sampler, Sampling};
use tessera_core::{Backbone, Control, Mask, Pass, Position, Result, Reveal, Segment, TokenId};
use tessera_engine::{Model, Recipe, Request, generate};

use crate::Words;

/// A question to which short texts are the answer.
#[derive(Debug, Clone)]
pub struct Question {
    /// The prompt.
    pub prompt: Vec<TokenId>,
    /// Tokens of a text.
    pub tokens: usize,
    /// How they are chosen.
    pub sampling: Sampling,
}

impl Question {
    /// The probability of every text of `toy`, by its number (tokens are digits, the first one the
    /// highest): products of the distributions after every beginning, each from a pass of its own
    /// without a cache.
    ///
    /// # Errors
    /// Whatever a pass or a distribution reports.
    pub fn law(&self, toy: &dyn Backbone) -> Result<Vec<f64>> {
        let vocab = toy.spec().vocab;
        let mut sampler = Sampler::new(self.sampling)?;
        let mut beginnings = vec![(self.prompt.clone(), 1.0)];
        for _ in 0..self.tokens {
            let mut longer = Vec::with_capacity(beginnings.len() * vocab);
            for (text, p) in beginnings {
                let positions: Vec<Position> = (0..text.len() as Position).collect();
                let mut segments = [Segment {
                    input: tessera_core::Input::Tokens(&text),
                    positions: &positions,
                    mask: Mask::Causal,
                    keys: None,
                    bias: &[],
                    write: tessera_core::Write::Discard,
                    rows_out: tessera_core::RowsOut::Last,
                    condition: None,
                    cache: None,
                }];
                let mut reveal = Reveal::new();
                toy.forward(&mut Pass::new(&mut segments), &mut reveal)?;
                let mut law = Vec::new();
                sampler.distribution(reveal.logits(0, 0), &text, &mut law)?;
                for token in 0..vocab as TokenId {
                    let q = law.iter().find(|&&(t, _)| t == token).map_or(0.0, |&(_, q)| q);
                    longer.push(([&text[..], &[token]].concat(), p * q));
                }
            }
            beginnings = longer;
        }
        Ok(beginnings.into_iter().map(|(_, p)| p).collect())
    }

    /// How often each text was made in `runs` runs with seeds of their own, and how many guesses
    /// were computed for them.
    ///
    /// # Errors
    /// Whatever a run reports.
    pub fn count(
        &self,
        toy: &dyn Backbone,
        draft: &dyn Backbone,
        recipe: &Recipe,
        runs: u64,
    ) -> Result<(Vec<u64>, usize)> {
        let vocab = toy.spec().vocab;
        let words = Words::new((0..vocab).map(|i| i.to_string()));
        let model = Model { backbone: toy, vocabulary: &words, draft: Some(draft), filling: None };
        let mut counts = vec![0; vocab.pow(self.tokens as u32)];
        let mut drafted = 0;
        let mut request = Request::new(self.prompt.clone());
        request.max_tokens = Some(self.tokens);
        request.sampling = self.sampling;
        request.recipe = recipe.clone();
        let never = AtomicBool::new(false);
        for seed in 0..runs {
            request.seed = seed;
            let outcome = generate(model, &request, &mut |_| Control::Continue, &never)?;
            drafted += outcome.stats.drafted_tokens;
            let text = &outcome.choices[0].tokens;
            counts[text.iter().fold(0, |n, &t| n * vocab + t as usize)] += 1;
        }
        Ok((counts, drafted))
    }
}
