//! Title: Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and Parallel Decoding
//! Authors: Wu et al.
//! Year: 2025
//! Id: arXiv:2505.22618
//! Implemented: the prefix cache. A pass at the beginning of each block computes everything and makes the
//!   block's first fills; the passes after it compute the block and all that follows.
//! Left out: the dual cache, which is a method of its own here, and their rules of parallel decoding
//!   (`threshold`). The blocks are those of `blocks`; without it there is one.
//! Tag: Fast-dLLM

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Paper, defaults_of, read_as,
    resolve_as, schema_of,
};
use tessera_core::{Position, Result, Window, WindowPlan, WindowView};

use crate::window::{PLACES, REFRESHING, STALE, rows, span};

/// Settings of the prefix cache: none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PrefixCache {}

impl MethodConfig for PrefixCache {
    fn validate(&self) -> std::result::Result<(), String> {
        Ok(())
    }
}

/// The paper of both caches.
pub(crate) const PAPER: Paper = Paper {
    title: "Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and \
            Parallel Decoding",
    authors: "Wu et al.",
    year: 2025,
    id: "arXiv:2505.22618",
};

/// What the paper says of caches and parallel decoding together.
pub(crate) const CLAIM: Claim = Claim {
    setting: "LLaDA-8B, GPU, caches and parallel decoding together",
    metric: "throughput",
    value: 27.6,
    unit: "x",
    place: "abstract",
};

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "prefix-cache",
    aliases: &[],
    name: "Prefix cache",
    paper: Some(PAPER),
    summary: "Computes everything at the beginning of a block, then the block and what follows it.",
    kind: Kind::Policy,
    places: PLACES,
    exactness: Exactness::Lossy { what: STALE },
    needs: REFRESHING,
    claims: &[CLAIM],
    schema: schema_of::<PrefixCache>,
    defaults: defaults_of::<PrefixCache>,
    neutral: None,
    read: resolve_as::<PrefixCache>,
    build: |settings| {
        read_as::<PrefixCache>("prefix-cache", settings)?;
        Ok(Method::Window(Box::new(FrozenPrefix { block: None })))
    },
};

/// The policy.
#[derive(Debug, Clone)]
pub struct FrozenPrefix {
    /// Where the block begins that the cache was computed for.
    block: Option<usize>,
}

impl Window for FrozenPrefix {
    fn plan(&mut self, view: &WindowView<'_>) -> Result<WindowPlan> {
        let (start, len) = (view.region.start, view.canvas.len());
        if self.block.replace(start) != Some(start) {
            return Ok(WindowPlan::Whole { len });
        }
        Ok(WindowPlan::Part { compute: rows(view, start..len), keys: None })
    }

    fn ahead(&self, view: &WindowView<'_>) -> Option<Vec<Position>> {
        Some(span(view, view.region.start..view.canvas.len()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::Play;

    #[test]
    fn a_block_begins_with_a_whole_pass() {
        for (shift, before) in [(false, 0), (true, 1)] {
            let mut play = Play::new(3, 4);
            play.shift = shift;
            let window = &mut FrozenPrefix { block: None };
            play.region = 3..5;
            assert_eq!(play.plan(window), WindowPlan::Whole { len: 7 });
            play.write(window, &[4]);
            assert_eq!(play.part(window), (3 - before..7).collect::<Vec<_>>());
            play.write(window, &[3]);
            play.region = 5..7;
            assert_eq!(play.plan(window), WindowPlan::Whole { len: 7 });
            play.write(window, &[5]);
            assert_eq!(play.part(window), (5 - before..7).collect::<Vec<_>>());
        }
    }
}
