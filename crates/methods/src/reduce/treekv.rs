//! Long because the rule is tested against a second, slower version of itself.
//!
//! Title: TreeKV: Smooth Key-Value Cache Compression with Tree Structures
//! Authors: He et al.
//! Year: 2025
//! Id: arXiv:2501.04987
//! Implemented: a cache of fixed size: a few first rows and a window of recent ones always stay; what
//!   leaves the window enters a region where, for each row that comes, one of two neighbours leaves:
//!   the one that received less attention on average since it came, the older one of equals. The place
//!   moves on cyclically (`idx mod c + 1`), so old text becomes sparse gradually. A prompt longer than
//!   the cache is reduced by the same rule over blocks of rows, scored by the attention of its last
//!   block. Rows take their ranks as positions; keys are turned back at the first eviction. Scores
//!   are averaged over the heads of a layer, or of each key head apart.
//! Left out: texts beyond the model's context, which the loop does not make. Not known from the paper,
//!   so ours: the size of a block; that the rows of a block keep their own sums as first scores; that
//!   rows which do not fill a block join the window; that the prompt's passes count for no score where
//!   the prompt fits. Under speculation a step's rows are scored in order, all against the cache as it
//!   was before the step.
//! Tag: TreeKV

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::dist::Key;
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, Place, Role, Settings,
    Site, defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{
    CacheTable, Capabilities, CommittedStep, Error, Eviction, HeadSum, Position, Reduce,
    ReduceContext, Result, Row,
};

use crate::observation::{Onlookers, observe};
use crate::retention::{Budget, WATCHES, evict, within};

/// Settings of TreeKV.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TreeKv {
    /// Rows of the cache. 1 to 16777216; without `ratio`, 1024 (the paper's) if left out.
    pub budget: Option<usize>,
    /// Share of the prompt's rows that is evicted instead: as many rows stay from then on. 0 (the
    /// plain run) to below 1.
    pub ratio: Option<f64>,
    /// First rows that always stay. 0 to 4096; the paper: 4.
    pub sinks: usize,
    /// Most recent rows that always stay; half the budget less the sinks if left out, which is the
    /// paper's 508 of 1024. 0 to 16777216.
    pub recent: Option<usize>,
    /// Rows of a block of a prompt that is longer than the cache, and rows that look at it. 1 to 512.
    pub block: usize,
    /// Which of two neighbours leaves: the one that received less `attention` (the paper), always the
    /// `younger` (the tree alone, the paper's ablation), or one at `random` (ours, a control of the
    /// choice).
    pub leaves: Leaves,
    /// Whether each key head keeps rows of its own; otherwise those of a layer keep the same.
    pub per_head: bool,
    /// Whether the rows that stay take their ranks as positions, as in the paper.
    pub rerank: bool,
}

/// Which of two neighbours leaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Leaves {
    /// The one that received less attention on average since it came; the older one of equals.
    #[default]
    Attention,
    /// The younger one.
    Younger,
    /// Either, by a coin that the request's seed decides.
    Random,
}

impl Default for TreeKv {
    fn default() -> Self {
        Self {
            budget: None,
            ratio: None,
            sinks: 4,
            recent: None,
            block: 32,
            leaves: Leaves::Attention,
            per_head: false,
            rerank: true,
        }
    }
}

/// Rows kept if neither `budget` nor `ratio` is given.
const ROWS: usize = 1024;

