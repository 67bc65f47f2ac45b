//! The policies of a denoising run, by the seam that each takes.

use tessera_core::entry::{Method, MethodEntry, Site};
use tessera_core::{CanvasRule, Error, Result, TokenId, Unmask, Vocabulary, Window};

use crate::recipe::Recipe;

/// Fresh instances of a recipe's methods, for one text.
pub(super) struct Seams {
    policies: Vec<(&'static MethodEntry, Box<dyn Unmask>)>,
    pub(super) window: Option<Box<dyn Window>>,
    /// Which tokens may stand where; the text's, until its sight takes it.
    pub(super) rule: Option<Box<dyn CanvasRule>>,
}

impl Seams {
    pub(super) fn new(recipe: &Recipe, vocabulary: &dyn Vocabulary, mask: TokenId) -> Result<Self> {
        let mut seams = Self { policies: Vec::new(), window: None, rule: None };
        for (method, member) in recipe.build()?.into_iter().zip(recipe.members()) {
            match method {
                Method::Plain => {}
                Method::Unmask(policy) => seams.policies.push((member.entry, policy)),
                Method::Window(window) => seams.window = Some(window),
                Method::Constrain(constraint) => {
                    let Some(rule) = constraint.on_canvas(vocabulary, mask)? else {
                        let what = "cannot say what may stand in the middle of a text, where masks \
                                    are filled. Next: `regex`, which can";
                        let method = member.entry.slug.to_owned();
                        return Err(Error::Method { method, what: what.to_owned() });
                    };
                    seams.rule = Some(rule);
                }
                _ => {
                    let what = "is for models that write from left to right; this one fills masks";
                    let method = member.entry.slug.to_owned();
                    return Err(Error::Method { method, what: what.to_owned() });
                }
            }
        }
        Ok(seams)
    }

    /// The policy that takes `site`.
    pub(super) fn at(&mut self, site: Site) -> Option<&mut (dyn Unmask + 'static)> {
        let takes = |entry: &MethodEntry| entry.places.iter().any(|p| p.site == site);
        let found = self.policies.iter_mut().find(|(entry, _)| takes(entry));
        found.map(|(_, policy)| &mut **policy)
    }

    /// The policy that takes the commit, and the window beside it.
    pub(super) fn committer(
        &mut self,
    ) -> (Option<&mut (dyn Unmask + 'static)>, Option<&(dyn Window + 'static)>) {
        let takes = |entry: &MethodEntry| entry.places.iter().any(|p| p.site == Site::Commit);
        let found = self.policies.iter_mut().find(|(entry, _)| takes(entry));
        (found.map(|(_, policy)| &mut **policy), self.window.as_deref())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &dyn Unmask> {
        self.policies.iter().map(|(_, policy)| &**policy)
    }

    /// What the policies have counted: method, name, value.
    pub(super) fn counts(&self) -> Vec<(&'static str, &'static str, f64)> {
        let named = |(entry, policy): &(&'static MethodEntry, Box<dyn Unmask>)| {
            let counts = policy.counts().into_iter();
            counts.map(|(name, value)| (entry.slug, name, value)).collect::<Vec<_>>()
        };
        self.policies.iter().flat_map(named).collect()
    }

    /// Whether the policy of the quota decides the region too, and may go beyond it.
    pub(super) fn quota_takes_region(&self) -> bool {
        let both = |entry: &MethodEntry| {
            [Site::Quota, Site::Region]
                .iter()
                .all(|site| entry.places.iter().any(|p| p.site == *site))
        };
        self.policies.iter().any(|(entry, _)| both(entry))
    }
}
