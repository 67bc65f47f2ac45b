//! What was trained is what the engine runs: the trainer's logits against the cpu backbone's.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use tessera_core::{Backbone, Input, Mask, Pass, Position, Reveal, RowsOut, Segment, Write};
use tessera_kernels::Pool;
use tessera_learn::export::{About, Stored, write};
use tessera_learn::network::{Batch, Network, See, Shape};
use tessera_learn::objectives::{AnySubset, Objective, Place};
use tessera_learn::vocabulary::Vocabulary;
use tessera_model::arch::Blueprint;
use tessera_model::cpu::{Arithmetic, CpuBackbone, Options};
use tessera_model::open_weights;

#[test]
fn the_cpu_backbone_computes_the_trainers_logits_whoever_reads_whom() {
    let text =
        "the cat sat on the mat and the cat said that the mat was flat, that was that. ".repeat(3);
    let vocabulary = Vocabulary::train([text.as_str()].into_iter(), 272).unwrap();
    let shape =
        Shape { vocab: vocabulary.len(), hidden: 64, layers: 3, heads: 2, ffn: 96, context: 32 };
    let mut weights = shape.fresh(5);
    // Embeddings as large as those of a trained model, norms that are not 1.
    weights[..shape.vocab * 64].iter_mut().for_each(|w| *w *= 20.0);
    for tensor in shape.tensors().iter().filter(|t| t.is_vector()) {
        for (i, w) in weights[tensor.range()].iter_mut().enumerate() {
            *w += 0.1 * ((i % 7) as f32 - 3.0);
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.gguf");
    let about = About {
        name: "m",
        about: "a test",
        is_bidirectional: false,
        is_shifted: false,
        is_any_subset: false,
        prompt_end: None,
    };
    write(&path, about, &shape, &vocabulary, &weights, Stored::F32).unwrap();

    let source = open_weights(&path).unwrap();
    let blueprint = Blueprint::new(source.hyper_params());
    let options = Options { threads: 2, arithmetic: Arithmetic::F32 };
    let backbone = CpuBackbone::load(blueprint, &source, options, &|_| {}).unwrap();
    let mut network = Network::new(shape, Arc::new(Pool::new(2)), None).unwrap();

    let tokens: Vec<u32> = (0..32).map(|i| (i * i * 13 + i) % shape.vocab as u32).collect();
    let one = |see: See| Batch { tokens: tokens.clone(), see, targets: vec![] };
    let place = Place { seed: 1, step: 1, first: 0, total: 1 };
    let two = AnySubset { mask: 5 }.training(&[&tokens], place);
    let See::Streams(bits) = two.see.clone() else { panic!("two streams") };
    let streams = Mask::Explicit { bits: &bits, columns: 64 };
    let ways =
        [(one(See::Causal), Mask::Causal), (one(See::Full), Mask::Bidirectional), (two, streams)];
    for (batch, mask) in ways {
        let tokens = &batch.tokens;
        let rows: Vec<u32> = (0..tokens.len() as u32).collect();
        let positions: Vec<Position> = rows.iter().map(|row| row % 32).collect();
        let trained = network.logits(&weights, &batch, &rows).unwrap();
        let mut reveal = Reveal::new();
        let mut segments = [Segment {
            input: Input::Tokens(tokens),
            positions: &positions,
            mask,
            keys: None,
            bias: &[],
            write: Write::Discard,
            rows_out: RowsOut::All,
            condition: None,
            cache: None,
        }];
        backbone.forward(&mut Pass::new(&mut segments), &mut reveal).unwrap();
        let run = reveal.all_logits();
        assert_eq!(run.len(), trained.len());
        let most = trained.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        assert!(most > 1.0, "logits of some size, {most}");
        for (i, (a, b)) in trained.iter().zip(run).enumerate() {
            assert!((a - b).abs() < 1e-3 * most, "{i}: {a} {b} of {most}");
        }
    }
}
