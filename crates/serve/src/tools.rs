//! Tools: what a model may call, how it is told, and how its calls are read.
//!
//! Where a call is asked for (`required`, or a function by name) the answer is held to the schema of the
//! function's arguments, so a call can always be read. Left to itself (`auto`) a model writes calls as
//! it was trained to: JSON between `<tool_call>` and `</tool_call>`, or alone. A model whose template
//! knows no tools is told of them in a system message.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tessera_runtime::Message;

use crate::fault::Fault;

/// Most functions of a request, and most bytes of all of them.
const MOST: (usize, usize) = (64, 64 << 10);
/// Most characters of a name.
const NAME: usize = 64;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
/// What some models write before JSON.
const FENCE: &str = "```json";

/// What a model may do with tools.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Choice {
    /// Call or answer, as it likes.
    Auto,
    /// One call, of one of these functions, by their places.
    Call(Vec<usize>),
}

/// A function.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Function {
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    parameters: Option<Value>,
    /// A call that is asked for always keeps the schema.
    #[serde(default, rename = "strict")]
    _strict: Option<bool>,
}

/// The tools of a request.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    functions: Vec<Function>,
    pub(crate) choice: Choice,
    /// As the request has them, for templates.
    pub(crate) shown: Vec<Value>,
}

/// A call that was read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    name: String,
    /// JSON, as text.
    arguments: String,
}

impl Call {
    /// In OpenAI's shape.
    pub(crate) fn told(&self, id: &str, index: usize) -> Value {
        json!({
            "id": format!("call_{id}_{index}"), "type": "function",
            "function": { "name": self.name, "arguments": self.arguments },
        })
    }
}

impl Tools {
    /// The tools of a request; `None` if there are none or it may not call them.
    ///
    /// # Errors
    /// 400 naming what is wrong.
    pub(crate) fn read(
        tools: Option<&Value>,
        choice: Option<&Value>,
    ) -> Result<Option<Self>, Fault> {
        let wrong = |what: String| Fault::field("tools", format!("tools{what}"));
        let listed = match tools {
            None => &[][..],
            Some(Value::Array(all)) => &all[..],
            Some(_) => return Err(wrong(": must be a list".to_owned())),
        };
        if listed.len() > MOST.0 || tools.is_some_and(|t| t.to_string().len() > MOST.1) {
            return Err(wrong(format!(": at most {} functions in {} bytes", MOST.0, MOST.1)));
        }
        let mut functions: Vec<Function> = Vec::with_capacity(listed.len());
        for (i, tool) in listed.iter().enumerate() {
            if tool["type"] != "function" {
                return Err(wrong(format!("[{i}]: type must be function")));
            }
            let function: Function = serde_json::from_value(tool["function"].clone())
                .map_err(|error| wrong(format!("[{i}].function: {error}")))?;
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if function.name.is_empty()
                || function.name.len() > NAME
                || !function.name.chars().all(plain)
            {
                return Err(wrong(format!(
                    "[{i}].function.name: 1 to {NAME} of a-z, A-Z, 0-9, _ and -"
                )));
            }
            if functions.iter().any(|f| f.name == function.name) {
                return Err(wrong(format!(
                    "[{i}].function.name: {} is there twice",
                    function.name
                )));
            }
            if function.parameters.as_ref().is_some_and(|p| !p.is_object()) {
                return Err(wrong(format!("[{i}].function.parameters: must be a JSON schema")));
            }
            functions.push(function);
        }
        let wrong = |what: &str| Fault::field("tool_choice", format!("tool_choice: {what}"));
        let choice = match choice {
            Some(Value::String(word)) if word == "none" => return Ok(None),
            None if functions.is_empty() => return Ok(None),
            Some(_) if functions.is_empty() => return Err(wrong("needs tools")),
            None => Choice::Auto,
            Some(Value::String(word)) if word == "auto" => Choice::Auto,
            Some(Value::String(word)) if word == "required" => {
                Choice::Call((0..functions.len()).collect())
            }
            Some(named) => {
                let name = named["function"]["name"].as_str().unwrap_or_default();
                match functions.iter().position(|f| f.name == name) {
                    Some(place) if named["type"] == "function" => Choice::Call(vec![place]),
                    _ => {
                        return Err(wrong(
                            "must be none, auto, required, or name one of the functions",
                        ));
                    }
                }
            }
        };
        Ok(Some(Self { functions, choice, shown: listed.to_vec() }))
    }

