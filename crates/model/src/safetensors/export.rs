//! Writing a model directory from any weights: dequantised, under Hugging Face names.

use std::fs;
use std::io::Write;
use std::path::Path;

use ::safetensors::tensor::{Dtype, Metadata, TensorInfo};
use tessera_kernels::{WeightType, dequantize};

use super::{CONFIG, SINGLE, config};
use crate::file_error::{Fault, FileError, quoted};
use crate::tensor_layout::{Fix, Slot, slots};
#[cfg(doc)]
use crate::tokenizer::HuggingFace;
use crate::weights::WeightSource;
use crate::whole_file::{put, write_whole};

/// How exported values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportType {
    /// 32-bit floats: the very values the quantised weights stand for.
    F32,
    /// Brain floats: half the size, rounded to nearest even.
    Bf16,
}

impl ExportType {
    /// Its name in `config.json`.
    pub(super) fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// About how many values are converted at a time.
const CHUNK: usize = 1 << 18;

/// Writes `config.json` and `model.safetensors` into `dir`, which is made if need be. The
/// tokenizer is not part of it: [`HuggingFace::write_into`] writes that. Memory stays at a few MB, whatever the model's size.
///
/// # Errors
/// When the weights cannot be read, or the files not written; existing files are replaced whole
/// or left alone.
pub fn export_safetensors(
    from: &dyn WeightSource,
    dir: &Path,
    ty: ExportType,
) -> Result<(), FileError> {
    fs::create_dir_all(dir).map_err(|source| {
        let next = "check the path and its permissions";
        Fault::Io { field: "output directory".into(), source, next }.at(dir)
    })?;
    let params = from.hyper_params();
    let path = dir.join(CONFIG);
    let document = config::write(params, ty).map_err(|fault| fault.at(from.path()))?;
    write_whole(&path, |out| put(out, format!("{document:#}\n").as_bytes(), &path))?;

    let path = dir.join(SINGLE);
    let slots = slots(params);
    let head = header(&slots, ty).map_err(|fault| fault.at(&path))?;
    write_whole(&path, |out| {
        put(out, &(head.len() as u64).to_le_bytes(), &path)?;
        put(out, &head, &path)?;
        slots.iter().try_for_each(|slot| tensor(from, slot, ty, out, &path))
    })
}

/// The JSON header, padded so that the data starts at a multiple of 8.
fn header(slots: &[Slot], ty: ExportType) -> Result<Vec<u8>, Fault> {
    let mut end = 0usize;
    let mut tensors = Vec::new();
    for slot in slots {
        let begin = end;
        let bytes = slot.shape.iter().try_fold(ty.bytes(), |n, dim| n.checked_mul(*dim));
        end = bytes.and_then(|bytes| begin.checked_add(bytes)).ok_or_else(|| {
            let field = format!("tensor {}: dimensions", quoted(&slot.name));
            Fault::malformed(field, format_args!("{:?}", slot.shape), "sizes that fit a file")
        })?;
        let info =
            TensorInfo { dtype: ty.dtype(), shape: slot.shape.clone(), data_offsets: (begin, end) };
        tensors.push((slot.hf.clone(), info));
    }
    let refused = |error: &dyn std::fmt::Display| {
        Fault::malformed("header", format_args!("refused ({error})"), "consistent tensors")
    };
    let format = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
    let metadata = Metadata::new(Some(format), tensors).map_err(|error| refused(&error))?;
    let mut text = serde_json::to_vec(&metadata).map_err(|error| refused(&error))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok(text)
}

/// Writes one tensor in the order of the Hugging Face file.
fn tensor(
    from: &dyn WeightSource,
    slot: &Slot,
    ty: ExportType,
    out: &mut impl Write,
    path: &Path,
) -> Result<(), FileError> {
    let info = from.info(&slot.name)?;
    let (rows, cols) = (info.shape.rows(), info.shape.cols());
    let (mut raw, mut values, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
    let mut emit = |values: &[f32]| {
        bytes.clear();
        for value in values {
            let value = if slot.fix == Fix::PlusOne { value - 1.0 } else { *value };
            match ty {
                ExportType::F32 => bytes.extend(value.to_le_bytes()),
                ExportType::Bf16 => bytes.extend(half::bf16::from_f32(value).to_le_bytes()),
            }
        }
        put(out, &bytes, path)
    };
    let unpack = |ty: WeightType, raw: &[u8], values: &mut Vec<f32>| {
        values.resize(raw.len() / ty.block_bytes() * ty.block_len(), 0.0);
        dequantize(ty, raw, values).map_err(|error| {
            let field = format!("tensor {}: data", quoted(&slot.name));
            Fault::malformed(field, error, "whole blocks").at(from.path())
        })
    };
    // A vector is one row whose values are reordered; in a matrix whole rows are.
    if slot.shape.len() == 1 {
        from.read_rows(&slot.name, 0..1, &mut raw)?;
        unpack(info.ty, &raw, &mut values)?;
        let mut ordered = vec![0.0; cols];
        for (i, value) in values.iter().enumerate() {
            ordered[slot.fix.hf_row(i, cols)] = *value;
        }
        return emit(&ordered);
    }
    let mut order: Vec<usize> = (0..rows).collect();
    order.sort_unstable_by_key(|row| slot.fix.hf_row(*row, rows));
    let step = if matches!(slot.fix, Fix::Pairs { .. }) { 1 } else { (CHUNK / cols).max(1) };
    for rows in order.chunks(step) {
        // Either one row, or rows in their own order: consecutive in both cases.
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { continue };
        from.read_rows(&slot.name, *first..*last + 1, &mut raw)?;
        unpack(info.ty, &raw, &mut values)?;
        emit(&values)?;
    }
    Ok(())
}
