//! How much to guess: the cost of a pass by its rows, set against how often guesses came true.
//!
//! A guess pays when the tokens it is expected to add outweigh the rows it adds to the pass. Both
//! sides are counts: the cost curve was measured beforehand and stored, acceptance is counted while
//! the text is made. No clock takes part, so the same request always makes the same passes.

use serde::{Deserialize, Serialize};
use tessera_core::{Draft, DraftTree, Error, Result, TokenId};

/// The time of a pass by its number of rows, in units of a pass of one row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostCurve {
    /// (rows, cost), rows ascending from 1; between two entries the cost is linear, beyond the last
    /// it goes on with the last slope.
    pub points: Vec<(usize, f64)>,
    /// Cost of one pass of the draft model (or of the part of the target that drafts).
    #[serde(default)]
    pub draft: f64,
    /// Cost of a row in a long pass of the draft model: what it takes to read a token of the prompt.
    #[serde(default)]
    pub draft_row: f64,
}

impl CostCurve {
    /// Checks that it is a curve.
    ///
    /// # Errors
    /// [`Error::Setting`] naming what is wrong.
    pub fn validate(&self) -> Result<()> {
        let bad = |range| Err(Error::setting("cost curve", format!("{:?}", self.points), range));
        if self.points.first().is_none_or(|&(rows, _)| rows != 1) {
            return bad("points that begin with one row");
        }
        if self.points.windows(2).any(|w| w[0].0 >= w[1].0) {
            return bad("points with ascending rows");
        }
        let good = |c: f64| c.is_finite() && c > 0.0;
        let none_or_good = |c: f64| c == 0.0 || good(c);
        if !self.points.iter().all(|&(_, c)| good(c))
            || !none_or_good(self.draft)
            || !none_or_good(self.draft_row)
        {
            return bad("positive finite costs");
        }
        Ok(())
    }

    /// Cost of a pass of `rows` rows.
    pub fn cost(&self, rows: usize) -> f64 {
        let p = &self.points;
        let at = p.partition_point(|&(r, _)| r < rows);
        match (at, p.len()) {
            (_, 0) => 1.0,
            (0, _) => p[0].1,
            (_, 1) => p[0].1,
            (at, len) => {
                let (a, b) = if at < len { (p[at - 1], p[at]) } else { (p[len - 2], p[len - 1]) };
                a.1 + (b.1 - a.1) * (rows - a.0) as f64 / (b.0 - a.0) as f64
            }
        }
    }
}

/// Weight that a count keeps when another step is counted: about the last ten steps matter.
const KEEP: f64 = 0.9;

/// What is believed of a guess before it was seen: the first comes true this often, each further
/// one so much less. As if seen in `PRIOR_WEIGHT` steps.
const PRIOR: f64 = 0.5;
const PRIOR_DECAY: f64 = 0.8;
const PRIOR_WEIGHT: f64 = 2.0;

/// Plain steps between two probes of guesses that do not pay, at first and at most.
const FIRST_WAIT: usize = 8;
const LONGEST_WAIT: usize = 256;

/// More tokens than this are worth asking whether a draft model should read them at all.
const UNREAD: usize = 16;

/// What a guessed text saves of a plain step, before anything is known of it. A draft model reads the
/// prompt once the plain steps made so far would have saved as much: a text that ends early never
/// pays for the reading, one that goes on loses at most this share of what was made before.
const SAVING: f64 = 0.25;

/// How guesses of one grade fared.
#[derive(Debug, Clone, Default)]
struct Grade {
    /// By node: (weight of the steps in which it was computed, of those in which it came true).
    nodes: Vec<(f64, f64)>,
    /// Steps to wait before the next probe, and how long the wait is at present.
    left: usize,
    wait: usize,
}

impl Grade {
    fn chance(&self, node: usize) -> f64 {
        let (seen, hits) = self.nodes.get(node).copied().unwrap_or_default();
        let prior = PRIOR * PRIOR_DECAY.powi(node as i32);
        (hits + PRIOR_WEIGHT * prior) / (seen + PRIOR_WEIGHT)
    }
}

