//! Title: Fast Inference from Transformers via Speculative Decoding
//! Authors: Leviathan, Kalman, Matias
//! Year: 2023
//! Id: arXiv:2211.17192
//! Implemented: a smaller model with the same vocabulary guesses a chain, one pass per guess. Under
//!   an acceptance by ratio each guess is drawn from the draft model under the request's own
//!   sampling settings, with numbers of its own; under one that draws with the position's key it is
//!   what the draft model draws with that key, so that alike models guess alike.
//! Left out: nothing of the method; acceptance is another policy's.
//! Tag: speculative

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::dist::{Sampler, argmax, log_sum_exp, scalar};
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, Place, Role, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{Draft, DraftContext, DraftTree, Error, Result, TokenId};

use crate::second_model::SecondModel;

/// Settings of the draft model's chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DraftModel {
    /// Most guesses of a step. 1 to 64; the paper takes 3 to 10, by the two models' costs.
    pub budget: usize,
    /// The chain ends before a guess at which the draft model's most probable token has less than
    /// this probability, whatever the sampling settings. 0 (the paper: never) to 1.
    pub threshold: f64,
}

impl Default for DraftModel {
    fn default() -> Self {
        Self { budget: 5, threshold: 0.0 }
    }
}

impl MethodConfig for DraftModel {
    fn validate(&self) -> std::result::Result<(), String> {
        if !(1..=64).contains(&self.budget) {
            return Err(format!("budget = {}: must be 1 to 64", self.budget));
        }
        if !(0.0..=1.0).contains(&self.threshold) {
            return Err(format!("threshold = {}: must be 0 to 1", self.threshold));
        }
        Ok(())
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "draft-model",
    aliases: &["speculative", "speculative-decoding"],
    name: "Draft model",
    paper: Some(Paper {
        title: "Fast Inference from Transformers via Speculative Decoding",
        authors: "Leviathan, Kalman, Matias",
        year: 2023,
        id: "arXiv:2211.17192",
    }),
    summary: "A smaller model with the same vocabulary guesses a chain of tokens.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Draft, site: Site::Whole }],
    exactness: Exactness::BitExact,
    needs: Needs { draft_model: true, ..Needs::NONE },
    claims: &[Claim {
        setting: "T5-XXL with smaller T5 models against the standard T5X implementation",
        metric: "wall-clock speed over the plain run",
        value: 2.0,
        unit: "x",
        place: "abstract (2x to 3x)",
    }],
    schema: schema_of::<DraftModel>,
    defaults: defaults_of::<DraftModel>,
    neutral: None,
    read: resolve_as::<DraftModel>,
    build: |settings| {
        let config = read_as::<DraftModel>("draft-model", settings)?;
        Ok(Method::Draft(Box::new(Chain::new(config))))
    },
};

/// The drafter.
#[derive(Debug)]
pub struct Chain {
    config: DraftModel,
    second: SecondModel,
    history: Vec<TokenId>,
}

impl Chain {
    /// With nothing seen yet.
    pub fn new(config: DraftModel) -> Self {
        Self { config, second: SecondModel::default(), history: Vec::new() }
    }
}

impl Draft for Chain {
    fn budget(&self) -> usize {
        self.config.budget
    }

    fn unread(&self, tokens: &[TokenId]) -> usize {
        self.second.unread(tokens)
    }

    fn passes(&self, nodes: usize) -> usize {
        nodes
    }

