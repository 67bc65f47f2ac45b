//! What a request may say, and how what it may not say is refused.

use axum::body::Bytes;
use axum::http::StatusCode;
use schemars::{JsonSchema, schema_for};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tessera_core::entry::nearest;

use crate::fault::Fault;

/// A request for text, of chats and completions alike.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Generate {
    /// The model's name, as `/v1/models` gives it; the one that is loaded if left out.
    pub model: Option<String>,
    /// The conversation (chats only): objects with `role` and `content`.
    pub messages: Option<Vec<Map<String, Value>>>,
    /// The text to continue (completions only), texts, tokens, or lists of tokens.
    pub prompt: Option<PromptText>,
    /// Most tokens of an answer (completions default: 16).
    pub max_tokens: Option<usize>,
    /// The same, by its newer name.
    pub max_completion_tokens: Option<usize>,
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: Option<f32>,
    /// Only the most probable tokens that together reach this probability.
    pub top_p: Option<f32>,
    /// Only this many most probable tokens; 0 for all.
    pub top_k: Option<usize>,
    /// Only tokens at least this share as probable as the most probable one.
    pub min_p: Option<f32>,
    /// Divides the logits of tokens that were said; 1 is off.
    pub repeat_penalty: Option<f32>,
    /// Subtracted from the logits of tokens that were said.
    pub presence_penalty: Option<f32>,
    /// Subtracted once per occurrence.
    pub frequency_penalty: Option<f32>,
    /// Equal requests with equal seeds give equal text.
    pub seed: Option<u64>,
    /// Texts that end the answer.
    pub stop: Option<Stops>,
    /// How many answers.
    pub n: Option<usize>,
    /// Send pieces as server-sent events.
    pub stream: bool,
    /// Say in a stream how each piece of text came to be, and how canvases fill.
    pub details: bool,
    /// What a stream ends with.
    pub stream_options: Option<StreamOptions>,
    /// Begin the answer with the prompt (completions only).
    pub echo: bool,
    /// Logarithms of probabilities: a number of alternatives (completions), or true (chats).
    pub logprobs: Option<Logprobs>,
    /// Alternatives at each token of a chat's `logprobs`, 0 to 20.
    pub top_logprobs: Option<usize>,
    /// What form the answer has.
    pub response_format: Option<ResponseFormat>,
    /// A grammar, in Lark, that the answer keeps.
    pub grammar: Option<String>,
    /// A regular expression that the answer matches.
    pub regex: Option<String>,
    /// Functions that the model may call (chats only).
    pub tools: Option<Value>,
    /// `none`, `auto`, `required`, or a function by name (chats only).
    pub tool_choice: Option<Value>,
    /// Taken and not used: an answer that was asked to call makes one call.
    pub parallel_tool_calls: Option<bool>,
    /// Methods that take part: `[{"id": "cascade", "budget": 8}]`; `[]` for the plain run.
    pub methods: Option<Vec<Map<String, Value>>>,
    /// Taken and not used.
    pub user: Option<String>,
    /// Taken and not used.
    pub metadata: Option<Value>,
    /// Only false: nothing is stored.
    pub store: Option<bool>,
}

/// The prompt of a completion.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum PromptText {
    /// One text.
    Text(String),
    /// Tokens of one text.
    Tokens(Vec<u32>),
    /// Several texts.
    Texts(Vec<String>),
    /// Tokens of several texts.
    Many(Vec<Vec<u32>>),
}

/// One text or several.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Stops {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

/// What a stream ends with.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StreamOptions {
    /// A last piece with the tokens used.
    pub include_usage: bool,
}

/// Whether, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Logprobs {
    /// Of the tokens themselves.
    Wanted(bool),
    /// With this many alternatives, 0 to 20.
    Alternatives(usize),
}

/// What form an answer has.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ResponseFormat {
    /// Any text.
    Text {},
    /// Any JSON object.
    JsonObject {},
    /// JSON that a schema accepts.
    JsonSchema {
        /// The schema and its name.
        json_schema: NamedSchema,
    },
}

/// A schema as OpenAI's clients send it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "clients send them, and what is not listed is refused")]
pub struct NamedSchema {
    /// Its name; not used.
    #[serde(default)]
    pub name: Option<String>,
    /// Its purpose; not used.
    #[serde(default)]
    pub description: Option<String>,
    /// The schema.
    pub schema: Value,
    /// An answer always keeps the schema.
    #[serde(default)]
    pub strict: Option<bool>,
}

