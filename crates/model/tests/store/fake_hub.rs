//! A hub of 150 lines: resolve, listing, ranges, redirects, and every way to misbehave.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    headers: BTreeMap<String, String>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What the server answers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Close the connection after this many bytes of the body.
    pub(crate) cut: Option<usize>,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// A server that lives as long as the test process.
pub(crate) struct Server {
    pub(crate) address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&seen), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream, &log, &*answer));
            }
        });
        Self { address, seen }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Requests that asked for bytes of a file.
    pub(crate) fn gets(&self) -> Vec<Seen> {
        self.seen()
            .into_iter()
            .filter(|s| s.method == "GET" && !s.path.starts_with("/api"))
            .collect()
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Vec<Seen>>, answer: &dyn Fn(&Seen) -> Reply) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(first)) = lines.next() else { return };
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let headers = lines
        .map_while(Result::ok)
        .take_while(|l| !l.is_empty())
        .filter_map(|l| l.split_once(':').map(|(n, v)| (n.to_lowercase(), v.trim().to_owned())))
        .collect();
    let seen = Seen { method, path, headers };
    log.lock().unwrap().push(seen.clone());
    let reply = answer(&seen);
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(n, _)| n == "Content-Length") {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let body = if seen.method == "HEAD" { &[][..] } else { &reply.body };
    let body = &body[..reply.cut.unwrap_or(body.len()).min(body.len())];
    let _ = stream.write_all(format!("{head}\r\n").as_bytes());
    let _ = stream.write_all(body);
}

/// Answers a request for `bytes` as a content host does, ranges included.
pub(crate) fn ranged(seen: &Seen, bytes: &[u8], etag: &str) -> Reply {
    let matches = seen.header("if-range").is_none_or(|tag| tag == format!("\"{etag}\""));
    let from = seen
        .header("range")
        .filter(|_| matches)
        .and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match from {
        Some(from) if from < bytes.len() => Reply {
            status: 206,
            headers: vec![(
                "Content-Range".to_owned(),
                format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len()),
            )],
            body: bytes[from..].to_vec(),
            cut: None,
        },
        Some(_) => Reply::status(416),
        None => Reply { status: 200, body: bytes.to_vec(), ..Reply::default() },
    }
}

/// A repository served by the hub itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Repo {
    pub(crate) files: BTreeMap<String, (String, Vec<u8>)>,
}

impl Repo {
    /// Adds a file whose ETag is its sha256.
    pub(crate) fn with(mut self, name: &str, bytes: &[u8]) -> Self {
        self.files.insert(name.to_owned(), (super::sha256(bytes), bytes.to_vec()));
        self
    }

    /// The listing the hub's interface gives.
    pub(crate) fn listing(&self) -> Reply {
        let siblings: Vec<_> = self
            .files
            .iter()
            .map(|(name, (_, bytes))| serde_json::json!({"rfilename": name, "size": bytes.len()}))
            .collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings, "private": false});
        Reply { status: 200, body: body.to_string().into_bytes(), ..Reply::default() }
    }

    /// Answers any request for `org/repo`.
    pub(crate) fn answer(&self, seen: &Seen) -> Reply {
        if seen.path.starts_with("/api/models/org/repo/revision/") {
            return self.listing();
        }
        let file = seen
            .path
            .strip_prefix("/org/repo/resolve/")
            .and_then(|p| p.split_once('/'))
            .and_then(|(_, file)| self.files.get(file));
        let Some((etag, bytes)) = file else { return Reply::status(404) };
        ranged(seen, bytes, etag).with("X-Repo-Commit", COMMIT).with("ETag", format!("\"{etag}\""))
    }
}
