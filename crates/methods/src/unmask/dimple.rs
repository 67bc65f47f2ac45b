//! Title: Dimple: Discrete Diffusion Multimodal Large Language Model with Parallel Decoding
//! Authors: Yu et al.
//! Year: 2025
//! Id: arXiv:2505.16990
//! Implemented: confident decoding. Every fill whose token has more than `gamma` of the untempered,
//!   untruncated probability is written; if there is none, as many as the time grid says are due at its
//!   next time at which at least one is: random ones, the leftmost or the surest. Structure priors are
//!   the request's template; prefilling is the window `prompt-cache`.
//! Left out: the vision encoder and the training; scores other than the probability for `gamma`.
//! Tag: Dimple

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Paper, Place, Role, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::unmask::ranked;
use tessera_core::{Evidence, Fill, Result, Unmask};

use crate::retention::within;
use crate::unmask::{DENOISER, between};

/// Which masks are filled when none is sure enough.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// The surest.
    #[default]
    Confidence,
    /// The leftmost.
    Leftmost,
    /// Random ones.
    Random,
}

/// Settings of confident decoding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dimple {
    /// Probability above which a token is written at once. 0 to 1; at 1 nothing is, which leaves the
    /// schedule. The paper: 0.95.
    pub gamma: f64,
    /// Times of the grid. 1 to 1048576; as many as there are masks if left out.
    pub steps: Option<usize>,
    /// Masks filled when none is sure enough: `confidence`, `leftmost` or `random`.
    pub fallback: Order,
}

impl Default for Dimple {
    fn default() -> Self {
        Self { gamma: 0.95, steps: None, fallback: Order::Confidence }
    }
}

impl MethodConfig for Dimple {
    fn validate(&self) -> std::result::Result<(), String> {
        between("gamma", self.gamma, 0.0, 1.0)?;
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
        authors: "Yu et al.",
        year: 2025,
        id: "arXiv:2505.16990",
    }),
    summary: "Writes every token of which the model is sure, and otherwise what a time grid says is due.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Unmask, site: Site::Quota }],
    exactness: Exactness::Lossy { what: "tokens filled in one step do not know of one another" },
    needs: DENOISER,
    claims: &[Claim {
        setting: "Dimple-7B, answers to images",
        metric: "tokens a pass (length / 3 passes)",
        value: 3.0,
        unit: "tokens/step",
        place: "abstract",
    }],
    schema: schema_of::<Dimple>,
    defaults: defaults_of::<Dimple>,
    // The grid's rounding fills two masks in the last step, so it has no setting of the plain run.
    neutral: None,
    read: resolve_as::<Dimple>,
    build: |settings| {
        let config = read_as::<Dimple>("dimple", settings)?;
        Ok(Method::Unmask(Box::new(Confident { config, time: 0 })))
    },
};

/// The last time of the grid.
const LAST: f64 = 1e-3;

/// The policy.
#[derive(Debug, Clone)]
pub struct Confident {
    config: Dimple,
    /// Index of the grid time of the last step.
    time: usize,
}

/// How many of `left` masks, of `length` in the beginning, are due at the first time of a grid of
/// `steps` from index `from` on at which at least one is; and that index.
pub fn due(left: usize, length: usize, steps: usize, from: usize) -> (usize, usize) {
    let r = left as f64 / length.max(1) as f64;
    for index in from..steps {
        let s = 1.0 - (1.0 - LAST) * index as f64 / steps as f64;
        // A hair of slack: (1 - s / r) of n masks is a whole number in theory, and just below in rounding.
        let count = if s < r { (left as f64 * (1.0 - s / r) + 1e-9).floor() as usize } else { 0 };
        if count >= 1 {
            return (count, index);
        }
    }
    (left, steps)
}

impl Unmask for Confident {
    fn quota(&mut self, evidence: &Evidence<'_>, fills: &[Fill]) -> Result<Option<Vec<usize>>> {
        let mut order = ranked(fills);
        order.retain(|&i| evidence.is_open(fills[i].position));
        let sure = |&i: &usize| f64::from(fills[i].probability) > self.config.gamma;
        let confident: Vec<usize> = order.iter().copied().filter(sure).collect();
        if !confident.is_empty() {
            self.time += 1;
            return Ok(Some(confident));
        }
        let steps = self.config.steps.unwrap_or(evidence.length);
        let (count, time) = due(evidence.canvas.masks(), evidence.length, steps, self.time + 1);
        self.time = time;
        match self.config.fallback {
            Order::Confidence => {}
            Order::Leftmost => order.sort_by_key(|&i| fills[i].position),
            Order::Random => order.sort_by(|&a, &b| {
                let u = |i: usize| evidence.key(fills[i].position, 2).uniform(0);
                u(a).total_cmp(&u(b))
            }),
        }
        order.truncate(count);
        Ok(Some(order))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::Scene;

    #[test]
    fn the_grid_waits_until_one_mask_is_due() {
        // Eight masks, eight times; three are filled, so r = .625: at .5005 nothing is due, at .3756 one.
        assert_eq!(due(5, 8, 8, 4), (1, 5));
        // The end of the grid takes all that are left.
        assert_eq!(due(3, 8, 8, 8), (3, 8));
    }

    #[test]
    fn sure_tokens_are_written_together_and_a_grid_of_one_a_mask_is_due_one() {
        let scene = Scene::new(&[&[0.96, 0.04], &[0.6, 0.4], &[0.97, 0.03], &[0.2, 0.8]]);
        let mut policy = Confident { config: Dimple::default(), time: 0 };
        let chosen = policy.quota(&scene.evidence(), &scene.fills()).unwrap().unwrap();
        assert_eq!(chosen, [2, 0]);
        let config = Dimple { gamma: 1.0, fallback: Order::Leftmost, ..Dimple::default() };
        let mut policy = Confident { config, time: 0 };
        let chosen = policy.quota(&scene.evidence(), &scene.fills()).unwrap().unwrap();
        assert_eq!(chosen, [0]);
        let config = Dimple { gamma: 1.0, steps: Some(2), ..Dimple::default() };
        let mut policy = Confident { config, time: 0 };
        let chosen = policy.quota(&scene.evidence(), &scene.fills()).unwrap().unwrap();
        assert_eq!(chosen, [2]);
    }
}
