//! Laws that every backbone obeys, whatever it computes: a prompt may be split, a cache rolled
//! back, forked and compacted, a tree is its chains, an error leaves no trace.

use super::case::Record;
use super::naive::Naive;
use tessera_core::pass::{ReadEvidence, RowEvidence};
use tessera_core::{
    Backbone, CacheOptions, Error, Input, Keep, KeepPlan, KeyForm, KeySet, KvStore, Mask, Pass,
    Position, Result, Reveal, Row, RowsOut, Segment, Sites, Write,
};
#[cfg(feature = "candle")]
use tessera_model::candle::{CandleBackbone, CandleOptions};
use tessera_model::cpu::{Arithmetic, CpuBackbone, Options};
use tessera_model::toy::{self, Flavour, Stream};

/// Every backbone, each flavour; the reference too, since laws judge it as well.
fn every(mut law: impl FnMut(&dyn Backbone)) {
    for flavour in Flavour::ALL {
        let blueprint = toy::blueprint(flavour);
        let weights = toy::weights(&blueprint, 3);
        law(&Naive::new(&blueprint, &weights, true));
        #[cfg(feature = "candle")]
        {
            let options = CandleOptions::default();
            law(&CandleBackbone::from_weights(blueprint.clone(), &weights, options).unwrap());
        }
        let options = Options { threads: 2, arithmetic: Arithmetic::F32 };
        law(&CpuBackbone::load(blueprint, &weights, options, &|_| ()).unwrap());
    }
}

fn tokens(n: usize, seed: u64) -> Vec<u32> {
    let mut stream = Stream::new(seed);
    (0..n).map(|_| stream.below(97)).collect()
}

fn cache(backbone: &dyn Backbone, form: KeyForm) -> Box<dyn KvStore> {
    backbone.new_cache(CacheOptions { capacity: 0, form }).unwrap()
}

/// Logits of `tokens` appended to `cache` as a chain, one row each.
fn append(backbone: &dyn Backbone, cache: &mut dyn KvStore, tokens: &[u32]) -> Vec<f32> {
    let next = cache.table().next_position();
    let positions: Vec<Position> = (next..next + tokens.len() as u32).collect();
    let segment = Segment::causal(tokens, &positions, cache);
    logits(backbone, Segment { rows_out: RowsOut::All, ..segment }).unwrap()
}

fn logits(backbone: &dyn Backbone, segment: Segment<'_>) -> Result<Vec<f32>> {
    let mut reveal = Reveal::new();
    let mut segments = [segment];
    backbone.forward(&mut Pass::new(&mut segments), &mut reveal)?;
    Ok(reveal.all_logits().to_vec())
}

#[track_caller]
fn near(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        // A key that rounds to the other half-precision neighbour moves a logit by about 1e-4.
        assert!((x - y).abs() < 1e-3, "value {i}: {x} and {y}");
    }
}

/// All that a cache holds.
fn content(cache: &dyn KvStore) -> Record {
    let mut record = Record::default();
    record.cache("cache", cache);
    record
}

#[track_caller]
fn same(a: &Record, b: &Record) {
    a.assert_near(b, 0.0, "cache");
    assert_eq!(a.distance(b), 0.0);
}

#[test]
fn a_prompt_may_be_split() {
    every(|backbone| {
        for form in [KeyForm::Rotated, KeyForm::Plain] {
            let text = tokens(20, 1);
            let mut whole = cache(backbone, form);
            let expected = append(backbone, &mut *whole, &text);
            for cuts in [vec![10, 10], vec![1, 18, 1], vec![3; 6]] {
                let mut parts = cache(backbone, form);
                let mut found = Vec::new();
                let mut at = 0;
                for n in cuts {
                    found.extend(append(backbone, &mut *parts, &text[at..at + n]));
                    at += n;
                }
                near(&expected[..found.len()], &found);
            }
        }
    });
}

