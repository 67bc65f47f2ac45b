//! One view of a model's weights, whatever files they lie in: hyper-parameters, and tensors by
//! their GGUF names.

use std::ops::Range;
use std::path::Path;

use tessera_kernels::WeightType;

use crate::file_error::{Fault, FileError, quoted};
use crate::gguf::{Gguf, Shape};
use crate::hyper::HyperParams;
use crate::safetensors::SafetensorsDir;
use crate::summary::FileSummary;
use crate::tensor_layout::slots;

/// How a tensor is stored and how large it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightInfo {
    /// How its values are stored.
    pub ty: WeightType,
    /// Its extents, outermost first: a matrix is `[rows, cols]`, outputs by inputs.
    pub shape: Shape,
}

/// A model's weights. Every tensor of its architecture is there, with the right shape: that was
/// checked when it was opened. Reading takes `&self`, so threads may share it.
pub trait WeightSource: Send + Sync + std::fmt::Debug {
    /// The file or directory it was opened by.
    fn path(&self) -> &Path;

    /// The model's hyper-parameters.
    fn hyper_params(&self) -> &HyperParams;

    /// The tensor of this GGUF name, if there is one.
    fn find(&self, name: &str) -> Option<WeightInfo>;

    /// Reads some rows of a tensor into `out`, which is resized to them; they hold the bytes that a
    /// GGUF file would hold (rotary order of the llama family, Gemma norms plus one).
    ///
    /// # Errors
    /// When the tensor is missing, the rows are not its rows, or the file can no longer be read.
    fn read_rows(
        &self,
        name: &str,
        rows: Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<WeightInfo, FileError>;

    /// What `show` prints.
    fn summary(&self) -> FileSummary;

    /// The GGUF file, when it is one: it carries the tokenizer too.
    fn gguf(&self) -> Option<&Gguf> {
        None
    }

    /// The tensor of this GGUF name; absence is an error.
    ///
    /// # Errors
    /// [`Fault::Missing`] naming the tensor.
    fn info(&self, name: &str) -> Result<WeightInfo, FileError> {
        self.find(name).ok_or_else(|| missing_tensor(self.path(), name))
    }

    /// Reads a whole tensor into `out`, which is resized to it.
    ///
    /// # Errors
    /// As [`WeightSource::read_rows`].
    fn read(&self, name: &str, out: &mut Vec<u8>) -> Result<WeightInfo, FileError> {
        let info = self.info(name)?;
        self.read_rows(name, 0..info.shape.rows(), out)
    }

    /// Reads a tensor of floats (a norm, a bias, a table of factors) as f32.
    ///
    /// # Errors
    /// As [`WeightSource::read_rows`], and when the tensor is quantised.
    fn read_f32(&self, name: &str) -> Result<Vec<f32>, FileError> {
        let mut bytes = Vec::new();
        let info = self.read(name, &mut bytes)?;
        floats(name, info.ty, &bytes).map_err(|fault| fault.at(self.path()))
    }
}

/// Opens the weights at a path: a GGUF file, or a directory with `config.json` and
/// `model.safetensors`.
///
/// # Errors
/// Names the first field, key or tensor that is wrong, what it is and what to do.
pub fn open_weights(path: &Path) -> Result<Box<dyn WeightSource>, FileError> {
    if path.is_dir() {
        return Ok(Box::new(SafetensorsDir::open(path)?));
    }
    Ok(Box::new(GgufWeights::new(Gguf::open(path)?)?))
}

/// A GGUF file as a [`WeightSource`].
#[derive(Debug)]
pub struct GgufWeights {
    file: Gguf,
    params: HyperParams,
}

impl GgufWeights {
    /// Checks that the file is a whole model of a supported architecture.
    ///
    /// # Errors
    /// Names the key or tensor that is missing, senseless or unsupported.
    pub fn new(file: Gguf) -> Result<Self, FileError> {
        let params = HyperParams::from_gguf(&file)?;
        let get =
            |name: &str| file.find(name).map(|info| WeightInfo { ty: info.ty, shape: info.shape });
        check_tensors(&params, &get).map_err(|fault| fault.at(file.path()))?;
        let known: std::collections::HashSet<_> =
            slots(&params).into_iter().map(|slot| slot.name).collect();
        // A tensor nobody would read means a model whose answers would be wrong.
        let stranger = file
            .tensors()
            .iter()
            .find(|tensor| !known.contains(&tensor.name) && tensor.name != "rope_freqs.weight");
        if let Some(tensor) = stranger {
            let fault = Fault::unsupported(
                format!("tensor {}", quoted(&tensor.name)),
                "there",
                format!("the tensors of a plain {} model", params.arch),
            );
            return Err(fault.at(file.path()));
        }
        Ok(Self { file, params })
    }
}

impl WeightSource for GgufWeights {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn hyper_params(&self) -> &HyperParams {
        &self.params
    }

