//! What is generated while a method is measured: prompts by category, ours or the user's own.

use std::path::Path;

use serde::Deserialize;
use tessera_core::{Position, TokenId};
use tessera_learn::corpus::{speech, tasks};
use tessera_runtime::{Message, Prompt, Request, Session};

use crate::error::{Error, Result};

/// A prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// What kind of work it is (`chat`, `code-edit` ...).
    #[serde(default)]
    pub category: String,
    /// Its name in records: the category and a number.
    #[serde(skip)]
    pub name: String,
    /// The text.
    #[serde(alias = "prompt")]
    pub text: String,
    /// Continue the text as it is, without the model's chat template.
    #[serde(default)]
    pub raw: bool,
    /// How the one right answer begins, where there is one: such prompts are counted, and take no part
    /// in the overall speed, as their answers are short, unless there is `room`.
    #[serde(default)]
    pub answer: Option<String>,
    /// Tokens to make, if more than the answer has: then the answer has to be the whole text, and its
    /// speed counts. Only for models that fill masks.
    #[serde(default)]
    pub room: Option<usize>,
    /// What stands behind that answer; only for models that fill masks.
    #[serde(default)]
    pub after: Option<String>,
    /// A rough answer, for methods that start from one; only for models that fill masks.
    #[serde(default)]
    pub rough: Option<String>,
}

impl Item {
    /// The tokens of the prompt for a model: a message of the user where the model has a chat
    /// template, else the text as it is.
    ///
    /// # Errors
    /// As [`Session::tokens`].
    pub fn tokens(&self, session: &Session) -> Result<Vec<TokenId>> {
        let text = self.text.trim_end_matches('\n');
        if self.raw || !session.info().chat {
            return Ok(session.tokens(&Prompt::Raw(text))?);
        }
        Ok(session.tokens(&Prompt::Chat(&[Message::new("user", text)]))?)
    }

    /// The right answer for a model, if there is one.
    ///
    /// # Errors
    /// [`Error::Usage`] for a text behind the answer of a model that writes from left to right.
    pub fn expected(&self, session: &Session) -> Result<Option<Expected>> {
        let Some(answer) = &self.answer else { return Ok(None) };
        let vocabulary = session.vocabulary();
        let tokens = vocabulary.encode(answer);
        let mut length = tokens.len();
        let mut template = Vec::new();
        match &self.after {
            Some(after) if session.filling().is_some() => {
                template.extend((length as Position..).zip(vocabulary.encode(after)));
                length += template.len();
            }
            Some(_) => {
                let name = &session.info().name;
                let what = format!(
                    "{}: has a text behind its answer, which {name} cannot read: it writes from left \
                     to right",
                    self.name
                );
                return Err(Error::Usage(what));
            }
            // Room for the end of the text.
            None => length += 1,
        }
        if let Some(room) = self.room {
            if room < length {
                let what = format!(
                    "{}: room = {room} is too little for its answer, which takes {length} tokens",
                    self.name
                );
                return Err(Error::Usage(what));
            }
            length = room;
        }
        let rough = self.rough.as_ref().map_or_else(Vec::new, |text| vocabulary.encode(text));
        let whole = self.room.is_some();
        Ok(Some(Expected { tokens, template, length, rough, whole }))
    }
}

/// The one right answer of a prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// The tokens that the answer has to begin with.
    pub tokens: Vec<TokenId>,
    /// Tokens that stand behind them, by their place in the answer.
    pub template: Vec<(Position, TokenId)>,
    /// Tokens to make, those of the template included.
    pub length: usize,
    /// A rough answer; usually empty.
    pub rough: Vec<TokenId>,
    /// Whether nothing else may stand in the answer. It takes as long as any text, so its speed counts.
    pub whole: bool,
}

impl Expected {
    /// Asks for it: as many tokens, with what stands behind it and the rough answer.
    pub fn ask(&self, request: &mut Request) {
        request.max_tokens = Some(self.length);
        request.canvas.template.clone_from(&self.template);
        request.canvas.prior.clone_from(&self.rough);
    }