#[test]
fn rollback_and_replay_are_the_first_time_again() {
    every(|backbone| {
        let mut kept = cache(backbone, KeyForm::Rotated);
        append(backbone, &mut *kept, &tokens(9, 1));
        let before = content(&*kept);
        let first = append(backbone, &mut *kept, &tokens(4, 2));
        append(backbone, &mut *kept, &tokens(3, 3));
        kept.rollback(7).unwrap();
        same(&before, &content(&*kept));
        assert_eq!(first, append(backbone, &mut *kept, &tokens(4, 2)));
        assert!(kept.rollback(14).is_err());
        assert_eq!(kept.table().len(), 13);
        kept.rollback(13).unwrap();
        assert!(kept.table().is_empty());
        append(backbone, &mut *kept, &tokens(9, 1));
        same(&before, &content(&*kept));
    });
}

#[test]
fn forks_and_checkpoints_are_independent() {
    every(|backbone| {
        let mut one = cache(backbone, KeyForm::Rotated);
        append(backbone, &mut *one, &tokens(8, 1));
        let before = content(&*one);
        let saved = one.checkpoint().unwrap();
        let mut two = one.fork().unwrap();
        let expected = append(backbone, &mut *two, &tokens(3, 2));
        two.compact(&KeepPlan::uniform(2, 2, Keep::rows([0, 10]))).unwrap();
        same(&before, &content(&*one));
        append(backbone, &mut *one, &tokens(5, 3));
        one.restore(&saved).unwrap();
        same(&before, &content(&*one));
        assert_eq!(expected, append(backbone, &mut *one, &tokens(3, 2)));
        assert_eq!(two.table().positions(1, 1), [0, 10]);
        let plain = cache(backbone, KeyForm::Plain);
        assert!(one.restore(&plain.checkpoint().unwrap()).is_err() || backbone.name() == "naive");
    });
}

#[test]
fn a_tree_is_its_chains() {
    every(|backbone| {
        let (text, branch) = (tokens(9, 1), tokens(6, 2));
        // 0 - 1 - 3 - 5
        //   \ 2 - 4
        let parent = [None, Some(0), Some(0), Some(1), Some(2), Some(3)];
        let positions = [9, 10, 10, 11, 11, 12];
        let mut held = cache(backbone, KeyForm::Rotated);
        append(backbone, &mut *held, &text);
        let tree = logits(
            backbone,
            Segment {
                mask: Mask::Tree { parent: &parent },
                write: Write::Discard,
                rows_out: RowsOut::All,
                ..Segment::causal(&branch, &positions, &mut *held)
            },
        )
        .unwrap();
        for path in [vec![0, 1, 3, 5], vec![0, 2, 4]] {
            let mut chain = held.fork().unwrap();
            let along: Vec<u32> = path.iter().map(|&i| branch[i]).collect();
            let expected = append(backbone, &mut *chain, &along);
            for (i, &row) in path.iter().enumerate() {
                near(&expected[i * 97..(i + 1) * 97], &tree[row * 97..(row + 1) * 97]);
            }
        }
    });
}

#[test]
fn discarded_rows_leave_the_cache_as_it_was() {
    every(|backbone| {
        let mut held = cache(backbone, KeyForm::Rotated);
        append(backbone, &mut *held, &tokens(7, 1));
        let before = content(&*held);
        let text = tokens(3, 2);
        for input in [Input::Tokens(&text), Input::Queries(&[0.5; 192])] {
            let write = match input {
                Input::Tokens(_) => Write::Discard,
                // Appending query-only rows appends nothing.
                _ => Write::Append,
            };
            let segment = Segment::causal(&text, &[7, 8, 9], &mut *held);
            logits(backbone, Segment { input, write, ..segment }).unwrap();
            same(&before, &content(&*held));
        }
    });
}

