//! Downloads from the Hugging Face hub into its cache, resumed and verified.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::catalogue::{Entry, is_sha256};
use super::choice::{self, Choice};
use super::config::StoreConfig;
use super::error::{SourceError, StoreError};
use super::http::{Client, FileFacts, Transfer, is_commit};
use super::hub_cache::RepoFolder;
use super::progress::{Counter, Event, Listener};
use super::reference::{HubRef, RepoId, is_safe_file_path};
use super::shelf::{BLOCK, Shelf, Verdict, hash_file, hash_into, hex, lock_file, remove_if_there};

/// Connections in a row that may break without a new byte before a pull gives up.
const MOST_BREAKS: u32 = 3;
/// Pause before a connection is tried again.
const PAUSE: Duration = Duration::from_millis(300);

/// The verified file of a catalogue entry in the hub's cache, if it is there.
pub(super) fn find_file(
    config: &StoreConfig,
    shelf: &Shelf,
    entry: &Entry,
    repo: &RepoId,
    file: &str,
) -> Result<Option<PathBuf>, StoreError> {
    let folder = RepoFolder::new(config, repo);
    for snapshot in folder.snapshots() {
        let path = snapshot.join(file);
        if folder.inside(&path)?.is_none() {
            continue;
        }
        if shelf.verify(&path, &record(shelf, entry), entry.bytes, &entry.sha256)? == Verdict::Good
        {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Where the hash of a cached file is remembered: on our shelf, not in others' cache.
pub(super) fn record(shelf: &Shelf, entry: &Entry) -> PathBuf {
    shelf.record(&format!(".hub-{}", entry.file_name()))
}

/// Fetches a catalogue entry's file; only the very file is taken.
pub(super) fn fetch_file(
    config: &StoreConfig,
    shelf: &Shelf,
    entry: &Entry,
    repo: &RepoId,
    file: &str,
    events: &mut Listener<'_>,
) -> Result<PathBuf, SourceError> {
    let client = Client::new(config)?;
    let address = address(repo, "main", file);
    let facts = client.facts(&address).map_err(SourceError::Refused)?;
    if facts.bytes != entry.bytes {
        return Err(SourceError::refused(format!(
            "the file there is another build ({} bytes, {} expected)",
            facts.bytes, entry.bytes
        )));
    }
    if is_sha256(&facts.etag) && facts.etag != entry.sha256 {
        return Err(SourceError::refused(format!(
            "the file there is another build (sha256 {}, {} expected)",
            facts.etag, entry.sha256
        )));
    }
    let folder = RepoFolder::new(config, repo);
    let mut counter = Counter::new(entry.bytes);
    let job = Job { client: &client, folder: &folder, address: &address, facts: &facts };
    job.blob(Some(&entry.sha256), &mut |done, events| counter.at(done, events), events)?;
    let path = folder.link(&facts.commit, "main", file, &facts.etag).map_err(cache_error)?;
    shelf.note(&path, &record(shelf, entry), &entry.sha256);
    Ok(path)
}

/// Fetches what a hub reference means: a GGUF file, or a safetensors snapshot.
pub(super) fn fetch(
    config: &StoreConfig,
    hub: &HubRef,
    events: &mut Listener<'_>,
) -> Result<PathBuf, SourceError> {
    let client = Client::new(config)?;
    let listing = Listing::read(&client, hub).map_err(SourceError::Refused)?;
    let names: Vec<&str> = listing.files.iter().map(|f| f.rfilename.as_str()).collect();
    let wanted = choice::choose(&names, hub.quant.as_deref()).map_err(SourceError::Refused)?;
    let files = match &wanted {
        Choice::File(name) => vec![*name],
        Choice::Directory(names) => names.clone(),
    };
    let size =
        |name: &str| listing.files.iter().find(|f| f.rfilename == name).and_then(Listed::bytes);
    let total = files.iter().filter_map(|name| size(name)).sum();
    let folder = RepoFolder::new(config, &hub.repo);
    let mut counter = Counter::new(total);
    let mut before = 0;
    let mut last = None;
    for name in &files {
        // By commit, so that all files are of one state of the repository.
        let address = address(&hub.repo, &listing.sha, name);
        let facts =
            client.facts(&address).map_err(|e| SourceError::Refused(format!("{name}: {e}")))?;
        let job = Job { client: &client, folder: &folder, address: &address, facts: &facts };
        let sha256 = is_sha256(&facts.etag).then_some(facts.etag.as_str());
        job.blob(sha256, &mut |done, events| counter.at(before + done, events), events)?;
        before += facts.bytes;
        let revision = hub.revision();
        last = Some(folder.link(&listing.sha, revision, name, &facts.etag).map_err(cache_error)?);
    }
    match (wanted, last) {
        (Choice::File(_), Some(path)) => Ok(path),
        _ => Ok(folder.snapshot(&listing.sha)),
    }
}

/// The path of a file at the hub. Names are checked before; what a path may not hold as
/// it is gets escaped.
fn address(repo: &RepoId, revision: &str, file: &str) -> String {
    let mut path = format!("/{repo}/resolve/{revision}/");
    for byte in file.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                path.push(char::from(byte));
            }
            _ => path.push_str(&format!("%{byte:02X}")),
        }
    }
    path
}

