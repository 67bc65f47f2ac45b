//! Long because windows and what looks ahead beside them are tried on the same toys.
//!
//! Windows on seeded toy models that fill masks, against passes that compute everything.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]
#![allow(clippy::print_stdout, reason = "drift is printed for who reads it with --nocapture")]

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tessera_core::dist::{Sampling, softmax};
use tessera_core::entry::{Method, MethodEntry, Needs, Place, Role, Site};
use tessera_core::unmask::ranked;
use tessera_core::{
    Backbone, Canvas, Control, Error, Event, Evidence, Fill, Filling, Input, Mask, Pass, Position,
    Result, Reveal, RowsOut, Segment, TokenId, Unmask, Window, WindowPlan, WindowView, Write,
};
use tessera_engine::{Model, Outcome, Recipe, Request, generate};
use tessera_methods::ENTRIES;
use tessera_model::cpu::{CpuBackbone, Options};
use tessera_model::toy::{self, Flavour};
use tessera_runtime::MethodCall;
use tessera_testkit::Words;

const VOCAB: usize = 258;
const PROMPT: usize = 10;
const LENGTH: usize = 24;

type Toy = Arc<dyn Backbone>;

/// What a step wrote: positions and tokens.
type Written = (Vec<Position>, Vec<TokenId>);

fn toy(flavour: Flavour, layers: usize) -> Toy {
    let mut blueprint = toy::blueprint(flavour);
    (blueprint.spec.vocab, blueprint.spec.layers) = (VOCAB, layers);
    blueprint.layers.truncate(layers);
    let weights = toy::weights(&blueprint, 9);
    Arc::new(
        CpuBackbone::load(
            blueprint,
            &weights,
            Options { threads: 1, ..Options::default() },
            &|_| (),
        )
        .unwrap(),
    )
}

fn filling(shift: bool) -> Filling {
    Filling { mask: VOCAB as TokenId - 1, shift, any_subset: false }
}

/// What a run shows to the observer, step by step.
#[derive(Default)]
struct Seen {
    /// The model, for passes without a cache; `None` computes none.
    model: Option<Toy>,
    shift: bool,
    /// Largest difference of a logit from that of a pass that computes everything.
    logits: f32,
    /// Largest divergence of a predicted law from that of such a pass, in nats.
    nats: f64,
    /// Every step's open fills, the surest first.
    rankings: Vec<Vec<(Position, TokenId)>>,
}

thread_local! {
    static SEEN: RefCell<Seen> = RefCell::default();
}

/// Compares what a step sees with a pass that computes everything, and changes nothing.
#[derive(Debug)]
struct Observer;

impl Unmask for Observer {
    fn score(&mut self, evidence: &Evidence<'_>, fills: &mut [Fill]) -> Result<()> {
        SEEN.with_borrow_mut(|seen| {
            let order = ranked(fills).into_iter().map(|i| fills[i]);
            let open = order.filter(|f| evidence.is_open(f.position));
            seen.rankings.push(open.map(|f| (f.position, f.token)).collect());
            if let Some(model) = seen.model.clone() {
                let fresh = whole(&*model, evidence.canvas, filling(seen.shift))?;
                for (i, &position) in evidence.prediction.positions.iter().enumerate() {
                    let (logits, law) = &fresh[position as usize];
                    let pairs = logits.iter().zip(evidence.prediction.logits(i));
                    // The mask's is minus infinity in both.
                    let apart = pairs.filter(|(a, _)| a.is_finite()).map(|(a, b)| (a - b).abs());
                    seen.logits = apart.fold(seen.logits, f32::max);
                    let pairs =
                        law.iter().zip(evidence.prediction.law(i)).filter(|(p, _)| **p > 0.0);
                    let nats = |(&p, &q): (&f32, &f32)| {
                        f64::from(p) * (f64::from(p) / f64::from(q).max(1e-300)).ln()
                    };
                    seen.nats = pairs.map(nats).sum::<f64>().max(seen.nats);
                }
            }
            Ok(())
        })
    }
}

