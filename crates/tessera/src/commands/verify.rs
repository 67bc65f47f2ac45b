//! `tessera verify`: whether a method keeps its promise about the text, on this model.

use std::fmt::Write;

use serde::Serialize;
use tessera_core::entry::Exactness;
use tessera_measure::lineup::fills_masks;
use tessera_measure::verify::{self, Finding, nothing_to_prove, recipes};
use tessera_measure::{enumerate, trial};
use tessera_runtime::{METHODS, Prompt};

use super::result;
use crate::Globals;
use crate::failure::BadUsage;
use crate::interrupt;
use crate::measuring::{Chosen, Models, Prompts};
use crate::slow_bar::SlowBar;

/// Texts after which the model's next tokens are counted: one that repeats itself, so that guesses
/// come true, and one that does not.
const COUNTED: [&str; 2] =
    ["one two three one two three one two three one two", "The best thing about the sea is"];

/// What `verify` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    chosen: Chosen,
    #[command(flatten)]
    models: Models,
    #[command(flatten)]
    prompts: Prompts,
    /// A first look: fewer prompts, shorter answers, fewer seeds.
    #[arg(long)]
    quick: bool,
    /// Most tokens of an answer (default 128; 48 with --quick).
    #[arg(short = 'n', long, value_name = "TOKENS")]
    tokens: Option<usize>,
    /// Prompts of each category (default 2; 1 with --quick).
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// The seed of the sampled texts.
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

/// The promise was broken; exit code 1.
#[derive(Debug, thiserror::Error)]
#[error("refuted: {slug} does not keep its promise to be {promise} on {model}")]
struct Refuted {
    slug: String,
    promise: &'static str,
    model: String,
}

#[derive(Serialize)]
struct Proof<'a> {
    slug: &'a str,
    model: &'a str,
    promise: &'static str,
    holds: bool,
    version: &'static str,
    findings: &'a [Finding],
}

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    let (call, with) = arguments.chosen.calls()?;
    let entry = arguments.chosen.entry()?;
    if let Exactness::Lossy { what } = entry.exactness {
        return Err(BadUsage(nothing_to_prove(entry.slug, what)).into());
    }
    let tokens = arguments.tokens.unwrap_or(if arguments.quick { 48 } else { 128 });
    let count = arguments.count.unwrap_or(if arguments.quick { 1 } else { 2 });
    if !(2..=65_536).contains(&tokens) || count == 0 {
        let what = format!(
            "tokens = {tokens}, count = {count}: give 2 to 65536 tokens and at least one prompt"
        );
        return Err(BadUsage(what).into());
    }
    let known = arguments.prompts.known(fills_masks(entry))?;
    let loaded = arguments.models.open(globals)?;
    let workload = arguments.prompts.choose(known, &loaded.target, fills_masks(entry))?;
    let model = loaded.model();
    let recipes = recipes(METHODS, &call, &with, &trial::offer(model))?
        .into_iter()
        .map(|(name, recipe)| Ok((name, loaded.target.prepared(&recipe)?)))
        .collect::<Result<Vec<_>, tessera_runtime::Error>>()?;
    let promise = recipes.iter().fold(entry.exactness, |e, (_, r)| e.and(r.promise()));
    let bar = SlowBar::new("verifying", 1000, globals.quiet);
    let mut findings = Vec::new();
    match promise {
        Exactness::Lossy { what } => {
            return Err(BadUsage(nothing_to_prove(entry.slug, what)).into());
        }
        Exactness::BitExact => {
            let items = workload.in_turns(count.min(workload.items.len()));
            let tasks = loaded.tasks(&items, tokens)?;
            let plan = verify::Plan { tokens, seed: arguments.seed };
            for (at, (name, recipe)) in recipes.iter().enumerate() {
                let mut show = |done: usize, of: usize| {
                    bar.at((1000 * (at * of + done) / (of * recipes.len()).max(1)) as u64);
                };
                let cancel = interrupt::flag();
                let recipe = (name.as_str(), recipe);
                findings.extend(verify::bit_exact(model, recipe, &tasks, plan, cancel, &mut show)?);
            }
        }
        Exactness::DistributionExact => {
            let prompts = COUNTED
                .map(|text| Ok((text.to_owned(), loaded.target.tokens(&Prompt::Raw(text))?)));
            let prompts =
                prompts.into_iter().collect::<Result<Vec<_>, tessera_runtime::Error>>()?;
            let plan = if arguments.quick { enumerate::Plan::QUICK } else { enumerate::Plan::FULL };
            let mut show = |done: usize, of: usize| bar.at((1000 * done / of.max(1)) as u64);
            let cancel = interrupt::flag();
            findings =
                enumerate::distribution(Some(model), &recipes, &prompts, plan, cancel, &mut show)?;
        }
    }
    drop(bar);
    if findings.is_empty() {
        let what = format!("{}: nothing could be tried, no drafter fits this model", entry.slug);
        return Err(BadUsage(what).into());
    }
    let holds = findings.iter().all(|f| f.holds);
    let proof = Proof {
        slug: entry.slug,
        model: &arguments.models.model,
        promise: promise.word(),
        holds,
        version: concat!("tessera ", env!("CARGO_PKG_VERSION")),
        findings: &findings,
    };
    result(globals, &proof, &text(&proof))?;
    match holds {
        true => Ok(()),
        false => Err(Refuted {
            slug: entry.slug.to_owned(),
            promise: promise.word(),
            model: arguments.models.model.clone(),
        }
        .into()),
    }
}

fn text(proof: &Proof<'_>) -> String {
    let mut text =
        format!("{} promises to be {}; on {}:\n", proof.slug, proof.promise, proof.model);
    let width = proof.findings.iter().map(|f| f.what.chars().count()).max().unwrap_or(0);
    let mut last = "";
    for finding in proof.findings {
        if finding.recipe != last {
            let _ = writeln!(text, "{}", finding.recipe);
            last = &finding.recipe;
        }
        let word = if finding.holds { "holds " } else { "BROKEN" };
        let _ = writeln!(text, "  {word}  {:<width$}  {}", finding.what, finding.seen);
    }
    let broken = proof.findings.iter().filter(|f| !f.holds).count();
    let _ = match broken {
        0 => writeln!(text, "the promise held in all {} tests", proof.findings.len()),
        n => writeln!(text, "the promise was broken in {n} of {} tests", proof.findings.len()),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_listed_under_their_recipe() {
        let finding = |recipe: &str, what: &str, holds, seen: &str| Finding {
            recipe: recipe.to_owned(),
            what: what.to_owned(),
            holds,
            seen: seen.to_owned(),
        };
        let findings = [
            finding("keyed + a", "greedy, fresh drafter", true, "90 tokens of 3 texts equal"),
            finding("keyed + a", "sampled", true, "12 tokens of 1 texts equal"),
            finding("keyed + b", "greedy", false, "chat-1: token 3 is 7 instead of 8"),
        ];
        let proof = Proof {
            slug: "keyed",
            model: "smollm2",
            promise: "bit-exact",
            holds: false,
            version: "tessera 0.1.0",
            findings: &findings,
        };
        insta::assert_snapshot!(text(&proof), @r"
        keyed promises to be bit-exact; on smollm2:
        keyed + a
          holds   greedy, fresh drafter  90 tokens of 3 texts equal
          holds   sampled                12 tokens of 1 texts equal
        keyed + b
          BROKEN  greedy                 chat-1: token 3 is 7 instead of 8
        the promise was broken in 1 of 3 tests
        ");
    }
}
