//! Parsing of a GGUF head. Every count and length is checked against what the file can still
//! hold *before* anything is allocated for it, with arithmetic that cannot wrap.

use std::path::Path;

use super::cursor::{Cursor, Short, Span};
use super::metadata::{Entry, Metadata, ValueType};
use super::source::Source;
use super::tensor_type::weight_type;
use super::{Compact, Shape, TensorInfo};
use crate::file_error::{Fault, quoted, quoted_bytes};

/// Real files have some 30 keys; bounds the table kept for them.
const MAX_KEYS: u64 = 1 << 16;
/// Real files have at most some ten thousand tensors.
const MAX_TENSORS: u64 = 1 << 16;
/// The format's own limit on keys.
const MAX_KEY_BYTES: u64 = (1 << 16) - 1;
/// Longest single string: chat templates reach some 100 KiB.
const MAX_STRING_BYTES: u64 = 16 << 20;
/// Longest tensor name: the format says 64, merged files exceed it.
const MAX_NAME_BYTES: u64 = 256;
/// Arrays inside arrays inside arrays: no real file nests at all.
const MAX_DEPTH: u32 = 4;
/// Largest alignment; 32 is usual and a huge page would be 2 MiB.
const MAX_ALIGNMENT: u32 = 1 << 21;
/// Alignment when the file does not say.
pub(crate) const DEFAULT_ALIGNMENT: u32 = 32;
/// Key of the alignment.
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";
/// Fewest bytes of a key-value pair: length, one letter, type, one byte.
const LEAST_PAIR: u64 = 8 + 1 + 4 + 1;
/// Fewest bytes of a tensor entry: length, one letter, rank, one dimension, type, offset.
const LEAST_TENSOR: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// What a head says.
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) metadata: Metadata,
    pub(crate) alignment: u32,
    pub(crate) tensors: Vec<TensorInfo>,
}

/// Parses and checks a whole head.
pub(crate) fn parse(source: &Source, path: &Path) -> Result<Header, Fault> {
    let mut cursor = Cursor::new(source);
    let version = magic_and_version(&mut cursor)?;
    let n_tensors = count(&mut cursor, "tensor count", MAX_TENSORS, LEAST_TENSOR)?;
    let n_keys = count(&mut cursor, "metadata count", MAX_KEYS, LEAST_PAIR)?;

    let mut entries = Vec::with_capacity(n_keys);
    for i in 0..n_keys {
        entries.push(pair(&mut cursor, i)?);
    }
    let mut tensors =
        Vec::with_capacity(n_tensors.min((cursor.remaining() / LEAST_TENSOR) as usize));
    for i in 0..n_tensors {
        tensors.push(tensor(&mut cursor, i)?);
    }
    let head_end = cursor.position();
    let metadata = Metadata::new(path, cursor.into_head(), entries)?;
    let alignment = alignment(&metadata)?;
    place(&mut tensors, head_end, alignment, source.len())?;
    Ok(Header { version, metadata, alignment, tensors })
}

fn magic_and_version(cursor: &mut Cursor<'_>) -> Result<u32, Fault> {
    let magic = cursor.take(4).map_err(|short| short.at("magic"))?;
    if cursor.bytes(magic) != b"GGUF" {
        let found = quoted_bytes(cursor.bytes(magic));
        return Err(Fault::unsupported(
            "magic",
            found,
            "\"GGUF\" (a GGUF model file), or the path of a directory with config.json and model.safetensors",
        ));
    }
    let version = cursor.u32().map_err(|short| short.at("version"))?;
    match version {
        2 | 3 => Ok(version),
        _ if matches!(version.swap_bytes(), 1..=3) => Err(Fault::unsupported(
            "version",
            format_args!("{} in big-endian order", version.swap_bytes()),
            "little-endian files of version 2 or 3",
        )),
        1 => Err(Fault::unsupported("version", 1, "2 and 3 (convert the model again)")),
        _ => Err(Fault::unsupported("version", version, "2 and 3")),
    }
}

/// A count of entries that take at least `least` bytes each in the rest of the file.
fn count(cursor: &mut Cursor<'_>, field: &str, most: u64, least: u64) -> Result<usize, Fault> {
    let n = cursor.u64().map_err(|short| short.at(field))?;
    let fits = cursor.remaining() / least;
    if n > fits {
        return Err(Fault::malformed(
            field,
            n,
            format!("at most {fits}, which is what the file has room for"),
        ));
    }
    if n > most {
        return Err(Fault::malformed(field, n, format!("at most {most}")));
    }
    // At most 2^16.
    Ok(n as usize)
}

/// A length-prefixed string of at most `most` bytes.
fn string(cursor: &mut Cursor<'_>, most: u64) -> Result<Result<Span, u64>, Short> {
    let len = cursor.u64()?;
    if len > most && len <= cursor.remaining() {
        return Ok(Err(len));
    }
    cursor.take(len).map(Ok)
}

