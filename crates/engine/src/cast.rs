//! A recipe's methods, each in the role it plays.

use tessera_core::entry::{Method, Role, Site};
use tessera_core::{Accept, Draft, Error, LayerSchedule, Reduce, Result};

use crate::pace::Pace;
use crate::recipe::Recipe;
use crate::speculation::Speculation;

/// Fresh instances of a recipe's methods, for one sequence.
#[derive(Default)]
pub(crate) struct Cast {
    pub(crate) drafter: Option<Box<dyn Draft>>,
    pub(crate) accept: Option<Box<dyn Accept>>,
    pub(crate) schedule: Option<Box<dyn LayerSchedule>>,
    pub(crate) policies: Vec<Box<dyn Reduce>>,
}

impl Cast {
    pub(crate) fn new(recipe: &Recipe) -> Result<Self> {
        let mut cast = Self::default();
        for (method, member) in recipe.build()?.into_iter().zip(recipe.members()) {
            match method {
                Method::Plain => {}
                Method::Draft(drafter) => cast.drafter = Some(drafter),
                Method::Accept(accept) => cast.accept = Some(accept),
                Method::Layers(schedule) => cast.schedule = Some(schedule),
                Method::Reduce(policy) => cast.policies.push(policy),
                _ => {
                    let what = "plays a role that the autoregressive loop does not have".to_owned();
                    return Err(Error::Method { method: member.entry.slug.to_owned(), what });
                }
            }
        }
        cast.check(recipe)?;
        Ok(cast)
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
