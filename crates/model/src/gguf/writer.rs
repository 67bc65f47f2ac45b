//! Writing GGUF files: for quantising, exporting and tests.

use std::path::Path;

use tessera_kernels::WeightType;

use super::header::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT};
use super::{Compact, Gguf, Shape, ValueType};
use crate::file_error::{Fault, FileError, quoted};
use crate::whole_file::{put, write_whole};

/// A metadata value to write.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the format's own types
pub enum MetaValue {
    U32(u32),
    I32(i32),
    U64(u64),
    F32(f32),
    Bool(bool),
    Str(String),
    Strs(Vec<String>),
    U32s(Vec<u32>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Bools(Vec<bool>),
}

impl From<&str> for MetaValue {
    fn from(text: &str) -> Self {
        Self::Str(text.to_owned())
    }
}

impl From<u32> for MetaValue {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}

impl From<f32> for MetaValue {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

/// A tensor to write; without data it is asked for when the file is written.
#[derive(Debug)]
struct Declared {
    name: String,
    ty: Stored,
    shape: Shape,
    data: Option<Vec<u8>>,
}

/// How a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// In a type of the ggml format.
    Standard(WeightType),
    /// In one of this engine's own.
    Compact(Compact),
}

impl Stored {
    fn number(self) -> u32 {
        match self {
            Self::Standard(ty) => ty.ggml(),
            Self::Compact(compact) => compact.number(),
        }
    }

    /// The name of the type, as `tessera show` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard(ty) => ty.name(),
            Self::Compact(compact) => compact.name(),
        }
    }

    /// Bytes of a tensor; `None` for a shape that the type cannot have.
    pub fn bytes(self, shape: &Shape) -> Option<u64> {
        let row = match self {
            Self::Standard(ty) => ty.row_bytes(shape.cols()).ok(),
            Self::Compact(compact) => compact.row_bytes(shape.cols()),
        };
        row?.checked_mul(shape.rows()).map(|bytes| bytes as u64)
    }
}

impl From<WeightType> for Stored {
    fn from(ty: WeightType) -> Self {
        Self::Standard(ty)
    }
}

/// Collects metadata and tensors, then writes a file of version 3.
#[derive(Debug, Default)]
pub struct GgufWriter {
    /// Keys with type and value as the file holds them.
    metadata: Vec<(String, Vec<u8>)>,
    tensors: Vec<Declared>,
    alignment: Option<u32>,
}

impl GgufWriter {
    /// A file without metadata or tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Copies the metadata of another file, byte for byte, where `keep` says so.
    pub fn copy_metadata(&mut self, from: &Gguf, keep: impl Fn(&str) -> bool) {
        for (key, entry, value) in from.metadata().raw().filter(|(key, ..)| keep(key)) {
            let mut bytes = (entry.ty as u32).to_le_bytes().to_vec();
            match entry.elements {
                Some((ty, count)) => {
                    bytes.extend((ty as u32).to_le_bytes());
                    bytes.extend(count.to_le_bytes());
                }
                None if entry.ty == ValueType::String => {
                    bytes.extend((value.len() as u64).to_le_bytes());
                }
                None => {}
            }
            bytes.extend(value);
            if key == ALIGNMENT_KEY {
                self.alignment = Some(from.alignment());
            }
            self.put_key(key, bytes);
        }
    }

    /// Sets a key, replacing what it had.
    pub fn set(&mut self, key: &str, value: impl Into<MetaValue>) -> &mut Self {
        let value = value.into();
        if let (ALIGNMENT_KEY, MetaValue::U32(alignment)) = (key, &value) {
            self.alignment = Some(*alignment);
        }
        self.put_key(key, encode(&value));
        self
    }

    fn put_key(&mut self, key: &str, bytes: Vec<u8>) {
        match self.metadata.iter_mut().find(|(have, _)| have == key) {
            Some(slot) => slot.1 = bytes,
            None => self.metadata.push((key.to_owned(), bytes)),
        }
    }

    /// Adds a tensor with its bytes.
    pub fn tensor(&mut self, name: &str, ty: WeightType, shape: Shape, data: Vec<u8>) -> &mut Self {
        let ty = Stored::Standard(ty);
        self.tensors.push(Declared { name: name.to_owned(), ty, shape, data: Some(data) });
        self
    }

    /// Replaces a tensor, or adds it.
    pub fn replace(
        &mut self,
        name: &str,
        ty: WeightType,
        shape: Shape,
        data: Vec<u8>,
    ) -> &mut Self {
        self.tensors.retain(|tensor| tensor.name != name);
        self.tensor(name, ty, shape, data)
    }

    /// Adds a tensor whose bytes are asked for when the file is written.
    pub fn declare(&mut self, name: &str, ty: impl Into<Stored>, shape: Shape) -> &mut Self {
        let ty = ty.into();
        self.tensors.push(Declared { name: name.to_owned(), ty, shape, data: None });
        self
    }

    /// Writes the file: under a temporary name, renamed when whole. `fill` gives the bytes of the
    /// declared tensors, in order, by putting them into its (reused) buffer.
    ///
    /// # Errors
    /// When a name, shape or length is not one a GGUF file can have, when `fill` fails, or when
    /// the disk does.
    pub fn write(
        &self,
        path: &Path,
        mut fill: impl FnMut(&str, &mut Vec<u8>) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        let (head, align) = self.head().map_err(|fault| fault.at(path))?;
        write_whole(path, |out| {
            put(out, &head, path)?;
            let mut buffer = Vec::new();
            for tensor in &self.tensors {
                let data = match &tensor.data {
                    Some(data) => data,
                    None => {
                        buffer.clear();
                        fill(&tensor.name, &mut buffer)?;
                        &buffer
                    }
                };
                check_length(tensor, data.len()).map_err(|fault| fault.at(path))?;
                put(out, data, path)?;
                put(out, &vec![0; padding(data.len() as u64, align)], path)?;
            }
            Ok(())
        })
    }