fn pair(cursor: &mut Cursor<'_>, i: usize) -> Result<Entry, Fault> {
    let field = || format!("metadata key number {i}");
    let key = match string(cursor, MAX_KEY_BYTES).map_err(|short| short.at(field()))? {
        Ok(key) => key,
        Err(len) => {
            let found = format_args!("{len} bytes long");
            return Err(Fault::malformed(field(), found, format!("at most {MAX_KEY_BYTES}")));
        }
    };
    if key.start == key.end {
        return Err(Fault::malformed(field(), "empty", "a name"));
    }
    if std::str::from_utf8(cursor.bytes(key)).is_err() {
        return Err(Fault::malformed(field(), quoted_bytes(cursor.bytes(key)), "UTF-8 text"));
    }
    let name = |cursor: &Cursor<'_>| format!("metadata key {}", quoted_bytes(cursor.bytes(key)));

    let ty = value_type(cursor, |c| format!("{}: type", name(c)))?;
    let (elements, value) = match ty {
        ValueType::Array => {
            let element = value_type(cursor, |c| format!("{}: element type", name(c)))?;
            let (len, span) = array(cursor, element, 1, &name)?;
            (Some((element, len)), span)
        }
        ValueType::String => (None, bounded_string(cursor, &name)?),
        _ => {
            let bytes = ty.fixed_bytes().unwrap_or(1);
            (None, cursor.take(bytes).map_err(|short| short.at(name(cursor)))?)
        }
    };
    Ok(Entry { key, ty, elements, value })
}

