//! Long because its exact checks inject draws into the construction and so live beside it.
//!
//! Title: DySpec: Faster Speculative Decoding with Dynamic Token Tree Structure
//! Authors: Xiong et al.
//! Year: 2024
//! Id: arXiv:2410.11744
//! Implemented: a tree of guesses that grows where the draft model is confident: the heap of
//!   sampling opportunities with one node at a time (`budget`), and the level-by-level form with one
//!   batched draft pass per level (`threshold`). Siblings are drawn without replacement; the draft's
//!   distribution is kept once per node that has children. Priorities in closed form: the first
//!   child of u has q(u), the product of draft probabilities along the path; after the siblings S
//!   the next one has q(u) (1 - sum of S). Verification is another policy's (`residual`).
//! Left out: the depth-first node order for the attention mask (the kernels read spans of rows, not
//!   blocks of a mask).
//! Tag: dyspec

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::dist::{Sampler, Sampling, scalar};
use tessera_core::draft::Law;
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, Place, Role, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{
    Backbone, Capabilities, Draft, DraftContext, DraftTree, Error, Result, TokenId,
};

use crate::second_model::SecondModel;

/// How the tree is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// Level by level, every opportunity of at least a given priority: as many draft passes as
    /// levels.
    Threshold,
    /// The best opportunity first until the budget is spent: as many draft passes as inner nodes.
    Budget,
}

/// Settings of the dynamic tree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DySpec {
    /// `threshold`: one draft pass per level; `budget`: one per inner node.
    pub form: Form,
    /// Most guesses of a step. 1 to 768; the paper takes 64 and 768 on an accelerator.
    pub budget: usize,
    /// Least priority of a guess in the threshold form. 0 to 1; 0 takes 1 / (guesses of the step),
    /// as the paper advises (its example: 0.001 for 768).
    pub threshold: f64,
    /// Temperature of the draft, whatever the target's. At least 0, at most 100; the paper takes
    /// 0.6. At 0 no second sibling can be drawn: the tree is a chain.
    pub temperature: f32,
    /// Only the draft's so many most probable tokens are guessed. 0 (the paper) for all; a small
    /// number keeps the stored distributions short.
    pub top_k: usize,
    /// Under an acceptance that draws with the position's key no ratio is taken, so siblings need
    /// not be drawn from the draft's distribution: they then come in the order in which the target
    /// would draw them if it agreed with the draft. `false`: drawn, as in the paper.
    pub ranked: bool,
}

impl Default for DySpec {
    fn default() -> Self {
        Self {
            form: Form::Threshold,
            budget: 16,
            threshold: 0.0,
            temperature: 0.6,
            top_k: 64,
            ranked: true,
        }
    }
}

impl MethodConfig for DySpec {
    fn validate(&self) -> std::result::Result<(), String> {
        if !(1..=768).contains(&self.budget) {
            return Err(format!("budget = {}: must be 1 to 768", self.budget));
        }
        if !(0.0..=1.0).contains(&self.threshold) {
            return Err(format!("threshold = {}: must be 0 to 1", self.threshold));
        }
        if !(0.0..=100.0).contains(&self.temperature) {
            return Err(format!("temperature = {}: must be 0 to 100", self.temperature));
        }
        Ok(())
    }
}

/// The setting of most of the claims.
const OFFLOADED: &str = "Llama2-70B with Llama2-7B, C4, tree of 64, CPU-offloaded A100";

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "dyspec",
    aliases: &["dynamic-tree"],
    name: "DySpec",
    paper: Some(Paper {
        title: "DySpec: Faster Speculative Decoding with Dynamic Token Tree Structure",
        authors: "Xiong et al.",
        year: 2024,
        id: "arXiv:2410.11744",
    }),
    summary: "A smaller model guesses a tree that grows where it is confident.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Draft, site: Site::Whole }],
    exactness: Exactness::BitExact,
    needs: Needs {
        draft_model: true,
        capabilities: Capabilities { masks: true, ..Needs::NONE.capabilities },
        ..Needs::NONE
    },
    claims: &[
        Claim {
            setting: OFFLOADED,
            metric: "latency per token over the plain run, temperature 0",
            value: 9.42,
            unit: "x",
            place: "main results, 70B",
        },
        Claim {
            setting: OFFLOADED,
            metric: "tokens per step, temperature 0",
            value: 9.10,
            unit: "tokens/step",
            place: "main results, 70B",
        },
        Claim {
            setting: OFFLOADED,
            metric: "tokens per step, temperature 0.6",
            value: 6.21,
            unit: "tokens/step",
            place: "main results, 70B",
        },
        Claim {
            setting: "Llama2-7B with a 68M draft, C4, tree of 64, A100",
            metric: "tokens per step, temperature 0",
            value: 5.25,
            unit: "tokens/step",
            place: "main results, 7B",
        },
    ],
    schema: schema_of::<DySpec>,
    defaults: defaults_of::<DySpec>,
    neutral: None,
    read: resolve_as::<DySpec>,
    build: |settings| {
        let config = read_as::<DySpec>("dyspec", settings)?;
        Ok(Method::Draft(Box::new(Grower::new(config))))
    },
};

