//! Fabricated measurements and toy methods for this crate's tests.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::accept::{Accept, Decision};
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Offer, Place, Role, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{Capabilities, Draft, DraftContext, DraftTree, TokenId};
use tessera_engine::CostCurve;

use crate::check::Setting;
use crate::machine::Machine;
use crate::record::{
    Agreement, Arm, ClaimLine, ModelLine, Part, Record, Row, SCHEMA, Verdict, Word, WorkloadLine,
};
use crate::statistics::Interval;
use crate::trial::Counts;

/// Everything but a draft model.
pub(crate) fn offer() -> Offer {
    Needs { capabilities: Capabilities { masks: true, ..Default::default() }, ..Needs::NONE }
}

/// Settings of the toy methods.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Size {
    /// Guesses a pass.
    budget: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self { budget: 4 }
    }
}

impl MethodConfig for Size {
    fn validate(&self) -> Result<(), String> {
        if self.budget > 0 { Ok(()) } else { Err("budget = 0: must be at least 1".to_owned()) }
    }
}

const fn entry(slug: &'static str, role: Role, exactness: Exactness) -> MethodEntry {
    MethodEntry {
        slug,
        aliases: &[],
        name: "Toy",
        paper: None,
        summary: "A toy.",
        kind: Kind::Policy,
        places: match role {
            Role::Draft => &[Place { role: Role::Draft, site: Site::Whole }],
            _ => &[Place { role: Role::Accept, site: Site::Whole }],
        },
        exactness,
        needs: Needs::NONE,
        claims: &[],
        schema: schema_of::<Size>,
        defaults: defaults_of::<Size>,
        neutral: None,
        read: resolve_as::<Size>,
        build: |_| Ok(Method::Plain),
    }
}

/// Guesses the token after the last one, and so on.
#[derive(Debug)]
struct Counting(usize);

impl Draft for Counting {
    fn budget(&self) -> usize {
        self.0
    }

    fn draft(
        &mut self,
        context: &mut DraftContext<'_>,
        tree: &mut DraftTree,
    ) -> tessera_core::Result<()> {
        let (mut at, vocab) = (None, context.vocab() as TokenId);
        for i in 0..context.budget.min(context.depth) as TokenId {
            let last = context.tokens[context.tokens.len() - 1];
            at = Some(tree.add(at, (last + 1 + i) % vocab));
        }
        Ok(())
    }
}

/// Guesses at random, side by side.
#[derive(Debug)]
struct Chance(usize);

impl Draft for Chance {
    fn budget(&self) -> usize {
        self.0
    }

    fn draft(
        &mut self,
        context: &mut DraftContext<'_>,
        tree: &mut DraftTree,
    ) -> tessera_core::Result<()> {
        if context.depth > 0 {
            let key = context.key(tree, None).purpose(17);
            for i in 0..context.budget as TokenId {
                tree.add(None, (key.bits(i) % context.vocab() as u64) as TokenId);
            }
        }
        Ok(())
    }
}

/// Commits the first guess where it likes to, and says that this changes nothing.
#[derive(Debug)]
struct Gullible;

impl Accept for Gullible {
    fn choose(&mut self, decision: &mut Decision<'_>) -> tessera_core::Result<TokenId> {
        match decision.guesses.first() {
            Some(guess) if decision.key.uniform(3) < 0.7 => Ok(guess.token),
            _ => decision.draw(),
        }
    }

    fn coupled(&self) -> bool {
        true
    }
}

static WISHFUL: MethodEntry = MethodEntry {
    claims: &[
        Claim { setting: "toys", metric: "speed-up", value: 2.0, unit: "x", place: "Table 1" },
        Claim {
            setting: "toys",
            metric: "mean accepted tokens",
            value: 2.5,
            unit: "tokens/step",
            place: "Table 1",
        },
    ],
    build: |s| Ok(Method::Draft(Box::new(Counting(read_as::<Size>("wishful", s)?.budget)))),
    ..entry("wishful", Role::Draft, Exactness::BitExact)
};
static RANDOM: MethodEntry = MethodEntry {
    build: |s| Ok(Method::Draft(Box::new(Chance(read_as::<Size>("random-tree", s)?.budget)))),
    ..entry("random-tree", Role::Draft, Exactness::BitExact)
};
/// A wrong rule that promises the plain run's text.
static GULLIBLE: MethodEntry = MethodEntry {
    build: |_| Ok(Method::Accept(Box::new(Gullible))),
    ..entry("gullible", Role::Accept, Exactness::BitExact)
};
/// The same, promising the plain run's distribution.
static CREDULOUS: MethodEntry = MethodEntry {
    build: |_| Ok(Method::Accept(Box::new(Gullible))),
    ..entry("credulous", Role::Accept, Exactness::DistributionExact)
};
static SLOPPY: MethodEntry = MethodEntry {
    build: |_| Ok(Method::Accept(Box::new(Gullible))),
    ..entry("sloppy", Role::Accept, Exactness::Lossy { what: "which guess is committed" })
};

