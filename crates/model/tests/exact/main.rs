//! Bit-equality, as design goes: a row does not depend on how many rows share the pass, on the
//! threads, on whether it was cached or computed again, nor on whether it is a tree's node or a
//! chain's. On toy models of all flavours, and on SmolLM2 where it is installed. The instruction
//! path is the one that `TESSERA_ISA` forces.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "helpers of tests")]

mod caches;
mod taps;

use tessera_core::{
    Backbone, CacheOptions, HiddenSite, Input, KeySet, KvStore, Mask, Pass, Position, Reveal,
    RowsOut, Segment, Taps, TokenId, Write,
};
use tessera_model::arch::Blueprint;
use tessera_model::cpu::{Arithmetic, CpuBackbone, Options};
use tessera_model::store::testing::find_test_model;
use tessera_model::toy::{self, Flavour};
use tessera_model::{LoadError, TensorSource, open_weights};

fn load(
    blueprint: &Blueprint,
    source: &dyn TensorSource,
    threads: usize,
) -> Result<CpuBackbone, LoadError> {
    let options = Options { threads, arithmetic: Arithmetic::Int8 };
    CpuBackbone::load(blueprint.clone(), source, options, &|_| ())
}

/// Calls `f` with each toy model on one and on two threads.
fn toys(f: impl Fn(&str, &CpuBackbone)) {
    for flavour in Flavour::ALL {
        let blueprint = toy::blueprint(flavour);
        let weights = toy::weights(&blueprint, 7);
        for threads in [1, 2] {
            f(
                &format!("{flavour:?}, {threads} threads"),
                &load(&blueprint, &weights, threads).unwrap(),
            );
        }
    }
}

fn tokens(n: usize, vocab: usize, seed: u64) -> Vec<TokenId> {
    let mut r = toy::Stream::new(seed);
    (0..n).map(|_| r.below(vocab as u32)).collect()
}

fn cache(m: &dyn Backbone) -> Box<dyn KvStore> {
    m.new_cache(CacheOptions::default()).unwrap()
}

/// Logits of every row of one causal pass.
fn pass(m: &dyn Backbone, ids: &[TokenId], first: Position, cache: &mut dyn KvStore) -> Vec<f32> {
    let positions: Vec<Position> = (first..first + ids.len() as u32).collect();
    let mut segment = Segment::causal(ids, &positions, cache);
    segment.rows_out = RowsOut::All;
    let mut reveal = Reveal::new();
    m.forward(&mut Pass::new(&mut [segment]), &mut reveal).unwrap();
    reveal.all_logits().to_vec()
}

fn same(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}");
    let differ = a.iter().zip(b).position(|(x, y)| x.to_bits() != y.to_bits());
    if let Some(i) = differ {
        panic!("{what}: value {i} of {} is {} here and {} there", a.len(), a[i], b[i]);
    }
}

/// The logits of `ids` whole and in pieces of the given sizes are the same bits.
fn pieces_equal_whole(name: &str, m: &CpuBackbone, ids: &[TokenId], sizes: &[usize]) {
    let whole = pass(m, ids, 0, cache(m).as_mut());
    for &size in sizes {
        let mut store = cache(m);
        let mut cut = Vec::new();
        let mut at = 0;
        for piece in ids.chunks(size) {
            cut.extend(pass(m, piece, at, store.as_mut()));
            at += piece.len() as u32;
        }
        same(&format!("{name}, pieces of {size}"), &whole, &cut);
    }
}

#[test]
fn a_row_does_not_depend_on_how_many_rows_share_the_pass() {
    toys(|name, m| pieces_equal_whole(name, m, &tokens(67, 97, 1), &[1, 2, 3, 8, 64]));
}

#[test]
fn one_thread_and_three_give_the_same_bits() {
    for flavour in Flavour::ALL {
        let blueprint = toy::blueprint(flavour);
        let weights = toy::weights(&blueprint, 3);
        let ids = tokens(33, 97, 2);
        let run = |threads| {
            let m = load(&blueprint, &weights, threads).unwrap();
            pass(&m, &ids, 0, cache(&m).as_mut())
        };
        let one = run(1);
        same("2 threads", &one, &run(2));
        same("3 threads", &one, &run(3));
    }
}

