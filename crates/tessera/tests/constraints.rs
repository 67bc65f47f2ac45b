//! Constraints from the command line: flags, files, a predicate's process, particles, exit codes.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod toy;

use serde_json::Value;
use toy::{Ran, file, tessera};

fn run(more: &[&str]) -> Ran {
    let arguments = ["run", "./toy.gguf", "Hello", "--raw", "-q", "-s", "3"];
    tessera(&[&arguments[..], more].concat(), "")
}

fn works(more: &[&str]) -> String {
    let ran = run(more);
    assert_eq!(ran.code, 0, "{more:?}: {}", ran.err);
    ran.out
}

fn done(more: &[&str]) -> Value {
    let out = works(&[more, &["--json"]].concat());
    serde_json::from_str(out.lines().last().unwrap()).unwrap()
}

#[test]
fn answers_meet_their_constraint_whoever_draws() {
    let pattern = ["--regex", "[a-f]{3},[0-9]{2}"];
    let text = works(&pattern);
    let (letters, digits) = text.trim_end().split_once(',').unwrap();
    assert!(letters.len() == 3 && letters.bytes().all(|b| (b'a'..=b'f').contains(&b)), "{text}");
    assert!(digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit()), "{text}");
    for more in [&["--method", "awrs"][..], &["--method", "mask", "--method", "prompt-lookup"]] {
        assert_eq!(works(&[&pattern[..], more].concat()), text, "{more:?}");
    }
    let grammar = "start: \"yes\" | \"no\"";
    assert!(["yes\n", "no\n"].contains(&works(&["--grammar", grammar]).as_str()));
    let schema =
        "{\"type\": \"array\", \"items\": {\"enum\": [1, 22]}, \"minItems\": 2, \"maxItems\": 2}";
    let array: Vec<u32> = serde_json::from_str(&works(&["--json-schema", schema])).unwrap();
    assert_eq!(array.len(), 2);
}

#[test]
fn schemas_grammars_and_patterns_come_from_files_too() {
    std::fs::write(file("bool.json"), "{\"type\": \"boolean\"}\n").unwrap();
    std::fs::write(file("ab.lark"), "start: \"a\" \"b\"\n").unwrap();
    std::fs::write(file("xyz.txt"), "xy,z\n").unwrap();
    let boolean = works(&["--json-schema", "bool.json"]);
    assert!(["true\n", "false\n"].contains(&boolean.as_str()), "{boolean}");
    assert_eq!(works(&["--method", "json-schema:file=bool.json"]), boolean);
    assert_eq!(works(&["--grammar", "ab.lark"]), "ab\n");
    assert_eq!(works(&["--method", "grammar:file=ab.lark", "--method", "awrs"]), "ab\n");
    assert_eq!(works(&["--method", "regex:file=xyz.txt"]), "xy,z\n");
}

#[test]
fn json_counts_what_was_asked_and_says_whether_the_answer_is_complete() {
    let masked = done(&["--regex", "[a-f]{3}"]);
    assert_eq!(masked["choices"][0]["complete"], true);
    assert_eq!(masked["choices"][0]["reason"]["reason"], "constraint");
    assert_eq!(masked["stats"]["constraint"]["masks"], 3);
    let few = done(&["--regex", "[a-f]{3}", "--method", "awrs"]);
    assert_eq!(few["stats"]["constraint"]["masks"], 0);
    assert!(few["stats"]["constraint"]["evaluations"].as_u64() > Some(2));
    let plain = done(&["-n", "3"]);
    assert!(
        plain["stats"].get("constraint").is_none() && plain["choices"][0].get("complete").is_none()
    );
}

#[test]
fn an_answer_that_ends_inside_its_constraint_fails() {
    let ran = run(&["--regex", "[a-f]{30}", "-n", "4"]);
    assert_eq!((ran.code, ran.out.trim_end().len()), (1, 4), "{}", ran.err);
    assert!(ran.err.contains("incomplete:") && ran.err.contains("Next:"), "{}", ran.err);
}

#[test]
fn particles_are_listed_with_weights() {
    let more = ["--regex", "[a-f]{3}", "--method", "smc:particles=4", "--method", "awrs"];
    let done = done(&more);
    let particles = done["population"]["particles"].as_array().unwrap();
    let weights: f64 = particles.iter().map(|p| p["weight"].as_f64().unwrap()).sum();
    assert!((weights - 1.0).abs() < 1e-9 && done["population"]["count"] == 4);
    assert!(done["population"]["log_probability"].as_f64().unwrap() < 0.0);
    assert!(particles.iter().any(|p| p["text"] == done["choices"][0]["text"]));
    assert_eq!(works(&more).trim_end(), done["choices"][0]["text"]);
}

#[cfg(unix)]
#[test]
fn a_process_may_be_the_judge() {
    // Texts of `a`s; three are enough.
    let script = "while read -r line; do\n  hex=${line#*:\\\"}\n  hex=${hex%%\\\"*}\n  case $hex in\n    \
                  616161) echo complete;;\n    616161* | *[!61]*) echo false;;\n    \
                  *) echo true;;\n  esac\ndone\n";
    std::fs::write(file("judge.sh"), script).unwrap();
    let judged = ["--predicate", "sh judge.sh", "--method", "awrs", "--temp", "0", "-n", "3"];
    assert_eq!(works(&judged), "aaa\n");
    for (command, said) in [
        ("false", "ended before"),
        ("sh -c 'read l; echo maybe; read l'", "maybe"),
        ("no-such-command-here", "cannot be started"),
    ] {
        let ran = run(&["--predicate", command]);
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{command}: {}", ran.err);
        assert!(ran.err.contains(said) && ran.err.contains("Next:"), "{command}: {}", ran.err);
    }
    let slow = run(&["--predicate", "sleep 30", "--predicate-timeout", "0.2"]);
    assert!(slow.code == 1 && slow.err.contains("no answer within 0.2 s"), "{}", slow.err);
}

#[test]
fn what_cannot_be_read_met_or_combined_is_one_line_and_no_text() {
    for (more, code, said) in [
        (&["--regex", "(a"][..], 1, "unclosed group"),
        (&["--grammar", "start: b"], 1, "\"b\""),
        (&["--grammar", "start ::= \"b\""], 2, "GBNF"),
        (&["--json-schema", "{\"type\": \"tensor\"}"], 1, "tensor"),
        (&["--json-schema", "{\"type\": "], 2, "schema is no JSON"),
        (&["--json-schema", "nowhere.json"], 2, "nowhere.json"),
        (&["--method", "json-schema:file=nowhere.json"], 2, "nowhere.json"),
        (&["--regex", "a", "--grammar", "start: \"a\""], 2, "which tokens are allowed"),
        (&["--regex", "a", "--predicate", "cat"], 2, "which tokens are allowed"),
        (&["--regex", "a", "--method", "residual"], 2, "without the constraint"),
        (&["--regex", "a", "--method", "smc", "--method", "prompt-lookup"], 2, "resampled"),
        (&["--method", "awrs"], 2, "needs a constraint"),
        (&["--regex", "a", "--method", "smc", "--temp", "0"], 2, "temperature"),
        (
            &["--regex", "a", "--predicate-timeout", "0", "--predicate", "cat"],
            2,
            "predicate-timeout",
        ),
        (&["--regex", "[0-9]{9}", "--top-k", "1"], 1, "--top-k 0"),
    ] {
        let ran = run(more);
        assert_eq!((ran.code, ran.out.trim_end()), (code, ""), "{more:?}: {}", ran.err);
        assert!(ran.err.contains(said) && ran.err.lines().count() == 1, "{more:?}: {}", ran.err);
    }
}
