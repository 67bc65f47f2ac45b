//! `tessera serve`: one model over HTTP, as OpenAI's clients ask.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tessera_core::entry::find;
use tessera_runtime::{METHODS, Recipe};
use tessera_serve::Config;

use crate::Globals;
use crate::constraints::method_call;
use crate::failure::BadUsage;
use crate::flags::ModelFlags;

/// What `serve` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A name from `tessera list`, `org/repo[:QUANT][@revision]`, or a path.
    #[arg(default_value = "smollm2")]
    model: String,
    /// Address to listen on. One that others can reach needs --api-key-file.
    #[arg(long, value_name = "ADDRESS", env = "TESSERA_HOST", default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port; 0 takes a free one.
    #[arg(long, env = "TESSERA_PORT", default_value_t = 8080)]
    port: u16,
    /// Keys, one a line; a request carries one as `Authorization: Bearer KEY`.
    #[arg(long, value_name = "FILE", env = "TESSERA_API_KEY_FILE")]
    api_key_file: Option<PathBuf>,
    /// A further name that requests may call this server by; may be given several times.
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// A method of requests that name none, as `slug` or `slug:key=value,...`; may be given several
    /// times.
    #[arg(long, value_name = "METHOD", env = "TESSERA_METHOD")]
    method: Vec<String>,
    /// A method that requests may ask for; may be given several times (default: all).
    #[arg(long, value_name = "SLUG")]
    allow: Vec<String>,
    /// A smaller model with the same vocabulary, for methods that need one.
    #[arg(long, value_name = "MODEL", env = "TESSERA_DRAFT_MODEL")]
    draft_model: Option<String>,
    /// Requests that may wait; more are refused with 429.
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_queue: usize,
    /// Do not run checks from the page: each takes a minute, in which other requests wait.
    #[arg(long)]
    no_checks: bool,
    /// Texts that grow at the same time; requests beyond wait.
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_running: usize,
    /// Most MiB of all caches; requests that could need more wait.
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    max_cache: usize,
    /// Longest time of a request in seconds, waiting included.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    max_seconds: u64,
    /// Most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_tokens: usize,
    /// Most answers to one request.
    #[arg(long, value_name = "N", default_value_t = 8)]
    max_choices: usize,
    /// Most bytes of a request.
    #[arg(long, value_name = "BYTES", default_value_t = 2 << 20)]
    max_bytes: usize,
    #[command(flatten)]
    flags: ModelFlags,
}

impl Arguments {
    fn config(&self) -> anyhow::Result<Config> {
        let keys = self.api_key_file.as_deref().map_or(Ok(Vec::new()), keys)?;
        let calls = self.method.iter().map(|text| method_call(text));
        let recipe = Recipe::resolve(METHODS, &calls.collect::<Result<Vec<_>, _>>()?)?;
        let allow = self.allow.iter().map(|slug| Ok(find(METHODS, slug)?.slug.to_owned()));
        let allow = allow.collect::<anyhow::Result<Vec<String>>>()?;
        let config = Config {
            host: self.host,
            port: self.port,
            keys,
            names: self.name.clone(),
            methods: (!allow.is_empty()).then_some(allow),
            recipe,
            checks: !self.no_checks,
            queue: self.max_queue,
            texts: self.max_running,
            cache_bytes: self.max_cache.saturating_mul(1 << 20),
            longest: Duration::from_secs(self.max_seconds),
            most_tokens: self.max_tokens,
            most_choices: self.max_choices,
            most_bytes: self.max_bytes,
        };
        config.validate().map_err(|error| BadUsage(error.to_string()))?;
        Ok(config)
    }
}

/// The keys of a file: its lines, without empty ones and those that begin with `#`.
fn keys(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("api-key-file {}: cannot be read", path.display()))?;
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<String> = lines.map(str::to_owned).collect();
    match keys.is_empty() {
        true => {
            let what =
                format!("api-key-file {}: holds no key. Next: write one a line", path.display());
            Err(BadUsage(what).into())
        }
        false => Ok(keys),
    }
}

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    let config = arguments.config()?;
    let (flags, globals, model) =
        (arguments.flags.clone(), globals.clone(), arguments.model.clone());
    let draft = arguments.draft_model.clone();
    let quiet = globals.quiet;
    let load = move || {
        let session = flags.open(&globals, &model, draft.as_deref());
        if !quiet && session.is_ok() {
            let _ = writeln!(std::io::stderr(), "ready: {model}");
        }
        session
    };
    let ready = move |address: SocketAddr| {
        if !quiet {
            let _ = writeln!(std::io::stderr(), "listening on http://{address} (Ctrl-C ends it)");
        }
    };
    let runtime = tokio::runtime::Runtime::new().context("cannot start the server's threads")?;
    runtime.block_on(tessera_serve::serve(config, load, ready, stopped()))?
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
