//! A rough answer that is mixed into the embeddings of masks, on toy transformers.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::atomic::AtomicBool;

use tessera_core::dist::{Sampling, argmax};
use tessera_core::{
    Backbone, Control, Event, Filling, Input, Mask, Pass, Position, Reveal, Row, RowsOut, Segment,
    TokenId, Write,
};
use tessera_engine::{Model, Outcome, Recipe, Request, generate};
use tessera_methods::ENTRIES;
use tessera_model::cpu::{CpuBackbone, Options};
use tessera_model::toy::{self, Flavour};
use tessera_runtime::MethodCall;
use tessera_testkit::Words;

const MASK: TokenId = 96;
const PROMPT: [TokenId; 3] = [5, 6, 7];
const PRIOR: [TokenId; 6] = [11, 12, 13, 14, 15, 16];

fn cpu(flavour: Flavour) -> CpuBackbone {
    let blueprint = toy::blueprint(flavour);
    let weights = toy::weights(&blueprint, 9);
    CpuBackbone::load(blueprint, &weights, Options::default(), &|_| ()).unwrap()
}

fn run(model: &dyn Backbone, methods: &[&str]) -> Outcome {
    let words = Words::new((0..model.spec().vocab).map(|i| i.to_string()));
    let filling = Some(Filling { mask: MASK, shift: false, any_subset: false });
    let model = Model { backbone: model, vocabulary: &words, draft: None, filling };
    let calls: Vec<MethodCall> =
        methods.iter().map(|m| MethodCall::parse(ENTRIES, m).unwrap()).collect();
    let mut request = Request::new(PROMPT.to_vec());
    request.recipe = Recipe::resolve(ENTRIES, &calls).unwrap();
    request.max_tokens = Some(PRIOR.len());
    request.sampling = Sampling::greedy();
    request.canvas.prior = PRIOR.to_vec();
    let mut listener = |_: Event<'_>| Control::Continue;
    generate(model, &request, &mut listener, &AtomicBool::new(false)).unwrap()
}

/// The most probable token of every place, once the model has read `text`.
fn read(model: &dyn Backbone, text: &[TokenId]) -> Vec<TokenId> {
    let positions: Vec<Position> = (0..text.len() as Position).collect();
    let rows: Vec<Row> = (PROMPT.len() as Row..text.len() as Row).collect();
    let mut segments = [Segment {
        input: Input::Tokens(text),
        positions: &positions,
        mask: Mask::Bidirectional,
        keys: None,
        bias: &[],
        write: Write::Discard,
        rows_out: RowsOut::Rows(&rows),
        condition: None,
        cache: None,
    }];
    let mut reveal = Reveal::new();
    model.forward(&mut Pass::new(&mut segments), &mut reveal).unwrap();
    let one = |i: usize| {
        let mut logits = reveal.logits(0, i).to_vec();
        logits[MASK as usize] = f32::NEG_INFINITY;
        argmax(&logits).unwrap().0
    };
    (0..rows.len()).map(one).collect()
}

fn mixes(model: &dyn Backbone) {
    let method = |alpha: f64| format!("context-aware-init:form=embeddings,rho=0,alpha={alpha}");
    let nats = |made: &Outcome| made.stats.denoised.unwrap().nats;
    let all_at_once = "threshold:tau=0";
    let plain = run(model, &[all_at_once]);
    let none = run(model, &[&method(1.0), all_at_once]);
    assert_eq!((&none.choices, none.stats.passes), (&plain.choices, 1));
    let masks: Vec<TokenId> = [&PROMPT[..], &[MASK; PRIOR.len()]].concat();
    assert_eq!(plain.choices[0].tokens, read(model, &masks));
    // Nothing of the mask is left: the first pass reads the prior as text.
    let whole = run(model, &[&method(0.0), all_at_once]);
    assert_eq!(whole.choices[0].tokens, read(model, &[&PROMPT[..], &PRIOR].concat()));
    assert_ne!(whole.choices, plain.choices);
    let half = run(model, &[&method(0.5), all_at_once]);
    assert!(nats(&half) != nats(&plain) && nats(&half) != nats(&whole));
    // A hint is for one pass: afterwards masks are masks.
    let slow = run(model, &[&method(0.5), "threshold:tau=2"]);
    assert_eq!(slow.stats.passes, PRIOR.len());
}

#[test]
fn embeddings_of_a_prior_enter_the_first_pass() {
    Flavour::ALL.into_iter().for_each(|flavour| mixes(&cpu(flavour)));
}

#[cfg(feature = "candle")]
#[test]
fn candle_mixes_embeddings_too() {
    use tessera_model::candle::{CandleBackbone, CandleOptions};
    for flavour in Flavour::ALL {
        let blueprint = toy::blueprint(flavour);
        let weights = toy::weights(&blueprint, 9);
        mixes(
            &CandleBackbone::from_weights(blueprint, &weights, CandleOptions::default()).unwrap(),
        );
    }
}
