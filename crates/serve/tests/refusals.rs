//! Who and what the server refuses, over a toy model and without a socket.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

mod common;

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use common::{CHAT, COMPLETION, ask, hello, plain, post, served, text, toy};
use serde_json::{Value, json};
use tessera_serve::Config;
use tower::ServiceExt;

#[tokio::test]
async fn what_is_wrong_is_refused_by_name() {
    let server = plain().await;
    for (body, word) in [
        (json!({ "messages": hello(), "temprature": 1 }), "did you mean `temperature`"),
        (json!({ "messages": hello(), "logit_bias": {} }), "logit_bias: is not supported"),
        (json!({ "messages": hello(), "tools": 3 }), "tools: must be a list"),
        (json!({ "messages": hello(), "tool_choice": "required" }), "needs tools"),
        (json!({ "messages": hello(), "model": "gpt" }), "is not loaded here"),
        (json!({ "messages": hello(), "max_tokens": 100_000 }), "at most 4096"),
        (json!({ "messages": hello(), "n": 99 }), "n: must be"),
        (json!({ "messages": hello(), "temperature": -1 }), "temperature"),
        (json!({ "messages": hello(), "top_logprobs": 2 }), "needs logprobs"),
        (json!({ "messages": [{ "role": "robot", "content": "x" }] }), "role must be"),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
            "reads text",
        ),
        (json!({ "messages": [] }), "is empty"),
        (json!({ "prompt": "x" }), "a chat has messages"),
        (json!({}), "messages: is missing"),
    ] {
        let (status, refused) = ask(&server, CHAT, body).await;
        assert!(status.is_client_error(), "{status} {refused}");
        let message = refused["error"]["message"].as_str().unwrap();
        assert!(message.contains(word), "{message}");
    }
    let (status, refused) = ask(&server, COMPLETION, json!({ "prompt": [1, 2, 9999] })).await;
    assert_eq!(
        (status, refused["error"]["param"].as_str()),
        (StatusCode::BAD_REQUEST, Some("prompt"))
    );
    let long = json!({ "prompt": vec![7; 100_000], "max_tokens": 0, "echo": true, "logprobs": 1 });
    let (status, refused) = ask(&server, COMPLETION, long).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(refused["error"]["code"], "context_length_exceeded", "{refused}");
    let (status, _) = ask(&server, "/nowhere", json!({})).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let large = format!("{{\"prompt\": \"{}\"}}", "x".repeat(3 << 20));
    let (status, refused) = text(&server, post(COMPLETION, large)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(refused.contains("body_too_large"), "{refused}");
}

#[tokio::test]
async fn others_are_kept_out() {
    let get = |host: &str, origin: Option<&str>, key: Option<&str>| {
        let mut request = Request::get("/v1/models").header(header::HOST, host);
        request = origin.into_iter().fold(request, |r, o| r.header(header::ORIGIN, o));
        request = key
            .into_iter()
            .fold(request, |r, k| r.header(header::AUTHORIZATION, format!("Bearer {k}")));
        request.body(Body::empty()).unwrap()
    };
    let open = served(Config { names: vec!["my.box".to_owned()], ..Config::default() }, toy).await;
    let status = async |server: &Router, request| text(server, request).await.0;
    assert_eq!(status(&open, get("localhost:1", None, None)).await, StatusCode::OK);
    assert_eq!(
        status(&open, get("my.box", Some("http://my.box:8080"), None)).await,
        StatusCode::OK
    );
    assert_eq!(status(&open, get("evil.example", None, None)).await, StatusCode::FORBIDDEN);
    assert_eq!(
        status(&open, get("localhost", Some("http://evil.example"), None)).await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(status(&open, get("localhost", Some("null"), None)).await, StatusCode::FORBIDDEN);
    let keys = vec!["first-key-1".to_owned(), "second-key".to_owned()];
    let locked = served(Config { keys, ..Config::default() }, toy).await;
    assert_eq!(status(&locked, get("localhost", None, None)).await, StatusCode::UNAUTHORIZED);
    assert_eq!(
        status(&locked, get("localhost", None, Some("first-key-2"))).await,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(status(&locked, get("localhost", None, Some("second-key"))).await, StatusCode::OK);
    let reachable = Config { host: [0, 0, 0, 0].into(), ..Config::default() };
    assert!(reachable.validate().unwrap_err().to_string().contains("--api-key-file"));
}

#[tokio::test]
async fn callers_do_not_read_one_anothers_rows() {
    let keys = vec!["first-key-1".to_owned(), "second-key".to_owned()];
    let server = served(Config { keys, ..Config::default() }, toy).await;
    let cached = async |key: &str| {
        let mut request =
            post(COMPLETION, json!({ "prompt": "a long secret", "max_tokens": 2 }).to_string());
        request
            .headers_mut()
            .insert(header::AUTHORIZATION, format!("Bearer {key}").parse().unwrap());
        let (_, answer) = text(&server, request).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached("first-key-1").await, 0);
    assert!(cached("first-key-1").await > 0);
    assert_eq!(cached("second-key").await, 0);
}

#[tokio::test]
async fn a_full_queue_and_a_late_answer_say_so() {
    let slow = Config { queue: 1, longest: Duration::from_millis(1), ..Config::default() };
    let server = served(slow, toy).await;
    let body =
        json!({ "prompt": "x", "max_tokens": 100, "temperature": 0, "stop": "\u{1}\u{1}\u{1}" });
    let many = (0..12).map(|_| {
        let (server, body) = (server.clone(), body.to_string());
        tokio::spawn(async move {
            let response = server.oneshot(post(COMPLETION, body)).await.unwrap();
            (response.status(), response.headers().contains_key(header::RETRY_AFTER))
        })
    });
    let many: Vec<_> = many.collect();
    let mut seen = Vec::new();
    for one in many {
        seen.push(one.await.unwrap());
    }
    assert!(seen.contains(&(StatusCode::TOO_MANY_REQUESTS, true)), "{seen:?}");
    assert!(seen.iter().any(|s| s.0 == StatusCode::GATEWAY_TIMEOUT), "{seen:?}");
}

#[tokio::test]
async fn nothing_that_is_sent_is_a_server_error() {
    let server = plain().await;
    let good = json!({ "messages": hello(), "max_tokens": 1, "seed": 1, "stop": ["a"], "n": 1, "temperature": 0.5 }).to_string();
    let mut state = 12345u64;
    let mut next = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    for i in 0..1000 {
        let mut bytes = good.clone().into_bytes();
        for _ in 0..1 + next() % 4 {
            let at = next() % bytes.len();
            match next() % 4 {
                0 => drop(bytes.remove(at)),
                1 => bytes.insert(at, (next() % 256) as u8),
                2 => bytes[at] = (next() % 256) as u8,
                _ => bytes.truncate(at.max(1)),
            }
        }
        let path = [CHAT, COMPLETION, "/tokenize", "/detokenize"][i % 4];
        let response = server.clone().oneshot(post(path, bytes.clone())).await.unwrap();
        let status = response.status();
        assert!(!status.is_server_error(), "{status}: {}", String::from_utf8_lossy(&bytes));
    }
}
