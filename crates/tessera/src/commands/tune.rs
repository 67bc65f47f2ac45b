//! `tessera tune`: find the fastest recipe that keeps a promise, and keep it for `run` and `chat`.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;
use tessera_core::entry::find;
use tessera_measure::machine::Machine;
use tessera_measure::tune::{Plan, Trial, TunePrompt, Tuning, Worth, tune};
use tessera_measure::tuned::{Promise, Tuned, VERSION, data_dir};
use tessera_measure::{curve, record};
use tessera_runtime::{CostCurve, METHODS, Request, Sampling};

use super::result;
use crate::Globals;
use crate::measuring::{Loaded, Models, Prompts};
use crate::slow_bar::SlowBar;

/// What `tune` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    models: Models,
    /// What must hold of the text: the plain run's tokens, its distribution, or nothing.
    #[arg(long, value_enum, default_value_t = Exact::Bit)]
    exact: Exact,
    #[command(flatten)]
    prompts: Prompts,
    /// Fewer prompts and fewer tokens.
    #[arg(long)]
    quick: bool,
    /// Print what was found, but do not keep it.
    #[arg(long)]
    dry_run: bool,
}

/// A promise, as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Exact {
    /// The plain run's tokens.
    Bit,
    /// The plain run's distribution.
    Distribution,
    /// Whatever is fastest.
    Any,
}

#[derive(Serialize)]
struct Found {
    tuned: Tuned,
    trials: Vec<Trial>,
    kept_in: Option<PathBuf>,
}

/// Context at which the cost curve is measured, in tokens.
const CONTEXT: usize = 256;

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    // What kind of model it is, only its file says.
    let known = arguments.prompts.known(true)?;
    let Loaded { target: session } = arguments.models.open(globals)?;
    let workload = arguments.prompts.choose(known, &session, session.filling().is_some())?;
    let repeats = if arguments.quick { 5 } else { 11 };
    let bar = SlowBar::new("measuring the cost of a pass", repeats as u64 + 1, globals.quiet);
    let context = CONTEXT.min(session.info().context / 2);
    let mut at = |done: usize, _| bar.at(done as u64);
    let (cost, one_row_ms) =
        curve::measure(session.backbone(), session.draft_backbone(), context, repeats, &mut at)?;
    drop(bar);

    let mut prompts = Vec::new();
    // What has one right answer is short, and says nothing about speed.
    for item in workload.items.iter().filter(|item| item.answer.is_none() || item.room.is_some()) {
        let mut request = Request::new(item.tokens(&session)?);
        request.sampling = Sampling::greedy();
        let expected = item.expected(&session)?;
        prompts.push(TunePrompt { category: item.category.clone(), request, expected });
    }
    let plan = match arguments.quick {
        true => Plan { short: (32, 1), long: 64, finalists: 2 },
        false => Plan::default(),
    };
    let promise = match arguments.exact {
        Exact::Bit => Promise::Bit,
        Exact::Distribution => Promise::Distribution,
        Exact::Any => Promise::Any,
    };
    let mut bar = None;
    let tuning = tune(&session, &prompts, promise, &cost, plan, &mut |done, total| {
        bar.get_or_insert_with(|| SlowBar::new("trying recipes", total as u64, globals.quiet))
            .at(done as u64);
    })?;
    drop(bar);

    let info = session.info();
    let tuned = Tuned {
        version: VERSION,
        model: info.name.clone(),
        bytes: std::fs::metadata(&info.path).map_or(0, |m| m.len()),
        threads: info.threads,
        machine: Machine::here(),
        promise,
        methods: tuning.methods.clone(),
        draft_model: uses_draft(&tuning.methods).then(|| info.draft_model.clone()).flatten(),
        curve: cost,
        one_row_ms,
        speedup: tuning.speedup,
        date: record::today(),
        command: format!(
            "tessera tune{}{}",
            arguments.models.command(),
            arguments.prompts.command()
        ),
    };
    let kept_in = match arguments.dry_run {
        true => None,
        false => Some(tuned.save(&data_dir(|name| std::env::var_os(name))?)?),
    };
    let text = render(&tuned, &tuning, kept_in.is_some());
    result(globals, &Found { tuned, trials: tuning.trials, kept_in }, &text)
}

/// Whether a recipe runs a draft model.
fn uses_draft(methods: &serde_json::Value) -> bool {
    let ids = methods.as_array().into_iter().flatten().filter_map(|m| m.get("id")?.as_str());
    ids.filter_map(|id| find(METHODS, id).ok()).any(|entry| entry.needs.draft_model)
}

/// The methods of a recipe as they are typed: `slug:key=value,...`.
pub(crate) fn typed(methods: &serde_json::Value) -> String {
    let one = |method: &serde_json::Value| {
        let map = method.as_object()?;
        let id = map.get("id")?.as_str()?.to_owned();
        let settings = map.iter().filter(|(k, _)| *k != "id");
        let settings: Vec<String> = settings.map(|(k, v)| format!("{k}={v}")).collect();
        Some(if settings.is_empty() { id } else { format!("{id}:{}", settings.join(",")) })
    };
    let all: Vec<String> = methods.as_array().into_iter().flatten().filter_map(one).collect();
    if all.is_empty() { "none (the plain run)".to_owned() } else { all.join(" + ") }
}

fn curve_line(cost: &CostCurve, one_row_ms: f64) -> String {
    let points: Vec<String> = cost.points.iter().map(|(n, c)| format!("{n}:{c:.2}")).collect();
    let draft = match cost.draft {
        0.0 => String::new(),
        d => format!(" · draft model {d:.2}"),
    };
    format!("pass of one row {one_row_ms:.2} ms; of n rows, relative: {}{draft}", points.join(" "))
}

fn render(tuned: &Tuned, tuning: &Tuning, kept: bool) -> String {
    let mut text =
        format!("{} on {}, {} threads\n", tuned.model, tuned.machine.line(), tuned.threads);
    let _ = writeln!(text, "{}\n", curve_line(&tuned.curve, tuned.one_row_ms));
    let _ = writeln!(text, "  {:>7}  {:>11}  recipe (categories)", "speed", "tokens/pass");
    for trial in &tuning.trials {
        let categories: Vec<String> =
            trial.categories.iter().map(|(c, v)| format!("{c} {v:.2}")).collect();
        let short = if trial.finalist { "" } else { "  short round only" };
        let _ = writeln!(
            text,
            "  {:>6.2}x  {:>11.2}  {}{short}\n{:24}{}",
            trial.speedup,
            trial.tokens_per_pass,
            typed(&trial.methods),
            "",
            categories.join(", "),
        );
        if let Some(worth) = &trial.texts {
            let said = match *worth {
                Worth::Answers { right, plain, asked } => {
                    format!("{right} of {asked} answers right (plain {plain})")
                }
                Worth::Texts { perplexity: (own, plain), distinct: (distinct, before) } => format!(
                    "perplexity {own:.1} (plain {plain:.1}), distinct-2 {distinct:.2} ({before:.2})"
                ),
            };
            let _ = writeln!(text, "{:24}{said}{}", "", if worth.holds() { "" } else { ": worse" });
        }
    }
    let _ =
        writeln!(text, "\npicked: {} ({:.2}x the plain run)", typed(&tuned.methods), tuned.speedup);
    let next = match kept {
        true => "`tessera run` and `chat` use it from now on; `--method none` turns it off",
        false => "not kept (--dry-run)",
    };
    let _ = writeln!(text, "{next}");
    text
}
