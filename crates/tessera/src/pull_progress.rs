//! A pull as a person watches it: a bar on a terminal, now and then a line elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tessera_model::store::Event;

use crate::commands::size;

/// Without a bar, a line is written at most this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows the events of one pull on stderr.
pub(crate) struct PullProgress {
    name: String,
    how: How,
}

enum How {
    Silent,
    Lines { last: Instant, shown: bool },
    Bar(Option<ProgressBar>),
}

impl PullProgress {
    /// A bar where stderr is a terminal that may be painted, else lines; nothing if quiet.
    pub(crate) fn new(name: &str, quiet: bool) -> Self {
        let paint = std::io::stderr().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let how = match (quiet, paint) {
            (true, _) => How::Silent,
            (false, true) => How::Bar(None),
            (false, false) => How::Lines { last: Instant::now(), shown: false },
        };
        Self { name: name.to_owned(), how }
    }

    /// Takes one event.
    pub(crate) fn hear(&mut self, event: Event<'_>) {
        match event {
            Event::Trying { source } => {
                if let How::Bar(bar) = &mut self.how
                    && let Some(bar) = bar.take()
                {
                    bar.finish_and_clear();
                }
                self.say(&format!("fetching from {source}"));
            }
            Event::Failed { source, reason } => self.say(&format!("{source}: {reason}")),
            Event::Waiting { .. } => self.say("waiting for another pull of it"),
            Event::Note { text } => self.say(text),
            Event::Bytes { done, total } => self.bytes(done, total),
            _ => {}
        }
    }

    fn say(&self, text: &str) {
        let line = format!("{}: {text}", self.name);
        match &self.how {
            How::Silent => {}
            How::Bar(Some(bar)) => bar.println(line),
            How::Bar(None) | How::Lines { .. } => {
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        }
    }

    fn bytes(&mut self, done: u64, total: u64) {
        match &mut self.how {
            How::Silent => {}
            How::Bar(bar) => {
                let bar = bar.get_or_insert_with(|| new_bar(&self.name, total));
                bar.set_position(done);
                if done >= total {
                    bar.finish_and_clear();
                }
            }
            How::Lines { last, shown } => {
                if last.elapsed() >= LINE_EVERY || (*shown && done >= total) {
                    *last = Instant::now();
                    *shown = done < total;
                    let percent = done.saturating_mul(100) / total.max(1);
                    let line = format!("{percent} %, {} of {}", size(done), size(total));
                    self.say(&line);
                }
            }
        }
    }
}

impl Drop for PullProgress {
    fn drop(&mut self) {
        if let How::Bar(Some(bar)) = &self.how {
            bar.finish_and_clear();
        }
    }
}

fn new_bar(name: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total).with_prefix(name.to_owned());
    let template = "{prefix} [{bar:30}] {decimal_bytes} of {decimal_total_bytes}, \
                    {decimal_bytes_per_sec}, {eta} left";
    // The template is fixed, so this cannot fail; the plain style would do if it did.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