/// Decides how many guesses a step computes.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    curve: Option<CostCurve>,
    grades: Vec<Grade>,
    /// All grades together, for drafters that must be told their budget before they guess.
    all: Grade,
    /// Whether this step probes guesses that do not seem to pay.
    probing: bool,
    /// Plain steps made because the draft model has not read the prompt.
    waited: usize,
    /// The budget that [`Pace::budget`] gave, and whether the drafter's passes were weighed in it.
    given: usize,
    weighed: bool,
    /// Rows of others in the next pass.
    beside: usize,
    /// The last tree, whole: parent and token of each node.
    whole: Vec<(Option<u32>, TokenId)>,
    grade: usize,
}

impl Pace {
    /// With `curve`, guesses that do not pay are left out; without one, all are computed.
    pub fn new(curve: Option<CostCurve>) -> Self {
        let grades = vec![Grade::default(); DraftTree::GRADES];
        Self { curve, grades, ..Self::default() }
    }

    /// How many rows of others the next pass has: each of them makes its own progress, whatever is
    /// guessed here, but a row more costs more beside them.
    pub fn beside(&mut self, rows: usize) {
        self.beside = rows;
    }

    /// Most nodes for the next tree after `tokens`, of which `remaining` more may follow; 0: do not ask
    /// the drafter.
    pub fn budget(&mut self, drafter: &dyn Draft, tokens: &[TokenId], remaining: usize) -> usize {
        let most = drafter.budget();
        self.probing = false;
        (self.given, self.weighed) = (most, false);
        let Some(curve) = &self.curve else { return most };
        if drafter.passes(most) == 0 {
            // Looking things up costs nothing: decide when the guesses are there.
            return most;
        }
        let unread = drafter.unread(tokens);
        let reading = unread as f64 * curve.draft_row;
        if unread > UNREAD && reading > SAVING * self.waited.min(remaining) as f64 {
            self.waited += 1;
            return 0;
        }
        self.weighed = true;
        let unit = drafter.pass_cost().unwrap_or(curve.draft);
        let gain = |n| gain(&self.all, curve, (n, self.beside), unit * drafter.passes(n) as f64);
        let best = best_of(most, gain);
        if best > 0 {
            self.all.wait = 0;
            return best;
        }
        if wait(&mut self.all) {
            return 0;
        }
        self.probing = true;
        most.min(4)
    }

    /// How many nodes of `tree` to compute.
    pub fn cut(&mut self, tree: &DraftTree) -> usize {
        let Some(curve) = &self.curve else { return tree.len() };
        self.whole.clear();
        self.whole.extend((0..tree.len() as u32).map(|n| (tree.parent(n), tree.token(n))));
        self.grade = tree.grade;
        if self.probing {
            return tree.len();
        }
        let grade = &self.grades[tree.grade];
        let gain = |n| gain(grade, curve, (n, self.beside), 0.0);
        if (0..tree.len() as u32).any(|n| tree.drawn_from(n).is_some()) {
            // Where chance took part, what was drawn may have decided how many nodes there are. A
            // cut that depends on their number would then leave improbable guesses out more often
            // than others, and a test by ratio would no longer give the target's distribution.
            let best = if self.weighed { self.given } else { best_of(self.given, gain) };
            return best.min(tree.len());
        }
        best_of(tree.len(), gain)
    }

