//! Long because every published decoder of models that fill masks is held against the same sources.
//!
//! Decoders of models that fill masks, against sources whose every conditional is known.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::atomic::AtomicBool;

use tessera_core::dist::chi::{ERROR_LEVEL, goodness};
use tessera_core::dist::{Key, Sampling};
use tessera_core::entry::MethodCall;
use tessera_core::{Backbone, Canvas, Control, Event, Filling, TokenId};
use tessera_engine::{Model, Outcome, Recipe, Request, generate};
use tessera_methods::ENTRIES;
use tessera_methods::second_model::SecondModel;
use tessera_methods::unmask::edlm::{Energy, surprise};
use tessera_testkit::{Chain, Modes, Scripted, Words};

fn recipe(methods: &[&str]) -> Recipe {
    let calls: Vec<MethodCall> =
        methods.iter().map(|m| MethodCall::parse(ENTRIES, m).unwrap()).collect();
    Recipe::resolve(ENTRIES, &calls).unwrap()
}

/// What a text is made of: after token 0, of `length` masks.
struct Run<'a> {
    model: &'a Scripted,
    filling: Filling,
    guide: Option<&'a Scripted>,
    sampling: Sampling,
    prior: &'a [TokenId],
    length: usize,
}

impl<'a> Run<'a> {
    fn of(model: &'a Scripted, filling: Filling, length: usize) -> Self {
        Self { model, filling, guide: None, sampling: Sampling::neutral(), prior: &[], length }
    }

    fn greedy(self) -> Self {
        Self { sampling: Sampling::greedy(), ..self }
    }

    fn with_guide(self, guide: &'a Scripted) -> Self {
        Self { guide: Some(guide), ..self }
    }

    fn with_prior(self, prior: &'a [TokenId]) -> Self {
        Self { prior, ..self }
    }

    fn hear(&self, recipe: &Recipe, seed: u64, hear: &mut dyn FnMut(Event<'_>)) -> Outcome {
        let letters = Words::new((0..self.model.spec().vocab).map(|i| [b'a' + i as u8]));
        let model = Model {
            backbone: self.model,
            vocabulary: &letters,
            draft: self.guide.map(|g| g as &dyn Backbone),
            filling: Some(self.filling),
        };
        let mut request = Request::new(vec![0]);
        request.max_tokens = Some(self.length);
        request.sampling = self.sampling;
        request.seed = seed;
        request.ignore_end = true;
        request.canvas.prior = self.prior.to_vec();
        request.recipe = recipe.clone();
        let mut listener = |event: Event<'_>| {
            hear(event);
            Control::Continue
        };
        generate(model, &request, &mut listener, &AtomicBool::new(false)).unwrap()
    }

    /// The text and the passes it took.
    fn text(&self, methods: &[&str], seed: u64) -> (Vec<TokenId>, usize) {
        let made = self.hear(&recipe(methods), seed, &mut |_| {});
        (made.choices[0].tokens.clone(), made.stats.passes)
    }
}

/// Checks that two recipes give the same texts in the same passes.
fn same(methods: &[&str], reference: &[&str]) {
    for seed in 0..6 {
        let chain = Chain::seeded(5, seed, 3.0);
        let model = chain.denoiser(64);
        for run in
            [Run::of(&model, chain.filling(), 12), Run::of(&model, chain.filling(), 12).greedy()]
        {
            assert_eq!(run.text(methods, seed), run.text(reference, seed), "{methods:?}");
        }
    }
}

#[test]
fn ete_without_exploration_is_threshold_decoding_and_above_one_the_plain_run() {
    same(&["ete:ahead=0,explore=confidence,block=4"], &["threshold", "blocks:length=4"]);
    same(&["ete:ahead=0,explore=e1,block=4,tau=0.5"], &["threshold:tau=0.5", "blocks:length=4"]);
    same(&["ete:tau=2,explore=confidence,block=4"], &["blocks:length=4"]);
    same(&["ete:tau=2,explore=confidence"], &[]);
}

