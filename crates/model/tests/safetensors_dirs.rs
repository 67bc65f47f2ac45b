//! Model directories: the same tensors as the GGUF file they were exported from, whole or in
//! shards; and incident 6, directories that lie.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod tiny;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tessera_kernels::dequantize;
use tessera_model::gguf::{Gguf, GgufWriter};
use tessera_model::store::testing::find_test_model;
use tessera_model::{
    Architecture, ExportType, GgufWeights, SafetensorsDir, WeightSource, export_safetensors,
    open_weights,
};
use tiny::{Rng, Scratch, model};

fn gguf(arch: Architecture) -> GgufWeights {
    let file = Gguf::from_bytes(model(arch).to_bytes().unwrap(), "m.gguf").unwrap();
    GgufWeights::new(file).unwrap()
}

/// A tensor's values, dequantised.
fn values(from: &dyn WeightSource, name: &str) -> Vec<f32> {
    let mut bytes = Vec::new();
    let info = from.read(name, &mut bytes).unwrap();
    let mut out = vec![0.0; info.shape.elements()];
    dequantize(info.ty, &bytes, &mut out).unwrap();
    out
}

/// Every tensor equal, bit for bit, and the same hyper-parameters.
fn assert_same(gguf: &GgufWeights, dir: &dyn WeightSource) {
    assert_eq!(dir.hyper_params(), gguf.hyper_params());
    for tensor in gguf.gguf().unwrap().tensors() {
        let (a, b) = (values(gguf, &tensor.name), values(dir, &tensor.name));
        let same = a.iter().map(|v| v.to_bits()).eq(b.iter().map(|v| v.to_bits()));
        assert!(same, "{}", tensor.name);
        assert_eq!(dir.info(&tensor.name).unwrap().shape, tensor.shape);
    }
    assert_eq!(dir.summary().parameters, gguf.summary().parameters);
}

#[test]
fn an_exported_model_has_the_same_tensors() {
    for arch in Architecture::ALL {
        let scratch = Scratch::new(&format!("export-{arch}"));
        let from = gguf(arch);
        export_safetensors(&from, &scratch.0, ExportType::F32).unwrap();
        let dir = open_weights(&scratch.0).unwrap();
        assert_same(&from, &*dir);
        // Some rows are a piece of all rows, in the permuted tensors too.
        let (mut all, mut some) = (Vec::new(), Vec::new());
        dir.read("blk.1.attn_q.weight", &mut all).unwrap();
        dir.read_rows("blk.1.attn_q.weight", 3..7, &mut some).unwrap();
        let row = 4 * tiny::HIDDEN;
        assert_eq!(some, all[3 * row..7 * row]);
        assert!(dir.read_rows("blk.1.attn_q.weight", 3..33, &mut some).is_err());
        assert!(dir.read("blk.2.attn_q.weight", &mut some).unwrap_err().is_missing());
        // Nothing temporary is left.
        let mut names: Vec<_> =
            std::fs::read_dir(&scratch.0).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["config.json", "model.safetensors"]);
    }
}

#[test]
fn brain_floats_are_the_values_rounded() {
    let scratch = Scratch::new("export-bf16");
    let from = gguf(Architecture::Llama);
    export_safetensors(&from, &scratch.0, ExportType::Bf16).unwrap();
    let dir = SafetensorsDir::open(&scratch.0).unwrap();
    for name in ["token_embd.weight", "blk.0.attn_k.weight", "output_norm.weight"] {
        let rounded: Vec<f32> =
            values(&from, name).iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
        assert_eq!(values(&dir, name), rounded, "{name}");
    }
}

