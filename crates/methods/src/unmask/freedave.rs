//! Title: Free Draft-and-Verification: Toward Lossless Parallel Decoding for Diffusion Large Language
//!   Models
//! Authors: Wu, Zhang
//! Year: 2025
//! Id: arXiv:2510.00294
//! Implemented: the canvases with the 1, 2, ..., `drafts` surest fills written are looked at in one pass;
//!   the longest chain in which each is what the one before it would become is written, and what the
//!   model thinks of the last one serves the next round. The text is that of one fill a step, the
//!   surest first, also inside blocks. Draws are keyed by the position, so it holds at any temperature.
//! Deviation: a draft that completes the region is not computed, since nothing is left to predict there.
//! Left out: eager drafts that reach into the next block; the threshold form, which is not lossless.
//! Tag: FreeDave

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, Place, Role, Settings,
    Site, defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::unmask::ranked;
use tessera_core::{Commit, Evidence, Fill, Look, Result, Unmask};

use crate::retention::within;
use crate::unmask::DENOISER;

/// Settings of FreeDave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FreeDave {
    /// Canvases looked at in a pass. 1 (the plain run) to 64; the paper: 8 for Dream, 4 for LLaDA.
    pub drafts: usize,
}

impl Default for FreeDave {
    fn default() -> Self {
        Self { drafts: 4 }
    }
}

