//! `tessera serve`: one model over HTTP, as OpenAI's clients ask.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tessera_core::entry::find;
use tessera_runtime::{METHODS, Recipe};
use tessera_serve::{Config, Models};

use super::serve_settings::ServeSettings;
use crate::Globals;
use crate::constraints::method_call;
use crate::failure::BadUsage;
use crate::flags::ModelFlags;
use crate::logging::{Log, LogFormat, LogLevel};

/// What `serve` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A TOML file with settings under `[serve]`, named as the flags; flags come before it.
    #[arg(long, value_name = "FILE", env = "TESSERA_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: ServeSettings,
    #[command(flatten)]
    flags: ModelFlags,
}

/// The server's configuration.
fn configuration(all: &ServeSettings) -> anyhow::Result<Config> {
    let keys = all
        .api_key_file
        .as_deref()
        .map_or(Ok(Vec::new()), |path| listed_keys("api-key-file", path))?;
    let operator_key = match &all.operator_key_file {
        None => None,
        Some(path) => match listed_keys("operator-key-file", path)?.as_slice() {
            [only] => Some(only.clone()),
            several => {
                let what = format!(
                    "operator-key-file {}: holds {} keys. Next: write one",
                    path.display(),
                    several.len()
                );
                return Err(BadUsage(what).into());
            }
        },
    };
    let listed = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let calls: Vec<_> =
        listed(&all.method).iter().map(|text| method_call(text)).collect::<Result<_, _>>()?;
    let recipe = Recipe::resolve(METHODS, &calls)?;
    let allow = listed(&all.allow);
    let allow = allow.iter().map(|slug| Ok(find(METHODS, slug)?.slug.to_owned()));
    let allow = allow.collect::<anyhow::Result<Vec<String>>>()?;
    let own = Config::default();
    let config = Config {
        host: all.host.unwrap_or(own.host),
        port: all.port.unwrap_or(own.port),
        keys,
        models: listed(&all.swap_model),
        operator_key,
        names: listed(&all.name),
        methods: (!allow.is_empty()).then_some(allow),
        recipe,
        checks: !all.no_checks.unwrap_or(false),
        vllm_metrics: all.vllm_metrics.unwrap_or(false),
        queue: all.max_queue.unwrap_or(own.queue),
        texts: all.max_running.unwrap_or(own.texts),
        cache_bytes: all.max_cache.map_or(own.cache_bytes, |mib| mib.saturating_mul(1 << 20)),
        longest: all.max_seconds.map_or(own.longest, Duration::from_secs),
        most_tokens: all.max_tokens.unwrap_or(own.most_tokens),
        most_choices: all.max_choices.unwrap_or(own.most_choices),
        most_bytes: all.max_bytes.unwrap_or(own.most_bytes),
    };
    config.validate().map_err(|error| BadUsage(error.to_string()))?;
    Ok(config)
}

/// The keys of a file: its lines, without empty ones and those that begin with `#`.
fn listed_keys(flag: &str, path: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{flag} {}: cannot be read", path.display()))?;
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<String> = lines.map(str::to_owned).collect();
    match keys.is_empty() {
        true => {
            let what = format!("{flag} {}: holds no key. Next: write one a line", path.display());
            Err(BadUsage(what).into())
        }
        false => Ok(keys),
    }
}

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    let settings = arguments.settings.resolved(arguments.config.as_deref())?;
    let config = configuration(&settings)?;
    let level = settings.log.unwrap_or(LogLevel::Warn);
    let format = settings.log_format.unwrap_or(LogFormat::Text);
    // Before the asynchronous part begins: what sends spans may not start within it.
    let _log = Log::begin(level, format, settings.otlp_endpoint.as_deref())?;
    let (flags, globals) = (arguments.flags.clone(), globals.clone());
    let (model, draft) = (settings.model.unwrap_or_default(), settings.draft_model);
    let quiet = globals.quiet;
    // Nothing is fetched because a request asks for it.
    let here = Globals { offline: true, quiet: true, ..globals.clone() };
    let (others, first, its_draft) = (flags.clone(), model.clone(), draft.clone());
    let again = move |name: &str| {
        let draft = its_draft.as_deref().filter(|_| name == first);
        others.open(&here, name, draft).map_err(|error| format!("{error:#}"))
    };
    let embeds = settings.embedding_model;
    let load = move || {
        let encoder = embeds.map(|name| flags.open_encoder(&globals, &name)).transpose()?;
        let session = flags.open(&globals, &model, draft.as_deref())?;
        if !quiet {
            let _ = writeln!(std::io::stderr(), "ready: {model}");
        }
        anyhow::Ok(Models { session, encoder })
    };
    let ready = move |address: SocketAddr| {
        if !quiet {
            let _ = writeln!(std::io::stderr(), "listening on http://{address} (Ctrl-C ends it)");
        }
    };
    let runtime = tokio::runtime::Runtime::new().context("cannot start the server's threads")?;
    runtime.block_on(tessera_serve::serve(config, load, again, ready, stopped()))?
}

/// Ends with the first Ctrl-C or SIGTERM; a second Ctrl-C ends the program at once.
async fn stopped() {
    let interrupted = async {
        // Without a handler the signal ends the program as it always does.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminated = async {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => drop(terminate.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<()>();
    tokio::select! {
        () = interrupted => {}
        () = terminated => {}
    }
    tokio::spawn(async {
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(130);
        }
    });
}
