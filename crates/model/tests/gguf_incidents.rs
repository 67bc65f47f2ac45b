//! Faults that other engines have shipped in their GGUF readers, each as a test: counts that drive
//! allocation, sizes that wrap, senseless alignments, tensors beyond the file, confused types.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod tiny;

use tessera_kernels::WeightType;
use tessera_model::gguf::{Gguf, GgufWriter, MetaValue, Shape};
use tessera_model::{
    Architecture, ExportType, Fault, GgufWeights, WeightSource, export_safetensors, open_weights,
};
use tiny::{Raw, Scratch, model};

/// The error of a file that must not open; it must name the field, the file and a next step.
fn refused(bytes: Vec<u8>, field: &str, word: &str) {
    let error = Gguf::from_bytes(bytes, "bad.gguf").expect_err(field);
    let line = error.to_string();
    assert!(error.field().contains(field), "{line}\nshould be about {field}");
    assert!(line.starts_with("bad.gguf: ") && line.contains(word), "{line}\nlacks {word}");
}

#[test]
fn incident_1_a_count_is_bounded_by_what_the_file_has_room_for() {
    for n in [u64::MAX, 1 << 62, 1 << 32, 3] {
        refused(Raw::new(0, n).bytes(&[0; 40]).0, "metadata count", &n.to_string());
        refused(Raw::new(n, 0).bytes(&[0; 66]).0, "tensor count", &n.to_string());
    }
    // Room enough, but more than any model has.
    refused(Raw::new(0, 70_000).bytes(&vec![0; 1_000_000]).0, "metadata count", "at most 65536");
    refused(Raw::new(70_000, 0).bytes(&vec![0; 2_500_000]).0, "tensor count", "at most 65536");
}

#[test]
fn incident_1_a_string_or_array_length_is_bounded_by_the_file() {
    for n in [u64::MAX, u64::MAX - 7, 1 << 63, 1 << 40, 100] {
        // A key's length.
        refused(Raw::new(0, 1).u64(n).bytes(&[b'k'; 60]).0, "metadata key number 0", "truncated");
        // A string value's length.
        let raw = Raw::new(0, 1).text("k").u32(8).u64(n).bytes(&[b'v'; 60]);
        refused(raw.0, "metadata key \"k\"", "truncated");
        // An array's length, for elements of one byte, of eight, and of unknown size.
        for (ty, room) in [(0, 60), (10, 7), (8, 7), (9, 5)] {
            let raw = Raw::new(0, 1).text("k").u32(9).u32(ty).u64(n).bytes(&[0; 60]);
            refused(raw.0, "metadata key \"k\": length", &format!("at most {room}"));
        }
        // A tensor's name.
        let raw = Raw::new(1, 0).u64(n).bytes(&[b'n'; 60]);
        refused(raw.0, "name of tensor number 0", "truncated");
    }
    // A string that the file holds, but that no model needs.
    let huge = vec![b'v'; (16 << 20) + 1];
    let raw = Raw::new(0, 1).text("k").u32(8).u64(huge.len() as u64).bytes(&huge);
    refused(raw.0, "metadata key \"k\"", "at most 16777216");
    let raw = Raw::new(0, 1).text(&"k".repeat(65_536)).u32(7).bytes(&[1]);
    refused(raw.0, "metadata key number 0", "at most 65535");
    let raw = Raw::new(1, 0).entry(&"n".repeat(257), &[1], 0, 0);
    refused(raw.0, "name of tensor number 0", "at most 256");
}

#[test]
fn incident_2_dimensions_whose_product_wraps_are_refused() {
    let entry = |dims: &[u64], ty| Raw::new(1, 0).entry("w", dims, ty, 0).data(64);
    for dims in [
        &[u64::MAX, 2][..],
        &[1 << 32, 1 << 32],
        &[1 << 31, 1 << 31, 1 << 2],
        &[1 << 62, 4, 1, 1],
        &[(1 << 63) + 16],
        &[1 << 61],
    ] {
        // F32, where the bytes wrap too, and Q8_0, where blocks divide first.
        refused(entry(dims, 0), "tensor \"w\": dimensions", "product that fits");
        let error = Gguf::from_bytes(entry(dims, 8), "bad.gguf").unwrap_err();
        assert!(error.field().starts_with("tensor \"w\": d"), "{error}");
    }
    refused(entry(&[0], 0), "tensor \"w\": dimensions", "zero");
    refused(entry(&[4, 0], 0), "tensor \"w\": dimensions", "zero");
    refused(entry(&[], 0), "tensor \"w\": number of dimensions", "is 0");
    refused(entry(&[1; 5], 0), "tensor \"w\": number of dimensions", "is 5");
    refused(entry(&[33], 8), "tensor \"w\": dimensions", "multiple of 32");
    // The same sizes as an in-memory shape.
    assert_eq!(Shape::new(&[usize::MAX, 2]), None);
    assert_eq!(Shape::new(&[usize::MAX]), None);
}

