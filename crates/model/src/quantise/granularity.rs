//! How finely a matrix is divided: the levels, what is measured at each, and the adaptive rule.
//!
//! Groups run along the inputs (the reduction) of one output row; the card `finequant` speaks of
//! columns of the transposed matrix. The levels are `cols, cols/2, cols/4, ...`, each rounded up to a
//! multiple of 32 so that every group is whole blocks of a file; the last group of a row may be shorter.
//!
//! **Our specification** (the printed algorithm was not at hand; the card says what is recalled): start
//! with one group a row and halve while halving shrinks the ranges enough. `range ratio` of a halving =
//! mean over all weights of (range of the weight's new group / range of its old group), which for even
//! halvings is the mean over parents of the mean of their two children. Halve while `ratio <= alpha`.
//! Two guards, ours as well: halve while some group's range exceeds `guard` standard deviations (an
//! outlier that leaves the others few levels), and while the relative error exceeds `error_budget` times
//! that of the finest level.

use super::base::{self, Bits, GroupError};

/// Values of a block of the file formats: the unit of group sizes.
pub const UNIT: usize = 32;

/// Settings of the adaptive rule. Ranges are those that the method's entry enforces.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// Largest range ratio at which a halving is taken; 0 to 1. At 0 none is, at 1 all are.
    pub alpha: f32,
    /// Smallest group, in weights; a multiple of 32.
    pub min_group: usize,
    /// Collapse guard: halve while a group's range is above so many standard deviations; 0 is off.
    pub guard: f32,
    /// Halve while the relative error is above this many times that of the finest level; 0 is off.
    pub error_budget: f32,
}

/// Sizes of groups for rows of `cols` weights, coarsest first, none below `least` but the first.
pub fn levels(cols: usize, least: usize) -> Vec<usize> {
    let mut sizes = vec![cols];
    let mut parts = 2usize;
    while let Some(&last) = sizes.last() {
        let size = cols.div_ceil(parts).next_multiple_of(UNIT);
        if size < least.max(UNIT) || cols / parts == 0 {
            break;
        }
        if size < last {
            sizes.push(size);
        }
        parts = parts.saturating_mul(2);
    }
    sizes
}

/// Sums over the rows of a matrix at one level. Sums of parts are added in the order of rows, so
/// they do not depend on threads.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Level {
    /// Weights in a group.
    pub group: usize,
    /// Sum of the range ratios to the next coarser level, over units, and their number.
    ratio: (f64, u64),
    /// Largest ratio of a group's range to its standard deviation.
    peak: f64,
    /// Squared errors of 4-bit codes.
    error: f64,
}

impl Level {
    /// Mean range ratio to the next coarser level; `None` at the coarsest, or without any weight.
    pub fn ratio(&self) -> Option<f64> {
        (self.ratio.1 > 0).then(|| self.ratio.0 / self.ratio.1 as f64)
    }
}

/// What the rule and the report need to know about a matrix.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Survey {
    /// The levels, coarsest first.
    pub levels: Vec<Level>,
    /// Sum of squared weights.
    energy: f64,
    /// Squared errors of 8-bit codes with one group a row.
    error8: f64,
}

impl Survey {
    /// An empty survey of rows of `cols` weights.
    pub fn new(cols: usize, least: usize) -> Self {
        let levels = levels(cols, least).into_iter();
        let levels = levels.map(|group| Level { group, ..Level::default() }).collect();
        Self { levels, ..Self::default() }
    }

    /// Adds a row.
    ///
    /// # Errors
    /// A weight that is not finite or too large.
    pub fn add_row(&mut self, row: &[f32]) -> Result<(), GroupError> {
        self.energy += row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
        self.error8 += row_error(row, row.len(), Bits::Eight)?;
        let units = row.len().div_ceil(UNIT);
        let mut old: Vec<f32> = Vec::new();
        for level in &mut self.levels {
            let mut new = Vec::with_capacity(units);
            for group in row.chunks(level.group) {
                let range = base::range(group)?;
                new.resize(new.len() + group.len().div_ceil(UNIT), range);
                let deviation = deviation(group);
                if deviation > 0.0 {
                    level.peak = level.peak.max(f64::from(range) / deviation);
                }
            }
            for (old, new) in old.iter().zip(&new) {
                if *old > 0.0 {
                    level.ratio.0 += f64::from(new / old);
                    level.ratio.1 += 1;
                }
            }
            level.error += row_error(row, level.group, Bits::Four)?;
            old = new;
        }
        Ok(())
    }

