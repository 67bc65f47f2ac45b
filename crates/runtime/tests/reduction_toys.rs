//! What policies select on seeded toy models, against the attention that one whole pass shows; and
//! which methods do not go together.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use tessera_core::dist::Sampling;
use tessera_core::entry::{Method, MethodEntry, Place, Role, Site};
use tessera_core::pass::ReadEvidence;
use tessera_core::{
    Backbone, CacheOptions, Capabilities, Control, Error, Eviction, KvStore, Lent, ModelSpec, Pass,
    Position, Reduce, ReduceContext, Reveal, Row, RowsOut, Segment, Sites, Taps, TokenId, Write,
};
use tessera_engine::{Model, Outcome, Recipe, Request, Sequence, generate, generate_in};
use tessera_methods::ENTRIES;
use tessera_methods::reduce::streaming;
use tessera_model::cpu::{CpuBackbone, Options};
use tessera_model::toy::{self, Flavour};
use tessera_runtime::MethodCall;
use tessera_testkit::Words;

const PROMPT: usize = 80;

fn model(flavour: Flavour) -> CpuBackbone {
    let mut blueprint = toy::blueprint(flavour);
    blueprint.spec.vocab = 258;
    let weights = toy::weights(&blueprint, 9);
    CpuBackbone::load(blueprint, &weights, Options::default(), &|_| ()).unwrap()
}

fn tokens(count: usize) -> Vec<TokenId> {
    let mut stream = toy::Stream::new(4);
    (0..count).map(|_| stream.below(256)).collect()
}

fn policy(text: &str) -> Box<dyn Reduce> {
    let call = MethodCall::parse(ENTRIES, text).unwrap();
    let recipe = Recipe::resolve(ENTRIES, &[call]).unwrap();
    match recipe.build().unwrap().remove(0) {
        Method::Reduce(policy) => policy,
        other => panic!("{other:?}"),
    }
}

/// The cache of `tokens`, and if asked for the attention of every layer, `rows x heads x rows`.
fn computed(m: &CpuBackbone, tokens: &[TokenId]) -> (Box<dyn KvStore>, Vec<Vec<f32>>) {
    let positions: Vec<Position> = (0..tokens.len() as Position).collect();
    let layers: Vec<usize> = (0..m.spec().layers).collect();
    let mut cache = m.new_cache(CacheOptions::default()).unwrap();
    let mut segment = Segment::causal(tokens, &positions, &mut *cache);
    segment.rows_out = RowsOut::None;
    let mut segments = [segment];
    let mut pass = Pass::new(&mut segments);
    pass.taps = Taps { attention: &layers, ..Taps::default() };
    let mut reveal = Reveal::new();
    m.forward(&mut pass, &mut reveal).unwrap();
    let attention = std::mem::take(&mut reveal.segments[0].attention);
    (cache, attention)
}

fn decided(m: &CpuBackbone, text: &str) -> (Eviction, Vec<TokenId>) {
    let prompt = tokens(PROMPT);
    let (mut cache, _) = computed(m, &prompt);
    let target = Lent { backbone: m, cache: &mut *cache, position: PROMPT as Position };
    let vocabulary = Words::bytes();
    let mut context = ReduceContext { prompt: &prompt, seed: 1, target, vocabulary: &vocabulary };
    let eviction = policy(text).after_prefill(&mut context).unwrap().unwrap();
    (eviction, prompt)
}

/// The attention that the rows of `of` gave to each row before `below`, in a layer, by the heads of
/// one group.
fn given(
    attention: &[f32],
    m: &CpuBackbone,
    of: std::ops::Range<usize>,
    below: usize,
    group: usize,
) -> Vec<f32> {
    let (heads, kv_heads) = (m.spec().heads, m.spec().kv_heads);
    let columns = of.end;
    let mut sums = vec![0f32; below];
    for row in of {
        for head in group * heads / kv_heads..(group + 1) * heads / kv_heads {
            let line = &attention[(row * heads + head) * columns..][..below];
            sums.iter_mut().zip(line).for_each(|(sum, p)| *sum += p);
        }
    }
    sums
}

fn best(scores: &[f32], count: usize) -> Vec<Row> {
    let mut order: Vec<Row> = (0..scores.len() as Row).collect();
    order.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]));
    order.truncate(count);
    order.sort_unstable();
    order
}

