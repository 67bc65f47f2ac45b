//! Laws of policies that take part in filling masks, on a Markov chain whose every conditional is
//! known.

use std::sync::atomic::AtomicBool;

use tessera_core::dist::Sampling;
use tessera_core::entry::{MethodCall, MethodEntry, Place, Role, Settings, Site};
use tessera_core::{Control, Event, Position};
use tessera_engine::{Completion, Model, Outcome, Recipe, Request, generate};

use crate::laws::Finding;
use crate::{Chain, Words};

/// Whether the entry takes part in filling masks.
pub fn takes_part(entry: &MethodEntry) -> bool {
    let one = |p: &Place| p.role == Role::Unmask || p.site == Site::Window;
    entry.needs.any_subset || entry.places.iter().any(one)
}

/// The chain's denoiser, with its writer as the guide; ten masks after two tokens of prompt, two of
/// which a template fills.
pub fn run(
    entry: &'static MethodEntry,
    settings: Option<Settings>,
    seed: u64,
    choices: usize,
    listener: &mut dyn FnMut(Event<'_>) -> Control,
) -> Result<Outcome, String> {
    let chain = Chain::seeded(5, 21, 2.5);
    let (denoiser, writer) = (chain.denoiser(64), chain.writer(64));
    let letters = Words::new((0..=chain.states()).map(|i| [b'a' + i as u8]));
    let filling = Some(chain.filling());
    let model = Model { backbone: &denoiser, vocabulary: &letters, draft: Some(&writer), filling };
    let calls: Vec<MethodCall> = settings
        .map(|settings| MethodCall { id: entry.slug.to_owned(), settings })
        .into_iter()
        .collect();
    let mut request = Request::new(vec![0, 1]);
    request.recipe = Recipe::resolve(&[entry], &calls).map_err(|e| e.to_string())?;
    request.max_tokens = Some(10);
    request.sampling = Sampling::neutral();
    request.seed = seed;
    request.choices = choices;
    request.ignore_end = true;
    request.canvas.template = vec![(3, 2), (9, 1)];
    request.canvas.prior = vec![1, 2, 3];
    generate(model, &request, listener, &AtomicBool::new(false)).map_err(|e| e.to_string())
}

fn text(
    entry: &'static MethodEntry,
    settings: Option<Settings>,
    seed: u64,
    choices: usize,
) -> Result<Vec<Completion>, String> {
    Ok(run(entry, settings, seed, choices, &mut |_| Control::Continue)?.choices)
}

/// At neutral settings the text is the plain run's, with as many passes.
///
/// # Errors
/// What was found wrong.
pub fn neutral(entry: &'static MethodEntry) -> Finding {
    let Some(settings) = entry.neutral.filter(|_| takes_part(entry)) else { return Ok(()) };
    for seed in 0..10 {
        let plain = text(entry, None, seed, 1)?;
        let made = text(entry, Some(settings()), seed, 1)?;
        if made != plain {
            return Err(format!("seed {seed}: {:?}, plain {:?}", made[0].tokens, plain[0].tokens));
        }
    }
    Ok(())
}

/// A method that promises the plain canvas gives it at its defaults too.
///
/// # Errors
/// What was found wrong.
pub fn bit_exact(entry: &'static MethodEntry) -> Finding {
    for seed in 0..20 {
        let plain = text(entry, None, seed, 1)?;
        let made = text(entry, Some((entry.defaults)()), seed, 1)?;
        if made != plain {
            return Err(format!("seed {seed}: {:?}, plain {:?}", made[0].tokens, plain[0].tokens));
        }
    }
    Ok(())
}

/// Every mask is filled in the end, nothing that was given changes, and what the events say is what
/// the text is.
///
/// # Errors
/// What was found wrong.
pub fn fills(entry: &'static MethodEntry) -> Finding {
    if !takes_part(entry) {
        return Ok(());
    }
    for seed in 0..10 {
        let mut canvas = [None::<u32>; 12];
        let mut length = 12;
        let mut listen = |event: Event<'_>| {
            if let Event::Primed { positions, tokens, .. } = event {
                let pairs = positions.iter().zip(tokens);
                pairs.for_each(|(&p, &t): (&Position, _)| canvas[p as usize] = Some(t));
            }
            if let Event::Denoised { positions, tokens, remasked, length: now, .. } = event {
                let pairs = positions.iter().zip(tokens);
                pairs.for_each(|(&p, &t): (&Position, _)| canvas[p as usize] = Some(t));
                remasked.iter().for_each(|&p| canvas[p as usize] = None);
                length = now;
            }
            Control::Continue
        };
        let made = run(entry, Some((entry.defaults)()), seed, 1, &mut listen)?;
        let tokens = &made.choices[0].tokens;
        if tokens.len() + 2 != length {
            return Err(format!("{} tokens on a canvas of {length}", tokens.len()));
        }
        for (place, &token) in tokens.iter().enumerate() {
            let given = [(3, 2), (9, 1)].into_iter().find(|&(at, _)| at == place);
            match (canvas[place + 2], given) {
                (None, Some((_, right))) if right == token => {}
                (Some(told), None) if told == token => {}
                other => return Err(format!("seed {seed}: place {place} is {token}: {other:?}")),
            }
        }
    }
    Ok(())
}

/// The same seed gives the same text, alone and as the first of three.
///
/// # Errors
/// What was found wrong.
pub fn seeded(entry: &'static MethodEntry) -> Finding {
    if !takes_part(entry) {
        return Ok(());
    }
    let settings = || Some((entry.defaults)());
    let (alone, again) = (text(entry, settings(), 5, 1)?, text(entry, settings(), 5, 3)?);
    match alone[0] == again[0] {
        true => Ok(()),
        false => Err(format!("{:?} alone, {:?} of three", alone[0].tokens, again[0].tokens)),
    }
}
