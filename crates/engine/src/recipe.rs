//! Which methods take part in a run, and whether they fit together.

use std::sync::Arc;

use serde_json::{Value, json};
use tessera_core::entry::{
    Exactness, Kind, Method, MethodCall, MethodEntry, Offer, Place, Role, Settings, Site, find,
};
use tessera_core::{Calibration, Error, Result};

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
}

/// The slug of the plain run.
const PLAIN: &str = "none";

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
        Ok(Self { members, curve: None, calibration: None })
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

    /// Whether this is the plain run.
    pub fn is_plain(&self) -> bool {
        self.members.is_empty()
    }

    /// What the combination promises: the weakest promise of its members.
    pub fn exactness(&self) -> Exactness {
        self.members.iter().fold(Exactness::BitExact, |e, m| e.and(m.entry.exactness))
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
    let places = a.places.iter().flat_map(|p| b.places.iter().map(move |q| (p, q)));
    let reason = |(p, q): (&Place, &Place)| {
        if p.clashes(*q) {
            return Some(word(p.role));
        }
        let met = |one: &Place, other: &Place, (role, with): (Role, Place)| {
            one.role == role && other.clashes(with)
        };
        let found = APART.iter().find(|(pair, _)| met(p, q, *pair) || met(q, p, *pair));
        found.map(|(_, reason)| (*reason).to_owned())
    };
    places.filter_map(reason).next()
}

/// Decisions that differ and cannot be taken in one run all the same: a role, a place, the reason.
const APART: &[((Role, Place), &str)] = &[(
    (Role::Draft, Place { role: Role::Reduce, site: Site::Layers }),
    "a schedule of layers goes by the pass, so a guess computed ahead would run other layers than \
     the plain run gives it",
)];

fn word(role: Role) -> String {
    let decides = match role {
        Role::Draft => "what is guessed ahead",
        Role::Accept => "what of a draft is committed",
        Role::Unmask => "the same seam of unmasking",
        Role::Reduce => "the same site of what is kept",
        Role::Constrain => "which tokens are allowed",
    };
    format!("both decide {decides}")
}

#[cfg(test)]
#[path = "recipe_tests.rs"]
mod tests;
