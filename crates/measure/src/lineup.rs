//! Who takes part in a check: the plain run, the strongest honest baseline of the method's family,
//! the method, and a control that spends the same budget at random.

use serde_json::json;
use tessera_core::entry::{
    Exactness, Kind, Method, MethodCall, MethodEntry, Offer, Role, Site, find,
};
use tessera_engine::{CostCurve, Recipe};

use crate::error::{Error, Result};
use crate::record::Part;
use crate::verify::CONSTRAINTS;

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

/// What evicts at random: the control of everything that forgets.
pub const FORGETS: &str = "random-eviction";

/// The strongest baselines of what forgets: what a user would take instead, first choice first.
pub const KEEPERS: [&str; 2] = ["snapkv", "streaming"];

/// What fills masks in parallel by the simplest rule: the baseline of everything that fills masks.
pub const PARALLEL: &str = "threshold";

/// What fills them in a random order: the control.
pub const ANY_ORDER: &str = "confidence";

/// What computes fewer rows by the simplest rule: the baseline of every other window.
pub const CACHED: &str = "prefix-cache";

/// Whether a method takes part in filling masks.
pub fn fills_masks(entry: &MethodEntry) -> bool {
    entry.needs.any_subset
        || entry.places.iter().any(|p| p.role == Role::Unmask || p.site == Site::Window)
}

