//! Title: Context-Aware Initialization for Reducing Generative Path Length in Diffusion Language Models
//! Authors: Miao et al.
//! Year: 2025
//! Id: arXiv:2512.19004
//! Implemented: a rough answer (the request's, else the most probable text of the causal model beside the
//!   denoiser) is put on the canvas, each token dropped with probability `rho` (`form=tokens`), or shows
//!   part of its embedding to the first pass only (`form=embeddings`). With `remask`, tokens are masked
//!   again after a step with probability clamp(1 - c + b, 0, 1), where c is the token's probability and
//!   b falls by `decay` a step from `bias`: those just written, those of the rough answer, or both.
//! Deviation: the constants are those of public code that does this, not of the paper's text. A token of
//!   the rough answer that stands on the canvas has no prediction, because the model is trained to
//!   predict masks only: its c is taken as one half.
//! Left out: rough answers by retrieval; the exponential bias.
//! Tag: CAI

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Paper, Place, Role, Settings, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::unmask::{Commit, Hint, InitContext, Start};
use tessera_core::{Evidence, Fill, Look, Origin, Position, Result, TokenId, Unmask};

use crate::guide::greedy;
use crate::unmask::{DENOISER, between};

/// How a rough answer is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// As tokens that stand on the canvas.
    #[default]
    Tokens,
    /// As part of the embeddings of masks, in the first pass.
    Embeddings,
}

/// Which tokens may be masked again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// None.
    #[default]
    None,
    /// Those that the step has written.
    New,
    /// Those of the rough answer.
    Prior,
    /// Both.
    Both,
}

/// Settings of the initialisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ContextAwareInit {
    /// How the rough answer is shown: `tokens` or `embeddings`.
    pub form: Form,
    /// Probability that a token of it is dropped. 0 to 1; at 1 nothing is left of it: the plain run.
    /// Public code: 0.5.
    pub rho: f64,
    /// Share of the mask in the embeddings. 0 (the token as it is) to 1 (the mask as it is). Public
    /// code: 0.6.
    pub alpha: f64,
    /// Tokens that may be masked again: `none`, `new`, `prior` or `both`.
    pub remask: Scope,
    /// Added to the probability of masking again in the first step. -1 to 1. Public code: 0.5.
    pub bias: f64,
    /// How much less it is with every step. 0.001 to 1. Public code: 0.0375.
    pub decay: f64,
}

impl Default for ContextAwareInit {
    fn default() -> Self {
        Self {
            form: Form::Tokens,
            rho: 0.5,
            alpha: 0.6,
            remask: Scope::None,
            bias: 0.5,
            decay: 0.0375,
        }
    }
}

impl MethodConfig for ContextAwareInit {
    fn validate(&self) -> std::result::Result<(), String> {
        between("rho", self.rho, 0.0, 1.0)?;
        between("alpha", self.alpha, 0.0, 1.0)?;
        between("bias", self.bias, -1.0, 1.0)?;
        between("decay", self.decay, 0.001, 1.0)
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "context-aware-init",
    aliases: &["context-aware-initialization", "warm-start"],
    name: "Context-aware initialisation",
    paper: Some(Paper {
        title: "Context-Aware Initialization for Reducing Generative Path Length in Diffusion Language \
                Models",
        authors: "Miao et al.",
        year: 2025,
        id: "arXiv:2512.19004",
    }),
    summary: "Starts from a rough answer by a cheap model instead of from masks alone.",
    kind: Kind::Policy,
    places: &[
        Place { role: Role::Unmask, site: Site::Init },
        Place { role: Role::Unmask, site: Site::Commit },
    ],
    exactness: Exactness::Lossy {
        what: "the text, which follows the rough answer, errors included",
    },
    needs: DENOISER,
    claims: &[Claim {
        setting: "LLaDA-8B-Instruct, GSM8K",
        metric: "passes over those from masks alone (35 % fewer)",
        value: 1.54,
        unit: "passes",
        place: "abstract",
    }],
    schema: schema_of::<ContextAwareInit>,
    defaults: defaults_of::<ContextAwareInit>,
    neutral: Some(|| Settings::from_iter([("rho".to_owned(), json!(1.0))])),
    read: resolve_as::<ContextAwareInit>,
    build: |settings| {
        let config = read_as::<ContextAwareInit>("context-aware-init", settings)?;
        Ok(Method::Unmask(Box::new(WarmStart { config })))
    },
};

/// The policy.
#[derive(Debug, Clone)]
pub struct WarmStart {
    config: ContextAwareInit,
}

/// The rough answer for the masks of a canvas, by place behind the prompt: the request's, else the most
/// probable text of the causal model; with the probability that it gave each token (1 for a given one).
///
/// # Errors
/// Whatever a pass reports.
pub fn rough(context: &InitContext<'_>) -> Result<Vec<(TokenId, f64)>> {
    let canvas = context.canvas;
    let room = canvas.len() - canvas.prompt();
    if !context.prior.is_empty() {
        return Ok(context.prior.iter().take(room).map(|&t| (t, 1.0)).collect());
    }
    let Some(guide) = context.guide else { return Ok(Vec::new()) };
    let prompt = &canvas.tokens()[..canvas.prompt()];
    let mask = canvas.mask();
    greedy(guide, prompt, room, &|token| token != mask)
}

impl WarmStart {
    /// The bias of step `step`.
    fn bias(&self, step: u32) -> f64 {
        self.config.bias - self.config.decay * f64::from(step)
    }
}

impl Unmask for WarmStart {
    fn init(&mut self, context: &InitContext<'_>) -> Result<Start> {
        let mut start = Start::default();
        if self.config.rho >= 1.0 {
            return Ok(start);
        }
        let first = context.canvas.prompt() as Position;
        for (place, (token, _)) in (first..).zip(rough(context)?) {
            let dropped = context.key(place).uniform(0) < self.config.rho;
            if dropped || !context.canvas.is_masked(place) || token == context.canvas.mask() {
                continue;
            }
            match self.config.form {
                Form::Tokens => start.prior.push((place, token)),
                Form::Embeddings => {
                    let share = (1.0 - self.config.alpha) as f32;
                    start.hints.push(Hint { position: place, token, share });
                }
            }
        }
        Ok(start)
    }

