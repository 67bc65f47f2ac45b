//! `pull`, `list`, `show` and `rm` as a person meets them: streams and exit codes.

#![allow(clippy::unwrap_used, reason = "helpers of tests, where a panic is a failure")]

use std::process::{Command, Output};

/// Runs `tessera` with an empty store of its own and no network.
fn tessera(arguments: &[&str]) -> (i32, String, String) {
    let home = tempfile::tempdir().unwrap();
    run(home.path(), arguments)
}

fn run(home: &std::path::Path, arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_tessera"))
        .args(arguments)
        .env_clear()
        .env("TESSERA_HOME", home)
        .env("HF_HOME", home.join("hf"))
        .env("TESSERA_OFFLINE", "1")
        .current_dir(home)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn results_go_to_stdout_alone() {
    let (code, out, err) = tessera(&["list"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.starts_with("NAME ") && out.contains("\nsmollm2 "), "{out}");
    let (code, out, _) = tessera(&["list", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, list[0]["name"].as_str()), (0, Some("smollm2")));
    assert_eq!(list[0]["installed"], false);
    let (code, out, _) = tessera(&["show", "smollm2", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, shown["catalogue"]["bytes"].as_u64()), (0, Some(98_362_432)));
}

#[test]
fn what_can_never_work_exits_with_two() {
    for (arguments, said) in [
        (&["pull", "smolm2"][..], "did you mean `smollm2`?"),
        (&["pull", "hf://../x"], "does not name a model"),
        (&["show", "a/b@../main"], "a revision is"),
        (&["rm", "./model.gguf"], "not Tessera's to delete"),
        (&["pull"], "<MODEL> is missing"),
        (&["pull", "--colour", "x"], "--colour"),
        (&["fetch", "x"], "unrecognized"),
    ] {
        let (code, out, err) = tessera(arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}: {err}");
        assert!(err.contains(said), "{arguments:?}: {err}");
    }
}

#[test]
fn what_failed_this_time_exits_with_one() {
    for (arguments, said) in [
        (&["pull", "smollm2"][..], "offline: TESSERA_OFFLINE is set"),
        (&["--offline", "pull", "org/repo:Q8_0"], "offline: --offline was given"),
        (&["rm", "smollm2"], "not on this machine"),
        (&["show", "org/repo"], "not on this machine"),
        (&["show", "./none.gguf"], "nothing is at ./none.gguf"),
    ] {
        let (code, out, err) = tessera(arguments);
        assert_eq!((code, out.as_str()), (1, ""), "{arguments:?}: {err}");
        assert!(err.starts_with("error: ") && err.contains(said), "{arguments:?}: {err}");
    }
}

#[test]
fn a_file_that_is_no_model_is_an_error_and_stays() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("x.gguf");
    std::fs::write(&file, "not a model").unwrap();
    let (code, out, err) = run(home.path(), &["show", "x.gguf"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(err.lines().count(), 1, "{err}");
    assert_eq!(run(home.path(), &["rm", "x.gguf"]).0, 2);
    assert!(file.exists());
}
