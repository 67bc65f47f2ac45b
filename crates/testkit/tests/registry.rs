//! Long because every law needs a policy that breaks it.
//!
//! The laws over the whole registry, and proof that each law can fail.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::entry::{
    Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Place, Role, Settings, Site,
    defaults_of, find, read_as, resolve_as, schema_of,
};
use tessera_core::{
    Accept, CacheTable, CommittedStep, Decision, Draft, DraftContext, DraftTree, Eviction, Keep,
    KeepPlan, LayerSchedule, Reduce, ReduceContext, Row,
};
use tessera_core::{Canvas, Commit, End, Evidence, Fill, Look, Unmask};
use tessera_core::{Constrain, ConstrainedDraw, ConstrainedSampler, Constraint, Drawn, Vocabulary};
use tessera_methods::ENTRIES;
use tessera_testkit::{laws, source};

#[test]
fn every_entry_obeys_every_law() {
    let found = laws::check(ENTRIES);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn slugs_are_sorted_and_names_unique() {
    assert!(ENTRIES.windows(2).all(|w| w[0].slug < w[1].slug), "not in alphabetical order");
    for entry in ENTRIES {
        for name in std::iter::once(&entry.slug).chain(entry.aliases) {
            assert_eq!(find(ENTRIES, name).unwrap().slug, entry.slug, "{name} names two methods");
        }
    }
}

#[test]
fn every_method_has_its_file_and_every_file_its_method() {
    let files = source::method_files(&source::methods_directory()).unwrap();
    let mut stems = Vec::new();
    for file in &files {
        let stem = file.file_stem().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        let found = source::check_file(stem, &text, ENTRIES);
        assert!(found.is_empty(), "{found:#?}");
        stems.push(stem.replace('_', "-"));
    }
    for entry in ENTRIES {
        assert!(stems.iter().any(|s| s == entry.slug), "`{}` has no file of its name", entry.slug);
    }
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Good {
    /// A size.
    size: u32,
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Undocumented {
    size: u32,
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct Lenient {
    /// A size.
    size: u32,
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Impossible {
    /// A size.
    size: u32,
}

impl MethodConfig for Good {
    fn validate(&self) -> Result<(), String> {
        Ok(())
    }
}

impl MethodConfig for Undocumented {
    fn validate(&self) -> Result<(), String> {
        Ok(())
    }
}

impl MethodConfig for Lenient {
    fn validate(&self) -> Result<(), String> {
        Ok(())
    }
}

impl MethodConfig for Impossible {
    fn validate(&self) -> Result<(), String> {
        if self.size > 0 { Ok(()) } else { Err("size = 0: must be above 0".to_owned()) }
    }
}

const fn entry<C: MethodConfig>() -> MethodEntry {
    MethodEntry {
        slug: "fine",
        aliases: &[],
        name: "Fine",
        paper: None,
        summary: "Does nothing.",
        kind: Kind::Policy,
        places: &[Place { role: Role::Reduce, site: Site::Layers }],
        exactness: Exactness::BitExact,
        needs: Needs::NONE,
        claims: &[],
        schema: schema_of::<C>,
        defaults: defaults_of::<C>,
        neutral: Some(Settings::new),
        read: resolve_as::<C>,
        build: |_| Ok(Method::Plain),
    }
}

static FINE: MethodEntry = entry::<Good>();
static BAD_NAME: MethodEntry = MethodEntry { slug: "Bad Name", ..entry::<Good>() };
static BAD_SITE: MethodEntry =
    MethodEntry { places: &[Place { role: Role::Draft, site: Site::Decode }], ..entry::<Good>() };
static NO_PLACE: MethodEntry = MethodEntry { places: &[], ..entry::<Good>() };
static UNDOCUMENTED: MethodEntry = entry::<Undocumented>();
static LENIENT: MethodEntry = entry::<Lenient>();
static IMPOSSIBLE: MethodEntry = entry::<Impossible>();
static INCOMPLETE: MethodEntry = MethodEntry { defaults: Settings::new, ..entry::<Good>() };
static DEAF: MethodEntry = MethodEntry { read: |_, s| Ok(s.clone()), ..entry::<Good>() };
static VAGUE: MethodEntry =
    MethodEntry { exactness: Exactness::Lossy { what: "" }, ..entry::<Good>() };

/// Guesses five tokens whatever the budget.
#[derive(Debug)]
struct Greedy;

impl Draft for Greedy {
    fn budget(&self) -> usize {
        3
    }

    fn draft(
        &mut self,
        _: &mut DraftContext<'_>,
        tree: &mut DraftTree,
    ) -> tessera_core::Result<()> {
        (0..5).for_each(|token| {
            tree.add(None, token);
        });
        Ok(())
    }
}

/// Always commits the first guess.
#[derive(Debug)]
struct Gullible;

impl Accept for Gullible {
    fn choose(&mut self, decision: &mut Decision<'_>) -> tessera_core::Result<u32> {
        decision.draw().map(|token| token / 2)
    }
}

/// Guesses the same too many tokens as [`Greedy`], but only once a request has ended.
#[derive(Debug, Default)]
struct Hoarder {
    longest: usize,
}

impl Draft for Hoarder {
    fn budget(&self) -> usize {
        3
    }

    fn draft(
        &mut self,
        context: &mut DraftContext<'_>,
        tree: &mut DraftTree,
    ) -> tessera_core::Result<()> {
        let known = context.tokens.len();
        if known < self.longest {
            return Greedy.draft(context, tree);
        }
        self.longest = known;
        Ok(())
    }
}

/// Runs the lowest layer only, and all of them at every tenth step.
#[derive(Debug)]
struct Relapse;

impl LayerSchedule for Relapse {
    fn layers(
        &mut self,
        step: usize,
        _: usize,
        active: &mut Vec<usize>,
    ) -> tessera_core::Result<()> {
        active.extend((!step.is_multiple_of(10)).then_some(0));
        Ok(())
    }
}

/// Draws a token and keeps the guess only if it was not the least probable one.
#[derive(Debug)]
struct Choosy;

impl Draft for Choosy {
    fn budget(&self) -> usize {
        1
    }

    fn draft(
        &mut self,
        context: &mut DraftContext<'_>,
        tree: &mut DraftTree,
    ) -> tessera_core::Result<()> {
        let law = [0.5, 0.3, 0.2];
        let key = context.key(tree, None);
        let time = |t: u32| key.exponential(t) / law[t as usize];
        let first = (0..3).min_by(|&a, &b| time(a).total_cmp(&time(b))).unwrap_or(0);
        if first != 2 {
            let law = tree.law((0..).zip(law).collect());
            tree.add_drawn(None, first, law);
        }
        Ok(())
    }
}

/// Tests by the right ratio, but after a rejection draws from the target, not from the residual.
#[derive(Debug)]
struct Careless;

impl Accept for Careless {
    fn choose(&mut self, decision: &mut Decision<'_>) -> tessera_core::Result<u32> {
        let mut target = Vec::new();
        decision.sampler.distribution(decision.logits, decision.history, &mut target)?;
        let p = |law: &[(u32, f64)], y| law.iter().find(|l| l.0 == y).map_or(0.0, |l| l.1);
        for guess in decision.guesses {
            let q = guess.drawn_from.map_or(1.0, |n| p(&decision.laws[n as usize], guess.token));
            if decision.key.purpose(1).uniform(0) * q <= p(&target, guess.token) {
                return Ok(guess.token);
            }
        }
        decision.draw()
    }
}

/// Draws without looking at the constraint.
#[derive(Debug)]
struct Heedless;

impl ConstrainedSampler for Heedless {
    fn draw(&mut self, place: &mut ConstrainedDraw<'_>) -> tessera_core::Result<Drawn> {
        let token = place.sampler.draw(place.logits, place.history, place.key)?;
        Ok(Drawn { token: Some(token), log_weight: 0.0 })
    }
}

/// Takes the most probable allowed token, whatever truncation left.
#[derive(Debug)]
struct Reviver;

impl ConstrainedSampler for Reviver {
    fn draw(&mut self, place: &mut ConstrainedDraw<'_>) -> tessera_core::Result<Drawn> {
        let mut order: Vec<u32> = (0..place.logits.len() as u32).collect();
        let logit = |t: u32| place.logits[t as usize];
        order.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)));
        for token in order {
            if place.guard.check(token, place.vocabulary)? {
                return Ok(Drawn { token: Some(token), log_weight: 0.0 });
            }
        }
        Ok(Drawn::NOTHING)
    }
}

/// Two wrong ways to hold the state of "no two equal letters in a row": each is right otherwise.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Slip {
    Rollback,
    Fork,
}

#[derive(Debug)]
struct Wrong(Slip);

#[derive(Debug, Clone)]
struct WrongState {
    fault: Slip,
    text: Arc<Mutex<Vec<u8>>>,
}

impl Constraint for Wrong {
    fn begin(&self, _: &dyn Vocabulary) -> tessera_core::Result<Box<dyn Constrain>> {
        Ok(Box::new(WrongState { fault: self.0, text: Arc::default() }))
    }
}

impl WrongState {
    fn text(&self) -> MutexGuard<'_, Vec<u8>> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Constrain for WrongState {
    fn check(&mut self, _: u32, bytes: &[u8]) -> tessera_core::Result<bool> {
        Ok(self.text().last() != bytes.first())
    }

    fn complete(&mut self) -> tessera_core::Result<bool> {
        Ok(self.text().len().is_multiple_of(2))
    }

    fn accept(&mut self, _: u32, bytes: &[u8]) -> tessera_core::Result<()> {
        self.text().extend_from_slice(bytes);
        Ok(())
    }

    fn rollback(&mut self, tokens: usize) -> tessera_core::Result<()> {
        let length = self.text().len();
        let Some(left) = length.checked_sub(tokens) else {
            return Err(tessera_core::constrain::too_far(tokens, length));
        };
        let more = usize::from(self.fault == Slip::Rollback && tokens > 1);
        self.text().truncate(left + more);
        Ok(())
    }

    fn fork(&self) -> Box<dyn Constrain> {
        if self.fault == Slip::Fork {
            return Box::new(self.clone());
        }
        let text = Arc::new(Mutex::new(self.text().clone()));
        Box::new(Self { fault: self.fault, text })
    }
}

/// Wrong ways to fill masks.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Wrongly {
    /// Chooses nothing.
    Nothing,
    /// Fills what is not open.
    Outside,
    /// Masks again what was given.
    Given,
    /// Masks again whatever it fills.
    Endless,
    /// Says that it is done while masks are left.
    Early,
    /// Goes from right to left.
    Backwards,
    /// Draws without the seed.
    Unseeded,
}

