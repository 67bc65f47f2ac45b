//! Softmax and its relatives: sums in index order, in `f64`.

use super::scalar::{exp, ln};
use crate::{Error, Result, TokenId};

/// The largest logit and the first token that has it.
///
/// # Errors
/// [`Error::Logits`] if there are none, one is NaN or `+inf`, or all are `-inf`.
pub fn argmax(logits: &[f32]) -> Result<(TokenId, f32)> {
    // Lanes, so that the scan over a large vocabulary vectorises.
    let mut top = [f32::NEG_INFINITY; 16];
    let mut unordered = [false; 16];
    let mut blocks = logits.chunks_exact(16);
    for block in &mut blocks {
        for lane in 0..16 {
            let value = block[lane];
            top[lane] = if value > top[lane] { value } else { top[lane] };
            unordered[lane] |= value.is_nan();
        }
    }
    let mut max = f32::NEG_INFINITY;
    let mut any_nan = unordered.iter().any(|&u| u);
    for &value in top.iter().chain(blocks.remainder()) {
        any_nan |= value.is_nan();
        max = if value > max { value } else { max };
    }
    let bad = |what: &str, at: Option<usize>| match at {
        Some(at) => Err(Error::logits(format!("token {at} has {what}"))),
        None => Err(Error::logits(what.to_owned())),
    };
    if any_nan {
        return bad("NaN", logits.iter().position(|v| v.is_nan()));
    }
    if max == f32::INFINITY {
        return bad("+inf", logits.iter().position(|&v| v == max));
    }
    match logits.iter().position(|&v| v == max) {
        Some(at) if max > f32::NEG_INFINITY => Ok((at as TokenId, max)),
        Some(_) => bad("all are -inf", None),
        None => bad("there are none", None),
    }
}

/// `ln(sum(exp(logits)))`.
///
/// # Errors
/// As [`argmax`].
pub fn log_sum_exp(logits: &[f32]) -> Result<f64> {
    let (_, max) = argmax(logits)?;
    Ok(f64::from(max) + ln(sum_exp(logits, f64::from(max))))
}

/// `sum(exp(logits - max))`, at least 1. One order, in four interleaved partial sums.
fn sum_exp(logits: &[f32], max: f64) -> f64 {
    let mut sums = [0.0f64; 4];
    let mut blocks = logits.chunks_exact(4);
    for block in &mut blocks {
        for lane in 0..4 {
            sums[lane] += exp(f64::from(block[lane]) - max);
        }
    }
    for (lane, &value) in blocks.remainder().iter().enumerate() {
        sums[lane] += exp(f64::from(value) - max);
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3])
}

/// Writes the probabilities of `logits` into `out` (same length); they sum to 1 up to rounding.
///
/// # Errors
/// As [`argmax`]; [`Error::Logits`] if the lengths differ.
pub fn softmax(logits: &[f32], out: &mut [f32]) -> Result<()> {
    let (max, sum) = peak(logits, out)?;
    for (slot, &value) in out.iter_mut().zip(logits) {
        *slot = (exp(f64::from(value) - max) / sum) as f32;
    }
    Ok(())
}

/// Writes the logarithms of the probabilities of `logits` into `out` (same length).
///
/// # Errors
/// As [`softmax`].
pub fn log_softmax(logits: &[f32], out: &mut [f32]) -> Result<()> {
    let (max, sum) = peak(logits, out)?;
    let shift = max + ln(sum);
    for (slot, &value) in out.iter_mut().zip(logits) {
        *slot = (f64::from(value) - shift) as f32;
    }
    Ok(())
}

fn peak(logits: &[f32], out: &[f32]) -> Result<(f64, f64)> {
    if logits.len() != out.len() {
        return Err(Error::logits(format!("{} values into {}", logits.len(), out.len())));
    }
    let max = f64::from(argmax(logits)?.1);
    Ok((max, sum_exp(logits, max)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_by_hand() {
        let logits = [0.0, 2f32.ln(), 3f32.ln(), f32::NEG_INFINITY];
        let mut out = [0.0; 4];
        softmax(&logits, &mut out).unwrap();
        for (got, want) in out.iter().zip([1.0 / 6.0, 2.0 / 6.0, 0.5, 0.0]) {
            assert!((got - want).abs() < 1e-7);
        }
        log_softmax(&logits, &mut out).unwrap();
        assert!((out[2] - 0.5f32.ln()).abs() < 1e-7 && out[3] == f32::NEG_INFINITY);
        assert!((log_sum_exp(&logits).unwrap() - 6f64.ln()).abs() < 1e-7);
    }

    #[test]
    fn large_and_shifted_logits_neither_overflow_nor_matter() {
        let base: Vec<f32> = (0..100).map(|i| (i % 7) as f32).collect();
        let shifted: Vec<f32> = base.iter().map(|v| v + 4096.0).collect();
        let (mut a, mut b) = (vec![0.0; 100], vec![0.0; 100]);
        softmax(&base, &mut a).unwrap();
        softmax(&shifted, &mut b).unwrap();
        assert_eq!(a, b);
        assert!((a.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn argmax_takes_the_first_maximum_at_every_length() {
        for n in 1..70usize {
            for at in 0..n {
                let mut logits = vec![-1.0; n];
                logits[at] = 2.0;
                logits[n - 1] = 2.0;
                assert_eq!(argmax(&logits).unwrap(), (at as u32, 2.0));
            }
        }
    }

    #[test]
    fn numbers_that_are_no_distribution_are_errors() {
        let mut logits = vec![0.0f32; 40];
        for (value, word) in [(f32::NAN, "NaN"), (f32::INFINITY, "+inf")] {
            for at in [0, 17, 39] {
                let kept = std::mem::replace(&mut logits[at], value);
                let text = argmax(&logits).unwrap_err().to_string();
                assert!(text.contains(word) && text.contains(&at.to_string()), "{text}");
                assert!(log_sum_exp(&logits).is_err());
                logits[at] = kept;
            }
        }
        assert!(argmax(&[]).is_err());
        assert!(argmax(&[f32::NEG_INFINITY; 3]).is_err());
        assert!(softmax(&[1.0], &mut [0.0, 0.0]).is_err());
    }
}
