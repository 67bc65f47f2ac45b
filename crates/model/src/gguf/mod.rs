//! GGUF files: one file with a model's metadata and its tensors.
//!
//! ```no_run
//! use tessera_model::gguf::Gguf;
//! # fn main() -> Result<(), tessera_model::FileError> {
//! let file = Gguf::open("model.gguf".as_ref())?;
//! let arch = file.metadata().str("general.architecture")?;
//! let mut bytes = Vec::new();
//! let norm = file.read_tensor("output_norm.weight", &mut bytes)?;
//! # let _ = (arch, norm); Ok(()) }
//! ```
//!
//! The file may be hostile. Opening one checks every count, length, offset and product before
//! anything is allocated for it; what a file costs in memory is bounded by its own length. Tensor
//! data is read by position into the caller's buffer, never mapped: a file that is cut short after
//! it was opened gives an error, not a signal.

mod compact;
mod cursor;
mod header;
mod metadata;
mod source;
mod tensor_type;
mod writer;

use std::ops::Range;
use std::path::{Path, PathBuf};

pub use compact::Compact;
pub use metadata::{Metadata, StrArray, ValueType};
pub use tensor_type::tensor_type_name;
use tessera_kernels::WeightType;

use crate::file_error::{Fault, FileError, quoted};
pub(crate) use source::Source;
pub use writer::{GgufWriter, MetaValue, Stored};

/// An opened and checked GGUF file. Reading takes `&self`, so threads may share it.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    source: Source,
    version: u32,
    alignment: u32,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    /// Indices of `tensors`, sorted by name.
    order: Vec<u32>,
}

/// Extents of a tensor, outermost first: a matrix is `[rows, cols]`, each row contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    dims: [usize; 4],
    rank: usize,
}

impl Shape {
    /// A shape of one to four extents whose product fits `usize`.
    pub fn new(dims: &[usize]) -> Option<Self> {
        if dims.is_empty() || dims.len() > 4 {
            return None;
        }
        let total = dims.iter().try_fold(1usize, |total, dim| total.checked_mul(*dim))?;
        // As for any Rust object, sizes stay below isize::MAX.
        isize::try_from(total).ok()?;
        let mut all = [1; 4];
        all[..dims.len()].copy_from_slice(dims);
        Some(Self { dims: all, rank: dims.len() })
    }

    fn from_u64(dims: &[u64]) -> Option<Self> {
        let mut all = [0; 4];
        for (to, from) in all.iter_mut().zip(dims) {
            *to = usize::try_from(*from).ok()?;
        }
        Self::new(all.get(..dims.len())?)
    }

    /// The extents, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// Values in one contiguous row: the last extent.
    pub fn cols(&self) -> usize {
        self.dims[self.rank - 1]
    }

    /// Number of such rows: the product of the other extents, 1 for a vector.
    pub fn rows(&self) -> usize {
        self.dims[..self.rank - 1].iter().product()
    }

    /// Number of values.
    pub fn elements(&self) -> usize {
        self.dims().iter().product()
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

/// What a file says about one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// How its values are read; always a supported type.
    pub ty: WeightType,
    /// How its values are stored, where that is not `ty`: expanded to it when read.
    pub compact: Option<Compact>,
    /// Its extents, outermost first.
    pub shape: Shape,
    /// Position of its first byte in the file.
    offset: u64,
    /// Its length in bytes.
    bytes: u64,
}

impl TensorInfo {
    /// Length of the data in the file, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Name of the type that it is stored in.
    pub fn stored_name(&self) -> &'static str {
        self.compact.map_or(self.ty.name(), Compact::name)
    }

    /// Length of one row in the file, in bytes.
    pub fn row_bytes(&self) -> usize {
        // A row was checked to be whole blocks when the file was opened.
        let cols = self.shape.cols();
        let bytes = match self.compact {
            Some(compact) => compact.row_bytes(cols),
            None => self.ty.row_bytes(cols).ok(),
        };
        bytes.unwrap_or_default()
    }
}

