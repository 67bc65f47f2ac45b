//! The server over a toy model, asked over HTTP without a socket.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

mod common;

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use common::{CHAT, COMPLETION, ask, events, hello, plain, post, served, session, text, toy};
use serde_json::{Value, json};
use tessera_model::toy;
use tessera_runtime::{Control, Prompt, Session};
use tessera_serve::{App, Config, router, serve};
use tower::ServiceExt;

#[tokio::test]
async fn a_chat_is_answered_and_its_seed_repeats_it() {
    let server = plain().await;
    let body = json!({ "model": "toy", "messages": hello(), "max_tokens": 12, "seed": 7, "n": 2, "user": "u" });
    let (status, first) = ask(&server, CHAT, body.clone()).await;
    assert_eq!(status, StatusCode::OK, "{first}");
    assert_eq!(first["object"], "chat.completion");
    assert_eq!(first["choices"].as_array().unwrap().len(), 2);
    assert_eq!(first["tessera"]["seed"], 7);
    assert!(first["usage"]["completion_tokens"].as_u64().unwrap() <= 24);
    let (_, again) = ask(&server, CHAT, body).await;
    assert_eq!(first["choices"], again["choices"]);
    assert!(again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn a_stream_is_the_answer_in_pieces() {
    let server = plain().await;
    let mut body = json!({ "messages": hello(), "max_tokens": 12, "seed": 7, "temperature": 1 });
    let (_, whole) = ask(&server, CHAT, body.clone()).await;
    body["stream"] = json!(true);
    body["stream_options"] = json!({ "include_usage": true });
    let (status, stream) = text(&server, post(CHAT, body.to_string())).await;
    assert_eq!(status, StatusCode::OK);
    let events = events(&stream);
    assert_eq!(events.last().unwrap(), "[DONE]");
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    let pieces: String =
        chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(pieces, whole["choices"][0]["message"]["content"].as_str().unwrap());
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let ended: Vec<&Value> =
        chunks.iter().map(|c| &c["choices"][0]["finish_reason"]).filter(|r| !r.is_null()).collect();
    assert_eq!(ended, [&whole["choices"][0]["finish_reason"]]);
    assert_eq!(
        chunks.last().unwrap()["usage"]["completion_tokens"],
        whole["usage"]["completion_tokens"]
    );
}

#[tokio::test]
async fn methods_are_those_of_the_registry_and_only_enabled_ones() {
    let allow = Config { methods: Some(vec!["prompt-lookup".to_owned()]), ..Config::default() };
    let server = served(allow, toy).await;
    let body = |methods: Value| json!({ "prompt": "abcabcabc", "max_tokens": 20, "temperature": 0, "methods": methods });
    let (_, plain) = ask(&server, COMPLETION, body(json!([]))).await;
    let (status, drafted) =
        ask(&server, COMPLETION, body(json!([{ "id": "prompt-lookup", "budget": 4 }]))).await;
    assert_eq!(status, StatusCode::OK, "{drafted}");
    assert_eq!(plain["choices"], drafted["choices"]);
    for (methods, code) in [
        (json!([{ "id": "cascade" }]), "method_not_enabled"),
        (json!([{ "id": "prompt-lokup" }]), "unknown_method"),
        (json!([{ "id": "prompt-lookup", "budgt": 4 }]), "invalid_method"),
        (json!([{ "id": "reagent" }]), "method_not_enabled"),
    ] {
        let (status, refused) = ask(&server, COMPLETION, body(methods)).await;
        assert_eq!(
            (status, &refused["error"]["code"]),
            (StatusCode::BAD_REQUEST, &json!(code)),
            "{refused}"
        );
    }
}

#[tokio::test]
async fn a_constraint_holds_or_is_an_error() {
    let server = plain().await;
    let body = json!({ "prompt": "x", "max_tokens": 8, "regex": "[0-9]{3}" });
    let (status, answer) = ask(&server, COMPLETION, body).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let text = answer["choices"][0]["text"].as_str().unwrap();
    assert!(text.len() == 3 && text.chars().all(|c| c.is_ascii_digit()), "{text}");
    let schema = json!({ "type": "object", "properties": { "a": { "type": "boolean" } }, "required": ["a"],
        "additionalProperties": false });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": schema, "strict": true } });
    let body = json!({ "messages": hello(), "max_tokens": 40, "response_format": format });
    let (status, answer) = ask(&server, CHAT, body).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    let read: Result<Value, _> = serde_json::from_str(text);
    assert!(
        read.is_ok_and(|v| v["a"].is_boolean()) || answer["tessera"]["complete"][0] == false,
        "{text}"
    );
    for rule in [
        json!({ "regex": "(" }),
        json!({ "grammar": "nothing" }),
        json!({ "regex": "a", "grammar": "start: \"a\"" }),
    ] {
        let mut body = rule;
        body["prompt"] = json!("x");
        let (status, refused) = ask(&server, COMPLETION, body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{refused}");
        assert!(refused["error"]["message"].as_str().unwrap().len() > 10);
    }
}

#[tokio::test]
async fn echoed_logarithms_are_those_of_the_session() {
    let server = plain().await;
    let session = toy();
    let (before, after) = ("Some", " text here");
    let mut request = session.request(&Prompt::Raw(before)).unwrap();
    request.forced = session.vocabulary().encode(after);
    let never = AtomicBool::new(false);
    let own = session.generate(&request, &mut |_| Control::Continue, &never).unwrap();
    let own = &own.choices[0].logprobs;
    let body = json!({ "prompt": format!("{before}{after}"), "max_tokens": 0, "echo": true, "logprobs": 2 });
    let (status, answer) = ask(&server, COMPLETION, body).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let lines = &answer["choices"][0]["logprobs"];
    let all = lines["token_logprobs"].as_array().unwrap();
    assert_eq!(all.len(), lines["tokens"].as_array().unwrap().len());
    assert!(all[0].is_null());
    for (theirs, own) in all[all.len() - own.len()..].iter().zip(own) {
        assert!((theirs.as_f64().unwrap() - own).abs() < 1e-6, "{theirs} {own}");
    }
    for top in &lines["top_logprobs"].as_array().unwrap()[1..] {
        assert!((1..=2).contains(&top.as_object().unwrap().len()));
    }
    assert_eq!(answer["choices"][0]["text"], format!("{before}{after}"));
    // And of a chat's own tokens.
    let body = json!({ "messages": hello(), "max_tokens": 4, "temperature": 0, "logprobs": true, "top_logprobs": 1 });
    let (_, answer) = ask(&server, CHAT, body).await;
    for line in answer["choices"][0]["logprobs"]["content"].as_array().unwrap() {
        assert_eq!(
            line["logprob"], line["top_logprobs"][0]["logprob"],
            "the most probable was taken"
        );
    }
}

#[tokio::test]
async fn a_call_that_is_asked_for_keeps_its_schema() {
    let server = plain().await;
    let schema = json!({ "type": "object", "properties": { "on": { "type": "boolean" } }, "required": ["on"],
        "additionalProperties": false });
    // The description is any text, however odd.
    let tools = json!([
        { "type": "function", "function": { "name": "a" } },
        { "type": "function", "function": { "name": "door", "description": "\"{<|\n", "parameters": schema, "strict": true } },
    ]);
    let named = json!({ "type": "function", "function": { "name": "door" } });
    let mut body =
        json!({ "messages": hello(), "max_tokens": 60, "tools": tools, "tool_choice": named });
    let (status, answer) = ask(&server, CHAT, body.clone()).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"]["name"], "door");
    let arguments = call["function"]["arguments"].as_str().unwrap();
    let arguments: Value = serde_json::from_str(arguments).unwrap();
    assert!(arguments["on"].is_boolean());
    assert!(choice["message"]["content"].is_null());
    // As a stream, and with the result in the conversation.
    body["seed"] = answer["tessera"]["seed"].clone();
    body["stream"] = json!(true);
    let (_, stream) = text(&server, post(CHAT, body.to_string())).await;
    let chunks: Vec<Value> =
        events(&stream).iter().filter_map(|e| serde_json::from_str(e).ok()).collect();
    let calls: Vec<&Value> = chunks
        .iter()
        .map(|c| &c["choices"][0]["delta"]["tool_calls"][0])
        .filter(|c| c.is_object())
        .collect();
    assert_eq!(calls.len(), 1, "{stream}");
    assert_eq!(calls[0]["function"], call["function"]);
    assert!(
        !chunks
            .iter()
            .any(|c| c["choices"][0]["delta"]["content"].as_str().is_some_and(|t| !t.is_empty()))
    );
    let talk = json!([
        { "role": "assistant", "content": null, "tool_calls": choice["message"]["tool_calls"] },
        { "role": "tool", "tool_call_id": call["id"], "content": "done" },
    ]);
    let tools = json!([{ "type": "function", "function": { "name": "a" } }]);
    let after = json!({ "messages": talk, "max_tokens": 4, "tools": tools });
    let (status, answer) = ask(&server, CHAT, after).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
}

#[tokio::test]
async fn embeddings_are_of_length_one_and_the_same_however_written() {
    let server = plain().await;
    let path = "/v1/embeddings";
    let input = json!(["one", "another text", "one"]);
    let (status, answer) = ask(&server, path, json!({ "model": "toy", "input": input })).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let read = |one: &Value| -> Vec<f64> {
        one["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let all: Vec<Vec<f64>> = answer["data"].as_array().unwrap().iter().map(read).collect();
    assert!((all[0].iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);
    assert!(all[0] == all[2] && all[0] != all[1]);
    let (_, coded) =
        ask(&server, path, json!({ "input": "one", "encoding_format": "base64" })).await;
    let text = coded["data"][0]["embedding"].as_str().unwrap();
    let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).unwrap();
    for (four, own) in bytes.chunks(4).zip(&all[0]) {
        let value = f32::from_le_bytes(four.try_into().unwrap());
        assert!((f64::from(value) - own).abs() < 1e-7);
    }
    for (body, param) in [
        (json!({}), "input"),
        (json!({ "input": [] }), "input"),
        (json!({ "input": "" }), "input"),
        (json!({ "input": [99_999] }), "input"),
        (json!({ "input": vec![7; 10_000] }), "input"),
        (json!({ "input": "x", "dimensions": 3 }), "dimensions"),
        (json!({ "input": "x", "modle": "y" }), "modle"),
    ] {
        let (status, refused) = ask(&server, path, body).await;
        assert_eq!(
            (status, &refused["error"]["param"]),
            (StatusCode::BAD_REQUEST, &json!(param)),
            "{refused}"
        );
    }
}

#[tokio::test]
async fn a_line_for_every_token_that_was_drawn() {
    // Who asks for one token gets one line of logarithms, where the model ended at once too.
    let server = plain().await;
    for seed in 0..40 {
        let body = json!({ "prompt": "ab", "max_tokens": 1, "echo": true, "logprobs": 1, "seed": seed, "temperature": 3 });
        let (_, answer) = ask(&server, COMPLETION, body).await;
        let lines = answer["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
        let prompt = answer["usage"]["prompt_tokens"].as_u64().unwrap();
        assert_eq!(lines.len() as u64, prompt + 1, "{answer}");
    }
}

#[tokio::test]
async fn pages_are_whole_and_load_nothing_from_elsewhere() {
    let server = plain().await;
    for (path, words) in [
        ("/", "Recipe"),
        ("/methods?q=cascade", "1 of "),
        ("/methods/dyspec", "dyspec"),
        ("/docs", "Embed texts."),
        ("/page.css", "--paper"),
        ("/page.js", "use strict"),
    ] {
        let request = Request::get(path).header(header::HOST, "localhost").body(Body::empty());
        let response = server.clone().oneshot(request.unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let policy = response.headers().get(header::CONTENT_SECURITY_POLICY).cloned();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 24).await.unwrap();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        assert!(text.contains(words), "{path}");
        assert!(!text.contains("http://") && !text.contains("https://"), "{path}");
        let page = !path.starts_with("/page.");
        assert_eq!(
            policy.is_some_and(|p| p.to_str().unwrap().contains("default-src 'none'")),
            page
        );
        assert!(!page || text.ends_with("</html>"), "{path}");
    }
    let request = Request::get("/methods/no-such").header(header::HOST, "localhost");
    let (status, refused) = text(&server, request.body(Body::empty()).unwrap()).await;
    assert!(status == StatusCode::NOT_FOUND && refused.contains("unknown_method"), "{refused}");
    // What is written into a page is escaped.
    let request = Request::get("/methods?q=%3Cscript%3E").header(header::HOST, "localhost");
    let (_, page) = text(&server, request.body(Body::empty()).unwrap()).await;
    assert!(!page.contains("<script>") && page.contains("&lt;script&gt;"));
}

#[tokio::test]
async fn tokens_pages_and_the_description() {
    let server = plain().await;
    let (_, other) =
        ask(&server, "/tokenize", json!({ "prompt": "h\u{e9}llo", "add_special_tokens": false }))
            .await;
    let (_, same) = ask(&server, "/tokenize", json!({ "content": "h\u{e9}llo" })).await;
    assert_eq!(other["tokens"], same["tokens"]);
    let (status, _) = ask(&server, "/tokenize", json!({ "prompt": "a", "content": "a" })).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let info = Request::get("/tokenizer_info").header(header::HOST, "localhost");
    let (status, info) = text(&server, info.body(Body::empty()).unwrap()).await;
    assert!(status == StatusCode::OK && info.contains("eos_token"), "{info}");
    let (_, tokens) = ask(&server, "/tokenize", json!({ "content": "h\u{e9}llo" })).await;
    let (_, back) = ask(&server, "/detokenize", json!({ "tokens": tokens["tokens"] })).await;
    assert_eq!(back["content"], "h\u{e9}llo");
    ask(&server, COMPLETION, json!({ "prompt": "x", "max_tokens": 3 })).await;
    let get = |path: &str| {
        Request::get(path).header(header::HOST, "localhost").body(Body::empty()).unwrap()
    };
    let (_, metrics) = text(&server, get("/metrics")).await;
    assert!(metrics.contains("tessera_requests_answered_total 1"), "{metrics}");
    let (status, _) = text(&server, get("/health")).await;
    assert_eq!(status, StatusCode::OK);
    let (_, described) = text(&server, get("/openapi.json")).await;
    let described: Value = serde_json::from_str(&described).unwrap();
    let fields = &described["components"]["schemas"]["Generate"]["properties"];
    assert!(
        fields["temperature"].is_object() && described["paths"]["/v1/chat/completions"].is_object()
    );
}

#[tokio::test]
async fn there_is_no_model_until_it_is_loaded() {
    let (open, wait) = std::sync::mpsc::channel::<()>();
    let load = move || {
        wait.recv().unwrap();
        Ok::<_, ()>(toy())
    };
    let (app, loading) = App::begin(Config::default(), load);
    let server = router(app);
    let health =
        || Request::get("/health").header(header::HOST, "localhost").body(Body::empty()).unwrap();
    assert_eq!(text(&server, health()).await.0, StatusCode::SERVICE_UNAVAILABLE);
    open.send(()).unwrap();
    assert!(loading.failure().await.is_none());
    assert_eq!(text(&server, health()).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_model_that_fills_masks_answers_too() {
    let server = served(Config::default(), || session(toy::denoiser_gguf(false, 5))).await;
    let body =
        json!({ "prompt": "x", "max_tokens": 8, "methods": [{ "id": "threshold" }], "seed": 3 });
    let (status, answer) = ask(&server, COMPLETION, body).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert!(answer["tessera"]["stats"]["denoised"]["rounds"].as_u64().unwrap() >= 1);
    let body = json!({ "prompt": "x", "max_tokens": 8, "presence_penalty": 1 });
    let (status, refused) = ask(&server, COMPLETION, body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{refused}");
}

#[tokio::test]
async fn a_server_ends_when_it_is_told_to_and_when_there_is_no_model() {
    let patience = Duration::from_secs(20);
    let any = || Config { port: 0, ..Config::default() };
    let later = tokio::time::sleep(Duration::from_millis(300));
    let no_other = |_: &str| Err("no other".to_owned());
    let heard = |address: SocketAddr| assert!(address.port() > 0);
    let told = serve(any(), || Ok::<_, String>(toy()), no_other, heard, later);
    assert_eq!(tokio::time::timeout(patience, told).await.unwrap().unwrap(), Ok(()));
    let never = std::future::pending();
    let none = serve(any(), || Err::<Session, _>("no model".to_owned()), no_other, |_| (), never);
    assert_eq!(
        tokio::time::timeout(patience, none).await.unwrap().unwrap(),
        Err("no model".to_owned())
    );
}
