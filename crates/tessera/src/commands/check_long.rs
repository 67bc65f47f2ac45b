//! The part of `tessera check` for methods that forget: long texts, questions, budgets.

use std::time::Duration;

use serde_json::{Value, json};
use tessera_core::entry::{MethodCall, MethodEntry};
use tessera_measure::check::{Plan, Setting, Task};
use tessera_measure::lineup::Lineup;
use tessera_measure::longtext::{TASKS, generate};
use tessera_measure::record::{Part, Record};
use tessera_measure::retention::{self, Reading, acts_in_prefill};
use tessera_measure::verdict::of_retention;
use tessera_runtime::{Prompt, Session};

use crate::Globals;
use crate::failure::BadUsage;
use crate::interrupt;
use crate::measuring::Loaded;
use crate::slow_bar::SlowBar;

/// Most tokens of an answer: a number, or four words.
const ANSWER: usize = 14;

/// Questions that are asked of a text whose rows every arm has to compute anew.
const ASKED_ANEW: usize = 2;

/// What is read to a method that forgets.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Methods that forget")]
pub(crate) struct LongFlags {
    /// Tokens of a text (default 2048; 1024 with --quick).
    #[arg(long, value_name = "TOKENS")]
    length: Option<usize>,
    /// Texts of each task (default 2; 1 with --quick).
    #[arg(long, value_name = "N")]
    texts: Option<usize>,
    /// Only this task: needle, multi-key, tracking or recall; may be given several times.
    #[arg(long, value_name = "NAME")]
    task: Vec<String>,
    /// A setting and the values to measure besides its own, such as budget=64,128,256 (default for
    /// methods with a budget: 1/32, 1/16 and 1/4 of the length).
    #[arg(long, value_name = "SETTING=VALUES")]
    sweep: Option<String>,
}

impl LongFlags {
    fn length(&self, quick: bool) -> usize {
        self.length.unwrap_or(if quick { 1024 } else { 2048 })
    }