    /// Whether an answer is right.
    pub fn is_met(&self, answer: &[TokenId]) -> bool {
        if self.whole { answer == self.tokens } else { answer.starts_with(&self.tokens) }
    }
}

/// Tasks of each kind among the built-in prompts for models that fill masks, and their seed.
const TASKS: (u32, u64) = (8, 1);

/// Sentences to write down, and their seed: that of the corpus by default.
const UTTERANCES: (usize, u64) = (48, 1);

/// Prompts, grouped by category.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// `built-in`, or the name of the user's file.
    pub name: String,
    /// The prompts; those of a category follow one another.
    pub items: Vec<Item>,
}

/// The built-in prompts, one file a category.
const BUILT_IN: [(&str, &str); 6] = [
    ("chat", include_str!("../workloads/chat.toml")),
    ("summarise", include_str!("../workloads/summarise.toml")),
    ("code-edit", include_str!("../workloads/code-edit.toml")),
    ("code-completion", include_str!("../workloads/code-completion.toml")),
    ("repetition", include_str!("../workloads/repetition.toml")),
    ("translation", include_str!("../workloads/translation.toml")),
];

/// Longest line of a user's file that is taken, in bytes.
const LONGEST: usize = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    prompt: Vec<Item>,
}

impl Workload {
    /// The prompts that come with the program, written for it (CC0).
    ///
    /// # Errors
    /// Never, as the tests read every file.
    pub fn built_in() -> Result<Self> {
        let mut items = Vec::new();
        for (category, text) in BUILT_IN {
            let file: File = toml::from_str(text).map_err(|e| Error::Content {
                path: format!("{category}.toml").into(),
                what: e.message().to_owned(),
            })?;
            items.extend(
                file.prompt.into_iter().map(|p| Item { category: category.to_owned(), ..p }),
            );
        }
        Ok(Self::named("built-in", items))
    }

    /// The prompts for models that fill masks: openings of stories (CC0), and tasks with one right
    /// answer that no training of ours has seen.
    ///
    /// # Errors
    /// Never, as the tests read the file.
    pub fn stories() -> Result<Self> {
        let text = include_str!("../workloads/stories.toml");
        let file: File = toml::from_str(text).map_err(|e| Error::Content {
            path: "stories.toml".into(),
            what: e.message().to_owned(),
        })?;
        let story = |p: Item| Item { category: "story".to_owned(), ..p };
        let mut items: Vec<Item> = file.prompt.into_iter().map(story).collect();
        let (count, seed) = TASKS;
        let all = count * tasks::Kind::ALL.len() as u32;
        items.extend((0..all).map(|index| {
            let task = tasks::Task::new(seed, tasks::FRESH + index);
            Item {
                category: task.kind.name().to_owned(),
                name: String::new(),
                text: task.before,
                raw: true,
                answer: Some(task.answer),
                after: Some(task.after).filter(|text| !text.is_empty()),
                rough: Some(task.rough).filter(|text| !text.is_empty()),
                room: None,
            }
        }));
        Ok(Self::named("built-in", items))
    }

    /// What is heard of sentences, for models that write down what was said: each has one right answer, on
    /// a canvas of 128 tokens, and a rough transcript to start from.
    pub fn speech() -> Self {
        let (count, seed) = UTTERANCES;
        let item = |one: speech::Utterance| Item {
            category: "speech".to_owned(),
            name: String::new(),
            text: one.question(),
            raw: true,
            answer: Some(one.said),
            after: None,
            rough: Some(one.rough),
            room: Some(speech::ROOM),
        };
        Self::named("built-in", speech::fresh(seed, count).into_iter().map(item).collect())
    }

