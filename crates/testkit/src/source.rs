//! Reads the methods' source files and checks that each is what a method's file must be.

use std::path::{Path, PathBuf};

use tessera_core::entry::MethodEntry;

/// What the header of a method's file says, in this order, one `//! Word: ...` line each.
pub const HEADER: &[&str] = &["Title", "Authors", "Year", "Id", "Implemented", "Left out", "Tag"];

/// The directory of the methods' sources, seen from this crate.
pub fn methods_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../methods/src")
}

/// The files of methods below `directory`: every `.rs` file one level down but `mod.rs`, sorted.
///
/// # Errors
/// Whatever the file system reports.
pub fn method_files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for kind in std::fs::read_dir(directory)? {
        let kind = kind?.path();
        if kind.is_dir() {
            for file in std::fs::read_dir(kind)? {
                let file = file?.path();
                let is_rust = file.extension().is_some_and(|e| e == "rs");
                if is_rust && file.file_stem().is_some_and(|s| s != "mod") {
                    files.push(file);
                }
            }
        }
    }
    files.sort();
    Ok(files)
}

/// One line per breach of the rules for the method file called `stem` with this text.
pub fn check_file(stem: &str, text: &str, entries: &[&'static MethodEntry]) -> Vec<String> {
    let mut found = Vec::new();
    let header: Vec<&str> = text.lines().take_while(|l| l.starts_with("//!")).collect();
    let mut at = 0;
    for word in HEADER {
        let start = format!("//! {word}: ");
        match header[at..].iter().position(|l| l.starts_with(&start) && l.len() > start.len()) {
            Some(n) => at += n + 1,
            None => found.push(format!("{stem}: the header lacks `{word}:`, or out of order")),
        }
    }
    for needed in ["pub static ENTRY: MethodEntry", "mod tests", "#[test]"] {
        if !text.contains(needed) {
            found.push(format!("{stem}: no `{needed}`"));
        }
    }
    let slug = stem.replace('_', "-");
    if !entries.iter().any(|e| e.slug == slug) {
        found.push(format!("{stem}: no entry `{slug}` in the registry"));
    }
    let lines = text.lines().count();
    if lines > 500 && !text.to_lowercase().contains("long because") {
        found.push(format!("{stem}: {lines} lines without `long because ...` at the top"));
    }
    found
}
