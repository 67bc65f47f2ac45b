//! Drafting: guesses ahead of the text, the tree they form, and the verdict on them.
//!
//! A [`Draft`] policy fills a [`DraftTree`]; the loop computes the tree in one pass, an
//! [`crate::Accept`] policy decides which path of it becomes text, and the drafter hears the
//! [`Verdict`]. Whatever a drafter guesses, exact acceptance gives the plain run's text.

use std::fmt::Debug;

use crate::backbone::{Backbone, KvStore};
use crate::dist::{Key, Sampling};
use crate::{Error, Position, Result, Reveal, TokenId};

/// The purpose of a drafter's own draws ([`Key::purpose`]).
const DRAFT: u64 = 0xd7af7;

/// A distribution over tokens: tokens of positive probability, ascending, summing to 1.
pub type Law = Vec<(TokenId, f64)>;

/// Guesses that continue the text, as a tree below the *root*, the last committed token.
///
/// Nodes are numbered in the order in which they were added, parents before children. That order
/// is also the order of worth: a tree cut to its first `n` nodes is the drafter's best tree of `n`
/// nodes, and siblings are judged in it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DraftTree {
    tokens: Vec<TokenId>,
    parents: Vec<Option<u32>>,
    depths: Vec<u32>,
    drawn_from: Vec<Option<u32>>,
    laws: Vec<Law>,
    /// How good the evidence for these guesses is, as the drafter sorts it (0 to
    /// [`DraftTree::GRADES`]` - 1`): acceptance is counted for each grade apart. It must not depend
    /// on a random draw.
    pub grade: usize,
}

impl DraftTree {
    /// Number of grades.
    pub const GRADES: usize = 8;

    /// An empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Removes all nodes; keeps the memory.
    pub fn clear(&mut self) {
        self.truncate(0);
        self.laws.clear();
        self.grade = 0;
    }

    /// Number of nodes, the root not counted.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether nothing is guessed.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Adds a guess below `parent` (`None`: the root) that no chance took part in; returns its
    /// number. A guess that is there already is not added again.
    pub fn add(&mut self, parent: Option<u32>, token: TokenId) -> u32 {
        self.insert(parent, token, None)
    }

    /// Adds a guess that was drawn from `law` (a number that [`DraftTree::law`] gave) after the
    /// guesses already below `parent` were struck from it and the rest was made to sum to 1 again.
    pub fn add_drawn(&mut self, parent: Option<u32>, token: TokenId, law: u32) -> u32 {
        self.insert(parent, token, Some(law))
    }

    /// Keeps a distribution that guesses are drawn from.
    pub fn law(&mut self, law: Law) -> u32 {
        self.laws.push(law);
        self.laws.len() as u32 - 1
    }

    fn insert(&mut self, parent: Option<u32>, token: TokenId, law: Option<u32>) -> u32 {
        if let Some(there) = self.child(parent, token) {
            return there;
        }
        self.tokens.push(token);
        self.depths.push(parent.map_or(1, |p| self.depths[p as usize] + 1));
        self.parents.push(parent);
        self.drawn_from.push(law);
        self.tokens.len() as u32 - 1
    }

    /// The child of `parent` that guesses `token`.
    pub fn child(&self, parent: Option<u32>, token: TokenId) -> Option<u32> {
        self.children(parent).find(|&n| self.token(n) == token)
    }

    /// The children of `parent`, in order.
    pub fn children(&self, parent: Option<u32>) -> impl Iterator<Item = u32> {
        let first = parent.map_or(0, |p| p as usize + 1);
        (first..self.len()).filter(move |&n| self.parents[n] == parent).map(|n| n as u32)
    }

    /// The token that node `n` guesses.
    pub fn token(&self, n: u32) -> TokenId {
        self.tokens[n as usize]
    }

    /// All tokens, by node.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// The parent of node `n`; `None` for a child of the root.
    pub fn parent(&self, n: u32) -> Option<u32> {
        self.parents[n as usize]
    }

