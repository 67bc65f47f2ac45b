//! The pages for people: chat, the catalogue of methods with their records, a method's own page.
//!
//! HTML is made here from templates (minijinja escapes what it is given); one hand-written script does what
//! a page cannot do without: streams. No build step, nothing from elsewhere, and a policy that keeps it so.

use std::convert::Infallible;
use std::sync::OnceLock;

use axum::Json;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{Html, IntoResponse, Response};
use minijinja::Environment;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tessera_core::entry::{Exactness, MethodEntry, find};
use tessera_measure::catalogue::{latest, measured, promise, search};
use tessera_measure::record::{self, Record};
use tessera_measure::{report, usual};
use tessera_runtime::METHODS;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::asked::allowed;
use crate::fault::Fault;
use crate::guard::Caller;
use crate::pages::document;
use crate::pieces::Piece;
use crate::state::App;

/// What pages may load: their own style and script, nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

fn templates() -> &'static Environment<'static> {
    static ALL: OnceLock<Environment<'static>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut all = Environment::new();
        for (name, text) in [
            ("base.html", include_str!("base.html")),
            ("chat.html", include_str!("chat.html")),
            ("docs.html", include_str!("docs.html")),
            ("methods.html", include_str!("methods.html")),
            ("method.html", include_str!("method.html")),
        ] {
            if let Err(error) = all.add_template(name, text) {
                tracing::error!("the page's template: {error:#}");
            }
        }
        all
    })
}

fn show(name: &str, values: &Value) -> Result<Response, Fault> {
    let made = templates()
        .get_template(name)
        .and_then(|template| template.render(minijinja::value::Serde(values)));
    match made {
        Ok(page) => Ok(([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(page)).into_response()),
        Err(error) => {
            tracing::error!("the page {name}: {error:#}");
            Err(Fault::inside())
        }
    }
}

/// GET /page.css and /page.js.
pub(crate) async fn style() -> impl IntoResponse {
    let text = concat!(include_str!("page.css"), "\n");
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], format!("{}{text}", report::STYLE))
}

/// See [`style`].
pub(crate) async fn script() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], include_str!("page.js"))
}

/// Your records; one that cannot be read must not keep anyone from a page.
fn records() -> Vec<Record> {
    let own = record::directory(|name| std::env::var_os(name));
    own.and_then(|place| Record::read_all(&place).ok()).unwrap_or_default()
}

/// What every page says of the model; `None` while it is loading.
fn model(app: &App) -> Option<Value> {
    let session = app.session().ok()?;
    let info = session.info();
    Some(json!({
        "name": usual::model_line(&session, &info.name).name, "arch": info.arch, "context": info.context,
        "threads": info.threads, "detail": info.detail, "chat": info.chat, "fills": session.filling().is_some(),
    }))
}

/// GET /: the chat.
pub(crate) async fn chat(State(app): State<App>) -> Result<Response, Fault> {
    let usable: Vec<&str> =
        METHODS.iter().map(|e| e.slug).filter(|slug| allowed(app.config(), slug)).collect();
    show(
        "chat.html",
        &json!({ "page": "chat", "model": model(&app), "methods": usable, "keys": !app.config().keys.is_empty(), "most": app.config().most_tokens }),
    )
}

/// What the catalogue is narrowed by; empty for everything.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Narrow {
    q: String,
    role: String,
    promise: String,
    verdict: String,
}

/// The role of a method in a word.
fn role(entry: &MethodEntry) -> String {
    entry.places.first().map_or_else(|| word(&entry.kind), |place| word(&place.role))
}

/// A name as the registry's JSON has it, in words.
fn word(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().replace('_', " ")
}

/// A line of the catalogue.
fn line(entry: &MethodEntry, records: &[Record]) -> Value {
    let last = latest(records, entry.slug);
    let claim = entry.claims.first().map(|c| format!("{} {} {}", c.metric, c.value, c.unit));
    json!({
        "slug": entry.slug, "name": entry.name, "summary": entry.summary, "role": role(entry),
        "promise": promise(entry), "paper": entry.paper, "claim": claim,
        "verdict": last.map(|r| r.verdict.word.text()), "measured": last.map(measured),
    })
}

/// The lines that pass.
fn lines(narrow: &Narrow) -> Vec<Value> {
    let words: Vec<String> = narrow.q.split_whitespace().map(str::to_owned).collect();
    let records = records();
    let passes = |value: &Value, wanted: &str| match wanted {
        "" => true,
        "none" => value.is_null(),
        wanted => value.as_str() == Some(wanted),
    };
    let all = search(METHODS, &words).into_iter().map(|entry| line(entry, &records));
    all.filter(|l| {
        passes(&l["role"], &narrow.role)
            && passes(&l["promise"], &narrow.promise)
            && passes(&l["verdict"], &narrow.verdict)
    })
    .collect()
}

/// GET /methods: the catalogue.
pub(crate) async fn methods(
    State(app): State<App>,
    Query(narrow): Query<Narrow>,
) -> Result<Response, Fault> {
    let all = lines(&Narrow::default());
    let distinct = |field: &str| {
        let mut words: Vec<String> =
            all.iter().filter_map(|l| l[field].as_str().map(str::to_owned)).collect();
        words.sort();
        words.dedup();
        words
    };
    show(
        "methods.html",
        &json!({ "page": "methods", "model": model(&app), "lines": lines(&narrow), "all": all.len(), "narrow": narrow, "roles": distinct("role"), "promises": distinct("promise"), "verdicts": distinct("verdict") }),
    )
}

