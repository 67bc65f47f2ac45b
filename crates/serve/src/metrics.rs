//! Counters, printed as Prometheus reads them.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use tessera_runtime::Stats;

/// What has happened since the server began.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Requests that wait.
    pub(crate) queued: AtomicU64,
    /// Requests that run.
    pub(crate) running: AtomicU64,
    /// Requests answered in full.
    answered: AtomicU64,
    /// Requests refused because the queue was full.
    pub(crate) refused: AtomicU64,
    /// Requests that the model failed on.
    pub(crate) failed: AtomicU64,
    /// Requests whose caller had gone.
    pub(crate) left: AtomicU64,
    /// Requests that took too long.
    late: AtomicU64,
    prompt_tokens: AtomicU64,
    reused_tokens: AtomicU64,
    drawn_tokens: AtomicU64,
    drafted_tokens: AtomicU64,
    accepted_tokens: AtomicU64,
    /// Passes of the model, each counted once however many requests shared it.
    pub(crate) passes: AtomicU64,
    /// Microseconds.
    prefill: AtomicU64,
    decode: AtomicU64,
}

impl Metrics {
    /// Counts a request whose time was over before it began.
    pub(crate) fn expired(&self) {
        self.late.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a run that came to an end.
    pub(crate) fn done(&self, stats: &Stats, late: bool, left: bool) {
        let outcome = match (late, left) {
            (true, _) => &self.late,
            (_, true) => &self.left,
            _ => &self.answered,
        };
        let micros = |seconds: f64| (seconds * 1e6) as u64;
        for (counter, value) in [
            (outcome, 1),
            (&self.prompt_tokens, stats.prompt_tokens as u64),
            (&self.reused_tokens, stats.reused_tokens as u64),
            (&self.drawn_tokens, stats.drawn_tokens as u64),
            (&self.drafted_tokens, stats.drafted_tokens as u64),
            (&self.accepted_tokens, stats.accepted_tokens as u64),
            (&self.prefill, micros(stats.prefill_seconds)),
            (&self.decode, micros(stats.decode_seconds)),
        ] {
            counter.fetch_add(value, Ordering::Relaxed);
        }
    }

    /// The counters that vLLM's dashboards read, by its names.
    pub(crate) fn aliases(&self) -> String {
        let mut page = String::new();
        for (name, kind, counter) in [
            ("vllm:num_requests_running", "gauge", &self.running),
            ("vllm:num_requests_waiting", "gauge", &self.queued),
            ("vllm:prompt_tokens_total", "counter", &self.prompt_tokens),
            ("vllm:generation_tokens_total", "counter", &self.drawn_tokens),
            ("vllm:prefix_cache_queries_total", "counter", &self.prompt_tokens),
            ("vllm:prefix_cache_hits_total", "counter", &self.reused_tokens),
            ("vllm:spec_decode_num_draft_tokens_total", "counter", &self.drafted_tokens),
            ("vllm:spec_decode_num_accepted_tokens_total", "counter", &self.accepted_tokens),
            ("vllm:request_success_total", "counter", &self.answered),
        ] {
            let value = counter.load(Ordering::Relaxed);
            let _ = writeln!(page, "# TYPE {name} {kind}\n{name} {value}");
        }
        page
    }

    /// The page.
    pub(crate) fn page(&self) -> String {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let lines: [(&str, &str, &str, f64); 15] = [
            ("tessera_requests_waiting", "gauge", "requests in the queue", get(&self.queued)),
            (
                "tessera_requests_running",
                "gauge",
                "requests that the model works on",
                get(&self.running),
            ),
            (
                "tessera_requests_answered_total",
                "counter",
                "requests answered in full",
                get(&self.answered),
            ),
            (
                "tessera_requests_refused_total",
                "counter",
                "requests refused by a full queue",
                get(&self.refused),
            ),
            (
                "tessera_requests_failed_total",
                "counter",
                "requests that the model failed on",
                get(&self.failed),
            ),
            (
                "tessera_requests_left_total",
                "counter",
                "requests whose caller had gone",
                get(&self.left),
            ),
            (
                "tessera_requests_late_total",
                "counter",
                "requests that took too long",
                get(&self.late),
            ),
            (
                "tessera_prompt_tokens_total",
                "counter",
                "tokens of prompts",
                get(&self.prompt_tokens),
            ),
            (
                "tessera_reused_tokens_total",
                "counter",
                "those found in a cache",
                get(&self.reused_tokens),
            ),
            ("tessera_drawn_tokens_total", "counter", "tokens made", get(&self.drawn_tokens)),
            (
                "tessera_drafted_tokens_total",
                "counter",
                "guesses computed",
                get(&self.drafted_tokens),
            ),
            (
                "tessera_accepted_tokens_total",
                "counter",
                "guesses that became text",
                get(&self.accepted_tokens),
            ),
            (
                "tessera_passes_total",
                "counter",
                "forward passes, shared ones once",
                get(&self.passes),
            ),
            (
                "tessera_prefill_seconds_total",
                "counter",
                "time of prompts",
                get(&self.prefill) / 1e6,
            ),
            (
                "tessera_decode_seconds_total",
                "counter",
                "time of decoding",
                get(&self.decode) / 1e6,
            ),
        ];
        let mut page = String::new();
        for (name, kind, help, value) in lines {
            let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
        page
    }
}
