//! Constraints: which texts are allowed, and how an allowed token is drawn.
//!
//! A [`Constraint`] is what was asked for (a grammar, a schema, a pattern, a predicate); bound to a
//! vocabulary it becomes a [`Constrain`], the state of one text, which sees bytes. A [`Guard`] holds
//! that state for a loop: it keeps control tokens out, lets the text end only where the constraint
//! says that it may, answers no question twice and counts the others. A [`ConstrainedSampler`] draws
//! the token.
//!
//! What is conditioned is the distribution that a plain draw has, after penalties, truncations and
//! temperature ([`crate::dist::sampler`]): `p(x) ok(x) / Z` with `Z` the sum of `p(x) ok(x)`. So a
//! token that truncation removed stays removed, and a truncation that leaves no allowed token is a
//! dead end. Only at temperature 0, where `p` is a single token, the limit is taken instead: the most
//! probable allowed token of all.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::backbone::Vocabulary;
use crate::canvas::Canvas;
use crate::dist::{Key, Sampler};
use crate::{Error, Position, Result, TokenId};

/// A set of tokens, as bits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenSet {
    words: Vec<u64>,
}

impl TokenSet {
    /// Empties the set and makes room for `tokens` tokens.
    pub fn reset(&mut self, tokens: usize) {
        self.words.clear();
        self.words.resize(tokens.div_ceil(64), 0);
    }

    /// Adds a token; ids without room are left out.
    pub fn insert(&mut self, token: TokenId) {
        if let Some(word) = self.words.get_mut(token as usize / 64) {
            *word |= 1 << (token % 64);
        }
    }

    /// Whether the token is in the set.
    pub fn contains(&self, token: TokenId) -> bool {
        self.words.get(token as usize / 64).is_some_and(|w| w >> (token % 64) & 1 == 1)
    }

    /// The bits, 64 tokens to a word, the lowest token lowest.
    pub fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }

    /// Keeps the tokens that are in `other` too.
    pub fn retain(&mut self, other: &Self) {
        let others = other.words.iter().copied().chain(std::iter::repeat(0));
        self.words.iter_mut().zip(others).for_each(|(word, other)| *word &= other);
    }
}

/// What was asked for, before it meets a vocabulary.
pub trait Constraint: Send + Sync + Debug {
    /// The state before the first token of a text in `vocabulary`.
    ///
    /// # Errors
    /// [`Error::Constraint`] for a constraint that cannot be read, is too large, or allows no text.
    fn begin(&self, vocabulary: &dyn Vocabulary) -> Result<Box<dyn Constrain>>;

    /// The same for a canvas whose masks are the token `mask`; `None` if it cannot be said of the
    /// middle of a text what may stand there.
    ///
    /// # Errors
    /// As [`Constraint::begin`].
    fn on_canvas(
        &self,
        vocabulary: &dyn Vocabulary,
        mask: TokenId,
    ) -> Result<Option<Box<dyn CanvasRule>>> {
        let _ = (vocabulary, mask);
        Ok(None)
    }
}

/// Which tokens may stand at the masks of a canvas.
pub trait CanvasRule: Send + Debug {
    /// For every mask of `positions`, the tokens that leave some way to fill the others so that the
    /// text is allowed; `None` if everything is. Empty sets for a canvas that does not fit.
    fn allowed(&mut self, canvas: &Canvas, positions: &[Position]) -> Option<Vec<TokenSet>>;

    /// Whether there is a way to fill the masks so that the text is allowed.
    fn fits(&mut self, canvas: &Canvas) -> bool;
}

/// A constraint's state along one text.
///
/// It must be monotone: where a beginning is refused, no text that begins so is allowed. A beginning
/// that is accepted may still turn out to lead nowhere.
pub trait Constrain: Send + Debug {
    /// Whether the text may go on with `token`, which stands for `bytes`. Two tokens that stand for
    /// the same bytes get the same answer.
    ///
    /// # Errors
    /// [`Error::Constraint`] if there is no answer: a limit was hit, a predicate failed.
    fn check(&mut self, token: TokenId, bytes: &[u8]) -> Result<bool>;

