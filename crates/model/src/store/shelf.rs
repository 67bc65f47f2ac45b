//! Tessera's own directory of models: names, locks, hashes and the record beside each file.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::StoreError;
use super::progress::{Event, Listener};

/// Bytes read or written at a time.
pub(super) const BLOCK: usize = 1 << 20;

/// The directory of Tessera's own models.
#[derive(Debug, Clone)]
pub(super) struct Shelf {
    dir: PathBuf,
}

/// What is remembered of a file so that later runs need not hash it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    bytes: u64,
    /// Modification time, nanoseconds since 1970.
    modified_ns: u64,
    sha256: String,
}

/// What a file turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The very file that is wanted.
    Good,
    /// No file.
    Missing,
    /// A file with other contents; the reason, one line.
    Wrong(String),
}

/// A held lock; dropping it releases it.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Shelf {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub(super) fn create(&self) -> Result<(), StoreError> {
        fs::create_dir_all(&self.dir).map_err(|e| StoreError::disk("create", &self.dir, e))
    }

    /// The finished file.
    pub(super) fn file(&self, file_name: &str) -> PathBuf {
        self.dir.join(file_name)
    }

    /// The record beside a finished file, or beside a file of another cache.
    pub(super) fn record(&self, file_name: &str) -> PathBuf {
        self.dir.join(format!("{file_name}.json"))
    }

    /// The unfinished file.
    pub(super) fn partial(&self, file_name: &str) -> PathBuf {
        self.dir.join(format!(".partial-{file_name}"))
    }

    /// How far the unfinished file has come.
    pub(super) fn partial_record(&self, file_name: &str) -> PathBuf {
        self.dir.join(format!(".partial-{file_name}.json"))
    }

    /// Where pieces wait to be joined.
    pub(super) fn pieces(&self, file_name: &str) -> PathBuf {
        self.dir.join(format!(".pieces-{file_name}"))
    }

    /// Everything an interrupted pull of `file_name` may have left.
    pub(super) fn leftovers(&self, file_name: &str) -> [PathBuf; 3] {
        [self.partial(file_name), self.partial_record(file_name), self.pieces(file_name)]
    }

    /// Takes the lock of `name`, waiting for its holder. The lock file stays: removing
    /// it would let two processes hold "the" lock on two different files.
    pub(super) fn lock(
        &self,
        file_name: &str,
        name: &str,
        events: &mut Listener<'_>,
    ) -> Result<Lock, StoreError> {
        self.create()?;
        lock_file(&self.dir.join(format!(".lock-{file_name}")), name, events)
    }

    /// Whether `path` is the file with this size and hash. A record kept from an earlier
    /// look is believed while size and modification time have not changed.
    pub(super) fn verify(
        &self,
        path: &Path,
        record: &Path,
        bytes: u64,
        sha256: &str,
    ) -> Result<Verdict, StoreError> {
        let now = match stamp(path) {
            Ok(stamp) => stamp,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Verdict::Missing),
            Err(e) => return Err(StoreError::disk("read", path, e)),
        };
        if now.0 != bytes {
            let reason = format!("it has {} bytes where {bytes} are expected", now.0);
            return Ok(Verdict::Wrong(reason));
        }
        let known = fs::read(record).ok().and_then(|t| serde_json::from_slice::<Record>(&t).ok());
        let found = match known {
            Some(r) if (r.bytes, r.modified_ns) == now => r.sha256,
            _ => {
                let found = hash_file(path).map_err(|e| StoreError::disk("read", path, e))?;
                self.remember(record, now, &found);
                found
            }
        };
        Ok(if found == sha256 {
            Verdict::Good
        } else {
            Verdict::Wrong(format!("its sha256 is {found} where {sha256} is expected"))
        })
    }

    /// Moves a finished, hashed file into place and writes its record.
    pub(super) fn put(
        &self,
        partial: &Path,
        path: &Path,
        record: &Path,
        sha256: &str,
    ) -> Result<(), StoreError> {
        // The old record first: a crash between the two steps must not leave a record
        // that speaks for another file.
        remove_if_there(record)?;
        fs::rename(partial, path).map_err(|e| StoreError::disk("rename", partial, e))?;
        // The rename is durable once the directory is; not every file system can do it.
        if let Some(Ok(dir)) = path.parent().map(File::open) {
            let _ = dir.sync_all();
        }
        self.note(path, record, sha256);
        Ok(())
    }

    /// Records the hash of a file that was computed elsewhere.
    pub(super) fn note(&self, path: &Path, record: &Path, sha256: &str) {
        if let Ok(now) = stamp(path) {
            self.remember(record, now, sha256);
        }
    }

    /// Records are an economy: where they cannot be written, the next run hashes again.
    fn remember(&self, record: &Path, (bytes, modified_ns): (u64, u64), sha256: &str) {
        let record_of = Record { bytes, modified_ns, sha256: sha256.to_owned() };
        if self.create().is_ok()
            && let Ok(text) = serde_json::to_vec_pretty(&record_of)
        {
            let _ = write_small(record, &text);
        }
    }
}