/// Fills one mask a step, or does not.
#[derive(Debug)]
struct Filler(Wrongly);

static CALLS: AtomicUsize = AtomicUsize::new(0);

impl Unmask for Filler {
    fn region(&mut self, canvas: &Canvas) -> Option<Range<usize>> {
        let first = canvas.masked().next()? as usize;
        (self.0 == Wrongly::Outside).then_some(first..first + 1)
    }

    fn quota(
        &mut self,
        _: &Evidence<'_>,
        fills: &[Fill],
    ) -> tessera_core::Result<Option<Vec<usize>>> {
        let calls = CALLS.fetch_add(1, Ordering::Relaxed);
        Ok(match self.0 {
            Wrongly::Nothing => Some(Vec::new()),
            Wrongly::Backwards => Some(vec![fills.len() - 1]),
            Wrongly::Unseeded => Some(vec![calls % 7 % fills.len()]),
            _ => None,
        })
    }

    fn commit(
        &mut self,
        evidence: &Evidence<'_>,
        fills: &[Fill],
        chosen: &[usize],
        _: &mut dyn Look,
    ) -> tessera_core::Result<Option<Commit>> {
        let mut fill = fills[chosen[0]];
        let mut remask = Vec::new();
        match self.0 {
            Wrongly::Outside => fill.position = evidence.canvas.masked().last().unwrap_or(0),
            Wrongly::Given => remask.push(0),
            Wrongly::Endless => remask.push(fill.position),
            _ => return Ok(None),
        }
        Ok(Some(Commit { fills: vec![fill], remask, next: None }))
    }

