//! Bad input gets one clear line with a next step, nothing on stdout, and a stable exit code.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "helpers of tests")]

mod toy;

use std::fmt::Write;

/// Runs each command line and lists what it said.
fn said(lines: &[&[&str]]) -> String {
    let mut text = String::new();
    for arguments in lines {
        let ran = toy::tessera(arguments, "");
        assert_eq!(ran.out, "", "{arguments:?} printed a result");
        assert_eq!(ran.err.lines().count(), 1, "{arguments:?} said {:?}", ran.err);
        writeln!(text, "tessera {}\n  {} {}", arguments.join(" "), ran.code, ran.err.trim_end())
            .unwrap();
    }
    text
}

#[test]
fn command_lines_that_cannot_be_read() {
    insta::assert_snapshot!(said(&[
        &["run"],
        &["rum", "smollm2", "hi"],
        &["run", "smollm2", "hi", "--temprature", "1"],
        &["run", "smollm2", "hi", "--top-k", "many"],
        &["run", "smollm2", "hi", "--backend", "cpuu"],
        &["run", "smollm2", "hi", "more"],
        &["run", "smollm2", "hi", "-n"],
        &["run", "smollm2", "hi", "-n", "-1"],
        &["run", "smollm2", "hi", "-t", "-1"],
        &["run", "smollm2", "hi", "--seed", "-3"],
        &["run", "smollm2", "hi", "--top-k", "-1"],
        &["bench", "--serve-stdio", "--quick"],
    ]));
}

#[test]
fn corpora_and_segments_that_cannot_be_made() {
    insta::assert_snapshot!(said(&[
        &["corpus", "x.txt", "--misheard", "0.1"],
        &["corpus", "x.txt", "--utterances", "3", "--misheard", "2"],
        &["corpus", "x.txt", "--utterances", "3", "--frames", "0"],
        &["corpus", "x.txt", "--utterances", "3", "--stories", "2"],
        &["zonkey", "train"],
        &["run", "./toy.gguf", "hi", "--method", "zonkey"],
    ]));
    // In a build with candle it would ask for the file instead.
    if cfg!(not(feature = "candle")) {
        let said = said(&[&["zonkey", "sample", "nothing.safetensors"]]);
        assert!(said.contains("build with `--features candle`"), "{said}");
    }
}

#[test]
fn models_that_are_not_there_or_no_models() {
    insta::assert_snapshot!(said(&[
        &["run", "smolm2", "hi"],
        &["run", "./nothing.gguf", "hi"],
        &["run", "./wrong.gguf", "hi"],
        &["run", "./empty.gguf", "hi"],
        &["run", "./cut.gguf", "hi"],
        &["run", "./nothing", "hi"],
        &["run", "/dev/null", "hi"],
        &["run", "", "hi"],
        &["show", "./wrong.gguf"],
        &["chat", "./wrong.gguf"],
        &["bench", "-m", "./nothing.gguf"],
    ]));
}

#[test]
fn prompts_that_are_none() {
    insta::assert_snapshot!(said(&[
        &["run", "./toy.gguf", ""],
        &["run", "./toy.gguf", " \n"],
        &["run", "./toy.gguf"],
        &["run", "./toy.gguf", "-"],
        &["run", "./toy.gguf", "hi", "--raw", "--system", "be brief"],
    ]));
}

#[test]
fn settings_that_are_impossible() {
    insta::assert_snapshot!(said(&[
        &["run", "./toy.gguf", "hi", "--temperature", "-1"],
        &["run", "./toy.gguf", "hi", "--temp", "nan"],
        &["run", "./toy.gguf", "hi", "--top-p", "0"],
        &["run", "./toy.gguf", "hi", "--min-p", "1.5"],
        &["run", "./toy.gguf", "hi", "--repeat-penalty", "0"],
        &["run", "./toy.gguf", "hi", "--presence-penalty", "3"],
        &["run", "./toy.gguf", "hi", "--frequency-penalty", "inf"],
        &["run", "./toy.gguf", "hi", "--stop", ""],
        &["run", "./toy.gguf", "hi", "-n", "0"],
        &["run", "./toy.gguf", "hi", "-t", "10000"],
        &["run", "./toy.gguf", "hi", "-c", "0"],
        &["run", "./toy.gguf", "hi", "-c", "100000"],
    ]));
}

#[test]
fn a_prompt_longer_than_the_context() {
    insta::assert_snapshot!(said(&[&[
        "run",
        "./toy.gguf",
        "a prompt of twenty-nine bytes",
        "--raw",
        "-c",
        "12"
    ],]));
}

#[test]
fn methods_that_do_not_exist_or_do_not_fit() {
    insta::assert_snapshot!(said(&[
        &["run", "./toy.gguf", "hi", "--method", "nonee"],
        &["run", "./toy.gguf", "hi", "--method", "warp-drive"],
        &["run", "./toy.gguf", "hi", "--method", "none:budget=3"],
        &["run", "./toy.gguf", "hi", "--method", "none:budget"],
        &["run", "./toy.gguf", "hi", "--method", "none", "--method", "plain"],
        &["methods", "show", "nonee"],
    ]));
}

