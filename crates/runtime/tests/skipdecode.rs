//! SkipDecode's schedule on a seeded model of eight layers: exact, as far as a method that changes
//! the text can be.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use tessera_core::dist::Sampling;
use tessera_core::{
    Backbone, CacheOptions, Capabilities, Control, HiddenSite, Input, KvStore, LayerSchedule,
    Layers, Mask, ModelSpec, Pass, Position, Result, Reveal, RowsOut, Segment, Taps, TokenId,
    Write,
};
use tessera_engine::{Model, Outcome, Recipe, Request, generate};
use tessera_methods::ENTRIES;
use tessera_methods::reduce::skipdecode::{Schedule, SkipDecode};
use tessera_model::cpu::{CpuBackbone, Options};
use tessera_model::toy::{self, Flavour};
use tessera_runtime::MethodCall;
use tessera_testkit::Words;

const LAYERS: usize = 8;

fn model(flavour: Flavour) -> CpuBackbone {
    let mut blueprint = toy::blueprint(flavour);
    blueprint.spec.layers = LAYERS;
    blueprint.spec.vocab = 258;
    let pair = blueprint.layers.clone();
    blueprint.layers = (0..LAYERS).map(|l| pair[l % 2]).collect();
    let weights = toy::weights(&blueprint, 9);
    CpuBackbone::load(blueprint, &weights, Options::default(), &|_| ()).unwrap()
}

fn same_bits(what: &str, a: &[f32], b: &[f32]) {
    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(!a.is_empty() && bits(a) == bits(b), "{what}");
}

/// One pass over embeddings without a cache: the hidden states after `layer`, or with `None` the
/// logits that the head gives them.
fn embedded(m: &CpuBackbone, x: &[f32], layer: Option<usize>) -> Vec<f32> {
    let rows = x.len() / m.spec().hidden;
    let positions: Vec<Position> = (0..rows as Position).collect();
    let only: Vec<usize> = layer.into_iter().collect();
    let sites: Vec<HiddenSite> = layer.into_iter().map(HiddenSite::After).collect();
    let mut segments = [Segment {
        input: Input::Embeddings(x),
        positions: &positions,
        mask: Mask::Causal,
        keys: None,
        bias: &[],
        write: Write::Discard,
        rows_out: if layer.is_some() { RowsOut::None } else { RowsOut::All },
        condition: None,
        cache: None,
    }];
    let mut pass = Pass::new(&mut segments);
    pass.layers = Layers::Only(&only);
    pass.taps = Taps { hidden: &sites, ..Taps::default() };
    let mut reveal = Reveal::new();
    m.forward(&mut pass, &mut reveal).unwrap();
    if layer.is_some() {
        reveal.segments[0].hidden[0].clone()
    } else {
        reveal.all_logits().to_vec()
    }
}

fn embed(m: &CpuBackbone, tokens: &[TokenId]) -> Vec<f32> {
    let positions: Vec<Position> = (0..tokens.len() as Position).collect();
    let mut cache = m.new_cache(CacheOptions::default()).unwrap();
    let mut segments = [Segment::causal(tokens, &positions, &mut *cache)];
    let mut pass = Pass::new(&mut segments);
    pass.taps = Taps { hidden: &[HiddenSite::Embedding], ..Taps::default() };
    let mut reveal = Reveal::new();
    m.forward(&mut pass, &mut reveal).unwrap();
    reveal.segments[0].hidden[0].clone()
}

/// Step by step against teacher-forced prefixes: the tokens that run a layer are a beginning of the
/// text, so layer after layer can be computed over that beginning alone, without any cache.
#[test]
fn decoding_step_by_step_equals_the_prefix_slices() {
    for flavour in Flavour::ALL {
        let m = model(flavour);
        let (prompt, text) = (7, 31);
        let mut stream = toy::Stream::new(4);
        let tokens: Vec<TokenId> = (0..text).map(|_| stream.below(258)).collect();
        let config = SkipDecode { e_max: 0.9, e_min: 0.25, warmup: 1, length: 15 };
        let mut schedule = Schedule::new(config);
        let mut active: Vec<Vec<usize>> = vec![(0..LAYERS).collect(); prompt];
        for step in 0..text - prompt {
            let mut layers = Vec::new();
            schedule.layers(step, LAYERS, &mut layers).unwrap();
            active.push(layers);
        }
        assert!(active[text - 1].len() < active[prompt].len());

        let mut cache = m.new_cache(CacheOptions::default()).unwrap();
        let mut reveal = Reveal::new();
        let mut stepwise = Vec::new();
        for (at, layers) in active.iter().enumerate() {
            let positions = [at as Position];
            let mut segments = [Segment::causal(&tokens[at..=at], &positions, &mut *cache)];
            let mut pass = Pass::new(&mut segments);
            pass.layers = Layers::Only(layers);
            m.forward(&mut pass, &mut reveal).unwrap();
            stepwise.extend_from_slice(reveal.logits(0, 0));
        }

        let hidden = m.spec().hidden;
        let mut x = embed(&m, &tokens);
        for layer in 0..LAYERS {
            let running = active.iter().take_while(|a| a.contains(&layer)).count();
            assert!(active[running..].iter().all(|a| !a.contains(&layer)), "a prefix");
            let after = embedded(&m, &x[..running * hidden], Some(layer));
            x[..running * hidden].copy_from_slice(&after);
        }
        same_bits(&format!("{flavour:?}"), &stepwise, &embedded(&m, &x, None));
    }
}

