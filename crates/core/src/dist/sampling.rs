//! The settings of a draw, their ranges and their defaults.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How the next token is chosen from the logits. [`super::sampler`] says in which order they apply.
///
/// The defaults are those that users of llama.cpp know; [`Sampling::neutral`] changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits: below 1 sharpens, above 1 flattens, 0 always takes the most probable
    /// token. At least 0; neutral 1.
    pub temperature: f32,
    /// Only the `top_k` most probable tokens take part; 0 means all (neutral).
    pub top_k: usize,
    /// Only the most probable tokens that together reach this probability take part, the one that
    /// reaches it included. Above 0, at most 1 (neutral).
    pub top_p: f32,
    /// Only tokens at least this share as probable as the most probable one take part. 0 (neutral)
    /// to 1.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in the window. 0.01 to 100;
    /// neutral 1.
    pub repeat_penalty: f32,
    /// Subtracted from the logit of every token in the window. -2 to 2; neutral 0.
    pub presence_penalty: f32,
    /// Subtracted once per occurrence in the window. -2 to 2; neutral 0.
    pub frequency_penalty: f32,
    /// How many of the last tokens, prompt included, the penalties look at. 0 turns them off.
    pub penalty_window: usize,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, ..Self::neutral() }
    }
}

impl Sampling {
    /// Draws from the model's own distribution.
    pub const fn neutral() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: 64,
        }
    }

    /// Always the most probable token.
    pub const fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::neutral() }
    }

    /// Whether any penalty is on.
    pub fn penalises(&self) -> bool {
        self.penalty_window > 0
            && (self.repeat_penalty != 1.0
                || self.presence_penalty != 0.0
                || self.frequency_penalty != 0.0)
    }

    /// Checks every setting against its range.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the first one outside it.
    pub fn validate(&self) -> Result<()> {
        let checks = [
            (
                "temperature",
                self.temperature,
                self.temperature.is_finite() && self.temperature >= 0.0,
                "a number of at least 0 (0 always takes the most probable token)",
            ),
            (
                "top-p",
                self.top_p,
                self.top_p > 0.0 && self.top_p <= 1.0,
                "above 0 and at most 1 (1 turns it off)",
            ),
            (
                "min-p",
                self.min_p,
                (0.0..=1.0).contains(&self.min_p),
                "between 0 and 1 (0 turns it off)",
            ),
            (
                "repeat-penalty",
                self.repeat_penalty,
                (0.01..=100.0).contains(&self.repeat_penalty),
                "between 0.01 and 100 (1 turns it off)",
            ),
            (
                "presence-penalty",
                self.presence_penalty,
                (-2.0..=2.0).contains(&self.presence_penalty),
                "between -2 and 2 (0 turns it off)",
            ),
            (
                "frequency-penalty",
                self.frequency_penalty,
                (-2.0..=2.0).contains(&self.frequency_penalty),
                "between -2 and 2 (0 turns it off)",
            ),
        ];
        match checks.iter().find(|(_, _, good, _)| !good) {
            Some(&(name, value, _, range)) => Err(Error::setting(name, value, range)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_values_are_refused_by_name() {
        type Set = fn(&mut Sampling, f32);
        let cases: [(&str, Set, &[f32]); 6] = [
            ("temperature", |s, v| s.temperature = v, &[-0.1, f32::NAN, f32::INFINITY]),
            ("top-p", |s, v| s.top_p = v, &[0.0, -1.0, 1.01, f32::NAN]),
            ("min-p", |s, v| s.min_p = v, &[-0.1, 1.1, f32::NAN]),
            ("repeat-penalty", |s, v| s.repeat_penalty = v, &[0.0, -1.0, f32::INFINITY, f32::NAN]),
            ("presence-penalty", |s, v| s.presence_penalty = v, &[2.1, f32::NAN]),
            ("frequency-penalty", |s, v| s.frequency_penalty = v, &[-2.1, f32::INFINITY]),
        ];
        for (name, set, values) in cases {
            for &value in values {
                let mut sampling = Sampling::default();
                set(&mut sampling, value);
                let text = sampling.validate().unwrap_err().to_string();
                assert!(text.starts_with(name) && text.contains("must be"), "{text}");
            }
        }
        for good in [Sampling::default(), Sampling::neutral(), Sampling::greedy()] {
            good.validate().unwrap();
        }
    }

    #[test]
    fn unknown_fields_are_refused_and_missing_ones_default() {
        let some: Sampling = serde_json::from_str(r#"{"top_k": 3}"#).unwrap();
        assert_eq!(some, Sampling { top_k: 3, ..Sampling::default() });
        assert!(serde_json::from_str::<Sampling>(r#"{"topk": 3}"#).is_err());
    }
}
