//! The run itself: survey, choose, encode, write.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use half::{bf16, f16};
use tessera_kernels::WeightType;

use super::base::{Bits, GroupError};
use super::granularity::{Survey, UNIT};
use super::rows::map_rows;
use super::{
    FineQuant, QuantiseError, Quantised, Report, Scheme, Settings, Tables, blocks, metadata,
    superblocks,
};
use crate::file_error::FileError;
use crate::gguf::{Compact, GgufWriter, Shape, Stored};
use crate::tensor_layout::slots;
use crate::weights::{WeightInfo, WeightSource};

/// How one matrix is encoded.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Encoding {
    Float(WeightType),
    Q4_0,
    Q4_1,
    Q4K,
    /// Groups of so many weights.
    Grouped {
        size: usize,
        bits: Bits,
    },
}

impl Encoding {
    fn standard(self) -> WeightType {
        match self {
            Self::Float(ty) => ty,
            Self::Q4_0 | Self::Grouped { bits: Bits::Four, .. } => WeightType::Q4_0,
            Self::Q4_1 => WeightType::Q4_1,
            Self::Q4K => WeightType::Q4K,
            Self::Grouped { bits: Bits::Eight, .. } => WeightType::Q8_0,
        }
    }

    fn compact(self) -> Option<Compact> {
        match self {
            // At 32 the standard type is as small.
            Self::Grouped { size, bits } if size > UNIT => {
                Compact::new(bits == Bits::Eight, size.next_multiple_of(UNIT))
            }
            _ => None,
        }
    }

    fn row(self, row: &[f32], out: &mut Vec<u8>) -> Result<(), GroupError> {
        match self {
            Self::Float(ty) => floats(ty, row, out),
            Self::Q4_0 => blocks::q4_0(row, out),
            Self::Q4_1 => blocks::q4_1(row, out),
            Self::Q4K => superblocks::q4_k(row, out),
            Self::Grouped { size, bits } => blocks::grouped(row, size, bits, out),
        }
    }
}

fn floats(ty: WeightType, row: &[f32], out: &mut Vec<u8>) -> Result<(), GroupError> {
    for w in row {
        match ty {
            WeightType::F16 => {
                let near = f16::from_f32(*w);
                if w.is_finite() && !near.is_finite() {
                    return Err(GroupError::TooLarge(w.abs()));
                }
                out.extend(near.to_le_bytes());
            }
            WeightType::BF16 => out.extend(bf16::from_f32(*w).to_le_bytes()),
            _ => out.extend(w.to_le_bytes()),
        }
    }
    Ok(())
}

/// A tensor of the output.
struct Planned {
    name: String,
    info: WeightInfo,
    /// `None` for norms, biases and tables of factors, which stay f32.
    encoding: Option<Encoding>,
    stored: Stored,
}

