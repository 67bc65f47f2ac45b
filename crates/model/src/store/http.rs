//! Blocking requests to the hub: redirects followed by hand, the token kept to one host.
//!
//! Written on `ureq` with rustls and its built-in certificates: 28 crates, where the hub's
//! own Rust client brings an async runtime and about 300.

use std::io::Read;

use ureq::http::{Method, Request, Response, StatusCode, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::config::StoreConfig;
use super::error::StoreError;

/// Most redirects followed for one request.
const MOST_HOPS: usize = 6;
/// Longest listing read, in bytes.
const LONGEST_TEXT: u64 = 16 << 20;

/// A client of one hub.
pub(super) struct Client {
    agent: Agent,
    hub: Uri,
    token: Option<String>,
    connect_seconds: u64,
}

/// Which redirects a request follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follow {
    /// Those that stay on the hub (a renamed repository).
    OnHub,
    /// Those to a content host too.
    Anywhere,
}

/// What the hub says of a file before it is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileFacts {
    /// The commit the revision stands for, 40 hexadecimal digits.
    pub(super) commit: String,
    /// Name of the contents, without quotes: a sha256 for large files.
    pub(super) etag: String,
    /// Size in bytes.
    pub(super) bytes: u64,
    /// Whether the hub itself serves the bytes, so that `etag` also is the transfer's.
    pub(super) direct: bool,
}