    /// Whether the text may end here.
    ///
    /// # Errors
    /// As [`Constrain::check`].
    fn complete(&mut self) -> Result<bool>;

    /// Whether the text may end here and nothing may follow, as far as that is known without being
    /// asked for.
    fn finished(&self) -> bool {
        false
    }

    /// Goes on with a token that [`Constrain::check`] allows.
    ///
    /// # Errors
    /// As [`Constrain::check`]; also for a token that is not allowed.
    fn accept(&mut self, token: TokenId, bytes: &[u8]) -> Result<()>;

    /// Takes the last `tokens` tokens back.
    ///
    /// # Errors
    /// [`Error::Constraint`] if there are fewer.
    fn rollback(&mut self, tokens: usize) -> Result<()>;

    /// An independent copy.
    fn fork(&self) -> Box<dyn Constrain>;

    /// All answers at once, where that costs less than asking for each token: fills `allowed`
    /// (empty, with room for the vocabulary) and returns true. False if there is no such way.
    ///
    /// # Errors
    /// As [`Constrain::check`].
    fn mask(&mut self, allowed: &mut TokenSet) -> Result<bool> {
        let _ = allowed;
        Ok(false)
    }
}

/// The error of a rollback by more tokens than there are.
pub fn too_far(tokens: usize, there: usize) -> Error {
    Error::constraint(format!("rollback by {tokens} tokens where there are {there}"))
}

/// What constraints cost in a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ConstraintStats {
    /// Times the constraint judged a single token, or an end.
    pub evaluations: u64,
    /// Times it judged the whole vocabulary at once.
    pub masks: u64,
    /// Wall-clock time it took.
    pub seconds: f64,
}

impl ConstraintStats {
    /// Adds another one's numbers.
    pub fn add(&mut self, other: &Self) {
        self.evaluations += other.evaluations;
        self.masks += other.masks;
        self.seconds += other.seconds;
    }
}

/// What a vocabulary's tokens are to a constraint.
#[derive(Debug)]
struct Tokens {
    ends: Vec<TokenId>,
    /// Tokens that are text.
    texts: TokenSet,
}

/// A constraint's state as loops and samplers see it, over a whole vocabulary.
#[derive(Debug)]
pub struct Guard {
    state: Box<dyn Constrain>,
    tokens: Arc<Tokens>,
    /// Answers at the present place.
    known: HashMap<TokenId, bool>,
    complete: Option<bool>,
    stats: ConstraintStats,
}

impl Guard {
    /// Guards a text of this vocabulary with this state.
    pub fn new(state: Box<dyn Constrain>, vocabulary: &dyn Vocabulary) -> Self {
        let mut tokens = Tokens { ends: Vec::new(), texts: TokenSet::default() };
        tokens.texts.reset(vocabulary.len());
        for token in 0..vocabulary.len() as TokenId {
            if vocabulary.is_end(token) {
                tokens.ends.push(token);
            } else if !vocabulary.is_control(token) && !vocabulary.bytes(token).is_empty() {
                tokens.texts.insert(token);
            }
        }
        Self::over(state, Arc::new(tokens))
    }

    fn over(state: Box<dyn Constrain>, tokens: Arc<Tokens>) -> Self {
        let (known, stats) = (HashMap::new(), ConstraintStats::default());
        Self { state, tokens, known, complete: None, stats }
    }

    /// What was asked so far. A fork begins with nothing.
    pub fn stats(&self) -> ConstraintStats {
        self.stats
    }

    /// Counts what was asked elsewhere in its name.
    pub fn count(&mut self, stats: &ConstraintStats) {
        self.stats.add(stats);
    }

    /// Whether the token may be allowed at all, as far as that is known without an evaluation: a
    /// control token that is no end never is.
    pub fn possible(&self, token: TokenId) -> bool {
        (self.tokens.texts.contains(token) && !self.state.finished()) || self.is_end(token)
    }

