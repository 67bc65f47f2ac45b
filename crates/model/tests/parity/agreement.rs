//! The same passes through every backbone and through a naive reference in `f64`.
//!
//! A case runs on one backbone and writes down all it can see: logits, taps, the cache's rows and
//! what decoding on top of them gives. Then the records are compared. `TESSERA_LONG=1` runs the
//! whole product of cases; otherwise every mask meets every prior, write and key form, while the
//! other choices take turns.

use super::case::{self, Case, InputKind, KeysKind, MaskKind, Prior, Record, WriteKind};
use super::naive::Naive;
use tessera_core::pass::{ReadEvidence, RowEvidence};
use tessera_core::{
    Backbone, CacheOptions, HeadSum, HiddenSite, Input, Keep, KeepPlan, KeyForm, Layers, Mask,
    Merge, Pass, Received, Result, Reveal, Row, RowsOut, Segment, Sites, Taps, Write,
};
use tessera_model::arch::Blueprint;
#[cfg(feature = "candle")]
use tessera_model::candle::{CandleBackbone, CandleOptions};
use tessera_model::cpu::{Arithmetic, CpuBackbone, Options};
use tessera_model::toy::{self, Flavour, Stream, ToyWeights};

/// A backbone under test.
struct Tested {
    name: &'static str,
    /// Makes it in its most exact mode.
    make: fn(&Blueprint, &ToyWeights) -> Box<dyn Backbone>,
    /// Cases it refuses by name.
    refuses: fn(&Case) -> bool,
    /// How far off it may be with plain keys, which the cpu backbone rounds a second time after
    /// it has turned them.
    plain: f32,
}

/// How far off a backbone may be: see [`Record::assert_near`].
const NEAR: f32 = 1e-3;

const BACKBONES: &[Tested] = &[
    #[cfg(feature = "candle")]
    Tested { name: "candle", make: candle, refuses: |_| false, plain: NEAR },
    Tested { name: "cpu", make: cpu, refuses: needs_equal_heads, plain: 4.0 * NEAR },
];

#[cfg(feature = "candle")]
fn candle(blueprint: &Blueprint, weights: &ToyWeights) -> Box<dyn Backbone> {
    let options = CandleOptions::default();
    Box::new(CandleBackbone::from_weights(blueprint.clone(), weights, options).unwrap())
}

fn cpu(blueprint: &Blueprint, weights: &ToyWeights) -> Box<dyn Backbone> {
    let options = Options { threads: 2, arithmetic: Arithmetic::F32 };
    Box::new(CpuBackbone::load(blueprint.clone(), weights, options, &|_| ()).unwrap())
}

/// The cpu backbone takes biases, explicit masks and refreshed rows only where all heads of the
/// cache hold the same rows.
fn needs_equal_heads(case: &Case) -> bool {
    let by_column = case.bias || case.mask == MaskKind::Explicit;
    case.prior == Prior::Ragged && (by_column || case.write == WriteKind::Refresh)
}

/// Runs `script` on the reference and on every backbone, for one blueprint, and compares.
fn compare(
    what: &str,
    form: KeyForm,
    blueprint: &Blueprint,
    script: &mut dyn FnMut(&dyn Backbone) -> Record,
) {
    let weights = toy::weights(blueprint, 7);
    let expected = script(&Naive::new(blueprint, &weights, true));
    assert!(!expected.is_empty());
    for tested in BACKBONES {
        let found = script(&*(tested.make)(blueprint, &weights));
        let near = if form == KeyForm::Plain { tested.plain } else { NEAR };
        expected.assert_near(&found, near, &format!("{}: {what}", tested.name));
    }
}

fn every_flavour(what: &str, script: impl FnMut(&dyn Backbone) -> Record) {
    every_flavour_in(KeyForm::Rotated, what, script);
}

fn every_flavour_in(form: KeyForm, what: &str, mut script: impl FnMut(&dyn Backbone) -> Record) {
    for flavour in Flavour::ALL {
        let what = format!("{flavour:?}, {form:?} keys, {what}");
        compare(&what, form, &toy::blueprint(flavour), &mut script);
    }
}

