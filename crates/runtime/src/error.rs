//! What can go wrong between a model's name and its text.

use tessera_core::Error as CoreError;
use tessera_model::chat::ChatError;
use tessera_model::store::StoreError;
use tessera_model::tokenizer::TokenizerError;
use tessera_model::{FileError, LoadError};

/// Why a session could not be opened or a request not answered. One line, cause and next step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model could not be named, found or fetched.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The model's file is at fault.
    #[error(transparent)]
    File(#[from] FileError),
    /// The model's weights do not fit its architecture.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model's tokenizer is at fault.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The request is impossible, or a pass failed.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// The model's chat template is missing, at fault, or refuses the conversation.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// Files of a model that do not go together.
    #[error("{what}")]
    Model {
        /// The file, what is wrong, and what to do.
        what: String,
    },
    /// A session option that cannot be met.
    #[error("{what}")]
    Option {
        /// The option, what is wrong, and what to do.
        what: String,
    },
}

impl Error {
    /// Whether the caller asked for something impossible, as opposed to something that failed: a
    /// command line answers it with its usage exit code.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Store(e) => e.is_usage(),
            Self::Core(e) => matches!(
                e,
                CoreError::Setting { .. }
                    | CoreError::Method { .. }
                    | CoreError::UnknownMethod { .. }
            ),
            Self::Option { .. } | Self::Chat(ChatError::NoTemplate { .. }) => true,
            _ => false,
        }
    }
}