/// The role by which a method is checked.
pub fn role(entry: &MethodEntry) -> Result<Role> {
    let slug = entry.slug;
    let refuse = |what: &str| Err(Error::Usage(format!("{slug}: {what}")));
    match entry.kind {
        Kind::Program => {
            return refuse(
                "is a program, not part of a run: its own command measures it (`tessera --help`)",
            );
        }
        Kind::Objective => return refuse("is a training objective: its recipe measures it"),
        Kind::Loop if entry.needs.any_subset => return Ok(Role::Unmask),
        Kind::Loop => {
            return refuse("is what others are measured against: check one of `tessera methods`");
        }
        Kind::Policy => {}
    }
    if slug == CONTROL {
        return refuse("is the control of every check of a drafter: check a drafter");
    }
    if slug == FORGETS {
        return refuse("is the control of every check of what forgets: check such a method");
    }
    match entry.places.first().map(|p| p.role) {
        Some(role) => Ok(role),
        None => refuse("plays no role that check could measure"),
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
        let site = |e: &MethodEntry, site: Site| e.places.iter().any(|p| p.site == site);
        let rules = |c: &MethodCall| find(entries, &c.id).is_ok_and(|e| site(e, Site::Constraint));
        if site(entry, Site::Sampler) && !with.iter().any(rules) {
            // It draws under a constraint: the one that models follow least by themselves.
            let (id, setting, value) = CONSTRAINTS[1];
            let settings = [(setting.to_owned(), json!(value))].into_iter().collect();
            with.push(MethodCall { id: id.to_owned(), settings });
        }
        let method = resolve(&join(call, &with))?;
        method.fits(offer)?;
        match role {
            _ if fills_masks(entry) => {
                return Self::of_canvas(entries, call, &with, method);
            }
            Role::Reduce => return Self::of_keepers(entries, call, &with, method),
            Role::Constrain => return Ok(Self::of_constraint(entries, entry, method)),
            _ => {}
        }
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

    /// The arms for what takes part in filling masks: the plain canvas, the simplest method of the kind,
    /// the method, and as many passes with masks filled in a random order. A window computes fewer
    /// rows, and no order does that: it has no control.
    fn of_canvas(
        entries: &'static [&'static MethodEntry],
        call: &MethodCall,
        with: &[MethodCall],
        method: Recipe,
    ) -> Result<Self> {
        let entry = find(entries, &call.id)?;
        let plain = |slug: &str| MethodCall { id: slug.to_owned(), ..MethodCall::default() };
        let setup = |part, label: &str, why: &str, recipe| Setup {
            part,
            label: label.to_owned(),
            why: why.to_owned(),
            recipe,
        };
        // Its model writes one hole a pass and can do nothing else: there is no other decoder to set
        // beside it, nor an order to draw.
        let alone = entry.needs.any_subset;
        let why = match alone {
            true => {
                "one hole a pass, from left to right: what passes and speed are measured against"
            }
            false => {
                "one mask a pass, the surest first, the whole canvas computed: what passes, speed and \
                 texts are measured against"
            }
        };
        let mut arms = vec![setup(Part::Plain, "plain", why, Recipe::plain())];
        let unmasks = has_role(entry, Role::Unmask);
        let (rival, why) = match unmasks {
            true => (PARALLEL, "fills every mask of which the model is sure"),
            false => (CACHED, "recomputes the current block and all behind it"),
        };
        // What the method is combined with goes with the baseline too, where they fit together.
        let others: Vec<MethodCall> = with.to_vec();
        if !alone && rival != entry.slug && find(entries, rival).is_ok() {
            let joined = Recipe::resolve(entries, &join(&plain(rival), &others));
            let recipe = joined.or_else(|_| Recipe::resolve(entries, &[plain(rival)]))?;
            arms.push(setup(Part::Rival, rival, why, recipe));
        }
        let exactness = method.exactness();
        arms.push(setup(Part::Method, entry.slug, "the method", method));
        let drawn = unmasks && exactness != Exactness::BitExact;
        let control = find(entries, ANY_ORDER).ok().filter(|_| drawn);
        let control = control.map(|control| (control, Vec::new()));
        let mut all = Self { entry, exactness, arms, control, entries };
        if let Some(recipe) = all.control(None)? {
            let why = "as many passes as the method takes, masks filled in a random order";
            all.arms.push(setup(Part::Control, "random order", why, recipe));
        }
        Ok(all)
    }

    /// The arms for a constraint, or for what draws under one: the same texts without it, or under the
    /// constraint's own mask.
    fn of_constraint(
        entries: &'static [&'static MethodEntry],
        entry: &'static MethodEntry,
        method: Recipe,
    ) -> Self {
        let draws = entry.places.iter().any(|p| p.site == Site::Sampler);
        let (label, why, plain) = match draws {
            true => ("mask", "the constraint judges the whole vocabulary", method.reference()),
            false => ("plain", "no constraint", Recipe::plain()),
        };
        let setup = |part, label: &str, why: &str, recipe| Setup {
            part,
            label: label.to_owned(),
            why: why.to_owned(),
            recipe,
        };
        let exactness = if draws { method.promise() } else { method.exactness() };
        let arms = vec![
            setup(Part::Plain, label, why, plain),
            setup(Part::Method, entry.slug, "the method", method),
        ];
        Self { entry, exactness, arms, control: None, entries }
    }

    /// The arms for what forgets: the plain run, what keeps as much by a simpler rule, the method, and
    /// what keeps as much at random. Settings that an arm has in common with the method are equal.
    fn of_keepers(
        entries: &'static [&'static MethodEntry],
        call: &MethodCall,
        with: &[MethodCall],
        method: Recipe,
    ) -> Result<Self> {
        let entry = find(entries, &call.id)?;
        let settings = method.members().first().map(|m| m.settings.clone()).unwrap_or_default();
        let like = |slug: &str| -> Result<Option<Recipe>> {
            let Ok(other) = find(entries, slug) else { return Ok(None) };
            let shared = (other.defaults)();
            let shared = settings.iter().filter(|(k, _)| {
                matches!(k.as_str(), "budget" | "ratio") && shared.contains_key(*k)
            });
            let call = MethodCall {
                id: slug.to_owned(),
                settings: shared.map(|(k, v)| (k.clone(), v.clone())).collect(),
            };
            Ok(Some(Recipe::resolve(entries, &join(&call, with))?))
        };
        let setup = |part, label: &str, why: &str, recipe| Setup {
            part,
            label: label.to_owned(),
            why: why.to_owned(),
            recipe,
        };
        let why = "remembers everything: what answers and speed are measured against";
        let mut arms = vec![setup(Part::Plain, "plain", why, Recipe::plain())];
        // A baseline decides at the same place as the method, or the comparison is of places.
        let keeper = KEEPERS.into_iter().find(|&slug| {
            slug != entry.slug && find(entries, slug).is_ok_and(|e| before(entry.slug, e.slug))
        });
        let has_budget = settings.contains_key("budget");
        if let Some(keeper) = keeper.filter(|_| has_budget)
            && let Some(recipe) = like(keeper)?
        {
            arms.push(setup(Part::Rival, keeper, "keeps as many rows by a simpler rule", recipe));
        }
        let exactness = method.exactness();
        arms.push(setup(Part::Method, entry.slug, "the method", method));
        if has_budget && let Some(recipe) = like(FORGETS)? {
            arms.push(setup(Part::Control, FORGETS, "keeps as many rows, at random", recipe));
        }
        Ok(Self { entry, exactness, arms, control: None, entries })
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
        if entry.slug == ANY_ORDER {
            call.settings.insert("score".to_owned(), json!("random"));
            call.settings.insert("steps".to_owned(), json!(budget.unwrap_or(1)));
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

/// Whether `keeper` is a fair baseline of `method`: a rule for the whole run is not measured against
/// one for the prompt only.
fn before(method: &str, keeper: &str) -> bool {
    keeper == "streaming" || !matches!(method, "treekv" | "streaming")
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
