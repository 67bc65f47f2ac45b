//! Who takes part in a check: the plain run, the strongest honest baseline of the method's family,
//! the method, and a control that spends the same budget at random.

use serde_json::json;
use tessera_core::entry::{Exactness, Kind, Method, MethodCall, MethodEntry, Offer, Role, find};
use tessera_engine::{CostCurve, Recipe};

use crate::error::{Error, Result};
use crate::record::Part;

/// The drafter that every other one is compared with.
pub const RIVAL: &str = "prompt-lookup";

/// The drafter that guesses at random.
pub const CONTROL: &str = "random-tree";

/// One arm.
#[derive(Debug, Clone)]
pub struct Setup {
    /// What it is there for.
    pub part: Part,
    /// Its name in tables.
    pub label: String,
    /// Why it is there.
    pub why: String,
    /// Its methods.
    pub recipe: Recipe,
}

/// All arms of a check.
#[derive(Debug, Clone)]
pub struct Lineup {
    /// The method.
    pub entry: &'static MethodEntry,
    /// The promise of its recipe.
    pub exactness: Exactness,
    /// The arms. The control's recipe has the budget of its settings until the check
    /// gives it the one the method spent.
    pub arms: Vec<Setup>,
    /// Where the control comes from and what it is combined with.
    control: Option<(&'static MethodEntry, Vec<MethodCall>)>,
    entries: &'static [&'static MethodEntry],
}

/// The role by which a method is checked.
fn role(entry: &MethodEntry) -> Result<Role> {
    let slug = entry.slug;
    let refuse = |what: &str| Err(Error::Usage(format!("{slug}: {what}")));
    match entry.kind {
        Kind::Program => {
            return refuse(
                "is a program, not part of a run: its own command measures it (`tessera --help`)",
            );
        }
        Kind::Objective => return refuse("is a training objective: its recipe measures it"),
        Kind::Loop => {
            return refuse("is what others are measured against: check one of `tessera methods`");
        }
        Kind::Policy => {}
    }
    if slug == CONTROL {
        return refuse("is the control of every check of a drafter: check a drafter");
    }
    match entry.places.first().map(|p| p.role) {
        Some(role @ (Role::Draft | Role::Accept)) => Ok(role),
        Some(Role::Constrain) => refuse(
            "what constraints ask and cost, by sampler, is printed by `cargo run --release -p \
             tessera-runtime --example constrain -- MODEL`",
        ),
        _ => refuse(
            "check has no baseline and no control for what it decides yet: run it with \
             `tessera run MODEL PROMPT --method` and compare with `--method none`",
        ),
    }
}

/// Whether check can measure a method with these settings at all, before any model is loaded.
///
/// # Errors
/// As [`Lineup::new`], but for what depends on a model.
pub fn suits(entry: &MethodEntry, call: &MethodCall) -> Result<()> {
    role(entry)?;
    entry.resolve(&call.settings)?;
    Ok(())
}

