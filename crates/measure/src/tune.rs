//! `tune`: which recipe is fastest here, among those that keep a promise.
//!
//! Every candidate answers the same prompts as the plain run, in turns with it, with the cost
//! curve measured first; what counts is the ratio of the two decoding times, prompt by prompt.
//! Candidates that are clearly behind after a short round take no part in the long one. Where masks are
//! filled and the text may change, it must be as good as the plain canvas's: as often right, where prompts have
//! one right answer, and as good in the eyes of the judge where they have none.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use serde_json::{Value, json};
use tessera_core::TokenId;
use tessera_core::entry::{Exactness, MethodCall, MethodEntry, Role, Site};
use tessera_engine::Model;
use tessera_runtime::{CostCurve, METHODS, Recipe, Request, Session};

use crate::error::Error;
use crate::lineup::fills_masks;
use crate::statistics::{geometric_mean, median};
use crate::tuned::Promise;
use crate::workload::Expected;
use crate::{quality, trial, verdict};

/// A prompt to tune on.
pub struct TunePrompt {
    /// What sort of text it is; each sort counts alike.
    pub category: String,
    /// The request, without methods.
    pub request: Request,
    /// The right answer, if there is one.
    pub expected: Option<Expected>,
}

/// A recipe and how it fared.
#[derive(Debug, Clone, Serialize)]
pub struct Trial {
    /// The recipe, as a request writes it.
    pub methods: Value,
    /// Median over the prompts of a category of plain decoding time over the recipe's.
    pub categories: BTreeMap<String, f64>,
    /// The geometric mean of the categories' medians.
    pub speedup: f64,
    /// Tokens committed per pass.
    pub tokens_per_pass: f64,
    /// Whether it took part in the long round.
    pub finalist: bool,
    /// What its texts are worth beside the plain canvas's; only where the judge was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub texts: Option<Worth>,
}

/// What texts are worth, beside the plain canvas's.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Worth {
    /// Right answers.
    Answers {
        /// Its own.
        right: usize,
        /// The plain run's.
        plain: usize,
        /// Those asked.
        asked: usize,
    },
    /// What the judge says.
    Texts {
        /// Perplexity of its texts, then of the plain run's.
        perplexity: (f64, f64),
        /// Different pairs of neighbouring tokens, as a share of all pairs (distinct-2), in the same order.
        distinct: (f64, f64),
    },
}

impl Worth {
    /// Whether the texts are no worse than the plain run's by more than a twentieth. Where the plain run is
    /// right in less than a quarter of its answers, nobody can tell.
    pub fn holds(&self) -> bool {
        match *self {
            Self::Answers { right, plain, asked } => {
                !verdict::is_too_seldom(plain, asked)
                    && right as f64 * verdict::WORSE >= plain as f64
            }
            Self::Texts { perplexity, distinct } => {
                perplexity.0 <= verdict::WORSE * perplexity.1
                    && distinct.0 * verdict::WORSE >= distinct.1
            }
        }
    }

    /// Whether a short text says that a long one will be worth nothing.
    fn is_hopeless(&self) -> bool {
        match *self {
            Self::Answers { right, plain, .. } => right * 2 < plain,
            Self::Texts { perplexity: (own, plain), .. } => own > 2.0 * plain,
        }
    }
}

/// What tuning found.
#[derive(Debug, Clone, Serialize)]
pub struct Tuning {
    /// The trials, best first.
    pub trials: Vec<Trial>,
    /// The recipe to use, as a request writes it; empty for the plain run.
    pub methods: Value,
    /// Its gain over the plain run; 1 for the plain run itself.
    pub speedup: f64,
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Tokens per prompt in the short round, and prompts of each category.
    pub short: (usize, usize),
    /// Tokens per prompt in the long round.
    pub long: usize,
    /// Recipes that take part in the long round.
    pub finalists: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Self { short: (48, 1), long: 128, finalists: 3 }
    }
}

