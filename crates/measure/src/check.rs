//! Claimed, measured, control: runs the arms of a [`Lineup`] over a workload, interleaved, and
//! makes a [`Record`] of it.
//!
//! Every prompt is computed once and its rows serve all arms, one after the other, in an order that
//! is turned round from turn to turn. A ratio is formed between runs of the same prompt and turn,
//! so that a machine whose speed drifts does not favour anyone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tessera_core::dist::Sampling;
use tessera_core::entry::{Claim, Exactness, plain_json};
use tessera_core::{FinishReason, TokenId};
use tessera_engine::{CostCurve, Model, Request, Sequence};

use crate::error::{Error, Result};
use crate::lineup::Lineup;
use crate::machine::Machine;
use crate::quality;
use crate::record::{
    Agreement, Arm, ClaimLine, Divergence, ModelLine, Part, Record, Row, SCHEMA, WorkloadLine,
};
use crate::statistics::{Interval, geometric_mean, median};
use crate::trial::{self, Counts, Trial};
use crate::verdict;
use crate::workload::Expected;

/// A prompt to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Its category.
    pub category: String,
    /// Its name.
    pub name: String,
    /// Its tokens.
    pub tokens: Vec<TokenId>,
    /// The right answer, if there is one.
    pub expected: Option<Expected>,
}

/// How much to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Times that every prompt is run with every arm.
    pub turns: usize,
    /// Most tokens of an answer.
    pub tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The seed.
    pub seed: u64,
    /// Whether to run the method with the state of the prompts before, too.
    pub hot: bool,
    /// When to stop, if time matters.
    pub limit: Option<Duration>,
}

/// All arms on one prompt, in one turn; the order of the lineup.
pub(crate) struct Sample<'a> {
    pub(crate) task: &'a Task,
    pub(crate) turn: usize,
    pub(crate) trials: Vec<Trial>,
}

/// What was measured, before it is a record.
pub struct Measured<'a> {
    samples: Vec<Sample<'a>>,
    /// Prompts of the plan.
    planned: usize,
    /// The lineup's arms that took part, by index.
    arms: Vec<usize>,
    /// Whether its texts are too long to be read once more for their perplexity.
    long: bool,
}

/// Runs `lineup` over `tasks`. `progress` hears how many of how many prompts are done. Time running
/// out, or `cancel`, ends it after the prompt in hand.
///
/// # Errors
/// Whatever the loop reports; [`Error::Stopped`] if it ended before the first prompt was done.
pub fn measure<'a>(
    model: Model<'_>,
    lineup: &Lineup,
    tasks: &'a [Task],
    plan: &Plan,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Measured<'a>> {
    let start = Instant::now();
    let wanted = |part| plan.hot || part != Part::Hot;
    let arms: Vec<usize> =
        (0..lineup.arms.len()).filter(|&i| wanted(lineup.arms[i].part)).collect();
    let budget = lineup.budget()?;
    let mut samples = Vec::new();
    let (mut longest, total) = (Duration::ZERO, plan.turns * tasks.len());
    'turns: for turn in 0..plan.turns {
        let mut hot = Sequence::new(model.backbone, 1024)?;
        for task in tasks {
            progress(samples.len(), total);
            let begun = Instant::now();
            let late = plan.limit.is_some_and(|limit| start.elapsed() + longest > limit);
            if cancel.load(Ordering::Relaxed) || (late && !samples.is_empty()) {
                break 'turns;
            }
            let run = Turn { model, lineup, task, plan, budget, cancel };
            let Some(trials) = run.all(&arms, turn, &mut hot, samples.is_empty())? else {
                break 'turns;
            };
            samples.push(Sample { task, turn, trials });
            longest = longest.max(begun.elapsed());
        }
    }
    if samples.is_empty() {
        return Err(Error::Stopped);
    }
    Ok(Measured { samples, planned: tasks.len(), arms, long: false })
}

/// One prompt in one turn.
struct Turn<'a> {
    model: Model<'a>,
    lineup: &'a Lineup,
    task: &'a Task,
    plan: &'a Plan,
    budget: usize,
    cancel: &'a AtomicBool,
}

