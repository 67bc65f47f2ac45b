//! Files that appear whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::{Error, Result};

/// Reads a text file.
pub(crate) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Error::io(path))
}

/// Writes a file under a temporary name, flushes it to the disk and renames it into its place, so
/// that whoever dies meanwhile leaves the old file or the new one.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    let partial = Path::new(&name);
    let mut file = File::create(partial).map_err(Error::io(partial))?;
    file.write_all(bytes).map_err(Error::io(partial))?;
    file.sync_all().map_err(Error::io(partial))?;
    fs::rename(partial, path).map_err(Error::io(path))?;
    // The name is in the directory, which is flushed apart from the file.
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        let _ = File::open(directory).and_then(|d| d.sync_all());
    }
    Ok(())
}
