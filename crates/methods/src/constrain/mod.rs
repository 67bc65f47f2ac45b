//! Policies that decide which texts are allowed, and how an allowed token is drawn.

use tessera_core::entry::{Exactness, Place, Role, Site};

pub mod awrs;
pub mod grammar;
pub mod json_schema;
pub mod mask;
pub mod regex;

/// Where a policy sits that says which texts are allowed.
const RULE: &[Place] = &[Place { role: Role::Constrain, site: Site::Constraint }];

/// Where a policy sits that draws.
const DRAW: &[Place] = &[Place { role: Role::Constrain, site: Site::Sampler }];

/// What a constraint does to a text.
const CONDITIONED: Exactness = Exactness::Lossy {
    what: "texts that the constraint forbids are not made; where both are allowed, tokens keep the \
           ratio of their probabilities",
};

/// The range of a constraint's time budget.
fn check_seconds(seconds: f64) -> Result<(), String> {
    if seconds > 0.0 && seconds <= 3600.0 {
        Ok(())
    } else {
        Err(format!("seconds = {seconds}: must be above 0 and at most 3600"))
    }
}
