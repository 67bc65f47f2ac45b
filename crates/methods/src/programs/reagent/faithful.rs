//! How faithful an attribution is: soft normalised sufficiency and comprehensiveness.
//!
//! Embedding elements are kept at random, each with a probability that the importance of its token
//! gives: what is important suffices (Soft-NS), and is missed (Soft-NC). The distance between the laws
//! of the next token is `sum (sqrt p - sqrt q)^2 / sqrt 2`, as the published code has it.

use tessera_core::dist::{Key, softmax};
use tessera_core::{
    Backbone, HiddenSite, Input, Mask, Pass, Position, Result, Reveal, RowsOut, Segment, Taps,
    TokenId, Write,
};

/// Rows of a pass.
const ROWS: usize = 512;

/// A context whose embeddings can be masked.
pub struct Faithful<'m> {
    backbone: &'m dyn Backbone,
    /// `rows x hidden`, as they enter the first layer.
    embeddings: Vec<f32>,
    positions: Vec<usize>,
    rows: usize,
    /// Square roots of the next token's law after the whole context.
    whole: Vec<f32>,
    /// The distance with every explained embedding at zero.
    nothing: f64,
}

/// Both metrics of one attribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metrics {
    /// Soft-NS, 0 to 1; higher is better.
    pub sufficiency: f64,
    /// Soft-NC; higher is better.
    pub comprehensiveness: f64,
}

impl<'m> Faithful<'m> {
    /// For `context`, of which the tokens at `positions` were explained; the others stay whole.
    ///
    /// # Errors
    /// Whatever the pass reports: a backbone without taps or embeddings as input, say.
    pub fn new(
        backbone: &'m dyn Backbone,
        context: &[TokenId],
        positions: &[usize],
    ) -> Result<Self> {
        let numbers: Vec<Position> = (0..context.len() as Position).collect();
        let mut segments = [segment(Input::Tokens(context), &numbers)];
        let mut pass = Pass::new(&mut segments);
        pass.taps = Taps { hidden: &[HiddenSite::Embedding], ..Taps::default() };
        let mut reveal = Reveal::new();
        backbone.forward(&mut pass, &mut reveal)?;
        let mut own = Self {
            backbone,
            embeddings: reveal.segments[0].hidden[0].clone(),
            positions: positions.to_vec(),
            rows: context.len(),
            whole: roots(reveal.logits(0, 0))?,
            nothing: 0.0,
        };
        let zeros = own.masked(&|_, _| false);
        own.nothing = own.distances(&[zeros])?[0];
        Ok(own)
    }

    /// The distance with everything masked.
    pub fn nothing(&self) -> f64 {
        self.nothing
    }

    /// The metrics of `importance` (one number between 0 and 1 for each explained position), averaged
    /// over `masks` random masks.
    ///
    /// # Errors
    /// Whatever a pass reports.
    pub fn metrics(&self, importance: &[f64], masks: u32, seed: u64) -> Result<Metrics> {
        let hidden = self.backbone.spec().hidden as u32;
        let mut inputs = Vec::with_capacity(2 * masks as usize);
        for number in 0..masks {
            let key = Key::new(seed, number, 0);
            let drawn = |i: usize, e: u32| key.uniform(i as u32 * hidden + e);
            inputs.push(self.masked(&|i, e| drawn(i, e) < importance[i]));
            inputs.push(self.masked(&|i, e| drawn(i, e) < 1.0 - importance[i]));
        }
        let distances = self.distances(&inputs)?;
        let mean = |first: usize| {
            distances.iter().skip(first).step_by(2).sum::<f64>() / f64::from(masks.max(1))
        };
        let (kept, left) = (mean(0), mean(1));
        if self.nothing <= 0.0 {
            return Ok(Metrics { sufficiency: 0.0, comprehensiveness: 0.0 });
        }
        Ok(Metrics {
            sufficiency: (self.nothing - kept).max(0.0) / self.nothing,
            comprehensiveness: left / self.nothing,
        })
    }

