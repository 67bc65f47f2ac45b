//! Bit-equality, as design goes: a row does not depend on how many rows share the pass, on the
//! threads, on whether it was cached or computed again, nor on whether it is a tree's node or a
//! chain's. On toy models of all flavours, and on SmolLM2 where it is installed. The instruction
//! path is the one that `TESSERA_ISA` forces.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "helpers of tests")]

use tessera_core::{
    Backbone, CacheOptions, HeadSum, HiddenSite, Input, Keep, KeepPlan, KeyForm, KeySet, KvStore,
    Mask, Pass, Position, Received, Reveal, RowsOut, Segment, Taps, TokenId, Write,
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
fn a_compacted_cache_equals_an_explicit_read_set() {
    toys(|name, m| {
        let spec = m.spec();
        let mut full = cache(m);
        pass(m, &tokens(20, 97, 7), 0, full.as_mut());
        let kept = [0, 1, 9, 15, 16, 17, 18, 19];
        let mut compact = full.fork().unwrap();
        let plan = KeepPlan::uniform(spec.layers, spec.kv_heads, Keep::rows(kept));
        let before = compact.bytes();
        compact.compact(&plan).unwrap();
        assert!(compact.bytes() < before, "{name}: {before} bytes were not reduced");
        let run = |cache: &mut dyn KvStore, keys| {
            let mut segment = Segment::causal(&[3], &[20], cache);
            segment.keys = keys;
            let mut reveal = Reveal::new();
            m.forward(&mut Pass::new(&mut [segment]), &mut reveal).unwrap();
            reveal.all_logits().to_vec()
        };
        let masked = run(full.as_mut(), Some(KeySet::Rows(&kept)));
        same(name, &run(compact.as_mut(), None), &masked);
    });
}

#[test]
fn head_wise_compaction_equals_head_wise_read_sets() {
    toys(|name, m| {
        let spec = m.spec();
        let mut full = cache(m);
        pass(m, &tokens(12, 97, 8), 0, full.as_mut());
        let lists: Vec<Vec<u32>> = (0..spec.layers * spec.kv_heads)
            .map(|i| (0..12u32).filter(|r| !(r + i as u32).is_multiple_of(3)).take(5 + i).collect())
            .collect();
        let mut compact = full.fork().unwrap();
        let keeps = lists.iter().map(|l| Keep::rows(l.iter().copied())).collect();
        compact.compact(&KeepPlan::per_head(spec.layers, spec.kv_heads, keeps).unwrap()).unwrap();
        let run = |cache: &mut dyn KvStore, keys| {
            let mut segment = Segment::causal(&[3, 4], &[12, 13], cache);
            segment.keys = keys;
            let mut reveal = Reveal::new();
            m.forward(&mut Pass::new(&mut [segment]), &mut reveal).unwrap();
            reveal.all_logits().to_vec()
        };
        let masked = run(full.as_mut(), Some(KeySet::PerHead(&lists)));
        same(name, &run(compact.as_mut(), None), &masked);
        assert_eq!(compact.table().next_position(), 14);
        compact.rollback(2).unwrap();
        assert_eq!(compact.table().positions(0, 0).len(), lists[0].len());
    });
}

#[test]
fn plain_keys_at_their_own_positions_equal_rotated_ones() {
    toys(|name, m| {
        let ids = tokens(10, 97, 9);
        let mut rotated = cache(m);
        let whole = pass(m, &ids, 0, rotated.as_mut());
        let options = CacheOptions { capacity: 16, form: KeyForm::Plain };
        let mut plain = m.new_cache(options).unwrap();
        let got = pass(m, &ids, 0, plain.as_mut());
        // Rounded to f16 before the turn instead of after it: close, not equal.
        let far = whole.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < 0.05, "{name}: {far}");
        // New positions that are the old ones change nothing; shifted ones do.
        let again = |cache: &mut dyn KvStore| {
            let mut segment = Segment::causal(&[1], &[10], cache);
            segment.write = Write::Discard;
            let mut reveal = Reveal::new();
            m.forward(&mut Pass::new(&mut [segment]), &mut reveal).unwrap();
            reveal.all_logits().to_vec()
        };
        let before = again(plain.as_mut());
        plain.reposition(&(0..10).collect::<Vec<_>>()).unwrap();
        same(name, &before, &again(plain.as_mut()));
        plain.reposition(&[0, 1, 2, 3, 4, 5, 5, 6, 7, 9]).unwrap();
        assert_ne!(before, again(plain.as_mut()), "{name}");
    });
}

