//! Title: SkipDecode: Autoregressive Skip Decoding with Batching and Caching for Efficient LLM
//!   Inference
//! Authors: Del Corro et al.
//! Year: 2023
//! Id: arXiv:2307.02628
//! Implemented: the schedule. A generated token runs the lowest `warmup` layers and the highest
//!   ones; how many, `E`, falls linearly from `e_max` to `e_min` over `length` generated tokens. The
//!   layers of a step contain those of every later one, so no key is ever missing; all texts of a
//!   pass run the same layers. The prompt runs all of them.
//! Left out: the paper's fine-tuning with the schedule, without which the text falls apart early.
//!   The schedule counts generated tokens instead of absolute positions, so that texts of prompts of
//!   different length share their steps. `e_max` and `e_min` are shares of the model's layers where
//!   the paper has numbers of layers.
//! Tag: SD

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, Place, Role, Settings,
    Site, defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{Capabilities, LayerSchedule, Result};

/// Settings of the schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SkipDecode {
    /// Share of the layers that the first generated token runs, `e_min` to 1.
    pub e_max: f64,
    /// Share of the layers that the last token of the schedule runs, and every one after it. Above
    /// 0, at most `e_max`; 1 is the plain run. The paper's 2 times fewer layers: `e_max` + `e_min` = 1.
    pub e_min: f64,
    /// Lowest layers that every token runs. 0 to 64; the paper: 1.
    pub warmup: usize,
    /// Generated tokens over which the number of layers falls. 1 to 1048576; the paper takes the
    /// length of the task's answers.
    pub length: usize,
}

impl Default for SkipDecode {
    fn default() -> Self {
        Self { e_max: 0.7, e_min: 0.3, warmup: 1, length: 128 }
    }
}

impl MethodConfig for SkipDecode {
    fn validate(&self) -> std::result::Result<(), String> {
        let Self { e_max, e_min, warmup, length } = *self;
        if !(e_min > 0.0 && e_min <= 1.0) {
            return Err(format!("e_min = {e_min}: must be above 0 and at most 1"));
        }
        if !(e_max >= e_min && e_max <= 1.0) {
            return Err(format!("e_max = {e_max}: must be e_min ({e_min}) to 1"));
        }
        if warmup > 64 {
            return Err(format!("warmup = {warmup}: must be 0 to 64"));
        }
        if !(1..=1 << 20).contains(&length) {
            return Err(format!("length = {length}: must be 1 to {}", 1 << 20));
        }
        Ok(())
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "skipdecode",
    aliases: &["skip-decode"],
    name: "SkipDecode",
    paper: Some(Paper {
        title: "SkipDecode: Autoregressive Skip Decoding with Batching and Caching for Efficient \
                LLM Inference",
        authors: "Del Corro et al.",
        year: 2023,
        id: "arXiv:2307.02628",
    }),
    summary: "Runs fewer and fewer layers as the text grows, on a schedule fixed beforehand.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Reduce, site: Site::Layers }],
    exactness: Exactness::Lossy { what: "every token after the first" },
    needs: Needs {
        capabilities: Capabilities { layers: true, ..Needs::NONE.capabilities },
        ..Needs::NONE
    },
    claims: &[Claim {
        setting: "OPT-1.3B and OPT-6.7B fine-tuned with the schedule; E2E, Reddit-TLDR, CNN/DM",
        metric: "fewer layers computed at small loss of quality, at least",
        value: 2.0,
        unit: "x",
        place: "abstract (2x to 5x)",
    }],
    schema: schema_of::<SkipDecode>,
    defaults: defaults_of::<SkipDecode>,
    neutral: Some(|| {
        Settings::from_iter([("e_max".to_owned(), json!(1.0)), ("e_min".to_owned(), json!(1.0))])
    }),
    read: resolve_as::<SkipDecode>,
    build: |settings| {
        let config = read_as::<SkipDecode>("skipdecode", settings)?;
        Ok(Method::Layers(Box::new(Schedule::new(config))))
    },
};

/// The number of layers that `share` of a model of `layers` layers means: at least one more than
/// `warmup`, as the top of the model has to run, and at most all.
pub fn executed(share: f64, warmup: usize, layers: usize) -> usize {
    ((share * layers as f64).round() as usize).max(warmup.saturating_add(1)).min(layers)
}

/// Fills `active` (empty) with the lowest `warmup` of `layers` layers and the highest, `run` of them
/// in all, ascending: `A = {1..w} U {L-(E-w)+1..L}`.
pub fn active_layers(run: usize, warmup: usize, layers: usize, active: &mut Vec<usize>) {
    let low = warmup.min(run);
    active.extend(0..low);
    active.extend(layers - (run - low)..layers);
}

/// The schedule.
#[derive(Debug)]
pub struct Schedule {
    config: SkipDecode,
}

impl Schedule {
    /// With these settings.
    pub fn new(config: SkipDecode) -> Self {
        Self { config }
    }

