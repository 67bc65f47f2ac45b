//! `tessera config`: the server's settings as they are read.

use std::path::PathBuf;

use super::result;
use super::serve_settings::{File, ServeSettings};
use crate::Globals;
use crate::failure::BadUsage;

/// What `config` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Show the settings file, or with --resolved every setting and where it comes from.
    Show {
        /// Flags and environment, then the file, then the defaults.
        #[arg(long)]
        resolved: bool,
        /// The file.
        #[arg(long, value_name = "FILE", env = "TESSERA_CONFIG")]
        config: Option<PathBuf>,
        #[command(flatten)]
        given: Box<ServeSettings>,
    },
}

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    let What::Show { resolved, config, given } = &arguments.command;
    if *resolved {
        let all = File { serve: given.resolved(config.as_deref())? };
        return result(globals, &all, &given.told(config.as_deref())?);
    }
    let Some(path) = config else {
        let what = "config: no file is given. Next: --config FILE, or --resolved for every setting";
        return Err(BadUsage(what.to_owned()).into());
    };
    let file = File::read(path)?;
    result(globals, &file, &toml::to_string(&file)?)
}
