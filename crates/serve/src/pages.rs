//! Everything that is not a text: models, tokens, health, metrics, the OpenAPI file.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};
use tessera_core::entry::Kind;
use tessera_runtime::{METHODS, Special};

use crate::asked::{known_tokens, named};
use crate::fault::Fault;
use crate::fields::{Detokenize, Embed, Generate, SwapModel, Tokenize, read};
use crate::generate::spelt;
use crate::state::App;

/// GET /v1/models.
pub(crate) async fn models(State(app): State<App>) -> Result<Json<Value>, Fault> {
    let session = app.session()?;
    let info = session.info();
    let mut all = vec![json!({
        "id": info.name, "object": "model", "created": 0, "owned_by": "tessera",
        "context": info.context, "architecture": info.arch, "chat": info.chat,
    })];
    if let Some(encoder) = app.encoder() {
        all.push(json!({
            "id": encoder.name(), "object": "model", "created": 0, "owned_by": "tessera",
            "context": encoder.longest(), "architecture": "bert", "chat": false,
        }));
    }
    Ok(Json(json!({ "object": "list", "data": all })))
}

/// POST /tokenize.
pub(crate) async fn tokenize(State(app): State<App>, body: Bytes) -> Result<Json<Value>, Fault> {
    let asked: Tokenize = read(&body)?;
    let session = app.session()?;
    named(&session, asked.model.as_deref())?;
    let tokens = match (&asked.content, &asked.prompt) {
        (Some(text), None) => session.vocabulary().encode(text),
        (None, Some(text)) if asked.add_special_tokens.unwrap_or(true) => {
            session.tokenizer().encode_with_bos(text, Special::Parse)
        }
        (None, Some(text)) => {
            let mut tokens = Vec::new();
            session.tokenizer().encode(text, Special::Parse, &mut tokens);
            tokens
        }
        _ => return Err(Fault::field("content", "content: give either content or prompt")),
    };
    let (count, most) = (tokens.len(), session.info().context);
    Ok(Json(json!({ "tokens": tokens, "count": count, "max_model_len": most })))
}

/// POST /detokenize.
pub(crate) async fn detokenize(State(app): State<App>, body: Bytes) -> Result<Json<Value>, Fault> {
    let asked: Detokenize = read(&body)?;
    let session = app.session()?;
    known_tokens(&session, &asked.tokens, "tokens")?;
    let text = spelt(&session, &asked.tokens);
    // By vLLM's name too.
    Ok(Json(json!({ "content": text, "prompt": text })))
}

/// GET /tokenizer_info: the tokens that mark where texts begin and end.
pub(crate) async fn tokenizer(State(app): State<App>) -> Result<Json<Value>, Fault> {
    let session = app.session()?;
    let tokenizer = session.tokenizer();
    let spelt = |token: Option<u32>| token.map(|token| tokenizer.spelling(token).into_owned());
    Ok(Json(json!({
        "tokenizer_class": "tessera", "vocab_size": tokenizer.vocab_size(),
        "bos_token": spelt(tokenizer.bos()), "eos_token": spelt(tokenizer.eos()),
        "pad_token": spelt(tokenizer.pad()),
    })))
}

/// GET /health and /ready: 200 once the model is loaded.
pub(crate) async fn health(State(app): State<App>) -> Result<Json<Value>, Fault> {
    app.session()?;
    Ok(Json(json!({ "status": "ok" })))
}

/// GET /version.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

/// GET /metrics.
pub(crate) async fn metrics(State(app): State<App>) -> impl IntoResponse {
    let mut page = app.metrics().page();
    if app.config().vllm_metrics {
        page.push_str(&app.metrics().aliases());
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], page)
}

/// What is at no address.
pub(crate) async fn nowhere() -> Fault {
    let what = "there is nothing here. Next: /openapi.json lists what there is";
    Fault::new(StatusCode::NOT_FOUND, "not_found", what)
}

/// An address that is asked in another way.
pub(crate) async fn not_so() -> Fault {
    let what = "this address is not asked like that. Next: /openapi.json says how";
    Fault::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", what)
}

/// GET /openapi.json.
pub(crate) async fn openapi() -> Json<Value> {
    Json(document())
}

/// The description of the whole server, made of the types that read its requests and of the registry.
pub fn document() -> Value {
    let mut schemas = SchemaSettings::openapi3().into_generator();
    let body = |schema: Value| {
        json!({
            "required": true, "content": { "application/json": { "schema": schema } },
        })
    };
    let fault = json!({ "description": "refused: an error object says why" });
    let mut paths = Map::new();
    let mut post = |path: &str, what: &str, schema: Value| {
        let answers = json!({
            "200": { "description": "done" }, "400": fault, "401": fault, "403": fault, "404": fault, "413": fault,
            "429": fault, "503": fault, "504": fault,
        });
        let post = json!({ "summary": what, "requestBody": body(schema), "responses": answers });
        paths.insert(path.to_owned(), json!({ "post": post }));
    };
    fn of<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Value {
        schemas.subschema_for::<T>().to_value()
    }
    post("/v1/chat/completions", "Answer a conversation.", of::<Generate>(&mut schemas));
    post("/v1/completions", "Continue a text.", of::<Generate>(&mut schemas));
    post("/v1/embeddings", "Embed texts.", of::<Embed>(&mut schemas));
    post("/tokenize", "Cut a text into tokens.", of::<Tokenize>(&mut schemas));
    post("/detokenize", "Make tokens a text.", of::<Detokenize>(&mut schemas));
    post(
        "/admin/model",
        "Change the model for another (operator's key).",
        of::<SwapModel>(&mut schemas),
    );
    for (path, what) in [
        ("/v1/models", "The loaded models."),
        ("/tokenizer_info", "The tokens that mark where texts begin and end."),
        ("/v1/methods", "The methods, with their claims and last records."),
        ("/health", "Whether the model is loaded."),
        ("/ready", "Whether the model is loaded."),
        ("/version", "The program's version."),
        ("/metrics", "Counters, as Prometheus reads them."),
        ("/openapi.json", "This description."),
    ] {
        let get = json!({ "summary": what, "responses": { "200": { "description": "done" } } });
        paths.insert(path.to_owned(), json!({ "get": get }));
    }
    let methods: Vec<Value> = METHODS
        .iter()
        .filter(|entry| matches!(entry.kind, Kind::Policy | Kind::Loop))
        .map(|entry| json!({ "id": entry.slug, "summary": entry.summary, "settings": (entry.schema)() }))
        .collect();
    json!({
        "openapi": "3.0.3",
        "info": { "title": "Tessera", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": {
            "schemas": schemas.take_definitions(true),
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } },
        },
        "x-methods": methods,
    })
}