impl Client {
    /// A client for the configured hub.
    pub(super) fn new(config: &StoreConfig) -> Result<Self, StoreError> {
        let bad_endpoint = |e: &dyn std::fmt::Display| StoreError::BadVariable {
            variable: "HF_ENDPOINT",
            reason: e.to_string(),
        };
        let hub: Uri = config.endpoint.parse().map_err(|e| bad_endpoint(&e))?;
        if hub.host().is_none() {
            return Err(bad_endpoint(&"it names no host"));
        }
        let mut agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_resolve(Some(config.connect_timeout))
            .timeout_connect(Some(config.connect_timeout))
            .timeout_per_read(Some(config.read_timeout))
            .timeout_recv_response(Some(config.read_timeout))
            .accept_encoding("identity")
            .user_agent(concat!("tessera/", env!("CARGO_PKG_VERSION")));
        if hub.host().is_some_and(is_loopback) {
            // No proxy reaches this machine's own loopback better than it does itself.
            agent = agent.proxy(None);
        }
        if let Some(path) = &config.authorities {
            let pem = std::fs::read(path).map_err(|e| StoreError::BadVariable {
                variable: "SSL_CERT_FILE",
                reason: format!("{} cannot be read: {e}", path.display()),
            })?;
            let certificates: Vec<_> = ureq::tls::parse_pem(&pem)
                .filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                })
                .collect();
            let roots = RootCerts::new_with_certs(&certificates);
            agent = agent.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        Ok(Self {
            agent: agent.build().into(),
            hub,
            token: config.token.clone(),
            connect_seconds: config.connect_timeout.as_secs(),
        })
    }

    /// Asks what a file is, without its bytes. The error is one line.
    pub(super) fn facts(&self, path: &str) -> Result<FileFacts, String> {
        let (response, _) = self.send(&Method::HEAD, path, &[], Follow::OnHub)?;
        let redirected = response.status().is_redirection();
        if !redirected && !response.status().is_success() {
            return Err(self.refusal(&response));
        }
        let host = self.host();
        let header =
            |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::trim);
        let commit = header("x-repo-commit")
            .filter(|c| is_commit(c))
            .ok_or_else(|| format!("{host} did not say which commit this is; is it a hub?"))?;
        let etag = header("x-linked-etag")
            .or_else(|| header("etag"))
            .map(|tag| tag.trim_start_matches("W/").trim_matches('"'))
            .filter(|tag| is_blob_name(tag))
            .ok_or_else(|| format!("{host} gave the file no usable ETag"))?;
        let bytes = header("x-linked-size")
            .or_else(|| if redirected { None } else { header("content-length") })
            .and_then(|size| size.parse().ok())
            .ok_or_else(|| format!("{host} did not say how long the file is"))?;
        Ok(FileFacts {
            commit: commit.to_owned(),
            etag: etag.to_owned(),
            bytes,
            direct: !redirected,
        })
    }

    /// Starts fetching a file from byte `from` on. Returns the first byte the answer
    /// really starts at (0 when the server ignores ranges) and its body.
    pub(super) fn bytes(
        &self,
        path: &str,
        from: u64,
        if_range: Option<&str>,
    ) -> Result<(u64, impl Read + use<>), Transfer> {
        let mut headers = Vec::new();
        if from > 0 {
            headers.push(("Range", format!("bytes={from}-")));
            if let Some(etag) = if_range {
                headers.push(("If-Range", format!("\"{etag}\"")));
            }
        }
        let (response, _) =
            self.send(&Method::GET, path, &headers, Follow::Anywhere).map_err(Transfer::Broken)?;
        let start = match response.status() {
            StatusCode::PARTIAL_CONTENT => response
                .headers()
                .get("content-range")
                .and_then(|v| v.to_str().ok())
                .and_then(range_start)
                .ok_or_else(|| {
                    Transfer::Refused("the server gave a range without saying which".to_owned())
                })?,
            StatusCode::RANGE_NOT_SATISFIABLE => return Err(Transfer::BeyondEnd),
            status if status.is_success() => 0,
            _ => return Err(Transfer::Refused(self.refusal(&response))),
        };
        Ok((start, response.into_body().into_reader()))
    }

    /// Fetches a short text, such as a listing.
    pub(super) fn text(&self, path: &str) -> Result<Vec<u8>, String> {
        let (response, host) = self.send(&Method::GET, path, &[], Follow::OnHub)?;
        if !response.status().is_success() {
            return Err(self.refusal(&response));
        }
        response
            .into_body()
            .into_with_config()
            .limit(LONGEST_TEXT)
            .read_to_vec()
            .map_err(|e| self.explain(&e, &host))
    }

    /// The hub's host and port, for messages.
    fn host(&self) -> String {
        self.hub.authority().map(ToString::to_string).unwrap_or_default()
    }

    /// Sends one request, following redirects. Returns the answer and its host.
    fn send(
        &self,
        method: &Method,
        path: &str,
        headers: &[(&str, String)],
        follow: Follow,
    ) -> Result<(Response<Body>, String), String> {
        let base = self.hub.to_string();
        let mut uri: Uri = format!("{}{path}", base.trim_end_matches('/'))
            .parse()
            .map_err(|e| format!("`{path}` makes no web address: {e}"))?;
        for _ in 0..=MOST_HOPS {
            let host = uri.authority().map(ToString::to_string).unwrap_or_default();
            let mut request = Request::builder().method(method).uri(&uri);
            for (name, value) in headers {
                request = request.header(*name, value);
            }
            // The token is for the hub and for nobody it points at.
            if let Some(token) = &self.token
                && same_origin(&uri, &self.hub)
            {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let request = request.body(()).map_err(|e| e.to_string())?;
            let response = self.agent.run(request).map_err(|e| self.explain(&e, &host))?;
            let location = response
                .headers()
                .get("location")
                .filter(|_| matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308));
            let Some(location) = location else { return Ok((response, host)) };
            let next = self.redirect(&uri, location.as_bytes())?;
            if follow == Follow::OnHub && !same_origin(&next, &self.hub) {
                return Ok((response, host));
            }
            uri = next;
        }
        Err(format!("{} redirects more than {MOST_HOPS} times", self.host()))
    }

    /// Where a redirect goes, if it may be followed.
    fn redirect(&self, from: &Uri, location: &[u8]) -> Result<Uri, String> {
        let host = from.authority().map(ToString::to_string).unwrap_or_default();
        let text = std::str::from_utf8(location)
            .map_err(|_| format!("{host} redirects to something that is no address"))?;
        let absolute = if text.starts_with('/') && !text.starts_with("//") {
            format!("{}://{host}{text}", from.scheme_str().unwrap_or("https"))
        } else {
            text.to_owned()
        };
        let next: Uri = absolute
            .parse()
            .map_err(|_| format!("{host} redirects to something that is no address"))?;
        let secure = next.scheme_str() == Some("https");
        // Plain http only where the person chose a plain http hub.
        let plain = next.scheme_str() == Some("http") && self.hub.scheme_str() == Some("http");
        let named = next.authority().is_some_and(|a| !a.as_str().contains('@'));
        if (secure || plain) && named {
            Ok(next)
        } else {
            Err(format!("{host} redirects to an address that is not https"))
        }
    }

    /// Why a request got no answer, one line.
    fn explain(&self, error: &ureq::Error, host: &str) -> String {
        use ureq::{Error, Timeout};
        match error {
            Error::Timeout(Timeout::Connect | Timeout::Resolve) => {
                format!("{host} does not answer (no connection within {} s)", self.connect_seconds)
            }
            Error::Timeout(_) => format!("{host} fell silent"),
            Error::HostNotFound => format!("{host} cannot be found (is there a network?)"),
            // The resolver has no error kind of its own; its wording is the platform's.
            Error::Io(e) if e.to_string().contains("lookup address") => {
                format!("{host} cannot be found (is there a network?)")
            }
            Error::Io(e) => format!("{host} does not answer ({e})"),
            other => format!("{host}: {other}"),
        }
    }

    /// Why an answer is no success, one line with the next step the hub implies.
    fn refusal(&self, response: &Response<Body>) -> String {
        let status = response.status().as_u16();
        let host = self.host();
        match (status, self.token.is_some()) {
            (401 | 403, false) => format!(
                "{host} refuses access ({status}): there is no such repository, or it is private \
                 or gated; if so set HF_TOKEN"
            ),
            (401 | 403, true) => format!(
                "{host} refuses access ({status}): the token may not read this repository, or \
                 there is none of that name"
            ),
            (404, _) => format!("{host} has no such repository, revision or file (404)"),
            (429, _) => format!("{host} asks for a pause (429); try again later"),
            (500.., _) => format!("{host} has trouble of its own ({status}); try again later"),
            _ => format!("{host} answers {status}"),
        }
    }
}

