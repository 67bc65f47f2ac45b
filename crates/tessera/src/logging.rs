//! The server's log: lines on stderr, as text or JSON, and spans for OpenTelemetry in builds that can send them.

use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// What is logged, and all that is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// What may be wrong.
    Warn,
    /// Requests and answers.
    Info,
}

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// A JSON object a line.
    Json,
}

/// What is logged until it is dropped.
#[derive(Default)]
pub(crate) struct Log {
    #[cfg(feature = "otel")]
    sender: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

impl Log {
    /// Begins to log. `endpoint` is where spans are sent.
    ///
    /// # Errors
    /// An endpoint in a build that sends none, or one that is no address.
    pub(crate) fn begin(
        level: LogLevel,
        format: LogFormat,
        endpoint: Option<&str>,
    ) -> anyhow::Result<Self> {
        let level = match level {
            LogLevel::Off => LevelFilter::OFF,
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
        };
        let only = |level| Targets::new().with_target("tessera_serve", level);
        let lines =
            tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
        let lines = match format {
            LogFormat::Json => lines
                .json()
                .flatten_event(true)
                .with_span_list(false)
                .with_filter(only(level))
                .boxed(),
            LogFormat::Text => {
                let colours =
                    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
                lines.with_ansi(colours).with_filter(only(level)).boxed()
            }
        };
        let (sent, log) = Self::sender(endpoint)?;
        let sent = sent.map(|layer| layer.with_filter(only(LevelFilter::INFO)));
        // A second server in one process keeps the first one's log.
        let _ = tracing_subscriber::registry().with(vec![lines]).with(sent).try_init();
        Ok(log)
    }

    #[cfg(not(feature = "otel"))]
    fn sender(
        endpoint: Option<&str>,
    ) -> anyhow::Result<(Option<tracing_subscriber::layer::Identity>, Self)> {
        match endpoint {
            None => Ok((None, Self::default())),
            Some(_) => {
                let what = "otlp-endpoint: this build sends nothing to OpenTelemetry. Next: build it with \
                            `--features otel`, or leave it out";
                Err(crate::failure::BadUsage(what.to_owned()).into())
            }
        }
    }

    #[cfg(feature = "otel")]
    fn sender<S>(
        endpoint: Option<&str>,
    ) -> anyhow::Result<(Option<impl tracing_subscriber::Layer<S> + use<S>>, Self)>
    where
        S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    {
        use opentelemetry::trace::TracerProvider as _;
        use opentelemetry_otlp::WithExportConfig as _;
        use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};

        let Some(endpoint) = endpoint else { return Ok((None, Self::default())) };
        let address = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_endpoint(address)
            .build()
            .map_err(|error| {
                let next = "Next: an address such as http://localhost:4318";
                crate::failure::BadUsage(format!("otlp-endpoint {endpoint}: {error}. {next}"))
            })?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(Resource::builder().with_service_name("tessera").build())
            .build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("tessera"));
        Ok((Some(layer), Self { sender: Some(provider) }))
    }
}

#[cfg(feature = "otel")]
impl Drop for Log {
    fn drop(&mut self) {
        // Sends what is still held; a collector that is away must not keep the server from ending.
        if let Some(sender) = self.sender.take() {
            let _ = sender.shutdown();
        }
    }
}
