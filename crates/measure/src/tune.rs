//! `tune`: which recipe is fastest here, among those that keep a promise.
//!
//! Every candidate answers the same prompts as the plain run, in turns with it, with the cost
//! curve measured first; what counts is the ratio of the two decoding times, prompt by prompt.
//! Candidates that are clearly behind after a short round take no part in the long one.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use serde_json::{Value, json};
use tessera_core::entry::{Exactness, MethodCall, MethodEntry, Role};
use tessera_runtime::{CostCurve, METHODS, Recipe, Request, Session};

use crate::statistics::{geometric_mean, median};
use crate::trial;
use crate::tuned::Promise;

/// A prompt to tune on.
pub struct TunePrompt {
    /// What sort of text it is; each sort counts alike.
    pub category: String,
    /// The request, without methods.
    pub request: Request,
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
            recipes.extend(recipe.ok().filter(|r| r.fits(&session.offer()).is_ok()));
        }
    }
    recipes
}

/// Decoding time per token, and tokens per pass, of a request with a recipe, from a cold start.
fn run(
    session: &Session,
    request: &Request,
    recipe: &Recipe,
    tokens: usize,
) -> crate::Result<(f64, f64)> {
    let request = Request {
        recipe: recipe.clone(),
        max_tokens: Some(tokens),
        ignore_end: true,
        ..request.clone()
    };
    let never = AtomicBool::new(false);
    let trial = trial::run(session.model(), &mut session.sequence()?, &request, &never)?;
    Ok((trial.pace().unwrap_or(f64::NAN), trial.counts.per_pass()))
}

/// One round: every recipe on every prompt, in turns with the plain run.
fn round(
    session: &Session,
    prompts: &[&TunePrompt],
    recipes: &[Recipe],
    tokens: usize,
    progress: &mut dyn FnMut(),
) -> crate::Result<Vec<Trial>> {
    let mut ratios: Vec<BTreeMap<String, Vec<f64>>> = vec![BTreeMap::new(); recipes.len()];
    let mut per_pass = vec![Vec::new(); recipes.len()];
    for prompt in prompts {
        for (at, recipe) in recipes.iter().enumerate() {
            // The plain run beside each, so that a slow moment of the machine hits both.
            let (plain, _) = run(session, &prompt.request, &Recipe::plain(), tokens)?;
            let (with, committed) = run(session, &prompt.request, recipe, tokens)?;
            ratios[at].entry(prompt.category.clone()).or_default().push(plain / with);
            per_pass[at].push(committed);
            progress();
        }
    }
    let trial = |(at, recipe): (usize, &Recipe)| {
        let categories: BTreeMap<String, f64> =
            ratios[at].iter().map(|(c, r)| (c.clone(), median(r))).collect();
        let all: Vec<f64> = categories.values().copied().collect();
        Trial {
            methods: recipe.to_json(),
            speedup: geometric_mean(&all),
            categories,
            tokens_per_pass: median(&per_pass[at]),
            finalist: false,
        }
    };
    Ok(recipes.iter().enumerate().map(trial).collect())
}

/// Tries the candidates on the prompts. `progress` hears (runs done, runs in all).
///
/// # Errors
/// Whatever a run reports; no prompts.
pub fn tune(
    session: &Session,
    prompts: &[TunePrompt],
    promise: Promise,
    curve: &CostCurve,
    plan: Plan,
    progress: &mut dyn FnMut(usize, usize),
) -> crate::Result<Tuning> {
    let recipes = candidates(METHODS, session, promise, curve);
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let few: Vec<&TunePrompt> = prompts
        .iter()
        .filter(|p| {
            let count = seen.entry(&p.category).or_default();
            *count += 1;
            *count <= plan.short.1
        })
        .collect();
    let all: Vec<&TunePrompt> = prompts.iter().collect();
    let finalists = plan.finalists.min(recipes.len());
    let (mut done, total) = (0, few.len() * recipes.len() + all.len() * finalists);
    let mut step = || {
        done += 1;
        progress(done, total);
    };
    let mut trials = round(session, &few, &recipes, plan.short.0, &mut step)?;
    let mut order: Vec<usize> = (0..recipes.len()).collect();
    order.sort_by(|&a, &b| trials[b].speedup.total_cmp(&trials[a].speedup));
    order.truncate(finalists);
    let best: Vec<Recipe> = order.iter().map(|&at| recipes[at].clone()).collect();
    for (&at, long) in order.iter().zip(round(session, &all, &best, plan.long, &mut step)?) {
        trials[at] = Trial { finalist: true, ..long };
    }
    trials.sort_by(|a, b| b.finalist.cmp(&a.finalist).then(b.speedup.total_cmp(&a.speedup)));
    let worth = |t: &&Trial| {
        let worst = t.categories.values().copied().fold(f64::INFINITY, f64::min);
        t.finalist && t.speedup >= LEAST_GAIN && worst >= WORST_CATEGORY
    };
    let (methods, speedup) =
        trials.iter().find(worth).map_or((json!([]), 1.0), |t| (t.methods.clone(), t.speedup));
    Ok(Tuning { trials, methods, speedup })
}
