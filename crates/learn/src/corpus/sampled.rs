//! Stories sampled from a model into a corpus file.
//!
//! Story `i` depends on the seed and `i` alone, and stories are written in the order of their
//! numbers. Beside the file lies its state (`FILE.state`): how many stories were judged, how many
//! bytes of the file belong to them. After a crash the file is cut to that length and the work goes
//! on; the file ends up the same, byte for byte.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tessera_core::Vocabulary;
use tessera_core::dist::Sampling;
use tessera_runtime::{Message, Prompt, Session};

use super::batch::{Batch, Ended, Settings};
use super::{Filter, Verdict, documents, prompts};
use crate::files::{read, write_whole};
use crate::{Error, Result};

/// Stories judged between two states on disk, times the width of the batch.
const ROUNDS: u32 = 2;

/// What is asked for.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Order {
    /// The model, as it was named.
    pub model: String,
    /// The seed of words and draws.
    pub seed: u64,
    /// Most tokens of a story.
    pub most: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
}

/// Where the work stands.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct State {
    /// What was asked for; a file is continued under the same order only.
    pub order: Order,
    /// Stories judged so far.
    pub judged: u32,
    /// Bytes of the corpus file.
    pub bytes: u64,
    /// Tokens of the model in all judged stories.
    pub tokens: u64,
    /// Tokens of the model in the stories that were kept.
    pub kept_tokens: u64,
    /// Stories by what became of them.
    pub verdicts: BTreeMap<String, u64>,
    /// Seconds of sampling, over all runs.
    pub seconds: f64,
}

impl State {
    /// Tokens a second over all runs, dropped stories included.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds.max(1e-9)
    }

    fn path(corpus: &Path) -> PathBuf {
        let mut name = corpus.as_os_str().to_owned();
        name.push(".state");
        PathBuf::from(name)
    }

    /// The state beside a corpus file, if there is one.
    ///
    /// # Errors
    /// A state file that cannot be read.
    pub fn load(corpus: &Path) -> Result<Option<Self>> {
        let path = Self::path(corpus);
        if !path.exists() {
            return Ok(None);
        }
        let text = read(&path)?;
        let parsed = serde_json::from_str(&text);
        parsed.map(Some).map_err(|e| {
            Error::file(&path, format!("not a state of a corpus ({e}). Next: remove both files"))
        })
    }

    fn save(&self, corpus: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::file(&Self::path(corpus), e.to_string()))?;
        write_whole(&Self::path(corpus), text.as_bytes())
    }
}

/// Samples until `judged` stories were judged or `kept_tokens` tokens kept, whichever comes first,
/// `width` texts a pass. `progress` hears the state now and then; it returns false to stop early
/// (what was judged is then on disk).
///
/// # Errors
/// A model without chat template, a file made under another order, a pass or the disk failing.
pub fn sample(
    session: &Session,
    corpus: &Path,
    order: &Order,
    width: usize,
    (judged, kept_tokens): (u32, u64),
    progress: &mut dyn FnMut(&State) -> bool,
) -> Result<State> {
    let (mut state, mut file, mut filter) = open(corpus, order)?;
    let settings = Settings { width, most: order.most, sampling: order.sampling, seed: order.seed };
    let mut batch = Batch::new(session.backbone(), session.vocabulary(), settings)?;
    let begun = state.seconds;
    let clock = Instant::now();
    // Ended out of turn; written once those before them are.
    let mut waiting: BTreeMap<u32, Ended> = BTreeMap::new();
    let mut next = state.judged;
    let mut text = String::new();
    let mut since = 0;
    let mut on = true;
    while on && state.judged < judged && state.kept_tokens < kept_tokens {
        while batch.has_room() && next < judged {
            let words = prompts::story(order.seed, next);
            let prompt = session.tokens(&Prompt::Chat(&[Message::new("user", &words)]))?;
            batch.begin(next, prompt)?;
            next += 1;
        }
        waiting.extend(batch.step()?.into_iter().map(|ended| (ended.index, ended)));
        while let Some(ended) = waiting.remove(&state.judged) {
            judge(&ended, session.vocabulary(), &mut filter, &mut state, &mut text);
            since += 1;
        }
        if since >= ROUNDS * width as u32 || state.judged >= judged {
            state.seconds = begun + clock.elapsed().as_secs_f64();
            append(&mut file, corpus, &mut state, &mut text)?;
            since = 0;
            on = progress(&state);
        }
    }
    state.seconds = begun + clock.elapsed().as_secs_f64();
    append(&mut file, corpus, &mut state, &mut text)?;
    Ok(state)
}

