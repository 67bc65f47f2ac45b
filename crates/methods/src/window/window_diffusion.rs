//! Title: Window-Diffusion: Accelerating Diffusion Language Model Inference with Windowed Token Pruning and
//!   Caching
//! Authors: Zuo et al.
//! Year: 2026
//! Id: arXiv:2601.20332
//! Implemented: phases of `period` steps. The first step of a phase refreshes the cache; the others compute
//!   the leftmost `active` masks and what has been written in the phase, and read what lies in the outer
//!   window of `window` masks. Two forms:
//!   `llada`: a refresh computes the whole canvas and may fill any of it; then all that is written and the
//!   leftmost `window` masks are read, wherever they lie.
//!   `dream`: a refresh computes the shortest prefix that has room for all that is written and for
//!   `window - 1` masks, and fills the leftmost mask only; then the rows from there to the last of the
//!   `active` masks are computed, without gaps.
//! Deviation: where a phase has used up the masks of its window the next one begins early; the published
//!   code would compute masks that are not cached. In the form `llada` a mask's predicting row is
//!   computed with it where that is the row before. A token written outside the window is computed once.
//! Left out: the cut at the first end token with its refresh at every step; guidance without a classifier.
//! Tag: Window-Diffusion

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, Settings, defaults_of,
    read_as, resolve_as, schema_of,
};
use tessera_core::{Canvas, Fill, Position, Result, Window, WindowPlan, WindowView};

use crate::retention::within;
use crate::window::{PLACES, REFRESHING, joined};

/// For which model the method was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Whole refreshes, gaps between computed rows.
    #[default]
    Llada,
    /// Refreshes of a prefix, which fill the leftmost mask; a slice of computed rows.
    Dream,
}

/// Settings of Window-Diffusion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WindowDiffusion {
    /// The form: `llada` or `dream`.
    pub form: Form,
    /// Masks of the outer window. `active` to 1048576; the paper: 64 for LLaDA, 128 for Dream.
    pub window: usize,
    /// Masks computed in every step. 1 to 1048576; the paper: 16.
    pub active: usize,
    /// Steps of a phase, the refresh included. 1 (every step refreshes) to 1048576; the paper: 32.
    pub period: usize,
    /// In the form `dream`: whether the slice grows so that `active` masks stay in it. The paper: yes.
    pub slide: bool,
}

impl Default for WindowDiffusion {
    fn default() -> Self {
        Self { form: Form::Llada, window: 64, active: 16, period: 32, slide: true }
    }
}

impl MethodConfig for WindowDiffusion {
    fn validate(&self) -> std::result::Result<(), String> {
        within("active", self.active, 1..=1 << 20)?;
        within("window", self.window, self.active.max(2)..=1 << 20)?;
        within("period", self.period, 1..=1 << 20)
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "window-diffusion",
    aliases: &[],
    name: "Window-Diffusion",
    paper: Some(Paper {
        title: "Window-Diffusion: Accelerating Diffusion Language Model Inference with Windowed Token \
                Pruning and Caching",
        authors: "Zuo et al.",
        year: 2026,
        id: "arXiv:2601.20332",
    }),
    summary: "Computes a few masks at the front and what was just written, and hides masks far away.",
    kind: Kind::Policy,
    places: PLACES,
    exactness: Exactness::Lossy {
        what: "far masks are not seen, and cached rows know less of what has been written",
    },
    needs: Needs { unlooked: true, ..REFRESHING },
    claims: &[
        Claim {
            setting: "LLaDA and Dream, GPU, stopping at the first end token included",
            metric: "time",
            value: 99.0,
            unit: "x",
            place: "abstract (up to)",
        },
        Claim {
            setting: "the same, of windows and caches alone",
            metric: "time",
            value: 6.6,
            unit: "x",
            place: "a reading of the paper by others (about)",
        },
    ],
    schema: schema_of::<WindowDiffusion>,
    defaults: defaults_of::<WindowDiffusion>,
    neutral: Some(|| Settings::from_iter([("period".to_owned(), json!(1))])),
    read: resolve_as::<WindowDiffusion>,
    build: |settings| {
        let config = read_as::<WindowDiffusion>("window-diffusion", settings)?;
        Ok(Method::Window(Box::new(Phases::new(config))))
    },
};

/// The policy.
#[derive(Debug, Clone)]
pub struct Phases {
    config: WindowDiffusion,
    /// Steps of the phase so far.
    steps: usize,
    /// What was written in the phase after its refresh; under `dream` with the refresh's own.
    fresh: BTreeSet<Position>,
    /// Under `llada`, the rows that are read in this phase.
    keys: Option<Vec<Position>>,
    /// Under `dream`, where the slice begins, and where it ends unless it slides.
    slice: Option<(Position, Position)>,
}

impl Phases {
    fn new(config: WindowDiffusion) -> Self {
        Self { config, steps: 0, fresh: BTreeSet::new(), keys: None, slice: None }
    }

    fn refreshes(&self) -> bool {
        self.steps == 1
    }

