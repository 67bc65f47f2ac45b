use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde_json::json;

use super::*;
use crate::toy::encoder::{HEADS, HIDDEN, LAYERS, WORDS, config, values};

fn write(root: &Path) {
    crate::toy::encoder::write(root).unwrap();
}

/// `text` through the same weights, in f64 and one row after the other.
fn slow(tokens: &[u32]) -> Vec<f64> {
    let all = values();
    let get = |name: &str| -> Vec<f64> {
        let (_, _, values) = all.iter().find(|(own, _, _)| own == name).unwrap();
        values.iter().map(|v| f64::from(*v)).collect()
    };
    let linear = |x: &[f64], name: &str| -> Vec<f64> {
        let (w, b) = (get(&format!("{name}.weight")), get(&format!("{name}.bias")));
        let rows = w.chunks(x.len()).zip(b);
        rows.map(|(w, b)| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + b).collect()
    };
    let norm = |x: &[f64], name: &str| -> Vec<f64> {
        let (w, b) = (get(&format!("{name}.weight")), get(&format!("{name}.bias")));
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let spread = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let one = |((v, w), b): ((&f64, f64), f64)| (v - mean) / (spread + 1e-12).sqrt() * w + b;
        x.iter().zip(w).zip(b).map(one).collect()
    };
    let sum = |x: &[f64], y: &[f64]| -> Vec<f64> { x.iter().zip(y).map(|(x, y)| x + y).collect() };
    let (words, places) =
        (get("embeddings.word_embeddings.weight"), get("embeddings.position_embeddings.weight"));
    let kinds = get("embeddings.token_type_embeddings.weight");
    let mut rows: Vec<Vec<f64>> = tokens
        .iter()
        .enumerate()
        .map(|(i, &t)| {
            let t = t as usize;
            let x = sum(&words[t * HIDDEN..][..HIDDEN], &places[i * HIDDEN..][..HIDDEN]);
            norm(&sum(&x, &kinds[..HIDDEN]), "embeddings.LayerNorm")
        })
        .collect();
    for l in 0..LAYERS {
        let at = |name: &str| format!("encoder.layer.{l}.{name}");
        let part = |name: &str| -> Vec<Vec<f64>> {
            rows.iter().map(|x| linear(x, &at(&format!("attention.self.{name}")))).collect()
        };
        let (q, k, v) = (part("query"), part("key"), part("value"));
        let dim = HIDDEN / HEADS;
        let mut next = Vec::new();
        for (i, x) in rows.iter().enumerate() {
            let mut read = vec![0.0; HIDDEN];
            for h in 0..HEADS {
                let own = h * dim..(h + 1) * dim;
                let dot = |j: usize| -> f64 {
                    q[i][own.clone()].iter().zip(&k[j][own.clone()]).map(|(q, k)| q * k).sum()
                };
                let scores: Vec<f64> =
                    (0..rows.len()).map(|j| (dot(j) / (dim as f64).sqrt()).exp()).collect();
                let whole: f64 = scores.iter().sum();
                for (j, score) in scores.iter().enumerate() {
                    own.clone().for_each(|c| read[c] += score / whole * v[j][c]);
                }
            }
            let x = sum(x, &linear(&read, &at("attention.output.dense")));
            let x = norm(&x, &at("attention.output.LayerNorm"));
            let wide = linear(&x, &at("intermediate.dense")).into_iter();
            let wide: Vec<f64> =
                wide.map(|v| 0.5 * v * (1.0 + libm::erf(v / std::f64::consts::SQRT_2))).collect();
            let x = sum(&x, &linear(&wide, &at("output.dense")));
            next.push(norm(&x, &at("output.LayerNorm")));
        }
        rows = next;
    }
    let mut mean = vec![0.0; HIDDEN];
    rows.iter().for_each(|row| mean.iter_mut().zip(row).for_each(|(m, x)| *m += x));
    let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
    mean.iter().map(|x| x / length).collect()
}

fn opened(root: &Path) -> Result<Encoder, String> {
    Encoder::open("toy", root, 2).map_err(|error| error.to_string())
}

#[test]
fn embeddings_are_those_of_a_slow_reference() {
    let root = tempfile::tempdir().unwrap();
    write(root.path());
    let encoder = opened(root.path()).unwrap();
    // More than the 16 rows that the kernel takes at once, and fewer.
    let long = "the sea is blue . the cat is a cat . the seaside is blue";
    for text in ["The SEASIDE is blue.", "cat", long] {
        let tokens = encoder.tokens(text).unwrap();
        let made = encoder.embed(std::slice::from_ref(&tokens)).unwrap();
        for (fast, slow) in made[0].iter().zip(slow(&tokens)) {
            assert!((f64::from(*fast) - slow).abs() < 2e-6, "{text}: {fast} {slow}");
        }
    }
    assert_eq!(encoder.tokens("The seaside, zebra").unwrap(), [2, 4, 5, 6, 1, 1, 3]);
    assert_eq!((encoder.width(), encoder.longest()), (HIDDEN, 20));
}