    /// Adds the survey of the rows that follow.
    pub fn merge(&mut self, next: &Self) {
        self.energy += next.energy;
        self.error8 += next.error8;
        for (level, next) in self.levels.iter_mut().zip(&next.levels) {
            level.ratio.0 += next.ratio.0;
            level.ratio.1 += next.ratio.1;
            level.peak = level.peak.max(next.peak);
            level.error += next.error;
        }
    }

    /// `||W - W'|| / ||W||` of 4-bit codes at a level.
    pub fn relative_error(&self, level: &Level) -> f64 {
        self.relative(level.error)
    }

    /// The same of 8-bit codes with one group a row.
    pub fn relative_error8(&self) -> f64 {
        self.relative(self.error8)
    }

    fn relative(&self, error: f64) -> f64 {
        if self.energy > 0.0 { (error / self.energy).sqrt() } else { 0.0 }
    }

    /// The level that the rule chooses.
    pub fn choose(&self, rule: &Rule) -> Level {
        let last = self.levels.last().copied().unwrap_or_default();
        let finest = self.relative_error(&last);
        let mut at = self.levels.first().copied().unwrap_or_default();
        for next in self.levels.iter().skip(1) {
            // Uneven halvings may widen single groups: at 1 the rule does not ask.
            let shrinks = rule.alpha >= 1.0
                || rule.alpha > 0.0 && next.ratio().is_some_and(|r| r <= f64::from(rule.alpha));
            let outlier = rule.guard > 0.0 && at.peak > f64::from(rule.guard);
            let budget = f64::from(rule.error_budget) * finest;
            let costly = rule.error_budget > 0.0 && self.relative_error(&at) > budget;
            if !(shrinks || outlier || costly) {
                break;
            }
            at = *next;
        }
        at
    }
}

fn deviation(group: &[f32]) -> f64 {
    let n = group.len() as f64;
    let mean = group.iter().map(|w| f64::from(*w)).sum::<f64>() / n;
    (group.iter().map(|w| (f64::from(*w) - mean).powi(2)).sum::<f64>() / n).sqrt()
}