impl Lineup {
    /// The arms for `call`, combined with the methods `with` (an acceptance rule for a drafter, a
    /// drafter for an acceptance rule).
    ///
    /// # Errors
    /// [`Error::Usage`] for a method that check cannot measure, naming what to use instead; a
    /// wrong setting, methods that cannot be combined, and needs that `offer` does not meet.
    pub fn new(
        entries: &'static [&'static MethodEntry],
        call: &MethodCall,
        with: &[MethodCall],
        offer: &Offer,
    ) -> Result<Self> {
        let entry = find(entries, &call.id)?;
        let role = role(entry)?;
        let resolve = |calls: &[MethodCall]| Recipe::resolve(entries, calls);
        let plain = |slug: &str| MethodCall { id: slug.to_owned(), ..MethodCall::default() };
        let is_drafter =
            |c: &MethodCall| find(entries, &c.id).is_ok_and(|e| has_role(e, Role::Draft));
        let mut with = with.to_vec();
        if role == Role::Accept && !with.iter().any(is_drafter) {
            with.push(plain(RIVAL));
        }
        let method = resolve(&join(call, &with))?;
        method.fits(offer)?;
        let mut arms = vec![Setup {
            part: Part::Plain,
            label: "plain".to_owned(),
            why: "one token a pass: what every speed-up is measured against".to_owned(),
            recipe: Recipe::plain(),
        }];
        // The same drafter under the default rule, for a rule; another drafter, for a drafter.
        let (rival, why) = match role {
            Role::Accept => {
                let drafters: Vec<MethodCall> =
                    with.iter().filter(|c| is_drafter(c)).cloned().collect();
                ("keyed", drafters)
            }
            _ => (RIVAL, Vec::new()),
        };
        if rival != entry.slug && find(entries, rival).is_ok() {
            let (calls, why) = match role {
                Role::Accept => (why, "the same drafter under the default rule"),
                _ => {
                    let others = with.iter().filter(|c| !is_drafter(c)).cloned();
                    (
                        std::iter::once(plain(rival)).chain(others).collect(),
                        "needs no model and no training, and is hard to beat where text repeats",
                    )
                }
            };
            arms.push(Setup {
                part: Part::Rival,
                label: rival.to_owned(),
                why: why.to_owned(),
                recipe: resolve(&calls)?,
            });
        }
        let exactness = method.exactness();
        let label = entry.slug.to_owned();
        let (why, hot) = ("its state fresh for every prompt", "with what it learnt before");
        arms.push(Setup {
            part: Part::Method,
            label: label.clone(),
            why: why.to_owned(),
            recipe: method.clone(),
        });
        arms.push(Setup {
            part: Part::Hot,
            label: format!("{label}, hot"),
            why: hot.to_owned(),
            recipe: method,
        });
        let control = find(entries, CONTROL).ok().map(|control| {
            let rest = join(call, &with).into_iter().filter(|c| !is_drafter(c)).collect();
            (control, rest)
        });
        let mut all = Self { entry, exactness, arms, control, entries };
        if let Some(recipe) = all.control(None)? {
            all.arms.push(Setup {
                part: Part::Control,
                label: CONTROL.to_owned(),
                why: "as many guesses a pass as the method makes on the prompt, at random"
                    .to_owned(),
                recipe,
            });
        }
        Ok(all)
    }

    /// The control with `budget` guesses a pass; with its own default for `None`.
    pub(crate) fn control(&self, budget: Option<usize>) -> Result<Option<Recipe>> {
        let Some((entry, rest)) = &self.control else { return Ok(None) };
        let mut call = MethodCall { id: entry.slug.to_owned(), ..MethodCall::default() };
        if let Some(budget) = budget
            && (entry.defaults)().contains_key("budget")
        {
            call.settings.insert("budget".to_owned(), json!(budget));
        }
        Ok(Some(Recipe::resolve(self.entries, &join(&call, rest))?))
    }

    /// Lets the method and its rival leave out guesses that do not pay by `curve`.
    ///
    /// # Errors
    /// As [`Recipe::with_curve`].
    pub fn pace(&mut self, curve: &CostCurve) -> Result<()> {
        for arm in self.arms.iter_mut().filter(|arm| arm.part != Part::Control) {
            arm.recipe = std::mem::take(&mut arm.recipe).with_curve(curve.clone())?;
        }
        Ok(())
    }

    /// Most guesses a pass that the method's settings allow.
    pub(crate) fn budget(&self) -> Result<usize> {
        let method = self.arms.iter().find(|a| a.part == Part::Method);
        let built = method.map(|a| a.recipe.build()).transpose()?.unwrap_or_default();
        Ok(built.iter().map(|m| if let Method::Draft(d) = m { d.budget() } else { 0 }).sum())
    }
}

/// Whether the method plays `role`.
pub(crate) fn has_role(entry: &MethodEntry, role: Role) -> bool {
    entry.places.iter().any(|p| p.role == role)
}

fn join(call: &MethodCall, with: &[MethodCall]) -> Vec<MethodCall> {
    std::iter::once(call.clone()).chain(with.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use tessera_runtime::METHODS;

    use super::*;
    use crate::samples::{self, TOYS};

    fn call(slug: &str) -> MethodCall {
        MethodCall { id: slug.to_owned(), ..MethodCall::default() }
    }

    fn labels(entries: &'static [&'static MethodEntry], slug: &str) -> Vec<String> {
        let lineup = Lineup::new(entries, &call(slug), &[], &samples::offer()).unwrap();
        lineup.arms.iter().map(|a| format!("{:?} {}", a.part, a.label)).collect()
    }

    #[test]
    fn a_drafter_meets_prompt_lookup_and_chance() {
        let want = [
            "Plain plain",
            "Rival prompt-lookup",
            "Method wishful",
            "Hot wishful, hot",
            "Control random-tree",
        ];
        assert_eq!(labels(TOYS, "wishful"), want);
        assert!(!labels(METHODS, "prompt-lookup").iter().any(|l| l.starts_with("Rival")));
    }

    #[test]
    fn a_rule_meets_the_default_rule_with_the_same_drafter() {
        let lineup = Lineup::new(METHODS, &call("residual"), &[], &samples::offer()).unwrap();
        let of = |part| {
            let arm = lineup.arms.iter().find(|a| a.part == part).unwrap();
            arm.recipe.members().iter().map(|m| m.entry.slug).collect::<Vec<_>>()
        };
        assert_eq!(of(Part::Method), ["residual", "prompt-lookup"]);
        assert_eq!(of(Part::Rival), ["prompt-lookup"]);
        assert_eq!(lineup.exactness, Exactness::DistributionExact);
    }

    #[test]
    fn the_control_takes_the_budget() {
        let lineup = Lineup::new(TOYS, &call("wishful"), &[], &samples::offer()).unwrap();
        let recipe = lineup.control(Some(3)).unwrap().unwrap();
        assert_eq!(recipe.members()[0].settings["budget"], 3);
        assert_eq!(lineup.budget().unwrap(), 4);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        for (entries, slug, word) in [
            (METHODS, "none", "measured against"),
            (METHODS, "promt-lookup", "prompt-lookup"),
            (TOYS, "random-tree", "is the control"),
        ] {
            let error = Lineup::new(entries, &call(slug), &[], &samples::offer());
            let error = error.unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
