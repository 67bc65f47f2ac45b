//! A model reference may hold anything; what is accepted as a hub name stays in its directory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tessera_model::store::{Catalogue, ModelRef, RepoId};

fuzz_target!(|text: &str| {
    let catalogue = Catalogue::builtin().expect("the built-in catalogue is valid");
    let _ = ModelRef::parse_with(text, &catalogue, |_| false);
    if let Some(repo) = RepoId::from_folder(text) {
        for part in [repo.org(), repo.name()] {
            assert!(!part.contains(['/', '\\', '\0']) && part != ".." && !part.is_empty());
        }
    }
});
