//! `tessera completions` and `tessera man`: what shells and `man` read, made of the command line itself.

use std::io::Write;
use std::path::PathBuf;

use crate::Globals;

/// What `completions` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Completions {
    /// The shell.
    shell: clap_complete::Shell,
}

/// What `man` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Man {
    /// Write a page for every command into this directory instead of the first page to the terminal.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(crate) fn completions(
    arguments: &Completions,
    mut command: clap::Command,
) -> anyhow::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "tessera", &mut text);
    std::io::stdout().lock().write_all(&text)?;
    Ok(())
}

pub(crate) fn man(
    globals: &Globals,
    arguments: &Man,
    command: clap::Command,
) -> anyhow::Result<()> {
    let Some(dir) = &arguments.dir else {
        let mut text = Vec::new();
        clap_mangen::Man::new(command).render(&mut text)?;
        std::io::stdout().lock().write_all(&text)?;
        return Ok(());
    };
    let named = |e: std::io::Error| anyhow::anyhow!("{}: {e}", dir.display());
    std::fs::create_dir_all(dir).map_err(named)?;
    clap_mangen::generate_to(command, dir).map_err(named)?;
    let pages = std::fs::read_dir(dir).map_err(named)?.count();
    super::result(globals, &serde_json::json!({ "pages": pages }), &format!("{pages} pages\n"))
}
