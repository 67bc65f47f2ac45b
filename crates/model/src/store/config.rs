//! Where models live and how they are fetched, read from the environment.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::error::StoreError;

/// The public hub, used unless `HF_ENDPOINT` names a mirror.
const PUBLIC_HUB: &str = "https://huggingface.co";

/// Everything a [`Store`](super::Store) takes from outside.
#[derive(Clone)]
pub struct StoreConfig {
    /// Tessera's own models: `$TESSERA_HOME/models`, else `$XDG_CACHE_HOME/tessera/models`,
    /// else `~/.cache/tessera/models`.
    pub models_dir: PathBuf,
    /// The hub's cache, shared with other programs: `$HF_HUB_CACHE`, else `$HF_HOME/hub`,
    /// else `$XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`.
    pub hub_cache: PathBuf,
    /// The hub's address without a final slash. Plain `http` is taken only because a
    /// person wrote it into `HF_ENDPOINT`.
    pub endpoint: String,
    /// The hub token (`HF_TOKEN`, else the file `HF_TOKEN_PATH` or `$HF_HOME/token`);
    /// sent to `endpoint` and to no other host.
    pub token: Option<String>,
    /// Why the network must not be used, when it must not.
    pub offline: Option<String>,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest silence of a server before the connection is given up.
    pub read_timeout: Duration,
    /// `PATH` for the programs a pull starts; `None` inherits this process's.
    pub search_path: Option<OsString>,
    /// A PEM file of certificate authorities to trust instead of the built-in ones
    /// (`SSL_CERT_FILE`, else `REQUESTS_CA_BUNDLE`), for networks with their own.
    pub authorities: Option<PathBuf>,
}

// Written by hand so that a token never reaches a log.
impl fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreConfig")
            .field("models_dir", &self.models_dir)
            .field("hub_cache", &self.hub_cache)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "(set)"))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl StoreConfig {
    /// A configuration with everything under one directory, no token and the public hub.
    pub fn under(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        Self {
            models_dir: root.join("models"),
            hub_cache: root.join("hub"),
            endpoint: PUBLIC_HUB.to_owned(),
            token: None,
            offline: None,
            connect_timeout: Duration::from_secs(3),
            read_timeout: Duration::from_secs(30),
            search_path: None,
            authorities: None,
        }
    }

    /// Reads the environment of this process.
    ///
    /// # Errors
    /// As [`StoreConfig::from_variables`].
    pub fn from_env() -> Result<Self, StoreError> {
        Self::from_variables(|name| std::env::var_os(name))
    }

    /// Reads variables through `get`; an empty value counts as unset.
    ///
    /// # Errors
    /// [`StoreError::NoHome`] when no variable says where models go,
    /// [`StoreError::BadVariable`] for an endpoint or a token that cannot be used.
    pub fn from_variables(get: impl Fn(&str) -> Option<OsString>) -> Result<Self, StoreError> {
        let get = |name: &str| get(name).filter(|v| !v.is_empty());
        let path = |name: &str| get(name).map(PathBuf::from);
        let no_home = || StoreError::NoHome {
            reason: "none of TESSERA_HOME, XDG_CACHE_HOME and HOME is set".to_owned(),
        };
        let cache = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|h| h.join(".cache")));
        let models_dir = path("TESSERA_HOME")
            .or_else(|| cache.as_ref().map(|c| c.join("tessera")))
            .ok_or_else(no_home)?
            .join("models");
        let hf_home = path("HF_HOME")
            .or_else(|| cache.as_ref().map(|c| c.join("huggingface")))
            // With TESSERA_HOME alone there is no shared cache: keep one beside the models.
            .or_else(|| path("TESSERA_HOME").map(|h| h.join("huggingface")))
            .ok_or_else(no_home)?;
        let hub_cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .unwrap_or_else(|| hf_home.join("hub"));

        let endpoint = match get("HF_ENDPOINT") {
            None => PUBLIC_HUB.to_owned(),
            Some(value) => check_endpoint(&value.to_string_lossy())?,
        };
        let token = match get("HF_TOKEN") {
            Some(value) => Some(value.to_string_lossy().trim().to_owned()),
            None => {
                let file = path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
                std::fs::read_to_string(file).ok().map(|t| t.trim().to_owned())
            }
        }
        .filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|t| !t.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(StoreError::BadVariable {
                variable: "HF_TOKEN",
                reason: "a token has no spaces and no control characters".to_owned(),
            });
        }
        let offline = ["TESSERA_OFFLINE", "HF_HUB_OFFLINE"]
            .into_iter()
            .find(|name| get(name).is_some_and(|v| is_true(&v.to_string_lossy())))
            .map(|name| format!("{name} is set"));
        Ok(Self {
            models_dir,
            hub_cache,
            endpoint,
            token,
            offline,
            authorities: path("SSL_CERT_FILE").or_else(|| path("REQUESTS_CA_BUNDLE")),
            ..Self::under("")
        })
    }
}

