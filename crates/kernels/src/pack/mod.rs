//! Weight matrices: the GGUF types, their meaning, and their packed form.

mod dequantize;
mod slab;
pub(crate) mod strips;
mod weight_type;

#[cfg(test)]
pub(crate) mod tests;

pub use dequantize::dequantize;
pub use weight_type::WeightType;

use crate::error::{KernelError, Result};
use crate::pool::Pool;
use slab::Slab;
use strips::{BLOCK, STRIP, strip_bytes};

/// Bytes of raw weights copied at a time.
const COPY: usize = 1 << 20;

/// A weight matrix of `rows` outputs by `cols` inputs, ready for products.
#[derive(Debug)]
pub struct Matrix {
    ty: WeightType,
    rows: usize,
    cols: usize,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    /// Fast types: strips of 16 rows, each of so many bytes (see `strips`).
    Strips { slab: Slab, strip: usize },
    /// Other types: the GGUF bytes, row by row, each of so many bytes.
    Raw { slab: Slab, row: usize },
    /// Values given as f32, row by row.
    Floats(Vec<f32>),
}

impl Matrix {
    /// Packs `n_out` rows of `k` values from their GGUF bytes (row-major, as in the file).
    ///
    /// Fast types are repacked in their own bit width; the others are copied as they are.
    /// Errors: `raw` is not exactly that long, `k` is not a multiple of the block length, sizes
    /// overflow, or memory is refused.
    pub fn pack(ty: WeightType, raw: &[u8], n_out: usize, k: usize) -> Result<Matrix> {
        Matrix::pack_pieces(None, ty, raw, n_out, k)
    }

    /// [`Matrix::pack`] on the threads of a pool.
    pub fn pack_on(
        pool: &Pool,
        ty: WeightType,
        raw: &[u8],
        n_out: usize,
        k: usize,
    ) -> Result<Matrix> {
        Matrix::pack_pieces(Some(pool), ty, raw, n_out, k)
    }

    fn pack_pieces(
        pool: Option<&Pool>,
        ty: WeightType,
        raw: &[u8],
        n_out: usize,
        k: usize,
    ) -> Result<Matrix> {
        let expected = ty.matrix_bytes(n_out, k)?;
        if raw.len() != expected {
            return Err(KernelError::Length {
                what: "raw weights (bytes)",
                expected,
                got: raw.len(),
            });
        }
        let row = ty.row_bytes(k)?;
        let storage = if ty.is_fast() {
            let strip = strip_bytes(ty, k)?;
            let bytes = strip
                .checked_mul(n_out.div_ceil(STRIP))
                .ok_or(KernelError::Overflow("a packed weight matrix"))?;
            let slab = Slab::build(bytes, strip, pool, &|s, strip| {
                let first = s * STRIP * row;
                let raw = &raw[first..raw.len().min(first + STRIP * row)];
                for (i, raw) in raw.chunks_exact(row).enumerate() {
                    strips::pack_row(ty, raw, i, strip);
                }
            })?;
            Storage::Strips { slab, strip }
        } else {
            let slab = Slab::build(raw.len(), COPY, pool, &|i, piece| {
                piece.copy_from_slice(&raw[i * COPY..][..piece.len()]);
            })?;
            Storage::Raw { slab, row }
        };
        Ok(Matrix { ty, rows: n_out, cols: k, storage })
    }

    /// A matrix of `n_out` rows of `k` f32 values, row-major. Errors: `data` has another length.
    pub fn from_f32(data: Vec<f32>, n_out: usize, k: usize) -> Result<Matrix> {
        let expected = n_out.checked_mul(k).ok_or(KernelError::Overflow("a float matrix"))?;
        if data.len() != expected {
            return Err(KernelError::Length { what: "float weights", expected, got: data.len() });
        }
        Ok(Matrix { ty: WeightType::F32, rows: n_out, cols: k, storage: Storage::Floats(data) })
    }

    /// Outputs (`n_out`).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs (`k`).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The type the weights came in.
    pub fn ty(&self) -> WeightType {
        self.ty
    }

    /// Bytes the weights take in memory, padding included.
    pub fn bytes(&self) -> usize {
        match &self.storage {
            Storage::Strips { slab, .. } | Storage::Raw { slab, .. } => slab.len(),
            Storage::Floats(data) => size_of_val(data.as_slice()),
        }
    }

    /// Whether products with quantised activations run on the packed form.
    pub fn is_fast(&self) -> bool {
        matches!(self.storage, Storage::Strips { .. })
    }

    /// Unpacks row `o` (for an embedding look-up); equals [`dequantize`] of the row's GGUF bytes
    /// bit for bit. Errors: `o` is out of range, or `out` is not `cols` long.
    pub fn row(&self, o: usize, out: &mut [f32]) -> Result<()> {
        if o >= self.rows {
            return Err(KernelError::Mismatch("the row index is beyond the matrix"));
        }
        if out.len() != self.cols {
            return Err(KernelError::Length {
                what: "a row of weights",
                expected: self.cols,
                got: out.len(),
            });
        }
        match &self.storage {
            Storage::Floats(data) => out.copy_from_slice(&data[o * self.cols..][..self.cols]),
            Storage::Raw { slab, row } => dequantize(self.ty, &slab[o * row..][..*row], out)?,
            Storage::Strips { .. } => {
                let strip = self.strip(o / STRIP);
                for (b, out) in out.chunks_exact_mut(BLOCK).enumerate() {
                    strips::unpack_row(self.ty, strip, b, o % STRIP, out);
                }
            }
        }
        Ok(())
    }

    /// Number of strips (whole or begun).
    pub(crate) fn strips(&self) -> usize {
        self.rows.div_ceil(STRIP)
    }

    /// The bytes of strip `s` of a packed matrix; empty for other storage.
    pub(crate) fn strip(&self, s: usize) -> &[u8] {
        match &self.storage {
            Storage::Strips { slab, strip } => &slab[s * strip..][..*strip],
            Storage::Raw { .. } | Storage::Floats(_) => &[],
        }
    }
}