/// A recipe must gain this much to be worth its complication.
const LEAST_GAIN: f64 = 1.02;
/// No category may lose more than this.
const WORST_CATEGORY: f64 = 0.97;
/// Prompts of each category in the short round, where answers are right or wrong: one says too little.
const ANSWERS: usize = 4;
/// Budgets that are tried of drafters that have one.
const BUDGETS: [usize; 4] = [4, 8, 16, 24];

/// Whether a method's label keeps the promise.
fn keeps(exactness: Exactness, promise: Promise) -> bool {
    match promise {
        Promise::Bit => exactness == Exactness::BitExact,
        Promise::Distribution => !matches!(exactness, Exactness::Lossy { .. }),
        Promise::Any => true,
    }
}

/// The recipes to try: every drafter that keeps the promise and has what it needs here, with
/// several budgets.
pub fn candidates(
    entries: &[&'static MethodEntry],
    session: &Session,
    promise: Promise,
    curve: &CostCurve,
) -> Vec<Recipe> {
    let fits = |recipe: &Recipe| recipe.fits(&session.offer()).is_ok();
    if session.filling().is_some() {
        return of_canvas(entries, promise).into_iter().filter(fits).collect();
    }
    let mut recipes = Vec::new();
    for entry in entries.iter().filter(|e| e.places.iter().any(|p| p.role == Role::Draft)) {
        if !keeps(entry.exactness, promise) {
            continue;
        }
        let defaults = (entry.defaults)();
        let budgets: Vec<Option<usize>> = match defaults.contains_key("budget") {
            true => BUDGETS.iter().map(|&b| Some(b)).collect(),
            false => vec![None],
        };
        for budget in budgets {
            let mut call = MethodCall { id: entry.slug.to_owned(), settings: Default::default() };
            call.settings.extend(budget.map(|b| ("budget".to_owned(), json!(b))));
            // A budget outside a drafter's range is no candidate.
            let recipe =
                Recipe::resolve(entries, &[call]).and_then(|r| r.with_curve(curve.clone()));
            recipes.extend(recipe.ok().filter(fits));
        }
    }
    recipes
}

/// What fills masks and keeps the promise: every decoder, every cache, and each of the one with each of
/// the other where they go together.
fn of_canvas(entries: &[&'static MethodEntry], promise: Promise) -> Vec<Recipe> {
    let kept = |e: &&&'static MethodEntry| fills_masks(e) && keeps(e.exactness, promise);
    let call = |e: &MethodEntry| MethodCall { id: e.slug.to_owned(), settings: Default::default() };
    let is_cache = |e: &MethodEntry| e.places.iter().any(|p| p.site == Site::Window);
    let (caches, decoders): (Vec<&MethodEntry>, Vec<_>) =
        entries.iter().filter(kept).copied().partition(|e| is_cache(e));
    let one = decoders.iter().chain(&caches).map(|e| vec![call(e)]);
    let two = caches.iter().flat_map(|c| decoders.iter().map(|d| vec![call(c), call(d)]));
    one.chain(two).filter_map(|calls| Recipe::resolve(entries, &calls).ok()).collect()
}

/// A prompt with a recipe, from a cold start; as many tokens as the right answer is given room for, if
/// there is one.
fn run(
    session: &Session,
    prompt: &TunePrompt,
    recipe: &Recipe,
    tokens: usize,
) -> crate::Result<trial::Trial> {
    let mut request = Request {
        recipe: recipe.clone(),
        max_tokens: Some(tokens),
        ignore_end: true,
        ..prompt.request.clone()
    };
    if let Some(expected) = &prompt.expected {
        expected.ask(&mut request);
        request.ignore_end = false;
    }
    let never = AtomicBool::new(false);
    Ok(trial::run(session.model(), &mut session.sequence()?, &request, &never)?)
}

/// One round: every recipe on every prompt, in turns with the plain run; `None` for one that refuses a
/// canvas, as some pairs find out only there that they do not go together.
fn round(
    session: &Session,
    prompts: &[&TunePrompt],
    recipes: &[Recipe],
    tokens: usize,
    progress: &mut dyn FnMut(),
) -> crate::Result<Vec<Option<Trial>>> {
    let mut ratios: Vec<BTreeMap<String, Vec<f64>>> = vec![BTreeMap::new(); recipes.len()];
    let mut per_pass = vec![Vec::new(); recipes.len()];
    let mut texts = vec![(Vec::new(), Vec::new()); recipes.len()];
    let mut refused = vec![false; recipes.len()];
    for prompt in prompts {
        let pace =
            |trial: &trial::Trial| trial.duration(prompt.expected.as_ref()).unwrap_or(f64::NAN);
        for (at, recipe) in recipes.iter().enumerate() {
            // The plain run beside each, so that a slow moment of the machine hits both.
            let plain = run(session, prompt, &Recipe::plain(), tokens)?;
            let with = match run(session, prompt, recipe, tokens) {
                Err(Error::Session(error)) if session.filling().is_some() && error.is_usage() => {
                    refused[at] = true;
                    progress();
                    continue;
                }
                other => other?,
            };
            let ratio = pace(&plain) / pace(&with);
            ratios[at].entry(prompt.category.clone()).or_default().push(ratio);
            per_pass[at].push(with.counts.per_pass());
            texts[at].0.push((&prompt.request.prompt[..], with.tokens));
            texts[at].1.push((&prompt.request.prompt[..], plain.tokens));
            progress();
        }
    }
    let judge = session.filling().and(quality::judge(session.model()));
    let trial = |(at, recipe): (usize, &Recipe)| {
        if refused[at] {
            return Ok(None);
        }
        let texts = match (answers(prompts, &texts[at].0, &texts[at].1), judge) {
            (None, Some(judge)) => Some(worth(judge, &texts[at].0, &texts[at].1)?),
            (known, _) => known,
        };
        let categories: BTreeMap<String, f64> =
            ratios[at].iter().map(|(c, r)| (c.clone(), median(r))).collect();
        let all: Vec<f64> = categories.values().copied().collect();
        Ok(Some(Trial {
            methods: recipe.to_json(),
            speedup: geometric_mean(&all),
            categories,
            tokens_per_pass: median(&per_pass[at]),
            finalist: false,
            texts,
        }))
    };
    recipes.iter().enumerate().map(trial).collect()
}

/// Prompts with their answers.
type Texts<'a> = [(&'a [TokenId], Vec<TokenId>)];