/// The hub's listing of a repository at one commit.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    #[serde(rename = "siblings", default)]
    files: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    size: Option<u64>,
}

impl Listed {
    fn bytes(&self) -> Option<u64> {
        self.lfs.as_ref().and_then(|lfs| lfs.size).or(self.size)
    }
}

impl Listing {
    /// Reads and checks a listing. A name that climbs out of its folder condemns the
    /// whole listing; names that are merely odd (`.gitattributes`) are left out.
    fn read(client: &Client, hub: &HubRef) -> Result<Self, String> {
        let path = format!("/api/models/{}/revision/{}?blobs=true", hub.repo, hub.revision());
        let text = client.text(&path)?;
        let mut listing: Self = serde_json::from_slice(&text)
            .map_err(|e| format!("the hub's listing of {} makes no sense: {e}", hub.repo))?;
        if !is_commit(&listing.sha) {
            return Err(format!("the hub's listing of {} names no commit", hub.repo));
        }
        let climbs = |name: &str| {
            name.starts_with('/')
                || name.contains('\\')
                || name.chars().any(char::is_control)
                || name.split('/').any(|part| part == "..")
        };
        if let Some(bad) = listing.files.iter().find(|f| climbs(&f.rfilename)) {
            return Err(format!(
                "the hub lists a file name that leaves its folder ({}); nothing was fetched",
                bad.rfilename.escape_default()
            ));
        }
        listing.files.retain(|f| is_safe_file_path(&f.rfilename));
        Ok(listing)
    }
}

/// One file to bring into the cache.
struct Job<'a> {
    client: &'a Client,
    folder: &'a RepoFolder,
    address: &'a str,
    facts: &'a FileFacts,
}

/// Tells how many bytes of one file are there.
type Grown<'a> = dyn FnMut(u64, &mut Listener<'_>) + 'a;

