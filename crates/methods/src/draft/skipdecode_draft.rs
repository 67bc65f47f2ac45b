//! Title: SkipDecode: Autoregressive Skip Decoding with Batching and Caching for Efficient LLM
//!   Inference (as a drafter of the whole model)
//! Authors: Del Corro et al.
//! Year: 2023
//! Id: arXiv:2307.02628
//! Implemented: the truncated model of a SkipDecode step (the lowest `warmup` and the highest
//!   layers, on the target's own cache) guesses a chain; the whole model judges it, which makes the
//!   skipping exact. Guesses are drawn as the request's tokens are, with the keys of their positions
//!   where acceptance is keyed.
//! Left out: the paper's fine-tuning, without which skipping half of a model's layers mostly guesses
//!   wrong; keys and values of the lowest layers are computed again by the whole model.
//! Tag: SD-draft

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::dist::Sampler;
use tessera_core::entry::{
    Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, Place, Role, Settings, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{
    Capabilities, Draft, DraftContext, DraftTree, Layers, Pass, Position, Result, Reveal, Segment,
    TokenId,
};

use super::TREES;
use crate::reduce::skipdecode::{active_layers, executed};

/// Settings of the truncated model as a drafter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SkipDecodeDraft {
    /// Most guesses of a step. 0 (the plain run) to 32.
    pub budget: usize,
    /// Share of the model's layers that a guess runs, above 0, at most 1.
    pub share: f64,
    /// Lowest layers that always run. 0 to 64; the paper: 1.
    pub warmup: usize,
}

impl Default for SkipDecodeDraft {
    fn default() -> Self {
        Self { budget: 3, share: 0.5, warmup: 1 }
    }
}

impl MethodConfig for SkipDecodeDraft {
    fn validate(&self) -> std::result::Result<(), String> {
        if self.budget > 32 {
            return Err(format!("budget = {}: must be 0 to 32", self.budget));
        }
        if !(self.share > 0.0 && self.share <= 1.0) {
            return Err(format!("share = {}: must be above 0 and at most 1", self.share));
        }
        if self.warmup > 64 {
            return Err(format!("warmup = {}: must be 0 to 64", self.warmup));
        }
        Ok(())
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "skipdecode-draft",
    aliases: &["layer-skip-draft"],
    name: "SkipDecode as a drafter",
    paper: Some(Paper {
        title: "SkipDecode: Autoregressive Skip Decoding with Batching and Caching for Efficient \
                LLM Inference",
        authors: "Del Corro et al.",
        year: 2023,
        id: "arXiv:2307.02628",
    }),
    summary: "Guesses with a part of the model's own layers and lets the whole model judge.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Draft, site: Site::Whole }],
    exactness: Exactness::BitExact,
    needs: Needs {
        capabilities: Capabilities { layers: true, ..TREES.capabilities },
        ..Needs::NONE
    },
    claims: &[],
    schema: schema_of::<SkipDecodeDraft>,
    defaults: defaults_of::<SkipDecodeDraft>,
    neutral: Some(|| Settings::from_iter([("budget".to_owned(), json!(0))])),
    read: resolve_as::<SkipDecodeDraft>,
    build: |settings| {
        let config = read_as::<SkipDecodeDraft>("skipdecode-draft", settings)?;
        Ok(Method::Draft(Box::new(Truncated::new(config))))
    },
};

/// Share of a pass that the head takes, which every guess runs too: what SmolLM2-135M's takes of its bytes, and the
/// right order for other small models. It only weighs guesses, before any was seen to pay.
const HEAD: f64 = 0.3;

/// The drafter.
#[derive(Debug)]
pub struct Truncated {
    config: SkipDecodeDraft,
    active: Vec<usize>,
    reveal: Reveal,
    history: Vec<TokenId>,
}

impl Truncated {
    /// With these settings.
    pub fn new(config: SkipDecodeDraft) -> Self {
        Self { config, active: Vec::new(), reveal: Reveal::new(), history: Vec::new() }
    }

    /// Adds a chain to `tree`; `rows` counts the rows left in the cache, also when it fails.
    fn chain(
        &mut self,
        context: &mut DraftContext<'_>,
        tree: &mut DraftTree,
        rows: &mut usize,
    ) -> Result<()> {
        let layers = context.target.backbone.spec().layers;
        self.active.clear();
        let run = executed(self.config.share, self.config.warmup, layers);
        active_layers(run, self.config.warmup, layers, &mut self.active);
        let mut sampler = Sampler::new(*context.sampling)?;
        self.history.clear();
        self.history.extend_from_slice(context.tokens);
        let mut at = None;
        for _ in 0..context.budget.min(context.depth) {
            let last = self.history.len() - 1;
            let ahead = (self.history.len() - context.tokens.len()) as Position;
            let position = context.target.position + ahead;
            let (tokens, positions) = ([self.history[last]], [position]);
            let mut segments = [Segment::causal(&tokens, &positions, &mut *context.target.cache)];
            let mut pass = Pass::new(&mut segments);
            pass.layers = Layers::Only(&self.active);
            context.target.backbone.forward(&mut pass, &mut self.reveal)?;
            *rows += 1;
            let logits = self.reveal.logits(0, 0);
            let token = sampler.draw(logits, &self.history, context.key(tree, at))?;
            at = Some(if context.coupled {
                // The key is the target's own: acceptance compares tokens and asks for no law.
                tree.add(at, token)
            } else {
                let mut law = Vec::new();
                sampler.distribution(logits, &self.history, &mut law)?;
                let law = tree.law(law);
                tree.add_drawn(at, token, law)
            });
            self.history.push(token);
        }
        Ok(())
    }
}

impl Draft for Truncated {
    fn budget(&self) -> usize {
        self.config.budget
    }

    fn passes(&self, nodes: usize) -> usize {
        nodes
    }

    fn pass_cost(&self) -> Option<f64> {
        Some(HEAD + (1.0 - HEAD) * self.config.share)
    }

    fn draft(&mut self, context: &mut DraftContext<'_>, tree: &mut DraftTree) -> Result<()> {
        let mut rows = 0;
        let done = self.chain(context, tree, &mut rows);
        context.target.cache.rollback(rows)?;
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let good = SkipDecodeDraft::default();
        for (bad, name) in [
            (SkipDecodeDraft { budget: 33, ..good.clone() }, "budget"),
            (SkipDecodeDraft { share: 0.0, ..good.clone() }, "share"),
            (SkipDecodeDraft { share: f64::NAN, ..good.clone() }, "share"),
            (SkipDecodeDraft { warmup: 65, ..good.clone() }, "warmup"),
        ] {
            let error = bad.validate().unwrap_err();
            assert!(error.starts_with(name), "{error}");
        }
        assert_eq!(Truncated::new(good).passes(3), 3);
    }
}
