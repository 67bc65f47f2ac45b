//! Title: keyed acceptance (draw from the target, then compare with the draft)
//! Authors: none
//! Year: none
//! Id: none
//! Implemented: at each node of the draft the token is drawn from the target with the key of its
//!   position, as the plain run draws it; the walk goes on where a guess says that token. The text
//!   is the plain run's at any temperature and truncation, whatever was guessed.
//! Left out: nothing.
//! Tag: keyed

use tessera_core::accept::Keyed;
use tessera_core::entry::{
    Exactness, Kind, Method, MethodEntry, Needs, NoSettings, Place, Role, Settings, Site,
    defaults_of, read_as, resolve_as, schema_of,
};

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "keyed",
    aliases: &["keyed-acceptance"],
    name: "Keyed acceptance",
    paper: None,
    summary: "Commits the guesses that equal what the plain run draws with the same keys (default).",
    kind: Kind::Policy,
    places: &[Place { role: Role::Accept, site: Site::Whole }],
    exactness: Exactness::BitExact,
    needs: Needs::NONE,
    claims: &[],
    schema: schema_of::<NoSettings>,
    defaults: defaults_of::<NoSettings>,
    neutral: Some(Settings::new),
    read: resolve_as::<NoSettings>,
    build: |settings| {
        read_as::<NoSettings>("keyed", settings).map(|_| Method::Accept(Box::new(Keyed)))
    },
};

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_core::dist::{Key, Sampler, Sampling};
    use tessera_core::{Accept, Decision, Guess};

    #[test]
    fn guesses_change_nothing() {
        let logits = [0.3, 1.0, -0.5, 0.9];
        let mut sampler = Sampler::new(Sampling::neutral()).unwrap();
        for position in 0..50 {
            let key = Key::new(1, 0, position);
            let plain = sampler.draw(&logits, &[], key).unwrap();
            for token in 0..4 {
                let guesses = [Guess { token, drawn_from: None }];
                let mut decision = Decision {
                    logits: &logits,
                    history: &[],
                    key,
                    sampler: &mut sampler,
                    guesses: &guesses,
                    laws: &[],
                    constrained: None,
                };
                assert_eq!(Keyed.choose(&mut decision).unwrap(), plain);
            }
        }
    }
}
