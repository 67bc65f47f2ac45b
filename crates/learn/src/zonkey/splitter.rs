//! Where segments begin: probabilities from a local-window layer and four convolutions, hard starts
//! drawn from them, and what the draw leaves soft: how likely each character of a segment still belongs
//! to it, and its share in the losses. Gradients reach the probabilities through these two only.

use candle_core::Tensor;
use tessera_model::toy::Stream;

use super::attention::{Layer, near};
use super::parameters::{Parameters, linear, neighbours, sigmoid};
use super::{DEVICE, Settings};
use crate::Result;

/// Convolutions, by the characters that they see.
const KERNELS: [usize; 4] = [3, 5, 7, 9];
/// Channels of each.
const CHANNELS: usize = 8;
/// Probabilities stay this far away from 0 and 1.
const EDGE: f64 = 1e-4;
/// Logarithms of existence stay above this: sums of smaller ones would be zero in f32, and shares of nothing
/// are no numbers.
const LEAST: f64 = -60.0;

/// The splitter's weights.
#[derive(Debug)]
pub struct Splitter {
    layer: Layer,
    convolutions: Vec<Tensor>,
    head: Tensor,
    longest: usize,
}

/// Segments of a batch of documents of `T` characters.
#[derive(Debug, Clone)]
pub struct Segments {
    /// Document and place of each segment's first character.
    pub starts: Vec<(usize, usize)>,
    /// Place of each character among all documents' (`document * T + place`): `S * L` of them.
    pub places: Vec<u32>,
    /// Logarithms of existence: `[S, L]`.
    pub existence: Tensor,
    /// Shares in the losses: `[S, L]`.
    pub shares: Tensor,
}

impl Splitter {
    /// The splitter of a model.
    ///
    /// # Errors
    /// Stored weights of another shape.
    pub fn new(settings: &Settings, from: &mut Parameters) -> Result<Self> {
        let d = settings.width;
        let layer = Layer::new("splitter.layer", d, settings.heads, from)?;
        let convolutions = KERNELS
            .iter()
            .map(|&k| from.matrix(&format!("splitter.conv{k}"), CHANNELS, k * d, 1.0))
            .collect::<Result<_>>()?;
        let head = from.matrix("splitter.head", 1, CHANNELS * KERNELS.len() + d, 1.0)?;
        Ok(Self { layer, convolutions, head, longest: settings.longest })
    }

    /// Probabilities that a segment begins at each character of `[B, T, d]`: `[B, T]`. Where nothing is
    /// learnt yet, two in `longest` characters begin one.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn probabilities(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (b, t, d) = x.dims3()?;
        let h = self.layer.forward(x, &near(t, self.longest)?)?;
        let mut parts = vec![h.clone()];
        for (kernel, w) in KERNELS.iter().zip(&self.convolutions) {
            parts.push(linear(&neighbours(&h, *kernel)?, w)?);
        }
        let z = linear(&Tensor::cat(&parts, 2)?, &self.head)?.reshape((b, t))?;
        let share = 2.0 / self.longest as f64;
        let z = ((z / (d as f64).sqrt())? + (share / (1.0 - share)).ln())?;
        sigmoid(&z)?.clamp(EDGE, 1.0 - EDGE)
    }
}

/// Hard starts: drawn with the probabilities `b` of one document, or where they are above a half if there is
/// no stream. The first character begins a segment, no gap is longer than `longest`, and the last
/// start is `longest` before the end.
pub fn starts(b: &[f32], longest: usize, mut stream: Option<&mut Stream>) -> Vec<usize> {
    let last = b.len().saturating_sub(longest);
    let mut all = vec![0];
    for (place, &p) in b.iter().enumerate().take(last + 1).skip(1) {
        let drawn = match &mut stream {
            Some(stream) => stream.unit() < p,
            None => p > 0.5,
        };
        let gap = place - all[all.len() - 1];
        if drawn || gap == longest || place == last {
            all.push(place);
        }
    }
    all
}

