//! Which methods take part in a run, and whether they fit together.

use std::sync::Arc;

use serde_json::{Value, json};
use tessera_core::entry::{
    Exactness, Kind, Method, MethodCall, MethodEntry, Offer, Place, Role, Settings, Site, find,
};
use tessera_core::{Calibration, Constraint, Error, Result};

use crate::pace::CostCurve;

/// A method that takes part, with all its settings.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its entry.
    pub entry: &'static MethodEntry,
    /// Its settings, complete and validated.
    pub settings: Settings,
}

/// The methods of a run: at most one policy per place, at most one loop.
#[derive(Debug, Clone, Default)]
pub struct Recipe {
    members: Vec<Member>,
    curve: Option<CostCurve>,
    calibration: Option<Arc<Calibration>>,
    constraint: Option<Arc<dyn Constraint>>,
}

/// The slug of the plain run.
const PLAIN: &str = "none";

/// The slug of the particle loop.
const PARTICLES: &str = "smc";

impl Recipe {
    /// The plain run.
    pub fn plain() -> Self {
        Self::default()
    }

    /// Looks the calls up in `entries`, completes their settings and checks that they fit together.
    ///
    /// # Errors
    /// [`Error::UnknownMethod`]; [`Error::Method`] for a wrong setting, or for two methods that
    /// cannot work together, naming both and the reason.
    pub fn resolve(entries: &[&'static MethodEntry], calls: &[MethodCall]) -> Result<Self> {
        let mut members: Vec<Member> = Vec::with_capacity(calls.len());
        for call in calls {
            let entry = find(entries, &call.id)?;
            let refuse = |what| Error::Method { method: entry.slug.to_owned(), what };
            if let Some(reason) = alone(entry.kind) {
                return Err(refuse(reason.to_owned()));
            }
            if members.iter().any(|m| m.entry.slug == entry.slug) {
                return Err(refuse("is given twice".to_owned()));
            }
            if let Some((other, reason)) =
                members.iter().find_map(|m| Some((m.entry, clash(m.entry, entry)?)))
            {
                let what = format!("cannot be combined with `{}`: {reason}", other.slug);
                return Err(refuse(what));
            }
            members.push(Member { entry, settings: entry.resolve(&call.settings)? });
        }
        members.retain(|m| m.entry.slug != PLAIN);
        Ok(Self { members, curve: None, calibration: None, constraint: None })
    }

    /// The methods, in the order they were asked for; none for the plain run.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The recipe with `setting` changed to `value` in every member that has such a setting.
    ///
    /// # Errors
    /// [`Error::Method`] if a member does not take the value.
    pub fn with_setting(&self, setting: &str, value: &Value) -> Result<Self> {
        let mut changed = self.clone();
        for member in changed.members.iter_mut().filter(|m| m.settings.contains_key(setting)) {
            member.settings.insert(setting.to_owned(), value.clone());
            member.settings = member.entry.resolve(&member.settings)?;
        }
        Ok(changed)
    }

    /// The recipe with this machine's cost curve: guesses that do not pay are then left out.
    ///
    /// # Errors
    /// [`Error::Setting`] if it is no curve.
    pub fn with_curve(mut self, curve: CostCurve) -> Result<Self> {
        curve.validate()?;
        self.curve = Some(curve);
        Ok(self)
    }

    /// The cost curve, if there is one.
    pub fn curve(&self) -> Option<&CostCurve> {
        self.curve.as_ref()
    }

    /// The recipe with measurements of the model it is for, which some members need.
    #[must_use]
    pub fn with_calibration(mut self, calibration: Arc<Calibration>) -> Self {
        self.calibration = Some(calibration);
        self
    }

    /// Whether a member needs measurements of the model that the recipe does not have.
    pub fn lacks_calibration(&self) -> bool {
        self.calibration.is_none() && self.members.iter().any(|m| m.entry.needs.calibration)
    }

    /// The recipe under a constraint of the caller's own (a predicate, say). It is no part of
    /// [`Recipe::to_json`]: code does not come in by a request.
    ///
    /// # Errors
    /// [`Error::Method`] naming a member that cannot work with it.
    pub fn with_constraint(mut self, constraint: Arc<dyn Constraint>) -> Result<Self> {
        let place = Place { role: Role::Constrain, site: Site::Constraint };
        for member in &self.members {
            let clash = member.entry.places.iter().find_map(|p| match p.clashes(place) {
                true => Some(word(*p)),
                false => unjudged(member.entry, true).map(str::to_owned),
            });
            if let Some(reason) = clash {
                let what = format!("cannot be combined with a predicate: {reason}");
                return Err(Error::Method { method: member.entry.slug.to_owned(), what });
            }
        }
        self.constraint = Some(constraint);
        Ok(self)
    }

    /// The caller's own constraint, if there is one.
    pub fn constraint(&self) -> Option<&Arc<dyn Constraint>> {
        self.constraint.as_ref()
    }

    /// Whether some texts are not allowed: by a member, or by the caller's own constraint.
    pub fn is_constrained(&self) -> bool {
        let rules = |m: &Member| m.entry.places.iter().any(|p| p.site == Site::Constraint);
        self.constraint.is_some() || self.members.iter().any(rules)
    }

    /// Whether this is the plain run.
    pub fn is_plain(&self) -> bool {
        self.members.is_empty() && self.constraint.is_none()
    }

    /// What the combination promises: the weakest promise of its members.
    pub fn exactness(&self) -> Exactness {
        let own = match self.constraint {
            Some(_) => Exactness::Lossy { what: "texts that the predicate refuses are not made" },
            None => Exactness::BitExact,
        };
        self.members.iter().fold(own, |e, m| e.and(m.entry.exactness))
    }

    /// What the members' promises are about: the plain run, under the recipe's constraint and in its
    /// blocks if it has such.
    #[must_use]
    pub fn reference(&self) -> Self {
        let members = self.members.iter().filter(|m| is_frame(m)).cloned().collect();
        Self { members, constraint: self.constraint.clone(), ..Self::default() }
    }

    /// What the combination promises about the texts of its [`Recipe::reference`].
    pub fn promise(&self) -> Exactness {
        let others = self.members.iter().filter(|m| !is_frame(m));
        others.fold(Exactness::BitExact, |e, m| e.and(m.entry.exactness))
    }

    /// Checks that everything the members need is offered.
    ///
    /// # Errors
    /// [`Error::Method`] naming every gap of the first method that has one.
    pub fn fits(&self, offer: &Offer) -> Result<()> {
        for member in &self.members {
            let calibration = offer.calibration || self.calibration.is_some();
            let missing = member.entry.needs.missing_from(&Offer { calibration, ..*offer });
            if !missing.is_empty() {
                return Err(Error::Method {
                    method: member.entry.slug.to_owned(),
                    what: format!("needs {}, which this session does not have", missing.join(", ")),
                });
            }
        }
        Ok(())
    }

    /// A fresh instance of every member, for one sequence.
    ///
    /// # Errors
    /// As the members' own `build`.
    pub fn build(&self) -> Result<Vec<Method>> {
        let one = |m: &Member| {
            let mut method = (m.entry.build)(&m.settings)?;
            if let (Method::Reduce(policy), Some(calibration)) = (&mut method, &self.calibration) {
                policy.calibrate(calibration)?;
            }
            Ok(method)
        };
        self.members.iter().map(one).collect()
    }

    /// The recipe as a request writes it: `[{"id": ..., settings...}]`.
    pub fn to_json(&self) -> Value {
        let one = |m: &Member| {
            let mut map = Settings::new();
            map.insert("id".to_owned(), json!(m.entry.slug));
            map.extend(m.settings.clone());
            Value::Object(map)
        };
        Value::Array(self.members.iter().map(one).collect())
    }
}

/// Whether a member says which texts are allowed or which part of a canvas is open, and nothing else: it
/// is part of what other members' promises are about.
fn is_frame(member: &Member) -> bool {
    let places = member.entry.places;
    places.iter().any(|p| p.site == Site::Constraint)
        || (!places.is_empty() && places.iter().all(|p| p.site == Site::Region))
}

/// Why a kind of method cannot take part in a run at all.
fn alone(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Policy | Kind::Loop => None,
        Kind::Program => Some("is a program with its own command, not part of a run"),
        Kind::Objective => Some("is a training objective, not part of a run"),
    }
}

