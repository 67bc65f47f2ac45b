//! One choice's part in speculation: the tree it sends through a pass, and the walk through it.
//!
//! The plain run is the case of an empty tree: one row, causal, one decision.

use std::time::Instant;

use tessera_core::accept::{Keyed, guesses};
use tessera_core::dist::{Sampler, Sampling};
use tessera_core::{
    Accept, Backbone, Constrained, Decision, Draft, DraftContext, DraftTree, Error, Guess, KvStore,
    Lent, Mask, Position, Result, Reveal, Row, TokenId, Verdict, Vocabulary,
};

use crate::pace::Pace;

/// What drafts and judges one choice's text.
pub(crate) struct Speculation {
    pub(crate) drafter: Option<Box<dyn Draft>>,
    accept: Box<dyn Accept>,
    pace: Pace,
    tree: DraftTree,
    guesses: Vec<Guess>,
    accepted: Vec<u32>,
    /// Rows of the next pass: the root and the tree's nodes.
    tokens: Vec<TokenId>,
    positions: Vec<Position>,
    parents: Vec<Option<u32>>,
    /// Tokens before the walk, for the verdict.
    known: usize,
    pub(crate) seconds: f64,
}

/// What a choice may still become.
pub(crate) struct Ahead<'a> {
    /// Prompt and text so far.
    pub(crate) history: &'a [TokenId],
    pub(crate) prompt: usize,
    /// Position of the next row, that of the last token.
    pub(crate) position: Position,
    /// Tokens that may still be drawn, the next one included.
    pub(crate) remaining: usize,
    pub(crate) seed: u64,
    pub(crate) choice: u32,
    pub(crate) sampling: &'a Sampling,
}

impl Speculation {
    pub(crate) fn new(
        drafter: Option<Box<dyn Draft>>,
        accept: Option<Box<dyn Accept>>,
        pace: Pace,
    ) -> Self {
        Self {
            drafter,
            accept: accept.unwrap_or_else(|| Box::new(Keyed)),
            pace,
            tree: DraftTree::new(),
            guesses: Vec::new(),
            accepted: Vec::new(),
            tokens: Vec::new(),
            positions: Vec::new(),
            parents: Vec::new(),
            known: 0,
            seconds: 0.0,
        }
    }

    /// How many rows of other texts the next pass has.
    pub(crate) fn beside(&mut self, rows: usize) {
        self.pace.beside(rows);
    }

    /// Guesses ahead and lays out the next pass's rows.
    pub(crate) fn prepare(
        &mut self,
        ahead: &Ahead<'_>,
        backbone: &dyn Backbone,
        cache: &mut dyn KvStore,
        draft: Option<&dyn Backbone>,
    ) -> Result<()> {
        self.tree.clear();
        let depth = ahead.remaining.saturating_sub(1);
        if let Some(drafter) = &mut self.drafter
            && depth > 0
        {
            let budget = self.pace.budget(&**drafter, ahead.history, ahead.remaining);
            if budget > 0 {
                let start = Instant::now();
                let rows = cache.table().len();
                let vocab = backbone.spec().vocab;
                drafter.draft(
                    &mut DraftContext {
                        tokens: ahead.history,
                        prompt: ahead.prompt,
                        budget,
                        depth,
                        seed: ahead.seed,
                        choice: ahead.choice,
                        sampling: ahead.sampling,
                        target: Lent { backbone, cache, position: ahead.position },
                        draft,
                        coupled: self.accept.coupled(),
                    },
                    &mut self.tree,
                )?;
                if cache.table().len() != rows {
                    return Err(Error::plan("the drafter left rows in the target's cache"));
                }
                self.tree.validate(budget, depth, vocab)?;
                self.tree.truncate(self.pace.cut(&self.tree));
                self.seconds += start.elapsed().as_secs_f64();
            }
        }
        self.tokens.clear();
        self.positions.clear();
        self.parents.clear();
        self.tokens.push(ahead.history[ahead.history.len() - 1]);
        self.positions.push(ahead.position);
        self.parents.push(None);
        for n in 0..self.tree.len() as u32 {
            self.tokens.push(self.tree.token(n));
            self.positions.push(ahead.position + self.tree.depth(n));
            self.parents.push(Some(self.tree.parent(n).map_or(0, |p| p + 1)));
        }
        Ok(())
    }

    /// The rows of the next pass.
    pub(crate) fn rows(&self) -> (&[TokenId], &[Position], Mask<'_>) {
        let mask = match self.tree.is_empty() {
            true => Mask::Causal,
            false => Mask::Tree { parent: &self.parents },
        };
        (&self.tokens, &self.positions, mask)
    }

    /// Guesses in the pass.
    pub(crate) fn drafted(&self) -> usize {
        self.tree.len()
    }

    /// Guesses that the walk accepted.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.len()
    }

    /// Depth of the deepest guess.
    pub(crate) fn depth(&self) -> usize {
        (0..self.tree.len() as u32).map(|n| self.tree.depth(n)).max().unwrap_or(0) as usize
    }

    /// Begins the walk over a computed pass; the text has `known` tokens.
    pub(crate) fn begin(&mut self, known: usize) {
        self.accepted.clear();
        self.known = known;
    }

    /// Chooses the token after the last accepted node. Returns it and whether it was guessed, so
    /// that the walk goes on.
    pub(crate) fn choose(
        &mut self,
        reveal: &Reveal,
        segment: usize,
        history: &[TokenId],
        key: tessera_core::dist::Key,
        sampler: &mut Sampler,
        constrained: Option<(&mut Constrained, &dyn Vocabulary)>,
    ) -> Result<(TokenId, bool)> {
        let at = self.accepted.last().copied();
        guesses(&self.tree, at, &mut self.guesses);
        let token = self.accept.choose(&mut Decision {
            logits: reveal.logits(segment, at.map_or(0, |n| n as usize + 1)),
            history,
            key,
            sampler,
            guesses: &self.guesses,
            laws: self.tree.laws(),
            constrained,
        })?;
        let child = self.tree.child(at, token);
        self.accepted.extend(child);
        Ok((token, child.is_some()))
    }

    /// Counts the walk and tells the drafter.
    pub(crate) fn learn(
        &mut self,
        history: &[TokenId],
        next: TokenId,
        reveal: &Reveal,
        segment: usize,
    ) -> Result<()> {
        self.pace.observe(self.tree.len(), &self.accepted, next);
        let Some(drafter) = &mut self.drafter else { return Ok(()) };
        let start = Instant::now();
        let told = drafter.observe(&Verdict {
            tokens: &history[..self.known],
            tree: &self.tree,
            accepted: &self.accepted,
            next,
            reveal,
            segment,
        });
        self.seconds += start.elapsed().as_secs_f64();
        told
    }

    /// The rows of the pass that became text if `committed` accepted nodes did: the root's and theirs.
    pub(crate) fn kept(&self, committed: usize) -> impl Iterator<Item = usize> {
        std::iter::once(0).chain(self.accepted[..committed].iter().map(|&n| n as usize + 1))
    }

    /// Keeps the rows of the root and of the first `committed` accepted nodes in the cache.
    pub(crate) fn settle(&self, committed: usize, cache: &mut dyn KvStore) -> Result<()> {
        if self.tree.is_empty() {
            return Ok(());
        }
        let kept: Vec<Row> = self.kept(committed).map(|row| row as Row).collect();
        cache.keep_last(self.tree.len() + 1, &kept)
    }
}
