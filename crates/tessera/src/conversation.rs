//! A chat's state and its commands, apart from the terminal.

use serde_json::Value;
use tessera_core::entry::{nearest, plain_json};
use tessera_runtime::{Message, Sampling};

use crate::flags::{AT_LEAST_ONE, Settings};

/// What `/help` prints.
pub(crate) const HELP: &str = "\
/help               this list
/clear              forget the conversation
/system TEXT        say who the model is (no text: nobody); forgets the conversation
/set                show the settings
/set NAME VALUE     change one: temperature, top-k, top-p, min-p, seed, tokens, ...
/stats              statistics after every answer, on or off
/quit               leave (so does Ctrl-D)
A line that ends with \\ goes on in the next one. Ctrl-C stops an answer.
";

/// A line, as it was meant.
#[derive(Debug, PartialEq)]
pub(crate) enum Line<'a> {
    Say(&'a str),
    Nothing,
    Help,
    Clear,
    System(&'a str),
    Show,
    Set(&'a str, &'a str),
    Stats,
    Quit,
}

const COMMANDS: [&str; 7] = ["/help", "/clear", "/system", "/set", "/stats", "/quit", "/exit"];

/// Reads a line: a command if it begins with `/`, else something to say.
///
/// # Errors
/// One line about an unknown command.
pub(crate) fn parse(line: &str) -> Result<Line<'_>, String> {
    let text = line.trim();
    if text.is_empty() {
        return Ok(Line::Nothing);
    }
    if !text.starts_with('/') {
        return Ok(Line::Say(line));
    }
    let (command, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let rest = rest.trim();
    match command {
        "/help" | "/?" => Ok(Line::Help),
        "/clear" => Ok(Line::Clear),
        "/system" => Ok(Line::System(rest)),
        "/set" if rest.is_empty() => Ok(Line::Show),
        "/set" => match rest.split_once(|c: char| c.is_whitespace() || c == '=') {
            Some((name, value)) => Ok(Line::Set(name, value.trim())),
            None => Err(format!("/set {rest}: needs a value. Next: /set lists the settings")),
        },
        "/stats" => Ok(Line::Stats),
        "/quit" | "/exit" | "/bye" => Ok(Line::Quit),
        unknown => Err(match nearest(unknown, COMMANDS.into_iter()).first() {
            Some(near) => format!("no command is called {unknown}; did you mean {near}?"),
            None => format!("no command is called {unknown}. Next: /help lists them"),
        }),
    }
}

/// The settings as `/set` lists them.
pub(crate) fn list(settings: &Settings) -> Vec<(String, String)> {
    let sampling = plain_json(&settings.sampling);
    let mut all: Vec<(String, String)> = sampling
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.replace('_', "-"), value.to_string()))
        .collect();
    all.push(("seed".to_owned(), settings.seed.to_string()));
    all.push(("tokens".to_owned(), settings.tokens.to_string()));
    all
}

/// Changes one setting.
///
/// # Errors
/// One line about an unknown name or a value out of its range; then nothing has changed.
pub(crate) fn set(settings: &mut Settings, name: &str, value: &str) -> Result<(), String> {
    let whole = |what: &str| {
        value.parse::<u64>().map_err(|_| format!("{what} = {value}: must be a whole number"))
    };
    match name {
        "seed" => settings.seed = whole("seed")?,
        "tokens" => match whole("tokens")? as usize {
            0 => return Err(format!("tokens = 0: must be {AT_LEAST_ONE}")),
            tokens => (settings.tokens, settings.tokens_given) = (tokens, true),
        },
        _ => {
            let field = match name.replace('-', "_").as_str() {
                "temp" => "temperature".to_owned(),
                field => field.to_owned(),
            };
            let mut map = plain_json(&settings.sampling);
            let Some(slot) = map.get_mut(&field) else {
                let known = list(settings);
                let near = nearest(name, known.iter().map(|(n, _)| n.as_str()));
                return Err(match near.first() {
                    Some(near) => format!("no setting is called {name}; did you mean {near}?"),
                    None => format!("no setting is called {name}. Next: /set lists them"),
                });
            };
            *slot = serde_json::from_str(value).unwrap_or(Value::Null);
            let sampling: Sampling = serde_json::from_value(map)
                .map_err(|_| format!("{name} = {value}: must be a number"))?;
            sampling.validate().map_err(|e| e.to_string())?;
            settings.sampling = sampling;
        }
    }
    Ok(())
}