#[test]
fn gemma_norms_are_stored_without_their_one_and_llama_heads_in_halves() {
    // What the directory holds, read without the loader's own corrections.
    let raw = |dir: &Path, name: &str| -> Vec<f32> {
        let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let view = file.tensor(name).unwrap();
        view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let scratch = Scratch::new("raw");
    let from = gguf(Architecture::Gemma3);
    export_safetensors(&from, &scratch.0, ExportType::F32).unwrap();
    let stored = raw(&scratch.0, "model.layers.0.pre_feedforward_layernorm.weight");
    let norm = values(&from, "blk.0.ffn_norm.weight");
    assert!(stored.iter().zip(&norm).all(|(s, n)| s + 1.0 == *n && *s != *n));
    let stored = raw(&scratch.0, "model.layers.0.self_attn.q_proj.weight");
    assert_eq!(stored, values(&from, "blk.0.attn_q.weight"));

    let from = gguf(Architecture::Llama);
    export_safetensors(&from, &scratch.0, ExportType::F32).unwrap();
    let stored = raw(&scratch.0, "model.layers.1.self_attn.k_proj.weight");
    let k = values(&from, "blk.1.attn_k.weight");
    let row = |v: &[f32], i: usize| v[i * tiny::HIDDEN..(i + 1) * tiny::HIDDEN].to_vec();
    // Heads of 8 rows: pairs (0,1) (2,3) (4,5) (6,7) come from halves 0 1 2 3 | 4 5 6 7.
    for (ours, theirs) in [(0, 0), (1, 4), (2, 1), (3, 5), (6, 3), (7, 7), (8, 8), (9, 12)] {
        assert_eq!(row(&k, ours), row(&stored, theirs), "{ours}");
    }
}

/// Splits an exported model into two shards and writes their index.
fn shard(dir: &Path) -> PathBuf {
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut names = file.names();
    names.sort_unstable();
    let mut map = serde_json::Map::new();
    for (i, part) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let name = format!("model-0000{}-of-00002.safetensors", i + 1);
        let tensors: Vec<_> = part.iter().map(|n| (*n, file.tensor(n).unwrap())).collect();
        let bytes = safetensors::serialize(tensors, None).unwrap();
        std::fs::write(dir.join(&name), bytes).unwrap();
        part.iter().for_each(|tensor| {
            map.insert(tensor.to_string(), name.clone().into());
        });
    }
    let index = dir.join("model.safetensors.index.json");
    std::fs::write(&index, json!({ "metadata": {}, "weight_map": map }).to_string()).unwrap();
    index
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn incident_6_shards_are_read_and_may_not_leave_the_directory() {
    let scratch = Scratch::new("shards");
    let from = gguf(Architecture::Qwen2);
    let dir = scratch.0.join("model");
    export_safetensors(&from, &dir, ExportType::F32).unwrap();
    let index = shard(&dir);
    assert_same(&from, &SafetensorsDir::open(&dir).unwrap());

    let good = std::fs::read(&index).unwrap();
    let first = dir.join("model-00001-of-00002.safetensors");
    std::fs::copy(&first, scratch.0.join("outside.safetensors")).unwrap();
    std::fs::create_dir(dir.join("sub")).unwrap();
    std::fs::copy(&first, dir.join("sub/inside.safetensors")).unwrap();
    let absolute = scratch.0.join("outside.safetensors").display().to_string();
    let names = ["../outside.safetensors", &absolute, "sub/inside.safetensors", "..", "", "x.bin"];
    for name in names {
        edit(&index, |v| {
            for file in v["weight_map"].as_object_mut().unwrap().values_mut() {
                if *file == "model-00001-of-00002.safetensors" {
                    *file = name.into();
                }
            }
        });
        let line = SafetensorsDir::open(&dir).unwrap_err().to_string();
        assert!(line.contains("weight_map") && line.contains("plain name"), "{line}");
        std::fs::write(&index, &good).unwrap();
    }
    // A tensor said to be where it is not, and values that are no names.
    edit(&index, |v| v["weight_map"]["lm_head.weight"] = 7.into());
    assert!(SafetensorsDir::open(&dir).unwrap_err().to_string().contains("plain name"));
    std::fs::write(&index, &good).unwrap();
    edit(&index, |v| {
        v["weight_map"]["stray"] = "model-00001-of-00002.safetensors".into();
    });
    assert!(SafetensorsDir::open(&dir).unwrap_err().to_string().contains("lacks it"));
    std::fs::write(&index, &good).unwrap();
    edit(&index, |v| *v = json!([]));
    assert!(SafetensorsDir::open(&dir).unwrap_err().to_string().contains("weight_map"));
    std::fs::write(&index, &good).unwrap();

    // A second copy of the same tensors.
    std::fs::copy(&first, dir.join("twice.safetensors")).unwrap();
    edit(&index, |v| {
        let map = v["weight_map"].as_object_mut().unwrap();
        let name = map.iter().find(|(_, f)| **f == "model-00001-of-00002.safetensors");
        let name = name.unwrap().0.clone();
        map[&name] = "twice.safetensors".into();
    });
    assert!(SafetensorsDir::open(&dir).unwrap_err().to_string().contains("twice"));
}

#[cfg(unix)]
#[test]
fn incident_6_links_out_of_the_directory_are_refused_but_the_hub_cache_works() {
    use std::os::unix::fs::symlink;
    let scratch = Scratch::new("links");
    let from = gguf(Architecture::Gemma3);
    // As the hub's cache lies on disk.
    let blobs = scratch.0.join("models--a--b/blobs");
    export_safetensors(&from, &blobs, ExportType::F32).unwrap();
    let snapshot = scratch.0.join("models--a--b/snapshots/0123");
    std::fs::create_dir_all(&snapshot).unwrap();
    for name in ["config.json", "model.safetensors"] {
        symlink(format!("../../blobs/{name}"), snapshot.join(name)).unwrap();
    }
    assert_same(&from, &SafetensorsDir::open(&snapshot).unwrap());

    // The same links from a directory that is no snapshot.
    let dir = scratch.0.join("models--a--b/other/0123");
    std::fs::create_dir_all(&dir).unwrap();
    for name in ["config.json", "model.safetensors"] {
        symlink(format!("../../blobs/{name}"), dir.join(name)).unwrap();
    }
    let line = SafetensorsDir::open(&dir).unwrap_err().to_string();
    assert!(line.contains("config.json") && line.contains("a link to"), "{line}");
    std::fs::remove_file(dir.join("config.json")).unwrap();
    std::fs::copy(blobs.join("config.json"), dir.join("config.json")).unwrap();
    let line = SafetensorsDir::open(&dir).unwrap_err().to_string();
    assert!(line.contains("model.safetensors") && line.contains("a link to"), "{line}");
}

/// A safetensors file with this header and so many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.resize(out.len() + data, 0);
    out
}

