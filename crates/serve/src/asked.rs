//! From a request's fields to the engine's request.

use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use tessera_core::entry::{Kind, find};
use tessera_runtime::{
    Chat, METHODS, Message, MethodCall, Prompt, Recipe, Request, Sampling, Session,
};

use crate::Config;
use crate::fault::Fault;
use crate::fields::{Generate, Logprobs, PromptText, ResponseFormat, Stops};
use crate::tools::Tools;

/// Most texts that end an answer, and most bytes of each.
const STOPS: (usize, usize) = (16, 256);
/// Most bytes of a grammar, a pattern or a schema.
const RULE: usize = 64 << 10;
/// Most alternatives of a token.
pub(crate) const ALTERNATIVES: usize = 20;

/// Refuses a model that is not the loaded one.
pub(crate) fn named(session: &Session, model: Option<&str>) -> Result<(), Fault> {
    let own = &session.info().name;
    match model {
        Some(name) if name != own => {
            let shown: String = name.chars().take(64).collect();
            let message = format!("model {shown}: is not loaded here; `{own}` is");
            let fault = Fault::new(StatusCode::NOT_FOUND, "model_not_found", message);
            Err(Fault { param: Some("model".to_owned()), ..fault })
        }
        _ => Ok(()),
    }
}

/// The tokens of a conversation.
pub(crate) fn conversation(
    session: &Session,
    messages: &[Map<String, Value>],
    tools: Option<&Tools>,
) -> Result<Vec<u32>, Fault> {
    if messages.is_empty() {
        return Err(Fault::field("messages", "messages: is empty; say something"));
    }
    let wrong = |i: usize, what: &str| Fault::field("messages", format!("messages[{i}]: {what}"));
    let mut talk = Vec::with_capacity(messages.len());
    for (i, message) in messages.iter().enumerate() {
        let known = ["role", "content", "name", "tool_calls", "tool_call_id"];
        if let Some(name) = message.keys().find(|k| !known.contains(&k.as_str())) {
            let shown: String = name.chars().take(64).collect();
            let what = format!("{shown} is not supported; {} are", known.join(", "));
            return Err(wrong(i, &what));
        }
        let role = match message.get("role").and_then(Value::as_str) {
            Some(role @ ("system" | "developer" | "user" | "assistant" | "tool")) => role,
            Some(_) => {
                return Err(wrong(i, "role must be system, developer, user, assistant or tool"));
            }
            None => return Err(wrong(i, "has no role")),
        };
        let content = match message.get("content") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => parts
                .iter()
                .map(|part| match (part.get("type"), part.get("text")) {
                    (Some(Value::String(kind)), Some(Value::String(text))) if kind == "text" => {
                        Ok(text.as_str())
                    }
                    _ => Err(wrong(i, "content has a part that is no text; this model reads text")),
                })
                .collect::<Result<String, Fault>>()?,
            None | Some(Value::Null) if message.contains_key("tool_calls") => String::new(),
            _ => return Err(wrong(i, "has no content")),
        };
        let mut said = Message::new(if role == "developer" { "system" } else { role }, &content);
        match message.get("tool_calls") {
            None | Some(Value::Null) => {}
            Some(Value::Array(calls)) if role == "assistant" => {
                said.tool_calls = Some(Value::Array(calls.iter().map(unpacked).collect()));
            }
            Some(_) => return Err(wrong(i, "tool_calls is a list, of the assistant")),
        }
        said.tool_call_id = message.get("tool_call_id").and_then(Value::as_str).map(str::to_owned);
        talk.push(said);
    }
    let told = talk.iter().any(|m| m.role == "tool" || m.tool_calls.is_some());
    match tools {
        None if !told => Ok(session.tokens(&Prompt::Chat(&talk))?),
        Some(tools) if !session.knows_tools() => {
            Ok(session.tokens(&Prompt::Chat(&tools.explained(&talk)))?)
        }
        tools => {
            let tools = tools.map_or_else(Vec::new, |tools| tools.shown.clone());
            Ok(session.tokens(&Prompt::Whole(&Chat { tools, ..Chat::answer_to(talk) }))?)
        }
    }
}

/// A call with its arguments as JSON instead of a text that holds it, as templates print them.
fn unpacked(call: &Value) -> Value {
    let mut call = call.clone();
    let held = call["function"]["arguments"].as_str();
    if let Some(arguments) = held.and_then(|text| serde_json::from_str::<Value>(text).ok()) {
        call["function"]["arguments"] = arguments;
    }
    call
}

