//! Long because every law stands here once, for the whole registry.
//!
//! Laws that every entry of the registry obeys.
//!
//! Each law is a function from an entry to what it found wrong, so that the same laws run over the
//! registry (all must hold) and over deliberately broken entries (each must be caught).

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};
use tessera_core::constrain::Masking;
use tessera_core::dist::chi::{ERROR_LEVEL, goodness};
use tessera_core::dist::{Key, Sampler, Sampling};
use tessera_core::entry::{Exactness, Kind, Method, MethodCall, MethodEntry, Role, Settings, Site};
use tessera_core::{
    Backbone, CacheOptions, ConstrainedDraw, ConstrainedSampler, Constraint, Control, DraftContext,
    DraftTree, FinishReason, Guard, Judged, Judgement, Lent, Pass, Predicate, Reveal, Segment,
    TokenId, Vocabulary,
};
use tessera_engine::{
    Completion, CostCurve, Model, Outcome, Recipe, Request, Sequence, generate, generate_in,
};

use crate::texts::Question;
use crate::{Scripted, Words, denoising, reduction, windows};

/// What a law found wrong.
pub type Finding = Result<(), String>;

/// A law's name and test.
pub type Law = (&'static str, fn(&'static MethodEntry) -> Finding);

/// The laws of entries, whatever their kind.
pub const ENTRY_LAWS: &[Law] = &[
    ("names are well formed", names),
    ("sites belong to their roles", sites),
    ("every setting is documented", schema),
    ("defaults are complete and valid", defaults),
    ("unknown settings are refused", unknown),
    ("a lossy method says what may change", honesty),
    ("neutral settings are the plain run", neutral),
    ("a bit-exact method gives the plain run's text", bit_exact),
    ("a drafter keeps its budget and its depth", drafts),
    ("what a drafter has learnt changes no text", learnt),
    ("a schedule never takes a skipped layer up again", nested),
    ("what is kept obeys the budget", reduction::plans),
    ("a ratio of 0 forgets nothing", reduction::identity),
    ("forks of a reduction are independent", reduction::forks),
    ("guesses that fail change nothing that is kept", reduction::failed_guesses),
    ("the target's distribution is kept", distribution),
    ("a constraint's rollback is exact and its forks are independent", states),
    ("a constrained text meets its constraint", meets),
    ("a constrained sampler draws what masking draws", draws_as_masking),
    ("neutral settings of unmasking are the plain canvas", denoising::neutral),
    ("every mask is filled and what is given stays", denoising::fills),
    ("equal seeds give equal canvases, whatever the other choices", denoising::seeded),
    ("a window computes and reads lawful rows", windows::plans),
];

