//! A small random BERT encoder, as sentence-transformers stores one.

use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize_to_file};
use serde_json::{Value, json};

use crate::encoder::{CONFIG, POOLING, SENTENCES, TOKENIZER, WEIGHTS};

/// Width of a row.
pub const HIDDEN: usize = 32;
/// Width of the feed-forward block.
pub const FFN: usize = 48;
/// Heads.
pub const HEADS: usize = 2;
/// Layers.
pub const LAYERS: usize = 2;
/// The vocabulary.
pub const WORDS: [&str; 12] =
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "sea", "##side", "is", "blue", "a", "cat", "."];
/// Positions.
pub const POSITIONS: usize = 24;

/// Numbers that look random and are the same every time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.6
    }
}

/// Names and shapes of all tensors.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut all = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![WORDS.len(), HIDDEN]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![POSITIONS, HIDDEN]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, HIDDEN]),
        ("embeddings.LayerNorm.weight".to_owned(), vec![HIDDEN]),
        ("embeddings.LayerNorm.bias".to_owned(), vec![HIDDEN]),
    ];
    for l in 0..LAYERS {
        for (name, out, inner) in [
            ("attention.self.query", HIDDEN, HIDDEN),
            ("attention.self.key", HIDDEN, HIDDEN),
            ("attention.self.value", HIDDEN, HIDDEN),
            ("attention.output.dense", HIDDEN, HIDDEN),
            ("intermediate.dense", FFN, HIDDEN),
            ("output.dense", HIDDEN, FFN),
        ] {
            all.push((format!("encoder.layer.{l}.{name}.weight"), vec![out, inner]));
            all.push((format!("encoder.layer.{l}.{name}.bias"), vec![out]));
        }
        for name in ["attention.output.LayerNorm", "output.LayerNorm"] {
            all.push((format!("encoder.layer.{l}.{name}.weight"), vec![HIDDEN]));
            all.push((format!("encoder.layer.{l}.{name}.bias"), vec![HIDDEN]));
        }
    }
    all
}

/// Names, shapes and values of all tensors.
pub fn values() -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let mut numbers = Numbers(7);
    let fill = |(name, shape): (String, Vec<usize>)| {
        let norm = if name.contains("LayerNorm.weight") { 1.0 } else { 0.0 };
        let count = shape.iter().product();
        (name, shape, (0..count).map(|_| norm + numbers.next()).collect())
    };
    tensors().into_iter().map(fill).collect()
}

/// `config.json`.
pub fn config() -> Value {
    json!({
        "model_type": "bert", "hidden_act": "gelu", "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "vocab_size": WORDS.len(),
        "max_position_embeddings": POSITIONS, "layer_norm_eps": 1e-12,
    })
}

/// Writes an encoder into the directory `root`.
///
/// # Errors
/// What the system says.
pub fn write(root: &Path) -> std::io::Result<()> {
    let vocab: serde_json::Map<String, Value> =
        WORDS.iter().enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
    let special = |id: usize| {
        json!({ "id": id, "content": WORDS[id], "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false })
    };
    let piece = |name: &str| json!({ "SpecialToken": { "id": name, "type_id": 0 } });
    let known = |id: usize| json!({ "id": WORDS[id], "ids": [id], "tokens": [WORDS[id]] });
    let tokenizer = json!({
        "version": "1.0", "added_tokens": (0..4).map(special).collect::<Vec<_>>(),
        // Asked for by the file, and not done: texts are not cut without a word.
        "truncation": { "max_length": 5, "strategy": "LongestFirst", "stride": 0, "direction": "Right" },
        "padding": { "strategy": { "Fixed": 16 }, "direction": "Right", "pad_to_multiple_of": null,
                     "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]" },
        "normalizer": { "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                        "strip_accents": null, "lowercase": true },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [piece("[CLS]"), { "Sequence": { "id": "A", "type_id": 0 } }, piece("[SEP]")],
            "pair": [],
            "special_tokens": { "[CLS]": known(2), "[SEP]": known(3) },
        },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                   "max_input_chars_per_word": 100, "vocab": vocab },
    });
    let text = |name: &str, value: &Value| std::fs::write(root.join(name), value.to_string());
    text(CONFIG, &config())?;
    text(TOKENIZER, &tokenizer)?;
    text(SENTENCES, &json!({ "max_seq_length": 20, "do_lower_case": false }))?;
    std::fs::create_dir_all(root.join("1_Pooling"))?;
    text(POOLING, &json!({ "pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false }))?;
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = values()
        .into_iter()
        .map(|(name, shape, values)| {
            (name, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        TensorView::new(Dtype::F32, shape.clone(), bytes).map(|view| (name.as_str(), view))
    });
    let views = views.collect::<Result<Vec<_>, _>>().map_err(std::io::Error::other)?;
    serialize_to_file(views, None, &root.join(WEIGHTS)).map_err(std::io::Error::other)
}
