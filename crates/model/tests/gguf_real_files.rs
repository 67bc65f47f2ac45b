//! Real files, where they are: their heads as published, and a few bytes of their tensors.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use tessera_kernels::WeightType;
use tessera_model::gguf::Gguf;
use tessera_model::store::testing::find_test_model;
use tessera_model::{Architecture, open_weights};

#[test]
fn smollm2_head_and_tensors_are_as_published() {
    let Some(path) = find_test_model("smollm2") else { return };
    let file = Gguf::open(&path).unwrap();
    let meta = file.metadata();
    assert_eq!((file.version(), file.alignment(), file.file_bytes()), (3, 32, 98_362_432));
    assert_eq!((file.tensors().len(), meta.len()), (272, 33));
    assert_eq!(meta.str("general.architecture").unwrap(), "llama");
    assert_eq!(meta.u32("llama.block_count").unwrap(), 30);
    assert_eq!(meta.f32("llama.rope.freq_base").unwrap(), 100_000.0);
    assert!(!meta.bool("tokenizer.ggml.add_bos_token").unwrap());
    let tokens = meta.arr_str("tokenizer.ggml.tokens").unwrap();
    assert_eq!(tokens.len(), 49_152);
    assert_eq!(tokens.iter().count(), 49_152);
    assert_eq!(tokens.iter().nth(1), Some("<|im_start|>"));
    assert_eq!(meta.arr_i32("tokenizer.ggml.token_type").unwrap().len(), 49_152);
    assert!(
        meta.arr_i32("tokenizer.ggml.tokens").unwrap_err().to_string().contains("array of str")
    );

    let q = file.tensor("blk.0.attn_k.weight").unwrap();
    assert_eq!((q.ty, q.shape.dims()), (WeightType::Q4_1, &[192, 576][..]));
    assert_eq!(q.bytes(), 192 * 576 / 32 * 20);
    // The same bytes, whether read from the end of the file or as a row of the tensor.
    let raw = std::fs::read(&path).unwrap();
    let mut bytes = Vec::new();
    let norm = file.read_tensor("output_norm.weight", &mut bytes).unwrap();
    assert_eq!((norm.ty, norm.shape.dims()), (WeightType::F32, &[576][..]));
    assert_eq!(bytes, raw[98_360_128..]);
    let table = file.tensor("token_embd.weight").unwrap();
    file.read_rows(table, 3..5, &mut bytes).unwrap();
    let at = 1_785_664 + 3 * 612;
    assert_eq!(bytes, raw[at..at + 2 * 612]);
}

#[test]
fn the_other_catalogue_files_open() {
    for (name, arch, tensors, vocabulary) in [
        ("gemma3:270m", "gemma3", 236, 262_144),
        ("qwen2.5-coder:0.5b", "qwen2", 291, 151_936),
        ("qwen2.5-coder:1.5b", "qwen2", 339, 151_936),
    ] {
        // A gigabyte: only the long checks fetch it.
        if name.ends_with("1.5b") && std::env::var_os("TESSERA_LONG").is_none() {
            continue;
        }
        let Some(path) = find_test_model(name) else { continue };
        let file = Gguf::open(&path).unwrap();
        assert_eq!(file.metadata().str("general.architecture").unwrap(), arch);
        assert_eq!(file.tensors().len(), tensors, "{name}");
        let tokens = file.metadata().arr_str("tokenizer.ggml.tokens").unwrap();
        assert_eq!(tokens.iter().count(), vocabulary);
    }
}

#[test]
fn hyper_parameters_of_the_catalogue_files() {
    if let Some(path) = find_test_model("smollm2") {
        let weights = open_weights(&path).unwrap();
        let p = weights.hyper_params();
        assert_eq!((p.arch, p.layers, p.hidden, p.ffn), (Architecture::Llama, 30, 576, 1536));
        assert_eq!((p.heads, p.kv_heads, p.head_dim), (9, 3, 64));
        assert_eq!((p.context, p.vocab, p.tied, p.qkv_bias), (8192, 49_152, true, false));
        assert_eq!((p.rope_base, p.rope_base_local, p.norm_eps), (1e5, None, 1e-5));
        assert_eq!((p.attention_scale, p.embedding_scale), (0.125, 1.0));
        assert!(p.sliding_window.is_none() && !p.local.contains(&true));
        let show = weights.summary();
        assert_eq!((show.parameters, show.bytes), (134_515_008, 98_362_432));
        assert_eq!(
            (show.tokenizer.as_deref(), show.license.as_deref()),
            (Some("gpt2/smollm"), Some("apache-2.0"))
        );
        let types: Vec<_> = show.types.iter().map(|t| (t.name, t.tensors)).collect();
        assert_eq!(types, [("Q4_1", 210), ("Q8_0", 1), ("F32", 61)]);
        assert!(show.chat_template);
        assert_eq!(weights.read_f32("output_norm.weight").unwrap().len(), 576);
    }
    if let Some(path) = find_test_model("gemma3:270m") {
        let weights = open_weights(&path).unwrap();
        let p = weights.hyper_params();
        assert_eq!((p.arch, p.layers, p.hidden, p.ffn), (Architecture::Gemma3, 18, 640, 2048));
        assert_eq!((p.heads, p.kv_heads, p.head_dim), (4, 1, 256));
        assert_eq!((p.vocab, p.tied, p.sliding_window), (262_144, true, Some(512)));
        assert_eq!((p.rope_base, p.rope_base_local), (1e6, Some(1e4)));
        let global: Vec<_> = (0..18).filter(|i| !p.local[*i]).collect();
        assert_eq!(global, [5, 11, 17]);
        assert_eq!((p.attention_scale, p.embedding_scale), (0.0625, 640f32.sqrt()));
    }
    if let Some(path) = find_test_model("qwen2.5-coder:0.5b") {
        let weights = open_weights(&path).unwrap();
        let p = weights.hyper_params();
        assert_eq!((p.arch, p.layers, p.heads, p.kv_heads), (Architecture::Qwen2, 24, 14, 2));
        assert_eq!((p.tied, p.qkv_bias, p.vocab), (false, true, 151_936));
        let head = weights.info("output.weight").unwrap();
        assert_eq!((head.ty, head.shape.dims()), (WeightType::Q8_0, &[151_936, 896][..]));
    }
}