/// The draft's distribution after a node, and what has been drawn from it so far.
#[derive(Debug, Clone, Default)]
struct Source {
    law: Law,
    /// Indices into the law, in the order in which tokens are drawn without replacement.
    order: Vec<u32>,
    taken: usize,
    /// Probability not drawn yet.
    left: f64,
}

impl Source {
    fn new(law: Law, order: Vec<u32>) -> Self {
        Self { law, order, taken: 0, left: 1.0 }
    }
}

/// Answers what the draft model says after nodes of a tree.
trait Oracle {
    /// One source for each of `nodes` (`None`: the root), computed together; one without tokens
    /// where the draft model can say nothing.
    fn ask(&mut self, tree: &DraftTree, nodes: &[Option<u32>]) -> Result<Vec<Source>>;
}

/// A chance to draw a child, worth `priority`, which is known before the token is.
#[derive(Debug, Clone, Copy)]
struct Opportunity {
    priority: f64,
    parent: Option<u32>,
    /// q(parent), the product of draft probabilities down to it.
    reach: f64,
    /// The parent's source, once it has been asked for.
    source: Option<usize>,
    /// Breaks ties: the older one first.
    age: usize,
}

impl Ord for Opportunity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.priority.total_cmp(&other.priority).then(other.age.cmp(&self.age))
    }
}

impl PartialOrd for Opportunity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Opportunity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Opportunity {}

/// A tree while it grows.
#[derive(Debug, Default)]
struct Growth {
    tree: DraftTree,
    /// By node: the priority of the opportunity that it took, and its source.
    worth: Vec<(f64, usize)>,
    sources: Vec<Source>,
    /// Times that the draft model was asked.
    asked: usize,
}

/// How far a tree may grow.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    nodes: usize,
    depth: usize,
}

impl Growth {
    fn root() -> Opportunity {
        Opportunity { priority: 1.0, parent: None, reach: 1.0, source: None, age: 0 }
    }

    /// Takes an opportunity: the new node, its own first opportunity, and the next sibling's.
    fn draw(&mut self, o: Opportunity, at: usize) -> (Opportunity, Option<Opportunity>) {
        let source = &mut self.sources[at];
        let (token, p) = source.law[source.order[source.taken] as usize];
        source.taken += 1;
        source.left -= p;
        let more = source.taken < source.order.len() && source.left > 0.0;
        let sibling = Opportunity {
            // Never above the opportunity taken, whatever rounding does.
            priority: (o.reach * source.left).min(o.priority),
            source: Some(at),
            age: 2 * self.worth.len() + 1,
            ..o
        };
        let node = self.tree.add(o.parent, token);
        let reach = (o.reach * p).min(o.priority);
        let age = 2 * self.worth.len() + 2;
        self.worth.push((o.priority, at));
        let child = Opportunity { priority: reach, parent: Some(node), reach, source: None, age };
        (child, more.then_some(sibling))
    }

    /// The budget form (the paper's algorithm 1): the best opportunity first. The draft model is
    /// asked about a node when its first child is about to be drawn, not when the node is: the tree
    /// is the same, and leaves cost no pass.
    fn best_first(&mut self, bounds: Bounds, oracle: &mut dyn Oracle) -> Result<()> {
        let mut heap = BinaryHeap::from([Self::root()]);
        while self.tree.len() < bounds.nodes {
            let Some(o) = heap.pop() else { break };
            let at = match o.source {
                Some(at) => at,
                None => {
                    self.sources.extend(oracle.ask(&self.tree, &[o.parent])?);
                    self.asked += 1;
                    self.sources.len() - 1
                }
            };
            if self.sources[at].order.is_empty() {
                continue;
            }
            let (child, sibling) = self.draw(o, at);
            heap.extend(sibling);
            if self.depth(child) < bounds.depth && child.priority > 0.0 {
                heap.push(child);
            }
        }
        Ok(())
    }

