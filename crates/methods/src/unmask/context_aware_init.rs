//! Title: Context-Aware Initialization for Reducing Generative Path Length in Diffusion Language Models
//! Authors: Miao, Huang, Han, Jiang
//! Year: 2025
//! Id: arXiv:2512.19004
//! Implemented: a start from a rough answer, in both forms. `tokens` writes those of its tokens that
//!   chance keeps; `embeddings` leaves masks and mixes the tokens' embeddings into the first pass.
//!   Doubt: after a step, tokens are masked again with probability 1 - confidence + bias, where the bias
//!   falls from step to step of a block until nothing is.
//! Deviation: the rough answer's own tokens can be doubted too (`scope`); the code doubts only what a
//!   step has written. The confidence of such a token is looked up with that token alone masked,
//!   because what a model says of a token that it sees means nothing.
//! Left out: the host decoder, which is `threshold` with `blocks` here.
//! Tag: CAI

use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::dist::Key;
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, Place, Role, Settings,
    Site, defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{
    Commit, Evidence, Fill, Hint, InitContext, Look, Origin, Position, Result, Start, Unmask,
};

use crate::rough;
use crate::unmask::{DENOISER, between};

/// How the rough answer enters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// As text.
    #[default]
    Tokens,
    /// As part of the masks' embeddings, in the first pass.
    Embeddings,
}

/// Which tokens are doubted after a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// None.
    #[default]
    None,
    /// Those that it wrote.
    New,
    /// Those of the rough answer that stand in the region.
    Prior,
    /// Both.
    Both,
}

/// How the bias falls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// `bias - slope i`.
    #[default]
    Linear,
    /// `(bias + 2) exp(i ln 0.4 / 40) - 2`: from the bias to about -1 in 40 steps.
    Exponential,
}

/// Settings of context-aware initialisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ContextAwareInit {
    /// How the rough answer enters: `tokens` or `embeddings`.
    pub form: Form,
    /// Probability that a token of the rough answer is dropped. 0 (all stay) to 1 (the plain start).
    /// Theirs: 0.5.
    pub rho: f64,
    /// The mask's share of a mixed embedding. 0 (the token itself) to 1 (the mask itself). Theirs: 0.6.
    pub alpha: f64,
    /// Which tokens are doubted: `none`, `new`, `prior` or `both`.
    pub scope: Scope,
    /// Added to the probability of doubt in a block's first step. -2 (no doubt) to 1. Theirs: 0.5.
    pub bias: f64,
    /// How much the bias falls a step, under `linear`. 0.0375 (theirs) to 3.
    pub slope: f64,
    /// How the bias falls: `linear` or `exponential`.
    pub schedule: Schedule,
}

impl Default for ContextAwareInit {
    fn default() -> Self {
        Self {
            form: Form::Tokens,
            rho: 0.5,
            alpha: 0.6,
            scope: Scope::None,
            bias: 0.5,
            slope: 0.0375,
            schedule: Schedule::Linear,
        }
    }
}

impl MethodConfig for ContextAwareInit {
    fn validate(&self) -> std::result::Result<(), String> {
        between("rho", self.rho, 0.0, 1.0)?;
        between("alpha", self.alpha, 0.0, 1.0)?;
        between("bias", self.bias, -2.0, 1.0)?;
        between("slope", self.slope, 0.0375, 3.0)
    }
}

impl ContextAwareInit {
    /// The bias in step `i` of a block.
    pub fn bias(&self, i: u32) -> f64 {
        let i = f64::from(i);
        match self.schedule {
            Schedule::Linear => self.bias - self.slope * i,
            Schedule::Exponential => (self.bias + 2.0) * (i * 0.4f64.ln() / 40.0).exp() - 2.0,
        }
    }
}

const SLUG: &str = "context-aware-init";

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: SLUG,
    aliases: &["context-aware-initialization", "warm-start"],
    name: "Context-aware initialisation",
    paper: Some(Paper {
        title: "Context-Aware Initialization for Reducing Generative Path Length in Diffusion \
                Language Models",
        authors: "Miao, Huang, Han, Jiang",
        year: 2025,
        id: "arXiv:2512.19004",
    }),
    summary: "Starts from a rough answer instead of from masks only, and may doubt it again.",
    kind: Kind::Policy,
    places: &[
        Place { role: Role::Unmask, site: Site::Init },
        Place { role: Role::Unmask, site: Site::Commit },
    ],
    exactness: Exactness::Lossy { what: "the text follows the rough answer" },
    needs: Needs { looks: true, ..DENOISER },
    claims: &[Claim {
        setting: "LLaDA-8B, GSM8K, threshold decoding; accuracy falls",
        metric: "fewer passes",
        value: 35.0,
        unit: "%",
        place: "abstract",
    }],
    schema: schema_of::<ContextAwareInit>,
    defaults: defaults_of::<ContextAwareInit>,
    neutral: Some(|| Settings::from_iter([("rho".to_owned(), json!(1.0))])),
    read: resolve_as::<ContextAwareInit>,
    build: |settings| {
        let config = read_as::<ContextAwareInit>(SLUG, settings)?;
        Ok(Method::Unmask(Box::new(WarmStart::new(config))))
    },
};