/// Checks tokens that a request brings.
pub(crate) fn known_tokens(session: &Session, tokens: &[u32], field: &str) -> Result<(), Fault> {
    let count = session.vocabulary().len();
    match tokens.iter().find(|&&token| token as usize >= count) {
        Some(bad) => Err(Fault::field(
            field,
            format!("{field}: token {bad} does not exist; there are {count}"),
        )),
        None => Ok(()),
    }
}

/// Texts or tokens that a request brings in `field`, as 1 to `most` lists of tokens, none of them empty.
pub(crate) fn token_lists(
    session: &Session,
    given: Option<&PromptText>,
    field: &str,
    most: usize,
) -> Result<Vec<Vec<u32>>, Fault> {
    let wrong = |what: &str| Fault::field(field, format!("{field}: {what}"));
    let read = |text: &String| session.tokens(&Prompt::Raw(text)).map_err(Fault::from);
    let all = match given {
        None => return Err(wrong("is missing")),
        Some(PromptText::Text(text)) => vec![read(text)?],
        Some(PromptText::Texts(texts)) => texts.iter().map(read).collect::<Result<_, _>>()?,
        Some(PromptText::Tokens(tokens)) => vec![tokens.clone()],
        Some(PromptText::Many(lists)) => lists.clone(),
    };
    if all.is_empty() || all.len() > most {
        return Err(wrong(&format!("must be 1 to {most} texts")));
    }
    for tokens in &all {
        if tokens.is_empty() {
            return Err(wrong("is empty: write something"));
        }
        known_tokens(session, tokens, field)?;
    }
    Ok(all)
}

/// How many alternatives a request wants at each token; `None` for no logarithms at all.
pub(crate) fn alternatives(fields: &Generate) -> Result<Option<usize>, Fault> {
    let wanted = match (fields.logprobs, fields.top_logprobs) {
        (None | Some(Logprobs::Wanted(false)), None) => return Ok(None),
        (None | Some(Logprobs::Wanted(false)), Some(_)) => {
            return Err(Fault::field("top_logprobs", "top_logprobs: needs logprobs = true"));
        }
        (Some(Logprobs::Wanted(true)), top) => top.unwrap_or(0),
        (Some(Logprobs::Alternatives(top)), None) => top,
        (Some(Logprobs::Alternatives(_)), Some(_)) => {
            return Err(Fault::field("top_logprobs", "top_logprobs: goes with logprobs = true"));
        }
    };
    if wanted > ALTERNATIVES {
        return Err(Fault::field(
            "logprobs",
            format!("logprobs: at most {ALTERNATIVES} alternatives"),
        ));
    }
    if fields.stream {
        let what = "logprobs: are computed once the answer is whole. Next: leave stream out";
        return Err(Fault::field("logprobs", what));
    }
    Ok(Some(wanted))
}

/// Whether requests may ask for the method with this slug.
pub(crate) fn allowed(config: &Config, slug: &str) -> bool {
    let part = find(METHODS, slug).is_ok_and(|e| matches!(e.kind, Kind::Policy | Kind::Loop));
    part && config.methods.as_ref().is_none_or(|all| all.iter().any(|own| own == slug))
}

/// The recipe of a request: its own methods or the server's, and its constraint.
fn recipe(config: &Config, fields: &Generate, tools: Option<&Tools>) -> Result<Recipe, Fault> {
    let mut calls = Vec::new();
    for given in fields.methods.iter().flatten() {
        let mut settings = given.clone();
        let Some(Value::String(id)) = settings.shift_remove("id") else {
            return Err(Fault::field("methods", "methods: each needs an `id`, the method's name"));
        };
        let entry = find(METHODS, &id)?;
        if !allowed(config, entry.slug) {
            let message = format!("methods: {} is not enabled on this server", entry.slug);
            return Err(Fault { code: "method_not_enabled", ..Fault::field("methods", message) });
        }
        calls.push(MethodCall {
            id: entry.slug.to_owned(),
            settings: settings.into_iter().collect(),
        });
    }
    let format = match &fields.response_format {
        None | Some(ResponseFormat::Text {}) => None,
        Some(ResponseFormat::JsonObject {}) => Some(json!({ "type": "object" })),
        Some(ResponseFormat::JsonSchema { json_schema }) => Some(json_schema.schema.clone()),
    };
    let rules = [
        ("response_format", "json-schema", "schema", format),
        ("tool_choice", "json-schema", "schema", tools.and_then(Tools::schema)),
        ("grammar", "grammar", "lark", fields.grammar.clone().map(Value::from)),
        ("regex", "regex", "pattern", fields.regex.clone().map(Value::from)),
    ];
    let mut first = None;
    for (field, slug, setting, value) in rules {
        let Some(value) = value else { continue };
        if let Some(other) = first.replace(field) {
            return Err(Fault::field(
                field,
                format!("{field}: goes not with {other}: give one of them"),
            ));
        }
        if value.to_string().len() > RULE {
            return Err(Fault::field(field, format!("{field}: is longer than {RULE} bytes")));
        }
        let settings = [(setting.to_owned(), value)].into_iter().collect();
        calls.push(MethodCall { id: slug.to_owned(), settings });
    }
    if fields.methods.is_none() && first.is_none() {
        return Ok(config.recipe.clone());
    }
    if fields.methods.is_none() {
        // The server's own methods and the request's constraint; where they do not go together, that is said.
        let own = config.recipe.members().iter().map(|member| MethodCall {
            id: member.entry.slug.to_owned(),
            settings: member.settings.clone(),
        });
        let all: Vec<MethodCall> = own.chain(calls.clone()).collect();
        return Ok(Recipe::resolve(METHODS, &all)?);
    }
    Ok(Recipe::resolve(METHODS, &calls)?)
}

