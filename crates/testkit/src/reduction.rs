//! Laws of policies that decide what of a cache stays, asked directly on a toy with several layers
//! and heads, and through the loop.

use serde_json::{Value, json};
use tessera_core::dist::Sampling;
use tessera_core::entry::{
    Exactness, Kind, Method, MethodCall, MethodEntry, NoSettings, Place, Role, Settings, Site,
    defaults_of, resolve_as, schema_of,
};
use tessera_core::{
    Backbone, CacheOptions, CommittedStep, Draft, DraftContext, DraftTree, Eviction, HeadSum,
    KeySet, KvStore, Lent, Pass, Position, Received, Reduce, ReduceContext, Reveal, Row, RowsOut,
    Segment, StepReceived, TokenId, Write,
};

use crate::laws::{Finding, toy_run_on};
use crate::{Scripted, Words};

const LAYERS: usize = 3;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const PROMPT: usize = 90;
const BUDGET: usize = 24;
const STEPS: usize = 40;

fn toy() -> Scripted {
    Scripted::hashed(258, 512, 31, 6.0).with_layers(LAYERS).with_heads(HEADS, KV_HEADS)
}

fn text(count: usize, seed: usize) -> Vec<TokenId> {
    (0..count).map(|i| ((i * i + 7 * i + seed * 31) % 251) as TokenId).collect()
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Finding {
    if holds { Ok(()) } else { Err(what()) }
}

fn said(error: tessera_core::Error) -> String {
    error.to_string()
}

/// The policy of an entry with these settings; `None` for an entry of another role.
fn policy(
    entry: &MethodEntry,
    settings: &[(&str, Value)],
) -> Result<Option<Box<dyn Reduce>>, String> {
    let mut all = (entry.defaults)();
    for (name, value) in settings {
        if !all.contains_key(*name) {
            return Ok(None);
        }
        all.insert((*name).to_owned(), value.clone());
    }
    match (entry.build)(&entry.resolve(&all).map_err(said)?).map_err(said)? {
        // What acts inside passes reads less and keeps every row.
        Method::Reduce(policy) => Ok((!entry.needs.capabilities.sites).then_some(policy)),
        _ => Ok(None),
    }
}

/// One text under a policy, step by step, as the loop would make it.
struct Trial<'a> {
    toy: &'a Scripted,
    cache: Box<dyn KvStore>,
    policy: Box<dyn Reduce>,
    prompt: Vec<TokenId>,
    tokens: Vec<TokenId>,
    position: Position,
}

/// Everything that an eviction is judged by.
struct Judged {
    eviction: Option<Eviction>,
    /// The cache before the eviction.
    before: Box<dyn KvStore>,
}

impl<'a> Trial<'a> {
    fn new(toy: &'a Scripted, policy: Box<dyn Reduce>) -> Result<Self, String> {
        let cache = toy.new_cache(CacheOptions::default()).map_err(said)?;
        let prompt = text(PROMPT, 1);
        let mut trial = Self { toy, cache, policy, tokens: prompt.clone(), prompt, position: 0 };
        trial.append(&text(PROMPT, 1), None)?;
        Ok(trial)
    }

    fn fork(&self) -> Result<Self, String> {
        Ok(Self {
            cache: self.cache.fork().map_err(said)?,
            policy: self.policy.fork(),
            prompt: self.prompt.clone(),
            tokens: self.tokens.clone(),
            ..*self
        })
    }

    /// Runs rows that become text; returns the attention they gave.
    fn append(
        &mut self,
        tokens: &[TokenId],
        wanted: Option<HeadSum>,
    ) -> Result<Vec<Vec<f32>>, String> {
        let positions: Vec<Position> = (self.position..).take(tokens.len()).collect();
        let layers: Vec<usize> = (0..LAYERS).collect();
        let mut segments = [Segment::causal(tokens, &positions, &mut *self.cache)];
        let mut pass = Pass::new(&mut segments);
        if let Some(heads) = wanted {
            pass.taps.received = Received { layers: &layers, heads, by_row: true };
        }
        let mut reveal = Reveal::new();
        self.toy.forward(&mut pass, &mut reveal).map_err(said)?;
        self.position += tokens.len() as Position;
        Ok(reveal.segments.pop().map(|s| s.received).unwrap_or_default())
    }

