//! The law of windows: what they compute and read is there, in order, and enough to go on. No model
//! takes part; a canvas is filled by chance.

use std::ops::Range;

use tessera_core::dist::Key;
use tessera_core::entry::{Method, MethodEntry, Settings};
use tessera_core::{Canvas, Fill, Filling, Position, Window, WindowPlan, WindowView};

use crate::laws::Finding;

/// Draws below a bound.
struct Dice {
    key: Key,
    draws: u32,
}

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.draws += 1;
        ((self.key.uniform(self.draws) * n as f64) as usize).min(n - 1)
    }
}

const MASK: u32 = 9;
const PROMPT: usize = 5;
const LENGTH: usize = 23;

/// A canvas that is filled under a window's plans.
struct Course {
    canvas: Canvas,
    filling: Filling,
    block: usize,
    rows: usize,
    stale: Vec<Position>,
    /// The region of the last pass, and the rows that were said to be computed ahead in it.
    ahead: Option<(Range<usize>, Vec<Position>)>,
}

/// Every plan of a window can be carried out, shows an open mask, and computes what was written as far as
/// the policy says so; what it says of passes ahead is what it does.
///
/// # Errors
/// What was found wrong.
pub fn plans(entry: &'static MethodEntry) -> Finding {
    let neutral = entry.neutral.map(|settings| settings());
    for settings in std::iter::once((entry.defaults)()).chain(neutral) {
        for case in 0..24 {
            let (shift, block) = (case % 2 == 1, [LENGTH, 4, 1][case / 2 % 3]);
            let Some(first) = course(entry, &settings, shift, block, case as u64)? else {
                return Ok(());
            };
            if course(entry, &settings, shift, block, case as u64)? != Some(first) {
                return Err("the plans of a fresh instance differ".to_owned());
            }
        }
    }
    Ok(())
}

/// The plans on one canvas; `None` if the entry is no window.
fn course(
    entry: &'static MethodEntry,
    settings: &Settings,
    shift: bool,
    block: usize,
    seed: u64,
) -> Result<Option<Vec<WindowPlan>>, String> {
    let Method::Window(mut window) = (entry.build)(settings).map_err(|e| e.to_string())? else {
        return Ok(None);
    };
    let mut dice = Dice { key: Key::new(seed, 0, 0), draws: 0 };
    let mut course = Course {
        canvas: Canvas::new(&[1; PROMPT], LENGTH, MASK),
        filling: Filling { mask: MASK, shift, any_subset: false },
        block,
        rows: 0,
        stale: Vec::new(),
        ahead: None,
    };
    let mut plans = Vec::new();
    while course.canvas.masks() > 0 {
        let (plan, shown) = course.step(plans.len() as u32, &mut *window)?;
        plans.push(plan);
        let mut open = shown;
        open.truncate(window.leftmost().unwrap_or(usize::MAX));
        let mut fills = Vec::new();
        for _ in 0..=dice.below(2) {
            if !open.is_empty() {
                let position = open.remove(dice.below(open.len()));
                fills.push(Fill { position, token: 2, probability: 1.0, score: 1.0 });
            }
        }
        for fill in &fills {
            course.canvas.fill(fill.position, 2, plans.len() as u32).map_err(|e| e.to_string())?;
            course.stale.push(fill.position);
        }
        course.stale.sort_unstable();
        window.committed(&course.canvas, &fills);
    }
    Ok(Some(plans))
}

impl Course {
    /// The next plan, and the open masks that it shows.
    fn step(
        &mut self,
        step: u32,
        window: &mut dyn Window,
    ) -> Result<(WindowPlan, Vec<Position>), String> {
        let (len, rows) = (self.canvas.len(), self.rows);
        let first = self.canvas.masked().next().unwrap_or(0) as usize;
        let start = PROMPT + (first - PROMPT) / self.block * self.block;
        let region = start..(start + self.block).min(len);
        let view = WindowView {
            canvas: &self.canvas,
            step,
            region: &region,
            rows,
            stale: &self.stale,
            filling: self.filling,
        };
        let plan = window.plan(&view).map_err(|e| e.to_string())?;
        let compute: Vec<Position> = match &plan {
            WindowPlan::Whole { len: asked } if *asked > PROMPT && *asked <= len => {
                (0..*asked as Position).collect()
            }
            WindowPlan::Whole { len: asked } => return Err(format!("{asked} of {len} positions")),
            WindowPlan::Part { compute, keys } => {
                lawful("computed", compute, rows)?;
                keys.iter().try_for_each(|keys| lawful("read", keys, rows))?;
                self.rewritten(window, compute)?;
                self.kept(&region, compute)?;
                compute.clone()
            }
        };
        let has = |p: Position| compute.binary_search(&p).is_ok();
        let shows =
            |&p: &Position| region.contains(&(p as usize)) && has(p) && has(self.filling.row_of(p));
        let shown: Vec<Position> = self.canvas.masked().filter(shows).collect();
        if shown.is_empty() {
            return Err(format!("no open mask of {region:?} is shown"));
        }
        if matches!(plan, WindowPlan::Whole { .. }) {
            self.rows = compute.len();
        }
        self.stale.retain(|&p| !has(p));
        let (canvas, filling) = (&self.canvas, self.filling);
        let (rows, stale, region) = (self.rows, &self.stale[..], &region);
        let view = WindowView { canvas, step, region, rows, stale, filling };
        self.ahead = window.ahead(&view).map(|rows| (region.clone(), rows));
        if let Some((_, ahead)) = &self.ahead {
            lawful("looked at", ahead, self.rows)?;
        }
        Ok((plan, shown))
    }

    fn rewritten(&self, window: &dyn Window, compute: &[Position]) -> Finding {
        let left = |p: &&Position| (**p as usize) < self.rows && !compute.contains(p);
        match self.stale.iter().find(left).filter(|_| window.rewrites()) {
            Some(p) => Err(format!("the row of the token written at {p} is left stale")),
            None => Ok(()),
        }
    }

    /// What was said of passes ahead is what comes, as long as the region is the same.
    fn kept(&self, region: &Range<usize>, compute: &[Position]) -> Finding {
        let Some((then, ahead)) = &self.ahead else { return Ok(()) };
        let mut told = [ahead.as_slice(), &self.stale].concat();
        told.sort_unstable();
        told.dedup();
        match then != region || told == compute {
            true => Ok(()),
            false => Err(format!("{told:?} were to be computed ahead, {compute:?} are")),
        }
    }
}

fn lawful(word: &str, list: &[Position], rows: usize) -> Finding {
    let sorted = list.windows(2).all(|w| w[0] < w[1]);
    match sorted && list.last().is_none_or(|&last| (last as usize) < rows) {
        true => Ok(()),
        false => Err(format!("the rows {word} must be sorted, unique and below {rows}: {list:?}")),
    }
}
