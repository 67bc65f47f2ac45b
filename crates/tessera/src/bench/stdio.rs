//! `tessera bench --serve-stdio`: the child's side of `bench/side_by_side`, one JSON object a line.

use std::io::{BufRead, Write};
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};
use tessera_core::TokenId;
use tessera_runtime::Session;

use tessera_measure::driver::Driver;

/// A request line.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
enum Op {
    /// Load the model and make a cache.
    Load { context: usize },
    /// Replace the token stream.
    Tokens { ids: Vec<TokenId> },
    /// Time a prompt.
    Prefill { count: usize },
    /// Time passes of one row.
    Decode { context: usize, count: usize },
    /// Time one pass of several rows.
    Rows { context: usize, count: usize },
    /// End.
    Quit,
}

/// Answers requests from `input` until it ends or says so. `open` loads the model.
pub(crate) fn serve(
    input: impl BufRead,
    mut output: impl Write,
    open: &dyn Fn() -> anyhow::Result<Session>,
) -> anyhow::Result<()> {
    let mut lines = input.lines();
    let mut reply = |value: Value| -> std::io::Result<()> {
        writeln!(output, "{value}")?;
        output.flush()
    };
    // The driver borrows the session, so a load begins a new round of the loop.
    let mut load: Option<usize> = None;
    loop {
        let start = Instant::now();
        let session = match load {
            None => None,
            Some(_) => match open() {
                Ok(session) => Some(session),
                Err(error) => {
                    reply(failure(&error.to_string()))?;
                    None
                }
            },
        };
        let mut driver = None;
        if let (Some(session), Some(context)) = (&session, load) {
            match Driver::new(session.backbone(), context) {
                Ok(made) => {
                    driver = Some(made);
                    reply(json!({
                        "ms": start.elapsed().as_secs_f64() * 1e3,
                        "vocab": session.backbone().spec().vocab,
                        "engine": concat!("tessera ", env!("CARGO_PKG_VERSION")),
                        "detail": session.info().detail,
                    }))?;
                }
                Err(error) => reply(failure(&error.to_string()))?,
            }
        }
        load = loop {
            let Some(line) = lines.next() else { return Ok(()) };
            let line = line?;
            if line.trim().is_empty() {
                continue;
            }
            let op = match serde_json::from_str(&line) {
                Ok(Op::Quit) => return Ok(()),
                Ok(Op::Load { context }) => break Some(context),
                Ok(op) => op,
                Err(error) => {
                    reply(failure(&error.to_string()))?;
                    continue;
                }
            };
            reply(match &mut driver {
                None => failure("nothing is loaded: send {\"op\":\"load\",\"context\":N} first"),
                Some(driver) => answer(driver, op).unwrap_or_else(|e| failure(&e.to_string())),
            })?;
        };
    }
}

fn answer(driver: &mut Driver<'_>, op: Op) -> tessera_core::Result<Value> {
    let time = match op {
        Op::Tokens { ids } => {
            let count = ids.len();
            driver.set_tokens(ids)?;
            return Ok(json!({ "count": count }));
        }
        Op::Prefill { count } => driver.prefill(count)?,
        Op::Decode { context, count } => driver.decode(context, count)?,
        Op::Rows { context, count } => driver.rows(context, count)?,
        // Both are handled where lines are read.
        Op::Load { .. } | Op::Quit => return Ok(json!({})),
    };
    Ok(json!({ "ms": time.as_secs_f64() * 1e3 }))
}

fn failure(text: &str) -> Value {
    json!({ "error": text.replace('\n', " ") })
}

#[cfg(test)]
mod tests {
    use tessera_testkit::Scripted;

    use super::*;

    #[test]
    fn lines_without_a_model_are_answered_and_survived() {
        let input = "{\"op\":\"prefill\",\"count\":3}\nnonsense\n\n\
                     {\"op\":\"fly\"}\n{\"op\":\"rows\",\"context\":1,\"count\":1,\"x\":1}\n\
                     {\"op\":\"load\",\"context\":5}\n{\"op\":\"quit\"}\n{\"op\":\"rows\"}";
        let mut output = Vec::new();
        serve(input.as_bytes(), &mut output, &|| anyhow::bail!("no\nmodel")).unwrap();
        let output = String::from_utf8(output).unwrap();
        let replies: Vec<Value> =
            output.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(replies.len(), 5);
        for (reply, word) in replies.iter().zip(["load", "expected", "fly", "x", "no model"]) {
            let error = reply["error"].as_str().unwrap();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn timed_requests_answer_in_milliseconds() {
        let toy = Scripted::hashed(100, 64, 1, 1.0);
        let mut driver = Driver::new(&toy, 64).unwrap();
        let mut ask = |line: &str| answer(&mut driver, serde_json::from_str(line).unwrap());
        assert!(ask(r#"{"op":"prefill","count":4}"#).is_err());
        let ids: Vec<u32> = (0..64).collect();
        let tokens = json!({"op": "tokens", "ids": ids}).to_string();
        assert_eq!(ask(&tokens).unwrap(), json!({"count": 64}));
        for line in [
            r#"{"op":"prefill","count":64}"#,
            r#"{"op":"decode","context":32,"count":8}"#,
            r#"{"op":"rows","context":32,"count":16}"#,
        ] {
            assert!(ask(line).unwrap()["ms"].as_f64().unwrap() > 0.0, "{line}");
        }
        assert!(ask(r#"{"op":"rows","context":60,"count":5}"#).is_err());
    }
}