    /// The threshold form (algorithm 2): on each level every opportunity of at least `theta`, with
    /// one batched pass of the draft model a level. (Its loop condition is printed the other way
    /// round.) The cap on nodes takes effect before a draw, so no drawn token is ever dropped.
    fn level_by_level(
        &mut self,
        theta: f64,
        bounds: Bounds,
        oracle: &mut dyn Oracle,
    ) -> Result<()> {
        let mut level = vec![Self::root()];
        while !level.is_empty() && self.tree.len() < bounds.nodes {
            let nodes: Vec<Option<u32>> = level.iter().map(|o| o.parent).collect();
            let first = self.sources.len();
            self.sources.extend(oracle.ask(&self.tree, &nodes)?);
            self.asked += 1;
            let mut next = Vec::new();
            for (at, first_child) in (first..).zip(level) {
                let mut open = Some(first_child);
                while let Some(o) = open.take().filter(|o| o.priority >= theta)
                    && !self.sources[at].order.is_empty()
                    && self.tree.len() < bounds.nodes
                {
                    let (child, sibling) = self.draw(o, at);
                    open = sibling;
                    if self.depth(child) < bounds.depth && child.priority >= theta {
                        next.push(child);
                    }
                }
            }
            level = next;
        }
        Ok(())
    }

    fn depth(&self, child: Opportunity) -> usize {
        child.parent.map_or(0, |node| self.tree.depth(node) as usize)
    }

    /// The tree in the order of worth. `drawn`: with the laws that its nodes were drawn from.
    fn write(&self, tree: &mut DraftTree, drawn: bool) {
        // Worth never grows from parent to child or from sibling to sibling, so a stable sort keeps
        // parents before children and siblings in the order in which they were drawn.
        let mut order: Vec<u32> = (0..self.tree.len() as u32).collect();
        order.sort_by(|&a, &b| self.worth[b as usize].0.total_cmp(&self.worth[a as usize].0));
        let mut places = vec![0; order.len()];
        let mut laws = vec![None; self.sources.len()];
        for node in order {
            let parent = self.tree.parent(node).map(|p| places[p as usize]);
            let (token, at) = (self.tree.token(node), self.worth[node as usize].1);
            places[node as usize] = if drawn {
                let law = *laws[at].get_or_insert_with(|| tree.law(self.sources[at].law.clone()));
                tree.add_drawn(parent, token, law)
            } else {
                tree.add(parent, token)
            };
        }
    }
}

/// The draft model as an oracle.
struct Asked<'a, 'b> {
    model: &'a dyn Backbone,
    second: &'a mut SecondModel,
    context: &'a DraftContext<'b>,
    sampler: Sampler,
    /// Siblings in the order of a race with `p^power` ([`DySpec::ranked`]); infinite: of `p`.
    power: f64,
    /// Row of each node in the draft model's branch.
    rows: Vec<u32>,
    history: Vec<TokenId>,
}

impl Asked<'_, '_> {
    fn source(&mut self, tree: &DraftTree, node: Option<u32>, row: usize) -> Result<Source> {
        self.history.truncate(self.context.tokens.len());
        self.history.extend(node.into_iter().flat_map(|n| tree.path(n)));
        let logits = self.second.logits(row, self.context.vocab());
        let mut law = Law::new();
        self.sampler.distribution(logits, &self.history, &mut law)?;
        let key = self.context.key(tree, node);
        // The arrival times of a race are in the order of draws without replacement.
        let time = |&(token, p): &(TokenId, f64)| match self.power.is_finite() {
            true => scalar::ln(key.exponential(token)) - self.power * scalar::ln(p),
            false => -p,
        };
        let times: Vec<f64> = law.iter().map(time).collect();
        let mut order: Vec<u32> = (0..law.len() as u32).collect();
        order.sort_by(|&a, &b| times[a as usize].total_cmp(&times[b as usize]));
        Ok(Source::new(law, order))
    }
}