/// Counts the layers that each pass runs, per segment.
struct Counting<'a> {
    model: &'a CpuBackbone,
    /// Layers and segments of every pass of decoding.
    passes: Mutex<Vec<(usize, usize)>>,
}

impl Backbone for Counting<'_> {
    fn name(&self) -> &str {
        self.model.name()
    }
    fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }
    fn capabilities(&self) -> Capabilities {
        self.model.capabilities()
    }
    fn new_cache(&self, options: CacheOptions) -> Result<Box<dyn KvStore>> {
        self.model.new_cache(options)
    }
    fn forward(&self, pass: &mut Pass<'_, '_>, reveal: &mut Reveal) -> Result<()> {
        if pass.segments.iter().all(|s| s.positions.len() == 1) {
            let run = (0..LAYERS).filter(|&l| pass.layers.runs(l)).count();
            self.passes.lock().unwrap().push((run, pass.segments.len()));
        }
        self.model.forward(pass, reveal)
    }
}

fn answer(backbone: &dyn Backbone, calls: &[&str], choices: usize) -> Outcome {
    let words = Words::bytes();
    let calls: Vec<MethodCall> =
        calls.iter().map(|text| MethodCall::parse(ENTRIES, text).unwrap()).collect();
    let mut request = Request::new(words.encode_bytes(b"prompt"));
    request.recipe = Recipe::resolve(ENTRIES, &calls).unwrap();
    request.sampling = Sampling::neutral();
    (request.max_tokens, request.ignore_end, request.choices) = (Some(40), true, choices);
    let model = Model { backbone, vocabulary: &words, draft: None, filling: None };
    generate(model, &request, &mut |_| Control::Continue, &AtomicBool::new(false)).unwrap()
}

#[test]
fn a_pass_runs_the_layers_of_the_schedule_for_every_row_of_the_batch() {
    let m = model(Flavour::Llama);
    let text = "skipdecode:e_max=0.75,e_min=0.25,length=20";
    let schedule = Schedule::new(SkipDecode { e_max: 0.75, e_min: 0.25, warmup: 1, length: 20 });
    let want: Vec<usize> = (0..39).map(|step| schedule.run(step, LAYERS)).collect();
    assert_eq!((want[0], want[38]), (6, 2));
    for choices in [1, 3] {
        let counting = Counting { model: &m, passes: Mutex::default() };
        let alone = answer(&counting, &[text], choices);
        let passes = counting.passes.lock().unwrap().clone();
        assert_eq!(passes, want.iter().map(|&run| (run, choices)).collect::<Vec<_>>());
        // A text does not depend on those beside it.
        assert_eq!(alone.choices[0], answer(&m, &[text], 1).choices[0]);
    }
}

#[test]
fn the_truncated_model_as_a_drafter_is_exact_and_the_whole_model_guesses_everything() {
    let m = model(Flavour::Qwen);
    let plain = answer(&m, &[], 2);
    for text in
        ["skipdecode-draft", "skipdecode-draft:share=0.2,budget=6", "skipdecode-draft:share=1"]
    {
        let with = answer(&m, &[text], 2);
        assert_eq!(with.choices, plain.choices, "{text}");
        assert!(with.stats.drafted_tokens > 0);
        if text.ends_with("share=1") {
            assert_eq!(with.stats.accepted_tokens, with.stats.drafted_tokens);
        }
    }
    // Under residual acceptance the guesses carry their distributions: equal ones are accepted.
    let with = answer(&m, &["skipdecode-draft:share=1", "residual"], 1).stats;
    assert_eq!(with.accepted_tokens, with.drafted_tokens);
}
