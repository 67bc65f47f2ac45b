//! One safetensors file: a length, a JSON header, and the bytes of the tensors.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use ::safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::file_error::{Fault, FileError, printable, quoted};
use crate::gguf::Source;

/// Longest header read. The format's own library takes 100 MB; files of 700 tensors need 100 KB,
/// and a header costs several times its length in memory once parsed.
const MAX_HEADER: u64 = 16 << 20;
/// Bytes of the length before the header.
const PREFIX: u64 = 8;

/// An opened and checked safetensors file.
#[derive(Debug)]
pub(crate) struct Shard {
    path: PathBuf,
    source: Source,
    /// Position of the tensors' data in the file.
    data: u64,
    metadata: Metadata,
}

impl Shard {
    /// Opens a file and checks all of its header.
    pub(crate) fn open(path: &Path) -> Result<Self, FileError> {
        Self::parse(Source::open(path)?, path)
    }

    pub(crate) fn parse(source: Source, path: &Path) -> Result<Self, FileError> {
        let (data, metadata) = header(&source).map_err(|fault| fault.at(path))?;
        Ok(Self { path: path.to_path_buf(), source, data, metadata })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.source.len()
    }

    /// Names of the tensors, in the order of their data.
    pub(crate) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    pub(crate) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// Fills `out` with the bytes of a tensor from its `skip`-th on.
    pub(crate) fn read(&self, name: &str, skip: usize, out: &mut [u8]) -> Result<(), FileError> {
        let field = || format!("tensor {}: data", quoted(name));
        let fail = |fault: Fault| fault.at(&self.path);
        let Some(info) = self.info(name) else {
            return Err(crate::weights::missing_tensor(&self.path, name));
        };
        let (begin, end) = info.data_offsets;
        let stop = skip.checked_add(out.len()).and_then(|n| n.checked_add(begin));
        if stop.is_none_or(|stop| stop > end) {
            let found = format_args!("asked for {} bytes from byte {skip} on", out.len());
            let expected = format!("bytes within its {}", end - begin);
            return Err(fail(Fault::malformed(field(), found, expected)));
        }
        self.source.read_exact_at(out, self.data + (begin + skip) as u64).map_err(|source| {
            let next = "the file changed after it was opened, or the disk failed: fetch it again";
            fail(Fault::Io { field: field(), source, next })
        })
    }

    /// Fails when the file has become shorter than it was; asked before memory is set aside.
    pub(crate) fn check_length(&self, name: &str) -> Result<(), FileError> {
        let field = || format!("tensor {}: data", quoted(name));
        let now = self.source.len_now().map_err(|source| {
            Fault::Io { field: field(), source, next: "check the disk and try again" }
                .at(&self.path)
        })?;
        if now >= self.source.len() {
            return Ok(());
        }
        Err(Fault::Truncated { field: field(), need: self.source.len(), len: now }.at(&self.path))
    }
}

fn header(source: &Source) -> Result<(u64, Metadata), Fault> {
    let len = source.len();
    let field = "header length";
    if len < PREFIX {
        return Err(Fault::Truncated { field: field.into(), need: PREFIX, len });
    }
    let io = |field: &str| {
        let field = field.to_owned();
        move |source| Fault::Io { field, source, next: "check the disk and try again" }
    };
    let mut prefix = [0; PREFIX as usize];
    source.read_exact_at(&mut prefix, 0).map_err(io(field))?;
    let size = u64::from_le_bytes(prefix);
    if size > MAX_HEADER {
        return Err(Fault::malformed(field, size, format!("at most {MAX_HEADER}")));
    }
    let data = PREFIX + size;
    if data > len {
        return Err(Fault::Truncated { field: "header".into(), need: data, len });
    }
    let mut text = vec![0; size as usize];
    source.read_exact_at(&mut text, PREFIX).map_err(io("header"))?;
    let tensors: Header = serde_json::from_slice(&text).map_err(|error| {
        let error = printable(&error.to_string(), 200);
        Fault::malformed("header", format_args!("not readable ({error})"), "a safetensors header")
    })?;
    let tensors = check(tensors.0, data, len)?;
    // The library's own verdict on what has just been checked by name.
    let metadata = Metadata::new(None, tensors).map_err(|error| {
        let error = printable(&error.to_string(), 200);
        Fault::malformed("header", format_args!("refused ({error})"), "consistent tensors")
    })?;
    Ok((data, metadata))
}

/// Checks each tensor's length against its type and shape, and that together they fill the data
/// part, from `start` to the file's end at `len`, without overlap or hole. Returns them in the order of their data.
fn check(
    mut tensors: Vec<(String, TensorInfo)>,
    start: u64,
    len: u64,
) -> Result<Vec<(String, TensorInfo)>, Fault> {
    tensors.sort_by(|a, b| a.1.data_offsets.cmp(&b.1.data_offsets).then(a.0.cmp(&b.0)));
    let mut filled = 0;
    for (name, info) in &tensors {
        let field = |part: &str| format!("tensor {}: {part}", quoted(name));
        let (begin, end) = info.data_offsets;
        let bits = info
            .shape
            .iter()
            .try_fold(info.dtype.bitsize(), |bits, dim| bits.checked_mul(*dim))
            .filter(|bits| bits.is_multiple_of(8));
        let Some(bytes) = bits.map(|bits| bits / 8) else {
            let found = format_args!("{:?} of {:?}", info.shape, info.dtype);
            return Err(Fault::malformed(field("shape"), found, "a size that fits the file"));
        };
        if begin.checked_add(bytes) != Some(end) {
            return Err(Fault::malformed(
                field("data_offsets"),
                format_args!("[{begin}, {end}]"),
                format!("{bytes} bytes, for {:?} of {:?}", info.shape, info.dtype),
            ));
        }
        if begin != filled {
            let what =
                if begin < filled { "overlapping the tensor before" } else { "after a hole" };
            let found = format_args!("[{begin}, {end}], {what}");
            let expected = format!("data from byte {filled} on");
            return Err(Fault::malformed(field("data_offsets"), found, expected));
        }
        filled = end;
        if end as u64 > len - start {
            let need = start.saturating_add(end as u64);
            return Err(Fault::Truncated { field: field("data"), need, len });
        }
    }
    let data = len - start;
    if filled as u64 != data {
        let expected = format!("{filled} bytes, where the last tensor ends");
        return Err(Fault::malformed("data", format_args!("{data} bytes long"), expected));
    }
    Ok(tensors)
}

/// The header's tensors in the order of the text; a name that comes twice is an error.
struct Header(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut tensors = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                let message = format!("tensor {} is there twice", quoted(&name));
                return Err(serde::de::Error::custom(message));
            }
            if name == "__metadata__" {
                map.next_value::<HashMap<String, String>>()?;
                continue;
            }
            let info = map.next_value::<TensorInfo>().map_err(|error| {
                serde::de::Error::custom(format!("tensor {}: {error}", quoted(&name)))
            })?;
            tensors.push((name, info));
        }
        Ok(Header(tensors))
    }
}
