//! Who may ask: the names this server is called by, the pages a browser may ask from, and keys.
//!
//! A page on some other site can make a browser send requests to this machine, and can give its own name
//! this machine's address. The first is told by `Origin`, the second by `Host`.

use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;
use tracing::Instrument as _;

use crate::fault::Fault;
use crate::operator::PREFIX;
use crate::state::App;

/// Which key a request came with; 0 where none is needed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller(pub(crate) usize);

/// Names of this very machine.
const OWN: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// A `Host` or the authority of an `Origin`, without the port.
fn name(authority: &str) -> &str {
    match authority.strip_prefix('[').and_then(|rest| rest.find(']')) {
        Some(end) => &authority[..end + 2],
        None => authority.split(':').next().unwrap_or_default(),
    }
}

fn is_ours(app: &App, authority: &str) -> bool {
    let name = name(authority);
    let config = app.config();
    OWN.iter().any(|own| own.eq_ignore_ascii_case(name))
        || name == config.host.to_string()
        || config.names.iter().any(|own| own.eq_ignore_ascii_case(name))
}

fn text<'h>(headers: &'h HeaderMap, header: &header::HeaderName) -> Option<&'h str> {
    headers.get(header).map(|value| value.to_str().unwrap_or("\u{fffd}"))
}

/// The place of the request's key among `keys`. All are compared, each in constant time.
fn key<'k>(keys: impl IntoIterator<Item = &'k String>, headers: &HeaderMap) -> Option<usize> {
    let given = text(headers, &header::AUTHORIZATION)?.strip_prefix("Bearer ")?.trim();
    let mut found = None;
    for (place, own) in keys.into_iter().enumerate() {
        if bool::from(own.as_bytes().ct_eq(given.as_bytes())) {
            found = Some(place);
        }
    }
    found
}

fn caller(app: &App, request: &Request) -> Result<Caller, Fault> {
    let headers = request.headers();
    let host = text(headers, &header::HOST).or_else(|| request.uri().host());
    if app.config().host.is_loopback() && !host.is_some_and(|host| is_ours(app, host)) {
        let what = "Host: this server is not called by that name. Next: localhost, or start it with --name NAME";
        return Err(Fault::new(StatusCode::FORBIDDEN, "wrong_host", what));
    }
    if let Some(origin) = text(headers, &header::ORIGIN)
        && !origin.split_once("://").is_some_and(|(_, authority)| is_ours(app, authority))
    {
        let what = "Origin: pages of other sites may not ask here. Next: start the server with --name NAME";
        return Err(Fault::new(StatusCode::FORBIDDEN, "wrong_origin", what));
    }
    // A browser cannot send a key when it opens a page; pages hold no more than the registry and the records.
    let path = request.uri().path();
    let open = matches!(
        path,
        "/health" | "/ready" | "/" | "/page.css" | "/page.js" | "/methods" | "/docs"
    ) || path.starts_with("/methods/");
    let config = app.config();
    let refused = |what: &str| Fault::new(StatusCode::UNAUTHORIZED, "invalid_api_key", what);
    if path.starts_with(PREFIX) && config.operator_key.is_some() {
        return key(&config.operator_key, headers).map(Caller).ok_or_else(|| {
            refused(
                "Authorization: the operator's key is needed. Next: `Authorization: Bearer KEY`",
            )
        });
    }
    if config.keys.is_empty() || open {
        return Ok(Caller(0));
    }
    key(&config.keys, headers).map(Caller).ok_or_else(|| {
        refused("Authorization: a key is needed. Next: the header `Authorization: Bearer KEY`")
    })
}

/// Lets a request through, with its [`Caller`], or answers it; and logs it, without what it says.
pub(crate) async fn check(State(app): State<App>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    // The part of an address after `?` may hold anything.
    let span =
        tracing::info_span!("request", method = %request.method(), path = request.uri().path());
    let response = checked(app, request, next).instrument(span.clone()).await;
    let (status, seconds) = (response.status().as_u16(), begun.elapsed().as_secs_f64());
    // A stream goes on after this: what it came to is told when it ends.
    span.in_scope(|| tracing::info!(status, seconds, "answered"));
    response
}

async fn checked(app: App, mut request: Request, next: Next) -> Response {
    match caller(&app, &request) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            let response = next.run(request).await;
            if response.status() != StatusCode::PAYLOAD_TOO_LARGE {
                return response;
            }
            let what = format!("the body has more than {} bytes", app.config().most_bytes);
            Fault::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", what).into_response()
        }
        Err(fault) => fault.into_response(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_have_no_ports() {
        for (authority, name) in [
            ("localhost:8080", "localhost"),
            ("[::1]:8080", "[::1]"),
            ("a.b", "a.b"),
            ("[::1", "["),
            ("", ""),
        ] {
            assert_eq!(super::name(authority), name);
        }
    }
}