/// How a transfer ended before its first byte.
#[derive(Debug)]
pub(super) enum Transfer {
    /// No answer; trying again may help.
    Broken(String),
    /// An answer that will not change.
    Refused(String),
    /// The server has fewer bytes than were asked to be skipped.
    BeyondEnd,
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |u: &Uri| {
        u.port_u16().or(match u.scheme_str() {
            Some("https") => Some(443),
            Some("http") => Some(80),
            _ => None,
        })
    };
    let host = |u: &Uri| u.host().map(str::to_ascii_lowercase);
    a.scheme_str() == b.scheme_str() && host(a) == host(b) && port(a) == port(b)
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The first byte of `bytes 5-9/10`.
fn range_start(value: &str) -> Option<u64> {
    value.trim().strip_prefix("bytes")?.trim_start().split_once('-')?.0.parse().ok()
}

/// A commit as the hub and its cache name it.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether an ETag may name a file of the cache.
fn is_blob_name(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert!(same_origin(&uri("https://A.co/x"), &uri("https://a.co:443/y")));
        assert!(!same_origin(&uri("https://a.co"), &uri("http://a.co")));
        assert!(!same_origin(&uri("https://a.co"), &uri("https://a.co.evil.com")));
        assert!(!same_origin(&uri("http://a.co:1"), &uri("http://a.co:2")));
    }

    #[test]
    fn redirects_go_to_https_or_where_http_was_chosen() {
        let client = |endpoint: &str| {
            let mut config = StoreConfig::under("/nowhere");
            config.endpoint = endpoint.to_owned();
            Client::new(&config).unwrap()
        };
        let (secure, plain) = (client("https://hub.test"), client("http://hub.test"));
        let go = |c: &Client, to: &str| c.redirect(&c.hub, to.as_bytes());
        assert_eq!(go(&secure, "/a?b").unwrap(), uri("https://hub.test/a?b"));
        assert!(go(&secure, "https://cdn.test/x").is_ok());
        assert!(go(&plain, "http://cdn.test/x").is_ok());
        for bad in
            ["http://hub.test/x", "//cdn.test/x", "file:///etc/passwd", "x/y", "https://u:p@h/"]
        {
            assert!(go(&secure, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_from_headers_are_plain() {
        assert!(is_blob_name(&"a".repeat(64)) && is_commit(&"0".repeat(40)));
        for bad in ["", "..", "a/b", "a.b", "a b"] {
            assert!(!is_blob_name(bad), "{bad}");
        }
        assert!(!is_commit(&"g".repeat(40)) && !is_commit("../main"));
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
        assert_eq!(range_start("bytes */10"), None);
    }
}
