//! Small tasks with one right answer, so that what a decoder costs in quality can be counted: copying
//! words, sorting digits, a name that only the words behind it decide, and a sentence of which what was
//! heard is known: a transcription with the ear's mistakes, words that sound alike.
//!
//! A task depends on the seed and its index only. Models train on the tasks below [`FRESH`] and are
//! asked those from there on.

use tessera_core::dist::Key;

use super::prompts::{CHILDREN, pick};

/// Index from which tasks are kept for asking.
pub const FRESH: u32 = 1 << 24;
/// The purpose of the numbers that choose words (`Key::purpose`).
const CHOICES: u64 = 0x7a5_c0de;
/// Words of a copy, digits of a sort.
const LENGTH: usize = 5;

const WORDS: &[&str] = &[
    "tree", "box", "lamp", "fish", "sun", "key", "hat", "cup", "bell", "ring", "shoe", "star",
    "boat", "door", "leaf", "rope", "coat", "ball", "bird", "book",
];
const THINGS: &[&str] =
    &["ball", "kite", "book", "hat", "key", "drum", "map", "lamp", "bell", "coin", "cup", "rope"];

/// Words as they are said, each with the word that it is mistaken for: qualities, things, deeds.
const SAID: [&[(&str, &str)]; 3] = [
    &[("blue", "blew"), ("red", "read"), ("new", "knew"), ("weak", "week"), ("great", "grate")],
    &[
        ("bear", "bare"),
        ("flower", "flour"),
        ("son", "sun"),
        ("deer", "dear"),
        ("rose", "rows"),
        ("hare", "hair"),
        ("pear", "pair"),
        ("knight", "night"),
        ("whale", "wail"),
        ("prince", "prints"),
    ],
    &[
        ("saw", "sore"),
        ("ate", "eight"),
        ("won", "one"),
        ("heard", "herd"),
        ("knows", "nose"),
        ("made", "maid"),
    ],
];

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The same words again.
    Copy,
    /// Digits in ascending order.
    Sort,
    /// The name of the one who has what is named behind it.
    Cloze,
    /// What was said, from what was heard.
    Transcribe,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Copy, Self::Sort, Self::Cloze, Self::Transcribe];

    /// Its name, as a category.
    pub fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Sort => "sort",
            Self::Cloze => "cloze",
            Self::Transcribe => "transcribe",
        }
    }
}

/// A task: a text with its answer cut out. Words begin with their space, so the parts are cut into
/// tokens as the whole text is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// What is to be done.
    pub kind: Kind,
    /// What stands before the answer.
    pub before: String,
    /// The answer.
    pub answer: String,
    /// What stands behind it; empty where the text ends with the answer.
    pub after: String,
    /// A rough answer, as long as the right one in words; empty where there is none.
    pub rough: String,
}