/// The policy.
#[derive(Debug, Clone)]
pub struct WarmStart {
    config: ContextAwareInit,
    /// The region of the last step, and how many steps it has had.
    block: Option<(Range<usize>, u32)>,
    kept: usize,
    doubted: usize,
}

impl WarmStart {
    fn new(config: ContextAwareInit) -> Self {
        Self { config, block: None, kept: 0, doubted: 0 }
    }

    /// Tokens whose confidence is to be judged: those just written, and those of the rough answer.
    fn judged(
        &self,
        evidence: &Evidence<'_>,
        fills: &[Fill],
        look: &mut dyn Look,
    ) -> Result<Vec<(Position, f64)>> {
        let mut judged = Vec::new();
        if matches!(self.config.scope, Scope::New | Scope::Both) {
            judged.extend(fills.iter().map(|f| (f.position, f64::from(f.probability))));
        }
        if matches!(self.config.scope, Scope::Prior | Scope::Both) {
            let mut canvas = evidence.canvas.clone();
            for fill in fills {
                canvas.fill(fill.position, fill.token, evidence.step)?;
            }
            let prior = |p: &usize| canvas.origins()[*p] == Origin::Prior;
            let places: Vec<usize> = evidence.region.clone().filter(prior).collect();
            let without = |&p: &usize| {
                let mut one = canvas.clone();
                one.remask(p as Position)?;
                Ok(one)
            };
            let canvases = places.iter().map(without).collect::<Result<Vec<_>>>()?;
            let seen = match canvases.is_empty() {
                true => Vec::new(),
                false => look.look(&canvases)?,
            };
            for (place, prediction) in places.into_iter().zip(seen) {
                let law = prediction.find(place as Position).map(|i| prediction.law(i));
                let token = canvas.tokens()[place] as usize;
                let probability = law.and_then(|l| l.get(token)).map_or(0.0, |&p| f64::from(p));
                judged.push((place as Position, probability));
            }
        }
        Ok(judged)
    }
}

/// Whether a token of this confidence is masked again: with probability 1 - confidence + bias.
fn doubts(key: Key, confidence: f64, bias: f64) -> bool {
    key.uniform(0) + bias > confidence
}

impl Unmask for WarmStart {
    fn init(&mut self, context: &InitContext<'_>) -> Result<Start> {
        let config = &self.config;
        let (as_text, share) = (config.form == Form::Tokens, 1.0 - config.alpha);
        if config.rho >= 1.0 || (!as_text && share <= 0.0) {
            // Nothing would be kept, so nothing has to be known.
            return Ok(Start::default());
        }
        let mut kept = rough::placed(context, &rough::answer(context, SLUG)?);
        kept.retain(|&(p, _)| context.key(p).uniform(0) >= config.rho);
        self.kept = kept.len();
        let hint = |(position, token)| Hint { position, token, share: share as f32 };
        Ok(match as_text {
            true => Start { prior: kept, ..Start::default() },
            false => Start { hints: kept.into_iter().map(hint).collect(), ..Start::default() },
        })
    }

    fn commit(
        &mut self,
        evidence: &Evidence<'_>,
        fills: &[Fill],
        chosen: &[usize],
        look: &mut dyn Look,
    ) -> Result<Option<Commit>> {
        let step = match &self.block {
            Some((region, steps)) if region == evidence.region => steps + 1,
            _ => 0,
        };
        self.block = Some((evidence.region.clone(), step));
        let bias = self.config.bias(step);
        if self.config.scope == Scope::None || bias <= -1.0 {
            return Ok(None);
        }
        let fills: Vec<Fill> = chosen.iter().map(|&i| fills[i]).collect();
        let mut remask = self.judged(evidence, &fills, look)?;
        remask.retain(|&(p, confidence)| doubts(evidence.key(p, 0), confidence, bias));
        self.doubted += remask.len();
        let remask = remask.into_iter().map(|(p, _)| p).collect();
        Ok(Some(Commit { fills, remask, next: None }))
    }

    fn remasks(&self) -> bool {
        self.config.scope != Scope::None
    }

