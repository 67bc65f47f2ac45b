//! Long texts with questions that have exact answers: what a policy that forgets must not forget.
//!
//! Everything is generated from a seed, so a text of any length exists and nobody has seen it. A
//! [`LongText`] carries several questions, each a continuation of the same text: its rows are
//! computed once and serve every question, budget and method. Four tasks:
//!
//! - `needle`: numbered facts of different kinds, each hidden once, at depths spread from the
//!   beginning to the end; eight, and in long texts one for every 256 tokens up to forty, so that a
//!   text that takes long to compute answers for many questions (kinds then repeat, places do not);
//! - `multi-key`: many facts of one kind, so that the right one has to be told from its like;
//! - `tracking`: chains of variables, each defined by the one before; the question asks for the last;
//! - `recall`: lists of words; the question begins a list again and asks for its next words.
//!
//! The tasks follow the families of needle-in-a-haystack tests and of RULER (arXiv:2404.06654); the
//! sentences are this project's own.

use tessera_core::dist::Key;

/// A question about a long text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Follows the text; the answer follows it.
    pub text: String,
    /// What the continuation must begin with, white space at its start aside.
    pub answer: String,
    /// Where in the text the fact stands, in percent of its sentences.
    pub depth: usize,
}

impl Question {
    /// Whether `continuation` begins with the answer, and the answer ends there.
    pub fn is_answered_by(&self, continuation: &str) -> bool {
        let rest = continuation.trim_start().strip_prefix(self.answer.as_str());
        rest.is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
    }
}

/// A text with its questions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LongText {
    /// The task: one of [`TASKS`].
    pub task: &'static str,
    /// The text.
    pub text: String,
    /// What is asked about it.
    pub questions: Vec<Question>,
}

/// The tasks.
pub const TASKS: [&str; 4] = ["needle", "multi-key", "tracking", "recall"];

const PEOPLE: [&str; 24] = [
    "the baker",
    "the old captain",
    "a tired clerk",
    "the gardener",
    "her neighbour",
    "the piano teacher",
    "a young sailor",
    "the librarian",
    "his aunt",
    "the postman",
    "a quiet guest",
    "the mayor",
    "the night nurse",
    "a travelling painter",
    "the carpenter",
    "the twins",
    "a retired judge",
    "the cook",
    "the new tenant",
    "a shepherd",
    "the watchmaker",
    "the conductor",
    "an elderly fisherman",
    "the student",
];
const DEEDS: [&str; 24] = [
    "opened",
    "repaired",
    "forgot",
    "carried",
    "painted",
    "looked for",
    "sold",
    "borrowed",
    "described",
    "cleaned",
    "hid",
    "admired",
    "measured",
    "returned",
    "wrapped",
    "drew",
    "dropped",
    "praised",
    "counted",
    "moved",
    "weighed",
    "photographed",
    "polished",
    "lent away",
];
const THINGS: [&str; 24] = [
    "a wooden ladder",
    "the blue kettle",
    "two letters",
    "a map of the coast",
    "the kitchen clock",
    "a jar of plums",
    "the garden gate",
    "an umbrella",
    "a pair of boots",
    "the copper lamp",
    "a basket of wool",
    "the church bell",
    "a box of nails",
    "the velvet curtain",
    "a small mirror",
    "the spare key",
    "a bundle of reeds",
    "the green bench",
    "a cracked plate",
    "the winter coat",
    "a sack of barley",
    "the ferry timetable",
    "an atlas",
    "the silver spoon",
];
const PLACES: [&str; 24] = [
    "behind the mill",
    "at the station",
    "near the harbour",
    "in the cellar",
    "on the market square",
    "by the river",
    "under the stairs",
    "in the orchard",
    "at the edge of the village",
    "beside the old well",
    "in the attic",
    "on the bridge",
    "outside the school",
    "in the waiting room",
    "along the canal",
    "at the bakery",
    "in the narrow lane",
    "on the north road",
    "beneath the arcade",
    "at the mountain hut",
    "in the greenhouse",
    "across the meadow",
    "at the crossroads",
    "in the boat shed",
];
const TIMES: [&str; 16] = [
    "before breakfast",
    "late in the evening",
    "on a rainy Tuesday",
    "after the concert",
    "when the snow melted",
    "shortly before noon",
    "during the harvest",
    "on the first warm day",
    "while the others slept",
    "at dusk",
    "in the middle of March",
    "after a long silence",
    "as the ferry left",
    "on the way home",
    "without a word",
    "for the second time that week",
];
const JOINTS: [&str; 8] = [
    "Nobody had asked for it.",
    "It took longer than expected.",
    "The dog barked twice.",
    "That was all.",
    "Some people still talk about it.",
    "The reason was never found.",
    "It was an ordinary day.",
    "Then it began to rain.",
];
const KEYS: [&str; 40] = [
    "Lisbon", "Oslo", "Nairobi", "Lima", "Kyoto", "Dublin", "Cairo", "Quito", "Tallinn", "Manila",
    "Porto", "Geneva", "Accra", "Havana", "Denver", "Krakow", "Jakarta", "Tunis", "Bergen",
    "Ottawa", "Sofia", "Hanoi", "Turin", "Dakar", "Boston", "Riga", "Perth", "Malaga", "Seoul",
    "Bristol", "Phoenix", "Zagreb", "Austin", "Milan", "Cologne", "Leeds", "Madrid", "Naples",
    "Vienna", "Warsaw",
];
const KINDS: [&str; 8] = [
    "door code",
    "locker number",
    "telephone extension",
    "train number",
    "account number",
    "room number",
    "flight code",
    "ticket number",
];
const WORDS: [&str; 48] = [
    "apple", "river", "candle", "hammer", "violet", "engine", "pepper", "window", "saddle",
    "marble", "anchor", "cotton", "falcon", "ginger", "helmet", "island", "jacket", "kettle",
    "ladder", "magnet", "needle", "orange", "pillow", "quartz", "rabbit", "silver", "tunnel",
    "umpire", "velvet", "walnut", "yellow", "zipper", "basket", "copper", "dragon", "emerald",
    "forest", "garden", "harbor", "insect", "jungle", "lemon", "meadow", "napkin", "oyster",
    "pocket", "ribbon", "tiger",
];