#[test]
fn compacted_rows_are_an_explicit_read_set() {
    every(|backbone| {
        let keeps: Vec<Vec<Row>> =
            vec![vec![0, 2, 3, 8], vec![1, 8], vec![0, 4, 5, 6, 7], vec![2, 3, 9]];
        for uniform in [true, false] {
            let mut held = cache(backbone, KeyForm::Rotated);
            append(backbone, &mut *held, &tokens(10, 1));
            let text = tokens(2, 2);
            let keys = if uniform { KeySet::Rows(&keeps[0]) } else { KeySet::PerHead(&keeps) };
            let segment = Segment::causal(&text, &[10, 11], &mut *held);
            let write = Write::Discard;
            let rows_out = RowsOut::All;
            let by_keys =
                logits(backbone, Segment { keys: Some(keys), write, rows_out, ..segment }).unwrap();
            let plan = if uniform {
                KeepPlan::uniform(2, 2, Keep::rows(keeps[0].clone()))
            } else {
                let all = keeps.iter().map(|k| Keep::rows(k.clone())).collect();
                KeepPlan::per_head(2, 2, all).unwrap()
            };
            held.compact(&plan).unwrap();
            let segment = Segment::causal(&text, &[10, 11], &mut *held);
            let by_plan = logits(backbone, Segment { rows_out, ..segment }).unwrap();
            near(&by_keys, &by_plan);
        }
    });
}

#[test]
fn rows_refreshed_with_their_own_content_stay() {
    every(|backbone| {
        let text = tokens(8, 1);
        let mut held = cache(backbone, KeyForm::Rotated);
        append(backbone, &mut *held, &text);
        let before = content(&*held);
        let rows = [5, 2, 6];
        let again: Vec<u32> = rows.iter().map(|&r| text[r as usize]).collect();
        let segment = Segment::causal(&again, &rows, &mut *held);
        logits(backbone, Segment { write: Write::Rows(&rows), ..segment }).unwrap();
        before.assert_near(&content(&*held), 1e-3, backbone.name());
    });
}

#[test]
fn an_error_leaves_every_cache_as_it_was() {
    struct Refuses;
    impl Sites for Refuses {
        fn reads(&self, layer: usize) -> bool {
            layer == 1
        }
        fn read(&mut self, _: &ReadEvidence<'_>) -> Result<Option<Vec<Vec<Row>>>> {
            Err(Error::plan("refused"))
        }
    }
    struct Wrong(Vec<u32>);
    impl Sites for Wrong {
        fn keeps(&self, _: usize) -> bool {
            true
        }
        fn keep(&mut self, _: &RowEvidence<'_>) -> Result<Option<Vec<u32>>> {
            Ok(Some(self.0.clone()))
        }
    }
    every(|backbone| {
        let text = tokens(3, 2);
        let mut one = cache(backbone, KeyForm::Rotated);
        let mut two = cache(backbone, KeyForm::Rotated);
        append(backbone, &mut *one, &tokens(6, 1));
        append(backbone, &mut *two, &tokens(6, 3));
        let before = [content(&*one), content(&*two)];
        let mut sites: Vec<Option<Box<dyn Sites>>> = vec![Some(Box::new(Refuses)), None];
        if backbone.name() != "naive" {
            // The reference trusts the tests' own policies.
            sites.push(Some(Box::new(Wrong(vec![2, 1]))));
            sites.push(Some(Box::new(Wrong(vec![3]))));
        }
        for mut site in sites {
            // Without a site, the second segment is at fault: its token is out of range.
            let bad = if site.is_some() { text.clone() } else { vec![1, 2, 97] };
            let mut segments = [
                Segment::causal(&text, &[6, 7, 8], &mut *one),
                Segment::causal(&bad, &[6, 7, 8], &mut *two),
            ];
            let mut pass = Pass::new(&mut segments);
            pass.sites = site.as_deref_mut().map(|s| s as &mut dyn Sites);
            assert!(backbone.forward(&mut pass, &mut Reveal::new()).is_err());
            same(&before[0], &content(&*one));
            same(&before[1], &content(&*two));
        }
    });
}
