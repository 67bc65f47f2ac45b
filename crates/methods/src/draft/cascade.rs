//! Title: cascade of prompt lookup and token recycling, most likely guess first
//! Authors: none
//! Year: none
//! Id: none
//! Implemented: prompt lookup says how the text went on after the longest match of its end, token
//!   recycling what was probable after each token; both are merged into one tree, grown best first
//!   by an estimate of each guess's chance. What follows a match of n tokens was right with a chance
//!   q(n), and a candidate of rank r beside it, or where there is no match, with a chance p(r). Both
//!   are counted while the text is made, so the tree is a chain where text repeats itself and bushy
//!   where it does not.
//! Left out: several matches at once.
//! Tag: cascade

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::entry::{
    Exactness, Kind, Method, MethodConfig, MethodEntry, Place, Role, Settings, Site, defaults_of,
    read_as, resolve_as, schema_of,
};
use tessera_core::{Draft, DraftContext, DraftTree, Result, TokenId, Verdict};

use super::TREES;
use super::prompt_lookup::{Lookup, PromptLookup};
use super::token_recycling::Adjacency;
use crate::template::{RANK_PRIOR, RANKS};

/// Settings of the cascade.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Cascade {
    /// Most guesses of a step. 0 (the plain run) to 80.
    pub budget: usize,
    /// Guesses with a smaller estimated chance are left out. 0 (keeps all) to below 1; where a
    /// further row costs c passes of one row, about c times the tokens a pass commits is best.
    pub floor: f64,
    /// Longest match that is looked for, in tokens. 2 to 64.
    pub ngram: usize,
    /// Tokens of earlier requests of the same sequence that are searched too. 0 to 1048576.
    pub memory: usize,
    /// Whether the tokens that follow one another in the prompt fill rows that are still empty.
    pub recycle_prompt: bool,
}

impl Default for Cascade {
    fn default() -> Self {
        Self { budget: 7, floor: 0.08, ngram: 8, memory: 32_768, recycle_prompt: true }
    }
}

impl MethodConfig for Cascade {
    fn validate(&self) -> std::result::Result<(), String> {
        let checks = [
            ("budget", self.budget, 0..=80),
            ("ngram", self.ngram, LEAST..=64),
            ("memory", self.memory, 0..=1 << 20),
        ];
        if let Some((name, value, range)) = checks.iter().find(|(_, v, range)| !range.contains(v)) {
            return Err(format!("{name} = {value}: must be {} to {}", range.start(), range.end()));
        }
        if !(0.0..1.0).contains(&self.floor) {
            return Err(format!("floor = {}: must be 0 to below 1", self.floor));
        }
        Ok(())
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "cascade",
    aliases: &["lookup-recycling"],
    name: "Cascade",
    paper: None,
    summary: "Merges prompt lookup and token recycling into one tree, most likely guess first.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Draft, site: Site::Whole }],
    exactness: Exactness::BitExact,
    needs: TREES,
    claims: &[],
    schema: schema_of::<Cascade>,
    defaults: defaults_of::<Cascade>,
    neutral: Some(|| Settings::from_iter([("budget".to_owned(), json!(0))])),
    read: resolve_as::<Cascade>,
    build: |settings| {
        let config = read_as::<Cascade>("cascade", settings)?;
        Ok(Method::Draft(Box::new(Merger::new(config))))
    },
};

/// Shortest match of the lookup: its grade is the match's length less one, so that 0 is no match.
const LEAST: usize = 2;

/// What is believed of a match by its grade before it was seen.
const MATCH_PRIOR: [f64; DraftTree::GRADES] = [0.0, 0.45, 0.55, 0.65, 0.7, 0.75, 0.8, 0.9];

/// The weight of a belief, in steps, and the weight that a count keeps at each further step.
const PRIOR_WEIGHT: f64 = 8.0;
const KEEP: f64 = 0.99;

/// A share that is counted, from a belief on.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    seen: f64,
    hits: f64,
}

impl Share {
    fn count(&mut self, hit: bool) {
        self.seen = self.seen * KEEP + 1.0;
        self.hits = self.hits * KEEP + f64::from(u8::from(hit));
    }

    fn value(self, prior: f64) -> f64 {
        (self.hits + PRIOR_WEIGHT * prior) / (self.seen + PRIOR_WEIGHT)
    }
}

/// How often guesses were right, by where they came from.
#[derive(Debug, Clone, Default)]
struct Counts {
    /// What follows a match, by grade.
    matched: [Share; DraftTree::GRADES],
    /// The candidate of each rank, where there is no match and where it is wrong.
    ranks: [[Share; RANKS]; 2],
}

impl Counts {
    fn matched(&self, grade: usize) -> f64 {
        self.matched[grade].value(MATCH_PRIOR[grade])
    }

    fn rank(&self, beside: bool, rank: usize) -> f64 {
        self.ranks[usize::from(beside)][rank].value(RANK_PRIOR[rank])
    }
}

/// A guess that could be added.
#[derive(Debug, Clone, Copy)]
struct Open {
    worth: f64,
    parent: Option<u32>,
    token: TokenId,
    /// How far along the lookup's chain it is, if it is on it.
    chain: Option<usize>,
}

