//! The Hugging Face cache as it lies on disk: `models--org--name/{blobs,refs,snapshots}`.
//!
//! Other programs share it, so its layout is theirs: a blob is named by its ETag, a
//! snapshot is a folder named by a commit whose files are relative links into `blobs`,
//! and `refs/main` holds the commit a branch stood for.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::choice::{self, Choice};
use super::config::StoreConfig;
use super::error::StoreError;
use super::http::is_commit;
use super::reference::{HubRef, RepoId, is_revision};
use super::shelf::{remove_if_there, write_small};

/// How deep a snapshot's folders are read.
const DEEPEST: usize = 4;

/// One repository's folder in the cache.
pub(super) struct RepoFolder {
    cache: PathBuf,
    dir: PathBuf,
}

impl RepoFolder {
    pub(super) fn new(config: &StoreConfig, repo: &RepoId) -> Self {
        let cache = config.hub_cache.clone();
        Self { dir: cache.join(repo.folder()), cache }
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(etag)
    }

    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// The lock other clients of the cache take for the same blob.
    pub(super) fn lock(&self, etag: &str) -> PathBuf {
        let folder = self.dir.file_name().unwrap_or_default();
        self.cache.join(".locks").join(folder).join(format!("{etag}.lock"))
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir.join("snapshots").join(commit)
    }

    /// The snapshot a revision stands for, as far as the cache knows.
    pub(super) fn resolve(&self, revision: &str) -> Option<PathBuf> {
        if !is_revision(revision) {
            return None;
        }
        let commit = match fs::read_to_string(self.dir.join("refs").join(revision)) {
            Ok(text) => text.trim().to_owned(),
            Err(_) => revision.to_owned(),
        };
        let dir = self.snapshot(&commit);
        (is_commit(&commit) && dir.is_dir()).then_some(dir)
    }

    /// All snapshots, the one `main` stands for first.
    pub(super) fn snapshots(&self) -> Vec<PathBuf> {
        let main = self.resolve("main");
        let mut others: Vec<PathBuf> = fs::read_dir(self.dir.join("snapshots"))
            .into_iter()
            .flatten()
            .flatten()
            .filter(|e| e.file_name().to_str().is_some_and(is_commit))
            .map(|e| e.path())
            .filter(|p| p.is_dir() && Some(p) != main.as_ref())
            .collect();
        others.sort();
        main.into_iter().chain(others).collect()
    }

    /// The file behind a snapshot's link. `None` when there is nothing (a dangling link
    /// counts as nothing).
    ///
    /// # Errors
    /// [`StoreError::NotAModel`] when the link leads out of the cache.
    pub(super) fn inside(&self, path: &Path) -> Result<Option<PathBuf>, StoreError> {
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(StoreError::disk("read", path, e)),
        };
        let cache =
            self.cache.canonicalize().map_err(|e| StoreError::disk("read", &self.cache, e))?;
        if real.starts_with(&cache) {
            Ok(Some(real))
        } else {
            Err(StoreError::NotAModel {
                path: path.to_owned(),
                reason: "it is a link that leaves the Hugging Face cache".to_owned(),
            })
        }
    }

    /// Gives a blob its name in a snapshot, and the revision its commit.
    pub(super) fn link(
        &self,
        commit: &str,
        revision: &str,
        file: &str,
        etag: &str,
    ) -> Result<PathBuf, StoreError> {
        let link = self.snapshot(commit).join(file);
        let parent = link.parent().unwrap_or(&self.dir).to_owned();
        fs::create_dir_all(&parent).map_err(|e| StoreError::disk("create", &parent, e))?;
        self.inside(&parent)?;
        let up = "../".repeat(file.split('/').count() + 1);
        let target = format!("{up}blobs/{etag}");
        if fs::read_link(&link).ok().as_deref() != Some(Path::new(&target)) {
            remove_if_there(&link)?;
            place(&target, &self.blob(etag), &link)
                .map_err(|e| StoreError::disk("link", &link, e))?;
        }
        if revision != commit {
            let refs = self.dir.join("refs");
            fs::create_dir_all(&refs).map_err(|e| StoreError::disk("create", &refs, e))?;
            write_small(&refs.join(revision), commit.as_bytes())?;
        }
        Ok(link)
    }

    /// Removes one snapshot file: every link to its blob, the blob, what an interrupted
    /// download of it left, and folders that end up empty. Returns the bytes freed.
    pub(super) fn remove(&self, path: &Path) -> Result<u64, StoreError> {
        let Some(blob) = self.inside(path)? else { return Ok(0) };
        let mut freed = 0;
        for snapshot in self.snapshots() {
            for (_, link) in files_below(&snapshot) {
                if link.canonicalize().is_ok_and(|real| real == blob) && link != blob {
                    remove_if_there(&link)?;
                }
            }
            remove_empty(&snapshot, DEEPEST);
        }
        freed += remove_if_there(&blob)?;
        let mut unfinished = blob.clone().into_os_string();
        unfinished.push(".incomplete");
        freed += remove_if_there(Path::new(&unfinished))?;
        if self.snapshots().is_empty() {
            // The last snapshot is gone: so are the names that pointed to it.
            for entry in fs::read_dir(self.dir.join("refs")).into_iter().flatten().flatten() {
                remove_if_there(&entry.path())?;
            }
        }
        remove_empty(&self.dir, 1);
        Ok(freed)
    }
}

