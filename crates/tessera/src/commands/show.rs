//! `tessera show`: what a model is and what its file holds.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tessera_model::gguf::Gguf;
use tessera_model::store::{Entry, ModelRef, StoreError};
use tessera_model::tokenizer::HuggingFace;
use tessera_model::{FileSummary, open_weights};

use super::{result, size, store};
use crate::Globals;

/// What `show` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A name from `tessera list`, `org/repo[:QUANT][@revision]`, or a path.
    model: String,
    /// Print the chat template and nothing else.
    #[arg(long)]
    template: bool,
}

#[derive(Serialize)]
struct Shown {
    name: String,
    path: Option<PathBuf>,
    catalogue: Option<Entry>,
    file: Option<FileSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<String>,
}

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    let store = store(globals)?;
    let reference = store.parse(&arguments.model)?;
    let located = store.find(&reference)?;
    let name = reference.to_string();
    let mut shown =
        Shown { name: name.clone(), path: None, catalogue: None, file: None, template: None };
    match (located, &reference) {
        (Some(located), _) => {
            // What makes embeddings is an archive: the catalogue says what is in it.
            if !located.entry.as_ref().is_some_and(Entry::makes_embeddings) {
                let (file, template) = read(&located.path)?;
                shown.file = Some(file);
                shown.template = template.filter(|_| arguments.template);
            }
            shown.path = Some(located.path);
            shown.catalogue = located.entry;
        }
        (None, ModelRef::Catalogue(known)) if !arguments.template => {
            shown.catalogue = store.catalogue().get(known).cloned();
        }
        (None, ModelRef::Path(path)) => {
            return Err(StoreError::NoSuchPath { path: path.clone() }.into());
        }
        (None, _) => return Err(StoreError::NotInstalled { name }.into()),
    }
    if arguments.template {
        let Some(template) = &shown.template else {
            anyhow::bail!("`{name}` has no chat template in its file. Next: use it without a chat");
        };
        let text = format!("{template}\n");
        return result(globals, &shown, &text);
    }
    let text = describe(&shown);
    result(globals, &shown, &text)
}

/// The facts of a model file, and its chat template's text.
fn read(path: &Path) -> anyhow::Result<(FileSummary, Option<String>)> {
    if path.is_dir() {
        let summary = open_weights(path)?.summary();
        // A directory without a tokenizer can still be shown.
        let template = HuggingFace::from_directory(path).ok().and_then(|read| read.chat_template);
        return Ok((summary, template));
    }
    let file = Gguf::open(path)?;
    let template = file.metadata().get_str("tokenizer.chat_template").ok().flatten();
    Ok((FileSummary::of_gguf(&file), template.map(str::to_owned)))
}

/// One fact per line, the same order for every model.
fn describe(shown: &Shown) -> String {
    let mut text = format!("{}\n", shown.name);
    let mut fact = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<14}{value}");
    };
    if let Some(entry) = &shown.catalogue {
        fact("description", entry.description.clone());
    }
    match &shown.path {
        Some(path) => fact("file", path.display().to_string()),
        None => fact("file", format!("not here; `tessera pull {}` fetches it", shown.name)),
    }
    match (&shown.file, &shown.catalogue) {
        (Some(file), _) => {
            let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "not said".to_owned());
            let count = |n: Option<u64>| n.map_or_else(|| "not said".to_owned(), |n| n.to_string());
            fact("size", size(file.bytes));
            fact("format", file.format.clone());
            fact(
                "architecture",
                format!("{}, {} layers", or(&file.architecture), count(file.layers)),
            );
            fact("parameters", format!("{:.1} million", file.parameters as f64 / 1e6));
            let all: u64 = file.types.iter().map(|t| t.bytes).sum();
            for (i, share) in file.types.iter().enumerate() {
                let percent = 100.0 * share.bytes as f64 / all.max(1) as f64;
                let name = if i == 0 { "types" } else { "" };
                let bytes = size(share.bytes);
                fact(
                    name,
                    format!(
                        "{:<6}{percent:5.1} %  {bytes}, tensors: {}",
                        share.name, share.tensors
                    ),
                );
            }
            fact("context", format!("{} tokens", count(file.context)));
            fact(
                "vocabulary",
                format!("{} tokens, {}", count(file.vocabulary), or(&file.tokenizer)),
            );
            fact("chat template", if file.chat_template { "yes" } else { "no" }.to_owned());
            let known = shown.catalogue.as_ref().map(|e| e.licence.clone());
            fact("licence", or(&known.or_else(|| file.license.clone())));
        }
        (None, Some(entry)) => {
            fact("size", size(entry.bytes));
            fact("architecture", entry.architecture.clone());
            fact("context", format!("{} tokens", entry.context));
            fact("licence", entry.licence.clone());
        }
        (None, None) => {}
    }
    if let Some(entry) = &shown.catalogue {
        fact("sha256", entry.sha256.clone());
        for (i, source) in entry.sources.iter().enumerate() {
            fact(if i == 0 { "sources" } else { "" }, source.to_string());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use tessera_model::store::Catalogue;

    use super::*;

    #[test]
    fn a_model_that_is_not_here() {
        let entry = Catalogue::builtin().unwrap().get("gemma3:270m").unwrap().clone();
        let shown = Shown {
            name: entry.name.clone(),
            path: None,
            catalogue: Some(entry),
            file: None,
            template: None,
        };
        insta::assert_snapshot!(describe(&shown));
    }
}
