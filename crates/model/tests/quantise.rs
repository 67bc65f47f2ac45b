//! Quantising whole (tiny) models: files that open again, hold what was promised and carry the rest.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod tiny;

use std::path::Path;

use tessera_kernels::{Isa, Matrix, Pool, WeightType, dequantize};
use tessera_model::gguf::{Gguf, GgufWriter, Shape};
use tessera_model::quantise::base::Bits;
use tessera_model::quantise::{FineQuant, Report, Rule, Scheme, Settings, Tables, quantise};
use tessera_model::{
    Architecture, ExportType, GgufWeights, WeightSource, export_safetensors, open_weights,
};
use tiny::{Scratch, model};

const RULE: Rule = Rule { alpha: 0.0, min_group: 32, guard: 0.0, error_budget: 0.0 };

fn fine(bits: Option<Bits>, alpha: f32) -> Scheme {
    Scheme::FineQuant(FineQuant { rule: Rule { alpha, ..RULE }, bits, max_error: 1.0 })
}

fn settings(scheme: Scheme) -> Settings {
    Settings { scheme, tables: Tables::Same, compact: false }
}

fn source(arch: Architecture) -> Box<dyn WeightSource> {
    let bytes = model(arch).to_bytes().unwrap();
    Box::new(GgufWeights::new(Gguf::from_bytes(bytes, "tiny.gguf").unwrap()).unwrap())
}

fn run(from: &dyn WeightSource, to: &Path, settings: &Settings) -> Report {
    quantise(from, to, settings, &|done, total| assert!(done <= total)).unwrap()
}

fn values(from: &dyn WeightSource, name: &str) -> Vec<f32> {
    let mut raw = Vec::new();
    let info = from.read(name, &mut raw).unwrap();
    let mut out = vec![0.0; info.shape.elements()];
    dequantize(info.ty, &raw, &mut out).unwrap();
    out
}

#[test]
fn every_scheme_writes_a_whole_model_with_the_sources_metadata() {
    let scratch = Scratch::new("quantise-schemes");
    for arch in Architecture::ALL {
        let from = source(arch);
        for scheme in [
            fine(Some(Bits::Four), 1.0),
            fine(Some(Bits::Eight), 0.0),
            Scheme::Q4_0,
            Scheme::Q4_1,
            Scheme::Q8_0,
            Scheme::F16,
            Scheme::Bf16,
            Scheme::F32,
        ] {
            let to = scratch.0.join("out.gguf");
            let report = run(&*from, &to, &settings(scheme));
            let made = open_weights(&to).unwrap();
            assert_eq!(made.hyper_params(), from.hyper_params(), "{arch} {}", report.scheme);
            assert_eq!(report.bytes_after, std::fs::metadata(&to).unwrap().len());
            assert!(report.requantised_from.contains(&"Q4_1"), "{:?}", report.requantised_from);
            let file = made.gguf().unwrap();
            for key in ["general.license", "tokenizer.ggml.model"] {
                let before = from.gguf().unwrap().metadata().get_str(key).unwrap();
                assert_eq!(file.metadata().get_str(key).unwrap(), before, "{key}");
            }
            assert_eq!(file.metadata().array_of("tokenizer.ggml.tokens").unwrap().1, 20);
            // Norms are untouched, whatever the scheme.
            assert_eq!(values(&*made, "output_norm.weight"), values(&*from, "output_norm.weight"));
            let error = values(&*made, "blk.1.ffn_down.weight")
                .iter()
                .zip(values(&*from, "blk.1.ffn_down.weight"))
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert_eq!(error == 0.0, matches!(scheme, Scheme::F32), "{}: {error}", report.scheme);
        }
    }
}

