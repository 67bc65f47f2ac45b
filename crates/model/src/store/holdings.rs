//! What is on this machine: listing it and removing it.

use std::fs;
use std::path::PathBuf;

use serde::Serialize;

use super::catalogue::{Entry, Source};
use super::error::StoreError;
use super::hub;
use super::hub_cache::{self, RepoFolder};
use super::progress::Listener;
use super::reference::{HubRef, ModelRef};
use super::shelf::{bytes_below, remove_if_there, remove_tree};
use super::{Origin, Store};

/// One line of `tessera list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holding {
    /// The reference that names it.
    pub name: String,
    /// Whether a file of the right length is here. (Its hash is checked when it is used.)
    pub installed: bool,
    /// Size of the whole file, in bytes.
    pub bytes: u64,
    /// Bytes an interrupted pull has kept; 0 when there are none.
    pub partial_bytes: u64,
    /// Where it lies (`store`, `hub cache`), or the kinds of source a pull would try.
    pub source: String,
    /// Licence of the weights, where known.
    pub licence: Option<String>,
    /// One line: what it is.
    pub description: String,
    /// The file, when installed.
    pub path: Option<PathBuf>,
}

/// What a removal did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The model.
    pub name: String,
    /// What was deleted.
    pub paths: Vec<PathBuf>,
    /// Bytes freed.
    pub bytes: u64,
    /// A copy that still lies in the shared cache.
    pub kept: Option<PathBuf>,
}

impl Store {
    /// Every model of the catalogue, then every other GGUF file of the hub's cache.
    /// Looks at lengths only, so that listing is quick.
    pub fn list(&self) -> Vec<Holding> {
        let mut cached = hub_cache::gguf_files(&self.config);
        let mut holdings = Vec::new();
        for entry in self.catalogue.entries() {
            let whole = |path: &PathBuf| fs::metadata(path).is_ok_and(|m| m.len() == entry.bytes);
            let own = Some(self.shelf().file(&entry.file_name())).filter(whole);
            let shared = cached
                .iter()
                .position(|(repo, _, path)| {
                    entry.sources.iter().any(|s| {
                        matches!(s, Source::Hub { repo: r, file } if r == repo && path.ends_with(file))
                    }) && whole(path)
                })
                .map(|at| cached.remove(at).2);
            let source = match (&own, &shared) {
                (Some(_), _) => "store".to_owned(),
                (None, Some(_)) => "hub cache".to_owned(),
                (None, None) => kinds(&entry.sources),
            };
            let path = own.or(shared);
            holdings.push(Holding {
                name: entry.name.clone(),
                installed: path.is_some(),
                bytes: entry.bytes,
                partial_bytes: fs::metadata(self.shelf().partial(&entry.file_name()))
                    .map_or(0, |m| m.len()),
                source,
                licence: Some(entry.licence.clone()),
                description: entry.description.clone(),
                path,
            });
        }
        for (repo, quant, path) in cached {
            holdings.push(Holding {
                name: format!("{repo}:{quant}"),
                installed: true,
                bytes: fs::metadata(&path).map_or(0, |m| m.len()),
                partial_bytes: 0,
                source: "hub cache".to_owned(),
                licence: None,
                description: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                path: Some(path),
            });
        }
        holdings
    }

    /// Deletes a model and whatever an interrupted pull of it left. Files of the shared
    /// hub cache go only when `hub_cache` says so; a path is never deleted.
    ///
    /// # Errors
    /// [`StoreError::NotOurs`] for a path or an unpermitted cache file,
    /// [`StoreError::NotInstalled`] when there is nothing.
    pub fn remove(
        &self,
        reference: &str,
        hub_cache: bool,
        events: &mut Listener<'_>,
    ) -> Result<Removed, StoreError> {
        match self.parse(reference)? {
            ModelRef::Path(path) => Err(StoreError::NotOurs {
                name: reference.to_owned(),
                reason: "it is a file you gave by its path".to_owned(),
                next: format!("delete {} yourself", path.display()),
            }),
            ModelRef::Catalogue(name) => self.remove_entry(self.entry(&name)?, hub_cache, events),
            ModelRef::Hub(hub) => self.remove_hub(&hub, hub_cache),
        }
    }

