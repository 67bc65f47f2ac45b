//! Many callers at once over a toy model: the same texts, shared passes, callers that leave.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;

use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use common::{CHAT, COMPLETION, ask, events, plain, post, served, text, toy};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tessera_serve::Config;
use tower::ServiceExt;

/// Requests that differ in everything; every other one is drafted.
fn body(i: usize) -> Value {
    let methods = match i % 4 {
        0 => json!([]),
        1 => json!([{ "id": "cascade", "budget": 8 }]),
        2 => json!([{ "id": "prompt-lookup" }]),
        _ => json!([{ "id": "token-recycling" }]),
    };
    json!({
        "prompt": format!("a b c a b c, number {} of many ", i % 17).repeat(1 + i % 3),
        "max_tokens": 4 + i % 13, "seed": i, "temperature": (i % 3) as f64 * 0.5, "methods": methods,
        "n": 1 + i % 2,
    })
}

async fn answers(server: &Router, count: usize) -> Vec<Value> {
    let asked = (0..count).map(|i| {
        let server = server.clone();
        tokio::spawn(async move { ask(&server, COMPLETION, body(i)).await })
    });
    let asked: Vec<_> = asked.collect();
    let mut answers = Vec::with_capacity(count);
    for one in asked {
        let (status, answer) = one.await.unwrap();
        assert_eq!(status, StatusCode::OK, "{answer}");
        answers.push(answer);
    }
    answers
}

/// A line of /metrics.
async fn counted(server: &Router, name: &str) -> f64 {
    let request = axum::http::Request::get("/metrics").header("host", "localhost");
    let (_, page) = text(server, request.body(axum::body::Body::empty()).unwrap()).await;
    let line = page.lines().find(|l| l.starts_with(name)).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_seed_gives_the_same_text_alone_and_under_load() {
    const COUNT: usize = 200;
    let roomy = Config { queue: COUNT, ..Config::default() };
    let server = served(roomy, toy).await;
    let mut alone = Vec::new();
    for i in 0..COUNT {
        let (status, answer) = ask(&server, COMPLETION, body(i)).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        alone.push(answer);
    }
    let passes = counted(&server, "tessera_passes_total").await;
    let together = answers(&server, COUNT).await;
    for (i, (a, b)) in alone.iter().zip(&together).enumerate() {
        assert_eq!(a["choices"], b["choices"], "request {i}");
    }
    // What shows that passes were shared at all.
    let shared = counted(&server, "tessera_passes_total").await - passes;
    assert!(shared * 3.0 < passes, "{shared} passes together, {passes} one after the other");
}

#[tokio::test]
async fn little_memory_is_a_wait_and_not_an_error() {
    // Room for one or two requests at a time, and fewer texts than are asked for.
    let tight = Config { queue: 100, texts: 3, cache_bytes: 1 << 20, ..Config::default() };
    let server = served(tight, toy).await;
    let free = plain().await;
    let (tight, free) = (answers(&server, 40).await, answers(&free, 40).await);
    for (a, b) in tight.iter().zip(&free) {
        assert_eq!(a["choices"], b["choices"]);
    }
    let nothing = Config { cache_bytes: 1, ..Config::default() };
    let server = served(nothing, toy).await;
    let (status, refused) = ask(&server, COMPLETION, body(0)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(refused["error"]["message"].as_str().unwrap().contains("bytes of cache"), "{refused}");
}

#[tokio::test]
async fn a_caller_that_leaves_ends_its_request() {
    let server = plain().await;
    let body = json!({ "prompt": "x", "max_tokens": 4000, "stream": true, "temperature": 1, "seed": 3,
        "stop": "\u{1}\u{2}\u{1}" });
    let mut response = server.clone().oneshot(post(COMPLETION, body.to_string())).await.unwrap();
    // It has begun.
    assert!(response.body_mut().frame().await.is_some());
    drop(response);
    let mut left = 0.0;
    for _ in 0..200 {
        left = counted(&server, "tessera_requests_left_total").await;
        if left > 0.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(left, 1.0);
    assert_eq!(counted(&server, "tessera_requests_running").await, 0.0);
    let (status, _) = ask(&server, COMPLETION, json!({ "prompt": "x", "max_tokens": 2 })).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn details_say_how_each_token_came_to_be() {
    let server = plain().await;
    // A rule that makes the text repeat itself, so that guesses come true on a model that knows nothing.
    let ask_for = json!({ "messages": [{ "role": "user", "content": "abc abc abc abc" }], "max_tokens": 24,
        "temperature": 0, "stream": true, "details": true, "methods": [{ "id": "cascade" }],
        "regex": "(abc ){6}" });
    let (status, stream) = text(&server, post(CHAT, ask_for.to_string())).await;
    assert_eq!(status, StatusCode::OK, "{stream}");
    let chunks: Vec<Value> =
        events(&stream).iter().filter_map(|e| serde_json::from_str(e).ok()).collect();
    let how = |word: &str| -> u64 {
        let own = chunks.iter().filter(|c| c["tessera"]["how"] == word);
        own.map(|c| c["tessera"]["tokens"].as_u64().unwrap()).sum()
    };
    let stats =
        &chunks.iter().find(|c| c["tessera"]["stats"].is_object()).unwrap()["tessera"]["stats"];
    // An end token is drawn, but is no text.
    let made = how("drawn") + how("guessed");
    let drawn = stats["drawn_tokens"].as_u64().unwrap();
    assert!(made == drawn || made + 1 == drawn, "{made} of {drawn}");
    assert!(how("guessed") <= stats["accepted_tokens"].as_u64().unwrap());
    assert!(how("guessed") > 0, "{stream}");
    let whole = json!({ "messages": [{ "role": "user", "content": "x" }], "details": true });
    let (status, refused) = ask(&server, CHAT, whole).await;
    assert_eq!((status, &refused["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("details")));
}
