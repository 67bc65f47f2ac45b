//! An OpenAI-compatible HTTP server over one loaded model.
//!
//! The engine is synchronous: a worker thread (`worker`) owns the session and answers the requests of a bounded
//! queue in shared passes; everything asynchronous lives in this crate and ends at that queue. What a
//! request may say is written once, in `fields`; unknown fields are refused by name.
//!
//! | part | what |
//! |---|---|
//! | `fields` | the request's fields, their schema, refusals by name |
//! | `asked` | from fields to the engine's request |
//! | `generate` | chat and completions: what both begin with, whole answers |
//! | `stream` | the same as server-sent events |
//! | `tools` | functions that a model may call, and its calls |
//! | `scored` | logarithms of probabilities of given tokens (`echo`, `logprobs`) |
//! | `embedded` | embeddings: of an encoder, or by pooling |
//! | `pages` | models, tokens, health, metrics, the OpenAPI file |
//! | `page` | the pages for people, and checks run from them |
//! | `guard` | hosts, origins, keys; a line of the log for each request |
//! | `operator` | another model, for the operator |
//! | `pieces` | what the worker tells of a request |
//! | `worker` | the thread that runs the model: who is admitted, ended and told what |
//! | `prefixes` | rows of prompts that were computed before, by caller |

mod asked;
mod embedded;
mod fault;
mod fields;
mod generate;
mod guard;
mod metrics;
mod operator;
mod page;
mod pages;
mod pieces;
mod prefixes;
mod scored;
mod state;
mod stream;
mod tools;
mod worker;

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tessera_runtime::Session;

pub use fault::Fault;
pub use state::{App, Loading, Models};

/// How a server is run.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address to listen on.
    pub host: IpAddr,
    /// Port; 0 takes a free one.
    pub port: u16,
    /// Keys, one of which a request has to carry; none where the address is this machine's own.
    pub keys: Vec<String>,
    /// Names of models that the operator may ask for instead of the first (`POST /admin/model`).
    pub models: Vec<String>,
    /// The key that the operator has to bring. Needed where others have keys.
    pub operator_key: Option<String>,
    /// Further names that requests may call this server by, without the port.
    pub names: Vec<String>,
    /// Slugs of the methods that requests may ask for; `None` for all that are part of a run.
    pub methods: Option<Vec<String>>,
    /// Methods of requests that name none.
    pub recipe: tessera_runtime::Recipe,
    /// Whether the page may run checks: a minute each, in which other requests wait.
    pub checks: bool,
    /// Whether /metrics also has the names that vLLM's dashboards read.
    pub vllm_metrics: bool,
    /// Requests that may wait. More are refused with 429.
    pub queue: usize,
    /// Texts that grow at the same time; requests beyond wait.
    pub texts: usize,
    /// Most bytes of all caches; requests that could need more wait, and one that needs more alone is
    /// refused.
    pub cache_bytes: usize,
    /// Longest time of a request, waiting included.
    pub longest: Duration,
    /// Most tokens of an answer.
    pub most_tokens: usize,
    /// Most answers to one request.
    pub most_choices: usize,
    /// Most bytes of a request's body.
    pub most_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            host: IpAddr::from([127, 0, 0, 1]),
            port: 8080,
            keys: Vec::new(),
            models: Vec::new(),
            operator_key: None,
            names: Vec::new(),
            methods: None,
            recipe: tessera_runtime::Recipe::plain(),
            checks: true,
            vllm_metrics: false,
            queue: 64,
            texts: 64,
            cache_bytes: 4 << 30,
            longest: Duration::from_secs(300),
            most_tokens: 4096,
            most_choices: 8,
            most_bytes: 2 << 20,
        }
    }
}

/// Why a server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting that would be unsafe or impossible.
    #[error("{0}")]
    Setting(String),
    /// The address cannot be listened on.
    #[error("{address}: {source}. Next: another --port, or stop what listens there")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// The server broke off.
    #[error("the server broke off: {0}")]
    Serving(#[from] std::io::Error),
}

