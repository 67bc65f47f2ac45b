//! Title: Masked Diffusion Models are Secretly Time-Agnostic Masked Models and Exploit Inaccurate Categorical Sampling
//! Authors: Zheng et al.
//! Year: 2024
//! Id: arXiv:2409.02908
//! Implemented: one mask, chosen uniformly at random, is filled a step: the law of the reverse process
//!   with infinitely many steps, in as many passes as there are masks. The times themselves (t u^(1/n))
//!   have no influence on a model that is not told the time, so they are not drawn.
//! Left out: several tokens a step with predictor-corrector extrapolation.
//! Tag: FHS

use tessera_core::entry::{
    Exactness, Kind, Method, MethodEntry, NoSettings, Paper, Place, Role, Site, defaults_of,
    resolve_as, schema_of,
};
use tessera_core::{Evidence, Fill, Result, Unmask};

use crate::unmask::DENOISER;

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "first-hitting",
    aliases: &["first-hitting-sampler", "fhs"],
    name: "First-hitting sampler",
    paper: Some(Paper {
        title: "Masked Diffusion Models are Secretly Time-Agnostic Masked Models and Exploit \
                Inaccurate Categorical Sampling",
        authors: "Zheng et al.",
        year: 2024,
        id: "arXiv:2409.02908",
    }),
    summary: "Fills one mask a pass, in a random order: the reference for the law of the texts.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Unmask, site: Site::Quota }],
    exactness: Exactness::Lossy { what: "the order, and so the text; the law is the model's own" },
    needs: DENOISER,
    claims: &[],
    schema: schema_of::<NoSettings>,
    defaults: defaults_of::<NoSettings>,
    neutral: None,
    read: resolve_as::<NoSettings>,
    build: |_| Ok(Method::Unmask(Box::new(FirstHitting))),
};

/// The policy.
#[derive(Debug, Clone)]
pub struct FirstHitting;

impl Unmask for FirstHitting {
    fn quota(&mut self, evidence: &Evidence<'_>, fills: &[Fill]) -> Result<Option<Vec<usize>>> {
        let open: Vec<usize> =
            (0..fills.len()).filter(|&i| evidence.is_open(fills[i].position)).collect();
        let drawn = evidence.key(0, 0).uniform(0) * open.len() as f64;
        Ok(open.get(drawn as usize).map(|&i| vec![i]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::Scene;
    use tessera_core::dist::chi::{ERROR_LEVEL, uniformity};

    #[test]
    fn one_open_mask_is_chosen_uniformly() {
        let mut scene = Scene::new(&[&[1.0][..]; 6]);
        scene.region = 2..6;
        let mut counts = [0u64; 4];
        for seed in 0..4000 {
            scene.seed = seed;
            let chosen = FirstHitting.quota(&scene.evidence(), &scene.fills()).unwrap().unwrap();
            assert_eq!(chosen.len(), 1);
            counts[chosen[0] - 1] += 1;
        }
        assert!(uniformity(&counts) > ERROR_LEVEL, "{counts:?}");
    }
}
