//! Answers as server-sent events, piece by piece.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tessera_runtime::{FinishReason, Request, Session};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::fault::Fault;
use crate::fields::Generate;
use crate::generate::{Way, about, late, reason, told, usage};
use crate::guard::Caller;
use crate::pieces::Piece;
use crate::state::App;
use crate::tools::{Holder, Tools};

/// Silence after which a stream says that it lives.
const ALIVE: Duration = Duration::from_secs(15);

/// The answer to a request as a stream.
///
/// # Errors
/// As [`App::ask`].
pub(crate) fn stream(
    app: &App,
    session: &Arc<Session>,
    caller: Caller,
    fields: &Generate,
    request: Request,
    way: Way,
    tools: Option<Tools>,
) -> Result<Response, Fault> {
    let (id, created) = app.stamp(if way == Way::Chat { "chatcmpl" } else { "cmpl" });
    let mut teller = Teller {
        id,
        created,
        model: session.info().name.clone(),
        way,
        usage: fields.stream_options.unwrap_or_default().include_usage,
        details: fields.details,
        seed: request.seed,
        prompt: request.prompt.len(),
        session: Arc::clone(session),
        held: (0..request.choices).map(|_| Holder::default()).collect(),
        tools,
    };
    let first = teller.begin(request.choices);
    let pieces =
        UnboundedReceiverStream::new(app.ask(session, request, caller.0, app.deadline())?);
    let rest = pieces.map(move |piece| teller.tell(piece));
    let events = flat(tokio_stream::iter([first]).chain(rest)).map(Ok::<_, Infallible>);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(ALIVE)).into_response())
}

/// Makes events of an answer's pieces.
struct Teller {
    id: String,
    created: u64,
    model: String,
    way: Way,
    /// Whether the last event tells the tokens used.
    usage: bool,
    /// Whether it is told how each piece came to be.
    details: bool,
    seed: u64,
    /// Tokens of the prompt.
    prompt: usize,
    session: Arc<Session>,
    tools: Option<Tools>,
    /// By choice, what may turn out to be a call.
    held: Vec<Holder>,
}

impl Teller {
    fn chunk(&self, choices: Value, more: Option<(&str, Value)>) -> Event {
        let mut chunk = json!({
            "id": self.id, "object": self.way.object(true), "created": self.created, "model": self.model,
            "choices": choices,
        });
        if self.usage {
            chunk["usage"] = Value::Null;
        }
        if let Some((name, value)) = more {
            chunk[name] = value;
        }
        Event::default().data(chunk.to_string())
    }

    /// What each choice begins with.
    fn begin(&self, choices: usize) -> Vec<Event> {
        if self.way == Way::Completion {
            return Vec::new();
        }
        let delta = json!({ "role": "assistant", "content": "" });
        let one = |i| json!([{ "index": i, "delta": delta, "finish_reason": null }]);
        (0..choices).map(|i| self.chunk(one(i), None)).collect()
    }

    /// Text of a choice, or its end.
    fn part(&self, choice: usize, text: Option<&str>, reason: Option<&str>) -> Value {
        match self.way {
            Way::Chat => {
                let delta = text.map_or_else(|| json!({}), |text| json!({ "content": text }));
                json!([{ "index": choice, "delta": delta, "finish_reason": reason, "logprobs": null }])
            }
            Way::Completion => json!([{
                "index": choice, "text": text.unwrap_or_default(), "finish_reason": reason, "logprobs": null,
            }]),
        }
    }

    fn text(&self, choice: usize, text: &str) -> Vec<Event> {
        match text.is_empty() {
            true => Vec::new(),
            false => vec![self.chunk(self.part(choice, Some(text), None), None)],
        }
    }

    fn tell(&mut self, piece: Piece) -> Vec<Event> {
        match piece {
            Piece::Text { choice, text, .. } if self.tools.is_some() => {
                let fresh = match (&self.tools, self.held.get_mut(choice)) {
                    (Some(tools), Some(held)) => held.push(&text, tools),
                    _ => text,
                };
                self.text(choice, &fresh)
            }
            Piece::Text { choice, text, tokens, how } if self.details => {
                let made = json!({ "tokens": tokens, "how": how.word() });
                vec![self.chunk(self.part(choice, Some(&text), None), Some(("tessera", made)))]
            }
            Piece::Text { choice, text, .. } => self.text(choice, &text),
            Piece::Canvas(canvas) if self.details => {
                let told = json!({ "canvas": canvas.told(&self.session, self.prompt) });
                vec![self.chunk(json!([]), Some(("tessera", told)))]
            }
            Piece::Ended { choice, reason } => self.ended(choice, reason),
            Piece::Done(outcome) => {
                let about = about(&outcome, self.seed);
                let mut last = vec![self.chunk(json!([]), Some(("tessera", about)))];
                if self.usage {
                    last.push(self.chunk(json!([]), Some(("usage", usage(&[&outcome])))));
                }
                last.push(Event::default().data("[DONE]"));
                last
            }
            Piece::Late => vec![Event::default().data(late().body().to_string())],
            Piece::Failed(error) => {
                vec![Event::default().data(Fault::of(&error).body().to_string())]
            }
            _ => Vec::new(),
        }
    }

    /// The end of a choice: what was held back of it, and why it ended.
    fn ended(&mut self, choice: usize, why: FinishReason) -> Vec<Event> {
        let mut why = reason(why);
        let mut last = Vec::new();
        if let (Some(tools), Some(held)) = (&self.tools, self.held.get_mut(choice)) {
            let (text, calls) = std::mem::take(held).finish(tools);
            last.extend(self.text(choice, &text));
            if !calls.is_empty() {
                let mut told = told(&calls, &self.id, choice);
                for (n, call) in told.as_array_mut().into_iter().flatten().enumerate() {
                    call["index"] = json!(n);
                }
                let delta = json!([{
                    "index": choice, "delta": { "tool_calls": told }, "finish_reason": null,
                }]);
                last.push(self.chunk(delta, None));
                why = "tool_calls";
            }
        }
        last.push(self.chunk(self.part(choice, None, Some(why)), None));
        last
    }
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