    /// The rows of a step that is no refresh; `None` if none of the open masks is among them.
    fn part(&mut self, view: &WindowView<'_>) -> Option<WindowPlan> {
        let (active, rows) = (self.config.active, view.rows as Position);
        let masks = || view.canvas.masked().take_while(|&p| p < rows);
        let row_of = |p: Position| view.filling.row_of(p);
        let stale = view.stale.iter().copied().filter(|&p| p < rows);
        let (compute, keys) = match self.config.form {
            Form::Llada => {
                let keys = self.keys.get_or_insert_with(|| {
                    let written = (0..rows).filter(|&p| !view.canvas.is_masked(p));
                    joined(written.chain(masks().take(self.config.window)))
                });
                let inside = masks().filter(|p| keys.binary_search(p).is_ok());
                let pairs = inside.take(active).flat_map(|p| [row_of(p), p]);
                let fresh = self.fresh.iter().copied();
                (joined(pairs.chain(fresh).chain(stale)), Some(keys.clone()))
            }
            Form::Dream => {
                let last = masks().nth(active - 1).map_or(rows, |p| p + 1);
                let first = view.stale.first().copied().unwrap_or(0);
                let (start, end) = *self.slice.get_or_insert((first, last));
                let end = if self.config.slide { last } else { end };
                (joined((start..end).chain(stale)), None)
            }
        };
        let computed = |p: Position| compute.binary_search(&p).is_ok();
        let open = |p: Position| view.region.contains(&(p as usize));
        let some = masks().any(|p| open(p) && computed(p) && computed(row_of(p)));
        some.then_some(WindowPlan::Part { compute, keys })
    }

    fn refresh(&mut self, view: &WindowView<'_>) -> WindowPlan {
        self.steps = 1;
        self.fresh.clear();
        (self.keys, self.slice) = (None, None);
        let all = view.canvas.len();
        let len = match self.config.form {
            Form::Llada => all,
            Form::Dream => {
                let written = all - view.canvas.masks();
                // The region's first mask must be seen, wherever it lies.
                let open = |p: &Position| view.region.contains(&(*p as usize));
                let first = view.canvas.masked().find(open).map_or(0, |p| p as usize + 1);
                (written + self.config.window - 1).max(first).min(all)
            }
        };
        WindowPlan::Whole { len }
    }
}

impl Window for Phases {
    fn plan(&mut self, view: &WindowView<'_>) -> Result<WindowPlan> {
        if view.rows > 0
            && self.steps < self.config.period
            && let Some(part) = self.part(view)
        {
            self.steps += 1;
            return Ok(part);
        }
        Ok(self.refresh(view))
    }

    fn committed(&mut self, _canvas: &Canvas, fills: &[Fill]) {
        // What a refresh has filled is computed once more, as any stale row, and is then settled.
        if !self.refreshes() {
            self.fresh.extend(fills.iter().map(|f| f.position));
        }
    }

    fn leftmost(&self) -> Option<usize> {
        (self.config.form == Form::Dream && self.refreshes()).then_some(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::Play;

    fn policy(form: Form, slide: bool) -> Phases {
        let config = WindowDiffusion { form, window: 4, active: 2, period: 4, slide };
        config.validate().unwrap();
        Phases::new(config)
    }

    fn part(plan: WindowPlan) -> (Vec<Position>, Option<Vec<Position>>) {
        match plan {
            WindowPlan::Part { compute, keys } => (compute, keys),
            other => panic!("{other:?}"),
        }
    }

    /// Prompt 0 1, masks 2..12.
    #[test]
    fn masks_are_counted_not_positions() {
        let mut play = Play::new(2, 10);
        let window = &mut policy(Form::Llada, true);
        assert_eq!(play.plan(window), WindowPlan::Whole { len: 12 });
        // A far mask is filled by the refresh and stays in sight.
        play.write(window, &[9]);
        let (compute, keys) = part(play.plan(window));
        assert_eq!(compute, [2, 3, 9]);
        assert_eq!(keys.unwrap(), [0, 1, 2, 3, 4, 5, 9]);
        // What the refresh wrote is settled; what is written later is computed until the phase ends.
        play.write(window, &[3]);
        let (compute, keys) = part(play.plan(window));
        assert_eq!((compute, keys.unwrap().len()), (vec![2, 3, 4], 7));
        play.write(window, &[2]);
        let (compute, _) = part(play.plan(window));
        assert_eq!(compute, [2, 3, 4, 5]);
        play.write(window, &[4]);
        assert_eq!(play.plan(window), WindowPlan::Whole { len: 12 });
    }

    #[test]
    fn a_phase_ends_early_when_its_window_is_used_up() {
        let mut play = Play::new(2, 10);
        let window = &mut policy(Form::Llada, true);
        play.plan(window);
        play.write(window, &[2]);
        play.plan(window);
        play.write(window, &[3, 4, 5, 6]);
        assert_eq!(play.plan(window), WindowPlan::Whole { len: 12 });
    }

    #[test]
    fn a_slice_begins_where_the_refresh_has_written() {
        for (slide, ends) in [(true, [5, 6, 6]), (false, [5, 5, 5])] {
            let mut play = Play::new(2, 10);
            play.shift = true;
            let window = &mut policy(Form::Dream, slide);
            assert_eq!(play.plan(window), WindowPlan::Whole { len: 5 });
            assert_eq!(window.leftmost(), Some(1));
            play.write(window, &[2]);
            assert_eq!(part(play.plan(window)), ((2..ends[0]).collect(), None));
            assert_eq!(window.leftmost(), None);
            play.write(window, &[4]);
            let second = play.plan(window);
            // Row 4 is the last that is cached; mask 3 is the only one left.
            assert_eq!(part(second), ((2..5).collect(), None));
        }
    }

    #[test]
    fn in_the_form_llada_a_shifted_mask_takes_its_row_along() {
        let mut play = Play::new(2, 10);
        play.shift = true;
        let window = &mut policy(Form::Llada, true);
        play.plan(window);
        play.write(window, &[2]);
        let (compute, _) = part(play.plan(window));
        assert_eq!(compute, [2, 3, 4]);
    }

    #[test]
    fn a_period_of_one_refreshes_every_step() {
        let mut play = Play::new(2, 3);
        let config = WindowDiffusion { period: 1, ..WindowDiffusion::default() };
        let window = &mut Phases::new(config);
        for position in 2..5 {
            assert_eq!(play.plan(window), WindowPlan::Whole { len: 5 });
            play.write(window, &[position]);
        }
    }
}
