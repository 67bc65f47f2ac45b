//! Everything a run needs to go on: step, weights, moments, mean weights.
//!
//! Rates, orders and masks are functions of seed and step, so no state of a random stream is kept.
//! A checkpoint replaces the one before it in one rename, after it reached the disk.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files::write_whole;
use crate::{Error, Result};

/// First bytes of a file, with the version.
const MAGIC: &[u8; 8] = b"TSSRCKP1";

/// What is kept in front of the numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Head {
    step: u64,
    seconds: f64,
    made_for: String,
    weights: usize,
}

/// A run's state after `step` steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Steps made.
    pub step: u64,
    /// Seconds of training, over all runs.
    pub seconds: f64,
    /// What it was made for: a run goes on with the same recipe and texts only.
    pub made_for: String,
    /// The weights.
    pub weights: Vec<f32>,
    /// Means of gradients.
    pub first: Vec<f32>,
    /// Means of squared gradients.
    pub second: Vec<f32>,
    /// Running mean of the weights.
    pub mean: Vec<f32>,
}

impl Checkpoint {
    /// Writes the file.
    ///
    /// # Errors
    /// What the disk reports.
    pub fn save(&self, path: &Path) -> Result<()> {
        let head = Head {
            step: self.step,
            seconds: self.seconds,
            made_for: self.made_for.clone(),
            weights: self.weights.len(),
        };
        let head = serde_json::to_vec(&head).map_err(|e| Error::file(path, e.to_string()))?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend((head.len() as u64).to_le_bytes());
        bytes.extend(head);
        for values in [&self.weights, &self.first, &self.second, &self.mean] {
            values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        }
        write_whole(path, &bytes)
    }

    /// Reads a file; `None` if there is none.
    ///
    /// # Errors
    /// A file that is no checkpoint, or was cut.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let broken = || Error::file(path, "is no whole checkpoint. Next: remove it to start again");
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(broken)?;
        let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(broken)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| broken())?;
        let (head, rest) = rest.split_at_checked(length).ok_or_else(broken)?;
        let head: Head = serde_json::from_slice(head).map_err(|_| broken())?;
        if head.weights.checked_mul(16) != Some(rest.len()) || head.weights == 0 {
            return Err(broken());
        }
        let (values, _) = rest.as_chunks::<4>();
        let mut parts = values
            .chunks_exact(head.weights)
            .map(|part| part.iter().map(|v| f32::from_le_bytes(*v)).collect::<Vec<f32>>());
        let mut part = || parts.next().ok_or_else(broken);
        Ok(Some(Self {
            step: head.step,
            seconds: head.seconds,
            made_for: head.made_for,
            weights: part()?,
            first: part()?,
            second: part()?,
            mean: part()?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded_and_broken_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("checkpoint");
        assert_eq!(Checkpoint::load(&path).unwrap(), None);
        let checkpoint = Checkpoint {
            step: 7,
            seconds: 1.5,
            made_for: "x".to_owned(),
            weights: vec![1.0, -2.0],
            first: vec![3.0, 4.0],
            second: vec![5.0, 6.0],
            mean: vec![7.0, f32::MIN_POSITIVE],
        };
        checkpoint.save(&path).unwrap();
        assert_eq!(Checkpoint::load(&path).unwrap(), Some(checkpoint));
        let bytes = std::fs::read(&path).unwrap();
        for cut in [0, 7, 12, 30, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(Checkpoint::load(&path).is_err(), "{cut}");
        }
    }
}