/// The drafter.
#[derive(Debug)]
pub struct Merger {
    config: Cascade,
    lookup: Lookup,
    matrix: Adjacency,
    counts: Counts,
    /// The lookup's chain of this step.
    chain: DraftTree,
    open: Vec<Open>,
}

impl Merger {
    /// With nothing seen yet.
    pub fn new(config: Cascade) -> Self {
        Self::with(config, Adjacency::default())
    }

    /// With a matrix that is there already, whatever is in it.
    pub fn with(config: Cascade, matrix: Adjacency) -> Self {
        let Cascade { budget, ngram, memory, .. } = config;
        let lookup = Lookup::new(PromptLookup { budget, ngram, least: LEAST, memory });
        let counts = Counts::default();
        Self { config, lookup, matrix, counts, chain: DraftTree::new(), open: Vec::new() }
    }

    /// Opens the guesses below `parent`, which says `token` and came true with chance `worth`;
    /// `chain` is the place in the lookup's chain of what follows it there.
    fn expand(&mut self, parent: Option<u32>, token: TokenId, worth: f64, chain: Option<usize>) {
        let next = chain.and_then(|at| Some((at, *self.chain.tokens().get(at)?)));
        let mut left = worth;
        if let Some((at, token)) = next {
            // Were the chain right so far, the match is longer by as much.
            let grade = (self.chain.grade + at).min(DraftTree::GRADES - 1);
            let chance = self.counts.matched(grade);
            self.open.push(Open { worth: worth * chance, parent, token, chain: Some(at + 1) });
            left *= 1.0 - chance;
        }
        for (rank, &candidate) in self.matrix.row(token).iter().enumerate() {
            if next.is_none_or(|(_, token)| token != candidate) {
                let worth = left * self.counts.rank(next.is_some(), rank);
                self.open.push(Open { worth, parent, token: candidate, chain: None });
            }
        }
    }

    /// Counts which guesses were right, as far as the text tells. Before the matrix changes.
    fn count(&mut self, verdict: &Verdict<'_>) {
        let Some(&root) = verdict.tokens.last() else { return };
        let path = verdict.accepted.iter().map(|&n| verdict.tree.token(n));
        let text: Vec<TokenId> = path.chain([verdict.next]).collect();
        let chain = self.chain.tokens();
        for (at, (guess, said)) in chain.iter().zip(&text).enumerate() {
            let grade = (self.chain.grade + at).min(DraftTree::GRADES - 1);
            self.counts.matched[grade].count(guess == said);
            if guess != said {
                break;
            }
        }
        let guess = chain.first();
        let row = self.matrix.row(root);
        if guess == text.first() || row.is_empty() {
            return;
        }
        for (rank, candidate) in row.iter().enumerate().filter(|(_, c)| Some(*c) != guess) {
            self.counts.ranks[usize::from(guess.is_some())][rank].count(text[0] == *candidate);
        }
    }
}

impl Draft for Merger {
    fn budget(&self) -> usize {
        self.config.budget
    }

    fn draft(&mut self, context: &mut DraftContext<'_>, tree: &mut DraftTree) -> Result<()> {
        let Some(&root) = context.tokens.last() else { return Ok(()) };
        if self.config.recycle_prompt && context.tokens.len() == context.prompt + 1 {
            self.matrix.seed(context.tokens);
        }
        self.chain.clear();
        self.lookup.draft(context, &mut self.chain)?;
        tree.grade = self.chain.grade;
        let vocab = context.vocab();
        self.open.clear();
        self.expand(None, root, 1.0, Some(0));
        while tree.len() < context.budget {
            // The first of equals, so that the tree depends on nothing but what was seen.
            let best = (0..self.open.len())
                .rev()
                .max_by(|&a, &b| self.open[a].worth.total_cmp(&self.open[b].worth));
            let Some(best) = best else { break };
            let open = self.open.swap_remove(best);
            if open.worth < self.config.floor {
                break;
            }
            // A row may hold a token twice.
            if open.token as usize >= vocab || tree.child(open.parent, open.token).is_some() {
                continue;
            }
            let node = tree.add(open.parent, open.token);
            if (tree.depth(node) as usize) < context.depth {
                self.expand(Some(node), open.token, open.worth, open.chain);
            }
        }
        Ok(())
    }

    fn observe(&mut self, verdict: &Verdict<'_>) -> Result<()> {
        self.count(verdict);
        self.chain.clear();
        self.matrix.recycle(verdict);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let good = Cascade::default();
        for (bad, name) in [
            (Cascade { budget: 81, ..good.clone() }, "budget"),
            (Cascade { ngram: 1, ..good.clone() }, "ngram"),
            (Cascade { memory: 2 << 20, ..good.clone() }, "memory"),
            (Cascade { floor: 1.0, ..good.clone() }, "floor"),
            (Cascade { floor: f64::NAN, ..good.clone() }, "floor"),
        ] {
            let error = bad.validate().unwrap_err();
            assert!(error.starts_with(name), "{error}");
        }
    }

    #[test]
    fn a_share_moves_from_belief_to_count() {
        let mut share = Share::default();
        assert_eq!(share.value(0.25), 0.25);
        (0..500).for_each(|_| share.count(true));
        assert!(share.value(0.25) > 0.9);
        (0..500).for_each(|i| share.count(i % 4 == 0));
        assert!((share.value(0.25) - 0.25).abs() < 0.02);
    }
}