/// Existence and shares of segments that begin at `starts`, for probabilities `[B, T]`: `e_0 = 1`,
/// `e_k = prod (1 - b)` over the characters behind the first; shares are existences over their sum at
/// each character.
///
/// # Errors
/// Shapes that do not fit.
pub fn segments(
    b: &Tensor,
    starts: Vec<(usize, usize)>,
    longest: usize,
) -> candle_core::Result<Segments> {
    let (documents, length) = b.dims2()?;
    let places: Vec<u32> = starts
        .iter()
        .flat_map(|&(document, start)| {
            (0..longest).map(move |k| (document * length + start + k) as u32)
        })
        .collect();
    let index = Tensor::new(&places[..], &DEVICE)?;
    let goes_on = (1.0 - b.flatten_all()?)?.log()?;
    let own = goes_on.index_select(&index, 0)?.reshape((starts.len(), longest))?;
    // The first character exists for sure.
    let mut first = vec![1f32; longest];
    first[0] = 0.0;
    let own = own.broadcast_mul(&Tensor::new(&first[..], &DEVICE)?)?;
    let existence = own.cumsum(1)?.maximum(LEAST)?;
    let e = existence.exp()?;
    let sums = Tensor::zeros(documents * length, candle_core::DType::F32, &DEVICE)?.index_add(
        &index,
        &e.flatten_all()?,
        0,
    )?;
    let sums = sums.index_select(&index, 0)?.reshape((starts.len(), longest))?;
    let shares = (e / sums)?;
    Ok(Segments { starts, places, existence, shares })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(b: &[f32], starts: &[usize], longest: usize) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
        let b = Tensor::new(b, &DEVICE).unwrap().unsqueeze(0).unwrap();
        let found = segments(&b, starts.iter().map(|&s| (0, s)).collect(), longest).unwrap();
        let e = found.existence.exp().unwrap().to_vec2().unwrap();
        (e, found.shares.to_vec2().unwrap())
    }

    #[test]
    fn the_worked_example() {
        let (e, w) = of(&[0.999, 0.2, 0.5, 0.1, 0.3, 0.3], &[0, 2], 4);
        let close = |a: f32, b: f32| assert!((a - b).abs() < 1e-3, "{a} {b}");
        [1.0, 0.8, 0.4, 0.36].iter().zip(&e[0]).for_each(|(a, b)| close(*a, *b));
        close(e[1][1], 0.9);
        close(w[0][2], 0.286);
        close(w[1][0], 0.714);
        close(w[0][3], 0.286);
    }

    #[test]
    fn shares_of_a_character_sum_up_to_one_and_existence_never_rises() {
        let mut stream = Stream::new(3);
        let b: Vec<f32> = (0..60).map(|_| 0.02 + 0.9 * stream.unit() * stream.unit()).collect();
        let all = starts(&b, 9, Some(&mut stream));
        let (e, w) = of(&b, &all, 9);
        let mut sums = [0f32; 60];
        for ((start, e), w) in all.iter().zip(&e).zip(&w) {
            assert!(e.windows(2).all(|p| p[1] <= p[0]) && e[0] == 1.0);
            w.iter().enumerate().for_each(|(k, w)| sums[start + k] += w);
        }
        assert!(sums.iter().all(|s| (s - 1.0).abs() < 1e-5), "{sums:?}");
    }

    #[test]
    fn starts_that_are_certain_where_none_may_be_leave_shares_that_are_numbers() {
        let length = 60;
        let b = Tensor::full(1.0 - EDGE as f32, (1, length), &DEVICE).unwrap();
        let found = segments(&b, vec![(0, 0), (0, 20), (0, 40)], 20).unwrap();
        let shares: Vec<f32> = found.shares.flatten_all().unwrap().to_vec1().unwrap();
        assert!(shares.iter().all(|s| (s - 1.0).abs() < 1e-3), "{shares:?}");
    }

    #[test]
    fn no_gap_is_too_long_and_the_end_is_covered() {
        let never = starts(&[0.0; 30], 8, None);
        assert_eq!(never, [0, 8, 16, 22]);
        let (e, _) = of(&[0.0; 30], &never, 8);
        assert!(e.iter().flatten().all(|&e| e == 1.0), "segments of exactly the longest");
        let always = starts(&[0.9; 12], 4, None);
        assert_eq!(always, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let (e, _) = of(&[1.0 - 1e-7; 12], &always, 4);
        assert!(e.iter().all(|e| e[1] < 1e-6), "characters alone");
    }

    #[test]
    fn gradients_of_probabilities_are_those_of_finite_differences() {
        let values: Vec<f32> = (0..14).map(|i| 0.1 + 0.05 * (i % 7) as f32).collect();
        let all: Vec<(usize, usize)> = [0, 3, 5, 8].map(|s| (0, s)).to_vec();
        // Any smooth function of existence and shares.
        let value = |b: &Tensor| {
            let s = segments(b, all.clone(), 6).unwrap();
            let weights: Vec<f32> = (0..24).map(|i| (i as f32 * 0.7).sin()).collect();
            let weights = Tensor::from_vec(weights, (4, 6), &DEVICE).unwrap();
            ((s.existence.exp().unwrap() * &weights).unwrap().sum_all().unwrap()
                + (s.shares.sqr().unwrap() * &weights).unwrap().sum_all().unwrap())
            .unwrap()
        };
        let row = |values: &[f32]| Tensor::new(values, &DEVICE).unwrap().unsqueeze(0).unwrap();
        let var = candle_core::Var::from_tensor(&row(&values)).unwrap();
        let gradients = value(var.as_tensor()).backward().unwrap();
        let gradient = gradients.get(&var).unwrap().to_vec2::<f32>().unwrap();
        for i in 0..14 {
            let at = |h: f32| {
                let mut moved = values.clone();
                moved[i] += h;
                value(&row(&moved)).to_scalar::<f32>().unwrap()
            };
            let difference = (at(1e-2) - at(-1e-2)) / 2e-2;
            let found = gradient[0][i];
            assert!(
                (difference - found).abs() < 2e-2 * (1.0 + found.abs()),
                "{i}: {difference} {found}"
            );
        }
    }
}