#[test]
fn ete_explores_what_makes_the_rest_certain() {
    let rounds = |source: &Modes, length: usize, method: &str| {
        let model = source.denoiser(1, 64);
        let run = Run::of(&model, source.filling(), length).greedy();
        let made = run.hear(&recipe(&[method]), 0, &mut |_| {});
        assert!(source.makes(&made.choices[0].tokens), "{method}: {:?}", made.choices[0].tokens);
        let took = made.stats.denoised.unwrap();
        // ln 2 nats whatever the order: it is one decision.
        assert!((took.nats - 2f64.ln()).abs() < 1e-6 && took.most_nats == took.nats, "{took:?}");
        (took.rounds, made.stats.passes)
    };
    let bare = Modes::two(4, 0);
    for method in ["threshold", "ete:explore=confidence", "ete:explore=entropy", "ete:explore=gain"]
    {
        // The canvas that `gain` looked at is the next step's: as many passes.
        assert_eq!(rounds(&bare, 4, method), (2, 2), "{method}");
    }
    let filled = Modes::two(4, 12);
    assert_eq!(rounds(&filled, 16, "threshold"), (3, 3));
    assert_eq!(rounds(&filled, 16, "ete:explore=confidence"), (3, 3));
    for explore in ["entropy", "plausible", "gain"] {
        let method = format!("ete:explore={explore},enough=1000");
        assert_eq!(rounds(&filled, 16, &method), (2, 2), "{method}");
    }
}

#[test]
fn nats_of_rounds_sum_to_the_path_and_bound_their_number() {
    for (seed, method) in (0..20).flat_map(|s| {
        ["threshold:rule=factor", "threshold", "ete", "ete:explore=gain,enough=3"].map(|m| (s, m))
    }) {
        let chain = Chain::seeded(4, seed, 4.0);
        let model = chain.denoiser(64);
        let run = Run::of(&model, chain.filling(), 16);
        let mut rounds: Vec<(usize, f64)> = Vec::new();
        let made = run.hear(&recipe(&[method]), seed, &mut |event| {
            if let Event::Denoised { tokens, nats, .. } = event {
                rounds.push((tokens.len(), nats));
            }
        });
        let took = made.stats.denoised.unwrap();
        let sum: f64 = rounds.iter().map(|r| r.1).sum();
        assert!((sum - took.nats).abs() < 1e-9 && took.rounds == rounds.len());
        assert!(took.rounds as f64 * took.most_nats >= took.nats - 1e-9);
        for (n, nats) in rounds.iter().map(|&(n, nats)| (n as f64, nats)).filter(|r| r.0 > 1.0) {
            match method {
                // (n + 1) (1 - c_n) <= 1, so every confidence is at least 1 - 1 / (n + 1).
                "threshold:rule=factor" => {
                    assert!(nats <= -n * (1.0 - 1.0 / (n + 1.0)).ln() + 1e-6)
                }
                "threshold" => assert!(nats <= -n * 0.9f64.ln() + 1e-6),
                _ => {}
            }
        }
    }
}

#[test]
fn ccd_without_history_or_beyond_its_warm_up_is_entropy_decoding() {
    let entropy = &["confidence:score=entropy"];
    same(&["ccd:form=soft,history=1,dynamic=false"], entropy);
    same(&["ccd:warm_up=1000"], entropy);
    same(&["ccd:warm_up=0,buffer=1"], entropy);
    same(&["ccd:form=soft,history=64"], entropy);
    same(&["ccd:warm_up=1000,score=probability"], &[]);
}

#[test]
fn ccd_saves_steps_by_what_two_steps_agree_on() {
    let (mut passes, mut wide) = (0, 0);
    for seed in 0..10 {
        let chain = Chain::seeded(5, seed, 4.0);
        let model = chain.denoiser(64);
        let run = Run::of(&model, chain.filling(), 24).greedy();
        passes += run.text(&["ccd"], seed).1;
        assert_eq!(run.text(&["ccd:dynamic=false"], seed).1, 24);
        wide += run.text(&["ccd:form=soft,history=2,eps=1000"], seed).1;
    }
    assert!(passes < 200 && wide < 200, "{passes} and {wide} passes for 240 tokens");
}