#[test]
fn incident_6_headers_that_lie_are_refused_by_tensor() {
    let scratch = Scratch::new("headers");
    let from = gguf(Architecture::Llama);
    export_safetensors(&from, &scratch.0, ExportType::F32).unwrap();
    let path = scratch.0.join("model.safetensors");
    let one = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{a}}},"b":{{"dtype":"F32","shape":[2],"data_offsets":{b}}}}}"#
        )
    };
    let long = (64u64 << 20).to_le_bytes();
    for (bytes, part) in [
        (Vec::new(), "header length"),
        (vec![1, 2, 3], "header length"),
        (u64::MAX.to_le_bytes().to_vec(), "header length"),
        ([&long[..], &[b' '; 100]].concat(), "header length"),
        (100u64.to_le_bytes().to_vec(), "header"),
        (file("not json", 0), "header"),
        (file("[1, 2]", 0), "header"),
        (file(&"[".repeat(100_000), 0), "header"),
        (file(&one("F32", "[2]", "[0,9]"), 9), "\"a\": data_offsets"),
        (file(&one("F32", "[2]", "[8,0]"), 8), "\"a\": data_offsets"),
        (file(&one("F16", "[2]", "[0,8]"), 8), "\"a\": data_offsets"),
        (file(&one("F32", "[2]", "[0,8]"), 7), "\"a\": data"),
        (file(&one("F32", "[2]", "[0,8]"), 9), "data is 9"),
        (file(&one("F32", "[2]", "[4,12]"), 12), "hole"),
        (file(&one("F32", "[4294967296,4294967296]", "[0,8]"), 8), "\"a\": shape"),
        (file(&one("F32", "[18446744073709551615]", "[0,8]"), 8), "\"a\": shape"),
        (file(&one("F32", "[2]", "[0,18446744073709551615]"), 8), "\"a\": data_offsets"),
        (file(&one("F32", "[-2]", "[0,8]"), 8), "tensor \"a\""),
        (file(&one("Q4", "[2]", "[0,8]"), 8), "Q4"),
        (file(&one("\\u001b[2J", "[2]", "[0,8]"), 8), "`\\u{1b}[2J`"),
        (file(&two("[0,8]", "[4,12]"), 12), "overlapping"),
        (file(&two("[0,8]", "[0,8]"), 8), "overlapping"),
        (file(&two("[0,8]", "[12,20]"), 20), "hole"),
        (file(r#"{"a":1,"a":2}"#, 0), "\"a\""),
        (file(&two("[0,8]", "[8,16]").replace("\"b\"", "\"a\""), 16), "twice"),
        // A good file of another model.
        (file(&two("[0,8]", "[8,16]"), 16), "missing"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let line = SafetensorsDir::open(&scratch.0).unwrap_err().to_string();
        assert!(line.contains(part), "{line}\nlacks {part}");
    }
}

#[test]
fn incident_6_tensors_of_another_shape_or_type_than_the_configuration_says() {
    let scratch = Scratch::new("shapes");
    let from = gguf(Architecture::Llama);
    export_safetensors(&from, &scratch.0, ExportType::F32).unwrap();
    let config = scratch.0.join("config.json");
    let good = std::fs::read(&config).unwrap();
    let broken = |change: &dyn Fn(&mut Value), part: &str| {
        edit(&config, change);
        let line = SafetensorsDir::open(&scratch.0).unwrap_err().to_string();
        assert!(line.contains(part), "{line}\nlacks {part}");
        std::fs::write(&config, &good).unwrap();
    };
    broken(&|v| v["vocab_size"] = 21.into(), "model.embed_tokens.weight");
    broken(&|v| v["intermediate_size"] = 96.into(), "mlp");
    broken(&|v| v["num_hidden_layers"] = 3.into(), "model.layers.2");
    broken(&|v| v["num_hidden_layers"] = 1.into(), "model.layers.1");
    broken(&|v| v["model_type"] = "qwen2".into(), "q_proj.bias");
    broken(&|v| v["model_type"] = "gpt_neox".into(), "gpt_neox");
    broken(&|v| *v = json!("config"), "not an object");
    broken(&|v| v["padding"] = "x".repeat(2 << 20).into(), "at most 1048576");
    // Tied embeddings: a stored head is ignored, as the configuration says.
    edit(&config, |v| v["tie_word_embeddings"] = true.into());
    assert!(SafetensorsDir::open(&scratch.0).unwrap().find("output.weight").is_none());

    std::fs::write(&config, "{").unwrap();
    assert!(SafetensorsDir::open(&scratch.0).unwrap_err().to_string().contains("not JSON"));
    std::fs::remove_file(&config).unwrap();
    assert!(SafetensorsDir::open(&scratch.0).unwrap_err().to_string().contains("config.json"));
}

#[test]
fn incident_6_damaged_and_truncated_files_are_errors() {
    let scratch = Scratch::new("damage");
    let from = gguf(Architecture::Llama);
    export_safetensors(&from, &scratch.0, ExportType::F32).unwrap();
    let path = scratch.0.join("model.safetensors");
    let good = std::fs::read(&path).unwrap();
    let head = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let dir = SafetensorsDir::open(&scratch.0).unwrap();

    let mut fine = 0;
    for seed in 0..1000 {
        let mut rng = Rng(seed);
        let mut bytes = good[..head].to_vec();
        match rng.below(3) {
            0 => (0..=rng.below(3)).for_each(|_| bytes[rng.below(head)] ^= 1 << rng.below(8)),
            1 => {
                let (from, to) = (rng.below(head - 40), rng.below(head - 40));
                bytes.copy_within(from..from + 1 + rng.below(40), to);
            }
            _ => bytes.truncate(rng.below(head)),
        }
        // The data stays a hole in the file: only the header is damaged.
        std::fs::write(&path, &bytes).unwrap();
        let out = std::fs::File::options().write(true).open(&path).unwrap();
        if bytes.len() == head {
            out.set_len(good.len() as u64).unwrap();
        }
        match SafetensorsDir::open(&scratch.0) {
            Ok(_) => fine += 1,
            Err(error) => {
                assert!(!error.field().is_empty() && !error.to_string().contains('\n'), "{error}");
            }
        }
    }
    // Damage to padding and unused text goes unnoticed; most does not.
    assert!(fine < 100, "{fine} of 1000 damaged headers passed");

    for len in [0, 7, 8, head - 1, head, head + 1, good.len() - 1] {
        std::fs::write(&path, &good[..len]).unwrap();
        assert!(SafetensorsDir::open(&scratch.0).is_err(), "{len}");
    }
    // The directory opened before all this reads the file through its open handle, now cut.
    let mut out = Vec::new();
    std::fs::write(&path, &good[..head]).unwrap();
    let error = dir.read("output_norm.weight", &mut out).unwrap_err();
    assert!(error.to_string().contains("truncated"), "{error}");
}

#[test]
fn a_real_file_survives_the_way_through_a_directory() {
    let Some(path) = find_test_model("smollm2") else { return };
    // Its first layer as a model of its own: the whole would be half a gigabyte of floats.
    let scratch = Scratch::new("real");
    let file = Gguf::open(&path).unwrap();
    let mut writer = GgufWriter::new();
    writer.copy_metadata(&file, |_| true);
    writer.set("llama.block_count", 1u32);
    let kept = |name: &str| !name.starts_with("blk.") || name.starts_with("blk.0.");
    for tensor in file.tensors().iter().filter(|tensor| kept(&tensor.name)) {
        writer.declare(&tensor.name, tensor.ty, tensor.shape);
    }
    let small = scratch.0.join("one-layer.gguf");
    writer.write(&small, |name, out| file.read_tensor(name, out).map(|_| ())).unwrap();
    let from = GgufWeights::new(Gguf::open(&small).unwrap()).unwrap();
    let dir = scratch.0.join("dir");
    export_safetensors(&from, &dir, ExportType::F32).unwrap();
    assert_same(&from, &SafetensorsDir::open(&dir).unwrap());
}
