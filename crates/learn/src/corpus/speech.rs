//! Transcription without a microphone: short sentences, and what an ear would hand on of them. Every letter
//! lasts a frame (or one to a few), a frame is now and then heard as another letter, and silence fills the
//! window in which the ear listens. The rough transcript is what a recogniser makes that decides frame by
//! frame (Graves et al., 2006, without a blank): it keeps what was misheard and, where letters last longer, joins
//! equal neighbours and so loses doubled letters.
//!
//! An utterance depends on the seed and its index only. Models train on those below
//! [`FRESH`](super::tasks::FRESH) and are asked those from there on.

use tessera_core::dist::Key;

use super::prompts::pick;

/// Ends the frames of a document.
pub const SEPARATOR: char = '|';
/// Tokens of the canvas that questions give: room for every sentence, and much more than any needs.
pub const ROOM: usize = 128;
/// Frames in which the ear listens at least: shorter utterances end in silence.
const WINDOW: usize = 64;
/// A frame in which nothing is heard.
const SILENCE: char = '_';
/// How well it is heard.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ear {
    /// Most frames of a letter. At least 1.
    pub frames: u32,
    /// Share of frames that are heard as a letter drawn at random, 0 to 1.
    pub misheard: f64,
}

impl Ear {
    /// What models train on.
    pub const USUAL: Self = Self { frames: 1, misheard: 0.15 };
    /// What they are asked with: half as hard.
    pub const ASKED: Self = Self { misheard: 0.075, ..Self::USUAL };
}

/// The purposes of the numbers that choose words and frames (`Key::purpose`).
const WORDS: u64 = 0x5a1d;
const HEARD: u64 = 0xf4a3e5;

const WHOSE: &[&str] = &["the", "a", "my", "our", "his", "her", "one", "that"];
const QUALITIES: &[&str] = &[
    "red", "small", "blue", "good", "deep", "tall", "green", "sleepy", "old", "happy", "cold",
    "sweet", "quick", "round", "dry", "soft", "yellow", "weak", "brave", "new",
];
const THINGS: &[&str] = &[
    "bear", "tree", "bell", "moon", "queen", "apple", "rabbit", "boat", "book", "puppy", "door",
    "goose", "flower", "hill", "kitten", "sheep", "lamp", "pool", "bottle", "spoon", "whale",
    "prince", "dog", "cloud", "wagon", "egg", "coffee", "hammer", "river", "street",
];
const DEEDS: &[&str] =
    &["sees", "feeds", "finds", "likes", "needs", "pulls", "keeps", "wants", "hears", "missed"];

/// What is said, what is heard of it, and a rough transcript.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Utterance {
    /// The sentence, with a full stop.
    pub said: String,
    /// A letter a frame, and silence.
    pub frames: String,
    /// What a recogniser makes of the frames.
    pub rough: String,
}

impl Utterance {
    /// The utterance with this index.
    pub fn new(seed: u64, index: u32, ear: Ear) -> Self {
        let key = Key::new(seed, index, 0).purpose(WORDS);
        let word = |list: &[&'static str], i: u32| pick(list, key, i).unwrap_or_default();
        let mut words = vec![word(WHOSE, 0)];
        if key.uniform(1) < 0.7 {
            words.push(word(QUALITIES, 2));
        }
        words.extend([word(THINGS, 3), word(DEEDS, 4), word(WHOSE, 5)]);
        if key.uniform(6) < 0.7 {
            words.push(word(QUALITIES, 7));
        }
        words.push(word(THINGS, 8));
        let said = words.join(" ") + ".";
        let key = Key::new(seed, index, 0).purpose(HEARD);
        let letters: Vec<char> = ('a'..='z').chain([' ', '.']).collect();
        let (mut frames, mut i) = (String::new(), 0);
        for letter in said.chars() {
            for _ in 0..1 + (key.uniform(i) * f64::from(ear.frames)) as u32 {
                i += 1;
                let heard = match key.purpose(1).uniform(i) < ear.misheard {
                    true => pick(&letters, key.purpose(2), i).unwrap_or(letter),
                    false => letter,
                };
                frames.push(heard);
            }
            i += 1;
        }
        let mut rough: Vec<char> = frames.chars().collect();
        if ear.frames > 1 {
            rough.dedup();
        }
        let silent = WINDOW.saturating_sub(frames.len());
        frames.extend(std::iter::repeat_n(SILENCE, silent));
        Self { said, rough: rough.into_iter().collect(), frames }
    }

    /// What a model is asked with.
    pub fn question(&self) -> String {
        format!("{}{SEPARATOR}", self.frames)
    }

    /// The whole text.
    pub fn document(&self) -> String {
        self.question() + &self.said
    }
}

/// `count` utterances that no training of ours has seen.
pub fn fresh(seed: u64, count: usize) -> Vec<Utterance> {
    let all = (super::tasks::FRESH..).map(|index| Utterance::new(seed, index, Ear::ASKED));
    all.take(count).collect()
}

/// The first `count` utterances to train on, as a corpus file.
pub fn corpus(seed: u64, count: u32, ear: Ear) -> String {
    super::made(count, |index| Utterance::new(seed, index, ear).document())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames without the silence behind them.
    fn heard(one: &Utterance) -> &str {
        one.frames.trim_end_matches(SILENCE)
    }

    #[test]
    fn frames_are_the_sentence_misheard_now_and_then() {
        let (mut wrong, mut letters, mut rough) = (0usize, 0usize, 0usize);
        for index in 0..500 {
            let one = Utterance::new(1, index, Ear::USUAL);
            assert_eq!(one, Utterance::new(1, index, Ear::USUAL));
            assert!(one.said.len() < WINDOW && one.frames.len() == WINDOW);
            assert!(!one.said.contains(SEPARATOR) && !one.frames.contains("\n\n"));
            assert_eq!((heard(&one).len(), one.rough.as_str()), (one.said.len(), heard(&one)));
            wrong += one.said.chars().zip(heard(&one).chars()).filter(|(a, b)| a != b).count();
            letters += one.said.len();
            rough += usize::from(one.rough == one.said);
        }
        // A letter drawn at random is now and then the right one.
        let share = wrong as f64 / letters as f64;
        assert!((share - 0.15 * 27.0 / 28.0).abs() < 0.01, "{share}");
        assert!(rough < 25, "a rough transcript is seldom right: {rough}");
        assert_ne!(Utterance::new(1, 0, Ear::USUAL), Utterance::new(2, 0, Ear::USUAL));
    }

    #[test]
    fn letters_may_last_longer() {
        for index in 0..200 {
            let one = Utterance::new(1, index, Ear { frames: 3, misheard: 0.0 });
            assert_eq!(one.said, Utterance::new(1, index, Ear::USUAL).said);
            let n = heard(&one).len();
            assert!((one.said.len()..=3 * one.said.len()).contains(&n) && one.frames.len() >= n);
            let mut joined: Vec<char> = one.said.chars().collect();
            joined.dedup();
            assert_eq!(one.rough, joined.into_iter().collect::<String>());
        }
    }

    #[test]
    fn a_document_begins_with_its_question() {
        let text = corpus(1, 20, Ear::USUAL);
        for (document, index) in super::super::documents(&text).zip(0..) {
            let one = Utterance::new(1, index, Ear::USUAL);
            // Blocks are trimmed, and a frame may be a space.
            assert_eq!(document, one.document().trim());
            assert!(one.document().starts_with(&one.question()));
        }
    }
}