/// Logits and law of every position, all computed together.
fn whole(
    model: &dyn Backbone,
    canvas: &Canvas,
    filling: Filling,
) -> Result<Vec<(Vec<f32>, Vec<f32>)>> {
    let positions: Vec<Position> = (0..canvas.len() as Position).collect();
    let rows: Vec<u32> = positions.iter().map(|&p| filling.row_of(p)).collect();
    let mut segments = [Segment {
        input: Input::Tokens(canvas.tokens()),
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
    model.forward(&mut Pass::new(&mut segments), &mut reveal)?;
    let one = |i: usize| {
        let mut logits = reveal.logits(0, i).to_vec();
        logits[filling.mask as usize] = f32::NEG_INFINITY;
        let mut law = vec![0.0; logits.len()];
        softmax(&logits, &mut law)?;
        Ok((logits, law))
    };
    (0..positions.len()).map(one).collect()
}

static OBSERVER: MethodEntry = MethodEntry {
    slug: "observer",
    aliases: &[],
    places: &[Place { role: Role::Unmask, site: Site::Score }],
    needs: Needs::NONE,
    build: |_| Ok(Method::Unmask(Box::new(Observer))),
    ..tessera_methods::unmask::ancestral::ENTRY
};

/// Computes every row in every pass, in place.
#[derive(Debug)]
struct Everything;

impl Window for Everything {
    fn plan(&mut self, view: &WindowView<'_>) -> Result<WindowPlan> {
        let len = view.canvas.len();
        Ok(match view.rows {
            0 => WindowPlan::Whole { len },
            rows => WindowPlan::Part { compute: (0..rows as Position).collect(), keys: None },
        })
    }
}

static EVERYTHING: MethodEntry = MethodEntry {
    slug: "everything",
    aliases: &[],
    build: |_| Ok(Method::Window(Box::new(Everything))),
    ..tessera_methods::window::prompt_cache::ENTRY
};

/// The bytes `a`, `b`, ... as a prompt, then masks.
struct Run<'a> {
    model: &'a Toy,
    shift: bool,
    sampling: Sampling,
    seed: u64,
    prompt: usize,
    /// Watched by [`Observer`], and compared with whole passes.
    observed: bool,
}

impl<'a> Run<'a> {
    fn new(model: &'a Toy, shift: bool) -> Self {
        let sampling = Sampling::neutral();
        Self { model, shift, sampling, seed: 3, prompt: PROMPT, observed: false }
    }

    fn with(&self, methods: &[&str]) -> Outcome {
        self.traced(methods).0
    }

    /// The outcome, and step by step what was written.
    fn traced(&self, methods: &[&str]) -> (Outcome, Vec<Written>) {
        let mut entries = ENTRIES.to_vec();
        entries.extend([&OBSERVER, &EVERYTHING]);
        let mut calls: Vec<MethodCall> =
            methods.iter().map(|m| MethodCall::parse(&entries, m).unwrap()).collect();
        if self.observed {
            calls.push(MethodCall { id: "observer".to_owned(), ..MethodCall::default() });
        }
        let mut request = Request::new((0..self.prompt as u32).map(|i| 97 + i).collect());
        request.recipe = Recipe::resolve(&entries, &calls).unwrap();
        request.sampling = self.sampling;
        request.seed = self.seed;
        (request.max_tokens, request.ignore_end) = (Some(LENGTH), true);
        let words = Words::bytes();
        let model = Model {
            backbone: &**self.model,
            vocabulary: &words,
            draft: None,
            filling: Some(filling(self.shift)),
        };
        let mut steps = Vec::new();
        let mut listener = |event: Event<'_>| {
            if let Event::Denoised { positions, tokens, .. } = event {
                steps.push((positions.to_vec(), tokens.to_vec()));
            }
            Control::Continue
        };
        let cancel = AtomicBool::new(false);
        let made = generate(model, &request, &mut listener, &cancel).unwrap();
        (made, steps)
    }

    /// How far predictions of a run with these methods are from those of whole passes: the largest
    /// difference of a logit, the largest divergence in nats. Printed.
    fn drift(&self, methods: &[&str]) -> (f32, f64) {
        let (model, shift) = (Some(Arc::clone(self.model)), self.shift);
        SEEN.set(Seen { model, shift, ..Seen::default() });
        let observed = Run { observed: true, ..*self };
        observed.with(methods);
        let seen = SEEN.take();
        let layers = self.model.spec().layers;
        let (logits, nats) = (seen.logits, seen.nats);
        println!("{layers} layers, shift {shift}, {methods:?}: {logits:.3e} {nats:.3e} nats");
        (logits, nats)
    }
}

