//! From files to backbones: GGUF and safetensors, tokenizers, chat templates, the store, and the
//! architectures.

pub mod arch;
#[cfg(feature = "candle")]
pub mod candle;
pub mod chat;
pub mod cpu;
pub mod encoder;
mod file_error;
pub mod gguf;
mod hyper;
pub mod quantise;
mod safetensors;
mod source;
pub mod store;
mod summary;
mod tensor_layout;
pub mod tokenizer;
#[doc(hidden)]
pub mod toy;
mod weights;
mod whole_file;

pub use file_error::{Fault, FileError};
pub use hyper::{ANY_SUBSET_KEY, Architecture, HyperParams, PROMPT_END_KEY};
pub use safetensors::{ExportType, SafetensorsDir, export_safetensors};
pub use source::{LoadError, TensorSource};
pub use summary::{FileSummary, TypeShare};
pub use weights::{GgufWeights, WeightInfo, WeightSource, open_weights};