#[test]
fn what_a_text_becomes_does_not_depend_on_those_beside_it() {
    let root = tempfile::tempdir().unwrap();
    write(root.path());
    let encoder = opened(root.path()).unwrap();
    let texts: Vec<Vec<u32>> = (0..240)
        .map(|i| {
            let text: Vec<&str> = (0..1 + i % 9).map(|j| WORDS[4 + (i + j) % 8]).collect();
            encoder.tokens(&text.join(" ")).unwrap()
        })
        .collect();
    assert!(texts.iter().map(Vec::len).sum::<usize>() > ROWS);
    let together = encoder.embed(&texts).unwrap();
    for (text, beside) in texts.iter().zip(together) {
        assert_eq!(encoder.embed(std::slice::from_ref(text)).unwrap()[0], beside);
    }
}

#[test]
fn an_archive_is_read_as_a_directory_is() {
    let root = tempfile::tempdir().unwrap();
    write(root.path());
    let path = root.path().join("encoder.zip");
    let mut archive = zip::ZipWriter::new(File::create(&path).unwrap());
    for name in [CONFIG, TOKENIZER, WEIGHTS, SENTENCES, POOLING] {
        let options = zip::write::SimpleFileOptions::default();
        archive.start_file(format!("package/model/{name}"), options).unwrap();
        archive.write_all(&std::fs::read(root.path().join(name)).unwrap()).unwrap();
    }
    archive.finish().unwrap();
    let (directory, zipped) = (opened(root.path()).unwrap(), opened(&path).unwrap());
    let tokens = vec![directory.tokens("the sea").unwrap()];
    assert_eq!(directory.embed(&tokens).unwrap(), zipped.embed(&tokens).unwrap());
}

#[test]
fn what_is_wrong_is_named() {
    let root = tempfile::tempdir().unwrap();
    let expect = |name: &str, text: Option<&str>, parts: &[&str]| {
        write(root.path());
        let path = root.path().join(name);
        match text {
            Some(text) => std::fs::write(&path, text).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let error = opened(root.path()).err().unwrap_or_default();
        assert!(parts.iter().all(|part| error.contains(part)), "{name}: {error}");
    };
    expect(CONFIG, None, &["config.json is missing"]);
    expect(CONFIG, Some("{"), &["config.json is not readable"]);
    expect(CONFIG, Some("{}"), &["model_type is missing", "bert"]);
    let with = |name: &str, value: serde_json::Value| {
        let mut all = config();
        all[name] = value;
        all.to_string()
    };
    expect(CONFIG, Some(&with("model_type", json!("roberta"))), &["model_type", "roberta", "bert"]);
    expect(CONFIG, Some(&with("hidden_act", json!("relu"))), &["hidden_act", "gelu"]);
    expect(
        CONFIG,
        Some(&with("num_attention_heads", json!(5))),
        &["num_attention_heads", "divisor"],
    );
    expect(CONFIG, Some(&with("hidden_size", json!(0))), &["hidden_size", "1 to"]);
    expect(CONFIG, Some(&with("hidden_size", json!(1e9))), &["hidden_size"]);
    expect(CONFIG, Some(&with("intermediate_size", json!(64))), &["intermediate.dense", "shape"]);
    expect(CONFIG, Some(&with("vocab_size", json!(3))), &["tokens is 12"]);
    expect(CONFIG, Some(&with("num_hidden_layers", json!(3))), &["encoder.layer.2", "missing"]);
    expect(TOKENIZER, None, &["tokenizer.json is missing"]);
    expect(TOKENIZER, Some("{\"model\":7}"), &["tokenizer.json is not readable"]);
    expect(WEIGHTS, Some("no weights"), &["model.safetensors is not readable"]);
    expect(POOLING, Some("{\"pooling_mode_max_tokens\":true}"), &["pooling_mode_max_tokens"]);
    expect(SENTENCES, Some("{\"max_seq_length\":1000}"), &["max_seq_length is 1000"]);
    let file = root.path().join("text");
    std::fs::write(&file, "no archive").unwrap();
    assert!(opened(&file).err().unwrap().contains("zip archive"));
    assert!(opened(&root.path().join("nowhere")).err().unwrap().contains("open"));

    write(root.path());
    let encoder = opened(root.path()).unwrap();
    let error = encoder.tokens(&"cat ".repeat(19)).unwrap_err().to_string();
    assert!(error.contains("21 tokens") && error.contains("reads 20"), "{error}");
    assert!(encoder.embed(&[vec![2; 21]]).is_err());
    assert!(encoder.embed(&[vec![12]]).is_err());
    assert!(encoder.embed(&[Vec::new()]).is_err());
    assert_eq!(encoder.embed(&[]).unwrap(), Vec::<Vec<f32>>::new());
}
