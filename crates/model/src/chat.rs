//! Chat templates: from messages to the tokens of a prompt.
//!
//! A model's file carries a Jinja template. It is a program from an unknown author, and the
//! messages are text from an unknown user, so both are kept on a short leash:
//!
//! - The template runs with bounded fuel (which counts instructions and bytes), output, and
//!   recursion. It has no loader and no environment, and can call only what is listed in
//!   `chat/functions.rs`.
//! - **No text becomes a control token, except what the template itself spells out.** Before it
//!   is compiled, every control-token spelling in the template's *source* is replaced with a
//!   private-use character that occurs in none of the inputs. After rendering, those characters,
//!   and nothing else, turn into control tokens; everything between them is tokenised as plain
//!   text. Messages go in unaltered, so trimming, slicing, joining, replacing and searching do
//!   what the author meant, and no such operation on a message can make a private character.
//!
//! The cost of that rule: a template that glues a control token together out of pieces
//! (`'<|' + role + '|>'`) would lose it. Loading such a template is refused, see
//! [`ChatError::Glued`].

mod functions;
mod sentinels;

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::gguf::Metadata;
use crate::tokenizer::{Piece, Special, Tokenizer};
use sentinels::Sentinels;

/// Longest template source taken, in bytes. Real ones have 300 to 20,000.
const MAX_SOURCE: usize = 1 << 20;
/// Fuel for a prompt of no text: one per instruction and per 64 bytes made.
const FUEL: u64 = 1 << 20;
/// Longest output for a prompt of no text, in bytes.
const MAX_OUTPUT: usize = 1 << 20;
/// Nested calls and includes.
const MAX_DEPTH: usize = 64;

/// A message of a conversation. Fields that are absent are absent in the template too.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool` or what else the template knows.
    pub role: String,
    /// What they say; `None` for a message that only calls tools.
    pub content: Option<String>,
    /// What the model thought before it spoke.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Name of the speaker or tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Tool calls of the assistant, in OpenAI's shape.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Json>,
    /// Which call a `tool` message answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A message with a role and text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(content.into()), ..Self::default() }
    }
}

/// What goes into a template.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chat {
    /// The conversation so far.
    pub messages: Vec<Message>,
    /// Tools the model may call, in OpenAI's shape.
    pub tools: Vec<Json>,
    /// Whether the prompt ends with the start of the assistant's answer.
    pub answer: bool,
    /// Further variables of the template, such as `enable_thinking`.
    pub variables: Map<String, Json>,
    /// Time for `strftime_now`, in seconds since 1970 UTC; `None` takes the clock's.
    pub now: Option<u64>,
}

impl Chat {
    /// A conversation for the model to answer.
    pub fn answer_to(messages: Vec<Message>) -> Self {
        Self { messages, answer: true, ..Self::default() }
    }
}

/// Why there is no prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The model was not made for conversations.
    #[error(
        "{model} has no chat template: it continues text and does not converse; \
         use `run` with a prompt to continue, or an instruction-tuned model"
    )]
    NoTemplate {
        /// The model.
        model: String,
    },
    /// The template cannot be compiled.
    #[error("the chat template of {model} does not compile: {what}; use another file of the model")]
    Source {
        /// The model.
        model: String,
        /// Line and reason.
        what: String,
    },
    /// The template spells a control token in pieces, where it cannot be told from user text.
    #[error(
        "the chat template of {model} puts the control token {token} together out of pieces, \
         which cannot be told apart from message text; use another file of the model"
    )]
    Glued {
        /// The model.
        model: String,
        /// The token's spelling.
        token: String,
    },
    /// The template refuses these messages.
    #[error("the chat template of {model} refuses the conversation: {what}")]
    Refused {
        /// The model.
        model: String,
        /// The template's own words.
        what: String,
    },
    /// The template used up its fuel, output or depth.
    #[error("the chat template of {model} was stopped: {what}; use another file of the model")]
    Stopped {
        /// The model.
        model: String,
        /// Which limit.
        what: String,
    },
    /// The template failed on these messages.
    #[error("the chat template of {model} failed: {what}")]
    Failed {
        /// The model.
        model: String,
        /// Line and reason.
        what: String,
    },
}