/// Why two methods cannot work together.
fn clash(a: &MethodEntry, b: &MethodEntry) -> Option<String> {
    if a.slug == PLAIN || b.slug == PLAIN {
        return Some("`none` is the plain run, without any method".to_owned());
    }
    if a.kind == Kind::Loop && b.kind == Kind::Loop {
        return Some("a run has one loop".to_owned());
    }
    let crowded = |one: &MethodEntry, other: &MethodEntry| {
        one.slug == PARTICLES && other.places.iter().any(|p| p.role != Role::Constrain)
    };
    if crowded(a, b) || crowded(b, a) {
        let why =
            "particles are resampled between tokens, so a pass holds nothing but their last ones";
        return Some(why.to_owned());
    }
    let constrains = |e: &MethodEntry| e.places.iter().any(|p| p.role == Role::Constrain);
    if let Some(reason) = unjudged(a, constrains(b)).or(unjudged(b, constrains(a))) {
        return Some(reason.to_owned());
    }
    if (a.needs.looks && b.needs.unlooked) || (b.needs.looks && a.needs.unlooked) {
        return Some(AHEAD.to_owned());
    }
    let places = a.places.iter().flat_map(|p| b.places.iter().map(move |q| (p, q)));
    let reason = |(p, q): (&Place, &Place)| {
        if p.clashes(*q) {
            return Some(word(*p));
        }
        let met = |one: &Place, other: &Place, (role, with): (Role, Place)| {
            one.role == role && other.clashes(with)
        };
        let found = APART.iter().find(|(pair, _)| met(p, q, *pair) || met(q, p, *pair));
        found.map(|(_, reason)| (*reason).to_owned())
    };
    places.filter_map(reason).next()
}