    fn draft(&mut self, context: &mut DraftContext<'_>, tree: &mut DraftTree) -> Result<()> {
        let model = context.draft.ok_or_else(|| Error::Method {
            method: ENTRY.slug.to_owned(),
            what: "needs a draft model, and the session has none".to_owned(),
        })?;
        if !self.second.follow(model, context.tokens)? {
            return Ok(());
        }
        let mut sampler = Sampler::new(*context.sampling)?;
        self.history.clear();
        self.history.extend_from_slice(context.tokens);
        let mut at = None;
        for i in 0..context.budget.min(context.depth) {
            if let Some(above) = at {
                if tree.depth(above) > self.second.deepest(model) {
                    break;
                }
                let parent = (i > 1).then(|| i as u32 - 2);
                self.second.grow(model, &[(parent, tree.token(above))])?;
            }
            let logits = self.second.logits(0, context.vocab());
            if self.config.threshold > 0.0 {
                let top = scalar::exp(f64::from(argmax(logits)?.1) - log_sum_exp(logits)?);
                if top < self.config.threshold {
                    break;
                }
            }
            let key = context.key(tree, at);
            let token = sampler.draw(logits, &self.history, key)?;
            let node = if context.coupled || context.sampling.temperature == 0.0 {
                // No ratio is taken, or the law is one token: no distribution has to be kept.
                tree.add(at, token)
            } else {
                let mut law = Vec::new();
                sampler.distribution(logits, &self.history, &mut law)?;
                let law = tree.law(law);
                tree.add_drawn(at, token, law)
            };
            self.history.push(token);
            at = Some(node);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use tessera_core::Control;
    use tessera_core::dist::Sampling;
    use tessera_core::entry::MethodCall;
    use tessera_engine::{Model, Outcome, Recipe, Request, generate};
    use tessera_testkit::{Scripted, Words};

    fn run(toy: &Scripted, draft: &Scripted, method: &str, sampling: Sampling) -> Outcome {
        let words = Words::bytes();
        let methods = method.split_whitespace();
        let calls = methods.map(|m| MethodCall::parse(crate::ENTRIES, m).unwrap());
        let mut request = Request::new(vec![5, 6, 7, 8]);
        request.recipe = Recipe::resolve(crate::ENTRIES, &calls.collect::<Vec<_>>()).unwrap();
        request.sampling = sampling;
        request.max_tokens = Some(41);
        request.ignore_end = true;
        let model = Model { backbone: toy, vocabulary: &words, draft: Some(draft), filling: None };
        let never = AtomicBool::new(false);
        generate(model, &request, &mut |_| Control::Continue, &never).unwrap()
    }

    #[test]
    fn a_draft_equal_to_the_target_is_always_right_and_costs_one_pass_a_guess() {
        for sampling in [Sampling::greedy(), Sampling::neutral(), Sampling::default()] {
            for method in ["draft-model:budget=4", "draft-model:budget=4 residual"] {
                let toy = Scripted::hashed(258, 256, 11, 6.0);
                let same = Scripted::hashed(258, 256, 11, 6.0);
                let outcome = run(&toy, &same, method, sampling);
                // One token of the prompt's pass, then eight steps of five.
                let stats = outcome.stats;
                assert_eq!(
                    (stats.passes, stats.drafted_tokens, stats.accepted_tokens),
                    (9, 32, 32)
                );
                // The draft computes every row once: prompt and text but the last guess and the
                // last token.
                assert_eq!((same.passes(), same.rows()), (32, 4 + 41 - 2));
            }
        }
    }

    #[test]
    fn any_draft_gives_the_plain_text_under_keyed_acceptance() {
        let toy = Scripted::hashed(258, 256, 11, 6.0);
        for seed in [11, 12] {
            let draft = Scripted::hashed(300, 256, seed, 6.0);
            for sampling in [Sampling::greedy(), Sampling::neutral(), Sampling::default()] {
                let plain = run(&toy, &draft, "none", sampling).choices;
                for method in ["draft-model", "draft-model:budget=1", "draft-model:threshold=0.02"]
                {
                    assert_eq!(run(&toy, &draft, method, sampling).choices, plain, "{method}");
                }
            }
        }
    }

    #[test]
    fn an_unsure_draft_stops_before_the_guess() {
        // Sure of the first guess after an even token, of nothing after an odd one.
        let sure = |seen: &[(u32, TokenId)], logits: &mut [f32]| {
            let last = seen.last().map_or(0, |s| s.1);
            if last.is_multiple_of(2) {
                logits[last as usize + 1] = 50.0;
            }
        };
        let toy = Scripted::new(258, 256, sure);
        let draft = Scripted::new(258, 256, sure);
        let outcome = run(&toy, &draft, "draft-model:threshold=0.5", Sampling::neutral());
        let stats = outcome.stats;
        assert_eq!(stats.drafted_tokens, stats.accepted_tokens);
        assert!(stats.drafted_tokens > 0 && stats.drafted_tokens < stats.decode_tokens);
        let always = run(&toy, &draft, "draft-model:threshold=1", Sampling::neutral());
        assert!(always.stats.drafted_tokens <= stats.drafted_tokens);
    }

    #[test]
    fn past_its_own_context_the_draft_is_silent() {
        let toy = Scripted::hashed(258, 256, 11, 6.0);
        let short = Scripted::hashed(258, 20, 11, 6.0);
        let outcome = run(&toy, &short, "draft-model:budget=6", Sampling::greedy());
        let plain = run(&toy, &short, "none", Sampling::greedy());
        assert_eq!(outcome.choices, plain.choices);
        assert!(outcome.stats.drafted_tokens >= 12, "{:?}", outcome.stats);
        assert_eq!(short.rows(), 20, "every row that fits, once");
        // A text with tokens that the draft does not know.
        let narrow = Scripted::hashed(6, 256, 11, 6.0);
        let outcome = run(&toy, &narrow, "draft-model", Sampling::greedy());
        assert_eq!((outcome.choices, narrow.passes()), (plain.choices, 0));
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        for bad in ["budget=0", "budget=65", "threshold=1.5", "threshold=-1"] {
            let call = MethodCall::parse(crate::ENTRIES, &format!("draft-model:{bad}")).unwrap();
            let error = ENTRY.resolve(&call.settings).unwrap_err().to_string();
            assert!(error.contains(&bad[..6]), "{error}");
        }
    }
}
