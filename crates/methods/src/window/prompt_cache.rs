//! Title: Dimple: Discrete Diffusion Multimodal Large Language Model with Parallel Decoding
//! Authors: Yu et al.
//! Year: 2025
//! Id: arXiv:2505.16990
//! Implemented: prefilling. The first pass computes everything; the rows of the prompt stay as they are
//!   from then on, and every later pass computes the answer. Where a row predicts the token after it,
//!   the prompt's last row is computed with the answer, whose first token it predicts.
//! Left out: images before the prompt; the model and its training.
//! Tag: Dimple

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Paper, defaults_of, read_as,
    resolve_as, schema_of,
};
use tessera_core::{Position, Result, Window, WindowPlan, WindowView};

use crate::window::{PLACES, REFRESHING, STALE, rows, span};

/// Settings of the prompt's cache: none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PromptCache {}

impl MethodConfig for PromptCache {
    fn validate(&self) -> std::result::Result<(), String> {
        Ok(())
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "prompt-cache",
    aliases: &["prefilling"],
    name: "Prompt cache",
    paper: Some(Paper {
        title: "Dimple: Discrete Diffusion Multimodal Large Language Model with Parallel Decoding",
        authors: "Yu et al.",
        year: 2025,
        id: "arXiv:2505.16990",
    }),
    summary: "Computes the prompt once, beside an answer of masks, and the answer in every pass.",
    kind: Kind::Policy,
    places: PLACES,
    exactness: Exactness::Lossy { what: STALE },
    needs: REFRESHING,
    claims: &[Claim {
        setting: "Dimple-7B, images, GPU: the low end of a range up to 7 x",
        metric: "time",
        value: 1.5,
        unit: "x",
        place: "abstract",
    }],
    schema: schema_of::<PromptCache>,
    defaults: defaults_of::<PromptCache>,
    neutral: None,
    read: resolve_as::<PromptCache>,
    build: |settings| {
        read_as::<PromptCache>("prompt-cache", settings)?;
        Ok(Method::Window(Box::new(FrozenPrompt)))
    },
};

/// The policy.
#[derive(Debug, Clone)]
pub struct FrozenPrompt;

impl Window for FrozenPrompt {
    fn plan(&mut self, view: &WindowView<'_>) -> Result<WindowPlan> {
        let (prompt, len) = (view.canvas.prompt(), view.canvas.len());
        if view.rows == 0 {
            return Ok(WindowPlan::Whole { len });
        }
        Ok(WindowPlan::Part { compute: rows(view, prompt..len), keys: None })
    }

    fn ahead(&self, view: &WindowView<'_>) -> Option<Vec<Position>> {
        Some(span(view, view.canvas.prompt()..view.canvas.len()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::Play;

    #[test]
    fn the_prompt_is_computed_once() {
        for (shift, first) in [(false, 3), (true, 2)] {
            let mut play = Play::new(3, 4);
            play.shift = shift;
            let window = &mut FrozenPrompt;
            assert_eq!(play.plan(window), WindowPlan::Whole { len: 7 });
            play.write(window, &[4]);
            assert_eq!(play.part(window), (first..7).collect::<Vec<_>>());
        }
    }
}
