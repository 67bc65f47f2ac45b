//! Internals shown to those who ask: they change nothing and agree with one another.

use tessera_core::{
    Backbone, HeadSum, HiddenSite, Keep, KeepPlan, KvStore, Mask, Pass, Received, Reveal, RowsOut,
    Segment, Taps, Write,
};
use tessera_model::cpu::CpuBackbone;

use super::{cache, pass, same, tokens, toys};

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
