//! What can be wrong with a model file: every fault names the field, what was found there and
//! a next step, so that one printed line is enough to act on.

use std::fmt;
use std::path::{Path, PathBuf};

/// A fault in a model file, together with the file it was found in.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", path.display())]
pub struct FileError {
    /// The file (or directory) as the caller named it.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: Box<Fault>,
}

/// The kinds of fault. `field` always names one place in the file's own vocabulary, such as
/// `tensor count`, `metadata key "general.alignment"` or `tensor "output.weight": offset`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The operating system refused an operation.
    #[error("{field}: {source}; {next}")]
    Io {
        /// What was being opened, read or written.
        field: String,
        /// The system's own reason.
        source: std::io::Error,
        /// What to do about it.
        next: &'static str,
    },
    /// The file ends before the named field does.
    #[error("{field} ends at byte {need}, but the file has {len}; it is truncated: fetch it again")]
    Truncated {
        /// The field that does not fit.
        field: String,
        /// First byte after the field, had the file been whole.
        need: u64,
        /// Length of the file, in bytes.
        len: u64,
    },
    /// The field holds something no valid file holds.
    #[error("{field} is {found}, expected {expected}; the file is damaged: fetch it again")]
    Malformed {
        /// The field.
        field: String,
        /// What it holds.
        found: String,
        /// What a valid file would hold.
        expected: String,
    },
    /// A metadata key, tensor or file that must be there is not.
    #[error("{field} is missing; {next}")]
    Missing {
        /// What is missing.
        field: String,
        /// What to do about it.
        next: &'static str,
    },
    /// The file is well formed, but asks for something this engine does not do.
    #[error("{field} is {found}, which is not supported; supported: {supported}")]
    Unsupported {
        /// The field.
        field: String,
        /// What it asks for.
        found: String,
        /// What would work instead.
        supported: String,
    },
}

impl Fault {
    /// The field the fault is about.
    pub fn field(&self) -> &str {
        match self {
            Self::Io { field, .. }
            | Self::Truncated { field, .. }
            | Self::Malformed { field, .. }
            | Self::Missing { field, .. }
            | Self::Unsupported { field, .. } => field,
        }
    }

    /// Shorthand for [`Fault::Malformed`].
    pub(crate) fn malformed(
        field: impl Into<String>,
        found: impl fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::Malformed { field: field.into(), found: found.to_string(), expected: expected.into() }
    }

    /// Shorthand for [`Fault::Unsupported`].
    pub(crate) fn unsupported(
        field: impl Into<String>,
        found: impl fmt::Display,
        supported: impl Into<String>,
    ) -> Self {
        Self::Unsupported {
            field: field.into(),
            found: found.to_string(),
            supported: supported.into(),
        }
    }

    /// Shorthand for [`Fault::Missing`].
    pub(crate) fn missing(field: impl Into<String>, next: &'static str) -> Self {
        Self::Missing { field: field.into(), next }
    }

    /// Attaches the file.
    pub(crate) fn at(self, path: &Path) -> FileError {
        FileError { path: path.to_path_buf(), fault: Box::new(self) }
    }
}

impl FileError {
    /// The field the fault is about.
    pub fn field(&self) -> &str {
        self.fault.field()
    }

    /// True when the fault is that something is absent.
    pub fn is_missing(&self) -> bool {
        matches!(*self.fault, Fault::Missing { .. })
    }
}

/// Text from a file, made safe to print: escaped, quoted, and cut after 60 characters.
/// A key or tensor name may hold terminal control sequences or a megabyte of letters.
pub(crate) fn quoted(text: &str) -> String {
    format!("\"{}\"", printable(text, 60))
}

/// Text with everything unprintable escaped, cut after `most` characters; for messages of other
/// libraries, which may repeat what they found in a file.
pub(crate) fn printable(text: &str, most: usize) -> String {
    let mut chars = text.chars();
    // Leaves letters of all scripts, and quotes, as they are.
    let mut out: String = chars
        .by_ref()
        .take(most)
        .flat_map(|c| {
            let plain = matches!(c, '"' | '\'');
            plain
                .then_some(c)
                .into_iter()
                .chain((!plain).then(|| c.escape_debug()).into_iter().flatten())
        })
        .collect();
    if chars.next().is_some() {
        out.push_str("...");
    }
    out
}

/// Like [`quoted`], for bytes that may not be UTF-8.
pub(crate) fn quoted_bytes(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(256)];
    quoted(&String::from_utf8_lossy(cut))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_a_file_cannot_drive_a_terminal() {
        assert_eq!(quoted("a\u{1b}[2Jb\n"), "\"a\\u{1b}[2Jb\\n\"");
        assert_eq!(quoted("größe"), "\"größe\"");
        let long = quoted(&"x".repeat(1000));
        assert_eq!(long.len(), 60 + 5);
        assert!(long.ends_with("...\""));
        assert_eq!(printable("say \"a\"\u{7}", 60), "say \"a\"\\u{7}");
        assert_eq!(quoted_bytes(&[0xff, b'a']), "\"\u{fffd}a\"");
    }

    #[test]
    fn an_error_reads_as_one_line_with_path_field_and_next_step() {
        let error = Fault::malformed("tensor count", 7, "at most 3").at(Path::new("m.gguf"));
        assert_eq!(
            error.to_string(),
            "m.gguf: tensor count is 7, expected at most 3; the file is damaged: fetch it again"
        );
        assert_eq!(error.field(), "tensor count");
    }
}
