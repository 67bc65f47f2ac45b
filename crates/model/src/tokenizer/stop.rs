//! Stop strings in streamed text, wherever the pieces are cut.

/// Watches streamed text for stop strings. Text that may be the start of one is held back. The
/// stop string that is complete first ends the text; of two complete at once, the longer.
#[derive(Debug, Clone, Default)]
pub struct StopMatcher {
    stops: Vec<Stop>,
    /// Text not yet given out.
    held: String,
}

#[derive(Debug, Clone)]
struct Stop {
    text: Vec<u8>,
    /// For each prefix, the length of its longest proper prefix that also ends it.
    fallback: Vec<usize>,
    /// How many bytes of `text` the stream ends with.
    matched: usize,
}

impl Stop {
    fn new(text: &str) -> Self {
        let text = text.as_bytes().to_vec();
        let mut fallback = vec![0; text.len()];
        let mut matched = 0;
        for at in 1..text.len() {
            while matched > 0 && text[at] != text[matched] {
                matched = fallback[matched - 1];
            }
            matched += usize::from(text[at] == text[matched]);
            fallback[at] = matched;
        }
        Self { text, fallback, matched: 0 }
    }

    /// Takes one byte; true when the stop string is complete.
    fn step(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.text.get(self.matched) != Some(&byte) {
            self.matched = self.fallback[self.matched - 1];
        }
        self.matched += usize::from(self.text.get(self.matched) == Some(&byte));
        self.matched == self.text.len()
    }
}

/// What became of a piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stopped {
    /// No stop string yet: this much can be shown.
    No(String),
    /// A stop string is complete: this comes before it and the rest is dropped.
    At {
        /// The text before the stop string that was not given out yet.
        before: String,
        /// Which stop string, in the order they were given.
        stop: usize,
    },
}

impl StopMatcher {
    /// Watches for these; empty ones match nothing.
    pub fn new<'a>(stops: impl IntoIterator<Item = &'a str>) -> Self {
        Self { stops: stops.into_iter().map(Stop::new).collect(), held: String::new() }
    }

    /// Takes the next piece. After [`Stopped::At`] the matcher is at the start of a text again.
    pub fn push(&mut self, piece: &str) -> Stopped {
        let fresh = self.held.len();
        self.held.push_str(piece);
        for (at, byte) in piece.bytes().enumerate() {
            let mut hit: Option<usize> = None;
            for index in 0..self.stops.len() {
                let complete = !self.stops[index].text.is_empty() && self.stops[index].step(byte);
                let longer = |old: usize| self.stops[index].text.len() > self.stops[old].text.len();
                if complete && hit.is_none_or(longer) {
                    hit = Some(index);
                }
            }
            if let Some(stop) = hit {
                let start = fresh + at + 1 - self.stops[stop].text.len();
                self.held.truncate(start);
                self.stops.iter_mut().for_each(|stop| stop.matched = 0);
                return Stopped::At { before: std::mem::take(&mut self.held), stop };
            }
        }
        // A match starts with the first byte of a character, so this cuts between characters.
        let hold = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - hold);
        Stopped::No(std::mem::replace(&mut self.held, rest))
    }

    /// Ends the text: what was held back after all.
    pub fn finish(&mut self) -> String {
        self.stops.iter_mut().for_each(|stop| stop.matched = 0);
        std::mem::take(&mut self.held)
    }
}