impl Oracle for Asked<'_, '_> {
    fn ask(&mut self, tree: &DraftTree, nodes: &[Option<u32>]) -> Result<Vec<Source>> {
        if nodes == [None] {
            return Ok(vec![self.source(tree, None, 0)?]);
        }
        let deepest = self.second.deepest(self.model);
        let fits = |n: &Option<u32>| n.is_some_and(|n| tree.depth(n) <= deepest);
        let row = |rows: &[u32], n: u32| rows.get(n as usize).copied();
        let guesses: Vec<(Option<u32>, TokenId)> = nodes
            .iter()
            .filter(|n| fits(n))
            .flatten()
            .map(|&n| (tree.parent(n).and_then(|p| row(&self.rows, p)), tree.token(n)))
            .collect();
        if guesses.is_empty() {
            return Ok(vec![Source::default(); nodes.len()]);
        }
        let first = self.second.grow(self.model, &guesses)?;
        self.rows.resize(tree.len(), 0);
        let mut computed = 0;
        let mut sources = Vec::with_capacity(nodes.len());
        for node in nodes {
            if !fits(node) {
                sources.push(Source::default());
                continue;
            }
            sources.push(self.source(tree, *node, computed)?);
            if let Some(n) = node {
                self.rows[*n as usize] = first + computed as u32;
            }
            computed += 1;
        }
        Ok(sources)
    }
}

/// The drafter.
#[derive(Debug)]
pub struct Grower {
    config: DySpec,
    second: SecondModel,
    /// Draft passes of a tree, over [`Grower::size`] of it: what recent trees needed.
    rate: f64,
}

impl Grower {
    /// With nothing seen yet.
    pub fn new(config: DySpec) -> Self {
        Self { config, second: SecondModel::default(), rate: 1.0 }
    }

    /// What the number of draft passes grows with: levels, or inner nodes.
    fn size(&self, nodes: usize) -> f64 {
        match self.config.form {
            Form::Threshold => scalar::ln(nodes as f64 + 1.0) / scalar::ln(2.0),
            Form::Budget => nodes as f64,
        }
    }
}

impl Draft for Grower {
    fn budget(&self) -> usize {
        self.config.budget
    }

    fn unread(&self, tokens: &[TokenId]) -> usize {
        self.second.unread(tokens)
    }

    fn passes(&self, nodes: usize) -> usize {
        // By counts of earlier trees; a tree of one level takes one pass.
        ((self.rate * self.size(nodes)).round() as usize).clamp(nodes.min(1), nodes)
    }

    fn draft(&mut self, context: &mut DraftContext<'_>, tree: &mut DraftTree) -> Result<()> {
        let model = context.draft.ok_or_else(|| Error::Method {
            method: ENTRY.slug.to_owned(),
            what: "needs a draft model, and the session has none".to_owned(),
        })?;
        if context.budget == 0
            || context.depth == 0
            || !self.second.follow(model, context.tokens)?
        {
            return Ok(());
        }
        let config = &self.config;
        let settings = Sampling {
            temperature: config.temperature,
            top_k: config.top_k,
            top_p: 1.0,
            min_p: 0.0,
            ..*context.sampling
        };
        let ranked = context.coupled && config.ranked;
        let power = f64::from(config.temperature) / f64::from(context.sampling.temperature);
        let mut oracle = Asked {
            model,
            second: &mut self.second,
            context,
            sampler: Sampler::new(settings)?,
            // At draft temperature 0 there is one token, and 0 / 0 means nothing.
            power: if ranked && !power.is_nan() { power } else { 1.0 },
            rows: Vec::new(),
            history: context.tokens.to_vec(),
        };
        let mut growth = Growth::default();
        let bounds = Bounds { nodes: context.budget, depth: context.depth };
        match config.form {
            Form::Budget => growth.best_first(bounds, &mut oracle)?,
            Form::Threshold => {
                let theta = match config.threshold {
                    0.0 => 1.0 / context.budget as f64,
                    theta => theta,
                };
                growth.level_by_level(theta, bounds, &mut oracle)?;
            }
        }
        // Keyed acceptance takes no ratio: the distributions need not be kept.
        growth.write(tree, !context.coupled);
        let rate = growth.asked as f64 / self.size(context.budget);
        self.rate += (rate - self.rate) / 8.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use tessera_core::Control;
    use tessera_core::dist::Key;
    use tessera_core::dist::chi::{ERROR_LEVEL, goodness};
    use tessera_core::entry::MethodCall;
    use tessera_engine::{Model, Outcome, Recipe, Request, generate};
    use tessera_testkit::texts::Question;
    use tessera_testkit::{Scripted, Words, laws};

    // Enumeration: the construction runs once for every way the draws can fall, and what the
    // card's verification makes of each tree is computed exactly.

    type Table = Vec<f64>;

    /// A random distribution after `path`, the same at every call.
    fn table(seed: u64, path: &[TokenId], vocab: usize) -> Table {
        let key = path.iter().fold(Key::new(seed, 0, 0), |k, &t| k.purpose(u64::from(t)));
        let weights: Table = (0..vocab as u32).map(|t| key.exponential(t)).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|w| w / sum).collect()
    }

