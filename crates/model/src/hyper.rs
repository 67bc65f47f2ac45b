//! Hyper-parameters of the supported architectures: one checked struct, whatever file they are from.

use tessera_core::Filling;

use crate::arch::Activation;
use crate::file_error::{Fault, FileError, quoted};
use crate::gguf::{Gguf, Metadata, ValueType};

/// The architectures this engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Llama and its many relatives (SmolLM2, Mistral as GGUF files name it).
    Llama,
    /// Qwen2 and Qwen2.5: as llama, with biases on q, k and v.
    Qwen2,
    /// Gemma 3, text only: sliding windows, norms on q and k, norms after each block.
    Gemma3,
    /// LLaDA: as llama, but every row reads every row, and masks are filled.
    Llada,
    /// Dream: as qwen2, but every row reads every row, and masks are filled from the row before.
    Dream,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Llama, Self::Qwen2, Self::Gemma3, Self::Llada, Self::Dream];

    /// Its name in `general.architecture` of GGUF files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Gemma3 => "gemma3",
            Self::Llada => "llada",
            Self::Dream => "dream",
        }
    }

    /// The architecture of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|arch| arch.name() == name)
    }

    /// The names of all, for messages.
    pub fn supported() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// The feed-forward non-linearity that goes with it.
    pub fn activation(self) -> Activation {
        match self {
            Self::Llama | Self::Qwen2 | Self::Llada | Self::Dream => Activation::Silu,
            Self::Gemma3 => Activation::GeluTanh,
        }
    }

    /// Whether it fills masks; the others write from left to right.
    pub fn fills_masks(self) -> bool {
        matches!(self, Self::Llada | Self::Dream)
    }

    /// Whether q, k and v always have biases.
    pub(crate) fn has_biases(self) -> bool {
        matches!(self, Self::Qwen2 | Self::Dream)
    }

    /// Whether GGUF files store the rows of q and k in rotary pairs that lie side by side.
    pub(crate) fn pairs_rows(self) -> bool {
        matches!(self, Self::Llama | Self::Llada)
    }
}

impl std::fmt::Display for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The numbers that fix a model's shape and arithmetic, checked for sense.
#[derive(Debug, Clone, PartialEq)]
pub struct HyperParams {
    /// Architecture.
    pub arch: Architecture,
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward block.
    pub ffn: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head; even. `heads * head_dim` need not equal `hidden`.
    pub head_dim: usize,
    /// Context the model was trained for, in tokens.
    pub context: usize,
    /// Rows of the embedding table and of the head.
    pub vocab: usize,
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// Base of the rotary frequencies in layers with a sliding window, where it differs.
    pub rope_base_local: Option<f32>,
    /// Divisors of the rotary frequencies, `head_dim / 2` of them; layers with a sliding window
    /// do not use them.
    pub rope_factors: Option<Vec<f32>>,
    /// Epsilon of every RMS norm.
    pub norm_eps: f32,
    /// Positions that a layer with a sliding window sees, itself included.
    pub sliding_window: Option<usize>,
    /// Per layer: whether it has the sliding window. All false when there is none.
    pub local: Vec<bool>,
    /// `cap * tanh(x / cap)` on attention scores.
    pub attention_softcap: Option<f32>,
    /// `cap * tanh(x / cap)` on logits.
    pub logit_softcap: Option<f32>,
    /// Factor on attention scores.
    pub attention_scale: f32,
    /// Factor on embeddings as they enter.
    pub embedding_scale: f32,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the head is the embedding table.
    pub tied: bool,
    /// Non-linearity of the feed-forward block.
    pub activation: Activation,
    /// How the model fills masks; `None` for one that writes from left to right.
    pub filling: Option<Filling>,
}

