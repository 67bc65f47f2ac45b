//! What policies that read few rows ask of the cpu backbone: indexed caches, ranking, sparse reads,
//! and attention among rows of each query head's own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use tessera_core::pass::{HeadEvidence, KeyReader, Pooling, ReadEvidence, Top};
use tessera_core::{
    Backbone, CacheOptions, Keep, KeepPlan, KeySet, KvStore, Mask, Pass, Position, Result, Reveal,
    Row, RowsOut, Segment, Sites, TokenId,
};
use tessera_model::cpu::{Arithmetic, CpuBackbone, Options};
use tessera_model::toy::{self, Flavour};

fn model(flavour: Flavour, arithmetic: Arithmetic) -> CpuBackbone {
    let blueprint = toy::blueprint(flavour);
    let weights = toy::weights(&blueprint, 11);
    CpuBackbone::load(blueprint, &weights, Options { threads: 2, arithmetic }, &|_| ()).unwrap()
}

fn tokens(n: usize, seed: u64) -> Vec<TokenId> {
    let mut r = toy::Stream::new(seed);
    (0..n).map(|_| r.below(97)).collect()
}

fn cache(m: &CpuBackbone) -> Box<dyn KvStore> {
    m.new_cache(CacheOptions::default()).unwrap()
}

/// Logits of all rows of a causal pass.
fn pass(
    m: &CpuBackbone,
    ids: &[TokenId],
    first: Position,
    cache: &mut dyn KvStore,
    keys: Option<KeySet<'_>>,
    sites: Option<&mut dyn Sites>,
) -> Vec<f32> {
    let positions: Vec<Position> = (first..first + ids.len() as u32).collect();
    let mut segment = Segment { keys, ..Segment::causal(ids, &positions, cache) };
    segment.rows_out = RowsOut::All;
    let mut segments = [segment];
    let mut pass = Pass::new(&mut segments);
    // Not the reference itself: its object may live longer than the pass.
    pass.sites = match sites {
        Some(sites) => Some(sites),
        None => None,
    };
    let mut reveal = Reveal::new();
    m.forward(&mut pass, &mut reveal).unwrap();
    reveal.all_logits().to_vec()
}

fn same(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}");
    let differ = (0..a.len()).find(|&i| a[i].to_bits() != b[i].to_bits());
    assert_eq!(differ, None, "{what}");
}

/// Only the definitions of a reader, so that its own way of ranking is left out.
struct Slow<'a>(&'a dyn KeyReader);

impl KeyReader for Slow<'_> {
    fn rows(&self, head: usize) -> usize {
        self.0.rows(head)
    }
    fn key(&self, head: usize, row: Row, out: &mut [f32]) {
        self.0.key(head, row, out);
    }
}

/// Reads the best `count` rows of every head and compares them with the definition.
struct Best<'a> {
    spec: &'a tessera_core::ModelSpec,
    columns: Vec<Vec<u16>>,
    count: usize,
    pooling: Pooling,
    /// Whether the backbone is told beforehand.
    told: bool,
    /// What was read, by layer and head.
    lists: Vec<Vec<Row>>,
}

impl<'a> Best<'a> {
    fn new(m: &'a CpuBackbone, count: usize, pooling: Pooling, told: bool) -> Self {
        let spec = m.spec();
        let columns = (0..spec.kv_heads as u16).map(|h| vec![1 + h, 9, 4, 15, 0]).collect();
        Self { spec, columns, count, pooling, told, lists: Vec::new() }
    }
}

impl Sites for Best<'_> {
    fn reads(&self, _: usize) -> bool {
        true
    }
    fn columns(&self, _: usize, _: usize) -> Option<&[Vec<u16>]> {
        self.told.then_some(&self.columns)
    }
    fn read(&mut self, evidence: &ReadEvidence<'_>) -> Result<Option<Vec<Vec<Row>>>> {
        let ask = Top {
            queries: evidence.queries,
            heads: self.spec.heads,
            head_dim: self.spec.head_dim,
            columns: &self.columns,
            pooling: self.pooling,
            rows: 0..evidence.cached,
            count: self.count,
        };
        let lists = evidence.keys.top(&ask)?;
        assert_eq!(lists, Slow(evidence.keys).top(&ask)?, "layer {}", evidence.layer);
        self.lists.extend(lists.clone());
        Ok(Some(lists))
    }
}