    fn find(&self, name: &str) -> Option<WeightInfo> {
        self.file.find(name).map(|info| WeightInfo { ty: info.ty, shape: info.shape })
    }

    fn read_rows(
        &self,
        name: &str,
        rows: Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<WeightInfo, FileError> {
        let info = self.file.tensor(name)?;
        self.file.read_rows(info, rows, out)?;
        Ok(WeightInfo { ty: info.ty, shape: info.shape })
    }

    fn summary(&self) -> FileSummary {
        FileSummary::of_gguf(&self.file)
    }

    fn gguf(&self) -> Option<&Gguf> {
        Some(&self.file)
    }
}

/// Checks that every tensor of the architecture is there with its shape, and that what must be
/// plain floats is.
pub(crate) fn check_tensors(
    params: &HyperParams,
    get: &dyn Fn(&str) -> Option<WeightInfo>,
) -> Result<(), Fault> {
    for slot in slots(params) {
        let Some(info) = get(&slot.name) else {
            let next = "the file is not a whole model: fetch or convert it again";
            return Err(Fault::missing(format!("tensor {}", quoted(&slot.name)), next));
        };
        if info.shape.dims() != slot.shape {
            return Err(Fault::malformed(
                format!("tensor {}: dimensions", quoted(&slot.name)),
                info.shape,
                format!("{:?} by the hyper-parameters", slot.shape),
            ));
        }
        let float = matches!(info.ty, WeightType::F32 | WeightType::F16 | WeightType::BF16);
        if slot.shape.len() == 1 && !float {
            return Err(Fault::unsupported(
                format!("tensor {}: type", quoted(&slot.name)),
                info.ty,
                "F32, F16 and BF16 for norms and biases",
            ));
        }
    }
    Ok(())
}

pub(crate) fn missing_tensor(path: &Path, name: &str) -> FileError {
    let next = "the file is not a whole model: fetch or convert it again";
    Fault::missing(format!("tensor {}", quoted(name)), next).at(path)
}

/// Reads a tensor of floats from a GGUF file as f32.
pub(crate) fn read_floats(file: &Gguf, name: &str) -> Result<Vec<f32>, FileError> {
    let mut bytes = Vec::new();
    let info = file.read_tensor(name, &mut bytes)?;
    floats(name, info.ty, &bytes).map_err(|fault| fault.at(file.path()))
}

/// Widens plain floats to f32, exactly.
pub(crate) fn floats(name: &str, ty: WeightType, bytes: &[u8]) -> Result<Vec<f32>, Fault> {
    let (pairs, _) = bytes.as_chunks::<2>();
    match ty {
        WeightType::F32 => {
            Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        }
        WeightType::F16 => {
            Ok(pairs.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect())
        }
        WeightType::BF16 => {
            Ok(pairs.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect())
        }
        other => Err(Fault::unsupported(
            format!("tensor {}: type", quoted(name)),
            other,
            "F32, F16 and BF16 where plain floats are needed",
        )),
    }
}