    /// `E`: how many of `layers` layers the generated token number `step` (from 0) runs.
    pub fn run(&self, step: usize, layers: usize) -> usize {
        let c = &self.config;
        let [first, last] = [c.e_max, c.e_min].map(|e| executed(e, c.warmup, layers));
        let left = (c.length - 1).saturating_sub(step) as f64 / (c.length - 1).max(1) as f64;
        last + ((first - last) as f64 * left).round() as usize
    }
}

impl LayerSchedule for Schedule {
    fn layers(&mut self, step: usize, layers: usize, active: &mut Vec<usize>) -> Result<()> {
        active_layers(self.run(step, layers), self.config.warmup, layers, active);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(config: SkipDecode, layers: usize, n: usize) -> Vec<Vec<usize>> {
        let mut schedule = Schedule::new(config);
        let step = |step| {
            let mut active = Vec::new();
            schedule.layers(step, layers, &mut active).unwrap();
            active
        };
        (0..n).map(step).collect()
    }

    #[test]
    fn a_schedule_by_hand() {
        let config = SkipDecode { e_max: 0.75, e_min: 0.25, warmup: 1, length: 5 };
        // 6, 5, 4, 3, 2 of 8 layers, then 2 for ever: the lowest and the highest ones.
        assert_eq!(
            steps(config, 8, 7),
            [
                vec![0, 3, 4, 5, 6, 7],
                vec![0, 4, 5, 6, 7],
                vec![0, 5, 6, 7],
                vec![0, 6, 7],
                vec![0, 7],
                vec![0, 7],
                vec![0, 7],
            ]
        );
    }

    #[test]
    fn layers_never_come_back_whatever_the_settings() {
        for layers in [1, 2, 7, 24, 30] {
            for (e_max, e_min) in [(1.0, 1.0), (1.0, 0.01), (0.7, 0.3), (0.34, 0.33)] {
                for warmup in [0, 1, 5, 64] {
                    for length in [1, 2, 3, 10, 100] {
                        let config = SkipDecode { e_max, e_min, warmup, length };
                        config.validate().unwrap();
                        let active = steps(config, layers, 110);
                        for pair in active.windows(2) {
                            assert!(pair[1].iter().all(|l| pair[0].contains(l)), "{pair:?}");
                        }
                        for a in &active {
                            assert!(a.windows(2).all(|w| w[0] < w[1]) && !a.is_empty());
                            assert_eq!(a.last(), Some(&(layers - 1)), "the top of the model runs");
                        }
                        let all = (0..layers).collect::<Vec<_>>();
                        assert!(e_min < 1.0 || active.iter().all(|a| *a == all));
                    }
                }
            }
        }
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let good = SkipDecode::default();
        for (bad, name) in [
            (SkipDecode { e_min: 0.0, ..good.clone() }, "e_min"),
            (SkipDecode { e_max: 0.2, ..good.clone() }, "e_max"),
            (SkipDecode { e_max: 1.1, ..good.clone() }, "e_max"),
            (SkipDecode { warmup: 65, ..good.clone() }, "warmup"),
            (SkipDecode { length: 0, ..good.clone() }, "length"),
        ] {
            let error = bad.validate().unwrap_err();
            assert!(error.starts_with(name), "{error}");
        }
    }
}
