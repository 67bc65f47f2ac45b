//! Downloads from a hub: layout, resume, refusals, and the token.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tessera_model::store::{Event, Origin, Store, StoreError};

use super::fake_hub::{COMMIT, Reply, Repo, Seen, Server, ranged};
use super::{Sandbox, catalogue, contents, sha256};

const SOURCE: &str =
    "[[model.source]]\nkind = \"hub\"\nrepo = \"org/repo\"\nfile = \"sub/tiny.gguf\"\n";

/// A store whose only source is this server.
fn store_at(sandbox: &mut Sandbox, server: &Server, bytes: &[u8]) -> Store {
    sandbox.config.endpoint.clone_from(&server.address);
    sandbox.store(&catalogue(bytes, SOURCE))
}

/// The single reason a one-source pull failed for.
fn reason(result: Result<impl std::fmt::Debug, StoreError>) -> String {
    match result.unwrap_err() {
        StoreError::AllSourcesFailed { attempts, .. } => attempts[0].reason.clone(),
        other => panic!("{other}"),
    }
}

fn repo_dir(sandbox: &Sandbox) -> std::path::PathBuf {
    sandbox.config.hub_cache.join("models--org--repo")
}

/// A hub that keeps its bytes on another host, as the public one does.
fn hub_with_content_host(bytes: &[u8]) -> (Server, Server) {
    let etag = sha256(bytes);
    let (stored, name) = (bytes.to_vec(), etag.clone());
    let content = Server::start(move |seen| ranged(seen, &stored, &name));
    let (address, size) = (content.address.clone(), bytes.len());
    let hub = Server::start(move |_| {
        Reply::status(302)
            .with("Location", format!("{address}/blob?signature=x"))
            .with("X-Repo-Commit", COMMIT)
            .with("X-Linked-Etag", format!("\"{etag}\""))
            .with("X-Linked-Size", size.to_string())
            .with("ETag", "\"of-the-redirect\"")
    });
    (hub, content)
}

#[test]
fn a_download_has_the_layout_of_the_shared_cache_and_is_found_again() {
    let bytes = contents(1, 300_000);
    let (hub, content) = hub_with_content_host(&bytes);
    let mut sandbox = Sandbox::new();
    let store = store_at(&mut sandbox, &hub, &bytes);

    let mut counts = Vec::new();
    let located = store
        .ensure_with("tiny", &mut |event| {
            if let Event::Bytes { done, total } = event {
                counts.push((done, total));
            }
        })
        .unwrap();
    assert_eq!(located.origin, Origin::HubCache);
    assert_eq!(fs::read(&located.path).unwrap(), bytes);
    assert!(counts.is_sorted() && counts.last() == Some(&(300_000, 300_000)), "{counts:?}");

    let dir = repo_dir(&sandbox);
    let etag = sha256(&bytes);
    assert_eq!(located.path, dir.join("snapshots").join(COMMIT).join("sub/tiny.gguf"));
    assert_eq!(
        fs::read_link(&located.path).unwrap(),
        Path::new(&format!("../../../blobs/{etag}")),
        "links are relative, so that a cache can be moved"
    );
    assert_eq!(fs::read_to_string(dir.join("refs/main")).unwrap(), COMMIT);
    let blobs: Vec<_> = fs::read_dir(dir.join("blobs")).unwrap().flatten().collect();
    assert_eq!(blobs.len(), 1, "nothing unfinished is left");

    let before = (hub.seen().len(), content.seen().len());
    assert_eq!(store.clone().offline("test").ensure("tiny").unwrap(), located);
    assert_eq!((hub.seen().len(), content.seen().len()), before, "a second run asks nobody");
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let bytes = contents(2, 1000);
    let (hub, content) = hub_with_content_host(&bytes);
    let mut sandbox = Sandbox::new();
    sandbox.config.token = Some("hf_secret".to_owned());
    store_at(&mut sandbox, &hub, &bytes).ensure("tiny").unwrap();
    assert!(hub.seen().iter().all(|s| s.header("authorization") == Some("Bearer hf_secret")));
    assert_eq!(content.seen().len(), 1);
    assert!(content.seen().iter().all(|s| s.header("authorization").is_none()));
}

