//! Whether a method keeps its promise about the text, on this model.
//!
//! - *bit-exact*: its tokens against the plain run's, greedy and sampled, with a fresh drafter, with
//!   one that knows other texts, with one that learnt a wrong continuation, with back-off, and with
//!   several texts at once. One different token refutes it.
//! - *distribution-exact*: [`crate::enumerate`] counts texts against their exact probabilities.
//! - *lossy*: promises nothing that could be proved.

use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde_json::Value;
use tessera_core::FinishReason;
use tessera_core::TokenId;
use tessera_core::dist::Sampling;
use tessera_core::entry::{Kind, MethodCall, MethodEntry, Offer, Role, Site, find};
use tessera_engine::{CostCurve, Model, Recipe, Request, Sequence, generate_in};

use crate::check::Task;
use crate::error::{Error, Result};
use crate::lineup::has_role;
use crate::quality;
use crate::trial;

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// The recipe.
    pub recipe: String,
    /// What was tried.
    pub what: String,
    /// Whether the promise held.
    pub holds: bool,
    /// What was seen.
    pub seen: String,
}

/// Where a text leaves the plain run's, and how close the call was.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FirstDifference {
    /// The prompt.
    pub prompt: String,
    /// Tokens of the answer before it.
    pub at: usize,
    /// The plain run's token; `None` if it ended.
    pub plain: Option<TokenId>,
    /// The method's.
    pub other: Option<TokenId>,
    /// The plain model's logit of the plain token less that of the other; `None` if a text ended.
    pub margin: Option<f32>,
}

/// The recipes by which the promise of `call` is tried: as it is with the methods `with`, and, for
/// an acceptance rule without a drafter, with every drafter that `offer` allows. With what each
/// promises.
///
/// # Errors
/// [`Error::Usage`] for what has no promise about the text of a run; wrong settings; needs that
/// are not met.
pub fn recipes(
    entries: &[&'static MethodEntry],
    call: &MethodCall,
    with: &[MethodCall],
    offer: &Offer,
) -> Result<Vec<(String, Recipe)>> {
    let entry = find(entries, &call.id)?;
    if matches!(entry.kind, Kind::Program | Kind::Objective) {
        let what = "takes no part in a run, so it promises nothing about a run's text";
        return Err(Error::Usage(format!("{}: {what}", entry.slug)));
    }
    let drafts = |c: &MethodCall| find(entries, &c.id).is_ok_and(|e| has_role(e, Role::Draft));
    let make = |more: &[MethodCall]| -> Result<(String, Recipe)> {
        let calls: Vec<MethodCall> =
            std::iter::once(call).chain(with).chain(more).cloned().collect();
        let recipe = Recipe::resolve(entries, &calls)?;
        let names: Vec<&str> = recipe.members().iter().map(|m| m.entry.slug).collect();
        Ok((names.join(" + "), recipe))
    };
    let draws = entry.places.iter().any(|p| p.site == Site::Sampler);
    let rules = |c: &MethodCall| {
        find(entries, &c.id).is_ok_and(|e| e.places.iter().any(|p| p.site == Site::Constraint))
    };
    if draws && !with.iter().any(rules) {
        // It draws under a constraint: here are two.
        let mut all = Vec::new();
        for (id, setting, value) in CONSTRAINTS {
            let settings = [(setting.to_owned(), Value::from(value))].into_iter().collect();
            let one = make(&[MethodCall { id: id.to_owned(), settings }])?;
            one.1.fits(offer)?;
            all.push(one);
        }
        return Ok(all);
    }
    if !has_role(entry, Role::Accept) || with.iter().any(drafts) {
        let one = make(&[])?;
        one.1.fits(offer)?;
        return Ok(vec![one]);
    }
    let mut all = Vec::new();
    for drafter in entries.iter().filter(|e| has_role(e, Role::Draft)) {
        let drafter = MethodCall { id: drafter.slug.to_owned(), ..MethodCall::default() };
        let one = make(&[drafter])?;
        if one.1.fits(offer).is_ok() {
            all.push(one);
        }
    }
    Ok(all)
}

/// Constraints under which a sampler is tried if none is given: one that the model often follows by
/// itself, one that it does not.
pub const CONSTRAINTS: [(&str, &str, &str); 2] = [
    ("regex", "pattern", "[A-Z][a-z ,]{20,200}\\."),
    (
        "json-schema",
        "schema",
        r#"{"type":"object","properties":{"title":{"type":"string","maxLength":40},"tags":{"type":"array","items":{"enum":["a","b","c"]},"maxItems":4},"count":{"type":"integer"}},"required":["title","tags","count"],"additionalProperties":false}"#,
    ),
];

/// What a lossy method is told.
pub fn nothing_to_prove(slug: &str, what: &str) -> String {
    format!(
        "{slug} is lossy ({what}): there is nothing to prove. `tessera check {slug}` measures what \
         it changes"
    )
}

/// How much to compare.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Most tokens of an answer.
    pub tokens: usize,
    /// The seed.
    pub seed: u64,
}

