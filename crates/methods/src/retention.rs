//! What policies share that decide which cache rows stay: budgets, selection by score, plans.

use std::ops::RangeInclusive;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::entry::Needs;
use tessera_core::{CacheTable, Capabilities, Error, Eviction, Keep, KeepPlan, Result, Row};

/// Most rows that a budget may name.
pub const MOST_ROWS: usize = 1 << 24;

/// What a policy needs that watches attention: taps, and passes that leave no rows behind.
pub const WATCHES: Needs = Needs {
    capabilities: Capabilities { taps: true, writes: true, ..Needs::NONE.capabilities },
    ..Needs::NONE
};

/// How many rows stay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// This many.
    Rows(usize),
    /// All but this share of the prompt's.
    Ratio(f64),
}

impl Budget {
    /// The budget that two settings name, of which at most one may be given, or `rows`.
    ///
    /// # Errors
    /// One line naming the setting and its range.
    pub fn new(
        budget: Option<usize>,
        ratio: Option<f64>,
        rows: usize,
    ) -> std::result::Result<Self, String> {
        match (budget, ratio) {
            (Some(_), Some(_)) => {
                Err("budget and ratio say the same thing: give one of them".to_owned())
            }
            (_, Some(ratio)) if !(0.0..1.0).contains(&ratio) => {
                Err(format!("ratio = {ratio}: must be 0 to below 1"))
            }
            (_, Some(ratio)) => Ok(Self::Ratio(ratio)),
            (budget, None) => {
                let rows = budget.unwrap_or(rows);
                within("budget", rows, 1..=MOST_ROWS)?;
                Ok(Self::Rows(rows))
            }
        }
    }

    /// [`Budget::new`] for the method of this slug.
    ///
    /// # Errors
    /// [`Error::Method`] naming the setting and its range.
    pub fn of_method(
        slug: &str,
        budget: Option<usize>,
        ratio: Option<f64>,
        rows: usize,
    ) -> Result<Self> {
        Self::new(budget, ratio, rows)
            .map_err(|what| Error::Method { method: slug.to_owned(), what })
    }

    /// Rows that stay of a prompt whose longest head holds `rows`; `None` if all do, however long
    /// the text becomes.
    pub fn of(self, rows: usize) -> Option<usize> {
        match self {
            Self::Rows(budget) => Some(budget),
            Self::Ratio(0.0) => None,
            Self::Ratio(ratio) => Some(((rows as f64 * (1.0 - ratio)) as usize).max(1)),
        }
    }
}

/// A budget that becomes a number of rows once the prompt is there, and holds from then on.
#[derive(Debug, Clone)]
pub struct Cap {
    budget: Budget,
    rows: Option<usize>,
}

impl Cap {
    /// Not yet known: nothing exceeds it.
    pub fn new(budget: Budget) -> Self {
        Self { budget, rows: None }
    }

    /// Sets it for a prompt whose longest head holds `rows`.
    pub fn set(&mut self, rows: usize) {
        self.rows = self.budget.of(rows);
    }

    /// Most rows of a head, if `table` holds more.
    pub fn exceeded(&self, table: &CacheTable) -> Option<usize> {
        self.rows.filter(|&rows| table.len() > rows)
    }
}

/// Whether a setting lies within its range.
///
/// # Errors
/// One line naming the setting and its range.
pub fn within(
    name: &str,
    value: usize,
    range: RangeInclusive<usize>,
) -> std::result::Result<(), String> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(format!("{name} = {value}: must be {} to {}", range.start(), range.end()))
}

/// An eviction that keeps of every head with `n` rows what `rows(layer, head, n)` lists.
///
/// # Errors
/// As [`KeepPlan::per_head`].
pub fn evict(
    table: &CacheTable,
    rerank: bool,
    mut rows: impl FnMut(usize, usize, usize) -> Vec<Row>,
) -> Result<Eviction> {
    let (layers, kv_heads) = (table.layers(), table.kv_heads());
    let mut keeps = Vec::with_capacity(layers * kv_heads);
    for layer in 0..layers {
        for head in 0..kv_heads {
            let held = table.positions(layer, head).len();
            keeps.push(Keep { rows: rows(layer, head, held), merges: Vec::new() });
        }
    }
    let alike = table.is_uniform() && keeps.windows(2).all(|w| w[0] == w[1]);
    let plan = match (alike, keeps.pop()) {
        (true, Some(keep)) => KeepPlan::uniform(layers, kv_heads, keep),
        (_, last) => {
            keeps.extend(last);
            KeepPlan::per_head(layers, kv_heads, keeps)?
        }
    };
    Ok(Eviction { plan, rerank })
}

