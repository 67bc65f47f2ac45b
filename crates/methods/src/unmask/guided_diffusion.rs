//! Title: Accelerating Diffusion Language Model Inference via Efficient KV Caching and Guided Diffusion
//! Authors: Hu et al.
//! Year: 2025
//! Id: arXiv:2505.21467
//! Implemented: Guided Diffusion. The model drafts a token for every mask; a causal model reads the
//!   drafts from left to right, and the longest beginning that it agrees with is written, at least one
//!   token. It writes nothing itself. Five rules of agreement: its most probable token, one of its top
//!   k, a least probability, a least share of the largest one among the top k, or chance by its
//!   probability. The drafts are read in chunks, and reading stops in the first that is refused.
//! Deviation: drafts are the tokens that the run draws, which at temperature 0 are the most probable
//!   ones, as theirs always are. What a template gives is read along and never judged.
//! Left out: FreeCache, which is a window here; guides of another vocabulary.
//! Tag: Guided Diffusion

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::dist::{argmax, softmax};
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, Place, Role, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{Error, Evidence, Fill, Position, Result, TokenId, Unmask};

use crate::retention::within;
use crate::second_model::SecondModel;
use crate::unmask::{DENOISER, between};

/// When the guide agrees with a draft.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// It is the guide's most probable token.
    #[default]
    Argmax,
    /// It is one of the guide's `top_k` most probable tokens.
    TopK,
    /// Its probability is above `tau`.
    Threshold,
    /// It is one of the `top_k`, and at least `ratio` times as probable as the first.
    Relative,
    /// By chance, with its probability.
    Bernoulli,
}

/// Settings of guided diffusion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GuidedDiffusion {
    /// When the guide agrees: `argmax`, `top-k`, `threshold`, `relative` or `bernoulli`.
    pub rule: Rule,
    /// Drafts that the guide reads in one pass. 1 to 4096; theirs: 32.
    pub chunk: usize,
    /// Tokens that `top-k` and `relative` allow. 1 to 1048576; theirs: 5.
    pub top_k: usize,
    /// Probability that `threshold` asks for. 0 to 1; theirs: 0.1.
    pub tau: f64,
    /// Share of the largest probability that `relative` asks for. 0 to 1.
    pub ratio: f64,
}

impl Default for GuidedDiffusion {
    fn default() -> Self {
        Self { rule: Rule::Argmax, chunk: 32, top_k: 5, tau: 0.1, ratio: 0.5 }
    }
}

impl MethodConfig for GuidedDiffusion {
    fn validate(&self) -> std::result::Result<(), String> {
        within("chunk", self.chunk, 1..=4096)?;
        within("top_k", self.top_k, 1..=1 << 20)?;
        between("tau", self.tau, 0.0, 1.0)?;
        between("ratio", self.ratio, 0.0, 1.0)
    }
}

const SLUG: &str = "guided-diffusion";

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: SLUG,
    aliases: &["flash-dlm"],
    name: "Guided diffusion",
    paper: Some(Paper {
        title: "Accelerating Diffusion Language Model Inference via Efficient KV Caching and Guided \
                Diffusion",
        authors: "Hu et al.",
        year: 2025,
        id: "arXiv:2505.21467",
    }),
    summary: "Fills from left to right as many masks as a small causal model agrees with.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Unmask, site: Site::Quota }],
    exactness: Exactness::Lossy { what: "the order, and tokens that do not know of one another" },
    needs: Needs { draft_model: true, ..DENOISER },
    claims: &[
        Claim {
            setting: "Dream-7B, Qwen2.5-1.5B as guide, 1024 tokens, GSM8K, with FreeCache",
            metric: "speed-up",
            value: 17.8,
            unit: "x",
            place: "main table",
        },
        Claim {
            setting: "Dream-7B, average over tasks, with FreeCache",
            metric: "speed-up",
            value: 12.14,
            unit: "x",
            place: "abstract",
        },
    ],
    schema: schema_of::<GuidedDiffusion>,
    defaults: defaults_of::<GuidedDiffusion>,
    neutral: None,
    read: resolve_as::<GuidedDiffusion>,
    build: |settings| {
        let config = read_as::<GuidedDiffusion>(SLUG, settings)?;
        Ok(Method::Unmask(Box::new(Guided {
            config,
            guide: SecondModel::default(),
            judged: 0,
            agreed: 0,
        })))
    },
};

