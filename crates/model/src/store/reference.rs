//! The grammar of a model reference: a catalogue name, `org/repo[:QUANT][@revision]`, or a path.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::catalogue::Catalogue;
use super::error::StoreError;

/// Longest `org` or `repo` the hub allows, in characters.
const LONGEST_PART: usize = 96;
/// Longest revision accepted, in characters; commits have 40.
const LONGEST_REVISION: usize = 100;
/// Longest quantisation name accepted, in characters.
const LONGEST_QUANT: usize = 16;
/// Longest reference accepted at all, in bytes (a path may be long).
const LONGEST: usize = 4096;

/// A parsed model reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelRef {
    /// A name of the catalogue, spelt as the catalogue spells it.
    Catalogue(String),
    /// A repository of the Hugging Face hub.
    Hub(HubRef),
    /// A file or directory of this machine.
    Path(PathBuf),
}

/// A repository of the hub, and which of its files and revisions is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubRef {
    /// The repository.
    pub repo: RepoId,
    /// Quantisation asked for, upper case (`Q4_K_M`); `None` leaves the choice to the store.
    pub quant: Option<String>,
    /// Branch, tag or commit; `None` is `main`.
    pub revision: Option<String>,
}

/// `org/name` on the hub; both parts keep the hub's own naming rules.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepoId {
    org: String,
    name: String,
}

impl ModelRef {
    /// Parses `text`. Catalogue names come first, then anything that is written as a
    /// path (`./x`, `/x`, `*.gguf`) or exists as one, then hub repositories.
    ///
    /// # Errors
    /// [`StoreError::BadReference`] with the rule broken, or
    /// [`StoreError::UnknownName`] with the nearest catalogue name.
    pub fn parse(text: &str, catalogue: &Catalogue) -> Result<Self, StoreError> {
        Self::parse_with(text, catalogue, Path::exists)
    }

    /// [`ModelRef::parse`] with the question "does this path exist?" left to the caller.
    ///
    /// # Errors
    /// As [`ModelRef::parse`].
    pub fn parse_with(
        text: &str,
        catalogue: &Catalogue,
        exists: impl Fn(&Path) -> bool,
    ) -> Result<Self, StoreError> {
        let bad = |reason: &str| StoreError::bad_reference(text, reason);
        if text.is_empty() {
            return Err(bad("it is empty"));
        }
        if text.len() > LONGEST {
            return Err(bad("it is longer than any path"));
        }
        if text.chars().any(char::is_control) {
            return Err(bad("it holds a control character"));
        }
        if let Some(rest) = text.strip_prefix("hf://") {
            return HubRef::parse(rest).map(Self::Hub).map_err(|reason| bad(&reason));
        }
        let path = Path::new(text);
        let written_as_path = path.is_absolute()
            || matches!(text, "." | "..")
            || text.starts_with("./")
            || text.starts_with("../");
        if written_as_path {
            return Ok(Self::Path(path.to_owned()));
        }
        if let Some(entry) = catalogue.get(text) {
            return Ok(Self::Catalogue(entry.name.clone()));
        }
        let is_file_name = Path::new(text).extension().is_some_and(|e| {
            e.eq_ignore_ascii_case("gguf") || e.eq_ignore_ascii_case("safetensors")
        });
        if is_file_name || exists(path) {
            return Ok(Self::Path(path.to_owned()));
        }
        if text.contains('/') {
            return HubRef::parse(text).map(Self::Hub).map_err(|reason| bad(&reason));
        }
        Err(StoreError::UnknownName {
            given: text.chars().take(120).collect(),
            nearest: catalogue.nearest(text).map(str::to_owned),
        })
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Catalogue(name) => f.write_str(name),
            Self::Hub(hub) => hub.fmt(f),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

impl HubRef {
    /// Parses `org/repo[:QUANT][@revision]`; the error is the rule broken.
    fn parse(text: &str) -> Result<Self, String> {
        let (text, revision) = match text.split_once('@') {
            Some((head, revision)) => (head, Some(revision)),
            None => (text, None),
        };
        let (repo, quant) = match text.split_once(':') {
            Some((head, quant)) => (head, Some(quant)),
            None => (text, None),
        };
        if let Some(quant) = quant {
            let fits = (2..=LONGEST_QUANT).contains(&quant.len())
                && quant.starts_with(|c: char| c.is_ascii_alphabetic())
                && quant.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if !fits {
                return Err("a quantisation is written like `Q4_K_M`".to_owned());
            }
        }
        if revision.is_some_and(|revision| !is_revision(revision)) {
            return Err(
                "a revision is a branch, tag or commit of letters, digits, `.`, `_` and `-`"
                    .to_owned(),
            );
        }
        Ok(Self {
            repo: RepoId::try_from(repo.to_owned())?,
            quant: quant.map(str::to_ascii_uppercase),
            revision: revision.map(str::to_owned),
        })
    }

    /// The revision to ask the hub for.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl fmt::Display for HubRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repo)?;
        if let Some(quant) = &self.quant {
            write!(f, ":{quant}")?;
        }
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        Ok(())
    }
}

impl RepoId {
    /// The organisation or user.
    pub fn org(&self) -> &str {
        &self.org
    }

    /// The repository's own name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder the hub's cache keeps it in: `models--org--name`.
    pub fn folder(&self) -> String {
        format!("models--{}--{}", self.org, self.name)
    }