    /// Whether a flag was given that is of no use to other methods.
    pub(crate) fn stray(&self) -> Option<&'static str> {
        let given = [
            (self.length.is_some(), "--length"),
            (self.texts.is_some(), "--texts"),
            (!self.task.is_empty(), "--task"),
            (self.sweep.is_some(), "--sweep"),
        ];
        given.into_iter().find(|(given, _)| *given).map(|(_, flag)| flag)
    }

    /// The flags again, as typed.
    pub(crate) fn command(&self) -> String {
        let mut text = String::new();
        for (flag, value) in [("--length", self.length), ("--texts", self.texts)] {
            text += &value.map_or_else(String::new, |v| format!(" {flag} {v}"));
        }
        for task in &self.task {
            text += &format!(" --task {task}");
        }
        text + &self.sweep.as_ref().map_or_else(String::new, |s| format!(" --sweep {s}"))
    }

    /// Gives a budget to a method that has one and was given none: an eighth of the length.
    pub(crate) fn complete(&self, entry: &MethodEntry, call: &mut MethodCall, quick: bool) {
        let given = ["budget", "ratio"].iter().any(|k| call.settings.contains_key(*k));
        if (entry.defaults)().contains_key("budget") && !given {
            call.settings.insert("budget".to_owned(), json!(self.length(quick) / 8));
        }
    }

    fn tasks(&self) -> anyhow::Result<Vec<&'static str>> {
        if self.task.is_empty() {
            return Ok(TASKS.to_vec());
        }
        let find = |name: &String| {
            TASKS.into_iter().find(|t| t == name).ok_or_else(|| {
                BadUsage(format!("--task {name}: must be one of {}", TASKS.join(", "))).into()
            })
        };
        self.task.iter().map(find).collect()
    }

    fn sweep(&self, lineup: &Lineup, quick: bool) -> anyhow::Result<Option<(String, Vec<Value>)>> {
        if let Some(text) = &self.sweep {
            let (name, values) = retention::parse_sweep(text)?;
            let has = lineup.entry.resolve(&tessera_core::entry::Settings::new())?;
            if !has.contains_key(&name) {
                let known: Vec<&str> = has.keys().map(String::as_str).collect();
                let what =
                    format!("--sweep {name}: {} has {}", lineup.entry.slug, known.join(", "));
                return Err(BadUsage(what).into());
            }
            return Ok(Some((name, values)));
        }
        let method = lineup.arms.iter().find(|a| a.part == Part::Method);
        let budget = method.and_then(|a| {
            a.recipe.members().iter().find_map(|m| m.settings.get("budget")).and_then(Value::as_u64)
        });
        let length = self.length(quick);
        let values = |own: u64| {
            [32, 16, 4].map(|part| (length / part) as u64).into_iter().filter(move |v| *v != own)
        };
        Ok(budget
            .filter(|_| !quick)
            .map(|own| ("budget".to_owned(), values(own).map(Value::from).collect())))
    }

    fn readings(
        &self,
        session: &Session,
        anew: bool,
        quick: bool,
        seed: u64,
    ) -> anyhow::Result<Vec<Reading>> {
        let (length, count) = (self.length(quick), self.texts.unwrap_or(if quick { 1 } else { 2 }));
        let context = session.info().context;
        if !(256..=context.saturating_sub(128)).contains(&length) || count == 0 || count > 1000 {
            let what = format!(
                "--length {length} --texts {count}: the length must be between 256 and {}, the texts between 1 and 1000",
                context.saturating_sub(128)
            );
            return Err(BadUsage(what).into());
        }
        let tokens = |text: &str| Ok::<_, anyhow::Error>(session.tokens(&Prompt::Raw(text))?);
        let mut readings = Vec::new();
        // One text of each task, then the next of each: time running out leaves all of them covered.
        for n in 0..count {
            for task in self.tasks()? {
                let mut units = |text: &str| tokens(text).map_or(0, |t| t.len());
                let mut text = generate(task, length, seed + n as u64, &mut units);
                if anew {
                    let all = text.questions.len();
                    let mut at = 0..;
                    let wanted: Vec<usize> =
                        (0..ASKED_ANEW).map(|i| (all * (2 * i + 1)) / (2 * ASKED_ANEW)).collect();
                    text.questions.retain(|_| at.next().is_some_and(|i| wanted.contains(&i)));
                }
                let prompts =
                    text.questions.iter().map(|q| tokens(&format!("{}{}", text.text, q.text)));
                let prompts = prompts.collect::<anyhow::Result<_>>()?;
                let name = format!("{task}-{}", n + 1);
                readings.push(Reading { task: task.to_owned(), name, prompts, text });
            }
        }
        Ok(readings)
    }

    /// Measures and makes the record.
    pub(crate) fn measure(
        &self,
        globals: &Globals,
        loaded: &Loaded,
        lineup: &Lineup,
        plan: &Plan,
        limit: Option<Duration>,
        mut setting: Setting,
    ) -> anyhow::Result<Record> {
        let quick = setting.quick;
        let anew = lineup.arms.iter().any(|a| acts_in_prefill(&a.recipe));
        let readings = self.readings(&loaded.target, anew, quick, plan.seed)?;
        let tasks: Vec<Task> = readings
            .iter()
            .map(|r| Task {
                category: r.task.clone(),
                name: r.name.clone(),
                tokens: r.prompts.first().cloned().unwrap_or_default(),
                expected: None,
            })
            .collect();
        let sweep = self.sweep(lineup, quick)?;
        let long = retention::Plan {
            answer: ANSWER,
            speed: plan.tokens.min(if quick { 16 } else { 48 }),
            scored: if quick { 32 } else { 64 },
            sweep,
            seed: plan.seed,
            limit,
        };
        let bar = SlowBar::new(lineup.entry.slug, readings.len() as u64, globals.quiet);
        let (measured, retention) = retention::measure(
            loaded.model(),
            lineup,
            &readings,
            &tasks,
            &long,
            interrupt::flag(),
            &mut |done, _| bar.at(done as u64),
        )?;
        drop(bar);
        setting.workload = format!("long texts of {} tokens", self.length(quick));
        let mut record = measured.record(loaded.model(), lineup, plan, setting)?;
        record.workload.tokens = long.speed;
        let rival = record.arm(Part::Rival).map(|a| a.label.clone());
        record.verdict = of_retention(&retention, rival.as_deref());
        record.retention = Some(retention);
        Ok(record)
    }
}