    /// The schema that a call which was asked for keeps; `None` where none was.
    pub(crate) fn schema(&self) -> Option<Value> {
        let Choice::Call(places) = &self.choice else { return None };
        let one = |&place: &usize| {
            let function = &self.functions[place];
            let parameters = function.parameters.clone();
            json!({
                "type": "object",
                "properties": {
                    "name": { "enum": [function.name] },
                    "arguments": parameters.unwrap_or_else(|| json!({ "type": "object" })),
                },
                "required": ["name", "arguments"],
                "additionalProperties": false,
            })
        };
        let all: Vec<Value> = places.iter().map(one).collect();
        Some(match <[Value; 1]>::try_from(all) {
            Ok([only]) => only,
            Err(several) => json!({ "anyOf": several }),
        })
    }

    /// A conversation that tells of the tools, for a template that does not.
    pub(crate) fn explained(&self, messages: &[Message]) -> Vec<Message> {
        let mut text = String::from("You can call these functions:\n");
        for function in &self.functions {
            let parameters =
                function.parameters.as_ref().map_or_else(|| "{}".to_owned(), Value::to_string);
            let description = function.description.as_deref().unwrap_or_default();
            text.push_str(&format!("- {}: {description} Arguments: {parameters}\n", function.name));
        }
        text.push_str(
            "To call one, answer with nothing but\n<tool_call>\n{\"name\": NAME, \"arguments\": ARGUMENTS}\n\
             </tool_call>",
        );
        let mut all = messages.to_vec();
        match all.first_mut() {
            Some(first) if first.role == "system" => {
                let said = first.content.take().unwrap_or_default();
                first.content = Some(format!("{said}\n\n{text}"));
            }
            _ => all.insert(0, Message::new("system", text)),
        }
        // Such a template may know nothing of results and calls either: they become plain words.
        for message in &mut all {
            if let Some(calls) = message.tool_calls.take() {
                let words: Vec<String> = calls
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|call| {
                        let (name, arguments) =
                            (&call["function"]["name"], &call["function"]["arguments"]);
                        let arguments =
                            arguments.as_str().map_or_else(|| arguments.to_string(), str::to_owned);
                        format!("{OPEN}\n{{\"name\": {name}, \"arguments\": {arguments}}}\n{CLOSE}")
                    })
                    .collect();
                let said = message.content.take().unwrap_or_default();
                message.content = Some(format!("{said}{}", words.join("\n")));
            }
            if message.role == "tool" {
                message.role = "user".to_owned();
                let said = message.content.take().unwrap_or_default();
                message.content = Some(format!("Result of the call: {said}"));
                message.tool_call_id = None;
            }
        }
        all
    }

    /// A call from its JSON, if it is one of a known function.
    fn call(&self, text: &str) -> Option<Call> {
        let value: Value = serde_json::from_str(text.trim()).ok()?;
        let name = value["name"].as_str()?;
        let arguments = match &value["arguments"] {
            Value::Object(map) => Value::Object(map.clone()).to_string(),
            // Some models write the arguments as a text that holds JSON.
            Value::String(text) if serde_json::from_str::<Map<String, Value>>(text).is_ok() => {
                text.clone()
            }
            _ => return None,
        };
        self.functions
            .iter()
            .any(|f| f.name == name)
            .then(|| Call { name: name.to_owned(), arguments })
    }

    /// Splits an answer into its text and its calls. What cannot be read as a call stays text.
    pub(crate) fn split(&self, answer: &str) -> (String, Vec<Call>) {
        if let Some(only) = self.call(unfenced(answer)) {
            return (String::new(), vec![only]);
        }
        let (mut text, mut calls, mut rest) = (String::new(), Vec::new(), answer);
        while let Some((before, after)) = rest.split_once(OPEN) {
            let (inside, behind) = after.split_once(CLOSE).unwrap_or((after, ""));
            match self.call(inside) {
                Some(call) => {
                    text.push_str(before);
                    calls.push(call);
                    rest = behind;
                }
                None => {
                    text.push_str(before);
                    text.push_str(OPEN);
                    rest = after;
                }
            }
        }
        text.push_str(rest);
        match calls.is_empty() {
            true => (answer.to_owned(), calls),
            false => (text.trim().to_owned(), calls),
        }
    }
}

/// An answer without the fence that some models put around JSON.
fn unfenced(answer: &str) -> &str {
    let inside = answer.trim().strip_prefix(FENCE).and_then(|rest| rest.strip_suffix("```"));
    inside.unwrap_or(answer)
}

/// Holds back of a stream what may turn out to be a call.
#[derive(Debug, Default)]
pub(crate) struct Holder {
    whole: String,
    sent: usize,
}