/// The policy.
#[derive(Debug)]
pub struct Guided {
    config: GuidedDiffusion,
    guide: SecondModel,
    judged: usize,
    agreed: usize,
}

/// A place of the text that the guide reads: a drafted mask, or what stands there.
#[derive(Debug, Clone, Copy)]
struct Item {
    token: TokenId,
    /// Which fill it is; none for what stands.
    fill: Option<usize>,
    position: Position,
}

impl GuidedDiffusion {
    /// Whether a guide with these logits agrees with `token`.
    fn agrees(&self, logits: &[f32], token: TokenId, uniform: f64) -> Result<bool> {
        let Some(&own) = logits.get(token as usize) else { return Ok(false) };
        let above = logits.iter().zip(0..).filter(|&(&l, id)| l > own || (l == own && id < token));
        let rank = above.count();
        Ok(match self.rule {
            Rule::Argmax => rank == 0,
            Rule::TopK => rank < self.top_k,
            Rule::Threshold | Rule::Relative | Rule::Bernoulli => {
                let mut law = vec![0.0; logits.len()];
                softmax(logits, &mut law)?;
                let p = f64::from(law[token as usize]);
                match self.rule {
                    Rule::Threshold => p > self.tau,
                    Rule::Bernoulli => uniform < p,
                    _ => {
                        let (best, _) = argmax(logits)?;
                        rank < self.top_k && p >= self.ratio * f64::from(law[best as usize])
                    }
                }
            }
        })
    }
}

impl Guided {
    /// How many of `items`, from the first on, the guide agrees with.
    fn agreement(&mut self, evidence: &Evidence<'_>, items: &[Item]) -> Result<usize> {
        let fail = |what: String| Error::Method { method: SLUG.to_owned(), what };
        let guide = evidence.guide.ok_or_else(|| {
            fail("needs a causal model with the same vocabulary (--draft-model)".to_owned())
        })?;
        let first = items[0].position as usize;
        if !self.guide.follow(guide, &evidence.canvas.tokens()[..first])? {
            let most = guide.spec().context;
            return Err(fail(format!(
                "the guide reads at most {most} tokens of its own vocabulary"
            )));
        }
        let vocab = evidence.vocabulary.len();
        let deepest = self.guide.deepest(guide) as usize;
        let config = self.config.clone();
        let judge = |item: &Item, logits: &[f32]| {
            let uniform = evidence.key(item.position, 0).uniform(0);
            Ok::<bool, Error>(item.fill.is_none() || config.agrees(logits, item.token, uniform)?)
        };
        self.judged += 1;
        if !judge(&items[0], self.guide.logits(0, vocab))? {
            return Ok(0);
        }
        let (mut fed, mut agreed) = (0, 1);
        while agreed < items.len() && fed < deepest {
            // Reading the last item would judge nothing.
            let upto = (fed + self.config.chunk).min(items.len() - 1).min(deepest);
            let twig = |i: usize| (i.checked_sub(1).map(|up| up as u32), items[i].token);
            let chain: Vec<(Option<u32>, TokenId)> = (fed..upto).map(twig).collect();
            self.guide.grow(guide, &chain)?;
            for row in 0..chain.len() {
                let item = &items[fed + row + 1];
                self.judged += usize::from(item.fill.is_some());
                if !judge(item, self.guide.logits(row, vocab))? {
                    return Ok(agreed);
                }
                agreed += 1;
            }
            fed = upto;
        }
        Ok(agreed)
    }
}