#[test]
fn reading_every_row_is_the_plain_pass() {
    for flavour in Flavour::ALL {
        let m = model(flavour, Arithmetic::Int8);
        let ids = tokens(60, 1);
        let (mut plain, mut indexed) = (cache(&m), cache(&m));
        for store in [&mut plain, &mut indexed] {
            pass(&m, &ids[..40], 0, store.as_mut(), None, None);
        }
        let before = indexed.bytes();
        let mut at = 40;
        for rows in [1, 1, 5] {
            let next = &ids[at..at + rows];
            let want = pass(&m, next, at as u32, plain.as_mut(), None, None);
            let mut best = Best::new(&m, 1000, Pooling::Sum, true);
            let got = pass(&m, next, at as u32, indexed.as_mut(), None, Some(&mut best));
            same(&format!("{flavour:?}, {rows} rows"), &got, &want);
            at += rows;
        }
        assert!(indexed.bytes() > before, "the index is counted");
        // An indexed cache serves plain passes, whatever happened to its rows meanwhile.
        let spec = m.spec();
        let keep: Vec<Row> = (0..42).filter(|r| r % 3 != 1).collect();
        let plan = KeepPlan::uniform(spec.layers, spec.kv_heads, Keep::rows(keep));
        let (mut a, mut b) = (plain, indexed.fork().unwrap());
        for store in [&mut a, &mut b] {
            store.rollback(1).unwrap();
            store.keep_last(6, &[0, 2, 3]).unwrap();
        }
        let on = |store: &mut dyn KvStore| pass(&m, &ids[50..], 50, store, None, None);
        same("after a rollback", &on(a.fork().unwrap().as_mut()), &on(b.fork().unwrap().as_mut()));
        for store in [&mut a, &mut b] {
            store.compact(&plan).unwrap();
        }
        same("compacted", &on(a.as_mut()), &on(b.as_mut()));
    }
}

#[test]
fn chosen_rows_are_the_best_and_the_others_as_if_masked() {
    for flavour in [Flavour::Llama, Flavour::Qwen] {
        let m = model(flavour, Arithmetic::F32);
        let ids = tokens(700, 2);
        let mut filled = cache(&m);
        pass(&m, &ids[..690], 0, filled.as_mut(), None, None);
        for (rows, pooling) in [(1, Pooling::Sum), (1, Pooling::Max), (4, Pooling::Max)] {
            let next = &ids[690..690 + rows];
            let read = |told| {
                let mut store = filled.fork().unwrap();
                let mut best = Best::new(&m, 60, pooling, told);
                let logits = pass(&m, next, 690, store.as_mut(), None, Some(&mut best));
                (logits, best.lists)
            };
            let (got, lists) = read(true);
            let (other, same_lists) = read(false);
            assert_eq!(lists, same_lists);
            same("with and without an index", &got, &other);
            let keys = KeySet::PerHead(&lists);
            let mut store = filled.fork().unwrap();
            let masked = pass(&m, next, 690, store.as_mut(), Some(keys), None);
            for (g, w) in got.iter().zip(&masked) {
                assert!((g - w).abs() < 1e-3, "{flavour:?}: {g} instead of {w}");
            }
        }
    }
}

#[test]
fn nodes_of_a_tree_read_the_chosen_rows_and_their_ancestors() {
    let m = model(Flavour::Qwen, Arithmetic::Int8);
    let ids = tokens(600, 3);
    let mut filled = cache(&m);
    pass(&m, &ids[..590], 0, filled.as_mut(), None, None);
    let parents = [None, Some(0), Some(0), Some(2)];
    // Whatever is asked, the same rows: so a path of the tree is its chain.
    struct Fixed(Vec<Vec<Row>>);
    impl Sites for Fixed {
        fn reads(&self, _: usize) -> bool {
            true
        }
        fn read(&mut self, _: &ReadEvidence<'_>) -> Result<Option<Vec<Vec<Row>>>> {
            Ok(Some(self.0.clone()))
        }
    }
    let lists = (0..m.spec().kv_heads as u32).map(|h| (h..590).step_by(9).collect()).collect();
    let mut fixed = Fixed(lists);
    let drafted = [5, 6, 7, 8];
    let mut store = filled.fork().unwrap();
    let mut segments = [Segment {
        mask: Mask::Tree { parent: &parents },
        rows_out: RowsOut::All,
        ..Segment::causal(&drafted, &[590, 591, 591, 592], store.as_mut())
    }];
    let mut tree = Pass { sites: Some(&mut fixed), ..Pass::new(&mut segments) };
    let mut reveal = Reveal::new();
    m.forward(&mut tree, &mut reveal).unwrap();
    let mut store = filled.fork().unwrap();
    let chain = pass(&m, &[5, 7, 8], 590, store.as_mut(), None, Some(&mut fixed));
    let vocab = m.spec().vocab;
    for (node, row) in [(0, 0), (2, 1), (3, 2)] {
        same("a node", reveal.logits(0, node), &chain[row * vocab..(row + 1) * vocab]);
    }
}

