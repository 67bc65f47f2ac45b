//! Embeddings: of an encoder if the server has one, or the mean of the other model's last hidden states over a
//! text; of length 1 either way.
//!
//! A chat model was not trained for it: its means tell topics apart, and are no match for a model made for
//! embeddings. The answer says how it was made (`tessera.pooling`).

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tessera_core::pass::HiddenSite;
use tessera_core::{CacheOptions, Pass, Position, Reveal, RowsOut, Segment};
use tessera_runtime::{EncodeError, Encoder, Session};

use crate::asked::{named, token_lists};
use crate::fault::Fault;
use crate::fields::{Embed, Encoding, PromptText, read};
use crate::scored::TURN;
use crate::state::App;

/// Most texts of a request.
const TEXTS: usize = 256;
/// Rows of a pass.
const CHUNK: usize = 512;

/// POST /v1/embeddings.
pub(crate) async fn embeddings(State(app): State<App>, body: Bytes) -> Result<Json<Value>, Fault> {
    let asked: Embed = read(&body)?;
    let session = app.session()?;
    let encoder = app
        .encoder()
        .filter(|encoder| asked.model.as_deref().is_none_or(|name| name == encoder.name()));
    let (name, own, pooling) = match encoder {
        Some(encoder) => (encoder.name(), encoder.width(), encoder.pooling().told()),
        None => {
            named(&session, asked.model.as_deref())?;
            let width = session.backbone().spec().hidden;
            (session.info().name.as_str(), width, "mean of the last hidden states")
        }
    };
    if asked.dimensions.is_some_and(|wanted| wanted != own) {
        return Err(Fault::field("dimensions", format!("dimensions: this model has {own}")));
    }
    let texts = match encoder {
        Some(encoder) => encoder_texts(encoder, asked.input.as_ref())?,
        None => session_texts(&session, asked.input.as_ref())?,
    };
    let count: usize = texts.iter().map(Vec::len).sum();
    // One request at a time, beside the queue. The turn ends with the work, whoever still waits for it.
    let turn = TURN.acquire().await.map_err(|_| Fault::inside())?;
    let (model, made_for_it) = (Arc::clone(&session), encoder.cloned());
    let work = move || {
        let _turn = turn;
        match made_for_it {
            Some(encoder) => encoder.embed(&texts).map_err(|error| refused(&error)),
            None => texts.iter().map(|text| mean(&model, text).map_err(Fault::from)).collect(),
        }
    };
    let means: Vec<Vec<f32>> = match tokio::task::spawn_blocking(work).await {
        Ok(means) => means?,
        Err(_) => return Err(Fault::inside()),
    };
    let data: Vec<Value> = means
        .into_iter()
        .enumerate()
        .map(|(index, mean)| {
            let embedding = match asked.encoding_format {
                Encoding::Float => json!(mean),
                Encoding::Base64 => {
                    let bytes: Vec<u8> = mean.iter().flat_map(|x| x.to_le_bytes()).collect();
                    json!(STANDARD.encode(bytes))
                }
            };
            json!({ "object": "embedding", "index": index, "embedding": embedding })
        })
        .collect();
    Ok(Json(json!({
        "object": "list",
        "model": name,
        "data": data,
        "usage": { "prompt_tokens": count, "total_tokens": count },
        "tessera": { "pooling": pooling },
    })))
}

fn wrong(what: &str) -> Fault {
    Fault::field("input", format!("input: {what}"))
}

/// What an encoder says of a request.
fn refused(error: &EncodeError) -> Fault {
    match error {
        EncodeError::TooLong { .. } => {
            Fault { code: "context_length_exceeded", ..wrong(&error.to_string()) }
        }
        _ => {
            tracing::error!(%error, "an embedding failed");
            Fault::inside()
        }
    }
}

/// The tokens of a request for the model that writes.
fn session_texts(session: &Session, input: Option<&PromptText>) -> Result<Vec<Vec<u32>>, Fault> {
    let texts = token_lists(session, input, "input", TEXTS)?;
    let context = session.info().context;
    match texts.iter().map(Vec::len).find(|tokens| *tokens > context) {
        Some(tokens) => {
            let what = format!("a text has {tokens} tokens, and {context} fit");
            Err(Fault { code: "context_length_exceeded", ..wrong(&what) })
        }
        None => Ok(texts),
    }
}

/// The tokens of a request for an encoder.
fn encoder_texts(encoder: &Encoder, input: Option<&PromptText>) -> Result<Vec<Vec<u32>>, Fault> {
    let texts = match input {
        None => return Err(wrong("is missing")),
        Some(PromptText::Text(text)) => std::slice::from_ref(text),
        Some(PromptText::Texts(texts)) => texts,
        // An empty list is read as one of tokens.
        Some(PromptText::Tokens(tokens)) if tokens.is_empty() => &[],
        Some(PromptText::Tokens(_) | PromptText::Many(_)) => {
            return Err(wrong("this model takes texts, no tokens"));
        }
    };
    if texts.is_empty() || texts.len() > TEXTS {
        return Err(wrong(&format!("must be 1 to {TEXTS} texts")));
    }
    if texts.iter().any(String::is_empty) {
        return Err(wrong("is empty: write something"));
    }
    texts.iter().map(|text| encoder.tokens(text).map_err(|error| refused(&error))).collect()
}

/// The mean of the last hidden states of a text, of length 1.
fn mean(session: &Session, tokens: &[u32]) -> Result<Vec<f32>, tessera_core::Error> {
    let backbone = session.backbone();
    let width = backbone.spec().hidden;
    let options = CacheOptions { capacity: tokens.len(), ..CacheOptions::default() };
    let mut cache = backbone.new_cache(options)?;
    let mut reveal = Reveal::new();
    let mut sum = vec![0.0f64; width];
    for (start, part) in tokens.chunks(CHUNK).enumerate().map(|(n, part)| (n * CHUNK, part)) {
        let positions: Vec<Position> = (start as Position..).take(part.len()).collect();
        let mut segment = Segment::causal(part, &positions, &mut *cache);
        segment.rows_out = RowsOut::None;
        let mut segments = [segment];
        let mut pass = Pass::new(&mut segments);
        pass.taps.hidden = &[HiddenSite::Final];
        backbone.forward(&mut pass, &mut reveal)?;
        let shown = reveal.segments.first().and_then(|s| s.hidden.first());
        for row in shown.into_iter().flat_map(|block| block.chunks(width)) {
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
    }
    let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    Ok(sum.iter().map(|x| (x / length) as f32).collect())
}
