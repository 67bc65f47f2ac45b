//! Whether a method's texts have the plain run's distribution: short texts are enumerated with their
//! exact probabilities and counted over many seeds; a chi-square test compares the two.
//!
//! On toys (real two-layer models with random weights and a vocabulary of three tokens) every text
//! is enumerated; on a real model those that top-k 3 leaves. Seeds are fixed, so a test passes
//! always or never; the error level says how likely a correct method was to fail when they were
//! chosen, for all tests of a run together.

use std::sync::atomic::{AtomicBool, Ordering};

use tessera_core::dist::chi::{ERROR_LEVEL, goodness};
use tessera_core::dist::{Sampler, Sampling};
use tessera_core::{CacheOptions, Control, Pass, Position, Reveal, Segment, TokenId, Vocabulary};
use tessera_engine::{Model, Recipe, Request, Sequence, generate_in};
use tessera_model::cpu::{CpuBackbone, Options};
use tessera_model::toy::{self, Flavour};

use crate::error::{Error, Result};
use crate::verify::Finding;

/// Texts of one request.
const CHOICES: usize = 64;

/// Tokens of the toys' vocabulary.
const SYMBOLS: usize = 3;

/// One test.
struct Test<'a> {
    what: String,
    model: Model<'a>,
    prompt: Vec<TokenId>,
    sampling: Sampling,
    /// Tokens of a text.
    length: usize,
    /// Requests of [`CHOICES`] texts each.
    requests: u64,
}

/// Texts with their probabilities.
type Law = Vec<(Vec<TokenId>, f64)>;

/// Every text of `length` tokens that the plain run can make, with its probability.
fn law(model: Model<'_>, prompt: &[TokenId], sampling: Sampling, length: usize) -> Result<Law> {
    let mut sampler = Sampler::new(sampling)?;
    let mut texts: Law = vec![(Vec::new(), 1.0)];
    let (mut reveal, mut next) = (Reveal::new(), Vec::new());
    for _ in 0..length {
        let mut longer = Law::new();
        for (text, chance) in texts {
            let history: Vec<TokenId> = prompt.iter().chain(&text).copied().collect();
            let positions: Vec<Position> = (0..history.len() as Position).collect();
            let mut cache = model.backbone.new_cache(CacheOptions::default())?;
            let segment = Segment::causal(&history, &positions, &mut *cache);
            model.backbone.forward(&mut Pass::new(&mut [segment]), &mut reveal)?;
            sampler.distribution(reveal.logits(0, 0), &history, &mut next)?;
            longer
                .extend(next.iter().map(|&(token, p)| {
                    (text.iter().copied().chain([token]).collect(), chance * p)
                }));
        }
        texts = longer;
    }
    texts.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(texts)
}

impl Test<'_> {
    /// The probability of counts at least this far from the law, texts counted, guesses that came
    /// true among them.
    fn run(&self, recipe: &Recipe, cancel: &AtomicBool) -> Result<(f64, u64, usize)> {
        let law = law(self.model, &self.prompt, self.sampling, self.length)?;
        // One cell more than the law has, of probability 0, for texts that cannot be.
        let mut counts = vec![0u64; law.len() + 1];
        let mut sequence = Sequence::new(self.model.backbone, 256)?;
        let mut accepted = 0;
        let mut request = Request::new(self.prompt.clone());
        request.sampling = self.sampling;
        request.recipe = recipe.clone();
        request.max_tokens = Some(self.length);
        request.ignore_end = true;
        request.choices = CHOICES;
        for seed in 0..self.requests {
            request.seed = seed;
            let mut ignore = |_: tessera_core::Event<'_>| Control::Continue;
            let outcome = generate_in(self.model, &mut sequence, &request, &mut ignore, cancel)?;
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            accepted += outcome.stats.accepted_tokens;
            for text in outcome.choices {
                let at = law.binary_search_by(|(t, _)| t.cmp(&text.tokens));
                counts[at.unwrap_or(law.len())] += 1;
            }
        }
        let chances: Vec<f64> = law.iter().map(|&(_, p)| p).chain([0.0]).collect();
        Ok((goodness(&counts, &chances), counts.iter().sum(), accepted))
    }
}

/// Letters, one a token.
struct Letters(Vec<[u8; 1]>);

impl Vocabulary for Letters {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn bytes(&self, token: TokenId) -> &[u8] {
        self.0.get(token as usize).map_or(&[], |b| &b[..])
    }

    fn is_control(&self, _: TokenId) -> bool {
        false
    }

    fn is_end(&self, _: TokenId) -> bool {
        false
    }

    fn encode(&self, text: &str) -> Vec<TokenId> {
        let letter = |b: u8| self.0.iter().position(|l| l[0] == b).map(|at| at as TokenId);
        text.bytes().filter_map(letter).collect()
    }
}

