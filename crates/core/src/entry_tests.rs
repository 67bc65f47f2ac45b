//! Tests of entries, on a method made up for them.

use serde::Deserialize;
use serde_json::json;

use super::*;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Shape {
    Chain,
    WideTree,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Rows kept.
    budget: usize,
    /// Share kept.
    ratio: f32,
    /// Seen or not.
    verbose: bool,
    /// Form of the draft.
    shape: Shape,
    /// A limit, if any.
    limit: Option<u32>,
    /// Layers touched.
    layers: Vec<u32>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            budget: 64,
            ratio: 0.5,
            verbose: false,
            shape: Shape::Chain,
            limit: None,
            layers: vec![],
        }
    }
}

impl MethodConfig for Config {
    fn validate(&self) -> std::result::Result<(), String> {
        if (0.0..=1.0).contains(&self.ratio) {
            Ok(())
        } else {
            Err(format!("ratio = {}: must be between 0 and 1", self.ratio))
        }
    }
}

static TOY: MethodEntry = MethodEntry {
    slug: "toy-keeper",
    aliases: &["tk"],
    name: "Toy keeper",
    paper: None,
    summary: "Keeps toys.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Reduce, site: Site::Decode }],
    exactness: Exactness::Lossy { what: "which toys are kept" },
    needs: Needs::NONE,
    claims: &[],
    schema: schema_of::<Config>,
    defaults: defaults_of::<Config>,
    neutral: None,
    read: resolve_as::<Config>,
    build: |settings| read_as::<Config>("toy-keeper", settings).map(|_| Method::Plain),
};
static ENTRIES: &[&MethodEntry] = &[&TOY];

fn parse(text: &str) -> Result<Settings> {
    let call = MethodCall::parse(ENTRIES, text)?;
    find(ENTRIES, &call.id)?.resolve(&call.settings)
}

#[test]
fn typed_settings_are_read_by_their_schema_and_completed() {
    let full = parse("TK:budget=8,ratio=0.25,verbose=yes,shape=wide-tree,limit=9,layers=[1,2]");
    let want = json!({"budget": 8, "ratio": 0.25, "verbose": true, "shape": "wide-tree",
        "limit": 9, "layers": [1, 2]});
    assert_eq!(Value::Object(full.unwrap()), want);
    // A 32-bit number is written as it was typed.
    assert_eq!(parse("tk:ratio=0.1").unwrap()["ratio"].to_string(), "0.1");
    let none = parse("toy_keeper:limit=none").unwrap();
    assert_eq!(Value::Object(none), Value::Object((TOY.defaults)()));
    assert_eq!(parse("toy-keeper").unwrap(), (TOY.defaults)());
}

#[test]
fn every_wrong_setting_is_refused_by_name() {
    for (text, words) in [
        ("toy-keper", vec!["toy-keper", "did you mean `toy-keeper`"]),
        ("zzz", vec!["zzz", "tessera methods"]),
        ("tk:budgt=3", vec!["budgt", "did you mean `budget`"]),
        ("tk:qqq=3", vec!["qqq", "it has", "ratio"]),
        ("tk:budget=some", vec!["budget = some", "whole number"]),
        ("tk:budget=-3", vec!["budget = -3"]),
        ("tk:ratio=1.5", vec!["ratio = 1.5", "between 0 and 1"]),
        ("tk:ratio=nan", vec!["ratio = nan", "a number"]),
        ("tk:verbose=maybe", vec!["verbose", "true or false"]),
        ("tk:shape=ring", vec!["shape", "ring", "chain"]),
        ("tk:layers=1", vec!["layers"]),
        ("tk:layers=[1", vec!["layers", "JSON"]),
        ("tk:budget", vec!["budget", "key=value"]),
        ("tk:budget=1,budget=2", vec!["budget", "twice"]),
    ] {
        let error = parse(text).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}

#[test]
fn a_request_reads_like_a_command_line() {
    let call = MethodCall::from_json(ENTRIES, &json!({"id": "tk", "budget": 8})).unwrap();
    assert_eq!(call, MethodCall::parse(ENTRIES, "tk:budget=8").unwrap());
    assert!(MethodCall::from_json(ENTRIES, &json!({"budget": 8})).is_err());
    let unknown = MethodCall::from_json(ENTRIES, &json!({"id": "tk", "bugdet": 8})).unwrap();
    assert!(TOY.resolve(&unknown.settings).unwrap_err().to_string().contains("`budget`"));
}

#[test]
fn places_clash_and_promises_combine() {
    let at = |role, site| Place { role, site };
    assert!(at(Role::Draft, Site::Whole).clashes(at(Role::Draft, Site::Whole)));
    assert!(at(Role::Reduce, Site::Decode).clashes(at(Role::Reduce, Site::Whole)));
    assert!(!at(Role::Reduce, Site::Decode).clashes(at(Role::Reduce, Site::Prefill)));
    assert!(!at(Role::Draft, Site::Whole).clashes(at(Role::Accept, Site::Whole)));
    assert!(Site::Decode.belongs_to(Role::Reduce) && !Site::Decode.belongs_to(Role::Unmask));

    let lossy = Exactness::Lossy { what: "x" };
    assert_eq!(Exactness::BitExact.and(Exactness::DistributionExact), Exactness::DistributionExact);
    assert_eq!(Exactness::DistributionExact.and(Exactness::BitExact), Exactness::DistributionExact);
    assert_eq!(Exactness::BitExact.and(lossy), lossy);
    assert_eq!(lossy.and(Exactness::BitExact), lossy);
}

#[test]
fn needs_name_every_gap() {
    let mut needs = Needs { draft_model: true, images: true, ..Needs::NONE };
    needs.capabilities.taps = true;
    let missing = needs.missing_from(&Needs { images: true, ..Needs::NONE });
    assert_eq!(missing, ["taps", "a draft model (--draft-model)"]);
    assert!(needs.missing_from(&needs).is_empty());
}