impl Turn<'_> {
    /// The trials of `arms`, in their order; `None` if it was cancelled.
    fn all(
        &self,
        arms: &[usize],
        turn: usize,
        hot: &mut Sequence,
        first: bool,
    ) -> Result<Option<Vec<Trial>>> {
        let room = self.task.tokens.len() + self.plan.tokens;
        let mut cold = Sequence::new(self.model.backbone, room)?;
        let mut request = Request::new(self.task.tokens.clone());
        request.sampling = self.plan.sampling;
        request.seed = self.plan.seed;
        // The prompt, for all arms; a few tokens more the first time, which is slower than any.
        request.max_tokens = Some(if first { 8 } else { 0 });
        if first || self.model.filling.is_none() {
            trial::run(self.model, &mut cold, &request, self.cancel)?;
        }
        request.max_tokens = Some(self.plan.tokens);
        if let Some(expected) = &self.task.expected {
            expected.ask(&mut request);
        }
        let mut order: Vec<usize> = (0..arms.len()).collect();
        if turn % 2 == 1 {
            order.reverse();
            // The control's budget is what the method spent.
            let part = |&at: &usize| self.lineup.arms[arms[at]].part;
            order.sort_by_key(|at| part(at) == Part::Control);
        }
        let mut trials: Vec<Option<Trial>> = vec![None; arms.len()];
        let mut spent = 1;
        for at in order {
            let arm = &self.lineup.arms[arms[at]];
            request.recipe = match arm.part {
                Part::Control => self.lineup.control(Some(spent))?.unwrap_or_default(),
                _ => arm.recipe.clone(),
            };
            let sequence = if arm.part == Part::Hot { &mut *hot } else { &mut cold };
            let done = trial::run(self.model, sequence, &request, self.cancel)?;
            if done.reason == FinishReason::Cancelled {
                return Ok(None);
            }
            if arm.part == Part::Method && self.model.filling.is_some() {
                spent = done.counts.all_passes().max(1);
            } else if arm.part == Part::Method {
                let guesses = done.counts.guesses_per_pass().round() as usize;
                spent = guesses.clamp(1, self.budget.max(1));
            }
            trials[at] = Some(done);
        }
        Ok(trials.into_iter().collect())
    }
}

/// What a record says beside what was measured.
pub struct Setting {
    /// The model.
    pub model: ModelLine,
    /// The draft model.
    pub draft_model: Option<ModelLine>,
    /// The workload's name.
    pub workload: String,
    /// The machine's cost curve and the milliseconds of a pass of one row.
    pub curve: (CostCurve, f64),
    /// Whether it is a quick check.
    pub quick: bool,
    /// The command that repeats it.
    pub command: String,
    /// The program and its version.
    pub version: String,
}

impl<'a> Measured<'a> {
    /// Samples taken elsewhere, on long texts.
    pub(crate) fn on_long_texts(
        samples: Vec<Sample<'a>>,
        planned: usize,
        arms: Vec<usize>,
    ) -> Self {
        Self { samples, planned, arms, long: true }
    }
}