/// Finds a hub reference in the cache: a GGUF file, or a complete safetensors snapshot.
pub(super) fn find(config: &StoreConfig, hub: &HubRef) -> Result<Option<PathBuf>, StoreError> {
    let folder = RepoFolder::new(config, &hub.repo);
    let Some(snapshot) = folder.resolve(hub.revision()) else { return Ok(None) };
    let files: BTreeMap<String, PathBuf> = files_below(&snapshot).into_iter().collect();
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    match choice::choose(&names, hub.quant.as_deref()) {
        Ok(Choice::File(name)) => match files.get(name) {
            Some(path) => Ok(folder.inside(path)?.map(|_| path.clone())),
            None => Ok(None),
        },
        Ok(Choice::Directory(wanted)) => {
            for name in wanted {
                if let Some(path) = files.get(name)
                    && folder.inside(path)?.is_none()
                {
                    return Ok(None);
                }
            }
            Ok(is_complete(&snapshot).then_some(snapshot))
        }
        Err(_) => Ok(None),
    }
}

/// Every GGUF file of the cache: repository, quantisation (or file name) and path.
pub(super) fn gguf_files(config: &StoreConfig) -> Vec<(RepoId, String, PathBuf)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(&config.hub_cache).into_iter().flatten().flatten() {
        let Some(repo) = entry.file_name().to_str().and_then(RepoId::from_folder) else { continue };
        let folder = RepoFolder::new(config, &repo);
        let Some(snapshot) = folder.snapshots().into_iter().next() else { continue };
        for (name, path) in files_below(&snapshot) {
            let whole = name.to_ascii_lowercase().ends_with(".gguf") && path.is_file();
            if whole && matches!(folder.inside(&path), Ok(Some(_))) {
                found.push((repo.clone(), choice::label(&name), path));
            }
        }
    }
    found.sort();
    found
}

/// Whether every shard that the index names is there.
fn is_complete(snapshot: &Path) -> bool {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let Ok(text) = fs::read(snapshot.join("model.safetensors.index.json")) else { return true };
    serde_json::from_slice::<Index>(&text).is_ok_and(|index| {
        index
            .weight_map
            .values()
            .all(|shard| !shard.contains('/') && snapshot.join(shard).is_file())
    })
}

/// The files (and links) of a snapshot, by their `/`-separated names.
fn files_below(dir: &Path) -> Vec<(String, PathBuf)> {
    fn walk(dir: &Path, prefix: &str, depth: usize, out: &mut Vec<(String, PathBuf)>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Some(name) = entry.file_name().to_str().map(|n| format!("{prefix}{n}")) else {
                continue;
            };
            match entry.file_type() {
                Ok(t) if t.is_dir() && depth > 0 => {
                    walk(&entry.path(), &format!("{name}/"), depth - 1, out);
                }
                Ok(t) if !t.is_dir() => out.push((name, entry.path())),
                _ => {}
            }
        }
    }
    let mut out = Vec::new();
    walk(dir, "", DEEPEST, &mut out);
    out.sort();
    out
}

/// Removes the empty folders of `dir`, then `dir` itself if it is empty.
fn remove_empty(dir: &Path, depth: usize) {
    if depth > 0 {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                remove_empty(&entry.path(), depth - 1);
            }
        }
    }
    // Fails on a folder that is not empty, which is what keeps it.
    let _ = fs::remove_dir(dir);
}

#[cfg(unix)]
fn place(target: &str, _blob: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Where links need rights, the cache's convention is the file itself in the snapshot.
#[cfg(not(unix))]
fn place(_target: &str, blob: &Path, link: &Path) -> io::Result<()> {
    fs::hard_link(blob, link).or_else(|_| fs::copy(blob, link).map(|_| ()))
}
