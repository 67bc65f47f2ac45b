//! This project's own small models, which travel inside the program.
//!
//! They are put on the shelf like any other, because a model is read from a file; no network takes part.

use std::fs;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::catalogue::Entry;
use super::error::{SourceError, StoreError};
use super::shelf::{Shelf, hex};

/// The models by their names in the catalogue. `models/NAME/README.md` says how each is made again.
const MODELS: &[(&str, &[u8])] = &[
    ("tessera-mdlm", include_bytes!("../../../../models/tessera-mdlm/tessera-mdlm.gguf")),
    ("tessera-adapted", include_bytes!("../../../../models/tessera-adapted/tessera-adapted.gguf")),
    ("tessera-ar", include_bytes!("../../../../models/tessera-ar/tessera-ar.gguf")),
    (
        "tessera-any-subset",
        include_bytes!("../../../../models/tessera-any-subset/tessera-any-subset.gguf"),
    ),
    (
        "tessera-transcriber",
        include_bytes!("../../../../models/tessera-transcriber/tessera-transcriber.gguf"),
    ),
];

/// Writes the entry's file to the shelf. The caller holds the model's lock.
pub(super) fn fetch(shelf: &Shelf, entry: &Entry) -> Result<PathBuf, SourceError> {
    let Some((_, bytes)) = MODELS.iter().find(|(name, _)| *name == entry.name) else {
        return Err(SourceError::Refused("this program does not carry it".to_owned()));
    };
    let mut hasher = Sha256::new();
    hasher.update(bytes);
    let found = hex(hasher);
    if found != entry.sha256 {
        let reason = format!("its sha256 is {found} where {} is expected", entry.sha256);
        return Err(SourceError::Refused(reason));
    }
    shelf.create()?;
    let file_name = entry.file_name();
    let (partial, path) = (shelf.partial(&file_name), shelf.file(&file_name));
    fs::write(&partial, bytes).map_err(|e| StoreError::disk("write", &partial, e))?;
    shelf.put(&partial, &path, &shelf.record(&file_name), &found)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::super::{Catalogue, Source};
    use super::*;

    #[test]
    fn what_the_catalogue_says_is_inside_is_inside() {
        let catalogue = Catalogue::builtin().unwrap();
        let inside =
            catalogue.entries().iter().filter(|e| e.sources.contains(&Source::Embedded {}));
        let scratch = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(scratch.path());
        let mut names = Vec::new();
        for entry in inside {
            let path = fetch(&shelf, entry).unwrap_or_else(|_| panic!("{}", entry.name));
            assert_eq!(fs::metadata(path).unwrap().len(), entry.bytes, "{}", entry.name);
            names.push(entry.name.as_str());
        }
        assert_eq!(names, MODELS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }
}