/// The `count` rows with the highest scores, ascending; the earlier one among equals. Rows that
/// are protected come before all others; where they alone exceed `count`, the last ones of them.
pub fn highest(scores: &[f32], count: usize, protected: impl Fn(usize) -> bool) -> Vec<Row> {
    let mut order: Vec<Row> = (0..scores.len() as Row).collect();
    let rank = |&row: &Row| {
        let row = row as usize;
        let safe = protected(row);
        (safe, if safe { row as f32 } else { scores[row] })
    };
    order.sort_by(|a, b| {
        let ((safe_a, a_score), (safe_b, b_score)) = (rank(a), rank(b));
        safe_b.cmp(&safe_a).then(b_score.total_cmp(&a_score)).then(a.cmp(b))
    });
    order.truncate(count);
    order.sort_unstable();
    order
}

/// How scores are spread over neighbouring rows before the highest are chosen, so that what stays
/// hangs together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Not at all.
    None,
    /// The mean of the rows around.
    #[default]
    Mean,
    /// The largest of them.
    Max,
}

impl Pooling {
    /// Pooled scores: each of the `width` rows (odd) centred at it, as far as there are any.
    pub fn apply(self, scores: &[f32], width: usize) -> Vec<f32> {
        let around = |row: usize| {
            let (from, to) = (row.saturating_sub(width / 2), row + width / 2 + 1);
            &scores[from..to.min(scores.len())]
        };
        let rows = 0..scores.len();
        match self {
            Self::None => scores.to_vec(),
            Self::Mean => {
                rows.map(|r| around(r).iter().sum::<f32>() / around(r).len() as f32).collect()
            }
            Self::Max => rows.map(|r| around(r).iter().copied().fold(0.0, f32::max)).collect(),
        }
    }

    /// Checks the width.
    ///
    /// # Errors
    /// One line naming the setting and its range.
    pub fn check(name: &str, width: usize) -> std::result::Result<(), String> {
        match (1..=63).contains(&width) && width % 2 == 1 {
            true => Ok(()),
            false => Err(format!("{name} = {width}: must be odd, 1 to 63")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_core::KeyForm;

    #[test]
    fn a_budget_is_rows_or_a_share_and_never_both() {
        let budget = |b, r| Budget::new(b, r, 1024);
        assert_eq!(budget(None, None), Ok(Budget::Rows(1024)));
        assert_eq!(budget(Some(7), None).map(|b| b.of(100)), Ok(Some(7)));
        assert_eq!(budget(None, Some(0.75)).map(|b| b.of(100)), Ok(Some(25)));
        assert_eq!(budget(None, Some(0.999)).map(|b| b.of(100)), Ok(Some(1)));
        assert_eq!(budget(None, Some(0.0)).map(|b| b.of(100)), Ok(None));
        for (b, r, name) in [
            (Some(1), Some(0.5), "budget and ratio"),
            (Some(0), None, "budget = 0"),
            (None, Some(1.0), "ratio = 1"),
            (None, Some(-0.1), "ratio = -0.1"),
            (None, Some(f64::NAN), "ratio = NaN"),
        ] {
            assert!(budget(b, r).is_err_and(|e| e.starts_with(name)), "{name}");
        }
    }

    #[test]
    fn the_highest_stay_and_the_protected_before_them() {
        let scores = [0.1, 0.9, 0.5, 0.5, 0.2];
        assert_eq!(highest(&scores, 3, |_| false), [1, 2, 3]);
        assert_eq!(highest(&scores, 2, |_| false), [1, 2]);
        assert_eq!(highest(&scores, 2, |row| row == 4), [1, 4]);
        assert_eq!(highest(&scores, 2, |row| row > 1), [3, 4]);
        assert_eq!(highest(&scores, 9, |_| false), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn scores_are_pooled_with_what_lies_around_them() {
        let scores = [4.0, 0.0, 2.0, 0.0, 0.0];
        assert_eq!(Pooling::None.apply(&scores, 3), scores);
        assert_eq!(Pooling::Mean.apply(&scores, 3), [2.0, 2.0, 2.0 / 3.0, 2.0 / 3.0, 0.0]);
        assert_eq!(Pooling::Max.apply(&scores, 3), [4.0, 4.0, 2.0, 2.0, 0.0]);
        assert_eq!(Pooling::Max.apply(&scores, 1), scores);
        assert!(Pooling::check("kernel", 4).is_err() && Pooling::check("kernel", 7).is_ok());
    }

    #[test]
    fn heads_that_keep_the_same_rows_stay_one_list() {
        let mut table = CacheTable::new(2, 2, KeyForm::Rotated);
        table.append(&[0, 1, 2]);
        let same = evict(&table, false, |_, _, n| vec![0, n as Row - 1]).unwrap();
        assert!(same.plan.is_uniform());
        let apart = evict(&table, false, |l, h, _| vec![(l + h) as Row]).unwrap();
        assert_eq!((apart.plan.is_uniform(), apart.plan.total_rows()), (false, 4));
        apart.plan.validate(&table).unwrap();
    }
}