#[test]
fn a_cut_connection_is_taken_up_where_it_broke() {
    let bytes = contents(3, 500_000);
    let repo = Repo::default().with("sub/tiny.gguf", &bytes);
    let cuts = AtomicUsize::new(2);
    let server = Server::start(move |seen| {
        let mut reply = repo.answer(seen);
        if seen.method == "GET"
            && cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
        {
            reply.cut = Some(200_000);
        }
        reply
    });
    let mut sandbox = Sandbox::new();
    let located = store_at(&mut sandbox, &server, &bytes).ensure("tiny").unwrap();
    assert_eq!(fs::read(located.path).unwrap(), bytes);
    let ranges: Vec<_> =
        server.gets().iter().map(|s| s.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges, [None, Some("bytes=200000-".to_owned()), Some("bytes=400000-".to_owned())]);
    let quoted = format!("\"{}\"", sha256(&bytes));
    assert_eq!(server.gets()[1].header("if-range"), Some(quoted.as_str()));
}

#[test]
fn a_pull_that_failed_is_resumed_by_the_next() {
    let bytes = contents(4, 100_000);
    let repo = Repo::default().with("sub/tiny.gguf", &bytes);
    let healthy = Arc::new(Mutex::new(false));
    let (switch, first) = (Arc::clone(&healthy), AtomicUsize::new(0));
    let server = Server::start(move |seen| {
        let mut reply = repo.answer(seen);
        if seen.method == "GET" && !*switch.lock().unwrap() {
            if first.fetch_add(1, Ordering::SeqCst) > 0 {
                return Reply::status(503);
            }
            reply.cut = Some(1000);
        }
        reply
    });
    let mut sandbox = Sandbox::new();
    let store = store_at(&mut sandbox, &server, &bytes);
    assert!(reason(store.ensure("tiny")).contains("trouble of its own (503)"));
    let unfinished = repo_dir(&sandbox).join(format!("blobs/{}.incomplete", sha256(&bytes)));
    assert_eq!(fs::read(&unfinished).unwrap(), &bytes[..1000]);

    *healthy.lock().unwrap() = true;
    let located = store.ensure("tiny").unwrap();
    assert_eq!(fs::read(located.path).unwrap(), bytes);
    assert_eq!(server.gets().last().unwrap().header("range"), Some("bytes=1000-"));
    assert!(!unfinished.exists());
}

#[test]
fn leftovers_of_something_else_do_not_spoil_a_pull() {
    let bytes = contents(5, 5000);
    let (hub, _content) = hub_with_content_host(&bytes);
    let mut sandbox = Sandbox::new();
    let store = store_at(&mut sandbox, &hub, &bytes);
    let blobs = repo_dir(&sandbox).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let unfinished = blobs.join(format!("{}.incomplete", sha256(&bytes)));
    for garbage in [contents(6, 300), contents(6, 5000), contents(6, 9000)] {
        fs::write(&unfinished, garbage).unwrap();
        let located = store.ensure("tiny").unwrap();
        assert_eq!(fs::read(&located.path).unwrap(), bytes);
        fs::remove_file(blobs.join(sha256(&bytes))).unwrap();
    }
}

#[test]
fn a_server_without_ranges_is_read_from_the_start() {
    let bytes = contents(7, 4000);
    let etag = sha256(&bytes);
    let (stored, tag) = (bytes.clone(), etag.clone());
    let server = Server::start(move |_| {
        Reply { status: 200, body: stored.clone(), ..Reply::default() }
            .with("X-Repo-Commit", COMMIT)
            .with("ETag", format!("W/\"{tag}\""))
    });
    let mut sandbox = Sandbox::new();
    let store = store_at(&mut sandbox, &server, &bytes);
    let blobs = repo_dir(&sandbox).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{etag}.incomplete")), &bytes[..1234]).unwrap();
    assert_eq!(fs::read(store.ensure("tiny").unwrap().path).unwrap(), bytes);
}

#[test]
fn other_contents_are_refused_and_removed() {
    let (wanted, other) = (contents(8, 2000), contents(9, 2000));
    let mut repo = Repo::default();
    // An ETag that promises nothing: only the bytes can tell.
    repo.files.insert("sub/tiny.gguf".to_owned(), ("opaque-tag".to_owned(), other.clone()));
    let server = Server::start(move |seen| repo.answer(seen));
    let mut sandbox = Sandbox::new();
    let why = reason(store_at(&mut sandbox, &server, &wanted).ensure("tiny"));
    assert!(why.contains(&sha256(&wanted)) && why.contains(&sha256(&other)), "{why}");
    let left = fs::read_dir(repo_dir(&sandbox).join("blobs")).unwrap().count();
    assert_eq!(left, 0, "no byte of it is kept");
}