impl Holder {
    /// Takes more of the answer; returns what of it is text for certain.
    pub(crate) fn push(&mut self, text: &str, tools: &Tools) -> String {
        self.whole.push_str(text);
        let begins = self.whole.trim_start();
        let may = |mark: &str| begins.starts_with(mark) || mark.starts_with(begins);
        if tools.choice != Choice::Auto || may("{") || may(FENCE) {
            return String::new();
        }
        let end = match self.whole.find(OPEN) {
            Some(at) => at,
            // A beginning of the mark at the end may become it.
            None => {
                let tail =
                    (1..OPEN.len()).rev().find(|&n| self.whole.ends_with(&OPEN[..n])).unwrap_or(0);
                self.whole.len() - tail
            }
        };
        let fresh = self.whole.get(self.sent..end).unwrap_or_default().to_owned();
        self.sent = self.sent.max(end);
        fresh
    }

    /// The answer has ended: what text is left, and the calls.
    pub(crate) fn finish(self, tools: &Tools) -> (String, Vec<Call>) {
        let left = &self.whole[self.sent..];
        let (text, calls) = tools.split(left);
        match calls.is_empty() {
            true => (left.to_owned(), calls),
            false => (text, calls),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(choice: Value) -> Tools {
        let listed = json!([
            { "type": "function", "function": { "name": "weather", "description": "Tells \"it\"\n{",
              "parameters": { "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] } } },
            { "type": "function", "function": { "name": "time" } },
        ]);
        Tools::read(Some(&listed), Some(&choice)).unwrap().unwrap()
    }

    #[test]
    fn calls_are_read_and_everything_else_stays_text() {
        let tools = tools(json!("auto"));
        let call = |city: &str| Call {
            name: "weather".into(),
            arguments: format!("{{\"city\":\"{city}\"}}"),
        };
        let one = r#"{"name": "weather", "arguments": {"city": "Oslo"}}"#;
        assert_eq!(tools.split(one), (String::new(), vec![call("Oslo")]));
        assert_eq!(tools.split(&format!("```json\n{one}\n```\n")).1, vec![call("Oslo")]);
        let two = format!(
            "Well.\n<tool_call>\n{one}\n</tool_call>\n<tool_call>{}",
            one.replace("Oslo", "Rome")
        );
        assert_eq!(tools.split(&two), ("Well.".into(), vec![call("Oslo"), call("Rome")]));
        for text in [
            "plain",
            "<tool_call>{broken</tool_call>",
            "{\"name\": \"other\", \"arguments\": {}}",
            "a < b",
        ] {
            assert_eq!(tools.split(text), (text.to_owned(), vec![]));
        }
    }

    #[test]
    fn a_stream_gives_the_same_however_it_is_cut() {
        let tools = tools(json!("auto"));
        let one = r#"<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>"#;
        for answer in [
            format!("I look: {one}"),
            "a <tool> b".to_owned(),
            one.to_owned(),
            "a <tool_c".to_owned(),
        ] {
            for size in 1..=answer.len() {
                let (mut holder, mut text) = (Holder::default(), String::new());
                for piece in answer.as_bytes().chunks(size) {
                    text += &holder.push(std::str::from_utf8(piece).unwrap(), &tools);
                    assert!(!text.contains(OPEN));
                }
                let (left, calls) = holder.finish(&tools);
                let (whole, expected) = tools.split(&answer);
                assert_eq!(calls, expected);
                assert_eq!((text + &left).trim(), whole.trim());
            }
        }
    }

    #[test]
    fn what_is_no_tool_is_refused() {
        let read = |tools: Value, choice: Value| Tools::read(Some(&tools), Some(&choice));
        let f = |name: &str| json!([{ "type": "function", "function": { "name": name } }]);
        assert!(read(f("a"), json!("none")).unwrap().is_none());
        assert_eq!(read(f("a"), json!("required")).unwrap().unwrap().choice, Choice::Call(vec![0]));
        for (tools, choice) in [
            (f("a b"), json!("auto")),
            (f(""), json!("auto")),
            (f("a"), json!("maybe")),
            (f("a"), json!({ "type": "function", "function": { "name": "b" } })),
            (json!([]), json!("required")),
            (json!([{ "type": "retrieval" }]), json!("auto")),
            (
                json!([{ "type": "function", "function": { "name": "a", "parameters": 3 } }]),
                json!("auto"),
            ),
            (json!("x"), json!("auto")),
        ] {
            assert!(read(tools.clone(), choice.clone()).is_err(), "{tools} {choice}");
        }
    }
}
