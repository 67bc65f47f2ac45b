//! The key-value part of a GGUF file: typed access to values that stay in the file's own bytes,
//! so that a vocabulary of 262,144 strings costs no 262,144 allocations.

use std::path::{Path, PathBuf};

use super::cursor::Span;
use crate::file_error::{Fault, FileError, quoted};

/// The type of a metadata value or of the elements of an array.
#[allow(missing_docs)] // the format's own names
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    /// The type with this number in a file.
    pub fn from_id(id: u32) -> Option<Self> {
        use ValueType as V;
        [
            V::U8,
            V::I8,
            V::U16,
            V::I16,
            V::U32,
            V::I32,
            V::F32,
            V::Bool,
            V::String,
            V::Array,
            V::U64,
            V::I64,
            V::F64,
        ]
        .get(usize::try_from(id).ok()?)
        .copied()
    }

    /// Bytes of a value of fixed size; `None` for strings and arrays.
    pub fn fixed_bytes(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }

    /// The fewest bytes a value of this type takes in a file.
    pub(crate) fn least_bytes(self) -> u64 {
        match self {
            Self::String => 8,
            Self::Array => 12,
            _ => self.fixed_bytes().unwrap_or(1),
        }
    }
}

impl std::fmt::Display for ValueType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = format!("{self:?}").to_lowercase();
        f.write_str(&name)
    }
}

/// One key and where its value lies in the head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) key: Span,
    pub(crate) ty: ValueType,
    /// For arrays: type and number of the elements.
    pub(crate) elements: Option<(ValueType, u64)>,
    /// The value's bytes: without the length for strings, the elements only for arrays.
    pub(crate) value: Span,
}

/// The metadata of a file. Values are decoded when asked for.
///
/// Each accessor comes as `x(key)`, for which absence is an error, and `get_x(key)`, for which
/// absence is `None`. A value of another type is an error in both: it names the key, the type
/// expected and the type found.
#[derive(Debug)]
pub struct Metadata {
    path: PathBuf,
    head: Vec<u8>,
    entries: Vec<Entry>,
    /// Indices of `entries`, sorted by key.
    order: Vec<u32>,
}

impl Metadata {
    /// Takes parsed entries; keys are checked UTF-8. Fails on a key that comes twice.
    pub(crate) fn new(path: &Path, head: Vec<u8>, entries: Vec<Entry>) -> Result<Self, Fault> {
        let key = |i: &u32| &head[entries[*i as usize].key.start..entries[*i as usize].key.end];
        let mut order: Vec<u32> = (0..entries.len() as u32).collect();
        order.sort_unstable_by(|a, b| key(a).cmp(key(b)));
        if let Some(pair) = order.windows(2).find(|pair| key(&pair[0]) == key(&pair[1])) {
            let name = String::from_utf8_lossy(key(&pair[0])).into_owned();
            return Err(Fault::malformed(
                format!("metadata key {}", quoted(&name)),
                "there twice",
                "each key once",
            ));
        }
        Ok(Self { path: path.to_path_buf(), head, entries, order })
    }

    /// The file these come from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when the file has no metadata at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keys and types in file order; an array shows the type of its elements and their number.
    pub fn keys(&self) -> impl Iterator<Item = (&str, ValueType, Option<(ValueType, u64)>)> {
        self.entries.iter().map(|e| (self.text(e.key), e.ty, e.elements))
    }

