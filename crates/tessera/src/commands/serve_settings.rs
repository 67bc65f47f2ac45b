//! The settings of `tessera serve`: flags and environment before the file before the defaults.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::failure::BadUsage;
use crate::logging::{LogFormat, LogLevel};

/// Every setting of the server that may stand in a file. `None` is what was not given.
#[derive(Debug, Clone, Default, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ServeSettings {
    /// A name from `tessera list`, `org/repo[:QUANT][@revision]`, or a path (default: smollm2).
    pub(crate) model: Option<String>,
    /// Address to listen on (default: 127.0.0.1). One that others can reach needs --api-key-file.
    #[arg(long, value_name = "ADDRESS", env = "TESSERA_HOST")]
    pub(crate) host: Option<IpAddr>,
    /// Port; 0 takes a free one (default: 8080).
    #[arg(long, env = "TESSERA_PORT")]
    pub(crate) port: Option<u16>,
    /// Keys, one a line; a request carries one as `Authorization: Bearer KEY`.
    #[arg(long, value_name = "FILE", env = "TESSERA_API_KEY_FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// A model made for embeddings beside the other: `all-minilm`, or a directory or zip archive as
    /// sentence-transformers stores it.
    #[arg(long, value_name = "MODEL")]
    pub(crate) embedding_model: Option<String>,
    /// A model that the operator may ask for instead of the first (`POST /admin/model`); may be given several
    /// times. It has to be on this machine already.
    #[arg(long, value_name = "MODEL")]
    pub(crate) swap_model: Option<Vec<String>>,
    /// The operator's key; needed for --swap-model where others have keys.
    #[arg(long, value_name = "FILE", env = "TESSERA_OPERATOR_KEY_FILE")]
    pub(crate) operator_key_file: Option<PathBuf>,
    /// What is logged on stderr: a line for each request and answer from info on (default: warn). Never prompts,
    /// answers or keys.
    #[arg(long, value_enum, value_name = "LEVEL", env = "TESSERA_LOG")]
    pub(crate) log: Option<LogLevel>,
    /// How it is written (default: text).
    #[arg(long, value_enum, value_name = "FORMAT", env = "TESSERA_LOG_FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
    /// Where spans of requests are sent by OpenTelemetry's protocol over HTTP, such as
    /// http://localhost:4318 (in builds with `--features otel`).
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub(crate) otlp_endpoint: Option<String>,
    /// A further name that requests may call this server by; may be given several times.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<Vec<String>>,
    /// A method of requests that name none, as `slug` or `slug:key=value,...`; may be given several
    /// times.
    #[arg(long, value_name = "METHOD", env = "TESSERA_METHOD")]
    pub(crate) method: Option<Vec<String>>,
    /// A method that requests may ask for; may be given several times (default: all).
    #[arg(long, value_name = "SLUG")]
    pub(crate) allow: Option<Vec<String>>,
    /// A smaller model with the same vocabulary, for methods that need one.
    #[arg(long, value_name = "MODEL", env = "TESSERA_DRAFT_MODEL")]
    pub(crate) draft_model: Option<String>,
    /// Do not run checks from the page: each takes a minute, in which other requests wait.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) no_checks: Option<bool>,
    /// Let /metrics also have the names that vLLM's dashboards read.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) vllm_metrics: Option<bool>,
    /// Requests that may wait; more are refused with 429 (default: 64).
    #[arg(long, value_name = "N")]
    pub(crate) max_queue: Option<usize>,
    /// Texts that grow at the same time; requests beyond wait (default: 64).
    #[arg(long, value_name = "N")]
    pub(crate) max_running: Option<usize>,
    /// Most MiB of all caches; requests that could need more wait (default: 4096).
    #[arg(long, value_name = "MIB")]
    pub(crate) max_cache: Option<usize>,
    /// Longest time of a request in seconds, waiting included (default: 300).
    #[arg(long, value_name = "SECONDS")]
    pub(crate) max_seconds: Option<u64>,
    /// Most tokens of an answer (default: 4096).
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// Most answers to one request (default: 8).
    #[arg(long, value_name = "N")]
    pub(crate) max_choices: Option<usize>,
    /// Most bytes of a request (default: 2097152).
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_bytes: Option<usize>,
}

/// A settings file.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct File {
    /// What `tessera serve` reads.
    pub(crate) serve: ServeSettings,
}