    /// Distance of node `n` from the root, from 1.
    pub fn depth(&self, n: u32) -> u32 {
        self.depths[n as usize]
    }

    /// The number of the distribution that node `n` was drawn from.
    pub fn drawn_from(&self, n: u32) -> Option<u32> {
        self.drawn_from[n as usize]
    }

    /// The distributions kept.
    pub fn laws(&self) -> &[Law] {
        &self.laws
    }

    /// Keeps the first `n` nodes.
    pub fn truncate(&mut self, n: usize) {
        self.tokens.truncate(n);
        self.parents.truncate(n);
        self.depths.truncate(n);
        self.drawn_from.truncate(n);
    }

    /// The tokens from the root's child to node `n`.
    pub fn path(&self, n: u32) -> Vec<TokenId> {
        let mut path: Vec<TokenId> = self.ancestors(n).map(|a| self.token(a)).collect();
        path.reverse();
        path
    }

    /// Node `n` and its ancestors, upwards.
    pub fn ancestors(&self, n: u32) -> impl Iterator<Item = u32> {
        std::iter::successors(Some(n), |&a| self.parent(a))
    }

    /// Checks the laws of a tree: at most `budget` nodes, none deeper than `depth`, tokens below
    /// `vocab`, a known grade.
    ///
    /// # Errors
    /// [`Error::Plan`] naming the law.
    pub fn validate(&self, budget: usize, depth: usize, vocab: usize) -> Result<()> {
        if self.len() > budget {
            return Err(Error::plan(format!("{} guesses, the budget is {budget}", self.len())));
        }
        if let Some(d) = self.depths.iter().find(|&&d| d as usize > depth) {
            return Err(Error::plan(format!("a guess at depth {d}, at most {depth} can be used")));
        }
        if let Some(t) = self.tokens.iter().find(|&&t| t as usize >= vocab) {
            return Err(Error::plan(format!("guess {t} is outside the vocabulary of {vocab}")));
        }
        if self.grade >= Self::GRADES {
            return Err(Error::plan(format!("grade {} of {}", self.grade, Self::GRADES)));
        }
        Ok(())
    }
}

/// The model whose text is made, lent with a cache: to a drafter with that of the text but its last
/// token, and rows that it appends it must roll back.
pub struct Lent<'a> {
    /// Runs passes.
    pub backbone: &'a dyn Backbone,
    /// Keys and values; where rows were evicted or never kept, there are fewer than tokens.
    pub cache: &'a mut dyn KvStore,
    /// Where the next row goes. It is the number of tokens before it, unless positions were re-ranked.
    pub position: Position,
}

/// What a drafter is asked.
pub struct DraftContext<'a> {
    /// Prompt and text so far. The last token is the root.
    pub tokens: &'a [TokenId],
    /// How many of them are the prompt.
    pub prompt: usize,
    /// Most nodes of the tree.
    pub budget: usize,
    /// Deepest node of use: what lies below could not be committed.
    pub depth: usize,
    /// The request's seed.
    pub seed: u64,
    /// Index of the text among those of the request.
    pub choice: u32,
    /// How the target's tokens are chosen.
    pub sampling: &'a Sampling,
    /// The target.
    pub target: Lent<'a>,
    /// The draft model, if the session has one.
    pub draft: Option<&'a dyn Backbone>,
    /// Whether acceptance draws with the position's key ([`crate::Accept::coupled`]).
    pub coupled: bool,
}

