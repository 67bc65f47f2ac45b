//! Tests of reading and writing `config.json`.

use super::*;

fn llama() -> Value {
    json!({
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64,
        "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "vocab_size": 97, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "hidden_act": "silu", "rope_scaling": null,
    })
}

/// As the published model writes it, in its own names.
fn llada() -> Value {
    json!({
        "model_type": "llada", "n_layers": 2, "d_model": 64, "mlp_hidden_size": 96, "n_heads": 4,
        "n_kv_heads": 4, "max_sequence_length": 512, "vocab_size": 97, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "activation_type": "silu", "weight_tying": false,
        "include_bias": false, "include_qkv_bias": false, "block_type": "llama", "alibi": false,
        "layer_norm_type": "rms", "rope": true, "mask_token_id": 96,
    })
}

#[test]
fn llada_is_read_by_its_own_names_and_refused_by_them() {
    let params = hyper_params(&llada()).unwrap();
    assert_eq!((params.layers, params.hidden, params.ffn, params.kv_heads), (2, 64, 96, 4));
    assert_eq!(params.filling, Some(Filling { mask: 96, shift: false, any_subset: false }));
    for (key, value, word) in [
        ("mask_token_id", Value::Null, "mask_token_id"),
        ("mask_token_id", json!(97), "mask_token_id"),
        ("n_layers", Value::Null, "n_layers"),
        ("d_model", json!(0), "d_model"),
        ("n_kv_heads", json!(3), "n_heads"),
        ("block_type", json!("sequential"), "block_type"),
        ("layer_norm_type", json!("default"), "layer_norm_type"),
        ("include_bias", json!(true), "include_bias"),
        ("include_qkv_bias", json!(true), "include_qkv_bias"),
        ("rope", json!(false), "rope"),
        ("activation_type", json!("gelu"), "activation_type"),
    ] {
        let mut config = llada();
        config[key] = value;
        let line = hyper_params(&config).unwrap_err().to_string();
        assert!(line.contains(word), "{key}: {line}");
    }
}

#[test]
fn every_configuration_survives_being_written_and_read() {
    let mut gemma = llama();
    gemma["model_type"] = "gemma3_text".into();
    gemma["hidden_act"] = Value::Null;
    gemma["sliding_window"] = 8.into();
    gemma["sliding_window_pattern"] = 2.into();
    gemma["head_dim"] = 16.into();
    gemma["rope_scaling"] = json!({ "rope_type": "linear", "factor": 8.0 });
    let mut qwen = llama();
    qwen["model_type"] = "qwen2".into();
    let mut dream = llama();
    (dream["model_type"], dream["mask_token_id"]) = ("Dream".into(), 96.into());
    for config in [llama(), qwen, gemma, llada(), dream] {
        let params = hyper_params(&config).unwrap();
        let again = hyper_params(&write(&params, ExportType::F32).unwrap()).unwrap();
        assert_eq!(params, again);
    }
}

#[test]
fn senseless_and_unsupported_settings_are_refused_by_name() {
    for (key, value, word) in [
        ("num_attention_heads", json!(0), "hidden_size"),
        ("num_key_value_heads", json!(0), "num_key_value_heads"),
        ("num_key_value_heads", json!(3), "num_attention_heads"),
        ("num_hidden_layers", json!(0), "num_hidden_layers"),
        ("num_hidden_layers", json!(u64::MAX), "num_hidden_layers"),
        ("hidden_size", json!(-64), "hidden_size"),
        ("hidden_size", json!("64"), "hidden_size"),
        ("head_dim", json!(15), "head_dim"),
        ("rms_norm_eps", json!(-1e-5), "rms_norm_eps"),
        ("rms_norm_eps", json!(1e300), "rms_norm_eps"),
        ("rope_theta", json!(0), "rope_theta"),
        ("vocab_size", json!(1u64 << 40), "vocab_size"),
        ("hidden_act", json!("relu"), "hidden_act"),
        ("attention_bias", json!(true), "attention_bias"),
        ("model_type", json!("mamba"), "llama, qwen2, gemma3_text, llada, Dream"),
        ("rope_scaling", json!({ "rope_type": "yarn" }), "rope_type"),
        ("rope_scaling", json!([]), "rope_scaling"),
    ] {
        let mut config = llama();
        config[key] = value;
        let line = hyper_params(&config).unwrap_err().to_string();
        assert!(line.contains(word), "{key}: {line}");
    }
}

#[test]
fn llama3_scaling_keeps_short_wavelengths_and_divides_long_ones() {
    let mut config = llama();
    config["head_dim"] = 64.into();
    config["rope_scaling"] = json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    });
    let factors = hyper_params(&config).unwrap().rope_factors.unwrap();
    assert_eq!(factors.len(), 32);
    // The first wavelength is 2 pi, a period far below 8192/4; the last 2 pi 500000^(31/32).
    assert_eq!((factors[0], factors[31]), (1.0, 32.0));
    assert!(factors.windows(2).all(|pair| pair[0] <= pair[1]));
    // By hand for pair 16: wavelength 2 pi sqrt(500000) = 4442.9, 8192/4442.9 = 1.84385 periods,
    // so (1.84385 - 1) / 3 = 0.28128 is kept: 1 / (0.28128 + 0.71872/32) = 3.2924.
    assert!((factors[16] - 3.2924).abs() < 2e-3, "{}", factors[16]);
}

#[test]
fn both_forms_of_rotary_settings_mean_the_same() {
    let mut old = llama();
    old["model_type"] = "gemma3_text".into();
    old["hidden_act"] = Value::Null;
    let mut new = old.clone();
    old["rope_theta"] = json!(1e6);
    old["rope_local_base_freq"] = json!(1e4);
    new["rope_theta"] = Value::Null;
    new["rope_parameters"] = json!({
        "full_attention": { "rope_type": "default", "rope_theta": 1e6 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 1e4 },
    });
    assert_eq!(hyper_params(&old).unwrap(), hyper_params(&new).unwrap());
}