impl Job<'_> {
    /// Makes sure the blob is in the cache, whole and (where a hash is known) verified.
    fn blob(
        &self,
        sha256: Option<&str>,
        grown: &mut Grown<'_>,
        events: &mut Listener<'_>,
    ) -> Result<(), SourceError> {
        let blob = self.folder.blob(&self.facts.etag);
        let lock = self.folder.lock(&self.facts.etag);
        for path in [&blob, &lock] {
            let dir = path.parent().unwrap_or(path);
            fs::create_dir_all(dir).map_err(|e| cache_error(StoreError::disk("create", dir, e)))?;
            self.folder.inside(dir).map_err(cache_error)?;
        }
        let name = self.address.rsplit('/').next().unwrap_or_default();
        let _lock = lock_file(&lock, name, events).map_err(cache_error)?;
        if self.is_there(&blob, sha256)? {
            grown(self.facts.bytes, events);
            return Ok(());
        }
        let incomplete = self.folder.incomplete(&self.facts.etag);
        let resumed = fs::metadata(&incomplete).is_ok_and(|m| m.len() > 0);
        let mut found = self.transfer(&incomplete, grown, events)?;
        if resumed && sha256.is_some_and(|wanted| wanted != found) {
            // The part that was there already may have been of something else.
            events(Event::Note { text: "what an earlier pull left does not fit; starting over" });
            remove_if_there(&incomplete).map_err(cache_error)?;
            found = self.transfer(&incomplete, grown, events)?;
        }
        if let Some(wanted) = sha256
            && wanted != found
        {
            remove_if_there(&incomplete).map_err(cache_error)?;
            return Err(SourceError::refused(format!(
                "it gave {} bytes with sha256 {found} where {wanted} is expected; they were removed",
                self.facts.bytes
            )));
        }
        fs::rename(&incomplete, &blob)
            .map_err(|e| cache_error(StoreError::disk("rename", &incomplete, e)))
    }

    /// Whether a whole blob lies there. A wrong one of the right length is removed: its
    /// name promises other contents, to us and to every program that shares the cache.
    fn is_there(&self, blob: &Path, sha256: Option<&str>) -> Result<bool, SourceError> {
        let meta = match fs::metadata(blob) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(cache_error(StoreError::disk("read", blob, e))),
        };
        let good = meta.is_file()
            && meta.len() == self.facts.bytes
            && match sha256 {
                Some(wanted) => {
                    hash_file(blob).map_err(|e| cache_error(StoreError::disk("read", blob, e)))?
                        == wanted
                }
                None => true,
            };
        if !good {
            remove_if_there(blob).map_err(cache_error)?;
        }
        Ok(good)
    }

    /// Brings the unfinished file to its full length and returns its sha256. Broken
    /// connections are taken up again where they broke while new bytes keep coming.
    fn transfer(
        &self,
        incomplete: &Path,
        grown: &mut Grown<'_>,
        events: &mut Listener<'_>,
    ) -> Result<String, SourceError> {
        let total = self.facts.bytes;
        let disk = |e| cache_error(StoreError::disk("write", incomplete, e));
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(incomplete)
            .map_err(disk)?;
        let mut hasher = Sha256::new();
        let mut there = file.metadata().map_err(disk)?.len();
        if there > total {
            file.set_len(0).map_err(disk)?;
            there = 0;
        }
        hash_into(&mut hasher, &mut file, there).map_err(disk)?;
        grown(there, events);
        let mut breaks = 0;
        while there < total {
            let before = there;
            let trouble = match self.client.bytes(self.address, there, self.if_range()) {
                Ok((start, mut body)) => {
                    if start != there && start != 0 {
                        return Err(SourceError::refused("the server answers with another range"));
                    }
                    if start != there {
                        file.set_len(0).map_err(disk)?;
                        hasher = Sha256::new();
                        there = 0;
                    }
                    file.seek(SeekFrom::Start(there)).map_err(disk)?;
                    self.copy(
                        &mut body,
                        &mut file,
                        &mut hasher,
                        &mut there,
                        incomplete,
                        &mut |n| {
                            grown(n, events);
                        },
                    )?
                }
                Err(Transfer::Refused(reason)) => return Err(SourceError::Refused(reason)),
                Err(Transfer::Broken(reason)) => Some(reason),
                Err(Transfer::BeyondEnd) if there > 0 => {
                    file.set_len(0).map_err(disk)?;
                    hasher = Sha256::new();
                    there = 0;
                    Some("the server has fewer bytes than it says".to_owned())
                }
                Err(Transfer::BeyondEnd) => {
                    return Err(SourceError::refused("the server has no bytes to give"));
                }
            };
            if there >= total {
                break;
            }
            breaks = if there > before { 0 } else { breaks + 1 };
            if breaks >= MOST_BREAKS {
                let reason = trouble.unwrap_or_else(|| "the connection ends early".to_owned());
                return Err(SourceError::Refused(format!(
                    "{reason}; {there} of {total} bytes are kept for the next try"
                )));
            }
            std::thread::sleep(PAUSE);
        }
        file.sync_all().map_err(disk)?;
        Ok(hex(hasher))
    }

    /// The hub names contents by ETag; a content host behind it has tags of its own, so
    /// only the hub itself is asked to compare. Elsewhere the final hash decides.
    fn if_range(&self) -> Option<&str> {
        self.facts.direct.then_some(self.facts.etag.as_str())
    }

    /// Copies a body until it ends or breaks; a break is returned as its reason.
    fn copy(
        &self,
        body: &mut impl Read,
        file: &mut File,
        hasher: &mut Sha256,
        there: &mut u64,
        path: &Path,
        grown: &mut dyn FnMut(u64),
    ) -> Result<Option<String>, SourceError> {
        let mut block = vec![0; BLOCK];
        loop {
            let n = match body.read(&mut block) {
                Ok(0) => return Ok(None),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Ok(Some(format!("the connection broke ({e})"))),
            };
            if *there + n as u64 > self.facts.bytes {
                file.set_len(0).map_err(|e| cache_error(StoreError::disk("write", path, e)))?;
                return Err(SourceError::refused(format!(
                    "the server sends more than the {} bytes it announced",
                    self.facts.bytes
                )));
            }
            let bytes = block.get(..n).unwrap_or_default();
            hasher.update(bytes);
            file.write_all(bytes).map_err(|e| cache_error(StoreError::disk("write", path, e)))?;
            *there += n as u64;
            grown(*there);
        }
    }
}

/// A cache that cannot be written may be someone else's: the next source keeps its files
/// elsewhere. A full disk stops everything.
fn cache_error(error: StoreError) -> SourceError {
    match &error {
        StoreError::Disk { source, path, action }
            if matches!(
                source.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            SourceError::Refused(format!(
                "cannot {action} {}: {source} (HF_HOME moves the cache)",
                path.display()
            ))
        }
        _ => SourceError::Fatal(error),
    }
}