/// A registry: prompt lookup and the two rules as they are, and toys.
pub(crate) static TOYS: &[&MethodEntry] = &[
    &CREDULOUS,
    &GULLIBLE,
    &tessera_methods::accept::keyed::ENTRY,
    &tessera_methods::draft::prompt_lookup::ENTRY,
    &RANDOM,
    &tessera_methods::accept::residual::ENTRY,
    &SLOPPY,
    &WISHFUL,
];

/// The cost of a pass on the machine of these samples.
pub(crate) fn cost(rows: usize) -> f64 {
    1.0 + (rows - 1) as f64 / 10.0
}

fn curve() -> CostCurve {
    CostCurve {
        points: [1, 2, 4, 8, 16].map(|r| (r, cost(r))).to_vec(),
        draft: 0.0,
        draft_row: 0.0,
    }
}

pub(crate) fn setting() -> Setting {
    Setting {
        model: ModelLine { name: "smollm2".into(), detail: "cpu avx2".into(), threads: 2 },
        draft_model: None,
        workload: "built-in".into(),
        curve: (curve(), 10.0),
        quick: false,
        command: "tessera check wishful -m smollm2".into(),
        version: "tessera 0.1.0".into(),
    }
}

/// A fabricated record.
pub(crate) fn record() -> Record {
    // Few digits, which come back from JSON as they were.
    let short = |x: f64| (x * 1000.0).round() / 1000.0;
    let around = |m: f64| {
        let (median, low, high) = (short(m), short(m * 0.95), short(m * 1.05));
        Some(Interval { median, low, high, count: 24 })
    };
    let row = |category: &str, part: Part, speed: f64, rows: usize, taken: usize| {
        let counts = Counts {
            committed: 100 + taken,
            passes: BTreeMap::from([(rows, 100)]),
            guesses: 100 * (rows - 1),
            accepted: taken,
            offered: if rows > 1 { vec![100, 100] } else { vec![] },
            taken: if rows > 1 { vec![taken / 2, taken / 3] } else { vec![] },
            ..Counts::default()
        };
        let against = |other| (part != other).then(|| around(speed)).flatten();
        Row {
            category: category.into(),
            speed: against(Part::Plain),
            pairs: None,
            over_rival: against(Part::Rival),
            over_control: against(Part::Control),
            rate: short(100.0 * speed),
            predicted: short(counts.committed as f64 / counts.cost(&curve())),
            per_pass: Interval { count: 24, ..around(counts.per_pass()).unwrap() },
            text: Agreement { texts: 6, same: 6, share: 1.0, ..Agreement::default() },
            counts,
        }
    };
    let arm = |part, label: &str, speed: f64, rows, taken| Arm {
        part,
        label: label.into(),
        why: "for a reason".into(),
        methods: json!([]),
        overall: row("overall", part, speed, rows, taken),
        categories: vec![
            row("chat", part, speed * 0.8, rows, taken * 3 / 4),
            row("code-edit", part, speed * 1.2, rows, taken * 5 / 4),
        ],
    };
    Record {
        schema: SCHEMA.into(),
        slug: "wishful".into(),
        name: "Wishful <thinking>".into(),
        exactness: "bit-exact".into(),
        date: "2026-11-27".into(),
        version: "tessera 0.1.0".into(),
        command: "tessera check wishful -m smollm2".into(),
        quick: false,
        model: setting().model,
        draft_model: None,
        machine: Machine { cpu: "Some CPU".into(), features: vec!["avx2".into()], cores: 2 },
        workload: WorkloadLine {
            name: "built-in".into(),
            prompts: 12,
            planned: 12,
            turns: 2,
            tokens: 128,
            canvas: false,
            sampling: json!({"temperature": 0.0}),
            seed: 0,
        },
        curve: curve(),
        row_ms: 10.0,
        arms: vec![
            arm(Part::Plain, "plain", 1.0, 1, 0),
            arm(Part::Rival, "prompt-lookup", 1.25, 8, 80),
            arm(Part::Method, "wishful", 1.5, 4, 144),
            arm(Part::Hot, "wishful, hot", 1.6, 4, 156),
            arm(Part::Control, "random-tree", 0.75, 4, 1),
        ],
        claims: vec![
            ClaimLine {
                metric: "speed-up".into(),
                setting: "toys".into(),
                place: "Table 1".into(),
                claimed: 2.0,
                unit: "x".into(),
                measured: around(1.5),
                control: Some(0.75),
            },
            ClaimLine {
                metric: "mean accepted tokens".into(),
                setting: "toys".into(),
                place: "Table 1".into(),
                claimed: 2.5,
                unit: "tokens/step".into(),
                measured: around(2.44),
                control: Some(1.01),
            },
        ],
        retention: None,
        verdict: Verdict { word: Word::Partly, reason: "a sentence & a half".into() },
    }
}