impl MethodConfig for TreeKv {
    fn validate(&self) -> std::result::Result<(), String> {
        Budget::new(self.budget, self.ratio, ROWS)?;
        within("sinks", self.sinks, 0..=4096)?;
        within("recent", self.recent.unwrap_or(0), 0..=1 << 24)?;
        within("block", self.block, 1..=512)
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "treekv",
    aliases: &["tree-kv"],
    name: "TreeKV",
    paper: Some(Paper {
        title: "TreeKV: Smooth Key-Value Cache Compression with Tree Structures",
        authors: "He et al.",
        year: 2025,
        id: "arXiv:2501.04987",
    }),
    summary: "Forgets one of two neighbours at a moving place, so that old text becomes sparse.",
    kind: Kind::Policy,
    places: &[
        Place { role: Role::Reduce, site: Site::AfterPrefill },
        Place { role: Role::Reduce, site: Site::Decode },
    ],
    exactness: Exactness::Lossy { what: "every token after the first one that is forgotten" },
    needs: Needs {
        capabilities: Capabilities { plain_keys: true, ..WATCHES.capabilities },
        ..Needs::NONE
    },
    claims: &[
        Claim {
            setting: "Llama-2-7B, PG19 to 16K tokens, cache of 1024 rows",
            metric: "perplexity (TOVA: 7.15)",
            value: 6.91,
            unit: "ppl",
            place: "language modelling table, as third-party notes quote it",
        },
        Claim {
            setting: "Llama-2-7B, text of 16K tokens, cache of 1024 rows",
            metric: "smaller cache",
            value: 16.0,
            unit: "x",
            place: "abstract",
        },
    ],
    schema: schema_of::<TreeKv>,
    defaults: defaults_of::<TreeKv>,
    neutral: Some(|| Settings::from_iter([("ratio".to_owned(), json!(0.0))])),
    read: resolve_as::<TreeKv>,
    build: |settings| {
        let config = read_as::<TreeKv>("treekv", settings)?;
        Ok(Method::Reduce(Box::new(Tree::new(config)?)))
    },
};

/// A row's attention received while it was in the cache: sum and number of queries.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Score {
    sum: f32,
    count: u32,
}

impl Score {
    fn mean(self) -> f32 {
        self.sum / self.count.max(1) as f32
    }
}

/// How a cache of fixed size is divided.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Layout {
    cap: usize,
    sinks: usize,
    recent: usize,
}

impl Layout {
    fn new(config: &TreeKv, cap: usize) -> Self {
        // The region where rows leave holds at least one.
        let sinks = config.sinks.min(cap - 1);
        let recent = config.recent.unwrap_or((cap / 2).saturating_sub(sinks));
        Self { cap, sinks, recent: recent.min(cap - sinks - 1) }
    }

    /// Capacity of the region where rows leave.
    fn managed(&self) -> usize {
        self.cap - self.sinks - self.recent
    }
}

/// One pair eviction: the place, from 0, of the one that leaves a region of `capacity` + 1 at cursor
/// `at` (from 1), which moves on.
fn step(at: &mut usize, capacity: usize, younger: impl Fn(usize) -> bool) -> usize {
    let older = *at - 1;
    *at = *at % capacity + 1;
    if younger(older) { older + 1 } else { older }
}

/// The policy.
#[derive(Debug, Clone)]
pub struct Tree {
    config: TreeKv,
    budget: Budget,
    /// Known once the prompt is; `None` for no limit.
    layout: Option<Layout>,
    /// One list per layer, or per layer and key head; as long as the cache's rows.
    lists: Vec<Vec<Score>>,
    /// The cursor, from 1; all lists lose a row at the same time.
    at: usize,
    /// Coins of [`Leaves::Random`], and how many were thrown for each list: a step of several rows
    /// throws those of as many steps.
    coins: (Key, u32),
}

impl Tree {
    /// With these settings.
    ///
    /// # Errors
    /// [`Error::Method`] for a budget out of range.
    pub fn new(config: TreeKv) -> Result<Self> {
        let budget = Budget::of_method("treekv", config.budget, config.ratio, ROWS)?;
        let coins = (Key::new(0, 0, 0), 0);
        Ok(Self { config, budget, layout: None, lists: Vec::new(), at: 1, coins })
    }

    fn by_attention(&self) -> bool {
        self.config.leaves == Leaves::Attention
    }

    /// Whether the younger one of a pair of list `list` leaves at the row that is the `made`th, where
    /// the two received `means`.
    fn younger_leaves(&self, list: usize, made: u32, means: impl Fn() -> (f32, f32)) -> bool {
        match self.config.leaves {
            Leaves::Attention => {
                let (older, younger) = means();
                older > younger
            }
            Leaves::Younger => true,
            Leaves::Random => self.coins.0.purpose(list as u64).uniform(made) < 0.5,
        }
    }