    fn permutations(n: usize) -> Vec<Vec<u32>> {
        if n == 0 {
            return vec![Vec::new()];
        }
        let shorter = permutations(n - 1);
        let insert = |p: &Vec<u32>, at| [&p[..at], &[n as u32 - 1], &p[at..]].concat();
        shorter.iter().flat_map(|p| (0..n).map(move |at| insert(p, at))).collect()
    }

    /// The probability that draws without replacement from `d` come in this order.
    fn chance(d: &Table, order: &[u32]) -> f64 {
        let mut left = 1.0;
        order.iter().fold(1.0, |p, &t| {
            let q = d[t as usize];
            let p = if left > 1e-12 { p * q / left } else { p };
            left -= q;
            p
        })
    }

    /// Draws in given orders: one permutation for the root and one for each token below it.
    struct Injected<'a> {
        draft: &'a dyn Fn(&[TokenId]) -> Table,
        orders: &'a [&'a Vec<u32>],
    }

    impl Oracle for Injected<'_> {
        fn ask(&mut self, tree: &DraftTree, nodes: &[Option<u32>]) -> Result<Vec<Source>> {
            let source = |node: &Option<u32>| {
                let path = node.map_or(Vec::new(), |n| tree.path(n));
                let law = (0..).zip((self.draft)(&path)).collect();
                let which = path.first().map_or(0, |&t| t as usize + 1);
                Source::new(law, self.orders[which].clone())
            };
            Ok(nodes.iter().map(source).collect())
        }
    }

    /// The card's verification of the children of `parent`: (accepted node or none, token,
    /// probability).
    fn verify(
        tree: &DraftTree,
        parent: Option<u32>,
        target: &Table,
    ) -> Vec<(Option<u32>, u32, f64)> {
        let mut rest = target.clone();
        let mut d: Option<Table> = None;
        let (mut out, mut reached) = (Vec::new(), 1.0);
        for child in tree.children(parent) {
            let law = &tree.laws()[tree.drawn_from(child).unwrap() as usize];
            let d = d.get_or_insert_with(|| {
                let mut full = vec![0.0; target.len()];
                law.iter().for_each(|&(t, p)| full[t as usize] = p);
                full
            });
            let y = tree.token(child);
            let accept = (rest[y as usize] / d[y as usize]).min(1.0);
            out.push((Some(child), y, reached * accept));
            reached *= 1.0 - accept;
            rest.iter_mut().zip(&*d).for_each(|(r, d)| *r = (*r - d).max(0.0));
            let sum: f64 = rest.iter().sum();
            rest = match sum > 1e-12 {
                true => rest.iter().map(|r| r / sum).collect(),
                false => target.clone(),
            };
            d[y as usize] = 0.0;
            let sum: f64 = d.iter().sum();
            d.iter_mut().for_each(|d| *d /= sum);
        }
        out.extend((0..).zip(&rest).map(|(t, p)| (None, t, reached * p)));
        out
    }

    /// Adds to `law` the probabilities of the next two tokens given the tree, times `weight`.
    fn add_pairs(
        tree: &DraftTree,
        target: &dyn Fn(&[TokenId]) -> Table,
        weight: f64,
        law: &mut [f64],
    ) {
        let first = target(&[]);
        let vocab = first.len();
        for (node, a, p) in verify(tree, None, &first) {
            let second = target(&[a]);
            let next: Vec<(u32, f64)> = match node {
                Some(n) => verify(tree, Some(n), &second).iter().map(|v| (v.1, v.2)).collect(),
                None => (0..).zip(second).collect(),
            };
            for (b, q) in next {
                law[a as usize * vocab + b as usize] += weight * p * q;
            }
        }
    }

    type Build = dyn Fn(&mut dyn Oracle) -> DraftTree;

    fn grown(
        form: Form,
        theta: f64,
        nodes: usize,
        depth: usize,
    ) -> impl Fn(&mut dyn Oracle) -> DraftTree {
        move |oracle| {
            let mut growth = Growth::default();
            let bounds = Bounds { nodes, depth };
            match form {
                Form::Budget => growth.best_first(bounds, oracle).unwrap(),
                Form::Threshold => growth.level_by_level(theta, bounds, oracle).unwrap(),
            }
            let mut tree = DraftTree::new();
            growth.write(&mut tree, true);
            tree
        }
    }

    /// The law of the next two tokens, averaged over all draws of a draft with the given tables.
    fn average(
        vocab: usize,
        depth: usize,
        build: &Build,
        draft: &dyn Fn(&[TokenId]) -> Table,
        target: &dyn Fn(&[TokenId]) -> Table,
    ) -> Vec<f64> {
        let all = permutations(vocab);
        let below = if depth > 1 { vocab } else { 0 };
        let mut law = vec![0.0; vocab * vocab];
        for number in 0..all.len().pow(below as u32 + 1) {
            let mut rest = number;
            let mut orders = Vec::new();
            let mut weight = 1.0;
            for which in 0..=below {
                let order = &all[rest % all.len()];
                rest /= all.len();
                let path: Vec<TokenId> =
                    (which > 0).then(|| which as u32 - 1).into_iter().collect();
                weight *= chance(&draft(&path), order);
                orders.push(order);
            }
            let tree = build(&mut Injected { draft, orders: &orders });
            add_pairs(&tree, target, weight, &mut law);
        }
        law
    }

    fn pairs(vocab: usize, target: &dyn Fn(&[TokenId]) -> Table) -> Vec<f64> {
        (0..vocab as u32)
            .flat_map(|a| target(&[a]).into_iter().map(move |q| (a, q)).collect::<Vec<_>>())
            .map(|(a, q)| target(&[])[a as usize] * q)
            .collect()
    }

    fn far(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn averaged_over_the_draws_the_output_is_the_targets_law() {
        for (vocab, depth) in [(3, 1), (4, 1), (5, 1), (3, 2)] {
            for seed in 0..3 {
                let draft = |path: &[TokenId]| table(seed, path, vocab);
                let target = |path: &[TokenId]| table(seed + 100, path, vocab);
                let want = pairs(vocab, &target);
                for (form, theta, nodes) in [
                    (Form::Budget, 0.0, 1),
                    (Form::Budget, 0.0, 4),
                    (Form::Budget, 0.0, 64),
                    (Form::Threshold, 0.3, 64),
                    (Form::Threshold, 0.05, 64),
                    (Form::Threshold, 0.05, 4),
                ] {
                    let build = grown(form, theta, nodes, depth);
                    let got = average(vocab, depth, &build, &draft, &target);
                    let off = far(&got, &want);
                    assert!(off < 1e-12, "{vocab} {depth} {form:?} {theta} {nodes}: {off}");
                }
            }
        }
    }

    /// The card's example: D = (.5, .3, .2), T = (.2, .2, .6).
    fn example(build: &Build) -> Table {
        let draft = |_: &[TokenId]| vec![0.5, 0.3, 0.2];
        let target = |_: &[TokenId]| vec![0.2, 0.2, 0.6];
        let law = average(3, 1, build, &draft, &target);
        law.chunks(3).map(|row| row.iter().sum()).collect()
    }

    #[test]
    fn the_cards_example_and_its_negative_controls() {
        assert!(far(&example(&grown(Form::Threshold, 0.6, 64, 1)), &[0.2, 0.2, 0.6]) < 1e-12);
        // A drawn token that is dropped because it is improbable.
        let dropping: &Build = &|oracle| {
            let tree = grown(Form::Budget, 0.0, 1, 1)(oracle);
            if tree.token(0) == 2 { DraftTree::new() } else { tree }
        };
        assert!(far(&example(dropping), &[0.24, 0.24, 0.52]) < 1e-12);
        // The two most probable tokens, judged as if they had been drawn.
        let fixed: &Build = &|oracle| {
            let mut tree = grown(Form::Budget, 0.0, 1, 1)(oracle);
            tree.truncate(0);
            tree.add_drawn(None, 0, 0);
            tree.add_drawn(None, 1, 0);
            tree
        };
        assert!(far(&example(fixed), &[0.4, 0.0, 0.6]) < 1e-12);
    }

    #[test]
    fn one_guess_is_speculative_sampling_of_one_token() {
        // min(p, q) accepted, the rest from norm(max(p - q, 0)): by hand for the example.
        for form in [Form::Budget, Form::Threshold] {
            let build = grown(form, 0.9, 1, 1);
            let mut accepted = 0.0;
            for order in permutations(3) {
                let draft = |_: &[TokenId]| vec![0.5, 0.3, 0.2];
                let tree = build(&mut Injected { draft: &draft, orders: &[&order] });
                assert_eq!((tree.len(), tree.token(0)), (1, order[0]));
                let first = verify(&tree, None, &vec![0.2, 0.2, 0.6])[0];
                accepted += chance(&draft(&[]), &order) * first.2;
            }
            assert!((accepted - (0.2 + 0.2 + 0.2)).abs() < 1e-12);
        }
    }

    #[test]
    fn opportunities_are_taken_in_the_order_of_their_worth() {
        let mut compared = 0;
        for seed in 0..50 {
            let draft = |path: &[TokenId]| table(seed, path, 5);
            let orders = permutations(5);
            let pick = |i: u64| &orders[(Key::new(seed, 0, i as u32).bits(0) % 120) as usize];
            let chosen: Vec<&Vec<u32>> = (0..6).map(pick).collect();
            let mut growth = Growth::default();
            let mut oracle = Injected { draft: &draft, orders: &chosen };
            growth.best_first(Bounds { nodes: 12, depth: 9 }, &mut oracle).unwrap();
            let worth: Vec<f64> = growth.worth.iter().map(|w| w.0).collect();
            assert!(worth.windows(2).all(|w| w[0] >= w[1]), "{worth:?}");
            // The closed form equals the paper's recursion v0 = v R[y], v1 = v (1 - R[y]).
            for node in 0..12u32 {
                let parent = growth.tree.parent(node);
                let d = draft(&parent.map_or(Vec::new(), |p| growth.tree.path(p)));
                let mut v = parent.map_or(1.0, |p| {
                    let path = growth.tree.path(p);
                    (0..path.len()).map(|i| draft(&path[..i])[path[i] as usize]).product()
                });
                let mut rest = 1.0;
                for sibling in growth.tree.children(parent).take_while(|&s| s < node) {
                    let r = d[growth.tree.token(sibling) as usize] / rest;
                    v *= 1.0 - r;
                    rest -= d[growth.tree.token(sibling) as usize];
                }
                assert!((v - worth[node as usize]).abs() < 1e-12, "node {node}");
            }
            // Children together are at most as probable as their parent.
            for node in 0..12u32 {
                let q = |n: u32| {
                    let path = growth.tree.path(n);
                    (0..path.len()).map(|i| draft(&path[..i])[path[i] as usize]).product::<f64>()
                };
                let below: f64 = growth.tree.children(Some(node)).map(q).sum();
                assert!(below <= q(node) + 1e-12);
            }
            // With the last worth as threshold the other form builds the same tree, but for ties:
            // what follows the last sibling of all is worth as much as the sibling was.
            if growth.tree.children(growth.tree.parent(11)).count() == 5 {
                continue;
            }
            let mut whole = DraftTree::new();
            growth.write(&mut whole, true);
            let other = grown(Form::Threshold, worth[11], 64, 9)(&mut oracle);
            assert_eq!(other, whole, "seed {seed}");
            compared += 1;
        }
        assert!(compared > 40);
    }

    // The real drafter in the real loop.

    fn recipe(methods: &str) -> Recipe {
        let methods = methods.split_whitespace();
        let calls = methods.map(|m| MethodCall::parse(crate::ENTRIES, m).unwrap());
        Recipe::resolve(crate::ENTRIES, &calls.collect::<Vec<_>>()).unwrap()
    }

    fn run(toy: &Scripted, draft: &Scripted, methods: &str, sampling: Sampling) -> Outcome {
        let words = Words::bytes();
        let mut request = Request::new(vec![5, 6, 7, 8]);
        request.recipe = recipe(methods);
        request.sampling = sampling;
        request.max_tokens = Some(40);
        request.ignore_end = true;
        let model = Model { backbone: toy, vocabulary: &words, draft: Some(draft), filling: None };
        let never = AtomicBool::new(false);
        generate(model, &request, &mut |_| Control::Continue, &never).unwrap()
    }

    #[test]
    fn residual_acceptance_of_its_trees_keeps_the_law_of_whole_texts() {
        for vocab in [3, 4, 5] {
            let toy = Scripted::hashed(vocab, 64, 31, 2.0);
            let draft = Scripted::hashed(vocab, 64, 32, 2.0);
            let question =
                Question { prompt: vec![0, 1, 2], tokens: 3, sampling: Sampling::neutral() };
            let law = question.law(&toy).unwrap();
            for method in [
                "dyspec:form=budget,budget=1",
                "dyspec:form=budget,budget=3",
                "dyspec:form=budget,budget=6",
                "dyspec:form=threshold,threshold=0.3",
                "dyspec:form=threshold,budget=4",
                "dyspec:top_k=2",
            ] {
                let recipe = recipe(&format!("{method} residual"));
                let (counts, drafted) = question.count(&toy, &draft, &recipe, 6000).unwrap();
                let p = goodness(&counts, &law);
                assert!(p > ERROR_LEVEL && drafted > 0, "{vocab} {method}: p = {p}");
            }
        }
    }

    #[test]
    fn a_target_without_chance_says_what_greedy_says() {
        let toy = laws::repeating_toy();
        for draft in [Scripted::hashed(258, 256, 11, 6.0), laws::repeating_toy()] {
            let plain = run(&toy, &draft, "none", Sampling::greedy()).choices;
            for form in ["threshold", "budget"] {
                for budget in [1, 2, 7, 40] {
                    for accept in ["keyed", "residual"] {
                        let methods = format!("dyspec:form={form},budget={budget} {accept}");
                        let got = run(&toy, &draft, &methods, Sampling::greedy()).choices;
                        assert_eq!(got, plain, "{methods}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_draft_equal_to_the_target_is_accepted_by_its_first_children() {
        let sampling = Sampling { temperature: 0.6, ..Sampling::neutral() };
        for form in ["threshold", "budget"] {
            for accept in ["keyed", "residual"] {
                let toy = laws::repeating_toy();
                let methods = format!("dyspec:form={form},budget=1,top_k=0 {accept}");
                let stats = run(&toy, &laws::repeating_toy(), &methods, sampling).stats;
                assert!(stats.drafted_tokens >= 19);
                assert_eq!(stats.accepted_tokens, stats.drafted_tokens, "{methods}");
            }
        }
        // Ranked siblings come in the order of the target's own draw.
        for sampling in [Sampling::greedy(), Sampling::neutral(), Sampling::default()] {
            let toy = laws::repeating_toy();
            let methods = "dyspec:form=budget,budget=1,top_k=0";
            let stats = run(&toy, &laws::repeating_toy(), methods, sampling).stats;
            let off = stats.drafted_tokens - stats.accepted_tokens;
            let truncated = sampling == Sampling::default();
            assert!(off == 0 || truncated && off < 10, "{sampling:?}: {stats:?}");
        }
    }

    #[test]
    fn levels_are_batched_and_leaves_are_not_computed() {
        let toy = laws::repeating_toy();
        let draft = laws::repeating_toy();
        let stats = run(&toy, &draft, "dyspec:budget=12", Sampling::greedy()).stats;
        let steps = stats.passes - 1;
        assert!(stats.drafted_tokens >= 8 * steps, "{stats:?}");
        assert!(draft.passes() < stats.drafted_tokens / 2, "{} {stats:?}", draft.passes());
        // A draft without temperature has one token to offer at each place: a chain.
        let chain = run(&toy, &draft, "dyspec:temperature=0,budget=5", Sampling::greedy());
        assert_eq!(chain.stats.accepted_tokens, chain.stats.drafted_tokens);
        assert_eq!(chain.choices, run(&toy, &draft, "none", Sampling::greedy()).choices);
    }

    #[test]
    fn past_its_own_context_the_draft_is_silent() {
        let toy = laws::repeating_toy();
        let short = Scripted::hashed(258, 20, 11, 6.0);
        let outcome = run(&toy, &short, "dyspec", Sampling::neutral());
        assert_eq!(outcome.choices, run(&toy, &short, "none", Sampling::neutral()).choices);
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        for bad in ["budget=0", "threshold=1.5", "temperature=-1", "form=heap"] {
            let call = MethodCall::parse(crate::ENTRIES, &format!("dyspec:{bad}")).unwrap();
            let error = ENTRY.resolve(&call.settings).unwrap_err().to_string();
            assert!(error.contains(&bad[..4]), "{error}");
        }
    }
}