/// Quantises `from` into a GGUF file at `path`, which appears whole or not at all. `progress` hears
/// `(done, total)` in weights, from any thread.
///
/// # Errors
/// What is wrong with the source's tensors or tokenizer, with the settings, or with the output.
pub fn quantise(
    from: &dyn WeightSource,
    path: &Path,
    settings: &Settings,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Report, QuantiseError> {
    let fine = match settings.scheme {
        Scheme::FineQuant(fine) => Some(fine),
        _ if settings.compact => {
            let what = "compact: is a form of scheme finequant. Next: leave --compact out";
            return Err(QuantiseError::Setting(what.to_owned()));
        }
        _ => None,
    };
    let names = names(from);
    let mut infos = Vec::with_capacity(names.len());
    for name in &names {
        infos.push(from.info(name)?);
    }
    let weights: u64 = infos.iter().map(|i| i.shape.elements() as u64).sum();
    let total = if fine.is_some() { 2 * weights } else { weights };
    let done = AtomicU64::new(0);
    let tick = |n: u64| progress(done.fetch_add(n, Ordering::Relaxed) + n, total);

    let mut planned = Vec::with_capacity(names.len());
    for (name, info) in names.into_iter().zip(infos) {
        let encoding = encoding(from, &name, &info, settings, fine.as_ref(), &tick)?;
        let compact = encoding.filter(|_| settings.compact).and_then(Encoding::compact);
        let stored = match (compact, encoding) {
            (Some(compact), _) => Stored::Compact(compact),
            (None, Some(encoding)) => Stored::Standard(encoding.standard()),
            (None, None) => Stored::Standard(WeightType::F32),
        };
        planned.push(Planned { name, info, encoding, stored });
    }

    let mut sources: Vec<&'static str> = planned
        .iter()
        .filter(|p| p.encoding.is_some() && !is_float(p.info.ty))
        .map(|p| p.info.ty.name())
        .collect();
    sources.sort_unstable();
    sources.dedup();

    let mut writer = GgufWriter::new();
    metadata::write(&mut writer, from, settings, !sources.is_empty())?;
    for tensor in &planned {
        writer.declare(&tensor.name, tensor.stored, tensor.info.shape);
    }
    // A directory has the divisors of rotary frequencies in its configuration.
    if let (None, Some(factors)) = (from.gguf(), &from.hyper_params().rope_factors)
        && let Some(shape) = Shape::new(&[factors.len()])
    {
        let data = factors.iter().flat_map(|f| f.to_le_bytes()).collect();
        writer.tensor(FACTORS, WeightType::F32, shape, data);
    }
    let by_name: HashMap<&str, &Planned> = planned.iter().map(|p| (p.name.as_str(), p)).collect();
    let errors: Mutex<HashMap<String, f64>> = Mutex::default();
    writer.write(path, |name, out| {
        // Every declared tensor is planned.
        let Some(tensor) = by_name.get(name) else { return Ok(()) };
        let error = encode(from, tensor, out, &tick)?;
        if let Ok(mut errors) = errors.lock() {
            errors.insert(name.to_owned(), error);
        }
        Ok(())
    })?;
    let errors = errors.into_inner().unwrap_or_default();
    Ok(report(from, path, settings, sources, &planned, &errors))
}

fn is_float(ty: WeightType) -> bool {
    matches!(ty, WeightType::F32 | WeightType::F16 | WeightType::BF16)
}

/// The model's tensors in the order in which they are written.
fn names(from: &dyn WeightSource) -> Vec<String> {
    let mut names: Vec<String> =
        slots(from.hyper_params()).into_iter().map(|slot| slot.name).collect();
    if from.find(FACTORS).is_some() {
        names.push(FACTORS.to_owned());
    }
    names
}

const FACTORS: &str = "rope_freqs.weight";

fn is_table(name: &str) -> bool {
    matches!(name, "token_embd.weight" | "output.weight")
}

fn encoding(
    from: &dyn WeightSource,
    name: &str,
    info: &WeightInfo,
    settings: &Settings,
    fine: Option<&FineQuant>,
    tick: &(dyn Fn(u64) + Sync),
) -> Result<Option<Encoding>, FileError> {
    let skip = |encoding| {
        if fine.is_some() {
            tick(info.shape.elements() as u64);
        }
        Ok(encoding)
    };
    if info.shape.dims().len() == 1 {
        return skip(None);
    }
    let float = match settings.scheme {
        Scheme::F32 => Some(WeightType::F32),
        Scheme::F16 => Some(WeightType::F16),
        Scheme::Bf16 => Some(WeightType::BF16),
        _ => None,
    };
    if let Some(ty) = float {
        return skip(Some(Encoding::Float(ty)));
    }
    let cols = info.shape.cols();
    if !cols.is_multiple_of(UNIT) {
        return skip(Some(Encoding::Float(WeightType::F16)));
    }
    let eight = Encoding::Grouped { size: UNIT, bits: Bits::Eight };
    if is_table(name) {
        match settings.tables {
            Tables::Q8_0 => return skip(Some(eight)),
            Tables::F16 => return skip(Some(Encoding::Float(WeightType::F16))),
            Tables::Same => {}
        }
    }
    let Some(fine) = fine else {
        return Ok(Some(match settings.scheme {
            Scheme::Q4_0 => Encoding::Q4_0,
            Scheme::Q4_1 => Encoding::Q4_1,
            Scheme::Q4K if cols.is_multiple_of(superblocks::SUPER) => Encoding::Q4K,
            Scheme::Q4K => Encoding::Q4_1,
            _ => eight,
        }));
    };
    let pieces = map_rows(from, name, info, tick, &|values, cols| {
        let mut survey = Survey::new(cols, fine.rule.min_group);
        values.chunks_exact(cols).try_for_each(|row| survey.add_row(row))?;
        Ok(survey)
    })?;
    let mut survey = Survey::new(cols, fine.rule.min_group);
    pieces.iter().for_each(|piece| survey.merge(piece));
    let finest = survey.levels.last().map_or(0.0, |level| survey.relative_error(level));
    let bits = fine.bits.unwrap_or(if finest > f64::from(fine.max_error) {
        Bits::Eight
    } else {
        Bits::Four
    });
    Ok(Some(Encoding::Grouped { size: survey.choose(&fine.rule).group, bits }))
}

/// Encodes a tensor into `out`; returns the relative error.
fn encode(
    from: &dyn WeightSource,
    tensor: &Planned,
    out: &mut Vec<u8>,
    tick: &(dyn Fn(u64) + Sync),
) -> Result<f64, FileError> {
    let Some(encoding) = tensor.encoding else {
        let values = from.read_f32(&tensor.name)?;
        out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        tick(tensor.info.shape.elements() as u64);
        return Ok(0.0);
    };
    let compact = matches!(tensor.stored, Stored::Compact(_));
    let pieces = map_rows(from, &tensor.name, &tensor.info, tick, &|values, cols| {
        let (mut bytes, mut standard) = (Vec::new(), Vec::new());
        let mut back = vec![0.0; cols];
        let (mut error, mut energy) = (0.0f64, 0.0f64);
        for row in values.chunks_exact(cols) {
            standard.clear();
            encoding.row(row, &mut standard)?;
            // Whole blocks by construction: the shape was checked when the source was opened.
            let _ = tessera_kernels::dequantize(encoding.standard(), &standard, &mut back);
            for (w, v) in row.iter().zip(&back) {
                error += f64::from(w - v).powi(2);
                energy += f64::from(*w).powi(2);
            }
            match encoding {
                Encoding::Grouped { size, bits } if compact => {
                    blocks::compact(row, size, bits, &mut bytes)?;
                }
                _ => bytes.extend(&standard),
            }
        }
        Ok((bytes, error, energy))
    })?;
    let (mut error, mut energy) = (0.0, 0.0);
    for (bytes, e, n) in pieces {
        out.extend(bytes);
        error += e;
        energy += n;
    }
    Ok(if energy > 0.0 { f64::sqrt(error / energy) } else { 0.0 })
}

fn report(
    from: &dyn WeightSource,
    path: &Path,
    settings: &Settings,
    requantised_from: Vec<&'static str>,
    planned: &[Planned],
    errors: &HashMap<String, f64>,
) -> Report {
    let bits = |stored: Stored, shape: &Shape| stored.bytes(shape).unwrap_or(0) as f64 * 8.0;
    let mut matrices = Vec::new();
    // (bits, weights) of all matrices and of those in layers.
    let (mut all, mut layers) = ((0.0, 0.0), (0.0, 0.0));
    for tensor in planned {
        let Some(encoding) = tensor.encoding else { continue };
        let shape = &tensor.info.shape;
        let (size, weights) = (bits(tensor.stored, shape), shape.elements() as f64);
        all = (all.0 + size, all.1 + weights);
        if !is_table(&tensor.name) {
            layers = (layers.0 + size, layers.1 + weights);
        }
        let group = match (settings.scheme, encoding) {
            (Scheme::FineQuant(_), Encoding::Grouped { size, .. }) => Some(size),
            _ => None,
        };
        matrices.push(Quantised {
            name: tensor.name.clone(),
            rows: shape.rows(),
            cols: shape.cols(),
            from: tensor.info.ty.name(),
            to: tensor.stored.name(),
            group,
            bits_per_weight: size / weights,
            relative_error: errors.get(&tensor.name).copied().unwrap_or(0.0),
        });
    }
    Report {
        scheme: settings.scheme.name(),
        requantised_from,
        matrices,
        bytes_before: from.summary().bytes,
        bytes_after: std::fs::metadata(path).map_or(0, |m| m.len()),
        bits_per_weight: all.0 / f64::max(all.1, 1.0),
        bits_per_layer_weight: layers.0 / f64::max(layers.1, 1.0),
    }
}