    fn heads(&self) -> HeadSum {
        if self.config.per_head { HeadSum::Key } else { HeadSum::All }
    }

    /// Groups of heads that have a list of their own.
    fn groups(&self, table: &CacheTable) -> usize {
        if self.config.per_head { table.kv_heads() } else { 1 }
    }

    /// Begins with the rows of the prompt, without scores.
    fn begin(&mut self, table: &CacheTable) -> Result<()> {
        let held = table.len();
        let level = (0..table.layers())
            .all(|l| (0..table.kv_heads()).all(|h| table.positions(l, h).len() == held));
        if !level {
            let what = "needs a cache whose heads all hold as many rows; another method has \
                        changed that. Next: leave that method out";
            return Err(Error::Method { method: "treekv".to_owned(), what: what.to_owned() });
        }
        let lists = table.layers() * self.groups(table);
        self.lists = vec![vec![Score::default(); held]; lists];
        self.at = 1;
        self.layout = self.budget.of(held).map(|cap| Layout::new(&self.config, cap));
        Ok(())
    }

    /// The eviction that keeps `rows` of each list.
    fn evict(&self, table: &CacheTable, rows: &[Vec<Row>]) -> Result<Eviction> {
        let groups = self.groups(table);
        evict(table, self.config.rerank, |layer, head, _| {
            rows[layer * groups + head * groups / table.kv_heads()].clone()
        })
    }

    /// Reduces a prompt longer than the cache block by block; returns the rows kept of each list.
    fn blocks(&mut self, layout: Layout) -> Vec<Vec<Row>> {
        let held = self.lists[0].len();
        let capacity = layout.managed();
        // Small regions need small blocks, or there is nothing to choose.
        let block = self.config.block.min((capacity / 4).max(1));
        let region = held - layout.sinks - layout.recent;
        let whole = region / block;
        let room = ((capacity - region % block) / block).max(1);
        let keep = |(i, list): (usize, &Vec<Score>)| {
            let start = |b: usize| layout.sinks + b * block;
            let mean = |b: usize| {
                let rows = &list[start(b)..start(b + 1)];
                rows.iter().map(|s| s.mean()).sum::<f32>()
            };
            let (mut kept, mut at): (Vec<usize>, usize) = (Vec::new(), 1);
            for next in 0..whole {
                kept.push(next);
                if kept.len() > room {
                    let victim = step(&mut at, room, |older| {
                        let means = || (mean(kept[older]), mean(kept[older + 1]));
                        self.younger_leaves(i, next as u32, means)
                    });
                    kept.remove(victim);
                }
            }
            let middle = kept.iter().flat_map(|&b| start(b)..start(b + 1));
            let rows = (0..layout.sinks).chain(middle).chain(start(whole)..held);
            rows.map(|row| row as Row).collect()
        };
        let rows = self.lists.iter().enumerate().map(keep).collect();
        self.coins.1 = whole as u32;
        rows
    }
}

impl Reduce for Tree {
    fn fork(&self) -> Box<dyn Reduce> {
        Box::new(self.clone())
    }

    fn received(&self) -> Option<HeadSum> {
        let limited = self.budget != Budget::Ratio(0.0);
        (limited && self.by_attention()).then(|| self.heads())
    }

    fn after_prefill(&mut self, context: &mut ReduceContext<'_>) -> Result<Option<Eviction>> {
        self.begin(context.target.cache.table())?;
        let held = context.target.cache.table().len();
        self.coins = (context.key(), 0);
        let Some(layout) = self.layout.filter(|layout| held > layout.cap) else { return Ok(None) };
        if self.by_attention() {
            let count = self.config.block.min(held);
            let position = context.target.position - count as Position;
            let tokens = &context.prompt[context.prompt.len() - count..];
            let rows = Onlookers { tokens, position, below: position, linked: true };
            let seen = observe(context, rows, self.heads())?;
            let groups = self.groups(context.target.cache.table());
            for (i, list) in self.lists.iter_mut().enumerate() {
                let (layer, group) = (i / groups, i % groups);
                let before = held - count;
                let sums = seen.cached(layer, group, before).iter().chain(seen.own(layer, group));
                for (row, (score, &sum)) in list.iter_mut().zip(sums).enumerate() {
                    let missed = row.saturating_sub(before);
                    *score = Score { sum, count: (count - missed) as u32 };
                }
            }
        }
        let rows = self.blocks(layout);
        for (list, rows) in self.lists.iter_mut().zip(&rows) {
            *list = rows.iter().map(|&row| list[row as usize]).collect();
        }
        self.evict(context.target.cache.table(), &rows).map(Some)
    }

