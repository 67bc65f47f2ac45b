//! Medians and intervals of repeated measurements.

use serde::{Deserialize, Serialize};
use tessera_core::dist::Key;

/// A median with the interval that its repetitions support.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The median.
    pub median: f64,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
    /// Number of values.
    pub count: usize,
}

/// Resamples of a bootstrap.
const RESAMPLES: u32 = 2000;

/// The median of `values`, which is not empty; the mean of the middle two for an even number.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (n, half) = (sorted.len(), sorted.len() / 2);
    match n {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[half],
        _ => (sorted[half - 1] + sorted[half]) / 2.0,
    }
}

/// The geometric mean of positive values.
pub fn geometric_mean(values: &[f64]) -> f64 {
    (values.iter().map(|v| v.ln()).sum::<f64>() / values.len() as f64).exp()
}

impl Interval {
    /// The median of `values` with a 95 % percentile bootstrap interval, seeded: equal values give
    /// equal intervals.
    pub fn of(values: &[f64]) -> Self {
        Self::with(values, median)
    }

    /// [`Interval::of`] for another statistic than the median.
    pub fn with(values: &[f64], statistic: impl Fn(&[f64]) -> f64) -> Self {
        let n = values.len();
        let mut sample = vec![0.0; n];
        let mut medians: Vec<f64> = (0..RESAMPLES)
            .map(|round| {
                let key = Key::new(0x5eed, 0, round);
                for (i, slot) in (0..).zip(&mut sample) {
                    *slot = values[(key.uniform(i) * n as f64) as usize % n];
                }
                statistic(&sample)
            })
            .collect();
        medians.sort_by(f64::total_cmp);
        let at = |share: f64| medians[((RESAMPLES - 1) as f64 * share).round() as usize];
        match n {
            0 => Self { median: f64::NAN, low: f64::NAN, high: f64::NAN, count: 0 },
            _ => Self { median: statistic(values), low: at(0.025), high: at(0.975), count: n },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_by_hand() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!((geometric_mean(&[1.0, 4.0]) - 2.0).abs() < 1e-12);
    }

    #[test]
    fn intervals_hold_the_median_and_shrink_with_repetitions() {
        let values =
            |n: u32| -> Vec<f64> { (0..n).map(|i| Key::new(1, 0, i).uniform(0)).collect() };
        let (few, many) = (Interval::of(&values(10)), Interval::of(&values(1000)));
        for i in [few, many] {
            assert!(i.low <= i.median && i.median <= i.high);
        }
        assert!(many.high - many.low < (few.high - few.low) / 2.0);
        assert_eq!(
            Interval::of(&[2.0, 2.0]),
            Interval { median: 2.0, low: 2.0, high: 2.0, count: 2 }
        );
        assert!(Interval::of(&[]).median.is_nan());
    }
}