#[test]
fn another_build_is_refused_before_a_byte_is_fetched() {
    let wanted = contents(10, 2000);
    for other in [contents(11, 2000), contents(11, 2001)] {
        let repo = Repo::default().with("sub/tiny.gguf", &other);
        let server = Server::start(move |seen| repo.answer(seen));
        let mut sandbox = Sandbox::new();
        let why = reason(store_at(&mut sandbox, &server, &wanted).ensure("tiny"));
        assert!(why.contains("another build"), "{why}");
        assert!(server.gets().is_empty());
    }
}

#[test]
fn a_server_that_sends_more_or_less_than_it_said_is_refused() {
    let bytes = contents(12, 3000);
    let etag = sha256(&bytes);
    for length in [2000_usize, 4000] {
        let (tag, sent) = (etag.clone(), contents(12, length));
        let server = Server::start(move |seen| {
            let reply = Reply::status(200)
                .with("X-Repo-Commit", COMMIT)
                .with("X-Linked-Size", "3000")
                .with("ETag", format!("\"{tag}\""));
            match seen.method.as_str() {
                "HEAD" => reply,
                _ => Reply { body: sent.clone(), ..reply },
            }
        });
        let mut sandbox = Sandbox::new();
        let why = reason(store_at(&mut sandbox, &server, &bytes).ensure("tiny"));
        let expected = if length > 3000 { "more than the 3000" } else { "2000 of 3000 bytes" };
        assert!(why.contains(expected), "{why}");
    }
}

#[test]
fn answers_are_explained() {
    let bytes = contents(13, 10);
    let why = |status: u16, token: Option<&str>| {
        let server = Server::start(move |_| Reply::status(status));
        let mut sandbox = Sandbox::new();
        sandbox.config.token = token.map(str::to_owned);
        let store = store_at(&mut sandbox, &server, &bytes);
        let why = reason(store.ensure("tiny"));
        assert!(!why.contains('\n'), "one line: {why}");
        why
    };
    assert!(why(401, None).contains("set HF_TOKEN"));
    assert!(why(403, Some("t")).contains("the token may not read"));
    assert!(why(404, None).contains("no such repository, revision or file (404)"));
    assert!(why(429, None).contains("later"));
    assert!(why(500, None).contains("trouble of its own (500)"));
    assert!(why(200, None).contains("is it a hub?"));
    let mut sandbox = Sandbox::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    sandbox.config.endpoint = format!("http://{}", silent.local_addr().unwrap());
    sandbox.config.read_timeout = std::time::Duration::from_millis(200);
    let store = sandbox.store(&catalogue(&bytes, SOURCE));
    assert!(reason(store.ensure("tiny")).contains("fell silent"));
}

#[test]
fn names_that_a_server_sends_cannot_leave_the_cache() {
    let bytes = contents(14, 10);
    let etag = sha256(&bytes);
    for (header, value) in
        [("X-Repo-Commit", "../../../evil"), ("ETag", "\"../../../evil\""), ("ETag", "\"\"")]
    {
        let (stored, tag) = (bytes.clone(), etag.clone());
        let server = Server::start(move |_| {
            let reply = Reply { status: 200, body: stored.clone(), ..Reply::default() };
            let reply = reply.with(header, value);
            // The first of two equal headers is the one that is read.
            reply.with("X-Repo-Commit", COMMIT).with("ETag", format!("\"{tag}\""))
        });
        let mut sandbox = Sandbox::new();
        reason(store_at(&mut sandbox, &server, &bytes).ensure("tiny"));
        assert!(!sandbox.config.hub_cache.exists(), "nothing is written for {value}");
    }
    for name in ["../../x.gguf", "/etc/x.gguf", "a/../../x.gguf", "a\\x.gguf", "x\u{7}.gguf"] {
        let repo = Repo::default().with(name, &bytes);
        let server = Server::start(move |seen| repo.answer(seen));
        let mut sandbox = Sandbox::new();
        let why = reason(store_at(&mut sandbox, &server, &bytes).ensure("org/repo"));
        assert!(why.contains("leaves its folder"), "{why}");
        assert!(!sandbox.config.hub_cache.exists());
    }
}

#[cfg(unix)]
#[test]
fn a_link_out_of_the_cache_is_not_followed() {
    let bytes = contents(15, 100);
    let sandbox = Sandbox::new();
    let store = sandbox.store(&catalogue(&bytes, SOURCE));
    let outside = sandbox.dir.path().join("private");
    fs::write(&outside, &bytes).unwrap();
    let link = repo_dir(&sandbox).join("snapshots").join(COMMIT).join("sub/tiny.gguf");
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(&outside, &link).unwrap();
    fs::create_dir_all(repo_dir(&sandbox).join("refs")).unwrap();
    fs::write(repo_dir(&sandbox).join("refs/main"), COMMIT).unwrap();
    for name in ["tiny", "org/repo"] {
        let error = store.ensure(name).unwrap_err().to_string();
        assert!(error.contains("leaves the Hugging Face cache"), "{error}");
    }
}