/// How often `own` answers are right beside `plain` ones, if every prompt has a right one.
fn answers(prompts: &[&TunePrompt], own: &Texts<'_>, plain: &Texts<'_>) -> Option<Worth> {
    let expected: Vec<&Expected> = prompts.iter().filter_map(|p| p.expected.as_ref()).collect();
    let right = |texts: &Texts<'_>| {
        expected.iter().zip(texts).filter(|(expected, (_, text))| expected.is_met(text)).count()
    };
    (expected.len() == own.len() && !own.is_empty()).then(|| Worth::Answers {
        right: right(own),
        plain: right(plain),
        asked: own.len(),
    })
}

/// What the judge says of `own` texts beside `plain` ones.
fn worth(judge: Model<'_>, own: &Texts<'_>, plain: &Texts<'_>) -> crate::Result<Worth> {
    let pairs = |texts: &Texts<'_>| -> crate::Result<(f64, f64)> {
        let texts: Vec<(&[TokenId], &[TokenId])> =
            texts.iter().map(|(p, a)| (*p, &a[..])).collect();
        Ok((quality::perplexity(judge, &texts)?, quality::distinct(&texts)))
    };
    let (own, plain) = (pairs(own)?, pairs(plain)?);
    Ok(Worth::Texts { perplexity: (own.0, plain.0), distinct: (own.1, plain.1) })
}

