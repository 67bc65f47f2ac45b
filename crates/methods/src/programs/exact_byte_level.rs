//! Title: Exact Byte-Level Probabilities from Tokenized Language Models for FIM-Tasks and Model Ensembles
//! Authors: Buu Phan, Brandon Amos, Itai Gat, Marton Havasi, Matthew Muckley, Karen Ullrich
//! Year: 2024
//! Id: arXiv:2410.09303
//! Implemented: the next byte's law from the covers of a text, started anywhere, mid-token and inside
//!   a character; the exact mode with the mask of canonical sequences and the fast mode without it;
//!   ensembles of models with different vocabularies; token healing as the baseline.
//! Left out: nothing of the method. Where it differs: tokenizers that look ahead (white space takes its
//!   last character along with what follows) have sequences that begin an encoding without being
//!   one, so the mask asks "does this begin the encoding of some text", and a text may have several
//!   covers without a remainder, each with a pass of its own (the published code asserts one). The mask's
//!   law is the model's, zeroed and renormalised token by token, so that the probabilities of all next
//!   bytes and of the end sum to that of the text. A text ends only where its tokens are its own encoding.
//! Tag: BTR

pub mod complete;
pub mod covers;
pub mod ensemble;
pub mod heal;
pub mod lexicon;
#[cfg(test)]
mod tests_of_covers;
mod unfinished;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::Capabilities;
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, defaults_of, read_as,
    resolve_as, schema_of,
};

pub use covers::{ByteModel, END, SYMBOLS};
pub use ensemble::Ensemble;
pub use heal::Healing;
pub use lexicon::Lexicon;

/// Which sequences of tokens count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Those that begin the encoding of some text: the model's law, zeroed elsewhere and renormalised
    /// token by token.
    #[default]
    Exact,
    /// All, for the token that is being read; sequences that begin no encoding go no further. No mask,
    /// so several times faster, and close to exact where the model is.
    Fast,
}

impl Mode {
    /// As the settings name it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Fast => "fast",
        }
    }
}

/// The settings of `tessera complete --exact-bytes` and `tessera score --exact-bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExactByteLevel {
    /// `exact` or `fast`; the paper's own generation script takes the fast one.
    pub mode: Mode,
    /// Share of a text's probability that may be left out at each byte: covers below it get no pass of
    /// their own, and tokens that together stay below it are not looked at. 0 (leave out nothing) to
    /// 0.01. It weighs more after an improbable byte, by at most a thousandth of that byte's probability. Ours;
    /// the paper leaves out nothing.
    pub floor: f64,
}

impl Default for ExactByteLevel {
    fn default() -> Self {
        Self { mode: Mode::Exact, floor: 1e-6 }
    }
}

impl MethodConfig for ExactByteLevel {
    fn validate(&self) -> Result<(), String> {
        if (0.0..=0.01).contains(&self.floor) {
            return Ok(());
        }
        Err(format!("floor = {}: must be between 0 and 0.01", self.floor))
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "exact-byte-level",
    aliases: &["bytes", "exact-bytes", "byte-level", "btr"],
    name: "Exact byte-level probabilities",
    paper: Some(Paper {
        title: "Exact Byte-Level Probabilities from Tokenized Language Models for FIM-Tasks and Model \
                Ensembles",
        authors: "Phan et al.",
        year: 2024,
        id: "arXiv:2410.09303",
    }),
    summary: "Reads any model byte by byte: completions may start inside a token, and models with \
              different vocabularies answer together (`tessera complete --exact-bytes`, `tessera score`).",
    kind: Kind::Program,
    places: &[],
    exactness: Exactness::DistributionExact,
    needs: Needs {
        capabilities: Capabilities { masks: true, ..Needs::NONE.capabilities },
        ..Needs::NONE
    },
    claims: &[
        Claim {
            setting: "fill-in-the-middle code benchmarks, prefixes that end inside a token, against plain \
                      prompting",
            metric: "pass rate, relative",
            value: 18.0,
            unit: "%",
            place: "abstract",
        },
        Claim {
            setting: "ensembles on reasoning, knowledge and code benchmarks, against the best member",
            metric: "accuracy",
            value: 3.7,
            unit: "%",
            place: "abstract (up to)",
        },
    ],
    schema: schema_of::<ExactByteLevel>,
    defaults: defaults_of::<ExactByteLevel>,
    neutral: None,
    read: resolve_as::<ExactByteLevel>,
    // A program takes no part in a run.
    build: |settings| {
        read_as::<ExactByteLevel>("exact-byte-level", settings).map(|_| Method::Plain)
    },
};

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_core::entry::MethodCall;

    #[test]
    fn settings_are_checked_by_name() {
        for (text, name) in [("bytes:floor=0.5", "floor"), ("bytes:mode=slow", "mode")] {
            let call = MethodCall::parse(crate::ENTRIES, text).unwrap();
            let error = ENTRY.resolve(&call.settings).unwrap_err().to_string();
            assert!(error.contains(name), "{text}: {error}");
        }
        let call = MethodCall::parse(crate::ENTRIES, "bytes:mode=fast,floor=0").unwrap();
        assert!(ENTRY.resolve(&call.settings).is_ok());
    }
}