    /// Counts what became of the last tree, of which the first `computed` nodes were in the pass:
    /// `accepted` of them became text, followed by `next`.
    ///
    /// What was left out is counted as far as the text tells: a guess at the place of `next` was
    /// right or wrong, one beside the text was wrong. So guesses are judged in plain steps too.
    pub fn observe(&mut self, computed: usize, accepted: &[u32], next: TokenId) {
        if self.curve.is_none() {
            return;
        }
        let mut hits = vec![None; self.whole.len()];
        for (n, &(parent, token)) in self.whole.iter().enumerate() {
            hits[n] = if n < computed {
                Some(accepted.contains(&(n as u32)))
            } else if parent == accepted.last().copied() {
                Some(token == next)
            } else {
                // Below a guess that is not known to be wrong nothing is known.
                match parent.map(|p| (p, hits[p as usize])) {
                    Some((p, Some(true))) if !accepted.contains(&p) => None,
                    Some((_, None)) => None,
                    _ => Some(false),
                }
            };
        }
        for grade in [&mut self.all, &mut self.grades[self.grade]] {
            if grade.nodes.len() < hits.len() {
                grade.nodes.resize(hits.len(), (0.0, 0.0));
            }
            for ((seen, right), hit) in grade.nodes.iter_mut().zip(&hits) {
                if let Some(hit) = hit {
                    *seen = *seen * KEEP + 1.0;
                    *right = *right * KEEP + f64::from(u8::from(*hit));
                }
            }
        }
        self.whole.clear();
    }
}

/// Tokens a step is expected to commit, over the cost of its pass and of `drafting`; the pass has so
/// many nodes of this text and so many rows beside them.
fn gain(grade: &Grade, curve: &CostCurve, (nodes, beside): (usize, usize), drafting: f64) -> f64 {
    let expected: f64 = 1.0 + (0..nodes).map(|n| grade.chance(n)).sum::<f64>();
    (expected + beside as f64) / (curve.cost(beside + nodes + 1) + drafting)
}

/// The number of nodes up to `most` with the best gain; 0 unless it beats the plain step.
fn best_of(most: usize, gain: impl Fn(usize) -> f64) -> usize {
    let (mut best, mut top) = (0, gain(0));
    for n in 1..=most {
        let value = gain(n);
        if value > top {
            (best, top) = (n, value);
        }
    }
    best
}