    fn end(&mut self, _: &Canvas, step: u32, _: &dyn Vocabulary) -> End {
        match self.0 == Wrongly::Early && step == 2 {
            true => End::Done,
            false => End::GoOn,
        }
    }

    fn remasks(&self) -> bool {
        matches!(self.0, Wrongly::Given | Wrongly::Endless)
    }
}

macro_rules! filler {
    ($($name:ident: $wrongly:expr, $($site:ident)*;)*) => {$(
        static $name: MethodEntry = MethodEntry {
            places: &[$(Place { role: Role::Unmask, site: Site::$site }),*],
            exactness: Exactness::Lossy { what: "the order of the text" },
            build: |_| Ok(Method::Unmask(Box::new(Filler($wrongly)))),
            ..entry::<Good>()
        };
    )*};
}

filler! {
    FILLS_NOTHING: Wrongly::Nothing, Quota;
    FILLS_OUTSIDE: Wrongly::Outside, Region Commit;
    MASKS_GIVEN: Wrongly::Given, Commit;
    NEVER_ENDS: Wrongly::Endless, Commit;
    ENDS_EARLY: Wrongly::Early, End;
    BACKWARDS: Wrongly::Backwards, Quota;
    UNSEEDED: Wrongly::Unseeded, Quota;
}

