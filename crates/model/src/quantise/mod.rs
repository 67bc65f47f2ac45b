//! Quantising a model: from any weights that open to a GGUF file.
//!
//! FineQuant (arXiv 2308.09723) looks at weights alone: it chooses for each matrix how many weights
//! share a scale ([`granularity`]) and, where asked, 4 or 8 bits. The standard schemes of GGUF files
//! are its baselines. int4 groups of any multiple of 32 are exactly Q4_0 blocks whose scale repeats, and
//! int8 groups Q8_0 blocks: that is what is written, unless the compact form is asked for.
//!
//! Decided here, for every scheme: norms and biases stay f32; the embedding table and the head follow
//! [`Tables`]; a matrix whose rows are no multiple of 32 weights becomes f16.

pub mod base;
pub mod blocks;
pub mod granularity;
mod metadata;
mod rows;
pub mod superblocks;
mod write;

use serde::Serialize;

use crate::file_error::FileError;
use crate::tokenizer::TokenizerError;
pub use granularity::Rule;
pub use write::quantise;

/// How matrices are stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scheme {
    /// 32-bit floats: what a quantised file's weights stand for, exactly.
    F32,
    /// 16-bit floats, rounded to nearest.
    F16,
    /// Brain floats, rounded to nearest.
    Bf16,
    /// 4 bits, a scale every 32.
    Q4_0,
    /// 4 bits, a scale and a minimum every 32.
    Q4_1,
    /// 4 bits, a scale and a minimum of 6 bits every 32; [`Scheme::Q4_1`] where a row is no multiple
    /// of 256 weights.
    Q4K,
    /// 8 bits, a scale every 32.
    Q8_0,
    /// Groups of adaptive size.
    FineQuant(FineQuant),
}

impl Scheme {
    /// The schemes' names, as they are typed.
    pub const NAMES: [&str; 8] =
        ["finequant", "q4_0", "q4_1", "q4_k", "q8_0", "f16", "bf16", "f32"];

    /// The scheme's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q4K => "q4_k",
            Self::Q8_0 => "q8_0",
            Self::FineQuant(_) => "finequant",
        }
    }
}

/// Settings of FineQuant; ranges and defaults are those of the method's entry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FineQuant {
    /// How the group size of a matrix is chosen.
    pub rule: Rule,
    /// Bits of codes; `None` takes 4, and 8 where the error is too high.
    pub bits: Option<base::Bits>,
    /// With `bits` open: relative error at the finest level above which a matrix takes 8 bits.
    pub max_error: f32,
}

/// What the embedding table and the head (often one tensor) are stored as. Quantising the head hurts
/// most, so the default spares it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tables {
    /// Q8_0.
    #[default]
    Q8_0,
    /// 16-bit floats.
    F16,
    /// As every other matrix.
    Same,
}

/// How a model is quantised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// The scheme of matrices.
    pub scheme: Scheme,
    /// What the tables are stored as; float schemes store them as every other matrix.
    pub tables: Tables,
    /// Write FineQuant's groups with one scale each, which other engines cannot read.
    pub compact: bool,
}

/// What became of one matrix.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Quantised {
    /// Its name.
    pub name: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Type in the source.
    pub from: &'static str,
    /// Type in the file.
    pub to: &'static str,
    /// Weights that share a scale (FineQuant only).
    pub group: Option<usize>,
    /// Bits of a weight in the file, scales included.
    pub bits_per_weight: f64,
    /// `||W - W'|| / ||W||` against the source.
    pub relative_error: f64,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Name of the scheme.
    pub scheme: &'static str,
    /// Quantised types of the source, if any: then the run is a requantisation, whose losses add to
    /// those the source had already.
    pub requantised_from: Vec<&'static str>,
    /// The matrices, in the order of the file.
    pub matrices: Vec<Quantised>,
    /// Bytes of the source's weight files, and of the file written.
    pub bytes_before: u64,
    /// See `bytes_before`.
    pub bytes_after: u64,
    /// Bits of a matrix weight on average, scales included.
    pub bits_per_weight: f64,
    /// The same without the embedding table and the head.
    pub bits_per_layer_weight: f64,
}

/// Why a model could not be quantised.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantiseError {
    /// The source or the output file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The source's tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A combination of settings that makes no sense.
    #[error("{0}")]
    Setting(String),
}
