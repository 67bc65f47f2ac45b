//! `tessera quantize` and `tessera perplexity`, end to end on a toy.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod toy;

use serde_json::Value;

fn refused(arguments: &[&str]) -> String {
    let ran = toy::tessera(arguments, "");
    assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{arguments:?}: {}", ran.err);
    ran.err.trim_end().to_owned()
}

#[test]
fn choices_are_printed_and_the_file_runs() {
    let out =
        toy::works(&["quantize", "toy.gguf", "fine.gguf", "--alpha", "1", "--min-group", "32"], "");
    for words in [
        "ffn_down                        2  Q4_0       32    4.500",
        "token_embd",
        "bits per weight",
    ] {
        assert!(out.contains(words), "{words}: {out}");
    }
    assert!(!out.contains("requantisation"), "{out}");
    let text =
        toy::works(&["run", "fine.gguf", "hello", "--raw", "-n", "3", "-q", "--seed", "1"], "");
    assert!(!text.is_empty());
    let again = refused(&["quantize", "toy.gguf", "fine.gguf"]);
    assert!(again.contains("--force"), "{again}");
    // What is quantised already is labelled.
    let out = toy::works(&["quantize", "fine.gguf", "twice.gguf", "--scheme", "q4_0"], "");
    assert!(out.starts_with("requantisation: fine.gguf holds Q4_0, Q8_0"), "{out}");
}

#[test]
fn the_compact_form_is_smaller_and_predicts_the_same() {
    let flags = ["--alpha", "0", "--guard", "0", "--error-budget", "0", "--bits", "4", "--json"];
    let quantise = |to: &str, more: &[&str]| -> Value {
        let line = [&["quantize", "toy.gguf", to][..], &flags[..], more].concat();
        serde_json::from_str(&toy::works(&line, "")).unwrap()
    };
    let (a, b) = (quantise("wide.gguf", &[]), quantise("small.gguf", &["--compact"]));
    assert!(b["bytes_after"].as_u64() < a["bytes_after"].as_u64());
    assert_eq!(a["requantised"], false);
    // Rows of 64 and 96 weights, one scale each.
    let all = b["matrices"].as_array().unwrap();
    let query = all.iter().find(|m| m["name"] == "blk.0.attn_q.weight").unwrap();
    let bits = query["bits_per_weight"].as_f64().unwrap();
    assert!((bits - 4.25).abs() < 1e-9, "{bits}");
    std::fs::write(toy::file("text.txt"), "a text of some letters, long enough").unwrap();
    let read = |model: &str| -> Value {
        let line = ["perplexity", "text.txt", "-m", model, "-c", "16", "--json"];
        serde_json::from_str(&toy::works(&line, "")).unwrap()
    };
    let (a, b) = (read("wide.gguf"), read("small.gguf"));
    assert_eq!(a["perplexity"], b["perplexity"]);
    assert!(a["perplexity"].as_f64().unwrap() > 1.0);
    // 35 bytes in chunks of 16, 16 and 3: each predicts all but its first.
    assert_eq!((a["predicted"].as_u64(), a["chunks"].as_u64()), (Some(32), Some(3)));
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    for (line, words) in [
        (&["quantize", "toy.gguf", "out.bin"][..], "must end in .gguf"),
        (&["quantize", "toy.gguf", "toy.gguf"], "the source itself"),
        (&["quantize", "toy.gguf", "toy.gguf", "--force"], "the source itself"),
        (&["quantize", "toy.gguf", "x.gguf", "--scheme", "q5_k"], "not written yet"),
        (&["quantize", "toy.gguf", "x.gguf", "--scheme", "fineqant"], "did you mean `finequant`"),
        (&["quantize", "toy.gguf", "x.gguf", "--scheme", "q4_0", "--alpha", "0.5"], "--alpha"),
        (&["quantize", "toy.gguf", "x.gguf", "--scheme", "q4_0", "--compact"], "--compact"),
        (&["quantize", "toy.gguf", "x.gguf", "--alpha", "2"], "alpha = 2: must be between 0 and 1"),
        (&["quantize", "toy.gguf", "x.gguf", "--bits", "5"], "bits"),
        (&["perplexity", "-m", "./toy.gguf", "-c", "1"], "at least 2"),
        (&["run", "toy.gguf", "x", "--method", "finequant"], "its own command"),
    ] {
        let said = refused(line);
        assert!(said.contains(words) && said.lines().count() == 1, "{line:?}: {said}");
    }
    assert!(!toy::file("x.gguf").exists());
}

#[test]
fn a_damaged_source_leaves_nothing_behind() {
    let bytes = std::fs::read(toy::file("toy.gguf")).unwrap();
    std::fs::write(toy::file("cut.gguf"), &bytes[..bytes.len() - 100]).unwrap();
    let ran = toy::tessera(&["quantize", "cut.gguf", "from_cut.gguf"], "");
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("truncated") && ran.err.lines().count() == 1, "{}", ran.err);
    assert!(!toy::file("from_cut.gguf").exists());
}
