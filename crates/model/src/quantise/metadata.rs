//! The metadata of a quantised file: copied from a GGUF source, written from a directory's files.

use super::{QuantiseError, Scheme, Settings};
use crate::gguf::{GgufWriter, MetaValue};
use crate::hyper::{
    ANY_SUBSET_KEY, Architecture, HyperParams, default_attention_scale, every_nth_global,
};
use crate::tokenizer::{HuggingFace, Texts, TokenizerSpec};
use crate::weights::WeightSource;

/// Keys that speak of how the source was stored, and would be wrong afterwards.
const STALE: [&str; 5] = [
    "general.file_type",
    "general.quantization_version",
    "quantize.imatrix.",
    "split.",
    "tessera.quantise.",
];

/// Fills in everything but tensors.
pub(super) fn write(
    w: &mut GgufWriter,
    from: &dyn WeightSource,
    settings: &Settings,
    requantised: bool,
) -> Result<(), QuantiseError> {
    match from.gguf() {
        Some(file) => {
            w.copy_metadata(file, |key| !STALE.iter().any(|stale| key.starts_with(stale)));
        }
        None => {
            hyper_params(w, from)?;
            let texts = HuggingFace::from_directory(from.path())?;
            tokenizer(w, &texts.spec);
            if let Some(template) = &texts.chat_template {
                w.set("tokenizer.chat_template", template.as_str());
            }
        }
    }
    // The numbers by which GGUF files name the type of most of their tensors.
    let most = match settings.scheme {
        Scheme::F32 => 0u32,
        Scheme::F16 => 1,
        Scheme::Q4_0 | Scheme::FineQuant(_) => 2,
        Scheme::Q4_1 => 3,
        Scheme::Q8_0 => 7,
        Scheme::Q4K => 14,
        Scheme::Bf16 => 32,
    };
    w.set("general.file_type", most);
    w.set("general.quantization_version", 2u32);
    w.set("tessera.quantise.scheme", settings.scheme.name());
    if let Scheme::FineQuant(s) = settings.scheme {
        w.set("tessera.quantise.alpha", s.rule.alpha);
        w.set("tessera.quantise.min_group", s.rule.min_group as u32);
        w.set("tessera.quantise.guard", s.rule.guard);
        w.set("tessera.quantise.error_budget", s.rule.error_budget);
    }
    w.set("tessera.quantise.requantised", MetaValue::Bool(requantised));
    Ok(())
}

fn hyper_params(w: &mut GgufWriter, from: &dyn WeightSource) -> Result<(), QuantiseError> {
    let p: &HyperParams = from.hyper_params();
    let arch = p.arch.name();
    w.set("general.architecture", arch);
    if let Some(name) = from.path().file_name() {
        w.set("general.name", &*name.to_string_lossy());
    }
    let key = |suffix: &str| format!("{arch}.{suffix}");
    for (suffix, value) in [
        ("block_count", p.layers),
        ("context_length", p.context),
        ("embedding_length", p.hidden),
        ("feed_forward_length", p.ffn),
        ("attention.head_count", p.heads),
        ("attention.head_count_kv", p.kv_heads),
        ("attention.key_length", p.head_dim),
        ("attention.value_length", p.head_dim),
        ("rope.dimension_count", p.head_dim),
        ("vocab_size", p.vocab),
    ] {
        // Checked when the source was opened: at most 2^28.
        w.set(&key(suffix), value as u32);
    }
    w.set(&key("attention.layer_norm_rms_epsilon"), p.norm_eps);
    w.set(&key("rope.freq_base"), p.rope_base);
    if let Some(base) = p.rope_base_local {
        w.set(&key("rope.freq_base_swa"), base);
    }
    if let Some(window) = p.sliding_window {
        w.set(&key("attention.sliding_window"), window as u32);
        if p.local != every_nth_global(p.layers, 6) {
            let what = "layers with a sliding window in another order than five of six cannot be \
                        written to a GGUF file. Next: quantise a GGUF file of this model";
            return Err(QuantiseError::Setting(what.to_owned()));
        }
    }
    for (suffix, cap) in [
        ("attn_logit_softcapping", p.attention_softcap),
        ("final_logit_softcapping", p.logit_softcap),
    ] {
        if let Some(cap) = cap {
            w.set(&key(suffix), cap);
        }
    }
    if let Some(filling) = p.filling {
        w.set(&key("attention.causal"), MetaValue::Bool(false));
        w.set("diffusion.shift_logits", MetaValue::Bool(filling.shift));
        if filling.any_subset {
            w.set(ANY_SUBSET_KEY, MetaValue::Bool(true));
        }
        w.set("tokenizer.ggml.mask_token_id", filling.mask);
    }
    let usual = default_attention_scale(p.arch, p.layers, p.hidden, p.heads, p.head_dim);
    if (p.attention_scale - usual).abs() > 1e-6 * usual {
        let what = "an attention scale other than the architecture's usual one cannot be written to \
                    a GGUF file. Next: quantise a GGUF file of this model";
        return Err(QuantiseError::Setting(what.to_owned()));
    }
    if p.rope_factors.is_some() && !matches!(p.arch, Architecture::Llama | Architecture::Llada) {
        let what = "scaled rotary frequencies of this architecture cannot be written to a GGUF \
                    file. Next: quantise a GGUF file of this model";
        return Err(QuantiseError::Setting(what.to_owned()));
    }
    Ok(())
}

fn tokenizer(w: &mut GgufWriter, spec: &TokenizerSpec) {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let strings = |texts: &Texts| MetaValue::Strs(texts.iter().map(str::to_owned).collect());
    w.set(&key("model"), spec.model.as_str());
    if let Some(pre) = &spec.pre {
        w.set(&key("pre"), pre.as_str());
    }
    w.set(&key("tokens"), strings(&spec.tokens));
    if !spec.scores.is_empty() {
        w.set(&key("scores"), MetaValue::F32s(spec.scores.clone()));
    }
    if !spec.token_types.is_empty() {
        w.set(&key("token_type"), MetaValue::I32s(spec.token_types.clone()));
    }
    if !spec.merges.is_empty() {
        w.set(&key("merges"), strings(&spec.merges));
    }
    for (name, id) in [
        ("bos_token_id", spec.bos),
        ("eos_token_id", spec.eos),
        ("eot_token_id", spec.eot),
        ("eom_token_id", spec.eom),
        ("padding_token_id", spec.pad),
        ("unknown_token_id", spec.unk),
    ] {
        if let Some(id) = id {
            w.set(&key(name), id);
        }
    }
    for (name, flag) in [
        ("add_bos_token", spec.add_bos),
        ("add_eos_token", spec.add_eos),
        ("add_space_prefix", spec.add_space_prefix),
    ] {
        if let Some(flag) = flag {
            w.set(&key(name), MetaValue::Bool(flag));
        }
    }
}