#[test]
fn snapkv_keeps_what_the_end_of_the_prompt_attends_to() {
    for flavour in Flavour::ALL {
        let m = model(flavour);
        let (eviction, prompt) = decided(&m, "snapkv:budget=24,window=8,kernel=3,pooling=max");
        let (_, attention) = computed(&m, &prompt);
        let before = PROMPT - 8;
        for (layer, attention) in attention.iter().enumerate() {
            for group in 0..m.spec().kv_heads {
                let scores = given(attention, &m, before..PROMPT, before, group);
                let around = |r: usize| &scores[r.saturating_sub(1)..before.min(r + 2)];
                let pooled: Vec<f32> =
                    (0..before).map(|r| around(r).iter().copied().fold(0.0, f32::max)).collect();
                let kept = &eviction.plan.keep(layer, group).rows;
                assert_eq!(kept[16..], (before as Row..PROMPT as Row).collect::<Vec<_>>());
                // Neighbours share a pooled score: the set of scores is compared, not the rows.
                let scores_of = |rows: &[Row]| {
                    let mut of: Vec<u32> =
                        rows.iter().map(|&r| (pooled[r as usize] * 1e4) as u32).collect();
                    of.sort_unstable();
                    of
                };
                let (got, want) = (scores_of(&kept[..16]), scores_of(&best(&pooled, 16)));
                let near = got.iter().zip(&want).all(|(a, b)| a.abs_diff(*b) <= 1);
                assert!(near, "{flavour:?}: {got:?} {want:?}");
            }
        }
    }
}

#[test]
fn dapq_keeps_what_tokens_at_the_next_positions_attend_to() {
    for flavour in Flavour::ALL {
        let m = model(flavour);
        let (eviction, prompt) = decided(&m, "dapq:budget=20,queries=12");
        // Prompt and pseudo tokens in one pass: in a pass of their own they see the same.
        let mut longer = prompt.clone();
        longer.extend_from_slice(&prompt[..6]);
        longer.extend_from_slice(&prompt[PROMPT - 6..]);
        let (_, attention) = computed(&m, &longer);
        for (layer, attention) in attention.iter().enumerate() {
            for group in 0..m.spec().kv_heads {
                let scores = given(attention, &m, PROMPT..PROMPT + 12, PROMPT, group);
                let kept = &eviction.plan.keep(layer, group).rows;
                assert_eq!(*kept, best(&scores, 20), "{flavour:?}");
            }
        }
    }
}

#[test]
fn pseudo_tokens_elsewhere_or_apart_select_something_else() {
    let m = model(Flavour::Llama);
    let kept = |text: &str| decided(&m, text).0.plan;
    let plain = kept("dapq:budget=20,queries=12");
    assert_ne!(plain, kept("dapq:budget=20,queries=12,shift=300"));
    assert_ne!(plain, kept("dapq:budget=20,queries=12,linked=false"));
    assert_ne!(plain, kept("dapq:budget=20,queries=3"));
    let ends = kept("dapq:budget=20,queries=12,sinks=2,window=5");
    for layer in 0..2 {
        let rows = &ends.keep(layer, 1).rows;
        assert_eq!((&rows[..2], &rows[15..]), (&[0, 1][..], &[75, 76, 77, 78, 79][..]));
    }
}

fn answer(m: &dyn Backbone, calls: &[&str]) -> Result<Outcome, Error> {
    let words = Words::bytes();
    let call = |text: &&str| MethodCall::parse(ENTRIES, text).unwrap();
    let mut request = Request::new(tokens(PROMPT));
    request.recipe = Recipe::resolve(ENTRIES, &calls.iter().map(call).collect::<Vec<_>>())?;
    request.sampling = Sampling::neutral();
    (request.max_tokens, request.ignore_end) = (Some(30), true);
    let model = Model { backbone: m, vocabulary: &words, draft: Some(m), filling: None };
    generate(model, &request, &mut |_| Control::Continue, &AtomicBool::new(false))
}

