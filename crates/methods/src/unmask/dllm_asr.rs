//! Title: dLLM-ASR: A Faster Diffusion LLM-based Framework for Speech Recognition
//! Authors: Tian et al.
//! Year: 2026
//! Id: arXiv:2601.17902
//! Implemented: the decoding. Prior-guided start: a rough transcript fixes the length (with a margin) and,
//!   as far as it is trusted, stands on the canvas. Token exit: everything with a probability of at least
//!   `tau` is written, and always the surest. Length-adaptive pruning: the canvas is cut at the leftmost
//!   written end token after the first step, or after every one.
//! Deviation: how a rough transcript is used is not in the released code; here tokens are kept whose
//!   own probability (by the causal model, if it wrote them) is at least `trust`.
//! Left out: the speech encoder, the adapter and its training.
//! Tag: dLLM-ASR

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Paper, Place, Role, Settings, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::unmask::{End, InitContext, Start, ranked};
use tessera_core::{Canvas, Evidence, Fill, Origin, Position, Result, Unmask, Vocabulary};

use crate::retention::within;
use crate::unmask::context_aware_init::rough;
use crate::unmask::{DENOISER, between};

/// When the canvas is cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Prune {
    /// Never.
    Off,
    /// After the first step.
    #[default]
    First,
    /// After every step.
    Every,
}

/// What is taken of a rough transcript.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Prior {
    /// Nothing.
    None,
    /// Its length.
    #[default]
    Length,
    /// All its tokens.
    Tokens,
    /// The tokens that are trusted; masks for the others.
    Confident,
}

/// Settings of the decoding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DllmAsr {
    /// Least probability of a token that is written at once. 0 to 2; above 1 one token is written a step.
    /// The paper: 0.9.
    pub tau: f64,
    /// When the canvas is cut at an end token: `off`, `first` or `every`. The paper: first.
    pub prune: Prune,
    /// What is taken of the rough transcript: `none`, `length`, `tokens` or `confident`.
    pub prior: Prior,
    /// Least probability of a trusted token. 0 to 1.
    pub trust: f64,
    /// Masks beyond the rough transcript's length. 0 to 4096.
    pub margin: usize,
}

impl Default for DllmAsr {
    fn default() -> Self {
        Self { tau: 0.9, prune: Prune::First, prior: Prior::Length, trust: 0.9, margin: 4 }
    }
}

impl MethodConfig for DllmAsr {
    fn validate(&self) -> std::result::Result<(), String> {
        between("tau", self.tau, 0.0, 2.0)?;
        between("trust", self.trust, 0.0, 1.0)?;
        within("margin", self.margin, 0..=4096)
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "dllm-asr",
    aliases: &["dllmasr"],
    name: "dLLM-ASR decoding",
    paper: Some(Paper {
        title: "dLLM-ASR: A Faster Diffusion LLM-based Framework for Speech Recognition",
        authors: "Tian et al.",
        year: 2026,
        id: "arXiv:2601.17902",
    }),
    summary: "Starts from a rough transcript, cuts the canvas to its length, lets sure tokens leave early.",
    kind: Kind::Policy,
    places: &[
        Place { role: Role::Unmask, site: Site::Init },
        Place { role: Role::Unmask, site: Site::Quota },
        Place { role: Role::Unmask, site: Site::End },
    ],
    exactness: Exactness::Lossy { what: "tokens of one step, and all behind the cut" },
    needs: DENOISER,
    claims: &[Claim {
        setting: "LLaDA-8B with a speech encoder, over autoregressive decoding, GPU",
        metric: "speed",
        value: 4.44,
        unit: "x",
        place: "abstract",
    }],
    schema: schema_of::<DllmAsr>,
    defaults: defaults_of::<DllmAsr>,
    neutral: Some(|| {
        let settings = [("tau", json!(2.0)), ("prune", json!("off")), ("prior", json!("none"))];
        settings.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Settings>()
    }),
    read: resolve_as::<DllmAsr>,
    build: |settings| {
        let config = read_as::<DllmAsr>("dllm-asr", settings)?;
        Ok(Method::Unmask(Box::new(Transcriber { config })))
    },
};

/// The policy.
#[derive(Debug, Clone)]
pub struct Transcriber {
    config: DllmAsr,
}

impl Unmask for Transcriber {
    fn init(&mut self, context: &InitContext<'_>) -> Result<Start> {
        let mut start = Start::default();
        if self.config.prior == Prior::None {
            return Ok(start);
        }
        let rough = rough(context)?;
        if rough.is_empty() {
            return Ok(start);
        }
        let ends = |&(token, _): &(u32, f64)| context.vocabulary.is_end(token);
        let text = &rough[..rough.iter().position(ends).unwrap_or(rough.len())];
        // What a template says behind the transcript must stay on the canvas.
        let canvas = context.canvas;
        let last = canvas.origins().iter().rposition(|o| *o == Origin::Given);
        let least = last.map_or(0, |at| (at + 1).saturating_sub(canvas.prompt()));
        let room = canvas.len() - canvas.prompt();
        start.length = Some((text.len() + self.config.margin).clamp(1, room).max(least));
        let first = canvas.prompt() as Position;
        let kept = |p: f64| match self.config.prior {
            Prior::Tokens => true,
            Prior::Confident => p >= self.config.trust,
            Prior::None | Prior::Length => false,
        };
        start.prior = (first..)
            .zip(text)
            .filter(|(p, (token, probability))| {
                canvas.is_masked(*p) && kept(*probability) && *token != canvas.mask()
            })
            .map(|(p, &(token, _))| (p, token))
            .collect();
        Ok(start)
    }