fn value_type(
    cursor: &mut Cursor<'_>,
    field: impl Fn(&Cursor<'_>) -> String,
) -> Result<ValueType, Fault> {
    let id = cursor.u32().map_err(|short| short.at(field(cursor)))?;
    ValueType::from_id(id).ok_or_else(|| Fault::malformed(field(cursor), id, "0 to 12"))
}

fn bounded_string(
    cursor: &mut Cursor<'_>,
    name: &impl Fn(&Cursor<'_>) -> String,
) -> Result<Span, Fault> {
    match string(cursor, MAX_STRING_BYTES).map_err(|short| short.at(name(cursor)))? {
        Ok(span) => Ok(span),
        Err(len) => Err(Fault::malformed(
            name(cursor),
            format_args!("a string of {len} bytes"),
            format!("at most {MAX_STRING_BYTES}"),
        )),
    }
}

/// Steps over the elements of an array; returns their number and bytes.
fn array(
    cursor: &mut Cursor<'_>,
    element: ValueType,
    depth: u32,
    name: &impl Fn(&Cursor<'_>) -> String,
) -> Result<(u64, Span), Fault> {
    let len = cursor.u64().map_err(|short| short.at(format!("{}: length", name(cursor))))?;
    let fits = cursor.remaining() / element.least_bytes();
    if len > fits {
        return Err(Fault::malformed(
            format!("{}: length", name(cursor)),
            len,
            format!("at most {fits}, which is what the file has room for"),
        ));
    }
    let start = cursor.position() as usize;
    match element {
        ValueType::Array => {
            if depth >= MAX_DEPTH {
                return Err(Fault::malformed(
                    name(cursor),
                    format_args!("arrays nested more than {MAX_DEPTH} deep"),
                    "a flat array",
                ));
            }
            for _ in 0..len {
                let inner = value_type(cursor, |c| format!("{}: element type", name(c)))?;
                array(cursor, inner, depth + 1, name)?;
            }
        }
        ValueType::String => {
            for _ in 0..len {
                bounded_string(cursor, name)?;
            }
        }
        _ => {
            // At most the file's length by the check above, so the product cannot wrap.
            let bytes = len * element.least_bytes();
            cursor.take(bytes).map_err(|short| short.at(name(cursor)))?;
        }
    }
    Ok((len, Span { start, end: cursor.position() as usize }))
}

fn tensor(cursor: &mut Cursor<'_>, i: usize) -> Result<TensorInfo, Fault> {
    let field = || format!("name of tensor number {i}");
    let span = match string(cursor, MAX_NAME_BYTES).map_err(|short| short.at(field()))? {
        Ok(span) => span,
        Err(len) => {
            let found = format_args!("{len} bytes long");
            return Err(Fault::malformed(field(), found, format!("at most {MAX_NAME_BYTES}")));
        }
    };
    let bytes = cursor.bytes(span);
    let name = match std::str::from_utf8(bytes) {
        Ok("") => return Err(Fault::malformed(field(), "empty", "a name")),
        Ok(name) => name.to_owned(),
        Err(_) => return Err(Fault::malformed(field(), quoted_bytes(bytes), "UTF-8 text")),
    };
    let field = |part: &str| format!("tensor {}: {part}", quoted(&name));

    let rank = cursor.u32().map_err(|short| short.at(field("number of dimensions")))?;
    if !(1..=4).contains(&rank) {
        return Err(Fault::malformed(field("number of dimensions"), rank, "1 to 4"));
    }
    let mut dims = [0u64; 4];
    for dim in &mut dims[..rank as usize] {
        *dim = cursor.u64().map_err(|short| short.at(field("dimensions")))?;
    }
    let dims = &mut dims[..rank as usize];
    let id = cursor.u32().map_err(|short| short.at(field("type")))?;
    let compact = Compact::from_number(id);
    let ty = match compact {
        Some(compact) => compact.expanded(),
        None => weight_type(id, || field("type"))?,
    };
    let offset = cursor.u64().map_err(|short| short.at(field("offset")))?;

    if dims.contains(&0) {
        let found = format_args!("{dims:?}");
        return Err(Fault::malformed(field("dimensions"), found, "none of them zero"));
    }
    // The file lists the fastest dimension first; everywhere else it comes last.
    dims.reverse();
    let too_big = || {
        let found = format_args!("{dims:?}");
        Fault::malformed(field("dimensions"), found, "a product that fits the file")
    };
    let shape = Shape::from_u64(dims).ok_or_else(too_big)?;
    // Before the stored size is asked for: a compact row is never longer than its expanded form.
    let expanded = ty.row_bytes(shape.cols()).ok();
    let stored = match compact {
        Some(compact) => expanded.and_then(|_| compact.row_bytes(shape.cols())),
        None => expanded,
    };
    let Some(row) = stored else {
        let block = ty.block_len();
        return Err(Fault::malformed(
            field("dimensions"),
            format_args!("{dims:?} of type {ty}"),
            format!("rows of a multiple of {block} values"),
        ));
    };
    let bytes = row.checked_mul(shape.rows()).filter(|bytes| isize::try_from(*bytes).is_ok());
    let bytes = bytes.ok_or_else(too_big)? as u64;
    Ok(TensorInfo { name, ty, compact, shape, offset, bytes })
}

fn alignment(metadata: &Metadata) -> Result<u32, Fault> {
    let field = || format!("metadata key {}", quoted(ALIGNMENT_KEY));
    let Some((_, ty, _)) = metadata.keys().find(|(key, ..)| *key == ALIGNMENT_KEY) else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    if ty != ValueType::U32 {
        return Err(Fault::malformed(field(), format_args!("a value of type {ty}"), "a u32"));
    }
    let value = metadata.u32(ALIGNMENT_KEY).map_err(|error| *error.fault)?;
    if !value.is_power_of_two() || value > MAX_ALIGNMENT {
        let expected = format!("a power of two from 1 to {MAX_ALIGNMENT}");
        return Err(Fault::malformed(field(), value, expected));
    }
    Ok(value)
}

/// Turns offsets within the data part into positions in the file, and checks that every tensor
/// lies inside it, aligned, named once and apart from the others.
fn place(tensors: &mut [TensorInfo], head_end: u64, alignment: u32, len: u64) -> Result<(), Fault> {
    let align = u64::from(alignment);
    // Both far below 2^63.
    let data = head_end.next_multiple_of(align);
    for tensor in tensors.iter_mut() {
        let field = |part: &str| format!("tensor {}: {part}", quoted(&tensor.name));
        if !tensor.offset.is_multiple_of(align) {
            let expected = format!("a multiple of the alignment {align}");
            return Err(Fault::malformed(field("offset"), tensor.offset, expected));
        }
        let end = data.checked_add(tensor.offset).and_then(|at| at.checked_add(tensor.bytes));
        match end {
            Some(end) if end <= len => tensor.offset += data,
            _ if tensor.offset <= len => {
                let need = end.unwrap_or(u64::MAX);
                return Err(Fault::Truncated { field: field("data"), need, len });
            }
            _ => {
                let expected = format!("inside the file of {len} bytes");
                return Err(Fault::malformed(field("offset"), tensor.offset, expected));
            }
        }
    }
    let mut order: Vec<u32> = (0..tensors.len() as u32).collect();
    order.sort_unstable_by_key(|i| tensors[*i as usize].offset);
    for pair in order.windows(2) {
        let (a, b) = (&tensors[pair[0] as usize], &tensors[pair[1] as usize]);
        if a.offset + a.bytes > b.offset {
            return Err(Fault::malformed(
                format!("tensor {}: offset", quoted(&b.name)),
                format_args!("inside the data of tensor {}", quoted(&a.name)),
                "data of its own",
            ));
        }
    }
    order.sort_unstable_by(|a, b| tensors[*a as usize].name.cmp(&tensors[*b as usize].name));
    for pair in order.windows(2) {
        let name = &tensors[pair[0] as usize].name;
        if *name == tensors[pair[1] as usize].name {
            let field = format!("tensor {}", quoted(name));
            return Err(Fault::malformed(field, "there twice", "each tensor once"));
        }
    }
    Ok(())
}
