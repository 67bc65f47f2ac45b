//! Which documents are kept, and in what form.
//!
//! A small model's stories run in circles, break off or talk about themselves. Documents that do are
//! dropped and counted by reason.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

/// Fewest words of a document.
const WORDS: usize = 30;
/// Runs of words whose repetition is looked for.
const RUN: usize = 4;
/// Of all runs, the share that may have occurred before in the document.
const REPEATED: f64 = 0.12;
/// Times that one run may occur.
const TIMES: usize = 3;
/// Words by which two documents count as the same, from their beginning.
const OPENING: usize = 16;
/// Words of somebody who talks about a story instead of telling it.
const ABOUT: &[&str] = &[
    "as an ai",
    "here is a",
    "here's a",
    "this story",
    "the story",
    "short story",
    "title:",
    "the end of",
];

/// What became of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It stays.
    Kept,
    /// Too few words, also after the broken end was cut off.
    Short,
    /// The same words come again and again.
    Circular,
    /// Characters or marks that no story has.
    Strange,
    /// It talks about the story.
    Talk,
    /// It begins like an earlier one.
    Duplicate,
}

/// Cleans documents, drops those that are no use, counts.
#[derive(Debug, Default)]
pub struct Filter {
    openings: HashSet<Vec<String>>,
}

impl Filter {
    /// That has seen nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Remembers a document that was kept earlier.
    pub fn remember(&mut self, document: &str) {
        self.openings.insert(opening(document));
    }

    /// The document as it is kept, or why it is not. `complete` says that its author ended it; else
    /// it is cut after its last whole sentence.
    pub fn judge(&mut self, text: &str, complete: bool) -> Result<String, Verdict> {
        let text = plain(text).ok_or(Verdict::Strange)?;
        let text = if complete { text } else { whole_sentences(&text).to_owned() };
        let all = words(&text);
        if all.len() < WORDS || !text.ends_with(['.', '!', '?', '"']) {
            return Err(Verdict::Short);
        }
        let lower = text.to_lowercase();
        if ABOUT.iter().any(|phrase| lower.contains(phrase)) {
            return Err(Verdict::Talk);
        }
        if is_circular(&all) {
            return Err(Verdict::Circular);
        }
        if !self.openings.insert(opening(&text)) {
            return Err(Verdict::Duplicate);
        }
        Ok(text)
    }
}

/// One line a paragraph, plain quotation marks, single spaces; `None` for text with other marks
/// than those of a story.
fn plain(text: &str) -> Option<String> {
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut out = String::new();
        for word in line.split_whitespace() {
            if !out.is_empty() {
                out.push(' ');
            }
            for c in word.chars() {
                match c {
                    '\u{2018}' | '\u{2019}' => out.push('\''),
                    '\u{201c}' | '\u{201d}' => out.push('"'),
                    '\u{2013}' | '\u{2014}' => out.push('-'),
                    '\u{2026}' => out.push_str("..."),
                    c if c.is_ascii_alphanumeric() || ".,;:!?'\"-".contains(c) => out.push(c),
                    _ => return None,
                }
            }
        }
        if !out.is_empty() {
            lines.push(out);
        }
    }
    let text = lines.join("\n");
    let begins_well = text.trim_start_matches('"').starts_with(|c: char| c.is_ascii_uppercase());
    begins_well.then_some(text)
}

/// The text up to its last mark that ends a sentence.
fn whole_sentences(text: &str) -> &str {
    let end = text.rfind(['.', '!', '?']).map_or(0, |at| at + 1);
    let quoted = text[end..].starts_with('"');
    &text[..end + usize::from(quoted)]
}

fn words(text: &str) -> Vec<String> {
    let word = |w: &str| w.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    text.split_whitespace().map(word).filter(|w| !w.is_empty()).collect()
}

fn opening(text: &str) -> Vec<String> {
    let mut all = words(text);
    all.truncate(OPENING);
    all
}

fn is_circular(words: &[String]) -> bool {
    let mut seen: HashMap<&[String], usize> = HashMap::new();
    let (mut total, mut again) = (0usize, 0usize);
    for run in words.windows(RUN) {
        let times = seen.entry(run).or_default();
        *times += 1;
        total += 1;
        again += usize::from(*times > 1);
        if *times > TIMES {
            return true;
        }
    }
    again as f64 > REPEATED * total as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORY: &str = "Anna had a red kite. She took it to the hill with her brother. The wind was \
        strong, and the kite went up and up. Then the string broke! \u{201c}Do not cry,\u{201d} said \
        Sam. He climbed a tree and got it.";

    fn judge(text: &str, complete: bool) -> Result<String, Verdict> {
        Filter::new().judge(text, complete)
    }

    #[test]
    fn a_story_is_kept_in_plain_marks() {
        let kept = judge(STORY, true).unwrap();
        assert!(kept.contains("\"Do not cry,\" said") && kept.is_ascii(), "{kept}");
        let two = judge(&format!("{STORY}\n\n  They   went home."), true).unwrap();
        assert!(two.ends_with("got it.\nThey went home."), "{two}");
    }

    #[test]
    fn a_broken_end_is_cut() {
        assert_eq!(judge(&format!("{STORY} And then they"), false), judge(STORY, true));
        assert_eq!(judge(&format!("{STORY} And then they"), true), Err(Verdict::Short));
        assert_eq!(whole_sentences("He said \"Go!\" and th"), "He said \"Go!\"");
        assert_eq!(whole_sentences("no end"), "");
    }

    #[test]
    fn each_reason_to_drop() {
        assert_eq!(judge("Anna had a kite.", true), Err(Verdict::Short));
        assert_eq!(judge(&format!("# {STORY}"), true), Err(Verdict::Strange));
        assert_eq!(judge(&format!("and {STORY}"), true), Err(Verdict::Strange));
        assert_eq!(judge(&format!("Here is a story: {STORY}"), true), Err(Verdict::Talk));
        let circular = format!("{STORY} {}", "They loved it again. ".repeat(4));
        assert_eq!(judge(&circular, true), Err(Verdict::Circular));
        let mut filter = Filter::new();
        filter.remember(&filter_out(STORY));
        assert_eq!(filter.judge(&format!("{STORY} The day ended."), true), Err(Verdict::Duplicate));
    }

    fn filter_out(text: &str) -> String {
        judge(text, true).unwrap()
    }
}