/// Texts to be embedded.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Embed {
    /// The model's name, as `/v1/models` gives it.
    pub model: Option<String>,
    /// One text, several, tokens, or lists of tokens.
    pub input: Option<PromptText>,
    /// How numbers are written.
    pub encoding_format: Encoding,
    /// Only the model's own number of dimensions.
    pub dimensions: Option<usize>,
    /// Taken and not used.
    pub user: Option<String>,
}

/// How the numbers of an embedding are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// As numbers.
    #[default]
    Float,
    /// As little-endian 32-bit floats in base64.
    Base64,
}

/// Which model is to be loaded instead.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SwapModel {
    /// Its name, one of those that the server was started with.
    pub model: String,
}

/// A text to be cut into tokens.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tokenize {
    /// The text, in which spellings of control tokens are text.
    pub content: Option<String>,
    /// The text as vLLM's clients send it: spellings of control tokens are the tokens.
    pub prompt: Option<String>,
    /// With `prompt`: begin and end as the model wants texts to (true if left out).
    pub add_special_tokens: Option<bool>,
    /// The model's name, as `/v1/models` gives it.
    pub model: Option<String>,
}

/// Tokens to be made text.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Detokenize {
    /// The tokens.
    pub tokens: Vec<u32>,
}

/// Fields that other servers know and this one does not: said so, instead of called unknown.
const ELSEWHERE: [&str; 6] =
    ["functions", "function_call", "logit_bias", "best_of", "suffix", "service_tier"];

/// Reads a body.
///
/// # Errors
/// 400 for what is no JSON object, for a field that is not known (with the nearest that is) or not supported, and for a
/// value of another kind.
pub fn read<T: DeserializeOwned + JsonSchema>(body: &Bytes) -> Result<T, Fault> {
    let bad = |message: String| Fault::new(StatusCode::BAD_REQUEST, "invalid_json", message);
    let value: Value =
        serde_json::from_slice(body).map_err(|e| bad(format!("the body is no JSON: {e}")))?;
    let Value::Object(given) = &value else {
        return Err(bad("the body must be a JSON object".to_owned()));
    };
    let schema = schema_for!(T);
    let known: Vec<&str> = schema
        .as_value()
        .get("properties")
        .and_then(Value::as_object)
        .map(|all| all.keys().map(String::as_str).collect())
        .unwrap_or_default();
    if let Some(name) = given.keys().map(String::as_str).find(|name| !known.contains(name)) {
        // An unknown name may be as long as the body.
        let shown: String = name.chars().take(64).collect();
        let message = if ELSEWHERE.contains(&name) {
            format!("{shown}: is not supported by this server. Next: leave it out")
        } else {
            match nearest(&shown, known.iter().copied()).first() {
                Some(near) => format!("{shown}: there is no such field; did you mean `{near}`?"),
                None => format!("{shown}: there is no such field"),
            }
        };
        return Err(Fault { code: "unknown_field", ..Fault::field(&shown, message) });
    }
    serde_json::from_value(value).map_err(|e| bad(format!("a field has a wrong value: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> Fault {
        read::<Generate>(&Bytes::from(text.to_owned())).unwrap_err()
    }

    #[test]
    fn unknown_fields_are_refused_with_the_nearest() {
        let found = fault(r#"{"temprature": 1}"#);
        assert!(found.message.contains("did you mean `temperature`?"), "{found:?}");
        assert_eq!((found.param.as_deref(), found.code), (Some("temprature"), "unknown_field"));
        assert!(fault(r#"{"logit_bias": {}}"#).message.contains("not supported"));
        assert!(fault(r#"{"stream_options": {"usage": true}}"#).message.contains("usage"));
        assert!(fault("[1]").message.contains("must be a JSON object"));
        assert!(fault("{").message.contains("no JSON"));
        assert!(fault(r#"{"n": -1}"#).message.contains("wrong value"));
    }

    #[test]
    fn what_clients_send_is_read() {
        let text = r#"{"model": "m", "messages": [{"role": "user", "content": "hi"}], "stop": "x", "user": "u",
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": true}},
            "stream": true, "stream_options": {"include_usage": true}, "logprobs": true, "top_logprobs": 2}"#;
        let read: Generate = read(&Bytes::from(text)).unwrap();
        assert!(read.stream && read.stream_options.unwrap().include_usage);
        assert!(matches!(read.response_format, Some(ResponseFormat::JsonSchema { .. })));
        assert_eq!(read.logprobs, Some(Logprobs::Wanted(true)));
    }
}
