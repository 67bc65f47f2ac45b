//! Pearson's chi-square tests, for proving that draws follow the law they should.
//!
//! A test with fixed seeds either passes always or fails always; [`ERROR_LEVEL`] says how unlikely
//! it was, when the seeds were chosen, that a correct implementation would have failed.

use super::scalar::{exp, ln};

/// The probability with which a correct implementation fails one test.
pub const ERROR_LEVEL: f64 = 1e-3;

/// The probability that counts at least as far from `probabilities` as these arise from them by
/// chance. Cells that expect fewer than 5 are pooled; a count in a cell of probability 0 gives 0.
///
/// `probabilities` sum to 1; both slices have the same length.
pub fn goodness(counts: &[u64], probabilities: &[f64]) -> f64 {
    let total = counts.iter().sum::<u64>() as f64;
    let (mut statistic, mut cells) = (0.0, 0usize);
    let (mut pooled_seen, mut pooled_expected) = (0.0, 0.0);
    for (&count, &p) in counts.iter().zip(probabilities) {
        if p <= 0.0 {
            if count > 0 {
                return 0.0;
            }
            continue;
        }
        let expected = p * total;
        if expected < 5.0 {
            pooled_seen += count as f64;
            pooled_expected += expected;
        } else {
            statistic += (count as f64 - expected).powi(2) / expected;
            cells += 1;
        }
    }
    if pooled_expected > 0.0 {
        // A pool that is itself too small still counts, with a floor that keeps it from dominating.
        statistic += (pooled_seen - pooled_expected).powi(2) / pooled_expected.max(1.0);
        cells += 1;
    }
    tail(statistic, cells.saturating_sub(1))
}

/// [`goodness`] for equal probabilities.
pub fn uniformity(counts: &[u64]) -> f64 {
    goodness(counts, &vec![1.0 / counts.len() as f64; counts.len()])
}

/// The probability of a dependence at least as strong as in this table of counts (row-major,
/// `columns` wide) if rows and columns are independent.
pub fn independence(table: &[u64], columns: usize) -> f64 {
    let rows = table.len() / columns;
    let total = table.iter().sum::<u64>() as f64;
    let row = |r: usize| table[r * columns..(r + 1) * columns].iter().sum::<u64>() as f64;
    let column = |c: usize| (0..rows).map(|r| table[r * columns + c]).sum::<u64>() as f64;
    let mut statistic = 0.0;
    for r in 0..rows {
        for c in 0..columns {
            let expected = row(r) * column(c) / total;
            if expected > 0.0 {
                statistic += (table[r * columns + c] as f64 - expected).powi(2) / expected;
            }
        }
    }
    tail(statistic, (rows - 1) * (columns - 1))
}

/// The probability that a chi-square variable with `freedom` degrees exceeds `statistic`: the
/// regularised upper incomplete gamma function at (freedom / 2, statistic / 2).
pub fn tail(statistic: f64, freedom: usize) -> f64 {
    if freedom == 0 || statistic <= 0.0 {
        return 1.0;
    }
    let (a, x) = (freedom as f64 / 2.0, statistic / 2.0);
    let front = exp(a * ln(x) - x - ln_gamma(a));
    if x < a + 1.0 {
        // Series of the lower function.
        let (mut term, mut sum, mut n) = (1.0 / a, 1.0 / a, a);
        for _ in 0..10_000 {
            n += 1.0;
            term *= x / n;
            sum += term;
            if term < sum * 1e-16 {
                break;
            }
        }
        return (1.0 - front * sum).clamp(0.0, 1.0);
    }
    // Continued fraction of the upper function, evaluated forwards (Lentz).
    let mut b = x + 1.0 - a;
    let (mut c, mut d) = (1e300, 1.0 / b);
    let mut value = d;
    for i in 1..10_000 {
        let i = f64::from(i);
        let numerator = -i * (i - a);
        b += 2.0;
        d = 1.0 / (numerator * d + b);
        c = b + numerator / c;
        let factor = d * c;
        value *= factor;
        if (factor - 1.0).abs() < 1e-15 {
            break;
        }
    }
    (front * value).clamp(0.0, 1.0)
}

/// Stirling's series after shifting the argument above 10.
fn ln_gamma(mut x: f64) -> f64 {
    let mut shift = 0.0;
    while x < 10.0 {
        shift += ln(x);
        x += 1.0;
    }
    let z = 1.0 / (x * x);
    let series = (1.0 / 12.0 - z * (1.0 / 360.0 - z * (1.0 / 1260.0 - z / 1680.0))) / x;
    (x - 0.5) * ln(x) - x + 0.918_938_533_204_672_7 + series - shift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_equal_the_tables() {
        // Critical values as any statistics table prints them.
        for (statistic, freedom, want) in [
            (3.841, 1, 0.05),
            (10.828, 1, 0.001),
            (18.307, 10, 0.05),
            (29.588, 10, 0.001),
            (124.342, 100, 0.05),
            (0.004, 1, 0.95),
        ] {
            let got = tail(statistic, freedom);
            assert!((got / want - 1.0).abs() < 0.01, "{statistic} {freedom}: {got}");
        }
        assert!((tail(2.0 * 1.7, 2) - (-1.7f64).exp()).abs() < 1e-11);
    }

    #[test]
    fn wrong_laws_are_refused() {
        assert!(goodness(&[500, 500], &[0.5, 0.5]) > 0.9);
        assert!(goodness(&[400, 600], &[0.5, 0.5]) < 1e-8);
        assert_eq!(goodness(&[999, 1], &[1.0, 0.0]), 0.0);
        assert!(independence(&[100, 100, 100, 100], 2) > 0.9);
        assert!(independence(&[150, 50, 50, 150], 2) < 1e-8);
    }
}
