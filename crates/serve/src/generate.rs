//! Chats and completions: whole answers, and streams of server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tessera_runtime::{FinishReason, Outcome, Prompt, Request, Session};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::asked::{alternatives, conversation, known_tokens, named, request};
use crate::fault::Fault;
use crate::fields::{Generate, PromptText, read};
use crate::guard::Caller;
use crate::scored::{Scores, score};
use crate::state::App;
use crate::worker::Piece;

/// Tokens of a completion that does not say how many, as OpenAI has it.
const COMPLETION: usize = 16;
/// Most prompts of one completion.
const PROMPTS: usize = 64;
/// Silence after which a stream says that it lives.
const ALIVE: Duration = Duration::from_secs(15);

/// Which of the two ways of asking a request came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Chat,
    Completion,
}

impl Way {
    fn object(self, stream: bool) -> &'static str {
        match (self, stream) {
            (Self::Chat, false) => "chat.completion",
            (Self::Chat, true) => "chat.completion.chunk",
            (Self::Completion, _) => "text_completion",
        }
    }
}

/// What both ways begin with: the fields, and the model that they may name.
fn opened<'a>(app: &'a App, body: &Bytes) -> Result<(Generate, &'a Arc<Session>), Fault> {
    let fields: Generate = read(body)?;
    let session = app.session()?;
    named(session, fields.model.as_deref())?;
    Ok((fields, session))
}