#[test]
fn contexts_across_the_chunk_border_are_the_same_cached_and_recomputed() {
    let blueprint = toy::blueprint(Flavour::Llama);
    let weights = toy::weights(&blueprint, 5);
    let m = load(&blueprint, &weights, 2).unwrap();
    let ids = tokens(515, 97, 3);
    pieces_equal_whole("llama", &m, &ids, &[511, 512, 513]);
    let mut store = cache(&m);
    let whole = pass(&m, &ids, 0, store.as_mut());
    store.rollback(5).unwrap();
    let again = pass(&m, &ids[510..], 510, store.as_mut());
    same("after a rollback", &whole[510 * 97..], &again);
}

#[test]
fn a_tree_node_equals_its_chain() {
    toys(|name, m| {
        let context = tokens(21, 97, 4);
        let mut store = cache(m);
        pass(m, &context, 0, store.as_mut());
        // Two branches below a common root, and a second root.
        let ids = [5, 6, 7, 8, 9, 10];
        let parent = [None, Some(0), Some(0), Some(2), Some(1), None];
        let positions = [21, 22, 22, 23, 23, 21];
        let mut reveal = Reveal::new();
        let mut segment = Segment::causal(&ids, &positions, store.as_mut());
        segment.mask = Mask::Tree { parent: &parent };
        segment.rows_out = RowsOut::All;
        segment.write = Write::Discard;
        m.forward(&mut Pass::new(&mut [segment]), &mut reveal).unwrap();
        assert_eq!(store.table().len(), 21);
        for (node, chain) in [(3, vec![5, 7, 8]), (4, vec![5, 6, 9]), (5, vec![10])] {
            let mut fork = store.fork().unwrap();
            let logits = pass(m, &chain, 21, fork.as_mut());
            let last = &logits[(chain.len() - 1) * 97..];
            same(&format!("{name}, node {node}"), last, reveal.logits(0, node));
        }
    });
}

/// The last layer leaves rows out that nobody asked for: nothing else may change.
#[test]
fn wanted_rows_are_the_same_whatever_else_is_wanted() {
    toys(|name, m| {
        let spec = m.spec();
        let mut context = cache(m);
        pass(m, &tokens(20, 97, 10), 0, context.as_mut());
        let (ids, other) = (tokens(7, 97, 11), tokens(3, 97, 12));
        let (new, old): (Vec<Position>, Vec<Position>) = ((20..27).collect(), (3..10).collect());
        let bits: Vec<bool> = (0..7 * 27).map(|i| i % 27 == 20 + i / 27 || i % 3 > 0).collect();
        let explicit = Mask::Explicit { bits: &bits, columns: 27 };
        let block = Mask::Block { block: &[0, 0, 1, 1, 1, 2, 2] };
        let parent = [None, Some(0), Some(0), Some(1), Some(2), Some(2), Some(5)];
        let (tree, deep) = (Mask::Tree { parent: &parent }, [20, 21, 21, 22, 22, 22, 23]);
        let lists: Vec<Vec<u32>> = (0..spec.layers * spec.kv_heads)
            .map(|i| (0..20u32).filter(|r| !(r + i as u32).is_multiple_of(3)).collect())
            .collect();
        let per_head = Some(KeySet::PerHead(&lists));
        let refresh = Write::Rows(&[3, 4, 5, 6, 7, 8, 9]);
        for (mask, keys, write, positions) in [
            (Mask::Causal, None, Write::Append, &new[..]),
            (Mask::Causal, per_head, Write::Append, &new),
            (Mask::Bidirectional, None, Write::Append, &new),
            (Mask::Bidirectional, None, refresh, &old),
            (block, None, Write::Append, &new),
            (explicit, None, Write::Append, &new),
            (tree, None, Write::Discard, &deep),
        ] {
            let what = format!("{name}, {mask:?}, {write:?}");
            // Logits of both segments, the keys of the last layer, and what a later row makes of
            // the cache.
            let run = |first: RowsOut<'_>, second: RowsOut<'_>| {
                let (mut a, mut b) = (context.fork().unwrap(), context.fork().unwrap());
                let mut segment = Segment::causal(&ids, positions, a.as_mut());
                (segment.mask, segment.keys, segment.write) = (mask, keys, write);
                segment.rows_out = first;
                let mut beside = Segment::causal(&other, &[20, 21, 22], b.as_mut());
                beside.rows_out = second;
                let mut segments = [segment, beside];
                let last = [spec.layers - 1];
                let mut pass_of = Pass::new(&mut segments);
                pass_of.taps = Taps { keys: &last, ..Taps::default() };
                let mut reveal = Reveal::new();
                m.forward(&mut pass_of, &mut reveal).unwrap();
                let keys = [reveal.segments[0].keys.concat(), reveal.segments[1].keys.concat()];
                let after = [pass(m, &[1], 40, a.as_mut()), pass(m, &[1], 40, b.as_mut())];
                (reveal.all_logits().to_vec(), keys.concat(), after.concat())
            };
            let (logits, keys, after) = run(RowsOut::All, RowsOut::All);
            let row = |i: usize| &logits[i * 97..(i + 1) * 97];
            for (first, second, want) in [
                (RowsOut::Last, RowsOut::Last, vec![6, 9]),
                (RowsOut::Rows(&[5, 1, 1]), RowsOut::None, vec![5, 1, 1]),
                (RowsOut::None, RowsOut::All, vec![7, 8, 9]),
                (RowsOut::None, RowsOut::None, vec![]),
            ] {
                let (got, same_keys, same_after) = run(first, second);
                same(&what, &want.iter().flat_map(|&i| row(i)).copied().collect::<Vec<_>>(), &got);
                same(&format!("{what}: keys"), &keys, &same_keys);
                same(&format!("{what}: after"), &after, &same_after);
            }
        }
    });
}

