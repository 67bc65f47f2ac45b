//! Chats and completions: what both begin with, and whole answers.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tessera_runtime::{FinishReason, Outcome, Session};

use crate::asked::{alternatives, conversation, named, request, token_lists};
use crate::fault::Fault;
use crate::fields::{Generate, read};
use crate::guard::Caller;
use crate::pieces::Piece;
use crate::scored::{Scores, score};
use crate::state::{App, Pieces};
use crate::stream;
use crate::tools::{Call, Tools};

/// Tokens of a completion that does not say how many, as OpenAI has it.
const COMPLETION: usize = 16;
/// Most prompts of one completion.
const PROMPTS: usize = 64;

/// Which of the two ways of asking a request came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Chat,
    Completion,
}

impl Way {
    pub(crate) fn object(self, stream: bool) -> &'static str {
        match (self, stream) {
            (Self::Chat, false) => "chat.completion",
            (Self::Chat, true) => "chat.completion.chunk",
            (Self::Completion, _) => "text_completion",
        }
    }
}

/// What both ways begin with: the fields, and the model that they may name.
fn opened(app: &App, body: &Bytes) -> Result<(Generate, Arc<Session>), Fault> {
    let fields: Generate = read(body)?;
    let session = app.session()?;
    named(&session, fields.model.as_deref())?;
    Ok((fields, session))
}

