//! Proof that the law of windows can fail.

use tessera_core::entry::{
    Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Place, Role, Site, defaults_of,
    read_as, resolve_as, schema_of,
};
use tessera_core::{Position, Window, WindowPlan, WindowView};
use tessera_testkit::laws;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Nothing {}

impl MethodConfig for Nothing {
    fn validate(&self) -> Result<(), String> {
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    Unsorted,
    OutOfRange,
    ReadsTwice,
    Blind,
    Forgets,
    TooLong,
    Surprises,
}

/// Computes the whole canvas in the first pass and the answer afterwards, or does it wrongly.
#[derive(Debug)]
struct Faulty(Fault);

impl Window for Faulty {
    fn plan(&mut self, view: &WindowView<'_>) -> tessera_core::Result<WindowPlan> {
        let len = view.canvas.len();
        if view.rows == 0 {
            let more = usize::from(self.0 == Fault::TooLong);
            return Ok(WindowPlan::Whole { len: len + more });
        }
        let first = view.filling.row_of(view.canvas.prompt() as Position);
        let mut compute: Vec<Position> = (first..len as Position).collect();
        let mut keys = None;
        match self.0 {
            Fault::None | Fault::TooLong => {}
            Fault::Unsorted => compute.swap(0, 1),
            Fault::OutOfRange => compute.push(len as Position),
            Fault::ReadsTwice => keys = Some(vec![0, 0]),
            Fault::Blind => compute.retain(|&p| !view.canvas.is_masked(p)),
            Fault::Forgets => compute.retain(|p| !view.stale.contains(p)),
            Fault::Surprises => compute.insert(0, 0),
        }
        Ok(WindowPlan::Part { compute, keys })
    }

    fn ahead(&self, view: &WindowView<'_>) -> Option<Vec<Position>> {
        if self.0 == Fault::Blind {
            return None;
        }
        let first = view.filling.row_of(view.canvas.prompt() as Position);
        Some((first..view.rows.min(view.canvas.len()) as Position).collect())
    }
}

macro_rules! faulty {
    ($($name:ident: $fault:expr;)*) => {$(
        static $name: MethodEntry = MethodEntry {
            slug: "fine",
            aliases: &[],
            name: "Fine",
            paper: None,
            summary: "Does nothing.",
            kind: Kind::Policy,
            places: &[Place { role: Role::Reduce, site: Site::Window }],
            exactness: Exactness::Lossy { what: "what is not computed" },
            needs: Needs::NONE,
            claims: &[],
            schema: schema_of::<Nothing>,
            defaults: defaults_of::<Nothing>,
            neutral: None,
            read: resolve_as::<Nothing>,
            build: |settings| {
                read_as::<Nothing>("fine", settings)?;
                Ok(Method::Window(Box::new(Faulty($fault))))
            },
        };
    )*};
}

faulty! {
    SOUND: Fault::None;
    UNSORTED: Fault::Unsorted;
    OUT_OF_RANGE: Fault::OutOfRange;
    READS_TWICE: Fault::ReadsTwice;
    BLIND: Fault::Blind;
    FORGETS: Fault::Forgets;
    TOO_LONG: Fault::TooLong;
    SURPRISES: Fault::Surprises;
}

#[test]
fn a_broken_window_fails_the_law() {
    assert_eq!(laws::check(&[&SOUND]), Vec::<String>::new());
    for (broken, what) in [
        (&UNSORTED, "computed must be sorted"),
        (&OUT_OF_RANGE, "computed must be sorted"),
        (&READS_TWICE, "read must be sorted"),
        (&BLIND, "no open mask"),
        (&FORGETS, "left stale"),
        (&TOO_LONG, "of 28 positions"),
        (&SURPRISES, "were to be computed ahead"),
    ] {
        let found = laws::check(&[broken]);
        let law = "a window computes and reads lawful rows";
        assert!(found.iter().any(|f| f.contains(law) && f.contains(what)), "{what}: {found:#?}");
        // The loop itself refuses all but what it cannot know.
        let refused = found.iter().any(|f| f.contains("every mask is filled"));
        assert!(refused || matches!(what, "were to be computed ahead"), "{what}: {found:#?}");
    }
}
