//! The flags that constrain an answer, and what they become: method calls, and for a predicate a
//! process. Files and commands are read here, at the command line; a request cannot name them.

use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};
use tessera_core::entry::MethodCall;
use tessera_core::{Constraint, Error, Judged};
use tessera_runtime::METHODS;
use tessera_runtime::predicate::Process;

/// What the answer must be.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Constraints")]
pub(crate) struct ConstraintFlags {
    /// Answer with JSON that this schema accepts: a file, or the schema itself.
    #[arg(long, value_name = "SCHEMA")]
    json_schema: Option<String>,
    /// Answer with a text that matches this regular expression from beginning to end.
    #[arg(long, value_name = "PATTERN")]
    regex: Option<String>,
    /// Answer with a sentence of this grammar in Lark: a file, or the grammar itself.
    #[arg(long, value_name = "GRAMMAR")]
    grammar: Option<String>,
    /// Ask this command about every beginning: it reads `{"hex":...,"text":...}` and answers
    /// `false`, `true` or `complete`, a line each.
    #[arg(long, value_name = "COMMAND")]
    predicate: Option<String>,
    /// Seconds that an answer of --predicate may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    predicate_timeout: f64,
}

/// Fields that may be read from a file as `file=PATH`: of which method, and what the file holds.
const FILES: [(&str, &str); 3] =
    [("json-schema", "schema"), ("grammar", "lark"), ("regex", "pattern")];

impl ConstraintFlags {
    /// The method calls that the flags mean.
    pub(crate) fn calls(&self) -> tessera_core::Result<Vec<MethodCall>> {
        let call = |id: &str, field: &str, value: Value| {
            let settings = std::iter::once((field.to_owned(), value)).collect();
            MethodCall { id: id.to_owned(), settings }
        };
        let mut calls = Vec::new();
        if let Some(given) = &self.json_schema {
            let text = text_or_file("json-schema", given, |t| t.trim_start().starts_with('{'))?;
            calls.push(call("json-schema", "schema", json!(text)));
        }
        if let Some(pattern) = &self.regex {
            calls.push(call("regex", "pattern", json!(pattern)));
        }
        if let Some(given) = &self.grammar {
            let text = text_or_file("grammar", given, |t| t.contains(':') && t.contains("start"))?;
            calls.push(call("grammar", "lark", json!(text)));
        }
        Ok(calls)
    }

    /// The predicate, started.
    pub(crate) fn predicate(&self) -> tessera_core::Result<Option<Arc<dyn Constraint>>> {
        let Some(command) = &self.predicate else { return Ok(None) };
        let seconds = self.predicate_timeout;
        if !(seconds > 0.0 && seconds <= 3600.0) {
            let range = "above 0 and at most 3600 seconds";
            return Err(Error::setting("predicate-timeout", seconds, range));
        }
        let process = Process::start(command, seconds)?;
        Ok(Some(Arc::new(Judged(Arc::new(process)))))
    }

    /// Whether a constraint is given by a flag.
    pub(crate) fn any(&self) -> bool {
        let given = [&self.json_schema, &self.regex, &self.grammar, &self.predicate];
        given.iter().any(|flag| flag.is_some())
    }
}

/// Reads `--method TEXT`; `file=PATH` of a constraint becomes what the file holds.
pub(crate) fn method_call(text: &str) -> tessera_core::Result<MethodCall> {
    let (id, rest) = text.split_once(':').unwrap_or((text, ""));
    let entry = tessera_core::entry::find(METHODS, id.trim())?;
    let field = FILES.iter().find(|(slug, _)| *slug == entry.slug).map(|(_, field)| *field);
    let file = rest.split(',').find_map(|part| part.trim().strip_prefix("file="));
    let (Some(field), Some(path)) = (field, file) else { return MethodCall::parse(METHODS, text) };
    let others: Vec<&str> =
        rest.split(',').filter(|part| !part.trim().starts_with("file=")).collect();
    let mut call = MethodCall::parse(METHODS, &format!("{id}:{}", others.join(",")))?;
    let text = read(entry.slug, path)?;
    if call.settings.insert(field.to_owned(), json!(text)).is_some() {
        let what = format!("{field} and file say the same thing: give one of them");
        return Err(Error::Method { method: entry.slug.to_owned(), what });
    }
    Ok(call)
}

fn text_or_file(
    method: &str,
    given: &str,
    is_text: impl Fn(&str) -> bool,
) -> tessera_core::Result<String> {
    if is_text(given) && !std::path::Path::new(given).exists() {
        return Ok(given.to_owned());
    }
    read(method, given)
}

/// Most bytes of a schema or grammar.
const LARGEST: u64 = 16 << 20;

fn read(method: &str, path: &str) -> tessera_core::Result<String> {
    let fail = |what: String| Error::Method {
        method: method.to_owned(),
        what: format!("{path}: {what}. Next: name a file, or write the text itself"),
    };
    let size = std::fs::metadata(path).map_err(|e| fail(e.to_string()))?.len();
    if size > LARGEST {
        return Err(fail(format!("{size} bytes are more than {LARGEST}")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
    // An editor's last line end is not part of a pattern.
    Ok(if method == "regex" { text.trim_end_matches(['\n', '\r']).to_owned() } else { text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_method_calls() {
        let flags = ConstraintFlags {
            json_schema: Some("{\"type\": \"null\"}".to_owned()),
            regex: Some("a,b".to_owned()),
            grammar: Some("start: \"a\"".to_owned()),
            ..ConstraintFlags::default()
        };
        let calls = flags.calls().unwrap();
        let ids: Vec<&str> = calls.iter().map(|c| c.id.as_str()).collect();
        assert_eq!(ids, ["json-schema", "regex", "grammar"]);
        assert_eq!(calls[1].settings["pattern"], "a,b");
        assert!(flags.any() && !ConstraintFlags::default().any());
    }

    #[test]
    fn files_are_read_where_a_file_is_meant() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("s.json");
        std::fs::write(&path, "{}\n").unwrap();
        let call = method_call(&format!("json:whitespace=false,file={}", path.display())).unwrap();
        assert_eq!(call.id, "json-schema");
        assert_eq!(
            (&call.settings["schema"], &call.settings["whitespace"]),
            (&json!("{}\n"), &json!(false))
        );
        let error = method_call("json-schema:file=nowhere.json").unwrap_err().to_string();
        assert!(error.contains("nowhere.json") && error.contains("Next:"), "{error}");
        // A drafter has no file.
        assert!(method_call("prompt-lookup:file=x").unwrap_err().to_string().contains("file"));
    }
}
