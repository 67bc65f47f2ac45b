//! Title: Large Language Diffusion Models
//! Authors: Nie et al.
//! Year: 2025
//! Id: arXiv:2502.09992
//! Implemented: semi-autoregressive decoding: the canvas is cut into blocks of `length` positions, and
//!   only masks of the first block that has any are filled. Later blocks stay visible as masks.
//! Left out: nothing of the decoder; training with blocks is another model (block diffusion).
//! Tag: semi-AR

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::ops::Range;
use tessera_core::entry::{
    Exactness, Kind, Method, MethodConfig, MethodEntry, Paper, Place, Role, Settings, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{Canvas, Unmask};

use crate::retention::within;
use crate::unmask::DENOISER;

/// Settings of the blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Blocks {
    /// Positions of a block. 1 (left to right) to 1048576; the paper: 32 for most tasks.
    pub length: usize,
}

impl Default for Blocks {
    fn default() -> Self {
        Self { length: 32 }
    }
}

impl MethodConfig for Blocks {
    fn validate(&self) -> Result<(), String> {
        within("length", self.length, 1..=1 << 20)
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "blocks",
    aliases: &["semi-autoregressive"],
    name: "Blocks",
    paper: Some(Paper {
        title: "Large Language Diffusion Models",
        authors: "Nie et al.",
        year: 2025,
        id: "arXiv:2502.09992",
    }),
    summary: "Fills the canvas block by block from left to right, in any order inside a block.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Unmask, site: Site::Region }],
    exactness: Exactness::Lossy { what: "the order, and so the text" },
    needs: DENOISER,
    claims: &[],
    schema: schema_of::<Blocks>,
    defaults: defaults_of::<Blocks>,
    neutral: Some(|| Settings::from_iter([("length".to_owned(), json!(1 << 20))])),
    read: resolve_as::<Blocks>,
    build: |settings| {
        let config = read_as::<Blocks>("blocks", settings)?;
        Ok(Method::Unmask(Box::new(BlockByBlock { length: config.length })))
    },
};

/// The first block of `length` positions behind the prompt that has a mask; the last one may be
/// shorter.
pub fn current(canvas: &Canvas, length: usize) -> Option<Range<usize>> {
    let first = canvas.masked().next()? as usize;
    let start = canvas.prompt() + (first - canvas.prompt()) / length * length;
    Some(start..(start + length).min(canvas.len()))
}

/// The policy.
#[derive(Debug, Clone)]
pub struct BlockByBlock {
    length: usize,
}

impl Unmask for BlockByBlock {
    fn region(&mut self, canvas: &Canvas) -> Option<Range<usize>> {
        current(canvas, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_block_with_a_mask_is_open() {
        let mut canvas = Canvas::new(&[1, 1, 1], 5, 9);
        assert_eq!(current(&canvas, 2), Some(3..5));
        canvas.fill(3, 0, 0).unwrap();
        canvas.fill(6, 0, 0).unwrap();
        assert_eq!(current(&canvas, 2), Some(3..5));
        canvas.fill(4, 0, 1).unwrap();
        assert_eq!(current(&canvas, 2), Some(5..7));
        canvas.fill(5, 0, 2).unwrap();
        assert_eq!(current(&canvas, 2), Some(7..8));
        canvas.fill(7, 0, 3).unwrap();
        assert_eq!(current(&canvas, 2), None);
    }
}