/// Tries the candidates on the prompts. `progress` hears (runs done, runs in all).
///
/// # Errors
/// Whatever a run reports; a promise that nobody can judge.
pub fn tune(
    session: &Session,
    prompts: &[TunePrompt],
    promise: Promise,
    curve: &CostCurve,
    plan: Plan,
    progress: &mut dyn FnMut(usize, usize),
) -> crate::Result<Tuning> {
    let judged = session.filling().is_some() && promise == Promise::Any;
    let known = prompts.iter().all(|p| p.expected.is_some());
    if judged && !known && quality::judge(session.model()).is_none() {
        let what = "exact = any: needs a judge of the texts where masks are filled. Next: name a causal \
                    model of the same vocabulary with --draft-model";
        return Err(Error::Usage(what.to_owned()));
    }
    let recipes = candidates(METHODS, session, promise, curve);
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let few: Vec<&TunePrompt> = prompts
        .iter()
        .filter(|p| {
            let count = seen.entry(&p.category).or_default();
            *count += 1;
            *count <= if known { plan.short.1.max(ANSWERS) } else { plan.short.1 }
        })
        .collect();
    let all: Vec<&TunePrompt> = prompts.iter().collect();
    // The fastest canvases are often the worst, so more of them are looked at in full.
    let finalists = (plan.finalists * if judged { 4 } else { 1 }).min(recipes.len());
    let (mut done, total) = (0, few.len() * recipes.len() + all.len() * finalists);
    let mut step = || {
        done += 1;
        progress(done, total);
    };
    let short = round(session, &few, &recipes, plan.short.0, &mut step)?;
    let (recipes, mut trials): (Vec<Recipe>, Vec<Trial>) =
        recipes.into_iter().zip(short).filter_map(|(recipe, trial)| Some((recipe, trial?))).unzip();
    // A short text says little about its worth, so the bar is lower here.
    let hopeless = |t: &Trial| judged && t.texts.is_some_and(|w| w.is_hopeless());
    let mut order: Vec<usize> = (0..recipes.len()).filter(|&at| !hopeless(&trials[at])).collect();
    order.sort_by(|&a, &b| trials[b].speedup.total_cmp(&trials[a].speedup));
    order.truncate(finalists);
    let best: Vec<Recipe> = order.iter().map(|&at| recipes[at].clone()).collect();
    for (&at, long) in order.iter().zip(round(session, &all, &best, plan.long, &mut step)?) {
        if let Some(long) = long {
            trials[at] = Trial { finalist: true, ..long };
        }
    }
    trials.sort_by(|a, b| b.finalist.cmp(&a.finalist).then(b.speedup.total_cmp(&a.speedup)));
    let worth = |t: &&Trial| {
        let worst = t.categories.values().copied().fold(f64::INFINITY, f64::min);
        let good = !judged || t.texts.is_some_and(|w| w.holds());
        t.finalist && t.speedup >= LEAST_GAIN && worst >= WORST_CATEGORY && good
    };
    let (methods, speedup) =
        trials.iter().find(worth).map_or((json!([]), 1.0), |t| (t.methods.clone(), t.speedup));
    Ok(Tuning { trials, methods, speedup })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_hold_if_they_are_as_good_and_somebody_can_tell() {
        let answers = |right, plain, asked| Worth::Answers { right, plain, asked }.holds();
        assert!(answers(20, 20, 20) && answers(20, 21, 40) && answers(9, 5, 20));
        assert!(!answers(18, 20, 20) && !answers(0, 0, 1) && !answers(4, 4, 20));
        let texts = |own, distinct| {
            Worth::Texts { perplexity: (own, 10.0), distinct: (distinct, 0.5) }.holds()
        };
        assert!(texts(10.4, 0.48) && !texts(10.6, 0.5) && !texts(10.0, 0.47));
    }
}