    fn remove_entry(
        &self,
        entry: &Entry,
        hub_cache: bool,
        events: &mut Listener<'_>,
    ) -> Result<Removed, StoreError> {
        let shelf = self.shelf();
        let name = entry.name.clone();
        let mut removed = Removed { name: name.clone(), paths: Vec::new(), bytes: 0, kept: None };
        if self.config.models_dir.is_dir() {
            let file_name = entry.file_name();
            let _lock = shelf.lock(&file_name, &name, events)?;
            let mut files = vec![shelf.file(&file_name), shelf.record(&file_name)];
            files.extend(shelf.leftovers(&file_name));
            if hub_cache {
                files.push(hub::record(&shelf, entry));
            }
            for path in files {
                if fs::symlink_metadata(&path).is_err() {
                    continue;
                }
                let bytes =
                    if path.is_dir() { remove_tree(&path)? } else { remove_if_there(&path)? };
                removed.bytes += bytes;
                removed.paths.push(path);
            }
        }
        for source in &entry.sources {
            let Source::Hub { repo, file } = source else { continue };
            let folder = RepoFolder::new(&self.config, repo);
            for snapshot in folder.snapshots() {
                let path = snapshot.join(file);
                if fs::symlink_metadata(&path).is_err() {
                    continue;
                }
                if hub_cache {
                    removed.bytes += folder.remove(&path)?;
                    removed.paths.push(path);
                } else {
                    removed.kept = Some(path);
                }
            }
        }
        if !removed.paths.is_empty() {
            return Ok(removed);
        }
        Err(match removed.kept {
            Some(path) => shared(&name, &path),
            None => StoreError::NotInstalled { name },
        })
    }

    fn remove_hub(&self, hub: &HubRef, hub_cache: bool) -> Result<Removed, StoreError> {
        let name = hub.to_string();
        let Some(path) = hub_cache::find(&self.config, hub)? else {
            return Err(StoreError::NotInstalled { name });
        };
        if !hub_cache {
            return Err(shared(&name, &path));
        }
        let folder = RepoFolder::new(&self.config, &hub.repo);
        let mut removed = Removed { name, paths: Vec::new(), bytes: 0, kept: None };
        let files = if path.is_dir() {
            let entries = fs::read_dir(&path).map_err(|e| StoreError::disk("read", &path, e))?;
            entries.flatten().map(|e| e.path()).filter(|p| !p.is_dir()).collect()
        } else {
            vec![path]
        };
        for file in files {
            removed.bytes += folder.remove(&file)?;
            removed.paths.push(file);
        }
        Ok(removed)
    }

    /// Bytes a located model takes: the file's, or all of the directory's.
    pub fn bytes_of(&self, located: &super::Located) -> u64 {
        if located.path.is_dir() && located.origin == Origin::HubCache {
            // A snapshot holds links: count what they lead to.
            fs::read_dir(&located.path)
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| fs::metadata(e.path()).map_or(0, |m| m.len()))
                .sum()
        } else if located.path.is_dir() {
            bytes_below(&located.path)
        } else {
            fs::metadata(&located.path).map_or(0, |m| m.len())
        }
    }
}

/// The kinds of source a pull would try, in order.
fn kinds(sources: &[Source]) -> String {
    let kind = |source: &Source| match source {
        Source::Hub { .. } => "hub",
        Source::Pip { .. } => "pip",
        Source::Embedded {} => "inside",
    };
    sources.iter().map(kind).collect::<Vec<_>>().join(", ")
}

fn shared(name: &str, path: &std::path::Path) -> StoreError {
    StoreError::NotOurs {
        name: name.to_owned(),
        reason: format!(
            "{} lies in the Hugging Face cache, which other programs share",
            path.display()
        ),
        next: format!("`tessera rm --hub-cache {name}` deletes it there"),
    }
}