impl Gguf {
    /// Opens a file and checks all of its head.
    ///
    /// # Errors
    /// Names the first field that is wrong, what it holds and what to do.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        Self::parse(Source::open(path)?, path)
    }

    /// Reads a file that is already in memory; `name` stands for the path in errors.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn from_bytes(bytes: Vec<u8>, name: &str) -> Result<Self, FileError> {
        Self::parse(Source::Memory(bytes), Path::new(name))
    }

    fn parse(source: Source, path: &Path) -> Result<Self, FileError> {
        let head = header::parse(&source, path).map_err(|fault| fault.at(path))?;
        let mut order: Vec<u32> = (0..head.tensors.len() as u32).collect();
        order.sort_unstable_by_key(|i| &head.tensors[*i as usize].name);
        Ok(Self {
            path: path.to_path_buf(),
            source,
            version: head.version,
            alignment: head.alignment,
            metadata: head.metadata,
            tensors: head.tensors,
            order,
        })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes when it was opened.
    pub fn file_bytes(&self) -> u64 {
        self.source.len()
    }

    /// Version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Alignment of tensor data in bytes.
    pub fn alignment(&self) -> u32 {
        self.alignment
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of this name, if there is one.
    pub fn find(&self, name: &str) -> Option<&TensorInfo> {
        let at = self
            .order
            .binary_search_by(|i| self.tensors[*i as usize].name.as_str().cmp(name))
            .ok()?;
        self.tensors.get(self.order[at] as usize)
    }

    /// The tensor of this name; absence is an error.
    ///
    /// # Errors
    /// [`Fault::Missing`] naming the tensor.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo, FileError> {
        self.find(name).ok_or_else(|| {
            Fault::missing(
                format!("tensor {}", quoted(name)),
                "the file is not a whole model: fetch or convert it again",
            )
            .at(&self.path)
        })
    }

    /// Reads a whole tensor into `out`, which is resized to it (and may be used again and again).
    ///
    /// # Errors
    /// When the tensor is missing, or the file can no longer be read that far.
    pub fn read_tensor(&self, name: &str, out: &mut Vec<u8>) -> Result<&TensorInfo, FileError> {
        let info = self.tensor(name)?;
        self.read_rows(info, 0..info.shape.rows(), out)?;
        Ok(info)
    }

    /// Reads some rows of a tensor of this file into `out`, which is resized to them.
    ///
    /// # Errors
    /// When the rows are not the tensor's, or the file can no longer be read that far.
    pub fn read_rows(
        &self,
        info: &TensorInfo,
        rows: Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<(), FileError> {
        let field = || format!("tensor {}: data", quoted(&info.name));
        if rows.start > rows.end || rows.end > info.shape.rows() {
            let expected = format!("rows within 0..{}", info.shape.rows());
            let fault =
                Fault::malformed(field(), format_args!("asked for rows {rows:?}"), expected);
            return Err(fault.at(&self.path));
        }
        let io = |source: std::io::Error| {
            let next = "the file changed after it was opened, or the disk failed: fetch it again";
            Fault::Io { field: field(), source, next }.at(&self.path)
        };
        // Within the tensor, whose end was checked: neither product nor sum can wrap.
        let row = info.row_bytes();
        let start = info.offset + (rows.start * row) as u64;
        let len = (rows.end - rows.start) * row;
        let (need, now) = (start + len as u64, self.source.len_now().map_err(io)?);
        if need > now {
            return Err(Fault::Truncated { field: field(), need, len: now }.at(&self.path));
        }
        let Some(compact) = info.compact else {
            out.resize(len, 0);
            return self.source.read_exact_at(out, start).map_err(io);
        };
        let mut stored = vec![0; len];
        self.source.read_exact_at(&mut stored, start).map_err(io)?;
        out.clear();
        stored.chunks_exact(row.max(1)).for_each(|r| compact.expand(r, info.shape.cols(), out));
        Ok(())
    }
}