/// POST /v1/chat/completions.
pub(crate) async fn chat(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, Fault> {
    let (fields, session) = opened(&app, &body)?;
    if fields.prompt.is_some() || fields.echo {
        return Err(Fault::field(
            "prompt",
            "prompt and echo are for /v1/completions; a chat has messages",
        ));
    }
    let Some(messages) = &fields.messages else {
        return Err(Fault::field("messages", "messages: is missing"));
    };
    let prompt = conversation(session, messages)?;
    let most =
        app.config().most_tokens.min(session.info().context.saturating_sub(prompt.len()).max(1));
    let request = request(session, app.config(), &fields, prompt, most)?;
    let wanted = alternatives(&fields)?;
    if fields.details && !fields.stream {
        return Err(Fault::field("details", "details: are told in a stream. Next: stream = true"));
    }
    if fields.stream {
        return stream(&app, caller, &fields, request, Way::Chat);
    }
    let seed = request.seed;
    let prompt = request.prompt.clone();
    let outcome = whole(&app, caller, request, app.deadline()).await?;
    let scores = scored(session, &prompt, &outcome, wanted).await?;
    let choices: Vec<Value> = outcome
        .choices
        .iter()
        .zip(scores)
        .enumerate()
        .map(|(index, (choice, scores))| {
            json!({
                "index": index,
                "message": { "role": "assistant", "content": choice.text },
                "finish_reason": reason(choice.reason),
                "logprobs": scores.map(|scores| scores.of_chat(session)),
            })
        })
        .collect();
    let (id, created) = app.stamp("chatcmpl");
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

/// POST /v1/completions.
pub(crate) async fn completions(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Result<Response, Fault> {
    let (fields, session) = opened(&app, &body)?;
    if fields.messages.is_some() {
        return Err(Fault::field(
            "messages",
            "messages are for /v1/chat/completions; a completion has a prompt",
        ));
    }
    let prompts = prompts(session, &fields)?;
    let wanted = alternatives(&fields)?;
    if fields.details && !fields.stream {
        return Err(Fault::field("details", "details: are told in a stream. Next: stream = true"));
    }
    if fields.stream && (prompts.len() > 1 || fields.echo) {
        return Err(Fault::field("stream", "stream: goes with one prompt and without echo"));
    }
    let mut requests = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        requests.push(request(session, app.config(), &fields, prompt, COMPLETION)?);
    }
    if fields.stream
        && let Some(request) = requests.pop()
    {
        return stream(&app, caller, &fields, request, Way::Completion);
    }
    // One for all prompts.
    let deadline = app.deadline();
    let (mut choices, mut outcomes) = (Vec::new(), Vec::new());
    let seed = requests.first().map_or(0, |request| request.seed);
    for request in requests {
        let prompt = request.prompt.clone();
        let outcome = match request.max_tokens {
            Some(0) => nothing(&prompt),
            _ => whole(&app, caller, request, deadline).await?,
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
                    let all = [&prompt[..], &choice.tokens].concat();
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

/// The prompts of a completion as tokens.
fn prompts(session: &Session, fields: &Generate) -> Result<Vec<Vec<u32>>, Fault> {
    let empty = |what: &str| Fault::field("prompt", format!("prompt: {what}"));
    let read = |text: &String| session.tokens(&Prompt::Raw(text)).map_err(Fault::from);
    let all = match &fields.prompt {
        None => return Err(empty("is missing")),
        Some(PromptText::Text(text)) => vec![read(text)?],
        Some(PromptText::Texts(texts)) => texts.iter().map(read).collect::<Result<_, _>>()?,
        Some(PromptText::Tokens(tokens)) => vec![tokens.clone()],
        Some(PromptText::Many(lists)) => lists.clone(),
    };
    if all.is_empty() || all.len() > PROMPTS {
        return Err(empty(&format!("must be 1 to {PROMPTS} texts")));
    }
    for tokens in &all {
        if tokens.is_empty() {
            return Err(empty("is empty: write something"));
        }
        known_tokens(session, tokens, "prompt")?;
    }
    Ok(all)
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
async fn whole(
    app: &App,
    caller: Caller,
    request: Request,
    deadline: Instant,
) -> Result<Outcome, Fault> {
    let mut pieces = app.ask(request, caller.0, deadline)?;
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
fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop { .. } | FinishReason::End { .. } | FinishReason::Constraint => "stop",
        _ => "length",
    }
}

fn usage(outcomes: &[&Outcome]) -> Value {
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
fn about(outcome: &Outcome, seed: u64) -> Value {
    json!({
        "seed": seed,
        "stats": outcome.stats,
        "complete": outcome.choices.iter().map(|c| c.complete).collect::<Vec<_>>(),
    })
}

/// The answer as server-sent events.
fn stream(
    app: &App,
    caller: Caller,
    fields: &Generate,
    request: Request,
    way: Way,
) -> Result<Response, Fault> {
    let session = app.session()?;
    let (id, created) = app.stamp(if way == Way::Chat { "chatcmpl" } else { "cmpl" });
    let model = session.info().name.clone();
    let with_usage = fields.stream_options.unwrap_or_default().include_usage;
    let (seed, choices, details) = (request.seed, request.choices, fields.details);
    let (shown, before) = (Arc::clone(session), request.prompt.len());
    let pieces: UnboundedReceiver<Piece> = app.ask(request, caller.0, app.deadline())?;
    let chunk = move |choices: Value, more: Option<(&str, Value)>| {
        let mut chunk = json!({
            "id": id, "object": way.object(true), "created": created, "model": model, "choices": choices,
        });
        if with_usage {
            chunk["usage"] = Value::Null;
        }
        if let Some((name, value)) = more {
            chunk[name] = value;
        }
        Event::default().data(chunk.to_string())
    };
    let part = move |choice: usize, text: Option<&str>, reason: Option<&str>| match way {
        Way::Chat => {
            let delta = text.map_or_else(|| json!({}), |text| json!({ "content": text }));
            json!([{ "index": choice, "delta": delta, "finish_reason": reason, "logprobs": null }])
        }
        Way::Completion => json!([{
            "index": choice, "text": text.unwrap_or_default(), "finish_reason": reason, "logprobs": null,
        }]),
    };
    let begins = chunk.clone();
    let first: Vec<Event> = match way {
        Way::Chat => (0..choices)
            .map(|i| begins(json!([{ "index": i, "delta": { "role": "assistant", "content": "" }, "finish_reason": null }]), None))
            .collect(),
        Way::Completion => Vec::new(),
    };
    let rest = UnboundedReceiverStream::new(pieces).map(move |piece| match piece {
        Piece::Text { choice, text, tokens, how } if details => {
            let made = json!({ "tokens": tokens, "how": how.word() });
            vec![chunk(part(choice, Some(&text), None), Some(("tessera", made)))]
        }
        Piece::Text { text, .. } if text.is_empty() => Vec::new(),
        Piece::Text { choice, text, .. } => vec![chunk(part(choice, Some(&text), None), None)],
        Piece::Canvas(canvas) if details => {
            vec![chunk(
                json!([]),
                Some(("tessera", json!({ "canvas": canvas.told(&shown, before) }))),
            )]
        }
        Piece::Canvas(_) | Piece::Checked { .. } | Piece::Record(_) | Piece::Unchecked(_) => {
            Vec::new()
        }
        Piece::Ended { choice, reason: why } => {
            vec![chunk(part(choice, None, Some(reason(why))), None)]
        }
        Piece::Done(outcome) => {
            let mut last = vec![chunk(json!([]), Some(("tessera", about(&outcome, seed))))];
            if with_usage {
                last.push(chunk(json!([]), Some(("usage", usage(&[&outcome])))));
            }
            last.push(Event::default().data("[DONE]"));
            last
        }
        Piece::Late => vec![Event::default().data(late().body().to_string())],
        Piece::Failed(error) => vec![Event::default().data(Fault::of(&error).body().to_string())],
    });
    let events = tokio_stream::iter([first]).chain(rest);
    let events = flat(events).map(Ok::<_, Infallible>);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(ALIVE)).into_response())
}

/// The members of every list, one after the other.
fn flat<S>(lists: S) -> impl tokio_stream::Stream<Item = Event>
where
    S: tokio_stream::Stream<Item = Vec<Event>> + Send + 'static,
{
    struct Flat<S> {
        lists: std::pin::Pin<Box<S>>,
        ready: std::vec::IntoIter<Event>,
    }
    impl<S: tokio_stream::Stream<Item = Vec<Event>>> tokio_stream::Stream for Flat<S> {
        type Item = Event;

        fn poll_next(
            mut self: std::pin::Pin<&mut Self>,
            context: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Event>> {
            use std::task::Poll;
            loop {
                if let Some(event) = self.ready.next() {
                    return Poll::Ready(Some(event));
                }
                match self.lists.as_mut().poll_next(context) {
                    Poll::Ready(Some(list)) => self.ready = list.into_iter(),
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Pending => return Poll::Pending,
                }
            }
        }
    }
    Flat { lists: Box::pin(lists), ready: Vec::new().into_iter() }
}