/// Where a hyper-parameter has its name in a source, for errors.
pub(crate) type Namer<'a> = &'a dyn Fn(&'static str) -> String;

impl HyperParams {
    /// Reads and checks the hyper-parameters of a GGUF file.
    ///
    /// # Errors
    /// Names the key that is missing, senseless or asks for something unsupported.
    pub fn from_gguf(file: &Gguf) -> Result<Self, FileError> {
        let meta = file.metadata();
        let fail = |fault: Fault| fault.at(file.path());
        let arch = gguf_architecture(meta)?;
        if let Some(parts @ 2..) = meta.get_u32("split.count")? {
            return Err(fail(Fault::unsupported(
                field("split.count"),
                format_args!("{parts}: this file is one part of a split model"),
                "whole models (merge the parts into one file first)",
            )));
        }
        let key = |suffix: &str| format!("{arch}.{suffix}");
        let size = |suffix: &str| meta.u64(&key(suffix)).map(saturate);
        let maybe = |suffix: &str| Ok::<_, FileError>(meta.get_u64(&key(suffix))?.map(saturate));
        if let Some(experts @ 1..) = meta.get_u32(&key("expert_count"))? {
            let supported = "dense models (no experts)";
            return Err(fail(Fault::unsupported(field(&key("expert_count")), experts, supported)));
        }

        let (layers, hidden) = (size("block_count")?, size("embedding_length")?);
        let heads = head_count(meta, &key("attention.head_count"), layers)?.ok_or_else(|| {
            let next = "the file is not a whole model: fetch or convert it again";
            fail(Fault::missing(field(&key("attention.head_count")), next))
        })?;
        let kv_heads = head_count(meta, &key("attention.head_count_kv"), layers)?.unwrap_or(heads);
        let head_dim = match maybe("attention.key_length")? {
            Some(dim) => dim,
            None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let found = format_args!("{hidden}, with {heads} heads and no key_length");
                let at = field(&key("embedding_length"));
                return Err(fail(Fault::malformed(at, found, "a multiple of the head count")));
            }
        };
        for (suffix, what) in [
            ("attention.value_length", "values as wide as keys"),
            ("rope.dimension_count", "rotary encoding of whole heads"),
        ] {
            if let Some(found) = maybe(suffix)?.filter(|dim| *dim != head_dim) {
                let supported = format!("{what} ({head_dim})");
                return Err(fail(Fault::unsupported(field(&key(suffix)), found, supported)));
            }
        }
        let table = file.tensor("token_embd.weight")?;
        let vocab = table.shape.rows();
        if let Some((_, count)) = meta.array_of("tokenizer.ggml.tokens")
            && count > vocab as u64
        {
            let expected = format!("at most {vocab} tokens, the rows of \"token_embd.weight\"");
            return Err(meta.fault(
                "tokenizer.ggml.tokens",
                format_args!("{count} long"),
                expected,
            ));
        }

        let gemma = arch == Architecture::Gemma3;
        let sliding_window = maybe("attention.sliding_window")?.filter(|window| *window > 0);
        if let (false, Some(window)) = (gemma, sliding_window) {
            let at = field(&key("attention.sliding_window"));
            let supported = format!("full attention in {arch} models");
            return Err(fail(Fault::unsupported(at, window, supported)));
        }
        let local = match sliding_window {
            Some(_) => gguf_pattern(meta, &key("attention.sliding_window_pattern"), layers)?,
            None => vec![false; layers.min(MAX_LAYERS)],
        };
        let float = |suffix: &str, default: f32| {
            Ok::<_, FileError>(meta.get_f32(&key(suffix))?.unwrap_or(default))
        };
        let softcap = |suffix: &str| {
            Ok::<_, FileError>(meta.get_f32(&key(suffix))?.filter(|cap| *cap != 0.0))
        };
        let params = Self {
            arch,
            layers,
            hidden,
            ffn: size("feed_forward_length")?,
            heads,
            kv_heads,
            head_dim,
            context: size("context_length")?,
            vocab,
            rope_base: float("rope.freq_base", 10_000.0)?,
            rope_base_local: match gemma {
                true => Some(float("rope.freq_base_swa", 10_000.0)?),
                false => None,
            },
            rope_factors: gguf_rope_factors(file, arch, head_dim)?,
            norm_eps: meta.f32(&key("attention.layer_norm_rms_epsilon"))?,
            sliding_window,
            local,
            attention_softcap: softcap("attn_logit_softcapping")?,
            logit_softcap: softcap("final_logit_softcapping")?,
            attention_scale: default_attention_scale(arch, layers, hidden, heads, head_dim),
            embedding_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
            qkv_bias: arch.has_biases() || file.find("blk.0.attn_q.bias").is_some(),
            tied: file.find("output.weight").is_none(),
            activation: arch.activation(),
            filling: gguf_filling(meta, arch)?,
        };
        let namer = |name: &'static str| match name {
            "mask" => field(MASK),
            name => field(&key(gguf_suffix(name))),
        };
        params.check(&namer).map_err(fail)?;
        Ok(params)
    }

    /// Checks ranges and relations; `name` gives each field its name in the source.
    pub(crate) fn check(&self, name: Namer<'_>) -> Result<(), Fault> {
        let sizes = [
            ("layers", self.layers, MAX_LAYERS),
            ("hidden", self.hidden, 1 << 16),
            ("ffn", self.ffn, 1 << 20),
            ("heads", self.heads, 1 << 12),
            ("kv_heads", self.kv_heads, 1 << 12),
            ("head_dim", self.head_dim, 1 << 12),
            ("context", self.context, 1 << 28),
            ("vocab", self.vocab, 1 << 24),
        ];
        for (field, value, most) in sizes {
            if value == 0 || value > most {
                return Err(Fault::malformed(name(field), value, format!("1 to {most}")));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let found = format_args!("{}, with {} key/value heads", self.heads, self.kv_heads);
            return Err(Fault::malformed(name("heads"), found, "a multiple of those"));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Fault::malformed(name("head_dim"), self.head_dim, "an even number"));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 0.1) {
            return Err(Fault::malformed(name("norm_eps"), self.norm_eps, "between 0 and 0.1"));
        }
        for base in [Some(self.rope_base), self.rope_base_local].into_iter().flatten() {
            if !(1.0..=1e15).contains(&base) {
                return Err(Fault::malformed(name("rope_base"), base, "1 to 1e15"));
            }
        }
        for (field, value) in [
            ("attention_softcap", self.attention_softcap),
            ("logit_softcap", self.logit_softcap),
            ("attention_scale", Some(self.attention_scale)),
        ] {
            if let Some(value) = value.filter(|value| !(*value > 0.0 && *value < 1e6)) {
                return Err(Fault::malformed(name(field), value, "above 0 and below 1e6"));
            }
        }
        if let Some(factors) = &self.rope_factors {
            if factors.len() != self.head_dim / 2 {
                let found = format_args!("{} long", factors.len());
                let expected = format!("half the head width, {}", self.head_dim / 2);
                return Err(Fault::malformed(name("rope_factors"), found, expected));
            }
            if let Some(bad) = factors.iter().find(|f| !(**f > 0.0 && f.is_finite())) {
                let found = format_args!("holding {bad}");
                return Err(Fault::malformed(name("rope_factors"), found, "positive numbers"));
            }
        }
        if let Some(filling) = self.filling
            && filling.mask as usize >= self.vocab
        {
            let expected = format!("a token below {}", self.vocab);
            return Err(Fault::malformed(name("mask"), filling.mask, expected));
        }
        if self.local.len() != self.layers {
            let found = format_args!("{} long", self.local.len());
            let expected = format!("one entry per layer, {}", self.layers);
            return Err(Fault::malformed(name("local"), found, expected));
        }
        Ok(())
    }
}

