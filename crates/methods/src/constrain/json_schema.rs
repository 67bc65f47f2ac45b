//! Title: JSON schemas as a constraint
//! Authors: none
//! Year: none
//! Id: none
//! Implemented: the whole text is one JSON value that a JSON schema (draft 2020-12 and before)
//!   accepts, as the library `llguidance` reads it: properties come in the order of the schema, then
//!   those it allows beyond. A keyword that the library does not enforce is an error that names it,
//!   never passed over. `$ref` looks inside the schema only.
//! Left out: white space between tokens beyond one space or a line break with its indentation
//!   (`whitespace`), in which small models lose themselves.
//! Tag: json

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tessera_core::entry::{
    Kind, Method, MethodConfig, MethodEntry, Needs, defaults_of, read_as, resolve_as, schema_of,
};

use super::{CONDITIONED, RULE, check_seconds};
use crate::guidance::{Guidance, Source};

/// White space that may stand between tokens of JSON.
const SPACE: &str = r" |\n[ ]{0,32}";

/// Settings of a JSON schema.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JsonSchemaText {
    /// The schema: an object, or true for any value (default), or its text.
    pub schema: Value,
    /// Whether one space or an indented line break may stand between tokens; without, the text is
    /// compact.
    pub whitespace: bool,
    /// Most seconds to read the schema, and most seconds of one step. Above 0, at most 3600.
    pub seconds: f64,
}

impl Default for JsonSchemaText {
    fn default() -> Self {
        Self { schema: json!({}), whitespace: true, seconds: 10.0 }
    }
}

impl JsonSchemaText {
    /// The schema as a value, with what the library is told about white space.
    fn schema(&self) -> Result<Value, String> {
        let mut schema = match &self.schema {
            Value::String(text) => {
                serde_json::from_str(text).map_err(|e| format!("schema is no JSON: {e}"))?
            }
            other => other.clone(),
        };
        if schema == Value::Bool(true) {
            schema = json!({});
        }
        let Some(map) = schema.as_object_mut() else {
            return Err(format!(
                "schema = {}: must be an object, such as {{\"type\": \"object\"}}",
                schema.to_string().chars().take(40).collect::<String>()
            ));
        };
        if map.contains_key("x-guidance") {
            return Err("schema: `x-guidance` is not read here: whitespace is a setting".to_owned());
        }
        let options = match self.whitespace {
            true => json!({ "whitespace_flexible": true, "whitespace_pattern": SPACE }),
            false => json!({ "whitespace_flexible": false }),
        };
        map.insert("x-guidance".to_owned(), options);
        Ok(schema)
    }
}

impl MethodConfig for JsonSchemaText {
    fn validate(&self) -> Result<(), String> {
        check_seconds(self.seconds)?;
        self.schema().map(|_| ())
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "json-schema",
    aliases: &["json", "structured-output"],
    name: "JSON schema",
    paper: None,
    summary: "Makes only JSON that a schema accepts.",
    kind: Kind::Policy,
    places: RULE,
    exactness: CONDITIONED,
    needs: Needs::NONE,
    claims: &[],
    schema: schema_of::<JsonSchemaText>,
    defaults: defaults_of::<JsonSchemaText>,
    neutral: None,
    read: resolve_as::<JsonSchemaText>,
    build: |settings| {
        let config = read_as::<JsonSchemaText>("json-schema", settings)?;
        let schema = config.schema().map_err(|what| tessera_core::Error::Method {
            method: "json-schema".to_owned(),
            what,
        })?;
        Ok(Method::Constrain(Box::new(Guidance {
            name: "json-schema",
            next: "correct or leave out what is named in the schema",
            source: Source::JsonSchema(schema),
            seconds: config.seconds,
        })))
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_schema_is_refused_by_name() {
        let refused = |schema: Value| {
            JsonSchemaText { schema, ..JsonSchemaText::default() }.validate().unwrap_err()
        };
        assert!(refused(json!("{")).contains("no JSON"));
        assert!(refused(json!([1])).contains("must be an object"));
        assert!(refused(json!(false)).contains("must be an object"));
        assert!(refused(json!({ "x-guidance": {} })).contains("x-guidance"));
    }

    #[test]
    fn a_schema_may_be_text() {
        let text = JsonSchemaText { schema: json!("{\"type\": \"null\"}"), ..Default::default() };
        assert_eq!(text.schema().unwrap()["type"], "null");
        let any = JsonSchemaText { schema: json!(true), ..Default::default() };
        assert_eq!(any.schema().unwrap().as_object().unwrap().len(), 1);
    }
}
