//! A bar for work that turns out to take more than a second.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Work shorter than this shows nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// Progress on stderr, once it is worth showing. May be told from any thread.
pub(crate) struct SlowBar {
    label: &'static str,
    total: u64,
    start: Instant,
    shows: bool,
    bar: Mutex<Option<ProgressBar>>,
}

impl SlowBar {
    /// For `total` units of work; shows nothing if `quiet`, without colours, or off a terminal.
    pub(crate) fn new(label: &'static str, total: u64, quiet: bool) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let shows = !quiet && !plain && std::io::stderr().is_terminal();
        Self { label, total, start: Instant::now(), shows, bar: Mutex::new(None) }
    }

    /// `done` units are done.
    pub(crate) fn at(&self, done: u64) {
        if !self.shows || self.start.elapsed() < PATIENCE {
            return;
        }
        if let Ok(mut bar) = self.bar.lock() {
            bar.get_or_insert_with(|| {
                let bar = ProgressBar::new(self.total).with_prefix(self.label);
                if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:30}] {percent} %") {
                    bar.set_style(style.progress_chars("=> "));
                }
                bar
            })
            .set_position(done.min(self.total));
        }
    }

    /// The work is done: the bar goes.
    pub(crate) fn clear(&self) {
        if let Ok(mut bar) = self.bar.lock()
            && let Some(bar) = bar.take()
        {
            bar.finish_and_clear();
        }
    }
}

impl Drop for SlowBar {
    fn drop(&mut self) {
        self.clear();
    }
}
