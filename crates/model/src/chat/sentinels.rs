//! Private characters that stand for control tokens while a template runs.

use std::collections::HashSet;

/// One character per token, none of which occurs in the inputs.
#[derive(Debug, Clone)]
pub(super) struct Sentinels(Vec<char>);

/// The two supplementary planes for private use, 131,068 characters.
fn private() -> impl Iterator<Item = char> {
    ('\u{f0000}'..='\u{ffffd}').chain('\u{100000}'..='\u{10fffd}')
}

impl Sentinels {
    /// Picks `count` characters that no input holds; `None` when too few are left.
    pub fn choose<'a>(count: usize, inputs: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let used: HashSet<char> =
            inputs.into_iter().flat_map(str::chars).filter(|c| *c >= '\u{f0000}').collect();
        let free: Vec<char> = private().filter(|c| !used.contains(c)).take(count).collect();
        (free.len() == count).then_some(Self(free))
    }

    pub fn character(&self, token: usize) -> char {
        self.0[token]
    }

    /// Which token a character stands for.
    pub fn token(&self, c: char) -> Option<usize> {
        // They were picked in ascending order.
        if c < '\u{f0000}' { None } else { self.0.binary_search(&c).ok() }
    }

    /// The template's source with every spelling replaced, except in strings that the template
    /// only compares with or looks for: there the spelling is meant as text.
    pub fn mark(&self, source: &str, spellings: &[&str]) -> String {
        let mut out = String::with_capacity(source.len());
        let mut rest = source;
        while let Some(open) = ["{{", "{%", "{#"].iter().filter_map(|tag| rest.find(tag)).min() {
            let (text, tag) = rest.split_at(open);
            self.replace(text, spellings, &mut out);
            rest = if tag.starts_with("{#") {
                let end = tag.find("#}").map_or(tag.len(), |at| at + 2);
                out.push_str(&tag[..end]);
                &tag[end..]
            } else {
                self.expression(tag, spellings, &mut out)
            };
        }
        self.replace(rest, spellings, &mut out);
        out
    }

    fn replace(&self, text: &str, spellings: &[&str], out: &mut String) {
        let mut rest = text;
        'text: while let Some(c) = rest.chars().next() {
            for (token, spelling) in spellings.iter().enumerate() {
                if let Some(after) = rest.strip_prefix(spelling) {
                    out.push(self.0[token]);
                    rest = after;
                    continue 'text;
                }
            }
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }

    /// Copies one `{{ }}` or `{% %}` with its strings marked, and returns what follows it.
    fn expression<'s>(&self, source: &'s str, spellings: &[&str], out: &mut String) -> &'s str {
        let close = if source.starts_with("{{") { "}}" } else { "%}" };
        out.push_str(&source[..2]);
        let mut rest = &source[2..];
        // The last words and signs before the place reached, the nearest first.
        let mut before = ["", "", ""];
        loop {
            let Some(c) = rest.chars().next() else {
                return rest;
            };
            if let Some(after) = rest.strip_prefix(close) {
                out.push_str(close);
                return after;
            }
            let len = match c {
                '\'' | '"' => string_length(rest),
                _ if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
                '=' | '!' if rest[1..].starts_with('=') => 2,
                _ => c.len_utf8(),
            };
            let (token, after) = rest.split_at(len);
            if matches!(c, '\'' | '"') && !looked_for(before, after) {
                self.replace(token, spellings, out);
            } else {
                out.push_str(token);
            }
            if !c.is_whitespace() {
                before = [token, before[0], before[1]];
            }
            rest = after;
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Length of the string literal at the start, both quotes included.
fn string_length(source: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in source.char_indices() {
        match quote {
            None => quote = Some(c),
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => return at + 1,
            Some(_) => {}
        }
    }
    source.len()
}

/// Whether a string is only compared or searched for, judged by its neighbours.
fn looked_for(before: [&str; 3], after: &str) -> bool {
    const SEARCHES: [&str; 14] = [
        "split",
        "rsplit",
        "startswith",
        "endswith",
        "replace",
        "find",
        "rfind",
        "count",
        "index",
        "strip",
        "lstrip",
        "rstrip",
        "removeprefix",
        "removesuffix",
    ];
    let word = |text: &str, name: &str| {
        text.strip_prefix(name).is_some_and(|rest| !rest.starts_with(is_word))
    };
    let after = after.trim_start();
    let compared = after.starts_with("==")
        || after.starts_with("!=")
        || word(after, "in")
        || (word(after, "not") && word(after["not".len()..].trim_start(), "in"));
    compared
        || matches!(before[0], "==" | "!=")
        || (before[0] == "(" && SEARCHES.contains(&before[1]) && matches!(before[2], "." | "|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: [&str; 2] = ["<|end|>", "<e>"];

    fn mark(source: &str) -> String {
        Sentinels(vec!['A', 'B']).mark(source, &TOKENS)
    }

    #[test]
    fn spellings_are_marked_where_they_are_written_out() {
        assert_eq!(mark("x<|end|>{{ '<|end|>' + m }}<e>"), "xA{{ 'A' + m }}B");
        assert_eq!(mark("{{- \"a<e>\\\"<e>\" ~ '}}<e>' -}}"), "{{- \"aB\\\"B\" ~ '}}B' -}}");
        assert_eq!(mark("{# <e> '#}<e>{% set x = '<e>' %}"), "{# <e> '#}B{% set x = 'B' %}");
        assert_eq!(mark("{{ '<e>"), "{{ 'B");
    }

    #[test]
    fn spellings_that_are_looked_for_stay_text() {
        for source in [
            "{% if '<e>' in x %}",
            "{% if '<e>'  not  in x %}",
            "{% if x == '<e>' or '<e>' != y %}",
            "{{ x.split('<e>')[-1].strip() }}",
            "{{ x | replace('<e>', '') }}",
        ] {
            assert_eq!(mark(source), source);
        }
        assert_eq!(mark("{{ x.replace('<e>', '<|end|>') }}"), "{{ x.replace('<e>', 'A') }}");
        assert_eq!(
            mark("{{ f('<e>') }}{% if '<e>' instead %}"),
            "{{ f('B') }}{% if 'B' instead %}"
        );
    }

    #[test]
    fn characters_in_use_are_never_chosen() {
        let sentinels = Sentinels::choose(3, ["a\u{f0000}", "\u{f0002}\u{10fffd}"]).unwrap();
        assert_eq!(sentinels.0, ['\u{f0001}', '\u{f0003}', '\u{f0004}']);
        assert_eq!(sentinels.token('\u{f0003}'), Some(1));
        assert_eq!(sentinels.token('\u{f0002}'), None);
        let all: String = private().collect();
        assert!(Sentinels::choose(1, [all.as_str()]).is_none());
        assert!(Sentinels::choose(0, [all.as_str()]).is_some());
    }
}