#[test]
fn what_only_models_that_fill_masks_take() {
    insta::assert_snapshot!(said(&[
        &["run", "./toy.gguf", "hi", "--template", "Name: [MASK]"],
        &["run", "./toy.gguf", "hi", "--prior", "hello"],
        &["run", "./toy.gguf", "hi", "--method", "ete"],
    ]));
}

#[test]
fn draft_models_that_are_missing_unused_or_none() {
    insta::assert_snapshot!(said(&[
        &["run", "./toy.gguf", "hi", "--method", "draft-model"],
        &["chat", "./toy.gguf", "--method", "dyspec"],
        &["run", "./toy.gguf", "hi", "--draft-model", "./toy.gguf"],
        &["run", "./toy.gguf", "hi", "--method", "dyspec", "--draft-model", "./wrong.gguf"],
        &["run", "./toy.gguf", "hi", "--method", "dyspec", "--draft-model", "smolm2"],
    ]));
}

#[test]
fn benchmarks_that_make_no_sense() {
    insta::assert_snapshot!(said(&[
        &["bench", "-m", "./toy.gguf", "--only", "decodes0"],
        &["bench", "-m", "./toy.gguf", "--repeat", "0"],
        &["bench", "-m", "./toy.gguf", "-t", "0"],
        &["bench", "-m", "./toy.gguf", "-t", "1,2", "--serve-stdio"],
        &["bench", "-m", "./toy.gguf", "-t", "1", "--only", "decode4096", "-q"],
    ]));
}

#[test]
fn servers_that_would_be_unsafe_or_impossible() {
    insta::assert_snapshot!(said(&[
        &["serve", "--host", "0.0.0.0"],
        &["serve", "--api-key-file", "/dev/null"],
        &["serve", "--operator-key-file", "/dev/null"],
        &["serve", "--max-running", "0"],
        &["serve", "--allow", "cascad"],
        &["serve", "--log", "loud"],
        &["serve", "--swap-modle", "smollm2"],
    ]));
}

/// A build that sends no spans says how to get one that does.
#[cfg(not(feature = "otel"))]
#[test]
fn a_collector_for_a_build_that_sends_nothing() {
    insta::assert_snapshot!(said(&[&["serve", "--otlp-endpoint", "http://localhost:4318"]]));
}

/// A build without the second backbone says how to get one with it.
#[cfg(not(feature = "candle"))]
#[test]
fn a_backend_that_is_not_built_in() {
    insta::assert_snapshot!(said(&[
        &["run", "./toy.gguf", "hi", "--backend", "candle"],
        &["bench", "-m", "./toy.gguf", "--backend", "candle"],
    ]));
}

/// A place for models that cannot be one.
#[test]
fn a_store_that_cannot_be_written() {
    let home = toy::file("wrong.gguf");
    let ran = toy::tessera_at(&home, &["run", "smollm2", "hi"], "");
    assert_eq!((ran.code, ran.out.as_str(), ran.err.lines().count()), (1, "", 1), "{}", ran.err);
    assert!(ran.err.contains("Next: set TESSERA_HOME"), "{}", ran.err);
}

#[test]
fn a_prompt_may_hold_any_character() {
    for prompt in ["a\0b", "\0", "\u{1b}[2J\u{feff}"] {
        let ran = toy::tessera(&["run", "./toy.gguf", "-n", "2", "--json"], prompt);
        assert_eq!(ran.code, 0, "{prompt:?}: {}", ran.err);
    }
}
#[test]
fn measurements_that_make_no_sense() {
    std::fs::write(toy::file("empty.txt"), "\n").unwrap();
    std::fs::write(toy::file("no-record.json"), "{}").unwrap();
    insta::assert_snapshot!(said(&[
        &["check"],
        &["check", "promt-lookup"],
        &["check", "none"],
        &["check", "prompt-lookup", "--setting", "bugdet=3"],
        &["check", "prompt-lookup", "--setting", "budget"],
        &["check", "prompt-lookup", "--category", "code-edits"],
        &["check", "prompt-lookup", "--workload", "nothing.txt"],
        &["check", "prompt-lookup", "--workload", "empty.txt"],
        &["check", "prompt-lookup", "-n", "1"],
        &["check", "prompt-lookup", "--repeat", "0"],
        &["check", "prompt-lookup", "--temperature", "-1"],
        &["check", "prompt-lookup", "-m", "smolm2"],
        &["verify", "residul"],
        &["verify", "keyed", "--count", "0"],
        &["report"],
        &["report", "nothing.json"],
        &["report", "no-record.json"],
        &["methods", "search", "warp", "drive"],
        &["methods", "docs", "--root", "nowhere"],
    ]));
}
