//! `tessera methods`: which methods there are, and what each promises.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;
use tessera_core::entry::{Claim, Exactness, Kind, MethodEntry, Paper, Place, find};
use tessera_runtime::METHODS;

use super::result;
use crate::Globals;

/// What `methods` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<What>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// List every method (the same as no command).
    List,
    /// Show one method with its settings.
    Show {
        /// Its slug or another name it answers to.
        method: String,
    },
}

#[derive(Serialize)]
struct Shown {
    slug: &'static str,
    aliases: &'static [&'static str],
    name: &'static str,
    kind: Kind,
    places: &'static [Place],
    exactness: Exactness,
    summary: &'static str,
    paper: Option<Paper>,
    claims: &'static [Claim],
    settings: Value,
}

impl Shown {
    fn of(entry: &MethodEntry) -> Self {
        Self {
            slug: entry.slug,
            aliases: entry.aliases,
            name: entry.name,
            kind: entry.kind,
            places: entry.places,
            exactness: entry.exactness,
            summary: entry.summary,
            paper: entry.paper,
            claims: entry.claims,
            settings: (entry.schema)().to_value(),
        }
    }
}

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    match &arguments.command {
        None | Some(What::List) => {
            let all: Vec<Shown> = METHODS.iter().map(|e| Shown::of(e)).collect();
            let mut text = String::new();
            for entry in METHODS {
                let promise = entry.exactness.word();
                let _ = writeln!(text, "{:<28}{promise:<20}{}", entry.slug, entry.summary);
            }
            result(globals, &all, &text)
        }
        Some(What::Show { method }) => {
            let entry = find(METHODS, method)?;
            result(globals, &Shown::of(entry), &describe(entry))
        }
    }
}

fn describe(entry: &MethodEntry) -> String {
    let mut text = format!("{} ({})\n{}\n", entry.name, entry.slug, entry.summary);
    let mut fact = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<14}{value}");
    };
    if !entry.aliases.is_empty() {
        fact("also called", entry.aliases.join(", "));
    }
    if let Some(paper) = entry.paper {
        fact("paper", format!("{}, {} {} ({})", paper.title, paper.authors, paper.year, paper.id));
    }
    fact("promise", entry.exactness.word().to_owned());
    if let Exactness::Lossy { what } = entry.exactness {
        fact("may change", what.to_owned());
    }
    for claim in entry.claims {
        let Claim { metric, value, unit, setting, .. } = claim;
        fact("claim", format!("{metric} {value} {unit} ({setting})"));
    }
    let schema = (entry.schema)().to_value();
    let described = |field: &str| {
        schema["properties"][field]["description"].as_str().unwrap_or_default().to_owned()
    };
    let defaults = (entry.defaults)();
    if defaults.is_empty() {
        fact("settings", "none".to_owned());
    }
    for (field, value) in &defaults {
        fact(field, format!("{value}  {}", described(field)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_run_is_described() {
        let text = describe(find(METHODS, "plain").unwrap());
        insta::assert_snapshot!(text, @r"
        Plain run (none)
        Computes every token with one causal pass of one row: the baseline of all others.
          also called   plain
          promise       bit-exact
          settings      none
        ");
    }
}