/// A model's chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    model: String,
    source: String,
    /// Spellings of control tokens that the source or the variables hold, with their ids.
    tokens: Vec<(String, u32)>,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
}

impl ChatTemplate {
    /// Compiles a template for the model that `model` names in errors.
    ///
    /// # Errors
    /// When the source does not compile or glues control tokens together.
    pub fn new(model: &str, source: &str, tokenizer: &Tokenizer) -> Result<Self, ChatError> {
        let what = |what: String| ChatError::Source { model: model.to_owned(), what };
        if source.len() > MAX_SOURCE {
            return Err(what(format!("{} bytes, at most {MAX_SOURCE}", source.len())));
        }
        let mut tokens: Vec<(String, u32)> = tokenizer
            .structural_ids()
            .map(|id| (tokenizer.spelling(id).into_owned(), id))
            .filter(|(text, id)| {
                !text.is_empty()
                    && (source.contains(text.as_str())
                        || [tokenizer.bos(), tokenizer.eos()].contains(&Some(*id)))
            })
            .collect();
        // The longest spelling that fits wins, as in the tokenizer.
        tokens.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        let template = Self {
            model: model.to_owned(),
            source: source.to_owned(),
            tokens,
            bos: tokenizer.bos(),
            eos: tokenizer.eos(),
            add_bos: tokenizer.adds_bos(),
        };
        environment(FUEL, None).template_from_str(source).map_err(|error| what(brief(&error)))?;
        template.probe(tokenizer)?;
        Ok(template)
    }