#[test]
fn what_does_not_go_together_is_refused_by_name_and_everything_else_runs() {
    let m = model(Flavour::Gemma);
    for (calls, word) in [
        (["treekv:budget=20", "skipdecode"], "skipdecode"),
        (["skipdecode", "treekv:budget=20,per_head=true"], "skipdecode"),
        (["treekv:budget=20", "streaming"], "streaming"),
        (["snapkv", "dapq"], "dapq"),
        (["random-eviction", "snapkv"], "snapkv"),
    ] {
        let error = answer(&m, &calls).unwrap_err().to_string();
        assert!(error.contains("cannot be combined") && error.contains(word), "{error}");
    }
    let reducers = [
        "streaming:budget=20",
        "streaming:budget=20,rerank=true",
        "random-eviction:budget=20,decode=true",
        "snapkv:budget=40",
        "dapq:ratio=0.7",
        "treekv:budget=20,leaves=younger",
    ];
    for reducer in reducers {
        assert!(answer(&m, &[reducer, "skipdecode"]).is_ok(), "{reducer}");
    }
    for reducer in
        reducers.into_iter().chain(["treekv:budget=20", "treekv:budget=20,per_head=true"])
    {
        let alone = answer(&m, &[reducer]).unwrap();
        assert!(alone.stats.forgotten() > 0.2, "{reducer}");
        for drafter in ["draft-model", "skipdecode-draft:share=1", "dyspec", "token-recycling"] {
            for rule in ["keyed", "residual"] {
                let with = answer(&m, &[reducer, drafter, rule]).unwrap();
                assert_eq!(with.choices[0].tokens.len(), 30, "{reducer} {drafter} {rule}");
            }
        }
        // What drafts is the target itself, which sees the same cache: everything is accepted.
        let own = answer(&m, &[reducer, "skipdecode-draft:share=1"]).unwrap().stats;
        assert_eq!(own.accepted_tokens, own.drafted_tokens, "{reducer}");
    }
}

/// Notes for every pass that adds rows how many there are and at which position it goes on.
struct Watching<'a> {
    model: &'a CpuBackbone,
    seen: Mutex<Vec<(usize, Position)>>,
}

impl Backbone for Watching<'_> {
    fn name(&self) -> &str {
        self.model.name()
    }
    fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }
    fn capabilities(&self) -> Capabilities {
        self.model.capabilities()
    }
    fn new_cache(&self, options: CacheOptions) -> tessera_core::Result<Box<dyn KvStore>> {
        self.model.new_cache(options)
    }
    fn unrotate(&self, cache: &mut dyn KvStore) -> tessera_core::Result<()> {
        self.model.unrotate(cache)
    }
    fn forward(&self, pass: &mut Pass<'_, '_>, reveal: &mut Reveal) -> tessera_core::Result<()> {
        for segment in pass.segments.iter().filter(|s| s.write == Write::Append) {
            let held = segment.cache.as_ref().map_or(0, |cache| cache.table().len());
            self.seen.lock().unwrap().push((held, segment.positions[0]));
        }
        self.model.forward(pass, reveal)
    }
}

#[test]
fn the_text_goes_on_behind_the_ranks_or_at_its_own_place() {
    let m = model(Flavour::Llama);
    for drafter in [&[][..], &["prompt-lookup"]] {
        for (text, ranked) in [
            ("treekv:budget=20", true),
            ("streaming:budget=20,rerank=true", true),
            ("treekv:budget=20,rerank=false", false),
            ("streaming:budget=20", false),
            ("snapkv:budget=20,window=4", false),
        ] {
            let watching = Watching { model: &m, seen: Mutex::default() };
            let made = answer(&watching, &[drafter, &[text]].concat()).unwrap();
            let seen = watching.seen.into_inner().unwrap();
            assert_eq!(seen[0], (0, 0));
            let mut last = PROMPT as Position;
            for (i, &(held, position)) in seen[1..].iter().enumerate() {
                if ranked {
                    assert_eq!((held, position), (20, 20), "{text}, step {i}");
                } else {
                    assert!(position >= last && (i > 0 || position == last), "{text}, step {i}");
                    last = position + 1;
                }
            }
            let steps = made.stats.passes - 1;
            assert_eq!(seen.len() - 1, steps, "{text}");
            assert!(ranked || drafter.len() == 1 || last as usize == PROMPT + steps);
        }
    }
}

/// Reads the first rows only, more of them the longer its own text is, in passes of a given kind.
#[derive(Debug, Clone)]
struct Short {
    prefill: bool,
    asked: u32,
}

impl Sites for Short {
    fn reads(&self, layer: usize) -> bool {
        layer == 0
    }

