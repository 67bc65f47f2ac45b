//! Which tensors each architecture has: their GGUF names, their names in Hugging Face files, their
//! shapes, and how the two files' contents differ. Checking, mapping and export all read this table.

use crate::hyper::{Architecture, HyperParams};

/// How a tensor in a Hugging Face file differs from the one in a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fix {
    /// Not at all.
    Same,
    /// GGUF files of the llama family order the rows of each of `heads` heads for rotary pairs
    /// that lie side by side: row `2j + s` of a head is row `s * d/2 + j` of the Hugging Face one.
    Pairs {
        /// Heads in the tensor.
        heads: usize,
    },
    /// GGUF files hold a Gemma norm's weight plus one.
    PlusOne,
}

/// One tensor that the architecture has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Name in GGUF files, and everywhere in this engine.
    pub(crate) name: String,
    /// Name in Hugging Face files.
    pub(crate) hf: String,
    /// Extents, outermost first.
    pub(crate) shape: Vec<usize>,
    /// Difference of content.
    pub(crate) fix: Fix,
}

/// Every tensor of a model with these hyper-parameters; all of them are required.
pub(crate) fn slots(p: &HyperParams) -> Vec<Slot> {
    let gemma = p.arch == Architecture::Gemma3;
    let norm_fix = if gemma { Fix::PlusOne } else { Fix::Same };
    let pairs = |heads| match p.arch.pairs_rows() {
        true => Fix::Pairs { heads },
        false => Fix::Same,
    };
    let mut out = Vec::new();
    let llada = p.arch == Architecture::Llada;
    let mut add = |name: String, hf: String, shape: &[usize], fix: Fix| {
        let hf = if llada { llada_name(&hf) } else { hf };
        out.push(Slot { name, hf, shape: shape.to_vec(), fix });
    };
    add(
        "token_embd.weight".into(),
        "model.embed_tokens.weight".into(),
        &[p.vocab, p.hidden],
        Fix::Same,
    );
    add("output_norm.weight".into(), "model.norm.weight".into(), &[p.hidden], norm_fix);
    if !p.tied {
        add("output.weight".into(), "lm_head.weight".into(), &[p.vocab, p.hidden], Fix::Same);
    }
    let (q, kv) = (p.heads * p.head_dim, p.kv_heads * p.head_dim);
    for i in 0..p.layers {
        let mut layer = |name: &str, hf: &str, shape: &[usize], fix: Fix| {
            add(format!("blk.{i}.{name}"), format!("model.layers.{i}.{hf}"), shape, fix);
        };
        layer("attn_norm.weight", "input_layernorm.weight", &[p.hidden], norm_fix);
        layer("attn_q.weight", "self_attn.q_proj.weight", &[q, p.hidden], pairs(p.heads));
        layer("attn_k.weight", "self_attn.k_proj.weight", &[kv, p.hidden], pairs(p.kv_heads));
        layer("attn_v.weight", "self_attn.v_proj.weight", &[kv, p.hidden], Fix::Same);
        layer("attn_output.weight", "self_attn.o_proj.weight", &[p.hidden, q], Fix::Same);
        if p.qkv_bias {
            layer("attn_q.bias", "self_attn.q_proj.bias", &[q], pairs(p.heads));
            layer("attn_k.bias", "self_attn.k_proj.bias", &[kv], pairs(p.kv_heads));
            layer("attn_v.bias", "self_attn.v_proj.bias", &[kv], Fix::Same);
        }
        if gemma {
            layer("attn_q_norm.weight", "self_attn.q_norm.weight", &[p.head_dim], norm_fix);
            layer("attn_k_norm.weight", "self_attn.k_norm.weight", &[p.head_dim], norm_fix);
            let hf = "post_attention_layernorm.weight";
            layer("post_attention_norm.weight", hf, &[p.hidden], norm_fix);
            layer("ffn_norm.weight", "pre_feedforward_layernorm.weight", &[p.hidden], norm_fix);
            let hf = "post_feedforward_layernorm.weight";
            layer("post_ffw_norm.weight", hf, &[p.hidden], norm_fix);
        } else {
            layer("ffn_norm.weight", "post_attention_layernorm.weight", &[p.hidden], norm_fix);
        }
        layer("ffn_gate.weight", "mlp.gate_proj.weight", &[p.ffn, p.hidden], Fix::Same);
        layer("ffn_up.weight", "mlp.up_proj.weight", &[p.ffn, p.hidden], Fix::Same);
        layer("ffn_down.weight", "mlp.down_proj.weight", &[p.hidden, p.ffn], Fix::Same);
    }
    out
}

/// The name that LLaDA's files give to the tensor that llama's call `name`.
fn llada_name(name: &str) -> String {
    for (llama, llada) in [
        ("model.embed_tokens.", "model.transformer.wte."),
        ("model.norm.", "model.transformer.ln_f."),
        ("lm_head.", "model.transformer.ff_out."),
    ] {
        if let Some(rest) = name.strip_prefix(llama) {
            return format!("{llada}{rest}");
        }
    }
    let mut name = name.replacen("model.layers.", "model.transformer.blocks.", 1);
    for (llama, llada) in [
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ff_norm"),
        ("self_attn.o_proj", "attn_out"),
        ("self_attn.", ""),
        ("mlp.gate_proj", "ff_proj"),
        ("mlp.up_proj", "up_proj"),
        ("mlp.down_proj", "ff_out"),
    ] {
        name = name.replacen(llama, llada, 1);
    }
    name
}

impl Fix {
    /// The row of the Hugging Face tensor that is row `row` (of `rows`) of the GGUF one.
    pub(crate) fn hf_row(self, row: usize, rows: usize) -> usize {
        let Self::Pairs { heads } = self else { return row };
        let width = rows / heads;
        let (head, r) = (row / width, row % width);
        let (pair, second) = (r / 2, r % 2);
        head * width + second * (width / 2) + pair
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llada_has_names_of_its_own() {
        for (llama, llada) in [
            ("model.embed_tokens.weight", "model.transformer.wte.weight"),
            ("model.norm.weight", "model.transformer.ln_f.weight"),
            ("lm_head.weight", "model.transformer.ff_out.weight"),
            (
                "model.layers.3.input_layernorm.weight",
                "model.transformer.blocks.3.attn_norm.weight",
            ),
            ("model.layers.3.self_attn.q_proj.weight", "model.transformer.blocks.3.q_proj.weight"),
            (
                "model.layers.3.self_attn.o_proj.weight",
                "model.transformer.blocks.3.attn_out.weight",
            ),
            (
                "model.layers.3.post_attention_layernorm.weight",
                "model.transformer.blocks.3.ff_norm.weight",
            ),
            ("model.layers.3.mlp.gate_proj.weight", "model.transformer.blocks.3.ff_proj.weight"),
            ("model.layers.3.mlp.up_proj.weight", "model.transformer.blocks.3.up_proj.weight"),
            ("model.layers.3.mlp.down_proj.weight", "model.transformer.blocks.3.ff_out.weight"),
        ] {
            assert_eq!(llada_name(llama), llada);
        }
    }

    #[test]
    fn rotary_pairs_are_reordered_within_each_head() {
        // Two heads of width 6: halves (0 1 2 | 3 4 5) become pairs (0 3, 1 4, 2 5).
        let fix = Fix::Pairs { heads: 2 };
        let rows: Vec<_> = (0..12).map(|row| fix.hf_row(row, 12)).collect();
        assert_eq!(rows, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        assert_eq!(Fix::Same.hf_row(7, 12), 7);
    }
}
