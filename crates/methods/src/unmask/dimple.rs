//! Title: Dimple: Discrete Diffusion Multimodal Large Language Model with Parallel Decoding
//! Authors: Yu, Ma, Wang
//! Year: 2025
//! Id: arXiv:2505.16990
//! Implemented: confident decoding. Every fill with a probability above `gamma` (untempered, nothing
//!   truncated) is written. If there is none, as many as the schedule is behind: the share of masks
//!   that is left is compared with a grid of times, and the first time ahead by which at least one
//!   mask is due says how many. These are random ones, the leftmost or the surest.
//! Deviation: rows of a batch are texts of their own here, so a fallback is never shared among them.
//! Left out: margin and entropy as the confidence (a score of its own, `ccd` or `confidence`); their
//!   prefilling, which is a window here; structure priors are the template of a request.
//! Tag: Dimple

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Paper, Place, Role, Settings, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{Evidence, Fill, Result, Unmask};

use crate::retention::within;
use crate::unmask::{DENOISER, between, surest};

/// Which masks are filled where none is certain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Fallback {
    /// Any, by chance.
    Random,
    /// From left to right.
    Leftmost,
    /// The surest.
    #[default]
    Confidence,
}

/// Settings of confident decoding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dimple {
    /// A fill with a larger probability is written. 0 (all at once) to 2; from 1 on only the schedule
    /// writes. Their example: 0.95.
    pub gamma: f64,
    /// Times of the schedule's grid. 1 to 1048576; as many as there are masks if left out.
    pub steps: Option<usize>,
    /// Last time of the grid. 0 to 0.5; theirs: 0.001.
    pub eps: f64,
    /// Which masks the schedule fills: `random`, `leftmost` or `confidence`.
    pub fallback: Fallback,
}

impl Default for Dimple {
    fn default() -> Self {
        Self { gamma: 0.95, steps: None, eps: 1e-3, fallback: Fallback::Confidence }
    }
}

impl MethodConfig for Dimple {
    fn validate(&self) -> std::result::Result<(), String> {
        between("gamma", self.gamma, 0.0, 2.0)?;
        between("eps", self.eps, 0.0, 0.5)?;
        self.steps.map_or(Ok(()), |steps| within("steps", steps, 1..=1 << 20))
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "dimple",
    aliases: &["confident-decoding"],
    name: "Confident decoding",
    paper: Some(Paper {
        title: "Dimple: Discrete Diffusion Multimodal Large Language Model with Parallel Decoding",
        authors: "Yu, Ma, Wang",
        year: 2025,
        id: "arXiv:2505.16990",
    }),
    summary: "Fills every mask of which the model is nearly certain, and where none is, as many as a \
              schedule asks for.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Unmask, site: Site::Quota }],
    exactness: Exactness::Lossy { what: "tokens filled in one step do not know of one another" },
    needs: DENOISER,
    claims: &[Claim {
        setting: "Dimple-7B, answers of its benchmarks",
        metric: "passes for the length of the answer",
        value: 0.33,
        unit: "passes/token",
        place: "abstract",
    }],
    schema: schema_of::<Dimple>,
    defaults: defaults_of::<Dimple>,
    neutral: Some(|| {
        let eps = ("eps".to_owned(), json!(1e-6));
        Settings::from_iter([("gamma".to_owned(), json!(2.0)), eps])
    }),
    read: resolve_as::<Dimple>,
    build: |settings| {
        let config = read_as::<Dimple>("dimple", settings)?;
        Ok(Method::Unmask(Box::new(Certain { config, scheduled: 0 })))
    },
};

/// Masks due in step `step` where `masks` of `length` are left, by a grid of `steps` times from 1 to
/// `eps`: at the first time after the step at which at least one is due; all in the last step.
pub fn due(step: usize, masks: usize, length: usize, steps: usize, eps: f64) -> usize {
    if step + 1 >= steps {
        return masks;
    }
    let left = masks as f64 / length.max(1) as f64;
    let time = |j: usize| 1.0 - (1.0 - eps) * j as f64 / steps as f64;
    let at = |j: usize| (masks as f64 * (1.0 - time(j) / left)).floor();
    let ahead = (step + 1..=steps).map(at).find(|&due| due >= 1.0);
    ahead.map_or(masks, |due| (due as usize).min(masks))
}

/// The policy.
#[derive(Debug, Clone)]
pub struct Certain {
    config: Dimple,
    /// Steps in which nothing was certain.
    scheduled: usize,
}

impl Unmask for Certain {
    fn quota(&mut self, evidence: &Evidence<'_>, fills: &[Fill]) -> Result<Option<Vec<usize>>> {
        let mut order = surest(evidence, fills);
        let certain = |&i: &usize| f64::from(fills[i].probability) > self.config.gamma;
        if order.iter().any(certain) {
            order.retain(certain);
            return Ok(Some(order));
        }
        self.scheduled += 1;
        match self.config.fallback {
            Fallback::Confidence => {}
            Fallback::Leftmost => order.sort_by_key(|&i| fills[i].position),
            Fallback::Random => {
                let place = |i: usize| evidence.key(fills[i].position, 0).uniform(0);
                order.sort_by(|&a, &b| place(a).total_cmp(&place(b)));
            }
        }
        let steps = self.config.steps.unwrap_or(evidence.length).max(1);
        let (step, masks) = (evidence.step as usize, evidence.canvas.masks());
        order.truncate(due(step, masks, evidence.length, steps, self.config.eps));
        Ok(Some(order))
    }