#[test]
fn segments_that_share_a_pass_do_not_see_each_other() {
    toys(|name, m| {
        let (a, b) = (tokens(9, 97, 5), tokens(14, 97, 6));
        let alone = [pass(m, &a, 0, cache(m).as_mut()), pass(m, &b, 0, cache(m).as_mut())];
        let (mut ca, mut cb) = (cache(m), cache(m));
        let (pa, pb): (Vec<_>, Vec<_>) = ((0..9).collect(), (0..14).collect());
        let mut segments =
            [Segment::causal(&a, &pa, ca.as_mut()), Segment::causal(&b, &pb, cb.as_mut())];
        segments.iter_mut().for_each(|s| s.rows_out = RowsOut::All);
        let mut reveal = Reveal::new();
        m.forward(&mut Pass::new(&mut segments), &mut reveal).unwrap();
        same(name, &alone.concat(), reveal.all_logits());
    });
}

#[test]
fn query_rows_leave_no_trace_and_embeddings_equal_their_tokens() {
    toys(|name, m| {
        let ids = tokens(5, 97, 12);
        let positions: Vec<_> = (0..5).collect();
        let mut reveal = Reveal::new();
        let mut store = cache(m);
        let mut segments = [Segment::causal(&ids, &positions, store.as_mut())];
        let mut tapped = Pass::new(&mut segments);
        tapped.taps.hidden = &[HiddenSite::Embedding];
        m.forward(&mut tapped, &mut reveal).unwrap();
        let by_token = reveal.all_logits().to_vec();
        let embedded = reveal.segments[0].hidden[0].clone();
        let mut other = cache(m);
        let mut segment = Segment::causal(&ids, &positions, other.as_mut());
        segment.input = Input::Embeddings(&embedded);
        m.forward(&mut Pass::new(&mut [segment]), &mut reveal).unwrap();
        same(name, &by_token, reveal.all_logits());

        let mut segment = Segment::causal(&ids[..1], &[5], other.as_mut());
        segment.input = Input::Queries(&embedded[..64]);
        m.forward(&mut Pass::new(&mut [segment]), &mut reveal).unwrap();
        assert_eq!(other.table().len(), 5);
        same(name, &pass(m, &[2], 5, store.as_mut()), &pass(m, &[2], 5, other.as_mut()));
    });
}

#[test]
fn smollm2_is_the_same_in_every_cut() {
    let Some(path) = find_test_model("smollm2") else { return };
    let weights = open_weights(&path).unwrap();
    let blueprint = Blueprint::new(weights.hyper_params());
    let ids = tokens(70, 49_000, 13);
    let mut first: Option<Vec<f32>> = None;
    for threads in [1, 2] {
        let m = load(&blueprint, &weights, threads).unwrap();
        pieces_equal_whole("smollm2", &m, &ids, &[1, 2, 3, 8, 64]);
        let whole = pass(&m, &ids, 0, cache(&m).as_mut());
        match &first {
            None => first = Some(whole),
            Some(one) => same("smollm2, 2 threads", one, &whole),
        }
    }
}