    fn apply(&mut self, eviction: Option<Eviction>) -> Result<Judged, String> {
        let before = self.cache.fork().map_err(said)?;
        if let Some(eviction) = &eviction {
            eviction.plan.validate(self.cache.table()).map_err(said)?;
            if eviction.rerank {
                self.toy.unrotate(&mut *self.cache).map_err(said)?;
            }
            self.cache.compact(&eviction.plan).map_err(said)?;
            if eviction.rerank {
                self.cache.rerank().map_err(said)?;
                self.position = self.cache.table().len() as Position;
            }
        }
        Ok(Judged { eviction, before })
    }

    fn after_prefill(&mut self) -> Result<Judged, String> {
        let held = fingerprint(&*self.cache)?;
        let eviction = self
            .policy
            .after_prefill(&mut ReduceContext {
                prompt: &self.prompt,
                seed: 5,
                target: Lent {
                    backbone: self.toy,
                    cache: &mut *self.cache,
                    position: self.position,
                },
                vocabulary: &Words::bytes(),
            })
            .map_err(said)?;
        ensure(fingerprint(&*self.cache)? == held, || {
            "the policy did not leave the cache as it was".to_owned()
        })?;
        self.apply(eviction)
    }

    fn step(&mut self, tokens: &[TokenId]) -> Result<Judged, String> {
        let (cached, wanted) = (self.cache.table().len(), self.policy.received());
        let layers = self.append(tokens, wanted)?;
        self.tokens.extend_from_slice(tokens);
        let groups = wanted.map_or(0, |heads| heads.groups(HEADS, KV_HEADS));
        let step = CommittedStep {
            table: self.cache.table(),
            rows: tokens.len(),
            tokens: &self.tokens,
            prompt: PROMPT,
            seed: 5,
            choice: 0,
            received: StepReceived {
                layers: &layers,
                groups,
                cached,
                columns: cached + tokens.len(),
            },
        };
        let eviction = self.policy.committed(&step).map_err(said)?;
        self.apply(eviction)
    }

    /// Logits of a token after the cache, which stays as it is.
    fn next(&self, cache: &dyn KvStore, keys: Option<&[Vec<Row>]>) -> Result<Vec<f32>, String> {
        let mut cache = cache.fork().map_err(said)?;
        let positions = [self.position];
        let mut segments = [Segment {
            keys: keys.map(KeySet::PerHead),
            write: Write::Discard,
            rows_out: RowsOut::Last,
            ..Segment::causal(&[9], &positions, &mut *cache)
        }];
        let mut reveal = Reveal::new();
        self.toy.forward(&mut Pass::new(&mut segments), &mut reveal).map_err(said)?;
        Ok(reveal.all_logits().to_vec())
    }
}

/// A head's positions, by row, and what the rows hold.
type Held = (Vec<Position>, Vec<f32>);

/// A cache's rows by head, with what they hold.
fn fingerprint(cache: &dyn KvStore) -> Result<Vec<Held>, String> {
    let table = cache.table();
    let heads = (0..table.layers()).flat_map(|l| (0..table.kv_heads()).map(move |h| (l, h)));
    heads
        .map(|(l, h)| {
            let positions = table.positions(l, h).to_vec();
            let held = (0..positions.len() as Row).map(|row| cache.read(l, h, row, false));
            let held = held.collect::<tessera_core::Result<Vec<_>>>().map_err(said)?;
            Ok((positions, held.concat()))
        })
        .collect()
}

/// The lists of a plan, by layer and key head.
fn lists(eviction: &Eviction) -> Vec<Vec<Row>> {
    let heads = (0..LAYERS).flat_map(|l| (0..KV_HEADS).map(move |h| (l, h)));
    heads.map(|(l, h)| eviction.plan.keep(l, h).rows.clone()).collect()
}