    /// The embeddings with element `e` of the `i`-th explained position at zero unless kept.
    fn masked(&self, keep: &dyn Fn(usize, u32) -> bool) -> Vec<f32> {
        let hidden = self.backbone.spec().hidden;
        let mut masked = self.embeddings.clone();
        for (i, &p) in self.positions.iter().enumerate() {
            for (e, x) in (0..).zip(&mut masked[p * hidden..(p + 1) * hidden]) {
                if !keep(i, e) {
                    *x = 0.0;
                }
            }
        }
        masked
    }

    fn distances(&self, inputs: &[Vec<f32>]) -> Result<Vec<f64>> {
        let numbers: Vec<Position> = (0..self.rows as Position).collect();
        let mut reveal = Reveal::new();
        let mut distances = Vec::with_capacity(inputs.len());
        for some in inputs.chunks((ROWS / self.rows).max(1)) {
            let mut segments: Vec<Segment<'_>> =
                some.iter().map(|x| segment(Input::Embeddings(x), &numbers)).collect();
            self.backbone.forward(&mut Pass::new(&mut segments), &mut reveal)?;
            for s in 0..some.len() {
                distances.push(distance(&self.whole, &roots(reveal.logits(s, 0))?));
            }
        }
        Ok(distances)
    }
}

fn segment<'a>(input: Input<'a>, positions: &'a [Position]) -> Segment<'a> {
    Segment {
        input,
        positions,
        mask: Mask::Causal,
        keys: None,
        bias: &[],
        write: Write::Discard,
        rows_out: RowsOut::Last,
        condition: None,
        cache: None,
    }
}

fn roots(logits: &[f32]) -> Result<Vec<f32>> {
    let mut law = vec![0.0; logits.len()];
    softmax(logits, &mut law)?;
    law.iter_mut().for_each(|p| *p = p.sqrt());
    Ok(law)
}

fn distance(p: &[f32], q: &[f32]) -> f64 {
    let sum: f64 = p.iter().zip(q).map(|(p, q)| f64::from(p - q).powi(2)).sum();
    sum / std::f64::consts::SQRT_2
}

/// The logarithm of how many times the sum of one attribution's metric is that of another.
pub fn log_ratio(pairs: &[(f64, f64)]) -> f64 {
    let (own, other) = pairs.iter().fold((0.0, 0.0), |s, p| (s.0 + p.0, s.1 + p.1));
    (own / other).ln()
}

/// [`log_ratio`] with the bounds of its 95 % percentile interval, from 2000 resamples of the pairs.
pub fn log_ratio_interval(pairs: &[(f64, f64)]) -> (f64, f64, f64) {
    let mut sample = pairs.to_vec();
    let mut ratios: Vec<f64> = (0..2000)
        .map(|round| {
            let key = Key::new(0x0fa1, 0, round);
            for (i, slot) in (0..).zip(&mut sample) {
                *slot = pairs[(key.uniform(i) * pairs.len() as f64) as usize % pairs.len()];
            }
            log_ratio(&sample)
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    (log_ratio(pairs), ratios[50], ratios[1949])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_by_hand() {
        let law = |l: &[f32]| roots(l).unwrap();
        assert!(distance(&law(&[0.0, 0.0]), &law(&[0.0, 0.0])) == 0.0);
        // Two laws without a common token are sqrt 2 apart.
        let far = distance(&law(&[90.0, 0.0]), &law(&[0.0, 90.0]));
        assert!((far - std::f64::consts::SQRT_2).abs() < 1e-6);
    }

    #[test]
    fn ratios_and_their_intervals() {
        let pairs = [(2.0, 1.0), (4.0, 2.0), (6.0, 3.0)];
        let (ratio, low, high) = log_ratio_interval(&pairs);
        assert!([ratio, low, high].iter().all(|r| (r - 2f64.ln()).abs() < 1e-12));
        let (ratio, low, high) = log_ratio_interval(&[(2.0, 1.0), (1.0, 2.0), (3.0, 1.0)]);
        assert!(low < ratio && ratio < high);
    }
}
