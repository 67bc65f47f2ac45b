//! From files to backbones: GGUF and safetensors, tokenizers, chat templates, the store, and the
//! architectures.

pub mod arch;
mod file_error;
pub mod gguf;
#[doc(hidden)]
pub mod toy;

pub use file_error::{Fault, FileError};