    fn counts(&self) -> Vec<(&'static str, f64)> {
        vec![("tokens kept", self.kept as f64), ("tokens doubted", self.doubted as f64)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::{Letters, Scene};
    use tessera_core::{Canvas, Prediction};

    #[test]
    fn the_bias_falls_from_a_half_to_less_than_minus_one() {
        let config = ContextAwareInit::default();
        assert_eq!(config.bias(0), 0.5);
        assert!(
            (config.bias(40) + 1.0).abs() < 1e-12 && config.bias(13) > 0.0 && config.bias(14) < 0.0
        );
        let config = ContextAwareInit { schedule: Schedule::Exponential, ..config };
        assert_eq!(config.bias(0), 0.5);
        assert!((config.bias(40) + 1.0).abs() < 1e-12);
    }

    #[test]
    fn doubt_is_as_frequent_as_it_says() {
        for (confidence, bias) in [(0.9, 0.5), (0.9, 0.0), (0.3, -0.4), (0.2, 0.5), (0.9, -0.95)] {
            let expected = f64::clamp(1.0 - confidence + bias, 0.0, 1.0);
            let draws = 20_000;
            let found =
                (0..draws).filter(|&s| doubts(Key::new(s, 0, 3), confidence, bias)).count() as f64;
            // Five standard errors of a binomial.
            let error = 5.0 * (draws as f64 * expected * (1.0 - expected)).sqrt();
            assert!((found - draws as f64 * expected).abs() <= error, "{confidence} {bias}");
        }
    }

    fn start(config: ContextAwareInit, prior: &[u32], seed: u64) -> Start {
        let mut canvas = Canvas::new(&[0], 4, 99);
        canvas.give(2, 5).unwrap();
        let context = InitContext {
            canvas: &canvas,
            prior,
            seed,
            choice: 0,
            vocabulary: &Letters,
            guide: None,
        };
        WarmStart::new(config).init(&context).unwrap()
    }

    #[test]
    fn tokens_are_dropped_by_chance_and_kept_off_what_is_given() {
        let all = ContextAwareInit { rho: 0.0, ..ContextAwareInit::default() };
        let made = start(all.clone(), &[1, 2, 3, 4, 5, 6], 0);
        assert_eq!(made, Start { prior: vec![(1, 1), (3, 3), (4, 4)], ..Start::default() });
        assert_eq!(start(ContextAwareInit { rho: 1.0, ..all.clone() }, &[1], 0), Start::default());
        let mixed = ContextAwareInit { form: Form::Embeddings, alpha: 0.75, ..all.clone() };
        let hints = start(mixed.clone(), &[1, 2], 0).hints;
        assert_eq!(hints, [Hint { position: 1, token: 1, share: 0.25 }]);
        assert_eq!(start(ContextAwareInit { alpha: 1.0, ..mixed }, &[1], 0), Start::default());
        let half = ContextAwareInit { rho: 0.5, ..all };
        let kept: usize =
            (0..2000).map(|s| start(half.clone(), &[1, 2, 3, 4], s).prior.len()).sum();
        // 6000 tokens, half of them: within five standard errors.
        assert!((2806..=3194).contains(&kept), "{kept}");
    }

    /// Finds every masked token as probable as its law says.
    struct Looks(usize);

    impl Look for Looks {
        fn look(&mut self, canvases: &[Canvas]) -> Result<Vec<Prediction>> {
            self.0 += canvases.len();
            let one = |canvas: &Canvas| {
                let positions: Vec<u32> = canvas.masked().collect();
                let probabilities = [1.0, 0.0].repeat(positions.len());
                Prediction { positions, vocab: 2, logits: Vec::new(), probabilities }
            };
            Ok(canvases.iter().map(one).collect())
        }

        fn fills(&mut self, _: &Canvas, _: &Prediction) -> Result<Vec<Fill>> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn the_scope_says_who_is_doubted_and_blocks_count_their_own_steps() {
        let mut scene = Scene::new(&[&[0.0, 1.0], &[1.0, 0.0], &[1.0, 0.0]]);
        scene.canvas.guess(1, 1).unwrap();
        scene.canvas.guess(2, 0).unwrap();
        scene.think(&[&[1.0, 0.0]]);
        let made = |scope, policy: Option<&mut WarmStart>| {
            // With a bias of 0 what is certain stays and what is impossible goes.
            let config = ContextAwareInit { scope, bias: 0.0, ..ContextAwareInit::default() };
            let (mut fresh, mut looks) = (WarmStart::new(config), Looks(0));
            let policy = policy.unwrap_or(&mut fresh);
            let made = policy.commit(&scene.evidence(), &scene.fills(), &[0], &mut looks).unwrap();
            (made.map(|c| c.remask), looks.0)
        };
        assert_eq!(made(Scope::None, None), (None, 0));
        assert_eq!(made(Scope::New, None), (Some(vec![]), 0));
        // Token 1 at position 1 is impossible to the model, token 0 at position 2 certain.
        assert_eq!(made(Scope::Prior, None), (Some(vec![1]), 2));
        assert_eq!(made(Scope::Both, None), (Some(vec![1]), 2));
        let config =
            ContextAwareInit { scope: Scope::New, bias: 1.0, ..ContextAwareInit::default() };
        let mut policy = WarmStart::new(config);
        assert_eq!(made(Scope::New, Some(&mut policy)), (Some(vec![3]), 0));
        assert_eq!(policy.block, Some((1..4, 0)));
        made(Scope::New, Some(&mut policy));
        assert_eq!(policy.block, Some((1..4, 1)));
        policy.block = Some((0..1, 7));
        made(Scope::New, Some(&mut policy));
        assert_eq!(policy.block, Some((1..4, 0)));
        // From a bias of -1 on nothing is doubted.
        policy.block = Some((1..4, 60));
        assert_eq!(made(Scope::New, Some(&mut policy)), (None, 0));
    }
}