    fn commit(
        &mut self,
        evidence: &Evidence<'_>,
        fills: &[Fill],
        chosen: &[usize],
        _look: &mut dyn Look,
    ) -> Result<Option<Commit>> {
        let bias = self.bias(evidence.step);
        if self.config.remask == Scope::None || bias <= -1.0 {
            return Ok(None);
        }
        let written: Vec<Fill> = chosen.iter().map(|&i| fills[i]).collect();
        let falls = |position: Position, c: f64| evidence.key(position, 3).uniform(0) + bias > c;
        let mut remask = Vec::new();
        if matches!(self.config.remask, Scope::New | Scope::Both) {
            let again = |f: &&Fill| falls(f.position, f64::from(f.probability));
            remask.extend(written.iter().filter(again).map(|f| f.position));
        }
        if matches!(self.config.remask, Scope::Prior | Scope::Both) {
            // A visible token has no prediction: it is doubted as much as half a probability.
            let guessed = evidence.canvas.origins().iter().zip(0..);
            let guessed = guessed.filter(|(o, _)| **o == Origin::Prior).map(|(_, p)| p);
            remask.extend(guessed.filter(|&p: &Position| falls(p, 0.5)));
        }
        Ok(Some(Commit { fills: written, remask, next: None }))
    }

    fn remasks(&self) -> bool {
        self.config.remask != Scope::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::{Letters, Scene};
    use tessera_core::{Canvas, Prediction};

    struct Nothing;

    impl Look for Nothing {
        fn look(&mut self, _: &[Canvas]) -> Result<Vec<Prediction>> {
            Ok(Vec::new())
        }

        fn fills(&mut self, _: &Canvas, _: &Prediction) -> Result<Vec<Fill>> {
            Ok(Vec::new())
        }
    }

    fn start(config: ContextAwareInit, seed: u64) -> Start {
        let canvas = Canvas::new(&[0], 40, 99);
        let prior: Vec<u32> = (0..50).map(|i| i % 5).collect();
        let context = InitContext {
            canvas: &canvas,
            prior: &prior,
            seed,
            choice: 0,
            vocabulary: &Letters,
            guide: None,
        };
        WarmStart { config }.init(&context).unwrap()
    }

    #[test]
    fn tokens_are_dropped_with_probability_rho_and_the_rest_is_cut() {
        let all = start(ContextAwareInit { rho: 0.0, ..ContextAwareInit::default() }, 0);
        assert_eq!((all.prior.len(), all.prior[3], all.hints.len()), (40, (4, 3), 0));
        let none = start(ContextAwareInit { rho: 1.0, ..ContextAwareInit::default() }, 0);
        assert_eq!(none, Start::default());
        let kept: usize = (0..100).map(|s| start(ContextAwareInit::default(), s).prior.len()).sum();
        // 4000 coins: within 5 standard errors.
        assert!((1842..=2158).contains(&kept), "{kept}");
        let config =
            ContextAwareInit { form: Form::Embeddings, rho: 0.0, ..ContextAwareInit::default() };
        let shown = start(config, 0);
        assert!(shown.prior.is_empty() && shown.hints.iter().all(|h| h.share == 0.4));
    }

    #[test]
    fn tokens_are_masked_again_as_often_as_the_rule_says() {
        // c = .7 and b = .2: u > .5.
        let mut again = 0;
        for seed in 0..2000 {
            let mut scene = Scene::new(&[&[0.3, 0.7], &[0.4, 0.6]]);
            (scene.seed, scene.step) = (seed, 8);
            let config = ContextAwareInit { remask: Scope::New, ..ContextAwareInit::default() };
            let mut policy = WarmStart { config };
            let (evidence, fills) = (scene.evidence(), scene.fills());
            let made = policy.commit(&evidence, &fills, &[0], &mut Nothing).unwrap().unwrap();
            again += made.remask.len();
        }
        assert!((888..=1112).contains(&again), "{again}");
        let scene = Scene::new(&[&[0.3, 0.7]]);
        let config =
            ContextAwareInit { remask: Scope::Both, bias: -1.0, ..ContextAwareInit::default() };
        let (evidence, fills) = (scene.evidence(), scene.fills());
        let made = WarmStart { config }.commit(&evidence, &fills, &[0], &mut Nothing).unwrap();
        assert!(made.is_none());
    }
}
