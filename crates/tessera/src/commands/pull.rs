//! `tessera pull`: fetch a model.

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use tessera_model::store::{Located, Store, StoreError};

use super::{result, size, store};
use crate::Globals;
use crate::pull_progress::PullProgress;

/// What `pull` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A name from `tessera list`, `org/repo[:QUANT][@revision]`, or hf://org/repo.
    model: String,
}

#[derive(Serialize)]
struct Pulled {
    name: String,
    path: PathBuf,
    bytes: u64,
    sha256: Option<String>,
    /// Whether nothing had to be fetched.
    already_here: bool,
    seconds: f64,
}

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    let store = store(globals)?;
    let start = Instant::now();
    let already_here = store.find(&store.parse(&arguments.model)?)?.is_some();
    let located = fetch(&store, globals, &arguments.model)?;
    let pulled = Pulled {
        name: located.name.clone(),
        bytes: store.bytes_of(&located),
        sha256: located.entry.as_ref().map(|e| e.sha256.clone()),
        path: located.path,
        already_here,
        seconds: start.elapsed().as_secs_f64(),
    };
    let text = if already_here {
        format!("{} is here: {} ({})\n", pulled.name, pulled.path.display(), size(pulled.bytes))
    } else {
        let (bytes, seconds) = (size(pulled.bytes), pulled.seconds);
        format!("{}: {bytes} in {seconds:.1} s, {}\n", pulled.name, pulled.path.display())
    };
    result(globals, &pulled, &text)
}

/// Makes sure a model is here, showing progress on stderr. For every command that needs
/// a model.
pub(crate) fn fetch(store: &Store, globals: &Globals, model: &str) -> Result<Located, StoreError> {
    let mut progress = PullProgress::new(model, globals.quiet);
    store.ensure_with(model, &mut |event| progress.hear(event))
}
