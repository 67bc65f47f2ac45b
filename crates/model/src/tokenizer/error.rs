//! What can be wrong with a tokenizer's description.

use super::Pre;
use crate::FileError;

/// A tokenizer that cannot be built. Each message names the field and a next step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The file itself could not be read as asked.
    #[error(transparent)]
    File(#[from] FileError),
    /// A tokenizer algorithm that is not implemented here.
    #[error(
        "tokenizer.ggml.model is `{found}`, which is not supported; \
         supported: gpt2 (byte-level BPE), llama (SentencePiece)"
    )]
    UnknownModel {
        /// The name in the file.
        found: String,
    },
    /// A byte-level BPE tokenizer whose rule for cutting text into words is not implemented here.
    #[error("tokenizer.ggml.pre is `{found}`, which is not supported; supported: {}", Pre::NAMES.join(", "))]
    UnknownPre {
        /// The name in the file, `(none)` when it has none.
        found: String,
    },
    /// A field that contradicts itself or another field.
    #[error("{field}: {what}; the file is damaged or unusual: fetch or convert it again")]
    Field {
        /// The field, in the file's own vocabulary.
        field: String,
        /// What is wrong with it.
        what: String,
    },
}

impl TokenizerError {
    pub(crate) fn field(field: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Field { field: field.into(), what: what.into() }
    }
}