#[test]
fn a_start_of_which_nothing_is_kept_is_the_plain_one() {
    let chain = Chain::seeded(4, 2, 2.0);
    let model = chain.denoiser(64);
    for seed in 0..10 {
        let run = Run::of(&model, chain.filling(), 10).with_prior(&[1, 2, 3, 0, 1]);
        let plain = run.text(&["threshold"], seed);
        for method in [
            "context-aware-init:rho=1",
            "context-aware-init:form=embeddings,alpha=1",
            "context-aware-init:rho=1,scope=new,bias=-1",
            "context-aware-init:rho=1,scope=both,bias=-2",
        ] {
            assert_eq!(run.text(&[method, "threshold"], seed), plain, "{method}");
        }
        // All that the first step wrote is undone, and written again: the draws are keyed.
        let (text, passes) =
            run.text(&["context-aware-init:rho=1,scope=new,bias=1,slope=3", "threshold"], seed);
        assert_eq!((text, passes), (plain.0, plain.1 + 1));
    }
}

#[test]
fn kept_tokens_save_their_passes_and_doubt_costs_some() {
    let chain = Chain::seeded(4, 2, 2.0);
    let model = chain.denoiser(64);
    let prior = [1, 2, 3, 0, 1];
    let run = Run::of(&model, chain.filling(), 10).with_prior(&prior);
    let (text, passes) = run.text(&["context-aware-init:rho=0"], 3);
    assert_eq!((&text[..5], passes), (&prior[..], 5));
    for scope in ["new", "prior", "both"] {
        let method = format!("context-aware-init:rho=0,scope={scope}");
        let (text, passes) = run.text(&[&method], 3);
        assert!(text.len() == 10 && passes > 5, "{scope}: {passes}");
    }
    // Without a prior the guide writes one; a whole answer leaves nothing to do.
    let writer = chain.writer(64);
    let run = Run::of(&model, chain.filling(), 10).greedy().with_guide(&writer);
    let made = run.hear(&recipe(&["context-aware-init:rho=0"]), 0, &mut |_| {});
    let left_to_right = run.text(&["blocks:length=1"], 0).0;
    assert_eq!((&made.choices[0].tokens, made.stats.passes), (&left_to_right, 0));
    assert_eq!(made.stats.denoised.unwrap().guide_passes, 10);
}

#[test]
fn confident_decoding_is_its_schedule_or_one_pass() {
    same(&["dimple:gamma=1"], &[]);
    same(&["dimple:gamma=1,fallback=leftmost"], &["blocks:length=1"]);
    same(&["dimple:gamma=0"], &["threshold:tau=0"]);
    let chain = Chain::seeded(5, 1, 3.0);
    let model = chain.denoiser(64);
    let run = Run::of(&model, chain.filling(), 12).greedy();
    assert_eq!(run.text(&["dimple:gamma=0.05"], 0).1, 1);
    assert!(run.text(&["dimple:gamma=1,steps=4"], 0).1 <= 4);
}

#[test]
fn guided_diffusion_writes_the_models_text_whatever_the_guide() {
    let (mut passes, mut guided) = (0, 0);
    for seed in 0..10 {
        let chain = Chain::seeded(5, seed, 3.0);
        let (model, writer) = (chain.denoiser(64), chain.writer(64));
        let mask = chain.states();
        // Always says the mask, which nobody drafts.
        let contrary = Scripted::new(mask + 1, 64, move |_, logits| logits[mask] = 9.0);
        let run = Run::of(&model, chain.filling(), 16).greedy();
        let left_to_right = run.text(&["blocks:length=1"], 0);
        assert_eq!(left_to_right.1, 16);
        let run = run.with_guide(&contrary);
        assert_eq!(run.text(&["guided-diffusion"], 0), left_to_right);
        for chunk in ["1", "3", "32"] {
            let run = Run::of(&model, chain.filling(), 16).greedy().with_guide(&writer);
            let (text, took) = run.text(&[&format!("guided-diffusion:chunk={chunk}")], 0);
            assert_eq!(text, left_to_right.0, "chunk {chunk}");
            guided += took;
            passes += 16;
        }
    }
    assert!(2 * guided < passes, "{guided} of {passes}");
}