#[test]
fn a_directory_becomes_a_file_of_the_same_model() {
    let scratch = Scratch::new("quantise-directory");
    for arch in Architecture::ALL {
        let dir = scratch.0.join(arch.name());
        export_safetensors(&*source(arch), &dir, ExportType::F32).unwrap();
        let tokenizer = r#"{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false}]}}"#;
        std::fs::write(dir.join("tokenizer.json"), tokenizer).unwrap();
        std::fs::write(dir.join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
        let from = open_weights(&dir).unwrap();
        let to = scratch.0.join("from_dir.gguf");
        let made = quantise(&*from, &to, &settings(Scheme::F32), &|_, _| {});
        // The tiny Gemma has a global layer every second, which only a GGUF source can say.
        if arch == Architecture::Gemma3 {
            assert!(made.unwrap_err().to_string().contains("sliding window"));
            continue;
        }
        let report = made.unwrap();
        assert!(report.requantised_from.is_empty());
        let made = open_weights(&to).unwrap();
        assert_eq!(made.hyper_params(), from.hyper_params(), "{arch}");
        assert_eq!(values(&*made, "blk.0.attn_q.weight"), values(&*from, "blk.0.attn_q.weight"));
        let meta = made.gguf().unwrap().metadata();
        assert_eq!(meta.get_str("tokenizer.ggml.pre").unwrap(), Some("smollm"));
        assert!(meta.contains("tokenizer.chat_template"));
    }
}

#[test]
fn the_compact_form_reads_as_the_standard_one_and_takes_what_the_arithmetic_says() {
    let scratch = Scratch::new("quantise-compact");
    let from = source(Architecture::Llama);
    for bits in [Bits::Four, Bits::Eight] {
        let (a, b) = (scratch.0.join("a.gguf"), scratch.0.join("b.gguf"));
        let standard = settings(fine(Some(bits), 0.0));
        run(&*from, &a, &standard);
        let report = run(&*from, &b, &Settings { compact: true, ..standard });
        let (a, b) = (open_weights(&a).unwrap(), open_weights(&b).unwrap());
        for m in &report.matrices {
            assert_eq!(values(&*a, &m.name), values(&*b, &m.name), "{}", m.name);
            // Reading some rows expands those rows.
            let (mut x, mut y) = (Vec::new(), Vec::new());
            a.read_rows(&m.name, 1..3, &mut x).unwrap();
            b.read_rows(&m.name, 1..3, &mut y).unwrap();
            assert_eq!(x, y);
            let groups = m.cols.div_ceil(m.group.unwrap()) as f64;
            let want = f64::from(bits.count()) + 16.0 * groups / m.cols as f64;
            assert!((m.bits_per_weight - want).abs() < 1e-9, "{} {want}", m.bits_per_weight);
        }
        let wide = report.matrices.iter().find(|m| m.cols == 64).unwrap();
        assert_eq!(wide.to, if bits == Bits::Four { "FQ4" } else { "FQ8" });
        assert_eq!(b.gguf().unwrap().find(&wide.name).unwrap().stored_name(), wide.to);
    }
    let wrong = Settings { compact: true, ..settings(Scheme::Q4_0) };
    let error = quantise(&*from, &scratch.0.join("c.gguf"), &wrong, &|_, _| {}).unwrap_err();
    assert!(error.to_string().contains("compact"));
}

#[test]
fn a_compact_tensor_cut_short_is_an_error() {
    let scratch = Scratch::new("quantise-cut");
    let path = scratch.0.join("x.gguf");
    let compact = Settings { compact: true, ..settings(fine(Some(Bits::Four), 0.0)) };
    run(&*source(Architecture::Llama), &path, &compact);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 40]).unwrap();
    let line = open_weights(&path).unwrap_err().to_string();
    assert!(line.contains("truncated") && line.contains("tensor"), "{line}");
}

#[test]
fn a_weight_that_is_not_finite_is_named_and_nothing_is_left_behind() {
    let scratch = Scratch::new("quantise-finite");
    for bad in [f32::NAN, f32::INFINITY, 1e30] {
        let mut w: GgufWriter = model(Architecture::Llama);
        let mut data = vec![0u8; 32 * 64 * 4];
        data[400..404].copy_from_slice(&bad.to_le_bytes());
        // A second tensor of one name would be refused: the last layer's is replaced.
        w.replace("blk.1.ffn_down.weight", WeightType::F32, Shape::new(&[32, 64]).unwrap(), data);
        let file = Gguf::from_bytes(w.to_bytes().unwrap(), "bad.gguf").unwrap();
        let from = GgufWeights::new(file).unwrap();
        let to = scratch.0.join("bad_out.gguf");
        for scheme in [fine(None, 0.5), Scheme::Q4_0, Scheme::Q8_0, Scheme::Q4_1] {
            let error = quantise(&from, &to, &settings(scheme), &|_, _| {}).unwrap_err();
            assert!(error.to_string().contains("blk.1.ffn_down.weight"), "{error}");
            assert!(!to.exists());
        }
    }
    assert_eq!(std::fs::read_dir(&scratch.0).unwrap().count(), 0);
}

/// The product on packed codes is the product with the values that they stand for, and summing by
/// groups is summing by weights.
#[test]
fn the_fused_product_is_dequantise_then_multiply() {
    use tessera_kernels::{Activations, Target, product};
    let (n, k) = (24, 160);
    let weights: Vec<f32> =
        (0..n * k).map(|i| ((i * 2_654_435_761) % 4093) as f32 / 999.0 - 2.0).collect();
    for (bits, ty) in [(Bits::Four, WeightType::Q4_0), (Bits::Eight, WeightType::Q8_0)] {
        for group in [32, 64, 160] {
            let mut raw = Vec::new();
            for row in weights.chunks(k) {
                tessera_model::quantise::blocks::grouped(row, group, bits, &mut raw).unwrap();
            }
            let packed = Matrix::pack(ty, &raw, n, k).unwrap();
            let mut plain = vec![0.0; n * k];
            dequantize(ty, &raw, &mut plain).unwrap();
            // Activations that int8 holds exactly: whole numbers with 127 in every block.
            let x: Vec<f32> =
                (0..k).map(|i| if i % 32 == 0 { 127.0 } else { (i % 41) as f32 - 20.0 }).collect();
            for isa in Isa::available() {
                let pool = Pool::with_options(1, isa, Default::default()).unwrap();
                let mut a = Activations::new();
                a.quantize(&pool, &x, 1, k);
                let mut out = vec![0.0; n];
                product(&pool, &a, &mut [Target::new(&packed, &mut out)]).unwrap();
                for (row, got) in plain.chunks(k).zip(&out) {
                    let by_weight: f64 =
                        row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                    let size: f64 = row
                        .iter()
                        .zip(&x)
                        .map(|(w, x)| (f64::from(*w) * f64::from(*x)).abs())
                        .sum();
                    assert!(
                        (f64::from(*got) - by_weight).abs() <= 1e-6 * size,
                        "{isa} {group} {got} {by_weight}"
                    );
                }
            }
        }
    }
}