/// The state, the file cut to it and open at its end, and a filter that knows its documents.
fn open(corpus: &Path, order: &Order) -> Result<(State, File, Filter)> {
    let state = match State::load(corpus)? {
        Some(state) if state.order == *order => state,
        Some(_) => {
            let what = "was sampled with other settings. Next: give the same model, seed, length and \
                        sampling, or another file";
            return Err(Error::file(corpus, what));
        }
        None if corpus.exists() => {
            let what = "exists and was not sampled by this command. Next: give another file";
            return Err(Error::file(corpus, what));
        }
        None => State {
            order: order.clone(),
            judged: 0,
            bytes: 0,
            tokens: 0,
            kept_tokens: 0,
            verdicts: BTreeMap::new(),
            seconds: 0.0,
        },
    };
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(corpus)
        .map_err(Error::io(corpus))?;
    let length = file.metadata().map_err(Error::io(corpus))?.len();
    if length < state.bytes {
        return Err(Error::file(corpus, "is shorter than its state says. Next: remove both files"));
    }
    file.set_len(state.bytes).map_err(Error::io(corpus))?;
    file.seek(SeekFrom::End(0)).map_err(Error::io(corpus))?;
    let mut filter = Filter::new();
    documents(&read(corpus)?).for_each(|document| filter.remember(document));
    Ok((state, file, filter))
}

/// Judges one story; a kept one is appended to `text`.
fn judge(
    ended: &Ended,
    vocabulary: &dyn Vocabulary,
    filter: &mut Filter,
    state: &mut State,
    text: &mut String,
) {
    let bytes: Vec<u8> = ended.tokens.iter().flat_map(|&t| vocabulary.bytes(t)).copied().collect();
    let judged = filter.judge(&String::from_utf8_lossy(&bytes), ended.complete);
    let verdict = judged.as_ref().err().copied().unwrap_or(Verdict::Kept);
    let name = format!("{verdict:?}").to_lowercase();
    *state.verdicts.entry(name).or_default() += 1;
    state.judged += 1;
    state.tokens += ended.tokens.len() as u64;
    if let Ok(document) = judged {
        state.kept_tokens += ended.tokens.len() as u64;
        text.push_str(&document);
        text.push_str("\n\n");
    }
}

/// Writes what has gathered, then the state that counts it.
fn append(file: &mut File, corpus: &Path, state: &mut State, text: &mut String) -> Result<()> {
    file.write_all(text.as_bytes()).map_err(Error::io(corpus))?;
    file.sync_data().map_err(Error::io(corpus))?;
    state.bytes += text.len() as u64;
    text.clear();
    state.save(corpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Order {
        let sampling = Sampling::default();
        Order { model: "m".to_owned(), seed: 1, most: 10, sampling }
    }

    #[test]
    fn a_file_is_cut_to_its_state_and_continued_under_the_same_order_only() {
        let directory = tempfile::tempdir().unwrap();
        let corpus = directory.path().join("stories.txt");
        let (mut state, mut file, _) = open(&corpus, &order()).unwrap();
        let mut text = "One.\n\n".to_owned();
        append(&mut file, &corpus, &mut state, &mut text).unwrap();
        // What a crash left behind.
        file.write_all(b"Half a sto").unwrap();
        drop(file);
        let (again, _, _) = open(&corpus, &order()).unwrap();
        assert_eq!(again, state);
        assert_eq!(std::fs::read_to_string(&corpus).unwrap(), "One.\n\n");
        let other = Order { seed: 2, ..order() };
        assert!(open(&corpus, &other).unwrap_err().to_string().contains("other settings"));
        std::fs::write(&corpus, "On").unwrap();
        assert!(open(&corpus, &order()).unwrap_err().to_string().contains("shorter"));
        let foreign = directory.path().join("mine.txt");
        std::fs::write(&foreign, "mine").unwrap();
        assert!(open(&foreign, &order()).unwrap_err().to_string().contains("not sampled"));
    }
}
