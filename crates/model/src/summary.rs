//! What a model file is, in the words a person asks for: the data behind `tessera show`.

use serde::Serialize;

use crate::gguf::Gguf;

/// Facts about a model file. Absent facts are `None`: a file may be odd and still be shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileSummary {
    /// Container: `GGUF v3` or `safetensors`.
    pub format: String,
    /// Architecture as the file names it.
    pub architecture: Option<String>,
    /// Name the makers gave it.
    pub name: Option<String>,
    /// Number of values in all tensors.
    pub parameters: u64,
    /// Length of the file, or of all the directory's weight files, in bytes.
    pub bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
    /// Tensor types, the one with most bytes first.
    pub types: Vec<TypeShare>,
    /// Transformer layers.
    pub layers: Option<u64>,
    /// Context the model was trained for, in tokens.
    pub context: Option<u64>,
    /// Tokens in the vocabulary.
    pub vocabulary: Option<u64>,
    /// Kind of tokenizer, and its pre-tokenizer after a slash.
    pub tokenizer: Option<String>,
    /// Licence, as the file names it.
    pub license: Option<String>,
    /// Whether there is a chat template.
    pub chat_template: bool,
}

/// How much of a file one tensor type takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TypeShare {
    /// Its name.
    pub name: &'static str,
    /// Tensors of this type.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl FileSummary {
    /// The facts of a GGUF file, of any architecture.
    pub fn of_gguf(file: &Gguf) -> Self {
        let meta = file.metadata();
        let text = |key: &str| meta.get_str(key).ok().flatten().map(str::to_owned);
        let architecture = text("general.architecture");
        let size = |suffix: &str| {
            let arch = architecture.as_deref()?;
            meta.get_u64(&format!("{arch}.{suffix}")).ok().flatten()
        };
        let tokenizer =
            text("tokenizer.ggml.model").map(|model| match text("tokenizer.ggml.pre") {
                Some(pre) => format!("{model}/{pre}"),
                None => model,
            });
        Self {
            format: format!("GGUF v{}", file.version()),
            layers: size("block_count"),
            context: size("context_length"),
            name: text("general.name"),
            parameters: file.tensors().iter().map(|t| t.shape.elements() as u64).sum(),
            bytes: file.file_bytes(),
            tensors: file.tensors().len(),
            types: shares(file.tensors().iter().map(|t| (t.stored_name(), t.bytes()))),
            vocabulary: meta.array_of("tokenizer.ggml.tokens").map(|(_, count)| count),
            tokenizer,
            license: text("general.license"),
            chat_template: meta.contains("tokenizer.chat_template"),
            architecture,
        }
    }
}

/// Adds up bytes by type name; most bytes first, names break ties.
pub(crate) fn shares(tensors: impl Iterator<Item = (&'static str, u64)>) -> Vec<TypeShare> {
    let mut out: Vec<TypeShare> = Vec::new();
    for (name, bytes) in tensors {
        match out.iter_mut().find(|share| share.name == name) {
            Some(share) => {
                share.tensors += 1;
                share.bytes += bytes;
            }
            None => out.push(TypeShare { name, tensors: 1, bytes }),
        }
    }
    out.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.name.cmp(b.name)));
    out
}