#[test]
fn incident_3_alignment_is_a_power_of_two_of_the_right_type() {
    let key = "general.alignment";
    for bad in [0u32, 3, 24, 33, 1 << 22, u32::MAX] {
        let raw = Raw::new(0, 1).text(key).u32(4).u32(bad);
        refused(raw.0, key, &bad.to_string());
    }
    refused(Raw::new(0, 1).text(key).u32(10).u64(32).0, key, "u64");
    refused(Raw::new(0, 1).text(key).u32(5).u32(32).0, key, "i32");
    refused(Raw::new(0, 1).text(key).u32(8).text("32").0, key, "string");
    refused(Raw::new(0, 1).text(key).u32(9).u32(4).u64(1).u32(32).0, key, "array");

    for good in [1u32, 2, 32, 64, 4096] {
        let mut writer = GgufWriter::new();
        writer.set(key, good);
        let shape = Shape::new(&[3]).unwrap();
        writer.tensor("a", WeightType::F32, shape, (0..12).collect());
        writer.tensor("b", WeightType::F32, shape, (12..24).collect());
        let file = Gguf::from_bytes(writer.to_bytes().unwrap(), "good.gguf").unwrap();
        assert_eq!(file.alignment(), good);
        let mut bytes = Vec::new();
        file.read_tensor("b", &mut bytes).unwrap();
        assert_eq!(bytes, (12..24).collect::<Vec<u8>>());
    }
    // An offset that ignores the alignment.
    refused(Raw::new(1, 0).entry("w", &[1], 0, 4).data(64), "tensor \"w\": offset", "alignment 32");
}

#[test]
fn incident_4_tensor_data_beyond_the_file_is_refused_when_opened() {
    let at = |offset| Raw::new(1, 0).entry("w", &[16], 0, offset).data(128);
    assert!(Gguf::from_bytes(at(64), "good.gguf").is_ok());
    refused(at(96), "tensor \"w\": data", "truncated");
    for far in [1 << 20, 1 << 63, u64::MAX - 31] {
        refused(at(far), "tensor \"w\": offset", &far.to_string());
    }
    let two = |a, b| Raw::new(2, 0).entry("a", &[16], 0, a).entry("b", &[16], 0, b).data(128);
    assert!(Gguf::from_bytes(two(64, 0), "good.gguf").is_ok());
    refused(two(0, 32), "tensor \"b\": offset", "inside the data of tensor \"a\"");
    refused(two(0, 0), "offset", "inside the data of tensor");
}

#[test]
fn incident_4_a_file_cut_after_it_was_opened_is_an_error_on_every_path() {
    let scratch = Scratch::new("cut");
    let whole = model(Architecture::Llama).to_bytes().unwrap();
    let path = scratch.file("m.gguf", &whole);
    let weights = GgufWeights::new(Gguf::open(&path).unwrap()).unwrap();
    let file = weights.gguf().unwrap();
    let mut bytes = Vec::new();
    file.read_tensor("output_norm.weight", &mut bytes).unwrap();

    std::fs::File::options().write(true).open(&path).unwrap().set_len(2000).unwrap();
    let error = file.read_tensor("output_norm.weight", &mut bytes).unwrap_err();
    assert_eq!(error.field(), "tensor \"output_norm.weight\": data");
    assert!(matches!(*error.fault, Fault::Truncated { len: 2000, .. }), "{error}");
    assert!(weights.read_f32("output_norm.weight").is_err());
    // Converting reads the same way: it fails and leaves no half-written model behind.
    let out = scratch.0.join("export");
    let error = export_safetensors(&weights, &out, ExportType::F32).unwrap_err();
    assert!(error.field().starts_with("tensor \""), "{error}");
    let left: Vec<_> = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["config.json"]);
    let mut writer = GgufWriter::new();
    let norm = file.tensor("output_norm.weight").unwrap();
    writer.declare(&norm.name, norm.ty, norm.shape);
    let copy = scratch.0.join("copy.gguf");
    writer.write(&copy, |name, out| file.read_tensor(name, out).map(|_| ())).unwrap_err();
    assert!(!copy.exists());
    assert_eq!(std::fs::read_dir(&scratch.0).unwrap().count(), 2);
}