    /// The bytes of the file, when every tensor came with its own.
    ///
    /// # Errors
    /// As [`GgufWriter::write`]; a tensor without data is an error.
    pub fn to_bytes(&self) -> Result<Vec<u8>, FileError> {
        let path = Path::new("memory");
        let (mut out, align) = self.head().map_err(|fault| fault.at(path))?;
        for tensor in &self.tensors {
            let data = tensor.data.as_deref().unwrap_or_default();
            check_length(tensor, data.len()).map_err(|fault| fault.at(path))?;
            out.extend(data);
            out.resize(out.len() + padding(data.len() as u64, align), 0);
        }
        Ok(out)
    }

    /// The head, padded to where tensor data begins, and the alignment.
    fn head(&self) -> Result<(Vec<u8>, u64), Fault> {
        let alignment = self.alignment.unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() {
            let field = format!("metadata key {}", quoted(ALIGNMENT_KEY));
            return Err(Fault::malformed(field, alignment, "a power of two"));
        }
        let align = u64::from(alignment);
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            if key.is_empty() {
                return Err(Fault::malformed("metadata key", "empty", "a name"));
            }
            text(&mut out, key);
            out.extend(value);
        }
        let mut offset = 0u64;
        for (i, tensor) in self.tensors.iter().enumerate() {
            let twice = self.tensors[..i].iter().any(|other| other.name == tensor.name);
            if twice || tensor.name.is_empty() {
                let found = if twice { "there twice" } else { "without a name" };
                let field = format!("tensor {}", quoted(&tensor.name));
                return Err(Fault::malformed(field, found, "a name of its own"));
            }
            text(&mut out, &tensor.name);
            let dims = tensor.shape.dims();
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().rev().for_each(|dim| out.extend((*dim as u64).to_le_bytes()));
            out.extend(tensor.ty.number().to_le_bytes());
            out.extend(offset.to_le_bytes());
            let bytes = bytes_of(tensor)?;
            let next =
                offset.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(align));
            offset = next.ok_or_else(|| {
                let field = format!("tensor {}: dimensions", quoted(&tensor.name));
                Fault::malformed(field, tensor.shape, "sizes that fit a file")
            })?;
        }
        out.resize(out.len() + padding(out.len() as u64, align), 0);
        Ok((out, align))
    }
}

fn bytes_of(tensor: &Declared) -> Result<u64, Fault> {
    tensor.ty.bytes(&tensor.shape).ok_or_else(|| {
        let field = format!("tensor {}: dimensions", quoted(&tensor.name));
        let expected = format!("rows of whole blocks of {}, of a size that fits", tensor.ty.name());
        Fault::malformed(field, tensor.shape, expected)
    })
}

fn check_length(tensor: &Declared, found: usize) -> Result<(), Fault> {
    let expected = bytes_of(tensor)?;
    if found as u64 == expected {
        return Ok(());
    }
    let field = format!("tensor {}: data", quoted(&tensor.name));
    Err(Fault::malformed(field, format_args!("{found} bytes long"), format!("{expected} bytes")))
}

fn padding(len: u64, align: u64) -> usize {
    // Below the alignment, which is a u32.
    (len.wrapping_neg() % align) as usize
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Type and value as a file holds them.
fn encode(value: &MetaValue) -> Vec<u8> {
    let mut out = Vec::new();
    let mut array = |ty: ValueType, count: usize| {
        out.extend((ValueType::Array as u32).to_le_bytes());
        out.extend((ty as u32).to_le_bytes());
        out.extend((count as u64).to_le_bytes());
    };
    match value {
        MetaValue::Strs(items) => {
            array(ValueType::String, items.len());
            items.iter().for_each(|item| text(&mut out, item));
        }
        MetaValue::U32s(items) => {
            array(ValueType::U32, items.len());
            items.iter().for_each(|item| out.extend(item.to_le_bytes()));
        }
        MetaValue::I32s(items) => {
            array(ValueType::I32, items.len());
            items.iter().for_each(|item| out.extend(item.to_le_bytes()));
        }
        MetaValue::F32s(items) => {
            array(ValueType::F32, items.len());
            items.iter().for_each(|item| out.extend(item.to_le_bytes()));
        }
        MetaValue::Bools(items) => {
            array(ValueType::Bool, items.len());
            out.extend(items.iter().map(|item| u8::from(*item)));
        }
        MetaValue::U32(v) => scalar(&mut out, ValueType::U32, &v.to_le_bytes()),
        MetaValue::I32(v) => scalar(&mut out, ValueType::I32, &v.to_le_bytes()),
        MetaValue::U64(v) => scalar(&mut out, ValueType::U64, &v.to_le_bytes()),
        MetaValue::F32(v) => scalar(&mut out, ValueType::F32, &v.to_le_bytes()),
        MetaValue::Bool(v) => scalar(&mut out, ValueType::Bool, &[u8::from(*v)]),
        MetaValue::Str(v) => {
            scalar(&mut out, ValueType::String, &[]);
            text(&mut out, v);
        }
    }
    out
}

fn scalar(out: &mut Vec<u8>, ty: ValueType, bytes: &[u8]) {
    out.extend((ty as u32).to_le_bytes());
    out.extend(bytes);
}