#[test]
fn a_broken_filler_fails_each_law() {
    let fills = "every mask is filled and what is given stays";
    for (broken, law, why) in [
        (&FILLS_NOTHING, fills, "a quota of nothing"),
        (&FILLS_OUTSIDE, fills, "is filled outside"),
        (&MASKS_GIVEN, fills, "position 0 cannot be masked again"),
        (&NEVER_ENDS, fills, "masks are left after"),
        (&ENDS_EARLY, fills, "tokens on a canvas of 12"),
        (&BACKWARDS, "neutral settings of unmasking are the plain canvas", "plain ["),
        (&UNSEEDED, "equal seeds give equal canvases, whatever the other choices", "of three"),
    ] {
        let found = laws::check(&[broken]);
        let caught = |f: &String| f.contains(law) && f.contains(why);
        assert!(found.iter().any(caught), "{law}: {found:#?}");
    }
}

const RULE: &[Place] = &[Place { role: Role::Constrain, site: Site::Constraint }];
const DRAW: &[Place] = &[Place { role: Role::Constrain, site: Site::Sampler }];
const DRAWS: MethodEntry = MethodEntry { places: DRAW, neutral: None, ..entry::<Good>() };
static HEEDLESS: MethodEntry =
    MethodEntry { build: |_| Ok(Method::Sample(Box::new(Heedless))), ..DRAWS };
static REVIVER: MethodEntry =
    MethodEntry { build: |_| Ok(Method::Sample(Box::new(Reviver))), ..DRAWS };
const WRONG: MethodEntry = MethodEntry {
    places: RULE,
    exactness: Exactness::Lossy { what: "most texts" },
    ..entry::<Good>()
};
static WRONG_ROLLBACK: MethodEntry =
    MethodEntry { build: |_| Ok(Method::Constrain(Box::new(Wrong(Slip::Rollback)))), ..WRONG };
static WRONG_FORK: MethodEntry =
    MethodEntry { build: |_| Ok(Method::Constrain(Box::new(Wrong(Slip::Fork)))), ..WRONG };
/// Settings of a policy that evicts, with what goes wrong in it.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Evicts {
    /// Rows that stay.
    budget: Option<usize>,
    /// Share that leaves.
    ratio: Option<f64>,
    /// First rows that always stay.
    sinks: usize,
}

