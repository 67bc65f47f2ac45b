//! What the parts are trained for.

use candle_core::{D, Tensor};

use super::DEVICE;
use super::denoiser::Unfolded;
use super::splitter::Segments;

/// Cosines stay this far away from -1 and 1.
const EDGE: f64 = 1e-3;

/// Cosines of vectors in the last dimension.
fn cosine(a: &Tensor, b: &Tensor) -> candle_core::Result<Tensor> {
    let products = (a * b)?.sum(D::Minus1)?;
    let lengths = (a.sqr()?.sum(D::Minus1)? * b.sqr()?.sum(D::Minus1)?)?;
    products / (lengths + 1e-12)?.sqrt()?
}

/// Logits of characters, `2 atanh(cos)`, for vectors `[.., d]` on the sphere against the table `[V, d]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn logits(x: &Tensor, table: &Tensor) -> candle_core::Result<Tensor> {
    let (v, d) = table.dims2()?;
    let square = super::radius(d).powi(2);
    let rows = x.elem_count() / d;
    let cos =
        (x.reshape((rows, d))?.matmul(&table.t()?)? / square)?.clamp(-1.0 + EDGE, 1.0 - EDGE)?;
    let logits = ((1.0 + &cos)?.log()? - (1.0 - &cos)?.log()?)?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = v;
    }
    logits.reshape(shape)
}

/// Mean of `loss` `[S, L]` by the segments' shares.
fn shared(loss: &Tensor, segments: &Segments) -> candle_core::Result<Tensor> {
    (loss * &segments.shares)?.sum_all()? / segments.shares.detach().sum_all()?
}

/// Cross-entropy of the characters `[S * L]`, by shares.
///
/// # Errors
/// Shapes that do not fit.
pub fn reconstruction(
    out: &Unfolded,
    table: &Tensor,
    characters: &[u32],
    segments: &Segments,
) -> candle_core::Result<Tensor> {
    let logits = logits(&out.vectors, table)?;
    let (s, l, v) = logits.dims3()?;
    let logits = logits.reshape((s * l, v))?;
    let index = Tensor::new(characters, &DEVICE)?.unsqueeze(1)?;
    let own = logits.gather(&index, 1)?.squeeze(1)?;
    let loss = (logits.log_sum_exp(1)? - own)?.reshape((s, l))?;
    shared(&loss, segments)
}

/// Cross-entropy of existence against labels `[S, L]`, from logarithms. The first of a segment says nothing.
///
/// # Errors
/// Shapes that do not fit.
pub fn existence(found: &Tensor, labels: &Tensor) -> candle_core::Result<Tensor> {
    let l = found.dim(1)?;
    let e = found.narrow(1, 1, l - 1)?.exp()?.clamp(1e-5, 1.0 - 1e-5)?;
    let y = labels.narrow(1, 1, l - 1)?.detach();
    let loss = ((&y * e.log()?)? + ((1.0 - &y)? * (1.0 - &e)?.log()?)?)?;
    loss.mean_all()?.neg()
}

/// The share `r` of the way from `a` to `y` at which the cosine with `h` is largest: one for each segment of
/// `[S, L, d]`, by the closed form. Numbers, not part of the graph.
///
/// # Errors
/// Shapes that do not fit.
pub fn closest(h: &Tensor, a: &Tensor, y: &Tensor) -> candle_core::Result<Vec<f32>> {
    let [h, a, y] = [h, a, y].map(|x| x.detach().flatten_from(1)?.to_vec2::<f32>());
    let (h, a, y) = (h?, a?, y?);
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    let one = |((h, a), y): ((&Vec<f32>, &Vec<f32>), &Vec<f32>)| {
        let way: Vec<f32> = y.iter().zip(a).map(|(y, a)| y - a).collect();
        let (p, q) = (dot(h, a), dot(h, &way));
        let (aa, aw, ww) = (dot(a, a), dot(a, &way), dot(&way, &way));
        let value = |r: f64| (p + r * q) / (aa + 2.0 * r * aw + r * r * ww).max(1e-12).sqrt();
        let inside = ((q * aa - p * aw) / (p * ww - q * aw)).clamp(0.0, 1.0);
        let ends = [0.0, 1.0, if inside.is_nan() { 0.0 } else { inside }];
        ends.into_iter().max_by(|x, y| value(*x).total_cmp(&value(*y))).unwrap_or(0.0) as f32
    };
    Ok(h.iter().zip(&a).zip(&y).map(one).collect())
}