#[test]
fn a_dllm_asr_start_is_as_good_as_its_prior() {
    same(&["dllm-asr:prune=off"], &["threshold"]);
    same(&["dllm-asr:prune=off,tau=2"], &[]);
    same(&["dllm-asr:tau=0", "blocks:length=4"], &["threshold:tau=0", "blocks:length=4"]);
    let chain = Chain::seeded(4, 2, 2.0);
    let (model, writer) = (chain.denoiser(64), chain.writer(64));
    let exact = [1, 2, 3, 0, 1];
    let run = Run::of(&model, chain.filling(), 32).with_prior(&exact).with_guide(&writer);
    assert_eq!(run.text(&["dllm-asr:prior=tokens,margin=0"], 0), (exact.to_vec(), 0));
    let (text, _) = run.text(&["dllm-asr:prior=length,margin=2"], 0);
    assert_eq!(text.len(), 7);
    // Nothing is that sure, everything is sure enough.
    let none = run.text(&["dllm-asr:prior=confident,sure=1,margin=0"], 0);
    assert_eq!(none, run.text(&["dllm-asr:prior=length,margin=0"], 0));
    let all = run.text(&["dllm-asr:prior=confident,sure=0,margin=0"], 0);
    assert_eq!(all, (exact.to_vec(), 0));
}

/// After token 2, `0` or `1` with equal chances, and then the same again: the masks' distributions are
/// flat, and half of their product is impossible.
fn twins() -> Chain {
    let floor = 1e-9;
    Chain::new(vec![
        vec![1.0 - floor, floor / 2.0, floor / 2.0],
        vec![floor / 2.0, 1.0 - floor, floor / 2.0],
        vec![0.5, 0.5, 0.0],
    ])
}

#[test]
fn edlm_picks_a_consistent_candidate_if_there_is_one() {
    // State 2 must come first: the chain is turned so that the prompt's token 0 is it.
    let chain = twins();
    let turned: Vec<Vec<f64>> = [2, 0, 1]
        .iter()
        .map(|&a| [2, 0, 1].map(|b: usize| chain.transition[a][b]).to_vec())
        .collect();
    let chain = Chain::new(turned);
    let (model, writer) = (chain.denoiser(16), chain.writer(16));
    let run = Run::of(&model, chain.filling(), 2).with_guide(&writer);
    for (k, energy) in [(1, "ar"), (2, "ar"), (8, "ar"), (2, "coar")] {
        let expected = 1.0 - 0.5f64.powi(k);
        let recipe = recipe(&[&format!("edlm:k={k},steps=1,energy={energy}")]);
        let draws = 4000u64;
        let alike = |&seed: &u64| {
            let made = run.hear(&recipe, seed, &mut |_| {});
            made.choices[0].tokens[0] == made.choices[0].tokens[1]
        };
        let found = (0..draws).filter(alike).count() as f64 / draws as f64;
        let error = 5.0 * (expected * (1.0 - expected) / draws as f64).sqrt();
        assert!((found - expected).abs() <= error, "k = {k}: {found}, not {expected}");
    }
}

/// How far the texts of two tokens are from the chain's law: the tail of a chi-square test, and half
/// the sum of differences.
fn distance(chain: &Chain, method: &str, draws: u64) -> (f64, f64) {
    let (model, writer) = (chain.denoiser(16), chain.writer(16));
    let run = Run::of(&model, chain.filling(), 2).with_guide(&writer);
    let (recipe, joint) = (recipe(&[method]), chain.joint(0, 2));
    let mut counts = vec![0u64; joint.len()];
    for seed in 0..draws {
        let made = run.hear(&recipe, seed, &mut |_| {});
        counts[chain.index(&made.choices[0].tokens)] += 1;
    }
    let apart = |(&n, p): (&u64, &f64)| (n as f64 / draws as f64 - p).abs() / 2.0;
    (goodness(&counts, &joint), counts.iter().zip(&joint).map(apart).sum())
}

