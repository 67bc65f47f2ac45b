//! Title: Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token
//!   Recycling
//! Authors: Luo et al.
//! Year: 2024
//! Id: arXiv:2408.08696
//! Implemented: the adjacency matrix (for each token the 8 most probable tokens after it, as they
//!   were when it was last computed), the static tree of the paper's code (80 nodes) and its most
//!   worthwhile beginnings, the update from every row of a pass, the matrix kept from request to
//!   request of a sequence. Rows that were never filled guess nothing, so the tree shrinks; two
//!   nodes with one token: the last one that became text counts, else the first of the tree. The
//!   acceptance is the recipe's, at any temperature.
//! Left out: one matrix for all sequences of a server (it would pass candidates between users).
//! Tag: TR

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::dist::{Candidate, top_k};
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Paper, Place, Role, Settings, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{Draft, DraftContext, DraftTree, Result, TokenId, Verdict};

use super::TREES;
use crate::template::{PAPER_NODES, RANKS, Template};

/// A shape of the tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// The `budget` most worthwhile nodes of the paper's tree.
    #[default]
    Auto,
    /// All 80 nodes of the paper's tree, whatever `budget` says.
    Paper,
    /// A single path of `budget` first candidates.
    Chain,
}

impl Shape {
    /// The template of this shape.
    pub fn template(self, budget: usize) -> Template {
        match self {
            Self::Auto => Template::paper(budget),
            Self::Paper => Template::paper(PAPER_NODES),
            Self::Chain => Template::chain(budget),
        }
    }
}

/// Settings of token recycling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TokenRecycling {
    /// Shape of the tree: `auto`, `paper` or `chain`. The paper has `paper`.
    pub template: Shape,
    /// Most guesses of a step. 0 (the plain run) to 80; the paper's 80 pay where 81 rows cost
    /// little more than one, which no CPU offers.
    pub budget: usize,
    /// Whether the tokens that follow one another in the prompt fill rows that are still empty.
    /// The paper: no.
    pub recycle_prompt: bool,
}

impl Default for TokenRecycling {
    fn default() -> Self {
        Self { template: Shape::Auto, budget: 7, recycle_prompt: false }
    }
}

impl MethodConfig for TokenRecycling {
    fn validate(&self) -> std::result::Result<(), String> {
        match self.budget {
            0..=PAPER_NODES => Ok(()),
            budget => Err(format!("budget = {budget}: must be 0 to {PAPER_NODES}")),
        }
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "token-recycling",
    aliases: &["recycling", "tr"],
    name: "Token Recycling",
    paper: Some(Paper {
        title: "Turning Trash into Treasure: Accelerating Inference of Large Language Models with \
                Token Recycling",
        authors: "Luo et al.",
        year: 2024,
        id: "arXiv:2408.08696",
    }),
    summary: "Guesses a tree of the tokens that were probable when each token was last computed.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Draft, site: Site::Whole }],
    exactness: Exactness::BitExact,
    needs: TREES,
    claims: &[
        Claim {
            setting: "Vicuna 7B, SpecBench, greedy, one GPU, 80-node tree",
            metric: "speed-up of decoding",
            value: 2.09,
            unit: "x",
            place: "README of the authors' code",
        },
        Claim {
            setting: "Vicuna 7B, Spec-Bench, greedy, the same on two GPUs, 80-node tree",
            metric: "mean accepted length, the token drawn after the guesses included",
            value: 2.73,
            unit: "tokens/step",
            place: "Spec-Bench's leaderboard",
        },
    ],
    schema: schema_of::<TokenRecycling>,
    defaults: defaults_of::<TokenRecycling>,
    neutral: Some(|| Settings::from_iter([("budget".to_owned(), json!(0))])),
    read: resolve_as::<TokenRecycling>,
    build: |settings| {
        let config = read_as::<TokenRecycling>("token-recycling", settings)?;
        Ok(Method::Draft(Box::new(Recycler::new(&config))))
    },
};

/// For each token the most probable tokens after it, the most probable first.
#[derive(Debug, Clone, Default)]
pub struct Adjacency {
    /// `vocabulary x RANKS`.
    ids: Vec<TokenId>,
    /// By token: how many of its places are filled; 0: never seen.
    filled: Vec<u8>,
    /// By token: whether a pass filled the row (or, if not, the prompt).
    recycled: Vec<bool>,
    kept: Vec<Candidate>,
    winners: Vec<(TokenId, Option<u32>)>,
}

impl Adjacency {
    /// The candidates after `token`; empty if it was never seen.
    pub fn row(&self, token: TokenId) -> &[TokenId] {
        let at = token as usize;
        let filled = self.filled.get(at).copied().unwrap_or(0) as usize;
        &self.ids[at.min(self.filled.len()) * RANKS..][..filled]
    }