    fn quota(&mut self, evidence: &Evidence<'_>, fills: &[Fill]) -> Result<Option<Vec<usize>>> {
        let mut order = ranked(fills);
        order.retain(|&i| evidence.is_open(fills[i].position));
        let sure =
            order.iter().take_while(|&&i| f64::from(fills[i].probability) >= self.config.tau);
        let count = sure.count().max(1);
        order.truncate(count);
        Ok(Some(order))
    }

    fn end(&mut self, canvas: &Canvas, step: u32, vocabulary: &dyn Vocabulary) -> End {
        let due = match self.config.prune {
            Prune::Off => false,
            Prune::First => step == 0,
            Prune::Every => true,
        };
        if !due {
            return End::GoOn;
        }
        let written = canvas.origins().iter().zip(canvas.tokens()).zip(0..);
        let end = written
            .filter(|((origin, _), _)| matches!(origin, Origin::Committed { .. }))
            .find(|((_, token), _)| vocabulary.is_end(**token));
        // A template's tokens behind it stay, and so does what lies between.
        let last = canvas.origins().iter().rposition(|o| *o == Origin::Given).unwrap_or(0);
        match end {
            Some((_, at)) if at > last => End::Truncate { len: at },
            _ => End::GoOn,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::{Letters, Scene};

    fn policy(config: DllmAsr) -> Transcriber {
        Transcriber { config }
    }

    /// `_` of eight slots is unsure; the seventh and eighth are the end token, 7.
    #[test]
    fn the_canvas_is_cut_at_the_leftmost_written_end() {
        let row = |token: usize, p: f32| {
            let mut law = [(1.0 - p) / 7.0; 8];
            law[token] = p;
            law
        };
        for (end, cut, left) in [(0.96, 7, 1), (0.85, 8, 2)] {
            let rows = [
                row(1, 0.99),
                row(2, 0.95),
                row(3, 0.6),
                row(4, 0.97),
                row(5, 0.92),
                row(4, 0.98),
                row(7, end),
                row(7, 0.99),
            ];
            let laws: Vec<&[f32]> = rows.iter().map(|r| &r[..]).collect();
            let mut scene = Scene::new(&laws);
            let mut policy = policy(DllmAsr { prior: Prior::None, ..DllmAsr::default() });
            let fills = scene.fills();
            let chosen = policy.quota(&scene.evidence(), &fills).unwrap().unwrap();
            assert_eq!(chosen.len(), if end > 0.9 { 7 } else { 6 });
            for i in chosen {
                scene.canvas.fill(fills[i].position, fills[i].token, 0).unwrap();
            }
            assert_eq!(policy.end(&scene.canvas, 0, &Letters), End::Truncate { len: cut });
            assert_eq!(policy.end(&scene.canvas, 1, &Letters), End::GoOn);
            scene.canvas.truncate(cut).unwrap();
            assert_eq!(scene.canvas.masks(), left);
        }
    }

    #[test]
    fn a_rough_transcript_gives_length_or_tokens() {
        let canvas = Canvas::new(&[0], 20, 99);
        let start = |prior, given: &[u32]| {
            let context = InitContext {
                canvas: &canvas,
                prior: given,
                seed: 0,
                choice: 0,
                vocabulary: &Letters,
                guide: None,
            };
            policy(DllmAsr { prior, ..DllmAsr::default() }).init(&context).unwrap()
        };
        let length = start(Prior::Length, &[1, 2, 3, 7, 7]);
        assert_eq!((length.length, length.prior.len()), (Some(7), 0));
        let tokens = start(Prior::Tokens, &[1, 2, 3, 7, 7]);
        assert_eq!(tokens.prior, [(1, 1), (2, 2), (3, 3)]);
        assert_eq!(start(Prior::None, &[1]), Start::default());
        assert_eq!(start(Prior::Tokens, &[]), Start::default());
    }
}