/// Whether to wait with the next probe; waits double.
fn wait(grade: &mut Grade) -> bool {
    if grade.wait == 0 {
        grade.wait = FIRST_WAIT;
        grade.left = FIRST_WAIT;
    }
    if grade.left > 0 {
        grade.left -= 1;
        return true;
    }
    grade.wait = (grade.wait * 2).min(LONGEST_WAIT);
    grade.left = grade.wait;
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_core::DraftContext;

    #[derive(Debug)]
    struct Free(usize);

    impl Draft for Free {
        fn budget(&self) -> usize {
            self.0
        }
        fn draft(&mut self, _: &mut DraftContext<'_>, _: &mut DraftTree) -> Result<()> {
            Ok(())
        }
    }

    fn curve() -> CostCurve {
        CostCurve {
            points: vec![(1, 1.0), (2, 1.1), (8, 2.0), (16, 4.0)],
            draft: 0.0,
            draft_row: 0.0,
        }
    }

    fn chain(n: u32) -> DraftTree {
        let mut tree = DraftTree::new();
        let mut at = None;
        for t in 0..n {
            at = Some(tree.add(at, t));
        }
        tree
    }

    #[test]
    fn the_curve_is_linear_between_its_points_and_beyond() {
        let c = curve();
        for (rows, want) in [(1, 1.0), (2, 1.1), (5, 1.55), (8, 2.0), (16, 4.0), (20, 5.0)] {
            assert!((c.cost(rows) - want).abs() < 1e-12, "{rows}: {}", c.cost(rows));
        }
        c.validate().unwrap();
        for points in [vec![], vec![(2, 1.0)], vec![(1, 1.0), (1, 2.0)], vec![(1, f64::NAN)]] {
            assert!(CostCurve { points, draft: 0.0, draft_row: 0.0 }.validate().is_err());
        }
    }

    #[test]
    fn without_a_curve_everything_is_computed() {
        let mut pace = Pace::new(None);
        assert_eq!(pace.budget(&Free(7), &[], 9), 7);
        assert_eq!(pace.cut(&chain(5)), 5);
    }

    #[test]
    fn guesses_that_come_true_are_computed_and_others_are_not() {
        let mut pace = Pace::new(Some(curve()));
        let tree = chain(7);
        for _ in 0..50 {
            pace.cut(&tree);
            pace.observe(7, &[0, 1, 2, 3, 4, 5, 6], 99);
        }
        assert_eq!(pace.cut(&tree), 7);
        let mut computed = 0;
        for _ in 0..400 {
            let cut = pace.cut(&tree);
            computed += cut;
            pace.observe(cut, &[], 99);
        }
        assert!(computed < 150, "{computed} guesses computed that never came true");
        // One grade's failure says nothing of another.
        let mut other = chain(7);
        other.grade = 3;
        assert!(pace.cut(&other) > 0);
    }

    #[test]
    fn plain_steps_tell_whether_a_guess_would_have_been_right() {
        let mut pace = Pace::new(Some(curve()));
        let tree = chain(7);
        for _ in 0..100 {
            let cut = pace.cut(&tree);
            pace.observe(cut, &[], 99);
        }
        assert_eq!(pace.cut(&tree), 0);
        let mut steps = 0;
        while pace.cut(&tree) == 0 {
            // The chain begins with token 0.
            pace.observe(0, &[], 0);
            steps += 1;
            assert!(steps < 50);
        }
    }

    #[test]
    fn the_cut_of_a_drawn_tree_does_not_depend_on_how_long_it_became() {
        let drawn = |n: u32| {
            let mut tree = DraftTree::new();
            let law = tree.law(vec![(0, 0.5), (1, 0.5)]);
            (0..n).fold(None, |at, _| Some(tree.add_drawn(at, 0, law)));
            tree
        };
        // One guess costs as much as two: it does not pay alone, two or three do.
        let curve =
            CostCurve { points: vec![(1, 1.0), (2, 1.6), (4, 1.7)], draft: 0.0, draft_row: 0.0 };
        let mut pace = Pace::new(Some(curve));
        assert_eq!(pace.budget(&Free(3), &[], 9), 3);
        assert_eq!((pace.cut(&chain(1)), pace.cut(&chain(3))), (0, 3));
        assert_eq!((pace.cut(&drawn(1)), pace.cut(&drawn(3))), (1, 3));
    }

    /// Runs a model that has read nothing.
    #[derive(Debug)]
    struct Reader;

    impl Draft for Reader {
        fn budget(&self) -> usize {
            3
        }
        fn passes(&self, nodes: usize) -> usize {
            nodes
        }
        fn unread(&self, tokens: &[TokenId]) -> usize {
            tokens.len()
        }
        fn draft(&mut self, _: &mut DraftContext<'_>, _: &mut DraftTree) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_prompt_is_read_once_as_much_was_made_as_reading_it_costs() {
        // 100 tokens of 0.05: five steps' worth, saved by twenty steps.
        let curve = CostCurve { draft: 0.1, draft_row: 0.05, ..curve() };
        let steps = |remaining: usize| {
            let mut pace = Pace::new(Some(curve.clone()));
            (0..200).take_while(|_| pace.budget(&Reader, &[7; 100], remaining) == 0).count()
        };
        assert_eq!((steps(1000), steps(20), steps(19)), (20, 20, 200));
        // A short prompt, or a curve without that cost, is no reason to wait.
        let mut pace = Pace::new(Some(curve.clone()));
        assert!(pace.budget(&Reader, &[7; 16], 1000) > 0);
        let mut pace = Pace::new(Some(CostCurve { draft_row: 0.0, ..curve.clone() }));
        assert!(pace.budget(&Reader, &[7; 100], 1000) > 0);
    }

    #[test]
    fn probes_grow_rarer_but_never_end() {
        let mut grade = Grade::default();
        let probes: Vec<usize> = (0..3000).filter(|_| !wait(&mut grade)).collect();
        assert!(probes.windows(3).all(|w| w[2] - w[1] >= w[1] - w[0]), "{probes:?}");
        assert!(probes.len() > 8 && probes.windows(2).all(|w| w[1] - w[0] <= LONGEST_WAIT + 1));
    }
}
