//! A check with its usual setting, as one call.

use std::sync::atomic::AtomicBool;

use pyo3::PyResult;
use tessera_measure::check::Plan;
use tessera_measure::record::Record;
use tessera_measure::usual::{self, Amount};
use tessera_runtime::{Sampling, Session};

use crate::{failed, refused};

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
    let amount = Amount { plan: plan.clone(), count, repeats: 3, quick: false };
    let version = concat!("tessera ", env!("CARGO_PKG_VERSION"));
    let never = AtomicBool::new(false);
    usual::check(session, method, &amount, version, &never, &mut |_, _| ())
        .map_err(|error| if error.is_usage() { refused(error) } else { failed(error) })
}