impl MethodConfig for Evicts {
    fn validate(&self) -> Result<(), String> {
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    Unsorted,
    Repeats,
    OutOfRange,
    OverBudget,
    UnderBudget,
    LosesSinks,
    NeverIdle,
    Meddles,
    Shares,
}

/// Keeps the last rows, or does not.
#[derive(Debug, Clone)]
struct Faulty {
    fault: Fault,
    ratio: f64,
    budget: usize,
    sinks: usize,
    calls: Arc<AtomicUsize>,
}

impl Faulty {
    fn trim(&self, table: &CacheTable) -> Option<Eviction> {
        let held = table.len();
        let mut budget = self.budget;
        if self.fault == Fault::NeverIdle {
            budget = budget.min(held - 1);
        }
        if held <= budget {
            return None;
        }
        let sinks = if self.fault == Fault::LosesSinks { 0 } else { self.sinks };
        let last = match self.fault {
            Fault::OverBudget => budget + 1 - sinks,
            Fault::UnderBudget => budget / 2 - sinks,
            Fault::Shares => budget - sinks - self.calls.load(Ordering::Relaxed) % 2,
            _ => budget - sinks,
        };
        let mut rows: Vec<Row> = (0..sinks).chain(held - last..held).map(|r| r as Row).collect();
        match self.fault {
            Fault::Unsorted => rows.swap(0, 1),
            Fault::Repeats => rows[1] = rows[0],
            Fault::OutOfRange => rows[budget - 1] = held as Row,
            _ => {}
        }
        let plan = KeepPlan::uniform(table.layers(), table.kv_heads(), Keep::rows(rows));
        Some(Eviction { plan, rerank: false })
    }
}

impl Reduce for Faulty {
    fn fork(&self) -> Box<dyn Reduce> {
        Box::new(self.clone())
    }

    fn after_prefill(
        &mut self,
        context: &mut ReduceContext<'_>,
    ) -> tessera_core::Result<Option<Eviction>> {
        let table = context.target.cache.table();
        if self.ratio > 0.0 {
            self.budget = (table.len() as f64 * (1.0 - self.ratio)) as usize;
        }
        let eviction = self.trim(table);
        if self.fault == Fault::Meddles {
            context.target.cache.rollback(1)?;
        }
        Ok(eviction)
    }