/// Runs every law over every entry; returns one line per breach.
pub fn check(entries: &[&'static MethodEntry]) -> Vec<String> {
    let mut found = Vec::new();
    for (entry, (law, test)) in entries.iter().flat_map(|e| ENTRY_LAWS.iter().map(move |l| (e, l)))
    {
        if let Err(what) = test(entry) {
            found.push(format!("{}: {law}: {what}", entry.slug));
        }
    }
    found
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Finding {
    if holds { Ok(()) } else { Err(what()) }
}

fn names(entry: &'static MethodEntry) -> Finding {
    for name in std::iter::once(&entry.slug).chain(entry.aliases) {
        let good = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        ensure(good && !name.is_empty() && !name.starts_with('-'), || {
            format!("`{name}` must be lower-case words joined by `-`")
        })?;
    }
    ensure(entry.summary.ends_with('.') && !entry.name.is_empty(), || {
        "needs a name, and a summary that is a sentence".to_owned()
    })
}

fn sites(entry: &'static MethodEntry) -> Finding {
    ensure(entry.places.is_empty() != (entry.kind == Kind::Policy), || {
        "a policy has places, anything else has none".to_owned()
    })?;
    match entry.places.iter().find(|p| !p.site.belongs_to(p.role)) {
        Some(place) => Err(format!("{:?} has no site {:?}", place.role, place.site)),
        None => Ok(()),
    }
}

fn schema(entry: &'static MethodEntry) -> Finding {
    let schema = (entry.schema)();
    let root = schema.as_value();
    ensure(root.get("additionalProperties") == Some(&json!(false)), || {
        "the settings must be `deny_unknown_fields`".to_owned()
    })?;
    let Some(properties) = root.get("properties").and_then(Value::as_object) else {
        return Ok(());
    };
    for (field, property) in properties {
        let documented = property.get("description").and_then(Value::as_str).is_some();
        ensure(documented, || format!("`{field}` has no doc comment"))?;
    }
    Ok(())
}

fn defaults(entry: &'static MethodEntry) -> Finding {
    let defaults = (entry.defaults)();
    let schema = (entry.schema)();
    let fields = schema.as_value().get("properties").and_then(Value::as_object);
    let missing =
        fields.into_iter().flat_map(|f| f.keys()).find(|f| !defaults.contains_key(f.as_str()));
    ensure(missing.is_none(), || format!("{missing:?} has no default"))?;
    let resolved = entry.resolve(&defaults).map_err(|e| e.to_string())?;
    ensure(resolved == defaults, || "resolving the defaults changes them".to_owned())?;
    (entry.build)(&defaults).map(|_| ()).map_err(|e| e.to_string())
}

fn unknown(entry: &'static MethodEntry) -> Finding {
    let mut settings = (entry.defaults)();
    settings.insert("no_such_setting".to_owned(), json!(1));
    match entry.resolve(&settings) {
        Err(e) if e.to_string().contains("no_such_setting") => Ok(()),
        Err(e) => Err(format!("the error does not name the setting: {e}")),
        Ok(_) => Err("an unknown setting was accepted".to_owned()),
    }
}

fn honesty(entry: &'static MethodEntry) -> Finding {
    match entry.exactness {
        Exactness::Lossy { what } => {
            ensure(what.len() >= 8, || "`lossy` without saying what may change".to_owned())
        }
        _ => Ok(()),
    }
}

/// Layers of the toys: passes that skip some of them make other logits.
const LAYERS: usize = 4;

/// A toy whose logits depend on everything it sees, so that guesses fail.
pub fn hashed_toy(seed: u64) -> Scripted {
    Scripted::hashed(258, 256, seed, 6.0).with_layers(LAYERS)
}

/// A toy that writes ASCII and ends, and never a control token.
pub fn text_toy(seed: u64) -> Scripted {
    let words = Words::bytes();
    let end = words.end() as usize;
    Scripted::new(258, 256, move |seen, logits| {
        let mut key = Key::new(seed, 0, 0);
        for &(position, token) in &seen[seen.len().saturating_sub(4)..] {
            key = key.purpose(u64::from(position) << 32 | u64::from(token));
        }
        for (id, logit) in logits.iter_mut().enumerate() {
            let text = (32..127).contains(&id) || id == end;
            *logit = if text { 6.0 * key.uniform(id as TokenId) as f32 } else { f32::NEG_INFINITY };
        }
    })
    .with_layers(LAYERS)
}

fn constrains(entry: &MethodEntry) -> bool {
    entry.places.iter().any(|p| p.role == Role::Constrain)
}

fn sits(entry: &MethodEntry, site: Site) -> bool {
    entry.places.iter().any(|p| p.site == site)
}

/// A toy that mostly says what it said after the last two tokens before, so that guesses come true.
pub fn repeating_toy() -> Scripted {
    Scripted::new(258, 256, |seen, logits| {
        let mut key = Key::new(11, 0, 0);
        for &(_, token) in &seen[seen.len().saturating_sub(2)..] {
            key = key.purpose(u64::from(token % 5));
        }
        for (id, logit) in (0..).zip(logits) {
            *logit = 6.0 * key.uniform(id) as f32 + if id % 16 == 1 { 3.0 } else { 0.0 };
        }
    })
    .with_layers(LAYERS)
}

/// Runs `calls` on a seeded toy, with a slightly different one as its draft model, and returns the
/// text.
pub fn toy_run(
    entries: &[&'static MethodEntry],
    calls: &[MethodCall],
    sampling: Sampling,
) -> Result<Completion, String> {
    toy_run_on(&hashed_toy(11), &hashed_toy(12), entries, calls, sampling)
}

/// [`toy_run`] on given models.
pub fn toy_run_on(
    toy: &dyn Backbone,
    draft: &dyn Backbone,
    entries: &[&'static MethodEntry],
    calls: &[MethodCall],
    sampling: Sampling,
) -> Result<Completion, String> {
    let words = Words::bytes();
    let mut request = Request::new(words.encode_bytes(b"a toy prompt"));
    request.recipe = Recipe::resolve(entries, calls).map_err(|e| e.to_string())?;
    request.sampling = sampling;
    request.max_tokens = Some(40);
    let model = Model { backbone: toy, vocabulary: &words, draft: Some(draft), filling: None };
    let cancel = AtomicBool::new(false);
    let outcome = generate(model, &request, &mut |_| Control::Continue, &cancel);
    let mut choices = outcome.map_err(|e| e.to_string())?.choices;
    ensure(choices.len() == 1, || "one choice".to_owned())?;
    ensure(choices[0].reason != FinishReason::Cancelled, || "cancelled".to_owned())?;
    Ok(choices.remove(0))
}

fn neutral(entry: &'static MethodEntry) -> Finding {
    let Some(settings) = entry.neutral.filter(|_| !denoising::takes_part(entry)) else {
        return Ok(());
    };
    let call = MethodCall { id: entry.slug.to_owned(), settings: settings() };
    // A constraint keeps control tokens out of a text; a model without them is not changed.
    let toy = if constrains(entry) { text_toy(11) } else { hashed_toy(11) };
    for sampling in [Sampling::greedy(), Sampling::neutral(), Sampling::default()] {
        let run =
            |calls: &[MethodCall]| toy_run_on(&toy, &hashed_toy(12), &[entry], calls, sampling);
        let (with, plain) = (run(std::slice::from_ref(&call))?, run(&[])?);
        let with = Completion { complete: None, ..with };
        ensure(with == plain, || format!("{:?} instead of {:?}", with.tokens, plain.tokens))?;
    }
    Ok(())
}

/// Methods that promise the plain run's tokens are held to it on models on which guesses fail and
/// on which they come true, with the target itself as draft model among them.
fn bit_exact(entry: &'static MethodEntry) -> Finding {
    if entry.exactness != Exactness::BitExact || matches!(entry.kind, Kind::Program) {
        return Ok(());
    }
    if denoising::takes_part(entry) {
        return denoising::bit_exact(entry);
    }
    if constrains(entry) {
        // It takes no part without a constraint; under one it is compared with masking.
        return Ok(());
    }
    let call = MethodCall { id: entry.slug.to_owned(), settings: (entry.defaults)() };
    let (hashed, repeating) = (hashed_toy(11), repeating_toy());
    for (toy, draft) in [(&hashed, &repeating), (&repeating, &repeating), (&repeating, &hashed)] {
        for sampling in [Sampling::greedy(), Sampling::neutral(), Sampling::default()] {
            let run = |calls: &[MethodCall]| toy_run_on(toy, draft, &[entry], calls, sampling);
            let (with, plain) = (run(std::slice::from_ref(&call))?, run(&[])?);
            ensure(with == plain, || format!("{:?} instead of {:?}", with.tokens, plain.tokens))?;
        }
    }
    Ok(())
}

/// Runs of [`distribution`]: enough for most of 81 texts to be seen, and for a wrong rule to show.
const RUNS: u64 = 12_000;

/// Every drafter under residual acceptance, and every acceptance that claims to be exact under a
/// drafter that draws: all texts of four tokens of a vocabulary of three, counted and compared with
/// their probabilities (chi-square at [`ERROR_LEVEL`]), with everything that is guessed computed
/// and with a cost curve that leaves guesses out.
fn distribution(entry: &'static MethodEntry) -> Finding {
    let partner = match entry.places.first().map(|p| p.role) {
        Some(Role::Draft) => &tessera_methods::accept::residual::ENTRY,
        Some(Role::Accept) if !matches!(entry.exactness, Exactness::Lossy { .. }) => {
            &tessera_methods::draft::draft_model::ENTRY
        }
        _ => return Ok(()),
    };
    let call = |e: &MethodEntry| MethodCall { id: e.slug.to_owned(), settings: (e.defaults)() };
    let calls = [call(entry), call(partner)];
    let recipe = Recipe::resolve(&[entry, partner], &calls).map_err(|e| e.to_string())?;
    // A step of two guesses pays, one of a single guess hardly does: cuts happen.
    let curve = CostCurve {
        points: vec![(1, 1.0), (2, 1.5), (3, 1.6), (8, 2.6)],
        draft: 0.05,
        draft_row: 0.0,
    };
    let paced = recipe.clone().with_curve(curve).map_err(|e| e.to_string())?;
    let toy = Scripted::hashed(3, 64, 21, 2.0);
    let draft = Scripted::hashed(3, 64, 22, 2.0);
    let question = Question {
        prompt: vec![0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1],
        tokens: 4,
        sampling: Sampling::neutral(),
    };
    let law = question.law(&toy).map_err(|e| e.to_string())?;
    for (recipe, all) in [(recipe, true), (paced, false)] {
        let counted = question.count(&toy, &draft, &recipe, RUNS);
        let (counts, drafted) = counted.map_err(|e| e.to_string())?;
        ensure(drafted > 0 || !all, || "nothing was guessed".to_owned())?;
        let p = goodness(&counts, &law);
        ensure(p > ERROR_LEVEL, || {
            format!("texts this far from the target's law arise by chance with p = {p:.1e}")
        })?;
    }
    Ok(())
}

/// Drafters are asked directly, with small budgets and depths, along a text that repeats itself.
fn drafts(entry: &'static MethodEntry) -> Finding {
    if !entry.places.iter().any(|p| p.role == Role::Draft) {
        return Ok(());
    }
    let build = || match (entry.build)(&(entry.defaults)()) {
        Ok(Method::Draft(drafter)) => Ok(drafter),
        Ok(other) => Err(format!("plays the role of a drafter and builds {other:?}")),
        Err(error) => Err(error.to_string()),
    };
    let toy = repeating_toy();
    let text: Vec<TokenId> = (0..60).map(|i| [3, 1, 4, 1, 5][i % 5]).collect();
    for (budget, depth) in [(1, 1), (1, 9), (4, 2), (9, 1), (16, 16), (64, 3)] {
        let mut drafter = build()?;
        for known in 20..text.len() {
            let cache = toy.new_cache(CacheOptions::default()).map_err(|e| e.to_string())?;
            let mut cache = cache;
            let positions: Vec<u32> = (0..known as u32 - 1).collect();
            let mut segments = [Segment::causal(&text[..known - 1], &positions, &mut *cache)];
            let mut reveal = Reveal::new();
            toy.forward(&mut Pass::new(&mut segments), &mut reveal).map_err(|e| e.to_string())?;
            let mut tree = DraftTree::new();
            let budget = budget.min(drafter.budget());
            let mut context = DraftContext {
                tokens: &text[..known],
                prompt: 10,
                budget,
                depth,
                seed: 3,
                choice: 0,
                sampling: &Sampling::neutral(),
                target: Lent { backbone: &toy, cache: &mut *cache, position: known as u32 - 1 },
                draft: Some(&toy),
                coupled: true,
            };
            drafter.draft(&mut context, &mut tree).map_err(|e| e.to_string())?;
            tree.validate(budget, depth, 258).map_err(|e| e.to_string())?;
            ensure(cache.table().len() == known - 1, || "rows were left in the cache".to_owned())?;
        }
    }
    Ok(())
}

/// A drafter that has learnt from other models, from the same text, or from both is held to the plain
/// run's text: its guesses are then random, stale or duplicated.
fn learnt(entry: &'static MethodEntry) -> Finding {
    let drafter = entry.places.iter().any(|p| p.role == Role::Draft);
    if entry.exactness != Exactness::BitExact || !drafter {
        return Ok(());
    }
    let call = MethodCall { id: entry.slug.to_owned(), settings: (entry.defaults)() };
    let (random, other, toy) = (hashed_toy(21), hashed_toy(22), repeating_toy());
    let words = Words::bytes();
    let cancel = AtomicBool::new(false);
    let run = |sequence: &mut Sequence, toy: &Scripted, text: &[u8], calls: &[MethodCall]| {
        let recipe = Recipe::resolve(&[entry], calls)?;
        let mut request = Request { recipe, ..Request::new(words.encode_bytes(text)) };
        request.sampling = Sampling::neutral();
        request.max_tokens = Some(60);
        request.ignore_end = true;
        let model = Model { backbone: toy, vocabulary: &words, draft: Some(&other), filling: None };
        generate_in(model, sequence, &request, &mut |_| Control::Continue, &cancel)
    };
    let fresh = || Sequence::new(&toy, 256).map_err(|e| e.to_string());
    let texts = |outcome: tessera_core::Result<Outcome>| match outcome {
        Ok(outcome) => Ok(outcome.choices),
        Err(error) => Err(error.to_string()),
    };
    let prompt = b"some prompt";
    let plain = texts(run(&mut fresh()?, &toy, prompt, &[]))?;
    let calls = [call];
    // Random texts of another model; the model's own, of another prompt; the same request again.
    let before: [&[(&Scripted, &[u8])]; 4] = [
        &[(&random, b"noise"), (&random, prompt)],
        &[(&toy, b"another beginning")],
        &[(&toy, prompt), (&toy, prompt)],
        &[(&random, prompt), (&toy, prompt), (&toy, b"some")],
    ];
    for requests in before {
        let mut sequence = fresh()?;
        for (model, text) in requests {
            texts(run(&mut sequence, model, text, &calls))?;
        }
        let with = texts(run(&mut sequence, &toy, prompt, &calls))?;
        ensure(with == plain, || format!("{:?} instead of {:?}", with[0], plain[0]))?;
    }
    Ok(())
}

/// The constraint that `entry` builds at its defaults, if it is one.
fn constraint(entry: &'static MethodEntry) -> Result<Option<Box<dyn Constraint>>, String> {
    if !sits(entry, Site::Constraint) {
        return Ok(None);
    }
    match (entry.build)(&(entry.defaults)()) {
        Ok(Method::Constrain(constraint)) => Ok(Some(constraint)),
        Ok(other) => Err(format!("says which texts are allowed and builds {other:?}")),
        Err(error) => Err(error.to_string()),
    }
}

/// What a guard says about every byte and about ending here.
fn answers(guard: &mut Guard, words: &Words) -> Result<Vec<bool>, String> {
    let all = (0..words.len() as TokenId).map(|token| guard.check(token, words));
    all.collect::<tessera_core::Result<Vec<bool>>>().map_err(|e| e.to_string())
}

/// Goes on with `steps` allowed bytes, by chance; returns the answers at every place.
fn wander(
    guard: &mut Guard,
    words: &Words,
    steps: u32,
    seed: u64,
) -> Result<Vec<Vec<bool>>, String> {
    let mut places = vec![answers(guard, words)?];
    for step in 0..steps {
        let key = Key::new(seed, 0, step);
        let allowed = (32..127).filter(|&t| places[step as usize][t as usize]);
        let Some(token) = allowed.max_by_key(|&t| key.bits(t)) else { break };
        guard.accept(token, words).map_err(|e| e.to_string())?;
        places.push(answers(guard, words)?);
    }
    Ok(places)
}

fn states(entry: &'static MethodEntry) -> Finding {
    let Some(constraint) = constraint(entry)? else { return Ok(()) };
    let words = Words::bytes();
    let text = |e: tessera_core::Error| e.to_string();
    for seed in 0..6 {
        let mut guard = Guard::new(constraint.begin(&words).map_err(text)?, &words);
        let places = wander(&mut guard, &words, 12, seed)?;
        ensure(!places.iter().any(|p| p[words.control() as usize]), || {
            "a control token is allowed".to_owned()
        })?;
        let made = places.len() - 1;
        for back in [1, 3, 100] {
            let back = back.min(made);
            // Whatever a fork does, the text it came from stays as it was.
            let mut fork = guard.fork();
            wander(&mut fork, &words, 3, seed + 50)?;
            let there = answers(&mut guard.fork(), &words)?;
            ensure(there == places[made], || "a fork changed the text it came from".to_owned())?;
            fork = guard.fork();
            fork.rollback(back).map_err(text)?;
            let there = answers(&mut fork, &words)?;
            ensure(there == places[made - back], || {
                format!("after a rollback by {back} of {made} tokens the answers are others")
            })?;
        }
        ensure(guard.rollback(made + 1).is_err(), || {
            "a rollback by more tokens than there are is no error".to_owned()
        })?;
    }
    Ok(())
}

/// A pattern that a toy's random text does not match by itself.
const STRICT: &str = "([a-m]{2,5} )*[0-9]{1,9}(\\.[0-9]+)?";

/// Texts made under a constraint are read again by a fresh state.
fn meets(entry: &'static MethodEntry) -> Finding {
    let call = MethodCall { id: entry.slug.to_owned(), settings: (entry.defaults)() };
    let regex = &tessera_methods::constrain::regex::ENTRY;
    let strict = Settings::from_iter([("pattern".to_owned(), json!(STRICT))]);
    let (source, calls) = if sits(entry, Site::Sampler) {
        let rule = MethodCall { id: regex.slug.to_owned(), settings: strict.clone() };
        (regex.resolve(&strict).and_then(|full| (regex.build)(&full)), vec![rule, call])
    } else if sits(entry, Site::Constraint) {
        ((entry.build)(&call.settings), vec![call])
    } else {
        return Ok(());
    };
    let Ok(Method::Constrain(source)) = source else {
        return Err("builds no constraint".to_owned());
    };
    let words = Words::bytes();
    for (seed, sampling) in (0..8).flat_map(|s| [(s, Sampling::greedy()), (s, Sampling::neutral())])
    {
        let toy = text_toy(seed);
        let made = toy_run_on(&toy, &hashed_toy(12), &[entry, regex], &calls, sampling)?;
        let text = |e: tessera_core::Error| e.to_string();
        let mut guard = Guard::new(source.begin(&words).map_err(text)?, &words);
        for &token in &made.tokens {
            ensure(guard.check(token, &words).map_err(text)?, || {
                format!("{:?} does not begin an allowed text", made.text)
            })?;
            guard.accept(token, &words).map_err(text)?;
        }
        let complete = guard.complete().map_err(text)?;
        ensure(made.complete == Some(complete), || {
            format!("{:?} is reported complete: {:?}", made.text, made.complete)
        })?;
        let ended = matches!(made.reason, FinishReason::End { .. } | FinishReason::Constraint);
        ensure(complete || !ended, || format!("{:?} ended inside its constraint", made.text))?;
    }
    Ok(())
}

/// Allows bytes that are no multiple of three.
#[derive(Debug)]
struct NoThirds;

impl Predicate for NoThirds {
    fn judge(&self, text: &[u8]) -> tessera_core::Result<Judgement> {
        let allowed = text.last().is_none_or(|b| b % 3 != 0);
        Ok(Judgement { allowed, complete: text.len() > 1 })
    }
}

/// Samplers are asked directly, on random logits under every truncation.
fn draws_as_masking(entry: &'static MethodEntry) -> Finding {
    if !sits(entry, Site::Sampler) {
        return Ok(());
    }
    let Ok(Method::Sample(mut sampler)) = (entry.build)(&(entry.defaults)()) else {
        return Err("says how tokens are drawn and builds no sampler".to_owned());
    };
    let words = Words::bytes();
    let text = |e: tessera_core::Error| e.to_string();
    let rule = Judged(Arc::new(NoThirds));
    let settings = [
        Sampling::greedy(),
        Sampling::neutral(),
        Sampling::default(),
        Sampling { top_k: 5, temperature: 2.0, ..Sampling::neutral() },
        Sampling { top_p: 0.5, ..Sampling::neutral() },
    ];
    for (position, sampling) in (0..60).flat_map(|p| settings.map(|s| (p, s))) {
        let key = Key::new(5, 0, position);
        let logits: Vec<f32> = (0..258).map(|id| 6.0 * key.uniform(id) as f32).collect();
        let mut settings = Sampler::new(sampling).map_err(text)?;
        let mut law = Vec::new();
        settings.distribution(&logits, &[], &mut law).map_err(text)?;
        let mut draw = |sampler: &mut dyn ConstrainedSampler, weighted| {
            let mut guard = Guard::new(rule.begin(&words)?, &words);
            guard.accept(97, &words)?;
            guard.accept(98, &words)?;
            sampler.draw(&mut ConstrainedDraw {
                logits: &logits,
                history: &[],
                key,
                sampler: &mut settings,
                guard: &mut guard,
                vocabulary: &words,
                weighted,
            })
        };
        let masked = draw(&mut Masking::default(), true).map_err(text)?;
        for weighted in [false, true] {
            let drawn = draw(&mut *sampler, weighted).map_err(text)?;
            ensure(drawn.token == masked.token, || {
                format!("{:?} instead of {:?} under {sampling:?}", drawn.token, masked.token)
            })?;
            let left = |t: TokenId| law.iter().any(|&(l, _)| l == t) || sampling.temperature == 0.0;
            ensure(drawn.token.is_none_or(left), || {
                format!("{:?} was removed by truncation", drawn.token)
            })?;
        }
    }
    Ok(())
}

/// Schedules of layers are asked directly: layers in order, in range, and each step's among those of
/// the step before.
fn nested(entry: &'static MethodEntry) -> Finding {
    for layers in [1, 2, 12, 31] {
        let Ok(Method::Layers(mut schedule)) = (entry.build)(&(entry.defaults)()) else {
            return Ok(());
        };
        let all: Vec<usize> = (0..layers).collect();
        let mut before = all.clone();
        for step in 0..300 {
            let mut active = Vec::new();
            schedule.layers(step, layers, &mut active).map_err(|e| e.to_string())?;
            let active = if active.is_empty() { all.clone() } else { active };
            ensure(active.windows(2).all(|w| w[0] < w[1]), || format!("{active:?} not ascending"))?;
            let new = active.iter().find(|l| !before.contains(l));
            ensure(new.is_none(), || format!("step {step} of {layers} layers takes up {new:?}"))?;
            before = active;
        }
    }
    Ok(())
}