    /// Overwrites the row of `token` with the first [`RANKS`] of `candidates`.
    pub fn set(&mut self, token: TokenId, candidates: impl IntoIterator<Item = TokenId>) {
        let at = token as usize;
        self.grow(at + 1);
        let slots = &mut self.ids[at * RANKS..(at + 1) * RANKS];
        let mut filled = 0;
        for (slot, candidate) in slots.iter_mut().zip(candidates) {
            *slot = candidate;
            filled += 1;
        }
        self.filled[at] = filled;
        self.recycled[at] = true;
    }

    /// Fills rows that no pass has filled with what follows in `text`, the latest follower first.
    pub fn seed(&mut self, text: &[TokenId]) {
        for pair in text.windows(2) {
            let at = pair[0] as usize;
            self.grow(at + 1);
            if self.recycled[at] {
                continue;
            }
            let slots = &mut self.ids[at * RANKS..(at + 1) * RANKS];
            let filled = self.filled[at] as usize;
            let there = slots[..filled].iter().position(|&t| t == pair[1]);
            let end = there.unwrap_or(filled.min(RANKS - 1));
            slots.copy_within(..end, 1);
            slots[0] = pair[1];
            self.filled[at] = filled.max(end + 1) as u8;
        }
    }

    /// Takes the candidates of every row of a pass.
    pub fn recycle(&mut self, verdict: &Verdict<'_>) {
        let (tree, root) = (verdict.tree, verdict.tokens.last().copied());
        let mut winners = std::mem::take(&mut self.winners);
        winners.clear();
        // A token's first entry here is the one that counts.
        let path = verdict.accepted.iter().rev().map(|&n| (tree.token(n), Some(n)));
        let nodes = (0..).zip(tree.tokens()).map(|(n, &token)| (token, Some(n)));
        for (token, node) in path.chain(root.map(|token| (token, None))).chain(nodes) {
            if winners.iter().all(|&(known, _)| known != token) {
                winners.push((token, node));
            }
        }
        let mut kept = std::mem::take(&mut self.kept);
        for &(token, node) in &winners {
            kept.clear();
            top_k(verdict.logits(node), RANKS, &mut kept);
            self.set(token, kept.iter().map(|c| c.id));
        }
        (self.winners, self.kept) = (winners, kept);
    }

    fn grow(&mut self, tokens: usize) {
        if tokens > self.filled.len() {
            self.ids.resize(tokens * RANKS, 0);
            self.filled.resize(tokens, 0);
            self.recycled.resize(tokens, false);
        }
    }
}

/// The drafter.
#[derive(Debug)]
pub struct Recycler {
    template: Template,
    recycle_prompt: bool,
    matrix: Adjacency,
}

impl Recycler {
    /// With an empty matrix.
    pub fn new(config: &TokenRecycling) -> Self {
        Self::with(config, Adjacency::default())
    }

    /// With a matrix that is there already, whatever is in it.
    pub fn with(config: &TokenRecycling, matrix: Adjacency) -> Self {
        let template = config.template.template(config.budget);
        Self { template, recycle_prompt: config.recycle_prompt, matrix }
    }

    /// The matrix.
    pub fn matrix(&self) -> &Adjacency {
        &self.matrix
    }
}

impl Draft for Recycler {
    fn budget(&self) -> usize {
        self.template.len()
    }