/// Why some windows go with nothing that looks ahead.
const AHEAD: &str = "one looks at canvases that are not written yet, and the rows that the other keeps \
                     depend on every canvas that was computed. Next: `prefix-cache`, `dual-cache` or \
                     `prompt-cache`, whose rows do not";

/// Decisions that differ and cannot be taken in one run all the same: a role, a place, the reason.
const APART: &[((Role, Place), &str)] = &[(
    (Role::Draft, Place { role: Role::Reduce, site: Site::Layers }),
    "a schedule of layers goes by the pass, so a guess computed ahead would run other layers than \
     the plain run gives it",
)];

/// Why an acceptance rule cannot work under a constraint.
fn unjudged(entry: &MethodEntry, constrained: bool) -> Option<&'static str> {
    let judges = entry.places.iter().any(|p| p.role == Role::Accept);
    (constrained && judges && entry.exactness != Exactness::BitExact).then_some(
        "it weighs a guess by its probability without the constraint. Next: `keyed`, which draws \
         under the constraint and then compares",
    )
}

fn word(place: Place) -> String {
    let decides = match (place.role, place.site) {
        (Role::Draft, _) => "what is guessed ahead",
        (Role::Accept, _) => "what of a draft is committed",
        (Role::Unmask, _) => "the same seam of unmasking",
        (Role::Reduce, _) => "the same site of what is kept",
        (Role::Constrain, Site::Sampler) => "how an allowed token is drawn",
        (Role::Constrain, _) => "which tokens are allowed",
    };
    format!("both decide {decides}")
}

#[cfg(test)]
#[path = "recipe_tests.rs"]
mod tests;
