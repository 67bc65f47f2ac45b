//! A model directory answers as the GGUF file it was exported from: same tokens, same text.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};
use tessera_model::tokenizer::HuggingFace;
use tessera_model::toy::{Flavour, gguf};
use tessera_model::{ExportType, export_safetensors, open_weights};
use tessera_runtime::{Control, Message, Options, Prompt, Sampling, Session};

/// A toy model as a file and as a directory.
fn both(root: &Path, flavour: Flavour) -> (PathBuf, PathBuf) {
    let (file, directory) = (root.join("toy.gguf"), root.join("toy"));
    std::fs::write(&file, gguf(flavour, 5)).unwrap();
    let weights = open_weights(&file).unwrap();
    export_safetensors(&*weights, &directory, ExportType::F32).unwrap();
    let texts = HuggingFace::from_gguf(weights.gguf().unwrap().metadata()).unwrap();
    texts.write_into(&directory).unwrap();
    (file, directory)
}

fn open(path: &Path) -> Session {
    Session::load("toy", path, &Options::default(), &|_| {}).unwrap()
}

fn refusal(path: &Path) -> String {
    let error = Session::load("toy", path, &Options::default(), &|_| {}).err().unwrap();
    let line = error.to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

/// Tokens of the prompt, tokens of the answer, text of the answer.
fn answer(session: &Session) -> (Vec<u32>, Vec<u32>, String) {
    let said = "A\u{e9}  <|im_end|>\n\n 12\u{1f600}";
    let messages = [Message::new("system", "be brief"), Message::new("user", said)];
    let mut request = session.request(&Prompt::Chat(&messages)).unwrap();
    request.sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    request.max_tokens = Some(32);
    let never = AtomicBool::new(false);
    let outcome = session.generate(&request, &mut |_| Control::Continue, &never).unwrap();
    (request.prompt, outcome.choices[0].tokens.clone(), outcome.choices[0].text.clone())
}

#[test]
fn a_directory_answers_as_the_file_it_was_exported_from() {
    for flavour in Flavour::ALL {
        let root = tempfile::tempdir().unwrap();
        let (file, directory) = both(root.path(), flavour);
        let (of_file, of_directory) = (open(&file), open(&directory));
        assert!(of_directory.info().chat);
        let (a, b) = (of_file.tokenizer(), of_directory.tokenizer());
        assert_eq!((a.end_ids(), a.bos(), a.eos()), (b.end_ids(), b.bos(), b.eos()));
        assert_eq!(answer(&of_file), answer(&of_directory), "{flavour:?}");
    }
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn the_files_beside_the_tokenizer_are_read() {
    let root = tempfile::tempdir().unwrap();
    let (_, directory) = both(root.path(), Flavour::Llama);
    let plain = open(&directory).tokens(&Prompt::Chat(&[Message::new("user", "hi")])).unwrap();

    // A template in a file of its own goes before the one in the configuration.
    let template = directory.join("chat_template.jinja");
    std::fs::write(&template, "<|im_start|>{{ messages[0].content }}").unwrap();
    let tokens = open(&directory).tokens(&Prompt::Chat(&[Message::new("user", "hi")])).unwrap();
    assert_eq!((tokens.len(), tokens[0]), (3, 256));
    assert_ne!(tokens, plain);
    std::fs::remove_file(&template).unwrap();

    // Ends of generation, one or several; without the configuration, its ids stand in.
    let generation = directory.join("generation_config.json");
    for (ends, want) in [(json!(97), vec![97, 257]), (json!([98, 97]), vec![97, 98, 257])] {
        edit(&generation, |v| v["eos_token_id"] = ends);
        assert_eq!(open(&directory).tokenizer().end_ids(), want);
    }
    std::fs::remove_file(directory.join("tokenizer_config.json")).unwrap();
    let bare = open(&directory);
    assert_eq!((bare.tokenizer().eos(), bare.info().chat), (Some(98), false));
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let root = tempfile::tempdir().unwrap();
    let (_, directory) = both(root.path(), Flavour::Llama);
    let file = |name: &str| directory.join(name);
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let away = root.path().join("away");
        std::fs::rename(file(name), &away).unwrap();
        let line = refusal(&directory);
        assert!(line.contains(name) && line.contains("fetch it again"), "{line}");
        std::fs::rename(&away, file(name)).unwrap();
    }
    let damaged = |name: &str, text: &str, word: &str| {
        let good = std::fs::read(file(name)).unwrap();
        std::fs::write(file(name), text).unwrap();
        let line = refusal(&directory);
        assert!(line.contains(name) && line.contains(word), "{line}");
        std::fs::write(file(name), good).unwrap();
    };
    let deep = "[".repeat(100_000);
    let deep = format!("{{\"normalizer\": {deep}");
    damaged("tokenizer.json", &deep, "recursion limit");
    damaged("tokenizer_config.json", &deep.replace("normalizer", "bos_token"), "recursion limit");
    damaged("generation_config.json", "{\"eos_token_id\": 999999}", "vocabulary of 258");
    damaged("tokenizer_config.json", &" ".repeat((16 << 20) + 1), "at most");

    // More tokens than the model has rows.
    edit(&file("tokenizer.json"), |v| v["model"]["vocab"]["too many"] = 258.into());
    let line = refusal(&directory);
    assert!(line.contains("259 tokens") && line.contains("is 258"), "{line}");
}

#[cfg(unix)]
#[test]
fn a_tokenizer_that_is_a_link_out_of_the_directory_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let (_, directory) = both(root.path(), Flavour::Llama);
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        let (inside, outside) = (directory.join(name), root.path().join(name));
        std::fs::rename(&inside, &outside).unwrap();
        std::os::unix::fs::symlink(&outside, &inside).unwrap();
        let line = refusal(&directory);
        assert!(line.contains(name) && line.contains("a link to"), "{line}");
        std::fs::remove_file(&inside).unwrap();
        std::fs::rename(&outside, &inside).unwrap();
    }
}