/// Lets the rows that `rows` lists per query head attend, from layer `from` on.
struct Among {
    rows: Option<Vec<Vec<Row>>>,
    from: usize,
    shares: Vec<f32>,
}

impl Sites for Among {
    fn attends(&self, layer: usize) -> bool {
        layer >= self.from
    }
    fn attend(&mut self, evidence: &HeadEvidence<'_>) -> Result<Option<Vec<Vec<Row>>>> {
        self.shares = evidence.shares.of_last(3)?;
        let (n, heads) = (evidence.cached + evidence.positions.len(), evidence.heads);
        Ok(Some(self.rows.clone().unwrap_or_else(|| vec![(0..n as Row).collect(); heads])))
    }
}

#[test]
fn all_rows_of_every_head_are_the_plain_pass_and_shares_are_probabilities() {
    for flavour in [Flavour::Llama, Flavour::Qwen] {
        let m = model(flavour, Arithmetic::Int8);
        let ids = tokens(640, 4);
        let mut store = cache(&m);
        let want = pass(&m, &ids, 0, store.as_mut(), None, None);
        for cut in [640, 600] {
            let mut all = Among { rows: None, from: 0, shares: Vec::new() };
            let mut store = cache(&m);
            let mut got = pass(&m, &ids[..cut], 0, store.as_mut(), None, Some(&mut all));
            if cut < 640 {
                let rest = &ids[cut..];
                got.extend(pass(&m, rest, cut as u32, store.as_mut(), None, Some(&mut all)));
            }
            same(&format!("{flavour:?}, cut at {cut}"), &got, &want);
            assert_eq!(all.shares.len(), m.spec().heads * 640);
            for head in all.shares.chunks(640) {
                assert!((head.iter().sum::<f32>() - 3.0).abs() < 1e-4);
            }
        }
    }
}

#[test]
fn rows_that_a_head_leaves_out_stay_in_the_cache() {
    let m = model(Flavour::Qwen, Arithmetic::Int8);
    let spec = m.spec().clone();
    let ids = tokens(200, 5);
    let (mut plain, mut sparse) = (cache(&m), cache(&m));
    let dense = pass(&m, &ids, 0, plain.as_mut(), None, None);
    let rows = (0..spec.heads as u32).map(|h| (h..200).step_by(2).take(90).chain([199]).collect());
    let mut among = Among { rows: Some(rows.collect()), from: 1, shares: Vec::new() };
    let got = pass(&m, &ids, 0, sparse.as_mut(), None, Some(&mut among));
    assert_ne!(got, dense);
    assert_eq!(sparse.table(), plain.table());
    for layer in 0..spec.layers {
        let key = |s: &dyn KvStore, row| s.read(layer, 0, row, false).unwrap();
        let equal = (0..200).all(|row| key(sparse.as_ref(), row) == key(plain.as_ref(), row));
        // Up to the first layer that selects, keys are those of the plain pass.
        assert_eq!(equal, layer <= 1, "layer {layer}");
    }
    for bad in [vec![vec![0, 1]; 1], vec![vec![1, 0]; spec.heads], vec![vec![200]; spec.heads]] {
        let mut among = Among { rows: Some(bad), from: 0, shares: Vec::new() };
        let positions: Vec<Position> = (0..200).collect();
        let mut store = cache(&m);
        let mut segments = [Segment::causal(&ids, &positions, store.as_mut())];
        let mut pass = Pass { sites: Some(&mut among), ..Pass::new(&mut segments) };
        assert!(m.forward(&mut pass, &mut Reveal::new()).is_err());
    }
}