/// Who said what so far.
#[derive(Debug, Default)]
pub(crate) struct Conversation {
    system: Option<String>,
    turns: Vec<Message>,
}

impl Conversation {
    /// With a system message, if any.
    pub(crate) fn new(system: Option<&str>) -> Self {
        let system = system.filter(|s| !s.is_empty()).map(str::to_owned);
        Self { system, turns: Vec::new() }
    }

    /// Forgets the turns, keeps the system message.
    pub(crate) fn clear(&mut self) {
        self.turns.clear();
    }

    /// All messages, with `question` as the last one.
    pub(crate) fn asking(&self, question: &str) -> Vec<Message> {
        let system = self.system.as_deref().map(|s| Message::new("system", s));
        system
            .into_iter()
            .chain(self.turns.iter().cloned())
            .chain([Message::new("user", question)])
            .collect()
    }

    /// Remembers a turn that was answered.
    pub(crate) fn answered(&mut self, question: &str, answer: &str) {
        self.turns.push(Message::new("user", question));
        self.turns.push(Message::new("assistant", answer));
    }
}

#[cfg(test)]
mod tests {
    use tessera_runtime::Recipe;

    use super::*;

    fn settings() -> Settings {
        Settings {
            sampling: Sampling::default(),
            seed: 1,
            tokens: 10,
            tokens_given: false,
            stops: vec![],
            recipe: Recipe::plain(),
        }
    }

    #[test]
    fn lines_are_read_as_meant() {
        for (line, want) in [
            ("  hello /help ", Line::Say("  hello /help ")),
            ("   ", Line::Nothing),
            ("/help", Line::Help),
            ("/system  be  brief ", Line::System("be  brief")),
            ("/system", Line::System("")),
            ("/set", Line::Show),
            ("/set top-k 3", Line::Set("top-k", "3")),
            ("/set top-k=3", Line::Set("top-k", "3")),
            ("/exit", Line::Quit),
        ] {
            assert_eq!(parse(line), Ok(want));
        }
        assert!(parse("/hlep").unwrap_err().contains("/help"));
        assert!(parse("/zzzzzz").unwrap_err().contains("/help lists"));
        assert!(parse("/set seed").unwrap_err().contains("needs a value"));
    }

    #[test]
    fn settings_change_within_their_ranges_only() {
        let mut s = settings();
        set(&mut s, "temp", "0.5").unwrap();
        set(&mut s, "top-k", "7").unwrap();
        set(&mut s, "seed", "9").unwrap();
        set(&mut s, "tokens", "11").unwrap();
        assert_eq!((s.sampling.temperature, s.sampling.top_k, s.seed, s.tokens), (0.5, 7, 9, 11));
        let before = list(&s);
        for (name, value, word) in [
            ("temperature", "-1", "at least 0"),
            ("temperature", "warm", "must be a number"),
            ("top-k", "1.5", "must be a number"),
            ("topk", "1", "did you mean top-k"),
            ("seed", "x", "whole number"),
            ("tokens", "0", "at least 1"),
            ("qqqq", "1", "/set lists"),
        ] {
            let error = set(&mut s, name, value).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(list(&s), before);
        assert_eq!(before.len(), 10);
    }

    #[test]
    fn a_conversation_remembers_and_forgets() {
        let mut c = Conversation::new(Some("be brief"));
        c.answered("a", "b");
        let all = c.asking("c");
        let said: Vec<&str> = all.iter().filter_map(|m| m.content.as_deref()).collect();
        assert_eq!(said, ["be brief", "a", "b", "c"]);
        c.clear();
        assert_eq!(c.asking("d").len(), 2);
        assert_eq!(Conversation::new(Some("")).asking("d").len(), 1);
    }
}