#[test]
fn a_failing_pass_leaves_the_cache_as_it_was() {
    toys(|name, m| {
        let mut store = cache(m);
        pass(m, &tokens(6, 97, 10), 0, store.as_mut());
        let saved = store.checkpoint().unwrap();
        let bad =
            [Segment { write: Write::Rows(&[9]), ..Segment::causal(&[1], &[6], store.as_mut()) }];
        for segment in bad {
            assert!(m.forward(&mut Pass::new(&mut [segment]), &mut Reveal::new()).is_err());
        }
        let unknown = [97];
        let segment = Segment::causal(&unknown, &[6], store.as_mut());
        let error = m.forward(&mut Pass::new(&mut [segment]), &mut Reveal::new()).unwrap_err();
        assert!(error.to_string().contains("97"), "{name}: {error}");
        let now = pass(m, &[1], 6, store.as_mut());
        store.restore(&saved).unwrap();
        same(name, &now, &pass(m, &[1], 6, store.as_mut()));
    });
}

#[test]
fn taps_show_and_change_nothing() {
    toys(|name, m| {
        let ids = tokens(7, 97, 11);
        let plain = pass(m, &ids, 0, cache(m).as_mut());
        let positions: Vec<_> = (0..7).collect();
        let mut store = cache(m);
        let mut segment = Segment::causal(&ids, &positions, store.as_mut());
        segment.rows_out = RowsOut::All;
        let mut segments = [segment];
        let mut all = Pass::new(&mut segments);
        all.taps = Taps {
            hidden: &[HiddenSite::Final, HiddenSite::Embedding, HiddenSite::After(1)],
            attention: &[1, 0],
            keys: &[0],
            queries: &[1],
            ..Taps::default()
        };
        let mut reveal = Reveal::new();
        m.forward(&mut all, &mut reveal).unwrap();
        same(name, &plain, reveal.all_logits());
        let shown = &reveal.segments[0];
        assert_eq!(shown.hidden.len(), 3);
        assert!(shown.hidden.iter().all(|h| h.len() == 7 * 64));
        assert_eq!((shown.keys[0].len(), shown.queries[0].len()), (7 * 32, 7 * 64));
        for block in &shown.attention {
            for (i, row) in block.chunks(7).enumerate() {
                let sum: f32 = row.iter().sum();
                assert!((sum - 1.0).abs() < 1e-4, "{name}: row {i} sums to {sum}");
            }
        }
    });
}

