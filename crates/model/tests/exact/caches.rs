//! Caches that were compacted, held plain, turned back or left by a failing pass.

use tessera_core::{
    Backbone, CacheOptions, Keep, KeepPlan, KeyForm, KeySet, KvStore, Pass, Position, Reveal,
    Segment, Write,
};

use super::{cache, pass, same, tokens, toys};

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
