//! What is still known when less is remembered: answers, cache and speed by budget.
//!
//! A long text is computed once; each question about it, under each arm and budget, continues a fork
//! of those rows. Only arms that act inside the passes over the prompt compute it anew. Answers are
//! exact, so an arm is compared with the plain run question by question.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tessera_core::entry::{Role, Site};
use tessera_core::text::StreamDecoder;
use tessera_core::{TokenId, Vocabulary};
use tessera_engine::{Model, Recipe, Request, Sequence};

use crate::check::{Measured, Sample, Task};
use crate::error::{Error, Result};
use crate::lineup::{Lineup, Setup};
use crate::longtext::LongText;
use crate::record::Part;
use crate::statistics::Interval;
use crate::trial::{self, Trial};

/// A long text as a model reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The task.
    pub task: String,
    /// Its name in records.
    pub name: String,
    /// Prompts, each the same text and a question about it; they begin alike.
    pub prompts: Vec<Vec<TokenId>>,
    /// The questions.
    pub text: LongText,
}

/// How much to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Most tokens of an answer.
    pub answer: usize,
    /// Tokens of the continuation by which speed is measured.
    pub speed: usize,
    /// Last tokens of a text that are forced on the model, one by one, for its perplexity.
    pub scored: usize,
    /// A setting and the values at which arms that have it are measured besides their own.
    pub sweep: Option<(String, Vec<Value>)>,
    /// The seed.
    pub seed: u64,
    /// When to stop, if time matters.
    pub limit: Option<Duration>,
}

/// How much is remembered, and what comes of it: by arm and value of the setting that is varied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// Tokens of a text, about.
    pub length: usize,
    /// Texts read.
    pub texts: usize,
    /// The setting that is varied; empty if none is.
    pub setting: String,
    /// One for each arm and value; the plain run first.
    pub points: Vec<Point>,
}

/// An arm at one value of the setting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// What the arm is there for.
    pub part: Part,
    /// Its name.
    pub label: String,
    /// Its recipe, as a request writes it.
    pub methods: Value,
    /// The value; `null` where the setting is not the arm's.
    pub value: Value,
    /// Answers by task, `all` last.
    pub tasks: Vec<Answers>,
    /// Share of the cache's rows that was kept, the median, 0 to 1.
    pub kept: f64,
    /// Share of the rows held that decoding passes read, the median, 0 to 1.
    #[serde(default = "all")]
    pub read: f64,
    /// Bytes of the cache at the end of an answer, the median.
    pub cache_bytes: usize,
    /// Perplexity of the texts' last tokens, each read by a decoding pass.
    pub perplexity: f64,
    /// Decoding speed over the plain run's after the same text.
    pub speed: Option<Interval>,
    /// Time to the first token over the plain run's (the whole text computed anew by both), where the
    /// arm acts inside those passes.
    pub prefill_speed: Option<Interval>,
}

/// How many questions were answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answers {
    /// The task, or `all`.
    pub task: String,
    /// Questions.
    pub asked: usize,
    /// Right answers.
    pub right: usize,
    /// Mean difference from the plain run on the same question, in points of 100.
    pub over_plain: Interval,
    /// Mean difference from the control on the same question and value, in points of 100.
    pub over_control: Option<Interval>,
    /// Mean difference from the baseline on the same question and value, in points of 100.
    pub over_rival: Option<Interval>,
}

impl Retention {
    /// The point of an arm at a value; the arm's only one where it does not vary.
    pub fn point(&self, part: Part, value: &Value) -> Option<&Point> {
        let of = |p: &&Point| p.part == part;
        self.points
            .iter()
            .filter(of)
            .find(|p| p.value == *value)
            .or_else(|| self.points.iter().filter(of).find(|p| p.value.is_null()))
    }

    /// The values, in the order in which they were measured.
    pub fn values(&self) -> Vec<&Value> {
        self.points.iter().filter(|p| p.part == Part::Method).map(|p| &p.value).collect()
    }
}

/// What older records read: they hold no such count, and no figure below it was asked for.
fn all() -> f64 {
    1.0
}

impl Point {
    /// What was spent on remembering, as a sentence goes on after "with": rows kept, and rows read
    /// where those are fewer than the kept ones.
    pub fn memory(&self) -> String {
        let (kept, read) = (100.0 * self.kept, 100.0 * self.read);
        match self.read < 0.995 {
            false => format!("{kept:.0} % of the cache"),
            true => format!("{kept:.0} % of the cache kept and {read:.0} % of its rows read"),
        }
    }