    /// The template of a GGUF file, `None` when it has none.
    ///
    /// # Errors
    /// As [`Self::new`], and when the key holds something else than text.
    pub fn from_gguf(
        model: &str,
        metadata: &Metadata,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Self>, ChatError> {
        match metadata.get_str("tokenizer.chat_template") {
            Ok(source) => source.map(|source| Self::new(model, source, tokenizer)).transpose(),
            Err(error) => {
                Err(ChatError::Source { model: model.to_owned(), what: error.fault.to_string() })
            }
        }
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt as text, control tokens spelled out: for people to read, not to tokenise.
    ///
    /// # Errors
    /// When the template refuses, fails or is stopped.
    pub fn render(&self, chat: &Chat) -> Result<String, ChatError> {
        let (text, sentinels) = self.rendered(chat)?;
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            match sentinels.token(c) {
                Some(index) => out.push_str(&self.tokens[index].0),
                None => out.push(c),
            }
        }
        Ok(out)
    }

    /// The tokens of the prompt, with the one that starts a text where the model wants it.
    ///
    /// # Errors
    /// When the template refuses, fails or is stopped.
    pub fn encode(&self, tokenizer: &Tokenizer, chat: &Chat) -> Result<Vec<u32>, ChatError> {
        let (text, sentinels) = self.rendered(chat)?;
        let mut pieces = Vec::new();
        let mut from = 0;
        for (at, c) in text.char_indices() {
            if let Some(index) = sentinels.token(c) {
                pieces.push(Piece::Text(&text[from..at]));
                pieces.push(Piece::Token(self.tokens[index].1));
                from = at + c.len_utf8();
            }
        }
        pieces.push(Piece::Text(&text[from..]));
        pieces.retain(|piece| *piece != Piece::Text(""));
        let starts = self.bos.is_some_and(|bos| pieces.first() == Some(&Piece::Token(bos)));
        let mut out = Vec::new();
        if self.add_bos && !starts {
            out.extend(self.bos);
        }
        tokenizer.encode_pieces(pieces, &mut out);
        Ok(out)
    }

    /// Whether the template tells the model of tools.
    pub fn knows_tools(&self) -> bool {
        self.source.contains("tools")
    }

    /// Runs the marked source. Private characters in the result stand for control tokens.
    fn rendered(&self, chat: &Chat) -> Result<(String, Sentinels), ChatError> {
        let failed = |what: String| ChatError::Failed { model: self.model.clone(), what };
        let messages = Json::Array(
            chat.messages
                .iter()
                .map(serde_json::to_value)
                .collect::<Result<_, _>>()
                .map_err(|error| failed(error.to_string()))?,
        );
        let mut context = chat.variables.clone();
        context.insert("messages".into(), messages);
        context.insert("add_generation_prompt".into(), Json::Bool(chat.answer));
        if !chat.tools.is_empty() {
            context.insert("tools".into(), Json::Array(chat.tools.clone()));
        }
        // Everything from outside, in one text; JSON leaves private characters as they are.
        let inputs = serde_json::to_string(&context).map_err(|error| failed(error.to_string()))?;
        let sentinels = Sentinels::choose(self.tokens.len(), [&*self.source, &*inputs])
            .ok_or_else(|| failed("the messages hold every private-use character".to_owned()))?;
        for (name, id) in [("bos_token", self.bos), ("eos_token", self.eos)] {
            let index = self.tokens.iter().position(|(_, token)| Some(*token) == id);
            let spelled = index.map(|index| sentinels.character(index).to_string());
            context.insert(name.into(), Json::String(spelled.unwrap_or_default()));
        }

        let spellings: Vec<&str> = self.tokens.iter().map(|(text, _)| text.as_str()).collect();
        let source = sentinels.mark(&self.source, &spellings);
        let size = inputs.len();
        let environment = environment(FUEL + size as u64, chat.now);
        let template = environment.template_from_str(&source).map_err(|e| failed(brief(&e)))?;
        let mut out = Capped { text: Vec::new(), room: MAX_OUTPUT + 8 * size, full: false };
        let done = template.render_captured_to(Value::from(Serde(&context)), &mut out);
        if let Err(error) = done {
            let model = self.model.clone();
            return Err(match root(&error) {
                Root::Refused(what) => ChatError::Refused { model, what },
                _ if out.full => {
                    ChatError::Stopped { model, what: "it wrote too much text".to_owned() }
                }
                Root::Fuel => ChatError::Stopped { model, what: "it ran for too long".to_owned() },
                Root::Other => ChatError::Failed { model, what: brief(&error) },
            });
        }
        let text = String::from_utf8(out.text).map_err(|error| failed(error.to_string()))?;
        Ok((text, sentinels))
    }

    /// Looks for control tokens that the rendered text spells but the marked source does not.
    fn probe(&self, tokenizer: &Tokenizer) -> Result<(), ChatError> {
        let turns = ["user", "assistant", "user"].map(|role| Message::new(role, "probe"));
        for messages in [turns[..1].to_vec(), turns.to_vec()] {
            let chat = Chat { now: Some(0), ..Chat::answer_to(messages) };
            // A template may refuse these for its own reasons; then there is nothing to see.
            let Ok((marked, sentinels)) = self.rendered(&chat) else {
                continue;
            };
            let plain: String = marked.chars().filter(|c| sentinels.token(*c).is_none()).collect();
            let mut ids = Vec::new();
            tokenizer.encode(&plain, Special::Parse, &mut ids);
            if let Some(id) = ids.iter().find(|id| tokenizer.is_structural(**id)) {
                let token = tokenizer.spelling(*id).into_owned();
                return Err(ChatError::Glued { model: self.model.clone(), token });
            }
        }
        Ok(())
    }
}

/// Where a template runs: no loader, no environment variables, no escaping, bounded.
fn environment(fuel: u64, now: Option<u64>) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(fuel));
    environment.set_recursion_limit(MAX_DEPTH);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    // As the library that templates are written for is set up.
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    functions::add(&mut environment, now);
    environment
}

enum Root {
    Refused(String),
    Fuel,
    Other,
}

/// What an error started as: it may have passed through macros and calls.
fn root(error: &minijinja::Error) -> Root {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(what) = error.detail().and_then(|d| d.strip_prefix(functions::REFUSED)) {
            return Root::Refused(what.chars().take(500).collect());
        }
        if error.kind() == ErrorKind::OutOfFuel {
            return Root::Fuel;
        }
        next = std::error::Error::source(error).and_then(|e| e.downcast_ref());
    }
    Root::Other
}

/// An error of the template engine in one line.
fn brief(error: &minijinja::Error) -> String {
    let line = error.line().map_or(String::new(), |line| format!("line {line}: "));
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    format!("{line}{}", what.chars().take(300).collect::<String>())
}

/// Output with an end.
struct Capped {
    text: Vec<u8>,
    room: usize,
    full: bool,
}

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > self.room {
            self.full = true;
            return Err(io::Error::other("too much output"));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
