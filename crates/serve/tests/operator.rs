//! Another model, for the operator; and embeddings of a model made for them.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;

use std::time::Duration;

use axum::Router;
use axum::http::{Request, StatusCode, header};
use common::{CHAT, ask, hello, post, text, toy};
use serde_json::{Value, json};
use tessera_model::toy::{self, Flavour};
use tessera_runtime::{Encoder, Options, Session};
use tessera_serve::{App, Config, Models, router};

const SWAP: &str = "/admin/model";

fn other() -> Session {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("other.gguf");
    std::fs::write(&path, toy::gguf(Flavour::Qwen, 6)).unwrap();
    let options = Options { threads: 1, offline: true, ..Options::default() };
    Session::load("other", &path, &options, &|_| ()).unwrap()
}

/// A server that may change its model for `other`, which takes a moment, or for `broken`, which fails.
async fn swapping(config: Config) -> Router {
    let models = ["toy", "other", "broken"].map(str::to_owned).to_vec();
    let again = |name: &str| match name {
        "other" => {
            std::thread::sleep(Duration::from_millis(200));
            Ok(other())
        }
        "toy" => Ok(toy()),
        _ => Err("/secret/path: no such file".to_owned()),
    };
    let config = Config { models, ..config };
    let (app, loading) = App::begin_with(config, || Ok::<_, ()>(toy()), again);
    assert!(loading.failure().await.is_none());
    router(app)
}

