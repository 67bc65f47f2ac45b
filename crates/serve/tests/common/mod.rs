//! A server over a toy model, asked without a socket.
#![allow(dead_code, reason = "each test file uses a part")]

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use serde_json::{Value, json};
use tessera_model::toy::{self, Flavour};
use tessera_runtime::{Options, Session};
use tessera_serve::{App, Config, router};
use tower::ServiceExt;

pub fn session(bytes: Vec<u8>) -> Session {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("toy.gguf");
    std::fs::write(&path, bytes).unwrap();
    let options = Options { threads: 1, offline: true, ..Options::default() };
    Session::load("toy", &path, &options, &|_| ()).unwrap()
}

pub fn toy() -> Session {
    session(toy::gguf(Flavour::Llama, 5))
}

/// A server whose model is loaded.
pub async fn served(config: Config, load: fn() -> Session) -> Router {
    let (app, loading) = App::begin(config, move || Ok::<_, ()>(load()));
    assert!(loading.failure().await.is_none());
    router(app)
}

pub async fn plain() -> Router {
    served(Config::default(), toy).await
}

pub fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::post(path).header(header::HOST, "localhost:8080");
    request.header(header::CONTENT_TYPE, "application/json").body(body.into()).unwrap()
}

pub async fn text(server: &Router, request: Request<Body>) -> (StatusCode, String) {
    let response = server.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = to_bytes(response.into_body(), 1 << 24).await.unwrap();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

pub async fn ask(server: &Router, path: &str, body: Value) -> (StatusCode, Value) {
    let (status, text) = text(server, post(path, body.to_string())).await;
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

/// The data of a stream's events.
pub fn events(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect()
}

pub const CHAT: &str = "/v1/chat/completions";
pub const COMPLETION: &str = "/v1/completions";

/// A conversation of one message.
pub fn hello() -> Value {
    json!([{ "role": "user", "content": "Hello" }])
}
