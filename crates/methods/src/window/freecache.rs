//! Title: FlashDLM: Accelerating Diffusion Language Model Inference via Efficient KV Caching and Guided
//!   Diffusion
//! Authors: Hu et al.
//! Year: 2025
//! Id: arXiv:2505.21467
//! Implemented: FreeCache with the pointer at block ends. The first pass computes everything. Later ones
//!   compute the block and all that follows; what lies before the pointer is never computed again. The
//!   pointer moves to the end of a block when the block is full, one row less where a row predicts the
//!   token after it.
//! Deviation: `freeze=late` computes a full block once more before it is frozen. `freeze=official` freezes
//!   it as the last pass left it, in which the tokens written by that step were still masks.
//! Left out: the pointer at the last written token or at block boundaries of the written prefix; the
//!   sliding window, which hides far masks. Guided Diffusion is `guided-diffusion`.
//! Tag: FreeCache

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Paper, defaults_of, read_as,
    resolve_as, schema_of,
};
use tessera_core::{Result, Window, WindowPlan, WindowView};

use crate::window::{PLACES, STALE, joined, rows};

/// When a full block is frozen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Freeze {
    /// After its last pass, as the published code does: some of its rows are those of masks.
    Official,
    /// After one more pass, in which all of its tokens are there.
    #[default]
    Late,
}

/// Settings of FreeCache.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FreeCache {
    /// When a full block is frozen: `official` (the paper's code) or `late` (one pass later).
    pub freeze: Freeze,
}

impl MethodConfig for FreeCache {
    fn validate(&self) -> std::result::Result<(), String> {
        Ok(())
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "freecache",
    aliases: &[],
    name: "FreeCache",
    paper: Some(Paper {
        title: "FlashDLM: Accelerating Diffusion Language Model Inference via Efficient KV Caching \
                and Guided Diffusion",
        authors: "Hu et al.",
        year: 2025,
        id: "arXiv:2505.21467",
    }),
    summary: "Freezes the rows of finished blocks for good, and computes all that follows them.",
    kind: Kind::Policy,
    places: PLACES,
    exactness: Exactness::Lossy { what: STALE },
    needs: tessera_core::entry::Needs { unlooked: true, ..crate::window::REFRESHING },
    claims: &[Claim {
        setting: "Dream-7B-Instruct, GSM8K, 1024 new tokens, GPU, without guidance",
        metric: "time",
        value: 4.42,
        unit: "x",
        place: "a table, as others quote it",
    }],
    schema: schema_of::<FreeCache>,
    defaults: defaults_of::<FreeCache>,
    neutral: None,
    read: resolve_as::<FreeCache>,
    build: |settings| {
        let config = read_as::<FreeCache>("freecache", settings)?;
        Ok(Method::Window(Box::new(Pointer { freeze: config.freeze, at: 0 })))
    },
};

/// The policy.
#[derive(Debug, Clone)]
pub struct Pointer {
    freeze: Freeze,
    /// Where the block of the last pass begins.
    at: usize,
}

impl Window for Pointer {
    fn plan(&mut self, view: &WindowView<'_>) -> Result<WindowPlan> {
        let (start, len) = (view.region.start, view.canvas.len());
        let before = std::mem::replace(&mut self.at, start);
        if view.rows == 0 {
            return Ok(WindowPlan::Whole { len });
        }
        let compute = match self.freeze {
            Freeze::Late => rows(view, before.min(start)..len),
            Freeze::Official => joined(crate::window::span(view, start..len)),
        };
        Ok(WindowPlan::Part { compute, keys: None })
    }

    fn rewrites(&self) -> bool {
        self.freeze == Freeze::Late
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::Play;

    #[test]
    fn a_full_block_is_computed_once_more_unless_it_is_frozen_as_it_was() {
        for (shift, before) in [(false, 0), (true, 1)] {
            for freeze in [Freeze::Late, Freeze::Official] {
                let mut play = Play::new(3, 6);
                play.shift = shift;
                let window = &mut Pointer { freeze, at: 0 };
                play.region = 3..5;
                assert_eq!(play.plan(window), WindowPlan::Whole { len: 9 });
                play.write(window, &[3]);
                assert_eq!(play.part(window), (3 - before..9).collect::<Vec<_>>());
                play.write(window, &[4]);
                play.region = 5..7;
                let first = if freeze == Freeze::Late { 3 } else { 5 };
                assert_eq!(play.part(window), (first - before..9).collect::<Vec<_>>());
                play.write(window, &[5]);
                assert_eq!(play.part(window), (5 - before..9).collect::<Vec<_>>());
            }
        }
    }
}