/// Units of a text for every needle in it.
const UNITS_PER_NEEDLE: usize = 256;

/// A stream of choices.
struct Dice {
    key: Key,
    next: u32,
}

impl Dice {
    fn new(seed: u64, purpose: u64) -> Self {
        Self { key: Key::new(seed, 0, 0).purpose(purpose), next: 0 }
    }

    fn below(&mut self, n: usize) -> usize {
        self.next += 1;
        (self.key.bits(self.next) % n.max(1) as u64) as usize
    }

    fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }

    /// `count` different members of a list.
    fn some<'a>(&mut self, list: &[&'a str], count: usize) -> Vec<&'a str> {
        let mut rest: Vec<&str> = list.to_vec();
        (0..count.min(list.len())).map(|_| rest.swap_remove(self.below(rest.len()))).collect()
    }

    /// A number of five digits, the first not 0.
    fn number(&mut self) -> usize {
        10_000 + self.below(90_000)
    }
}

/// A sentence of no importance.
fn filler(dice: &mut Dice) -> String {
    let (who, did, what) = (dice.of(&PEOPLE), dice.of(&DEEDS), dice.of(&THINGS));
    let (place, time) = (dice.of(&PLACES), dice.of(&TIMES));
    let text = match dice.below(3) {
        0 => format!("{who} {did} {what} {place} {time}."),
        1 => format!("{time}, {who} {did} {what} {place}."),
        _ => format!("{place} {who} {did} {what} {time}. {}", dice.of(&JOINTS)),
    };
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Facts to hide, and what is asked about them afterwards: (question, answer, the last of its facts).
struct Facts {
    lines: Vec<String>,
    asked: Vec<(String, String, usize)>,
    opening: &'static str,
}

fn facts(task: &str, length: usize, dice: &mut Dice) -> Facts {
    let mut facts = Facts {
        lines: Vec::new(),
        asked: Vec::new(),
        opening: "Read the following text carefully. Some facts are hidden in it; remember them.\n\n",
    };
    match task {
        "needle" => {
            let kinds = dice.some(&KINDS, KINDS.len());
            let keys = dice.some(&KEYS, (length / UNITS_PER_NEEDLE).clamp(KINDS.len(), KEYS.len()));
            for (kind, key) in kinds.into_iter().cycle().zip(keys) {
                let number = dice.number();
                let at = facts.lines.len();
                facts.lines.push(format!("The {kind} for {key} is {number}."));
                let question = format!(
                    "\n\nQuestion: What is the {kind} for {key}?\nAnswer: The {kind} for {key} is"
                );
                facts.asked.push((question, number.to_string(), at));
            }
        }
        "multi-key" => {
            for key in dice.some(&KEYS, 24) {
                let number = dice.number();
                let at = facts.lines.len();
                facts.lines.push(format!("The secret number of {key} is {number}."));
                // Every other fact only stands in the way.
                if at % 2 == 1 {
                    continue;
                }
                let question = format!(
                    "\n\nQuestion: What is the secret number of {key}?\nAnswer: The secret number of {key} is"
                );
                facts.asked.push((question, number.to_string(), at));
            }
        }
        "tracking" => {
            for chain in dice.some(&WORDS, 6) {
                let (name, number) = (chain.to_uppercase(), dice.number());
                facts.lines.push(format!("Variable {name}_A is {number}."));
                facts
                    .lines
                    .push(format!("Variable {name}_B is the same as {name}_A, that is {number}."));
                let at = facts.lines.len();
                facts.lines.push(format!("Variable {name}_C is the same as {name}_B."));
                let question = format!(
                    "\n\nQuestion: What is the value of variable {name}_C?\nAnswer: Variable {name}_C is the same as \
                     {name}_B, and {name}_B is the same as {name}_A, that is"
                );
                facts.asked.push((question, number.to_string(), at));
            }
        }
        _ => {
            for key in dice.some(&KEYS, 8) {
                let words = dice.some(&WORDS, 10);
                let at = facts.lines.len();
                facts.lines.push(format!("The list of {key}: {}.", words.join(", ")));
                let question = format!(
                    "\n\nQuestion: Repeat the list of {key}.\nAnswer: The list of {key}: {},",
                    words[..2].join(", ")
                );
                facts.asked.push((question, words[2..6].join(", "), at));
            }
        }
    }
    facts
}

/// A text for `task` of about `length` units with its questions; `units` counts the units of a text
/// (tokens, say).
pub fn generate(
    task: &'static str,
    length: usize,
    seed: u64,
    units: &mut dyn FnMut(&str) -> usize,
) -> LongText {
    let purpose = task.bytes().fold(0, |p: u64, b| p.wrapping_mul(257).wrapping_add(u64::from(b)));
    let mut dice = Dice::new(seed, purpose);
    let facts = facts(task, length, &mut dice);
    let fixed = units(facts.opening) + facts.lines.iter().map(|l| units(l)).sum::<usize>();
    let (mut sentences, mut held) = (Vec::new(), fixed);
    loop {
        let sentence = filler(&mut dice);
        held += units(&sentence);
        if held > length {
            break;
        }
        sentences.push(sentence);
    }
    // Facts in order, one in each of as many equal parts of the text.
    let (count, all) = (facts.lines.len(), sentences.len());
    let places: Vec<usize> =
        (0..count).map(|i| (all * i / count) + dice.below((all / count).max(1))).collect();
    let mut text = facts.opening.to_owned();
    let mut next = 0;
    for at in 0..=all {
        while next < count && (places[next] == at || at == all) {
            text.push_str(&facts.lines[next]);
            text.push(' ');
            next += 1;
        }
        if let Some(sentence) = sentences.get(at) {
            text.push_str(sentence);
            text.push(if dice.below(12) == 0 { '\n' } else { ' ' });
        }
    }
    let text = text.trim_end().to_owned();
    let questions = facts
        .asked
        .into_iter()
        .map(|(text, answer, fact)| Question {
            text,
            answer,
            depth: 100 * places[fact] / all.max(1),
        })
        .collect();
    LongText { task, text, questions }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> usize {
        text.split_whitespace().count()
    }

    fn text(task: &'static str, length: usize, seed: u64) -> LongText {
        generate(task, length, seed, &mut |t| words(t))
    }

    #[test]
    fn a_text_is_as_long_as_asked_and_depends_on_the_seed_only() {
        for task in TASKS {
            for length in [600, 4000] {
                let one = text(task, length, 3);
                let n = words(&one.text);
                assert!(n <= length && n + 30 >= length, "{task}: {n} of {length}");
                assert_eq!(one, text(task, length, 3));
                assert_ne!(one, text(task, length, 4));
            }
        }
    }

    #[test]
    fn every_answer_stands_in_the_text_where_it_is_said_to() {
        for task in TASKS {
            let one = text(task, 3000, 7);
            assert!(one.questions.len() >= 6);
            let mut asked: Vec<&str> = one.questions.iter().map(|q| q.text.as_str()).collect();
            asked.sort_unstable();
            asked.dedup();
            assert_eq!(asked.len(), one.questions.len(), "{task}: a question is asked once");
            for q in &one.questions {
                let found = one.text.find(&q.answer).unwrap();
                let share = 100 * found / one.text.len();
                // A chain begins up to two facts before the place that is asked for.
                assert!(share.abs_diff(q.depth) < 20, "{task}: {share} against {}", q.depth);
                assert!(!q.text.contains(&q.answer));
            }
            let depths: Vec<usize> = one.questions.iter().map(|q| q.depth).collect();
            assert!(
                depths.iter().min() < Some(&20) && depths.iter().max() > Some(&75),
                "{depths:?}"
            );
        }
    }

    #[test]
    fn longer_texts_hide_more_needles() {
        for (length, needles) in [(600, 8), (2048, 8), (4096, 16), (8192, 32), (12_000, 40)] {
            assert_eq!(text("needle", length, 1).questions.len(), needles, "{length}");
        }
    }

    #[test]
    fn an_answer_must_be_whole() {
        let q = Question { text: String::new(), answer: "12345".into(), depth: 0 };
        assert!(q.is_answered_by(" 12345.") && q.is_answered_by("12345"));
        assert!(
            !q.is_answered_by(" 123456")
                && !q.is_answered_by("1234")
                && !q.is_answered_by("a 12345")
        );
    }
}