/// More layers than any model has.
pub(crate) const MAX_LAYERS: usize = 1 << 12;

/// How a metadata key is named in errors.
fn field(key: &str) -> String {
    format!("metadata key {}", quoted(key))
}

/// Sizes that do not fit are refused by the range check that follows.
fn saturate(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// The architecture a GGUF file names.
pub(crate) fn gguf_architecture(meta: &Metadata) -> Result<Architecture, FileError> {
    let name = meta.str("general.architecture")?;
    Architecture::from_name(name).ok_or_else(|| {
        let supported = Architecture::supported();
        Fault::unsupported(field("general.architecture"), quoted(name), supported).at(meta.path())
    })
}

/// Where GGUF files name the mask token, and whether logits are of the token after.
const MASK: &str = "tokenizer.ggml.mask_token_id";
const SHIFT: &str = "diffusion.shift_logits";

/// Says that the model is causal in the order of writing: no published format has such models.
pub const ANY_SUBSET_KEY: &str = "tessera.any_subset";

/// Names the character that ends every prompt the model was trained on: it expects no prompt without it.
pub const PROMPT_END_KEY: &str = "tessera.prompt_end";

/// How the model fills masks; `None` for one that writes from left to right. Files that do not say read
/// predictions as the published models do: LLaDA's from the mask's own row, Dream's from the one before.
fn gguf_filling(meta: &Metadata, arch: Architecture) -> Result<Option<Filling>, FileError> {
    if !arch.fills_masks() {
        return Ok(None);
    }
    let causal = format!("{arch}.attention.causal");
    if meta.get_bool(&causal)? == Some(true) {
        let supported = format!("false, as in every {arch} model");
        return Err(Fault::unsupported(field(&causal), "true", supported).at(meta.path()));
    }
    let mask = meta.get_u32(MASK)?.ok_or_else(|| {
        let next = "the file does not say which token is the mask: convert the model again, or set the key";
        Fault::missing(field(MASK), next).at(meta.path())
    })?;
    let shift = meta.get_bool(SHIFT)?.unwrap_or(arch == Architecture::Dream);
    let any_subset = meta.get_bool(ANY_SUBSET_KEY)?.unwrap_or(false);
    Ok(Some(Filling { mask, shift, any_subset }))
}

/// A head count: one number, or an array that says the same number for every layer.
fn head_count(meta: &Metadata, key: &str, layers: usize) -> Result<Option<usize>, FileError> {
    if meta.array_of(key).is_none() {
        return Ok(meta.get_u64(key)?.map(saturate));
    }
    let counts = meta.arr_u32(key)?;
    if counts.len() != layers {
        let expected = format!("one entry per layer, {layers}");
        return Err(meta.fault(key, format_args!("{} long", counts.len()), expected));
    }
    match counts.split_first() {
        Some((first, rest)) if rest.iter().all(|count| count == first) => Ok(Some(*first as usize)),
        _ => {
            let supported = "the same number of heads in every layer";
            Err(Fault::unsupported(field(key), "different from layer to layer", supported)
                .at(meta.path()))
        }
    }
}

/// Which layers have the sliding window: an array says so; a number n makes every n-th global;
/// files that do not say follow Gemma 3's own rule, every sixth.
fn gguf_pattern(meta: &Metadata, key: &str, layers: usize) -> Result<Vec<bool>, FileError> {
    match meta.array_of(key) {
        Some((ValueType::Bool, _)) => meta.arr_bool(key),
        Some(_) => Ok(meta.arr_u32(key)?.into_iter().map(|local| local != 0).collect()),
        None => {
            let every = meta.get_u32(key)?.unwrap_or(6);
            Ok(every_nth_global(layers, every as usize))
        }
    }
}

/// Layers n-1, 2n-1, ... are global, the others local; n = 0 means that none is global.
pub(crate) fn every_nth_global(layers: usize, n: usize) -> Vec<bool> {
    (0..layers.min(MAX_LAYERS)).map(|i| n == 0 || (i + 1) % n != 0).collect()
}

/// Divisors of the rotary frequencies: a tensor, or one factor for all (linear scaling).
fn gguf_rope_factors(
    file: &Gguf,
    arch: Architecture,
    head_dim: usize,
) -> Result<Option<Vec<f32>>, FileError> {
    let meta = file.metadata();
    let key = format!("{arch}.rope.scaling.type");
    let ty = meta.get_str(&key)?;
    if let Some(other) = ty.filter(|ty| !matches!(*ty, "none" | "linear")) {
        let supported = "\"none\", \"linear\", and a tensor \"rope_freqs.weight\"";
        return Err(Fault::unsupported(field(&key), quoted(other), supported).at(file.path()));
    }
    if file.find("rope_freqs.weight").is_some() {
        return crate::weights::read_floats(file, "rope_freqs.weight").map(Some);
    }
    if ty == Some("none") {
        return Ok(None);
    }
    let factor = match meta.get_f32(&format!("{arch}.rope.scaling.factor"))? {
        Some(factor) => Some(factor),
        None => meta.get_f32(&format!("{arch}.rope.scale_linear"))?,
    };
    Ok(linear_factors(factor, head_dim))
}

/// The same divisor for every frequency; none when it changes nothing.
pub(crate) fn linear_factors(factor: Option<f32>, head_dim: usize) -> Option<Vec<f32>> {
    let factor = factor.filter(|factor| *factor != 0.0 && *factor != 1.0)?;
    // A senseless width is refused later; it must not cost memory first.
    Some(vec![factor; head_dim.min(1 << 12) / 2])
}

/// 1/sqrt of the head width, but for the 62-layer Gemma 3 (27B), which was trained with
/// 1/sqrt(hidden / heads); GGUF files do not carry the number.
pub(crate) fn default_attention_scale(
    arch: Architecture,
    layers: usize,
    hidden: usize,
    heads: usize,
    head_dim: usize,
) -> f32 {
    let width = match arch {
        Architecture::Gemma3 if layers == 62 => hidden as f32 / heads as f32,
        _ => head_dim as f32,
    };
    width.sqrt().recip()
}

/// The key of a hyper-parameter in GGUF files, after `<arch>.`.
fn gguf_suffix(name: &'static str) -> &'static str {
    match name {
        "layers" => "block_count",
        "hidden" => "embedding_length",
        "ffn" => "feed_forward_length",
        "heads" => "attention.head_count",
        "kv_heads" => "attention.head_count_kv",
        "head_dim" => "attention.key_length",
        "context" => "context_length",
        "vocab" => "vocab_size",
        "norm_eps" => "attention.layer_norm_rms_epsilon",
        "rope_base" => "rope.freq_base",
        "rope_factors" => "rope.scaling.factor",
        "attention_softcap" => "attn_logit_softcapping",
        "logit_softcap" => "final_logit_softcapping",
        "local" => "attention.sliding_window_pattern",
        other => other,
    }
}
