//! `complete`, `score` and `explain` with a small random model, end to end.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod toy;

use serde_json::Value;
use toy::{file, tessera, works};

fn json(arguments: &[&str]) -> Value {
    let all: Vec<&str> = arguments.iter().chain(&["--json"]).copied().collect();
    serde_json::from_str(&works(&all, "")).unwrap()
}

const COMPLETE: [&str; 9] =
    ["complete", "Hello wor", "-m", "./toy.gguf", "--temp", "0", "-n", "12", "-q"];

fn complete(more: &[&str]) -> Value {
    json(&[&COMPLETE[..], more].concat())
}

#[test]
fn completions_repeat_and_say_how_they_were_made() {
    for (flags, mode) in [
        (&[][..], "plain"),
        (&["--heal"], "heal"),
        (&["--exact-bytes"], "exact"),
        (&["--exact-bytes", "--fast"], "fast"),
    ] {
        let one = complete(flags);
        assert_eq!(
            (one["mode"].as_str(), one["text"] == complete(flags)["text"]),
            (Some(mode), true)
        );
        assert!(one["bytes"].as_u64().unwrap() <= 12);
    }
    // On a terminal the text alone is the result.
    let shown = works(&[&COMPLETE[..], &["--exact-bytes"]].concat(), "");
    assert_eq!(shown.trim_end_matches('\n'), complete(&["--exact-bytes"])["text"]);
}

#[test]
fn a_model_with_itself_completes_as_it_does_alone() {
    let alone = complete(&["--exact-bytes"]);
    let twice = complete(&["--exact-bytes", "-m", "./toy.gguf", "--weights", "1,3"]);
    assert_eq!(alone["text"], twice["text"]);
}

#[test]
fn text_comes_from_stdin_and_stops_where_told() {
    let flags = ["complete", "-", "-m", "./toy.gguf", "--temp", "0", "-n", "12", "-q"];
    assert_eq!(works(&flags, "Hello wor"), works(&COMPLETE, ""));
    let whole = complete(&[]);
    let text = whole["text"].as_str().unwrap();
    let stop: String = text.chars().skip(2).take(2).collect();
    let stopped = complete(&["--stop", &stop]);
    let short = stopped["text"].as_str().unwrap();
    assert!(text.starts_with(short) && short.len() < text.len() && stopped["reason"] == "stop");
}

#[test]
fn scores_are_bits_for_each_byte_whatever_the_windows_hold() {
    std::fs::write(file("text.txt"), "One day, two cats sat on a mat and saw three dogs.\n")
        .unwrap();
    let plain = json(&["score", "text.txt", "-m", "./toy.gguf", "-q"]);
    let score = &plain["scores"][0];
    assert_eq!((plain["bytes"].as_u64(), score["tokens"].as_u64()), (Some(51), Some(51)));
    let bits = |v: &Value| v["bits_per_byte"].as_f64().unwrap();
    assert!((score["bits"].as_f64().unwrap() / 51.0 - bits(score)).abs() < 1e-9);
    let small = json(&["score", "text.txt", "-m", "./toy.gguf", "-q", "--window", "20"]);
    assert_eq!(small["scores"][0]["tokens"].as_u64(), Some(51));
    // With a token for each byte the exact law lacks the marks only, so it needs a little less.
    let exact =
        json(&["score", "text.txt", "-m", "./toy.gguf", "-m", "./toy.gguf", "-q", "--exact-bytes"]);
    let scores = exact["scores"].as_array().unwrap();
    assert_eq!((scores.len(), scores[2]["model"].as_str()), (3, Some("ensemble")));
    assert!((bits(&scores[0]) - bits(&scores[2])).abs() < 1e-9);
    assert!(bits(&scores[0]) < bits(score) && bits(&scores[0]) > bits(score) - 2.0);
}

#[test]
fn explanations_sum_to_one_repeat_and_are_shown_without_colours() {
    let flags = ["explain", "-m", "./toy.gguf", "--prompt", "Hello", "-q", "--max-steps", "9"];
    let one = json(&flags);
    let sum: f64 =
        one["tokens"].as_array().unwrap().iter().map(|t| t["importance"].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-9);
    let again = json(&flags);
    assert_eq!(one["tokens"], again["tokens"]);
    assert_ne!(one["tokens"], json(&[&flags[..], &["-s", "1"]].concat())["tokens"]);
    let shown = works(&[&flags[..], &["--html", "why.html"]].concat(), "");
    assert!(shown.contains("->") && !shown.contains('\x1b'), "{shown}");
    let page = std::fs::read_to_string(file("why.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    let chat = json(&[&flags[..], &["--chat"]].concat());
    let fixed = chat["tokens"].as_array().unwrap().iter().filter(|t| t["importance"].is_null());
    assert!(fixed.count() > 5);
}

#[test]
fn faithfulness_prints_both_metrics_of_both_attributions() {
    let found = json(&[
        "explain",
        "-m",
        "./toy.gguf",
        "--faithfulness",
        "--prompts",
        "2",
        "--masks",
        "2",
        "-q",
        "--max-steps",
        "3",
    ]);
    assert_eq!(found["lines"].as_array().unwrap().len(), 2);
    assert!(found["lines"][0]["comprehensiveness"]["low"].is_number());
}

#[test]
fn what_makes_no_sense_is_refused_in_one_line() {
    for (arguments, code, word) in [
        (&["complete", "x", "-m", "./toy.gguf", "-m", "./toy.gguf"][..], 2, "--exact-bytes"),
        (&["complete", "x", "-m", "./toy.gguf", "--suffix", "y"], 2, "fill"),
        (&["complete", "x", "-m", "./toy.gguf", "-n", "0"], 2, "bytes"),
        (&["complete", "x", "-m", "./toy.gguf", "--exact-bytes", "--floor", "0.5"], 2, "floor"),
        (&["complete", "x", "-m", "./toy.gguf", "--fast"], 2, "--exact-bytes"),
        (&["complete", "x", "-m", "./toy.gguf", "--exact-bytes", "--weights", "1,2"], 2, "weights"),
        (&["score", "missing.txt", "-m", "./toy.gguf"], 1, "missing.txt"),
        (&["score", "wrong.gguf", "-m", "./toy.gguf", "--window", "3"], 2, "window"),
        (&["explain", "-m", "./toy.gguf"], 2, "--prompt"),
        (&["explain", "-m", "./toy.gguf", "--prompt", ""], 2, "prompt"),
        (&["explain", "-m", "./toy.gguf", "--prompt", "x", "--rho", "2"], 2, "rho"),
        (&["explain", "-m", "./toy.gguf", "--prompt", "x", "--target", ""], 2, "target"),
    ] {
        let ran = tessera(arguments, "");
        assert_eq!((ran.code, ran.err.lines().count()), (code, 1), "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains(word) && ran.out.is_empty(), "{arguments:?}: {}", ran.err);
    }
}
