//! Toy models as whole GGUF files: weights, byte-level vocabulary, chat template.

use tessera_core::{Filling, TokenId};
use tessera_kernels::WeightType;

use super::{Flavour, blueprint, weights};
use crate::arch::Blueprint;
use crate::gguf::{GgufWriter, MetaValue, Shape};
use crate::hyper::ANY_SUBSET_KEY;

/// Tokens: the bytes, then the marks around a message.
const VOCAB: usize = 258;

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
                        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// How byte-level vocabularies spell a byte.
fn spelling(byte: u8) -> String {
    let printable = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let code = if printable(byte) {
        u32::from(byte)
    } else {
        256 + (0..byte).filter(|&b| !printable(b)).count() as u32
    };
    char::from_u32(code).map(String::from).unwrap_or_default()
}

/// A GGUF file of a flavour with the weights of `seed`; 258 tokens: the bytes, `<|im_start|>`, and
/// `<|im_end|>`, which ends an answer. Soft caps, which no architecture here has in its files, are
/// left out.
pub fn gguf(flavour: Flavour, seed: u64) -> Vec<u8> {
    file(blueprint(flavour), seed)
}

/// As [`gguf`], of a model that fills masks: LLaDA, or Dream if its logits are of the token after. Token
/// 258 is the mask.
pub fn denoiser_gguf(shift: bool, seed: u64) -> Vec<u8> {
    filling_gguf(shift, false, seed)
}

/// As [`denoiser_gguf`], of a model that writes any subset: causal in the order of writing.
pub fn any_subset_gguf(seed: u64) -> Vec<u8> {
    filling_gguf(false, true, seed)
}

fn filling_gguf(shift: bool, any_subset: bool, seed: u64) -> Vec<u8> {
    let (flavour, arch) = if shift { (Flavour::Qwen, "dream") } else { (Flavour::Llama, "llada") };
    let mut blueprint = blueprint(flavour);
    blueprint.spec.arch = arch.to_owned();
    blueprint.filling = Some(Filling { mask: VOCAB as TokenId, shift, any_subset });
    file(blueprint, seed)
}

fn file(mut blueprint: Blueprint, seed: u64) -> Vec<u8> {
    blueprint.spec.vocab = VOCAB + usize::from(blueprint.filling.is_some());
    let spec = &blueprint.spec;
    let mut w = GgufWriter::new();
    w.set("general.architecture", spec.arch.as_str());
    let mut hyper = |key: &str, value: MetaValue| {
        w.set(&format!("{}.{key}", spec.arch), value);
    };
    for (key, value) in [
        ("block_count", spec.layers),
        ("context_length", spec.context),
        ("embedding_length", spec.hidden),
        ("feed_forward_length", blueprint.ffn),
        ("attention.head_count", spec.heads),
        ("attention.head_count_kv", spec.kv_heads),
    ] {
        hyper(key, MetaValue::U32(value as u32));
    }
    hyper("attention.layer_norm_rms_epsilon", MetaValue::F32(blueprint.norm_eps));
    // The base of the layers that see everything; windowed ones have their own.
    let base = blueprint.layers.iter().map(|l| l.rope_base).fold(0.0, f32::max);
    hyper("rope.freq_base", MetaValue::F32(base));
    if let Some(window) = blueprint.layers.iter().find_map(|l| l.window) {
        hyper("attention.key_length", MetaValue::U32(spec.head_dim as u32));
        hyper("attention.sliding_window", MetaValue::U32(window));
        hyper("attention.sliding_window_pattern", MetaValue::U32(2));
    }
    let mut tokens: Vec<String> = (0..=255).map(spelling).collect();
    tokens.extend(["<|im_start|>", "<|im_end|>"].map(str::to_owned));
    let mut kinds = vec![1; 256];
    kinds.extend([3, 3]);
    if let Some(filling) = blueprint.filling {
        tokens.push("<|mask|>".to_owned());
        // As some files have it: the mask is known by its number alone.
        kinds.push(1);
        w.set("tokenizer.ggml.mask_token_id", filling.mask);
        w.set("diffusion.shift_logits", MetaValue::Bool(filling.shift));
        w.set(ANY_SUBSET_KEY, MetaValue::Bool(filling.any_subset));
        w.set(&format!("{}.attention.causal", spec.arch), MetaValue::Bool(false));
    }
    w.set("tokenizer.ggml.model", "gpt2");
    w.set("tokenizer.ggml.pre", "smollm");
    w.set("tokenizer.ggml.tokens", MetaValue::Strs(tokens));
    w.set("tokenizer.ggml.token_type", MetaValue::I32s(kinds));
    w.set("tokenizer.ggml.merges", MetaValue::Strs(vec![]));
    w.set("tokenizer.ggml.eos_token_id", 257u32);
    w.set("tokenizer.chat_template", TEMPLATE);
    let mut tensors: Vec<_> = weights(&blueprint, seed).into_iter().collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, (dims, values)) in tensors {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let Some(shape) = Shape::new(&dims) else { continue };
        w.tensor(&name, WeightType::F32, shape, data);
    }
    w.to_bytes().unwrap_or_default()
}