    fn counts(&self) -> Vec<(&'static str, f64)> {
        vec![("steps of the schedule", self.scheduled as f64)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::Scene;

    #[test]
    fn the_worked_example_of_the_schedule() {
        // Grid 1, .8751, .7503, .6254, .5005, .3756, ...; 5 of 8 masks are left, so by .5005 floor(.996)
        // = 0 are due, and by .3756 floor(1.995) = 1.
        assert_eq!(due(3, 5, 8, 8, 1e-3), 1);
        // The grid does not follow the step: after one step with 5 masks left the same time is found.
        assert_eq!(due(1, 5, 8, 8, 1e-3), 1);
        // A short grid asks for more, and its last time for everything.
        assert_eq!((due(0, 8, 8, 2, 1e-3), due(1, 5, 8, 2, 1e-3)), (3, 5));
        assert_eq!((due(7, 1, 8, 8, 1e-3), due(99, 3, 8, 8, 1e-3)), (1, 3));
        // One mask a step, to the end, whatever rounding does.
        for length in [1, 2, 7, 64, 999] {
            for step in 0..length {
                assert_eq!(due(step, length - step, length, length, 1e-3), 1, "{step} of {length}");
            }
        }
    }

    #[test]
    fn what_is_certain_comes_first_and_the_fallback_orders_the_rest() {
        let mut scene = Scene::new(&[&[0.5, 0.5], &[0.97, 0.03], &[0.7, 0.3], &[0.04, 0.96]]);
        let made = |scene: &Scene, gamma, steps, fallback| {
            let config = Dimple { gamma, steps, fallback, ..Dimple::default() };
            let mut policy = Certain { config, scheduled: 0 };
            let chosen = policy.quota(&scene.evidence(), &scene.fills()).unwrap().unwrap();
            (chosen, policy.scheduled)
        };
        assert_eq!(made(&scene, 0.95, None, Fallback::Leftmost), (vec![1, 3], 0));
        assert_eq!(made(&scene, 0.99, Some(2), Fallback::Confidence), (vec![1], 1));
        assert_eq!(made(&scene, 0.99, Some(1), Fallback::Leftmost), (vec![0, 1, 2, 3], 1));
        assert_eq!(made(&scene, 0.0, None, Fallback::Leftmost).0.len(), 4);
        scene.region = 3..5;
        assert_eq!(made(&scene, 0.99, None, Fallback::Leftmost), (vec![2], 1));
        scene.region = 1..5;
        let mut counts = [0u64; 4];
        for seed in 0..4000 {
            scene.seed = seed;
            counts[made(&scene, 2.0, None, Fallback::Random).0[0]] += 1;
        }
        use tessera_core::dist::chi::{ERROR_LEVEL, uniformity};
        assert!(uniformity(&counts) > ERROR_LEVEL, "{counts:?}");
    }
}