/// Opens (or creates) `path` and holds its advisory lock.
pub(super) fn lock_file(
    path: &Path,
    name: &str,
    events: &mut Listener<'_>,
) -> Result<Lock, StoreError> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|e| StoreError::disk("create", path, e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            events(Event::Waiting { name });
            file.lock().map_err(|e| StoreError::disk("lock", path, e))?;
        }
        // Some network file systems have no locks; a pull there is alone or unlucky,
        // and the hash check still guards what it leaves.
        Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {}
        Err(TryLockError::Error(e)) => return Err(StoreError::disk("lock", path, e)),
    }
    Ok(Lock { _file: file })
}

/// Size in bytes and modification time in nanoseconds since 1970.
fn stamp(path: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
    }
    let since = meta.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok((meta.len(), u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)))
}

/// SHA-256 of a whole file in lower-case hexadecimal.
pub(super) fn hash_file(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    hash_into(&mut hasher, &mut File::open(path)?, u64::MAX)?;
    Ok(hex(hasher))
}

/// Feeds at most `limit` bytes of `from` to `hasher`; returns how many there were.
pub(super) fn hash_into(hasher: &mut Sha256, from: &mut impl Read, limit: u64) -> io::Result<u64> {
    let mut block = vec![0; BLOCK];
    let mut from = from.take(limit);
    let mut seen = 0;
    loop {
        let n = match from.read(&mut block) {
            Ok(0) => return Ok(seen),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hasher.update(block.get(..n).unwrap_or_default());
        seen += n as u64;
    }
}

/// The digest as lower-case hexadecimal.
pub(super) fn hex(hasher: Sha256) -> String {
    use std::fmt::Write as _;
    hasher.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Writes a small file whole or not at all.
pub(super) fn write_small(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&temporary);
        StoreError::disk("write", path, e)
    })
}

/// Removes a file; its absence is no error. Returns the bytes freed.
pub(super) fn remove_if_there(path: &Path) -> Result<u64, StoreError> {
    let bytes = fs::symlink_metadata(path).map_or(0, |m| m.len());
    match fs::remove_file(path) {
        Ok(()) => Ok(bytes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(StoreError::disk("remove", path, e)),
    }
}

/// Total bytes of the plain files below `dir`; what cannot be read counts nothing.
pub(super) fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(t) if t.is_dir() => bytes_below(&entry.path()),
            Ok(t) if t.is_file() => entry.metadata().map_or(0, |m| m.len()),
            _ => 0,
        })
        .sum()
}

/// Removes a directory of ours; its absence is no error. Returns the bytes freed.
pub(super) fn remove_tree(dir: &Path) -> Result<u64, StoreError> {
    let bytes = bytes_below(dir);
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(bytes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(StoreError::disk("remove", dir, e)),
    }
}
