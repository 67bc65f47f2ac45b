//! A recipe's methods, each in the role it plays.

use std::sync::Arc;

use tessera_core::constrain::Masking;
use tessera_core::entry::{Kind, Method, MethodEntry, Particles, Role, Site};
use tessera_core::{
    Accept, Constrained, ConstrainedSampler, Constraint, Draft, Error, Guard, LayerSchedule,
    Reduce, Result, Vocabulary,
};

use crate::pace::Pace;
use crate::recipe::{Member, Recipe};
use crate::speculation::Speculation;

/// Fresh instances of a recipe's methods, for one sequence.
#[derive(Default)]
pub(crate) struct Cast {
    pub(crate) drafter: Option<Box<dyn Draft>>,
    pub(crate) accept: Option<Box<dyn Accept>>,
    pub(crate) schedule: Option<Box<dyn LayerSchedule>>,
    pub(crate) policies: Vec<Box<dyn Reduce>>,
    pub(crate) constraint: Option<Arc<dyn Constraint>>,
    pub(crate) sampler: Option<Box<dyn ConstrainedSampler>>,
    pub(crate) particles: Option<Particles>,
}

impl Cast {
    pub(crate) fn new(recipe: &Recipe) -> Result<Self> {
        let mut cast = Self { constraint: recipe.constraint().cloned(), ..Self::default() };
        for (method, member) in recipe.build()?.into_iter().zip(recipe.members()) {
            match method {
                Method::Plain => {}
                Method::Draft(drafter) => cast.drafter = Some(drafter),
                Method::Accept(accept) => cast.accept = Some(accept),
                Method::Layers(schedule) => cast.schedule = Some(schedule),
                Method::Reduce(policy) => cast.policies.push(policy),
                Method::Constrain(constraint) => cast.constraint = Some(Arc::from(constraint)),
                Method::Sample(sampler) => cast.sampler = Some(sampler),
                Method::Particles(particles) => cast.particles = Some(particles),
                _ => {
                    let what = "plays a role that the autoregressive loop does not have".to_owned();
                    return Err(Error::Method { method: member.entry.slug.to_owned(), what });
                }
            }
        }
        if cast.constraint.is_none() && (cast.sampler.is_some() || cast.particles.is_some()) {
            let needs = |m: &&Member| m.entry.kind == Kind::Loop || is_sampler(m.entry);
            let method = recipe.members().iter().find(needs).map_or("?", |m| m.entry.slug);
            let what = "needs a constraint. Next: add json-schema, regex, grammar or a predicate";
            return Err(Error::Method { method: method.to_owned(), what: what.to_owned() });
        }
        cast.check(recipe)?;
        Ok(cast)
    }

    /// The constraint's guard before the first token, if there is a constraint.
    pub(crate) fn guard(&self, vocabulary: &dyn Vocabulary) -> Result<Option<Guard>> {
        let Some(constraint) = &self.constraint else { return Ok(None) };
        Ok(Some(Guard::new(constraint.begin(vocabulary)?, vocabulary)))
    }

    /// `guard` with who draws under it.
    pub(crate) fn constrained(&mut self, guard: Guard) -> Constrained {
        let sampler = self.sampler.take().unwrap_or_else(|| Box::<Masking>::default());
        Constrained { guard, sampler }
    }

    /// Refuses what only settings can tell: places that fit, and decisions that do not.
    fn check(&self, recipe: &Recipe) -> Result<()> {
        if self.schedule.is_none() || self.policies.iter().all(|p| p.received().is_none()) {
            return Ok(());
        }
        let at = |site| recipe.members().iter().find(move |m| m.entry.takes(Role::Reduce, site));
        let slug = |site| at(site).map_or("?", |m| m.entry.slug);
        let what = format!(
            "cannot be combined with `{}`: a layer that a step skips shows no attention to go by",
            slug(Site::Layers)
        );
        Err(Error::Method { method: slug(Site::Decode).to_owned(), what })
    }

    pub(crate) fn into_speculation(self, recipe: &Recipe) -> Speculation {
        Speculation::new(self.drafter, self.accept, Pace::new(recipe.curve().cloned()))
    }
}

fn is_sampler(entry: &MethodEntry) -> bool {
    entry.places.iter().any(|p| p.site == Site::Sampler)
}
