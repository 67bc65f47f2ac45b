//! `check`, `verify` and `report` from end to end, on a toy model.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod toy;

use serde_json::Value;

/// Prompts that fit the toy's context.
fn prompts() -> String {
    let own = "{\"text\": \"abcabcabcabcabc\", \"category\": \"rows\"}\nhello hello hello hello\n";
    std::fs::write(toy::file("own.jsonl"), own).unwrap();
    "own.jsonl".to_owned()
}

#[test]
fn a_check_becomes_a_table_a_record_and_a_page() {
    let own = prompts();
    let arguments = ["check", "prompt-lookup", "-m", "./toy.gguf", "--workload", &own];
    let more = ["-n", "24", "--setting", "budget=4", "--record", "kept", "--quick"];
    let arguments: Vec<&str> = arguments.iter().chain(&more).copied().collect();
    let text = toy::works(&arguments, "");
    for words in [
        "Prompt lookup (prompt-lookup), bit-exact, on toy.gguf",
        "own.jsonl workload: 2 prompts, 2 turns, up to 24 tokens, greedy, seed 0",
        "text: the plain run's in all 2 answers",
        "cost of a pass by rows: 1: 1.00",
        "verdict: ",
        "repeat:  tessera check prompt-lookup --setting budget=4 -m ./toy.gguf \
         --workload own.jsonl --quick -n 24",
    ] {
        assert!(text.contains(words), "{words}\n{text}");
    }
    let kept: Vec<_> = std::fs::read_dir(toy::file("kept")).unwrap().collect();
    assert_eq!(kept.len(), 1);
    let record = std::fs::read_to_string(kept[0].as_ref().unwrap().path()).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["schema"], "tessera.check/1");
    assert_eq!(record["arms"][0]["overall"]["counts"]["guesses"], 0);
    let directory = toy::file("").display().to_string();
    assert!(!record.to_string().contains(directory.trim_end_matches('/')), "a path is in it");

    let page = toy::works(&["report", "kept", "-o", "page.html"], "");
    assert_eq!(page, "page.html: 1 record\n");
    let page = std::fs::read_to_string(toy::file("page.html")).unwrap();
    assert!(page.contains("Prompt lookup on toy.gguf"));
    // The user's own records are shown with the method.
    let shown = toy::works(&["methods", "show", "prompt-lookup"], "");
    assert!(shown.contains("measured here"), "{shown}");
}

#[test]
fn promises_are_tried() {
    let own = prompts();
    let flags = ["-m", "./toy.gguf", "--workload", &own, "--quick", "-n", "16"];
    let run = |slug: &str| {
        let arguments: Vec<&str> = ["verify", slug].iter().chain(&flags).copied().collect();
        toy::works(&arguments, "")
    };
    let text = run("prompt-lookup");
    assert!(text.contains("the promise held in all 10 tests"), "{text}");
    let text = run("residual");
    assert!(text.contains("residual promises to be distribution-exact"), "{text}");
    assert!(text.contains("toy llama, all texts of 4 tokens"), "{text}");
}

#[test]
fn a_transcriber_is_asked_what_was_said() {
    // One prompt, as this must not take long; the model travels inside the program.
    let own = "{\"text\": \"theoredabear seeh a small boat.________________________________|\", \"raw\": true, \
               \"answer\": \"the red bear sees a small boat.\", \"room\": 64}\n";
    std::fs::write(toy::file("said.jsonl"), own).unwrap();
    let flags = ["-m", "tessera-transcriber", "--repeat", "1", "--workload", "said.jsonl"];
    let arguments: Vec<&str> = ["check", "threshold"].iter().chain(&flags).copied().collect();
    let text = toy::works(&arguments, "");
    assert!(text.contains("own: right answers of those asked"), "{text}");
    // The built-in prompts are the model's own kind.
    let flags = ["-m", "tessera-transcriber", "--category", "storys"];
    let arguments: Vec<&str> = ["check", "threshold"].iter().chain(&flags).copied().collect();
    let ran = toy::tessera(&arguments, "");
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("category `storys` is not there"), "{}", ran.err);
    let own = "{\"text\": \"a|\", \"answer\": \"the red bear\", \"room\": 3}\n";
    std::fs::write(toy::file("small.jsonl"), own).unwrap();
    let flags = ["-m", "tessera-transcriber", "--workload", "small.jsonl"];
    let arguments: Vec<&str> = ["check", "threshold"].iter().chain(&flags).copied().collect();
    let ran = toy::tessera(&arguments, "");
    assert!(ran.code == 2 && ran.err.contains("room = 3 is too little"), "{}", ran.err);
}