impl MethodConfig for FreeDave {
    fn validate(&self) -> std::result::Result<(), String> {
        within("drafts", self.drafts, 1..=64)
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "freedave",
    aliases: &["free-draft-and-verification"],
    name: "FreeDave",
    paper: Some(Paper {
        title: "Free Draft-and-Verification: Toward Lossless Parallel Decoding for Diffusion Large \
                Language Models",
        authors: "Wu, Zhang",
        year: 2025,
        id: "arXiv:2510.00294",
    }),
    summary: "Looks at several next canvases in one pass and writes as many fills as would have come anyway.",
    kind: Kind::Policy,
    places: &[
        Place { role: Role::Unmask, site: Site::Score },
        Place { role: Role::Unmask, site: Site::Quota },
        Place { role: Role::Unmask, site: Site::Commit },
    ],
    exactness: Exactness::BitExact,
    needs: Needs { looks: true, ..DENOISER },
    claims: &[
        Claim {
            setting: "block diffusion and full attention models, GPU",
            metric: "throughput",
            value: 2.83,
            unit: "x",
            place: "abstract of the revised version (3.78x in the first)",
        },
        Claim {
            setting: "LLaDA-8B, GPU",
            metric: "tokens a pass",
            value: 2.5,
            unit: "tokens/step",
            place: "plot of the repository",
        },
    ],
    schema: schema_of::<FreeDave>,
    defaults: defaults_of::<FreeDave>,
    neutral: Some(|| Settings::from_iter([("drafts".to_owned(), json!(1))])),
    read: resolve_as::<FreeDave>,
    build: |settings| {
        let config = read_as::<FreeDave>("freedave", settings)?;
        Ok(Method::Unmask(Box::new(DraftAndVerify { config })))
    },
};

/// The policy.
#[derive(Debug, Clone)]
pub struct DraftAndVerify {
    config: FreeDave,
}

/// The surest of the fills that are open.
fn surest(evidence: &Evidence<'_>, fills: &[Fill]) -> Option<Fill> {
    ranked(fills).into_iter().map(|i| fills[i]).find(|f| evidence.is_open(f.position))
}

impl Unmask for DraftAndVerify {
    fn commit(
        &mut self,
        evidence: &Evidence<'_>,
        fills: &[Fill],
        _chosen: &[usize],
        look: &mut dyn Look,
    ) -> Result<Option<Commit>> {
        let mut order: Vec<Fill> = ranked(fills).into_iter().map(|i| fills[i]).collect();
        order.retain(|f| evidence.is_open(f.position));
        let open = order.len();
        order.truncate(self.config.drafts);
        if order.len() < 2 {
            return Ok(None);
        }
        let mut canvases = Vec::with_capacity(order.len());
        let mut canvas = evidence.canvas.clone();
        for fill in &order {
            canvas.fill(fill.position, fill.token, evidence.step)?;
            canvases.push(canvas.clone());
        }
        // The canvas that has everything has nothing to predict.
        canvases.truncate(open - 1);
        let mut predictions = look.look(&canvases)?;
        let mut last = 0;
        while let (Some(draft), Some(prediction)) = (order.get(last + 1), predictions.get(last)) {
            let next = surest(evidence, &look.fills(&canvases[last], prediction)?);
            if next.is_none_or(|n| (n.position, n.token) != (draft.position, draft.token)) {
                break;
            }
            last += 1;
        }
        let next = (last < predictions.len()).then(|| predictions.swap_remove(last));
        order.truncate(last + 1);
        Ok(Some(Commit { fills: order, remask: Vec::new(), next }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::Scene;
    use tessera_core::{Canvas, Prediction};

    /// Says for each canvas what its tokens are, and predicts from a table.
    struct Table(Vec<(Vec<u32>, Scene)>);

    impl Look for Table {
        fn look(&mut self, canvases: &[Canvas]) -> Result<Vec<Prediction>> {
            let find = |c: &Canvas| {
                let found = self.0.iter().find(|(tokens, _)| tokens == &c.tokens()[1..]);
                found.map(|(_, scene)| scene.prediction.clone()).unwrap()
            };
            Ok(canvases.iter().map(find).collect())
        }

        fn fills(&mut self, canvas: &Canvas, _: &Prediction) -> Result<Vec<Fill>> {
            let found = self.0.iter().find(|(tokens, _)| tokens == &canvas.tokens()[1..]);
            Ok(found.unwrap().1.fills())
        }
    }

    /// Tokens a..e are 0..4. The first canvas says a (.9), b (.5), c (.7).
    #[test]
    fn the_example_of_three_masks() {
        let scene = Scene::new(&[
            &[0.9, 0.0, 0.1, 0.0, 0.0],
            &[0.2, 0.5, 0.3, 0.0, 0.0],
            &[0.3, 0.0, 0.7, 0.0, 0.0],
        ]);
        let after = |tokens: &[(u32, u32)], laws: &[&[f32]]| {
            let mut scene = Scene::new(&[&[1.0f32][..]; 3]);
            tokens.iter().for_each(|&(p, t)| scene.canvas.fill(p, t, 0).unwrap());
            scene.think(laws);
            (scene.canvas.tokens()[1..].to_vec(), scene)
        };
        let mut table = Table(vec![
            // a M M: the third mask, c, is surest. a M c: the second is e, not b.
            after(&[(1, 0)], &[&[0.0, 0.6, 0.0, 0.4, 0.0], &[0.0, 0.2, 0.8, 0.0, 0.0]]),
            after(&[(1, 0), (3, 2)], &[&[0.1, 0.1, 0.1, 0.0, 0.7]]),
        ]);
        let mut policy = DraftAndVerify { config: FreeDave { drafts: 3 } };
        let (evidence, fills) = (scene.evidence(), scene.fills());
        let commit = policy.commit(&evidence, &fills, &[0], &mut table).unwrap().unwrap();
        let written: Vec<(u32, u32)> = commit.fills.iter().map(|f| (f.position, f.token)).collect();
        assert_eq!(written, [(1, 0), (3, 2)]);
        // What the model thinks of a M c is not computed again.
        assert_eq!(commit.next.unwrap().positions, [2]);
    }

    #[test]
    fn a_single_mask_is_left_to_the_plain_run() {
        let scene = Scene::new(&[&[0.9, 0.1]]);
        let mut policy = DraftAndVerify { config: FreeDave { drafts: 8 } };
        let mut nothing = Table(Vec::new());
        let made = policy.commit(&scene.evidence(), &scene.fills(), &[0], &mut nothing).unwrap();
        assert!(made.is_none());
    }
}