    /// The prompts that suit a model, for methods that fill masks (`canvas`) and for others.
    ///
    /// # Errors
    /// Never, as the tests read every file.
    pub fn usual(session: &Session, canvas: bool) -> Result<Self> {
        let transcribes = || {
            let end = session.info().prompt_end.as_deref();
            end.is_some_and(|end| end.chars().eq([speech::SEPARATOR]))
        };
        match canvas {
            true if transcribes() => Ok(Self::speech()),
            true => Self::stories(),
            false => Self::built_in(),
        }
    }

    /// A user's own prompts: one a line, or one JSON object a line with `text` (or `prompt`) and,
    /// if wanted, `category` and `raw`.
    ///
    /// # Errors
    /// A file that cannot be read, holds no prompt, or has a line that is no such object.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::File { path: path.to_owned(), source })?;
        let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        Self::parse(&name, &text).map_err(|what| Error::Content { path: path.to_owned(), what })
    }

    fn parse(name: &str, text: &str) -> Result<Self, String> {
        let mut items = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            if line.len() > LONGEST {
                return Err(format!("line {number} is longer than {LONGEST} bytes: shorten it"));
            }
            let mut item = if line.starts_with('{') {
                serde_json::from_str::<Item>(line)
                    .map_err(|e| format!("line {number}: {e}. Next: {{\"text\": \"...\"}}"))?
            } else {
                let text = line.to_owned();
                Item { text, ..Item::default() }
            };
            if item.answer.is_none()
                && (item.after.is_some() || item.rough.is_some() || item.room.is_some())
            {
                let what = "`after`, `rough` and `room` go with an `answer`: give one";
                return Err(format!("line {number}: {what}"));
            }
            if item.text.trim().is_empty() {
                return Err(format!("line {number}: the prompt is empty"));
            }
            if item.category.is_empty() {
                item.category = "own".to_owned();
            }
            items.push(item);
        }
        if items.is_empty() {
            return Err("holds no prompt: write one a line".to_owned());
        }
        Ok(Self::named(name, items))
    }

    /// Groups the items by category, in the order in which categories first appear, and names them.
    fn named(name: &str, items: Vec<Item>) -> Self {
        let mut all = Self { name: name.to_owned(), items };
        let order: Vec<String> = all.categories().into_iter().map(str::to_owned).collect();
        all.items.sort_by_key(|i| order.iter().position(|c| *c == i.category));
        let mut counts = vec![0; order.len()];
        for item in &mut all.items {
            if let Some(at) = order.iter().position(|c| *c == item.category) {
                counts[at] += 1;
                item.name = format!("{}-{}", item.category, counts[at]);
            }
        }
        all
    }

    /// The categories, in order.
    pub fn categories(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for item in &self.items {
            if !names.contains(&item.category.as_str()) {
                names.push(&item.category);
            }
        }
        names
    }

    /// Only these categories; all if there are none.
    ///
    /// # Errors
    /// [`Error::Usage`] naming one that is not there.
    pub fn only(mut self, categories: &[String]) -> Result<Self> {
        for wanted in categories {
            let known = self.categories();
            if !known.contains(&wanted.as_str()) {
                let near = tessera_core::entry::nearest(wanted, known.iter().copied());
                let hint = match near.first() {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("there are {}", known.join(", ")),
                };
                return Err(Error::Usage(format!("category `{wanted}` is not there; {hint}")));
            }
        }
        if !categories.is_empty() {
            self.items.retain(|i| categories.contains(&i.category));
        }
        Ok(self)
    }

    /// The first `count` prompts of each category, one of each in turn, so that a beginning of the
    /// list still has all categories.
    pub fn in_turns(&self, count: usize) -> Vec<&Item> {
        let categories = self.categories();
        let nth = |n: usize| {
            categories
                .iter()
                .filter_map(move |c| self.items.iter().filter(|i| i.category == **c).nth(n))
        };
        (0..count).flat_map(nth).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_prompts_are_there() {
        let all = Workload::built_in().unwrap();
        assert_eq!(all.categories(), BUILT_IN.map(|(c, _)| c));
        for (category, _) in BUILT_IN {
            let of: Vec<&Item> = all.items.iter().filter(|i| i.category == category).collect();
            assert!(of.len() >= 6, "{category}: {}", of.len());
            for item in of {
                let (lines, words) =
                    (item.text.lines().count(), item.text.split_whitespace().count());
                match category {
                    "code-edit" => assert!((30..=90).contains(&lines), "{}: {lines}", item.name),
                    "summarise" => assert!((200..=420).contains(&words), "{}: {words}", item.name),
                    _ => assert!(words >= 8, "{}: {words}", item.name),
                }
                assert_eq!(item.raw, category == "code-completion", "{}", item.name);
            }
        }
        let mut texts: Vec<&str> = all.items.iter().map(|i| i.text.as_str()).collect();
        texts.sort_unstable();
        assert!(texts.windows(2).all(|w| w[0] != w[1]), "a prompt is there twice");
    }

    #[test]
    fn prompts_for_canvases_are_stories_and_tasks() {
        let all = Workload::stories().unwrap();
        assert_eq!(all.categories(), ["story", "copy", "sort", "cloze", "transcribe"]);
        for item in &all.items {
            assert_eq!(item.answer.is_some(), item.category != "story", "{}", item.name);
            assert_eq!(item.after.is_some(), item.category == "cloze", "{}", item.name);
            assert_eq!(item.rough.is_some(), item.category == "transcribe", "{}", item.name);
        }
        let mut expected = Expected { tokens: vec![4, 5], length: 3, ..Expected::default() };
        assert!(expected.is_met(&[4, 5, 9]) && !expected.is_met(&[4]) && !expected.is_met(&[5, 4]));
        expected.whole = true;
        assert!(expected.is_met(&[4, 5]) && !expected.is_met(&[4, 5, 9]));
    }

    #[test]
    fn prompts_for_transcribers_are_utterances() {
        let all = Workload::speech();
        assert_eq!((all.items.len(), all.categories()), (UTTERANCES.0, vec!["speech"]));
        for item in &all.items {
            let (answer, rough) = (item.answer.as_ref().unwrap(), item.rough.as_ref().unwrap());
            assert!(item.text.ends_with('|') && item.raw && item.text.len() == 65, "{}", item.name);
            assert!(item.room.unwrap() > answer.len() + 1 && item.text.len() > rough.len());
        }
        let mut texts: Vec<&str> = all.items.iter().map(|i| i.text.as_str()).collect();
        texts.sort_unstable();
        assert!(texts.windows(2).all(|w| w[0] != w[1]), "an utterance is there twice");
    }

    #[test]
    fn a_users_file_is_lines_or_objects() {
        let text =
            "Say hello.\n\n{\"text\": \"x = [\", \"category\": \"code\", \"raw\": true}\nBye.\n";
        let own = Workload::parse("mine.txt", text).unwrap();
        let names: Vec<&str> = own.items.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names, ["own-1", "own-2", "code-1"]);
        assert!(own.items[2].raw && own.items[1].text == "Bye.");
        let turns: Vec<&str> = own.in_turns(2).iter().map(|i| i.name.as_str()).collect();
        assert_eq!(turns, ["own-1", "code-1", "own-2"]);
        let code = own.clone().only(&["code".to_owned()]).unwrap();
        assert_eq!(code.items.len(), 1);
        let error = own.only(&["coed".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("did you mean `code`?"), "{error}");
        for (bad, word) in [
            ("", "holds no prompt"),
            ("hello\n{\"txt\": \"x\"}", "line 2: unknown field `txt`"),
            ("{\"text\": \"x\", \"after\": \"y\"}", "line 1: `after`, `rough` and `room` go with"),
            ("{\"text\": \" \"}", "line 1: the prompt is empty"),
            ("{\"text\": 1}", "line 1"),
        ] {
            let error = Workload::parse("mine", bad).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
