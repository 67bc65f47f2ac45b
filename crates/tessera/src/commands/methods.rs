//! `tessera methods`: which methods there are, and what each promises.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};
use tessera_core::entry::{Claim, Exactness, Kind, MethodEntry, Paper, Place, find};
use tessera_measure::catalogue;
use tessera_measure::record::{self, Record};
use tessera_measure::statistics::Interval;
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
    /// List the methods in whose names, summary, paper, role or promise all words occur.
    Search {
        /// Words, in any order.
        #[arg(required = true)]
        words: Vec<String>,
    },
    /// Compare docs/methods.md and the README's table with the registry and docs/records.
    Docs {
        /// Write them anew.
        #[arg(long)]
        write: bool,
        /// The repository.
        #[arg(long, value_name = "DIR", default_value = ".")]
        root: PathBuf,
    },
}

/// What the last check of a method on this machine found.
#[derive(Serialize)]
struct Last {
    verdict: &'static str,
    date: String,
    model: String,
    quick: bool,
    speed: Option<Interval>,
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
    last_measured: Option<Last>,
}

impl Shown {
    fn of(entry: &MethodEntry, records: &[Record]) -> Self {
        let last = catalogue::latest(records, entry.slug).map(|r| Last {
            verdict: r.verdict.word.text(),
            date: r.date.clone(),
            model: r.model.name.clone(),
            quick: r.quick,
            speed: r.speed(),
        });
        Self {
            last_measured: last,
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
    let own = record::directory(|name| std::env::var_os(name));
    // A record that cannot be read must not keep anyone from the list.
    let records = own.and_then(|place| Record::read_all(&place).ok()).unwrap_or_default();
    match &arguments.command {
        None | Some(What::List) => list(globals, METHODS, &records),
        Some(What::Show { method }) => {
            let entry = find(METHODS, method)?;
            let last = catalogue::latest(&records, entry.slug);
            result(globals, &Shown::of(entry, &records), &describe(entry, last))
        }
        Some(What::Search { words }) => {
            let found = catalogue::search(METHODS, words);
            if found.is_empty() && !globals.json {
                return Err(anyhow::anyhow!(
                    "no method mentions `{}`. Next: `tessera methods`",
                    words.join(" ")
                ));
            }
            list(globals, &found, &records)
        }
        Some(What::Docs { write, root }) => docs(globals, root, *write),
    }
}

fn list(
    globals: &Globals,
    entries: &[&'static MethodEntry],
    records: &[Record],
) -> anyhow::Result<()> {
    let all: Vec<Shown> = entries.iter().map(|e| Shown::of(e, records)).collect();
    let mut text = String::new();
    for entry in entries {
        let promise = entry.exactness.word();
        let _ = writeln!(text, "{:<28}{promise:<20}{}", entry.slug, entry.summary);
        if let Some(record) = catalogue::latest(records, entry.slug) {
            let _ = writeln!(text, "{:<28}measured here: {}", "", catalogue::measured(record));
        }
    }
    result(globals, &all, &text)
}

/// Compares or writes the generated documents.
fn docs(globals: &Globals, root: &Path, write: bool) -> anyhow::Result<()> {
    let records = Record::read_all(&root.join("docs/records"))?;
    let (page, front) = (root.join("docs/methods.md"), root.join("README.md"));
    let named =
        |path: &Path, what: &dyn std::fmt::Display| anyhow::anyhow!("{}: {what}", path.display());
    let readme = std::fs::read_to_string(&front).map_err(|e| named(&front, &e))?;
    let table = catalogue::front(METHODS, &records);
    let fresh = [
        (&front, catalogue::splice(&readme, &table).map_err(|e| named(&front, &e))?),
        (&page, catalogue::page(METHODS, &records)),
    ];
    let mut stale = Vec::new();
    for (path, text) in &fresh {
        if std::fs::read_to_string(path).ok().as_ref() == Some(text) {
            continue;
        }
        if write {
            std::fs::write(path, text).map_err(|e| named(path, &e))?;
        }
        stale.push(path.display().to_string());
    }
    if !write && !stale.is_empty() {
        let names = stale.join(", ");
        return Err(anyhow::anyhow!("stale: {names}. Next: `tessera methods docs --write`"));
    }
    let text = match stale.is_empty() {
        true => "current\n".to_owned(),
        false => format!("written: {}\n", stale.join(", ")),
    };
    result(globals, &json!({ "written": stale }), &text)
}

fn describe(entry: &MethodEntry, last: Option<&Record>) -> String {
    let mut text = format!("{} ({})\n{}\n", entry.name, entry.slug, entry.summary);
    let defaults = (entry.defaults)();
    let widest = defaults.keys().map(String::len).max().unwrap_or(0).max("measured here".len());
    let mut fact = |name: &str, value: String| {
        // The lines of a setting's description are one paragraph.
        let _ = writeln!(text, "  {name:<widest$} {}", value.replace('\n', " "));
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
    if let Some(record) = last {
        fact("measured here", catalogue::measured(record));
    }
    let schema = (entry.schema)().to_value();
    let described = |field: &str| {
        schema["properties"][field]["description"].as_str().unwrap_or_default().to_owned()
    };
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
        let text = describe(find(METHODS, "plain").unwrap(), None);
        insta::assert_snapshot!(text, @r"
        Plain run (none)
        Computes every token with one causal pass of one row: the baseline of all others.
          also called   plain
          promise       bit-exact
          settings      none
        ");
    }

    #[test]
    fn names_of_settings_do_not_run_into_what_they_mean() {
        for entry in METHODS {
            let text = describe(entry, None);
            for name in (entry.defaults)().keys() {
                let begins = |line: &str| line.trim_start().starts_with(&format!("{name} "));
                assert!(text.lines().any(begins), "{text}");
            }
            // All but the title and the summary is indented.
            assert!(text.lines().skip(2).all(|line| line.starts_with("  ")), "{text}");
        }
    }
}