/// Every combination of a toy and a way to read predictions.
fn toys(layers: usize) -> Vec<(Toy, bool)> {
    let both = |flavour| [false, true].map(|shift| (toy(flavour, layers), shift));
    [Flavour::Llama, Flavour::Qwen].into_iter().flat_map(both).collect()
}

/// Schemes that hide nothing and compute every written token again, with the plain recipe that fills in
/// the same order.
const UNPRUNED: &[(&[&str], &[&str])] = &[
    (&["prompt-cache"], &[]),
    (&["prefix-cache"], &[]),
    (&["prefix-cache", "blocks:length=8"], &["blocks:length=8"]),
    (&["dual-cache", "blocks:length=8"], &["blocks:length=8"]),
    (
        &["dual-cache", "threshold:tau=0.02", "blocks:length=6"],
        &["threshold:tau=0.02", "blocks:length=6"],
    ),
    (&["freecache", "blocks:length=8"], &["blocks:length=8"]),
    (
        &["freecache", "threshold:tau=0.02", "blocks:length=5"],
        &["threshold:tau=0.02", "blocks:length=5"],
    ),
    (&["window-diffusion:window=1000,active=1000,period=5"], &[]),
    (&["window-diffusion:window=1000,active=4,period=7", "blocks:length=4"], &["blocks:length=4"]),
    (
        &["window-diffusion:form=dream,window=1000,active=4,period=5", "blocks:length=1"],
        &["blocks:length=1"],
    ),
];

#[test]
fn with_one_layer_what_computes_written_tokens_again_is_no_cache_bit_for_bit() {
    for (model, shift) in toys(1) {
        for (cached, plain) in UNPRUNED {
            let run = Run::new(&model, shift);
            assert_eq!(run.drift(cached), (0.0, 0.0), "{cached:?}, shift {shift}");
            let ((made, steps), (whole, expected)) = (run.traced(cached), run.traced(plain));
            assert_eq!(steps, expected, "{cached:?}, shift {shift}");
            assert_eq!(made.choices, whole.choices);
            assert_eq!(made.stats.passes, whole.stats.passes);
            assert!(made.stats.rows < whole.stats.rows, "{cached:?}: {} rows", made.stats.rows);
        }
    }
}

#[test]
fn the_official_freeze_keeps_rows_of_masks() {
    let mut changed = 0;
    for (model, shift) in toys(1) {
        let run = Run::new(&model, shift);
        let blocks = "blocks:length=4";
        let official = ["freecache:freeze=official", blocks];
        let (logits, nats) = run.drift(&official);
        assert!(logits > 1e-3 && nats > 0.0, "{logits} {nats}");
        // The same mismatch again, and none of it one pass later.
        assert_eq!(run.drift(&official), (logits, nats));
        assert_eq!(run.drift(&["freecache:freeze=late", blocks]), (0.0, 0.0));
        // Nothing is frozen while there is one block.
        assert_eq!(run.drift(&["freecache:freeze=official"]), (0.0, 0.0));
        assert_eq!(run.with(&official).choices, run.with(&official).choices);
        changed += usize::from(run.with(&official).choices != run.with(&[blocks]).choices);
    }
    assert!(changed > 0, "no text is another");
}

#[test]
fn with_two_layers_a_refresh_in_every_step_or_computing_everything_is_no_cache() {
    for (model, shift) in toys(2) {
        let run = Run::new(&model, shift);
        let same = |cached: &[&str], plain: &[&str]| {
            assert_eq!(run.drift(cached), (0.0, 0.0), "{cached:?}, shift {shift}");
            let ((made, steps), (whole, expected)) = (run.traced(cached), run.traced(plain));
            assert_eq!((made.choices, steps), (whole.choices, expected), "{cached:?}");
            assert_eq!(made.stats.rows, whole.stats.rows, "{cached:?}");
        };
        let left_to_right = ["blocks:length=1"];
        same(&["window-diffusion:period=1"], &[]);
        same(
            &["window-diffusion:period=1,window=2,active=1", "blocks:length=8"],
            &["blocks:length=8"],
        );
        same(&["prefix-cache", "blocks:length=1"], &left_to_right);
        same(&["dual-cache", "blocks:length=1"], &left_to_right);
        same(&["everything"], &[]);
        same(&["everything", "threshold:tau=0.02"], &["threshold:tau=0.02"]);
        // A prompt of one token: where a row predicts the next one, all rows are computed.
        if shift {
            let run = Run { prompt: 1, ..Run::new(&model, shift) };
            assert_eq!(run.drift(&["prompt-cache"]), (0.0, 0.0));
        }
    }
}