/// The hub's own reading of a switch in the environment.
fn is_true(value: &str) -> bool {
    matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
}

fn check_endpoint(value: &str) -> Result<String, StoreError> {
    let bad = |reason: &str| StoreError::BadVariable {
        variable: "HF_ENDPOINT",
        reason: reason.to_owned(),
    };
    let value = value.trim_end_matches('/');
    let rest = value
        .strip_prefix("https://")
        .or_else(|| value.strip_prefix("http://"))
        .ok_or_else(|| bad("it does not start with https:// or http://"))?;
    let host = rest.split('/').next().unwrap_or_default();
    if host.is_empty() || rest.chars().any(|c| !c.is_ascii_graphic() || "?#\\".contains(c)) {
        return Err(bad("it is not a web address"));
    }
    if host.contains('@') {
        return Err(bad("it holds a user name or password; a token belongs into HF_TOKEN"));
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<StoreConfig, StoreError> {
        StoreConfig::from_variables(|name| {
            pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v))
        })
    }

    #[test]
    fn directories_follow_the_conventions() {
        let c = read(&[("HOME", "/h")]).unwrap();
        assert_eq!(c.models_dir, PathBuf::from("/h/.cache/tessera/models"));
        assert_eq!(c.hub_cache, PathBuf::from("/h/.cache/huggingface/hub"));
        let c = read(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).unwrap();
        assert_eq!(c.models_dir, PathBuf::from("/x/tessera/models"));
        assert_eq!(c.hub_cache, PathBuf::from("/x/huggingface/hub"));
        let c = read(&[("HOME", "/h"), ("TESSERA_HOME", "/t"), ("HF_HOME", "/f")]).unwrap();
        assert_eq!(c.models_dir, PathBuf::from("/t/models"));
        assert_eq!(c.hub_cache, PathBuf::from("/f/hub"));
        let c = read(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/f"), ("HOME", "/h")]).unwrap();
        assert_eq!(c.hub_cache, PathBuf::from("/c"));
        assert!(read(&[]).unwrap_err().to_string().contains("TESSERA_HOME"));
    }

    #[test]
    fn switches_tokens_and_endpoints_are_checked() {
        let home = ("HOME", "/h");
        assert_eq!(read(&[home, ("HF_HUB_OFFLINE", "0")]).unwrap().offline, None);
        let c = read(&[home, ("HF_HUB_OFFLINE", "yes")]).unwrap();
        assert_eq!(c.offline.as_deref(), Some("HF_HUB_OFFLINE is set"));
        let c =
            read(&[home, ("HF_ENDPOINT", "http://localhost:8/"), ("HF_TOKEN", "secret")]).unwrap();
        assert_eq!(c.endpoint, "http://localhost:8");
        assert!(!format!("{c:?}").contains("secret"));
        for bad in ["ftp://x", "https://", "https://u:p@host", "https://a b"] {
            assert!(read(&[home, ("HF_ENDPOINT", bad)]).is_err(), "{bad}");
        }
        let e = read(&[home, ("HF_TOKEN", "se cret")]).unwrap_err().to_string();
        assert!(e.contains("HF_TOKEN") && !e.contains("cret"), "{e}");
    }
}
