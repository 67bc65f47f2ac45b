//! Where the bytes of a GGUF file come from: positioned reads of an open file, or memory.
//!
//! Files are *not* mapped. A mapped file that another program shortens turns the next touch of
//! its lost pages into SIGBUS, which no Rust code can answer with an error; a positioned read
//! turns the same event into `UnexpectedEof`. It also keeps resident memory to the one tensor
//! being repacked, needs no `unsafe`, and costs one copy of bytes that are copied (repacked)
//! anyway. An unlinked or replaced file stays readable through the open handle.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::file_error::{Fault, FileError};

/// A readable range of bytes of known length.
#[derive(Debug)]
pub(crate) enum Source {
    /// An open regular file and its length when it was opened.
    File(File, u64),
    /// Bytes already in memory (tests, fuzzing, files inside other files).
    Memory(Vec<u8>),
}

impl Source {
    /// Opens a regular file for positioned reads.
    pub(crate) fn open(path: &Path) -> Result<Self, FileError> {
        let io = |source: io::Error| {
            let next = match source.kind() {
                io::ErrorKind::NotFound => "check the path, or pull the model first",
                io::ErrorKind::PermissionDenied => "check the file's permissions",
                _ => "check the disk and try again",
            };
            Fault::Io { field: "model file".into(), source, next }.at(path)
        };
        // Asked before opening too: opening a pipe would wait for a writer.
        let kind = |meta: &std::fs::Metadata| {
            if meta.is_file() {
                return Ok(meta.len());
            }
            let found = if meta.is_dir() { "a directory" } else { "not a regular file" };
            Err(Fault::malformed("model file", found, "a regular file").at(path))
        };
        kind(&std::fs::metadata(path).map_err(io)?)?;
        let file = File::open(path).map_err(io)?;
        let len = kind(&file.metadata().map_err(io)?)?;
        Ok(Self::File(file, len))
    }

    /// Length in bytes when opened.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::File(_, len) => *len,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Length in bytes now: a file may have been shortened since it was opened.
    pub(crate) fn len_now(&self) -> io::Result<u64> {
        match self {
            Self::File(file, _) => Ok(file.metadata()?.len()),
            Self::Memory(bytes) => Ok(bytes.len() as u64),
        }
    }

    /// Fills `out` from `offset` on, or fails; never reads past the end.
    pub(crate) fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file, _) => read_file_at(file, out, offset),
            Self::Memory(bytes) => {
                let found = usize::try_from(offset)
                    .ok()
                    .and_then(|start| bytes.get(start..start.checked_add(out.len())?));
                out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}

#[cfg(unix)]
fn read_file_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_file_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !out.is_empty() {
        match file.seek_read(out, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                out = &mut out[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
