//! What is trained, on what, how long: a TOML file, so that a model is one command to make again.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files::read;
use crate::network::Shape;
use crate::objectives::Choice;
use crate::vocabulary::BYTES;
use crate::{Error, Result};

/// A recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The model's name, also that of its file.
    pub name: String,
    /// One line for the model's card.
    pub about: String,
    /// The seed of fresh weights, orders and masks.
    pub seed: u64,
    /// The texts.
    pub data: Texts,
    /// Sizes; the vocabulary's is filled in.
    pub model: Shape,
    /// The objective.
    pub objective: Choice,
    /// How long and how fast.
    pub training: Training,
}

/// The texts and their vocabulary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Texts {
    /// Corpus files, from the directory of the recipe or the one given with `--data`.
    pub files: Vec<String>,
    /// How the files are made, for the card.
    #[serde(default)]
    pub made_by: Vec<String>,
    /// Tokens, special ones included. 258 is the bytes alone.
    pub vocabulary: usize,
    /// How documents become rows.
    #[serde(default, skip_serializing_if = "Layout::is_packed")]
    pub rows: Layout,
}

/// How documents become rows of one length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// As many as fit, one after another.
    #[default]
    Packed,
    /// One a row, filled up with the end token.
    Padded,
}

impl Layout {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde asks for it")]
    fn is_packed(&self) -> bool {
        *self == Self::Packed
    }
}

/// Steps and rates.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Training {
    /// Optimiser steps. At least 1.
    pub steps: u64,
    /// Rows of a pass. At least 1.
    pub batch: usize,
    /// Passes of a step. At least 1.
    pub accumulate: usize,
    /// Largest step size. Above 0.
    pub rate: f32,
    /// Share of `rate` that the cosine ends at. 0 to 1.
    pub least: f32,
    /// Steps over which the rate rises. At most `steps`.
    pub warmup: u64,
    /// Weight decay of matrices, a share of the step size. 0 to 1.
    pub decay: f32,
    /// Decay of the mean of gradients. 0 to 1, below 1.
    pub beta1: f32,
    /// Decay of the mean of their squares. 0 to 1, below 1.
    pub beta2: f32,
    /// Largest norm of a gradient; larger ones are scaled down. Above 0.
    pub clip: f32,
    /// Decay of the running mean of the weights, which is what is kept. 0 to 1, below 1.
    pub average: f32,
    /// Steps between held-out figures. At least 1.
    pub held_out_every: u64,
    /// Rows of a held-out figure. At least 1.
    pub held_out_rows: usize,
    /// Strata of the bound's range. At least 1.
    pub strata: usize,
    /// Steps between checkpoints. At least 1.
    pub checkpoint_every: u64,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch: 8,
            accumulate: 1,
            rate: 2e-3,
            least: 0.05,
            warmup: 50,
            decay: 0.1,
            beta1: 0.9,
            beta2: 0.98,
            clip: 1.0,
            average: 0.99,
            held_out_every: 100,
            held_out_rows: 16,
            strata: 8,
            checkpoint_every: 50,
        }
    }
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// A file that cannot be read, an unknown field, a value outside its range.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read(path)?;
        let parsed: std::result::Result<Self, _> = toml::from_str(&text);
        let recipe = parsed.map_err(|e| Error::file(path, e.to_string()))?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// Checks every value against its range.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the first one outside it.
    pub fn validate(&self) -> Result<()> {
        let t = &self.training;
        let below_one = |x: f32| (0.0..1.0).contains(&x);
        let share = |x: f32| (0.0..=1.0).contains(&x);
        let positive = |x: f32| x > 0.0 && x.is_finite();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let checks: &[(&str, bool, &str)] = &[
            ("name", !self.name.is_empty() && self.name.chars().all(plain), "letters, digits, -"),
            ("data.files", !self.data.files.is_empty(), "at least one file"),
            ("training.steps", t.steps >= 1, "at least 1"),
            ("training.batch", t.batch >= 1, "at least 1"),
            ("training.accumulate", t.accumulate >= 1, "at least 1"),
            ("training.rate", positive(t.rate), "above 0"),
            ("training.least", share(t.least), "0 to 1"),
            ("training.warmup", t.warmup <= t.steps, "at most the steps"),
            ("training.decay", share(t.decay), "0 to 1"),
            ("training.beta1", below_one(t.beta1), "0 to 1, below 1"),
            ("training.beta2", below_one(t.beta2), "0 to 1, below 1"),
            ("training.clip", positive(t.clip), "above 0"),
            ("training.average", below_one(t.average), "0 to 1, below 1"),
            ("training.held_out_every", t.held_out_every >= 1, "at least 1"),
            ("training.held_out_rows", t.held_out_rows >= 1, "at least 1"),
            ("training.strata", t.strata >= 1, "at least 1"),
            ("training.checkpoint_every", t.checkpoint_every >= 1, "at least 1"),
        ];
        if let Some((name, _, range)) = checks.iter().find(|(_, good, _)| !good) {
            return Err(Error::setting(format!("{name}: must be {range}")));
        }
        self.objective.build(0)?;
        // A merge could hide the separator, and a second document of a row would have no given part.
        let alone = self.data.rows == Layout::Padded && self.data.vocabulary == BYTES;
        if self.objective.separator().is_some() && !alone {
            let what = format!(
                "objective.after: goes with data.rows = \"padded\" and data.vocabulary = {BYTES} (the bytes \
                 alone)"
            );
            return Err(Error::setting(what));
        }
        Shape { vocab: 16, ..self.model }.validate()
    }
}

impl Training {
    /// Rows of a step.
    pub fn rows(&self) -> usize {
        self.batch * self.accumulate
    }

    /// The step size of step `step`, from 0: a linear rise, then a cosine down to `least * rate`.
    pub fn rate_at(&self, step: u64) -> f32 {
        if step < self.warmup {
            return self.rate * (step + 1) as f32 / self.warmup as f32;
        }
        let span = (self.steps - self.warmup).max(1) as f64;
        let done = ((step - self.warmup) as f64 / span).min(1.0);
        let wave = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        let least = f64::from(self.least);
        (f64::from(self.rate) * (least + (1.0 - least) * wave)) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipes_here_can_be_read() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
        let mut count = 0;
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let recipe = Recipe::read(&path).unwrap();
            assert_eq!(path.file_stem().unwrap(), recipe.name.as_str());
            count += 1;
        }
        assert!(count >= 2);
    }

    #[test]
    fn a_separator_needs_rows_of_one_document_and_bytes() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
        let good = Recipe::read(&directory.join("tessera-transcriber.toml")).unwrap();
        let mut packed = good.clone();
        packed.data.rows = Layout::Packed;
        let mut merged = good;
        merged.data.vocabulary = 300;
        for bad in [packed, merged] {
            assert!(bad.validate().unwrap_err().to_string().starts_with("objective.after: goes"));
        }
    }

    #[test]
    fn rates_rise_and_fall() {
        let t = Training { steps: 100, warmup: 10, rate: 1.0, least: 0.1, ..Training::default() };
        assert!((t.rate_at(0) - 0.1).abs() < 1e-6 && (t.rate_at(9) - 1.0).abs() < 1e-6);
        assert!((t.rate_at(55) - 0.55).abs() < 1e-6 && (t.rate_at(100) - 0.1).abs() < 1e-6);
    }
}
