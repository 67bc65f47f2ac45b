//! Files that appear whole or not at all: written beside their place, then renamed into it.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::file_error::{Fault, FileError};

/// Writes a file under a temporary name in the same directory and renames it when `fill` is done;
/// on any error the temporary file is removed and what was at `path` stays.
pub(crate) fn write_whole(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), FileError>,
) -> Result<(), FileError> {
    let io = |source| {
        let next = "check the directory's permissions and the space left";
        Fault::Io { field: "output file".into(), source, next }.at(path)
    };
    let Some(name) = path.file_name() else {
        let found = format!("{:?}", path.display().to_string());
        return Err(Fault::malformed("output file", found, "a file name").at(path));
    };
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.partial", std::process::id()));
    let temporary = Temporary(path.with_file_name(temporary));
    // A left-over of a process that died with this number is nobody's.
    let file = File::create(&temporary.0).map_err(io)?;
    let mut out = BufWriter::with_capacity(1 << 18, file);
    fill(&mut out)?;
    let file = out.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)?;
    fs::rename(&temporary.0, path).map_err(io)
}

/// Writes bytes into an output file, naming the file when that fails.
pub(crate) fn put(out: &mut impl Write, bytes: &[u8], path: &Path) -> Result<(), FileError> {
    out.write_all(bytes).map_err(|source| {
        let next = "check the space left";
        Fault::Io { field: "output file".into(), source, next }.at(path)
    })
}

/// Removes the file when dropped; after a rename there is none to remove.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Nothing to do about a failure here, and after the rename failure is the rule.
        let _ = fs::remove_file(&self.0);
    }
}
