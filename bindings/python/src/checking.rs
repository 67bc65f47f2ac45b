//! A check with its usual setting, as one call.

use std::sync::atomic::AtomicBool;

use pyo3::PyResult;
use tessera_measure::check::{Plan, Setting, Task, measure};
use tessera_measure::lineup::{Lineup, fills_masks, suits};
use tessera_measure::record::{ModelLine, Record};
use tessera_measure::workload::Workload;
use tessera_measure::{curve, trial};
use tessera_runtime::{METHODS, MethodCall, Sampling, Session};

use crate::{failed, raised, refused};

/// Tokens of context at which the cost of a pass is measured.
const CONTEXT: usize = 256;
/// Times that each point of it is.
const REPEATS: usize = 3;

/// How much is measured: (tokens of an answer, prompts of a category, turns).
pub(crate) fn plan(
    (tokens, count, repeat): (usize, usize, usize),
    temperature: f32,
    seed: u64,
) -> PyResult<Plan> {
    for (name, value, least) in [("tokens", tokens, 2), ("count", count, 1), ("repeat", repeat, 1)]
    {
        if value < least {
            return Err(refused(format!("{name} = {value}: must be at least {least}")));
        }
    }
    let sampling = Sampling { temperature, ..Sampling::neutral() };
    sampling.validate().map_err(refused)?;
    Ok(Plan { turns: repeat, tokens, sampling, seed, hot: true, limit: None })
}

/// The record of a method on the built-in prompts, `count` of each category.
pub(crate) fn check(
    session: &Session,
    method: &str,
    plan: &Plan,
    count: usize,
) -> PyResult<Record> {
    let call = MethodCall::parse(METHODS, method).map_err(refused)?;
    let entry = tessera_core::entry::find(METHODS, &call.id).map_err(refused)?;
    suits(entry, &call).map_err(refused)?;
    let model = session.model();
    let mut lineup = Lineup::new(METHODS, &call, &[], &trial::offer(model)).map_err(refused)?;
    let workload = match fills_masks(entry) {
        true => Workload::stories(),
        false => Workload::built_in(),
    };
    let workload = workload.map_err(failed)?;
    let mut tasks = Vec::new();
    for item in workload.in_turns(count) {
        tasks.push(Task {
            category: item.category.clone(),
            name: item.name.clone(),
            tokens: item.tokens(session).map_err(failed)?,
            expected: item.expected(session).map_err(failed)?,
        });
    }
    let context = CONTEXT.min(session.info().context / 2);
    let curve = curve::measure(model.backbone, model.draft, context, REPEATS, &mut |_, _| ())
        .map_err(failed)?;
    for arm in &mut lineup.arms {
        arm.recipe = session.prepared(&arm.recipe).map_err(raised)?;
    }
    let info = session.info();
    let line = |name: &String| ModelLine {
        name: name.rsplit('/').next().unwrap_or_default().to_owned(),
        detail: info.detail.clone(),
        threads: info.threads,
    };
    let setting = Setting {
        model: line(&info.name),
        draft_model: info.draft_model.as_ref().map(line),
        workload: workload.name.clone(),
        curve,
        quick: false,
        command: format!("tessera check {method} -m {} --count {count}", line(&info.name).name),
        version: concat!("tessera ", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    let never = AtomicBool::new(false);
    let measured = measure(model, &lineup, &tasks, plan, &never, &mut |_, _| ()).map_err(failed)?;
    measured.record(model, &lineup, plan, setting).map_err(failed)
}