#[test]
fn every_mask_meets_every_prior_write_and_key_form() {
    let whole = std::env::var_os("TESSERA_LONG").is_some();
    for flavour in Flavour::ALL {
        let blueprint = toy::blueprint(flavour);
        let weights = toy::weights(&blueprint, 7);
        let reference = Naive::new(&blueprint, &weights, true);
        let made: Vec<_> = BACKBONES.iter().map(|t| (t, (t.make)(&blueprint, &weights))).collect();
        let cases = Case::product(whole);
        assert!(cases.len() > 90);
        for case in &cases {
            let expected = case.run(&reference);
            for (tested, backbone) in &made {
                if (tested.refuses)(case) {
                    continue;
                }
                let what = format!("{}: {flavour:?}, {case:?}", tested.name);
                let near = if case.form == KeyForm::Plain { tested.plain } else { NEAR };
                expected.assert_near(&case.run(&**backbone), near, &what);
            }
        }
    }
}

#[test]
fn two_segments_share_a_pass() {
    for (first, second) in [
        (MaskKind::Causal, MaskKind::Tree),
        (MaskKind::Block, MaskKind::Bidirectional),
        (MaskKind::Explicit, MaskKind::Causal),
    ] {
        every_flavour(&format!("{first:?} beside {second:?}"), |backbone| {
            let case = |mask, prior, seed| Case { mask, prior, seed, ..Case::plain() };
            let cases = [case(first, Prior::Chain, 1), case(second, Prior::Compacted, 2)];
            let uncached = case(second, Prior::None, 3);
            case::run_together(backbone, &[cases[0], cases[1], uncached])
        });
    }
}

#[test]
fn a_subset_of_the_layers() {
    let only = [1];
    for layers in [Layers::First(0), Layers::First(1), Layers::Only(&only), Layers::Only(&[])] {
        every_flavour(&format!("{layers:?}"), |backbone| {
            let mut record = Record::default();
            let mut cache = backbone.new_cache(CacheOptions::default()).unwrap();
            let (tokens, positions) = ([5, 9, 2, 40, 8], [0, 1, 2, 3, 4]);
            for (write, cut) in [(Write::Append, 5), (Write::Rows(&[1, 3]), 2)] {
                let mut segments = [Segment {
                    write,
                    rows_out: RowsOut::All,
                    ..Segment::causal(&tokens[..cut], &positions[..cut], &mut *cache)
                }];
                let mut pass = Pass::new(&mut segments);
                pass.layers = layers;
                pass.taps.hidden = &[HiddenSite::After(0), HiddenSite::After(1), HiddenSite::Final];
                record.pass(backbone, "skipped", &mut pass);
                record.cache("after", &*cache);
            }
            record.decode(backbone, "whole pass over it", &mut *cache, 3);
            record
        });
    }
}

#[test]
fn rotary_factors_divide_the_frequencies() {
    let mut blueprint = toy::blueprint(Flavour::Llama);
    blueprint.rope_factors = Some((0..8).map(|i| 1.0 + i as f32 * 0.5).collect());
    let case = Case { prior: Prior::Chain, ..Case::plain() };
    compare("factors", case.form, &blueprint, &mut |backbone| case.run(backbone));
    // The factors must matter, or the comparison says nothing.
    let weights = toy::weights(&blueprint, 7);
    let with = case.run(&Naive::new(&blueprint, &weights, true));
    let plain = toy::blueprint(Flavour::Llama);
    let without = case.run(&Naive::new(&plain, &weights, true));
    assert!(with.distance(&without) > 0.01);
}

/// Reads every second cached row of one head and all but the first of the other, and lets the
/// odd rows go after layer 0. Notes what it was shown.
#[derive(Default)]
struct Narrow {
    seen: Record,
    keep: bool,
    read: bool,
}

impl Sites for Narrow {
    fn reads(&self, _: usize) -> bool {
        self.read
    }

    fn keeps(&self, layer: usize) -> bool {
        self.keep && layer == 0
    }

    fn read(&mut self, evidence: &ReadEvidence<'_>) -> Result<Option<Vec<Vec<Row>>>> {
        let label = format!("read at layer {} of segment {}", evidence.layer, evidence.segment);
        self.seen.note(&format!("{label}: queries"), evidence.queries.to_vec());
        let positions = evidence.positions.iter().map(|&p| p as f32).collect();
        self.seen.note(&format!("{label}: positions"), positions);
        let mut keys = Vec::new();
        let mut counts = Vec::new();
        for head in 0..2 {
            counts.push(evidence.keys.rows(head) as f32);
            for row in 0..evidence.keys.rows(head) {
                let mut key = [0.0; 16];
                evidence.keys.key(head, row as Row, &mut key);
                keys.extend(key);
            }
        }
        self.seen.note(&format!("{label}: keys"), keys);
        self.seen.note(&format!("{label}: counts"), counts);
        Ok((evidence.layer == 1).then(|| vec![(0..8).step_by(2).collect(), (1..8).collect()]))
    }