    fn committed(&mut self, step_made: &CommittedStep<'_>) -> Result<Option<Eviction>> {
        let Some(layout) = self.layout else { return Ok(None) };
        let first = step_made.table.len() - step_made.rows;
        let groups = self.groups(step_made.table);
        let by_attention = self.by_attention();
        // Where the rows of each list are in the cache, as it is until the eviction.
        let mut places: Vec<Vec<Row>> =
            self.lists.iter().map(|list| (0..list.len() as Row).collect()).collect();
        let mut lists = std::mem::take(&mut self.lists);
        let mut evicted = false;
        for row in 0..step_made.rows {
            let full = lists[0].len() + 1 > layout.cap;
            let mut at = self.at;
            for (i, (list, places)) in lists.iter_mut().zip(&mut places).enumerate() {
                list.push(Score::default());
                places.push((first + row) as Row);
                if by_attention {
                    let given = step_made.received.of(i / groups, row, i % groups);
                    for (score, &place) in list.iter_mut().zip(&*places) {
                        score.sum += given[place as usize];
                        score.count += 1;
                    }
                }
                if full {
                    at = self.at;
                    let region = &list[layout.sinks..];
                    let victim = layout.sinks
                        + step(&mut at, layout.managed(), |older| {
                            let means = || (region[older].mean(), region[older + 1].mean());
                            self.younger_leaves(i, self.coins.1, means)
                        });
                    list.remove(victim);
                    places.remove(victim);
                }
            }
            self.at = at;
            self.coins.1 += 1;
            evicted |= full;
        }
        self.lists = lists;
        match evicted {
            true => self.evict(step_made.table, &places).map(Some),
            false => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_core::dist::Key;
    use tessera_core::{KeyForm, StepReceived, TokenId};

    const LAYERS: usize = 2;
    const HEADS: usize = 2;

    /// The attention that the query of `token` gives to `other`, in a layer, from a group of heads.
    fn given(token: TokenId, other: TokenId, layer: usize, group: usize) -> f32 {
        Key::new(7, (layer * HEADS + group) as u32, token).uniform(other) as f32
    }

    /// Streams tokens 0.. through the policy, `rows` a step; returns which ones each list keeps.
    fn stream(tree: &mut Tree, tokens: TokenId, rows: usize) -> Vec<Vec<TokenId>> {
        let mut table = CacheTable::new(LAYERS, HEADS, KeyForm::Plain);
        tree.begin(&table).unwrap();
        let groups = tree.groups(&table);
        let mut lists: Vec<Vec<TokenId>> = vec![Vec::new(); LAYERS * groups];
        let text: Vec<TokenId> = (0..tokens).collect();
        for step in text.chunks(rows) {
            let cached = table.len();
            table.append(step);
            let columns = table.len();
            let mut layers = vec![Vec::new(); LAYERS];
            for (layer, block) in layers.iter_mut().enumerate() {
                for (row, &token) in step.iter().enumerate() {
                    for group in 0..groups {
                        let list = lists[layer * groups + group].iter();
                        let seen = list.chain(&step[..=row]);
                        block.extend(seen.map(|&other| given(token, other, layer, group)));
                        block.resize(block.len().next_multiple_of(columns), 0.0);
                    }
                }
            }
            lists.iter_mut().for_each(|list| list.extend_from_slice(step));
            let made = CommittedStep {
                table: &table,
                rows: step.len(),
                tokens: &text[..=step[step.len() - 1] as usize],
                prompt: 0,
                seed: 0,
                choice: 0,
                received: StepReceived { layers: &layers, groups, cached, columns },
            };
            if let Some(eviction) = tree.committed(&made).unwrap() {
                assert!(eviction.rerank && eviction.plan.is_level());
                for (i, list) in lists.iter_mut().enumerate() {
                    let keep = &eviction.plan.keep(i / groups, i % groups).rows;
                    *list = keep.iter().map(|&row| list[row as usize]).collect();
                }
                table.compact(&eviction.plan).unwrap();
                table.rerank().unwrap();
            }
        }
        lists
    }

    fn tree(config: TreeKv) -> Tree {
        Tree::new(config).unwrap()
    }

    #[test]
    fn the_structure_without_scores_is_the_known_one() {
        for (capacity, tokens, want) in [
            (4, 5, vec![0, 2, 3, 4]),
            (4, 6, vec![0, 2, 4, 5]),
            (4, 7, vec![0, 2, 4, 6]),
            (4, 8, vec![0, 2, 4, 6]),
            (4, 12, vec![0, 4, 8, 10]),
            (4, 16, vec![0, 8, 12, 14]),
            (4, 32, vec![0, 24, 28, 30]),
            (8, 64, vec![0, 40, 48, 52, 56, 58, 60, 62]),
            (8, 100, vec![0, 80, 88, 92, 96, 97, 98, 99]),
        ] {
            let config = TreeKv {
                budget: Some(capacity),
                sinks: 0,
                recent: Some(0),
                leaves: Leaves::Younger,
                ..TreeKv::default()
            };
            for rows in [1, 3, 7] {
                let lists = stream(&mut tree(config.clone()), tokens, rows);
                assert!(lists.iter().all(|list| *list == want), "{capacity} {tokens}: {lists:?}");
            }
        }
    }

    #[test]
    fn after_a_sweep_all_but_the_oldest_lie_within_the_horizon() {
        for capacity in [16usize, 64] {
            let config = TreeKv {
                budget: Some(capacity),
                sinks: 0,
                recent: Some(0),
                leaves: Leaves::Younger,
                ..TreeKv::default()
            };
            let tokens = capacity * 40;
            let list = &stream(&mut tree(config), tokens as TokenId, 1)[0];
            let age = tokens - list[1] as usize;
            assert_eq!(age, capacity * capacity.ilog2() as usize);
        }
    }

    /// The rule as it is published, over a list of tokens; one list, no step of several rows.
    fn reference(config: &TreeKv, tokens: TokenId, layer: usize, group: usize) -> Vec<TokenId> {
        let (cap, sinks) = (config.budget.unwrap(), config.sinks);
        let managed = cap - sinks - config.recent.unwrap();
        let (mut list, mut idx): (Vec<(TokenId, Vec<f32>)>, usize) = (Vec::new(), 1);
        for token in 0..tokens {
            list.push((token, Vec::new()));
            list.iter_mut().for_each(|(other, got)| got.push(given(token, *other, layer, group)));
            if list.len() > cap {
                let mean = |i: usize| {
                    let got = &list[sinks + i - 1].1;
                    got.iter().sum::<f32>() / got.len() as f32
                };
                let victim = if mean(idx) > mean(idx + 1) { idx + 1 } else { idx };
                assert!((1..=managed).contains(&idx));
                list.remove(sinks + victim - 1);
                idx = idx % managed + 1;
            }
        }
        list.into_iter().map(|(token, _)| token).collect()
    }

    #[test]
    fn of_two_neighbours_the_one_with_the_smaller_mean_leaves() {
        for per_head in [false, true] {
            let config = TreeKv {
                budget: Some(24),
                sinks: 3,
                recent: Some(9),
                per_head,
                ..TreeKv::default()
            };
            let lists = stream(&mut tree(config.clone()), 300, 1);
            let groups = if per_head { HEADS } else { 1 };
            for (i, list) in lists.iter().enumerate() {
                assert_eq!(*list, reference(&config, 300, i / groups, i % groups));
                assert_eq!((list.len(), &list[..3]), (24, &[0, 1, 2][..]));
                assert_eq!(list[15..], (291..300).collect::<Vec<_>>());
            }
            assert_ne!(lists[0], lists[1]);
        }
    }

    #[test]
    fn scores_are_means_over_the_time_in_the_cache() {
        let config = TreeKv { budget: Some(9), sinks: 1, recent: Some(3), ..TreeKv::default() };
        let mut tree = tree(config);
        let lists = stream(&mut tree, 40, 1);
        for (layer, list) in lists.iter().enumerate() {
            for (&token, score) in list.iter().zip(&tree.lists[layer]) {
                let got: Vec<f32> = (token..40).map(|q| given(q, token, layer, 0)).collect();
                assert_eq!(score.count as usize, got.len());
                let mean = got.iter().sum::<f32>() / got.len() as f32;
                assert!((score.mean() - mean).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn a_coin_per_list_and_row_decides_where_chance_does() {
        let config = TreeKv {
            budget: Some(24),
            sinks: 2,
            recent: Some(6),
            per_head: true,
            leaves: Leaves::Random,
            ..TreeKv::default()
        };
        let with = |seed: u64, rows: usize| {
            let mut tree = tree(config.clone());
            tree.coins.0 = Key::new(seed, 0, 0);
            stream(&mut tree, 300, rows)
        };
        let lists = with(1, 1);
        for list in &lists {
            assert_eq!((list.len(), &list[..2]), (24, &[0, 1][..]));
            assert_eq!(list[18..], (294..300).collect::<Vec<_>>());
        }
        assert!(lists[0] != lists[1] && lists[0] != lists[2]);
        assert_ne!(lists, with(2, 1));
        // Steps of several rows throw the same coins.
        assert_eq!(lists, with(1, 3));
        let tree = tree(config);
        let younger = (0..2000).filter(|&n| tree.younger_leaves(1, n, || (0.0, 0.0))).count();
        // 2000 throws: standard deviation 22.
        assert!(younger.abs_diff(1000) < 110, "{younger}");
    }

    #[test]
    fn a_long_prompt_is_reduced_by_blocks_within_the_budget() {
        for (cap, held) in [(64, 1000), (64, 65), (100, 777), (9, 50), (2, 10), (1, 10)] {
            let mut tree = tree(TreeKv { budget: Some(cap), ..TreeKv::default() });
            let layout = Layout::new(&tree.config, cap);
            let score = |row: usize| Score { sum: given(0, row as u32, 0, 0), count: 1 };
            tree.lists = vec![(0..held).map(score).collect(); 3];
            for rows in tree.blocks(layout) {
                assert!(rows.len() <= cap, "{} of {cap}", rows.len());
                assert!(4 * rows.len() >= 3 * cap, "{} of {cap}", rows.len());
                assert!(rows.windows(2).all(|w| w[0] < w[1]));
                assert!((0..layout.sinks as Row).all(|row| rows.contains(&row)));
                let recent = (held - layout.recent) as Row..held as Row;
                assert!(recent.clone().all(|row| rows.contains(&row)));
            }
        }
    }

    #[test]
    fn the_papers_layout_and_its_limits() {
        let layout = |config: &TreeKv, cap| Layout::new(config, cap);
        let paper = layout(&TreeKv::default(), 1024);
        assert_eq!((paper.sinks, paper.recent, paper.managed()), (4, 508, 512));
        let wide = TreeKv { recent: Some(9000), ..TreeKv::default() };
        for cap in 1..12 {
            assert!(layout(&TreeKv::default(), cap).managed() >= 1);
            assert_eq!(layout(&wide, cap).managed(), 1);
        }
        for (bad, name) in [
            (TreeKv { budget: Some(0), ..TreeKv::default() }, "budget"),
            (TreeKv { ratio: Some(1.0), ..TreeKv::default() }, "ratio"),
            (TreeKv { sinks: 5000, ..TreeKv::default() }, "sinks"),
            (TreeKv { recent: Some(1 << 25), ..TreeKv::default() }, "recent"),
            (TreeKv { block: 0, ..TreeKv::default() }, "block"),
        ] {
            let error = bad.validate().unwrap_err();
            assert!(error.starts_with(name), "{error}");
        }
    }
}
