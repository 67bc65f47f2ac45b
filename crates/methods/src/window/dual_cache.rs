//! Title: Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and Parallel Decoding
//! Authors: Wu et al.
//! Year: 2025
//! Id: arXiv:2505.22618
//! Implemented: the dual cache. A pass at the beginning of each block computes everything and makes the
//!   block's first fills; the passes after it compute the block in place, between a prefix and a suffix
//!   that stay as they were.
//! Deviation: a token that is written outside the block (a warm start, say) is computed again too.
//! Left out: their rules of parallel decoding (`threshold`). The blocks are those of `blocks`; without it
//!   there is one.
//! Tag: Fast-dLLM

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::entry::{
    Exactness, Kind, Method, MethodConfig, MethodEntry, defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{Position, Result, Window, WindowPlan, WindowView};

use crate::window::prefix_cache::{CLAIM, PAPER};
use crate::window::{PLACES, REFRESHING, STALE, rows, span};

/// Settings of the dual cache: none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DualCache {}

impl MethodConfig for DualCache {
    fn validate(&self) -> std::result::Result<(), String> {
        Ok(())
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "dual-cache",
    aliases: &[],
    name: "Dual cache",
    paper: Some(PAPER),
    summary: "Computes everything at the beginning of a block, then the block alone.",
    kind: Kind::Policy,
    places: PLACES,
    exactness: Exactness::Lossy { what: STALE },
    needs: REFRESHING,
    claims: &[CLAIM],
    schema: schema_of::<DualCache>,
    defaults: defaults_of::<DualCache>,
    neutral: None,
    read: resolve_as::<DualCache>,
    build: |settings| {
        read_as::<DualCache>("dual-cache", settings)?;
        Ok(Method::Window(Box::new(BlockAlone { block: None })))
    },
};

/// The policy.
#[derive(Debug, Clone)]
pub struct BlockAlone {
    /// Where the block begins that the cache was computed for.
    block: Option<usize>,
}

impl Window for BlockAlone {
    fn plan(&mut self, view: &WindowView<'_>) -> Result<WindowPlan> {
        let start = view.region.start;
        if self.block.replace(start) != Some(start) {
            return Ok(WindowPlan::Whole { len: view.canvas.len() });
        }
        Ok(WindowPlan::Part { compute: rows(view, view.region.clone()), keys: None })
    }

    fn ahead(&self, view: &WindowView<'_>) -> Option<Vec<Position>> {
        Some(span(view, view.region.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::Play;

    #[test]
    fn the_block_is_computed_in_place() {
        for (shift, before) in [(false, 0), (true, 1)] {
            let mut play = Play::new(3, 6);
            play.shift = shift;
            let window = &mut BlockAlone { block: None };
            play.region = 5..7;
            assert_eq!(play.plan(window), WindowPlan::Whole { len: 9 });
            play.write(window, &[6]);
            assert_eq!(play.part(window), (5 - before..7).collect::<Vec<_>>());
            // What was written elsewhere is computed too.
            play.write(window, &[8]);
            let mut expected: Vec<Position> = (5 - before..7).collect();
            expected.push(8);
            assert_eq!(play.part(window), expected);
            play.region = 7..9;
            assert_eq!(play.plan(window), WindowPlan::Whole { len: 9 });
        }
    }
}
