//! The cost curve: how much longer a pass of several rows takes than one of a single row.

use tessera_core::{Backbone, Result};
use tessera_runtime::CostCurve;

use crate::driver::Driver;
use crate::statistics::median;

/// Row counts that are measured; a curve is linear in between.
pub const ROWS: [usize; 13] = [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48];

/// Measures the curve of `backbone` after `context` tokens, logits at every row, `repeats` times
/// each in turns. With `draft`, the costs of its pass of one row and of a row in a long pass too. Returns the milliseconds of a
/// pass of one row beside it.
///
/// # Errors
/// Whatever a pass reports; a context that the model does not have.
pub fn measure(
    backbone: &dyn Backbone,
    draft: Option<&dyn Backbone>,
    context: usize,
    repeats: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(CostCurve, f64)> {
    let longest = context + ROWS[ROWS.len() - 1];
    let mut target = Driver::new(backbone, longest)?;
    target.set_tokens(target.any_tokens(longest))?;
    let mut helper = draft.map(|d| Driver::new(d, longest)).transpose()?;
    if let Some(helper) = &mut helper {
        helper.set_tokens(helper.any_tokens(longest))?;
    }
    let mut times = vec![Vec::new(); ROWS.len()];
    let (mut draft_times, mut reading_times) = (Vec::new(), Vec::new());
    // The first turn warms up.
    for turn in 0..=repeats {
        progress(turn, repeats + 1);
        for (&rows, times) in ROWS.iter().zip(&mut times) {
            // A pass after a longer one takes longer than one among its like, which is what a text
            // is made of: the longer one's results have pushed everything else out of the caches.
            target.rows(context, rows)?;
            let time = target.rows(context, rows)?.as_secs_f64() * 1e3;
            times.extend((turn > 0).then_some(time));
        }
        if let Some(helper) = &mut helper {
            let time = helper.rows(context, 1)?.as_secs_f64() * 1e3;
            draft_times.extend((turn > 0).then_some(time));
            let time = helper.prefill(context)?.as_secs_f64() * 1e3 / context.max(1) as f64;
            reading_times.extend((turn > 0).then_some(time));
        }
    }
    let one = median(&times[0]);
    let mut points: Vec<(usize, f64)> =
        ROWS.iter().zip(&times).map(|(&rows, t)| (rows, median(t) / one)).collect();
    // More rows never take less time: what says so is noise.
    for i in 1..points.len() {
        points[i].1 = points[i].1.max(points[i - 1].1);
    }
    let share = |times: &[f64]| if times.is_empty() { 0.0 } else { median(times) / one };
    let (draft, draft_row) = (share(&draft_times), share(&reading_times));
    Ok((CostCurve { points, draft, draft_row }, one))
}

#[cfg(test)]
mod tests {
    use tessera_testkit::Scripted;

    use super::*;

    #[test]
    fn a_measured_curve_is_one() {
        let toy = Scripted::hashed(100, 512, 1, 1.0);
        let (curve, one) = measure(&toy, Some(&toy), 64, 2, &mut |_, _| {}).unwrap();
        curve.validate().unwrap();
        assert_eq!(curve.points[0], (1, 1.0));
        assert!(one > 0.0 && curve.draft > 0.0 && curve.draft_row > 0.0);
        assert!(measure(&toy, None, 500, 2, &mut |_, _| {}).is_err());
    }

    #[test]
    fn every_timed_pass_follows_one_of_as_many_rows() {
        let toy = Scripted::hashed(100, 512, 1, 1.0);
        measure(&toy, None, 64, 2, &mut |_, _| {}).unwrap();
        // The context once; then a warming turn and two timed ones, of two passes a point.
        assert_eq!(toy.passes(), 1 + 3 * 2 * ROWS.len());
    }
}
