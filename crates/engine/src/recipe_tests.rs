//! Tests of recipes, on methods made up for them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::entry::{MethodConfig, Needs, defaults_of, resolve_as, schema_of};

use super::*;

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Size {
    size: u32,
}

impl MethodConfig for Size {
    fn validate(&self) -> std::result::Result<(), String> {
        if self.size < 10 { Ok(()) } else { Err("size: must be below 10".to_owned()) }
    }
}

const fn entry(slug: &'static str, kind: Kind, places: &'static [Place]) -> MethodEntry {
    MethodEntry {
        slug,
        aliases: &[],
        name: "",
        paper: None,
        summary: "",
        kind,
        places,
        exactness: Exactness::DistributionExact,
        needs: Needs::NONE,
        claims: &[],
        schema: schema_of::<Size>,
        defaults: defaults_of::<Size>,
        neutral: None,
        read: resolve_as::<Size>,
        build: |_| Ok(Method::Plain),
    }
}

const DECODE: Place = Place { role: Role::Reduce, site: Site::Decode };
const PREFILL: Place = Place { role: Role::Reduce, site: Site::Prefill };
const DRAFT: Place = Place { role: Role::Draft, site: Site::Whole };

static DRAFT_A: MethodEntry = entry("draft-a", Kind::Policy, &[DRAFT]);
static DRAFT_B: MethodEntry = entry("draft-b", Kind::Policy, &[DRAFT]);
static KEEP_A: MethodEntry = entry("keep-a", Kind::Policy, &[DECODE]);
static KEEP_B: MethodEntry = entry("keep-b", Kind::Policy, &[PREFILL]);
static SKIP: MethodEntry =
    entry("skip", Kind::Policy, &[Place { role: Role::Reduce, site: Site::Layers }]);
static LOOP_A: MethodEntry = entry("loop-a", Kind::Loop, &[]);
static LOOP_B: MethodEntry = entry("loop-b", Kind::Loop, &[]);
static SMC: MethodEntry = entry("smc", Kind::Loop, &[]);
static RULE: MethodEntry =
    entry("rule", Kind::Policy, &[Place { role: Role::Constrain, site: Site::Constraint }]);
static DRAW: MethodEntry =
    entry("draw", Kind::Policy, &[Place { role: Role::Constrain, site: Site::Sampler }]);
static JUDGE: MethodEntry = JUDGES;
static EXACT_JUDGE: MethodEntry =
    MethodEntry { slug: "exact-judge", exactness: Exactness::BitExact, ..JUDGES };
const JUDGES: MethodEntry =
    entry("judge", Kind::Policy, &[Place { role: Role::Accept, site: Site::Whole }]);
static NONE: MethodEntry =
    MethodEntry { exactness: Exactness::BitExact, ..entry("none", Kind::Loop, &[]) };
static PROGRAM: MethodEntry = entry("program", Kind::Program, &[]);
static HUNGRY: MethodEntry = MethodEntry {
    needs: Needs { draft_model: true, mask_token: true, ..Needs::NONE },
    exactness: Exactness::Lossy { what: "all" },
    ..entry("hungry", Kind::Policy, &[])
};
static ENTRIES: &[&MethodEntry] = &[
    &DRAFT_A,
    &DRAFT_B,
    &KEEP_A,
    &KEEP_B,
    &SKIP,
    &LOOP_A,
    &LOOP_B,
    &NONE,
    &PROGRAM,
    &HUNGRY,
    &SMC,
    &RULE,
    &DRAW,
    &JUDGE,
    &EXACT_JUDGE,
];

fn recipe(slugs: &[&str]) -> Result<Recipe> {
    let calls: Vec<MethodCall> = slugs
        .iter()
        .map(|s| MethodCall { id: (*s).to_owned(), settings: Settings::new() })
        .collect();
    Recipe::resolve(ENTRIES, &calls)
}

#[test]
fn methods_at_different_places_compose() {
    let all = recipe(&["draft-a", "keep-a", "keep-b", "loop-a"]).unwrap();
    assert_eq!(all.members().len(), 4);
    assert_eq!(all.exactness(), Exactness::DistributionExact);
    assert_eq!(all.build().unwrap().len(), 4);
    assert_eq!(recipe(&["skip", "keep-a"]).unwrap().members().len(), 2);
    assert_eq!(recipe(&["smc", "rule", "draw"]).unwrap().members().len(), 3);
    assert!(recipe(&["draft-a", "exact-judge", "rule", "draw"]).unwrap().is_constrained());
    assert_eq!(all.to_json()[0], json!({"id": "draft-a", "size": 0}));
}

#[test]
fn none_is_the_plain_run() {
    for plain in [recipe(&[]).unwrap(), recipe(&["none"]).unwrap(), Recipe::plain()] {
        assert!(plain.is_plain());
        assert_eq!((plain.exactness(), plain.to_json()), (Exactness::BitExact, json!([])));
    }
}

#[test]
fn every_wrong_combination_is_refused_by_both_names_and_a_reason() {
    for (slugs, reason) in [
        (["draft-a", "draft-b"], "guessed ahead"),
        (["draft-a", "draft-a"], "twice"),
        (["loop-a", "loop-b"], "one loop"),
        (["none", "draft-b"], "plain run"),
        (["draft-b", "none"], "plain run"),
        (["draft-b", "program"], "own command"),
        (["skip", "draft-a"], "schedule of layers"),
        (["draft-a", "skip"], "schedule of layers"),
        (["smc", "draft-a"], "resampled between tokens"),
        (["keep-a", "smc"], "resampled between tokens"),
        (["exact-judge", "smc"], "resampled between tokens"),
        (["rule", "judge"], "without the constraint"),
        (["judge", "draw"], "without the constraint"),
    ] {
        let error = recipe(&slugs).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains(slugs[1]), "{error}");
    }
    assert!(recipe(&["draft-c"]).unwrap_err().to_string().contains("draft-a"));
}

#[test]
fn gaps_and_wrong_settings_are_errors_before_the_run() {
    let hungry = recipe(&["hungry"]).unwrap();
    let error = hungry.fits(&Needs::NONE).unwrap_err().to_string();
    assert!(error.contains("draft model") && error.contains("masks"), "{error}");
    hungry.fits(&Needs { draft_model: true, mask_token: true, ..Needs::NONE }).unwrap();
    assert_eq!(hungry.exactness().word(), "lossy");

    let mut settings = Settings::new();
    settings.insert("size".to_owned(), json!(10));
    let call = MethodCall { id: "keep-a".to_owned(), settings };
    assert!(Recipe::resolve(ENTRIES, &[call]).is_err());
}