    fn keep(&mut self, evidence: &RowEvidence<'_>) -> Result<Option<Vec<u32>>> {
        let label = format!("keep after {} of segment {}", evidence.layer, evidence.segment);
        self.seen.note(&label, evidence.hidden.to_vec());
        Ok(Some((0..evidence.positions.len() as u32).step_by(2).collect()))
    }
}

#[test]
fn sites_narrow_what_is_read_and_which_rows_go_on() {
    for (read, keep) in [(true, false), (false, true), (true, true)] {
        for write in [WriteKind::Append, WriteKind::Refresh, WriteKind::Discard] {
            for form in [KeyForm::Rotated, KeyForm::Plain] {
                every_flavour_in(
                    form,
                    &format!("read {read}, keep {keep}, {write:?}"),
                    |backbone| {
                        let case = Case {
                            prior: Prior::Chain,
                            write,
                            form,
                            keys: KeysKind::PerHead,
                            ..Case::plain()
                        };
                        let mut sites = Narrow { read, keep, ..Narrow::default() };
                        // Rows 1 and 3 may be gone.
                        let mut record = case.run_for(backbone, RowsOut::Rows(&[2, 0]), &mut sites);
                        record.extend(sites.seen);
                        record
                    },
                );
            }
        }
    }
}

#[test]
fn all_rows_may_leave_early() {
    struct Nobody;
    impl Sites for Nobody {
        fn keeps(&self, layer: usize) -> bool {
            layer == 0
        }
        fn keep(&mut self, _: &RowEvidence<'_>) -> Result<Option<Vec<u32>>> {
            Ok(Some(Vec::new()))
        }
    }
    every_flavour("nobody goes on", |backbone| {
        Case::plain().run_for(backbone, RowsOut::None, &mut Nobody)
    });
}

