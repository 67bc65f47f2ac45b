//! `tessera train`: killed and continued, it makes the same model.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const RECIPE: &str = r#"
name = "tiny"
about = "A test"
seed = 3
[data]
files = ["text.txt"]
vocabulary = 272
[model]
hidden = 32
layers = 1
heads = 2
ffn = 32
context = 16
[objective]
kind = "masked-diffusion"
[training]
steps = 400
batch = 4
warmup = 10
held_out_every = 50
held_out_rows = 2
strata = 2
checkpoint_every = 20
"#;

fn command(directory: &Path, out: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tessera"));
    let (recipe, out) = (directory.join("tiny.toml"), directory.join(out));
    command.arg("train").arg(recipe).arg("--data").arg(directory).arg("--out").arg(out);
    command.args(["-t", "1", "-q"]).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[test]
fn a_killed_run_goes_on_as_if_nothing_had_happened() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let words = ["cat", "dog", "sun", "red", "big", "ran", "sat", "saw"];
    let text: String = (0..400usize)
        .map(|i| {
            let sentence = (0..12).map(|j| words[(i * 5 + j * (i % 3 + 1)) % 8]);
            format!("The {}.\n\n", sentence.collect::<Vec<_>>().join(" "))
        })
        .collect();
    std::fs::write(at("text.txt"), text).unwrap();
    std::fs::write(at("tiny.toml"), RECIPE).unwrap();
    assert!(command(directory.path(), "whole").status().unwrap().success());

    let mut child = command(directory.path(), "killed").spawn().unwrap();
    let begun = Instant::now();
    // Kill it somewhere between two checkpoints, wherever it is by then.
    while !at("killed/checkpoint").exists() && begun.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let log = |run: &str| std::fs::read_to_string(at(run).join("log.jsonl")).unwrap();
    let before = log("killed");
    assert!(before.lines().count() < log("whole").lines().count(), "it was killed in time");
    assert!(command(directory.path(), "killed").arg("--resume").status().unwrap().success());
    let (killed, whole) = (log("killed"), log("whole"));
    assert_eq!(killed.lines().count(), whole.lines().count());
    for (a, b) in killed.lines().zip(whole.lines()) {
        assert_eq!(a, b);
    }
    let file = |run: &str| std::fs::read(at(run).join("tiny.gguf")).unwrap();
    assert!(file("killed") == file("whole"), "the same weights, bit for bit");
}

#[test]
fn unknown_fields_and_missing_runs_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("tiny.toml"), RECIPE.replace("batch", "bach")).unwrap();
    let output = command(directory.path(), "x").stderr(Stdio::piped()).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("bach"));
    std::fs::write(directory.path().join("tiny.toml"), RECIPE).unwrap();
    let output =
        command(directory.path(), "x").arg("--resume").stderr(Stdio::piped()).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("no run to go on with"));
}