impl File {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("config {}: cannot be read", path.display()))?;
        toml::from_str(&text).map_err(|error| {
            let what = format!("config {}: {}", path.display(), error.to_string().trim_end());
            BadUsage(what).into()
        })
    }
}

/// Calls `$each!(field)` for every setting.
macro_rules! settings {
    ($each:ident) => {
        $each!(
            model,
            host,
            port,
            api_key_file,
            embedding_model,
            swap_model,
            operator_key_file,
            log,
            log_format,
            otlp_endpoint,
            name,
            method,
            allow,
            draft_model,
            no_checks,
            vllm_metrics,
            max_queue,
            max_running,
            max_cache,
            max_seconds,
            max_tokens,
            max_choices,
            max_bytes
        )
    };
}

impl ServeSettings {
    /// What holds if nothing is given.
    pub(crate) fn defaults() -> Self {
        Self {
            model: Some("smollm2".to_owned()),
            host: Some(IpAddr::from([127, 0, 0, 1])),
            port: Some(8080),
            api_key_file: None,
            embedding_model: None,
            swap_model: Some(Vec::new()),
            operator_key_file: None,
            log: Some(LogLevel::Warn),
            log_format: Some(LogFormat::Text),
            otlp_endpoint: None,
            name: Some(Vec::new()),
            method: Some(Vec::new()),
            allow: Some(Vec::new()),
            draft_model: None,
            no_checks: Some(false),
            vllm_metrics: Some(false),
            max_queue: Some(64),
            max_running: Some(64),
            max_cache: Some(4096),
            max_seconds: Some(300),
            max_tokens: Some(4096),
            max_choices: Some(8),
            max_bytes: Some(2 << 20),
        }
    }

    /// `self` where it says something, else `other`.
    pub(crate) fn or(self, other: Self) -> Self {
        macro_rules! merged {
            ($($field:ident),*) => { Self { $($field: self.$field.or(other.$field)),* } };
        }
        settings!(merged)
    }

    /// Flags and environment, then the file, then the defaults.
    pub(crate) fn resolved(&self, config: Option<&Path>) -> anyhow::Result<Self> {
        let file = config.map(File::read).transpose()?.unwrap_or_default();
        Ok(self.clone().or(file.serve).or(Self::defaults()))
    }

    /// As a file would hold it, with where each setting comes from.
    pub(crate) fn told(&self, config: Option<&Path>) -> anyhow::Result<String> {
        let file = config.map(File::read).transpose()?.unwrap_or_default().serve;
        let value = toml::Table::try_from(self.resolved(config)?)?;
        let (given, file) = (toml::Table::try_from(self)?, toml::Table::try_from(file)?);
        let mut text = String::from("[serve]\n");
        for (name, value) in value {
            let from = match (given.contains_key(&name), file.contains_key(&name)) {
                (true, _) => "flag or environment",
                (_, true) => "file",
                _ => "default",
            };
            text += &format!("{name} = {value} # {from}\n");
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_come_before_the_file_and_the_file_before_the_defaults() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tessera.toml");
        std::fs::write(&path, "[serve]\nport = 9000\nmax-queue = 3\nno-checks = true\n").unwrap();
        let flags = ServeSettings { port: Some(1), ..ServeSettings::default() };
        let all = flags.resolved(Some(&path)).unwrap();
        assert_eq!((all.port, all.max_queue, all.max_tokens), (Some(1), Some(3), Some(4096)));
        let told = flags.told(Some(&path)).unwrap();
        for line in [
            "port = 1 # flag or environment",
            "max-queue = 3 # file",
            "host = \"127.0.0.1\" # default",
        ] {
            assert!(told.contains(line), "{told}");
        }
        // What is shown is a file again.
        let again: File = toml::from_str(&told).unwrap();
        assert_eq!(again.serve, all);
    }

    #[test]
    fn a_file_with_what_is_unknown_is_refused_with_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tessera.toml");
        for text in
            ["[serve]\nprot = 1\n", "[server]\n", "[serve]\nport = \"x\"\n", "port = 1\n", "[serve"]
        {
            std::fs::write(&path, text).unwrap();
            let error = ServeSettings::default().resolved(Some(&path)).unwrap_err().to_string();
            assert!(error.starts_with("config ") && error.contains("line"), "{error}");
        }
    }
}