#[test]
fn with_two_layers_a_form_for_shifted_models_writes_from_left_to_right_at_period_one() {
    let model = toy(Flavour::Qwen, 2);
    let run = Run::new(&model, true);
    let all = "window-diffusion:form=dream,period=1,window=1000";
    let steps = run.traced(&[all]).1;
    let places: Vec<Position> = steps.iter().flat_map(|(positions, _)| positions.clone()).collect();
    assert_eq!(places, (PROMPT as Position..(PROMPT + LENGTH) as Position).collect::<Vec<_>>());
    assert_eq!(steps, run.traced(&["blocks:length=1"]).1);
}

#[test]
fn with_two_layers_every_scheme_drifts_and_writes_every_mask() {
    for (model, shift) in toys(2) {
        let run = Run::new(&model, shift);
        let pruned: [&[&str]; 3] = [
            &["window-diffusion:window=6,active=2,period=4"],
            &["window-diffusion:form=dream,window=6,active=2,period=4"],
            &["window-diffusion:form=dream,window=6,active=3,period=5,slide=false"],
        ];
        for cached in UNPRUNED.iter().map(|(cached, _)| *cached).chain(pruned) {
            let (logits, nats) = run.drift(cached);
            assert!(logits > 0.0 && logits < 20.0, "{cached:?}: {logits}");
            assert!(nats > 0.0 && nats.is_finite(), "{cached:?}: {nats}");
            let made = run.with(cached);
            assert_eq!(made.choices[0].tokens.len(), LENGTH);
            assert!(made.choices[0].tokens.iter().all(|&t| t != filling(shift).mask));
        }
    }
}

#[cfg(feature = "candle")]
#[test]
fn the_other_backbone_refreshes_rows_in_place_too() {
    use tessera_model::candle::{CandleBackbone, CandleOptions};
    let load = |layers: usize| -> Toy {
        let mut blueprint = toy::blueprint(Flavour::Qwen);
        (blueprint.spec.vocab, blueprint.spec.layers) = (VOCAB, layers);
        blueprint.layers.truncate(layers);
        Arc::new(CandleBackbone::random(blueprint, 9, CandleOptions::default()).unwrap())
    };
    let (one, two) = (load(1), load(2));
    for shift in [false, true] {
        for (cached, _) in UNPRUNED {
            let (logits, _) = Run::new(&one, shift).drift(cached);
            assert!(logits < 1e-4, "{cached:?}: {logits}");
        }
        assert!(Run::new(&two, shift).drift(&["everything"]).0 < 1e-4);
        let frozen = ["freecache:freeze=official", "blocks:length=4"];
        assert!(Run::new(&one, shift).drift(&frozen).0 > 1e-3);
    }
}

/// Passes of FreeDave, worked out from the steps of the run that it reproduces: from each step it jumps
/// to the furthest one that the ranking there leads to, at most `drafts` away.
fn jumps(rankings: &[Vec<(Position, TokenId)>], steps: &[Written], drafts: usize) -> usize {
    let wrote = |s: usize| (steps[s].0[0], steps[s].1[0]);
    let (mut at, mut passes, mut known) = (0, 0, false);
    while at < steps.len() {
        passes += usize::from(!known);
        let open = rankings[at].len();
        let tried = drafts.min(open);
        if tried < 2 {
            (at, known) = (at + 1, false);
            continue;
        }
        passes += 1;
        // The canvas that completes the region is not looked at.
        let looked = tried.min(open - 1);
        let came = |&j: &usize| rankings[at][j] == wrote(at + j);
        let reached = (1..tried).take_while(came).count().min(looked);
        known = reached < looked;
        at += reached + 1;
    }
    passes
}