    /// Whether the token ends the text.
    pub fn is_end(&self, token: TokenId) -> bool {
        self.tokens.ends.contains(&token)
    }

    /// Whether the text may go on with `token`, or end with it if it is an end token. One
    /// evaluation, the first time it is asked here.
    ///
    /// # Errors
    /// As [`Constrain::check`].
    pub fn check(&mut self, token: TokenId, vocabulary: &dyn Vocabulary) -> Result<bool> {
        if self.is_end(token) {
            return self.complete();
        }
        if !self.possible(token) {
            return Ok(false);
        }
        if let Some(&known) = self.known.get(&token) {
            return Ok(known);
        }
        let start = Instant::now();
        let allowed = self.state.check(token, vocabulary.bytes(token))?;
        self.stats.evaluations += 1;
        self.stats.seconds += start.elapsed().as_secs_f64();
        self.known.insert(token, allowed);
        Ok(allowed)
    }

    /// Whether the text may end here. One evaluation, the first time it is asked here.
    ///
    /// # Errors
    /// As [`Constrain::complete`].
    pub fn complete(&mut self) -> Result<bool> {
        if let Some(known) = self.complete {
            return Ok(known);
        }
        let start = Instant::now();
        let complete = self.state.complete()?;
        self.stats.evaluations += 1;
        self.stats.seconds += start.elapsed().as_secs_f64();
        self.complete = Some(complete);
        Ok(complete)
    }

    /// Whether the text may end here and nothing may follow.
    pub fn finished(&self) -> bool {
        self.state.finished()
    }

    /// Every token that may follow, ends included, into `allowed`: by the constraint's own mask, or
    /// by asking for each token of `asked`.
    ///
    /// # Errors
    /// As [`Constrain::check`].
    pub fn mask(
        &mut self,
        vocabulary: &dyn Vocabulary,
        asked: impl IntoIterator<Item = TokenId>,
        allowed: &mut TokenSet,
    ) -> Result<()> {
        allowed.reset(vocabulary.len());
        let start = Instant::now();
        if self.state.finished() || !self.state.mask(allowed)? {
            for token in asked {
                if self.check(token, vocabulary)? {
                    allowed.insert(token);
                }
            }
            return Ok(());
        }
        allowed.retain(&self.tokens.texts);
        self.stats.masks += 1;
        self.stats.seconds += start.elapsed().as_secs_f64();
        if self.complete()? {
            self.tokens.ends.iter().for_each(|&end| allowed.insert(end));
        }
        Ok(())
    }

    /// Goes on with `token`. An end token ends the text and changes nothing here.
    ///
    /// # Errors
    /// As [`Constrain::accept`].
    pub fn accept(&mut self, token: TokenId, vocabulary: &dyn Vocabulary) -> Result<()> {
        if self.is_end(token) {
            return Ok(());
        }
        self.state.accept(token, vocabulary.bytes(token))?;
        self.forget();
        Ok(())
    }

    /// Takes the last `tokens` tokens back.
    ///
    /// # Errors
    /// As [`Constrain::rollback`].
    pub fn rollback(&mut self, tokens: usize) -> Result<()> {
        self.state.rollback(tokens)?;
        self.forget();
        Ok(())
    }

    /// An independent copy, with nothing counted.
    pub fn fork(&self) -> Self {
        let mut fork = Self::over(self.state.fork(), Arc::clone(&self.tokens));
        fork.known.clone_from(&self.known);
        fork.complete = self.complete;
        fork
    }

    fn forget(&mut self) {
        self.known.clear();
        self.complete = None;
    }
}

/// One draw under a constraint.
pub struct ConstrainedDraw<'a> {
    /// The model's logits.
    pub logits: &'a [f32],
    /// Prompt and text up to there.
    pub history: &'a [TokenId],
    /// The key of the token.
    pub key: Key,
    /// The request's settings: they make the distribution that is conditioned.
    pub sampler: &'a mut Sampler,
    /// The constraint.
    pub guard: &'a mut Guard,
    /// Tokens as bytes.
    pub vocabulary: &'a dyn Vocabulary,
    /// Whether the weight is wanted too; without, [`Drawn::log_weight`] is of no use.
    pub weighted: bool,
}