/// A tree over a cache whose heads hold different numbers of rows; with a refreshed row over a
/// whole one.
#[test]
fn attention_received_is_the_attention_summed() {
    let layers = [1, 0];
    let check = |name: &str, m: &CpuBackbone, mut segment: Segment<'_>, ragged: bool| {
        let (spec, rows) = (m.spec().clone(), segment.positions.len());
        segment.rows_out = RowsOut::Last;
        for heads in [HeadSum::Query, HeadSum::Key, HeadSum::All] {
            for by_row in [false, true] {
                let wanted = Received { layers: &layers, heads, by_row };
                let mut reveal = Reveal::new();
                let mut segments = [Segment { cache: None, ..segment_like(&segment) }];
                segments[0].cache = segment.cache.as_deref_mut().map(|c| c as &mut dyn KvStore);
                let mut pass = Pass::new(&mut segments);
                pass.taps = Taps { attention: &layers, received: wanted, ..Taps::default() };
                m.forward(&mut pass, &mut reveal).unwrap();
                let shown = &reveal.segments[0];
                let columns = shown.attention[0].len() / (rows * spec.heads);
                let groups = heads.groups(spec.heads, spec.kv_heads);
                for (attention, received) in shown.attention.iter().zip(&shown.received) {
                    let kept = if by_row { rows } else { 1 };
                    let mut want = vec![0f32; kept * groups * columns];
                    for (i, line) in attention.chunks(columns).enumerate() {
                        let row = if by_row { i / spec.heads } else { 0 };
                        let at = row * groups + i % spec.heads * groups / spec.heads;
                        let sum = &mut want[at * columns..(at + 1) * columns];
                        sum.iter_mut().zip(line).for_each(|(sum, p)| *sum += p);
                    }
                    assert_eq!(received.len(), want.len(), "{name}");
                    let far = received.iter().zip(&want).map(|(a, b)| (a - b).abs());
                    let far = far.fold(0.0, f32::max);
                    assert!(far < 2e-5, "{name}, {heads:?}, {by_row}, {ragged}: {far}");
                }
            }
        }
    };
    toys(|name, m| {
        let spec = m.spec();
        let mut store = cache(m);
        pass(m, &tokens(12, 97, 8), 0, store.as_mut());
        let mut refresh = Segment::causal(&[5, 6], &[3, 9], store.as_mut());
        refresh.write = Write::Rows(&[3, 9]);
        check(name, m, refresh, false);
        let keeps = (0..spec.layers * spec.kv_heads).map(|i| Keep::rows(i as u32..8 + i as u32));
        let plan = KeepPlan::per_head(spec.layers, spec.kv_heads, keeps.collect()).unwrap();
        store.compact(&plan).unwrap();
        let keeps = (0..spec.layers * spec.kv_heads).map(|i| Keep::rows(0..5 + i as u32));
        let plan = KeepPlan::per_head(spec.layers, spec.kv_heads, keeps.collect()).unwrap();
        store.compact(&plan).unwrap();
        let mut tree = Segment::causal(&[3, 4, 5, 6], &[12, 13, 13, 14], store.as_mut());
        tree.mask = Mask::Tree { parent: &[None, Some(0), Some(0), Some(2)] };
        tree.write = Write::Discard;
        check(name, m, tree, true);
    });
}

/// A segment without its cache.
fn segment_like<'a>(from: &Segment<'a>) -> Segment<'a> {
    Segment {
        input: from.input,
        positions: from.positions,
        mask: from.mask,
        keys: from.keys,
        bias: from.bias,
        write: from.write,
        rows_out: from.rows_out,
        condition: from.condition,
        cache: None,
    }
}

#[test]
fn keys_turned_back_and_ranked_anew_are_those_of_a_shorter_text() {
    toys(|name, m| {
        let mut rotated = cache(m);
        pass(m, &tokens(10, 97, 9), 0, rotated.as_mut());
        let before = rotated.fork().unwrap();
        let mut plain = rotated.fork().unwrap();
        m.unrotate(plain.as_mut()).unwrap();
        m.unrotate(plain.as_mut()).unwrap();
        assert_eq!(plain.table().form(), KeyForm::Plain);
        let again = |cache: &mut dyn KvStore, at: Position| {
            let positions = [at];
            let mut segment = Segment::causal(&[1], &positions, cache);
            segment.write = Write::Discard;
            let mut reveal = Reveal::new();
            m.forward(&mut Pass::new(&mut [segment]), &mut reveal).unwrap();
            reveal.all_logits().to_vec()
        };
        let far =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // Turned back and forth again: close to what it was.
        let whole = again(rotated.as_mut(), 10);
        let turned = again(plain.as_mut(), 10);
        assert!(far(&whole, &turned) < 0.05, "{name}: {}", far(&whole, &turned));
        assert_eq!(before.read(1, 1, 3, true), plain.read(1, 1, 3, true));
        // Everything nearer to one another by three: only differences of positions count.
        let keep = KeepPlan::uniform(2, 2, Keep::rows(3..10));
        let mut ranked = plain.fork().unwrap();
        ranked.compact(&keep).unwrap();
        let holes = again(ranked.as_mut(), 10);
        ranked.rerank().unwrap();
        assert_eq!(ranked.table().positions(0, 0), [0, 1, 2, 3, 4, 5, 6]);
        let near = again(ranked.as_mut(), 7);
        assert!(far(&holes, &near) < 0.05, "{name}: {}", far(&holes, &near));
        assert!(far(&holes, &again(ranked.as_mut(), 10)) > 0.0, "{name}");
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