    /// The answers to all questions.
    pub fn all(&self) -> Option<&Answers> {
        self.tasks.last()
    }
}

/// Tokens of an answer beyond those that the vocabulary spells it with.
const SPELLING: usize = 4;

/// An arm at a value.
struct Variant<'a> {
    setup: &'a Setup,
    value: Value,
    recipe: Recipe,
    whole: bool,
}

/// What a variant did on one text.
#[derive(Default)]
struct Seen {
    /// By question: whether it was answered.
    right: Vec<bool>,
    speed: Option<Trial>,
    /// Natural logarithms of the probabilities of the text's last tokens.
    logprobs: Vec<f64>,
}

/// Whether a recipe acts inside the passes over the prompt, so that it shares no rows.
pub fn acts_in_prefill(recipe: &Recipe) -> bool {
    let site = |s: Site| matches!(s, Site::Prefill | Site::Whole);
    let acts = |role, s| role == Role::Reduce && site(s);
    recipe.members().iter().any(|m| m.entry.places.iter().any(|p| acts(p.role, p.site)))
}

/// The recipe with `setting` of every member that has it set to `value`; `None` if none has.
fn with_value(recipe: &Recipe, setting: &str, value: &Value) -> Result<Option<Recipe>> {
    if !recipe.members().iter().any(|m| m.settings.contains_key(setting)) {
        return Ok(None);
    }
    Ok(Some(recipe.with_setting(setting, value)?))
}

/// Reads `texts` with every arm of `lineup`, as it is and at every value of the plan's sweep. `progress` hears how many of how many texts are done. Time running out, or
/// `cancel`, ends it after the text in hand.
///
/// # Errors
/// Whatever the loop reports; [`Error::Stopped`] if it ended before the first text was done.
pub fn measure<'a>(
    model: Model<'_>,
    lineup: &Lineup,
    texts: &[Reading],
    tasks: &'a [Task],
    plan: &Plan,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Measured<'a>, Retention)> {
    let start = Instant::now();
    let sweep = plan.sweep.as_ref().map(|(name, values)| (name.as_str(), values.as_slice()));
    let variants = variants(lineup, sweep)?;
    let mut seen: Vec<Vec<Seen>> = Vec::new();
    let mut samples = Vec::new();
    let mut longest = Duration::ZERO;
    for (at, (text, task)) in texts.iter().zip(tasks).enumerate() {
        progress(at, texts.len());
        let begun = Instant::now();
        let late = plan.limit.is_some_and(|limit| start.elapsed() + longest > limit);
        if cancel.load(Ordering::Relaxed) || (late && at > 0) {
            break;
        }
        let Some(here) = read(model, &variants, text, plan, at, cancel)? else { break };
        // The arms as they are stand first among the variants: they are the record's rows.
        let trials = here[..lineup.arms.len()].iter().filter_map(|s| s.speed.clone()).collect();
        samples.push(Sample { task, turn: 0, trials });
        seen.push(here);
        longest = longest.max(begun.elapsed());
    }
    if samples.is_empty() {
        return Err(Error::Stopped);
    }
    let done = &texts[..seen.len()];
    let shared = variants.iter().take(lineup.arms.len()).map(|v| v.value.clone());
    let own = lineup.arms.iter().zip(shared).find(|(a, _)| a.part == Part::Method);
    let own = own.map_or(Value::Null, |(_, v)| v);
    let points: Vec<Point> = (0..variants.len())
        // A value of the sweep that is the method's own was measured once.
        .filter(|&v| v < lineup.arms.len() || variants[v].value != own)
        .map(|v| point(&variants, v, done, &seen))
        .collect();
    let retention = Retention {
        length: done.iter().map(|t| t.prompts.first().map_or(0, Vec::len)).max().unwrap_or(0),
        texts: done.len(),
        setting: sweep.map_or_else(String::new, |(name, _)| name.to_owned()),
        points,
    };
    let arms = (0..lineup.arms.len()).collect();
    Ok((Measured::on_long_texts(samples, texts.len(), arms), retention))
}