/// A denoiser may stay or move toward the data, never away: `1 - cos` of each character's vector in `h` with
/// the closest point between a less certain output `a` and the data `y`, by shares; and the loss of
/// existence with labels from the same point. `L` characters of width `d`; `labels` `[S, L]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn mixed(
    h: &Unfolded,
    a: &Unfolded,
    y: &Tensor,
    labels: &Tensor,
    segments: &Segments,
) -> candle_core::Result<(Tensor, Tensor)> {
    // What does not exist has no say in where the closest point is.
    let weights = segments.existence.detach().exp()?.unsqueeze(2)?;
    let weighed = |x: &Tensor| x.detach().broadcast_mul(&weights);
    let r = closest(&weighed(&h.vectors)?, &weighed(&a.vectors)?, &weighed(y)?)?;
    let r = Tensor::new(&r[..], &DEVICE)?.unsqueeze(1)?;
    let (from, to) = (a.vectors.detach(), y.detach());
    let target = (&from + (to - &from)?.broadcast_mul(&r.unsqueeze(2)?)?)?;
    let loss = (1.0 - cosine(&h.vectors, &target)?)?;
    let from = a.existence.detach().exp()?;
    let labels = (&from + (labels.detach() - &from)?.broadcast_mul(&r)?)?;
    Ok((shared(&loss, segments)?, existence(&h.existence, &labels)?))
}

/// The size of the mean cosine between vectors `[S, D]` of different documents; 0 with one document.
///
/// # Errors
/// Shapes that do not fit.
pub fn collapse(z: &Tensor, segments: &Segments) -> candle_core::Result<Tensor> {
    let (s, wide) = z.dims2()?;
    let unit = (z / super::radius(wide))?;
    let cos = unit.matmul(&unit.t()?)?;
    let own: Vec<usize> = segments.starts.iter().map(|s| s.0).collect();
    let bits: Vec<f32> = (0..s * s).map(|i| f32::from(own[i / s] != own[i % s])).collect();
    let pairs = bits.iter().sum::<f32>().max(1.0);
    let bits = Tensor::from_vec(bits, (s, s), &DEVICE)?;
    ((cos * bits)?.sum_all()? / f64::from(pairs))?.abs()
}

/// Against a start everywhere: `(max(mean b, 1/L) + 1 - 1/L)^2 - 1`.
///
/// # Errors
/// None for a tensor with values.
pub fn compression(b: &Tensor, longest: usize) -> candle_core::Result<Tensor> {
    let least = 1.0 / longest as f64;
    let mean = b.mean_all()?;
    let mean = match mean.to_scalar::<f32>()? > least as f32 {
        true => mean,
        false => ((mean * 0.0)? + least)?,
    };
    (mean + (1.0 - least))?.sqr()? - 1.0
}