#[cfg(unix)]
#[test]
fn incident_4_a_file_that_vanishes_after_it_was_opened_can_still_be_read() {
    let scratch = Scratch::new("vanish");
    let path = scratch.file("m.gguf", &model(Architecture::Qwen2).to_bytes().unwrap());
    let weights = open_weights(&path).unwrap();
    let before = weights.read_f32("output_norm.weight").unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(weights.read_f32("output_norm.weight").unwrap(), before);
    assert!(open_weights(&path).unwrap_err().to_string().contains("check the path"));
}

#[test]
fn incident_4_paths_that_are_not_files_are_refused_at_once() {
    let scratch = Scratch::new("paths");
    let error = Gguf::open(&scratch.0).unwrap_err();
    assert!(error.to_string().contains("a directory"), "{error}");
    let error = Gguf::open(&scratch.0.join("absent.gguf")).unwrap_err();
    assert!(error.to_string().contains("check the path"), "{error}");
    #[cfg(unix)]
    {
        // A device has no length; reading it to its end would never return.
        let error = Gguf::open("/dev/zero".as_ref()).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }
}

#[test]
fn incident_5_values_of_another_type_are_refused_by_key_and_type() {
    let mut writer = model(Architecture::Llama);
    writer.set("tokenizer.ggml.tokens", MetaValue::I32s(vec![1; 20]));
    writer.set("tokenizer.ggml.token_type", MetaValue::F32s(vec![1.0; 20]));
    writer.set("tokenizer.ggml.scores", MetaValue::Strs(vec!["x".into(); 20]));
    writer.set("tokenizer.chat_template", 7u32);
    writer.set("negative", MetaValue::I32(-1));
    writer.set("large", MetaValue::U64(1 << 40));
    writer.set("nan", f32::NAN);
    let file = Gguf::from_bytes(writer.to_bytes().unwrap(), "m.gguf").unwrap();
    let meta = file.metadata();
    let says = |error: tessera_model::FileError, parts: &[&str]| {
        let line = error.to_string();
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
    };
    let (tokens, types) = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type");
    says(meta.arr_str(tokens).unwrap_err(), &[tokens, "array of i32", "array of strings"]);
    says(meta.arr_i32(types).unwrap_err(), &[types, "array of f32", "array of i32"]);
    says(meta.arr_f32("tokenizer.ggml.scores").unwrap_err(), &["array of string"]);
    says(meta.str("tokenizer.chat_template").unwrap_err(), &["type u32", "a string"]);
    says(meta.str(tokens).unwrap_err(), &["array of i32"]);
    says(meta.u32("tokenizer.ggml.model").unwrap_err(), &["type string"]);
    says(meta.u32(tokens).unwrap_err(), &["array of i32"]);
    says(meta.bool("large").unwrap_err(), &["type u64"]);
    says(meta.f32("large").unwrap_err(), &["type u64", "float"]);
    says(meta.f32("nan").unwrap_err(), &["NaN", "finite"]);
    says(meta.u32("negative").unwrap_err(), &["-1"]);
    says(meta.u64("negative").unwrap_err(), &["-1"]);
    says(meta.u32("large").unwrap_err(), &["1099511627776"]);
    assert_eq!(meta.u64("large").unwrap(), 1 << 40);
    assert!(meta.u32("absent").unwrap_err().is_missing());
    assert_eq!(meta.get_u32("absent").unwrap(), None);
    assert!(meta.get_u32("nan").is_err());
}