    fn read(&mut self, evidence: &ReadEvidence<'_>) -> tessera_core::Result<Option<Vec<Vec<Row>>>> {
        assert_eq!((evidence.segment, evidence.layer), (0, 0));
        self.asked += 1;
        let rows = evidence.keys.rows(0) - evidence.positions.len();
        Ok(Some(vec![(0..(8 + self.asked).min(rows as u32)).collect(); 2]))
    }
}

impl Reduce for Short {
    fn fork(&self) -> Box<dyn Reduce> {
        Box::new(self.clone())
    }
    fn chunk(&self) -> Option<usize> {
        self.prefill.then_some(32)
    }
    fn prefill_sites(&mut self) -> Option<&mut dyn Sites> {
        if self.prefill { Some(self) } else { None }
    }
    fn decode_sites(&mut self) -> Option<&mut dyn Sites> {
        if self.prefill { None } else { Some(self) }
    }
}

static IN_PREFILL: MethodEntry = MethodEntry {
    slug: "in-prefill",
    places: &[Place { role: Role::Reduce, site: Site::Prefill }],
    build: |_| Ok(Method::Reduce(Box::new(Short { prefill: true, asked: 0 }))),
    ..streaming::ENTRY
};
static IN_DECODE: MethodEntry = MethodEntry {
    slug: "in-decode",
    places: &[Place { role: Role::Reduce, site: Site::Decode }],
    build: |_| Ok(Method::Reduce(Box::new(Short { prefill: false, asked: 0 }))),
    ..streaming::ENTRY
};

#[test]
fn policies_inside_passes_act_for_their_own_text_and_leave_no_rows_to_others() {
    let m = model(Flavour::Qwen);
    let words = Words::bytes();
    let run = |sequence: &mut Sequence, slugs: &[&str], choices| {
        let entries = [&IN_PREFILL, &IN_DECODE, &tessera_methods::draft::prompt_lookup::ENTRY];
        let call = |slug: &&str| MethodCall { id: (*slug).to_owned(), ..MethodCall::default() };
        let calls: Vec<MethodCall> = slugs.iter().map(call).collect();
        let mut request = Request::new(tokens(PROMPT));
        request.recipe = Recipe::resolve(&entries, &calls).unwrap();
        request.sampling = Sampling::neutral();
        (request.max_tokens, request.ignore_end, request.choices) = (Some(20), true, choices);
        let model = Model { backbone: &m, vocabulary: &words, draft: None, filling: None };
        let cancel = AtomicBool::new(false);
        generate_in(model, sequence, &request, &mut |_| Control::Continue, &cancel).unwrap()
    };
    let fresh = || Sequence::new(&m, 128).unwrap();
    let plain = run(&mut fresh(), &[], 1);
    for (slugs, reused) in
        [(&["in-prefill"][..], 0), (&["in-decode"], PROMPT - 1), (&["in-prefill", "in-decode"], 0)]
    {
        let alone = run(&mut fresh(), slugs, 1);
        assert_ne!(alone.choices, plain.choices, "{slugs:?}");
        assert_eq!(alone.choices[0], run(&mut fresh(), slugs, 3).choices[0], "{slugs:?}");
        // Passes of 32 rows where the policy asks for them: 3 for 80, and 19 for the text.
        let passes = if slugs[0] == "in-prefill" { 22 } else { 20 };
        assert_eq!(alone.stats.passes, passes);
        // 19 steps, two key heads: what the caches held before each, and in layer 0 the 71 rows that
        // the policy leaves out of 80 + s when it names 8 + s + 1.
        let held: u64 = (0..19).map(|s| (2 * m.spec().layers * (PROMPT + s)) as u64).sum();
        let unread = if slugs.contains(&"in-decode") { 19 * 2 * 71 } else { 0 };
        assert_eq!((alone.stats.held_rows, alone.stats.read_rows), (held, held - unread));
        let mut sequence = fresh();
        run(&mut sequence, &[], 1);
        let after = run(&mut sequence, slugs, 1);
        assert_eq!((&after.choices, after.stats.reused_tokens), (&alone.choices, reused));
        let again = run(&mut sequence, &[], 1);
        assert_eq!((&again.choices, again.stats.reused_tokens), (&plain.choices, reused));
    }
    // With drafts, whatever is guessed is computed under the same policy.
    let drafted = run(&mut fresh(), &["in-prefill", "prompt-lookup"], 2);
    assert_eq!(drafted.choices[0], run(&mut fresh(), &["in-prefill"], 1).choices[0]);
}
