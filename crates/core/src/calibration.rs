//! What was measured of a model beforehand, once, for the policies that need it.

use serde::{Deserialize, Serialize};

use crate::backbone::{ModelSpec, Pairing};
use crate::{Error, Result};

/// Version of [`Calibration`]; another one is not read.
pub const VERSION: u32 = 1;

/// Measurements of one model. They hold for every prompt; which text they were made on matters
/// little.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// [`VERSION`].
    pub version: u32,
    /// Query heads of a layer.
    pub heads: usize,
    /// Key heads of a layer.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// How rotary encoding pairs the values of a head.
    pub pairing: Pairing,
    /// Layers that read through a sliding window.
    pub sliding: Vec<bool>,
    /// Contextual agreement of every pair with the full scores, `[layer * heads + head][pair]`, 0 to
    /// 1: the share of the keys with the largest scores that the pair alone finds.
    pub agreement: Vec<Vec<f32>>,
    /// How far each layer moves the residual stream: the mean over rows of the length of what it
    /// adds, relative to the length of what entered it.
    pub drift: Vec<f32>,
    /// Rows of the text.
    pub rows: usize,
    /// Decoding steps that agreement was averaged over.
    pub steps: usize,
}

impl Calibration {
    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.drift.len()
    }

    /// Checks that it is whole, and that it belongs to a model of this shape.
    ///
    /// # Errors
    /// [`Error::Setting`] naming what does not fit.
    pub fn fits(&self, spec: &ModelSpec) -> Result<()> {
        let layers = self.layers();
        let pairs = self.head_dim / 2;
        let whole = self.version == VERSION
            && self.sliding.len() == layers
            && self.agreement.len() == layers * self.heads
            && self.agreement.iter().all(|a| a.len() == pairs && a.iter().all(|x| x.is_finite()))
            && self.drift.iter().all(|x| x.is_finite())
            && self.kv_heads > 0
            && self.heads.is_multiple_of(self.kv_heads);
        let shape = (layers, self.heads, self.kv_heads, self.head_dim);
        if whole && shape == (spec.layers, spec.heads, spec.kv_heads, spec.head_dim) {
            return Ok(());
        }
        let found = format!("{layers} layers of {} heads over {}", self.heads, self.kv_heads);
        Err(Error::setting("calibration", found, "one of this model; make it again"))
    }

    /// The `count` pairs of a key head that agree best with the full scores, on average over the
    /// query heads that share it; best first, the lower one of equals.
    pub fn dominant(&self, layer: usize, kv_head: usize, count: usize) -> Vec<usize> {
        let group = self.heads / self.kv_heads;
        let first = layer * self.heads + kv_head * group;
        let of = |pair: usize| -> f32 {
            self.agreement[first..first + group].iter().map(|head| head[pair]).sum()
        };
        let mut pairs: Vec<usize> = (0..self.head_dim / 2).collect();
        pairs.sort_by(|&a, &b| of(b).total_cmp(&of(a)).then(a.cmp(&b)));
        pairs.truncate(count);
        pairs
    }

    /// The columns of a key that [`Calibration::dominant`] names, ascending.
    pub fn columns(&self, layer: usize, kv_head: usize, count: usize) -> Vec<u16> {
        let pairs = self.dominant(layer, kv_head, count);
        let columns = pairs.into_iter().flat_map(|p| self.pairing.columns(p, self.head_dim));
        let mut columns: Vec<u16> = columns.map(|c| c as u16).collect();
        columns.sort_unstable();
        columns
    }

    /// The layers whose drift is at most the `share`-quantile of all, ascending: as many as `share`
    /// of the layers, rounded.
    pub fn calm(&self, share: f64) -> Vec<usize> {
        let mut layers: Vec<usize> = (0..self.layers()).collect();
        layers.sort_by(|&a, &b| self.drift[a].total_cmp(&self.drift[b]).then(a.cmp(&b)));
        layers.truncate((share * self.layers() as f64).round() as usize);
        layers.sort_unstable();
        layers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calibration() -> Calibration {
        Calibration {
            version: VERSION,
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
            pairing: Pairing::Halves,
            sliding: vec![false; 3],
            agreement: vec![
                vec![0.1, 0.9, 0.4, 0.2],
                vec![0.5, 0.1, 0.4, 0.1],
                vec![0.0; 4],
                vec![0.0; 4],
                vec![0.25; 4],
                vec![0.25; 4],
            ],
            drift: vec![0.5, 0.1, 0.2],
            rows: 9,
            steps: 1,
        }
    }

    #[test]
    fn heads_that_share_keys_agree_on_their_pairs() {
        let c = calibration();
        // Sums 0.6, 1.0, 0.8, 0.3.
        assert_eq!(c.dominant(0, 0, 3), [1, 2, 0]);
        assert_eq!(c.columns(0, 0, 2), [1, 2, 5, 6]);
        let interleaved = Calibration { pairing: Pairing::Interleaved, ..c.clone() };
        assert_eq!(interleaved.columns(0, 0, 2), [2, 3, 4, 5]);
        assert_eq!(c.dominant(2, 0, 2), [0, 1], "equals in order");
        assert_eq!(c.columns(1, 0, 4), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn calm_layers_are_a_share_and_do_not_depend_on_scale() {
        let c = calibration();
        let scaled = Calibration { drift: c.drift.iter().map(|d| d * 7.0).collect(), ..c.clone() };
        for c in [&c, &scaled] {
            assert_eq!(c.calm(0.0), [] as [usize; 0]);
            assert_eq!(
                (c.calm(0.4), c.calm(0.7), c.calm(1.0)),
                (vec![1], vec![1, 2], vec![0, 1, 2])
            );
        }
    }

    #[test]
    fn a_calibration_of_another_model_is_refused() {
        let spec = ModelSpec {
            arch: String::new(),
            layers: 3,
            hidden: 16,
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
            vocab: 10,
            context: 100,
        };
        let c = calibration();
        c.fits(&spec).unwrap();
        assert!(c.fits(&ModelSpec { layers: 4, ..spec.clone() }).is_err());
        assert!(Calibration { sliding: vec![], ..c.clone() }.fits(&spec).is_err());
        assert!(Calibration { version: 0, ..c }.fits(&spec).is_err());
    }
}
