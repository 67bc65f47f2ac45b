//! The files of an encoder: in a directory, or in a zip archive beside its `config.json`.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;
use zip::ZipArchive;

use crate::file_error::{Fault, FileError, printable};

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const SENTENCES: &str = "sentence_bert_config.json";
pub(crate) const POOLING: &str = "1_Pooling/config.json";

/// Most bytes of a configuration or a tokenizer; real tokenizers have up to 20 MB.
pub(super) const SMALL: u64 = 64 << 20;
/// Most bytes of the weights: those of a BERT of 24 layers have 1.3 GB.
pub(super) const LARGE: u64 = 2 << 30;

/// Where an encoder's files are.
pub(super) struct Files {
    path: PathBuf,
    place: Place,
}

enum Place {
    Directory,
    /// An archive, and what the names of its members begin with.
    Archive(Box<ZipArchive<BufReader<File>>>, String),
}

impl Files {
    pub(super) fn open(path: &Path) -> Result<Self, FileError> {
        let fail = |fault: Fault| fault.at(path);
        let io =
            |source| fail(Fault::Io { field: "open".to_owned(), source, next: "check the path" });
        let place = if path.is_dir() {
            Place::Directory
        } else {
            let file = File::open(path).map_err(io)?;
            let archive = ZipArchive::new(BufReader::new(file)).map_err(|error| {
                let found = format_args!("not a zip archive ({error})").to_string();
                let supported =
                    "a directory or a zip archive as sentence-transformers stores encoders";
                fail(Fault::unsupported("the file", found, supported))
            })?;
            // The shortest of them, should an archive hold more than one model.
            let begin = archive
                .file_names()
                .filter_map(|name| Some(name.ok()?.strip_suffix(WEIGHTS)?.to_owned()))
                .filter(|begin| begin.is_empty() || begin.ends_with('/'))
                .min_by_key(String::len);
            let Some(begin) = begin else {
                let next = "give an encoder as sentence-transformers stores it";
                return Err(fail(Fault::missing(WEIGHTS, next)));
            };
            Place::Archive(Box::new(archive), begin)
        };
        Ok(Self { path: path.to_owned(), place })
    }

    /// Reads a file of at most `most` bytes; `None` if it is not there.
    fn find(&mut self, name: &str, most: u64) -> Result<Option<Vec<u8>>, FileError> {
        let path = self.path.clone();
        let fail = move |source: std::io::Error| {
            let next = "check the disk and try again, or fetch it again";
            Fault::Io { field: name.to_owned(), source, next }.at(&path)
        };
        let mut bytes = Vec::new();
        let read = match &mut self.place {
            Place::Directory => match File::open(self.path.join(name)) {
                Ok(file) => file.take(most + 1).read_to_end(&mut bytes),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(fail(error)),
            },
            Place::Archive(archive, begin) => {
                let Some(index) = archive.index_for_name(&format!("{begin}{name}")) else {
                    return Ok(None);
                };
                match archive.by_index(index) {
                    // One byte more than fits shows that it is too long, whatever its header claims.
                    Ok(member) => member.take(most + 1).read_to_end(&mut bytes),
                    Err(error) => return Err(fail(std::io::Error::other(error))),
                }
            }
        };
        if read.map_err(fail)? as u64 > most {
            let fault = Fault::malformed(name, "longer", format!("at most {most} bytes"));
            return Err(fault.at(&self.path));
        }
        Ok(Some(bytes))
    }

    /// Reads a file that has to be there.
    pub(super) fn read(&mut self, name: &str, most: u64) -> Result<Vec<u8>, FileError> {
        let next = "give an encoder as sentence-transformers stores it";
        self.find(name, most)?.ok_or_else(|| Fault::missing(name, next).at(&self.path))
    }

    /// The JSON of a file, if it is there.
    pub(super) fn find_json(&mut self, name: &str) -> Result<Option<Value>, FileError> {
        let Some(bytes) = self.find(name, SMALL)? else { return Ok(None) };
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                let what = printable(&error.to_string(), 200);
                let found = format_args!("not readable ({what})").to_string();
                Err(Fault::malformed(name, found, "JSON").at(&self.path))
            }
        }
    }

    /// The JSON of a file that has to be there.
    pub(super) fn json(&mut self, name: &str) -> Result<Value, FileError> {
        let next = "give an encoder as sentence-transformers stores it";
        self.find_json(name)?.ok_or_else(|| Fault::missing(name, next).at(&self.path))
    }
}
