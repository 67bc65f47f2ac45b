//! Title: dLLM-ASR: A Faster Diffusion LLM-based Framework for Speech Recognition
//! Authors: Tian, Mu, Ma et al.
//! Year: 2026
//! Id: arXiv:2601.17902
//! Implemented: the three decisions of its decoder, for any model that fills masks. A start from a rough
//!   answer, of which the length, the tokens, or the tokens that a causal model is sure of are taken;
//!   a threshold, and always the surest mask; and pruning: behind the leftmost written end token the
//!   canvas is cut, end token included, after the first step or after every one.
//! Deviation: the released script starts from masks, as `prior=none` does; what is done with a rough
//!   answer is a reconstruction from the abstract. Nothing is cut off that was given by a template.
//! Left out: speech, its encoder and projector; blocks are `blocks`.
//! Tag: dLLM-ASR

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Paper, Place, Role, Settings, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{
    Canvas, End, Evidence, Fill, InitContext, Origin, Result, Start, Unmask, Vocabulary,
};

use crate::retention::within;
use crate::rough;
use crate::unmask::{DENOISER, between, surest};

/// When the canvas is cut at an end token.
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

/// What is taken from a rough answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Prior {
    /// Nothing.
    #[default]
    None,
    /// Its length.
    Length,
    /// Its length and its tokens.
    Tokens,
    /// Its length and the tokens of which a causal model is sure.
    Confident,
}

/// Settings of dLLM-ASR's decoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DllmAsr {
    /// Least confidence of a fill. 0 (everything at once) to 2; above 1 only the surest is filled.
    /// Theirs: 0.9.
    pub tau: f64,
    /// When the canvas is cut at an end token: `off`, `first` or `every`.
    pub prune: Prune,
    /// What is taken from a rough answer: `none`, `length`, `tokens` or `confident`.
    pub prior: Prior,
    /// Masks behind the rough answer's length. 0 to 1048576.
    pub margin: usize,
    /// Least probability of a token that `confident` takes, by the causal model. 0 to 1.
    pub sure: f64,
}

impl Default for DllmAsr {
    fn default() -> Self {
        Self { tau: 0.9, prune: Prune::First, prior: Prior::None, margin: 4, sure: 0.9 }
    }
}

impl MethodConfig for DllmAsr {
    fn validate(&self) -> std::result::Result<(), String> {
        between("tau", self.tau, 0.0, 2.0)?;
        within("margin", self.margin, 0..=1 << 20)?;
        between("sure", self.sure, 0.0, 1.0)
    }
}

const SLUG: &str = "dllm-asr";

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: SLUG,
    aliases: &["length-adaptive-pruning"],
    name: "dLLM-ASR decoding",
    paper: Some(Paper {
        title: "dLLM-ASR: A Faster Diffusion LLM-based Framework for Speech Recognition",
        authors: "Tian, Mu, Ma et al.",
        year: 2026,
        id: "arXiv:2601.17902",
    }),
    summary: "Starts from a rough answer, fills what is sure, and cuts the canvas at its end token.",
    kind: Kind::Policy,
    places: &[
        Place { role: Role::Unmask, site: Site::Init },
        Place { role: Role::Unmask, site: Site::Quota },
        Place { role: Role::Unmask, site: Site::End },
    ],
    exactness: Exactness::Lossy { what: "tokens filled in one step do not know of one another" },
    needs: DENOISER,
    claims: &[Claim {
        setting: "speech recognition, LLaDA-8B with adapters, against an autoregressive decoder",
        metric: "speed-up",
        value: 4.44,
        unit: "x",
        place: "abstract",
    }],
    schema: schema_of::<DllmAsr>,
    defaults: defaults_of::<DllmAsr>,
    neutral: Some(|| {
        let off = ("prune".to_owned(), json!("off"));
        Settings::from_iter([("tau".to_owned(), json!(2.0)), off])
    }),
    read: resolve_as::<DllmAsr>,
    build: |settings| {
        let config = read_as::<DllmAsr>(SLUG, settings)?;
        Ok(Method::Unmask(Box::new(Transcriber { config, kept: 0, cut: 0 })))
    },
};

/// The policy.
#[derive(Debug, Clone)]
pub struct Transcriber {
    config: DllmAsr,
    kept: usize,
    cut: usize,
}

impl Unmask for Transcriber {
    fn init(&mut self, context: &InitContext<'_>) -> Result<Start> {
        if self.config.prior == Prior::None {
            return Ok(Start::default());
        }
        let mut answer = rough::answer(context, SLUG)?;
        // The canvas ends where the answer does: an end token has no place on it.
        let end = answer.iter().position(|&t| context.vocabulary.is_end(t));
        answer.truncate(end.unwrap_or(answer.len()));
        let canvas = context.canvas;
        let given =
            (canvas.prompt()..canvas.len()).rfind(|&p| canvas.origins()[p] == Origin::Given);
        let given = given.map_or(0, |p| p + 1 - canvas.prompt());
        let length = (answer.len() + self.config.margin).max(given).max(1);
        let length = length.min(canvas.len() - canvas.prompt());
        let mut prior = match self.config.prior {
            Prior::Tokens | Prior::Confident => rough::placed(context, &answer),
            _ => Vec::new(),
        };
        if self.config.prior == Prior::Confident {
            let sure = rough::certainty(context, &answer, SLUG)?;
            let start = canvas.prompt();
            prior.retain(|&(p, _)| sure[p as usize - start] >= self.config.sure);
        }
        self.kept = prior.len();
        Ok(Start { prior, length: Some(length), ..Start::default() })
    }

