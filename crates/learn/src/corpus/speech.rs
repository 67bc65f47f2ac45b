//! Transcription without a microphone: short sentences, and what an ear would hand on of them. Every letter
//! lasts one or two frames, a frame is now and then heard as another letter, and the rough transcript
//! joins equal neighbours, as a recogniser does that decides frame by frame (Graves et al., 2006, without
//! a blank): it loses doubled letters and keeps what was misheard.
//!
//! An utterance depends on the seed and its index only. Models train on those below
//! [`FRESH`](super::tasks::FRESH) and are asked those from there on.

use tessera_core::dist::Key;

use super::prompts::pick;

/// Ends the frames of a document.
pub const SEPARATOR: char = '|';
/// Tokens of the canvas that questions give: room for every sentence, and much more than any needs.
pub const ROOM: usize = 128;
/// Tokens of a question beside which such a canvas fits the trained model's context.
const BESIDE: usize = 64;
/// Most frames of a letter.
const LONGEST: f64 = 2.0;
/// Share of utterances that are a whole sentence; the others name a thing, which teaches a model sooner where
/// in the frames it is.
const SENTENCES: f64 = 0.5;
/// Share of frames that are heard as a letter drawn at random.
const MISHEARD: f64 = 0.1;
/// The purposes of the numbers that choose words and frames (`Key::purpose`).
const WORDS: u64 = 0x5a1d;
const FRAMES: u64 = 0xf4a3e5;

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
    /// A letter a frame.
    pub frames: String,
    /// The frames with equal neighbours joined.
    pub rough: String,
}

impl Utterance {
    /// The utterance with this index.
    pub fn new(seed: u64, index: u32) -> Self {
        let key = Key::new(seed, index, 0).purpose(WORDS);
        let word = |list: &[&'static str], i: u32| pick(list, key, i).unwrap_or_default();
        let mut words = vec![word(WHOSE, 0)];
        if key.uniform(1) < 0.7 {
            words.push(word(QUALITIES, 2));
        }
        words.push(word(THINGS, 3));
        if key.uniform(9) < SENTENCES {
            words.extend([word(DEEDS, 4), word(WHOSE, 5)]);
            if key.uniform(6) < 0.7 {
                words.push(word(QUALITIES, 7));
            }
            words.push(word(THINGS, 8));
        }
        let said = words.join(" ") + ".";
        let key = Key::new(seed, index, 0).purpose(FRAMES);
        let letters: Vec<char> = ('a'..='z').chain([' ', '.']).collect();
        let (mut frames, mut i) = (String::new(), 0);
        for letter in said.chars() {
            for _ in 0..1 + (key.uniform(i) * LONGEST) as u32 {
                i += 1;
                let heard = match key.purpose(1).uniform(i) < MISHEARD {
                    true => pick(&letters, key.purpose(2), i).unwrap_or(letter),
                    false => letter,
                };
                frames.push(heard);
            }
            i += 1;
        }
        let mut rough: Vec<char> = frames.chars().collect();
        rough.dedup();
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

/// `count` utterances that no training of ours has seen, each with room for [`ROOM`] tokens more.
pub fn fresh(seed: u64, count: usize) -> Vec<Utterance> {
    let all = (super::tasks::FRESH..).map(|index| Utterance::new(seed, index));
    all.filter(|one| one.question().len() <= BESIDE).take(count).collect()
}

/// The first `count` utterances to train on, as a corpus file.
pub fn corpus(seed: u64, count: u32) -> String {
    super::made(count, |index| Utterance::new(seed, index).document())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_the_sentence_drawn_out_and_misheard_now_and_then() {
        let (mut wrong, mut frames, mut rough) = (0usize, 0usize, 0usize);
        for index in 0..500 {
            let one = Utterance::new(1, index);
            assert_eq!(one, Utterance::new(1, index));
            assert!(one.said.len() < ROOM && one.frames.len() <= 2 * one.said.len());
            assert!(one.frames.len() >= one.said.len());
            assert!(!one.said.contains(SEPARATOR) && !one.frames.contains("\n\n"));
            // Frames that no alignment explains are at least this many.
            let known: std::collections::BTreeSet<char> = one.said.chars().collect();
            wrong += one.frames.chars().filter(|c| !known.contains(c)).count();
            frames += one.frames.len();
            rough += usize::from(one.rough == one.said);
        }
        let share = wrong as f64 / frames as f64;
        assert!((0.03..0.1).contains(&share), "{share}");
        assert!(rough < 25, "a rough transcript is seldom right: {rough}");
        assert_ne!(Utterance::new(1, 0), Utterance::new(2, 0));
    }

    #[test]
    fn a_document_begins_with_its_question() {
        let text = corpus(1, 20);
        for (document, index) in super::super::documents(&text).zip(0..) {
            let one = Utterance::new(1, index);
            // Blocks are trimmed, and a frame may be a space.
            assert_eq!(document, one.document().trim());
            assert!(one.document().starts_with(&one.question()));
        }
    }
}
