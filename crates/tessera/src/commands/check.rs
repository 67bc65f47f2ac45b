//! `tessera check`: what a method is said to gain, what it gains here, what chance gains.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tessera_core::dist::Sampling;
use tessera_measure::check::{Plan, Setting, measure};
use tessera_measure::lineup::{Lineup, fills_masks, suits};
use tessera_measure::usual::forgets;
use tessera_measure::{curve, record, table, trial};
use tessera_runtime::METHODS;

use super::check_long::LongFlags;
use super::result;
use crate::Globals;
use crate::failure::BadUsage;
use crate::interrupt;
use crate::measuring::{Chosen, Models, Prompts, draft_line, line};
use crate::slow_bar::SlowBar;

/// Context at which the cost curve is measured, in tokens.
const CONTEXT: usize = 256;

/// A quick check ends its measurements after this time, so that all of it takes a minute.
const QUICK: Duration = Duration::from_secs(42);

/// What `check` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    chosen: Chosen,
    #[command(flatten)]
    models: Models,
    #[command(flatten)]
    prompts: Prompts,
    /// At most a minute: two prompts a category, short answers, and what time allows of them.
    #[arg(long)]
    quick: bool,
    /// Leave out guesses that do not pay, by the cost curve that is measured first, as `run` and
    /// `chat` do after `tune`. The control always spends its whole budget.
    #[arg(long)]
    paced: bool,
    /// Most tokens of an answer (default 128; 64 with --quick).
    #[arg(short = 'n', long, value_name = "TOKENS")]
    tokens: Option<usize>,
    /// Prompts of each category (default: all; 2 with --quick).
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// Times that each prompt is run (default 2).
    #[arg(long, value_name = "K", default_value_t = 2)]
    repeat: usize,
    /// 0 always takes the most probable token.
    #[arg(
        long,
        visible_alias = "temp",
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    temperature: f32,
    /// Equal seeds give equal text.
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    long: LongFlags,
    /// Write the record into this directory, too.
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
}

impl Arguments {
    fn plan(&self) -> anyhow::Result<Plan> {
        let tokens = self.tokens.unwrap_or(if self.quick { 64 } else { 128 });
        for (name, value, range) in
            [("tokens", tokens, 2..=65_536), ("repeat", self.repeat, 1..=1000)]
        {
            if !range.contains(&value) {
                let (low, high) = (range.start(), range.end());
                let what = format!("{name} = {value}: must be between {low} and {high}");
                return Err(BadUsage(what).into());
            }
        }
        if self.count == Some(0) {
            return Err(BadUsage("count = 0: must be at least 1".to_owned()).into());
        }
        let sampling = Sampling { temperature: self.temperature, ..Sampling::neutral() };
        sampling.validate()?;
        Ok(Plan {
            turns: self.repeat,
            tokens,
            sampling,
            seed: self.seed,
            hot: true,
            limit: self.quick.then_some(QUICK),
        })
    }

    /// The command that repeats it, without what only says where the record goes.
    fn command(&self) -> String {
        let mut text = format!("tessera check{}{}", self.chosen.command(), self.models.command());
        text += &self.prompts.command();
        text += &self.long.command();
        text += if self.quick { " --quick" } else { "" };
        text += if self.paced { " --paced" } else { "" };
        for (flag, value) in [("-n", self.tokens), ("--count", self.count)] {
            text += &value.map_or_else(String::new, |v| format!(" {flag} {v}"));
        }
        for (flag, value, default) in [
            ("--repeat", self.repeat.to_string(), "2"),
            ("--temperature", self.temperature.to_string(), "0"),
            ("--seed", self.seed.to_string(), "0"),
        ] {
            if value != default {
                text += &format!(" {flag} {value}");
            }
        }
        text
    }
}

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    let started = Instant::now();
    let (mut call, with) = arguments.chosen.calls()?;
    let entry = arguments.chosen.entry()?;
    let forgets = forgets(entry);
    match arguments.long.stray() {
        _ if forgets => arguments.long.complete(entry, &mut call, arguments.quick),
        Some(flag) => {
            let what = format!("{flag} is for methods that forget; {} does not", entry.slug);
            return Err(BadUsage(what).into());
        }
        None => {}
    }
    suits(entry, &call)?;
    let mut plan = arguments.plan()?;
    let known = arguments.prompts.known(fills_masks(entry))?;
    let loaded = arguments.models.open(globals)?;
    let workload = arguments.prompts.choose(known, &loaded.target, fills_masks(entry))?;
    let model = loaded.model();
    let mut lineup = Lineup::new(METHODS, &call, &with, &trial::offer(model))?;
    let count = arguments.count.unwrap_or(if arguments.quick { 2 } else { usize::MAX });
    let items = workload.in_turns(count.min(workload.items.len()));
    let tasks = if forgets { Vec::new() } else { loaded.tasks(&items, plan.tokens)? };

    let cancel = interrupt::flag();
    let context = CONTEXT.min(loaded.target.info().context / 2);
    let bar = SlowBar::new("cost curve", 100, globals.quiet);
    let repeats = if arguments.quick { 2 } else { 5 };
    let curve = curve::measure(model.backbone, model.draft, context, repeats, &mut |at, of| {
        bar.at(100 * at as u64 / of as u64);
    })?;
    drop(bar);
    for arm in &mut lineup.arms {
        arm.recipe = loaded.target.prepared(&arm.recipe)?;
    }
    if arguments.paced {
        lineup.pace(&curve.0)?;
    }
    plan.limit = plan.limit.map(|limit| limit.saturating_sub(started.elapsed()));
    let setting = Setting {
        model: line(&loaded.target),
        draft_model: draft_line(&loaded.target),
        workload: workload.name.clone(),
        curve,
        quick: arguments.quick,
        command: arguments.command(),
        version: concat!("tessera ", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    let record = if forgets {
        arguments.long.measure(globals, &loaded, &lineup, &plan, plan.limit, setting)?
    } else {
        let all = (plan.turns * tasks.len()) as u64;
        let bar = SlowBar::new(lineup.entry.slug, all, globals.quiet);
        let mut hear = |done, _| bar.at(done as u64);
        let measured = measure(model, &lineup, &tasks, &plan, cancel, &mut hear)?;
        drop(bar);
        measured.record(model, &lineup, &plan, setting)?
    };
    let own = record::directory(|name| std::env::var_os(name));
    let mut written = Vec::new();
    for directory in own.iter().map(PathBuf::as_path).chain(arguments.record.as_deref()) {
        written.push(record.write(directory)?);
    }
    result(globals, &record, &table::render(&record))?;
    if !globals.quiet {
        for path in written {
            let _ = writeln!(std::io::stderr(), "record:  {}", shown(&path));
        }
    }
    Ok(())
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