    fn draft(&mut self, context: &mut DraftContext<'_>, tree: &mut DraftTree) -> Result<()> {
        if self.recycle_prompt && context.tokens.len() == context.prompt + 1 {
            self.matrix.seed(context.tokens);
        }
        let Some(&root) = context.tokens.last() else { return Ok(()) };
        let vocab = context.vocab();
        self.template.fill(context, tree, |tree, parent, rank| {
            let row = self.matrix.row(parent.map_or(root, |n| tree.token(n)));
            row.get(rank).copied().filter(|&token| (token as usize) < vocab)
        });
        Ok(())
    }

    fn observe(&mut self, verdict: &Verdict<'_>) -> Result<()> {
        self.matrix.recycle(verdict);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_core::Reveal;

    /// A reveal of one segment whose row `i` prefers the tokens `best[i]`, the first most.
    fn reveal(vocab: usize, best: &[&[TokenId]]) -> Reveal {
        let mut reveal = Reveal::new();
        let logits = reveal.prepare(vocab, [best.len()]);
        logits.fill(f32::NEG_INFINITY);
        for (row, tokens) in logits.chunks_mut(vocab).zip(best) {
            for (i, &token) in tokens.iter().enumerate() {
                row[token as usize] = 10.0 - i as f32;
            }
        }
        reveal
    }

    #[test]
    fn every_row_of_a_pass_is_recycled_and_of_equal_tokens_the_one_that_became_text() {
        let mut tree = DraftTree::new();
        let a = tree.add(None, 5);
        let b = tree.add(Some(a), 6);
        let c = tree.add(None, 6);
        let d = tree.add(Some(c), 4);
        let e = tree.add(Some(d), 4);
        assert_eq!([a, b, c, d, e], [0, 1, 2, 3, 4]);
        let reveal = reveal(12, &[&[1], &[2, 3], &[3, 1], &[4, 9], &[7], &[8]]);
        let mut verdict = Verdict {
            tokens: &[0, 9],
            tree: &tree,
            accepted: &[c, d],
            next: 7,
            reveal: &reveal,
            segment: 0,
        };
        let mut matrix = Adjacency::default();
        matrix.recycle(&verdict);
        // 6 is at b and at c, which became text; 4 at d, which became text, and at e.
        assert_eq!(matrix.row(9), [1]);
        assert_eq!(matrix.row(5), [2, 3]);
        assert_eq!(matrix.row(6), [4, 9]);
        assert_eq!(matrix.row(4), [7]);
        assert!([0, 1, 8, 11, 12, 1000].iter().all(|&unseen| matrix.row(unseen).is_empty()));
        // Nothing became text: the first of the tree counts.
        verdict.accepted = &[];
        let mut matrix = Adjacency::default();
        matrix.recycle(&verdict);
        assert_eq!((matrix.row(6), matrix.row(4)), (&[3, 1][..], &[7][..]));
    }

    #[test]
    fn the_prompt_fills_empty_rows_only_latest_follower_first() {
        let mut matrix = Adjacency::default();
        matrix.set(3, [8, 9]);
        matrix.seed(&[1, 2, 1, 4, 1, 2, 3, 5]);
        assert_eq!((matrix.row(1), matrix.row(2)), (&[2, 4][..], &[3, 1][..]));
        assert_eq!(matrix.row(3), [8, 9]);
        let followers: Vec<TokenId> = (10..30).flat_map(|t| [7, t]).collect();
        matrix.seed(&followers);
        assert_eq!(matrix.row(7), [29, 28, 27, 26, 25, 24, 23, 22]);
        matrix.set(7, [1]);
        assert_eq!(matrix.row(7), [1]);
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        for bad in ["budget=81", "template=star", "recycle_prompt=2"] {
            let text = format!("token-recycling:{bad}");
            let call = tessera_core::entry::MethodCall::parse(crate::ENTRIES, &text);
            let error = call.and_then(|c| ENTRY.resolve(&c.settings)).unwrap_err().to_string();
            assert!(error.contains(&bad[..6]), "{error}");
        }
    }
}