#[test]
fn incident_5_odd_keys_strings_and_nesting() {
    refused(Raw::new(0, 1).text("").u32(4).u32(1).0, "metadata key number 0", "empty");
    refused(Raw::new(1, 0).entry("", &[1], 0, 0).data(64), "name of tensor number 0", "empty");
    let raw = Raw::new(0, 1).u64(2).bytes(&[0xff, 0xfe]).u32(4).u32(1);
    refused(raw.0, "metadata key number 0", "UTF-8");
    let twice = Raw::new(0, 2).text("k").u32(4).u32(1).text("k").u32(4).u32(2);
    refused(twice.0, "metadata key \"k\"", "twice");
    let twice = Raw::new(2, 0).entry("w", &[1], 0, 0).entry("w", &[1], 0, 32).data(64);
    refused(twice, "tensor \"w\"", "twice");
    refused(Raw::new(0, 1).text("k").u32(13).u32(1).0, "metadata key \"k\": type", "13");
    refused(Raw::new(0, 1).text("k").u32(9).u32(99).u64(1).u32(1).0, "element type", "99");

    let nested = |depth: usize| {
        let mut raw = Raw::new(0, 1).text("k").u32(9);
        for _ in 1..depth {
            raw = raw.u32(9).u64(1);
        }
        raw.u32(4).u64(1).u32(5).0
    };
    for depth in 1..=4 {
        let file = Gguf::from_bytes(nested(depth), "m.gguf").unwrap();
        assert_eq!(file.metadata().arr_u32("k").is_ok(), depth == 1);
    }
    refused(nested(5), "metadata key \"k\"", "nested");
    refused(nested(100_000), "metadata key \"k\"", "nested");

    // Text that is not UTF-8, and truth that is neither, are found when asked for.
    let raw = Raw::new(0, 3)
        .text("text")
        .u32(8)
        .u64(1)
        .bytes(&[0xff])
        .text("list")
        .u32(9)
        .u32(8)
        .u64(2)
        .text("fine")
        .u64(1)
        .bytes(&[0xc0])
        .text("flag")
        .u32(7)
        .bytes(&[2]);
    let file = Gguf::from_bytes(raw.0, "m.gguf").unwrap();
    assert!(file.metadata().str("text").unwrap_err().to_string().contains("UTF-8"));
    let line = file.metadata().arr_str("list").unwrap_err().to_string();
    assert!(line.contains("element 1"), "{line}");
    assert!(file.metadata().bool("flag").unwrap_err().to_string().contains("0 or 1"));
}

#[test]
fn what_is_not_a_little_endian_gguf_file_says_what_it_is() {
    refused(Vec::new(), "magic", "truncated");
    refused(b"PK\x03\x04 some archive".to_vec(), "magic", "PK");
    refused(b"GGUF\x01\0\0\0".to_vec(), "version", "convert");
    refused(b"GGUF\x04\0\0\0".to_vec(), "version", "4");
    refused(b"GGUF\0\0\0\x03".to_vec(), "version", "big-endian");
    let quantised = Raw::new(1, 0).entry("w", &[256], 16, 0).data(256);
    refused(quantised, "tensor \"w\": type", "IQ2_XXS");
    refused(Raw::new(1, 0).entry("w", &[256], 4711, 0).data(256), "tensor \"w\": type", "4711");
}

/// Opens a model that differs from a good one in a single key.
fn with(arch: Architecture, key: &str, value: MetaValue) -> Result<GgufWeights, String> {
    let mut writer = model(arch);
    writer.set(key, value);
    let file = Gguf::from_bytes(writer.to_bytes().unwrap(), "m.gguf").unwrap();
    GgufWeights::new(file).map_err(|error| error.to_string())
}