/// A way to provoke a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Fresh,
    Others,
    Stale,
    BackOff,
    Together,
}

impl State {
    const ALL: [Self; 5] = [Self::Fresh, Self::Others, Self::Stale, Self::BackOff, Self::Together];

    fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh drafter",
            Self::Others => "drafter that knows the texts before",
            Self::Stale => "drafter that learnt another answer to the same prompt",
            Self::BackOff => "back-off by a made-up cost curve",
            Self::Together => "three texts in one pass",
        }
    }
}

/// Texts made at once in [`State::Together`].
const CHOICES: usize = 3;

/// Compares `recipe`, which promises the plain run's tokens, with the plain run on every task.
/// `progress` hears how many of how many parts are done.
///
/// # Errors
/// Whatever the loop reports; [`Error::Stopped`] for a raised `cancel`.
pub fn bit_exact(
    model: Model<'_>,
    (name, recipe): (&str, &Recipe),
    tasks: &[Task],
    plan: Plan,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    // What fills masks has learnt nothing that could be stale.
    let states: &[State] = match model.filling {
        None => &State::ALL,
        Some(_) => &[State::Fresh, State::Together],
    };
    let ways = [("greedy", Sampling::greedy()), ("sampled", Sampling::neutral())];
    let (total, mut done) = (ways.len() * tasks.len(), 0);
    for (way, sampling) in ways {
        let mut seen: Vec<(State, usize, usize, Option<FirstDifference>)> =
            states.iter().map(|&s| (s, 0, 0, None)).collect();
        let mut others = Sequence::new(model.backbone, 1024)?;
        for task in tasks {
            progress(done, total);
            done += 1;
            let room = task.tokens.len() + plan.tokens;
            let mut plainly = Sequence::new(model.backbone, room)?;
            let mut own = Sequence::new(model.backbone, room)?;
            let mut request = Request::new(task.tokens.clone());
            request.sampling = sampling;
            request.seed = plan.seed;
            request.max_tokens = Some(plan.tokens);
            let all = |sequence: &mut Sequence, request: &Request| -> Result<Vec<_>> {
                let mut ignore = |_: tessera_core::Event<'_>| tessera_core::Control::Continue;
                request.recipe.fits(&trial::offer(model))?;
                let outcome = generate_in(model, sequence, request, &mut ignore, cancel)?;
                let ends = |r: &FinishReason| *r == FinishReason::Cancelled;
                if cancel.load(Ordering::Relaxed) || outcome.choices.iter().any(|c| ends(&c.reason))
                {
                    return Err(Error::Stopped);
                }
                Ok(outcome.choices.into_iter().map(|c| (c.tokens, c.reason)).collect())
            };
            request.recipe = recipe.reference();
            let plain = all(&mut plainly, &Request { choices: CHOICES, ..request.clone() })?;
            request.recipe = recipe.clone();
            for (state, texts, tokens, first) in &mut seen {
                if first.is_some() {
                    continue;
                }
                let made = match state {
                    State::Fresh => all(&mut plainly, &request)?,
                    State::Others => all(&mut others, &request)?,
                    State::Stale => {
                        let wrong = plan.seed ^ 0x5a5a;
                        let hotter = Sampling { temperature: 1.5, ..Sampling::neutral() };
                        let teach = Request { seed: wrong, sampling: hotter, ..request.clone() };
                        all(&mut own, &teach)?;
                        all(&mut own, &request)?
                    }
                    State::BackOff => {
                        // Two rows cost little, three cost much: trees are cut and left out.
                        let points = vec![(1, 1.0), (2, 1.2), (3, 1.9), (16, 9.0)];
                        let curve = CostCurve { points, draft: 0.3, draft_row: 0.0 };
                        let recipe = recipe.clone().with_curve(curve)?;
                        all(&mut plainly, &Request { recipe, ..request.clone() })?
                    }
                    State::Together => {
                        all(&mut plainly, &Request { choices: CHOICES, ..request.clone() })?
                    }
                };
                for (a, b) in plain.iter().zip(&made) {
                    *texts += 1;
                    *tokens += b.0.len();
                    if a != b && first.is_none() {
                        *first = Some(difference(model, task, &a.0, &b.0)?);
                    }
                }
            }
        }
        findings.extend(seen.into_iter().map(|(state, texts, tokens, first)| Finding {
            recipe: name.to_owned(),
            what: format!("{way}, {}", state.name()),
            holds: first.is_none(),
            seen: match first {
                None => format!("{tokens} tokens of {texts} texts equal"),
                Some(first) => first.to_string(),
            },
        }));
    }
    Ok(findings)
}