    fn quota(&mut self, evidence: &Evidence<'_>, fills: &[Fill]) -> Result<Option<Vec<usize>>> {
        let mut order = surest(evidence, fills);
        let sure = order.iter().take_while(|&&i| fills[i].score >= self.config.tau).count();
        order.truncate(sure.max(1));
        Ok(Some(order))
    }

    fn end(&mut self, canvas: &Canvas, step: u32, vocabulary: &dyn Vocabulary) -> End {
        let asked = match self.config.prune {
            Prune::Off => false,
            Prune::First => step == 0,
            Prune::Every => true,
        };
        let written = |at: &usize| {
            let origin = canvas.origins()[*at];
            matches!(origin, Origin::Committed { .. }) && vocabulary.is_end(canvas.tokens()[*at])
        };
        let Some(len) = (canvas.prompt()..canvas.len()).find(written).filter(|_| asked) else {
            return End::GoOn;
        };
        if canvas.origins()[len..].contains(&Origin::Given) {
            return End::GoOn;
        }
        self.cut += canvas.len() - len;
        End::Truncate { len }
    }

    fn counts(&self) -> Vec<(&'static str, f64)> {
        vec![("tokens kept", self.kept as f64), ("positions cut off", self.cut as f64)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::{Letters, Scene};

    /// The canvas of the worked example after its first step, and the positions filled: h i _ b o b END
    /// END with these confidences.
    fn first_step(seventh: f32) -> (Canvas, Vec<u32>, End) {
        let law = |(token, p): &(usize, f32)| {
            let mut law = [(1.0 - p) / 7.0; 8];
            law[*token] = *p;
            law
        };
        let sure = [(0, 0.99), (1, 0.95), (2, 0.6), (3, 0.97), (4, 0.92), (3, 0.98)];
        let laws: Vec<[f32; 8]> = sure.iter().chain(&[(7, seventh), (7, 0.99)]).map(law).collect();
        let slices: Vec<&[f32]> = laws.iter().map(|l| &l[..]).collect();
        let mut scene = Scene::new(&slices);
        let mut policy = Transcriber { config: DllmAsr::default(), kept: 0, cut: 0 };
        let fills = scene.fills();
        let mut chosen = policy.quota(&scene.evidence(), &fills).unwrap().unwrap();
        chosen.sort_unstable();
        for &i in &chosen {
            scene.canvas.fill(fills[i].position, fills[i].token, 0).unwrap();
        }
        let end = policy.end(&scene.canvas, 0, &Letters);
        // Later steps do not cut, unless every one does.
        assert_eq!(policy.end(&scene.canvas, 1, &Letters), End::GoOn);
        policy.config.prune = Prune::Every;
        assert_eq!(policy.end(&scene.canvas, 1, &Letters), end);
        policy.config.prune = Prune::Off;
        assert_eq!(policy.end(&scene.canvas, 0, &Letters), End::GoOn);
        (scene.canvas, chosen.iter().map(|&i| fills[i].position).collect(), end)
    }

    #[test]
    fn the_worked_example() {
        // Slot 1 is position 1, behind a prompt of one token.
        let (mut canvas, filled, end) = first_step(0.96);
        assert_eq!(filled, [1, 2, 4, 5, 6, 7, 8]);
        assert_eq!(end, End::Truncate { len: 7 });
        canvas.truncate(7).unwrap();
        assert_eq!((canvas.len() - canvas.prompt(), canvas.masks()), (6, 1));
        // An end token that is not sure enough stays a mask; the cut is at the next one.
        let (canvas, filled, end) = first_step(0.85);
        assert_eq!((filled.len(), end), (6, End::Truncate { len: 8 }));
        assert!(canvas.is_masked(7));
    }

    #[test]
    fn a_rough_answer_gives_its_length_and_its_tokens_but_not_its_end() {
        let start = |prior, margin, given: Option<u32>| {
            let mut canvas = Canvas::new(&[0], 9, 99);
            given.into_iter().for_each(|p| canvas.give(p, 5).unwrap());
            let tokens = [1, 2, 7, 3];
            let context = InitContext {
                canvas: &canvas,
                prior: &tokens,
                seed: 0,
                choice: 0,
                vocabulary: &Letters,
                guide: None,
            };
            let config = DllmAsr { prior, margin, ..DllmAsr::default() };
            Transcriber { config, kept: 0, cut: 0 }.init(&context)
        };
        assert_eq!(start(Prior::None, 0, None).unwrap(), Start::default());
        let length = Start { length: Some(5), ..Start::default() };
        assert_eq!(start(Prior::Length, 3, None).unwrap(), length);
        let tokens = Start { prior: vec![(1, 1), (2, 2)], length: Some(2), ..Start::default() };
        assert_eq!(start(Prior::Tokens, 0, None).unwrap(), tokens);
        // What a template gives stays on the canvas; a margin beyond it is cut.
        assert_eq!(start(Prior::Length, 0, Some(6)).unwrap().length, Some(6));
        assert_eq!(start(Prior::Length, 99, None).unwrap().length, Some(9));
        let error = start(Prior::Confident, 0, None).unwrap_err().to_string();
        assert!(error.starts_with("method `dllm-asr`: needs a model that says"), "{error}");
    }
}