    /// True when the key is there, whatever its type.
    pub fn contains(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// Type and number of the elements, when the key is there and holds an array.
    pub fn array_of(&self, key: &str) -> Option<(ValueType, u64)> {
        self.find(key)?.elements
    }

    /// Key, type, element type and count, and value bytes, for copying into another file.
    pub(crate) fn raw(&self) -> impl Iterator<Item = (&str, &Entry, &[u8])> {
        self.entries.iter().map(|e| (self.text(e.key), e, self.slice(e.value)))
    }

    fn slice(&self, span: Span) -> &[u8] {
        &self.head[span.start..span.end]
    }

    fn text(&self, span: Span) -> &str {
        // Keys were checked when the file was parsed.
        std::str::from_utf8(self.slice(span)).unwrap_or_default()
    }

    fn find(&self, key: &str) -> Option<&Entry> {
        let at = self
            .order
            .binary_search_by(|i| self.slice(self.entries[*i as usize].key).cmp(key.as_bytes()))
            .ok()?;
        self.entries.get(self.order[at] as usize)
    }

    /// Fault at a key of this file.
    pub(crate) fn fault(
        &self,
        key: &str,
        found: impl std::fmt::Display,
        expected: impl Into<String>,
    ) -> FileError {
        Fault::malformed(format!("metadata key {}", quoted(key)), found, expected).at(&self.path)
    }

    fn wrong_type(&self, key: &str, entry: &Entry, expected: &str) -> FileError {
        let found = match entry.elements {
            Some((ty, _)) => format!("an array of {ty}"),
            None => format!("a value of type {}", entry.ty),
        };
        self.fault(key, found, expected)
    }

    fn require<T>(&self, key: &str, got: Result<Option<T>, FileError>) -> Result<T, FileError> {
        got?.ok_or_else(|| {
            Fault::missing(
                format!("metadata key {}", quoted(key)),
                "the file was not made for this purpose: convert the model again",
            )
            .at(&self.path)
        })
    }

    /// The value as an integer, whatever its width and sign.
    fn get_int(&self, key: &str, expected: &str) -> Result<Option<i128>, FileError> {
        let Some(e) = self.find(key) else {
            return Ok(None);
        };
        match int(e.ty, self.slice(e.value)) {
            Some(value) => Ok(Some(value)),
            None => Err(self.wrong_type(key, e, expected)),
        }
    }

    /// An integer of any width that fits 32 bits unsigned.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>, FileError> {
        let expected = "an unsigned integer of 32 bits";
        let Some(value) = self.get_int(key, expected)? else {
            return Ok(None);
        };
        u32::try_from(value).map(Some).map_err(|_| self.fault(key, value, expected))
    }

    /// An integer of any width that fits 64 bits unsigned.
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>, FileError> {
        let expected = "an unsigned integer of 64 bits";
        let Some(value) = self.get_int(key, expected)? else {
            return Ok(None);
        };
        u64::try_from(value).map(Some).map_err(|_| self.fault(key, value, expected))
    }

    /// A float of 32 or 64 bits, finite.
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>, FileError> {
        let Some(e) = self.find(key) else {
            return Ok(None);
        };
        let bytes = self.slice(e.value);
        let value = match (e.ty, bytes) {
            (ValueType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (ValueType::F64, &[a, b, c, d, x, y, z, w]) => {
                f64::from_le_bytes([a, b, c, d, x, y, z, w]) as f32
            }
            _ => return Err(self.wrong_type(key, e, "a float")),
        };
        if !value.is_finite() {
            return Err(self.fault(key, value, "a finite float"));
        }
        Ok(Some(value))
    }

    /// A truth value.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>, FileError> {
        let Some(e) = self.find(key) else {
            return Ok(None);
        };
        match (e.ty, self.slice(e.value)) {
            (ValueType::Bool, [byte @ 0..=1]) => Ok(Some(*byte == 1)),
            (ValueType::Bool, bytes) => {
                Err(self.fault(key, format_args!("the byte {bytes:?}"), "0 or 1"))
            }
            _ => Err(self.wrong_type(key, e, "a truth value")),
        }
    }