#[test]
fn edlm_goes_from_the_product_to_the_law_as_candidates_grow() {
    let chain = Chain::seeded(3, 11, 3.0);
    let (one, two, many) = (
        distance(&chain, "edlm:k=1,steps=1", 6000),
        distance(&chain, "edlm:k=2,steps=1", 6000),
        distance(&chain, "edlm:k=64,steps=1", 6000),
    );
    assert!(many.0 > ERROR_LEVEL, "{many:?}");
    assert!(one.0 < 1e-6 && two.0 < 1e-6, "{one:?} {two:?}");
    assert!(many.1 < two.1 && two.1 < one.1, "{one:?} {two:?} {many:?}");
}

#[test]
fn edlm_with_one_candidate_or_no_window_is_ancestral() {
    let chain = Chain::seeded(4, 5, 3.0);
    let (model, writer) = (chain.denoiser(64), chain.writer(64));
    let run = Run::of(&model, chain.filling(), 12).with_guide(&writer);
    for seed in 0..10 {
        let plain = run.text(&["ancestral:steps=6"], seed);
        assert_eq!(run.text(&["edlm:k=1,steps=6"], seed), plain);
        assert_eq!(run.text(&["edlm:k=8,window=0,steps=6"], seed), plain);
        let windowed = run.hear(&recipe(&["edlm:k=8,window=0.2,steps=6"]), seed, &mut |_| {});
        // One candidate more than grid times of the first fifth, at most.
        let guide = windowed.stats.denoised.unwrap().guide_passes;
        assert!((1..=4).contains(&guide), "{guide}");
    }
}

#[test]
fn edlm_weighs_all_candidates_the_same_where_the_source_is_independent() {
    let row = vec![0.5, 0.3, 0.2];
    let chain = Chain::new(vec![row.clone(), row.clone(), row]);
    let (model, writer) = (chain.denoiser(64), chain.writer(64));
    let run = Run::of(&model, chain.filling(), 6).with_guide(&writer);
    let mut effective = None;
    run.hear(&recipe(&["edlm:k=8"]), 1, &mut |event| {
        if let Event::Counted { name: "effective candidates, on average", value, .. } = event {
            effective = Some(value);
        }
    });
    assert!((effective.unwrap() - 8.0).abs() < 1e-3, "{effective:?}");
}

#[test]
fn the_carry_over_bound_is_the_causal_models_own_likelihood() {
    // (N / k) sum over a random k-subset of masks of (-ln mu + E), E = ln mu - ln p: mu cancels, and
    // every place is masked with probability k / N.
    let (chain, other) = (Chain::seeded(4, 8, 2.0), Chain::seeded(4, 9, 2.0));
    let writer = other.writer(64);
    let text: Vec<TokenId> = vec![1, 3, 0, 2, 2, 1];
    let own: f64 = -other.probability(0, &text).ln();
    let n = text.len();
    let (draws, mut sum, mut squares) = (4000u64, 0.0, 0.0);
    for seed in 0..draws {
        let key = Key::new(seed, 0, 0);
        let k = 1 + (key.uniform(99) * n as f64) as usize;
        let mut places: Vec<usize> = (0..n).collect();
        places.sort_by(|&a, &b| key.uniform(a as u32).total_cmp(&key.uniform(b as u32)));
        let mut canvas = Canvas::new(&[0], n, chain.filling().mask);
        for &place in &places[k..] {
            canvas.give(place as u32 + 1, text[place]).unwrap();
        }
        let visible: Vec<Option<TokenId>> =
            canvas.tokens().iter().map(|&t| (t != canvas.mask()).then_some(t)).collect();
        let laws = chain.laws(&visible);
        let mu: f64 = places[..k].iter().map(|&p| laws[p + 1][text[p] as usize].ln()).sum();
        let first = canvas.masked().next().unwrap() as usize - 1;
        let mut reader = SecondModel::default();
        let nats = surprise(
            &mut reader,
            &writer,
            &canvas,
            &[text[first..].to_vec()],
            Energy::Coar,
            chain.states() + 1,
        );
        let energy = nats.unwrap()[0] + mu;
        let estimate = n as f64 / k as f64 * (energy - mu);
        sum += estimate;
        squares += estimate * estimate;
    }
    let mean = sum / draws as f64;
    let error = ((squares / draws as f64 - mean * mean) / draws as f64).sqrt();
    assert!((mean - own).abs() < 4.0 * error, "{mean} +- {error}, not {own}");
}
