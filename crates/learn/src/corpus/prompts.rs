//! What the stories are about: requests made of words drawn by the story's number.

use tessera_core::dist::Key;

/// The purpose of the numbers that choose words (`Key::purpose`).
const WORDS: u64 = 0x0037_07d5;

/// Names with the word for who bears them.
pub(super) const CHILDREN: &[(&str, &str)] = &[
    ("Lily", "girl"),
    ("Tom", "boy"),
    ("Anna", "girl"),
    ("Ben", "boy"),
    ("Mia", "girl"),
    ("Sam", "boy"),
    ("Lucy", "girl"),
    ("Max", "boy"),
    ("Emma", "girl"),
    ("Jack", "boy"),
    ("Sara", "girl"),
    ("Tim", "boy"),
    ("Rosa", "girl"),
    ("Leo", "boy"),
    ("Nina", "girl"),
    ("Peter", "boy"),
    ("Amy", "girl"),
    ("Noah", "boy"),
    ("Ella", "girl"),
    ("Finn", "boy"),
    ("Kate", "girl"),
    ("Omar", "boy"),
    ("Jane", "girl"),
    ("Luke", "boy"),
    ("Maya", "girl"),
    ("Paul", "boy"),
    ("Zoe", "girl"),
    ("Adam", "boy"),
    ("Ruth", "girl"),
    ("Carl", "boy"),
];

const ANIMALS: &[&str] = &[
    "dog",
    "cat",
    "frog",
    "bird",
    "rabbit",
    "bear",
    "mouse",
    "duck",
    "horse",
    "fox",
    "owl",
    "fish",
    "turtle",
    "cow",
    "sheep",
    "goat",
    "squirrel",
    "bee",
    "butterfly",
    "hen",
    "pig",
    "deer",
    "kitten",
    "puppy",
    "ant",
    "whale",
    "lion",
    "monkey",
    "elephant",
    "hedgehog",
];

const PLACES: &[&str] = &[
    "the park",
    "the beach",
    "a farm",
    "the forest",
    "the garden",
    "the river",
    "school",
    "the lake",
    "the kitchen",
    "a hill",
    "the zoo",
    "the market",
    "grandmother's house",
    "the barn",
    "a pond",
    "the library",
    "a small town",
    "the playground",
    "the old bridge",
    "the attic",
    "an island",
    "the mountains",
    "the street",
    "a meadow",
    "the bakery",
    "a boat",
    "the train station",
    "a cave",
];

const THINGS: &[&str] = &[
    "a red ball",
    "a kite",
    "a book",
    "a cake",
    "an apple",
    "a hat",
    "a key",
    "a blue box",
    "a bicycle",
    "a drum",
    "a map",
    "an umbrella",
    "a stone",
    "a flower",
    "a toy car",
    "a lamp",
    "a letter",
    "a blanket",
    "a bell",
    "a basket",
    "a ring",
    "a shoe",
    "a balloon",
    "a doll",
    "a bucket",
    "a coin",
    "a feather",
    "a cup of milk",
    "some bread",
    "a rope",
    "a chair",
    "a picture",
    "a seed",
    "a coat",
    "a spoon",
    "a tree house",
    "a star",
    "a shell",
    "a clock",
    "a song",
];

const FEELINGS: &[&str] = &[
    "happy",
    "sad",
    "brave",
    "scared",
    "angry",
    "proud",
    "tired",
    "kind",
    "curious",
    "lonely",
    "shy",
    "hungry",
    "excited",
    "sorry",
    "surprised",
    "calm",
];

const EVENTS: &[&str] = &[
    "something gets lost and is found again",
    "it begins to rain",
    "two friends learn to share",
    "somebody needs help",
    "somebody makes a mistake and says sorry",
    "a new friend comes",
    "somebody learns something new",
    "there is a birthday",
    "something breaks and is mended",
    "somebody gets lost and comes home",
    "somebody helps an old woman",
    "it snows",
    "somebody tells the truth",
    "somebody cannot sleep",
    "they plant something",
    "there is a strange noise",
    "somebody is ill and gets well",
    "they cook together",
    "they win a race",
    "a wish comes true",
];

/// The `i`-th word list's choice for a story.
pub(super) fn pick<T: Copy>(list: &[T], key: Key, i: u32) -> Option<T> {
    list.get(((key.bits(i) >> 32) as usize * list.len()) >> 32).copied()
}

/// The request for story `index`: depends on the seed and the index only.
pub fn story(seed: u64, index: u32) -> String {
    let key = Key::new(seed, index, 0).purpose(WORDS);
    let (name, kind) = pick(CHILDREN, key, 0).unwrap_or(("Lily", "girl"));
    let word = |list: &[&'static str], i: u32| pick(list, key, i).unwrap_or_default();
    let (animal, place, thing) = (word(ANIMALS, 1), word(PLACES, 2), word(THINGS, 3));
    let (feeling, event) = (word(FEELINGS, 4), word(EVENTS, 5));
    let start = "Write a very short story for small children, in simple words, about";
    let end = "Use six or seven short sentences.";
    let middle = match key.bits(6) % 6 {
        0 => format!("a {kind} named {name}, a {animal} and {place}. Someone is {feeling}."),
        1 => format!("a {kind} named {name} who has {thing}. In the story {event}."),
        2 => format!("a little {animal} in {place}. In the story {event}."),
        3 => format!("a {kind} named {name} and {thing}. {name} is {feeling}."),
        4 => format!("a {animal} and {thing}. The {animal} feels {feeling}."),
        _ => format!("a {kind} named {name} and a {animal} at {place}. In the story {event}."),
    };
    format!("{start} {middle} {end}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn stories_depend_on_seed_and_index_and_differ() {
        assert_eq!(story(1, 7), story(1, 7));
        assert_ne!(story(1, 7), story(2, 7));
        let all: HashSet<String> = (0..1000).map(|i| story(1, i)).collect();
        assert!(all.len() > 950, "{}", all.len());
    }

    #[test]
    fn every_word_is_used() {
        let all: String = (0..4000).map(|i| story(5, i)).collect();
        let lists = [ANIMALS, PLACES, THINGS, FEELINGS, EVENTS];
        for word in lists.into_iter().flatten().chain(CHILDREN.iter().map(|(name, _)| name)) {
            assert!(all.contains(word), "{word}");
        }
    }
}