    /// The repository a cache folder belongs to, when it is a model's.
    pub fn from_folder(folder: &str) -> Option<Self> {
        let (org, name) = folder.strip_prefix("models--")?.split_once("--")?;
        Self::try_from(format!("{org}/{name}")).ok()
    }
}

impl TryFrom<String> for RepoId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let Some((org, name)) = text.split_once('/') else {
            return Err("a repo is written `org/name`".to_owned());
        };
        for part in [org, name] {
            let fits = (1..=LONGEST_PART).contains(&part.len())
                && part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
                // `--` separates the parts in the cache's folder names, `..` climbs.
                && !part.contains("..")
                && !part.contains("--");
            if !fits {
                return Err("a repo is `org/name`, each of letters, digits, `.`, `_` and `-`, \
                            starting and ending with a letter or digit, without `..` or `--`"
                    .to_owned());
            }
        }
        Ok(Self { org: org.to_owned(), name: name.to_owned() })
    }
}

impl From<RepoId> for String {
    fn from(repo: RepoId) -> Self {
        repo.to_string()
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.org, self.name)
    }
}

/// Whether `text` may be a revision: one path component, no climbing, no leading dot or dash.
pub(super) fn is_revision(text: &str) -> bool {
    (1..=LONGEST_REVISION).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        && !text.contains("..")
}

/// Whether `text`, named by a server or a catalogue, may be joined to a folder of ours:
/// relative, `/`-separated, every component plain.
pub(super) fn is_safe_file_path(text: &str) -> bool {
    text.len() <= 512
        && text.split('/').count() <= 8
        && text.split('/').all(|part| {
            (1..=200).contains(&part.len())
                && !part.starts_with(['.', '-', ' '])
                && !part.ends_with([' ', '.'])
                && !part.chars().any(|c| c.is_control() || "\\:*?\"<>|".contains(c))
        })
}

#[cfg(test)]
mod tests {
    use std::path::Component;

    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<ModelRef, StoreError> {
        ModelRef::parse_with(text, &Catalogue::builtin().unwrap(), |p| p == Path::new("here/dir"))
    }

    fn hub(text: &str) -> HubRef {
        match parse(text) {
            Ok(ModelRef::Hub(hub)) => hub,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn each_kind_is_told_apart() {
        assert_eq!(parse("SmolLM2").unwrap(), ModelRef::Catalogue("smollm2".to_owned()));
        let h = hub("Org.x/re_po-1:q4_k_m@v1.0");
        assert_eq!((h.repo.org(), h.repo.name()), ("Org.x", "re_po-1"));
        assert_eq!((h.quant.as_deref(), h.revision()), (Some("Q4_K_M"), "v1.0"));
        assert_eq!(hub("hf://a/b"), hub("a/b"));
        assert_eq!(hub("a/b").revision(), "main");
        for path in ["./x", "/x", "../x", ".", "x.gguf", "a/b.GGUF", "here/dir"] {
            assert_eq!(parse(path).unwrap(), ModelRef::Path(path.into()), "{path}");
        }
        assert_eq!(hub("hf://here/dir").to_string(), "here/dir");
    }

    #[test]
    fn what_could_escape_or_mislead_is_refused() {
        for bad in [
            "",
            "a\nb",
            "hf://../x",
            "hf://a/..",
            "hf://a/b/c",
            "a/../b",
            "a//b",
            ".a/b",
            "-a/b",
            "a/.b",
            "a/-b",
            "a--b/c",
            "a/b--c",
            "a/b:",
            "a/b:Q4/../x",
            "a/b@../main",
            "a/b@-x",
            "a/b@",
            "a/b@x/y",
            "a\\b/c",
            "a/b\u{202e}",
            "a/b%2f",
            "hf://",
            "hf://a",
            "a/b:Q4@",
            "a/b:Q4_K_M:Q8_0",
        ] {
            assert!(matches!(parse(bad), Err(StoreError::BadReference { .. })), "{bad:?}");
        }
        let e = parse("qwen2.5-coder:0.6b").unwrap_err();
        assert!(
            e.is_usage() && e.to_string().contains("did you mean `qwen2.5-coder:0.5b`?"),
            "{e}"
        );
        let e = parse("a/b\u{1b}[31m").unwrap_err().to_string();
        assert!(!e.contains('\u{1b}'), "control characters do not reach the terminal");
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in "\\PC{0,60}|[a-z./:@_%~-]{0,40}") {
            if let Ok(ModelRef::Hub(hub)) = parse(&text) {
                let folder = hub.repo.folder();
                let parts: Vec<_> = Path::new(&folder).components().collect();
                prop_assert!(matches!(parts[..], [Component::Normal(_)]));
                prop_assert_eq!(RepoId::from_folder(&folder), Some(hub.repo.clone()));
                prop_assert!(is_revision(hub.revision()));
            }
        }

        #[test]
        fn a_hub_reference_reads_back(
            text in "[A-Za-z0-9]([._-]?[A-Za-z0-9]){0,8}/[A-Za-z0-9]([._-]?[A-Za-z0-9]){0,8}\
                     (:[A-Z][A-Z0-9_]{1,7})?(@[a-z0-9][a-z0-9._-]{0,3}[a-z0-9])?"
        ) {
            prop_assume!(!text.contains("..") && !text.ends_with(".gguf"));
            let text = text.replace(char::is_whitespace, "");
            let first = hub(&text);
            prop_assert_eq!(first.to_string(), text.as_str());
            prop_assert_eq!(hub(&format!("hf://{first}")), first);
        }

        #[test]
        fn a_safe_file_path_stays_below(text in "[a./\\\\ :~-]{0,12}|\\PC{0,20}") {
            if is_safe_file_path(&text) {
                let plain = Path::new(&text).components().all(|c| matches!(c, Component::Normal(_)));
                prop_assert!(plain && !text.contains('\\'));
            }
        }
    }
}
