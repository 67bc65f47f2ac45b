//! From vectors to characters, and from noise to segments.

use candle_core::{D, Tensor};
use tessera_model::toy::Stream;

use super::losses::logits;
use super::{DEVICE, Model, on_sphere};
use crate::Result;

/// A character belongs to its segment if it exists with at least this probability.
const CUTOFF: f32 = 0.5;

/// A segment as it was unfolded.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// All characters of the unrolling.
    pub characters: Vec<u32>,
    /// How many of them exist.
    pub length: usize,
}

impl Model {
    /// Unfolds vectors `[S, C * d]` at `t = 0` to characters: the nearest ones.
    ///
    /// # Errors
    /// Vectors of another width.
    pub fn unfold(&self, z: &Tensor) -> Result<Vec<Segment>> {
        let t = Tensor::zeros(z.dim(0)?, z.dtype(), &DEVICE)?;
        let out = self.denoiser.unfold(z, &t)?;
        let nearest = logits(&out.vectors, &self.table()?)?.argmax(D::Minus1)?.to_vec2::<u32>()?;
        let existence = out.existence.exp()?.to_vec2::<f32>()?;
        let segment = |(characters, e): (Vec<u32>, Vec<f32>)| Segment {
            characters,
            length: e.iter().take_while(|&&e| e >= CUTOFF).count().max(1),
        };
        Ok(nearest.into_iter().zip(existence).map(segment).collect())
    }

    /// `count` segments from noise in `steps` steps from `t = 1` to 0: unfold, compress, unfold again.
    ///
    /// # Errors
    /// None beyond a mistake of this file.
    pub fn sample(&self, count: usize, steps: usize, seed: u64) -> Result<Vec<Segment>> {
        let mut stream = Stream::new(seed);
        let wide = self.settings.width * self.settings.vectors;
        let values: Vec<f32> = (0..count * wide).map(|_| stream.normal()).collect();
        let mut z = on_sphere(&Tensor::from_vec(values, (count, wide), &DEVICE)?)?;
        for step in 0..steps {
            let t = Tensor::full(1.0 - step as f32 / steps as f32, count, &DEVICE)?;
            let out = self.denoiser.unfold(&z, &t)?;
            z = self.compressor.compress(&out.vectors, &out.existence)?.detach();
        }
        self.unfold(&z)
    }

    /// A text cut, each segment compressed to its vector and unfolded again: where segments begin, and what
    /// became of them.
    ///
    /// # Errors
    /// As [`Model::split`].
    pub fn rebuilt(&self, ids: &[u32]) -> Result<(Vec<usize>, Vec<Segment>)> {
        let parts = self.split(ids)?;
        let segments = self.unfold(&self.compressed(ids, &parts)?)?;
        Ok((parts.starts.into_iter().map(|s| s.1).collect(), segments))
    }
}

/// One text of unfolded segments: of each the characters before the next one's beginning.
pub fn joined(starts: &[usize], segments: &[Segment], length: usize) -> Vec<u32> {
    let mut text = Vec::with_capacity(length);
    for (i, segment) in segments.iter().enumerate() {
        let end = starts.get(i + 1).copied().unwrap_or(length);
        text.extend(&segment.characters[..(end - starts[i]).min(segment.characters.len())]);
    }
    text
}