/// What was drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawn {
    /// The token; `None` if no allowed one was found.
    pub token: Option<TokenId>,
    /// The logarithm of an estimate of `Z`, the probability of the allowed tokens together: exact,
    /// or random such that for every token `E[weight and this token is drawn] = p ok`. `-inf`
    /// without a token.
    pub log_weight: f64,
}

impl Drawn {
    /// Nothing allowed was found.
    pub const NOTHING: Self = Self { token: None, log_weight: f64::NEG_INFINITY };
}

/// Draws allowed tokens: `p(x) ok(x) / Z`.
///
/// The token is a function of the distribution, the constraint and the key: the first allowed one in
/// the order in which the plain draw's race ([`crate::dist::race`]) brings tokens home. So where
/// everything is allowed the token is the plain run's, and every sampler draws the same one; they
/// differ in what they ask and in the weight.
pub trait ConstrainedSampler: Send + Debug {
    /// Draws a token.
    ///
    /// # Errors
    /// [`Error::Logits`]; whatever the constraint reports.
    fn draw(&mut self, place: &mut ConstrainedDraw<'_>) -> Result<Drawn>;

    /// Whether the weights are what [`Drawn::log_weight`] says they must be.
    fn weighs(&self) -> bool {
        true
    }
}

/// Full masking: asks for every token, by the constraint's own mask where it has one. The weight is
/// `Z` itself.
#[derive(Debug, Clone, Default)]
pub struct Masking {
    allowed: TokenSet,
    asked: Vec<TokenId>,
}

impl ConstrainedSampler for Masking {
    fn draw(&mut self, place: &mut ConstrainedDraw<'_>) -> Result<Drawn> {
        let ConstrainedDraw { logits, history, key, vocabulary, .. } = *place;
        place.sampler.support(logits, history, &mut self.asked)?;
        let asked = self.asked.iter().copied();
        place.guard.mask(vocabulary, asked, &mut self.allowed)?;
        let allowed = |token| self.allowed.contains(token);
        let token = place.sampler.draw_allowed(logits, history, key, allowed)?;
        let log_weight = match (token, place.weighted) {
            (None, _) => f64::NEG_INFINITY,
            (Some(_), false) => 0.0,
            (Some(_), true) => {
                crate::dist::scalar::ln(place.sampler.mass(logits, history, allowed)?)
            }
        };
        Ok(Drawn { token, log_weight })
    }
}

/// A text's guard and who draws under it.
#[derive(Debug)]
pub struct Constrained {
    /// The constraint.
    pub guard: Guard,
    /// Who draws.
    pub sampler: Box<dyn ConstrainedSampler>,
}

impl Constrained {
    /// The token drawn at a place where one must be.
    ///
    /// # Errors
    /// [`Error::Constraint`] if none is allowed; as [`ConstrainedSampler::draw`].
    pub fn draw(
        &mut self,
        (logits, history, key): (&[f32], &[TokenId], Key),
        sampler: &mut Sampler,
        vocabulary: &dyn Vocabulary,
    ) -> Result<TokenId> {
        let guard = &mut self.guard;
        let weighted = false;
        let mut place =
            ConstrainedDraw { logits, history, key, sampler, guard, vocabulary, weighted };
        self.sampler.draw(&mut place)?.token.ok_or_else(dead_end)
    }
}

/// No token is left.
fn dead_end() -> Error {
    let what = "the text cannot go on: no token that sampling leaves is allowed here. \
                Next: --top-k 0 --top-p 1 --min-p 0 leaves all of them; a grammar may also lead \
                into a dead end of its own";
    Error::constraint(what)
}

#[cfg(test)]
#[path = "constrain_tests.rs"]
mod tests;
