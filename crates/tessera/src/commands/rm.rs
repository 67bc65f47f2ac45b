//! `tessera rm`: delete a model.

use super::{result, size, store};
use crate::Globals;
use crate::pull_progress::PullProgress;

/// What `rm` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A name from `tessera list`, or `org/repo[:QUANT][@revision]`.
    model: String,
    /// Delete from the Hugging Face cache too, which other programs share.
    #[arg(long)]
    hub_cache: bool,
}

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    let store = store(globals)?;
    let mut progress = PullProgress::new(&arguments.model, globals.quiet);
    let removed =
        store.remove(&arguments.model, arguments.hub_cache, &mut |event| progress.hear(event))?;
    let mut text = format!("removed {}, {} freed\n", removed.name, size(removed.bytes));
    for path in &removed.paths {
        text.push_str(&format!("  {}\n", path.display()));
    }
    if let Some(kept) = &removed.kept {
        let kept = kept.display();
        text.push_str(&format!("kept {kept} (shared; `--hub-cache` deletes it too)\n"));
    }
    result(globals, &removed, &text)
}