/// Probabilities of a window of `longest` characters without a start, and of a start right behind a start:
/// means over all documents `[B, T]`.
///
/// # Errors
/// Documents shorter than a window.
pub fn lengths(b: &Tensor, longest: usize) -> candle_core::Result<(Tensor, Tensor)> {
    let t = b.dim(1)?;
    let none = (1.0 - b)?.log()?;
    let mut window = none.narrow(1, 0, t - longest + 1)?;
    for k in 1..longest {
        window = (window + none.narrow(1, k, t - longest + 1)?)?;
    }
    let short = (b.narrow(1, 0, t - 1)? * b.narrow(1, 1, t - 1)?)?;
    Ok((window.exp()?.mean_all()?, short.mean_all()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_model::toy::Stream;

    fn random(stream: &mut Stream, shape: (usize, usize, usize)) -> Tensor {
        let count = shape.0 * shape.1 * shape.2;
        let values: Vec<f32> = (0..count).map(|_| stream.normal()).collect();
        Tensor::from_vec(values, shape, &DEVICE).unwrap()
    }

    #[test]
    fn the_closest_point_is_that_of_a_grid() {
        let mut stream = Stream::new(1);
        let [h, a, y] = [(); 3].map(|()| random(&mut stream, (40, 2, 3)));
        let found = closest(&h, &a, &y).unwrap();
        let [h, a, y] = [h, a, y].map(|x| x.flatten_from(1).unwrap().to_vec2::<f32>().unwrap());
        let mut inside = 0;
        for (i, r) in found.iter().enumerate() {
            let value = |r: f32| {
                let point: Vec<f32> =
                    a[i].iter().zip(&y[i]).map(|(a, y)| a + r * (y - a)).collect();
                let dot: f32 = point.iter().zip(&h[i]).map(|(p, h)| p * h).sum();
                dot / point.iter().map(|p| p * p).sum::<f32>().sqrt()
            };
            let best = (0..=1000).map(|k| value(k as f32 / 1000.0)).fold(f32::MIN, f32::max);
            assert!((value(*r) - best).abs() < 1e-4, "{r}: {} {best}", value(*r));
            inside += usize::from(*r > 0.0 && *r < 1.0);
        }
        assert!(inside > 5, "{inside} inside");
    }

    #[test]
    fn an_output_that_is_the_data_is_scored_by_its_cosine() {
        let mut stream = Stream::new(2);
        let (h, y) = (random(&mut stream, (3, 4, 6)), random(&mut stream, (3, 4, 6)));
        let b = Tensor::new(&[[0.2f32; 12]], &DEVICE).unwrap();
        let starts = vec![(0, 0), (0, 4), (0, 8)];
        let segments = super::super::splitter::segments(&b, starts, 4).unwrap();
        let existence = segments.existence.clone();
        let out =
            |vectors: &Tensor| Unfolded { vectors: vectors.clone(), existence: existence.clone() };
        let labels = existence.exp().unwrap();
        let (loss, _) = mixed(&out(&h), &out(&y), &y, &labels, &segments).unwrap();
        let wanted = shared(&(1.0 - cosine(&h, &y).unwrap()).unwrap(), &segments).unwrap();
        let [loss, wanted] = [loss, wanted].map(|x| x.to_scalar::<f32>().unwrap());
        assert!((loss - wanted).abs() < 1e-5, "{loss} {wanted}");
    }

    #[test]
    fn lengths_of_certain_segments() {
        let never = Tensor::new(&[[1e-4f32; 10]], &DEVICE).unwrap();
        let (none, short) = lengths(&never, 4).unwrap();
        assert!((none.to_scalar::<f32>().unwrap() - 1.0).abs() < 1e-2);
        assert!(short.to_scalar::<f32>().unwrap() < 1e-6);
        let always = Tensor::new(&[[0.9f32; 10]], &DEVICE).unwrap();
        let (none, short) = lengths(&always, 4).unwrap();
        assert!((none.to_scalar::<f32>().unwrap() - 1e-4).abs() < 1e-4);
        assert!((short.to_scalar::<f32>().unwrap() - 0.81).abs() < 1e-4);
        // One start in four costs nothing, one everywhere the most.
        let quarter = Tensor::new(&[[0.25f32; 8]], &DEVICE).unwrap();
        assert!(compression(&quarter, 4).unwrap().to_scalar::<f32>().unwrap().abs() < 1e-6);
        let all = compression(&always, 4).unwrap().to_scalar::<f32>().unwrap();
        assert!((all - (1.65f32 * 1.65 - 1.0)).abs() < 1e-4, "{all}");
    }
}