/// The engine's request that continues `prompt`.
pub(crate) fn request(
    session: &Session,
    config: &Config,
    fields: &Generate,
    prompt: Vec<u32>,
    default_tokens: usize,
    tools: Option<&Tools>,
) -> Result<Request, Fault> {
    if fields.store == Some(true) {
        return Err(Fault::field("store", "store: nothing is stored here; leave it out"));
    }
    let mut request = Request::new(prompt);
    request.context = Some(session.info().context);
    request.recipe = recipe(config, fields, tools)?;
    let base = match request.recipe.is_constrained() {
        // A truncation could leave nothing that is allowed.
        true => Sampling::neutral(),
        false => Sampling::default(),
    };
    request.sampling = Sampling {
        temperature: fields.temperature.unwrap_or(base.temperature),
        top_k: fields.top_k.unwrap_or(base.top_k),
        top_p: fields.top_p.unwrap_or(base.top_p),
        min_p: fields.min_p.unwrap_or(base.min_p),
        repeat_penalty: fields.repeat_penalty.unwrap_or(base.repeat_penalty),
        presence_penalty: fields.presence_penalty.unwrap_or(base.presence_penalty),
        frequency_penalty: fields.frequency_penalty.unwrap_or(base.frequency_penalty),
        ..base
    };
    request.seed = fields.seed.unwrap_or_else(crate::state::any_seed);
    request.stops = match fields.stop.clone() {
        None => Vec::new(),
        Some(Stops::One(stop)) => vec![stop],
        Some(Stops::Several(stops)) => stops,
    };
    if request.stops.len() > STOPS.0
        || request.stops.iter().any(|s| s.len() > STOPS.1 || s.is_empty())
    {
        let what = format!("stop: at most {} texts of 1 to {} bytes", STOPS.0, STOPS.1);
        return Err(Fault::field("stop", what));
    }
    request.choices = fields.n.unwrap_or(1);
    if !(1..=config.most_choices).contains(&request.choices) {
        return Err(Fault::field("n", format!("n: must be 1 to {}", config.most_choices)));
    }
    let asked = match (fields.max_tokens, fields.max_completion_tokens) {
        (Some(_), Some(_)) => {
            return Err(Fault::field(
                "max_tokens",
                "max_tokens and max_completion_tokens are the same: give one",
            ));
        }
        (given, newer) => given.or(newer),
    };
    if asked.is_some_and(|n| n > config.most_tokens) {
        let what = format!("max_tokens: at most {} on this server", config.most_tokens);
        return Err(Fault::field("max_tokens", what));
    }
    request.max_tokens = Some(asked.unwrap_or(default_tokens));
    if session.filling().is_some() && asked.is_none() {
        request.max_tokens = None;
    }
    if request.max_tokens == Some(0) && !fields.echo {
        return Err(Fault::field("max_tokens", "max_tokens: must be at least 1, or give echo"));
    }
    request.recipe.fits(&session.offer())?;
    let spec = session.backbone().spec();
    if request.max_tokens != Some(0) {
        request.limit(spec)?;
    } else if request.prompt.len() > session.info().context {
        let (needed, limit) = (request.prompt.len(), session.info().context);
        let trained = spec.context;
        return Err(tessera_core::Error::ContextFull { needed, limit, trained }.into());
    }
    Ok(request)
}