impl DraftContext<'_> {
    /// The key to draw a guess below `parent` with.
    ///
    /// Coupled, it is the one that the target's token there will be drawn with, so that equal
    /// distributions give equal tokens (and similar ones mostly do). Otherwise it is one that
    /// nothing else uses: an acceptance test by ratio is only exact if what was drawn at other
    /// nodes, on which the shape of the tree may depend, says nothing about this draw.
    pub fn key(&self, tree: &DraftTree, parent: Option<u32>) -> Key {
        let depth = parent.map_or(1, |p| tree.depth(p) as usize + 1);
        let key = Key::new(self.seed, self.choice, (self.tokens.len() + depth - 1) as Position);
        if self.coupled {
            return key;
        }
        let path = parent.into_iter().flat_map(|p| tree.path(p));
        path.fold(key.purpose(DRAFT), |key, token| key.purpose(u64::from(token)))
    }

    /// Size of the target's vocabulary.
    pub fn vocab(&self) -> usize {
        self.target.backbone.spec().vocab
    }
}

/// What became of a tree.
pub struct Verdict<'a> {
    /// Prompt and text as they were when the tree was made. The last token is the root.
    pub tokens: &'a [TokenId],
    /// The tree as it was computed (it may have been cut to its first nodes; empty in a plain step).
    pub tree: &'a DraftTree,
    /// The nodes that became text, from the root's child downwards.
    pub accepted: &'a [u32],
    /// The token drawn after them: the next root.
    pub next: TokenId,
    /// The pass.
    pub reveal: &'a Reveal,
    /// Its segment.
    pub segment: usize,
}

impl Verdict<'_> {
    /// The target's logits after `node` (`None`: after the root).
    pub fn logits(&self, node: Option<u32>) -> &[f32] {
        self.reveal.logits(self.segment, node.map_or(0, |n| n as usize + 1))
    }
}

/// Guesses tokens ahead. One instance per sequence.
pub trait Draft: Send + Debug {
    /// Most nodes that the settings allow.
    fn budget(&self) -> usize;

    /// Passes of a draft model (or of part of the target) that a tree of `nodes` nodes costs;
    /// 0 for drafters that only look things up.
    fn passes(&self, nodes: usize) -> usize {
        let _ = nodes;
        0
    }

    /// Cost of one of those passes in passes of one row of the target, for a drafter that runs part
    /// of the target itself; `None` where it is the draft model's, which the cost curve holds.
    fn pass_cost(&self) -> Option<f64> {
        None
    }

    /// Fills `tree`, which is empty.
    ///
    /// # Errors
    /// Whatever a pass reports.
    fn draft(&mut self, context: &mut DraftContext<'_>, tree: &mut DraftTree) -> Result<()>;

    /// Hears what became of the tree; also after a step without one.
    ///
    /// # Errors
    /// Whatever the drafter finds wrong.
    fn observe(&mut self, verdict: &Verdict<'_>) -> Result<()> {
        let _ = verdict;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_knows_its_paths_and_never_repeats_a_sibling() {
        let mut tree = DraftTree::new();
        let a = tree.add(None, 5);
        let b = tree.add(Some(a), 6);
        let c = tree.add(None, 7);
        assert_eq!(tree.add(None, 5), a);
        assert_eq!(tree.add(Some(c), 6), 3);
        assert_eq!(tree.path(b), [5, 6]);
        assert_eq!((tree.depth(a), tree.depth(b), tree.depth(3)), (1, 2, 2));
        assert_eq!(tree.children(None).collect::<Vec<_>>(), [a, c]);
        assert_eq!(tree.child(Some(a), 6), Some(b));
        assert_eq!(tree.child(Some(a), 7), None);
        tree.truncate(2);
        assert_eq!((tree.len(), tree.child(None, 7)), (2, None));
    }

    #[test]
    fn each_law_is_refused_by_name() {
        let mut tree = DraftTree::new();
        let a = tree.add(None, 5);
        tree.add(Some(a), 6);
        tree.validate(2, 2, 7).unwrap();
        for (budget, depth, vocab, word) in
            [(1, 2, 7, "budget"), (2, 1, 7, "depth"), (2, 2, 6, "vocabulary")]
        {
            let text = tree.validate(budget, depth, vocab).unwrap_err().to_string();
            assert!(text.contains(word), "{text}");
        }
        tree.grade = DraftTree::GRADES;
        assert!(tree.validate(2, 2, 7).is_err());
    }
}
