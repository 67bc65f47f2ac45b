//! Acceptance: which token follows, given the target's logits and what was guessed there.
//!
//! The loop walks a tree from its root: at each node it asks for the token; if a guess says that
//! token, the walk goes on there, else the step ends with it. So one rule serves chains and trees.

use std::fmt::Debug;

use crate::backbone::Vocabulary;
use crate::constrain::Constrained;
use crate::dist::{Key, Sampler};
use crate::draft::{DraftTree, Law};
use crate::{Result, TokenId};

/// A token guessed at the place of a decision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guess {
    /// The token.
    pub token: TokenId,
    /// The number of the distribution that it was drawn from; `None` if no chance took part.
    pub drawn_from: Option<u32>,
}

/// One place of the walk.
pub struct Decision<'a> {
    /// The target's logits there.
    pub logits: &'a [f32],
    /// Prompt and text up to there.
    pub history: &'a [TokenId],
    /// The key of the token to choose.
    pub key: Key,
    /// The request's settings.
    pub sampler: &'a mut Sampler,
    /// What was guessed, in the order in which it was.
    pub guesses: &'a [Guess],
    /// The distributions that guesses were drawn from, by number.
    pub laws: &'a [Law],
    /// The constraint on the text, if there is one.
    pub constrained: Option<(&'a mut Constrained, &'a dyn Vocabulary)>,
}

impl Decision<'_> {
    /// The token that the run without guesses draws here.
    ///
    /// # Errors
    /// As [`Sampler::draw`] and [`Constrained::draw`].
    pub fn draw(&mut self) -> Result<TokenId> {
        match &mut self.constrained {
            None => self.sampler.draw(self.logits, self.history, self.key),
            Some((constrained, vocabulary)) => {
                let place = (self.logits, self.history, self.key);
                constrained.draw(place, self.sampler, *vocabulary)
            }
        }
    }
}

/// Decides what of a draft is committed.
pub trait Accept: Send + Debug {
    /// The token that follows. The walk goes on if it was guessed.
    ///
    /// # Errors
    /// [`crate::Error::Logits`] if the logits are no distribution.
    fn choose(&mut self, decision: &mut Decision<'_>) -> Result<TokenId>;

    /// Whether the token is a function of the target's distribution and the position's key alone.
    /// Then a drafter may draw with that key too; otherwise its numbers must be its own.
    fn coupled(&self) -> bool {
        false
    }
}

/// Draws from the target with the position's key: the plain run's token, whatever was guessed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Keyed;

impl Accept for Keyed {
    fn choose(&mut self, decision: &mut Decision<'_>) -> Result<TokenId> {
        decision.draw()
    }

    fn coupled(&self) -> bool {
        true
    }
}

/// The guesses below `parent`, into `out`.
pub fn guesses(tree: &DraftTree, parent: Option<u32>, out: &mut Vec<Guess>) {
    out.clear();
    let guess = |n| Guess { token: tree.token(n), drawn_from: tree.drawn_from(n) };
    out.extend(tree.children(parent).map(guess));
}