/// POST /v1/chat/completions.
pub(crate) async fn chat(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, Fault> {
    let (fields, session) = opened(&app, &body)?;
    let session = &session;
    if fields.prompt.is_some() || fields.echo {
        return Err(Fault::field(
            "prompt",
            "prompt and echo are for /v1/completions; a chat has messages",
        ));
    }
    let Some(messages) = &fields.messages else {
        return Err(Fault::field("messages", "messages: is missing"));
    };
    let tools = Tools::read(fields.tools.as_ref(), fields.tool_choice.as_ref())?;
    let prompt = conversation(session, messages, tools.as_ref())?;
    let most =
        app.config().most_tokens.min(session.info().context.saturating_sub(prompt.len()).max(1));
    let request = request(session, app.config(), &fields, prompt, most, tools.as_ref())?;
    let wanted = alternatives(&fields)?;
    if fields.details && !fields.stream {
        return Err(Fault::field("details", "details: are told in a stream. Next: stream = true"));
    }
    if fields.stream {
        return stream::stream(&app, session, caller, &fields, request, Way::Chat, tools);
    }
    let seed = request.seed;
    let prompt = request.prompt.clone();
    let outcome = outcome(app.ask(session, request, caller.0, app.deadline())?).await?;
    let scores = scored(session, &prompt, &outcome, wanted).await?;
    let (id, created) = app.stamp("chatcmpl");
    let choices: Vec<Value> = outcome
        .choices
        .iter()
        .zip(scores)
        .enumerate()
        .map(|(index, (choice, scores))| {
            let (text, calls) = match &tools {
                Some(tools) => tools.split(&choice.text),
                None => (choice.text.clone(), Vec::new()),
            };
            let mut message = json!({ "role": "assistant", "content": text });
            if !calls.is_empty() {
                message["content"] = if text.is_empty() { Value::Null } else { json!(text) };
                message["tool_calls"] = told(&calls, &id, index);
            }
            json!({
                "index": index,
                "message": message,
                "finish_reason": if calls.is_empty() { reason(choice.reason) } else { "tool_calls" },
                "logprobs": scores.map(|scores| scores.of_chat(session)),
            })
        })
        .collect();
    Ok(Json(json!({
        "id": id,
        "object": Way::Chat.object(false),
        "created": created,
        "model": session.info().name,
        "choices": choices,
        "usage": usage(&[&outcome]),
        "tessera": about(&outcome, seed),
    }))
    .into_response())
}

/// Calls in OpenAI's shape; their names are of this answer and choice alone.
pub(crate) fn told(calls: &[Call], id: &str, choice: usize) -> Value {
    let id = format!("{}_{choice}", id.trim_start_matches("chatcmpl-"));
    calls.iter().enumerate().map(|(n, call)| call.told(&id, n)).collect()
}

/// POST /v1/completions.
pub(crate) async fn completions(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, Fault> {
    let (fields, session) = opened(&app, &body)?;
    let session = &session;
    if fields.tools.is_some() || fields.tool_choice.is_some() {
        return Err(Fault::field("tools", "tools: are for /v1/chat/completions"));
    }
    if fields.messages.is_some() {
        return Err(Fault::field(
            "messages",
            "messages are for /v1/chat/completions; a completion has a prompt",
        ));
    }
    let prompts = token_lists(session, fields.prompt.as_ref(), "prompt", PROMPTS)?;
    let wanted = alternatives(&fields)?;
    if fields.details && !fields.stream {
        return Err(Fault::field("details", "details: are told in a stream. Next: stream = true"));
    }
    if fields.stream && (prompts.len() > 1 || fields.echo) {
        return Err(Fault::field("stream", "stream: goes with one prompt and without echo"));
    }
    let mut requests = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        requests.push(request(session, app.config(), &fields, prompt, COMPLETION, None)?);
    }
    if fields.stream
        && let Some(request) = requests.pop()
    {
        return stream::stream(&app, session, caller, &fields, request, Way::Completion, None);
    }
    // One for all prompts.
    let deadline = app.deadline();
    let (mut choices, mut outcomes) = (Vec::new(), Vec::new());
    let seed = requests.first().map_or(0, |request| request.seed);
    // All of them wait at once, so that they share passes.
    let mut begun = Vec::with_capacity(requests.len());
    for request in requests {
        let prompt = request.prompt.clone();
        let pieces = match request.max_tokens {
            Some(0) => None,
            _ => Some(app.ask(session, request, caller.0, deadline)?),
        };
        begun.push((prompt, pieces));
    }
    for (prompt, pieces) in begun {
        let outcome = match pieces {
            None => nothing(&prompt),
            Some(pieces) => outcome(pieces).await?,
        };
        for choice in &outcome.choices {
            let (mut text, mut tokens) = (String::new(), Vec::new());
            if fields.echo {
                text = spelt(session, &prompt);
                tokens.extend_from_slice(&prompt);
            }
            text.push_str(&choice.text);
            tokens.extend_from_slice(&choice.tokens);
            let first = if fields.echo { 0 } else { prompt.len() };
            let scores = match wanted {
                None => None,
                Some(top) => {
                    let mut all = [&prompt[..], &choice.tokens].concat();
                    // An end token is no text, but it was drawn: who asks for one token gets one line.
                    if let FinishReason::End { token } = choice.reason {
                        all.push(token);
                    }
                    Some(score(session, all, first, top).await?.of_completion(session))
                }
            };
            choices.push(json!({
                "index": choices.len(),
                "text": text,
                "finish_reason": reason(choice.reason),
                "logprobs": scores,
            }));
        }
        outcomes.push(outcome);
    }
    let (id, created) = app.stamp("cmpl");
    let all: Vec<&Outcome> = outcomes.iter().collect();
    Ok(Json(json!({
        "id": id,
        "object": Way::Completion.object(false),
        "created": created,
        "model": session.info().name,
        "choices": choices,
        "usage": usage(&all),
        "tessera": outcomes.last().map(|outcome| about(outcome, seed)),
    }))
    .into_response())
}

/// An answer of no tokens.
fn nothing(prompt: &[u32]) -> Outcome {
    let choice = tessera_runtime::Completion {
        tokens: Vec::new(),
        text: String::new(),
        reason: FinishReason::Length,
        logprobs: Vec::new(),
        complete: None,
    };
    let stats = tessera_runtime::Stats { prompt_tokens: prompt.len(), ..Default::default() };
    Outcome { choices: vec![choice], stats, population: None }
}

/// The text of tokens; bytes that are no UTF-8 become U+FFFD.
pub(crate) fn spelt(session: &Session, tokens: &[u32]) -> String {
    let bytes: Vec<u8> =
        tokens.iter().flat_map(|&t| session.vocabulary().bytes(t).to_vec()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The whole outcome of a request.
async fn outcome(mut pieces: Pieces) -> Result<Outcome, Fault> {
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::Done(outcome) => return Ok(*outcome),
            Piece::Late => return Err(late()),
            Piece::Failed(error) => return Err(Fault::of(&error)),
            _ => {}
        }
    }
    Err(Fault::inside())
}

pub(crate) fn late() -> Fault {
    let what =
        "the request took longer than this server allows. Next: fewer tokens, or try again later";
    Fault::new(StatusCode::GATEWAY_TIMEOUT, "timeout", what)
}

/// Logarithms for every choice, if they are wanted.
async fn scored(
    session: &Arc<Session>,
    prompt: &[u32],
    outcome: &Outcome,
    wanted: Option<usize>,
) -> Result<Vec<Option<Scores>>, Fault> {
    let mut all = Vec::with_capacity(outcome.choices.len());
    for choice in &outcome.choices {
        all.push(match wanted {
            None => None,
            Some(top) => {
                Some(score(session, [prompt, &choice.tokens].concat(), prompt.len(), top).await?)
            }
        });
    }
    Ok(all)
}

/// Why an answer ended, in OpenAI's words.
pub(crate) fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop { .. } | FinishReason::End { .. } | FinishReason::Constraint => "stop",
        _ => "length",
    }
}

pub(crate) fn usage(outcomes: &[&Outcome]) -> Value {
    let prompt: usize = outcomes.iter().map(|o| o.stats.prompt_tokens).sum();
    let reused: usize = outcomes.iter().map(|o| o.stats.reused_tokens).sum();
    let made: usize = outcomes.iter().flat_map(|o| &o.choices).map(|c| c.tokens.len()).sum();
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": { "cached_tokens": reused },
    })
}

/// What only this server says: the seed, the counts, and whether a constraint is met.
pub(crate) fn about(outcome: &Outcome, seed: u64) -> Value {
    json!({
        "seed": seed,
        "stats": outcome.stats,
        "complete": outcome.choices.iter().map(|c| c.complete).collect::<Vec<_>>(),
    })
}