#[test]
fn senseless_hyper_parameters_are_refused_by_key() {
    use Architecture::{Dream, Gemma3, Llada, Llama, Qwen2};
    use MetaValue::{F32, I32, Str, U32, U64};
    for arch in Architecture::ALL {
        with(arch, "general.name", "Other".into()).unwrap();
    }
    for (arch, key, value, part) in [
        (Llama, "general.architecture", Str("rwkv".into()), "llama, qwen2, gemma3, llada, dream"),
        (Llama, "llama.block_count", U32(0), "is 0"),
        (Llama, "llama.block_count", U64(u64::MAX), "1 to 4096"),
        (Llama, "llama.block_count", U32(3), "blk.2"),
        (Llama, "llama.block_count", U32(1), "blk.1"),
        (Llama, "llama.embedding_length", U32(64), "token_embd.weight"),
        (Llama, "llama.feed_forward_length", U32(32), "ffn_gate"),
        (Llama, "llama.attention.head_count", U32(0), "embedding_length"),
        (Llama, "llama.attention.head_count", U32(5), "embedding_length"),
        (Gemma3, "gemma3.attention.head_count", U32(0), "is 0"),
        (Llama, "llama.attention.head_count_kv", U32(0), "is 0"),
        (Llama, "llama.attention.head_count_kv", U32(3), "multiple of those"),
        (Llama, "llama.attention.head_count_kv", MetaValue::U32s(vec![2, 1]), "layer to layer"),
        (Llama, "llama.attention.head_count_kv", MetaValue::U32s(vec![2]), "one entry per layer"),
        (Gemma3, "gemma3.attention.key_length", U32(7), "key_length"),
        (Llama, "llama.attention.value_length", U32(4), "value_length"),
        (Llama, "llama.rope.dimension_count", U32(4), "dimension_count"),
        (Llama, "llama.rope.freq_base", F32(-1.0), "freq_base"),
        (Llama, "llama.rope.freq_base", F32(f32::INFINITY), "finite"),
        (Llama, "llama.rope.scaling.type", Str("yarn".into()), "yarn"),
        (Llama, "llama.rope.scaling.factor", F32(-2.0), "scaling.factor"),
        (Llama, "llama.attention.layer_norm_rms_epsilon", F32(0.0), "epsilon"),
        (Llama, "llama.attention.layer_norm_rms_epsilon", I32(1), "float"),
        (Llama, "llama.context_length", U32(0), "context_length"),
        (Llama, "llama.expert_count", U32(8), "expert_count"),
        (Qwen2, "qwen2.attention.sliding_window", U32(16), "sliding_window"),
        (Llada, "tokenizer.ggml.mask_token_id", U32(20), "mask_token_id"),
        (Llada, "llada.attention.causal", MetaValue::Bool(true), "llada.attention.causal"),
        (Dream, "diffusion.shift_logits", U32(1), "shift_logits"),
        (Gemma3, "gemma3.attention.sliding_window_pattern", MetaValue::Bools(vec![true]), "1 long"),
        (Llama, "split.count", U32(4), "merge"),
        (Llama, "tokenizer.ggml.tokens", MetaValue::Strs(vec![String::new(); 21]), "21 long"),
    ] {
        let line = with(arch, key, value.clone()).expect_err(key);
        assert!(line.contains(part), "{key} = {value:?}: {line}");
    }
    let factors = with(Llama, "llama.rope.scaling.factor", F32(4.0)).unwrap();
    assert_eq!(factors.hyper_params().rope_factors, Some(vec![4.0; 4]));
}

#[test]
fn a_tensor_that_nothing_would_read_is_refused() {
    let mut writer = model(Architecture::Llama);
    let shape = Shape::new(&[32]).unwrap();
    writer.tensor("blk.0.attn_output.bias", WeightType::F32, shape, vec![0; 128]);
    let file = Gguf::from_bytes(writer.to_bytes().unwrap(), "m.gguf").unwrap();
    let line = GgufWeights::new(file).unwrap_err().to_string();
    assert!(line.contains("blk.0.attn_output.bias"), "{line}");
    // But a table of rotary factors is read.
    let mut writer = model(Architecture::Llama);
    let table: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    writer.tensor("rope_freqs.weight", WeightType::F32, Shape::new(&[4]).unwrap(), table);
    let file = Gguf::from_bytes(writer.to_bytes().unwrap(), "m.gguf").unwrap();
    let weights = GgufWeights::new(file).unwrap();
    assert_eq!(weights.hyper_params().rope_factors, Some(vec![1.0, 2.0, 3.0, 4.0]));
}

#[test]
fn a_written_file_reads_back_byte_for_byte() {
    for arch in Architecture::ALL {
        let writer = model(arch);
        let bytes = writer.to_bytes().unwrap();
        let file = Gguf::from_bytes(bytes.clone(), "m.gguf").unwrap();
        let mut copy = GgufWriter::new();
        copy.copy_metadata(&file, |_| true);
        for tensor in file.tensors() {
            copy.declare(&tensor.name, tensor.ty, tensor.shape);
        }
        let scratch = Scratch::new(&format!("copy-{arch}"));
        let path = scratch.0.join("copy.gguf");
        copy.write(&path, |name, out| file.read_tensor(name, out).map(|_| ())).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        assert_eq!(std::fs::read_dir(&scratch.0).unwrap().count(), 1);
    }
}

#[test]
fn rows_are_the_tensor_cut_at_row_boundaries() {
    let bytes = model(Architecture::Gemma3).to_bytes().unwrap();
    let file = Gguf::from_bytes(bytes, "m.gguf").unwrap();
    let (mut all, mut some) = (Vec::new(), Vec::new());
    let info = file.read_tensor("blk.1.ffn_gate.weight", &mut all).unwrap();
    let row = info.row_bytes();
    for (a, b) in [(0, 64), (3, 4), (63, 64), (10, 50), (5, 5)] {
        file.read_rows(info, a..b, &mut some).unwrap();
        assert_eq!(some, all[a * row..b * row]);
    }
    #[allow(clippy::reversed_empty_ranges)]
    for bad in [0..65, 64..65, 5..4, usize::MAX..usize::MAX] {
        assert!(file.read_rows(info, bad, &mut some).is_err());
    }
}
