//! A model of 258 byte tokens with random weights, as a GGUF file, and the command to run it.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;
use tessera_kernels::WeightType;
use tessera_model::gguf::{GgufWriter, MetaValue, Shape};
use tessera_model::toy::{Flavour, blueprint, weights};

/// Tokens: the bytes, then the marks around a message.
const VOCAB: usize = 258;

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
                        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// How byte-level vocabularies spell a byte.
fn spelling(byte: u8) -> String {
    let printable = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let code = if printable(byte) {
        u32::from(byte)
    } else {
        256 + (0..byte).filter(|&b| !printable(b)).count() as u32
    };
    char::from_u32(code).unwrap().to_string()
}

fn bytes() -> Vec<u8> {
    let mut blueprint = blueprint(Flavour::Llama);
    blueprint.spec.vocab = VOCAB;
    let spec = &blueprint.spec;
    let mut w = GgufWriter::new();
    w.set("general.architecture", "llama");
    for (key, value) in [
        ("block_count", spec.layers),
        ("context_length", spec.context),
        ("embedding_length", spec.hidden),
        ("feed_forward_length", blueprint.ffn),
        ("attention.head_count", spec.heads),
        ("attention.head_count_kv", spec.kv_heads),
    ] {
        w.set(&format!("llama.{key}"), value as u32);
    }
    w.set("llama.attention.layer_norm_rms_epsilon", 1e-5f32);
    w.set("llama.rope.freq_base", 10_000f32);
    let mut tokens: Vec<String> = (0..=255).map(spelling).collect();
    tokens.extend(["<|im_start|>", "<|im_end|>"].map(str::to_owned));
    let mut kinds = vec![1; 256];
    kinds.extend([3, 3]);
    w.set("tokenizer.ggml.model", "gpt2");
    w.set("tokenizer.ggml.pre", "smollm");
    w.set("tokenizer.ggml.tokens", MetaValue::Strs(tokens));
    w.set("tokenizer.ggml.token_type", MetaValue::I32s(kinds));
    w.set("tokenizer.ggml.merges", MetaValue::Strs(vec![]));
    w.set("tokenizer.ggml.eos_token_id", 257u32);
    w.set("tokenizer.chat_template", TEMPLATE);
    let mut tensors: Vec<_> = weights(&blueprint, 5).into_iter().collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, (dims, values)) in tensors {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        w.tensor(&name, WeightType::F32, Shape::new(&dims).unwrap(), data);
    }
    w.to_bytes().unwrap()
}

/// A directory with `toy.gguf` and `wrong.gguf`, made once.
fn directory() -> &'static TempDir {
    static DIRECTORY: OnceLock<TempDir> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let directory = TempDir::new().unwrap();
        std::fs::write(directory.path().join("toy.gguf"), bytes()).unwrap();
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
    let mut command = Command::new(env!("CARGO_BIN_EXE_tessera"));
    command.args(arguments).current_dir(directory()).env_clear();
    command.env("TESSERA_HOME", directory().path().join("home"));
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
