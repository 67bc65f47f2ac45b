//! Where a backbone gets its tensors from.

use tessera_kernels::WeightType;

use crate::file_error::FileError;
use crate::toy::ToyWeights;
use crate::weights::WeightSource;

/// Why a model could not be put together from its tensors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file itself is at fault.
    #[error(transparent)]
    File(#[from] FileError),
    /// A tensor does not fit the architecture.
    #[error("tensor `{name}`: {what}")]
    Tensor {
        /// The tensor's name.
        name: String,
        /// What was found and expected.
        what: String,
    },
}

impl LoadError {
    pub(crate) fn tensor(name: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Tensor { name: name.into(), what: what.into() }
    }
}

/// Named tensors in their stored form. Shapes are outermost first.
pub trait TensorSource: Sync {
    /// Whether there is a tensor of this name.
    fn has(&self, name: &str) -> bool;

    /// Replaces `out` by the tensor's bytes; returns its type and shape.
    ///
    /// # Errors
    /// [`LoadError`] if there is none, or it cannot be read.
    fn read(&self, name: &str, out: &mut Vec<u8>) -> Result<(WeightType, Vec<usize>), LoadError>;
}

impl TensorSource for Box<dyn WeightSource> {
    fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn read(&self, name: &str, out: &mut Vec<u8>) -> Result<(WeightType, Vec<usize>), LoadError> {
        let info = WeightSource::read(self.as_ref(), name, out)?;
        Ok((info.ty, info.shape.dims().to_vec()))
    }
}

impl TensorSource for ToyWeights {
    fn has(&self, name: &str) -> bool {
        self.contains_key(name)
    }

    fn read(&self, name: &str, out: &mut Vec<u8>) -> Result<(WeightType, Vec<usize>), LoadError> {
        let Some((shape, values)) = self.get(name) else {
            return Err(LoadError::tensor(name, "is not there"));
        };
        out.clear();
        out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        Ok((WeightType::F32, shape.clone()))
    }
}
