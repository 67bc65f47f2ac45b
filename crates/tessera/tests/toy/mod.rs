//! A model of 258 byte tokens with random weights, as a GGUF file, and the command to run it.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;
use tessera_model::toy::{Flavour, gguf};

/// A directory with `toy.gguf`, made once, and with `wrong.gguf`, `empty.gguf`, `cut.gguf` and
/// `nothing`, which are no models.
fn directory() -> &'static TempDir {
    static DIRECTORY: OnceLock<TempDir> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let directory = TempDir::new().unwrap();
        let toy = gguf(Flavour::Llama, 5);
        std::fs::write(directory.path().join("cut.gguf"), &toy[..toy.len() / 2]).unwrap();
        std::fs::write(directory.path().join("toy.gguf"), toy).unwrap();
        std::fs::write(directory.path().join("empty.gguf"), b"").unwrap();
        std::fs::create_dir(directory.path().join("nothing")).unwrap();
        std::fs::write(directory.path().join("wrong.gguf"), b"this is no model").unwrap();
        directory
    })
}

/// A file in the test's directory.
pub fn file(name: &str) -> PathBuf {
    directory().path().join(name)
}

/// What a run of the command gave.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs the command in the test's directory, offline, with an empty store.
pub fn tessera(arguments: &[&str], stdin: &str) -> Ran {
    tessera_at(&file("home"), arguments, stdin)
}

/// As [`tessera`], with the store somewhere else.
pub fn tessera_at(home: &Path, arguments: &[&str], stdin: &str) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tessera"));
    command.args(arguments).current_dir(directory()).env_clear();
    command.env("TESSERA_HOME", home);
    command.envs([("TESSERA_OFFLINE", "1"), ("NO_COLOR", "1")]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // The command may end without reading: a closed pipe is its right.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs the command, which must succeed; returns what it printed.
pub fn works(arguments: &[&str], stdin: &str) -> String {
    let ran = tessera(arguments, stdin);
    assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.err);
    ran.out
}