fn toy(flavour: Flavour, seed: u64) -> Result<CpuBackbone> {
    let mut blueprint = toy::blueprint(flavour);
    blueprint.spec.vocab = SYMBOLS;
    let weights = toy::weights(&blueprint, seed);
    let options = Options { threads: 1, ..Options::default() };
    CpuBackbone::load(blueprint, &weights, options, &|_| {})
        .map_err(|e| tessera_runtime::Error::from(e).into())
}

/// How much to count.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Requests of 64 texts on each toy.
    pub on_toys: u64,
    /// Requests of 64 texts on the model.
    pub on_model: u64,
}

impl Plan {
    /// Enough to refute a rule that is wrong by a few per cent.
    pub const FULL: Self = Self { on_toys: 320, on_model: 32 };
    /// For a first look.
    pub const QUICK: Self = Self { on_toys: 100, on_model: 8 };
}

/// Tests every recipe on two toys and on `model` after `prompts` (with their names). `progress`
/// hears how many of how many tests are done.
///
/// # Errors
/// Whatever the loop reports; [`Error::Stopped`] for a raised `cancel`.
pub fn distribution(
    model: Option<Model<'_>>,
    recipes: &[(String, Recipe)],
    prompts: &[(String, Vec<TokenId>)],
    plan: Plan,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Finding>> {
    let toys = [(Flavour::Llama, "llama"), (Flavour::Qwen, "qwen2")];
    let toys = toys.map(|(f, name)| Ok((toy(f, 1)?, toy(f, 2)?, name)));
    let toys = toys.into_iter().collect::<Result<Vec<_>>>()?;
    let letters = Letters(vec![*b"a", *b"b", *b"c"]);
    let mut tests = Vec::new();
    for (target, draft, name) in &toys {
        tests.push(Test {
            what: format!("toy {name}, all texts of 4 tokens out of {SYMBOLS}"),
            model: Model {
                backbone: target,
                vocabulary: &letters,
                draft: Some(draft),
                filling: None,
            },
            prompt: vec![0, 1, 2, 0, 1, 2, 0, 1],
            sampling: Sampling { temperature: 0.8, ..Sampling::neutral() },
            length: 4,
            requests: plan.on_toys,
        });
    }
    for (name, prompt) in prompts {
        tests.extend(model.map(|model| Test {
            what: format!("model, texts of 3 tokens under top-k 3 after \"{name}\""),
            model,
            prompt: prompt.clone(),
            sampling: Sampling { top_k: 3, ..Sampling::neutral() },
            length: 3,
            requests: plan.on_model,
        }));
    }
    let total = recipes.len() * tests.len();
    let level = ERROR_LEVEL / total.max(1) as f64;
    let mut findings = Vec::new();
    for (name, recipe) in recipes {
        for test in &tests {
            progress(findings.len(), total);
            let (p, texts, accepted) = test.run(recipe, cancel)?;
            findings.push(Finding {
                recipe: name.clone(),
                what: test.what.clone(),
                holds: p > level,
                seen: format!(
                    "p = {p:.2e} over {texts} texts (refuted at {level:.1e} and below), \
                     {accepted} guesses right"
                ),
            });
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use tessera_core::entry::MethodCall;

    use super::*;
    use crate::samples::{self, TOYS};
    use crate::verify::recipes;

    fn found(slug: &str) -> Vec<Finding> {
        let call = MethodCall { id: slug.to_owned(), ..MethodCall::default() };
        let recipes = recipes(TOYS, &call, &[], &samples::offer()).unwrap();
        let never = AtomicBool::new(false);
        distribution(None, &recipes, &[], Plan::QUICK, &never, &mut |_, _| {}).unwrap()
    }

    #[test]
    fn laws_sum_to_one_and_are_the_products_of_steps() {
        let letters = Letters(vec![*b"a", *b"b", *b"c"]);
        let target = toy(Flavour::Llama, 1).unwrap();
        let model = Model { backbone: &target, vocabulary: &letters, draft: None, filling: None };
        let all = law(model, &[0, 1], Sampling::neutral(), 3).unwrap();
        assert_eq!(all.len(), 27);
        assert!((all.iter().map(|t| t.1).sum::<f64>() - 1.0).abs() < 1e-9);
        let one = law(model, &[0, 1], Sampling::neutral(), 1).unwrap();
        let after = law(model, &[0, 1, 2], Sampling::neutral(), 2).unwrap();
        let (at, then) = (one[2].1, &after[4]);
        let whole = all.iter().find(|t| t.0 == [2, then.0[0], then.0[1]]).unwrap();
        assert!((whole.1 - at * then.1).abs() < 1e-6, "{whole:?}");
    }

    #[test]
    fn the_exact_rules_pass_with_every_drafter() {
        for slug in ["residual", "keyed"] {
            let all = found(slug);
            assert_eq!(all.len(), 6, "three drafters, two toys");
            assert!(all.iter().all(|f| f.holds), "{all:#?}");
        }
    }

    #[test]
    fn a_wrong_rule_is_refuted() {
        let all = found("credulous");
        assert!(all.iter().any(|f| !f.holds), "{all:#?}");
    }
}