/// The arms as they are, then at each value of the sweep those that vary.
fn variants<'a>(lineup: &'a Lineup, sweep: Option<(&str, &[Value])>) -> Result<Vec<Variant<'a>>> {
    let own = |setup: &Setup| -> Value {
        let value =
            |name| setup.recipe.members().iter().find_map(|m| m.settings.get(name)).cloned();
        sweep.and_then(|(name, _)| value(name)).unwrap_or(Value::Null)
    };
    let variant = |setup: &'a Setup, value, recipe: Recipe| {
        let whole = acts_in_prefill(&recipe);
        Variant { setup, value, recipe, whole }
    };
    let mut all: Vec<Variant<'_>> =
        lineup.arms.iter().map(|s| variant(s, own(s), s.recipe.clone())).collect();
    if let Some((name, values)) = sweep {
        for value in values {
            for setup in &lineup.arms {
                if let Some(recipe) = with_value(&setup.recipe, name, value)? {
                    all.push(variant(setup, value.clone(), recipe));
                }
            }
        }
    }
    Ok(all)
}

fn read(
    model: Model<'_>,
    variants: &[Variant<'_>],
    text: &Reading,
    plan: &Plan,
    turn: usize,
    cancel: &AtomicBool,
) -> Result<Option<Vec<Seen>>> {
    let mut seen: Vec<Seen> = variants.iter().map(|_| Seen::default()).collect();
    let Some(first) = text.prompts.first() else { return Ok(Some(seen)) };
    let mut request = Request::new(first.clone());
    request.sampling = tessera_core::dist::Sampling::greedy();
    request.seed = plan.seed;
    // What all questions share.
    let same = |a: &[TokenId]| a.iter().zip(first).take_while(|(a, b)| a == b).count();
    let shared = text.prompts.iter().map(|p| same(p)).min().unwrap_or(0).max(1);
    let mut base = Sequence::new(model.backbone, shared)?;
    request.prompt.truncate(shared);
    request.max_tokens = Some(0);
    let whole_time = trial::run(model, &mut base, &request, cancel)?.prefill_seconds;
    for (q, prompt) in text.prompts.iter().enumerate() {
        request.prompt.clone_from(prompt);
        // Room for another spelling of the answer and for what shows that it ended.
        let answer = model.vocabulary.encode(&text.text.questions[q].answer).len() + SPELLING;
        let mut order: Vec<usize> = (0..variants.len()).collect();
        order.rotate_left((turn + q) % variants.len());
        for v in order {
            let variant = &variants[v];
            request.recipe = variant.recipe.clone();
            request.ignore_end = false;
            request.max_tokens = Some(answer.min(plan.answer));
            let fork = |request: &Request| -> Result<Trial> {
                let mut sequence = match variant.whole {
                    true => Sequence::new(model.backbone, request.prompt.len() + 64)?,
                    false => base.fork()?,
                };
                trial::run(model, &mut sequence, request, cancel).map_err(Error::from)
            };
            let answer = fork(&request)?;
            let words = words(model.vocabulary, &answer.tokens);
            seen[v].right.push(text.text.questions[q].is_answered_by(&words));
            if q == 0 {
                request.ignore_end = true;
                request.max_tokens = Some(plan.speed);
                let mut speed = fork(&request)?;
                if !variant.whole {
                    // The shared rows took this long; the rest was computed by this arm.
                    speed.prefill_seconds += whole_time;
                }
                seen[v].speed = Some(speed);
            }
            if q == 0 {
                // The text alone, its end forced: how well it is still understood.
                let known = shared.saturating_sub(plan.scored).max(1);
                request.prompt = first[..known].to_vec();
                request.forced = first[known..shared].to_vec();
                request.max_tokens = None;
                let mut sequence = base.fork()?;
                sequence.truncate(known)?;
                if variant.whole {
                    sequence = Sequence::new(model.backbone, known + 64)?;
                }
                seen[v].logprobs = trial::run(model, &mut sequence, &request, cancel)?.logprobs;
                request.forced.clear();
                request.prompt.clone_from(prompt);
            }
            if cancel.load(Ordering::Relaxed) {
                return Ok(None);
            }
        }
    }
    Ok(Some(seen))
}

fn words(vocabulary: &dyn Vocabulary, tokens: &[TokenId]) -> String {
    let (mut decoder, mut text) = (StreamDecoder::new(), String::new());
    for &token in tokens {
        decoder.push(vocabulary.bytes(token), &mut text);
    }
    decoder.finish(&mut text);
    text
}

fn point(variants: &[Variant<'_>], at: usize, texts: &[Reading], seen: &[Vec<Seen>]) -> Point {
    let variant = &variants[at];
    let like = |part: Part| {
        let fits = |v: &&usize| variants[**v].setup.part == part;
        let all: Vec<usize> = (0..variants.len()).collect();
        let equal = all.iter().filter(fits).find(|&&v| variants[v].value == variant.value).copied();
        equal.or_else(|| all.iter().filter(fits).find(|&&v| variants[v].value.is_null()).copied())
    };
    let mut names: Vec<&str> = Vec::new();
    for text in texts {
        if !names.contains(&text.task.as_str()) {
            names.push(&text.task);
        }
    }
    let answers = |task: Option<&str>| {
        let mine = || texts.iter().zip(seen).filter(|(t, _)| task.is_none_or(|n| t.task == n));
        let points = |other: usize| -> Interval {
            let pairs = mine().flat_map(|(_, s)| s[at].right.iter().zip(&s[other].right));
            let differences: Vec<f64> =
                pairs.map(|(a, b)| 100.0 * (f64::from(*a) - f64::from(*b))).collect();
            Interval::with(&differences, |v| v.iter().sum::<f64>() / v.len() as f64)
        };
        let against =
            |part: Part| (variant.setup.part != part).then(|| like(part)).flatten().map(points);
        Answers {
            task: task.unwrap_or("all").to_owned(),
            asked: mine().map(|(_, s)| s[at].right.len()).sum(),
            right: mine().map(|(_, s)| s[at].right.iter().filter(|r| **r).count()).sum(),
            over_plain: points(0),
            over_control: against(Part::Control),
            over_rival: against(Part::Rival),
        }
    };
    let tasks = names.iter().map(|n| answers(Some(n))).chain([answers(None)]).collect();
    let speeds: Vec<(&Trial, &Trial)> =
        seen.iter().filter_map(|s| Some((s[0].speed.as_ref()?, s[at].speed.as_ref()?))).collect();
    let paired = |value: &dyn Fn(&Trial) -> Option<f64>| {
        let ratio = |(plain, own): &(&Trial, &Trial)| Some(value(plain)? / value(own)?);
        let ratios: Vec<f64> = speeds.iter().filter_map(ratio).collect();
        (!ratios.is_empty() && at > 0).then(|| Interval::of(&ratios))
    };
    let middle = |value: &dyn Fn(&Trial) -> f64| {
        let values: Vec<f64> = speeds.iter().map(|(_, own)| value(own)).collect();
        if values.is_empty() { 0.0 } else { crate::statistics::median(&values) }
    };
    Point {
        part: variant.setup.part,
        label: variant.setup.label.clone(),
        methods: variant.recipe.to_json(),
        value: variant.value.clone(),
        tasks,
        kept: middle(&|t| 1.0 - t.forgotten),
        read: middle(&|t| t.counts.read_share()),
        cache_bytes: middle(&|t| t.cache_bytes as f64) as usize,
        perplexity: {
            let all: Vec<f64> = seen.iter().flat_map(|s| s[at].logprobs.iter().copied()).collect();
            (-all.iter().sum::<f64>() / all.len().max(1) as f64).exp()
        },
        speed: paired(&Trial::pace),
        prefill_speed: variant.whole.then(|| paired(&|t| Some(t.prefill_seconds))).flatten(),
    }
}

/// The values of a sweep as typed: `budget=64,128`.
///
/// # Errors
/// [`Error::Usage`] saying how it is written.
pub fn parse_sweep(text: &str) -> Result<(String, Vec<Value>)> {
    let wrong = || Error::Usage(format!("--sweep {text}: write setting=value,value,..."));
    let (name, values) = text.split_once('=').ok_or_else(wrong)?;
    let value = |v: &str| serde_json::from_str(v).unwrap_or_else(|_| json!(v));
    let values: Vec<Value> = values.split(',').map(|v| value(v.trim())).collect();
    let good = !name.trim().is_empty() && !values.is_empty() && values.len() <= 16;
    if good { Ok((name.trim().replace('-', "_"), values)) } else { Err(wrong()) }
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