impl Measured<'_> {
    /// The record of it.
    ///
    /// # Errors
    /// Whatever a pass reports: texts that may differ from the plain run's are scored by it.
    pub fn record(
        &self,
        model: Model<'_>,
        lineup: &Lineup,
        plan: &Plan,
        setting: Setting,
    ) -> Result<Record> {
        let mut categories: Vec<&str> = Vec::new();
        for sample in &self.samples {
            if !categories.contains(&sample.task.category.as_str()) {
                categories.push(&sample.task.category);
            }
        }
        let lossy = matches!(lineup.exactness, Exactness::Lossy { .. }) && !self.long;
        let (curve, row_ms) = setting.curve;
        let mut arms = Vec::new();
        for (at, &index) in self.arms.iter().enumerate() {
            let row = |category: Option<&str>| {
                let mut row = self.row(lineup, at, category, (&curve, row_ms));
                if lossy && lineup.arms[index].part != Part::Plain {
                    let (texts, plain) = (self.texts(at, category), self.texts(0, category));
                    if let Some(judge) = quality::judge(model) {
                        row.text.perplexity = Some(quality::perplexity(judge, &texts)?);
                        row.text.plain_perplexity = Some(quality::perplexity(judge, &plain)?);
                    }
                    if model.filling.is_some() {
                        row.text.distinct = Some(quality::distinct(&texts));
                        row.text.plain_distinct = Some(quality::distinct(&plain));
                    }
                }
                Ok(row)
            };
            let each = categories.iter().map(|c| row(Some(c))).collect::<Result<Vec<_>>>()?;
            let setup = &lineup.arms[index];
            arms.push(Arm {
                part: setup.part,
                label: setup.label.clone(),
                why: setup.why.clone(),
                methods: setup.recipe.to_json(),
                overall: row(None)?,
                categories: each,
            });
        }
        let claims = claims(lineup.entry.claims, &arms);
        let verdict = verdict::of(lineup.exactness, &arms, &claims, &curve);
        let prompts = self.samples.iter().filter(|s| s.turn == 0).count();
        Ok(Record {
            schema: SCHEMA.to_owned(),
            slug: lineup.entry.slug.to_owned(),
            name: lineup.entry.name.to_owned(),
            exactness: lineup.exactness.word().to_owned(),
            date: crate::record::today(),
            version: setting.version,
            command: setting.command,
            quick: setting.quick,
            model: setting.model,
            draft_model: setting.draft_model,
            machine: Machine::here(),
            workload: WorkloadLine {
                name: setting.workload,
                prompts,
                planned: self.planned,
                turns: self.samples.iter().map(|s| s.turn + 1).max().unwrap_or(0),
                tokens: plan.tokens,
                canvas: model.filling.is_some(),
                sampling: plain_json(&plan.sampling),
                seed: plan.seed,
            },
            curve,
            row_ms,
            arms,
            claims,
            retention: None,
            verdict,
        })
    }

    /// The samples of a category. All together leave out those that have one right answer beside which
    /// there is no room, unless there are no others.
    fn of<'b>(&'b self, category: Option<&'b str>) -> impl Iterator<Item = &'b Sample<'b>> {
        let is_short = |s: &Sample<'_>| s.task.expected.as_ref().is_some_and(|e| !e.whole);
        let only = self.samples.iter().all(is_short);
        self.samples.iter().filter(move |s| match category {
            Some(category) => s.task.category == category,
            None => only || !is_short(s),
        })
    }

    /// A value of each prompt: the geometric mean over its turns. Turns of a prompt share its text, so
    /// only prompts are independent of one another.
    fn by_prompt(
        &self,
        category: Option<&str>,
        value: impl Fn(&Sample<'_>) -> Option<f64>,
    ) -> Vec<f64> {
        let prompts = self.of(category).filter(|s| s.turn == 0);
        let turns = |name: &str| -> Vec<f64> {
            self.of(category).filter(|s| s.task.name == name).filter_map(&value).collect()
        };
        let values = prompts.map(|s| turns(&s.task.name)).filter(|turns| !turns.is_empty());
        values.map(|turns| geometric_mean(&turns)).collect()
    }

    /// Prompts and answers of an arm, each once.
    fn texts<'b>(
        &'b self,
        at: usize,
        category: Option<&'b str>,
    ) -> Vec<(&'b [TokenId], &'b [TokenId])> {
        self.of(category)
            .filter(|s| s.turn == 0)
            .map(|s| (&s.task.tokens[..], &s.trials[at].tokens[..]))
            .collect()
    }

    fn row(
        &self,
        lineup: &Lineup,
        at: usize,
        category: Option<&str>,
        (curve, row_ms): (&CostCurve, f64),
    ) -> Row {
        let part = |at: usize| lineup.arms[self.arms[at]].part;
        let beside = |other: Part| (0..self.arms.len()).find(|&o| part(o) == other && o != at);
        let ratio = |other: usize, s: &Sample<'_>| {
            let duration = |at: usize| s.trials[at].duration(s.task.expected.as_ref());
            Some(duration(other)? / duration(at)?)
        };
        let over = |other: Part| {
            let other = beside(other)?;
            let ratios = self.by_prompt(category, |s: &Sample<'_>| ratio(other, s));
            (!ratios.is_empty()).then(|| Interval::of(&ratios))
        };
        // Of every pair of turns, if prompts have several.
        let pairs = beside(Part::Plain).and_then(|other| {
            let ratios: Vec<f64> = self.of(category).filter_map(|s| ratio(other, s)).collect();
            let prompts = self.of(category).filter(|s| s.turn == 0).count();
            (ratios.len() > prompts).then(|| Interval::of(&ratios))
        });
        let trials: Vec<&Trial> = self.of(category).map(|s| &s.trials[at]).collect();
        let rates: Vec<f64> = trials.iter().filter_map(|t| Some(1.0 / t.pace()?)).collect();
        let per_pass: Vec<f64> =
            trials.iter().filter(|t| t.counts.committed > 0).map(|t| t.counts.per_pass()).collect();
        let mut counts = Counts::default();
        for sample in self.of(category).filter(|s| s.turn == 0) {
            counts.add(&sample.trials[at].counts);
        }
        let predicted: Vec<f64> = trials
            .iter()
            .filter(|t| t.counts.committed > 0)
            .map(|t| {
                let cost = t.counts.cost(curve) + t.draft_seconds * 1e3 / row_ms;
                t.counts.committed as f64 / cost
            })
            .collect();
        Row {
            category: category.unwrap_or("overall").to_owned(),
            speed: over(Part::Plain),
            pairs,
            over_rival: over(Part::Rival),
            over_control: over(Part::Control),
            rate: if rates.is_empty() { 0.0 } else { median(&rates) },
            predicted: if predicted.is_empty() { 0.0 } else { median(&predicted) },
            per_pass: if per_pass.is_empty() {
                Interval { median: 0.0, low: 0.0, high: 0.0, count: 0 }
            } else {
                Interval::of(&per_pass)
            },
            counts,
            text: self.agreement(at, category),
        }
    }

    fn agreement(&self, at: usize, category: Option<&str>) -> Agreement {
        let mut text = Agreement::default();
        let (mut common, mut all) = (0, 0);
        // Counted where every text has a right answer.
        let mut right = Some(0);
        for sample in self.of(category).filter(|s| s.turn == 0) {
            let (plain, other) = (&sample.trials[0].tokens, &sample.trials[at].tokens);
            let same = plain.iter().zip(other).take_while(|(a, b)| a == b).count();
            text.texts += 1;
            let expected = sample.task.expected.as_ref();
            right = expected.and_then(|e| Some(right? + usize::from(e.is_met(other))));
            common += same;
            all += plain.len();
            if plain == other {
                text.same += 1;
            } else if text.first.is_none() {
                text.first = Some(Divergence {
                    prompt: sample.task.name.clone(),
                    at: same,
                    plain: plain.get(same).copied(),
                    other: other.get(same).copied(),
                });
            }
        }
        text.right = right.filter(|_| text.texts > 0);
        text.share = if all == 0 { 1.0 } else { common as f64 / all as f64 };
        text
    }
}

/// Sets what the paper claims beside what was measured.
fn claims(claims: &[Claim], arms: &[Arm]) -> Vec<ClaimLine> {
    let overall = |part| arms.iter().find(|a| a.part == part).map(|a| &a.overall);
    let (method, control) = (overall(Part::Method), overall(Part::Control));
    let line = |claim: &Claim| {
        let value: fn(&Row) -> Option<Interval> = match claim.unit {
            "x" => |row| row.speed,
            "tokens/step" | "tokens/pass" | "tokens" => |row| Some(row.per_pass),
            _ => |_| None,
        };
        ClaimLine {
            metric: claim.metric.to_owned(),
            setting: claim.setting.to_owned(),
            place: claim.place.to_owned(),
            claimed: claim.value,
            unit: claim.unit.to_owned(),
            measured: method.and_then(value),
            control: control.and_then(value).map(|i| i.median),
        }
    };
    claims.iter().map(line).collect()
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