/// Squared error of a row in groups of `size`.
fn row_error(row: &[f32], size: usize, bits: Bits) -> Result<f64, GroupError> {
    let mut sum = 0.0;
    for group in row.chunks(size.max(1)) {
        let s = base::scale(base::range(group)?, bits)?.to_f32();
        sum += group
            .iter()
            .map(|w| f64::from(w - s * f32::from(base::code(*w, s, bits))).powi(2))
            .sum::<f64>();
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights of a bell shape (a sum of twelve uniform ones), the same every time.
    pub(crate) fn bell(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed | 1;
        let mut uniform = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 24) as f32
        };
        (0..n).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
    }

    fn survey(values: &[f32], cols: usize, least: usize) -> Survey {
        let mut survey = Survey::new(cols, least);
        values.chunks(cols).for_each(|row| survey.add_row(row).unwrap());
        survey
    }

    const PLAIN: Rule = Rule { alpha: 0.8, min_group: 64, guard: 0.0, error_budget: 0.0 };

    #[test]
    fn levels_halve_down_to_the_smallest_group_in_whole_blocks() {
        assert_eq!(levels(1024, 64), [1024, 512, 256, 128, 64]);
        assert_eq!(levels(576, 64), [576, 288, 160, 96, 64]);
        assert_eq!(levels(576, 32), [576, 288, 160, 96, 64, 32]);
        assert_eq!(levels(96, 64), [96, 64]);
        assert_eq!(levels(64, 64), [64]);
        assert_eq!(levels(32, 64), [32]);
        assert_eq!(levels(1024, 1024), [1024]);
        assert_eq!(levels(1024, usize::MAX), [1024]);
    }

    #[test]
    fn the_limits_of_alpha() {
        for cols in [1024, 576] {
            let s = survey(&bell(8 * cols, 3), cols, 64);
            assert_eq!(s.choose(&Rule { alpha: 0.0, ..PLAIN }).group, cols);
            assert_eq!(s.choose(&Rule { alpha: 1.0, ..PLAIN }).group, 64);
        }
    }

    /// The expected largest of `n` normal magnitudes, by summing its distribution.
    fn expected_range(n: u32) -> f64 {
        let step = 1e-3;
        let mut below = 0.0; // P(|x| < t)
        (0..8000).map(|i| f64::from(i) * step).fold(0.0, |sum, t| {
            let missing = 1.0 - f64::powi(below, n as i32);
            below += step * 2.0 * (-(t + step / 2.0).powi(2) / 2.0).exp()
                / (2.0 * std::f64::consts::PI).sqrt();
            sum + missing * step
        })
    }

    #[test]
    fn bell_shaped_weights_have_the_ratios_of_the_closed_form_and_stop_early() {
        let s = survey(&bell(64 * 1024, 5), 1024, 64);
        for pair in s.levels.windows(2) {
            let want = expected_range(pair[1].group as u32) / expected_range(pair[0].group as u32);
            let got = pair[1].ratio().unwrap();
            // The twelve-fold sum has slightly lighter tails, and a mean of ratios is not a ratio
            // of means.
            assert!((got - want).abs() < 0.03, "{} {got} {want}", pair[1].group);
        }
        assert_eq!(s.choose(&PLAIN).group, 1024);
    }

    #[test]
    fn one_outlier_a_row_gives_a_finer_division() {
        let plain = bell(16 * 1024, 7);
        let mut planted = plain.clone();
        planted.chunks_mut(1024).enumerate().for_each(|(i, row)| row[(i * 97) % 1024] = 60.0);
        let (a, b) = (survey(&plain, 1024, 64), survey(&planted, 1024, 64));
        assert_eq!(a.choose(&PLAIN).group, 1024);
        // By ranges alone it stops after some halvings, as most groups have no outlier ...
        let by_ranges = b.choose(&PLAIN).group;
        assert!(by_ranges < 1024 && by_ranges > 64, "{by_ranges}");
        // ... the guard goes on.
        let guarded = Rule { guard: 9.0, ..PLAIN };
        assert_eq!(a.choose(&guarded).group, 1024);
        assert!(b.choose(&guarded).group < by_ranges);
        assert_eq!(b.choose(&Rule { alpha: 0.0, error_budget: 1.1, ..PLAIN }).group, 64);
    }

    #[test]
    fn the_choice_does_not_depend_on_the_unit_of_the_weights() {
        let mut w = bell(16 * 512, 9);
        w.chunks_mut(512).for_each(|row| row[100] = 40.0);
        let large: Vec<f32> = w.iter().map(|w| w * 1000.0).collect();
        for rule in [PLAIN, Rule { guard: 9.0, ..PLAIN }, Rule { error_budget: 1.1, ..PLAIN }] {
            let (a, b) = (survey(&w, 512, 32), survey(&large, 512, 32));
            assert_eq!(a.choose(&rule).group, b.choose(&rule).group);
        }
    }

    #[test]
    fn errors_fall_with_every_halving_and_with_more_bits() {
        for cols in [1024, 576] {
            let s = survey(&bell(32 * cols, 11), cols, 32);
            let errors: Vec<f64> = s.levels.iter().map(|l| s.relative_error(l)).collect();
            assert!(errors.windows(2).all(|w| w[1] < w[0]), "{errors:?}");
            assert!(s.relative_error8() * 10.0 < errors[errors.len() - 1]);
        }
    }

    #[test]
    fn parts_add_up_and_zeros_are_no_trouble() {
        let w = bell(8 * 96, 13);
        let mut sum = survey(&w[..4 * 96], 96, 32);
        sum.merge(&survey(&w[4 * 96..], 96, 32));
        assert_eq!(sum.levels.len(), 3);
        let whole = survey(&w, 96, 32);
        assert!((sum.relative_error8() - whole.relative_error8()).abs() < 1e-12);
        let zeros = survey(&[0.0; 4 * 96], 96, 32);
        assert_eq!((zeros.choose(&PLAIN).group, zeros.relative_error8()), (96, 0.0));
        assert!(Survey::new(96, 32).add_row(&[f32::NAN; 96]).is_err());
    }
}
