//! A check with its usual setting over a model that is loaded, as one call: for the server's page and the
//! Python module. `tessera check` has more to choose.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tessera_core::entry::{MethodEntry, Role, Site, find};
use tessera_runtime::{METHODS, MethodCall, Session};

use crate::check::{Plan, Setting, Task, measure};
use crate::lineup::{Lineup, fills_masks, suits};
use crate::record::{ModelLine, Record};
use crate::workload::Workload;
use crate::{Result, curve, trial};

/// Tokens of context at which the cost of a pass is measured.
const CONTEXT: usize = 256;

/// Whether a method is one that forgets, which is checked on long texts.
pub fn forgets(entry: &MethodEntry) -> bool {
    let site = |s: Site| matches!(s, Site::Prefill | Site::AfterPrefill | Site::Decode);
    entry.places.iter().any(|p| p.role == Role::Reduce && (site(p.site) || p.site == Site::Whole))
}

/// A model's line in a record: never its path.
pub fn model_line(session: &Session, name: &str) -> ModelLine {
    let info = session.info();
    let name = match name.starts_with(['.', '/', '~']) || name.ends_with(".gguf") {
        true => name.rsplit(['/', '\\']).next().unwrap_or_default().to_owned(),
        false => name.to_owned(),
    };
    ModelLine { name, detail: info.detail.clone(), threads: info.threads }
}

/// How much a check measures.
#[derive(Debug, Clone)]
pub struct Amount {
    /// Prompts, turns, tokens, sampling; its limit counts from the check's beginning, the cost curve
    /// included.
    pub plan: Plan,
    /// Prompts of each category.
    pub count: usize,
    /// Measurements of each point of the cost curve.
    pub repeats: usize,
    /// Whether the record says that it is a quick one.
    pub quick: bool,
}

impl Amount {
    /// At most a minute: what `tessera check --quick` measures.
    pub fn quick() -> Self {
        let sampling = tessera_core::dist::Sampling {
            temperature: 0.0,
            ..tessera_core::dist::Sampling::neutral()
        };
        let limit = Some(Duration::from_secs(42));
        let plan = Plan { turns: 2, tokens: 64, sampling, seed: 0, hot: true, limit };
        Self { plan, count: 2, repeats: 2, quick: true }
    }
}

/// The record of a method (`slug` or `slug:key=value,...`) on the built-in prompts; `hear` is told how many
/// of how many runs are done. `version` names the program.
///
/// # Errors
/// [`crate::Error`]: a method that cannot be checked or needs what the session lacks; whatever a run
/// reports; [`crate::Error::Stopped`] if `cancel` was set before anything was measured.
pub fn check(
    session: &Session,
    method: &str,
    amount: &Amount,
    version: &str,
    cancel: &AtomicBool,
    hear: &mut dyn FnMut(usize, usize),
) -> Result<Record> {
    let started = Instant::now();
    let call = MethodCall::parse(METHODS, method)?;
    let entry = find(METHODS, &call.id)?;
    suits(entry, &call)?;
    let model = session.model();
    let mut lineup = Lineup::new(METHODS, &call, &[], &trial::offer(model))?;
    let workload = Workload::usual(session, fills_masks(entry))?;
    let mut tasks = Vec::new();
    for item in workload.in_turns(amount.count) {
        tasks.push(Task {
            category: item.category.clone(),
            name: item.name.clone(),
            tokens: item.tokens(session)?,
            expected: item.expected(session)?,
        });
    }
    let context = CONTEXT.min(session.info().context / 2);
    let curve =
        curve::measure(model.backbone, model.draft, context, amount.repeats, &mut |_, _| ())?;
    for arm in &mut lineup.arms {
        arm.recipe = session.prepared(&arm.recipe)?;
    }
    let info = session.info();
    let own = model_line(session, &info.name);
    let how =
        if amount.quick { " --quick".to_owned() } else { format!(" --count {}", amount.count) };
    let setting = Setting {
        command: format!("tessera check {method} -m {}{how}", own.name),
        model: own,
        draft_model: info.draft_model.as_ref().map(|name| model_line(session, name)),
        workload: workload.name.clone(),
        curve,
        quick: amount.quick,
        version: version.to_owned(),
    };
    let mut plan = amount.plan.clone();
    plan.limit = plan.limit.map(|limit| limit.saturating_sub(started.elapsed()));
    let all = plan.turns * tasks.len();
    let measured = measure(model, &lineup, &tasks, &plan, cancel, &mut |done, _| hear(done, all))?;
    measured.record(model, &lineup, &plan, setting)
}