#[test]
fn caches_are_compacted_merged_rolled_back_and_moved() {
    for form in [KeyForm::Rotated, KeyForm::Plain] {
        every_flavour_in(form, "cache operations", |backbone| {
            let mut record = Record::default();
            let options = CacheOptions { form, capacity: 4 };
            let mut cache = backbone.new_cache(options).unwrap();
            record.decode(backbone, "prompt", &mut *cache, 12);
            let merges = vec![
                Merge { into: 3, parts: vec![(3, 0.5), (4, 0.25), (5, 0.25)] },
                Merge { into: 9, parts: vec![(3, 1.0)] },
                Merge { into: 11, parts: vec![] },
            ];
            let keep = Keep { rows: vec![0, 3, 7, 9, 10, 11], merges };
            cache.compact(&KeepPlan::uniform(2, 2, keep)).unwrap();
            record.cache("compacted", &*cache);
            record.decode(backbone, "after it", &mut *cache, 3);
            if form == KeyForm::Plain {
                cache.reposition(&[0, 1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
                record.decode(backbone, "moved", &mut *cache, 2);
            } else {
                assert!(cache.reposition(&[0; 9]).is_err());
            }
            cache.rollback(2).unwrap();
            let heads = (0..4).map(|i| Keep::rows((0..7).filter(move |r| r % 4 != i))).collect();
            cache.compact(&KeepPlan::per_head(2, 2, heads).unwrap()).unwrap();
            record.cache("head-wise", &*cache);
            let saved = cache.checkpoint().unwrap();
            record.decode(backbone, "on ragged heads", &mut *cache, 3);
            let mut fork = cache.fork().unwrap();
            cache.rollback(1).unwrap();
            record.decode(backbone, "rolled back", &mut *cache, 2);
            record.decode(backbone, "forked", &mut *fork, 1);
            cache.restore(&saved).unwrap();
            record.cache("restored", &*cache);
            record.decode(backbone, "again", &mut *cache, 3);
            record
        });
    }
}

#[test]
fn rows_out_pick_rows_and_an_empty_pick_is_no_row() {
    every_flavour("rows out", |backbone| {
        let mut record = Record::default();
        let (tokens, positions) = ([5, 9, 2], [0, 1, 2]);
        let picked: Vec<RowsOut<'_>> =
            vec![RowsOut::Last, RowsOut::All, RowsOut::None, RowsOut::Rows(&[2, 0, 0])];
        let segment = |rows_out| Segment {
            input: Input::Tokens(&tokens),
            positions: &positions,
            mask: Mask::Bidirectional,
            keys: None,
            bias: &[],
            write: Write::Append,
            rows_out,
            condition: None,
            cache: None,
        };
        let mut segments: Vec<Segment<'_>> = picked.iter().map(|&out| segment(out)).collect();
        let mut reveal = Reveal::new();
        backbone.forward(&mut Pass::new(&mut segments), &mut reveal).unwrap();
        assert_eq!((0..4).map(|s| reveal.rows(s)).collect::<Vec<_>>(), [1, 3, 0, 3]);
        assert_eq!(reveal.logits(3, 1), reveal.logits(3, 2));
        record.note("logits", reveal.all_logits().to_vec());
        record
    });
}

#[test]
fn embeddings_enter_as_they_are() {
    // What a token's row would be, scaled, gives the token's logits; a query-only row of the same
    // content is not read by the others.
    for flavour in Flavour::ALL {
        let blueprint = toy::blueprint(flavour);
        let weights = toy::weights(&blueprint, 7);
        let tokens = [3, 60, 33];
        let table = &weights["token_embd.weight"].1;
        let rows: Vec<f32> = tokens
            .iter()
            .flat_map(|&t| &table[t as usize * 64..(t as usize + 1) * 64])
            .map(|x| x * blueprint.embedding_scale)
            .collect();
        for tested in BACKBONES {
            let backbone = (tested.make)(&blueprint, &weights);
            let logits = |input: Input<'_>| {
                let mut segments = [Segment {
                    input,
                    positions: &[0, 1, 2],
                    mask: Mask::Causal,
                    keys: None,
                    bias: &[],
                    write: Write::Append,
                    rows_out: RowsOut::All,
                    condition: None,
                    cache: None,
                }];
                let mut reveal = Reveal::new();
                backbone.forward(&mut Pass::new(&mut segments), &mut reveal).unwrap();
                let mut record = Record::default();
                record.note("logits", reveal.all_logits().to_vec());
                record
            };
            let by_token = logits(Input::Tokens(&tokens));
            let label = format!("{} {flavour:?}", tested.name);
            by_token.assert_near(&logits(Input::Embeddings(&rows)), NEAR, &label);
            assert!(by_token.distance(&logits(Input::Queries(&rows))) > 0.01, "{label}");
        }
    }
}

#[test]
fn taps_show_the_same_internals() {
    let sites =
        [HiddenSite::Final, HiddenSite::Embedding, HiddenSite::After(1), HiddenSite::After(0)];
    for &mask in MaskKind::ALL {
        every_flavour(&format!("taps under {mask:?}"), |backbone| {
            let mut record = Record::default();
            let mut cache = backbone.new_cache(CacheOptions::default()).unwrap();
            record.decode(backbone, "prompt", &mut *cache, 9);
            let rows = case::Rows::new(mask, 9, 4, &mut Stream::new(5));
            let mut segments = [Segment {
                mask: rows.mask(mask),
                rows_out: RowsOut::None,
                ..Segment::causal(&rows.tokens, &rows.positions, &mut *cache)
            }];
            let mut pass = Pass::new(&mut segments);
            // Out of order and twice: blocks come as asked.
            pass.taps = Taps {
                hidden: &sites,
                attention: &[1, 0, 1],
                keys: &[1, 0],
                queries: &[0, 0],
                received: Received { layers: &[1, 0], heads: HeadSum::Key, by_row: false },
            };
            let mut reveal = Reveal::new();
            backbone.forward(&mut pass, &mut reveal).unwrap();
            let shown = &reveal.segments[0];
            assert_eq!(shown.attention[0], shown.attention[2]);
            assert_eq!(shown.attention[0].len(), 4 * 4 * 13);
            for line in shown.attention.iter().flat_map(|b| b.chunks(13)) {
                assert!((line.iter().sum::<f32>() - 1.0).abs() < 1e-4);
            }
            for (received, attention) in shown.received.iter().zip(&shown.attention) {
                let mut sums = [0f32; 2 * 13];
                for (line, weights) in attention.chunks(13).enumerate() {
                    let group = &mut sums[line % 4 / 2 * 13..][..13];
                    group.iter_mut().zip(weights).for_each(|(sum, p)| *sum += p);
                }
                assert_eq!(received.len(), sums.len());
                assert!(sums.iter().zip(received).all(|(a, b)| (a - b).abs() < 1e-5));
            }
            record.reveal("taps", &reveal);
            record
        });
    }
}

#[test]
fn the_product_covers_every_kind() {
    let cases = Case::product(false);
    for &input in InputKind::ALL {
        assert!(cases.iter().any(|c| c.input == input), "{input:?}");
    }
    for &keys in KeysKind::ALL {
        assert!(cases.iter().any(|c| c.keys == keys), "{keys:?}");
    }
    assert!(cases.iter().any(|c| c.bias) && cases.iter().any(|c| !c.bias));
}
