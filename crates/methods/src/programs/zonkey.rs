//! Title: Zonkey: A Hierarchical Diffusion Language Model with Differentiable Tokenization and
//!   Probabilistic Attention
//! Authors: Alon Rozental
//! Year: 2026
//! Id: arXiv:2601.21768
//! Implemented: the settings of its model. The model itself, its training and what it makes are in
//!   `crates/learn/src/zonkey`: it shares nothing with engines of tokens but transformer layers.
//! Left out: see there.
//! Tag: ZONKEY

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::entry::{
    Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, defaults_of, read_as,
    resolve_as, schema_of,
};

/// Sizes of one level, and the step size of its training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Zonkey {
    /// Width of a character's vector; a multiple of `heads` from 8 to 1024. Theirs: 256.
    pub width: usize,
    /// Most characters of a segment, 3 to 64. Theirs: 16.
    pub longest: usize,
    /// Vectors that a segment is compressed to, 1 to 16. Theirs: 4.
    pub vectors: usize,
    /// Layers of the compressor, and of the denoiser, 1 to 32. Theirs: 10.
    pub layers: usize,
    /// Heads, 1 to 64.
    pub heads: usize,
    /// Largest step size. Above 0, at most 0.1. Theirs: 3e-4.
    pub rate: f64,
}

impl Default for Zonkey {
    fn default() -> Self {
        Self { width: 64, longest: 8, vectors: 2, layers: 2, heads: 4, rate: 2e-3 }
    }
}

impl MethodConfig for Zonkey {
    fn validate(&self) -> Result<(), String> {
        use crate::retention::within;
        within("width", self.width, 8..=1024)?;
        within("longest", self.longest, 3..=64)?;
        within("vectors", self.vectors, 1..=16)?;
        within("layers", self.layers, 1..=32)?;
        within("heads", self.heads, 1..=64)?;
        if !self.width.is_multiple_of(2 * self.heads) {
            let (width, heads) = (self.width, self.heads);
            return Err(format!("width = {width}: must be a multiple of twice heads = {heads}"));
        }
        match self.rate > 0.0 && self.rate <= 0.1 {
            true => Ok(()),
            false => Err(format!("rate = {}: must be above 0 and at most 0.1", self.rate)),
        }
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "zonkey",
    aliases: &["differentiable-tokenization"],
    name: "Zonkey",
    paper: Some(Paper {
        title: "Zonkey: A Hierarchical Diffusion Language Model with Differentiable Tokenization and \
                Probabilistic Attention",
        authors: "Rozental",
        year: 2026,
        id: "arXiv:2601.21768",
    }),
    summary: "Learns where to cut characters into segments, makes one vector of each, and segments of noise \
              (`tessera zonkey`, in builds with `--features candle`).",
    kind: Kind::Program,
    places: &[],
    exactness: Exactness::Lossy { what: "a generative model of its own" },
    needs: Needs::NONE,
    // The paper gives no figures: splits at spaces and sentences that hang together, as examples.
    claims: &[],
    schema: schema_of::<Zonkey>,
    defaults: defaults_of::<Zonkey>,
    neutral: None,
    read: resolve_as::<Zonkey>,
    // A program takes no part in a run.
    build: |settings| read_as::<Zonkey>("zonkey", settings).map(|_| Method::Plain),
};

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_core::entry::MethodCall;

    #[test]
    fn settings_are_checked_by_name() {
        for (text, name) in [
            ("zonkey:width=7", "width"),
            ("zonkey:width=60", "width"),
            ("zonkey:longest=2", "longest"),
            ("zonkey:vectors=0", "vectors"),
            ("zonkey:layers=99", "layers"),
            ("zonkey:heads=0", "heads"),
            ("zonkey:rate=0", "rate"),
        ] {
            let call = MethodCall::parse(crate::ENTRIES, text).unwrap();
            let error = ENTRY.resolve(&call.settings).unwrap_err().to_string();
            assert!(error.contains(&format!("{name} = ")), "{error}");
        }
        assert!(ENTRY.resolve(&Default::default()).is_ok());
    }
}