    fn committed(&mut self, step: &CommittedStep<'_>) -> tessera_core::Result<Option<Eviction>> {
        let eviction = self.trim(step.table);
        self.calls.fetch_add(1, Ordering::Relaxed);
        Ok(eviction)
    }
}

macro_rules! faulty {
    ($($name:ident: $fault:expr;)*) => {$(
        static $name: MethodEntry = MethodEntry {
            places: &[
                Place { role: Role::Reduce, site: Site::AfterPrefill },
                Place { role: Role::Reduce, site: Site::Decode },
            ],
            exactness: Exactness::Lossy { what: "what is forgotten" },
            neutral: None,
            build: |settings| {
                let Evicts { budget, ratio, .. } = read_as::<Evicts>("fine", settings)?;
                Ok(Method::Reduce(Box::new(Faulty {
                    fault: $fault,
                    ratio: ratio.unwrap_or(0.0),
                    budget: budget.unwrap_or(usize::MAX),
                    sinks: 3,
                    calls: Arc::default(),
                })))
            },
            defaults: || {
                let three = ("sinks".to_owned(), serde_json::json!(3));
                let mut all = defaults_of::<Evicts>();
                all.extend([three]);
                all
            },
            ..entry::<Evicts>()
        };
    )*};
}

faulty! {
    SOUND: Fault::None;
    UNSORTED: Fault::Unsorted;
    REPEATS: Fault::Repeats;
    OUT_OF_RANGE: Fault::OutOfRange;
    OVER_BUDGET: Fault::OverBudget;
    UNDER_BUDGET: Fault::UnderBudget;
    LOSES_SINKS: Fault::LosesSinks;
    NEVER_IDLE: Fault::NeverIdle;
    MEDDLES: Fault::Meddles;
    SHARES: Fault::Shares;
}

#[test]
fn a_broken_reduction_fails_each_law() {
    assert_eq!(laws::check(&[&SOUND]), Vec::<String>::new());
    for (broken, law) in [
        (&UNSORTED, "sorted and unique"),
        (&REPEATS, "sorted and unique"),
        (&OUT_OF_RANGE, "rows are held"),
        (&OVER_BUDGET, "the budget is"),
        (&UNDER_BUDGET, "the budget is"),
        (&LOSES_SINKS, "must stay"),
        (&NEVER_IDLE, "a ratio of 0 forgets nothing"),
        (&MEDDLES, "leave the cache as it was"),
        (&SHARES, "forks of a reduction are independent"),
    ] {
        let found = laws::check(&[broken]);
        assert!(found.iter().any(|f| f.contains(law)), "{law}: {found:#?}");
    }
}

static CHOOSY: MethodEntry = MethodEntry {
    slug: "choosy",
    places: &[Place { role: Role::Draft, site: Site::Whole }],
    exactness: Exactness::DistributionExact,
    neutral: None,
    build: |_| Ok(Method::Draft(Box::new(Choosy))),
    ..entry::<Good>()
};
static CARELESS: MethodEntry = MethodEntry {
    slug: "careless",
    places: &[Place { role: Role::Accept, site: Site::Whole }],
    exactness: Exactness::DistributionExact,
    neutral: None,
    build: |_| Ok(Method::Accept(Box::new(Careless))),
    ..entry::<Good>()
};
static HOARDER: MethodEntry = MethodEntry {
    places: &[Place { role: Role::Draft, site: Site::Whole }],
    build: |_| Ok(Method::Draft(Box::new(Hoarder::default()))),
    ..entry::<Good>()
};
static RELAPSE: MethodEntry =
    MethodEntry { build: |_| Ok(Method::Layers(Box::new(Relapse))), ..entry::<Good>() };
static SPENDER: MethodEntry = MethodEntry {
    places: &[Place { role: Role::Draft, site: Site::Whole }],
    build: |_| Ok(Method::Draft(Box::new(Greedy))),
    ..entry::<Good>()
};
static GULLIBLE: MethodEntry = MethodEntry {
    places: &[Place { role: Role::Accept, site: Site::Whole }],
    build: |_| Ok(Method::Accept(Box::new(Gullible))),
    ..entry::<Good>()
};
static NOT_NEUTRAL: MethodEntry = MethodEntry {
    neutral: Some(|| Settings::from_iter([("size".to_owned(), serde_json::json!("x"))])),
    ..entry::<Good>()
};

#[test]
fn a_broken_entry_fails_each_law() {
    assert_eq!(laws::check(&[&FINE]), Vec::<String>::new());
    for (broken, law) in [
        (&BAD_NAME, "names are well formed"),
        (&BAD_SITE, "sites belong"),
        (&NO_PLACE, "sites belong"),
        (&UNDOCUMENTED, "every setting is documented"),
        (&LENIENT, "every setting is documented"),
        (&IMPOSSIBLE, "defaults are complete and valid"),
        (&INCOMPLETE, "defaults are complete and valid"),
        (&DEAF, "unknown settings are refused"),
        (&VAGUE, "a lossy method says"),
        (&NOT_NEUTRAL, "neutral settings"),
        (&SPENDER, "a drafter keeps its budget"),
        (&GULLIBLE, "a bit-exact method gives"),
        (&HOARDER, "what a drafter has learnt"),
        (&RELAPSE, "a schedule never takes"),
        (&GULLIBLE, "the target's distribution"),
        (&CHOOSY, "the target's distribution"),
        (&CARELESS, "the target's distribution"),
        (&HEEDLESS, "a constrained text meets"),
        (&HEEDLESS, "a constrained sampler draws"),
        (&REVIVER, "a constrained sampler draws"),
        (&WRONG_ROLLBACK, "a constraint's rollback"),
        (&WRONG_FORK, "a constraint's rollback"),
        (&WRONG_FORK, "neutral settings"),
    ] {
        let found = laws::check(&[broken]);
        assert!(found.iter().any(|f| f.contains(law)), "{law}: {found:#?}");
    }
}

#[test]
fn a_file_that_breaks_a_rule_is_found() {
    let none = source::methods_directory().join("loops/none.rs");
    let good = std::fs::read_to_string(none).unwrap();
    let check = |stem, text: &str| source::check_file(stem, text, ENTRIES).join("\n");
    assert_eq!(check("none", &good), "");
    assert!(check("other", &good).contains("no entry `other`"));
    for word in source::HEADER {
        let without = good.replace(&format!("//! {word}: "), "//! ");
        assert!(check("none", &without).contains(word), "{word}");
    }
    assert!(check("none", &good.replace("#[test]", "")).contains("#[test]"));
    assert!(check("none", &"\n".repeat(600)).contains("long because"));
}
