//! From files to backbones: GGUF and safetensors, tokenizers, chat templates, the store, and the
//! architectures.

pub mod arch;