impl Config {
    /// Checks what must hold before anything is listened on.
    ///
    /// # Errors
    /// [`Error::Setting`]: an address that others reach without a key, a limit of nothing.
    pub fn validate(&self) -> Result<(), Error> {
        if !self.host.is_loopback() && self.keys.is_empty() {
            let what = format!(
                "host = {}: others can reach it, so requests need a key. Next: --api-key-file FILE, or \
                 leave --host out",
                self.host
            );
            return Err(Error::Setting(what));
        }
        if self.keys.iter().chain(&self.operator_key).any(|key| key.len() < 8) {
            return Err(Error::Setting("a key is shorter than 8 bytes: make it longer".to_owned()));
        }
        match &self.operator_key {
            Some(key) if self.keys.contains(key) => {
                let what = "the operator's key is one of the callers': make another";
                return Err(Error::Setting(what.to_owned()));
            }
            None if !self.models.is_empty() && !self.keys.is_empty() => {
                let what = "swap-model: whoever has a key could change the model. Next: \
                            --operator-key-file FILE";
                return Err(Error::Setting(what.to_owned()));
            }
            _ => {}
        }
        for (name, value) in [
            ("max-queue", self.queue),
            ("max-running", self.texts),
            ("max-cache", self.cache_bytes),
            ("max-tokens", self.most_tokens),
            ("max-choices", self.most_choices),
            ("max-bytes", self.most_bytes),
            ("max-seconds", self.longest.as_secs() as usize),
        ] {
            if value == 0 {
                return Err(Error::Setting(format!("{name} = 0: must be at least 1")));
            }
        }
        Ok(())
    }
}

/// The routes over a model that may still be loading.
pub fn router(app: App) -> Router {
    let limit = app.config().most_bytes;
    Router::new()
        .route("/v1/chat/completions", post(generate::chat))
        .route("/v1/completions", post(generate::completions))
        .route("/v1/embeddings", post(embedded::embeddings))
        .route("/v1/models", get(pages::models))
        .route("/tokenize", post(pages::tokenize))
        .route("/detokenize", post(pages::detokenize))
        .route("/tokenizer_info", get(pages::tokenizer))
        .route("/health", get(pages::health))
        .route("/ready", get(pages::health))
        .route("/version", get(pages::version))
        .route("/metrics", get(pages::metrics))
        .route("/openapi.json", get(pages::openapi))
        .route("/admin/model", post(operator::swap))
        .route("/v1/methods", get(page::listed))
        .route("/v1/methods/{slug}/check", post(page::check))
        .route("/", get(page::chat))
        .route("/docs", get(page::docs))
        .route("/methods", get(page::methods))
        .route("/methods/{slug}", get(page::method))
        .route("/page.css", get(page::style))
        .route("/page.js", get(page::script))
        .fallback(pages::nowhere)
        .method_not_allowed_fallback(pages::not_so)
        .layer(from_fn_with_state(app.clone(), guard::check))
        .layer(DefaultBodyLimit::max(limit))
        .with_state(app)
}

/// Serves until `stop` ends, then finishes what has begun. `load` runs on the worker's thread while the
/// server already answers `/health`, and `again` if the operator asks for another model; `ready` hears the
/// address once it is listened on.
///
/// # Errors
/// [`Error`], or what `load` reports.
pub async fn serve<E: Send + 'static, M: Into<Models>>(
    config: Config,
    load: impl FnOnce() -> Result<M, E> + Send + 'static,
    again: impl FnMut(&str) -> Result<Session, String> + Send + 'static,
    ready: impl FnOnce(SocketAddr),
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<Result<(), E>, Error> {
    config.validate()?;
    let address = SocketAddr::new(config.host, config.port);
    let listen = tokio::net::TcpListener::bind(address).await;
    let listener = listen.map_err(|source| Error::Listen { address, source })?;
    let (app, loading) = App::begin_with(config, load, again);
    ready(listener.local_addr()?);
    let (failed, broken) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        if let Some(error) = loading.failure().await {
            // Nobody listens once the server has ended by itself.
            let _ = failed.send(error);
        }
    });
    let draining = app.clone();
    // A model that cannot be loaded ends the server; one that is loaded only drops the sender.
    let broken = async {
        match broken.await {
            Ok(error) => error,
            Err(_) => std::future::pending().await,
        }
    };
    let (ended, failure) = tokio::sync::oneshot::channel();
    let until = async move {
        tokio::select! {
            () = stop => {}
            error = broken => drop(ended.send(error)),
        }
        draining.drain();
    };
    let until: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(until);
    axum::serve(listener, router(app)).with_graceful_shutdown(until).await?;
    Ok(failure.await.map_or(Ok(()), Err))
}