/// GET /v1/methods: the catalogue as data.
pub(crate) async fn listed() -> Json<Value> {
    Json(json!({ "object": "list", "data": lines(&Narrow::default()) }))
}

/// A method that is in the registry.
fn known(slug: &str) -> Result<&'static MethodEntry, Fault> {
    find(METHODS, slug)
        .map_err(|error| Fault::new(StatusCode::NOT_FOUND, "unknown_method", error.to_string()))
}

/// GET /methods/{slug}: one of them.
pub(crate) async fn method(
    State(app): State<App>,
    Path(slug): Path<String>,
) -> Result<Response, Fault> {
    let entry = known(&slug)?;
    let records = records();
    let last = latest(&records, entry.slug);
    let (defaults, schema) = ((entry.defaults)(), (entry.schema)().to_value());
    let settings: Vec<Value> = defaults
        .iter()
        .map(|(name, value)| {
            let meaning = schema["properties"][name]["description"].as_str().unwrap_or_default();
            json!({ "name": name, "default": value.to_string(), "meaning": meaning })
        })
        .collect();
    let may = match entry.exactness {
        Exactness::Lossy { what } => Some(what),
        _ => None,
    };
    show(
        "method.html",
        &json!({ "page": "methods", "model": model(&app), "line": line(entry, &records), "claims": entry.claims, "settings": settings, "may": may, "aliases": entry.aliases, "usable": allowed(app.config(), entry.slug), "record": last.map(report::one), "why": uncheckable(&app, entry) }),
    )
}

/// GET /docs: what programs may ask, of the same document as /openapi.json.
pub(crate) async fn docs(State(app): State<App>) -> Result<Response, Fault> {
    let document = document();
    let entries = |value: &Value| -> Vec<(String, Value)> {
        let map = value.as_object().cloned().unwrap_or_default();
        map.into_iter().collect()
    };
    let paths: Vec<Value> = entries(&document["paths"])
        .into_iter()
        .flat_map(|(path, ways)| entries(&ways).into_iter().map(move |way| (path.clone(), way)))
        .map(|(path, (way, one))| {
            let body = &one["requestBody"]["content"]["application/json"]["schema"]["$ref"];
            let body = body.as_str().and_then(|name| name.rsplit('/').next());
            json!({ "path": path, "way": way.to_uppercase(), "what": one["summary"], "body": body })
        })
        .collect();
    let schemas: Vec<Value> = entries(&document["components"]["schemas"])
        .into_iter()
        .map(|(name, schema)| {
            let fields: Vec<Value> = entries(&schema["properties"])
                .into_iter()
                .map(|(name, field)| json!({ "name": name, "what": field["description"] }))
                .collect();
            json!({ "name": name, "what": schema["description"], "fields": fields })
        })
        .collect();
    show(
        "docs.html",
        &json!({ "page": "docs", "model": model(&app), "paths": paths, "schemas": schemas }),
    )
}

/// Why a method cannot be checked from its page; `None` if it can.
fn uncheckable(app: &App, entry: &MethodEntry) -> Option<String> {
    if !app.config().checks {
        return Some("this server does not run checks (--no-checks)".to_owned());
    }
    if usual::forgets(entry) {
        let what = "it is checked on long texts, for minutes: `tessera check";
        return Some(format!("{what} {}`", entry.slug));
    }
    let session = app.session().ok()?;
    let call = tessera_runtime::MethodCall { id: entry.slug.to_owned(), ..Default::default() };
    if let Err(error) = tessera_measure::lineup::suits(entry, &call) {
        return Some(error.to_string());
    }
    let missing = entry.needs.missing_from(&session.offer());
    if !missing.is_empty() {
        return Some(format!("it needs {}", missing.join(", ")));
    }
    let fills = tessera_measure::lineup::fills_masks(entry);
    match (fills, session.filling().is_some()) {
        (false, true) => Some("it is for models that write from left to right".to_owned()),
        _ => None,
    }
}

/// POST /v1/methods/{slug}/check: measures it here, as events: `{"done", "of"}`, then `{"record", "html"}`.
pub(crate) async fn check(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(slug): Path<String>,
) -> Result<Response, Fault> {
    let entry = known(&slug)?;
    app.session()?;
    if let Some(why) = uncheckable(&app, entry) {
        let what = format!("{}: cannot be checked here: {why}", entry.slug);
        return Err(Fault::new(StatusCode::BAD_REQUEST, "not_checkable", what));
    }
    let pieces = app.check(entry.slug.to_owned(), caller.0)?;
    let events = UnboundedReceiverStream::new(pieces).map(|piece| {
        let told = match piece {
            Piece::Checked { done, of } => json!({ "done": done, "of": of }),
            Piece::Record(record) => {
                let own = record::directory(|name| std::env::var_os(name));
                // The page shows it all the same where it cannot be kept.
                let kept = own.is_some_and(|place| record.write(&place).is_ok());
                json!({ "record": *record, "html": report::one(&record), "kept": kept })
            }
            Piece::Unchecked(error) if error.is_usage() => {
                let fault = Fault::new(StatusCode::BAD_REQUEST, "not_checkable", error.to_string());
                fault.body()
            }
            Piece::Late => crate::generate::late().body(),
            _ => Fault::inside().body(),
        };
        Ok::<_, Infallible>(Event::default().data(told.to_string()))
    });
    Ok(Sse::new(events).into_response())
}
