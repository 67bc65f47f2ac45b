//! A step without a model, for tests of policies: laws are given, fills take the most probable token.

use std::ops::Range;

use tessera_core::dist::{Sampling, argmax};
use tessera_core::{Canvas, Evidence, Fill, Position, Prediction, TokenId, Vocabulary};

/// Eight letters; token 7 ends a text.
pub(crate) struct Letters;

impl Vocabulary for Letters {
    fn len(&self) -> usize {
        8
    }

    fn bytes(&self, token: TokenId) -> &[u8] {
        b"abcdefgh".get(token as usize..token as usize + 1).unwrap_or_default()
    }

    fn is_control(&self, token: TokenId) -> bool {
        token >= 7
    }

    fn is_end(&self, token: TokenId) -> bool {
        token == 7
    }

    fn encode(&self, text: &str) -> Vec<TokenId> {
        text.bytes().map(|b| TokenId::from(b - b'a')).collect()
    }
}

/// What a policy sees of a step.
pub(crate) struct Scene {
    pub(crate) canvas: Canvas,
    pub(crate) prediction: Prediction,
    pub(crate) region: Range<usize>,
    pub(crate) step: u32,
    pub(crate) seed: u64,
}

impl Scene {
    /// A canvas of one prompt token and as many masks (token 99) as there are laws, all of which are
    /// open.
    pub(crate) fn new(laws: &[&[f32]]) -> Self {
        let canvas = Canvas::new(&[0], laws.len(), 99);
        let mut scene = Self {
            region: 1..canvas.len(),
            canvas,
            prediction: Prediction::default(),
            step: 0,
            seed: 0,
        };
        scene.think(laws);
        scene
    }

    /// What the model thinks of the masks that are left, in order.
    pub(crate) fn think(&mut self, laws: &[&[f32]]) {
        let probabilities: Vec<f32> = laws.iter().flat_map(|law| law.iter().copied()).collect();
        self.prediction = Prediction {
            positions: self.canvas.masked().collect(),
            vocab: laws.first().map_or(0, |law| law.len()),
            logits: probabilities.iter().map(|p| p.ln()).collect(),
            probabilities,
        };
        assert_eq!(self.prediction.positions.len(), laws.len(), "one law per mask");
    }

    pub(crate) fn evidence(&self) -> Evidence<'_> {
        Evidence {
            canvas: &self.canvas,
            step: self.step,
            length: self.canvas.len() - self.canvas.prompt(),
            region: &self.region,
            prediction: &self.prediction,
            seed: self.seed,
            choice: 0,
            sampling: Sampling::greedy(),
            vocabulary: &Letters,
            guide: None,
        }
    }

    /// The most probable token for every mask.
    pub(crate) fn fills(&self) -> Vec<Fill> {
        let one = |(i, &position): (usize, &Position)| {
            let (token, probability) = argmax(self.prediction.law(i)).unwrap();
            Fill { position, token, probability, score: f64::from(probability) }
        };
        self.prediction.positions.iter().enumerate().map(one).collect()
    }
}
