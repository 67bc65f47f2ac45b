//! Title: Simple and Effective Masked Diffusion Language Models
//! Authors: Sahoo et al.
//! Year: 2024
//! Id: arXiv:2406.07524
//! Implemented: the reverse process on a grid of `steps` times from 1 to 0 (linear schedule): from time
//!   t to s every mask is filled with probability (t - s) / t, at the last one all that are left.
//! Deviation: grid times at which nothing is filled cost no pass, because the canvas is the same
//!   (the authors' cache does so too); so a run takes at most as many passes as there are masks.
//! Left out: other schedules than the linear one, which is theirs up to 1e-3.
//! Tag: ancestral

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::entry::{
    Exactness, Kind, Method, MethodConfig, MethodEntry, Paper, Place, Role, Settings, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{Evidence, Fill, Result, Unmask};

use crate::retention::within;
use crate::unmask::DENOISER;

/// Settings of ancestral sampling.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ancestral {
    /// Times of the grid. 1 to 1048576; as many as there are masks if left out. The more, the closer to
    /// the model's own law.
    pub steps: Option<usize>,
}

impl MethodConfig for Ancestral {
    fn validate(&self) -> std::result::Result<(), String> {
        self.steps.map_or(Ok(()), |steps| within("steps", steps, 1..=1 << 20))
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "ancestral",
    aliases: &["mdlm"],
    name: "Ancestral sampling",
    paper: Some(Paper {
        title: "Simple and Effective Masked Diffusion Language Models",
        authors: "Sahoo et al.",
        year: 2024,
        id: "arXiv:2406.07524",
    }),
    summary: "Fills every mask at a random time, as the diffusion process says, several in one pass.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Unmask, site: Site::Quota }],
    exactness: Exactness::Lossy { what: "tokens filled in one step do not know of one another" },
    needs: DENOISER,
    claims: &[],
    schema: schema_of::<Ancestral>,
    defaults: defaults_of::<Ancestral>,
    neutral: None,
    read: resolve_as::<Ancestral>,
    build: |settings: &Settings| {
        let config = read_as::<Ancestral>("ancestral", settings)?;
        Ok(Method::Unmask(Box::new(Reverse::new(config))))
    },
};

/// The policy.
#[derive(Debug, Clone)]
pub struct Reverse {
    config: Ancestral,
    /// Grid times gone by.
    done: usize,
}

impl Reverse {
    /// At time 1.
    pub fn new(config: Ancestral) -> Self {
        Self { config, done: 0 }
    }

    /// The grid time that was reached, for a canvas that had `length` masks.
    pub fn time(&self, length: usize) -> f64 {
        let steps = self.config.steps.unwrap_or(length).max(1);
        1.0 - self.done.min(steps) as f64 / steps as f64
    }
}

impl Unmask for Reverse {
    fn quota(&mut self, evidence: &Evidence<'_>, fills: &[Fill]) -> Result<Option<Vec<usize>>> {
        let steps = self.config.steps.unwrap_or(evidence.length).max(1);
        let open: Vec<usize> =
            (0..fills.len()).filter(|&i| evidence.is_open(fills[i].position)).collect();
        let mut chosen = Vec::new();
        while chosen.is_empty() {
            // From t = (steps - done) / steps to s one grid step below: (t - s) / t.
            let left = steps.saturating_sub(self.done);
            self.done += 1;
            if left <= 1 {
                return Ok(Some(open));
            }
            let share = 1.0 / left as f64;
            let grid = self.done as u64;
            let falls = |&i: &usize| evidence.key(fills[i].position, grid).uniform(0) < share;
            chosen = open.iter().copied().filter(falls).collect();
        }
        Ok(Some(chosen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::Scene;

    #[test]
    fn every_grid_time_fills_its_share_on_average() {
        let laws = [&[0.5f32, 0.5][..]; 40];
        let mut first = 0;
        for seed in 0..200 {
            let mut scene = Scene::new(&laws);
            scene.seed = seed;
            let mut policy = Reverse { config: Ancestral { steps: Some(4) }, done: 0 };
            first += policy.quota(&scene.evidence(), &scene.fills()).unwrap().unwrap().len();
            assert_eq!(policy.done, 1);
        }
        // 8000 masks, each filled with probability 1/4: within 5 standard errors.
        assert!((1806..=2194).contains(&first), "{first}");
    }

    #[test]
    fn times_without_a_fill_are_skipped_and_the_last_one_fills_all() {
        let mut scene = Scene::new(&[&[1.0][..]; 3]);
        scene.region = 1..3;
        let mut policy = Reverse { config: Ancestral { steps: Some(1000) }, done: 0 };
        let chosen = policy.quota(&scene.evidence(), &scene.fills()).unwrap().unwrap();
        assert!(!chosen.is_empty() && chosen.iter().all(|&i| i < 2) && policy.done > 1);
        policy.done = 999;
        let chosen = policy.quota(&scene.evidence(), &scene.fills()).unwrap().unwrap();
        assert_eq!(chosen, [0, 1]);
    }
}
