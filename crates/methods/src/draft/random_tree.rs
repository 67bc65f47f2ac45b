//! Title: random tree (the control of tree drafters)
//! Authors: none
//! Year: none
//! Id: none
//! Implemented: the tree of token recycling, node for node, filled with random tokens: of the text
//!   so far, each place alike, or of the whole vocabulary. It spends what a drafter spends and knows
//!   nothing, so what a drafter gains over it is owed to what it guesses.
//! Left out: nothing.
//! Tag: random

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::entry::{
    Exactness, Kind, Method, MethodConfig, MethodEntry, Place, Role, Settings, Site, defaults_of,
    read_as, resolve_as, schema_of,
};
use tessera_core::{Draft, DraftContext, DraftTree, Result};

use super::TREES;
use super::token_recycling::Shape;
use crate::template::{PAPER_NODES, RANKS, Template};

/// Where random tokens come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Words {
    /// Prompt and text so far, each place alike.
    #[default]
    Text,
    /// The vocabulary, each token alike.
    Vocabulary,
}

/// Settings of the random tree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RandomTree {
    /// Shape of the tree: `auto`, `paper` or `chain`, as for token recycling.
    pub template: Shape,
    /// Guesses of a step. 0 (the plain run) to 80.
    pub budget: usize,
    /// Where the tokens come from: `text` or `vocabulary`.
    pub words: Words,
}

impl Default for RandomTree {
    fn default() -> Self {
        Self { template: Shape::Auto, budget: 7, words: Words::Text }
    }
}

impl MethodConfig for RandomTree {
    fn validate(&self) -> std::result::Result<(), String> {
        match self.budget {
            0..=PAPER_NODES => Ok(()),
            budget => Err(format!("budget = {budget}: must be 0 to {PAPER_NODES}")),
        }
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "random-tree",
    aliases: &["random-draft"],
    name: "Random tree",
    paper: None,
    summary: "Guesses random tokens in a drafter's tree: the control that drafters are held against.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Draft, site: Site::Whole }],
    exactness: Exactness::BitExact,
    needs: TREES,
    claims: &[],
    schema: schema_of::<RandomTree>,
    defaults: defaults_of::<RandomTree>,
    neutral: Some(|| Settings::from_iter([("budget".to_owned(), json!(0))])),
    read: resolve_as::<RandomTree>,
    build: |settings| {
        let config = read_as::<RandomTree>("random-tree", settings)?;
        Ok(Method::Draft(Box::new(Random::new(&config))))
    },
};

/// The purpose of its numbers (`Key::purpose`).
const RANDOM: u64 = 0x7a4d;

/// Draws for one node before a token that its siblings have is given up.
const TRIES: u32 = 32;

/// The drafter.
#[derive(Debug)]
pub struct Random {
    template: Template,
    words: Words,
}

impl Random {
    /// With these settings.
    pub fn new(config: &RandomTree) -> Self {
        Self { template: config.template.template(config.budget), words: config.words }
    }
}

impl Draft for Random {
    fn budget(&self) -> usize {
        self.template.len()
    }

    fn draft(&mut self, context: &mut DraftContext<'_>, tree: &mut DraftTree) -> Result<()> {
        let vocab = context.vocab();
        let below = |unit: f64, n: usize| ((unit * n as f64) as usize).min(n - 1);
        self.template.fill(context, tree, |tree, parent, rank| {
            let key = context.key(tree, parent).purpose(RANDOM);
            let key = key.purpose(parent.map_or(0, |n| u64::from(n) + 1));
            let first = (rank % RANKS) as u32 * TRIES;
            let mut words = (first..first + TRIES).map(|i| match self.words {
                Words::Text => context.tokens[below(key.uniform(i), context.tokens.len())],
                Words::Vocabulary => below(key.uniform(i), vocab) as u32,
            });
            words.find(|&token| tree.child(parent, token).is_none())
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_shape_of_token_recycling() {
        let default = super::super::token_recycling::TokenRecycling::default();
        let random = RandomTree::default();
        assert_eq!((random.template, random.budget), (default.template, default.budget));
        let drafter = Random::new(&RandomTree { template: Shape::Paper, ..random });
        assert_eq!(drafter.budget(), 80);
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let error = RandomTree { budget: 81, ..RandomTree::default() }.validate().unwrap_err();
        assert!(error.contains("budget = 81"), "{error}");
    }
}