async fn loaded(server: &Router) -> Value {
    let request = Request::get("/v1/models").header(header::HOST, "localhost");
    let (_, body) = text(server, request.body(axum::body::Body::empty()).unwrap()).await;
    serde_json::from_str::<Value>(&body).unwrap()["data"][0]["id"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_changed_once_those_before_are_answered() {
    let server = swapping(Config::default()).await;
    let long = json!({ "messages": hello(), "max_tokens": 200, "temperature": 0.0, "seed": 1 });
    let (_, alone) = ask(&server, CHAT, long.clone()).await;
    let before: Vec<_> = (0..4)
        .map(|_| {
            let (server, long) = (server.clone(), long.clone());
            tokio::spawn(async move { ask(&server, CHAT, long).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let swap = {
        let server = server.clone();
        tokio::spawn(async move { ask(&server, SWAP, json!({ "model": "other" })).await })
    };
    for one in before {
        let (status, answer) = one.await.unwrap();
        // Those that came after the swap was asked for are told to come again.
        if status != StatusCode::SERVICE_UNAVAILABLE {
            assert_eq!(status, StatusCode::OK);
            assert_eq!(answer["choices"][0]["message"], alone["choices"][0]["message"]);
            assert_eq!(answer["model"], "toy");
        }
    }
    let (status, answer) = swap.await.unwrap();
    assert_eq!((status, answer), (StatusCode::OK, json!({ "model": "other", "was": "toy" })));
    assert_eq!(loaded(&server).await, "other");
    let (status, answer) = ask(&server, CHAT, long.clone()).await;
    assert_eq!((status, &answer["model"]), (StatusCode::OK, &json!("other")));
    let named = json!({ "messages": hello(), "model": "toy" });
    assert_eq!(ask(&server, CHAT, named).await.0, StatusCode::NOT_FOUND);
    // And back: the same text as before, from no row of the other model.
    assert_eq!(ask(&server, SWAP, json!({ "model": "toy" })).await.0, StatusCode::OK);
    let (_, again) = ask(&server, CHAT, long).await;
    assert_eq!(again["choices"][0]["message"], alone["choices"][0]["message"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_be_loaded_leaves_the_old_one() {
    let server = swapping(Config::default()).await;
    let (status, answer) = ask(&server, SWAP, json!({ "model": "broken" })).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    let told = answer["error"]["message"].as_str().unwrap();
    assert!(told.contains("toy answers again") && !told.contains("secret"), "{told}");
    assert_eq!(loaded(&server).await, "toy");
    let hello = json!({ "messages": hello(), "max_tokens": 4 });
    assert_eq!(ask(&server, CHAT, hello).await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_model_is_changed_nothing_else_is_taken() {
    let server = swapping(Config::default()).await;
    let swap = {
        let server = server.clone();
        tokio::spawn(async move { ask(&server, SWAP, json!({ "model": "other" })).await })
    };
    tokio::time::sleep(Duration::from_millis(60)).await;
    let (status, answer) = ask(&server, CHAT, json!({ "messages": hello() })).await;
    assert_eq!(
        (status, &answer["error"]["code"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("loading"))
    );
    let (status, _) = ask(&server, SWAP, json!({ "model": "other" })).await;
    assert!(matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::CONFLICT), "{status}");
    assert_eq!(swap.await.unwrap().0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_operator_changes_models_and_only_for_those_named() {
    let (status, answer) = ask(&common::plain().await, SWAP, json!({ "model": "other" })).await;
    assert_eq!((status, &answer["error"]["code"]), (StatusCode::FORBIDDEN, &json!("not_allowed")));
    let server = swapping(Config::default()).await;
    for (body, wanted) in [
        (json!({ "model": "/etc/passwd" }), StatusCode::NOT_FOUND),
        (json!({ "model": 7 }), StatusCode::BAD_REQUEST),
        (json!({}), StatusCode::BAD_REQUEST),
        (json!({ "model": "other", "path": "x" }), StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(ask(&server, SWAP, body.clone()).await.0, wanted, "{body}");
    }
    let keys = vec!["callers-key".to_owned()];
    let operator_key = Some("operators-key".to_owned());
    let locked = swapping(Config { keys, operator_key, ..Config::default() }).await;
    for (key, wanted) in [
        (None, StatusCode::UNAUTHORIZED),
        (Some("callers-key"), StatusCode::UNAUTHORIZED),
        (Some("operators-key"), StatusCode::OK),
    ] {
        let mut request = post(SWAP, json!({ "model": "toy" }).to_string());
        if let Some(key) = key {
            let value = format!("Bearer {key}").parse().unwrap();
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        assert_eq!(text(&locked, request).await.0, wanted, "{key:?}");
    }
    // It opens nothing else.
    let mut request = post(CHAT, json!({ "messages": hello() }).to_string());
    request.headers_mut().insert(header::AUTHORIZATION, "Bearer operators-key".parse().unwrap());
    assert_eq!(text(&locked, request).await.0, StatusCode::UNAUTHORIZED);
}

#[test]
fn settings_that_let_callers_change_the_model_are_refused() {
    let (keys, models) = (vec!["callers-key".to_owned()], vec!["other".to_owned()]);
    let open = Config { keys: keys.clone(), models: models.clone(), ..Config::default() };
    let error = open.validate().unwrap_err().to_string();
    assert!(error.contains("--operator-key-file"), "{error}");
    let operator_key = Some("callers-key".to_owned());
    let same = Config { keys, models, operator_key, ..Config::default() };
    assert!(same.validate().unwrap_err().to_string().contains("one of the callers'"));
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_come_from_the_encoder_if_there_is_one() {
    let root = tempfile::tempdir().unwrap();
    toy::encoder::write(root.path()).unwrap();
    let encoder = Encoder::open("toy-encoder", root.path(), 1).unwrap();
    let wanted = encoder.embed(&[encoder.tokens("the sea is blue").unwrap()]).unwrap();
    let load = move || Ok::<_, ()>(Models { session: toy(), encoder: Some(encoder) });
    let (app, loading) = App::begin(Config::default(), load);
    assert!(loading.failure().await.is_none());
    let server = router(app);
    let embed = |body: Value| ask(&server, "/v1/embeddings", body);
    let (status, answer) = embed(json!({ "input": ["the sea is blue", "a cat"] })).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(answer["model"], "toy-encoder");
    assert_eq!(answer["tessera"]["pooling"], "mean of the rows of an encoder");
    let made: Vec<f32> = serde_json::from_value(answer["data"][0]["embedding"].clone()).unwrap();
    assert_eq!(made, wanted[0]);
    assert_eq!(answer["usage"]["prompt_tokens"], 6 + 4);
    // The model that writes is asked for by name.
    let (_, answer) = embed(json!({ "model": "toy", "input": "the sea" })).await;
    assert_eq!(answer["tessera"]["pooling"], "mean of the last hidden states");
    for (body, part) in [
        (json!({ "model": "nobody", "input": "x" }), "nobody"),
        (json!({ "input": "" }), "empty"),
        (json!({ "input": [] }), "1 to 256"),
        (json!({ "input": [1, 2] }), "takes texts"),
        (json!({ "input": "cat ".repeat(30) }), "32 tokens"),
        (json!({ "input": "cat", "dimensions": 7 }), "dimensions"),
    ] {
        let (status, answer) = embed(body).await;
        assert!(status.is_client_error(), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(part), "{answer}");
    }
}