impl Unmask for Guided {
    fn quota(&mut self, evidence: &Evidence<'_>, fills: &[Fill]) -> Result<Option<Vec<usize>>> {
        let open = fills.iter().filter(|f| evidence.is_open(f.position));
        let Some(first) = open.map(|f| f.position).min() else { return Ok(None) };
        let mut items = Vec::new();
        for position in first..evidence.region.end as Position {
            let standing =
                Item { token: evidence.canvas.tokens()[position as usize], fill: None, position };
            items.push(match evidence.canvas.is_masked(position) {
                false => standing,
                true => match fills.iter().position(|f| f.position == position) {
                    Some(i) => Item { token: fills[i].token, fill: Some(i), ..standing },
                    // A window does not show it: the beginning ends here.
                    None => break,
                },
            });
        }
        let agreed = self.agreement(evidence, &items)?.max(1);
        let chosen: Vec<usize> = items[..agreed].iter().filter_map(|item| item.fill).collect();
        self.agreed += chosen.len();
        Ok(Some(chosen))
    }

    fn counts(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("drafts that the guide judged", self.judged as f64),
            ("tokens written", self.agreed as f64),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::Scene;
    use tessera_testkit::Scripted;

    /// A policy's choice where the guide's most probable tokens after positions 0 to 3 are `says`.
    fn chosen(says: [u32; 4], given: Option<(u32, u32)>) -> Vec<usize> {
        let one = |t: usize| {
            let mut law = [0.0f32; 5];
            law[t] = 1.0;
            law
        };
        let laws = [one(0), one(1), one(2), one(3)];
        let mut scene = Scene::new(&laws.each_ref().map(|l| &l[..]));
        if let Some((position, token)) = given {
            scene.canvas.give(position, token).unwrap();
            let left: Vec<&[f32]> =
                (1..5u32).filter(|&p| p != position).map(|p| &laws[p as usize - 1][..]).collect();
            scene.think(&left);
        }
        let guide = Scripted::new(5, 64, move |seen, logits| {
            let at = seen.last().map_or(0, |&(p, _)| p as usize);
            logits[says[at] as usize] = 9.0;
        });
        let mut results = Vec::new();
        for chunk in [1, 2, 32] {
            let config = GuidedDiffusion { chunk, ..GuidedDiffusion::default() };
            let mut policy = Guided { config, guide: SecondModel::default(), judged: 0, agreed: 0 };
            let evidence = Evidence { guide: Some(&guide), ..scene.evidence() };
            results.push(policy.quota(&evidence, &scene.fills()).unwrap().unwrap());
        }
        assert!(results.windows(2).all(|w| w[0] == w[1]), "{results:?}");
        results.pop().unwrap()
    }

    #[test]
    fn the_worked_example() {
        // Drafts 0 1 2 3. The guide's fourth row agrees again, after its third did not.
        assert_eq!(chosen([0, 1, 4, 3], None), [0, 1]);
        // The first draft is refused and written all the same: the model's own token.
        assert_eq!(chosen([4, 1, 2, 3], None), [0]);
        assert_eq!(chosen([0, 1, 2, 3], None), [0, 1, 2, 3]);
        // What is given is read, not judged: 4 stands at position 2, and the guide says otherwise.
        assert_eq!(chosen([0, 1, 2, 4], Some((2, 4))), [0, 1]);
    }

    #[test]
    fn rules_by_hand() {
        // Probabilities .5, .3, .15, .05.
        let logits: Vec<f32> = [0.5f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
        let agrees = |rule, token, uniform| {
            let config = GuidedDiffusion { rule, top_k: 3, ..GuidedDiffusion::default() };
            config.agrees(&logits, token, uniform).unwrap()
        };
        let all = |rule| (0..4).filter(|&t| agrees(rule, t, 0.2)).collect::<Vec<_>>();
        assert_eq!(all(Rule::Argmax), [0]);
        assert_eq!(all(Rule::TopK), [0, 1, 2]);
        assert_eq!(all(Rule::Threshold), [0, 1, 2]);
        assert_eq!(all(Rule::Relative), [0, 1]);
        assert_eq!(all(Rule::Bernoulli), [0, 1]);
        assert!(!agrees(Rule::TopK, 9, 0.0));
    }
}