impl Task {
    /// The task with this index: kinds take turns.
    pub fn new(seed: u64, index: u32) -> Self {
        let kind = Kind::ALL[index as usize % Kind::ALL.len()];
        let key = Key::new(seed, index, 0).purpose(CHOICES);
        let text = |words: &[&str]| words.iter().map(|w| format!(" {w}")).collect::<String>();
        match kind {
            Kind::Copy => {
                let words = text(&some(WORDS, key, LENGTH));
                let before = format!("Copy:{words}. Again:");
                Self { before, answer: format!("{words}."), ..Self::empty(kind) }
            }
            Kind::Sort => {
                let digits = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
                let mut digits = some(&digits, key, LENGTH);
                let before = format!("Sort:{}. In order:", text(&digits));
                digits.sort_unstable();
                Self { before, answer: format!("{}.", text(&digits)), ..Self::empty(kind) }
            }
            Kind::Cloze => {
                let people = some(CHILDREN, key, 3);
                let things = some(THINGS, key.purpose(1), 3);
                let has: Vec<String> = people
                    .iter()
                    .zip(&things)
                    .map(|((name, _), thing)| format!("{name} has a {thing}."))
                    .collect();
                let asked = (key.bits(99) % 3) as usize;
                let (name, thing) = (people[asked].0, things[asked]);
                let (answer, after) = (format!(" {name}"), format!(" looks at the {thing}."));
                Self {
                    before: format!("Who: {}", has.join(" ")),
                    answer,
                    after,
                    ..Self::empty(kind)
                }
            }
            Kind::Transcribe => {
                let [qualities, things, deeds] = SAID;
                let mut words: Vec<(&str, &str)> = Vec::new();
                // the new bear saw the red rose
                let nouns = some(things, key.purpose(2), 2);
                for (part, noun) in nouns.into_iter().enumerate() {
                    words.push(("the", "the"));
                    words.extend(pick(qualities, key.purpose(3), part as u32));
                    words.push(noun);
                    words.extend(pick(deeds, key.purpose(4), 0).filter(|_| part == 0));
                }
                let said: Vec<&str> = words.iter().map(|w| w.0).collect();
                let hear = |(i, w): (u32, &(&'static str, &'static str))| match key.uniform(i) < 0.4
                {
                    true => w.1,
                    false => w.0,
                };
                let heard: Vec<&str> = (50..).zip(&words).map(hear).collect();
                let (said, heard) = (text(&said), text(&heard));
                let before = format!("Heard:{heard}. Said:");
                Self {
                    before,
                    answer: format!("{said}."),
                    rough: format!("{heard}."),
                    ..Self::empty(kind)
                }
            }
        }
    }

    fn empty(kind: Kind) -> Self {
        let nothing = String::new;
        Self { kind, before: nothing(), answer: nothing(), after: nothing(), rough: nothing() }
    }

    /// The whole text.
    pub fn document(&self) -> String {
        format!("{}{}{}", self.before, self.answer, self.after)
    }
}

/// `count` different members of a list, in the order drawn.
fn some<T: Copy + PartialEq>(list: &[T], key: Key, count: usize) -> Vec<T> {
    let mut drawn: Vec<T> = Vec::with_capacity(count);
    let mut i = 0;
    while drawn.len() < count.min(list.len()) {
        if let Some(one) = pick(list, key, i)
            && !drawn.contains(&one)
        {
            drawn.push(one);
        }
        i += 1;
    }
    drawn
}

/// The first `count` tasks to train on, as a corpus file.
pub fn corpus(seed: u64, count: u32) -> String {
    super::made(count, |index| Task::new(seed, index).document())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_right_and_follow_from_the_text() {
        for index in 0..300 {
            let task = Task::new(1, index);
            assert_eq!(task, Task::new(1, index));
            let words: Vec<&str> =
                task.before.split([' ', '.', ':']).filter(|w| !w.is_empty()).collect();
            let answer: Vec<&str> = task.answer.trim_end_matches('.').split_whitespace().collect();
            match task.kind {
                Kind::Copy => assert_eq!(words[1..1 + LENGTH], answer[..]),
                Kind::Sort => {
                    let mut digits = words[1..1 + LENGTH].to_vec();
                    digits.sort_unstable();
                    digits.dedup();
                    assert_eq!(digits, answer);
                }
                Kind::Cloze => {
                    let thing = task.after.trim_end_matches('.').rsplit(' ').next().unwrap();
                    let at = words.iter().position(|&w| w == thing).unwrap();
                    assert_eq!([words[at - 3]], answer[..]);
                }
                Kind::Transcribe => {
                    let all: Vec<(&str, &str)> = SAID.concat();
                    let heard: Vec<&str> =
                        task.rough.trim_end_matches('.').split_whitespace().collect();
                    assert_eq!(words[1..8], heard[..]);
                    for (said, heard) in answer.iter().zip(&heard) {
                        let right = said == heard || all.contains(&(*said, *heard));
                        assert!(right, "{said} {heard}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_corpus_has_a_block_for_every_task() {
        let text = corpus(3, 30);
        let blocks: Vec<&str> = super::super::documents(&text).collect();
        assert_eq!(blocks.len(), 30);
        assert_eq!(blocks[7], Task::new(3, 7).document());
        assert_ne!(Task::new(3, 7), Task::new(3, FRESH + 5), "fresh tasks are others");
    }
}