/// Settings with a budget below the prompt's length, said in both ways.
fn tight() -> [(&'static str, Value); 2] {
    let ratio = 1.0 - BUDGET as f64 / PROMPT as f64 - 1e-9;
    [("budget", json!(BUDGET)), ("ratio", json!(ratio))]
}

/// Plans are valid; the budget is met and used; rows that always stay do; and reading the compacted
/// cache is reading the whole one through the plan.
pub fn plans(entry: &'static MethodEntry) -> Finding {
    let toy = toy();
    for setting in tight() {
        let Some(policy) = policy(entry, std::slice::from_ref(&setting))? else { return Ok(()) };
        let mut trial = Trial::new(&toy, policy)?;
        let mut judged = vec![trial.after_prefill()?];
        let evicts = judged[0].eviction.is_some();
        ensure(evicts, || format!("{} = {} forgets nothing", setting.0, setting.1))?;
        check(entry, &trial, &judged[0], BUDGET)?;
        // Whether the text's rows count is the policy's choice; it must be one or the other.
        let bound = |step: usize, held: usize| held <= BUDGET || held == BUDGET + step;
        for (i, &token) in text(STEPS, 2).iter().enumerate() {
            judged.push(trial.step(&[token])?);
            let table = trial.cache.table();
            let longest = table.len();
            ensure(longest <= BUDGET + i + 1, || format!("step {i}: {longest} rows"))?;
            let made = &judged[i + 1];
            if made.eviction.is_some() {
                ensure(bound(i + 1, longest), || format!("step {i}: {longest} rows"))?;
                check(entry, &trial, made, BUDGET)?;
            }
        }
    }
    Ok(())
}

fn check(entry: &MethodEntry, trial: &Trial<'_>, judged: &Judged, budget: usize) -> Finding {
    let Some(eviction) = &judged.eviction else { return Ok(()) };
    let kept = lists(eviction);
    let defaults = (entry.defaults)();
    let always = |name: &str| defaults.get(name).and_then(Value::as_u64).unwrap_or(0) as usize;
    let sinks = always("sinks").min(budget);
    let recent = always("recent").max(always("window")).min(budget - sinks);
    let table = judged.before.table();
    for (i, rows) in kept.iter().enumerate() {
        let held = table.positions(i / KV_HEADS, i % KV_HEADS).len();
        let used = 4 * rows.len() >= 3 * budget.min(held) && rows.len() <= budget.min(held);
        ensure(used, || format!("{} rows kept of {held}, the budget is {budget}", rows.len()))?;
        let first = (0..sinks as Row).all(|row| rows.contains(&row));
        let last = ((held - recent) as Row..held as Row).all(|row| rows.contains(&row));
        ensure(first && last, || {
            format!("{rows:?} of {held}: the first {sinks} and the last {recent} must stay")
        })?;
    }
    if !eviction.rerank {
        let compacted = trial.next(&*trial.cache, None)?;
        let masked = trial.next(&*judged.before, Some(&kept))?;
        ensure(compacted == masked, || "compacted and masked differ".to_owned())?;
    }
    // Rows that come and go leave nothing.
    let mut twin = trial.fork()?;
    twin.append(&text(3, 9), None)?;
    twin.cache.rollback(3).map_err(said)?;
    ensure(fingerprint(&*twin.cache)? == fingerprint(&*trial.cache)?, || {
        "a rollback after the eviction does not lead back".to_owned()
    })
}

/// Ratio 0, and a budget that is never reached, keep everything, prompt and text.
pub fn identity(entry: &'static MethodEntry) -> Finding {
    let toy = toy();
    for setting in [("ratio", json!(0.0)), ("budget", json!(1 << 20))] {
        let Some(policy) = policy(entry, std::slice::from_ref(&setting))? else { return Ok(()) };
        let mut trial = Trial::new(&toy, policy)?;
        let mut kept = trial.after_prefill()?.eviction.is_none();
        for token in text(STEPS, 2) {
            kept &= trial.step(&[token])?.eviction.is_none();
        }
        ensure(kept, || format!("{} = {} forgets something", setting.0, setting.1))?;
    }
    Ok(())
}

/// A fork goes its own way: what one text is told changes nothing for the other.
pub fn forks(entry: &'static MethodEntry) -> Finding {
    let toy = toy();
    for setting in tight() {
        let run = |disturbed: bool| -> Result<Option<Vec<Option<Eviction>>>, String> {
            let Some(policy) = policy(entry, std::slice::from_ref(&setting))? else {
                return Ok(None);
            };
            let mut trial = Trial::new(&toy, policy)?;
            trial.after_prefill()?;
            let mut other = trial.fork()?;
            let mut made = Vec::new();
            for (i, &token) in text(STEPS, 2).iter().enumerate() {
                if disturbed {
                    other.step(&text(1 + i % 3, 40 + i))?;
                }
                made.push(trial.step(&[token])?.eviction);
            }
            Ok(Some(made))
        };
        let (alone, beside) = (run(false)?, run(true)?);
        ensure(alone == beside, || "what a fork was told changed what its origin does".to_owned())?;
    }
    Ok(())
}

/// A token that the toys of [`failed_guesses`] never say.
const NEVER: TokenId = 3;

/// Guesses what never comes true.
#[derive(Debug)]
struct Wrong;

impl Draft for Wrong {
    fn budget(&self) -> usize {
        5
    }

    fn draft(
        &mut self,
        context: &mut DraftContext<'_>,
        tree: &mut DraftTree,
    ) -> tessera_core::Result<()> {
        let mut at = None;
        for _ in 0..context.budget.min(context.depth).min(3) {
            at = Some(tree.add(at, NEVER));
        }
        Ok(())
    }
}

static WRONG: MethodEntry = MethodEntry {
    slug: "wrong",
    aliases: &[],
    name: "Wrong",
    paper: None,
    summary: "Guesses what never comes true.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Draft, site: Site::Whole }],
    exactness: Exactness::BitExact,
    needs: tessera_core::entry::Needs::NONE,
    claims: &[],
    schema: schema_of::<NoSettings>,
    defaults: defaults_of::<NoSettings>,
    neutral: None,
    read: resolve_as::<NoSettings>,
    build: |_| Ok(Method::Draft(Box::new(Wrong))),
};

/// Guesses that fail leave no trace in what is forgotten: the text is that without them.
pub fn failed_guesses(entry: &'static MethodEntry) -> Finding {
    let toy = || {
        Scripted::new(258, 256, |seen, logits| {
            let mut key = tessera_core::dist::Key::new(3, 0, 0);
            for &(position, token) in seen {
                key = key.purpose(u64::from(position) << 32 | u64::from(token));
            }
            (0..).zip(&mut *logits).for_each(|(id, logit)| *logit = 6.0 * key.uniform(id) as f32);
            logits[NEVER as usize] = -1e9;
        })
        .with_layers(LAYERS)
        .with_heads(HEADS, KV_HEADS)
    };
    // The prompt has 12 tokens and the text 40.
    for setting in [("budget", json!(10)), ("ratio", json!(0.4))] {
        if policy(entry, std::slice::from_ref(&setting))?.is_none() {
            return Ok(());
        }
        let settings = Settings::from_iter([(setting.0.to_owned(), setting.1)]);
        let call = MethodCall { id: entry.slug.to_owned(), settings };
        let wrong = MethodCall { id: WRONG.slug.to_owned(), ..MethodCall::default() };
        let run = |calls: &[MethodCall]| {
            toy_run_on(&toy(), &toy(), &[entry, &WRONG], calls, Sampling::neutral())
        };
        let (alone, drafted) = (run(std::slice::from_ref(&call))?, run(&[call.clone(), wrong])?);
        ensure(alone == drafted, || format!("{:?} and {:?}", alone.tokens, drafted.tokens))?;
    }
    Ok(())
}
