//! The store against a hub and a package client of this test's own making.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, where a panic is a failure"
)]

mod fake_hub;
mod fake_pip;
mod holdings;
mod hub;
mod packages;

use tessera_model::store::{Catalogue, Store, StoreConfig};

/// A sandbox with a store inside it.
pub(crate) struct Sandbox {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: StoreConfig,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = StoreConfig::under(dir.path());
        // A port nobody listens on: nothing here may reach the real hub.
        config.endpoint = "http://127.0.0.1:9".to_owned();
        config.connect_timeout = std::time::Duration::from_secs(2);
        config.read_timeout = std::time::Duration::from_secs(5);
        config.search_path = Some(dir.path().join("no-programs").into_os_string());
        Self { dir, config }
    }

    pub(crate) fn store(&self, catalogue: &str) -> Store {
        Store::new(self.config.clone(), Catalogue::parse(catalogue).unwrap())
    }
}

/// `bytes` pseudo-random bytes that look like no other `seed`'s.
pub(crate) fn contents(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// A catalogue of one model, `tiny`, with these sources.
pub(crate) fn catalogue(bytes: &[u8], sources: &str) -> String {
    format!(
        "[[model]]\nname = \"tiny\"\ndescription = \"d\"\nlicence = \"l\"\narchitecture = \"a\"\n\
         context = 1\nbytes = {}\nsha256 = \"{}\"\n{sources}",
        bytes.len(),
        sha256(bytes)
    )
}