/// The first difference of two texts, with its margin.
fn difference(
    model: Model<'_>,
    task: &Task,
    plain: &[TokenId],
    other: &[TokenId],
) -> Result<FirstDifference> {
    let at = plain.iter().zip(other).take_while(|(a, b)| a == b).count();
    let (a, b) = (plain.get(at).copied(), other.get(at).copied());
    let mut margin = None;
    if let (Some(a), Some(b), None) = (a, b, model.filling) {
        quality::visit(model, &task.tokens, &plain[..=at], &mut |i, logits| {
            if i == at {
                margin = Some(logits[a as usize] - logits[b as usize]);
            }
            Ok(())
        })?;
    }
    Ok(FirstDifference { prompt: task.name.clone(), at, plain: a, other: b, margin })
}

impl std::fmt::Display for FirstDifference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = |t: Option<TokenId>| t.map_or_else(|| "its end".to_owned(), |t| t.to_string());
        let (other, plain) = (token(self.other), token(self.plain));
        write!(f, "{}: token {} is {other} instead of {plain}", self.prompt, self.at)?;
        match self.margin {
            Some(margin) => write!(f, ", whose logit is {margin:.4} higher"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tessera_testkit::Words;
    use tessera_testkit::laws::repeating_toy;

    use super::*;
    use crate::samples::{self, TOYS};

    fn found(slug: &str) -> Vec<Finding> {
        let call = MethodCall { id: slug.to_owned(), ..MethodCall::default() };
        let (toy, words) = (repeating_toy(), Words::bytes());
        let model = Model { backbone: &toy, vocabulary: &words, draft: None, filling: None };
        let tasks = [Task {
            category: "a".to_owned(),
            name: "a-1".to_owned(),
            tokens: vec![3, 1, 4, 1, 5, 3, 1],
            expected: None,
        }];
        let never = AtomicBool::new(false);
        let plan = Plan { tokens: 30, seed: 4 };
        let mut all = Vec::new();
        for (name, recipe) in recipes(TOYS, &call, &[], &samples::offer()).unwrap() {
            let recipe = (name.as_str(), &recipe);
            all.extend(bit_exact(model, recipe, &tasks, plan, &never, &mut |_, _| {}).unwrap());
        }
        all
    }

    #[test]
    fn honest_recipes_pass_in_every_state() {
        for slug in ["prompt-lookup", "wishful", "keyed"] {
            let all = found(slug);
            assert!(all.iter().all(|f| f.holds), "{all:#?}");
            // Five states, two samplings; a rule meets all three drafters.
            assert_eq!(all.len(), if slug == "keyed" { 30 } else { 10 });
        }
    }

    #[test]
    fn a_wrong_rule_is_refuted_with_the_place_and_the_margin() {
        let all = found("gullible");
        let wrong: Vec<&Finding> = all.iter().filter(|f| !f.holds).collect();
        assert!(!wrong.is_empty());
        assert!(wrong.iter().all(|f| f.seen.contains("a-1: token ")), "{wrong:#?}");
        assert!(wrong.iter().any(|f| f.seen.contains("whose logit is")), "{wrong:#?}");
    }

    #[test]
    fn margins_are_differences_of_the_plain_models_logits() {
        let toy = tessera_testkit::Scripted::new(9, 50, |seen, logits| {
            logits[seen.len() % 9] = 2.0;
            logits[8] = 0.5;
        });
        let words = Words::bytes();
        let model = Model { backbone: &toy, vocabulary: &words, draft: None, filling: None };
        let task =
            Task { category: "a".into(), name: "a-1".into(), tokens: vec![0, 0], expected: None };
        let first = difference(model, &task, &[2, 3, 4], &[2, 8, 4]).unwrap();
        assert_eq!((first.at, first.margin), (1, Some(1.5)));
        assert_eq!(
            first.to_string(),
            "a-1: token 1 is 8 instead of 3, whose logit is 1.5000 higher"
        );
        let short = difference(model, &task, &[2, 3], &[2]).unwrap();
        assert_eq!((short.other, short.margin), (None, None));
    }
}