#[test]
fn a_repository_is_asked_for_its_preferred_file() {
    let (q4, q8) = (contents(16, 100), contents(17, 200));
    let repo = Repo::default()
        .with("m-q4_k_m.gguf", &q4)
        .with("m-Q8_0.gguf", &q8)
        .with(".gitattributes", b"x")
        .with("README.md", b"y");
    let server = Server::start(move |seen| repo.answer(seen));
    let mut sandbox = Sandbox::new();
    let store = store_at(&mut sandbox, &server, b"unused");
    assert_eq!(fs::read(store.ensure("org/repo").unwrap().path).unwrap(), q4);
    let located = store.ensure("hf://org/repo:q8_0@v1").unwrap();
    assert_eq!(fs::read(&located.path).unwrap(), q8);
    assert_eq!(fs::read_to_string(repo_dir(&sandbox).join("refs/v1")).unwrap(), COMMIT);
    assert!(server.gets().iter().all(|s| s.path.contains(COMMIT)), "files come by commit");
    assert!(reason(store.ensure("org/repo:Q2_K")).contains("no Q2_K; there is Q4_K_M, Q8_0"));
    // Both are found again without the hub, by revision and by commit.
    let offline = store.offline("test");
    assert_eq!(offline.ensure("org/repo:Q8_0@v1").unwrap().path, located.path);
    assert_eq!(offline.ensure(&format!("org/repo:Q8_0@{COMMIT}")).unwrap().path, located.path);
    let listed: Vec<_> = offline.list().into_iter().map(|h| h.name).collect();
    assert_eq!(listed, ["tiny", "org/repo:Q4_K_M", "org/repo:Q8_0"]);
}

#[test]
fn safetensors_come_as_a_directory_with_every_shard() {
    let index = br#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
    let repo = Repo::default()
        .with("config.json", b"{}")
        .with("tokenizer.json", b"{}")
        .with("model.safetensors.index.json", index)
        .with("model-1.safetensors", &contents(18, 50))
        .with("model-2.safetensors", &contents(19, 60))
        .with("train.py", b"no");
    let server = Server::start(move |seen| repo.answer(seen));
    let mut sandbox = Sandbox::new();
    let store = store_at(&mut sandbox, &server, b"unused");
    let located = store.ensure("org/repo").unwrap();
    assert!(located.path.ends_with(format!("snapshots/{COMMIT}")));
    assert_eq!(fs::read(located.path.join("model-2.safetensors")).unwrap(), contents(19, 60));
    assert!(!located.path.join("train.py").exists());
    // A shard that is gone makes the cached copy incomplete, not usable.
    fs::remove_file(located.path.join("model-2.safetensors")).unwrap();
    let count = server.gets().len();
    store.ensure("org/repo").unwrap();
    assert_eq!(server.gets().len(), count, "its blob was still there and is linked again");
    assert!(located.path.join("model-2.safetensors").exists());
}

#[test]
fn offline_asks_nobody_and_says_so() {
    let bytes = contents(20, 10);
    let server = Server::start(|_| Reply::status(500));
    let mut sandbox = Sandbox::new();
    let store = store_at(&mut sandbox, &server, &bytes).offline("HF_HUB_OFFLINE is set");
    for name in ["tiny", "org/repo"] {
        let error = store.ensure(name).unwrap_err().to_string();
        assert!(error.contains("not tried, offline: HF_HUB_OFFLINE is set"), "{error}");
    }
    assert!(server.seen().is_empty());
}

#[test]
fn two_pulls_at_once_fetch_once() {
    let bytes = contents(21, 400_000);
    let repo = Repo::default().with("sub/tiny.gguf", &bytes);
    let server = Server::start(move |seen: &Seen| {
        if seen.method == "GET" {
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        repo.answer(seen)
    });
    let mut sandbox = Sandbox::new();
    let store = store_at(&mut sandbox, &server, &bytes);
    let paths: Vec<_> = std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..3).map(|_| scope.spawn(|| store.ensure("tiny").unwrap())).collect();
        pulls.into_iter().map(|p| p.join().unwrap().path).collect()
    });
    assert!(paths.iter().all(|p| fs::read(p).unwrap() == bytes));
    assert_eq!(server.gets().len(), 1);
}
