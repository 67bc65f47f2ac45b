//! What a pull tells whoever is watching it.

/// One thing that happened during a pull, in the order it happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A source is being tried.
    Trying {
        /// The source, as a person would name it.
        source: &'a str,
    },
    /// A source gave nothing; the next one follows.
    Failed {
        /// The source, as a person would name it.
        source: &'a str,
        /// Why, one line.
        reason: &'a str,
    },
    /// Another pull of the same model is running; this one waits for it.
    Waiting {
        /// The model.
        name: &'a str,
    },
    /// Bytes of the file so far. `done` never falls while one source is tried,
    /// and is an estimate while a package manager does the fetching.
    Bytes {
        /// Bytes there.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Something worth a line that is no failure.
    Note {
        /// The line.
        text: &'a str,
    },
}

/// Receives the events of a pull.
pub type Listener<'a> = dyn FnMut(Event<'_>) + 'a;

/// Turns a series of byte counts that may step back into one that does not.
pub(super) struct Counter {
    shown: u64,
    total: u64,
}

impl Counter {
    pub(super) fn new(total: u64) -> Self {
        Self { shown: 0, total }
    }

    pub(super) fn at(&mut self, done: u64, events: &mut Listener<'_>) {
        self.shown = self.shown.max(done.min(self.total));
        events(Event::Bytes { done: self.shown, total: self.total });
    }
}