#[test]
fn freedave_makes_the_static_text_in_as_few_jumps_as_there_are() {
    let mut saved = 0;
    for (model, shift) in toys(2) {
        for sampling in [Sampling::neutral(), Sampling { temperature: 0.0, ..Sampling::neutral() }]
        {
            for frame in [&[][..], &["blocks:length=8"], &["blocks:length=3"]] {
                let run = Run { sampling, ..Run::new(&model, shift) };
                SEEN.set(Seen::default());
                let (plain, steps) = Run { observed: true, ..run }.traced(frame);
                let rankings = SEEN.take().rankings;
                assert_eq!(plain.stats.passes, LENGTH);
                for drafts in [1, 2, 4, 8] {
                    let method = format!("freedave:drafts={drafts}");
                    let made = run.with(&[&[method.as_str()], frame].concat());
                    assert_eq!(made.choices, plain.choices, "{drafts} drafts, {frame:?}");
                    let expected = jumps(&rankings, &steps, drafts);
                    assert_eq!(made.stats.passes, expected, "{drafts} drafts, {frame:?}");
                    assert!(drafts > 1 || expected == LENGTH);
                    saved += LENGTH.saturating_sub(expected);
                }
            }
        }
    }
    assert!(saved > 0, "no jump is longer than a step");
}

#[test]
fn freedave_makes_the_text_of_the_same_window() {
    let mut fewer = 0;
    for (model, shift) in toys(2) {
        for window in ["prompt-cache", "prefix-cache", "dual-cache"] {
            for frame in [&[][..], &["blocks:length=8"], &["blocks:length=3"]] {
                let run = Run::new(&model, shift);
                let plain = run.with(&[&[window], frame].concat());
                for drafts in [1, 2, 4, 8] {
                    let method = format!("freedave:drafts={drafts}");
                    let made = run.with(&[&[method.as_str(), window], frame].concat());
                    assert_eq!(made.choices, plain.choices, "{drafts} drafts, {window}, {frame:?}");
                    fewer += plain.stats.passes.saturating_sub(made.stats.passes);
                }
            }
        }
    }
    assert!(fewer > 0, "no pass is saved");
}

#[test]
fn what_looks_ahead_is_refused_beside_windows_with_a_history() {
    for looker in ["freedave", "ete"] {
        for window in ["freecache", "window-diffusion"] {
            for pair in [[looker, window], [window, looker]] {
                let call = |id: &&str| MethodCall { id: (*id).to_owned(), ..MethodCall::default() };
                let calls: Vec<MethodCall> = pair.iter().map(call).collect();
                let error = Recipe::resolve(ENTRIES, &calls).unwrap_err().to_string();
                let told = error.contains(looker) && error.contains(window);
                assert!(told && error.contains("not written yet"), "{error}");
            }
        }
    }
}

/// Promises to compute what is written again, and does not.
#[derive(Debug)]
struct Forgetful;

impl Window for Forgetful {
    fn plan(&mut self, view: &WindowView<'_>) -> Result<WindowPlan> {
        let compute = view.canvas.masked().collect();
        Ok(match view.rows {
            0 => WindowPlan::Whole { len: view.canvas.len() },
            _ => WindowPlan::Part { compute, keys: None },
        })
    }
}

static FORGETFUL: MethodEntry = MethodEntry {
    slug: "forgetful",
    aliases: &[],
    build: |_| Ok(Method::Window(Box::new(Forgetful))),
    ..tessera_methods::window::prompt_cache::ENTRY
};

#[test]
fn the_loop_holds_a_window_to_what_it_says() {
    let (model, words) = (toy(Flavour::Llama, 1), Words::bytes());
    let mut request = Request::new(vec![97]);
    let calls = [MethodCall { id: "forgetful".to_owned(), ..MethodCall::default() }];
    request.recipe = Recipe::resolve(&[&FORGETFUL], &calls).unwrap();
    request.max_tokens = Some(8);
    let filling = Some(filling(false));
    let model = Model { backbone: &*model, vocabulary: &words, draft: None, filling };
    let cancel = AtomicBool::new(false);
    let error = generate(model, &request, &mut |_| Control::Continue, &cancel).unwrap_err();
    assert!(matches!(&error, Error::Plan { what } if what.contains("left stale")), "{error}");
}