    /// A string, UTF-8.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>, FileError> {
        let Some(e) = self.find(key) else {
            return Ok(None);
        };
        if e.ty != ValueType::String {
            return Err(self.wrong_type(key, e, "a string"));
        }
        match std::str::from_utf8(self.slice(e.value)) {
            Ok(text) => Ok(Some(text)),
            Err(error) => Err(self.fault(key, format_args!("not UTF-8 ({error})"), "UTF-8 text")),
        }
    }

    /// An array of strings, each checked to be UTF-8.
    pub fn get_arr_str(&self, key: &str) -> Result<Option<StrArray<'_>>, FileError> {
        let Some((len, bytes)) = self.array(key, &[ValueType::String], "an array of strings")?
        else {
            return Ok(None);
        };
        // The parser stepped over exactly `len` strings, so `len` fits memory and the walk below
        // meets no short string.
        let array = StrArray { bytes, len: len as usize };
        for (i, item) in RawStrings(bytes).enumerate() {
            if let Err(error) = std::str::from_utf8(item) {
                return Err(self.fault(
                    key,
                    format_args!("an array whose element {i} is not UTF-8 ({error})"),
                    "UTF-8 text",
                ));
            }
        }
        Ok(Some(array))
    }

    /// An array of 32-bit integers (signed, or unsigned below 2^31).
    pub fn get_arr_i32(&self, key: &str) -> Result<Option<Vec<i32>>, FileError> {
        let expected = "an array of i32";
        let types = [ValueType::I32, ValueType::U32];
        self.words(key, &types, expected, |ty, word| match ty {
            ValueType::U32 => i32::try_from(u32::from_le_bytes(word)).ok(),
            _ => Some(i32::from_le_bytes(word)),
        })
    }

    /// An array of 32-bit unsigned integers (or signed ones that are not negative).
    pub fn get_arr_u32(&self, key: &str) -> Result<Option<Vec<u32>>, FileError> {
        let expected = "an array of u32";
        let types = [ValueType::U32, ValueType::I32];
        self.words(key, &types, expected, |ty, word| match ty {
            ValueType::I32 => u32::try_from(i32::from_le_bytes(word)).ok(),
            _ => Some(u32::from_le_bytes(word)),
        })
    }

    /// An array of 32-bit floats; they may be infinite or NaN.
    pub fn get_arr_f32(&self, key: &str) -> Result<Option<Vec<f32>>, FileError> {
        self.words(key, &[ValueType::F32], "an array of f32", |_, word| {
            Some(f32::from_le_bytes(word))
        })
    }

    /// An array of truth values.
    pub fn get_arr_bool(&self, key: &str) -> Result<Option<Vec<bool>>, FileError> {
        let expected = "an array of truth values";
        let Some((_, bytes)) = self.array(key, &[ValueType::Bool], expected)? else {
            return Ok(None);
        };
        if let Some(byte) = bytes.iter().find(|byte| **byte > 1) {
            return Err(self.fault(key, format_args!("an array with the byte {byte}"), expected));
        }
        Ok(Some(bytes.iter().map(|byte| *byte == 1).collect()))
    }

    fn words<T>(
        &self,
        key: &str,
        types: &[ValueType],
        expected: &str,
        decode: impl Fn(ValueType, [u8; 4]) -> Option<T>,
    ) -> Result<Option<Vec<T>>, FileError> {
        let Some((_, bytes)) = self.array(key, types, expected)? else {
            return Ok(None);
        };
        let ty = self.find(key).and_then(|e| e.elements).map_or(types[0], |(ty, _)| ty);
        let (words, _) = bytes.as_chunks::<4>();
        let mut out = Vec::with_capacity(words.len());
        for (i, word) in words.iter().enumerate() {
            match decode(ty, *word) {
                Some(value) => out.push(value),
                None => {
                    let found = format_args!("an array whose element {i} is {word:?} as {ty}");
                    return Err(self.fault(key, found, expected));
                }
            }
        }
        Ok(Some(out))
    }

    fn array(
        &self,
        key: &str,
        types: &[ValueType],
        expected: &str,
    ) -> Result<Option<(u64, &[u8])>, FileError> {
        let Some(e) = self.find(key) else {
            return Ok(None);
        };
        match e.elements {
            Some((ty, len)) if types.contains(&ty) => Ok(Some((len, self.slice(e.value)))),
            _ => Err(self.wrong_type(key, e, expected)),
        }
    }
}

macro_rules! required {
    ($($name:ident, $get:ident -> $out:ty;)*) => {
        impl Metadata {
            $(
                #[doc = concat!("As [`Self::", stringify!($get), "`]; absence is an error.")]
                pub fn $name(&self, key: &str) -> Result<$out, FileError> {
                    self.require(key, self.$get(key))
                }
            )*
        }
    };
}

required! {
    u32, get_u32 -> u32;
    u64, get_u64 -> u64;
    f32, get_f32 -> f32;
    bool, get_bool -> bool;
    str, get_str -> &str;
    arr_str, get_arr_str -> StrArray<'_>;
    arr_i32, get_arr_i32 -> Vec<i32>;
    arr_u32, get_arr_u32 -> Vec<u32>;
    arr_f32, get_arr_f32 -> Vec<f32>;
    arr_bool, get_arr_bool -> Vec<bool>;
}

fn int(ty: ValueType, bytes: &[u8]) -> Option<i128> {
    let mut wide = [0; 8];
    wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
    let raw = u64::from_le_bytes(wide);
    Some(match ty {
        ValueType::U8 | ValueType::U16 | ValueType::U32 | ValueType::U64 => i128::from(raw),
        ValueType::I8 => i128::from(raw as u8 as i8),
        ValueType::I16 => i128::from(raw as u16 as i16),
        ValueType::I32 => i128::from(raw as u32 as i32),
        ValueType::I64 => i128::from(raw as i64),
        _ => return None,
    })
}

/// An array of strings inside a file's head.
#[derive(Debug, Clone, Copy)]
pub struct StrArray<'a> {
    bytes: &'a [u8],
    len: usize,
}

impl<'a> StrArray<'a> {
    /// Number of strings.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The strings in order. Walking is cheap; finding the n-th means walking.
    pub fn iter(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        // Checked when the array was handed out.
        RawStrings(self.bytes).map(|item| std::str::from_utf8(item).unwrap_or_default())
    }
}

/// Length-prefixed strings, one after the other.
struct RawStrings<'a>(&'a [u8]);

impl<'a> Iterator for RawStrings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (len, rest) = self.0.split_first_chunk::<8>()?;
        let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
        let (item, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        Some(item)
    }
}
